"""Simulators: from a label alone, an activation for every token of a passage."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from autointerp.config import Settings
from autointerp.rows import Status
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


class Lost(NamedTuple):
    """Why there is no prediction."""

    status: Status
    reason: str  # machine-readable


class Predicted(NamedTuple):
    """One label's predictions on some passages."""

    values: NDArray[np.float32]  # [passage, token] as of Simulator.predict; NaN throughout a passage that was lost
    lost: Mapping[int, Lost]  # passage id -> why it has no prediction

    def checked(self, passages: NDArray[np.int64]) -> "Predicted":
        """The same, passages (their ids) with a value that is no number among the lost."""
        broken = passages[~np.isfinite(self.values).all(axis=1)].tolist()
        return Predicted(self.values, {i: Lost("failed", "not_finite") for i in broken} | dict(self.lost))


@runtime_checkable
class AskingSimulator(Simulator, Protocol):
    """A simulator whose model may fail to answer: many questions at once, and a reason where there is no prediction.

    Its `predict` gives NaN throughout a passage that was lost; never 0, which would be a prediction.
    """

    def ask(self, wanted: Sequence[tuple[str, NDArray[np.int64]]]) -> Iterator[tuple[int, Predicted]]:
        """For (label, passages) pairs: the place of a pair, and its predictions, as they are complete, in any order.

        Raises Unreachable or BudgetSpent after everything that is complete; the other pairs stay pending.
        """
        ...


def open_simulator(settings: Settings) -> Simulator:
    """The configured simulator, loaded. Raises a UserError when its model is not there.

    Those that need more than settings (`lookup` its feature's texts, `chat` a door) are made by whoever grades.
    """
    cfg, passage_tokens = settings.simulator, settings.collect.passage_tokens
    if cfg.kind == "logprob":
        from autointerp.simulators.logprob import LogprobSimulator

        return LogprobSimulator.load(cfg, settings.subject.device, passage_tokens)
    if cfg.kind == "pattern":
        from autointerp.simulators.pattern import PatternSimulator

        return PatternSimulator(passage_tokens)
    if cfg.kind != "embedding":
        raise ValueError(f"a simulator {cfg.kind} is not made from settings alone")
    from autointerp.simulators.embedding import EmbeddingSimulator

    return EmbeddingSimulator.load(cfg, settings.subject.device, passage_tokens)
