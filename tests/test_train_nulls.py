"""Nulls that are trained: a frozen decoder, and a dictionary of a subject whose weights were drawn anew."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress
from torch import nn

from autointerp import check, targets
from autointerp.config import Settings
from autointerp.dictionary import load
from autointerp.dictionary.train import Recipe, train_dictionary
from autointerp.errors import DictionaryError, SubjectError
from autointerp.redraw import mean_and_deviation, redraw
from autointerp.subject import Subject

from . import test_cli
from .conftest import tiny_overrides
from .families import build
from .test_cli import Autointerp, refused, sets

autointerp = test_cli.autointerp  # the fixture that runs a command in this process

Make = Callable[..., Settings]
QUICK = {"width": 64, "k": 8, "tokens": 40_000, "buffer": 20_000, "batch": 256, "lr": 3e-3}


@pytest.fixture
def trained(settings: Make, tmp_path: Path) -> Callable[..., Path]:
    """A folder that `train_dictionary` wrote: recipe keys as they are, settings as section__key."""
    pytest.importorskip("sae_lens", reason="needs the extra `train`")

    def make(name: str, **keys: Any) -> Path:
        asked = {key: keys.pop(key) for key in list(keys) if "__" in key}
        found = settings(**asked)
        recipe = Recipe(**(QUICK | {"seed": found.run.seed} | keys))
        train_dictionary(found, recipe, tmp_path / name, Progress(disable=True))
        return tmp_path / name

    return make


# -- a frozen decoder --------------------------------------------------------------------------------------------------


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The decoder as SAELens' trainer was given it, then as it gave it back."""
    from sae_lens.training.sae_trainer import SAETrainer

    seen: list[torch.Tensor] = []
    fit = SAETrainer.fit

    def watched(self: Any) -> Any:
        seen.append(self.sae.W_dec.detach().clone())
        sae = fit(self)
        seen.append(sae.W_dec.detach().clone())
        return sae

    monkeypatch.setattr(SAETrainer, "fit", watched)
    return seen


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_a_frozen_decoder_is_bit_for_bit_what_it_was_drawn_as(
    trained: Callable[..., Path], decoders: list[torch.Tensor], architecture: str
) -> None:
    folder = trained("frozen", architecture=architecture, frozen_decoder=True)
    before, after = decoders
    assert torch.equal(before, after)
    dictionary = load(str(folder))
    assert torch.equal(dictionary.W_dec, before)  # also once it is written and read
    assert torch.linalg.vector_norm(before, dim=1).sub(1).abs().max() < 1e-3  # unit rows, but for float16
    assert (before @ before.T).fill_diagonal_(0).abs().mean() < 0.2  # 1/sqrt(32) = .18 between random directions
    assert dictionary.frozen_decoder
    assert json.loads((folder / "training.json").read_text())["recipe"]["frozen_decoder"] is True


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_all_else_of_a_frozen_decoder_is_trained(trained: Callable[..., Path], architecture: str) -> None:
    short = trained("short", architecture=architecture, frozen_decoder=True, tokens=256, l1=0.1)
    longer = trained("longer", architecture=architecture, frozen_decoder=True, l1=0.1)
    first, last = load(str(short)), load(str(longer))
    assert torch.equal(first.W_dec, last.W_dec)  # the seed alone decides
    for name in ("W_enc", "b_enc", "b_dec"):
        assert not torch.allclose(getattr(first, name), getattr(last, name), atol=1e-3), name
    fvu = [json.loads((folder / "training.json").read_text())["held_out"]["fvu"] for folder in (short, longer)]
    assert fvu[1] < 0.8 * fvu[0]


def test_a_decoder_that_is_not_frozen_is_trained(trained: Callable[..., Path], decoders: list[torch.Tensor]) -> None:
    assert not load(str(trained("plain"))).frozen_decoder
    assert not torch.allclose(*decoders, atol=1e-3)


