"""What a run takes on disk, per live feature: of the default run, and of a large corpus that saturates every list."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray

from autointerp import config, kept
from autointerp.config import CollectSection
from autointerp.keep import (
    FIXED_POINT,
    HISTOGRAM_BINS,
    Keeper,
    Passages,
    Pool,
    Ragged,
    lottery_keys,
    mix,
    panel_keys,
    panel_sizes,
    passage_ids,
    sort_by_group_and_key,
    strength_keys,
)
from autointerp.store import Store
from autointerp.sweep import Whereabouts

KB = 1000
WIDTH, VOCABULARY, L0 = 4096, 49_152, 32
N_DOCUMENTS = 1_000_000  # of 1,000 tokens in the mean: a corpus of 1e9 tokens
SPLIT_SHARES = np.array([0.4, 0.2, 0.4])

I64 = NDArray[np.int64]


class Disk(NamedTuple):
    """KB per live feature; the three add up to the file."""

    others: float  # the file without the two below: every other table, catalog and free blocks
    panel: float
    calls: float
    live: int
    tables: dict[str, float]  # bytes of every table


def measure(path: Path) -> Disk:
    """What the closed database at `path` takes, with its log if there is one.

    A block that several tables share is dealt evenly among them.
    """
    log = path.with_name(path.name + ".wal")
    size = path.stat().st_size + (log.stat().st_size if log.is_file() else 0)
    tables = table_bytes(path)
    with duckdb.connect(str(path), read_only=True) as db:
        ((live,),) = db.execute("SELECT count(*) FROM feature WHERE list_sum(n_tokens) > 0").fetchall()
    panel, calls = tables.get("panel", 0.0), tables.get("call", 0.0)
    others = size - panel - calls
    return Disk(others / KB / live, panel / KB / live, calls / KB / live, live, tables)


def table_bytes(path: Path) -> dict[str, float]:
    """Bytes of every table, by the blocks that hold its segments."""
    with duckdb.connect(str(path), read_only=True) as db:
        ((block_size,),) = db.execute("SELECT block_size FROM pragma_database_size()").fetchall()
        owners: dict[int, set[str]] = {}
        names = [name for (name,) in db.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        for name in names:
            blocks = db.execute(
                "SELECT DISTINCT unnest(list_append(additional_block_ids, block_id)) "
                f"FROM pragma_storage_info('{name}') WHERE persistent"
            ).fetchall()
            for (block,) in blocks:
                owners.setdefault(block, set()).add(name)
    found = dict.fromkeys(names, 0.0)
    for block, sharing in owners.items():
        for name in sharing if block >= 0 else ():  # constant segments have block -1: they are in the catalog
            found[name] += block_size / len(sharing)
    return found


def default() -> Disk | None:
    """The default run, all its stages included; None where there is none at results/demo."""
    path = Path("results/demo/run.duckdb")
    return measure(path) if path.is_file() else None


def saturated() -> Disk:
    """A collection of a large corpus in which every list is full and holds passages that no other list does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.duckdb"
        write_saturated(path)
        return measure(path)


def write_saturated(path: Path, seed: int = 0) -> None:
    """Write such a collection, as collect would."""
    settings = config.load(None)
    keeper, documents = saturated_keeper(settings.collect, np.random.default_rng(seed))
    head = {
        "collection_id": "0123456789abcdef", "subject": settings.subject.model, "hookpoint": "model.layers.15",
        "dictionary": "simulated-4k", "architecture": "topk", "width": WIDTH, "corpus": "simulated",
        "settings": settings.model_dump_json(), "context_tokens": settings.collect.context_tokens,
        "passage_tokens": settings.collect.passage_tokens, "whole_id": "0123456789abcdef", "shards": None,
    }  # fmt: skip
    with Store.create(path) as store:
        with store.transaction():
            _write(store, head, keeper, documents)
        store.db.execute("CHECKPOINT")


def _write(store: Store, head: dict[str, Any], keeper: Keeper, documents: dict[int, Whereabouts]) -> None:
    """The only line here that knows how collect writes."""
    kept.write(store, head, keeper, documents, lambda i: f" {hashlib.md5(b'%d' % i).hexdigest()[: 2 + i % 6]}".encode())


# -- the simulated collection ------------------------------------------------------------------------------------------


