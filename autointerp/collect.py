"""STAGE 1: corpus -> document, passage, token, feature, excerpt, panel.

One pass over the text: the subject runs as deep as the hookpoint, the dictionary encodes, the keeper keeps. Killed
anywhere, it goes on from its last checkpoint; the rows are written in one transaction at the end.
"""

import contextlib
import ctypes
import logging
import queue
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.config import Settings
from autointerp.corpus import SPLITS, Allotment, Context, contexts
from autointerp.dictionary import Dictionary
from autointerp.errors import CorpusError, DictionaryError, StoreError, SubjectError
from autointerp.keep import FIXED_POINT, HISTOGRAM_BINS, Batch, Keeper, Ragged
from autointerp.keys import Keys
from autointerp.rows import Collection, Document, Excerpt, Feature, Panel, Passage, Token
from autointerp.store import Store, lists
from autointerp.subject import DTYPES, Subject, pad
from autointerp.tally import Bar, Tally

CHECKPOINT_SECONDS = 120.0
TOP_TOKENS = 16  # heaviest token ids kept per feature
READ_AHEAD = 64  # documents tokenised ahead of the forward pass

log = logging.getLogger(__name__)


@dataclass
class Pass:
    """A collection pass in progress: the keeper's state, and how far it has come."""

    keeper: Keeper
    n_contexts: int  # contexts consumed, in the order of the corpus
    documents: dict[int, tuple[str, str, int, int]]  # ordinal -> id, source, split, tokens read


def run(store: Store, settings: Settings, keys: Keys, dictionary: Dictionary, bar: Bar) -> Tally:
    """Collect, unless this collection exists. Returns the tally: one unit is one document.

    Raises CorpusError, SubjectError or DictionaryError for what the user can put right.
    """
    if store.collection(keys.collection_id) is not None:
        return Tally("collect")
    started = time.perf_counter()
    subject = Subject.load(settings.subject)
    subject.check_context(settings.collect.context_tokens)
    dictionary = dictionary.to(subject.device, DTYPES[settings.subject.dtype])
    checkpoint = None if store.path is None else store.path.with_name("collect.checkpoint.npz")
    found = _collect(settings, keys, subject, dictionary, checkpoint, bar)
    keeper = found.keeper
    if not keeper.total_tokens.sum():
        raise CorpusError(f"corpus {settings.corpus.source!r} gave no usable token: every position is masked")
    with store.transaction():
        _write(store, settings, keys, subject, dictionary, found)
    store.publish()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    tokens = int(keeper.total_tokens.sum()) + keeper.n_masked
    return Tally("collect", ok=len(found.documents), tokens=tokens, seconds=time.perf_counter() - started)


def _collect(
    settings: Settings, keys: Keys, subject: Subject, dictionary: Dictionary, checkpoint: Path | None, bar: Bar
) -> Pass:
    keep_freed_memory()
    allotment = Allotment.plan(settings.corpus, settings.collect.context_tokens)
    keeper = Keeper(settings.collect, dictionary.width, subject.vocabulary_size, settings.run.seed)
    done = _resume(keeper, keys, checkpoint)
    found = Pass(keeper, done, {})
    total = sum(allotment.contexts.values()) if allotment.contexts is not None else None
    bar.start("collect", total=None if total is None else total * settings.collect.context_tokens, unit="tok")
    stream = _read_ahead(contexts(
        settings.corpus, subject.tokenizer, settings.collect.context_tokens, settings.collect.split_salt,
        allotment=allotment,
    ))  # fmt: skip
    last_save = time.monotonic()
    position = done
    bar.advance(done * settings.collect.context_tokens)
    for batch in _batches(stream, settings.subject.batch_contexts, found.documents, done):
        position += len(batch)
        bar.advance(sum(len(context.tokens) for _, context in batch))
        keeper.add(encode_batch(settings, subject, keys.hookpoint, dictionary, batch))
        found.n_contexts = position
        if checkpoint is not None and time.monotonic() - last_save > CHECKPOINT_SECONDS:
            keeper.save(checkpoint, n_contexts=position, collection_id=keys.collection_id)
            last_save = time.monotonic()
    keeper.settle()
    return found


