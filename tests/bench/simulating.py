"""The `logprob` simulator against the plain computation: one passage at a time, the whole prompt each time."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autointerp import config, corpus
from autointerp.config import model_of
from autointerp.simulators.answers import LocalAnswers
from autointerp.simulators.logprob import heading, prefix
from autointerp.subject import load_causal_lm
from autointerp.text import token_strings

ROUNDS = 5
PASSAGES = 8  # for the simulator, in each round
PLAIN = 2  # for the plain computation, in each round
LABEL = "names of countries and their governments"


@dataclass(frozen=True)
class Speedup:
    """Passages per second of both, on the same passages in interleaved rounds; medians."""

    ratio: float
    ours: float
    plain: float
    difference: float  # largest, between the two computations' expected answers


def speedup() -> Speedup:
    """Full passages of the default corpus, the default local model, float32 on the CPU.

    The plain computation is one forward pass per passage of the model as it ships, without a cache. What it is not
    asked for is the second token of 10, which would take it a pass per token: it is timed at less work than ours.
    """
    settings = config.load(None, ["simulator.kind=logprob", "subject.device=cpu"])
    reader = LocalAnswers.load(settings.simulator, "cpu", settings.collect.passage_tokens)
    name = model_of(settings.simulator).name
    model, tokenizer = load_causal_lm(name, "float32", torch.device("cpu"))
    passages = _passages(tokenizer, settings)
    ours: list[float] = []
    plain: list[float] = []
    reader.expect(LABEL, passages[:1])  # the examples are run once in a process
    for _ in range(ROUNDS):
        started = time.perf_counter()
        found = reader.expect(LABEL, passages)
        ours.append(len(passages) / (time.perf_counter() - started))
        started = time.perf_counter()
        for strings in passages[:PLAIN]:
            _first_tokens(model, reader, strings)
        plain.append(PLAIN / (time.perf_counter() - started))
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    short = passages[0][:4]
    gap = np.abs(reader.expect(LABEL, [short, *passages[1:3]])[0] - _plainly(model, reader, short)).max()
    gap = max(gap, np.abs(found[0][:4] - reader.expect(LABEL, [short])[0]).max())  # later tokens change nothing
    return Speedup(ratio, statistics.median(ours), statistics.median(plain), float(gap))


def _passages(tokenizer: Any, settings: config.Settings) -> list[list[str]]:
    """The first passages of the default corpus, as token strings."""
    n, found = settings.collect.passage_tokens, []
    for document in corpus.documents(settings.corpus, tokenizer):
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"][:n]
        pieces = {i: tokenizer.decode([i]).encode() for i in ids}
        if len(ids) == n:
            found.append(token_strings(ids, pieces))
        if len(found) == PASSAGES:
            return found
    raise ValueError(f"fewer than {PASSAGES} documents of {n} tokens")


@torch.inference_mode()
def _first_tokens(model: Any, reader: LocalAnswers, strings: list[str]) -> torch.Tensor:
    """Logits at every answer of a passage, the whole prompt in one pass."""
    cut = reader.pieces
    before = cut.start + cut.of(prefix(reader.prompt)) + cut.of(heading(reader.prompt, LABEL))
    listed = cut.listed(strings)
    logits: torch.Tensor = model(input_ids=torch.tensor([before + listed.ids]), use_cache=False).logits[0]
    return logits[[len(before) + end for end in listed.ends]][:, reader.choices.tokens]


@torch.inference_mode()
def _plainly(model: Any, reader: LocalAnswers, strings: list[str]) -> np.ndarray:
    """Expected answers, one pass for the first token of each answer and one for the second."""
    cut, choices = reader.pieces, reader.choices
    before = cut.start + cut.of(prefix(reader.prompt)) + cut.of(heading(reader.prompt, LABEL))
    listed = cut.listed(strings)
    values = []
    for end in listed.ends:
        ids = before + listed.ids[: end + 1]
        begun = model(input_ids=torch.tensor([ids])).logits[0, -1, choices.tokens[: len(choices.first)]].softmax(0)
        share = dict.fromkeys(range(11), 1.0)
        if choices.after is not None:
            going_on = model(input_ids=torch.tensor([[*ids, choices.after]])).logits[0, -1]
            rivals = going_on[[choices.tokens[place] for place in choices.second.values()]].softmax(0)
            share |= dict(zip(choices.second, rivals.tolist(), strict=True))
        values.append(sum(
            answer * float(begun[place]) * share[answer]
            for place, answers in enumerate(choices.first) for answer in answers
        ))  # fmt: skip
    return np.array(values)
