"""Interventions: exact where nothing is to change, equal to a hand computation where something is, and gone after."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from autointerp import dictionary as dictionaries
from autointerp.config import SubjectSection
from autointerp.dictionary import Dictionary
from autointerp.errors import AutointerpError, DictionaryError, FeatureError, SubjectError
from autointerp.intervene import Edit, intervening, written_by
from autointerp.subject import Subject

from .conftest import write_dictionary

POINT = "model.layers.1"
TOKENS = torch.arange(2, 26).reshape(2, 12)


@pytest.fixture(scope="module")
def subject(tiny: dict[str, Path]) -> Subject:
    return Subject.load(SubjectSection(model=str(tiny["subject"]), dtype="float32", device="cpu"))  # type: ignore[call-arg]


def toy(architecture: str = "standard", **changes: object) -> Dictionary:
    """Three features that read coordinates 0, 1, 2, and write along them with the lengths 1, 2 and 3."""
    decoder = torch.zeros(3, 32)
    decoder[[0, 1, 2], [0, 1, 2]] = torch.tensor([1.0, 2.0, 3.0])
    encoder = torch.zeros(32, 3)
    encoder[[0, 1, 2], [0, 1, 2]] = 1.0
    return Dictionary(
        "toy",
        architecture,
        encoder,
        torch.zeros(3),
        decoder,
        torch.zeros(32),
        k=2,
        **changes,  # type: ignore[arg-type]
    )


@torch.no_grad()
def logits(subject: Subject) -> Tensor:
    found: Tensor = subject.model(input_ids=TOKENS, use_cache=False).logits
    return found


def at(subject: Subject, point: str = POINT) -> Tensor:
    return subject.activations(TOKENS, [point])[point]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_addition_of_nothing_changes_no_logit(tiny: dict[str, Path], dtype: torch.dtype) -> None:
    name = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
    subject = Subject.load(SubjectSection(model=str(tiny["subject"]), dtype=name, device="cpu"))  # type: ignore[call-arg]
    dictionary = dictionaries.load(str(tiny["dictionary"]))
    before = logits(subject)
    with intervening(subject, POINT, dictionary, [Edit(5, "add", 0.0)]):
        assert torch.equal(logits(subject), before)
    with intervening(subject, POINT, dictionary, [Edit(5, "add", 1.0)]):
        assert not torch.equal(logits(subject), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ablating_what_does_not_fire_changes_no_logit(tiny: dict[str, Path], dtype: str) -> None:
    subject = Subject.load(SubjectSection(model=str(tiny["subject"]), dtype=dtype, device="cpu"))  # type: ignore[call-arg]
    dictionary = dictionaries.load(str(tiny["dictionary"]))
    x = at(subject).reshape(-1, 32)
    fired = set(dictionary.to(subject.device, x.dtype).encode(x).feature.tolist())
    silent = next(feature for feature in range(64) if feature not in fired)
    before = logits(subject)
    with intervening(subject, POINT, dictionary, [Edit(silent, "ablate")]):
        assert torch.equal(logits(subject), before)
    with intervening(subject, POINT, dictionary, [Edit(min(fired), "ablate")]):
        assert not torch.equal(logits(subject), before)


def test_clamping_equals_a_hand_computation(subject: Subject) -> None:
    x = at(subject)
    expected = x.clone()
    expected[..., 1] += (0.7 - x[..., 1].clamp_min(0)) * 2.0  # its decoder row is 2 long
    with intervening(subject, POINT, toy(), [Edit(1, "clamp", 0.7)]):
        assert torch.allclose(at(subject), expected, atol=1e-6)


def test_ablation_takes_out_what_a_feature_writes_and_nothing_else(subject: Subject) -> None:
    x = at(subject)
    expected = x.clone()
    expected[..., 2] -= x[..., 2].clamp_min(0) * 3.0
    with intervening(subject, POINT, toy(), [Edit(2, "ablate")]):
        assert torch.allclose(at(subject), expected, atol=1e-6)


def test_several_features_are_changed_on_what_was_there_before(subject: Subject) -> None:
    x = at(subject)
    expected = x.clone()
    expected[..., 0] += 1.5 - x[..., 0].clamp_min(0)
    expected[..., 1] -= x[..., 1].clamp_min(0) * 2.0
    expected[..., 2] += 0.5 * 3.0
    edits = [Edit(0, "clamp", 1.5), Edit(2, "add", 0.5), Edit(1, "ablate")]
    with intervening(subject, POINT, toy(), edits):
        assert torch.allclose(at(subject), expected, atol=1e-6)


def test_a_topk_feature_that_lost_has_no_activation(subject: Subject) -> None:
    x = at(subject)
    top = x[..., :3].topk(2, dim=-1).values.min(dim=-1).values
    now = torch.where((x[..., 0] >= top) & (x[..., 0] > 0), x[..., 0], 0)
    assert bool((x[..., 0] > now).any())  # some lost
    expected = x.clone()
    expected[..., 0] += 2.0 - now
    with intervening(subject, POINT, toy("topk"), [Edit(0, "clamp", 2.0)]):
        assert torch.allclose(at(subject), expected, atol=1e-6)


def test_activations_in_units_of_what_is_written_are_added_as_such() -> None:
    assert torch.allclose(written_by(toy(rescale_by_decoder_norm=True), [2])[0, 2], torch.tensor(1.0))
    assert torch.allclose(written_by(toy(), [2])[0, 2], torch.tensor(3.0))


@pytest.mark.parametrize("how", ["constant_norm_rescale", "layer_norm"])
def test_a_normalised_dictionary_is_clamped_in_its_own_units(subject: Subject, how: str) -> None:
    dictionary = toy(normalise=how)
    x = at(subject).reshape(-1, 32)
    before, triples = dictionary.reconstruct(x)
    with intervening(subject, POINT, dictionary, [Edit(1, "ablate")]):
        found = at(subject).reshape(-1, 32)
    kept = triples.feature != 1
    values = torch.zeros(len(x), 3)
    values[triples.position[kept], triples.feature[kept]] = triples.value[kept]
    unit = torch.linalg.vector_norm(x, dim=1) / 32**0.5 if how == "constant_norm_rescale" else x.std(dim=1)
    without = values @ dictionary.W_dec * unit[:, None] + (x.mean(dim=1, keepdim=True) if how == "layer_norm" else 0)
    assert torch.allclose(found - x, without - before, atol=1e-5)


def test_a_hidden_space_is_written_through_the_subjects_own_projection(subject: Subject) -> None:
    point = subject.hookpoint("blocks.1.attn.hook_z")
    before = at(subject, "model.layers.1.self_attn")
    with intervening(subject, point, toy(), [Edit(1, "add", 0.5)]):
        found = at(subject, "model.layers.1.self_attn")
    projection = subject.model.get_submodule("model.layers.1.self_attn.o_proj").weight  # type: ignore[union-attr]
    assert torch.allclose(found - before, (1.0 * projection[:, 1]).expand_as(before), atol=1e-5)  # type: ignore[index]


def test_sinks_are_left_alone(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    x = at(subject)
    norms = x.norm(dim=-1)
    monkeypatch.setattr(
        subject, "max_norm_ratio", float((norms / norms.median(dim=1, keepdim=True).values).max()) * 0.999
    )
    with intervening(subject, POINT, toy(), [Edit(0, "add", 1.0)]):
        same = (at(subject) == x).all(dim=-1)
    assert same.sum() == 1
    assert same.flatten()[int((norms / norms.median(dim=1, keepdim=True).values).argmax())]


def test_hooks_are_removed_after_errors(subject: Subject) -> None:
    before = logits(subject)
    with pytest.raises(RuntimeError, match="inside"), intervening(subject, POINT, toy(), [Edit(0, "add", 9.0)]):
        raise RuntimeError("inside")
    assert torch.equal(logits(subject), before)
    wide = Dictionary("w", "standard", torch.zeros(24, 3), torch.zeros(3), torch.ones(3, 24), torch.zeros(24))
    with (
        pytest.raises(SubjectError, match=r"width 24.*width 32"),
        intervening(subject, POINT, wide, [Edit(0, "add", 1.0)]),
    ):
        logits(subject)
    assert torch.equal(logits(subject), before)
    module = subject.model.get_submodule(POINT)
    assert not module._forward_hooks


@pytest.mark.parametrize(
    ("point", "changes", "edit", "problem", "words"),
    [
        (POINT, {"transcoder": True}, Edit(0, "ablate"), DictionaryError, "transcoder"),
        (POINT + "|rms", {}, Edit(0, "ablate"), DictionaryError, "plain hookpoint"),
        (POINT, {}, Edit(3, "ablate"), FeatureError, "0 to 2, not 3"),
        (POINT, {"wanted": torch.tensor([1])}, Edit(0, "ablate"), FeatureError, "left out"),
        (POINT, {}, Edit(0, "add", float("nan")), FeatureError, "finite"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_pass(
    subject: Subject, point: str, changes: dict[str, object], edit: Edit, problem: type[AutointerpError], words: str
) -> None:
    with pytest.raises(problem, match=words), intervening(subject, point, toy(**changes), [edit]):  # type: ignore[arg-type]
        pass


def test_the_folder_of_a_whole_dictionary_can_be_cut_to_the_held_features(tmp_path: Path, subject: Subject) -> None:
    whole = dictionaries.load(str(write_dictionary(tmp_path / "d", architecture="standard")))
    x = at(subject).reshape(-1, 32)
    value = torch.relu(x @ whole.W_enc[:, 9] + whole.b_enc[9])
    with intervening(subject, POINT, whole, [Edit(9, "ablate")]):
        found = at(subject).reshape(-1, 32)
    assert torch.allclose(found, x - value[:, None] * whole.W_dec[9], atol=1e-5)


def test_each_context_of_a_batch_can_have_an_amount_of_its_own(subject: Subject) -> None:
    x = at(subject)
    held = x.clone()
    held[..., 1] += (torch.tensor([0.7, 0.0])[:, None] - x[..., 1].clamp_min(0)) * 2.0
    with intervening(subject, POINT, toy(), [Edit(1, "clamp", (0.7, 0.0))]):
        assert torch.allclose(at(subject), held, atol=1e-6)
    with intervening(subject, POINT, toy(), [Edit(1, "add", (0.0, 4.0))]):
        found = at(subject)
    assert torch.equal(found[0], x[0])
    assert torch.allclose(found[1, :, 1], x[1, :, 1] + 8.0, atol=1e-5)
