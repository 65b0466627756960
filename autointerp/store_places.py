"""SQL that finds out where rows lie in the large tables, for who looks up many features.

`draw` and `simulation` name labels and not features, and ids of labels and passages are hashes: one feature's rows are
found by comparing every row, which costs more the larger the run is. Rows of a feature are written together, though, so
where they begin and end is all that has to be known; of passages, which several features share, every place is kept.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.rows import Run
from autointerp.store import Span, Store

LOW = 2**32 - 1  # the half of a passage's id that it is looked up by: two of a million million share it by chance


class Places(NamedTuple):
    """Numbers of rows. They hold while the file stays as it is."""

    draw: NDArray[np.int64]  # [feature, 2] the first and the last row; 0 and -1 where there is none
    simulation: NDArray[np.int64]  # likewise
    half: NDArray[np.uint32]  # [passage] the low half of its id, ascending
    passage: NDArray[np.uint32]  # [passage] its row; 8 bytes a passage, both together

    def of(self, feature: int) -> tuple[Span, Span]:
        """Where a feature's rows of `draw` and of `simulation` are; others' may be between them."""
        draw, simulation = self.draw[feature].tolist(), self.simulation[feature].tolist()
        return (draw[0], draw[1]), (simulation[0], simulation[1])

    def of_passages(self, ids: NDArray[np.int64]) -> list[int]:
        """The rows of these passages, and by chance one of another."""
        wanted = (ids & LOW).astype(np.uint32)
        first, last = (np.searchsorted(self.half, wanted, side) for side in ("left", "right"))
        return [row for a, b in zip(first.tolist(), last.tolist(), strict=True) for row in self.passage[a:b].tolist()]


def places(store: Store, run: Run) -> Places:
    """Where the passages of a run are, and the rows of its design and simulator on the score split."""
    row = store.collection(run.collection_id)
    width = row["width"] if row is not None else 0
    found = store.db.execute(
        f"SELECT (passage_id & {LOW})::UINTEGER AS half, rowid::UINTEGER AS row FROM passage WHERE collection_id = ? "
        "ORDER BY half",
        [run.collection_id],
    ).fetchnumpy()
    return Places(
        _by_feature(store, "draw", "scorer_id", run.collection_id, run.scorer_id, width),
        _by_feature(store, "simulation", "simulator_id", run.collection_id, run.simulator_id, width),
        found["half"], found["row"],
    )  # fmt: skip


def _by_feature(
    store: Store, table: str, column: str, collection_id: str, value: str, width: int
) -> NDArray[np.int64]:
    found = store.db.execute(
        f"SELECT e.feature, min(t.rowid) AS first, max(t.rowid) AS last FROM {table} t "
        f"JOIN explanation e USING (explanation_id) WHERE e.collection_id = ? AND t.{column} = ? AND t.split = 'score' "
        "GROUP BY e.feature",
        [collection_id, value],
    ).fetchnumpy()
    rows = np.tile(np.array([0, -1]), (width, 1))
    rows[found["feature"]] = np.column_stack([found["first"], found["last"]])
    return rows
