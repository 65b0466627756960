"""One pass over the text: the subject runs as deep as the last hookpoint, every dictionary encodes, every keeper keeps.

On a GPU nothing waits: a batch is queued (forward, encoder, copies to pinned memory) while the host keeps what the
batch before it found. Several GPUs take turns. Killed anywhere, a pass goes on from its last checkpoint.
"""

import contextlib
import ctypes
import json
import queue
import threading
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.config import Settings
from autointerp.corpus import Allotment, Context, Shard, contexts
from autointerp.dictionary import Dictionary
from autointerp.dictionary.encode import SLOTS_PER_TOKEN, Slots
from autointerp.errors import DictionaryError, StoreError, SubjectError
from autointerp.keep import Batch, Keeper
from autointerp.probe import completed
from autointerp.subject import DTYPES, Subject, pad, pick_devices
from autointerp.tally import Bar
from autointerp.targets import Target

CHECKPOINT_SECONDS = 120.0
READ_AHEAD = 64  # documents tokenised ahead of the forward pass
IN_FLIGHT = 2  # batches queued per GPU before the host waits for the oldest
_BROKEN_FILE = (EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)  # what numpy makes of a damaged .npz
TRIM_BATCHES = 64  # batches between two returns of freed memory
PRUNE_AT = 8192  # documents known before those that no list holds are forgotten


class Whereabouts(NamedTuple):
    """What is known of a document besides its key."""

    source: str
    split: int
    n_tokens: int  # tokens read from it


class Place(NamedTuple):
    """How far a pass has come: documents that are done, and contexts of the next one."""

    documents: int = 0
    contexts: int = 0


@dataclass
class Kept:
    """What a pass has kept: one keeper per target, and the documents that they hold passages of. States merge."""

    keepers: list[Keeper]
    documents: dict[int, Whereabouts] = field(default_factory=dict)
    n_contexts: int = 0  # contexts read
    n_batches: int = 0  # batches since this process began

    @classmethod
    def nothing(cls, settings: Settings, targets: Sequence[Target], vocabulary: int) -> "Kept":
        """The state before the first token."""
        return cls([Keeper(settings.collect, t.dictionary.width, vocabulary, settings.run.seed) for t in targets])

    def merge(self, other: "Kept") -> None:
        """Add what a pass over other documents kept."""
        for mine, theirs in zip(self.keepers, other.keepers, strict=True):
            mine.merge(theirs)
        self.documents |= other.documents
        self.n_contexts += other.n_contexts
        self.forget_documents()

    def forget_documents(self) -> None:
        """Drop the documents that no keeper holds a passage of."""
        held: set[int] = set()
        for keeper in self.keepers:
            held.update(keeper.held_documents().tolist())
        self.documents = {key: found for key, found in self.documents.items() if key in held}

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as plain arrays."""
        arrays: dict[str, NDArray[Any]] = {"n_contexts": np.int64(self.n_contexts)}  # type: ignore[dict-item]
        for i, keeper in enumerate(self.keepers):
            arrays |= {f"{i}/{name}": array for name, array in keeper.state().items()}
        self.forget_documents()
        known = list(self.documents.values())
        arrays["documents.key"] = np.array(list(self.documents), dtype=np.uint64)
        arrays["documents.source"] = np.array([d.source for d in known], dtype=np.str_)
        arrays["documents.split"] = np.array([d.split for d in known], dtype=np.int64)
        arrays["documents.n_tokens"] = np.array([d.n_tokens for d in known], dtype=np.int64)
        return arrays

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over a state given by `state` under the same settings."""
        self.n_contexts = int(state["n_contexts"])
        for i, keeper in enumerate(self.keepers):
            prefix = f"{i}/"
            keeper.restore({name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)})
        columns = [state[f"documents.{name}"].tolist() for name in ("key", "source", "split", "n_tokens")]
        self.documents = {key: Whereabouts(*rest) for key, *rest in zip(*columns, strict=True)}


