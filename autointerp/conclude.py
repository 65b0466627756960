"""What can only be said once every chosen label has its own numbers: r_pop, null_q, and verdicts.

r_pop leans on what false positives of the simulator look like over all labels, null_q on the p of all of them. So
nothing is written here while a label of the run lacks a number: it would come out otherwise later.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autointerp import grades, metrics, verdicts
from autointerp.config import fingerprint
from autointerp.grades import OVER_RUN
from autointerp.grading import Grading
from autointerp.keep import mix, salted
from autointerp.metrics import Cell
from autointerp.notes import Notes, score_id
from autointerp.population import Population, population
from autointerp.rows import Explanation, Score, Verdict
from autointerp.scoring_set import marked, scoring_set, simulated
from autointerp.tally import Tally

CHUNK_LABELS = 64  # labels per transaction


@dataclass(frozen=True)
class _Set:
    """One label's scoring set, or why it is not whole."""

    cells: list[Cell]
    n: int  # passages
    key: int  # made of the seed and of the passages
    examples: dict[str, list[int]]
    missing: str | None


def run(grading: Grading, chosen: Sequence[Explanation], before: Sequence[str], tally: Tally) -> None:
    """Write what is pending, if every chosen label has the metrics `before`. Adds to the tally."""
    store = grading.store
    wanted = {score_id(grading, e, "score", metric): (e, metric) for e in chosen for metric in OVER_RUN}
    done = store.scored(list(wanted))
    pending = [pair for key, pair in wanted.items() if key not in done]
    by = verdicts.thresholds_id(grading.settings.verdict)
    ids = {_verdict_id(grading, e, by): e for e in chosen}
    concluded = store.concluded(list(ids))
    unconcluded = [e for key, e in ids.items() if key not in concluded]
    if not pending and not unconcluded:
        return
    needed = [score_id(grading, e, "score", metric) for e in chosen for metric in before]
    if len(store.scored(needed)) < len(needed):
        return
    grading.bar.start("conclude", total=len(chosen), unit="labels")
    sets = {e.explanation_id: _set(grading, e) for e in chosen}
    numbers = _numbers(grading, chosen)
    rows = _r_pop(grading, [e for e, metric in pending if metric == "r_pop"], sets)
    rows += _null_q(grading, [e for e, metric in pending if metric == "null_q"], numbers)
    for row in rows:
        numbers[row.explanation_id][row.metric] = row
    kinds = population(store, grading.run.collection_id, grading.settings.features)
    found = [_verdict(grading, e, numbers[e.explanation_id], sets[e.explanation_id], kinds, by) for e in unconcluded]
    with store.transaction():
        store.add(rows)
        store.add(found)
    tally.ok += sum(row.status == "ok" for row in rows) + sum(v.verdict is not None for v in found)
    reasons = [row.reason for row in rows] + [verdict.reason for verdict in found]
    tally.failed += Counter(reason for reason in reasons if reason is not None)


def _verdict_id(grading: Grading, label: Explanation, by: str) -> str:
    return fingerprint([label.explanation_id, grading.run.simulator_id, grading.run.scorer_id, by])


def _set(grading: Grading, label: Explanation) -> _Set:
    draws = grading.store.drawn([label.explanation_id], grading.run.scorer_id, "score").get(label.explanation_id, [])
    found = scoring_set(grading, label.feature, "score", draws)
    predicted, missing = simulated(grading, label, "score", found)
    grading.bar.advance(1)
    if missing:
        return _Set([], len(found.passages), 0, {}, missing)
    marks, threshold = marked(grading, label.feature, found, predicted), grading.says_so
    total = np.array([found.passages.sum()], dtype=np.int64).view(np.uint64)
    key = int(mix(total ^ salted(grading.settings.run.seed, 6))[0])
    shown = grades.examples(marks, threshold, grading.settings.verdict.passages)
    return _Set(grades.cells(marks, threshold), len(found.passages), key, shown, None)


def _numbers(grading: Grading, chosen: Sequence[Explanation]) -> dict[str, dict[str, Score]]:
    """Explanation -> metric -> its row on score."""
    found: dict[str, dict[str, Score]] = {e.explanation_id: {} for e in chosen}
    for row in grading.store.scores(grading.run, "score"):
        if row.explanation_id in found:
            found[row.explanation_id][row.metric] = row
    return found


def _r_pop(grading: Grading, labels: Sequence[Explanation], sets: dict[str, _Set]) -> list[Score]:
    design = grading.design("score")
    share = min(len(design.panel.passages) / max(design.n_passages, 1), 1.0)
    pools = grades.backgrounds([found.cells for found in sets.values()])
    rows = []
    for label in labels:
        found, note = sets[label.explanation_id], Notes(grading, label, "score")
        if found.missing:
            rows.append(note.without("r_pop", found.missing))
            continue
        random = np.random.default_rng(found.key)
        value = grades.r_pop(found.cells, pools, share, grading.settings.score.bootstrap, random)
        constant = not any(cell.moments.yy.any() for cell in found.cells)
        rows.append(note.number("r_pop", value, found.n, "constant_prediction" if constant else "constant_actual"))
    return rows


def _null_q(grading: Grading, labels: Sequence[Explanation], numbers: dict[str, dict[str, Score]]) -> list[Score]:
    """Benjamini-Hochberg over the labels of the run that have a p."""
    found = {key: rows["null_p"] for key, rows in numbers.items()}
    tested = sorted(key for key, row in found.items() if row.value is not None)
    p = np.array([found[key].value for key in tested], dtype=np.float64)
    q = dict(zip(tested, metrics.benjamini_hochberg(p).tolist(), strict=True)) if tested else {}
    return [
        Notes(grading, label, "score").number(
            "null_q", q.get(label.explanation_id), len(tested), found[label.explanation_id].reason or ""
        )
        for label in labels
    ]


def _verdict(
    grading: Grading, label: Explanation, numbers: dict[str, Score], found: _Set, kinds: Population, by: str
) -> Verdict:
    """The row of one label. One whose predictions were lost has no verdict, and says why."""
    values = {metric: row.value for metric, row in numbers.items()} | {"density": float(kinds.density[label.feature])}
    cfg, settings = grading.settings.verdict, grading.settings
    kind = kinds.kind(label.feature)
    lost = found.missing if kind == "eligible" else None
    if numbers["r_rank"].reason == "constant_actual":
        kind = "too_rare"
    decided = verdicts.decide(kind, values, cfg, settings.features.max_density, numbers["null_p"].n)
    evidence = {
        "numbers": [check._asdict() | {"holds": check.holds} for check in decided.evidence],
        "passages": {} if lost else verdicts.shown(decided.verdict, found.examples),
    }
    return Verdict(
        verdict_id=_verdict_id(grading, label, by), explanation_id=label.explanation_id,
        collection_id=label.collection_id, feature=label.feature, simulator_id=grading.run.simulator_id,
        scorer_id=grading.run.scorer_id, thresholds_id=by, verdict=None if lost else decided.verdict, reason=lost,
        evidence=json.dumps({} if lost else evidence),
    )  # fmt: skip
