"""SQL that finds out where the rows of each feature lie in the tables that name labels only.

Ids of labels are hashes, so that one label's rows of `draw` and `simulation` are found by comparing every row. They are
written feature by feature, though. Who looks up many features looks once where each one's rows begin and end.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.rows import Run
from autointerp.store import Span, Store


class Spans(NamedTuple):
    """Numbers of the first and the last row of each feature, [feature, 2]; 0 and -1 where it has none.

    They hold while the file stays as it is. What lies between may be other features' too.
    """

    draw: NDArray[np.int64]
    simulation: NDArray[np.int64]

    def of(self, feature: int) -> tuple[Span, Span]:
        """Where a feature's rows of `draw` and of `simulation` are."""
        draw, simulation = self.draw[feature].tolist(), self.simulation[feature].tolist()
        return (draw[0], draw[1]), (simulation[0], simulation[1])


def spans(store: Store, run: Run, width: int) -> Spans:
    """Where the rows of a run's labels lie, of its design and simulator, on the score split."""
    return Spans(
        _of(store, "draw", "scorer_id", run.collection_id, run.scorer_id, width),
        _of(store, "simulation", "simulator_id", run.collection_id, run.simulator_id, width),
    )


def _of(store: Store, table: str, column: str, collection_id: str, value: str, width: int) -> NDArray[np.int64]:
    found = store.db.execute(
        f"SELECT e.feature, min(t.rowid) AS first, max(t.rowid) AS last FROM {table} t "
        f"JOIN explanation e USING (explanation_id) WHERE e.collection_id = ? AND t.{column} = ? AND t.split = 'score' "
        "GROUP BY e.feature",
        [collection_id, value],
    ).fetchnumpy()
    rows = np.tile(np.array([0, -1]), (width, 1))
    rows[found["feature"]] = np.column_stack([found["first"], found["last"]])
    return rows