class Checkpoint:
    """The file that a pass goes on from. `identity` says which pass it is of; another's is refused."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """True every few minutes."""
        return time.monotonic() - self._saved > CHECKPOINT_SECONDS

    def save(self, kept: Kept, place: Place, complete: bool = False) -> None:
        """Write by an atomic rename. Raises StoreError where the disk will not take it."""
        scratch = self.path.with_suffix(".writing.npz")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            arrays: dict[str, Any] = kept.state()
            np.savez(scratch, identity=self.identity, place=np.array(place), complete=complete, **arrays)
            scratch.replace(self.path)
        except OSError as problem:
            scratch.unlink(missing_ok=True)
            raise StoreError(f"checkpoint {self.path} cannot be written: {problem.strerror or problem}") from None
        self._saved = time.monotonic()

    def load(self, kept: Kept) -> tuple[Place, bool]:
        """Fill `kept`; returns how far the pass had come, and whether it was complete.

        Raises StoreError for a checkpoint that cannot be read or is of another configuration.
        """
        if not self.path.is_file():
            return Place(), False
        try:
            with np.load(self.path) as saved:  # plain arrays: np.load refuses pickles
                if str(saved["identity"]) != self.identity:
                    raise StoreError(
                        f"checkpoint {self.path} is of another configuration: finish that one, choose another "
                        "run.name, or delete the file"
                    )
                kept.restore({name: saved[name] for name in saved.files})
                documents, done = saved["place"].tolist()
                return Place(documents, done), bool(saved["complete"])
        except (*_BROKEN_FILE, OSError, KeyError, ValueError) as problem:
            raise StoreError(f"checkpoint {self.path} cannot be read ({problem}): delete it to start anew") from None


class Read(NamedTuple):
    """A context on its way through the pass."""

    context: Context
    n_tokens: int  # tokens read from its document
    place: Place  # how far the pass has come once it is kept


@dataclass
class Replica:
    """The subject and the dictionaries on one device."""

    subject: Subject
    dictionaries: list[Dictionary]
    hookpoints: list[str]  # one per dictionary
    room: list[int]  # slots per token, one per dictionary; grows where it was too small


class Findings(NamedTuple):
    """What one dictionary found in a batch, on the host once the batch's event has passed."""

    usable: Tensor  # bool [context, token]
    finite: Tensor  # bool [context, token]
    slots: Slots
    activation: Tensor | None  # on the device: to encode again where slots ran out


class Flight(NamedTuple):
    """A batch that is queued on a device."""

    batch: list[Read]
    tokens: Tensor
    lengths: Tensor
    findings: list[Findings]
    landed: Any  # CUDA event, or None where there is nothing to wait for
    replica: Replica


def sweep(
    settings: Settings,
    targets: Sequence[Target],
    bar: Bar,
    *,
    shard: Shard | None = None,
    checkpoint: Checkpoint | None = None,
    replicas: list[Replica] | None = None,
) -> Kept:
    """Read the corpus, or one shard of it, and return what was kept, settled.

    replicas  the subject and dictionaries where they are loaded already
    Raises CorpusError, SubjectError or DictionaryError for what the user can put right.
    """
    keep_freed_memory()
    replicas = replicas or load_replicas(settings, targets)
    subject = replicas[0].subject
    kept = Kept.nothing(settings, targets, subject.vocabulary_size)
    place, complete = checkpoint.load(kept) if checkpoint is not None else (Place(), False)
    if complete:
        return kept
    width = settings.collect.context_tokens
    allotment = Allotment.plan(settings.corpus, width, subject.tokenizer)
    total = allotment.total(shard)
    bar.start("collect", None if total is None else total * width, "tok", done=kept.n_contexts * width)
    stream = _read_ahead(contexts(
        settings.corpus, subject.tokenizer, width, settings.collect.split_salt, allotment=allotment, shard=shard,
        skip=place.documents,
    ))  # fmt: skip
    waiting: deque[Flight] = deque()
    turns = cycle(replicas)
    depth = len(replicas) * IN_FLIGHT - 1 if replicas[0].subject.device.type == "cuda" else 0
    for batch in _batches(stream, settings.subject.batch_contexts, place):
        waiting.append(launch(next(turns), settings, batch))
        if len(waiting) > depth:
            place = _land(waiting.popleft(), settings, kept, bar)
            if checkpoint is not None and checkpoint.due:
                checkpoint.save(kept, place)
    while waiting:
        place = _land(waiting.popleft(), settings, kept, bar)
    for keeper in kept.keepers:
        keeper.settle()
    kept.forget_documents()
    return_freed_memory()
    return kept


