"""Scores of other tools, exactly as theirs, so that our numbers can be put beside published ones.

None of them is a grade here: they cannot tell a right label from one twice too broad (`autointerp certify` shows it).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.metrics.correlation import F64, checked, correlation
from autointerp.metrics.fit import absolute_deviation_explained, r2_uncentred

OPENAI_TOP_SPLITS = ("train", "calibration", "valid", "test")
OPENAI_RANDOM_SPLITS = ("calibration", "valid", "test")
SAEBENCH_ACTIVE, SAEBENCH_WINDOWS = 4, 14  # 2 top + 2 importance-weighted, and 10 random ones


class OpenAIScore(NamedTuple):
    """The three numbers of a `ScoredSimulation`, over all tokens of all sequences joined. None where theirs is NaN."""

    ev_correlation_score: float | None
    rsquared_score: float | None
    absolute_dev_explained_score: float | None


def openai_score(actual: F64, predicted: F64) -> OpenAIScore:
    """`aggregate_scored_sequence_simulations` of openai/automated-interpretability (Bills et al. 2023).

    actual, predicted  [token] of all sequences, joined; predictions are expected values, calibrated or not
    """
    return OpenAIScore(
        correlation(actual, predicted), r2_uncentred(actual, predicted), absolute_deviation_explained(actual, predicted)
    )


def openai_bins(activations: F64, a_max: float) -> NDArray[np.int64]:
    """Activations on OpenAI's scale of 0 to 10: min(10, floor(10 relu(a) / a_max)), 0 throughout where a_max <= 0.

    `normalize_activations` of openai/automated-interpretability; a_max is the largest of the feature's records, here
    those of explain.
    """
    activations = np.asarray(activations, dtype=np.float64)
    if not (np.isfinite(activations).all() and np.isfinite(a_max)):
        raise ValueError("activations must be finite")
    if a_max <= 0:
        return np.zeros(activations.shape, dtype=np.int64)
    return np.minimum(10, np.floor(10 * np.maximum(activations, 0) / a_max)).astype(np.int64)


def openai_slices(kind: str, per_split: int) -> dict[str, slice]:
    """Which ranks of the top, or of the random, records belong to which of OpenAI's splits: every fourth, every third.

    kind  top or random
    """
    if kind not in ("top", "random"):
        raise ValueError(f"records are top or random, got {kind!r}")
    names = OPENAI_TOP_SPLITS if kind == "top" else OPENAI_RANDOM_SPLITS
    return {name: slice(i, per_split * len(names), len(names)) for i, name in enumerate(names)}


def top_and_random(top: tuple[F64, F64], random: tuple[F64, F64]) -> float | None:
    """OpenAI's top-and-random score: the correlation over all tokens of as many top as random passages.

    top, random  (actual, predicted), [passage, token] each
    At density 1e-4 it ranks a right label above one twice too broad half the time.
    """
    if len(top[0]) != len(random[0]):
        raise ValueError(f"top and random passages must be equally many, got {len(top[0])} and {len(random[0])}")
    actual, predicted = (np.concatenate([np.ravel(a), np.ravel(b)]) for a, b in zip(top, random, strict=True))
    return correlation(*checked(actual, predicted))


def delphi_accuracy(activating: NDArray[np.bool_], predicted: Sequence[bool | None]) -> float | None:
    """What eai-delphi 0.1.3 calls accuracy, of detection and of fuzzing: (TPR + TNR) / 2.

    predicted  [example] the judge's verdicts; None where its reply could not be read. Those are dropped, as delphi does
    A kind that has no example left counts 0, as in `compute_classification_metrics`; None where none is left at all.
    """
    activating = np.asarray(activating, dtype=bool)
    if len(activating) != len(predicted):
        raise ValueError(f"truth and verdicts must be equally many, got {len(activating)} and {len(predicted)}")
    read = np.array([verdict is not None for verdict in predicted], dtype=bool)
    if not read.any():
        return None
    truth, said = activating[read], np.array([bool(verdict) for verdict in predicted])[read]
    tpr = float(said[truth].mean()) if truth.any() else 0.0
    tnr = float((~said[~truth]).mean()) if (~truth).any() else 0.0
    return (tpr + tnr) / 2


def saebench_accuracy(active: NDArray[np.bool_], chosen: Sequence[int]) -> float:
    """SAEBench's autointerp score of a feature: the share of its 14 shuffled windows that the judge gets right.

    active  [14] which windows are top or importance-weighted ones; the others are random, and taken to be silent
    chosen  the windows that the judge named, counted from 1; none for its answer "None"
    Raises ValueError for another number of windows, or a number that names none of them.
    """
    active = np.asarray(active, dtype=bool)
    if active.shape != (SAEBENCH_WINDOWS,) or active.sum() != SAEBENCH_ACTIVE:
        raise ValueError(
            f"expected {SAEBENCH_WINDOWS} windows, {SAEBENCH_ACTIVE} of them active, "
            f"got {active.shape} with {active.sum()}"
        )
    wrong = [number for number in chosen if not 1 <= number <= SAEBENCH_WINDOWS]
    if wrong:
        raise ValueError(f"windows are numbered 1 to {SAEBENCH_WINDOWS}, got {wrong[0]}")
    said = np.isin(np.arange(1, SAEBENCH_WINDOWS + 1), chosen)
    return float((said == active).mean())


def saebench_null() -> float:
    """What the answer "None" gets from SAEBench, whatever the feature: 10 / 14 = .714."""
    return 1 - SAEBENCH_ACTIVE / SAEBENCH_WINDOWS