def saturated_keeper(cfg: CollectSection, random: np.random.Generator) -> tuple[Keeper, dict[int, Whereabouts]]:
    """A settled keeper whose lists are full and disjoint, and the documents of its passages.

    Passages are drawn from a corpus of 1e9 tokens: about 440,000 of its documents hold one. Token ids are independent
    draws from Zipf's law (11.7 bits each; English text has 9.6 bits of these ids before any context), so nothing that
    compresses text can gain more here than it would there.
    """
    keeper = Keeper(cfg, WIDTH, VOCABULARY, 0)
    per_feature = (cfg.top + cfg.sample_explain, cfg.sample_select, cfg.sample_score)
    n_listed = WIDTH * sum(per_feature)
    passages, documents = _passages(cfg, [WIDTH * n for n in per_feature], random)
    feature = np.concatenate([np.tile(np.arange(WIDTH), n) for n in per_feature])
    top = np.zeros(n_listed, dtype=bool)
    top[: WIDTH * cfg.top] = True
    _fill_lists(keeper, passages.take(np.arange(n_listed)), feature, top, random)
    _fill_panel(keeper, passages.take(np.arange(n_listed, len(passages.id))), random)
    keeper.passages = passages.take(np.argsort(passages.id))
    _fill_counters(keeper, random)
    return keeper, documents


