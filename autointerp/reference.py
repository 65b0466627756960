"""The reference simulator: it is told the truth of every label, and errs at rates that are known.

It needs no model, so it is what a scoring design is certified on: whatever a score does with it, it does for reasons
of its own, not of a model's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.planted import PlantedText, Predicate, distinct, uniform
from autointerp.tally import Bar

HELD = 32  # labels whose meaning is kept in memory
SIGMA = 0.5  # of the log of a real-valued hit
_MISS, _STRENGTH, _PROXY, _FALSE, _NOISE = 1, 2, 3, 4, 5  # what a hash is drawn for


@dataclass(frozen=True)
class Errors:
    """How the reference simulator errs."""

    misses: float = 0.2  # of the occurrences that a label names
    false_positives: float = 2e-4  # per token
    proxy_recall: float = 0.8  # of the passages that hold one, by the proxy that finds hard negatives
    noise: float = 0.0  # standard deviation of what it predicts everywhere; a hit is log-normal about 1


class _Meaning(NamedTuple):
    """A label's occurrences, and the cells and values of its right and of its false predictions."""

    extension: NDArray[np.int64]
    hits: tuple[NDArray[np.int64], NDArray[np.float32]]
    strays: tuple[NDArray[np.int64], NDArray[np.float32]]


class ReferenceSimulator:
    """Predicts 1 where a label holds, or a noisy real value; a `Simulator`.

    labels  label text -> where it holds
    What it predicts of a passage depends on the label's meaning, the passage and the seed, never on what else is asked.
    """

    def __init__(self, text: PlantedText, labels: Mapping[str, Predicate], errors: Errors, seed: int) -> None:
        self.text, self.labels, self.errors, self.seed = text, labels, errors, seed
        self.name = "reference-noisy" if errors.noise else "reference"
        self.threshold = 0.0  # a predicted peak above it says that the label holds; to be fitted where there is noise
        self._recent: dict[str, _Meaning] = {}
        random = np.random.default_rng([seed, _NOISE])
        # One table of noise, read from another place for each label: a fresh one for each would take most of the time.
        self._noise = (
            np.abs(random.normal(0, errors.noise, text.tokens.size)).astype(np.float32) if errors.noise else None
        )

    def read(self, passages: Mapping[int, Sequence[str]], bar: Bar) -> None:
        """Nothing to read: the text is known."""

    def calibrate(self, background: NDArray[np.int64]) -> None:
        """Nothing to calibrate."""

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """Predicted activations [label, passage, token], 0 after a passage's end."""
        rows, again = np.unique(self.text.rows(passages), return_inverse=True)  # a passage may be asked about twice
        return np.stack([self._predict(label, rows)[again] for label in labels])

    def claims(self, label: str, passages: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[passage] whether the label's cheap proxy claims it: so many of those in which the label holds."""
        rows = self.text.rows(passages)
        holds = np.zeros(len(self.text.length), dtype=bool)
        found = distinct(self.text.passage[self._held(label).extension])
        holds[found[uniform(found, self._salt(label, _PROXY)) < self.errors.proxy_recall]] = True
        return holds[rows]

    def _salt(self, label: str, purpose: int) -> int:
        # By the text, too: two ways of saying the same err apart.
        return int(np.random.SeedSequence([self.seed, purpose, *label.encode()]).generate_state(1, np.uint64)[0])

    def _predict(self, label: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        text, width = self.text, self.text.width
        place = np.full(len(text.length), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        predicted = np.zeros((len(rows), width), dtype=np.float32)
        if self._noise is not None:
            offset = self._salt(label, _NOISE) % len(self._noise)
            cells = rows[:, None] * width + np.arange(width)
            predicted[:] = self._noise[(cells + offset) % len(self._noise)]
            predicted[np.arange(width) >= text.length[rows][:, None]] = 0
        held = self._held(label)
        for cells, value in (held.hits, held.strays):
            inside = np.flatnonzero(place[cells // width] >= 0)
            at = place[cells[inside] // width], cells[inside] % width
            predicted[at] = np.maximum(predicted[at], value[inside])
        return predicted

    def _held(self, label: str) -> "_Meaning":
        """What a label stands for; the labels asked about last are held."""
        found = self._recent.pop(label, None)
        if found is None:
            extension = self.labels[label].extension(self.text)
            found = _Meaning(extension, self._hits(label, extension), self._strays(label))
            if len(self._recent) >= HELD:
                del self._recent[next(iter(self._recent))]
        self._recent[label] = found
        return found

    def _hits(self, label: str, extension: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Cells of the occurrences that it does not miss, and its values there."""
        found = extension[uniform(extension, self._salt(label, _MISS)) >= self.errors.misses]
        cells, owner = self.text.cells(found)
        return cells, self._strength(found[owner], label)

    def _strays(self, label: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Cells of its false positives. A repeated cell is one; a cell that is a hit or padding is none."""
        text = self.text
        random = np.random.default_rng(self._salt(label, _FALSE))
        cells = random.integers(text.tokens.size, size=random.poisson(self.errors.false_positives * text.tokens.size))
        cells = distinct(cells)
        cells = cells[cells % text.width < text.length[cells // text.width]]
        return cells, self._strength(cells, label)

    def _strength(self, key: NDArray[np.int64], label: str) -> NDArray[np.float32]:
        if not self.errors.noise:
            return np.ones(len(key), dtype=np.float32)
        one, two = (np.maximum(uniform(key, self._salt(label, _STRENGTH) + i), 1e-12) for i in range(2))
        normal = np.sqrt(-2 * np.log(one)) * np.cos(2 * np.pi * two)  # Box & Muller 1958
        return np.exp(SIGMA * normal).astype(np.float32)
