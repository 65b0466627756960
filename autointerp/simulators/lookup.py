"""The `lookup` simulator: a feature's token look-up table. It reads no label; it is what labels have to beat."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp import baselines
from autointerp.evidence import ExplainEvidence
from autointerp.tally import Bar


class LookupSimulator:
    """Predicts each token's mean activation on the explain split. Its `labels` are feature indices, as text."""

    def __init__(self, evidence: ExplainEvidence, passage_tokens: int) -> None:
        self.evidence, self.passage_tokens = evidence, passage_tokens
        self._tables: dict[str, dict[int, float]] = {}

    def read(self, passages: Mapping[int, Sequence[str]], bar: Bar) -> None:
        """Nothing to read: token ids are in the store."""

    def calibrate(self, background: NDArray[np.int64]) -> None:
        """Nothing to calibrate: a token that the feature never fired on is predicted 0."""

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """Mean activation of each feature on each token, [label, passage, token]."""
        tokens, _ = self.evidence.texts.grid(passages, self.passage_tokens)
        for label in labels:
            if label not in self._tables:
                self._tables[label] = self.evidence.mean_by_token(int(label))
        return np.stack([baselines.lookup(tokens, self._tables[label]) for label in labels]).astype(np.float32)
