"""Does the feature fire in a passage? Verdicts of a judge, or predicted peaks, against the truth, weighted or not.

Passages carry weights (what share of the corpus each stands for), or none: then the design itself is judged, in which
half of the passages fire, a quarter are hard negatives and a quarter are others.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Confusion(NamedTuple):
    """Summed weights of passages by truth and verdict."""

    tp: float
    fp: float
    fn: float
    tn: float


def confusion(fires: Flags, claimed: Flags, weight: F64 | None = None) -> Confusion:
    """Weights of right and wrong verdicts.

    fires    [passage] the feature fires there
    claimed  [passage] the judge says so
    weight   [passage] > 0, e.g. population / sample size of its stratum; 1 where there is none
    """
    fires, claimed, weight = _passages(fires, claimed, weight)
    return Confusion(
        tp=float(weight[fires & claimed].sum()), fp=float(weight[~fires & claimed].sum()),
        fn=float(weight[fires & ~claimed].sum()), tn=float(weight[~fires & ~claimed].sum()),
    )  # fmt: skip


def f1(found: Confusion) -> float | None:
    """F1 = 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall.

    None where nothing fires. A judge that claims nothing has F1 0. Of weighted verdicts this is the Horvitz-Thompson
    estimate of F1 on the corpus; of unweighted ones it ranks labels on a fixed design.
    """
    return 2 * found.tp / (2 * found.tp + found.fp + found.fn) if found.tp + found.fn > 0 else None


def balanced_accuracy(found: Confusion) -> float | None:
    """(TPR + TNR) / 2; a constant answer gets 1/2. None where everything or nothing fires."""
    if found.tp + found.fn <= 0 or found.fp + found.tn <= 0:
        return None
    return (found.tp / (found.tp + found.fn) + found.tn / (found.fp + found.tn)) / 2


def true_negative_rate(found: Confusion) -> float | None:
    """TNR = TN / (TN + FP): of stratum B alone TNR_B, the specificity that random negatives cannot see; of C, TNR_C.

    None where there is no silent passage.
    """
    silent = found.tn + found.fp
    return found.tn / silent if silent > 0 else None


def matthews(found: Confusion) -> float | None:
    """The correlation of truth and verdict (Matthews 1975); None where either is constant."""
    tp, fp, fn, tn = found
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return float((tp * tn - fp * fn) / np.sqrt(product)) if product > 0 else None


def auprc(fires: Flags, score: F64, weight: F64 | None = None) -> float | None:
    """Area under precision over recall, weighted: the sum over thresholds of (R_j - R_j-1) P_j (average precision).

    score  [passage] finite; the surer the judge, the higher
    Passages of equal score enter together. None where nothing fires. A score without information gets the share of
    (weighted) passages that fire, not 1/2.
    """
    score = np.asarray(score, dtype=np.float64)
    if not np.isfinite(score).all():
        raise ValueError("scores must be finite")
    fires, _, weight = _passages(fires, score > 0, weight)
    if not fires.any():
        return None
    order = np.argsort(-score, kind="stable")
    hit, all_ = np.cumsum((weight * fires)[order]), np.cumsum(weight[order])
    last = np.append(np.diff(score[order]) != 0, True)  # thresholds lie between different scores
    recall, precision = hit[last] / hit[-1], hit[last] / all_[last]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def balanced_threshold(firing: F64, silent: F64) -> float:
    """The threshold t for which `peak > t` best tells firing from silent passages.

    firing, silent  predicted peaks of passages where the feature fires, and where it does not
    Maximises TPR + TNR (Youden's J); of equally good thresholds the highest. Raises ValueError without both kinds.
    """
    if not len(firing) or not len(silent):
        raise ValueError("a threshold needs firing and silent passages")
    if not (np.isfinite(firing).all() and np.isfinite(silent).all()):
        raise ValueError("peaks must be finite")
    values = np.unique(np.concatenate([firing, silent]))
    tpr = 1 - np.searchsorted(np.sort(firing), values, side="right") / len(firing)
    tnr = np.searchsorted(np.sort(silent), values, side="right") / len(silent)
    quality = tpr + tnr
    return float(values[len(values) - 1 - int(np.argmax(quality[::-1]))])


def _passages(fires: Flags, claimed: Flags, weight: F64 | None) -> tuple[Flags, Flags, F64]:
    fires, claimed = np.asarray(fires, dtype=bool), np.asarray(claimed, dtype=bool)
    weight = np.ones(len(fires)) if weight is None else np.asarray(weight, dtype=np.float64)
    if not fires.shape == claimed.shape == weight.shape or fires.ndim != 1:
        raise ValueError(
            "truth, verdicts and weights must be equally long lists, "
            f"got {fires.shape}, {claimed.shape}, {weight.shape}"
        )
    if not (np.isfinite(weight).all() and (weight > 0).all()):
        raise ValueError("weights must be finite and above 0")
    return fires, claimed, weight
