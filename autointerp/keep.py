"""The keeper: what one pass over a corpus leaves behind, in memory that depends on the dictionary alone.

One kernel, *the n best by a key*, keeps every list: per feature the strongest passages (key: peak, descending) and
uniform samples of firing passages per split (key: keyed hash of seed, feature, passage), and per split a panel of
background passages (key: keyed hash of seed, passage). Counters are exact; sums are in fixed point, so no order of
addition can matter. States merge: `merge` is associative and commutative, and merging the states of shards gives the
state of the whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.config import CollectSection

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

FIXED_POINT = 2**20  # sums of activations are integers in units of 2^-20
HISTOGRAM_BINS = 48  # half-octaves of log2(activation), from 2^-8 to 2^16
# Candidates that wait before the lists are cut again: about as many as the lists hold, within these bounds.
MERGE_AT, MERGE_AT_LEAST, MERGE_PER_FEATURE = 400_000, 16_384, 100
MERGE_BATCHES = 256  # batches after which they are cut all the same: many small arrays would scatter over the heap
NOTHING = np.uint64(2**64 - 1)  # a key that is worse than every other
EXPLAIN = 0
N_SPLITS = 3

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: U64) -> U64:
    """A bijective 64-bit hash (splitmix64 finaliser; Steele, Lea & Flood 2014), elementwise."""
    x = x.astype(np.uint64, copy=True)
    with np.errstate(over="ignore"):
        x += _GOLDEN
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def salted(seed: int, purpose: int) -> np.uint64:
    """A 64-bit salt for one purpose under one seed."""
    return mix(np.array([(seed * 0x1000003 + purpose) & (2**64 - 1)], dtype=np.uint64))[0]


def passage_ids(document_key: U64, start: I64) -> I64:
    """63-bit ids of passages: a hash of the document's 64-bit key and the passage's first token index."""
    return (mix(document_key ^ mix(start.astype(np.uint64))) >> np.uint64(1)).astype(np.int64)


def text_hashes(tokens: NDArray[np.int32], lengths: I64) -> U64:
    """A hash of each passage's token ids, [passage]; equal texts have equal hashes. Padding does not enter."""
    columns = np.arange(tokens.shape[1], dtype=np.uint64)
    terms = mix((tokens.astype(np.uint64) << np.uint64(16)) ^ columns)
    terms[columns[None, :] >= lengths[:, None].astype(np.uint64)] = 0
    with np.errstate(over="ignore"):
        return mix(terms.sum(axis=1, dtype=np.uint64))


def strength_keys(peak: NDArray[np.float32], tie: U64) -> U64:
    """Keys that sort the strongest first; equal peaks fall back on 32 bits of a hash, so order never matters."""
    bits = peak.astype(np.float32).view(np.uint32).astype(np.uint64)  # positive floats sort like their bits
    return ((np.uint64(0xFFFFFFFF) - bits) << np.uint64(32)) | (tie >> np.uint64(32))


def lottery_keys(seed: int, feature: I64, passage: I64) -> U64:
    """Keys that draw a feature's uniform samples: a hash of (seed, feature, passage id)."""
    return mix(passage.astype(np.uint64) ^ mix(feature.astype(np.uint64) ^ salted(seed, 1)))


def panel_keys(seed: int, passage: I64) -> U64:
    """Keys that draw the panel: a hash of (seed, passage id)."""
    return mix(passage.astype(np.uint64) ^ salted(seed, 2))


def sort_by_group_and_key(group: I64, key: U64) -> I64:
    """Indices that sort by group, then by the full 64-bit key.

    One sort of a packed word decides nearly always; where two packed words are equal, the full sort does.
    """
    packed = (group.astype(np.uint64) << np.uint64(40)) | (key >> np.uint64(24))
    order = np.argsort(packed)
    if len(order) > 1 and (packed[order[1:]] == packed[order[:-1]]).any():
        order = np.lexsort((key, group))
    return order


def first_of_each(sorted_group: NDArray[Any]) -> NDArray[np.bool_]:
    """True at the first entry of every run of equal values."""
    first = np.ones(len(sorted_group), dtype=bool)
    first[1:] = sorted_group[1:] != sorted_group[:-1]
    return first


