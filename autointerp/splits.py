"""Features that another dictionary holds in parts: splits of one into several, and merges, which are splits seen from
the other side (Bricken et al. 2023; Chanin et al. 2024 on absorption). Pure.

A part fires where the whole fires, and seldom elsewhere; parts together cover most of what the whole fires. Shares are
of activation, not of firings, so that the weak firings of a topk dictionary, which mean little, count for little.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from autointerp.matches import chunks

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Near = Callable[[int, I64], F32]  # (whole, parts) -> cosine of their directions

MAX_DENSITY = 0.1  # a feature that fires on more of the tokens is neither whole nor part: it contains others by chance
INSIDE = 0.5  # of a part's activation lies where the whole fires
ADDS = 0.1  # of the whole's activation that a part covers, and that no part before it does
COVERED = 0.7  # of the whole's activation that the parts cover together
ONE = 0.7  # a single part that covers this much is a match, and not a split


@dataclass(frozen=True)
class Split:
    """A whole and its parts, the one that covers most first. All shares are of activation."""

    whole: int
    parts: list[int]
    adds: list[float]  # of the whole's activation, what each part covers beyond those before it
    inside: list[float]  # of each part's own activation, what lies where the whole fires
    cosine: list[float] | None  # of each part's direction with the whole's; None where directions cannot be compared
    covered: float  # of the whole's activation, by all parts together


@dataclass(frozen=True)
class Pairs:
    """Pairs of features of a and b that overlap, with shares of activation: [pair]."""

    a: I64
    b: I64
    of_a: F32  # share of a's activation where b fires
    of_b: F32  # share of b's activation where a fires


def overlapping(a: csc_array, b: csc_array, tokens: int, least: int, advance: Callable[[int], None]) -> Pairs:
    """The pairs that could be whole and part, either way round. a [token, n], b [token, m]: activations.

    tokens, least  positions that count, and firings that a feature must have; `advance` is told of features done
    """
    mass_a, mass_b = (np.maximum(np.asarray(x.sum(axis=0)).reshape(-1), 1e-30) for x in (a, b))
    may_a, may_b = (_between(np.diff(x.indptr), least, MAX_DENSITY * tokens) for x in (a, b))
    values, fires = b.tocsr(), (b > 0).astype(np.float32).tocsr()
    found: list[Pairs] = []
    for start, stop in chunks(a.shape[1], b.shape[1]):
        mine = a[:, start:stop]
        of_a = (mine.T @ fires).toarray() / mass_a[start:stop, None]
        of_b = ((mine > 0).astype(np.float32).T @ values).toarray() / mass_b
        either = ((of_a >= ADDS) & (of_b >= INSIDE)) | ((of_b >= ADDS) & (of_a >= INSIDE))
        row, column = np.nonzero(either & may_a[start:stop, None] & may_b)
        found.append(Pairs(row + start, column, of_a[row, column], of_b[row, column]))
        advance(stop - start)
    if not found:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
    return Pairs(
        *(np.concatenate([part.a for part in found]), np.concatenate([part.b for part in found])),
        *(np.concatenate([part.of_a for part in found]), np.concatenate([part.of_b for part in found])),
    )


def _between(n: I64, least: int, most: float) -> NDArray[np.bool_]:
    return (n >= least) & (n <= most)


def splits(pairs: Pairs, whole: csc_array, part: csc_array, near: Near | None, cosine: float) -> list[Split]:
    """The features of a that b holds in several parts, those that are covered best first.

    whole, part  activations of a and of b, [token, feature]
    near         cosines of directions, of which a part's must be `cosine` at least; None: they cannot be compared
    """
    wanted = (pairs.of_a >= ADDS) & (pairs.of_b >= INSIDE)
    found = []
    for feature, at in _grouped(pairs.a[wanted], np.flatnonzero(wanted)):
        parts, inside = pairs.b[at], pairs.of_b[at]
        cosines = None if near is None else near(feature, parts)
        if cosines is not None:
            close = cosines >= cosine
            parts, inside, cosines = parts[close], inside[close], cosines[close]
        one = _split(feature, parts, inside, cosines, whole, part) if len(parts) > 1 else None
        if one is not None:
            found.append(one)
    return sorted(found, key=lambda split: (-split.covered, split.whole))


def merges(pairs: Pairs, a: csc_array, b: csc_array, near: Near | None, cosine: float) -> list[Split]:
    """The features of b that a holds in several parts; `near` takes a feature of b, and features of a."""
    return splits(Pairs(pairs.b, pairs.a, pairs.of_b, pairs.of_a), b, a, near, cosine)


def _grouped(keys: I64, values: I64) -> Iterable[tuple[int, I64]]:
    order = np.argsort(keys, kind="stable")
    unique, starts = np.unique(keys[order], return_index=True)
    return zip(unique.tolist(), np.split(values[order], starts[1:]), strict=False)


def _split(
    feature: int, parts: I64, inside: F32, cosines: F32 | None, whole: csc_array, part: csc_array
) -> Split | None:
    """Parts chosen one by one, the one that covers most of what is left first; None where that is no split."""
    at = slice(whole.indptr[feature], whole.indptr[feature + 1])
    tokens, weight = whole.indices[at], whole.data[at].astype(np.float64)
    weight = weight / weight.sum()
    fires = np.stack([np.isin(tokens, part.indices[part.indptr[p] : part.indptr[p + 1]]) for p in parts.tolist()])
    left = weight.copy()
    taken: list[int] = []
    adds: list[float] = []
    while len(taken) < len(parts):
        covers = fires @ left
        i = int(covers.argmax())
        if covers[i] < ADDS:
            break
        taken.append(i)
        adds.append(float(covers[i]))
        left = np.where(fires[i], 0.0, left)
    if len(taken) < 2 or adds[0] >= ONE or sum(adds) < COVERED:
        return None
    return Split(
        feature, parts[taken].tolist(), adds, [float(x) for x in inside[taken]],
        None if cosines is None else [float(x) for x in cosines[taken]], sum(adds),
    )  # fmt: skip


def chosen(found: Sequence[Split], features: I64, others: I64) -> list[Split]:
    """The same splits with features' numbers in place of their places."""
    return [
        Split(int(features[s.whole]), others[s.parts].tolist(), s.adds, s.inside, s.cosine, s.covered) for s in found
    ]
