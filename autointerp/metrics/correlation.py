"""Correlations of predicted with true activations, and moments that are summed before they are correlated."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
MANY = 5_000  # values, above which the mean of a bootstrap is as good as normal


class Moments(NamedTuple):
    """What a correlation needs of a set of tokens: n, sums, sums of squares and of the product. Each [group]."""

    n: F64
    x: F64
    y: F64
    xx: F64
    yy: F64
    xy: F64


def moments(actual: F64, predicted: F64, group: NDArray[np.int64], n_groups: int) -> Moments:
    """Moments of (actual, predicted) per group of tokens.

    actual, predicted  [token]
    group              [token], 0..n_groups - 1, e.g. the passage of each token
    """
    actual, predicted = checked(actual, predicted)

    def total(values: F64 | None) -> F64:
        return np.bincount(group, weights=values, minlength=n_groups).astype(np.float64)

    return Moments(
        total(None), total(actual), total(predicted), total(actual**2), total(predicted**2), total(actual * predicted)
    )


def correlation_of(found: Moments) -> F64:
    """Pearson correlation of pooled moments along the last axis; NaN where either side is constant."""
    n, x, y, xx, yy, xy = (np.asarray(column).sum(axis=-1) for column in found)
    with np.errstate(invalid="ignore", divide="ignore"):
        vx, vy = xx - x * x / n, yy - y * y / n
        # A variance within rounding of 0 is 0: the series is constant.
        ok = (vx > 1e-12 * np.maximum(xx, 1e-300)) & (vy > 1e-12 * np.maximum(yy, 1e-300))
        return np.where(ok, (xy - x * y / n) / np.sqrt(np.where(ok, vx * vy, 1.0)), np.nan)


def correlation(actual: F64, predicted: F64) -> float | None:
    """Pearson correlation over all tokens together; None when either side is constant.

    Passages are joined before correlating: the mean of per-passage correlations is a different number (Bills et al.
    2023; `ev_correlation_score` of openai/automated-interpretability is this same number).
    """
    actual, predicted = checked(actual, predicted)
    if not len(actual):
        return None
    r = float(correlation_of(moments(actual, predicted, np.zeros(len(actual), dtype=np.int64), 1)))
    return None if np.isnan(r) else r


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval; None where there is none."""

    value: float | None
    lo: float | None
    hi: float | None


def r_rank(
    per_passage: Moments,
    stratum: NDArray[np.int64],
    document: NDArray[np.int64],
    draws: int,
    random: np.random.Generator,
) -> Interval:
    """Pearson over all tokens of A + B + C, unweighted, with a document-bootstrap interval.

    per_passage  moments, [passage]
    stratum      [passage] 0 A, 1 B, 2 C
    document     [passage] any integer per document
    draws        bootstrap replicates
    The interval is the 2.5 and 97.5 % quantile over replicates in which the documents of each stratum are resampled
    with replacement (a cluster bootstrap: tokens and passages of one document are not independent). Replicates without
    a correlation are left out; None for the ends when over half are.
    """
    value = float(correlation_of(per_passage))
    if np.isnan(value):
        return Interval(None, None, None)
    totals = [np.zeros(draws) for _ in per_passage]
    for s in np.unique(stratum):
        inside = stratum == s
        cluster = np.unique(document[inside], return_inverse=True)[1]
        n_clusters = int(cluster.max()) + 1
        times = random.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=draws).astype(np.float64)
        for total, column in zip(totals, per_passage, strict=True):
            total += times @ np.bincount(cluster, weights=column[inside], minlength=n_clusters)
    replicates = correlation_of(Moments(*(total[:, None] for total in totals)))
    replicates = replicates[~np.isnan(replicates)]
    if len(replicates) < draws / 2:
        return Interval(value, None, None)
    lo, hi = np.quantile(replicates, [0.025, 0.975])
    return Interval(value, float(lo), float(hi))


def mean_interval(values: F64, draws: int, random: np.random.Generator) -> Interval:
    """Mean over features with its percentile-bootstrap 95 % interval; None throughout for no values.

    Of more than MANY values the mean is normal, whatever they are, and the interval is its normal one: the bootstrap
    would give the same, and take seconds.
    """
    if not len(values):
        return Interval(None, None, None)
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    if len(values) > MANY:
        half = 1.959964 * float(values.std()) / np.sqrt(len(values))
        return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))
    means = values[random.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    lo, hi = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(lo), float(hi))


def why_none(actual: F64, predicted: F64) -> str:
    """The reason code of two series that have no correlation: empty, constant_actual or constant_prediction."""
    actual, predicted = checked(actual, predicted)
    if not len(actual):
        return "empty"
    return "constant_actual" if np.ptp(actual) == 0 else "constant_prediction"


def checked(actual: F64, predicted: F64) -> tuple[F64, F64]:
    """Both as equally long lists of finite float64. Raises ValueError where they are not."""
    actual, predicted = np.asarray(actual, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if actual.shape != predicted.shape or actual.ndim != 1:
        raise ValueError(f"actual and predicted must be equally long lists, got {actual.shape} and {predicted.shape}")
    if not (np.isfinite(actual).all() and np.isfinite(predicted).all()):
        raise ValueError("actual and predicted must be finite")
    return actual, predicted
