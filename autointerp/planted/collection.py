"""Planted features collected like any others: a dictionary whose encoding is the predicate, kept by the real keeper."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import kept
from autointerp.config import CollectSection, fingerprint
from autointerp.keep import Batch, Keeper
from autointerp.planted.features import Feature
from autointerp.planted.text import PlantedText
from autointerp.store import Store
from autointerp.sweep import Whereabouts

BATCH_PASSAGES = 2048


class Activations(NamedTuple):
    """Every activation of one feature in the whole text: what only planted truth can know."""

    cell: NDArray[np.int64]
    value: NDArray[np.float32]


def collect(
    store: Store, text: PlantedText, features: Sequence[Feature], cfg: CollectSection, seed: int
) -> tuple[str, list[Activations]]:
    """Keep and write the planted features; returns the collection's id and all activations, by feature."""
    found = [Activations(*feature.activations(text, seed)) for feature in features]
    cell = np.concatenate([a.cell for a in found])
    number = np.repeat(np.arange(len(found)), [len(a.cell) for a in found])
    value = np.concatenate([a.value for a in found])
    order = np.argsort(cell, kind="stable")
    cell, number, value = cell[order], number[order], value[order]
    usable = np.arange(text.width) < text.length[:, None]
    keeper = Keeper(cfg, len(features), int(text.tokens.max()) + 1, seed)
    for a in range(0, len(text.length), BATCH_PASSAGES):
        b = min(a + BATCH_PASSAGES, len(text.length))
        first, last = np.searchsorted(cell, [a * text.width, b * text.width])
        keeper.add(Batch(
            tokens=text.tokens[a:b], lengths=text.length[a:b], usable=usable[a:b], document_key=text.document[a:b],
            split=text.split[a:b], start=text.start[a:b], row=cell[first:last] - a * text.width,
            feature=number[first:last], value=value[first:last],
        ))  # fmt: skip
    keeper.settle()
    identity = fingerprint([text.ids.sum().item(), [f.predicate.key for f in features], cfg.model_dump(), seed])
    settings = {"collect": cfg.model_dump(), "run": {"seed": seed}}
    head: kept.Header = {
        "collection_id": identity, "subject": "planted", "hookpoint": "planted", "dictionary": "planted",
        "architecture": "predicate", "width": len(features), "corpus": "planted", "settings": json.dumps(settings),
        "context_tokens": cfg.context_tokens, "passage_tokens": cfg.passage_tokens, "whole_id": identity,
        "shards": None,
    }  # fmt: skip
    keys, first_rows = np.unique(text.document, return_index=True)
    n_tokens = np.bincount(np.searchsorted(keys, text.document), weights=text.length)
    documents = {
        int(key): Whereabouts(text.sources[int(key)], int(text.split[row]), int(n))
        for key, row, n in zip(keys, first_rows, n_tokens, strict=True)
    }
    with store.transaction():
        kept.write(store, head, keeper, documents, text.piece)
    return identity, found