def _resume(keeper: Keeper, keys: Keys, checkpoint: Path | None) -> int:
    """Take over a checkpoint of this very collection; returns how many contexts it covers."""
    if checkpoint is None or not checkpoint.is_file():
        return 0
    try:
        with np.load(checkpoint) as saved:  # plain arrays: np.load refuses pickles
            if str(saved["collection_id"]) != keys.collection_id:
                log.warning("the checkpoint in %s is of another configuration: starting anew", checkpoint.parent)
                return 0
            keeper.restore(saved)
            return int(saved["n_contexts"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as problem:
        raise StoreError(f"checkpoint {checkpoint} cannot be read ({problem}): delete it to start anew") from None


def _batches(
    stream: Iterator[list[Context]], size: int, documents: dict[int, tuple[str, str, int, int]], skip: int
) -> Iterator[list[tuple[int, Context]]]:
    """Contexts in corpus order in batches of `size`, each with its document's ordinal; fills `documents`.

    The first `skip` contexts, which a resumed pass has read already, are left out.
    """
    waiting: list[tuple[int, Context]] = []
    for ordinal, group in enumerate(stream):
        if group:
            first = group[0]
            documents[ordinal] = (first.document_id, first.source, first.split, sum(len(c.tokens) for c in group))
        waiting += [(ordinal, context) for context in group[skip:]]
        skip = max(skip - len(group), 0)
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if waiting:
        yield waiting


def encode_batch(
    settings: Settings, subject: Subject, hookpoint: str, dictionary: Dictionary, batch: list[tuple[int, Context]]
) -> Batch:
    """Run the subject and the dictionary on a batch of contexts, and cut it into passages."""
    width = settings.collect.context_tokens
    per_passage = settings.collect.passage_tokens
    per_context = width // per_passage
    found = [context for _, context in batch]
    tokens, lengths = pad([context.tokens for context in found], width)
    activation = subject.activations(tokens, [hookpoint])[hookpoint]
    if activation.shape[-1] != dictionary.d_in:
        raise DictionaryError(
            f"{dictionary.name} reads activations of width {dictionary.d_in}, but {hookpoint} of {subject.name} "
            f"gives {activation.shape[-1]}"
        )
    usable = subject.usable(tokens, activation, lengths)
    _refuse_not_finite(activation, lengths, found)
    # Every row is encoded and masked ones are dropped after: rows then sit in the same chunks whatever is masked.
    triples = dictionary.encode(activation.reshape(-1, dictionary.d_in))
    keep = usable.reshape(-1)[triples.position]
    row, feature, value = (t[keep].cpu() for t in triples)
    per_row = np.repeat(np.arange(len(found)), per_context)
    offset = np.tile(np.arange(per_context) * per_passage, len(found))
    passage_lengths = np.clip(lengths.numpy()[per_row] - offset, 0, per_passage)
    present = passage_lengths > 0
    place = np.cumsum(present) - 1  # row of a passage among those that are not empty
    row_np = row.numpy()
    return Batch(
        tokens=tokens.numpy().astype(np.int32).reshape(-1, per_passage)[present],
        lengths=passage_lengths[present],
        usable=usable.cpu().numpy().reshape(-1, per_passage)[present],
        document=np.array([ordinal for ordinal, _ in batch])[per_row][present],
        document_key=np.array([context.key for context in found], dtype=np.uint64)[per_row][present],
        split=np.array([context.split for context in found])[per_row][present],
        start=(np.array([context.start for context in found])[per_row] + offset)[present],
        row=place[row_np // per_passage] * per_passage + row_np % per_passage,
        feature=feature.numpy(),
        value=value.float().numpy(),
    )


def _refuse_not_finite(activation: torch.Tensor, lengths: torch.Tensor, found: list[Context]) -> None:
    if torch.isfinite(activation.sum()):
        return
    bad = ~torch.isfinite(activation).all(dim=-1).cpu()
    for i, context in enumerate(found):
        where = bad[i, : int(lengths[i])].nonzero()
        if len(where):
            place = context.start + int(where[0])
            raise SubjectError(
                f"activations are NaN or infinite at token {place} of document {context.document_id} "
                f"({context.source}); try subject.dtype = float32"
            )


def _read_ahead(stream: Iterator[list[Context]]) -> Iterator[list[Context]]:
    """The stream, produced by a thread: tokenisation (Rust, without the GIL) runs beside the forward pass."""
    ready: queue.Queue[list[Context] | BaseException | None] = queue.Queue(maxsize=READ_AHEAD)
    stop = threading.Event()

    def produce() -> None:
        try:
            for item in stream:
                while not stop.is_set():
                    with contextlib.suppress(queue.Full):
                        ready.put(item, timeout=0.5)
                        break
                if stop.is_set():
                    return
            ready.put(None)
        except BaseException as problem:
            ready.put(problem)

    thread = threading.Thread(target=produce, name="tokenise", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def keep_freed_memory() -> None:
    """Ask glibc to reuse large freed blocks instead of returning them: saves a page fault per page of every batch.

    Elsewhere this does nothing. The parameters are M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of mallopt(3).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 2**26)):
            libc.mallopt(parameter, value)


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(store: Store, settings: Settings, keys: Keys, subject: Subject, dictionary: Dictionary, found: Pass) -> None:
    keeper, collection = found.keeper, keys.collection_id
    store.add([
        Collection(
            collection_id=collection, subject=subject.name, hookpoint=keys.hookpoint, dictionary=dictionary.name,
            architecture=dictionary.architecture, width=dictionary.width, corpus=settings.corpus.source,
            settings=settings.model_dump_json(include={"corpus", "collect", "subject"}),
            context_tokens=settings.collect.context_tokens, passage_tokens=settings.collect.passage_tokens,
            n_tokens=keeper.total_tokens.tolist(), n_passages=keeper.total_passages.tolist(),
            n_documents=keeper.total_documents.tolist(),
            n_panel=np.bincount(keeper.panel_split, minlength=3).tolist(), n_masked=keeper.n_masked,
        )
    ])  # fmt: skip
    _write_text(store, collection, subject, found)
    _write_features(store, collection, dictionary, keeper)
    _write_excerpts(store, collection, keeper)
    _write_panel(store, collection, keeper)


def _write_text(store: Store, collection: str, subject: Subject, found: Pass) -> None:
    keeper, passages = found.keeper, found.keeper.passages
    held = np.unique(passages.document)
    rows = [found.documents[int(ordinal)] for ordinal in held]
    store.add([Document(collection, identity, source, SPLITS[split], n) for identity, source, split, n in rows])
    n = len(passages.id)
    width = passages.tokens.shape[1]
    present = np.arange(width)[None, :] < passages.length[:, None]
    masked = present & ~passages.usable
    store.add_columns(Passage, {
        "collection_id": [collection] * n,
        "passage_id": passages.id,
        "document_id": [found.documents[int(ordinal)][0] for ordinal in passages.document],
        "split": [SPLITS[s] for s in passages.split],
        "start": passages.start.astype(np.int32),
        "tokens": lists(_offsets_of(present), passages.tokens[present]),
        "masked": lists(_offsets_of(masked), np.broadcast_to(np.arange(width, dtype=np.uint8), masked.shape)[masked]),
    })  # fmt: skip
    ids = np.union1d(np.unique(passages.tokens[present]), np.flatnonzero(keeper.token_count))
    store.add_columns(Token, {
        "collection_id": [collection] * len(ids),
        "token_id": ids.astype(np.int32),
        "piece": [subject.token_bytes(int(i)) for i in ids],
        "n_explain": keeper.token_count[ids],
    })  # fmt: skip


def _write_features(store: Store, collection: str, dictionary: Dictionary, keeper: Keeper) -> None:
    top_offsets, top = heaviest_tokens(keeper)
    store.add_columns(Feature, {
        "collection_id": [collection] * keeper.width,
        "feature": np.arange(keeper.width, dtype=np.int32),
        "feature_id": [f"{dictionary.name}/{i}" for i in range(keeper.width)],
        "n_tokens": np.ascontiguousarray(keeper.n_tokens.T),
        "n_passages": np.ascontiguousarray(keeper.n_passages.T),
        "n_documents": np.ascontiguousarray(keeper.n_documents.T),
        "sum": np.ascontiguousarray(keeper.sums.T / FIXED_POINT),
        "max": np.ascontiguousarray(keeper.maxima.T),
        "histogram": keeper.histogram.reshape(keeper.width, HISTOGRAM_BINS),
        "top_tokens": lists(top_offsets, top),
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
