"""The logit lens: against the subject itself, for every kind of final norm, and from two weights alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autointerp import config, lens
from autointerp import dictionary as dictionaries
from autointerp.cli.options import app
from autointerp.config import Settings, SubjectSection
from autointerp.dictionary import Dictionary
from autointerp.errors import DictionaryError
from autointerp.explainers.shown import visible
from autointerp.fence import line
from autointerp.lens import Lens, final_norm, gain_of
from autointerp.pipeline import Pipeline, prepare
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar

from .conftest import tiny_overrides, write_dictionary
from .doubles import FakeDoor
from .families import FAMILIES, build
from .test_pipeline import finished_run, quick_overrides


def test_the_gain_of_a_norm_is_found_by_trying_it() -> None:
    gain = torch.randn(8)
    rms, layer = nn.RMSNorm(8), nn.LayerNorm(8)
    with torch.no_grad():
        rms.weight.copy_(gain)
        layer.weight.copy_(gain)
        layer.bias.copy_(torch.randn(8))
    for norm, centres in ((rms, False), (layer, True)):
        found, centred = gain_of(norm, 8)
        assert torch.allclose(found, gain, atol=1e-4)
        assert centred is centres


def test_gemmas_gain_is_one_more_than_its_weight() -> None:
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

    norm = Gemma2RMSNorm(8)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-0.5, 0.5, 8))
    found, centred = gain_of(norm, 8)
    assert torch.allclose(found, 1 + norm.weight, atol=1e-4)
    assert not centred


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_orders_tokens_as_the_subjects_own_head_does(family: str) -> None:
    model: Any = build(family)
    name, norm = final_norm(model)
    assert name.count(".") == 1
    head = model.get_output_embeddings()
    gain, centred = gain_of(norm, head.weight.shape[1])
    for seed in range(5):
        direction = torch.randn(16, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            through = head(norm(1e4 * direction)) - head(norm(-1e4 * direction))  # biases cancel
        found = head.weight @ (gain * (direction - direction.mean() if centred else direction))
        assert torch.equal(found.argsort(), through.argsort())


# -- from files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dictionary(tiny: dict[str, Path]) -> Dictionary:
    return dictionaries.load(str(tiny["dictionary"]))


def test_the_lens_reads_two_weights_of_a_folder(
    tiny: dict[str, Path], dictionary: Dictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lens, "load_causal_lm", None)  # the whole model is not loaded
    subject = SubjectSection(model=str(tiny["subject"]))  # type: ignore[call-arg]
    model = Subject.load(SubjectSection(model=str(tiny["subject"]), dtype="float32", device="cpu")).model  # type: ignore[call-arg]
    found = Lens(subject, dictionary)
    for feature in (0, 17):
        with torch.no_grad():
            own = model.lm_head(model.model.norm(dictionary.W_dec[feature]))
        assert torch.equal(found.logits(feature).argsort(), own.argsort())


def test_promoted_tokens_are_text_and_in_order(tiny: dict[str, Path], dictionary: Dictionary) -> None:
    found = Lens(SubjectSection(model=str(tiny["subject"])), dictionary)  # type: ignore[call-arg]
    tokens = found.promoted(3, 5)
    assert len(tokens) == len(set(tokens)) == 5
    assert not {"<s>", "</s>"} & set(tokens)
    tokenizer = Subject.reader(SubjectSection(model=str(tiny["subject"]))).tokenizer  # type: ignore[call-arg]
    logits = found.logits(3)
    values = [float(logits[tokenizer(token, add_special_tokens=False)["input_ids"][0]]) for token in tokens]
    assert values == sorted(values, reverse=True)


def test_a_part_of_a_dictionary_promotes_what_the_whole_does(tiny: dict[str, Path], tmp_path: Path) -> None:
    whole = dictionaries.load(str(write_dictionary(tmp_path / "d", architecture="standard")))
    part = whole.only(torch.tensor([5, 9]))
    subject = SubjectSection(model=str(tiny["subject"]))  # type: ignore[call-arg]
    assert Lens(subject, part).promoted(9) == Lens(subject, whole).promoted(9)


def test_a_unit_and_its_opposite_promote_opposite_tokens(tiny: dict[str, Path]) -> None:
    units = Dictionary("u", "units", torch.empty(32, 0), torch.empty(0), torch.empty(0, 32), torch.zeros(32))
    found = Lens(SubjectSection(model=str(tiny["subject"])), units)  # type: ignore[call-arg]
    assert torch.allclose(found.logits(3), -found.logits(35))


def test_directions_of_another_width_are_refused_before_any_work(tiny: dict[str, Path], tmp_path: Path) -> None:
    settings = config.load(None, tiny_overrides(tiny, tmp_path))
    with pytest.raises(DictionaryError, match=r"width 24.*logit_lens = false"):
        lens.check(Subject.sketch(settings.subject), dictionaries.load(str(write_dictionary(tmp_path / "d", d_in=24))))


def test_promoted_tokens_stand_in_the_prompt_where_they_are_asked_for(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run(tiny), tmp_path / "t")
    door = FakeDoor(lambda job: "colours")
    monkeypatch.setattr("autointerp.pipeline.Door", door)
    given = {"explainer__methods": '["marks", "max-act-logits"]', "explainer__logit_lens": "true"}
    settings: Settings = config.load(None, quick_overrides(tiny, tmp_path, **given))
    with Store.create(settings.database) as store, Bar(enabled=False) as bar:
        Pipeline(store, prepare(settings), bar, lambda _: None).labellings[0].explain()
    expected = Lens(settings.subject, dictionaries.load(str(tiny["dictionary"])))
    assert len(door.asked) == 12
    for job in door.asked:
        listed = ", ".join(f'"{line(visible(token))}"' for token in expected.promoted(job.key[0]))
        assert f"most first: {listed}\n" in job.request.messages[-1][1]


# -- all features of a run ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """The finished run without its lens."""
    folder = Path(shutil.copytree(finished_run(tiny), tmp_path / "t"))
    with Store.create(folder / "run.duckdb") as store:
        store.db.execute("DELETE FROM lens")
    return folder


def test_the_table_holds_what_a_direct_computation_gives(
    run: Path, tiny: dict[str, Path], dictionary: Dictionary, capsys: pytest.CaptureFixture[str]
) -> None:
    app(["lens", str(run), "--json"], standalone_mode=False)
    captured = capsys.readouterr()
    table = {row["feature"]: row for row in json.loads(captured.out)}
    assert sorted(table) == list(range(64))
    assert "lens: 64 ok" in captured.err
    subject = Subject.load(SubjectSection(model=str(tiny["subject"]), dtype="float32", device="cpu"))  # type: ignore[call-arg]
    model: Any = subject.model
    tokens = [subject.tokenizer.decode([i]) for i in range(400)]
    text = [i for i, token in enumerate(tokens) if i > 1 and token.strip() and "\ufffd" not in token]
    for feature, row in table.items():
        with torch.no_grad():
            own = model.lm_head(model.model.norm(dictionary.W_dec[feature]))[text]
        scaled = (own - own.mean()) / own.std()
        up, down = scaled.sort(descending=True), scaled.sort()
        assert row["promoted"] == [tokens[text[i]] for i in up.indices[:10]]
        assert row["suppressed"] == [tokens[text[i]] for i in down.indices[:10]]
        assert row["promoted_by"] == pytest.approx(up.values[:10].tolist(), abs=1e-4)
        assert row["suppressed_by"] == pytest.approx(down.values[:10].tolist(), abs=1e-4)


def test_a_lens_is_computed_once_and_shown(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    app(["show", "3", str(run), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["lens"] is None
    app(["lens", str(run), "--all"], standalone_mode=False)
    capsys.readouterr()
    app(["lens", str(run), "--json"], standalone_mode=False)
    again = capsys.readouterr()
    assert "lens:" not in again.err
    row = json.loads(again.out)[3]
    app(["show", "3", str(run), "--json"], standalone_mode=False)
    shown = json.loads(capsys.readouterr().out)["lens"]
    assert shown["promoted"] == row["promoted"]
    app(["show", "3", str(run)], standalone_mode=False)
    line_ = next(part for part in capsys.readouterr().out.splitlines() if part.startswith("promotes"))
    assert line_.split()[1:4] == [token.strip() for token in row["promoted"][:3]]


@pytest.mark.parametrize("conv", [False, True])
def test_a_hidden_direction_is_read_through_the_output_projection(
    tmp_path: Path, tiny: dict[str, Path], conv: bool
) -> None:
    if conv:  # GPT-2 holds its weights the other way round
        model: Any = build("gpt2")
        where, point = tmp_path / "gpt2", "transformer.h.1.mlp.c_proj:input"
        model.save_pretrained(where)
        Subject.reader(SubjectSection(model=str(tiny["subject"]))).tokenizer.save_pretrained(where)  # type: ignore[call-arg]
    else:
        where, point = tiny["subject"], "model.layers.1.self_attn.o_proj:input"
        model = Subject.load(SubjectSection(model=str(where), dtype="float32", device="cpu")).model  # type: ignore[call-arg]
    projection = model.get_submodule(point.removesuffix(":input"))
    width = projection.weight.shape[0 if conv else 1]
    hidden = dictionaries.load(str(write_dictionary(tmp_path / "d", d_in=width)))
    subject = SubjectSection(model=str(where))  # type: ignore[call-arg]
    lens.check(Subject.sketch(subject), hidden, point)
    _, norm = final_norm(model)
    with torch.no_grad():
        bias = projection(torch.zeros(1, width))[0]
        direction = projection(hidden.W_dec[5][None])[0] - bias
        head = model.get_output_embeddings()
        through = head(norm(1e4 * direction)) - head(norm(-1e4 * direction))
    assert torch.equal(Lens(subject, hidden, point).logits(5).argsort(), through.argsort())
