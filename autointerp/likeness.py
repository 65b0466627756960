"""How alike labels and a phrase are in meaning, for a page: vectors of labels are made once, beside the requests, and
kept beside the run, where `search` finds them too."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp import label_vectors
from autointerp.simulators.encoder import PACKAGED_ENCODER
from autointerp.tally import Bar
from autointerp.working import Job, Worker

KEEP = 32  # phrases whose cosines are kept
Cosines = NDArray[np.float32]  # [label]


class Likeness:
    """Vectors of every label that was ever asked about, and cosines of the latest phrases."""

    def __init__(self, folder: Path) -> None:
        """folder  of the run"""
        self.folder = folder
        self._worker: Worker[Cosines] = Worker(KEEP)
        self._known: dict[str, int] = {}  # label -> its row
        self._vectors: NDArray[np.float32] | None = None

    def ask(self, phrase: str, labels: Sequence[str], version: object, wait_s: float) -> Cosines | Job[Cosines]:
        """The cosine of each label to a phrase, if that is there within wait_s; else the job under way.

        version  changes when the labels do. Raises ConfigError where the sentence encoder is missing
        """
        return self._worker.ask((version, phrase), lambda bar: self._cosines(phrase, labels, bar), wait_s)

    def _cosines(self, phrase: str, labels: Sequence[str], bar: Bar) -> Cosines:
        """Only ever on the worker's thread, so that nothing else writes what is known."""
        self._learn([label for label in dict.fromkeys(labels) if label not in self._known], bar)
        if self._vectors is None:
            return np.zeros(0, dtype=np.float32)
        query = _vectors([phrase], bar)[0]
        found: Cosines = (self._vectors @ query)[[self._known[label] for label in labels]]
        return found

    def _learn(self, labels: list[str], bar: Bar) -> None:
        if not labels:
            return
        new = label_vectors.kept(self.folder, PACKAGED_ENCODER, lambda texts: _vectors(texts, bar))(labels)
        start = 0 if self._vectors is None else len(self._vectors)
        self._vectors = new if self._vectors is None else np.concatenate([self._vectors, new])
        self._known |= {label: start + i for i, label in enumerate(labels)}


def _vectors(texts: Sequence[str], bar: Bar) -> NDArray[np.float32]:
    """[text, d]."""
    from autointerp.simulators.sentences import sentence_vectors  # imports torch, for which most views have no use

    return sentence_vectors(texts, bar, quick=True)
