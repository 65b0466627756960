"""The best match of every feature of one dictionary in another: by what they write, and by when they fire. Pure.

Similarities are made block by block, and only the best so far of every feature is kept, so memory does not grow with
the product of the widths. A best of many is large by itself, so each comes with what chance gives: the best matches of
random directions, and those of passages paired at random.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array
from torch import Tensor

from autointerp.dictionary.encode import directions as isotropic
from autointerp.store import PanelRows

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

BLOCK_ROWS = 4096  # directions of each side in one product: 64 MB of cosines
BLOCK_VALUES = 2**22  # correlations in one block; the sparse product that they come from takes three times as much


class Best(NamedTuple):
    """For each feature of a set its best match in another one."""

    place: I64  # [n] in the other set; -1 where there is nothing to match with
    similarity: F32  # [n]; NaN there

    def mutual(self, back: "Best") -> NDArray[np.bool_]:
        """Which of these are each other's best match: [n]. `back` holds the matches of the other set in this one."""
        found = self.place >= 0
        return found & (back.place[np.where(found, self.place, 0)] == np.arange(len(self.place)))


class Block(NamedTuple):
    """Similarities of neighbouring rows with neighbouring columns."""

    row: int  # the first
    column: int
    similarity: F32  # [rows, columns]; -inf where two are not to be matched


def best(blocks: Iterable[Block], n: int, m: int) -> tuple[Best, Best]:
    """The best column of each of n rows and the best row of each of m columns, ties to the first that came."""
    there, back = (Best(np.full(k, -1), np.full(k, -np.inf, dtype=np.float32)) for k in (n, m))
    for block in blocks:
        _better(there, block.row, block.similarity, block.column)
        _better(back, block.column, block.similarity.T, block.row)
    for found in (there, back):
        found.similarity[found.place < 0] = np.nan
    return there, back


def _better(found: Best, start: int, similarity: F32, first: int) -> None:
    if not similarity.size:
        return
    part = slice(start, start + len(similarity))
    place = similarity.argmax(axis=1)
    value = similarity[np.arange(len(similarity)), place]
    ahead = value > found.similarity[part]
    found.place[part] = np.where(ahead, place + first, found.place[part])
    found.similarity[part] = np.where(ahead, value, found.similarity[part])


# -- by what they write ------------------------------------------------------------------------------------------------


def cosines(a: Tensor, b: Tensor, rows: int = BLOCK_ROWS) -> Iterator[Block]:
    """Cosines of directions a [n, d] with b [m, d], rows of norm 1, in blocks of `rows` times `rows`."""
    for i in range(0, len(a), rows):
        for j in range(0, len(b), rows):
            yield Block(i, j, (a[i : i + rows] @ b[j : j + rows].T).numpy())


def blocks_of(n: int, m: int, rows: int = BLOCK_ROWS) -> int:
    """How many blocks `cosines` gives."""
    return -(-n // rows) * -(-m // rows)


def random_directions(a: Tensor, n: int, seed: int) -> dict[str, Tensor]:
    """Directions that mean nothing, float32 [n, d] with rows of norm 1, by name.

    isotropic   uniform on the sphere
    covariance  Gaussian with the second moments of the rows of a: as crowded into the same few dimensions
    """
    generator = torch.Generator().manual_seed(seed)
    values, axes = torch.linalg.eigh((a.T @ a).double() / max(len(a), 1))
    drawn = torch.randn(n, a.shape[1], generator=generator)
    shaped = drawn @ (axes * values.clamp_min(0).sqrt()).T.float()
    return {
        "isotropic": isotropic(n, a.shape[1], generator),
        "covariance": torch.nn.functional.normalize(shaped, dim=1),
    }


# -- by when they fire -------------------------------------------------------------------------------------------------


def activations(panel: PanelRows, rows: NDArray[np.int64], passage_tokens: int, features: I64) -> csc_array:
    """Activations on chosen passages of a panel, float32 [token, feature].

    rows      passages by their place in the panel, in the order that they are to have
    features  ascending numbers of the features that become columns
    """
    n = np.diff(panel.offsets)[rows]
    entry = np.repeat(panel.offsets[:-1][rows] - np.cumsum(n) + n, n) + np.arange(n.sum())
    column = np.minimum(np.searchsorted(features, panel.features[entry]), max(len(features) - 1, 0))
    known = features[column] == panel.features[entry] if len(features) else np.zeros(len(entry), dtype=bool)
    token = np.repeat(np.arange(len(rows)) * passage_tokens, n) + panel.positions[entry]
    shape = (len(rows) * passage_tokens, len(features))
    return csc_array((panel.values[entry][known], (token[known], column[known])), shape=shape, dtype=np.float32)


class Standard(NamedTuple):
    """Activations scaled so that the product of two columns, minus that of their means, is Pearson's r."""

    columns: csc_array  # [token, feature]
    mean: F32  # [feature]; 0, as their column, for features that fire too rarely to tell
    enough: NDArray[np.bool_]  # [feature] fires on so many tokens that a correlation means something


def standard(found: csc_array, tokens: int, least: int) -> Standard:
    """`tokens`: how many positions count, silent ones included; `least`: firings that a feature must have."""
    sums = np.asarray(found.sum(axis=0), dtype=np.float64).reshape(-1)
    squares = np.asarray(found.multiply(found).sum(axis=0), dtype=np.float64).reshape(-1)
    deviation = np.sqrt(np.maximum(squares - sums**2 / max(tokens, 1), 0))
    enough = (np.diff(found.indptr) >= least) & (deviation > 0)
    factor = np.where(enough, 1 / np.where(enough, deviation, 1), 0)
    scaled = found.copy()
    scaled.data = (scaled.data * np.repeat(factor, np.diff(found.indptr))).astype(np.float32)
    return Standard(scaled, (sums * factor / np.sqrt(max(tokens, 1))).astype(np.float32), enough)


def correlations(a: Standard, b: Standard) -> Iterator[Block]:
    """Pearson's r of the activations of the features of a [n] with those of b [m], over the same tokens."""
    n, m = a.columns.shape[1], b.columns.shape[1]
    other = b.columns.tocsr()
    for start, stop in chunks(n, m):
        both = (a.columns[:, start:stop].T @ other).toarray()
        found = both - np.outer(a.mean[start:stop], b.mean)
        found[:, ~b.enough] = -np.inf
        found[~a.enough[start:stop]] = -np.inf
        yield Block(start, 0, found.astype(np.float32, copy=False))


def chunks(n: int, m: int) -> list[tuple[int, int]]:
    """(start, stop) of chunks of n features whose similarities with m others fit into a block."""
    size = max(BLOCK_VALUES // max(m, 1), 1)
    return [(start, min(start + size, n)) for start in range(0, n, size)]