def rank_within(sorted_group: I64) -> I64:
    """0, 1, 2, ... within every run of equal values."""
    starts = np.flatnonzero(first_of_each(sorted_group))
    return np.arange(len(sorted_group)) - np.repeat(starts, np.diff(np.append(starts, len(sorted_group))))


class Batch(NamedTuple):
    """What one forward pass gives the keeper. Rows are positions: row = passage * passage_tokens + position.

    Passages come in document order, each document's passages in order of their start.
    """

    tokens: NDArray[np.int32]  # [passage, passage_tokens], 0 after the end
    lengths: I64  # [passage] tokens before the padding
    usable: NDArray[np.bool_]  # [passage, passage_tokens]
    document_key: U64  # [passage] the document's id as a number
    split: I64  # [passage] 0 explain, 1 select, 2 score
    start: I64  # [passage] index of the first token within the document
    row: I64  # [firing]
    feature: I64  # [firing]
    value: NDArray[np.float32]  # [firing] > 0


@dataclass
class Ragged:
    """Rows of different lengths over parallel flat columns: row i is columns[name][offsets[i]:offsets[i + 1]]."""

    offsets: I64
    columns: dict[str, NDArray[Any]]

    @classmethod
    def empty(cls, **dtypes: Any) -> "Ragged":
        """No rows, with the given columns."""
        return cls(np.zeros(1, dtype=np.int64), {name: np.empty(0, dtype=dtype) for name, dtype in dtypes.items()})

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, index: I64) -> "Ragged":
        """The rows at `index`, in that order."""
        lengths = np.diff(self.offsets)[index]
        offsets = np.zeros(len(index) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        flat = np.repeat(self.offsets[index] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(offsets, {name: column[flat] for name, column in self.columns.items()})

    @staticmethod
    def concat(parts: "list[Ragged]") -> "Ragged":
        """All rows of the parts, one after another."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Ragged(offsets, {n: np.concatenate([p.columns[n] for p in parts]) for n in parts[0].columns})


@dataclass
class Pool:
    """Firing passages of features, each stored once however many lists hold it. One entry per (feature, passage)."""

    feature: I64
    passage: I64  # passage id
    text: U64  # hash of the passage's tokens
    peak: NDArray[np.float32]
    firing: Ragged  # columns position (uint8), value (float32)

    @classmethod
    def empty(cls) -> "Pool":
        """A pool without entries."""
        i64 = np.empty(0, dtype=np.int64)
        firing = Ragged.empty(position=np.uint8, value=np.float32)
        return cls(i64, i64.copy(), np.empty(0, np.uint64), np.empty(0, np.float32), firing)

    def __len__(self) -> int:
        return len(self.feature)

    def take(self, index: I64) -> "Pool":
        """The entries at `index`."""
        return Pool(
            self.feature[index], self.passage[index], self.text[index], self.peak[index], self.firing.take(index)
        )

    @staticmethod
    def concat(parts: "list[Pool]") -> "Pool":
        """All entries of the parts."""
        columns = {n: np.concatenate([getattr(p, n) for p in parts]) for n in ("feature", "passage", "text", "peak")}
        return Pool(**columns, firing=Ragged.concat([p.firing for p in parts]))


@dataclass
class Shelf:
    """One list per feature: the `size` best entries of the pool by key, within one split."""

    name: str  # top or sample
    split: int
    size: int
    distinct_texts: bool
    entry: I64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # index into the pool
    key: U64 = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    bar: U64 = field(
        default_factory=lambda: np.empty(0, dtype=np.uint64)
    )  # [feature] key of the worst entry of a full list

    def cut(self, pool: Pool, width: int) -> None:
        """Keep the `size` best per feature (one per text where `distinct_texts`), sorted by (feature, key)."""
        order = sort_by_group_and_key(pool.feature[self.entry], self.key)
        entry, key = self.entry[order], self.key[order]
        feature = pool.feature[entry]
        if self.distinct_texts:
            # Best first within each text: a worse copy of a text that is listed can never return.
            by_text = np.lexsort((np.arange(len(entry)), pool.text[entry], feature))
            same = np.zeros(len(entry), dtype=bool)
            same[1:] = (feature[by_text][1:] == feature[by_text][:-1]) & (
                pool.text[entry][by_text][1:] == pool.text[entry][by_text][:-1]
            )
            keep = np.sort(by_text[~same])
            entry, key, feature = entry[keep], key[keep], feature[keep]
        rank = rank_within(feature)
        best = rank < self.size
        self.entry, self.key = entry[best], key[best]
        self.bar = np.full(width, NOTHING)
        last = rank == self.size - 1
        self.bar[feature[last]] = key[last]


@dataclass
class Passages:
    """Token ids and whereabouts of passages that some list still holds."""

    id: I64
    document: U64  # key of the document: its id as a number
    start: I64
    split: I64
    length: I64
    tokens: NDArray[np.int32]  # [passage, passage_tokens]
    usable: NDArray[np.bool_]  # [passage, passage_tokens]

    COLUMNS = ("id", "document", "start", "split", "length", "tokens", "usable")

    def take(self, index: NDArray[Any]) -> "Passages":
        """The passages at `index` (integers or a mask)."""
        return Passages(*(getattr(self, name)[index] for name in self.COLUMNS))

    @classmethod
    def concat(cls, parts: "list[Passages]") -> "Passages":
        """All passages of the parts."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.COLUMNS))


def counter_bytes(width: int) -> int:
    """Memory of the counters of a keeper of `width` features; lists and panel come on top as they fill."""
    return width * (N_SPLITS * (4 * 8 + 4) + HISTOGRAM_BINS * 8 + 8 + 4 * 8)


class Keeper:
    """The state of a collection pass: counters, lists, panel. Feed it batches with `add`, then call `settle`."""

    def __init__(self, cfg: CollectSection, width: int, vocabulary: int, seed: int) -> None:
        self.cfg, self.width, self.seed = cfg, width, seed
        self.n_tokens = np.zeros((N_SPLITS, width), dtype=np.int64)
        self.n_passages = np.zeros((N_SPLITS, width), dtype=np.int64)
        self.n_documents = np.zeros((N_SPLITS, width), dtype=np.int64)
        self.sums = np.zeros((N_SPLITS, width), dtype=np.int64)  # in units of 1 / FIXED_POINT
        self.maxima = np.zeros((N_SPLITS, width), dtype=np.float32)
        self.histogram = np.zeros((width, HISTOGRAM_BINS), dtype=np.int64)
        self.token_count = np.zeros(vocabulary, dtype=np.int64)  # usable occurrences, explain split
        self.total_tokens = np.zeros(N_SPLITS, dtype=np.int64)
        self.total_passages = np.zeros(N_SPLITS, dtype=np.int64)
        self.total_documents = np.zeros(N_SPLITS, dtype=np.int64)
        self.n_masked = 0
        self._last_document = np.zeros(width, dtype=np.uint64)  # key of the document that each feature fired in last
        self._last_seen = 0
        self.pool = Pool.empty()
        self.shelves = [
            Shelf("top", EXPLAIN, cfg.top, distinct_texts=True),
            *(
                Shelf("sample", split, size, distinct_texts=False)
                for split, size in enumerate((cfg.sample_explain, cfg.sample_select, cfg.sample_score))
            ),
        ]
        for shelf in self.shelves:
            shelf.bar = np.full(width, NOTHING if shelf.size else 0, dtype=np.uint64)
        self.panel_sizes = panel_sizes(cfg.panel)
        self.panel_bar = np.array([NOTHING if size else 0 for size in self.panel_sizes], dtype=np.uint64)
        self.panel_id = np.empty(0, dtype=np.int64)
        self.panel_key = np.empty(0, dtype=np.uint64)
        self.panel_split = np.empty(0, dtype=np.int64)
        self.panel_firing = Ragged.empty(feature=np.int32, position=np.uint8, value=np.float32)
        width_tokens = cfg.passage_tokens
        self.passages = Passages(
            **{name: np.empty(0, dtype=np.int64) for name in ("id", "start", "split", "length")},
            document=np.empty(0, dtype=np.uint64),
            tokens=np.empty((0, width_tokens), dtype=np.int32),
            usable=np.empty((0, width_tokens), dtype=bool),
        )
        self.n_held_documents = 0  # when last asked
        self._waiting: list[tuple[Pool, list[tuple[I64, U64]]]] = []
        self._waiting_panel: list[tuple[I64, U64, I64, Ragged]] = []
        self._waiting_passages: list[Passages] = []
        self._n_waiting = 0
        self._merge_at = min(MERGE_AT, max(MERGE_AT_LEAST, MERGE_PER_FEATURE * width))

    # -- adding ----------------------------------------------------------------------------------------------------

    def add(self, batch: Batch) -> None:
        """Count a batch, and let the passages that beat a list's worst entry wait for the next `settle`."""
        ids = passage_ids(batch.document_key, batch.start)
        self._count_text(batch)
        width_tokens = self.cfg.passage_tokens
        order = np.argsort(batch.feature * np.int64(batch.tokens.size) + batch.row)
        feature, row, value = batch.feature[order], batch.row[order], batch.value[order]
        passage = row // width_tokens
        position = (row % width_tokens).astype(np.uint8)
        group = first_of_each(feature * np.int64(len(ids)) + passage)
        starts = np.flatnonzero(group)
        group_feature, group_passage = feature[starts], passage[starts]
        peak = np.maximum.reduceat(value, starts) if len(starts) else value
        self._count_firing(batch, feature, passage, value, group_feature, group_passage, peak)
        offsets = np.append(starts, len(feature))
        firing = Ragged(offsets, {"position": position, "value": value})
        text = text_hashes(batch.tokens, batch.lengths)
        wanted = np.zeros(len(ids), dtype=bool)  # passages that some list takes: the others are forgotten at once
        wanted[self._offer(ids, text, batch, group_feature, group_passage, peak, firing)] = True
        wanted[self._offer_panel(ids, batch, feature, passage, position, value)] = True
        if wanted.any():
            passages = Passages(
                ids, batch.document_key, batch.start, batch.split, batch.lengths, batch.tokens, batch.usable
            )
            self._waiting_passages.append(passages.take(wanted))
        if self._n_waiting >= max(self._merge_at, len(self.pool) // 2) or len(self._waiting) >= MERGE_BATCHES:
            self.settle()

    def _count_text(self, batch: Batch) -> None:
        usable = batch.usable.sum(axis=1)
        np.add.at(self.total_tokens, batch.split, usable)
        np.add.at(self.total_passages, batch.split, 1)
        self.n_masked += int(batch.lengths.sum() - usable.sum())
        first = first_of_each(batch.document_key)
        first[0] = int(batch.document_key[0]) != self._last_seen
        np.add.at(self.total_documents, batch.split[first], 1)
        self._last_seen = int(batch.document_key[-1])
        explain = batch.usable & (batch.split == EXPLAIN)[:, None]
        np.add.at(self.token_count, batch.tokens[explain], 1)

    def _count_firing(
        self, batch: Batch, feature: I64, passage: I64, value: NDArray[np.float32],
        group_feature: I64, group_passage: I64, peak: NDArray[np.float32],
    ) -> None:  # fmt: skip
        cell = batch.split[passage] * self.width + feature
        np.add.at(self.n_tokens.reshape(-1), cell, 1)
        np.add.at(self.sums.reshape(-1), cell, np.rint(value * np.float64(FIXED_POINT)).astype(np.int64))
        bins = np.clip(np.floor((np.log2(value) + 8) * 2), 0, HISTOGRAM_BINS - 1).astype(np.int64)
        np.add.at(self.histogram.reshape(-1), feature * HISTOGRAM_BINS + bins, 1)
        group_cell = batch.split[group_passage] * self.width + group_feature
        np.add.at(self.n_passages.reshape(-1), group_cell, 1)
        np.maximum.at(self.maxima.reshape(-1), group_cell, peak)
        # Groups are sorted by (feature, passage) and passages come in document order, so a feature's documents come
        # in runs; only the first run of a batch can go on from the batch before.
        document = batch.document_key[group_passage]
        fresh = first_of_each(group_feature)
        fresh[1:] |= document[1:] != document[:-1]
        leading = first_of_each(group_feature)
        fresh[leading] &= self._last_document[group_feature[leading]] != document[leading]
        np.add.at(self.n_documents.reshape(-1), group_cell[fresh], 1)
        self._last_document[group_feature] = document  # the last write of equal indices wins, and it is the latest

    def _offer(
        self, ids: I64, text: U64, batch: Batch,
        feature: I64, passage: I64, peak: NDArray[np.float32], firing: Ragged,
    ) -> I64:  # fmt: skip
        """Let what beats a list's worst entry wait; returns the passages (indices into the batch) of those."""
        lottery = lottery_keys(self.seed, feature, ids[passage])
        strength = strength_keys(peak, lottery)
        split = batch.split[passage]
        accepted = []
        for shelf in self.shelves:
            key = strength if shelf.name == "top" else lottery
            accepted.append(np.flatnonzero((split == shelf.split) & (key < shelf.bar[feature])))
        chosen = np.unique(np.concatenate(accepted))
        if not len(chosen):
            return chosen
        place = np.zeros(len(feature), dtype=np.int64)
        place[chosen] = np.arange(len(chosen))
        pool = Pool(feature[chosen], ids[passage[chosen]], text[passage[chosen]], peak[chosen], firing.take(chosen))
        offers = [
            (place[found], (strength if shelf.name == "top" else lottery)[found])
            for shelf, found in zip(self.shelves, accepted, strict=True)
        ]
        self._waiting.append((pool, offers))
        self._n_waiting += len(chosen)
        return passage[chosen]

    def _offer_panel(
        self,
        ids: I64,
        batch: Batch,
        feature: I64,
        passage: I64,
        position: NDArray[np.uint8],
        value: NDArray[np.float32],
    ) -> I64:
        """The same for the panel, with everything that fires."""
        key = panel_keys(self.seed, ids)
        chosen = np.flatnonzero((key < self.panel_bar[batch.split]) & (batch.lengths > 0))
        if not len(chosen):
            return chosen
        wanted = np.zeros(len(ids), dtype=bool)
        wanted[chosen] = True
        inside = np.flatnonzero(wanted[passage])
        # A stable sort keeps the order of features; on 16 bits it is a radix sort.
        narrow = np.uint16 if len(ids) <= 2**16 else np.int64
        inside = inside[np.argsort(passage[inside].astype(narrow), kind="stable")]
        lengths = np.bincount(passage[inside], minlength=len(ids))[chosen]
        firing = Ragged(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            {"feature": feature[inside].astype(np.int32), "position": position[inside], "value": value[inside]},
        )
        self._waiting_panel.append((ids[chosen], key[chosen], batch.split[chosen], firing))
        return chosen

    # -- settling and merging --------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Cut every list to its size and forget what no list holds. The state is then final for what was added."""
        pools, base = [self.pool], len(self.pool)
        for pool, offers in self._waiting:
            for shelf, (place, key) in zip(self.shelves, offers, strict=True):
                shelf.entry = np.concatenate([shelf.entry, place + base])
                shelf.key = np.concatenate([shelf.key, key])
            pools.append(pool)
            base += len(pool)
        pool = Pool.concat(pools)
        for shelf in self.shelves:
            if shelf.size:
                shelf.cut(pool, self.width)
        held = np.unique(np.concatenate([shelf.entry for shelf in self.shelves]))
        held = held[np.lexsort((pool.passage[held], pool.feature[held]))]  # canonical, whatever the order of adding
        place = np.zeros(len(pool), dtype=np.int64)
        place[held] = np.arange(len(held))
        for shelf in self.shelves:
            shelf.entry = place[shelf.entry]
        self.pool = pool.take(held)
        self._settle_panel()
        self._forget_passages()
        self._waiting, self._waiting_panel, self._n_waiting = [], [], 0

    def _settle_panel(self) -> None:
        parts = [(self.panel_id, self.panel_key, self.panel_split, self.panel_firing), *self._waiting_panel]
        ids, key, split = (np.concatenate([part[i] for part in parts]) for i in range(3))
        order = sort_by_group_and_key(split, key)
        order = order[rank_within(split[order]) < np.array(self.panel_sizes)[split[order]]]
        self.panel_id, self.panel_key, self.panel_split = ids[order], key[order], split[order]
        self.panel_firing = Ragged.concat([part[3] for part in parts]).take(order)
        for s, size in enumerate(self.panel_sizes):
            keys = self.panel_key[self.panel_split == s]
            if size and len(keys) == size:
                self.panel_bar[s] = keys[-1]

    def _forget_passages(self) -> None:
        passages = Passages.concat([self.passages, *self._waiting_passages])
        wanted = np.unique(np.concatenate([self.pool.passage, self.panel_id]))
        order = np.argsort(passages.id, kind="stable")
        order = order[first_of_each(passages.id[order])]
        self.passages = passages.take(order[np.isin(passages.id[order], wanted, assume_unique=True)])
        self._waiting_passages = []

    def merge(self, other: "Keeper") -> None:
        """Add another keeper's state: a pass over other documents, with the same settings."""
        other.settle()
        for name in ("n_tokens", "n_passages", "n_documents", "sums", "histogram", "token_count"):
            getattr(self, name)[...] += getattr(other, name)
        for name in ("total_tokens", "total_passages", "total_documents"):
            getattr(self, name)[...] += getattr(other, name)
        np.maximum(self.maxima, other.maxima, out=self.maxima)
        self.n_masked += other.n_masked
        offers = [(shelf.entry, shelf.key) for shelf in other.shelves]
        self._waiting.append((other.pool, offers))
        self._waiting_panel.append((other.panel_id, other.panel_key, other.panel_split, other.panel_firing))
        self._waiting_passages.append(other.passages)
        self.settle()

    def held_documents(self) -> U64:
        """Keys of the documents of which some list, or what waits for the next `settle`, holds a passage."""
        parts = [self.passages.document, *(p.document for p in self._waiting_passages)]
        held = np.unique(np.concatenate(parts))
        self.n_held_documents = len(held)
        return held

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        """The settled state as plain arrays: what a checkpoint holds, and what workers send."""
        self.settle()
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"pool.{n}": getattr(self.pool, n) for n in ("feature", "passage", "text", "peak")}
        arrays |= _pack("pool.firing", self.pool.firing) | _pack("panel.firing", self.panel_firing)
        arrays |= {f"passages.{n}": getattr(self.passages, n) for n in Passages.COLUMNS}
        for i, shelf in enumerate(self.shelves):
            arrays |= {f"shelf{i}.{n}": getattr(shelf, n) for n in ("entry", "key", "bar")}
        return arrays | {"n_masked": np.int64(self.n_masked), "last_seen": np.uint64(self._last_seen)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over a state given by `state` under the same settings. Raises KeyError where something is missing."""
        for name in _ARRAYS:
            setattr(self, name, np.array(state[name]))  # a copy: what workers send cannot be written to
        self.n_masked, self._last_seen = int(state["n_masked"]), int(state["last_seen"])
        columns = {n: state[f"pool.{n}"] for n in ("feature", "passage", "text", "peak")}
        self.pool = Pool(**columns, firing=_unpack("pool.firing", state))
        self.panel_firing = _unpack("panel.firing", state)
        self.passages = Passages(*(state[f"passages.{n}"] for n in Passages.COLUMNS))
        for i, shelf in enumerate(self.shelves):
            shelf.entry, shelf.key = state[f"shelf{i}.entry"], state[f"shelf{i}.key"]
            shelf.bar = np.array(state[f"shelf{i}.bar"])


_ARRAYS = (
    "n_tokens", "n_passages", "n_documents", "sums", "maxima", "histogram", "token_count", "total_tokens",
    "total_passages", "total_documents", "_last_document", "panel_bar", "panel_id", "panel_key", "panel_split",
)  # fmt: skip


def _pack(name: str, ragged: Ragged) -> dict[str, NDArray[Any]]:
    return {f"{name}.offsets": ragged.offsets} | {f"{name}:{column}": v for column, v in ragged.columns.items()}


def _unpack(name: str, state: Mapping[str, NDArray[Any]]) -> Ragged:
    columns = {key.split(":")[1]: state[key] for key in state if key.startswith(f"{name}:")}
    return Ragged(state[f"{name}.offsets"], columns)


def panel_sizes(total: int) -> tuple[int, int, int]:
    """Panel passages per split: the total dealt 40 / 20 / 40 %."""
    explain, select = round(total * 0.4), round(total * 0.2)
    return explain, select, total - explain - select
