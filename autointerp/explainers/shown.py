"""What an explainer may show of a feature: passages of the explain split, chosen by rule and rendered.

Nothing here reads another split. All text has been through `fence.neutral`.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from autointerp.draws import OWN_TOKENS
from autointerp.evidence import ExplainEvidence
from autointerp.fence import neutral
from autointerp.keep import mix, salted
from autointerp.store import Excerpts, Store
from autointerp.text import Word, words

CONTEXT_WORDS = 16  # words shown on each side of an excerpt's strongest token
MARK_SHARE = 0.3  # tokens above this share of the excerpt's peak are marked
TOP_SHARE = 4  # one in so many excerpts is of the strongest there are
MAX_TOKENS = 256  # of a passage


@dataclass(frozen=True)
class Firing:
    """A passage that the feature fires on."""

    strings: list[str]  # one per token that has text (see `whole`), harmless
    positions: list[int]  # where it fires, ascending
    values: list[float]  # activation at each, > 0

    @property
    def peak(self) -> int:
        """Position of the strongest token."""
        return self.positions[int(np.argmax(self.values))]


class Shown:
    """The explain split of one collection, by feature."""

    def __init__(
        self, store: Store, evidence: ExplainEvidence, seed: int, promoted: Callable[[int], list[str]] | None = None
    ) -> None:
        self.store, self.evidence, self.seed, self._promoted = store, evidence, seed, promoted
        self.collection_id = evidence.collection_id

    def spread(self, feature: int, n: int) -> list[Firing]:
        """Up to n firing passages, strongest first: some of the top list, the others at even quantiles of the peak.

        Most activation is on few passages, so a uniform sample of a frequent feature may hold none of the strongest; a
        label made of those alone would be too narrow.
        """
        top = self.store.excerpts(self.collection_id, feature, "explain", "top")
        sample = self.store.excerpts(self.collection_id, feature, "explain", "sample")
        n_top = min(n // TOP_SHARE, len(top.passage))
        order = np.argsort(-sample.peak, kind="stable")
        order = order[~np.isin(sample.passage[order], top.passage[:n_top])]
        places = np.unique(np.linspace(0, len(order) - 1, min(n - n_top, len(order))).round().astype(int))
        found = [*self._firing(top, np.arange(n_top)), *self._firing(sample, order[places])]
        return sorted(found, key=lambda passage: -max(passage.values))

    def strongest(self, feature: int, n: int) -> list[Firing]:
        """The n firing passages of the highest peak; of the uniform sample where no top list is kept."""
        top = self.store.excerpts(self.collection_id, feature, "explain", "top")
        if len(top.passage):
            return self._firing(top, np.arange(min(n, len(top.passage))))
        sample = self.store.excerpts(self.collection_id, feature, "explain", "sample")
        return self._firing(sample, np.argsort(-sample.peak, kind="stable")[:n])

    def _firing(self, found: Excerpts, rows: NDArray[np.int64]) -> list[Firing]:
        passages = []
        for i in rows.tolist():
            first, last = found.firing.offsets[i], found.firing.offsets[i + 1]
            positions, values = found.firing.positions[first:last].tolist(), found.firing.values[first:last].tolist()
            passages.append(firing(self.evidence.texts.strings(int(found.passage[i])), positions, values))
        return passages

    def lookalikes(self, feature: int, n: int) -> list[str]:
        """Up to n excerpts of silent panel passages around a token that the feature mostly fires on, unmarked."""
        heaviest = self.store.top_tokens(self.collection_id, feature)[:OWN_TOKENS]
        panel = self.evidence.panel
        holds = np.isin(self._panel_tokens, heaviest)
        rows = np.nonzero(panel.silent(feature) & holds.any(axis=1))[0]
        key = mix(panel.passages[rows].astype(np.uint64) ^ salted(self.seed * 0x10001 + feature, 6))
        chosen = rows[np.argsort(key, kind="stable")[:n]]
        return [
            around(neutral(self.evidence.texts.strings(int(panel.passages[row]))), int(holds[row].argmax()))
            for row in chosen.tolist()
        ]

    @cached_property
    def _panel_tokens(self) -> NDArray[np.int64]:
        tokens, counts = self.evidence.texts.grid(self.evidence.panel.passages, MAX_TOKENS)
        return np.where(counts, tokens, -1)

    def a_max(self, feature: int) -> float:
        """The largest activation of the feature in the explain split."""
        return float(self._maxima[feature])

    @cached_property
    def _maxima(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.store.features(self.collection_id)["max"][0]
        return found

    def promoted(self, feature: int) -> list[str]:
        """Tokens that the feature's direction makes likelier, most first; [] where the lens is not asked for."""
        return [] if self._promoted is None else self._promoted(feature)


