"""What simulators share that ask a model: predictions of many (label, passages) pairs, put together as answers come."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp.config import SimulatorSection, model_of
from autointerp.llm import Door
from autointerp.simulators import AskingSimulator, Lost, Predicted
from autointerp.tally import Bar

Wanted = Sequence[tuple[str, NDArray[np.int64]]]  # (label, passage ids)


class Asked(AskingSimulator):
    """A simulator whose model stands behind the door, and states activations 0 to 10: all but how it is asked."""

    def __init__(self, door: Door, cfg: SimulatorSection, passage_tokens: int) -> None:
        self.door, self.cfg, self.passage_tokens = door, cfg, passage_tokens
        self.model = model_of(cfg)
        self._texts: dict[int, Sequence[str]] = {}

    def read(self, passages: Mapping[int, Sequence[str]], bar: Bar) -> None:
        """Hold the passages' tokens; the model sees them when it is asked."""
        self._texts |= passages

    def calibrate(self, background: NDArray[np.int64]) -> None:
        """Nothing to calibrate: the model states activations on a scale of its own."""

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the model states [label, passage, token], 0 to 10; NaN throughout a passage that was lost."""
        result = np.empty((len(labels), len(passages), self.passage_tokens), dtype=np.float32)
        for place, predicted in self.ask([(label, passages) for label in labels]):
            result[place] = predicted.values
        return result


class Gathered:
    """What is known of each pair. Every method yields the place of a pair, and its predictions, once it is complete."""

    def __init__(self, wanted: Wanted, passage_tokens: int) -> None:
        self._passages = [passages for _, passages in wanted]
        self._values = {
            i: np.full((len(passages), passage_tokens), np.nan, dtype=np.float32)
            for i, passages in enumerate(self._passages)
        }
        self._lost: dict[int, dict[int, Lost]] = {i: {} for i in self._values}
        self._missing = {i: len(passages) for i, passages in enumerate(self._passages)}

    def empty(self) -> Iterator[tuple[int, Predicted]]:
        """The pairs that ask for nothing."""
        for place in [place for place, missing in self._missing.items() if not missing]:
            yield self._whole(place)

    def put(self, place: int, rows: slice, values: NDArray[np.float32]) -> Iterator[tuple[int, Predicted]]:
        """Take the values [passage, token] of some of a pair's passages; what their tokens leave is 0."""
        self._values[place][rows] = 0.0
        self._values[place][rows, : values.shape[1]] = values
        yield from self._told(place, rows)

    def lose(self, place: int, rows: slice, why: Lost) -> Iterator[tuple[int, Predicted]]:
        """Take the reason why some of a pair's passages have no prediction."""
        self._lost[place] |= dict.fromkeys(self._passages[place][rows].tolist(), why)
        yield from self._told(place, rows)

    def _told(self, place: int, rows: slice) -> Iterator[tuple[int, Predicted]]:
        self._missing[place] -= len(self._passages[place][rows])
        if not self._missing[place]:
            yield self._whole(place)

    def _whole(self, place: int) -> tuple[int, Predicted]:
        del self._missing[place]
        lost: Mapping[int, Lost] = self._lost.pop(place)
        return place, Predicted(self._values.pop(place), lost)
