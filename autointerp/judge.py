"""STAGE 5, where judges are asked for: draw, explanation -> judgement, score.

On score the chosen label of each feature is judged. On select all of its candidates are, where detection chooses among
them. Passages come from the scoring sets that simulating has drawn; verdicts and what they add up to are written
together, feature by feature. A passage without a verdict is no silence: the numbers that need it are NULL with its
reason.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import metrics
from autointerp.config import fingerprint
from autointerp.errors import BudgetSpent, Unreachable
from autointerp.grading import Grading
from autointerp.judges import Item, detection, fuzzing
from autointerp.judges.replies import Panel, Question, Verdict
from autointerp.llm import Door, halves
from autointerp.rows import Draw, Explanation, Judgement, Score, Split, Status, Stratum
from autointerp.tally import Tally

log = logging.getLogger(__name__)

Kind = Literal["detection", "fuzzing"]
METRICS: dict[Kind, tuple[str, ...]] = {
    "detection": ("detection_f1", "detection_balanced_accuracy", "detection_tnr_b", "detection_tnr_c"),
    "fuzzing": ("fuzzing_accuracy",),
}
CHUNK_FEATURES = 64  # features whose questions are asked together


class Case(NamedTuple):
    """A feature's labels before one judge."""

    feature: int
    labels: list[Explanation]
    strata: dict[int, Stratum]  # of the passages shown
    question: Question


def run(grading: Grading, split: Split, judges: dict[str, str], door: Door) -> Tally:
    """Judge what is pending on one split. One unit is one verdict: a label on a passage.

    judges  kind -> judge_id, of the settings
    A model that cannot be reached leaves its features pending, and the tally says so; where detection was to choose
    their labels, it also says for how many features r_rank does.
    """
    started = time.perf_counter()
    tally = Tally("judge")
    for kind in METRICS:
        if tally.stopped is None and kind in judges and (split == "score" or _chooses(grading, kind)):
            judging = _Judging(grading, split, kind, judges[kind], door, tally)
            judging.run()
            notes = [tally.note, halves.note(judging.panel.halved)]
            if split == "select" and judging.undecided:
                notes.append(f"features without a verdict, for which r_rank chooses: {len(judging.undecided):,}")
            tally.note = "; ".join(filter(None, notes))
    tally.seconds = time.perf_counter() - started
    return tally


def _chooses(grading: Grading, kind: Kind) -> bool:
    return grading.settings.judge.chooses and kind == "detection"


