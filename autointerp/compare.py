"""Two ways of labelling or grading, feature by feature: paired differences of their numbers, with intervals.

An arm is one run, or several that differ in their seed. Differences are B - A over the features that both arms have a
number for; what either lacks is counted by reason and never filled in.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import report
from autointerp.errors import UserError, nearest
from autointerp.grading import Grading
from autointerp.metrics import Moments, correlation_of, moments
from autointerp.report import Reading
from autointerp.rows import Explanation
from autointerp.scoring_set import scoring_set, simulated
from autointerp.store import Store
from autointerp.tally import Bar

DRAWS = 2000  # bootstrap replicates behind an interval
METRICS = (
    "r_rank", "r_pop", "f1", "precision", "recall", "auprc", "balanced_accuracy", "tnr_b", "tnr_c", "r_tok", "lift",
    "partial", "discrimination",
)  # fmt: skip
BY_DOCUMENT = "r_rank"  # the metric whose documents are resampled too
KEY = 0x636D70  # of the random numbers here


class ComparisonError(UserError):
    """What was given cannot be compared."""


class Documents(NamedTuple):
    """One label's moments on score, by passage, with the documents that the passages are from."""

    stratum: NDArray[np.int64]  # [passage]
    document: NDArray[np.str_]  # [passage] ids, which are hashes of texts: the same in every run
    moments: Moments  # [passage]


@dataclass(frozen=True)
class Run:
    """What is compared of one run."""

    name: str
    run_id: str
    seed: int
    collection_id: str
    numbers: dict[str, dict[str, float | None]]  # feature id -> metric -> value
    reasons: dict[str, str]  # feature id -> why it has no r_rank
    verdicts: dict[str, str]  # feature id -> verdict, or `unjudged`
    documents: dict[str, Documents]  # feature id -> what its r_rank was computed from


@dataclass(frozen=True)
class Difference:
    """Mean paired difference B - A of one metric, over features that both arms have it for."""

    metric: str
    n: int
    a: float | None  # mean over these features
    b: float | None
    mean: float | None
    lo: float | None
    hi: float | None
    wins: float | None  # share of features where B is larger, ties half
    over: str  # what the interval resamples
    only_a: int  # features that only A has a number for
    only_b: int


@dataclass(frozen=True)
class Comparison:
    """Two arms side by side."""

    a: list[str]  # names of the runs
    b: list[str]
    seeds: dict[str, list[int]]
    same_collection: bool
    features: dict[str, int]  # both, only_a, only_b: selected in
    lost: dict[str, dict[str, int]]  # arm -> reason -> selected features of both that have no r_rank there
    differences: list[Difference]
    verdicts: dict[str, dict[str, int]]  # verdict in A -> verdict in B -> features
    pairs: dict[str, list[tuple[str, float, float]]]  # metric -> (feature id, A, B)


# -- reading -----------------------------------------------------------------------------------------------------------


def open_run(text: str, bar: Bar) -> Run:
    """A run by its folder, with `@NAME` for one of its dictionaries or `@RUN_ID` for an earlier run in its database.

    Raises StoreError for a folder without a run, ComparisonError for a name that it does not hold.
    """
    where, _, name = text.rpartition("@") if "@" in Path(text).name else (text, "", "")
    path = Path(where)
    with Store.read((path.parent if path.suffix == ".duckdb" else path) / "run.duckdb") as store:
        return _read(store, _reading(store, text, name), text, bar)


def _reading(store: Store, text: str, name: str) -> Reading:
    if not name:
        return report.read(store)
    latest = {run.dictionary: run for run in store.latest_runs()}
    if name in latest:
        return report.read(store, name)
    found = [run for run in store.runs() if run.run_id.startswith(name)]
    if len(found) != 1:
        known = [*latest, *(run.run_id for run in store.runs())]
        raise ComparisonError(
            f"{text}: no single run or dictionary {name!r}{nearest(name, known)}; it holds {', '.join(known)}"
        )
    return report.read_run(store, found[0])