def load_replicas(settings: Settings, targets: Sequence[Target]) -> list[Replica]:
    """The subject and the dictionaries on every device that the settings name."""
    replicas: list[Replica] = []
    found = [target.dictionary for target in targets]
    for device in pick_devices(settings.subject.device):
        subject = Subject.load(settings.subject, device, settings.run.seed)
        subject.check_context(settings.collect.context_tokens)
        if not replicas:
            found = [completed(settings, subject, t.dictionary, t.keys.hookpoint) for t in targets]
        dtype = DTYPES[settings.subject.dtype]
        dictionaries = [d.for_encoding().to(device, d.encoding_dtype(dtype)) for d in found]
        hookpoints = [t.keys.hookpoint for t in targets]
        replicas.append(Replica(subject, dictionaries, hookpoints, [SLOTS_PER_TOKEN] * len(targets)))
    return replicas


def _land(flight: Flight, settings: Settings, kept: Kept, bar: Bar) -> Place:
    for keeper, found in zip(kept.keepers, land(flight, settings), strict=True):
        keeper.add(found)
    for read in flight.batch:
        context = read.context
        kept.documents[context.key] = Whereabouts(context.source, context.split, read.n_tokens)
    kept.n_contexts += len(flight.batch)
    kept.n_batches += 1
    if kept.n_batches % TRIM_BATCHES == 0:
        return_freed_memory()
    if len(kept.documents) > PRUNE_AT and len(kept.documents) > 2 * kept.keepers[0].n_held_documents:
        kept.forget_documents()
    bar.advance(sum(len(read.context.tokens) for read in flight.batch))
    return flight.batch[-1].place


def _batches(stream: Iterator[list[Context]], size: int, start: Place) -> Iterator[list[Read]]:
    """Contexts in corpus order in batches of `size`; the stream begins after `start.documents` documents."""
    waiting: list[Read] = []
    for ordinal, group in enumerate(stream, start=start.documents):
        n_tokens = sum(len(context.tokens) for context in group)
        skip = start.contexts if ordinal == start.documents else 0
        for i, context in enumerate(group[skip:], start=skip + 1):
            place = Place(ordinal, i) if i < len(group) else Place(ordinal + 1)
            waiting.append(Read(context, n_tokens, place))
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if waiting:
        yield waiting


# -- one batch ---------------------------------------------------------------------------------------------------------


def launch(replica: Replica, settings: Settings, batch: list[Read]) -> Flight:
    """Queue the subject and the dictionaries on a batch of contexts; on a GPU this waits for nothing."""
    subject = replica.subject
    tokens, lengths = pad([read.context.tokens for read in batch], settings.collect.context_tokens)
    on_gpu = subject.device.type == "cuda"
    if on_gpu:
        tokens, lengths = tokens.pin_memory(), lengths.pin_memory()
    activations = subject.activations(tokens, list(dict.fromkeys(replica.hookpoints)))
    findings = []
    for dictionary, hookpoint, room in zip(replica.dictionaries, replica.hookpoints, replica.room, strict=True):
        activation = activations[hookpoint]
        if activation.shape[-1] != dictionary.d_in:
            raise DictionaryError(
                f"{dictionary.name} reads activations of width {dictionary.d_in}, but {hookpoint} of {subject.name} "
                f"gives {activation.shape[-1]}"
            )
        usable, finite = subject.judge(tokens, activation, lengths)
        # Every row is encoded and masked ones are dropped after: rows then sit in the same chunks whatever is masked.
        rows = activation.reshape(-1, dictionary.d_in)
        slots = dictionary.launch(rows, room)
        findings.append(Findings(
            _to_host(usable), _to_host(finite), _slots_to_host(slots), rows if slots.n is not None else None
        ))  # fmt: skip
    landed = None
    if on_gpu:
        landed = torch.cuda.Event()
        landed.record(torch.cuda.current_stream(subject.device))
    return Flight(batch, tokens, lengths, findings, landed, replica)


