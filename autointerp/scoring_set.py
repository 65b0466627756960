"""A label's scoring set, read back from the tables: passages, true activations, and what was predicted there."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import metrics
from autointerp.draws import OWN_TOKENS
from autointerp.grades import Marked
from autointerp.grading import Grading
from autointerp.rows import Draw, Explanation, Split
from autointerp.store import Sparse

STRATUM = {"A": 0, "B": 1, "C": 2}  # as ScoringSet.stratum has them


class ScoringSet(NamedTuple):
    """Passages with their usable tokens and true activations: everything that a metric needs beside predictions."""

    passages: NDArray[np.int64]  # [passage] ids
    stratum: NDArray[np.int64]  # [passage] 0 A, 1 B, 2 C
    kind: NDArray[np.str_]  # [passage] cell within the stratum
    population: NDArray[np.float64]  # [passage] passages of the split that its cell stands for
    panel: NDArray[np.int64]  # [passage] panel passages of its cell; -1 where the population is exact
    document: NDArray[np.int64]  # [passage] an integer per document
    row: NDArray[np.int64]  # [token] row of its passage
    position: NDArray[np.int64]  # [token] position within it
    token: NDArray[np.int64]  # [token] token id
    actual: NDArray[np.float64]  # [token]

    @property
    def unguided(self) -> NDArray[np.bool_]:
        """[token] those of A and C."""
        return np.asarray(self.stratum[self.row] != STRATUM["B"])

    def at(self, grids: NDArray[np.floating]) -> NDArray[np.float64]:
        """The usable tokens of predictions [..., passage, token]."""
        return np.asarray(grids[..., self.row, self.position], dtype=np.float64)


def scoring_set(grading: Grading, feature: int, split: Split, draws: Sequence[Draw]) -> ScoringSet:
    """The true activations of a feature on these passages (silent ones are all zeros), on tokens that count."""
    draws = sorted(draws, key=lambda d: d.passage_id)
    passages = np.array([d.passage_id for d in draws], dtype=np.int64)
    tokens, usable = grading.texts.grid(passages, grading.settings.collect.passage_tokens)
    actual = np.zeros(tokens.shape)
    fill(actual, passages, grading.sample(feature, split).firing)
    documents = np.array([grading.texts.row(int(p)).document_id for p in passages], dtype="U16")
    row, position = np.nonzero(usable)
    return ScoringSet(
        passages,
        np.array([STRATUM[d.stratum] for d in draws], dtype=np.int64),
        np.array([d.kind for d in draws], dtype=np.str_),
        np.array([d.population for d in draws], dtype=np.float64),
        np.array([-1 if d.panel is None else d.panel for d in draws], dtype=np.int64),
        np.unique(documents, return_inverse=True)[1],
        row, position, tokens[row, position], actual[row, position],
    )  # fmt: skip


def fill(grid: NDArray[np.float64], passages: NDArray[np.int64], sparse: Sparse) -> None:
    """Write sparse values into a [passage, token] grid; passages (ascending ids) that are not in it are passed over."""
    row = np.searchsorted(passages, sparse.passage)
    row = np.where(row < len(passages), row, 0)
    inside = passages[row] == sparse.passage if len(passages) else np.zeros(len(sparse.passage), dtype=bool)
    lengths = np.diff(sparse.offsets)
    keep = np.repeat(inside, lengths)
    grid[np.repeat(row, lengths)[keep], sparse.positions[keep]] = sparse.values[keep]


def simulated(
    grading: Grading, label: Explanation, split: Split, found: ScoringSet
) -> tuple[NDArray[np.float64], str | None]:
    """Predictions on the set's tokens, and the reason why some are missing (None when none is)."""
    sparse, failed = grading.store.simulations(label.explanation_id, grading.run.grader(split), split)
    if not len(found.passages):
        return np.empty(0), "no_passages"
    lost = [failed.get(int(p), "not_simulated") for p in found.passages[~np.isin(found.passages, sparse.passage)]]
    if lost:
        return np.empty(0), Counter(lost).most_common(1)[0][0]
    grid = np.zeros((len(found.passages), grading.settings.collect.passage_tokens))
    fill(grid, found.passages, sparse)
    return found.at(grid), None


def marked(grading: Grading, feature: int, found: ScoringSet, predicted: NDArray[np.float64]) -> Marked:
    """The set by passage, with what is predicted [token] there."""
    top = grading.store.top_tokens(grading.run.collection_id, feature)[:OWN_TOKENS]
    own = np.zeros(len(found.passages), dtype=bool)
    own[found.row[np.isin(found.token, top)]] = True
    n = len(found.passages)
    truth, said = np.zeros(n), np.zeros(n)
    np.maximum.at(truth, found.row, found.actual)
    np.maximum.at(said, found.row, predicted)
    return Marked(
        found.passages, found.kind, found.population, found.panel, found.document,
        metrics.moments(found.actual, predicted, found.row, n), truth, said, own,
    )  # fmt: skip
