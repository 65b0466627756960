"""The `pattern` simulator: executes a label on a passage's text, at no cost.

A structured label (`rules.py`) is executed as it says. Of any other label literal rules are made: each clause that
stands between commas, semicolons or `or` is a trigger of full strength. So a list of words is executed exactly, and a
sentence fires only where it stands word for word, which says how much of it is a word list.

A token fires as strongly as the strongest of its characters; white space at a trigger's ends is not part of it, where
the trigger is about more than white space.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import rules
from autointerp.errors import ReplyError
from autointerp.rules import MAX_CHARS, MAX_STRENGTH, Rule
from autointerp.tally import Bar

CACHED_LABELS = 4096  # labels whose rules are held

_CLAUSE = re.compile(r"\s*[,;]\s*|\s+or\s+")
_QUOTES = "\"'“”‘’`«»"


class Text(NamedTuple):
    """A passage as it is searched."""

    text: str
    starts: NDArray[np.int64]  # [token] place of the token's first character
    lengths: NDArray[np.int64]  # [token] characters; 0 for a token that completes no character


class PatternSimulator:
    """Predicts a rule's strength, 0 to 5, on every token that one of its triggers covers."""

    def __init__(self, passage_tokens: int) -> None:
        self.passage_tokens = passage_tokens
        self._texts: dict[int, Text] = {}
        self._rules: dict[str, tuple[Rule, ...]] = {}

    def read(self, passages: Mapping[int, Sequence[str]], bar: Bar) -> None:
        """Join the passages that are new."""
        for i, strings in passages.items():
            lengths = np.array([len(string) for string in strings], dtype=np.int64)
            self._texts[i] = Text("".join(strings), np.cumsum(lengths) - lengths, lengths)

    def calibrate(self, background: NDArray[np.int64]) -> None:
        """Nothing to calibrate: a rule fires or does not."""

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """Strength on every token [label, passage, token]. A label is a sentence, or rules as JSON."""
        result = np.zeros((len(labels), len(passages), self.passage_tokens), dtype=np.float32)
        for row, label in zip(result, labels, strict=True):
            if label not in self._rules:
                if len(self._rules) >= CACHED_LABELS:
                    self._rules.clear()
                self._rules[label] = rules_of(label)
            for into, passage in zip(row, passages.tolist(), strict=True):
                execute(self._rules[label], self._texts[passage], into)
        return result


def execute(label: Sequence[Rule], passage: Text, into: NDArray[np.float32]) -> None:
    """Write the strength of the strongest rule that fires on each token of a passage into its row."""
    found = [
        (first, last, rule.strength) for rule in label if rule.strength for first, last in _fires(rule, passage.text)
    ]
    if not found:
        return
    strength = np.zeros(len(passage.text), dtype=np.float32)
    for first, last, value in found:
        np.maximum(strength[first:last], value, out=strength[first:last])
    holds = passage.lengths > 0
    into[: len(holds)][holds] = np.maximum.reduceat(strength, passage.starts[holds])


def _fires(rule: Rule, text: str) -> list[tuple[int, int]]:
    """The spans of characters that a rule fires on."""
    spans = [span for item in rule.trigger for span in _spans(item, text)]
    if not spans:
        return []
    if rule.context:
        ends = [last for item in rule.context for _, last in _spans(item, text)]
        earliest = min(ends, default=len(text) + 1)
        spans = [(first, last) for first, last in spans if earliest <= first]
    barred = [span for item in rule.exceptions for span in _spans(item, text)]
    return [(a, b) for a, b in spans if not any(first < b and a < last for first, last in barred)]


def _spans(item: str, text: str) -> list[tuple[int, int]]:
    """Where an item stands: the part of each match that counts, without white space at its ends, unless that is all."""
    pattern = rules.pattern(item)
    found = []
    for match in pattern.finditer(text):
        first, last = match.span(pattern.groups)
        part = text[first:last] if first >= 0 else ""
        if part.strip():
            first, last = first + len(part) - len(part.lstrip()), last - len(part) + len(part.rstrip())
        if first < last:
            found.append((first, last))
    return found


def rules_of(told: str) -> tuple[Rule, ...]:
    """The rules of a label: its own where it is structured, else one literal rule made of its clauses."""
    own = _structured(told)
    if own is not None:
        return own.rules
    clauses = [clause.strip().strip(_QUOTES).strip() for clause in _CLAUSE.split(told)]
    # A clause between slashes would be read as an expression; no text of that length stands in a passage anyway.
    trigger = [c for c in dict.fromkeys(clauses) if c and len(c) <= MAX_CHARS and not rules.is_regex(c)]
    return (Rule(tuple(trigger), (), MAX_STRENGTH, ()),)


def sentence_of(told: str) -> str:
    """The label as a sentence, whichever way it is told."""
    own = _structured(told)
    return told if own is None else own.label


def _structured(told: str) -> rules.Rules | None:
    if not told.startswith("{"):
        return None
    try:
        return rules.load(told)
    except ReplyError:  # a label that happens to begin with a brace
        return None
