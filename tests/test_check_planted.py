"""Mistakes planted on small subjects of the Gemma kind, whose norms after attention and MLP change what is written.

The dictionaries are trained here, by `autointerp train`'s own function, so that activations alone can tell.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch import Tensor

from autointerp import check, config, targets
from autointerp.check import Finding, Sample
from autointerp.dictionary import Dictionary
from autointerp.dictionary.train import Recipe, train_dictionary
from autointerp.subject import Subject
from autointerp.targets import Target

from . import families
from .conftest import tiny_overrides
from .test_check import refused

MLP, ATTENTION = "model.layers.1.post_feedforward_layernorm", "model.layers.1.post_attention_layernorm"


class Bench:
    """A dictionary trained at one hookpoint of a small subject, and checks of it there and elsewhere."""

    def __init__(self, family: str, hookpoint: str, tiny: dict[str, Path], folder: Path, architecture: str) -> None:
        parts = tiny | {"subject": subject_of(family, tiny["subject"], folder / "subject")}
        asked = {"subject__hookpoint": hookpoint, "dictionary__check": "refuse"}
        settings = config.load(None, tiny_overrides(parts, folder / "results", **asked))
        recipe = Recipe(architecture, width=128, k=8, l1=0.5, tokens=50_000, buffer=60_000, batch=256, lr=3e-3)
        train_dictionary(settings, recipe, folder / "sae", Progress(disable=True))
        self.settings = config.load(
            None, tiny_overrides(parts | {"dictionary": folder / "sae"}, folder / "results", **asked)
        )
        self.subject = Subject.load(settings.subject)
        (self.target,) = targets.load(self.settings, Subject.sketch(settings.subject))
        # What its files say is tested apart: here the activations must tell.
        self.dictionary = replace(self.target.dictionary, hookpoint=None)
        self.sample = Sample(self.settings, self.subject)
        self.place = self.subject.hookpoint(hookpoint)

    def check(self, dictionary: Dictionary | None = None, hookpoint: str | None = None) -> Finding:
        planted = replace(self.target.keys, hookpoint=self.subject.hookpoint(hookpoint or self.place))
        target = Target(planted, self.dictionary if dictionary is None else dictionary)
        return check.check(self.settings, target, self.subject, self.sample)

    @property
    def x(self) -> Tensor:
        return self.sample.at(self.place)[self.sample.usable(self.place)].float()


def subject_of(family: str, tokenizer: Path, folder: Path) -> Path:
    """A model of a family with a tokenizer, whose norms after attention and MLP have gains over two decades."""
    model = families.build(family, vocab_size=400, hidden_size=32, max_position_embeddings=256, num_hidden_layers=3)
    random = torch.Generator().manual_seed(0)
    held = 1.0 if family.startswith("gemma") else 0.0  # Gemma multiplies by 1 + weight
    with torch.no_grad():
        for layer in model.model.layers:  # type: ignore[union-attr]
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                norm.weight.copy_(torch.exp(1.2 * torch.randn(32, generator=random)) - held)
    model.save_pretrained(folder)  # type: ignore[operator]
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder)
    return folder


Trained = Callable[..., Bench]


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Benches by family, hookpoint and architecture, each trained once."""
    pytest.importorskip("sae_lens", reason="needs the extra `train`")
    made: dict[tuple[str, str, str], Bench] = {}

    def bench(family: str = "gemma2", hookpoint: str = "blocks.1.hook_mlp_out", architecture: str = "topk") -> Bench:
        key = (family, hookpoint, architecture)
        if key not in made:
            made[key] = Bench(family, hookpoint, tiny, tmp_path_factory.mktemp("bench"), architecture)
        return made[key]

    return bench


# -- raw instead of post-norm ------------------------------------------------------------------------------------------

