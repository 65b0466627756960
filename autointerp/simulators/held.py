"""Which passages are held in a block of memory of a fixed size: those asked about last."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class Held:
    """Slots of the block by passage. Where all are taken, the passages asked about longest ago make room."""

    def __init__(self, size: int) -> None:
        self.slot: dict[int, int] = {}  # by passage
        self._passage = np.full(size, -1, dtype=np.int64)  # by slot; of no meaning where it was never filled
        self._asked = np.zeros(size, dtype=np.int64)  # by slot: when it was asked for; 0 never
        self._now = 0

    def __len__(self) -> int:
        """Slots, filled or not."""
        return len(self._asked)

    def lacking(self, passages: Iterable[int]) -> list[int]:
        """Those of these passages that are not held, each once; the others count as asked for now."""
        self._now += 1
        wanted = list(dict.fromkeys(passages))
        self._asked[[self.slot[i] for i in wanted if i in self.slot]] = self._now
        return [i for i in wanted if i not in self.slot]

    def fill(self, passages: Sequence[int]) -> NDArray[np.int64]:
        """Slots for passages that are not held, which count as asked for now. Raises ValueError for more than fit."""
        if len(passages) > len(self):
            raise ValueError(f"{len(passages)} passages do not fit into {len(self)} slots")
        slots = np.argsort(self._asked, kind="stable")[: len(passages)]
        for left in self._passage[slots[self._asked[slots] > 0]].tolist():
            del self.slot[left]
        self._passage[slots], self._asked[slots] = passages, self._now
        self.slot.update(zip(passages, slots.tolist(), strict=True))
        return slots
