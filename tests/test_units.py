"""Plain units: neurons and residual directions as a dictionary, firing above a probed quantile."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autointerp import config, probe, sweep, targets
from autointerp.config import Settings
from autointerp.corpus import contexts
from autointerp.dictionary.encode import TAU_QUANTILE
from autointerp.errors import DictionaryError
from autointerp.store import Store
from autointerp.subject import Subject, pad

from . import test_cli
from .conftest import tiny_overrides
from .test_cli import Autointerp, refused, sets
from .test_merge import collect_into, collected, merge_into, shards_into
from .test_pipeline import quick_overrides

autointerp = test_cli.autointerp  # the fixture that runs a command in this process

NEURONS = "model.layers.1.mlp.down_proj:input"


def of_units(tiny: dict[str, Path], results: Path, **overrides: object) -> list[str]:
    """The tiny parts with the units of a hookpoint instead of the dictionary."""
    return tiny_overrides(tiny, results, **({"dictionary.source": "units"} | overrides))


def whole_corpus(settings: Settings, subject: Subject, hookpoint: str) -> np.ndarray:
    """Activations [token, d] of every usable token of the corpus, in float64."""
    width = settings.collect.context_tokens
    found = [
        c.tokens
        for group in contexts(settings.corpus, subject.tokenizer, width, settings.collect.split_salt)
        for c in group
    ]
    tokens, lengths = pad(found, width)
    activation = subject.activations(tokens, [hookpoint])[hookpoint]
    return activation[subject.usable(tokens, activation, lengths)].double().numpy()


@pytest.mark.parametrize("hookpoint", ["model.layers.1", NEURONS])
def test_each_unit_fires_on_the_share_of_tokens_that_its_threshold_leaves(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path, hookpoint: str
) -> None:
    overrides = of_units(tiny, tmp_path, subject__hookpoint=hookpoint)
    settings = config.load(None, overrides)
    x = whole_corpus(settings, Subject.load(settings.subject), hookpoint)
    assert len(x) < 100_000  # the probe is long enough to have read it all
    assert autointerp("collect", *sets(overrides)).code == 0
    both = np.concatenate([x, -x], axis=1)
    # Of n values in order, those at places above q (n - 1) exceed the quantile.
    above = both > np.maximum(np.quantile(both, TAU_QUANTILE, axis=0), 0)
    with Store.read(settings.database) as store:
        run = store.latest_run()
        counters = store.features(run.collection_id)
        row = store.collection(run.collection_id)
    assert row is not None and row["architecture"] == "units" and row["width"] == both.shape[1]
    found = counters["n_tokens"].sum(axis=0)
    sample = probe.Sample(settings, Subject.load(settings.subject), probe.PROBE_TOKENS)
    if int(sample.lengths.sum()) == sum(row["n_tokens"]) + row["n_masked"]:  # everything was probed
        assert np.abs(found - above.sum(axis=0)).max() <= 1  # a value at the quantile itself, in another precision
    share = found / len(x)
    rising = np.quantile(both, TAU_QUANTILE, axis=0) > 0  # below zero nothing fires: the other sign does
    assert np.abs(share[rising] - (1 - TAU_QUANTILE)).max() < 0.004
    assert found.sum() > 0


def test_shards_of_units_make_the_rows_of_one_pass(tiny: dict[str, Path], tmp_path: Path) -> None:
    settings = config.load(None, of_units(tiny, tmp_path, subject__hookpoint=NEURONS))
    parts = shards_into(tmp_path / "shards", settings, ["1/3", "2/3", "3/3"])
    merged = merge_into(tmp_path / "merged.duckdb", parts)
    assert merged
    assert collected(tmp_path / "merged.duckdb") == collected(collect_into(tmp_path / "whole.duckdb", settings))


def test_the_probe_follows_neither_shard_nor_budget_nor_batch(tiny: dict[str, Path], tmp_path: Path) -> None:
    thresholds = []
    for batch, tokens in ((16, 0), (3, 0), (16, 2000)):
        settings = config.load(None, of_units(tiny, tmp_path, subject__batch_contexts=batch, corpus__tokens=tokens))
        found = targets.load(settings, Subject.sketch(settings.subject))
        thresholds.append(sweep.load_replicas(settings, found)[0].dictionaries[0].threshold)
    for threshold in thresholds[1:]:
        torch.testing.assert_close(threshold, thresholds[0], rtol=1e-5, atol=1e-6)


def test_the_main_job_labels_neurons(autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path) -> None:
    overrides = quick_overrides(
        tiny, tmp_path / "r", dictionary__source="units", dictionary__name="neurons", dictionary__hookpoint=NEURONS,
        dictionary__check="refuse", features__min_passages=3, features__min_documents=2,
    )  # fmt: skip
    assert autointerp("run", *sets(overrides)).code == 0
    ended = autointerp("report", tmp_path / "r/t", "--json")
    found = json.loads(ended.out)
    assert found["fit"]["outcome"] == "unchecked"
    assert {label["feature_id"].split("/")[0] for label in found["labels"]} == {"neurons"}
    assert any(label["label"] for label in found["labels"])
    assert "plain units" in autointerp("report", tmp_path / "r/t").out


def test_units_are_named_after_their_hookpoint(tiny: dict[str, Path], tmp_path: Path) -> None:
    settings = config.load(None, of_units(tiny, tmp_path, subject__hookpoint=NEURONS))
    (target,) = targets.load(settings, Subject.sketch(settings.subject))
    assert target.dictionary.name == "units-model.layers.1.mlp.down_proj-input"
    assert target.dictionary.width == 2 * 64


def test_units_of_two_hookpoints_are_two_collections(tiny: dict[str, Path], tmp_path: Path) -> None:
    ids = set()
    for hookpoint in ("model.layers.0", "model.layers.1", NEURONS):
        settings = config.load(None, of_units(tiny, tmp_path, subject__hookpoint=hookpoint, dictionary__name="n"))
        ids.add(targets.load(settings, Subject.sketch(settings.subject))[0].keys.collection_id)
    assert len(ids) == 3


def test_units_have_no_directions_to_randomise(autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path) -> None:
    overrides = of_units(tiny, tmp_path, dictionary__random="true")
    refused(autointerp("collect", *sets(overrides)), "no directions")


def test_a_probe_without_a_usable_token_is_refused(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.load(None, of_units(tiny, tmp_path))
    subject = Subject.load(settings.subject)
    (target,) = targets.load(settings, subject)
    monkeypatch.setattr(Subject, "special_ids", torch.arange(subject.vocabulary_size))
    with pytest.raises(DictionaryError, match="masked"):
        probe.completed(settings, subject, target.dictionary, target.keys.hookpoint)
