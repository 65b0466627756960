"""STAGE 4: draw, simulation, excerpt, panel -> score, verdict.

Arithmetic only, apart from what labels of other features are asked for: nulls and neighbours are predicted by the same
simulator under the same rules. Nothing is scored on a passage whose prediction is missing: a label with any missing
prediction says so.
"""

import logging
import time
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from autointerp import baselines, conclude, grades, metrics
from autointerp.errors import Unreachable
from autointerp.grades import ON_CHOSEN
from autointerp.grading import Grading
from autointerp.keep import mix, salted
from autointerp.notes import Notes, score_id
from autointerp.others import Null, Others
from autointerp.rows import Draw, Explanation, Score, Split
from autointerp.scoring_set import ScoringSet, marked, scoring_set, simulated
from autointerp.tally import Tally

log = logging.getLogger(__name__)

CHUNK_LABELS = 64  # labels per transaction


def run(grading: Grading, split: Split) -> Tally:
    """Score every label whose simulations are there, on one split. One unit is one number, or one verdict."""
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
    there = store.simulated(
        list({label.explanation_id for label, _ in wanted.values()}), grading.run.grader(split), split
    )
    pending: dict[str, tuple[Explanation, list[str]]] = {}
    for key, (label, metric) in wanted.items():
        if key not in done and label.explanation_id in there:  # a feature's simulations are there all or none
            pending.setdefault(label.explanation_id, (label, []))[1].append(metric)
    if pending:
        grading.bar.start(f"score {split}", total=len(pending), unit="labels")
    others = Others(grading, chosen) if split == "score" and pending else None
    jobs = list(pending.values())
    for start in range(0, len(jobs), CHUNK_LABELS):
        rows: list[Score] = []
        chunk = jobs[start : start + CHUNK_LABELS]
        drawn = store.drawn([label.explanation_id for label, _ in chunk], grading.run.scorer_id, split)
        for label, names in chunk:
            draws = drawn.get(label.explanation_id, [])
            mine = others if label.explanation_id in best else None
            try:
                rows += [row for row in _score_label(grading, label, split, draws, mine) if row.metric in names]
            except Unreachable as problem:  # a null that was asked of a model: the label's numbers stay pending
                log.warning("%s", problem)
                tally.failed["unreachable"] += len(names)
            grading.bar.advance(1, label.label)
        with store.transaction():
            store.add(rows)
        _count(tally, rows)
    if split == "score":
        conclude.run(grading, list(chosen.values()), ("r_rank", *ON_CHOSEN), tally)
    tally.seconds = time.perf_counter() - started
    return tally


def _count(tally: Tally, rows: list[Score]) -> None:
    tally.ok += sum(row.status == "ok" for row in rows)
    tally.failed += Counter(row.reason for row in rows if row.reason is not None)


def _score_label(
    grading: Grading, label: Explanation, split: Split, draws: list[Draw], others: Others | None
) -> list[Score]:
    """The rows of one label on one split; with `others`, of a chosen one: with everything that it has to beat."""
    found = scoring_set(grading, label.feature, split, draws)
    predicted, missing = simulated(grading, label, split, found)
    note = Notes(grading, label, split)
    if missing:
        return [note.without(metric, missing) for metric in ("r_rank", *ON_CHOSEN)]
    rank = _r_rank(grading, found, predicted, draws=grading.settings.score.bootstrap if split == "score" else 0)
    rows = [note.number("r_rank", rank, len(found.passages), metrics.why_none(found.actual, predicted))]
    if others is None:
        return rows
    rows += _detection(grading, note, found, predicted)
    rows += _beside_table(grading, note, found, predicted)
    null = others.null(label.feature)
    why = others.why_no_null(label.feature)
    rows.append(note.number("null", float(null.values.mean()) if len(null.values) else None, len(null.values), why))
    return [*rows, _null_p(grading, note, null, why), _discrimination(note, found, predicted, others)]


