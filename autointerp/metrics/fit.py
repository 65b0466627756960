"""How much of the activation is explained, each formula under its own name.

`r2_uncentred` and `absolute_deviation_explained` are OpenAI's (they call the first R squared): an always-zero
prediction gets 0. The centred ones are the textbook's: predicting the mean (the median) gets 0. All of them judge the
scale, which a correlation does not: a prediction is calibrated on other text first.
"""

from typing import NamedTuple

import numpy as np

from autointerp.metrics.correlation import F64, checked, correlation


class Line(NamedTuple):
    """actual is about intercept + slope * predicted."""

    intercept: float
    slope: float

    def apply(self, predicted: F64) -> F64:
        """Predictions in the feature's own units."""
        return self.intercept + self.slope * np.asarray(predicted, dtype=np.float64)


def calibration(actual: F64, predicted: F64) -> Line | None:
    """The least-squares line from predictions to activations; None for nothing. To be fitted on `select`.

    Where the prediction is constant, the line is the mean: what `LinearCalibratedNeuronSimulator` of
    openai/automated-interpretability gives.
    """
    actual, predicted = checked(actual, predicted)
    if not len(actual):
        return None
    if correlation(actual, predicted) is None:
        return Line(float(actual.mean()), 0.0)
    centred = predicted - predicted.mean()
    slope = float((centred @ (actual - actual.mean())) / (centred @ centred))
    return Line(float(actual.mean() - slope * predicted.mean()), slope)


def r2_uncentred(actual: F64, predicted: F64) -> float | None:
    """1 - mean((a - s)^2) / mean(a^2); None where a is 0 throughout.

    `rsquared_score` of openai/automated-interpretability (Bills et al. 2023: "explained variance" without the mean).
    """
    actual, predicted = checked(actual, predicted)
    return _one_minus(((actual - predicted) ** 2).sum(), (actual**2).sum())


def r2_centred(actual: F64, predicted: F64) -> float | None:
    """1 - sum((a - s)^2) / sum((a - mean a)^2), the coefficient of determination; None where a is constant."""
    actual, predicted = checked(actual, predicted)
    if not len(actual) or np.ptp(actual) == 0:
        return None
    return _one_minus(((actual - predicted) ** 2).sum(), ((actual - actual.mean()) ** 2).sum())


def r2_calibrated(actual: F64, predicted: F64, line: Line) -> float | None:
    """`r2_centred` after a calibration that was fitted on other text: 1 - sum((a - s')^2) / sum((a - mean a)^2).

    Fitted on the same text this would be the squared correlation; on other text it also pays for a scale that does not
    carry over, and can be negative.
    """
    return r2_centred(actual, line.apply(predicted))


def absolute_deviation_explained(actual: F64, predicted: F64) -> float | None:
    """1 - mean|a - s| / mean|a|; None where a is 0 throughout.

    `absolute_dev_explained_score` of openai/automated-interpretability.
    """
    actual, predicted = checked(actual, predicted)
    return _one_minus(np.abs(actual - predicted).sum(), np.abs(actual).sum())


def absolute_deviation_centred(actual: F64, predicted: F64) -> float | None:
    """1 - sum|a - s| / sum|a - median a|; None where a is constant.

    For a sparse feature the median is 0 and this equals `absolute_deviation_explained`.
    """
    actual, predicted = checked(actual, predicted)
    if not len(actual) or np.ptp(actual) == 0:
        return None
    return _one_minus(np.abs(actual - predicted).sum(), np.abs(actual - np.median(actual)).sum())


def _one_minus(error: float, scale: float) -> float | None:
    return float(1 - error / scale) if scale > 0 else None
