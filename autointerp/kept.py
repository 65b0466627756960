"""What a pass kept, as rows: written at its end, and read back where shards are merged.

The rows hold the keeper's whole state. Keys of the lists are hashes of ids that the rows hold, and a list's bar is the
key of its last entry, so nothing needs to be stored beside them.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from autointerp.config import CollectSection, Settings
from autointerp.corpus import SPLITS, Shard
from autointerp.errors import StoreError
from autointerp.keep import (
    FIXED_POINT,
    HISTOGRAM_BINS,
    Keeper,
    Passages,
    Pool,
    Ragged,
    lottery_keys,
    panel_keys,
    strength_keys,
    text_hashes,
)
from autointerp.keys import shard_collection_id
from autointerp.rows import Collection, Document, Excerpt, Feature, Panel, Passage, Token
from autointerp.store import Store, lists, ragged
from autointerp.sweep import Whereabouts
from autointerp.targets import Target

TOP_TOKENS = 16  # heaviest token ids kept per feature

Header = dict[str, Any]  # a Collection row without its counts: what the collection is of
HEADER = (
    "collection_id", "subject", "hookpoint", "dictionary", "architecture", "width", "corpus", "settings",
    "context_tokens", "passage_tokens", "whole_id", "shards",
)  # fmt: skip


def header(settings: Settings, target: Target, shard: Shard | None = None) -> Header:
    """What a pass with these settings collects for one dictionary."""
    dictionary, whole = target.dictionary, target.keys.collection_id
    subject = settings.subject.model
    decisive = {"model", "hookpoint", "dtype", "quantization", "prepend_bos", "max_norm_ratio"}
    if settings.subject.random:
        subject += f" with random weights (seed {settings.run.seed})"
        decisive.add("random")
    decide = {"corpus": True, "collect": True, "run": {"seed"}, "subject": decisive}
    shards = None if shard is None or shard.of == 1 else [str(shard)]
    return {
        "collection_id": whole if shards is None else shard_collection_id(whole, shards),
        "subject": subject, "hookpoint": target.keys.hookpoint, "dictionary": dictionary.name,
        "architecture": dictionary.architecture, "width": dictionary.width, "corpus": settings.corpus.source,
        "settings": settings.model_dump_json(include=decide),  # type: ignore[arg-type]
        "context_tokens": settings.collect.context_tokens, "passage_tokens": settings.collect.passage_tokens,
        "whole_id": whole, "shards": shards,
    }  # fmt: skip


def write(
    store: Store, head: Header, keeper: Keeper, documents: dict[int, Whereabouts], piece: Callable[[int], bytes],
    features: list[int] | None = None,
) -> None:  # fmt: skip
    """Write a settled keeper.

    piece     the bytes that a token stands for
    features  those that were encoded, ascending; None for all
    """
    store.add([
        Collection(
            **head, n_tokens=keeper.total_tokens.tolist(), n_passages=keeper.total_passages.tolist(),
            n_documents=keeper.total_documents.tolist(),
            n_panel=np.bincount(keeper.panel_split, minlength=3).tolist(), n_masked=keeper.n_masked,
        )
    ])  # fmt: skip
    collection = head["collection_id"]
    _write_text(store, collection, keeper, documents, piece)
    _write_features(store, collection, head["dictionary"], keeper, features)
    _write_excerpts(store, collection, keeper)
    _write_panel(store, collection, keeper)


def _write_text(
    store: Store, collection: str, keeper: Keeper, documents: dict[int, Whereabouts], piece: Callable[[int], bytes]
) -> None:
    passages = keeper.passages.take(_by_first_feature(keeper))
    store.add([
        Document(collection, f"{key:016x}", found.source, SPLITS[found.split], found.n_tokens)
        for key, found in ((key, documents[key]) for key in np.unique(passages.document).tolist())
    ])  # fmt: skip
    n, width = passages.tokens.shape
    present = np.arange(width)[None, :] < passages.length[:, None]
    masked = present & ~passages.usable
    store.add_columns(Passage, {
        "collection_id": [collection] * n,
        "passage_id": passages.id,
        "document_id": [f"{key:016x}" for key in passages.document.tolist()],
        "split": [SPLITS[s] for s in passages.split],
        "start": passages.start.astype(np.int32),
        "tokens": lists(_offsets_of(present), passages.tokens[present]),
        "masked": lists(_offsets_of(masked), np.broadcast_to(np.arange(width, dtype=np.uint8), masked.shape)[masked]),
    })  # fmt: skip
    ids = np.union1d(np.unique(passages.tokens[present]), np.flatnonzero(keeper.token_count))
    store.add_columns(Token, {
        "collection_id": [collection] * len(ids),
        "token_id": ids.astype(np.int32),
        "piece": [piece(int(i)) for i in ids],
        "n_explain": keeper.token_count[ids],
    })  # fmt: skip


def _by_first_feature(keeper: Keeper) -> NDArray[np.int64]:
    """An order of passages in which those that one feature holds lie near each other: by the first that holds them."""
    where = np.searchsorted(keeper.passages.id, keeper.pool.passage)
    first = np.full(len(keeper.passages.id), keeper.width, dtype=np.int64)
    np.minimum.at(first, where, keeper.pool.feature)
    return np.lexsort((keeper.passages.id, first))


def _write_features(store: Store, collection: str, name: str, keeper: Keeper, features: list[int] | None) -> None:
    top_offsets, top = heaviest_tokens(keeper)
    chosen = np.arange(keeper.width) if features is None else np.array(features)
    heaviest = Ragged(top_offsets, {"token": top}).take(chosen)
    store.add_columns(Feature, {
        "collection_id": [collection] * len(chosen),
        "feature": chosen.astype(np.int32),
        "feature_id": [f"{name}/{i}" for i in chosen.tolist()],
        "n_tokens": np.ascontiguousarray(keeper.n_tokens.T[chosen]),
        "n_passages": np.ascontiguousarray(keeper.n_passages.T[chosen]),
        "n_documents": np.ascontiguousarray(keeper.n_documents.T[chosen]),
        "sum": np.ascontiguousarray(keeper.sums.T[chosen] / FIXED_POINT),
        "max": np.ascontiguousarray(keeper.maxima.T[chosen]),
        "histogram": keeper.histogram[chosen].reshape(len(chosen), HISTOGRAM_BINS),
        "top_tokens": lists(heaviest.offsets, heaviest.columns["token"]),
    })  # fmt: skip


def heaviest_tokens(keeper: Keeper) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Per feature the token ids with the most activation in its kept explain passages, as ragged (offsets, ids)."""
    pool, passages = keeper.pool, keeper.passages
    where = np.searchsorted(passages.id, pool.passage)
    explain = np.flatnonzero(passages.split[where] == 0)
    firing = pool.firing.take(explain)
    lengths = np.diff(firing.offsets)
    token = passages.tokens[np.repeat(where[explain], lengths), firing.columns["position"]].astype(np.int64)
    feature = np.repeat(pool.feature[explain], lengths)
    pair, inverse = np.unique(feature * np.int64(2**32) + token, return_inverse=True)
    # Fixed point again: a float sum would depend on the order of entries.
    mass = np.bincount(inverse, weights=np.rint(firing.columns["value"] * np.float64(FIXED_POINT)), minlength=len(pair))
    feature, token = pair >> 32, pair & (2**32 - 1)
    order = np.lexsort((token, -mass, feature))
    feature, token = feature[order], token[order]
    starts = np.searchsorted(feature, np.arange(keeper.width + 1))
    keep = np.arange(len(feature)) - starts[feature] < TOP_TOKENS if len(feature) else np.zeros(0, dtype=bool)
    counts = np.bincount(feature[keep], minlength=keeper.width)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), token[keep].astype(np.int32)