class _Judging:
    """One kind of judge on one split."""

    def __init__(self, grading: Grading, split: Split, kind: Kind, judge_id: str, door: Door, tally: Tally) -> None:
        self.grading, self.split, self.kind, self.judge_id, self.tally = grading, split, kind, judge_id, tally
        self.cfg, self.seed = grading.settings.judge, grading.settings.run.seed
        self.panel = Panel(door, self.cfg, self.cfg.prompt(kind))
        self.undecided: set[int] = set()  # features that this judge was to say something about, and could not

    def run(self) -> None:
        """Ask, write, count."""
        pending = self._pending()
        if not pending:
            return
        self.grading.bar.start(f"{self.kind} {self.split}", total=len(pending), unit="features")
        for start in range(0, len(pending), CHUNK_FEATURES):
            cases = [self._case(labels) for labels in pending[start : start + CHUNK_FEATURES]]
            waiting = set(range(len(cases)))
            try:
                for place, verdict in self.panel.ask([case.question for case in cases]):
                    waiting.remove(place)
                    self._write(cases[place], verdict)
                    self.grading.bar.advance(1)
            except (Unreachable, BudgetSpent) as problem:  # no rows: these features stay pending
                stopped = isinstance(problem, BudgetSpent)
                self.undecided |= {cases[i].feature for i in waiting}
                left = sum(len(cases[i].question.items) * len(cases[i].labels) for i in waiting)
                self.tally.failed["budget_spent" if stopped else "unreachable"] += left
                if isinstance(problem, BudgetSpent):
                    self.tally.stopped = problem
                    return
                log.warning("%s", problem)
                if problem.gone:
                    self.undecided |= {labels[0].feature for labels in pending[start + CHUNK_FEATURES :]}
                    return

    def _pending(self) -> list[list[Explanation]]:
        """The labels to judge by feature: of those that have a scoring set, features that lack a number."""
        grading, run = self.grading, self.grading.run
        if self.split == "score":
            labels = grading.store.chosen(run)
        else:
            labels = [e for e in grading.wanted(self.split) if e.status == "ok"]
        ids = [label.explanation_id for label in labels]
        drawn = grading.store.drawn(ids, run.scorer_id, self.split)
        wanted = {(key, metric): self._score_id(key, metric) for key in drawn for metric in METRICS[self.kind]}
        done = grading.store.scored(list(wanted.values()))
        lacking = {key for (key, _), score in wanted.items() if score not in done}
        groups = [list(group) for _, group in groupby(labels, key=lambda e: e.feature)]
        ready = [[e for e in group if e.explanation_id in drawn] for group in groups]
        return [group for group in ready if any(e.explanation_id in lacking for e in group)]

    def _case(self, labels: list[Explanation]) -> Case:
        feature, grading = labels[0].feature, self.grading
        drawn = grading.store.drawn([e.explanation_id for e in labels], grading.run.scorer_id, self.split)
        if self.kind == "detection":
            strata = detection.choose(drawn, self.cfg.passages, feature, self.seed)
            grading.texts.fetch(np.array(list(strata), dtype=np.int64))
            items, per_call = detection.items(strata, grading.texts), self.cfg.per_call
        else:
            items = self._marked(feature, drawn)
            strata = dict.fromkeys((item.passage for item in items), "A")
            per_call = max(min(self.cfg.per_call, len(items) // 2), 1)  # never two versions of a passage in one call
        texts = list(dict.fromkeys(e.label or "" for e in labels))
        purpose = f"judge {self.kind} {grading.run.collection_id}/{feature}"
        return Case(feature, labels, strata, Question(purpose, texts, items, per_call))

    def _marked(self, feature: int, drawn: dict[str, list[Draw]]) -> list[Item]:
        firing = self.grading.sample(feature, self.split).firing
        wanted = {draw.passage_id for draws in drawn.values() for draw in draws if draw.stratum == "A"}
        self.grading.texts.fetch(np.array(sorted(wanted), dtype=np.int64))
        return fuzzing.items(firing, wanted, self.grading.texts, self.cfg.passages, feature, self.seed)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _write(self, case: Case, verdict: Verdict) -> None:
        """Add a feature's verdicts and numbers, and count the verdicts."""
        judgements: list[Judgement] = []
        scores: list[Score] = []
        if verdict.lost:
            self.undecided.add(case.feature)
        for label in case.labels:
            says = verdict.says[case.question.labels.index(label.label or "")]
            judgements += self._judgements(case, label, says, verdict)
            scores += self._scores(case, label, says, verdict)
        with self.grading.store.transaction():
            self.grading.store.add(judgements)
            self.grading.store.add(scores)
        self.tally.ok += sum(row.status == "ok" for row in judgements)
        self.tally.failed += Counter(row.reason for row in judgements if row.reason is not None)

    def _judgements(
        self, case: Case, label: Explanation, says: NDArray[np.bool_], verdict: Verdict
    ) -> Iterator[Judgement]:
        status: Status
        for i, item in enumerate(case.question.items):
            status, reason = verdict.lost.get(i, ("ok", None))
            yield Judgement(
                label.explanation_id, self.judge_id, self.grading.run.scorer_id, self.split, item.passage, self.kind,
                case.strata[item.passage], status, reason, None if reason else bool(says[i]), item.marked,
            )  # fmt: skip

    def _scores(self, case: Case, label: Explanation, says: NDArray[np.bool_], verdict: Verdict) -> Iterator[Score]:
        items = case.question.items
        lost = Counter(reason for _, reason in verdict.lost.values()).most_common(1)
        strata = [case.strata[item.passage] for item in items]
        found = numbers(self.kind, items, strata, says)
        for metric in METRICS[self.kind]:
            value, n, reason = (None, 0, lost[0][0]) if lost else found[metric]
            yield Score(
                score_id=self._score_id(label.explanation_id, metric), explanation_id=label.explanation_id,
                collection_id=label.collection_id, feature=label.feature, split=self.split, simulator_id=self.judge_id,
                scorer_id=self.grading.run.scorer_id, metric=metric, status="skipped" if value is None else "ok",
                value=value, lo=None, hi=None, n=n, reason=reason if value is None else None,
            )  # fmt: skip

    def _score_id(self, explanation_id: str, metric: str) -> str:
        return fingerprint([explanation_id, self.split, self.judge_id, self.grading.run.scorer_id, metric])


def numbers(
    kind: Kind, items: Sequence[Item], strata: Sequence[Stratum], says: NDArray[np.bool_]
) -> dict[str, tuple[float | None, int, str]]:
    """Metric -> its value, the verdicts it is over, and the reason that holds where the value is None.

    Detection is graded on the design, unweighted: half firing, a quarter hard, a quarter others. With a few passages of
    C that stand for nearly the whole corpus, one verdict among them would decide a weighted F1.
    """
    truth = np.array([item.truth for item in items], dtype=bool)
    if kind == "fuzzing":
        accuracy = float(np.mean(truth == says)) if len(truth) else None
        return {"fuzzing_accuracy": (accuracy, len(truth), "no_marks")}
    confusion, n = metrics.confusion(truth, says), len(truth)
    one_kind = "no_firing_passages" if not truth.any() else "no_silent_passages"
    found: dict[str, tuple[float | None, int, str]] = {
        "detection_f1": (metrics.f1(confusion), n, "no_firing_passages"),
        "detection_balanced_accuracy": (metrics.balanced_accuracy(confusion), n, one_kind),
    }
    for stratum, reason in (("B", "no_hard_negatives"), ("C", "no_silent_passages")):
        inside = np.array([found == stratum for found in strata], dtype=bool)
        rate = metrics.true_negative_rate(metrics.confusion(truth[inside], says[inside]))
        found[f"detection_tnr_{stratum.lower()}"] = (rate, int(inside.sum()), reason)
    return found
