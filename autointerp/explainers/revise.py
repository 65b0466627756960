"""`revise`: the best label so far with the worst errors of the simulator that read it, and a request for better ones.

A round of its own after the candidates have been scored on select. Errors are passages of the label's own scoring set
on select; score is never read. What is better is decided on select again, so a round can only help there; whether it
has helped is what score is for.
"""

from dataclasses import dataclass, replace

import numpy as np

from autointerp.evidence import Texts
from autointerp.explainers import marks
from autointerp.explainers.method import Evidence, Method
from autointerp.explainers.shown import Shown, firing, listed, marked
from autointerp.fence import line
from autointerp.rows import Explanation, Run
from autointerp.store import Sparse, Store

SHOWN = 4  # errors of each kind, at most
MIN_GAP = 0.2  # smaller ones, as a share of the largest value, are no errors worth showing


@dataclass(frozen=True)
class Error:
    """A passage that a label gets wrong: where its feature fires and it says nothing (missed), or the reverse (wrong).

    A token is wrong by actual - predicted, or the reverse, each as a share of its largest value in the scoring set.
    """

    passage: int
    gap: float  # the largest of its tokens'
    positions: list[int]  # of the tokens that are wrong by MIN_GAP or more, so not of those that the label gets right
    values: list[float]  # the gap of each


class Errors:
    """What the best label of each feature gets wrong on select."""

    def __init__(self, store: Store, run: Run, texts: Texts) -> None:
        self.store, self.run, self.texts = store, run, texts
        self.labels: dict[int, Explanation] = {e.feature: e for e in store.chosen(run)}

    def worst(self, feature: int) -> tuple[list[Error], list[Error]]:
        """Missed and wrongly guessed passages of the feature's best label, the largest gap first."""
        label = self.labels[feature].explanation_id
        drawn = self.store.drawn([label], self.run.scorer_id, "select").get(label, [])
        fires = {row.passage_id for row in drawn if row.stratum == "A"}
        silent = {row.passage_id for row in drawn} - fires
        sample = self.store.excerpts(self.run.collection_id, feature, "select", "sample")
        actual = _by_passage(sample.firing, fires)
        found, lost = self.store.simulations(label, self.run.grader("select"), "select")
        predicted = _by_passage(found, (fires | silent) - lost.keys())
        a_max, p_max = _largest(actual), _largest(predicted)
        missed = []
        for passage in actual.keys() - lost.keys():
            guess = predicted.get(passage, {})
            gaps = {at: value / a_max - guess.get(at, 0.0) / p_max for at, value in actual[passage].items()}
            missed.append(_error(passage, gaps))
        wrong = [
            _error(passage, {position: value / p_max for position, value in at.items()})
            for passage, at in predicted.items()
            if passage in silent
        ]
        return _first(missed), _first(wrong)

    def excerpt(self, error: Error) -> str:
        """The passage around the error, marked."""
        assert self.texts.row(error.passage).split == "select"
        shown = firing(self.texts.strings(error.passage), error.positions, error.values)
        return marked(shown.strings, shown.positions, shown.values)

    def method(self) -> Method:
        """The method with these errors to show."""
        return replace(METHOD, evidence=self._evidence)

    def _evidence(self, shown: Shown, feature: int, excerpts: int) -> Evidence | None:
        """Marked excerpts of explain, as many as there is room for beside the errors."""
        if feature not in self.labels:
            return None
        missed, wrong = (errors[: max(excerpts // 4, 1)] for errors in self.worst(feature))
        found = marks.evidence(shown, feature, max(excerpts - len(missed) - len(wrong), 1) // 2 + 1)
        if found is None:
            return None
        return Evidence(found.holes | {
            "label": line(self.labels[feature].label or ""),
            "missed": listed([self.excerpt(error) for error in missed]),
            "wrong": listed([self.excerpt(error) for error in wrong]),
        }, found.n_excerpts + len(missed) + len(wrong))  # fmt: skip


def _by_passage(sparse: Sparse, wanted: set[int]) -> dict[int, dict[int, float]]:
    """Passage -> position -> value, by passage id."""
    found = {}
    for i in np.argsort(sparse.passage, kind="stable").tolist():
        passage = int(sparse.passage[i])
        if passage in wanted:
            inside = slice(sparse.offsets[i], sparse.offsets[i + 1])
            values = sparse.values[inside].tolist()
            found[passage] = dict(zip(sparse.positions[inside].tolist(), values, strict=True))
    return found


def _error(passage: int, gaps: dict[int, float]) -> Error:
    worst = {position: gap for position, gap in gaps.items() if gap >= MIN_GAP}
    return Error(passage, max(worst.values(), default=0.0), list(worst), list(worst.values()))


def _largest(values: dict[int, dict[int, float]]) -> float:
    return max((value for at in values.values() for value in at.values()), default=0.0) or 1.0


def _first(errors: list[Error]) -> list[Error]:
    return sorted((e for e in errors if e.gap >= MIN_GAP), key=lambda e: (-e.gap, e.passage))[:SHOWN]


METHOD = Method("revise", lambda shown, feature, excerpts: None, version=2)  # nothing to revise until there are errors
