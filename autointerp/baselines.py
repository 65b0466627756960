"""What a label has to beat: predictors that read no label, and labels that belong to other features."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import lsqr


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


def bag_of_words(
    tokens: NDArray[np.int64], fires: NDArray[np.bool_], asked: NDArray[np.int64], damp: float = 1.0
) -> NDArray[np.float64] | None:
    """How much each asked passage looks like those that fire, by which tokens it holds and not where: [asked passage].

    tokens  [passage, token] ids of passages of explain, -1 after the end
    fires   [passage] whether the feature fires there
    asked   [asked passage, token] the same of the passages that are scored
    damp    ridge penalty, against counts of tokens
    Ridge regression of firing on token counts, centred on the share that fires. To be judged by AUROC or AUPRC. None
    where all passages fire, or none does: there is nothing to learn.
    """
    if not fires.any() or fires.all():
        return None
    known = np.unique(tokens[tokens >= 0])
    rate = float(fires.mean())
    weights = lsqr(_counts(tokens, known), fires - rate, damp=np.sqrt(damp), atol=1e-8, btol=1e-8)[0]
    return np.asarray(rate + _counts(asked, known) @ weights)


def _counts(tokens: NDArray[np.int64], known: NDArray[np.int64]) -> csr_matrix:
    """How often each known token stands in each passage, [passage, known token]."""
    row, column = np.nonzero(tokens >= 0)
    ids = tokens[row, column]
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    inside = known[place] == ids
    shape = (len(tokens), len(known))
    return csr_matrix((np.ones(int(inside.sum())), (row[inside], place[inside])), shape=shape)


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
