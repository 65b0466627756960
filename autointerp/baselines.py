"""What a label has to beat: predictors that read no label, and labels that belong to other features."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def lookup(tokens: NDArray[np.int64], mean_by_token: Mapping[int, float]) -> NDArray[np.float64]:
    """The token look-up table's prediction for each token id: its mean activation on explain, 0 for tokens never seen.

    The baseline of Bills et al. 2023 in its direct form. A label that does not beat it says no more than a list of
    tokens would.
    """
    if not mean_by_token:
        return np.zeros(tokens.shape)
    known = np.array(sorted(mean_by_token), dtype=np.int64)
    means = np.array([mean_by_token[int(t)] for t in known])
    place = np.clip(np.searchsorted(known, tokens), 0, len(known) - 1)
    return np.where(known[place] == tokens, means[place], 0.0)


def shuffled_labels(
    feature: int, labels: Mapping[int, str], density: Mapping[int, float], wanted: int
) -> list[tuple[int, str]]:
    """Labels of other features to score `feature` with, matched in density and length: the shuffled-label null.

    labels   feature -> its label
    density  feature -> share of tokens on which it fires
    Returns up to `wanted` (feature, label) pairs, nearest in log density and word count first, ties by index. A label
    equal to the feature's own is no null and is left out.
    """

    def distance(other: int) -> tuple[float, int]:
        ratio = abs(np.log(density[other] + 1e-9) - np.log(density[feature] + 1e-9))
        return float(ratio) + 0.2 * abs(len(labels[other].split()) - len(labels[feature].split())), other

    others: Sequence[int] = [f for f in labels if f != feature and labels[f] != labels[feature]]
    return [(f, labels[f]) for f in sorted(others, key=distance)[:wanted]]