def _r_rank(grading: Grading, found: ScoringSet, predicted: NDArray[np.float64], draws: int) -> metrics.Interval:
    """r_rank of predictions on a scoring set; with draws > 0, its document-bootstrap interval."""
    moments = metrics.moments(found.actual, predicted, found.row, len(found.passages))
    if not draws:
        return metrics.Interval(metrics.correlation(found.actual, predicted), None, None)
    # The generator is made of (seed, the set itself), so the order of work cannot matter.
    return metrics.r_rank(moments, found.stratum, found.document, draws, generator(grading, found.passages, 4))


def generator(grading: Grading, passages: NDArray[np.int64], purpose: int) -> np.random.Generator:
    """Random numbers made of the seed and of these passages, whatever is worked on before."""
    total = np.array([passages.sum()], dtype=np.int64).view(np.uint64)
    return np.random.default_rng(int(mix(total ^ salted(grading.settings.run.seed, purpose))[0]))


def _detection(grading: Grading, note: Notes, found: ScoringSet, predicted: NDArray[np.float64]) -> list[Score]:
    """Does a passage fire? And how well can that be told from which tokens it holds."""
    marks = marked(grading, note.label.feature, found, predicted)
    n = {"tnr_b": marks.stratum("B"), "tnr_c": marks.stratum("C"), "recall": marks.fires, "recall_low": marks.weak}
    n |= dict.fromkeys(("f1", "precision"), marks.of("fires", "claimed")) | {"claimed_own": marks.of("claimed")}
    rows = [
        note.number(metric, value, int(n[metric].sum()) if metric in n else len(marks.kind), "no_such_passage")
        for metric, value in grades.detection(marks, grading.says_so).items()
    ]
    looks = _bag_of_words(grading, note.label.feature, marks.passages)
    value = None if looks is None else metrics.auprc(marks.fires, looks, marks.weight)
    return [*rows, note.number("bag_of_words", value, len(marks.kind), "nothing_to_learn")]


def _bag_of_words(grading: Grading, feature: int, asked: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """How much each asked passage looks like those of explain in which the feature fires, by its tokens alone."""
    evidence, width = grading.evidence, grading.settings.collect.passage_tokens
    ids, firing, _ = evidence.firing(feature)
    positive = ids[np.unique(firing.row)]
    silent = grading.explain_tokens[evidence.panel.silent(feature)]
    tokens = np.concatenate([grading.texts.grid(positive, width)[0], silent])
    fires = np.arange(len(tokens)) < len(positive)
    return baselines.bag_of_words(tokens, fires, grading.texts.grid(asked, width)[0])


def _beside_table(grading: Grading, note: Notes, found: ScoringSet, predicted: NDArray[np.float64]) -> list[Score]:
    """The token look-up table on the same tokens, and what the label adds to it."""
    table = baselines.lookup(found.token, grading.evidence.mean_by_token(note.label.feature))
    numbers = grades.beside_table(found.actual, predicted, table, found.unguided)
    why = {
        "r_tok": metrics.why_none(found.actual, table), "r_tok_ac": metrics.why_none(found.actual, table),
        "lift": "no_r_tok" if numbers["r_tok"] is None else "no_r_rank",
        "partial": "no_r_tok" if numbers["r_tok"] is None else "nothing_left",
    }  # fmt: skip
    passages = len(found.passages)
    n = {"r_tok_ac": int((found.stratum != 1).sum())}
    return [note.number(name, value, n.get(name, passages), why[name]) for name, value in numbers.items()]


def _null_p(grading: Grading, note: Notes, null: Null, why: str) -> Score:
    """Permutation p of the label among the labels of other features. Paid simulators have pooled nulls and no p."""
    if grading.settings.simulator.paid:
        return note.without("null_p", "pooled_null")
    if not len(null.values) or null.own is None:
        return note.without("null_p", "no_r_rank" if len(null.values) else why)
    return note.number("null_p", metrics.permutation_p(null.own, null.values), len(null.values), "")


def _discrimination(note: Notes, found: ScoringSet, predicted: NDArray[np.float64], others: Others) -> Score:
    value, n, why = others.discrimination(note.label.feature, found, predicted)
    return note.number("discrimination", value, n, why)
