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
    bar.start("relate", total=len(pending), unit="features")
    for chunk in _chunks(pending):
        rows: list[Neighbour] = []
        kinds: list[_Kind] = [("firing", np.arange(width), firing_together(fires, chunk))]
        if dictionary is not None:
            kinds.append(("decoder", *decoder_cosines(dictionary, chunk)))
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


def decoder_cosines(dictionary: Dictionary, features: Sequence[int]) -> tuple[NDArray[np.int64], F32]:
    """The numbers of the features that have a decoder row, and the cosines of the chosen ones' rows with theirs:
    [n], [chosen feature, n]. Plain units write along axes, and nobody is near: n is 0."""
    if dictionary.architecture == "units":
        return np.empty(0, dtype=np.int64), np.empty((len(features), 0), dtype=np.float32)
    everyone = dictionary.wanted if dictionary.full_width and dictionary.wanted is not None else None
    numbers = np.arange(dictionary.width) if everyone is None else everyone.numpy()
    rows = torch.nn.functional.normalize(dictionary.W_dec.float(), dim=1)
    place = torch.from_numpy(np.searchsorted(numbers, np.array(features, dtype=np.int64)))
    return numbers, (rows[place] @ rows.T).numpy()


def nearest(similarity: F32, numbers: NDArray[np.int64], feature: int, n: int) -> NDArray[np.int64]:
    """Places of the `n` most similar others, most similar first, ties by number; only those above 0."""
    near = np.flatnonzero((similarity > 0) & (numbers != feature))
    order = np.lexsort((numbers[near], -similarity[near]))
    found: NDArray[np.int64] = near[order[:n]]
    return found
