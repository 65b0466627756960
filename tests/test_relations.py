"""`autointerp relate`: neighbours within a run, and two dictionaries side by side, as a user has them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from autointerp.relations_json import alike
from autointerp.store import Store

from . import test_cli
from .conftest import write_dictionary
from .test_cli import Autointerp, refused
from .test_merge import collect_into
from .test_pipeline import finished_run, quick_settings

autointerp = test_cli.autointerp  # the fixture that runs a command in this process

WIDTH = 64
ORDER = np.random.default_rng(3).permutation(WIDTH)  # of the features of `tiny` in the permuted dictionary

Collected = Callable[..., Path]


def permuted(tiny: dict[str, Path]) -> Path:
    """The dictionary of `tiny` with its features in another order: feature i is ORDER[i] of the original."""
    folder = tiny["root"] / "permuted"
    if not folder.exists():
        shutil.copytree(tiny["dictionary"], folder)
        tensors = load_file(folder / "sae_weights.safetensors")
        order = torch.from_numpy(ORDER)
        moved = {"W_enc": tensors["W_enc"][:, order], "W_dec": tensors["W_dec"][order], "b_enc": tensors["b_enc"][order]}
        save_file(tensors | {k: v.contiguous() for k, v in moved.items()}, folder / "sae_weights.safetensors")
    return folder


@pytest.fixture
def collected(tiny: dict[str, Path], tmp_path: Path) -> Collected:
    """collected("name", key__x=...) makes a run that was asked for and collected, with no labels; its folder."""

    def make(name: str, **overrides: object) -> Path:
        settings = quick_settings(tiny, tmp_path / "runs", run__name=name, **overrides)
        collect_into(settings.database, settings)
        from autointerp import targets
        from autointerp.subject import Subject

        with Store.create(settings.database) as store:
            for place, target in enumerate(targets.load(settings, Subject.sketch(settings.subject))):
                store.ask(target.keys.run(settings, place))
        return settings.folder

    return make


def related(autointerp: Autointerp, *arguments: object) -> dict[str, Any]:
    ended = autointerp("relate", *arguments, "--json")
    assert ended.code == 0, ended
    (found,) = json.loads(ended.out)
    return found


# -- within a dictionary -----------------------------------------------------------------------------------------------


def test_neighbours_stand_beside_their_labels(autointerp: Autointerp, tiny: dict[str, Path]) -> None:
    run = finished_run(tiny)
    found = json.loads(autointerp("relate", run, "--nearest", 2, "--json").out)
    with Store.read(run / "run.duckdb") as store:
        asked = store.latest_run()
        labels = {e.feature: e.label for e in store.chosen(asked)}
        assert [int(one["feature_id"].rpartition("/")[2]) for one in found] == sorted(asked.features or [])
        for one in found:
            feature = int(one["feature_id"].rpartition("/")[2])
            stored = store.neighbours(asked.collection_id, feature)
            assert one["label"] == labels.get(feature) and one["tokens"]
            for kind in ("firing", "decoder"):
                expected = [(n.other, n.similarity) for n in stored if n.kind == kind][:2]
                assert [(int(n["feature_id"].rpartition("/")[2]), n["similarity"]) for n in one[kind]] == expected
    shown = autointerp("relate", run).out
    assert "writes alike" in shown and all(label[:20] in shown for label in labels.values() if label)


def test_a_run_that_was_only_collected_is_related_whole(autointerp: Autointerp, collected: Collected) -> None:
    run = collected("c")
    refused(autointerp("relate", run), "no features are selected", "--all")
    ended = autointerp("relate", run, "--all", "--json")
    assert "relate: " in ended.err
    found = json.loads(ended.out)
    with Store.read(run / "run.duckdb") as store:
        fired = store.features(store.latest_run().collection_id)["n_tokens"].sum(axis=0) > 0
    assert len(found) == fired.sum() and all(one["label"] is None and one["decoder"] for one in found)
    assert autointerp("relate", run, "--all", "--json").err == ""  # kept in the table


# -- between two -------------------------------------------------------------------------------------------------------


def test_the_same_features_in_another_order_are_all_found(
    autointerp: Autointerp, tiny: dict[str, Path], collected: Collected
) -> None:
    run, other = finished_run(tiny), collected("p", dictionary__source=permuted(tiny))
    found = related(autointerp, run, "--to", other, "--all")
    for measure in ("decoder", "activation"):
        for way in ("a_to_b", "b_to_a"):
            figures = found[measure][way]
            assert figures["share"] == figures["share_mutual"] == 1.0, (measure, way)
            assert figures["mean"] == pytest.approx(1.0, abs=1e-4) and figures["above_chance"] == 1.0
            assert all(null["mean"] < 0.8 and null["share"] < 0.4 for null in figures["null"].values())
    assert found["agreement"] == 1.0 and found["passages"] > 100 and found["splits"] == found["merges"] == []
    for one in found["matches"]:
        feature = int(one["feature_id"].rpartition("/")[2])
        assert ORDER[int(one["decoder"]["feature_id"].rpartition("/")[2])] == feature
        assert set(one["decoder"]["tokens"]) & set(one["tokens"])


def test_labels_of_matches_that_share_a_word_stand_beside_those_of_other_pairs() -> None:
    said = [("tax, duty", "The Tax"), ("peace", "war and peace"), ("12, 1.5", "12"), ("of the", "the law"), ("x", None)]
    rows = [{"label": a, "decoder": {"label": b}, "activation": None} for a, b in said]
    # By decoder: tax, peace and the; numbers have no word. Of the 12 other pairs "of the" has "the" of "The Tax".
    assert alike(rows) == {"decoder": (4, 0.75, 1 / 12)}
    assert alike(rows[:1]) == {}


def test_a_dictionary_without_a_run_is_compared_by_its_rows_alone(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path
) -> None:
    run, picture = finished_run(tiny), tmp_path / "matches.png"
    found = related(autointerp, run, "--to", permuted(tiny), "--picture", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert found["decoder"]["a_to_b"]["share"] == 1.0 and found["splits"] is None
    assert "is no run" in found["activation"]["reason"]
    with Store.read(run / "run.duckdb") as store:
        labels = [e.label for e in store.chosen(store.latest_run())]
    assert [one["label"] for one in found["matches"]] == labels  # those with a label, where --all is not asked for
    assert any("do not say where" in note for note in found["notes"])


def test_random_directions_are_no_matches(autointerp: Autointerp, tiny: dict[str, Path], collected: Collected) -> None:
    found = related(autointerp, finished_run(tiny), "--to", collected("r", dictionary__random="true"))
    figures = found["decoder"]["a_to_b"]
    assert abs(figures["mean"] - figures["null"]["isotropic"]["mean"]) < 0.02
    assert figures["above_chance"] < 0.1


def test_other_layers_are_compared_by_rows_in_the_residual_stream_and_else_by_firings(
    autointerp: Autointerp, tiny: dict[str, Path], collected: Collected
) -> None:
    run = finished_run(tiny)
    earlier = related(autointerp, run, "--to", collected("e", subject__hookpoint="model.layers.0"))
    assert earlier["decoder"]["a_to_b"]["share"] == 1.0  # the very same rows
    assert any("model.layers.0" in note for note in earlier["notes"])
    mlp = related(autointerp, run, "--to", collected("m", subject__hookpoint="model.layers.1.mlp"))
    assert "different spaces" in mlp["decoder"]["reason"] and "model.layers.1.mlp" in mlp["decoder"]["reason"]
    assert mlp["activation"]["a_to_b"]["features"] > 0
    shown = autointerp("relate", run, "--to", run.parent / "t", "--rows", 2)
    assert shown.code == 0 and "100.0%" in shown.out and "more: --rows" in shown.out


def test_plain_units_are_compared_by_firings(autointerp: Autointerp, tiny: dict[str, Path], collected: Collected) -> None:
    found = related(autointerp, finished_run(tiny), "--to", collected("u", dictionary__source="units"))
    assert "plain units" in found["decoder"]["reason"] and found["activation"]["a_to_b"]["features"] > 0


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused(
    autointerp: Autointerp, tiny: dict[str, Path], collected: Collected, tmp_path: Path
) -> None:
    run = finished_run(tiny)
    refused(autointerp("relate", run, "--to", tmp_path / "nowhere"), "neither a run", "nor a dictionary")
    refused(autointerp("relate", tmp_path / "nowhere", "--to", run), "no run at")
    refused(autointerp("relate", tmp_path / "nowhere"), "no run at")
    refused(autointerp("relate", f"{run}@nobody", "--to", run), "nobody", "it holds")
    refused(autointerp("relate", run, "--picture", "x.png"), "--to")
    refused(autointerp("relate", run, "--to", run, "--picture", "x.txt"), ".png")
    refused(autointerp("relate", run, "--to", run, "--dictionary", "sae"), "RUN@NAME")
    narrow = write_dictionary(tmp_path / "narrow", d_in=16)
    refused(autointerp("relate", run, "--to", narrow), "width 16", "expected 32")
    other = tmp_path / "subject"
    shutil.copytree(tiny["subject"], other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    refused(autointerp("relate", run, "--to", collected("o", subject__model=other)), "another subject", str(other))


def test_runs_over_other_texts_have_rows_alone(
    autointerp: Autointerp, tiny: dict[str, Path], collected: Collected, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for i in range(40):
        (text / f"{i}.txt").write_text(f"Number {i}. " + "The harbour was blue and the castle was golden. " * 30, "utf-8")
    found = related(autointerp, finished_run(tiny), "--to", collected("x", corpus__source=text))
    assert "0 passages in common" in found["activation"]["reason"]
    assert found["decoder"]["a_to_b"]["share"] > 0.9 and found["splits"] is None  # some are dead there
