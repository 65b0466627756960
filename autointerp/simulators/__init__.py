"""Simulators: from a label alone, an activation for every token of a passage."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autointerp.config import Settings
from autointerp.tally import Bar


class Simulator(Protocol):
    """One interface for all kinds. Predictions are >= 0, in the simulator's own unit; 0 means 'does not fire'."""

    def read(self, passages: Mapping[int, Sequence[str]], bar: Bar) -> None:
        """Take in passages by id, each as its token strings, so that `predict` can be asked about them."""
        ...

    def calibrate(self, background: NDArray[np.int64]) -> None:
        """Say which of the passages are the background (explain panel) that a label's floor is taken from."""
        ...

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """Predicted activations [label, passage, token], 0 after a passage's end."""
        ...


def open_simulator(settings: Settings) -> Simulator:
    """The configured simulator, loaded. Raises ConfigError when its model is not there."""
    from autointerp.simulators.embedding import EmbeddingSimulator

    return EmbeddingSimulator.load(settings.simulator, settings.subject.device, settings.collect.passage_tokens)
