"""Which features are near which: by what they write, and by when they fire. -> neighbour

Neighbours give a label its hardest negatives (passages where a feature like it fires, and it does not), and the labels
that it must be told from. Firing together is counted on the explain panel alone, so nothing is learnt from score.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array
from torch import Tensor

from autointerp.dictionary import Dictionary
from autointerp.rows import Neighbour
from autointerp.store import PanelRows, Store
from autointerp.tally import Bar, Tally

NEIGHBOURS = 8  # kept per feature and kind
CHUNK_FEATURES = 256  # features compared with all others at once

F32 = NDArray[np.float32]
_Kind = tuple[Literal["firing", "decoder"], NDArray[np.int64], F32]  # kind, numbers of the others, similarities


def run(store: Store, collection_id: str, dictionary: Dictionary | None, features: Sequence[int], bar: Bar) -> Tally:
    """Find the neighbours of the features that have none yet. One unit is a feature.

    dictionary  None where features have no decoder (planted ones): they are related by firing alone
    """
    started = time.perf_counter()
    tally = Tally("relate")
    known = store.related(collection_id)
    pending = [feature for feature in features if feature not in known]
    if not pending:
        return tally
    row = store.collection(collection_id)
    assert row is not None
    width = int(row["width"])
    fires = firing_matrix(store.panel(collection_id, "explain"), int(row["passage_tokens"]), width)
    everyone = np.arange(width)
    written, directions = (None, None) if dictionary is None else decoder_directions(dictionary)
    bar.start("relate", total=len(pending), unit="features")
    for chunk in _chunks(pending):
        rows: list[Neighbour] = []
        kinds: list[_Kind] = [("firing", everyone, firing_together(fires, chunk))]
        if written is not None and directions is not None:
            kinds.append(("decoder", written, cosines(directions, np.searchsorted(written, chunk))))
        for kind, numbers, similarity in kinds:
            for feature, found in zip(chunk, similarity, strict=True):
                rows += [
                    Neighbour(collection_id, feature, kind, rank, int(numbers[i]), float(found[i]))
                    for rank, i in enumerate(nearest(found, numbers, feature, NEIGHBOURS))
                ]
        with store.transaction():
            store.add(rows)
        tally.ok += len({found.feature for found in rows})
        bar.advance(len(chunk))
    tally.seconds = time.perf_counter() - started
    return tally


def _chunks(features: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(features), CHUNK_FEATURES):
        yield list(features[start : start + CHUNK_FEATURES])


def firing_matrix(panel: PanelRows, passage_tokens: int, width: int) -> csc_array:
    """Which feature fires on which token of the panel: 0 or 1, [token, feature]."""
    row = np.repeat(np.arange(len(panel.passage)), np.diff(panel.offsets))
    token = row * passage_tokens + panel.positions
    ones = np.ones(len(token), dtype=np.float32)
    return csc_array((ones, (token, panel.features)), shape=(len(panel.passage) * passage_tokens, width))


def firing_together(fires: csc_array, features: Sequence[int]) -> F32:
    """How often features fire on the same tokens: [chosen feature, feature], 0 to 1.

    The cosine of their firing patterns, n_ij / sqrt(n_i n_j), with n_ij the tokens on which both fire.
    """
    counts = np.asarray(fires.sum(axis=0), dtype=np.float32).reshape(-1)
    both = (fires[:, list(features)].T @ fires).toarray().astype(np.float32)
    found: F32 = both / np.sqrt(np.maximum(counts[list(features), None] * counts[None, :], 1))
    return found


def decoder_directions(dictionary: Dictionary) -> tuple[NDArray[np.int64], Tensor]:
    """The numbers [n] of the features that have a decoder row, ascending, and those rows with norm 1 [n, d_out].

    n is 0 for plain units: they write along axes, and nobody is near.
    """
    if dictionary.architecture == "units":
        return np.empty(0, dtype=np.int64), torch.empty(0, dictionary.d_in)
    cut = dictionary.wanted if dictionary.full_width else None
    numbers = np.arange(dictionary.width) if cut is None else cut.numpy()
    return numbers, torch.nn.functional.normalize(dictionary.W_dec.float(), dim=1)


def cosines(directions: Tensor, places: NDArray[np.int64]) -> F32:
    """Cosines of the directions [n, d] at these places with all of them: [place, n]; n may be 0."""
    if not len(directions):
        return np.empty((len(places), 0), dtype=np.float32)
    found: F32 = (directions[torch.from_numpy(places)] @ directions.T).numpy()
    return found


def nearest(similarity: F32, numbers: NDArray[np.int64], feature: int, n: int) -> NDArray[np.int64]:
    """Places of the `n` most similar others, most similar first, ties by number; only those above 0."""
    near = np.flatnonzero((similarity > 0) & (numbers != feature))
    order = np.lexsort((numbers[near], -similarity[near]))
    found: NDArray[np.int64] = near[order[:n]]
    return found