PLACES = [
    ("blocks.1.hook_mlp_out", "model.layers.1.mlp", MLP),
    ("blocks.1.hook_attn_out", "model.layers.1.self_attn", ATTENTION),
]


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2"])
@pytest.mark.parametrize(("name", "raw", "normed"), PLACES)
def test_raw_instead_of_the_post_norm_hook_is_refused_and_the_hook_named(
    trained: Trained, family: str, name: str, raw: str, normed: str
) -> None:
    bench = trained(family, name)
    right = bench.check()
    assert right.configured is not None
    assert right.configured.hookpoint == normed
    assert right.configured.fvu < 0.3
    assert right.reasons == ()
    refused(bench.check(hookpoint=raw), "much better", f"at {name} ({normed})")


@pytest.mark.parametrize(("name", "raw", "normed"), PLACES)
def test_a_post_norm_hook_instead_of_the_raw_output_is_refused_and_the_raw_place_named(
    trained: Trained, name: str, raw: str, normed: str
) -> None:
    bench = trained("gemma2", raw)
    assert bench.check().reasons == ()
    refused(bench.check(hookpoint=name), "much better", f"{normed}:input")  # which is the raw output


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_relu_and_topk_are_both_told_apart(trained: Trained, architecture: str) -> None:
    bench = trained(architecture=architecture)
    assert bench.check().reasons == ()
    refused(bench.check(hookpoint="model.layers.1.mlp"), "much better", f"at blocks.1.hook_mlp_out ({MLP})")


@pytest.mark.parametrize("layer", [0, 2])
def test_every_neighbouring_layer_is_refused_and_the_right_one_named(trained: Trained, layer: int) -> None:
    refused(trained().check(hookpoint=f"blocks.{layer}.hook_mlp_out"), "much better", f"at layer 1 ({MLP})")


# -- every architecture ------------------------------------------------------------------------------------------------


def of(architecture: str, bench: Bench) -> Dictionary:
    """The bench's topk as another architecture that fires at about the same places."""
    d, width = bench.dictionary, bench.dictionary.width
    hidden = d.pre_activations(bench.x)
    limit = float(hidden.topk(8, dim=1).values[:, -1].median())
    if architecture == "jumprelu":
        return replace(d, architecture="jumprelu", k=None, threshold=torch.full((width,), limit))
    if architecture == "gated":
        r_mag = torch.rand(width, generator=torch.Generator().manual_seed(1)) - 0.5
        return replace(
            d, architecture="gated", k=None, W_enc=d.W_enc / r_mag.exp(), b_enc=(d.b_enc - limit) / r_mag.exp(),
            r_mag=r_mag, b_mag=d.b_enc,
        )  # fmt: skip
    return d


@pytest.fixture(params=["topk", "standard", "jumprelu", "gated"])
def meant(request: pytest.FixtureRequest, trained: Trained) -> tuple[Bench, Dictionary]:
    """A dictionary of each architecture that the check accepts, and where."""
    bench = trained(architecture="standard" if request.param == "standard" else "topk")
    dictionary = of(request.param, bench)
    assert dictionary.architecture == request.param
    assert bench.check(dictionary).reasons == ()
    return bench, dictionary


def with_norms(d: Dictionary) -> Dictionary:
    """The same features with decoder rows of norms .3 to 3.3: activations are smaller by as much."""
    n = torch.rand(d.width, generator=torch.Generator().manual_seed(0)) * 3 + 0.3
    scaled = {name: getattr(d, name) / n for name in ("b_enc", "threshold", "b_mag") if getattr(d, name) is not None}
    return replace(d, **scaled, W_enc=d.W_enc / n, W_dec=d.W_dec * n[:, None])