def _write_excerpts(store: Store, collection: str, keeper: Keeper) -> None:
    parts: dict[str, list[NDArray[Any]]] = {"entry": [], "split": [], "why": [], "rank": []}
    for shelf in keeper.shelves:
        feature = keeper.pool.feature[shelf.entry]
        starts = np.searchsorted(feature, feature)
        parts["entry"].append(shelf.entry)
        parts["split"].append(np.full(len(feature), shelf.split))
        parts["why"].append(np.full(len(feature), shelf.name == "sample"))
        parts["rank"].append(np.arange(len(feature)) - starts)
    entry, split, why, rank = (np.concatenate(parts[name]) for name in ("entry", "split", "why", "rank"))
    # Sorted by feature: zone maps then find a feature's rows without an index.
    order = np.lexsort((rank, why, split, keeper.pool.feature[entry]))
    entry, split, why, rank = entry[order], split[order], why[order], rank[order]
    firing = keeper.pool.firing.take(entry)
    store.add_columns(Excerpt, {
        "collection_id": [collection] * len(entry),
        "feature": keeper.pool.feature[entry].astype(np.int32),
        "split": np.array(SPLITS)[split],
        "why": np.where(why, "sample", "top"),
        "rank": rank.astype(np.uint16),
        "passage_id": keeper.pool.passage[entry],
        "peak": keeper.pool.peak[entry],
        "positions": lists(firing.offsets, firing.columns["position"]),
        "activations": lists(firing.offsets, firing.columns["value"]),
    })  # fmt: skip


