# ruff: noqa: F811 - fixtures are imported, and then asked for by name
"""What cannot be graded ends with its reason, never with a number; and what `select` does never moves `score`."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from autointerp.rows import Score

from .test_score import chosen, graded, truth  # noqa: F401 - fixtures
from .test_simulate import Bench, MakeBench, Planted, Reader, bench, planted  # noqa: F401 - fixtures


class Broken(Reader):
    """Predicts what no activation can be, on some passages or on all."""

    def __init__(self, value: float, everywhere: bool) -> None:
        super().__init__()
        self.value, self.everywhere = value, everywhere

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        found = super().predict(labels, passages)
        where = np.ones(len(passages), dtype=bool) if self.everywhere else passages % 7 == 0
        found[:, where, 3] = self.value
        return found


def of(found: dict[tuple[int, str, str], list[Score]], metric: str, feature: int = 0) -> Score:
    """The one score of a feature on the score split."""
    (row,) = found[feature, "score", metric]
    return row


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_a_simulator_says_that_is_no_number_has_a_reason(
    bench: MakeBench, truth: Callable, value: float, everywhere: bool
) -> None:
    found = graded(bench(truth(2), Broken(value, everywhere), features__select=chosen(2)))
    for feature in range(2):
        row = of(found, "r_rank", feature)
        assert (row.status, row.value, row.reason) == ("skipped", None, "not_finite")


def test_three_firing_passages_are_too_few_for_a_verdict(bench: MakeBench, truth: Callable) -> None:
    made = bench(truth(2), Reader(), features__select=chosen(2))
    made.store.db.execute(
        "DELETE FROM excerpt WHERE feature = 0 AND split = 'score' AND passage_id NOT IN (SELECT passage_id FROM "
        "excerpt WHERE feature = 0 AND split = 'score' AND why = 'sample' ORDER BY passage_id LIMIT 3)"
    )
    made.store.db.execute("UPDATE feature SET n_passages = [n_passages[1], n_passages[2], 3], n_documents = [n_documents[1], n_documents[2], 3] WHERE feature = 0")
    graded(made)
    assert verdicts(made)[0] == "insufficient_data"
    assert verdicts(made)[1] == "good"


def verdicts(made: Bench) -> dict[int, str]:
    """Feature -> its verdict."""
    return dict(made.store.db.execute("SELECT feature, verdict FROM verdict").fetchall())


@pytest.mark.parametrize("label", [" ", "\n\t ", "x" * 5000, "word " * 1000, "\0", "\x1b[31m"])
def test_labels_that_say_nothing_or_far_too_much_end_with_a_reason(
    bench: MakeBench, truth: Callable, label: str
) -> None:
    found = graded(bench(truth(2) | {0: [label]}, Reader(), features__select=chosen(2)))
    row = of(found, "r_rank")
    assert (row.value, row.reason) == (None, "constant_prediction")
    assert of(found, "r_rank", 1).value == pytest.approx(1.0, abs=1e-6), "the other one is graded all the same"


def test_scores_do_not_move_when_select_is_drawn_anew(bench: MakeBench) -> None:
    w = bench.words
    labels = {f: [w[f], f"{w[f]}, {w[f + 4]}", w[f + 8]] for f in range(4)}

    def ranks(**changes: object) -> tuple[dict[str, float | None], set[int]]:
        made = bench(labels, Reader(), features__select=chosen(4), **changes)
        found = graded(made)
        drawn = {row.passage_id for rows in made.draws("select").values() for row in rows}
        words = {e.explanation_id: f"{e.feature} {e.label}" for e in made.grading.wanted("score")}
        rows = (row for (_, split, metric), rows in found.items() if (split, metric) == ("score", "r_rank") for row in rows)
        return {words[row.explanation_id]: row.value for row in rows}, drawn

    (before, drawn), (after, redrawn) = ranks(), ranks(score__select_passages=32)
    assert drawn != redrawn
    assert len(before) == 12 and before == after