def firing(strings: Sequence[str], positions: Sequence[int], values: Sequence[float]) -> Firing:
    """A passage to be shown, of its token strings and where it fires. A character fires as its strongest token does."""
    held, places = whole(neutral(strings))
    at: dict[int, float] = {}
    for position, value in zip(positions, values, strict=True):
        at[places[position]] = max(value, at.get(places[position], 0.0))
    return Firing(held, list(at), list(at.values()))


def whole(strings: Sequence[str]) -> tuple[list[str], list[int]]:
    """The tokens that have text, and for every token the place among them of the one that its character ends in."""
    held: list[str] = []
    places = []
    for string in strings:
        places.append(len(held))
        if string:
            held.append(string)
    return held, [min(place, len(held) - 1) for place in places]


def marked(strings: Sequence[str], positions: Sequence[int], values: Sequence[float]) -> str:
    """An excerpt around the strongest token, on one line, with the words that fire strongly between ** and **."""
    peak = max(values)
    strong = {p for p, v in zip(positions, values, strict=True) if v >= MARK_SHARE * peak}
    return around(strings, positions[int(np.argmax(values))], strong)


def around(strings: Sequence[str], position: int, strong: set[int] | None = None) -> str:
    """The words around a token, on one line; with `strong`, words that hold one of these positions, and the word at
    `position`, are marked, neighbours together. A line break is a word too, written out."""
    found = _units(strings)
    if not found:
        return " ".join("".join(strings).split())
    # The token may be a space: then the next word stands for it.
    place = next((i for i, (word, _) in enumerate(found) if word.last > position), len(found) - 1)
    marks = set() if strong is None else {*strong, found[place][0].first}
    pieces: list[str] = []
    inside = False
    for word, space in found[max(place - CONTEXT_WORDS, 0) : place + CONTEXT_WORDS + 1]:
        fires = any(t in marks for t in range(word.first, word.last))
        pieces += ["**" * (inside and not fires), space if pieces else "", "**" * (fires and not inside), word.text]
        inside = fires
    return "".join([*pieces, "**" * inside])


def _units(strings: Sequence[str]) -> list[tuple[Word, str]]:
    """The words and line breaks of a passage, each with what stands before it: at most one space, because between them
    is nothing but white space."""
    text = "".join(strings)
    ends = list(accumulate(map(len, strings)))
    found: list[tuple[Word, str]] = []
    at = 0
    for word in [*words(strings), None]:
        start = text.index(word.text, at) if word else len(text)
        for gap in _BREAKS.finditer(text, at, start):
            first, last = (bisect_right(ends, character) for character in (gap.start(), gap.end() - 1))
            found.append((Word(visible("".join(gap.group().split(" "))), first, last + 1), " "))
        if word:
            found.append((word, " " if start > at else ""))
            at = start + len(word.text)
    return found


def one_line(text: str) -> str:
    """A text on one line, its line breaks written out."""
    return " ".join(_BREAKS.sub(lambda found: f" {visible(''.join(found.group().split(' ')))} ", text).split())


_BREAKS = re.compile(r"[\n\r](?:\s*[\n\r])*")


def listed(lines: Sequence[str]) -> str:
    """One line each, with a dash."""
    return "\n".join(f"- {line}" for line in lines)


def visible(token: str) -> str:
    """A token on one line: white space that would break a list is written out."""
    return "".join(c if c == " " or not c.isspace() else c.encode("unicode_escape").decode() for c in token)