def _write_panel(store: Store, collection: str, keeper: Keeper) -> None:
    order = np.lexsort((keeper.panel_id, keeper.panel_split))
    firing: Ragged = keeper.panel_firing.take(order)
    store.add_columns(Panel, {
        "collection_id": [collection] * len(order),
        "split": np.array(SPLITS)[keeper.panel_split[order]],
        "passage_id": keeper.panel_id[order],
        "features": lists(firing.offsets, firing.columns["feature"]),
        "positions": lists(firing.offsets, firing.columns["position"]),
        "activations": lists(firing.offsets, firing.columns["value"]),
    })  # fmt: skip


def _offsets_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int64)


# -- reading back ------------------------------------------------------------------------------------------------------


def read(store: Store, row: dict[str, Any], vocabulary: int) -> tuple[Keeper, dict[int, Whereabouts], dict[int, bytes]]:
    """The keeper behind a collection, its documents, and the bytes of its tokens.

    row         the collection's row
    vocabulary  at least the largest token id + 1
    Raises StoreError for a collection of a version that did not store its seed.
    """
    settings = json.loads(row["settings"])
    if "seed" not in settings.get("run", {}):
        raise StoreError(f"{store.path}: collected by autointerp 0.1.0, which could not merge; collect it again")
    keeper = Keeper(CollectSection(**settings["collect"]), row["width"], vocabulary, settings["run"]["seed"])
    collection = row["collection_id"]
    keeper.total_tokens[:], keeper.total_passages[:] = row["n_tokens"], row["n_passages"]
    keeper.total_documents[:], keeper.n_masked = row["n_documents"], row["n_masked"]
    _read_features(store, collection, keeper)
    tokens = store.rows_of(Token, collection, "token_id")
    ids = tokens["token_id"].to_numpy()
    keeper.token_count[ids] = tokens["n_explain"].to_numpy()
    _read_passages(store, collection, keeper)
    _read_excerpts(store, collection, keeper)
    _read_panel(store, collection, keeper)
    keeper.settle()
    documents = store.rows_of(Document, collection, "document_id")
    columns = (documents[name].to_pylist() for name in ("document_id", "source", "split", "n_tokens"))
    found = {int(i, 16): Whereabouts(s, SPLITS.index(p), n) for i, s, p, n in zip(*columns, strict=True)}
    return keeper, found, dict(zip(ids.tolist(), tokens["piece"].to_pylist(), strict=True))