def _passages(
    cfg: CollectSection, wanted: list[int], random: np.random.Generator
) -> tuple[Passages, dict[int, Whereabouts]]:
    """Distinct passages: `wanted` of each split, then the panel's, uniform over the corpus."""
    size = cfg.passage_tokens
    tokens_of = np.clip(random.lognormal(6.5, 0.9, N_DOCUMENTS), 32, 100_000).astype(np.int64)
    key = mix(np.arange(N_DOCUMENTS, dtype=np.uint64))
    split_of = np.searchsorted(np.cumsum(SPLIT_SHARES)[:2], random.random(N_DOCUMENTS), side="right")
    passages_of = -(-tokens_of // size)
    owner = np.repeat(np.arange(N_DOCUMENTS), passages_of)
    first = np.cumsum(passages_of) - passages_of
    drawn = [
        random.choice(np.flatnonzero(split_of[owner] == split), lists + panel, replace=False)
        for split, (lists, panel) in enumerate(zip(wanted, panel_sizes(cfg.panel)))
    ]
    chosen = np.concatenate([d[:n] for d, n in zip(drawn, wanted)] + [d[n:] for d, n in zip(drawn, wanted)])
    document = owner[chosen]
    start = (chosen - first[document]) * size
    length = np.minimum(tokens_of[document] - start, size)
    present = np.arange(size) < length[:, None]
    usable = present.copy()
    usable[start % cfg.context_tokens == 0, 0] = False  # the attention sink
    found = Passages(
        id=passage_ids(key[document], start), document=key[document], start=start, split=split_of[document],
        length=length, tokens=np.where(present, _zipf(present.shape, random), 0).astype(np.int32), usable=usable,
    )  # fmt: skip
    documents = {}
    for i in np.unique(document).tolist():
        source = f"train-{i // 10_000:05d}.parquet:{i % 10_000 + 1}"
        documents[int(key[i])] = Whereabouts(source, int(split_of[i]), int(tokens_of[i]))
    return found, documents


def _zipf(shape: tuple[int, int], random: np.random.Generator) -> NDArray[np.int32]:
    """Token ids by Zipf's law; as in vocabularies of byte pairs, low ids are the frequent ones."""
    edges = np.cumsum(1 / (np.arange(VOCABULARY) + 2.7))
    found = np.empty(shape, dtype=np.int32)
    for rows in np.array_split(np.arange(shape[0]), shape[0] // 65_536 + 1):
        found[rows] = np.searchsorted(edges[:-1], random.random((len(rows), shape[1])) * edges[-1])
    return found


def _fill_lists(
    keeper: Keeper, passages: Passages, feature: I64, top: NDArray[np.bool_], random: np.random.Generator
) -> None:
    """Passage i is the one that `feature[i]` holds in its top list, or in the sample of the passage's split."""
    rate = np.exp(random.normal(0.6, 0.9, WIDTH))  # firing positions beyond the first: mean 3, dense features 64
    more = random.poisson(rate[feature] * random.gamma(1.0, 1.0, len(feature)) * np.where(top, 2, 1))
    n = np.minimum(1 + more, passages.length)
    luck = random.random(passages.tokens.shape, dtype=np.float32)
    luck[np.arange(luck.shape[1]) >= passages.length[:, None]] = 2
    fires = luck <= np.take_along_axis(np.sort(luck, axis=1), n[:, None] - 1, axis=1)
    n = fires.sum(axis=1)
    level = np.exp(random.normal(1.6, 0.6, WIDTH))[feature] * np.where(top, 3, 1)
    value = _bf16(np.repeat(level, n) * np.exp(random.normal(0, 0.5, int(n.sum()))))
    offsets = np.concatenate([[0], np.cumsum(n)]).astype(np.int64)
    firing = Ragged(offsets, {"position": np.nonzero(fires)[1].astype(np.uint8), "value": value})
    text = mix(passages.id.astype(np.uint64))  # no text occurs twice
    pool = Pool(feature, passages.id, text, np.maximum.reduceat(value, offsets[:-1]), firing)
    order = np.lexsort((passages.id, feature))
    keeper.pool = pool = pool.take(order)
    top, split = top[order], passages.split[order]
    lottery = lottery_keys(keeper.seed, pool.feature, pool.passage)
    strength = strength_keys(pool.peak, lottery)
    for shelf in keeper.shelves:
        is_top = shelf.name == "top"
        entry = np.flatnonzero((split == shelf.split) & (top == is_top))
        key = (strength if is_top else lottery)[entry]
        sort = sort_by_group_and_key(pool.feature[entry], key)
        shelf.entry, shelf.key = entry[sort], key[sort]


def _fill_panel(keeper: Keeper, passages: Passages, random: np.random.Generator) -> None:
    """L0 features fire at every position of these passages; some often, most rarely."""
    n, size = passages.tokens.shape
    feature = np.minimum((WIDTH * random.random((n, size * L0), dtype=np.float32) ** 3).astype(np.int32), WIDTH - 1)
    cell = np.sort(feature * size + np.repeat(np.arange(size, dtype=np.int32), L0), axis=1)
    fires = np.ones(cell.shape, dtype=bool)
    fires[:, 1:] = cell[:, 1:] != cell[:, :-1]
    fires &= cell % size < passages.length[:, None]
    offsets = np.concatenate([[0], np.cumsum(fires.sum(axis=1))]).astype(np.int64)
    cell = cell[fires]
    columns = {"feature": cell // size, "position": (cell % size).astype(np.uint8)}
    keeper.panel_firing = Ragged(offsets, columns | {"value": _bf16(random.gamma(2.0, 4.0, len(cell)) + 0.01)})
    keeper.panel_id, keeper.panel_split = passages.id, passages.split
    keeper.panel_key = panel_keys(keeper.seed, passages.id)


def _fill_counters(keeper: Keeper, random: np.random.Generator) -> None:
    """Counts of the size that a corpus of 1e9 tokens gives."""
    total = N_DOCUMENTS * 1000
    split = SPLIT_SHARES[:, None]
    density = np.exp(random.normal(-7, 1.2, WIDTH)).clip(1e-5, 0.1)
    level = np.exp(random.normal(1.6, 0.6, WIDTH))
    keeper.total_tokens[:], keeper.total_passages[:] = total * SPLIT_SHARES, total // 64 * SPLIT_SHARES
    keeper.total_documents[:], keeper.n_masked = N_DOCUMENTS * SPLIT_SHARES, total // 128
    keeper.n_tokens[:] = random.poisson(density * split * total)
    keeper.n_passages[:] = keeper.n_tokens // 3
    keeper.n_documents[:] = np.minimum(keeper.n_tokens // 4, N_DOCUMENTS * split)
    keeper.sums[:] = keeper.n_tokens * level * FIXED_POINT
    keeper.maxima[:] = _bf16(level * random.uniform(20, 60, (3, WIDTH)))
    middle = np.arange(HISTOGRAM_BINS) / 2 - 7.75
    share = np.exp(-((middle - np.log2(level)[:, None]) ** 2))
    keeper.histogram[:] = keeper.n_tokens.sum(axis=0)[:, None] * share / share.sum(axis=1, keepdims=True)
    zipf = 1 / (np.arange(VOCABULARY) + 2.7)
    keeper.token_count[:] = zipf / zipf.sum() * 0.4 * total


def _bf16(x: NDArray[Any]) -> NDArray[np.float32]:
    """Rounded to bfloat16, as activations of the default encoder are."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)
