"""What a score is worth beside scores that mean nothing, or belong to another feature."""

import numpy as np

from autointerp.metrics.correlation import F64


def permutation_p(value: float, nulls: F64, random: np.random.Generator | None = None) -> float:
    """The share of null labels that score at least as high: p = (1 + #{j: S_j >= S}) / (m + 1) (Phipson & Smyth 2010).

    nulls   [m] scores of labels that have nothing to do with the feature, drawn by the same rule as the label's own
    random  breaks ties at random, so that p is exactly uniform under the null; without it ties count against the label
    Raises ValueError for no nulls: the smallest p is 1 / (m + 1).
    """
    nulls = _finite(nulls)
    if not len(nulls) or not np.isfinite(value):
        raise ValueError("a permutation p needs a finite value and at least one null")
    above, equal = int((nulls > value).sum()), int((nulls == value).sum())
    before = equal if random is None else int(random.integers(equal + 1))
    return (1 + above + before) / (len(nulls) + 1)


def benjamini_hochberg(p: F64) -> F64:
    """q-values, [test]: the smallest false discovery rate at which each test is a discovery.

    Benjamini & Hochberg 1995: q_(i) = min over j >= i of m p_(j) / j, of p sorted ascending. Valid for tests that are
    independent or depend positively.
    """
    p = _finite(p)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p must lie in 0..1")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def lift(value: float | None, baseline: float | None) -> float | None:
    """How far a score is above a baseline (r_rank - r_tok, or - the mean of nulls); None where either is missing."""
    return None if value is None or baseline is None else value - baseline


def partial_correlation(r_as: float | None, r_at: float | None, r_st: float | None) -> float | None:
    """Correlation of activation and simulation given the token look-up table.

    r_as  activation with simulation, r_at  activation with the table, r_st  simulation with the table
    r_as.t = (r_as - r_at r_st) / sqrt((1 - r_at^2)(1 - r_st^2)); what the label knows beyond token identity. None where
    one of the three is missing, or where the table says all that either knows.
    """
    if r_as is None or r_at is None or r_st is None:
        return None
    rest = (1 - r_at**2) * (1 - r_st**2)
    return float(np.clip((r_as - r_at * r_st) / np.sqrt(rest), -1, 1)) if rest > 1e-12 else None


def discrimination(own: float | None, neighbours: F64) -> float | None:
    """The share of neighbouring features' labels that score below the feature's own label on its own passages.

    neighbours  [neighbour] their labels' scores there, 0 for a constant prediction
    Ties count half. None without a score or without neighbours. 1: the label tells the feature from its neighbours;
    1/2 or less: it collides with theirs.
    """
    neighbours = _finite(neighbours)
    if own is None or not len(neighbours):
        return None
    return float(np.mean(neighbours < own) + np.mean(neighbours == own) / 2)


def auroc(right: F64, wrong: F64) -> float | None:
    """P(a right one scores above a wrong one), ties half (Mann & Whitney 1947); None where either kind is missing."""
    right, wrong = _finite(right), _finite(wrong)
    if not len(right) or not len(wrong):
        return None
    ordered = np.sort(wrong)
    below = np.searchsorted(ordered, right, side="left") + np.searchsorted(ordered, right, side="right")
    return float(below.mean() / (2 * len(wrong)))


def win_rate(right: F64, wrong: F64) -> float | None:
    """The share of pairs (right and wrong label of the same feature) that the right one wins, ties half."""
    right, wrong = _finite(right), _finite(wrong)
    if right.shape != wrong.shape:
        raise ValueError(f"pairs must be equally many, got {right.shape} and {wrong.shape}")
    return float(np.mean(right > wrong) + np.mean(right == wrong) / 2) if len(right) else None


def _finite(values: F64) -> F64:
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    return values