def _read(store: Store, reading: Reading, text: str, bar: Bar) -> Run:
    numbers, reasons, verdicts, documents = {}, {}, {}, {}
    chosen = {e.feature: e for e in store.chosen(reading.run)}
    grading = Grading(store, reading.settings, reading.run, bar)
    bar.start("read", total=len(reading.labels), unit="labels")
    for label in reading.labels:
        own = asdict(label) | label.numbers
        numbers[label.feature_id] = {metric: own.get(metric) for metric in METRICS}
        verdicts[label.feature_id] = label.verdict or "unjudged"
        if label.r_rank is None:
            reasons[label.feature_id] = label.reason or "not_scored"
        else:
            found = _documents(grading, chosen[label.feature])
            if found is not None:
                documents[label.feature_id] = found
        bar.advance()
    return Run(
        text, reading.run.run_id, reading.settings.run.seed, reading.run.collection_id, numbers, reasons, verdicts,
        documents,
    )  # fmt: skip


def _documents(grading: Grading, label: Explanation) -> Documents | None:
    """What r_rank was computed from; None where the predictions are no longer there."""
    store, run = grading.store, grading.run
    draws = store.drawn([label.explanation_id], run.scorer_id, "score").get(label.explanation_id, [])
    found = scoring_set(grading, label.feature, "score", draws)
    predicted, missing = simulated(grading, label, "score", found)
    if missing:
        return None
    documents = np.array([grading.texts.row(int(p)).document_id for p in found.passages], dtype=np.str_)
    return Documents(found.stratum, documents, moments(found.actual, predicted, found.row, len(found.passages)))


# -- comparing ---------------------------------------------------------------------------------------------------------


