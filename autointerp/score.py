"""STAGE 4: draw, simulation, excerpt, panel -> score.

Arithmetic only, apart from the null, in which labels of other features are predicted by the same simulator under the
same rules. Nothing is scored on a passage whose prediction is missing: a label with any missing prediction says so.
"""

import logging
import time
from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import baselines, metrics
from autointerp.config import fingerprint
from autointerp.errors import Unreachable
from autointerp.grading import Grading
from autointerp.keep import mix, salted
from autointerp.population import population
from autointerp.rows import Draw, Explanation, Score, Split
from autointerp.store import Sparse
from autointerp.tally import Tally

log = logging.getLogger(__name__)

STRATA = {"A": 0, "B": 1, "C": 2}
CHUNK_LABELS = 64  # labels per transaction
ON_CHOSEN = ("r_tok", "lift", "null")  # metrics of the chosen label alone, on the score split


class ScoringSet(NamedTuple):
    """Passages with their usable tokens and true activations: everything that a metric needs beside predictions."""

    passages: NDArray[np.int64]  # [passage] ids
    stratum: NDArray[np.int64]  # [passage] 0 A, 1 B, 2 C
    document: NDArray[np.int64]  # [passage] an integer per document
    row: NDArray[np.int64]  # [token] row of its passage
    position: NDArray[np.int64]  # [token] position within it
    token: NDArray[np.int64]  # [token] token id
    actual: NDArray[np.float64]  # [token]


def run(grading: Grading, split: Split) -> Tally:
    """Score every label whose simulations are there, on one split. One unit is one number."""
    started = time.perf_counter()
    store = grading.store
    tally = Tally("score")
    chosen = {e.feature: e for e in store.chosen(grading.run)} if split == "score" else {}
    best = {e.explanation_id for e in chosen.values()}
    wanted = {
        score_id(grading, label, split, metric): (label, metric)
        for label in grading.wanted(split)
        for metric in ("r_rank", *(ON_CHOSEN if label.explanation_id in best else ()))
    }
    done = store.scored(list(wanted))
    simulated = store.simulated(
        list({label.explanation_id for label, _ in wanted.values()}), grading.run.judge(split), split
    )
    pending: dict[str, tuple[Explanation, list[str]]] = {}
    for key, (label, metric) in wanted.items():
        if key not in done and label.explanation_id in simulated:  # a feature's simulations are there all or none
            pending.setdefault(label.explanation_id, (label, []))[1].append(metric)
    if not pending:
        return tally
    grading.bar.start(f"score {split}", total=len(pending), unit="labels")
    nulls = Nulls(grading, chosen) if split == "score" else None
    jobs = list(pending.values())
    for start in range(0, len(jobs), CHUNK_LABELS):
        rows: list[Score] = []
        chunk = jobs[start : start + CHUNK_LABELS]
        drawn = store.drawn([label.explanation_id for label, _ in chunk], grading.run.scorer_id, split)
        for label, names in chunk:
            draws = drawn.get(label.explanation_id, [])
            try:
                rows += [row for row in _score_label(grading, label, split, draws, nulls) if row.metric in names]
            except Unreachable as problem:  # a null that was asked of a model: the label's numbers stay pending
                log.warning("%s", problem)
                tally.failed["unreachable"] += len(names)
            grading.bar.advance(1)
        with store.transaction():
            store.add(rows)
        tally.ok += sum(row.status == "ok" for row in rows)
        tally.failed += Counter(row.reason for row in rows if row.reason is not None)
    tally.seconds = time.perf_counter() - started
    return tally


def score_id(grading: Grading, label: Explanation, split: Split, metric: str) -> str:
    """The key of one number. The scoring design names the passages, so their hash is in it already."""
    return fingerprint([label.explanation_id, split, grading.run.judge(split), grading.run.scorer_id, metric])


def _score_label(
    grading: Grading, label: Explanation, split: Split, draws: list[Draw], nulls: "Nulls | None"
) -> list[Score]:
    """The rows of one label on one split; on score, the chosen label's baselines beside it."""
    found = scoring_set(
        grading, label.feature, split,
        np.array([d.passage_id for d in draws], dtype=np.int64),
        np.array([STRATA[d.stratum] for d in draws], dtype=np.int64),
    )  # fmt: skip
    predicted, missing = _simulated(grading, label, split, found)
    note = _Notes(grading, label, split)
    if missing:
        return [note.without(metric, missing) for metric in ("r_rank", *ON_CHOSEN)]
    rank = grade(grading, found, predicted, draws=grading.settings.score.bootstrap if split == "score" else 0)
    rows = [note.number("r_rank", rank, len(found.passages), _why_none(found.actual, predicted))]
    if nulls is None or not nulls.covers(label):
        return rows
    table = baselines.lookup(found.token, grading.evidence.mean_by_token(label.feature))
    tok = metrics.correlation(found.actual, table)
    rows.append(note.number("r_tok", tok, len(found.passages), _why_none(found.actual, table)))
    lift = None if rank.value is None or tok is None else rank.value - tok
    rows.append(note.number("lift", lift, len(found.passages), "no_r_tok" if tok is None else "no_r_rank"))
    values = nulls.values(label.feature)
    mean = float(np.mean(values)) if values else None
    rows.append(note.number("null", mean, len(values), nulls.why_none(label.feature)))
    return rows