def _read_features(store: Store, collection: str, keeper: Keeper) -> None:
    table = store.rows_of(Feature, collection, "feature")
    feature = table["feature"].to_numpy()
    for name, into in (
        ("n_tokens", keeper.n_tokens), ("n_passages", keeper.n_passages), ("n_documents", keeper.n_documents),
        ("max", keeper.maxima),
    ):  # fmt: skip
        into[:, feature] = ragged(table[name])[1].reshape(-1, 3).T
    keeper.sums[:, feature] = np.rint(ragged(table["sum"])[1].reshape(-1, 3).T * FIXED_POINT).astype(np.int64)
    keeper.histogram[feature] = ragged(table["histogram"])[1].reshape(-1, HISTOGRAM_BINS)


def _read_passages(store: Store, collection: str, keeper: Keeper) -> None:
    table = store.rows_of(Passage, collection, "passage_id")
    offsets, flat = ragged(table["tokens"])
    lengths = np.diff(offsets)
    width = keeper.cfg.passage_tokens
    present = np.arange(width)[None, :] < lengths[:, None]
    tokens = np.zeros(present.shape, dtype=np.int32)
    tokens[present] = flat
    masked_offsets, masked = ragged(table["masked"])
    usable = present.copy()
    usable[np.repeat(np.arange(len(lengths)), np.diff(masked_offsets)), masked] = False
    keeper.passages = Passages(
        id=table["passage_id"].to_numpy(),
        document=np.array([int(i, 16) for i in table["document_id"].to_pylist()], dtype=np.uint64),
        start=table["start"].to_numpy().astype(np.int64), split=_splits(table["split"]), length=lengths,
        tokens=tokens, usable=usable,
    )  # fmt: skip


def _read_excerpts(store: Store, collection: str, keeper: Keeper) -> None:
    table = store.rows_of(Excerpt, collection, "feature, split, why, rank")
    feature, passage = table["feature"].to_numpy().astype(np.int64), table["passage_id"].to_numpy()
    peak = table["peak"].to_numpy()
    # One entry of the pool per (feature, passage), however many lists hold it.
    order = np.lexsort((passage, feature))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (feature[order][1:] != feature[order][:-1]) | (passage[order][1:] != passage[order][:-1])
    entry = np.empty(len(order), dtype=np.int64)
    entry[order] = np.cumsum(new) - 1
    rows = order[new]
    offsets, positions = ragged(table["positions"])
    firing = Ragged(offsets, {"position": positions, "value": ragged(table["activations"])[1]})
    held = keeper.passages
    text = text_hashes(held.tokens, held.length)[np.searchsorted(held.id, passage[rows])]
    keeper.pool = Pool(feature[rows], passage[rows], text, peak[rows], firing.take(rows))
    split, top = _splits(table["split"]), pc.equal(table["why"], "top").to_numpy(zero_copy_only=False)
    lottery = lottery_keys(keeper.seed, feature, passage)
    strength = strength_keys(peak, lottery)
    for shelf in keeper.shelves:
        mine = np.flatnonzero((split == shelf.split) & (top == (shelf.name == "top")))
        shelf.entry, shelf.key = entry[mine], (strength if shelf.name == "top" else lottery)[mine]


def _read_panel(store: Store, collection: str, keeper: Keeper) -> None:
    table = store.rows_of(Panel, collection, "split, passage_id")
    keeper.panel_id = table["passage_id"].to_numpy()
    keeper.panel_key = panel_keys(keeper.seed, keeper.panel_id)
    keeper.panel_split = _splits(table["split"])
    offsets, features = ragged(table["features"])
    columns = {"feature": features, "position": ragged(table["positions"])[1], "value": ragged(table["activations"])[1]}
    keeper.panel_firing = Ragged(offsets, columns)


def _splits(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return pc.index_in(column, value_set=pa.array(SPLITS)).to_numpy().astype(np.int64)