def compare(a: Sequence[Run], b: Sequence[Run], bar: Bar, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """B - A. Raises ComparisonError where a run stands on both sides, or no feature is in both arms."""
    twice = {run.run_id for run in a} & {run.run_id for run in b}
    if twice:
        name = next(run.name for run in b if run.run_id in twice)
        raise ComparisonError(f"{name} is on both sides: expected two different runs; nothing differs")
    for arm in (a, b):
        if len({run.run_id for run in arm}) < len(arm):
            raise ComparisonError(f"{arm[0].name} is given twice on one side: give every run, or seed, once")
    mine, theirs = (_features(arm) for arm in (a, b))
    both = sorted(mine & theirs)
    if not both:
        raise ComparisonError(
            f"no feature is in both {a[0].name} ({len(mine)}, such as {min(mine, default='none')}) and {b[0].name} "
            f"({len(theirs)}, such as {min(theirs, default='none')}): compare runs of the same dictionary and selection"
        )
    pairs = {metric: _pairs(a, b, both, metric) for metric in METRICS}
    bar.start("compare", total=len(METRICS), unit="metrics")
    differences = []
    for place, metric in enumerate(METRICS):
        random = np.random.default_rng([seed, KEY, place])
        differences.append(_difference(a, b, both, metric, pairs[metric], draws, random))
        bar.advance()
    return Comparison(
        [run.name for run in a], [run.name for run in b],
        {"a": [run.seed for run in a], "b": [run.seed for run in b]},
        len({run.collection_id for run in (*a, *b)}) == 1,
        {"both": len(both), "only_a": len(mine - theirs), "only_b": len(theirs - mine)},
        {"a": _lost(a, both), "b": _lost(b, both)}, differences, _transitions(a, b, both), pairs,
    )  # fmt: skip


def _features(arm: Sequence[Run]) -> set[str]:
    """The features that every run of an arm selected."""
    return set.intersection(*(set(run.numbers) for run in arm))


def _value(arm: Sequence[Run], feature: str, metric: str) -> float | None:
    """Mean over the seeds of an arm; None where any of them lacks it."""
    values = [run.numbers[feature][metric] for run in arm]
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if len(found) == len(arm) else None


def _pairs(a: Sequence[Run], b: Sequence[Run], both: Sequence[str], metric: str) -> list[tuple[str, float, float]]:
    found = ((feature, _value(a, feature, metric), _value(b, feature, metric)) for feature in both)
    return [(feature, x, y) for feature, x, y in found if x is not None and y is not None]


def _lost(arm: Sequence[Run], both: Sequence[str]) -> dict[str, int]:
    return dict(Counter(run.reasons[feature] for run in arm for feature in both if feature in run.reasons))


def _transitions(a: Sequence[Run], b: Sequence[Run], both: Sequence[str]) -> dict[str, dict[str, int]]:
    """Verdict in A -> verdict in B -> features; seeds are paired in the order in which they were given."""
    found: dict[str, Counter[str]] = {}
    for first, second in zip(a, b, strict=False):
        for feature in both:
            found.setdefault(first.verdicts[feature], Counter())[second.verdicts[feature]] += 1
    return {verdict: dict(counts) for verdict, counts in sorted(found.items())}


def _difference(
    a: Sequence[Run], b: Sequence[Run], both: Sequence[str], metric: str, pairs: Sequence[tuple[str, float, float]],
    draws: int, random: np.random.Generator,
) -> Difference:  # fmt: skip
    here, there = (
        sum(_value(arm, feature, metric) is not None for feature in both) - len(pairs) for arm in (a, b)
    )
    if not pairs:
        return Difference(metric, 0, None, None, None, None, None, None, "", here, there)
    names = [feature for feature, _, _ in pairs]
    x, y = (np.array(column) for column in list(zip(*pairs, strict=True))[1:])
    whole = all(feature in run.documents for run in (*a, *b) for feature in names)
    by_document = metric == BY_DOCUMENT and whole
    lo, hi = _interval(y - x, _replicates(a, b, names, draws, random) if by_document else None, draws, random)
    wins = float(np.mean(y > x) + np.mean(y == x) / 2)
    over = "features and documents" if by_document else "features"
    return Difference(
        metric, len(pairs), float(x.mean()), float(y.mean()), float((y - x).mean()), lo, hi, wins, over, here, there
    )


def _interval(
    difference: NDArray[np.float64], replicates: NDArray[np.float64] | None, draws: int, random: np.random.Generator
) -> tuple[float | None, float | None]:
    """The 2.5 and 97.5 % quantile of the mean over features drawn with replacement; None where there is one feature.

    replicates  [draw, feature] differences with their documents drawn with replacement too (Owen 2007's pigeonhole
                bootstrap: two crossed factors, each resampled whole); NaN, where one has no correlation, is left out
    """
    n = len(difference)
    if n < 2:
        return None, None
    times = random.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    values = np.broadcast_to(difference, (draws, n)) if replicates is None else replicates
    there = ~np.isnan(values)
    weight = (times * there).sum(axis=1)
    sums = (times * np.where(there, values, 0.0)).sum(axis=1)
    means = sums[weight > 0] / weight[weight > 0]
    lo, hi = np.quantile(means, [0.025, 0.975])
    return float(lo), float(hi)


def _replicates(
    a: Sequence[Run], b: Sequence[Run], features: Sequence[str], draws: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """r_rank of B - A, [draw, feature], on documents drawn with replacement: each as often in every run and feature."""
    known = np.unique(np.concatenate([run.documents[f].document for run in (*a, *b) for f in features]))
    times = random.multinomial(len(known), np.full(len(known), 1 / len(known)), size=draws).astype(np.float64)
    found = np.zeros((draws, len(features)))
    for arm, sign in ((a, -1.0), (b, 1.0)):
        for run in arm:
            for column, feature in enumerate(features):
                found[:, column] += sign * _r_rank(run.documents[feature], known, times) / len(arm)
    return found


def _r_rank(found: Documents, known: NDArray[np.str_], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """r_rank with every passage counted as often as its document, [draw]. Strata keep their size, as they do in the
    design; a replicate in which one is empty has none."""
    place = np.searchsorted(known, found.document)
    totals = np.zeros((len(times), len(found.moments)))
    rows = np.stack([np.asarray(column, dtype=np.float64) for column in found.moments], axis=1)
    for stratum in np.unique(found.stratum):
        inside = np.flatnonzero(found.stratum == stratum)
        weight = times[:, place[inside]]
        total = weight.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            totals += weight @ rows[inside] * (len(inside) / total)
    return np.asarray(correlation_of(Moments(*(totals[:, i : i + 1] for i in range(totals.shape[1])))))


def as_json(found: Comparison) -> dict[str, Any]:
    """Everything, as JSON-able values; pairs by metric as objects."""
    pairs: Mapping[str, list[dict[str, Any]]] = {
        metric: [{"feature_id": f, "a": x, "b": y} for f, x, y in rows] for metric, rows in found.pairs.items()
    }
    return asdict(found) | {"pairs": pairs}

