"""Labels without a model: the words, phrases and topics that a feature fires on, counted in the explain split.

The baseline that every language model has to beat, and free. Each candidate is a list of quoted or plain words, at
most `max_words` of them; which one is best is decided on the select split, like any other label.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import ExplainEvidence
from autointerp.text import Word, words

MAX_LISTED = 6  # words in the longest list
CONTEXT_WORDS = 8  # words on each side that count as a passage's topic


class Stats(NamedTuple):
    """How a feature treats one unit of text (a word, a pair of words)."""

    key: str
    mass: float  # summed activation on it
    occurrences: float


@dataclass
class Vocabulary:
    """Words of the explain panel: how often each occurs, alone and after another."""

    words: Counter[str]
    pairs: Counter[tuple[str, str]]
    total: int


class Miner:
    """Proposes labels from counts. Made once per run; `propose` is asked feature by feature."""

    def __init__(self, evidence: ExplainEvidence, max_words: int) -> None:
        self.evidence, self.max_words = evidence, max_words
        self._words: dict[int, list[Word]] = {}
        self.background = self._count(evidence.panel.passages)

    def _passage(self, passage: int) -> list[Word]:
        if passage not in self._words:
            self._words[passage] = words(self.evidence.texts.strings(passage))
        return self._words[passage]

    def _count(self, passages: NDArray[np.int64]) -> Vocabulary:
        singles: Counter[str] = Counter()
        pairs: Counter[tuple[str, str]] = Counter()
        for passage in passages.tolist():
            found = [word.text.lower() for word in self._passage(passage)]
            singles.update(found)
            pairs.update(pairwise(found))
        return Vocabulary(singles, pairs, sum(singles.values()))

    def propose(self, feature: int, wanted: int) -> list[str]:
        """Up to `wanted` different labels, likelier ones first; [] when the feature fires nowhere in explain."""
        hits = list(self._hits(feature))
        if not hits:
            return []
        scale = len(self.evidence.panel.passages) / max(self.evidence.n_passages, 1)  # mass in panel units
        labels: dict[str, None] = {}
        for label in self._candidates(hits, scale):
            if 0 < len(label.split()) <= self.max_words:
                labels.setdefault(label)
        return list(labels)[:wanted]

    def _hits(self, feature: int) -> "Iterator[_Hit]":
        """Every firing word with its neighbours; a word's activation is the largest of its tokens'."""
        passages, firing, weight = self.evidence.firing(feature)
        if not len(firing.row):
            return
        order = np.argsort(firing.row, kind="stable")
        rows, starts = np.unique(firing.row[order], return_index=True)
        for row, group in zip(rows, np.split(order, starts[1:]), strict=True):
            found = self._passage(int(passages[row]))
            best: dict[int, float] = {}
            word_of = _word_of_token(found)
            for position, value in zip(firing.position[group].tolist(), firing.value[group].tolist(), strict=True):
                place = word_of.get(position)
                if place is not None:
                    best[place] = max(best.get(place, 0.0), value)
            lowered = [word.text.lower() for word in found]
            for place, value in best.items():
                yield _Hit(lowered, place, value * weight)

    def _candidates(self, hits: "list[_Hit]", scale: float) -> Iterator[str]:
        singles = self._rank(hits, scale)
        content = [s for s in singles if _has_letters(s.key)]
        best = best_prefix(content or singles, self.background.total)
        listed = [s.key for s in (content or singles)]
        yield _list(listed[: max(best, 1)])
        for n in (1, 2, 3, 5, MAX_LISTED):
            yield _list(listed[:n])
        before = self._pairs(hits, -1, scale)
        after = self._pairs(hits, +1, scale)
        yield _list(before[:2])
        yield _list(after[:2])
        topic = self._topic(hits)
        yield _list([*listed[:2], *topic[:2]])
        yield _list(topic[:4])
        yield _list([*after[:1], *before[:1], *listed[:1]])

    def _rank(self, hits: "list[_Hit]", scale: float) -> list[Stats]:
        """Firing words, those first that carry much activation for how common they are."""
        mass: defaultdict[str, float] = defaultdict(float)
        for hit in hits:
            mass[hit.word] += hit.value * scale
        found = [Stats(k, m, max(self.background.words.get(k, 0), 1)) for k, m in mass.items()]
        return sorted(found, key=lambda s: (-s.mass / np.sqrt(s.occurrences), s.key))

    def _pairs(self, hits: "list[_Hit]", step: int, scale: float) -> list[str]:
        """Two-word phrases around the firing word that carry the most activation for how common they are."""
        mass: defaultdict[tuple[str, str], float] = defaultdict(float)
        for hit in hits:
            other = hit.place + step
            if 0 <= other < len(hit.words):
                pair = (hit.words[other], hit.word) if step < 0 else (hit.word, hit.words[other])
                if _has_letters(pair[0]) and _has_letters(pair[1]):
                    mass[pair] += hit.value * scale
        counts = self.background.pairs
        ranked = sorted(mass, key=lambda p: (-mass[p] / np.sqrt(max(counts.get(p, 0), 1)), p))
        return [" ".join(pair) for pair in ranked]

    def _topic(self, hits: "list[_Hit]") -> list[str]:
        """Words that stand near firing words far more often than elsewhere (log-likelihood ratio)."""
        near: Counter[str] = Counter()
        for hit in hits:
            window = hit.words[max(hit.place - CONTEXT_WORDS, 0) : hit.place + CONTEXT_WORDS + 1]
            for word in set(window) - {hit.word}:
                near[word] += 1
        total = sum(near.values()) or 1
        background, all_words = self.background.words, max(self.background.total, 1)

        def surprise(word: str) -> float:
            expected = background.get(word, 0) / all_words + 1e-5
            observed = near[word] / total
            return near[word] * float(np.log(observed / expected))

        candidates = [w for w, n in near.items() if n >= 2 and _has_letters(w) and len(w) > 2]
        return sorted(candidates, key=lambda w: (-surprise(w), w))


class _Hit(NamedTuple):
    words: list[str]  # the passage's words, lower case
    place: int  # index of the firing word
    value: float

    @property
    def word(self) -> str:
        return self.words[self.place]


def best_prefix(ranked: list[Stats], total: float) -> int:
    """How many of the ranked units to list so that 'is one of them' correlates best with the activation.

    With S and N the summed activation and occurrences of the first n units among `total` words, the correlation of
    the indicator with the activation is, up to a constant factor, (S / total - mean * N / total) / sqrt(p (1 - p)),
    p = N / total.
    """
    mean = sum(s.mass for s in ranked) / total if total else 0.0
    best, best_n, mass, count = -np.inf, 1, 0.0, 0.0
    for n, stats in enumerate(ranked[:MAX_LISTED], start=1):
        mass, count = mass + stats.mass, count + stats.occurrences
        p = min(count / total, 1 - 1e-9) if total else 0.5
        r = (mass / total - mean * p) / np.sqrt(p * (1 - p))
        if r > best:
            best, best_n = float(r), n
    return best_n


def _word_of_token(found: list[Word]) -> dict[int, int]:
    """Token position -> index of the word it belongs to; a token on two words belongs to the first."""
    places: dict[int, int] = {}
    for place, word in enumerate(found):
        for token in range(word.first, word.last):
            places.setdefault(token, place)
    return places


def _list(items: list[str]) -> str:
    return ", ".join(dict.fromkeys(items))


def _has_letters(text: str) -> bool:
    return any(c.isalnum() for c in text)