class _Notes:
    """Makes the score rows of one label."""

    def __init__(self, grading: Grading, label: Explanation, split: Split) -> None:
        self.grading, self.label, self.split = grading, label, split

    def number(self, metric: str, value: metrics.Interval | float | None, n: int, reason: str) -> Score:
        """A row for a value, which may turn out not to exist, for `reason`."""
        found = value if isinstance(value, metrics.Interval) else metrics.Interval(value, None, None)
        ok = found.value is not None
        return Score(
            score_id=score_id(self.grading, self.label, self.split, metric), explanation_id=self.label.explanation_id,
            collection_id=self.label.collection_id, feature=self.label.feature, split=self.split,
            simulator_id=self.grading.run.judge(self.split), scorer_id=self.grading.run.scorer_id, metric=metric,
            status="ok" if ok else "skipped", value=found.value, lo=found.lo, hi=found.hi, n=n,
            reason=None if ok else reason,
        )  # fmt: skip

    def without(self, metric: str, reason: str) -> Score:
        """A row that says why there is no value."""
        return self.number(metric, None, 0, reason)


def scoring_set(
    grading: Grading, feature: int, split: Split, passages: NDArray[np.int64], stratum: NDArray[np.int64]
) -> ScoringSet:
    """The true activations of a feature on these passages (silent ones are all zeros), on tokens that count."""
    order = np.argsort(passages, kind="stable")
    passages, stratum = passages[order], stratum[order]
    width = grading.settings.collect.passage_tokens
    tokens, usable = grading.texts.grid(passages, width)
    actual = np.zeros(tokens.shape)
    fill(actual, passages, grading.sample(feature, split).firing)
    documents = [grading.texts.row(int(p)).document_id for p in passages]
    document = (
        np.unique(np.array(documents, dtype="U16"), return_inverse=True)[1]
        if documents
        else np.empty(0, dtype=np.int64)
    )
    row, position = np.nonzero(usable)
    return ScoringSet(passages, stratum, document, row, position, tokens[row, position], actual[row, position])


def fill(grid: NDArray[np.float64], passages: NDArray[np.int64], sparse: Sparse) -> None:
    """Write sparse values into a [passage, token] grid; passages (ascending ids) that are not in it are passed over."""
    row = np.searchsorted(passages, sparse.passage)
    row = np.where(row < len(passages), row, 0)
    inside = passages[row] == sparse.passage if len(passages) else np.zeros(len(sparse.passage), dtype=bool)
    lengths = np.diff(sparse.offsets)
    keep = np.repeat(inside, lengths)
    grid[np.repeat(row, lengths)[keep], sparse.positions[keep]] = sparse.values[keep]


def _simulated(
    grading: Grading, label: Explanation, split: Split, found: ScoringSet
) -> tuple[NDArray[np.float64], str | None]:
    """Predictions on the set's tokens, and the reason why some are missing (None when none is)."""
    sparse, failed = grading.store.simulations(label.explanation_id, grading.run.judge(split), split)
    if not len(found.passages):
        return np.empty(0), "no_passages"
    lost = [failed.get(int(p), "not_simulated") for p in found.passages[~np.isin(found.passages, sparse.passage)]]
    if lost:
        return np.empty(0), Counter(lost).most_common(1)[0][0]
    grid = np.zeros((len(found.passages), grading.settings.collect.passage_tokens))
    fill(grid, found.passages, sparse)
    return grid[found.row, found.position], None


def grade(grading: Grading, found: ScoringSet, predicted: NDArray[np.float64], draws: int) -> metrics.Interval:
    """r_rank of predictions on a scoring set; with draws > 0, its document-bootstrap interval."""
    moments = metrics.moments(found.actual, predicted, found.row, len(found.passages))
    if not draws:
        return metrics.Interval(metrics.correlation(found.actual, predicted), None, None)
    # The generator is made of (seed, the set itself), so the order of work cannot matter.
    key = int(
        mix(np.array([found.passages.sum()], dtype=np.int64).view(np.uint64) ^ salted(grading.settings.run.seed, 4))[0]
    )
    return metrics.r_rank(moments, found.stratum, found.document, draws, np.random.default_rng(key))


def _why_none(actual: NDArray[np.float64], predicted: NDArray[np.float64]) -> str:
    """Why two series have no correlation."""
    return "constant_actual" if not len(actual) or np.ptp(actual) == 0 else "constant_prediction"


class Nulls:
    """Scores of other features' labels on a feature's passages: what a label gets that has nothing to do with it.

    Each null label has its own claimed hard negatives, by the same rule as a real one.
    """

    def __init__(self, grading: Grading, chosen: dict[int, Explanation]) -> None:
        self.grading = grading
        self.labels = {feature: grading.key(e) for feature, e in chosen.items()}
        self.ids = {e.explanation_id for e in chosen.values()}
        self.features = grading.with_null(chosen)
        density = population(grading.store, grading.run.collection_id, grading.settings.features).density
        self.density = {feature: float(density[feature]) for feature in self.labels}

    def covers(self, label: Explanation) -> bool:
        """True for the chosen labels."""
        return label.explanation_id in self.ids

    def values(self, feature: int) -> list[float]:
        """r_rank of each null label on the feature; a label whose prediction is constant counts 0, as METHOD says."""
        grading = self.grading
        if feature not in self.features:
            return []
        others = baselines.shuffled_labels(feature, self.labels, self.density, grading.n_nulls)
        if not others:
            return []
        values = []
        for (_, label), cells in zip(others, grading.cells(feature, [z for _, z in others], "score"), strict=True):
            passages = np.concatenate([cell.passages for cell in cells])
            stratum = np.concatenate([np.full(len(cell.passages), STRATA[cell.stratum]) for cell in cells])
            found = scoring_set(grading, feature, "score", passages, stratum)
            predicted = grading.predict(label, found.passages)[found.row, found.position].astype(np.float64)
            if not np.isnan(predicted).any():  # a lost prediction is no 0
                values.append(grade(grading, found, predicted, draws=0).value or 0.0)
        return values

    def why_none(self, feature: int) -> str:
        """Why a feature has no null."""
        if feature not in self.features:
            return "null_of_a_sample"
        return "no_other_label"