def test_norms_left_alone_or_folded_on_both_sides_are_not_refused(meant: tuple[Bench, Dictionary]) -> None:
    bench, d = meant
    if d.architecture != "topk":  # there the norms decide who wins
        free = with_norms(d)
        assert bench.check(free).reasons == ()
        finding = bench.check(free.fold_decoder_norm())
        assert finding.reasons == ()
        assert "decoder norms are folded into the activations" in finding.notes


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_norms_folded_on_one_side_are_refused_and_named(meant: tuple[Bench, Dictionary], side: str) -> None:
    bench, d = meant
    wrong = replace(with_norms(d), W_dec=d.W_dec) if side == "decoder" else replace(d, W_dec=with_norms(d).W_dec)
    if d.architecture == "topk" and side == "decoder":
        pytest.skip("other features win: no decoder repairs that")
    refused(bench.check(wrong), "norms half folded?")


# -- on the way into the encoder ---------------------------------------------------------------------------------------


def test_a_dropped_threshold_is_refused_and_named(meant: tuple[Bench, Dictionary]) -> None:
    bench, d = meant
    if d.architecture == "standard":
        pytest.skip("it never had one")
    lost = {
        "topk": {"architecture": "standard", "k": None}, "jumprelu": {"threshold": torch.zeros(d.width)},
        "gated": {"b_enc": torch.zeros(d.width)},
    }  # fmt: skip
    wrong = replace(d, **lost[d.architecture], declared_l0=8.0)
    refused(bench.check(wrong), "threshold dropped?", "declare 8.0")


def offset(bench: Bench, d: Dictionary) -> tuple[Dictionary, Sample]:
    """The dictionary, and the bench's sample, both moved by three standard deviations: there b_dec matters."""
    shift = torch.randn(d.d_in, generator=torch.Generator().manual_seed(2)) * bench.x.std() * 3
    moved = Sample(bench.settings, bench.subject)
    moved.read([bench.place])
    moved._read[bench.place] = moved.at(bench.place) + shift
    b_dec = d.b_dec + shift
    return replace(d, b_dec=b_dec), moved


def test_a_wrong_b_dec_is_refused_and_named(meant: tuple[Bench, Dictionary]) -> None:
    bench, d = meant
    right, moved = offset(bench, d)

    def found(**wrong: object) -> Finding:
        return check.check(bench.settings, Target(bench.target.keys, replace(right, **wrong)), bench.subject, moved)  # type: ignore[arg-type]

    assert found().reasons == ()
    refused(found(apply_b_dec_to_input=False), "if changed: b_dec subtracted from the input")
    refused(found(b_dec=-right.b_dec), "if changed: b_dec of the other sign")
    refused(found(b_dec=torch.zeros(d.d_in)), "its b_dec is zero everywhere (lost?)")


@pytest.mark.parametrize(("transform", "how"), [("rms", "constant_norm_rescale"), ("layernorm", "layer_norm")])
def test_a_lost_run_time_normalisation_is_refused_and_named(trained: Trained, transform: str, how: str) -> None:
    bench = trained("gemma2", f"{MLP}|{transform}")  # trained on activations that were normalised for it
    meant = replace(bench.dictionary, normalise=how)
    assert bench.check(meant, hookpoint=MLP).reasons == ()
    finding = bench.check(hookpoint=MLP)
    refused(finding, "much better")
    best = finding.rivals[0]
    assert f"with run-time normalisation {how}" in {t.what for t in finding.rivals if t.fvu < best.fvu * 1.1}
    wrong = replace(trained().dictionary, normalise=how)  # and one that it never had
    refused(trained().check(wrong), "if changed: without its run-time normalisation")


# -- what is no mistake ------------------------------------------------------------------------------------------------


def test_a_beginning_of_text_is_masked_and_counted_and_no_reason_to_refuse(trained: Trained) -> None:
    bench = trained()
    bos = int(bench.subject.tokenizer.bos_token_id)
    plain = bench.check()
    with_bos = Sample(bench.settings, bench.subject)
    with_bos.tokens[:, 0] = bos
    finding = check.check(bench.settings, Target(bench.target.keys, bench.dictionary), bench.subject, with_bos)
    assert finding.reasons == ()
    assert finding.n_masked == plain.n_masked + len(with_bos.tokens)
    assert f"{finding.n_masked} positions masked (special tokens and attention sinks)" in finding.notes
