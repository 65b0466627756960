"""STAGE 3: explanation, excerpt, panel -> draw, simulation.

Draws the scoring set of every label and predicts it from the label alone. On select, the candidates of one feature are
also predicted on each other's hard negatives, so that they can be ranked on the same passages.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from autointerp.errors import BudgetSpent, Unreachable
from autointerp.grading import Grading
from autointerp.rows import Draw, Explanation, Simulation, Split
from autointerp.simulators import Predicted
from autointerp.store import lists
from autointerp.tally import Tally

log = logging.getLogger(__name__)

CHUNK_FEATURES = 16  # features that are drawn, and whose predictions are asked for, at a time
PAID_CHUNK_FEATURES = 64  # ... of a simulator that asks a model: between chunks a server would wait for us


def run(grading: Grading, split: Split) -> Tally:
    """Draw and simulate what is pending on one split. One unit is one passage under one label.

    A model that cannot be reached leaves its features pending, and the tally says so; of the others nothing is lost.
    """
    started = time.perf_counter()
    store, asked = grading.store, grading.run
    labels = grading.wanted(split)
    ids = [label.explanation_id for label in labels]
    drawn = store.drawn(ids, asked.scorer_id, split)
    done = store.simulated(ids, asked.grader(split), split)
    by_feature = [(feature, list(group)) for feature, group in groupby(labels, key=lambda e: e.feature)]
    pending = [(f, group) for f, group in by_feature if not all(_complete(e, drawn, done) for e in group)]
    tally = Tally("simulate")
    if not pending:
        return tally
    grading.read_all(split, [feature for feature, _ in pending])
    grading.bar.start(f"simulate {split}", total=len(pending), unit="features")
    size = PAID_CHUNK_FEATURES if grading.settings.simulator.paid and split == "score" else CHUNK_FEATURES
    for start in range(0, len(pending), size):
        chunk = pending[start : start + size]
        grading.claim([grading.key(e) for _, group in chunk for e in group if e.explanation_id not in drawn], split)
        units = [_Unit(*_draw(grading, feature, group, split, drawn), group, done) for feature, group in chunk]
        try:
            for unit in _simulated(grading, units, split):
                # A feature's rows are written at once; replies that were paid for are in the ledger already.
                with store.transaction():
                    store.add(unit.new)
                    _write(grading, unit, split, tally)
                grading.bar.advance(1)
        except (Unreachable, BudgetSpent) as problem:  # no rows: these features stay pending
            stopped = isinstance(problem, BudgetSpent)
            left = sum(unit.n_passages for unit in units if unit.missing)
            tally.failed["budget_spent" if stopped else "unreachable"] += left
            if isinstance(problem, BudgetSpent):
                tally.stopped = problem
                break
            log.warning("%s", problem)
            if problem.gone:
                break
    tally.note = grading.note(split)
    tally.seconds = time.perf_counter() - started
    return tally


class _Unit:
    """A feature's scoring sets on one split, and what is predicted on them."""

    def __init__(
        self, rows: dict[str, list[Draw]], new: list[Draw], group: list[Explanation], done: dict[str, set[int]]
    ) -> None:
        self.new = new  # draws that are not in the store
        self.wanted: list[tuple[Explanation, NDArray[np.int64]]] = []  # passages that lack a simulation, by label
        for label in group:
            have = done.get(label.explanation_id, set())
            lacking = [row.passage_id for row in rows[label.explanation_id] if row.passage_id not in have]
            if lacking:
                self.wanted.append((label, np.array(lacking, dtype=np.int64)))
        self.found: dict[int, Predicted] = {}  # by place in `wanted`

    @property
    def missing(self) -> bool:
        """True while predictions are missing."""
        return len(self.found) < len(self.wanted)

    @property
    def n_passages(self) -> int:
        """Predictions wanted."""
        return sum(len(passages) for _, passages in self.wanted)


def _simulated(grading: Grading, units: Sequence[_Unit], split: Split) -> Iterator[_Unit]:
    """The units with all of their predictions, as they are complete."""
    places = [(unit, place) for unit in units for place in range(len(unit.wanted))]
    pairs = [(grading.key(unit.wanted[place][0]), unit.wanted[place][1]) for unit, place in places]
    yield from (unit for unit in units if not unit.wanted)
    for i, predicted in grading.predict_all(pairs, split):
        unit, place = places[i]
        unit.found[place] = predicted
        if not unit.missing:
            yield unit


def _complete(label: Explanation, drawn: dict[str, list[Draw]], done: dict[str, set[int]]) -> bool:
    """A label is done when it has a scoring set and a simulation of every passage in it.

    A feature's rows are written in one transaction, so a set that exists is whole, rivals included.
    """
    rows = drawn.get(label.explanation_id)
    return rows is not None and {row.passage_id for row in rows} <= done.get(label.explanation_id, set())


def _draw(
    grading: Grading, feature: int, group: list[Explanation], split: Split, drawn: dict[str, list[Draw]]
) -> tuple[dict[str, list[Draw]], list[Draw]]:
    """The scoring set of each candidate of a feature, and the draws that are not in the store."""
    scorer = grading.run.scorer_id
    rows = {e.explanation_id: list(drawn[e.explanation_id]) for e in group if e.explanation_id in drawn}
    new = [(e.explanation_id, grading.key(e)) for e in group if e.explanation_id not in drawn]
    for (key, _), cells in zip(new, grading.cells(feature, [label for _, label in new], split), strict=True):
        rows[key] = [row for cell in cells for row in cell.rows(key, scorer, split)]
    if split == "select":
        _add_rivals(rows, scorer, split)
    return rows, [row for key, found in rows.items() for row in found[len(drawn.get(key, [])) :]]


def _add_rivals(rows: dict[str, list[Draw]], scorer: str, split: Split) -> None:
    """Give every candidate the hard negatives of the others, for ranking only (population 0)."""
    negatives = sorted({row.passage_id for found in rows.values() for row in found if row.stratum == "B"})
    for key, found in rows.items():
        own = {row.passage_id for row in found}
        found.extend(
            Draw(key, scorer, split, passage, "B", "rival", 0.0, 0.0) for passage in negatives if passage not in own
        )


def _write(grading: Grading, unit: _Unit, split: Split, tally: Tally) -> None:
    """Add a unit's simulations to the store, and count them. What was lost is a row with its reason."""
    for place, (label, passages) in enumerate(unit.wanted):
        values, lost = unit.found[place]
        ok = np.array([int(p) not in lost for p in passages])
        fires = (values > 0) & ok[:, None]
        offsets = np.concatenate([[0], np.cumsum(fires.sum(axis=1))]).astype(np.int64)
        positions = np.broadcast_to(np.arange(values.shape[1], dtype=np.uint8), values.shape)[fires]
        why = [lost.get(p) for p in passages.tolist()]
        grading.store.add_columns(Simulation, {
            "explanation_id": [label.explanation_id] * len(passages),
            "simulator_id": [grading.run.grader(split)] * len(passages),
            "split": [split] * len(passages),
            "passage_id": passages,
            "status": [found.status if found else "ok" for found in why],
            "reason": pa.array([found.reason if found else None for found in why], type=pa.string()),
            "positions": lists(offsets, positions, ~ok),
            "predicted": lists(offsets, values[fires].astype(np.float32), ~ok),
        })  # fmt: skip
        tally.ok += int(ok.sum())
        tally.failed += Counter(found.reason for found in why if found)
        tally.tokens += sum(len(grading.texts.row(int(p)).tokens) for p in passages[ok])
