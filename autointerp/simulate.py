"""STAGE 3: explanation, excerpt, panel -> draw, simulation.

Draws the scoring set of every label and predicts it from the label alone. On select, the candidates of one feature are
also predicted on each other's hard negatives, so that they can be ranked on the same passages.
"""

import time
from itertools import groupby

import numpy as np

from autointerp.grading import Grading
from autointerp.rows import Draw, Explanation, Simulation, Split
from autointerp.store import lists
from autointerp.tally import Tally

CHUNK_FEATURES = 16  # features per transaction


def run(grading: Grading, split: Split) -> Tally:
    """Draw and simulate what is pending on one split. One unit is one passage under one label."""
    started = time.perf_counter()
    store, asked = grading.store, grading.run
    labels = grading.wanted(split)
    ids = [label.explanation_id for label in labels]
    drawn = store.drawn(ids, asked.scorer_id, split)
    done = store.simulated(ids, asked.simulator_id, split)
    by_feature = [(feature, list(group)) for feature, group in groupby(labels, key=lambda e: e.feature)]
    pending = [(f, group) for f, group in by_feature if not all(_complete(e, drawn, done) for e in group)]
    tally = Tally("simulate")
    if not pending:
        return tally
    grading.read_all(split, [feature for feature, _ in pending])
    grading.bar.start(f"simulate {split}", total=len(pending), unit="features")
    for start in range(0, len(pending), CHUNK_FEATURES):
        with store.transaction():
            for feature, group in pending[start : start + CHUNK_FEATURES]:
                rows = _draw(grading, feature, group, split, drawn)
                n, tokens = _simulate(grading, group, rows, done, split)
                tally.ok += n
                tally.tokens += tokens
                grading.bar.advance(1)
    tally.seconds = time.perf_counter() - started
    return tally


def _complete(label: Explanation, drawn: dict[str, list[Draw]], done: dict[str, set[int]]) -> bool:
    """A label is done when it has a scoring set and a simulation of every passage in it.

    A feature's rows are written in one transaction, so a set that exists is whole, rivals included.
    """
    rows = drawn.get(label.explanation_id)
    return rows is not None and {row.passage_id for row in rows} <= done.get(label.explanation_id, set())


def _draw(
    grading: Grading, feature: int, group: list[Explanation], split: Split, drawn: dict[str, list[Draw]]
) -> dict[str, list[Draw]]:
    """The scoring set of each candidate of a feature; sets that are new are added to the store."""
    scorer = grading.run.scorer_id
    rows = {e.explanation_id: list(drawn[e.explanation_id]) for e in group if e.explanation_id in drawn}
    new = [(e.explanation_id, grading.key(e)) for e in group if e.explanation_id not in drawn]
    for (key, _), cells in zip(new, grading.cells(feature, [label for _, label in new], split), strict=True):
        rows[key] = [row for cell in cells for row in cell.rows(key, scorer, split)]
    if split == "select":
        _add_rivals(rows, scorer, split)
    for key, found in rows.items():
        grading.store.add(found[len(drawn.get(key, [])) :])
    return rows


def _add_rivals(rows: dict[str, list[Draw]], scorer: str, split: Split) -> None:
    """Give every candidate the hard negatives of the others, for ranking only (population 0)."""
    negatives = sorted({row.passage_id for found in rows.values() for row in found if row.stratum == "B"})
    for key, found in rows.items():
        own = {row.passage_id for row in found}
        found.extend(
            Draw(key, scorer, split, passage, "B", "rival", 0.0, 0.0) for passage in negatives if passage not in own
        )


def _simulate(
    grading: Grading, group: list[Explanation], rows: dict[str, list[Draw]], done: dict[str, set[int]], split: Split
) -> tuple[int, int]:
    """Predict the passages that lack a simulation; returns how many, and their tokens."""
    n, tokens = 0, 0
    for label in group:
        have = done.get(label.explanation_id, set())
        passages = np.array(
            [r.passage_id for r in rows[label.explanation_id] if r.passage_id not in have], dtype=np.int64
        )
        if not len(passages):
            continue
        predicted = grading.predict(grading.key(label), passages)
        fires = predicted > 0
        offsets = np.concatenate([[0], np.cumsum(fires.sum(axis=1))]).astype(np.int64)
        positions = np.broadcast_to(np.arange(predicted.shape[1], dtype=np.uint8), predicted.shape)[fires]
        grading.store.add_columns(Simulation, {
            "explanation_id": [label.explanation_id] * len(passages),
            "simulator_id": [grading.run.simulator_id] * len(passages),
            "split": [split] * len(passages),
            "passage_id": passages,
            "status": ["ok"] * len(passages),
            "positions": lists(offsets, positions),
            "predicted": lists(offsets, predicted[fires].astype(np.float32)),
        })  # fmt: skip
        n += len(passages)
        tokens += sum(len(grading.texts.row(int(p)).tokens) for p in passages)
    return n, tokens
