"""The subject is run only as deep as asked, and padding, special tokens and sinks never count."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from autointerp.config import SubjectSection
from autointerp.errors import SubjectError
from autointerp.subject import Subject, load_causal_lm, pad, pick_device, resolve_model

LAYER = "model.layers.1"


def section(tiny: dict[str, Path], **keys: object) -> SubjectSection:
    return SubjectSection(**{"model": str(tiny["subject"]), "dtype": "float32", "device": "cpu"} | keys)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def subject(tiny: dict[str, Path]) -> Subject:
    return Subject.load(section(tiny))


@pytest.fixture(scope="module")
def sketch(tiny: dict[str, Path]) -> Subject:
    return Subject.sketch(section(tiny))


@pytest.fixture
def seen(subject: Subject) -> Iterator[list[str]]:
    """Names of the modules that run, as they run."""
    names: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: names.append(name)

    handles = [m.register_forward_pre_hook(note(name)) for name, m in subject.model.named_modules() if name]
    yield names
    for handle in handles:
        handle.remove()


def tokens_of(n: int, length: int = 20, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(5, 400, (n, length)))


def hooks(subject: Subject) -> int:
    return sum(len(m._forward_hooks) for m in subject.model.modules())


# -- hookpoints ----------------------------------------------------------------------------------------------


def test_a_hookpoint_is_a_full_path_or_a_unique_suffix(subject: Subject, sketch: Subject) -> None:
    for s in (subject, sketch):
        assert s.hookpoint(LAYER) == LAYER
        assert s.hookpoint("layers.1") == LAYER
        assert s.hookpoint("layers.1.mlp") == LAYER + ".mlp"
        assert s.hookpoint("layers.2.mlp.down_proj") == "model.layers.2.mlp.down_proj"


def test_an_ambiguous_hookpoint_is_refused_with_what_it_could_be(subject: Subject) -> None:
    with pytest.raises(SubjectError, match="ambiguous") as problem:
        subject.hookpoint("mlp")
    assert "model.layers.0.mlp" in str(problem.value)


def test_a_suffix_ends_at_a_dot(subject: Subject) -> None:
    with pytest.raises(SubjectError):
        subject.hookpoint("ayers.1")
    with pytest.raises(SubjectError):
        subject.hookpoint("")


def test_an_unknown_hookpoint_is_refused_with_the_nearest_known_one(
    subject: Subject, sketch: Subject
) -> None:
    for s in (subject, sketch):
        with pytest.raises(SubjectError, match=r"did you mean 'model\.layers\.1'"):
            s.hookpoint("model.layer.1")


@pytest.mark.parametrize("path", ["model.layers", "model"])
def test_a_module_that_gives_no_activations_is_refused_in_one_line(subject: Subject, path: str) -> None:
    with pytest.raises(SubjectError, match=path):
        subject.activations(tokens_of(1), [subject.hookpoint(path)])


def test_the_width_of_a_module_that_never_runs_is_unknown_rather_than_a_crash(sketch: Subject) -> None:
    try:
        assert sketch.width_at("model.layers") is None
    except SubjectError as problem:
        assert "model.layers" in str(problem)


@pytest.mark.parametrize(
    "path", [LAYER, "model.layers.1.mlp", "model.layers.0.mlp.gate_proj", "model.layers.2.self_attn"]
)
def test_the_width_on_a_sketch_is_the_real_width(subject: Subject, sketch: Subject, path: str) -> None:
    real = subject.activations(tokens_of(1), [path])[path].shape[-1]
    assert sketch.width_at(path) == subject.width_at(path) == real


def test_a_sketch_holds_no_weights_and_the_same_modules(subject: Subject, sketch: Subject) -> None:
    assert all(p.is_meta for p in sketch.model.parameters())
    assert [n for n, _ in sketch.model.named_modules()] == [n for n, _ in subject.model.named_modules()]
    assert sketch.vocabulary_size == subject.vocabulary_size == 400


# -- running -------------------------------------------------------------------------------------------------


def test_activations_are_the_hidden_states_of_a_plain_forward_pass(subject: Subject) -> None:
    tokens = tokens_of(3)
    with torch.inference_mode():
        states = subject.model(input_ids=tokens, output_hidden_states=True).hidden_states
    found = subject.activations(tokens, ["model.layers.0", LAYER])
    torch.testing.assert_close(found["model.layers.0"], states[1])
    torch.testing.assert_close(found[LAYER], states[2])


def test_the_forward_pass_stops_at_the_last_hookpoint(subject: Subject, seen: list[str]) -> None:
    subject.activations(tokens_of(2), [LAYER])
    assert "model.layers.1.mlp" in seen
    assert not [name for name in seen if name.startswith(("model.layers.2", "model.norm", "lm_head"))]


def test_the_forward_pass_goes_as_deep_as_the_deepest_of_several_hookpoints(
    subject: Subject, seen: list[str]
) -> None:
    found = subject.activations(tokens_of(2), ["model.layers.2.mlp", "model.layers.0"])
    assert set(found) == {"model.layers.2.mlp", "model.layers.0"}
    assert "model.norm" not in seen


def test_no_hook_is_left_after_a_pass(subject: Subject) -> None:
    before = hooks(subject)
    subject.activations(tokens_of(2), ["model.layers.0", LAYER])
    assert hooks(subject) == before


def test_no_hook_is_left_after_an_error(subject: Subject) -> None:
    before = hooks(subject)
    with pytest.raises(IndexError):
        subject.activations(torch.tensor([[10**6]]), [LAYER])
    with pytest.raises(AttributeError):
        subject.activations(tokens_of(1), [LAYER, "model.nowhere"])
    assert hooks(subject) == before


def test_an_error_inside_the_model_is_not_swallowed(subject: Subject) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    handle = subject.model.get_submodule("model.layers.0").register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="planted"):
            subject.activations(tokens_of(1), [LAYER])
    finally:
        handle.remove()


def test_right_padding_cannot_change_real_positions(subject: Subject) -> None:
    real = tokens_of(2, 9)
    alone = subject.activations(real, [LAYER])[LAYER]
    for filler in (0, 1, 77):
        padded = torch.full((2, 30), filler, dtype=torch.int64)
        padded[:, :9] = real
        found = subject.activations(padded, [LAYER])[LAYER][:, :9]
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)


def test_a_context_does_not_see_the_others_in_its_batch(subject: Subject) -> None:
    tokens = tokens_of(4)
    together = subject.activations(tokens, [LAYER])[LAYER]
    for i in range(4):
        alone = subject.activations(tokens[i : i + 1], [LAYER])[LAYER][0]
        torch.testing.assert_close(alone, together[i], rtol=1e-5, atol=1e-6)


def test_a_prepended_bos_is_read_and_cut_off(tiny: dict[str, Path], subject: Subject) -> None:
    tokens = tokens_of(2, 12)
    with_bos = Subject.load(section(tiny, prepend_bos=True))
    found = with_bos.activations(tokens, [LAYER])[LAYER]
    assert found.shape == (2, 12, 32)
    bos = torch.full((2, 1), subject.tokenizer.bos_token_id)
    by_hand = subject.activations(torch.cat([bos, tokens], dim=1), [LAYER])[LAYER][:, 1:]
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, subject.activations(tokens, [LAYER])[LAYER])


def test_padding_token_lists_keeps_them_and_their_lengths() -> None:
    batch, lengths = pad([np.array([3, 4], dtype=np.int32), np.array([5], dtype=np.int32)], 3)
    assert batch.tolist() == [[3, 4, 0], [5, 0, 0]]
    assert lengths.tolist() == [2, 1]


# -- what counts ---------------------------------------------------------------------------------------------


def usable(
    subject: Subject, norms: list[list[float]], lengths: list[int], tokens: Tensor | None = None
) -> list[list[bool]]:
    activation = torch.zeros(len(norms), len(norms[0]), 4)
    activation[..., 2] = torch.tensor(norms)
    tokens = torch.full(activation.shape[:2], 50) if tokens is None else tokens
    return subject.usable(tokens, activation, torch.tensor(lengths)).tolist()


def test_a_planted_high_norm_position_is_masked(subject: Subject) -> None:
    assert usable(subject, [[1, 1, 10.5, 1, 9.5]], [5]) == [[True, True, False, True, True]]


def test_padding_is_never_usable_and_never_moves_the_median(subject: Subject) -> None:
    # With the padding's norms the median would be 100, and 50 would count.
    assert usable(subject, [[1, 1, 50, 100, 100, 100, 100]], [3]) == [[True, True, False, *[False] * 4]]
    # With the padding's zeros it would be 0, and nothing would.
    assert usable(subject, [[1, 2, 0, 0, 0, 0, 0]], [2]) == [[True, True, *[False] * 5]]


def test_whether_a_position_is_a_sink_depends_on_its_own_context_alone(subject: Subject) -> None:
    rows = [[1.0, 1.0, 30.0], [100.0, 100.0, 100.0]]
    both = usable(subject, rows, [3, 3])
    assert both == [usable(subject, rows[i : i + 1], [3])[0] for i in range(2)]
    assert both == [[True, True, False], [True, True, True]]


def test_special_tokens_are_masked_wherever_they_stand(subject: Subject) -> None:
    bos, eos = subject.tokenizer.bos_token_id, subject.tokenizer.eos_token_id
    tokens = torch.tensor([[bos, 50, eos, 50, bos]])
    assert usable(subject, [[1, 1, 1, 1, 1]], [5], tokens) == [[False, True, False, True, False]]


def test_a_ratio_of_the_settings_reaches_the_rule(tiny: dict[str, Path]) -> None:
    strict = Subject.load(section(tiny, max_norm_ratio=2.0))
    assert usable(strict, [[1, 1, 1, 2.5]], [4]) == [[True, True, True, False]]


def test_a_context_of_one_token_is_usable(subject: Subject) -> None:
    assert usable(subject, [[3, 0]], [1]) == [[True, False]]


# -- tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["Ada walked", "naïve café — “q”", "日本語テキスト", "👩‍👩‍👧 family 🏳️‍🌈", "\t\n\x00\x7f", "ñ", "¡¬®ÿĀ"],
)
def test_token_bytes_concatenate_to_the_texts_utf8(subject: Subject, text: str) -> None:
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(subject.token_bytes(i) for i in ids) == text.encode()


def test_characters_of_several_bytes_are_spread_over_tokens_here(subject: Subject) -> None:
    ids = subject.tokenizer("👋", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4  # else the test above would say little
    assert [len(subject.token_bytes(i)) for i in ids] == [1, 1, 1, 1]


def test_every_token_of_the_vocabulary_has_bytes_and_ids_beyond_it_have_none(subject: Subject) -> None:
    assert all(subject.token_bytes(i) for i in range(400))
    assert subject.token_bytes(0) == b"<s>"
    assert subject.token_bytes(10**6) == b""


def test_byte_tokens_and_word_marks_of_sentencepiece_are_understood(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = {1: "<0xF0>", 2: "▁word", 3: "né"}
    plain = Subject(subject.model, subject.tokenizer, "s", subject.device)
    monkeypatch.setattr(Subject, "_byte_level", False)
    monkeypatch.setattr(type(subject.tokenizer), "convert_ids_to_tokens", lambda _, i: pieces[i])
    assert [plain.token_bytes(i) for i in (1, 2, 3)] == [b"\xf0", b" word", "né".encode()]


# -- what does not fit ---------------------------------------------------------------------------------------


def test_contexts_longer_than_the_position_limit_are_refused(subject: Subject, sketch: Subject) -> None:
    for s in (subject, sketch):
        s.check_context(256)
        with pytest.raises(SubjectError, match="256") as problem:
            s.check_context(257)
        assert "collect.context_tokens = 257" in str(problem.value)


def test_a_prepended_bos_needs_a_position_too(tiny: dict[str, Path]) -> None:
    with pytest.raises(SubjectError):
        Subject.load(section(tiny, prepend_bos=True)).check_context(256)


def test_a_sketch_knows_of_the_prepended_bos(tiny: dict[str, Path]) -> None:
    with pytest.raises(SubjectError):
        Subject.sketch(section(tiny, prepend_bos=True)).check_context(256)


@pytest.mark.parametrize("name", ["nothing-here", "/no/such/folder", "./x", "a/b/c", "gone.gguf"])
def test_a_subject_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(SubjectError, match=name.split("/")[-1]):
        resolve_model(name)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=r"config\.json"):
        resolve_model(str(tmp_path))


def test_a_folder_with_a_broken_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    for attempt in (
        lambda: Subject.sketch(SubjectSection(model=str(tmp_path))),
        lambda: load_causal_lm(str(tmp_path), "float32", torch.device("cpu")),
    ):
        with pytest.raises(SubjectError) as problem:
            attempt()
        assert "\n" not in str(problem.value)


def test_truncated_weights_are_refused_in_one_line(tiny: dict[str, Path], tmp_path: Path) -> None:
    for path in tiny["subject"].iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(
            content[: len(content) // 2] if path.suffix == ".safetensors" else content
        )
    with pytest.raises(SubjectError) as problem:
        Subject.load(section(tiny, model=str(tmp_path)))
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "", "mps:7"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(SubjectError, match=r"subject\.device"):
        pick_device(device)


def test_auto_picks_a_device_that_works() -> None:
    assert torch.zeros(1, device=pick_device("auto")).item() == 0