def test_a_frozen_decoder_is_read_by_saelens_as_by_us(trained: Callable[..., Path]) -> None:
    from sae_lens.saes.sae import SAE

    folder = trained("frozen", frozen_decoder=True)
    ours, theirs = load(str(folder)), SAE.load_from_disk(folder, dtype="float32")
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)) * 5
    found = torch.zeros(20, ours.width)
    triples = ours.encode(x)
    found[triples.position, triples.feature] = triples.value
    torch.testing.assert_close(found, theirs.encode(x), rtol=1e-4, atol=1e-5)


def test_the_check_passes_a_frozen_decoder_by_and_says_what_it_is(trained: Callable[..., Path], settings: Make) -> None:
    here = settings(dictionary__source=trained("frozen", frozen_decoder=True))
    finding = checked(here)
    assert finding.configured is None
    assert "a null" in finding.line and "decoder that stayed random" in finding.line
    finding.refuse()


# -- a subject of random weights ---------------------------------------------------------------------------------------


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def model() -> Any:
    return build("gpt2", n_embd=64, vocab_size=500)


def test_every_tensor_is_drawn_anew_with_its_own_mean_and_spread(model: Any) -> None:
    before = parameters(model)
    redraw(model, seed=3)
    for name, after in parameters(model).items():
        n = after.numel()
        mean, deviation = before[name].mean(), before[name].std()
        correlation = torch.corrcoef(torch.stack([before[name].flatten(), after.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4 / n**0.5, name  # embeddings too: nothing of what was learnt is left
        assert abs(float(after.mean() - mean)) < 4 * float(deviation) / n**0.5, name
        assert abs(float(after.std() / deviation) - 1) < 4 / (2 * n) ** 0.5, name


def test_a_constant_tensor_stays(model: Any) -> None:
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight.fill_(1.0)
        model.transformer.h[0].ln_1.bias.zero_()
    redraw(model, seed=0)
    assert torch.equal(model.transformer.h[0].ln_1.weight, torch.ones(64))
    assert not model.transformer.h[0].ln_1.bias.any()


def test_tied_weights_stay_tied(model: Any) -> None:
    redraw(model, seed=0)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_the_draw_depends_on_seed_and_name_alone(model: Any) -> None:
    trained = parameters(model)
    drawn = []
    for seed, threads in ((0, 1), (0, 2), (1, 1)):
        model.load_state_dict(trained, strict=False)
        usual = torch.get_num_threads()
        torch.set_num_threads(threads)
        redraw(model, seed)
        torch.set_num_threads(usual)
        drawn.append(parameters(model))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in trained)
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in trained)
    half = build("gpt2", n_embd=64, vocab_size=500).bfloat16()
    redraw(half, seed=0)  # another dtype is the same draw, rounded
    for name, weight in half.named_parameters():
        torch.testing.assert_close(weight.float(), drawn[0][name], rtol=0.02, atol=0.02)


def test_mean_and_deviation_are_those_of_numpy_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.redraw.CHUNK", 100)
    x = np.random.default_rng(0).normal(3, 0.1, (70, 9)).astype(np.float32)
    assert mean_and_deviation(x) == pytest.approx((x.mean(dtype=np.float64), x.std(dtype=np.float64)), rel=1e-9)


def test_quantised_weights_are_refused(model: Any, settings: Make) -> None:
    model.hf_quantizer = object()
    with pytest.raises(SubjectError, match="quantised"):
        redraw(model, seed=0)
    with pytest.raises(SubjectError, match=r"subject\.quantization = none") as problem:
        Subject.sketch(settings(subject__random=True, subject__quantization="8bit").subject)
    assert len(str(problem.value).splitlines()) == 1


def test_the_subject_of_a_run_is_the_same_wherever_it_is_loaded(settings: Make) -> None:
    from autointerp.sweep import load_replicas

    asked = settings(subject__random=True, run__seed=5)
    here = Subject.load(asked.subject, None, asked.run.seed)
    (replica,) = load_replicas(asked, [])
    others = [Subject.load(settings().subject), Subject.load(asked.subject, None, 6)]
    tokens = torch.arange(2, 14)[None]
    found = [
        subject.activations(tokens, ["model.layers.1"])["model.layers.1"].flatten()
        for subject in (here, replica.subject, *others)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.corrcoef(torch.stack(found))[0, 2:].abs().max() < 0.3


def test_ids_of_trained_subjects_stay_and_random_ones_have_their_own(settings: Make) -> None:
    def collection(**keys: object) -> str:
        asked = settings(**keys)
        (target,) = targets.load(asked, Subject.sketch(asked.subject))
        return target.keys.collection_id

    assert collection() == collection(subject__random=False)
    found = {collection(), collection(subject__random=True), collection(subject__random=True, run__seed=1)}
    assert len(found) == 3


def checked(settings: Settings) -> check.Finding:
    (target,) = targets.load(settings, Subject.sketch(settings.subject))
    subject = Subject.load(settings.subject, None, settings.run.seed)
    return check.check(settings, target, subject)


def test_a_dictionary_of_a_random_subject_is_for_that_subject_alone(
    trained: Callable[..., Path], settings: Make
) -> None:
    folder = trained("null", subject__random=True, run__seed=7)
    dictionary = load(str(folder))
    assert (dictionary.subject_seed, dictionary.frozen_decoder) == (7, False)
    finding = checked(settings(dictionary__source=folder, subject__random=True, run__seed=7))
    assert "a null" in finding.line and "seed 7" in finding.line
    for wrong in ({}, {"subject__random": True, "run__seed": 8}):
        with pytest.raises(DictionaryError, match=r"run\.seed = 7") as problem:
            checked(settings(dictionary__source=folder, **wrong))
        assert len(str(problem.value).splitlines()) == 1


def test_it_reconstructs_the_random_subject_and_not_the_trained_one(
    trained: Callable[..., Path], settings: Make
) -> None:
    folder = trained("null", subject__random=True, subject__hookpoint="model.layers.2")
    dictionary = load(str(folder))
    fvu = []
    for random in (True, False):
        asked = settings(subject__random=random, subject__hookpoint="model.layers.2")
        sample = check.Sample(asked, Subject.load(asked.subject, None, asked.run.seed))
        x = sample.at("model.layers.2")[sample.usable("model.layers.2")].float()
        left = (x - dictionary.reconstruct(x)[0]).pow(2).sum()
        fvu.append(float(left / (x - x.mean(dim=0)).pow(2).sum()))
    assert fvu[0] < 0.5 < fvu[1]


def test_another_dictionary_on_a_random_subject_is_a_null_and_not_refused(
    settings: Make, tiny: dict[str, Path]
) -> None:
    finding = checked(settings(subject__random=True))
    assert finding.configured is None
    assert "a null, a subject of random weights (seed 0): not checked" in finding.line
    finding.refuse()


# -- the command -------------------------------------------------------------------------------------------------------


def test_train_refuses_an_unknown_null(autointerp: Autointerp, tmp_path: Path) -> None:
    refused(autointerp("train", "-o", tmp_path / "new", "--null", "frozen"), "frozen-decoder", "random-subject")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("null", ["frozen-decoder", "random-subject"])
def test_a_null_is_trained_and_collected_by_commands_and_named_in_what_they_say(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path, null: str
) -> None:
    pytest.importorskip("sae_lens", reason="needs the extra `train`")
    folder, on_random = tmp_path / "null", null == "random-subject"
    quick = ("--width", 64, "--k", 8, "--tokens", 8192, "--buffer", 4096)
    usual = tiny_overrides(tiny, tmp_path / "results", dictionary__check="refuse")
    ended = autointerp("train", "-o", folder, "--null", null, *quick, *sets(usual))
    assert ended.code == 0, ended
    assert "FVU" in ended.out
    here = sets([*usual, f"dictionary.source={folder}"])
    if on_random:
        refused(autointerp("collect", *here), "random weights of seed 0", "set subject.random = true and run.seed = 0")
        here += sets(["subject.random=true"])
    ended = autointerp("collect", *here)
    assert ended.code == 0, ended
    assert "a null" in ended.err
    rows = json.loads(autointerp("sql", "SELECT subject FROM collection", tmp_path / "results" / "t", "--json").out)
    assert ("with random weights (seed 0)" in rows[0]["subject"]) == on_random
