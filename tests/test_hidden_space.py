"""What features do where a dictionary reads a hidden space, of attention or MLP: every command, through the subject's
own output projection."""

import json
from pathlib import Path

import pytest

from autointerp import dictionary as dictionaries
from autointerp import report
from autointerp.config import SubjectSection
from autointerp.store import Store
from autointerp.subject import Subject

from .conftest import write_dictionary
from .test_cli import Autointerp, autointerp, refused  # noqa: F401
from .test_pipeline import quick_settings, run_all

TEXT = "Ada walked to the red river, and it was"
PLACES = {"blocks.1.attn.hook_z": ("self_attn.o_proj", 32), "blocks.1.mlp.hook_post": ("mlp.down_proj", 64)}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(tiny: dict[str, Path], tmp_path: Path, place: str) -> Path:
    source = write_dictionary(tmp_path / "hidden", d_in=PLACES[place][1])
    settings = quick_settings(tiny, tmp_path, dictionary__source=source, dictionary__hookpoint=place)
    run_all(settings)
    return settings.folder


def test_every_command_works_at_a_hidden_space(
    run: Path, place: str, tiny: dict[str, Path], tmp_path: Path, autointerp: Autointerp, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("autointerp.causal.RANDOM", 4)
    monkeypatch.setattr("autointerp.causal.RANDOM_LENS", 4)
    with Store.read(run / "run.duckdb") as store:
        reading = report.read(store)
        module, _ = PLACES[place]
        assert reading.collection["hookpoint"] == f"model.layers.1.{module}:input"
        feature = int(store.features(reading.run.collection_id)["n_tokens"].sum(axis=0).argmax())
    ended = autointerp("steer", str(feature), str(run), "-s", "4", "--prompt", TEXT, "--tokens", "4", "--json")
    assert ended.code == 0, ended
    steered = json.loads(ended.out)["results"][0]
    assert steered["kl"] > 0
    attributed = autointerp("attribute", TEXT, str(run), "--check", "10", "--json")
    assert attributed.code == 0 and json.loads(attributed.out)["check"]["n"] == 10
    causal = autointerp("causal", str(run), "--kl", "0.0005", "--json")
    assert causal.code == 0, causal
    assert any(row["lens_agreement"] is not None for row in json.loads(causal.out)["features"])
    # the lens by hand: the decoder row through the projection, the gain of the norm, the unembedding
    rows = {row["feature"]: row for row in json.loads(autointerp("lens", str(run), "--json").out)}
    model = Subject.load(SubjectSection(model=str(tiny["subject"]), dtype="float32", device="cpu")).model  # type: ignore[call-arg]
    row = dictionaries.load(str(tmp_path / "hidden")).W_dec[feature]
    written = model.get_submodule(f"model.layers.1.{module}").weight.detach() @ row  # type: ignore[operator,union-attr]
    logits = model.lm_head(model.model.norm(written)).detach()
    tokenizer = Subject.reader(SubjectSection(model=str(tiny["subject"]))).tokenizer  # type: ignore[call-arg]
    texts = ((i, tokenizer.decode([i])) for i in logits.argsort(descending=True).tolist())
    readable = (text for i, text in texts if i not in tokenizer.all_special_ids and text.strip() and "\ufffd" not in text)
    assert next(readable) == rows[feature]["promoted"][0]


def test_a_place_that_the_subject_does_not_compute_with_is_said(tiny: dict[str, Path], tmp_path: Path, autointerp: Autointerp) -> None:  # noqa: F811
    """A normalised copy leads nowhere: nothing can be added there."""
    settings = quick_settings(tiny, tmp_path, dictionary__hookpoint="blocks.1.ln1.hook_normalized")
    run_all(settings)
    for command in (["steer", "3", str(settings.folder)], ["attribute", TEXT, str(settings.folder)], ["causal", str(settings.folder)]):
        refused(autointerp(*command), "a copy (rms)")
