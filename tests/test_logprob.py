"""The `logprob` simulator: the batched computation with a shared prefix is the plain one, whatever the tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autointerp import prompts
from autointerp.config import load
from autointerp.errors import ConfigError
from autointerp.simulators.answers import LocalAnswers, expected
from autointerp.simulators.logprob import LogprobSimulator, heading, one_line, pieces, prefix
from autointerp.simulators.pieces import Pieces, choices
from autointerp.subject import resolve_model
from autointerp.tally import Bar

PROMPT = "simulate-logprob"
SHORT = "# system\nHow strongly?\n\nLabel: a\n<start>\na\tunknown\nb\t0\na\t10\n<end>\n\n# user\nLabel: {label}\n<start>\n"
PASSAGES = [
    ["The", " red", " river", " at", " 10", " o", "'", "clock"],
    [" Ada"],
    ["a\tb", "\n", "\r\n", "", "unknown", "<end>", "</s>", "\u2028", " Ada", " walked", " to", " the"],
    [" 1", "0", "\t", "10"],
]
LABELS = ["rivers", "words that name a colour,\nor a\ttab"]


# -- models and tokenizers ---------------------------------------------------------------------------------------------


def tokenizer_of(tiny: dict[str, Path], ten: str) -> Any:
    """The tiny tokenizer, which writes 10 as two tokens; or one that has a token for it, or that begins texts with a
    space and a BOS."""
    from tokenizers import normalizers, processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny["subject"])
    if ten == "one token":
        tokenizer.add_tokens(["10"])
    if ten == "spaced":
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Prepend(" ")
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def model_of(kind: str, vocabulary: int) -> Any:
    """A random model of two layers."""
    import transformers

    torch.manual_seed(0)
    shape = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.3,
        "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
    if kind == "mistral":  # every layer looks back 40 tokens
        return transformers.MistralForCausalLM(transformers.MistralConfig(**shape, sliding_window=40)).eval()
    if kind == "gemma2":  # every other layer looks back 40 tokens; logits are capped
        return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
            **shape, sliding_window=40, query_pre_attn_scalar=8, final_logit_softcapping=2.0,
        )).eval()  # fmt: skip
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=4096, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1,
    )).eval()  # fmt: skip


@torch.inference_mode()
def plainly(model: Any, tokenizer: Any, label: str, strings: Sequence[str], prompt: str) -> np.ndarray:
    """The definition, one passage and one answer at a time: no cache, no batch, no mask of ours, all of the logits.

    P(answer) is the product, over the answer's tokens, of the softmax over the tokens with which an answer goes on.
    """
    cut = Pieces(tokenizer)
    ids = cut.start + cut.of(prefix(prompt)) + cut.of(heading(prompt, label))
    written = {answer: [*cut.of(str(answer)), *cut.of("\n")] for answer in range(11)}
    values = []
    for string in strings:
        ids = ids + cut.of(one_line(string) + "\t")
        chance = dict.fromkeys(written, 1.0)
        for begun in [[], *([token] for token in {w[0] for w in written.values()})]:
            going_on = {a: w[len(begun)] for a, w in written.items() if w[: len(begun)] == begun}
            rivals = sorted(set(going_on.values()))
            if len(rivals) > 1:
                logits = model(input_ids=torch.tensor([[*ids, *begun]])).logits[0, -1].double()
                for answer, token in going_on.items():
                    chance[answer] *= float(logits[rivals].softmax(0)[rivals.index(token)])
        assert sum(chance.values()) == pytest.approx(1)
        values.append(sum(answer * p for answer, p in chance.items()))
        ids = ids + cut.of("unknown") + cut.of("\n")
    return np.array(values)


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prompt of a few lines."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "short.md").write_text(SHORT)
    monkeypatch.chdir(tmp_path)
    return "short"


@pytest.mark.parametrize("ten", ["two tokens", "one token", "spaced"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt2"])
def test_a_batch_with_a_shared_prefix_gives_what_one_passage_at_a_time_gives(
    kind: str, ten: str, tiny: dict[str, Path], short: str
) -> None:
    if kind != "llama" and ten == "spaced":
        pytest.skip("one model is enough for this tokenizer")
    tokenizer = tokenizer_of(tiny, ten)
    model = model_of(kind, len(tokenizer))
    wanted = [[plainly(model, tokenizer, label, strings, short) for strings in PASSAGES] for label in LABELS]
    reader = LocalAnswers(model, tokenizer, short, batch=3)
    assert (reader.choices.after is None) == (ten == "one token")
    for label, by_passage in zip(LABELS, wanted):
        found = reader.expect(label, PASSAGES)
        for got, want in zip(found, by_passage):
            np.testing.assert_allclose(got, want, atol=1e-4)
    spread = np.concatenate([np.concatenate(by_passage) for by_passage in wanted])
    assert np.ptp(spread) > 0.1, "a model that says the same of every token would pass with any positions"


def test_the_default_local_models_tokenizer_gives_what_one_passage_at_a_time_gives() -> None:
    from transformers import AutoTokenizer

    where = resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    if not Path(where).is_dir():
        pytest.skip("the packaged subject is not installed")
    tokenizer = AutoTokenizer.from_pretrained(where)
    model = model_of("llama", len(tokenizer))
    passages = [strings[:5] for strings in PASSAGES]
    wanted = [plainly(model, tokenizer, LABELS[0], strings, PROMPT) for strings in passages]
    found = LocalAnswers(model, tokenizer, PROMPT, batch=4).expect(LABELS[0], passages)
    for got, want in zip(found, wanted):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_prediction_does_not_depend_on_what_else_is_asked(tiny: dict[str, Path], short: str) -> None:
    tokenizer = tokenizer_of(tiny, "two tokens")
    reader = LocalAnswers(model_of("llama", len(tokenizer)), tokenizer, short, batch=2)
    together = reader.expect("rivers", PASSAGES)
    reader.expect("something else", PASSAGES[:1])
    for strings, before in zip(PASSAGES, together):
        np.testing.assert_allclose(reader.expect("rivers", [strings])[0], before, atol=1e-5)


# -- the prompt --------------------------------------------------------------------------------------------------------


def test_the_prompt_is_cut_into_pieces_that_are_the_prompt() -> None:
    text = prefix(PROMPT) + heading(PROMPT, "rivers")
    cut = pieces(text)
    assert "".join(cut) == text
    lists = [piece for piece in cut if "\t" in piece]
    assert len(lists) > 40
    assert all(piece.count("\t") == 1 and piece.endswith("\t") for piece in lists)
    answers = [cut[i + 1] for i, piece in enumerate(cut) if piece.endswith("\t")]
    assert set(answers) <= {"unknown", *map(str, range(11))}
    assert {"unknown", "0", "10"} <= set(answers)


@pytest.mark.parametrize("ten", ["two tokens", "spaced"])
def test_what_the_model_reads_is_the_prompt_as_text(ten: str, tiny: dict[str, Path]) -> None:
    cut = Pieces(tokenizer_of(tiny, ten))
    listed = cut.listed(["The", " red", "\t", " river"])
    assert cut.tokenizer.decode(listed.ids) == "The\tunknown\n red\tunknown\n\\t\tunknown\n river\tunknown\n"
    assert [cut.tokenizer.decode(listed.ids[: end + 1]).rsplit("\n", 1)[-1] for end in listed.ends] == [
        "The\t", " red\t", "\\t\t", " river\t",
    ]  # fmt: skip
    assert cut.start == ([0] if ten == "spaced" else [])


def test_what_looks_like_a_special_token_is_text(tiny: dict[str, Path]) -> None:
    cut = Pieces(tokenizer_of(tiny, "two tokens"))
    assert not {0, 1} & set(cut.listed(["<s>", "</s>"]).ids)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", " the"), ("\t", "\\t"), ("\n\n", "\\n\\n"), ("a\r\nb", "a\\r\\nb"), ("\u2028", "\\u2028"),
        ("\x85", "\\x85"), ("\x0b", "\\x0b"), ("", ""), ("é", "é"), ("\\n", "\\n"),
    ],
)  # fmt: skip
def test_a_token_is_shown_on_one_line_and_in_one_column(token: str, shown: str) -> None:
    assert one_line(token) == shown
    assert len((one_line(token) + "x").splitlines()) == 1


def test_a_prompt_without_its_two_sections_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "mine.md").write_text("# user\n{label}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'mine'.*# system"):
        prefix("mine")


# -- answers -----------------------------------------------------------------------------------------------------------


def test_the_expected_answer_by_hand(tiny: dict[str, Path]) -> None:
    found = choices(Pieces(tokenizer_of(tiny, "two tokens")))
    places = {answer: place for place, answers in enumerate(found.first) for answer in answers}
    first = torch.full((1, 1, len(found.tokens)), -50.0)
    second = torch.full((1, 1, len(found.tokens)), -50.0)
    first[0, 0, places[1]], first[0, 0, places[4]] = np.log(0.5), np.log(0.5)
    second[0, 0, found.second[10]], second[0, 0, found.second[1]] = np.log(0.8), np.log(0.2)
    # Half of the time 4; else it begins with 1, and goes on to be 10 four times out of five.
    assert float(expected(first, second, found)) == pytest.approx(0.5 * 4 + 0.5 * (0.8 * 10 + 0.2 * 1))


class Unreadable:
    """A tokenizer that writes every number as the same token."""

    bos_token_id = None

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        return {"input_ids": [5 if c.isdigit() else ord(c) for c in text]}


def test_a_tokenizer_whose_numbers_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokenizer writes the numbers"):
        choices(Pieces(Unreadable()))  # type: ignore[arg-type]


def test_a_model_with_layers_that_are_no_attention_is_refused(tiny: dict[str, Path]) -> None:
    tokenizer = tokenizer_of(tiny, "two tokens")
    model = model_of("llama", len(tokenizer))
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ConfigError, match="linear_attention"):
        LocalAnswers(model, tokenizer, PROMPT, batch=2)


def test_a_prompt_longer_than_the_models_context_is_refused(tiny: dict[str, Path]) -> None:
    tokenizer = tokenizer_of(tiny, "two tokens")
    model = model_of("llama", len(tokenizer))
    model.config.max_position_embeddings = 256
    with pytest.raises(ConfigError, match="reads 256 tokens"):
        LocalAnswers(model, tokenizer, PROMPT, batch=2).expect("rivers", PASSAGES)


# -- the simulator -----------------------------------------------------------------------------------------------------


class Told:
    """A reader that answers 10 on every token that is a word of the label, and 1 elsewhere."""

    def expect(self, label: str, passages: Sequence[Sequence[str]]) -> list[np.ndarray]:
        return [np.array([10.0 if s.strip() in label.split() else 1.0 for s in p], np.float32) for p in passages]


def test_predictions_stand_at_their_labels_passages_and_tokens() -> None:
    simulator = LogprobSimulator(Told(), 12)
    simulator.read(dict(enumerate(PASSAGES)), Bar(enabled=False))
    found = simulator.predict(["river Ada", "red"], np.array([2, 0]))
    assert found.shape == (2, 2, 12)
    assert found[0, 0].argmax() == 8 and found[0, 1].argmax() == 2 and found[1, 1].argmax() == 1
    assert (found[0, 1, :8] >= 1).all()
    assert (found[:, 1, 8:] == 0).all(), "nothing after a passage's end"


def test_the_model_of_the_settings_is_loaded(tiny: dict[str, Path]) -> None:
    cfg = load(None, ["simulator.kind=logprob", f"simulator.model={tiny['subject']}"]).simulator
    simulator = LogprobSimulator.load(cfg, "cpu", 64)
    assert simulator.reader.model.dtype == torch.float32  # type: ignore[attr-defined]
    assert prompts.locate(cfg.prompt_file).name == "simulate-logprob.md"