def land(flight: Flight, settings: Settings) -> list[Batch]:
    """Wait for a batch, and cut it into passages: what each keeper is given."""
    if flight.landed is not None:
        flight.landed.synchronize()
    per_passage = settings.collect.passage_tokens
    found = [read.context for read in flight.batch]
    per_context = settings.collect.context_tokens // per_passage
    per_row = np.repeat(np.arange(len(found)), per_context)
    offset = np.tile(np.arange(per_context) * per_passage, len(found))
    passage_lengths = np.clip(flight.lengths.numpy()[per_row] - offset, 0, per_passage)
    present = passage_lengths > 0
    place = np.cumsum(present) - 1  # row of a passage among those that are not empty
    shared: dict[str, Any] = {
        "tokens": flight.tokens.numpy().astype(np.int32).reshape(-1, per_passage)[present],
        "lengths": passage_lengths[present],
        "document_key": np.array([context.key for context in found], dtype=np.uint64)[per_row][present],
        "split": np.array([context.split for context in found])[per_row][present],
        "start": (np.array([context.start for context in found])[per_row] + offset)[present],
    }
    batches = []
    for i, findings in enumerate(flight.findings):
        _refuse_not_finite(flight, i)
        slots = _enough_slots(flight, i)
        usable = findings.usable.numpy().reshape(-1)
        position, value = slots.position.numpy(), slots.value.float().numpy()
        keep = np.flatnonzero(~(value <= 0) & usable[position])  # a NaN is kept, to be refused
        row = position[keep].astype(np.int64)
        value = value[keep]
        if not np.isfinite(value).all():
            where = int(row[~np.isfinite(value)][0])
            context = found[where // settings.collect.context_tokens]
            raise DictionaryError(
                f"{flight.replica.dictionaries[i].name} gives an activation that is NaN or infinite at token "
                f"{context.start + where % settings.collect.context_tokens} of document {context.document_id} "
                f"({context.source}); try subject.dtype = float32"
            )
        batches.append(Batch(
            **shared, usable=usable.reshape(-1, per_passage)[present],
            row=place[row // per_passage] * per_passage + row % per_passage,
            feature=slots.feature.numpy()[keep].astype(np.int64), value=value,
        ))  # fmt: skip
    return batches


def encode_batch(replica: Replica, settings: Settings, batch: list[Read]) -> list[Batch]:
    """Run the subject and the dictionaries on a batch, and wait for the result."""
    return land(launch(replica, settings, batch), settings)


def _enough_slots(flight: Flight, target: int) -> Slots:
    """The batch's slots; encoded again with more room where a chunk had too many firings for them."""
    findings, replica = flight.findings[target], flight.replica
    slots = findings.slots
    while slots.n is not None and int(slots.n.max()) > slots.room:
        replica.room[target] *= 2
        assert findings.activation is not None
        found = replica.dictionaries[target].launch(findings.activation, replica.room[target])
        slots = Slots(*(c.cpu() if isinstance(c, Tensor) else c for c in found))  # type: ignore[arg-type]
    return slots


def _slots_to_host(slots: Slots) -> Slots:
    return Slots(
        _to_host(slots.position), _to_host(slots.feature), _to_host(slots.value),
        None if slots.n is None else _to_host(slots.n), slots.room,
    )  # fmt: skip


def _to_host(tensor: Tensor) -> Tensor:
    """On the CPU the tensor itself; from a GPU a copy into pinned memory that nothing waits for."""
    if tensor.device.type == "cpu":
        return tensor
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _refuse_not_finite(flight: Flight, target: int) -> None:
    finite = flight.findings[target].finite
    if finite.all():
        return
    row = int((~finite).any(dim=1).nonzero()[0])
    context = flight.batch[row].context
    subject, hookpoint = flight.replica.subject, flight.replica.hookpoints[target]
    place = context.start + _first_not_finite(subject, hookpoint, context)
    raise SubjectError(
        f"activations of {hookpoint} are NaN or infinite at token {place} of document {context.document_id} "
        f"({context.source}); try subject.dtype = float32"
    )


def _first_not_finite(subject: Subject, hookpoint: str, context: Context) -> int:
    """The first position that makes a context not finite. Attention spreads a NaN over a whole context, also to
    earlier positions (0 x NaN is NaN), so the shortest prefix that holds one tells where it comes from."""
    low, high = 1, len(context.tokens)
    while low < high:
        middle = (low + high) // 2
        tokens, _ = pad([context.tokens[:middle]], middle)
        finite = bool(torch.isfinite(subject.activations(tokens, [hookpoint])[hookpoint]).all())
        low, high = (middle + 1, high) if finite else (low, middle)
    return low - 1


# -- the machine -------------------------------------------------------------------------------------------------------


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


def return_freed_memory() -> None:
    """Give back what is free in glibc's heap: between lists that are kept, freed blocks pile up over a long pass."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def identity_of(targets: Sequence[Target], shard: Shard | None) -> str:
    """Which pass this is: what its checkpoint is named by."""
    return json.dumps([*(t.keys.collection_id for t in targets), None if shard is None else str(shard)])
