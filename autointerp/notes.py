"""Rows of `score`: one number of one label, or why there is none."""

from autointerp.config import fingerprint
from autointerp.grading import Grading
from autointerp.metrics import Interval
from autointerp.rows import Explanation, Score, Split


def score_id(grading: Grading, label: Explanation, split: Split, metric: str) -> str:
    """The key of one number. The scoring design names the passages, so their hash is in it already."""
    return fingerprint([label.explanation_id, split, grading.run.grader(split), grading.run.scorer_id, metric])


class Notes:
    """Makes the score rows of one label on one split."""

    def __init__(self, grading: Grading, label: Explanation, split: Split) -> None:
        self.grading, self.label, self.split = grading, label, split

    def number(self, metric: str, value: Interval | float | None, n: int, reason: str) -> Score:
        """A row for a value, which may turn out not to exist, for `reason`."""
        found = value if isinstance(value, Interval) else Interval(value, None, None)
        ok = found.value is not None
        return Score(
            score_id=score_id(self.grading, self.label, self.split, metric), explanation_id=self.label.explanation_id,
            collection_id=self.label.collection_id, feature=self.label.feature, split=self.split,
            simulator_id=self.grading.run.grader(self.split), scorer_id=self.grading.run.scorer_id, metric=metric,
            status="ok" if ok else "skipped", value=found.value, lo=found.lo, hi=found.hi, n=n,
            reason=None if ok else reason,
        )  # fmt: skip

    def without(self, metric: str, reason: str) -> Score:
        """A row that says why there is no value."""
        return self.number(metric, None, 0, reason)
