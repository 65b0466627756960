"""Each architecture encodes as its definition says, written out here densely; folding, units and nulls keep their word."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from autointerp.config import Settings
from autointerp.dictionary import Dictionary, Triples, encode
from autointerp.dictionary.encode import ARCHITECTURES, COMPETING, normalised, randomised, tau_of, units
from autointerp.errors import DictionaryError

D, WIDTH, N = 12, 40, 83
CPU = torch.device("cpu")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = numbers(N, D, seed=1) + 0.5


def made(architecture: str, **options: Any) -> Dictionary:
    """Random weights whose decoder rows have norms between about .5 and 3."""
    if architecture == "units":
        return units(D, tau_of(numbers(500, D, seed=9) + 0.5, quantile=0.9))
    weights: dict[str, Any] = {
        "W_enc": numbers(D, WIDTH, seed=2) / D**0.5, "b_enc": numbers(WIDTH, seed=3) * 0.2,
        "W_dec": numbers(WIDTH, D, seed=4) * torch.linspace(0.15, 0.9, WIDTH)[:, None], "b_dec": numbers(D, seed=5) * 0.3,
    }  # fmt: skip
    if architecture in COMPETING:
        weights["k"] = 5
    if architecture == "jumprelu":
        weights["threshold"] = torch.linspace(-0.2, 0.8, WIDTH)
    if architecture == "gated":
        weights |= {"r_mag": numbers(WIDTH, seed=6) * 0.5, "b_mag": numbers(WIDTH, seed=7) * 0.3}
    return Dictionary(name="d", architecture=architecture, identity="x", **(weights | options))


def by_definition(d: Dictionary, x: Tensor) -> Tensor:
    """Activations [position, feature], from the papers, with nothing shared with the code under test."""
    if d.architecture == "units":
        both = torch.cat([x, -x], dim=1)
        return both * ((both > d.threshold) & (both > 0))
    x = x - d.b_dec if d.apply_b_dec_to_input else x
    if d.architecture == "gated":
        gate = (x @ d.W_enc + d.b_enc > 0).float()
        return gate * (x @ (d.W_enc * d.r_mag.exp()) + d.b_mag).relu()
    h = x @ d.W_enc + d.b_enc
    if d.architecture == "standard":
        return h.relu()
    if d.architecture == "jumprelu":
        return h.relu() * (h > d.threshold)
    if d.architecture == "topk":
        return torch.zeros_like(h).scatter(1, h.topk(d.k).indices, h.topk(d.k).values).relu()
    groups = h.relu().view(len(h), d.k, -1)
    best = groups.max(dim=2, keepdim=True)
    return torch.zeros_like(groups).scatter(2, best.indices, best.values).view(len(h), -1)


def dense(triples: Triples, n: int, width: int) -> Tensor:
    result = torch.zeros(n, width)
    result[triples.position, triples.feature] = triples.value.float()
    return result


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- definitions -------------------------------------------------------------------------------------------------------


def test_every_architecture_encodes_by_its_definition(architecture: str) -> None:
    d = made(architecture)
    expected = by_definition(d, X)
    assert 50 < (expected > 0).sum() < expected.numel() / 1.5
    close(dense(d.encode(X), N, d.width), expected)


def test_every_value_is_above_zero(architecture: str) -> None:
    assert (made(architecture).encode(X).value > 0).all()


def test_chunks_and_buffers_change_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dense(made(architecture).encode(X), N, made(architecture).width)
    for size in (1, 7, 83):
        monkeypatch.setattr(encode, "ENCODE_CHUNK_TOKENS", size)
        d = made(architecture)
        close(dense(d.encode(X), N, d.width), whole)
        close(dense(d.encode(X), N, d.width), whole)


def test_the_fixed_slots_of_a_gpu_hold_what_the_cpu_finds(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dense(made(architecture).encode(X), N, made(architecture).width)

    def as_on_a_gpu(hidden: Tensor, fires: Tensor, slots_per_token: int, start: int) -> encode.Slots:
        return encode.static_slots(hidden, fires, slots_per_token * len(hidden), start)

    monkeypatch.setattr(encode, "_sparse", as_on_a_gpu)
    monkeypatch.setattr(encode, "SLOTS_PER_TOKEN", 1)  # too few: encoded again with more
    monkeypatch.setattr(encode, "ENCODE_CHUNK_TOKENS", 10)
    d = made(architecture)
    close(dense(d.encode(X), N, d.width), expected)


def test_only_some_features_encode_and_reconstruct_as_in_the_whole(architecture: str) -> None:
    d = made(architecture)
    some = torch.tensor([0, 3, 17, 18, d.width - 1])
    part, whole = d.only(some), dense(d.encode(X), N, d.width)
    keep = torch.zeros(d.width, dtype=torch.bool).index_fill_(0, some, True)
    assert part.width == d.width
    x_hat, triples = part.reconstruct(X)
    close(dense(triples, N, d.width), whole * keep)
    if architecture != "units":
        close(x_hat, (whole * keep) @ d.W_dec + d.b_dec)


def test_encoding_needs_no_decoder(architecture: str) -> None:
    d = made(architecture)
    stripped = d.for_encoding()
    assert architecture == "units" or stripped.W_dec.numel() == 0
    close(dense(stripped.encode(X), N, d.width), dense(d.encode(X), N, d.width))


def test_only_features_that_compete_follow_the_dtype_of_the_subject(architecture: str) -> None:
    assert made(architecture).encoding_dtype(torch.bfloat16) == (
        torch.bfloat16 if architecture in COMPETING else torch.float32
    )


def test_a_threshold_decides_alike_for_a_subject_in_bfloat16_and_the_same_numbers_in_float32() -> None:
    x, d = X.bfloat16(), made("jumprelu")
    served = d.to(CPU, d.encoding_dtype(torch.bfloat16))
    assert torch.equal(dense(served.encode(x), N, WIDTH) > 0, by_definition(d, x.float()) > 0)


# -- reconstruction ----------------------------------------------------------------------------------------------------


def test_a_reconstruction_adds_what_fires(architecture: str) -> None:
    d = made(architecture)
    acts = by_definition(d, X)
    x_hat, _ = d.reconstruct(X)
    close(x_hat, acts[:, :D] - acts[:, D:] if architecture == "units" else acts @ d.W_dec + d.b_dec)


def test_run_time_norms_are_undone() -> None:
    norm = X.norm(dim=1, keepdim=True)
    d = made("standard", normalise="constant_norm_rescale")
    inside = X * D**0.5 / norm
    close(d.reconstruct(X)[0], (by_definition(d, inside) @ d.W_dec + d.b_dec) * norm / D**0.5)
    d = made("standard", normalise="layer_norm")
    mean, deviation = X.mean(dim=1, keepdim=True), X.std(dim=1, keepdim=True)
    inside = (X - mean) / (deviation + 1e-5)
    close(d.reconstruct(X)[0], (by_definition(d, inside) @ d.W_dec + d.b_dec) * deviation + mean)
    assert torch.equal(normalised(X, "none"), X)


def test_centring_takes_the_mean_off_and_puts_it_back() -> None:
    d, mean = made("topk", centre=True), X.mean(dim=1, keepdim=True)
    x_hat, triples = d.reconstruct(X)
    acts = by_definition(d, X - mean)
    close(dense(triples, N, WIDTH), acts)
    close(x_hat, acts @ d.W_dec + d.b_dec + mean)


def test_a_transcoder_predicts_another_width_and_its_skip_reads_raw_activations() -> None:
    options = {
        "W_dec": numbers(WIDTH, 7, seed=4), "b_dec": numbers(7, seed=5), "W_skip": numbers(7, D, seed=8),
        "transcoder": True, "apply_b_dec_to_input": False, "normalise": "constant_norm_rescale",
    }  # fmt: skip
    d = made("standard", **options)
    acts = by_definition(d, X * D**0.5 / X.norm(dim=1, keepdim=True))
    x_hat, triples = d.reconstruct(X)
    close(dense(triples, N, WIDTH), acts)
    close(x_hat, acts @ d.W_dec + d.b_dec + X @ d.W_skip.T)


def test_an_input_scale_folded_in_reads_raw_activations() -> None:
    for name in ("standard", "topk", "gated", "jumprelu"):
        d = made(name)
        folded = d.fold_input_scale(0.25)
        x_hat, triples = folded.reconstruct(X)
        acts = by_definition(d, X * 0.25)
        close(dense(triples, N, WIDTH), acts)
        close(x_hat, (acts @ d.W_dec + d.b_dec) / 0.25)
        assert folded.input_scale == 0.25


# -- decoder norms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["standard", "jumprelu", "gated", "topk", "groupmax"])
def test_folding_decoder_norms_scales_activations_and_nothing_else(name: str) -> None:
    d = made(name, rescale_by_decoder_norm=name in COMPETING)
    folded = d.fold_decoder_norm()
    before, after = dense(d.encode(X), N, WIDTH), dense(folded.encode(X), N, WIDTH)
    norms = d.W_dec.norm(dim=1)
    assert norms.max() > 2 * norms.min()
    close(after, before if d.rescale_by_decoder_norm else before * norms)
    close(folded.reconstruct(X)[0], d.reconstruct(X)[0])
    close(folded.W_dec.norm(dim=1), torch.ones(WIDTH))
    assert folded.decoder_norm_folded
    assert folded.identity != d.identity
    assert folded.fold_decoder_norm() is folded


@pytest.mark.parametrize("name", sorted(COMPETING))
def test_folding_that_would_change_the_winners_is_refused(name: str) -> None:
    with pytest.raises(DictionaryError, match="other features would win"):
        made(name).fold_decoder_norm()
    rows = torch.nn.functional.normalize(numbers(WIDTH, D, seed=4), dim=1)
    d = made(name, W_dec=rows)
    assert torch.equal(d.fold_decoder_norm().W_enc, d.W_enc)


def test_a_dictionary_without_its_decoder_folds_nothing() -> None:
    with pytest.raises(DictionaryError, match="without its decoder"):
        made("standard").for_encoding().fold_decoder_norm()


# -- units -------------------------------------------------------------------------------------------------------------


def test_units_fire_above_tau_in_both_directions() -> None:
    d = units(2, torch.tensor([1.0, 0.5, 2.0, -3.0]))
    found = d.encode(torch.tensor([[1.5, 0.4], [1.0, 0.6], [-2.5, -0.1]]))
    entries = set(zip(found.position.tolist(), found.feature.tolist(), [round(v, 3) for v in found.value.tolist()]))
    # tau of -x_1 is below 0: a unit fires where it is positive at least
    assert entries == {(0, 0, 1.5), (1, 1, 0.6), (2, 2, 2.5), (2, 3, 0.1)}
    assert (d.width, d.d_in) == (4, 2)


def test_tau_is_the_quantile_of_each_unit_and_of_its_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers(1000, 5, seed=3)
    expected = torch.quantile(torch.cat([x, -x], dim=1), 0.995, dim=0)
    close(tau_of(x), expected)
    monkeypatch.setattr(encode, "QUANTILE_ELEMENTS", 2500)  # two columns at a time
    close(tau_of(x), expected)
    fires = units(5, tau_of(x)).encode(x)
    assert torch.bincount(fires.feature, minlength=10).tolist() == [5] * 10


def test_a_tau_that_does_not_fit_is_refused() -> None:
    for tau in (torch.zeros(3), torch.full((4,), float("nan"))):
        with pytest.raises(DictionaryError, match="tau must be 4 finite numbers"):
            units(2, tau)


def test_the_identity_of_units_follows_tau() -> None:
    assert units(1, torch.tensor([1.0, 2.0])).identity != units(1, torch.tensor([1.0, 2.5])).identity


# -- nulls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["standard", "jumprelu", "gated", "topk", "groupmax"])
def test_a_random_dictionary_keeps_the_rule_and_draws_the_directions(name: str) -> None:
    d = made(name)
    null = randomised(d, seed=3)
    close(null.W_dec.norm(dim=1), torch.ones(WIDTH))
    close(null.W_enc, null.W_dec.T * d.W_enc.norm(dim=0))
    assert null.W_dec.mul(d.W_dec).sum().abs() < d.W_dec.norm(dim=1).sum() / 4
    for kept in ("b_enc", "b_dec", "threshold", "r_mag", "b_mag", "k", "architecture"):
        assert getattr(null, kept) is getattr(d, kept)
    assert null.name == "d-random"
    assert null.random
    assert len({d.identity, null.identity, randomised(d, 4).identity}) == 3
    assert torch.equal(randomised(d, 3).W_enc, null.W_enc)
    assert not torch.equal(randomised(replace(d, identity="another"), 3).W_enc, null.W_enc)
    close(dense(null.encode(X), N, WIDTH), by_definition(null, X))


def test_norms_that_are_part_of_the_rule_survive_randomising() -> None:
    d = made("topk", rescale_by_decoder_norm=True)
    close(randomised(d, 0).W_enc.norm(dim=0), d.W_enc.norm(dim=0) * d.W_dec.norm(dim=1))


def test_a_random_transcoder_reads_and_writes_directions_of_its_own() -> None:
    null = randomised(made("standard", W_dec=numbers(WIDTH, 7), b_dec=torch.zeros(7), transcoder=True), 0)
    assert (null.W_enc.shape, null.W_dec.shape) == ((D, WIDTH), (WIDTH, 7))


def test_units_cannot_be_randomised() -> None:
    with pytest.raises(DictionaryError, match="no directions"):
        randomised(made("units"), 0)


def test_one_flag_of_the_configuration_gives_a_null_beside_the_dictionary(settings: Callable[..., Settings]) -> None:
    from autointerp import config, targets
    from autointerp.subject import Subject

    one = settings()
    sections = [one.dictionary[0], one.dictionary[0].model_copy(update={"random": True})]
    both = config.Settings.model_validate(one.model_dump() | {"dictionary": [s.model_dump() for s in sections]})
    plain, null = targets.load(both, Subject.sketch(both.subject))
    assert null.dictionary.name == f"{plain.dictionary.name}-random"
    assert null.keys.collection_id != plain.keys.collection_id
    assert null.dictionary.k == plain.dictionary.k
