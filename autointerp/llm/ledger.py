"""The ledger: every reply, durable before it is used.

A reply is first written to a journal beside the database, in the thread in which it arrives, and moved into `call` in
large steps. A transaction of its own would cost a reply 14 ms, and would wait for what else is being written; a line in
the journal costs 0.06 ms, and a step of 500 replies 31 ms. The line is in the system's hands before the reply is used,
so a killed process loses none; a power cut may lose the last seconds. The next writer takes over what a journal holds.
"""

import json
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from autointerp.errors import StoreError
from autointerp.llm.prices import Spent
from autointerp.llm.raw import MOST
from autointerp.llm.request import Model
from autointerp.rows import Call
from autointerp.store import Store

log = logging.getLogger(__name__)

COUNTED = ("input_tokens", "cached_tokens", "output_tokens", "usd")
ENOUGH = 512  # replies in the journal that are worth a transaction


class Ledger:
    """The calls of one open store. There is one for each, whoever asks: see `of`."""

    _of: ClassVar[WeakKeyDictionary[Store, "Ledger"]] = WeakKeyDictionary()

    def __init__(self, store: Store) -> None:
        self._store = weakref.ref(store)
        self.spent = Spent()
        self.path = None if store.path is None else journal_path(store.path)
        self._file: int | None = None
        self._lock = threading.Lock()
        self._rows: dict[str, Call] = {}  # in the journal, not yet in the table
        if self.path is not None and self.path.is_file():
            self._rows = {row.call_id: row for row in _read(self.path)}
            self.settle()

    @property
    def store(self) -> Store:
        """The store, which its owner keeps alive."""
        store = self._store()
        assert store is not None, "the store has been closed"
        return store

    @classmethod
    def of(cls, store: Store) -> "Ledger":
        """The ledger of a store. Opening it takes over what an earlier process left in the journal."""
        if store not in cls._of:
            cls._of[store] = cls(store)
        return cls._of[store]

    def find(self, call_ids: Sequence[str]) -> dict[str, Call]:
        """The recorded calls among these."""
        with self._lock:
            found = {call: self._rows[call] for call in call_ids if call in self._rows}
        return found | self.store.calls([call for call in call_ids if call not in found])

    def knows(self, model: Model) -> bool:
        """Whether a model of a server has ever given a usable reply."""
        who = {"provider": model.provider, "base_url": model.base_url, "model": model.name}
        return any(who.items() <= row.items() and row["calls"] > row["unusable"] for row in self.store.spending())

    def add(self, row: Call) -> None:
        """Keep a reply; from any thread. When this returns, a killed process does not lose it."""
        with self._lock:
            if self.path is not None:
                self._write([row])
            self._rows[row.call_id] = row

    def settle(self, enough: int = 1) -> None:
        """Move what the journal holds into the table, where that is at least `enough` and no transaction is open."""
        if len(self._rows) < enough or self.store.transacting:
            return
        with self._lock:
            rows = list(self._rows.values())
        self.store.add_calls(rows)
        with self._lock:
            for row in rows:
                del self._rows[row.call_id]
            self._start_over()

    def _start_over(self) -> None:
        """A journal of what arrived meanwhile; none where nothing did."""
        if self.path is None:
            return
        self._close()
        if not self._rows:
            self.path.unlink(missing_ok=True)
            return
        fresh, self.path = self.path, self.path.with_suffix(".new")
        try:
            self._write(self._rows.values())
            self.path.replace(fresh)
        except StoreError:  # the old journal stands, and takes what comes
            self._close()
            raise
        finally:
            self.path = fresh

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, rows: Iterable[Call]) -> None:
        assert self.path is not None
        line = "".join(json.dumps(_columns(row), default=str, ensure_ascii=False) + "\n" for row in rows).encode()
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            written = os.write(self._file, line)
        except OSError as problem:
            raise StoreError(f"{self.path} cannot be written: {problem.strerror}; make room, and run again") from None
        if written < len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)  # half a line would spoil the next
            raise StoreError(f"{self.path} cannot be written: the disk is full; make room, and run again")


def _columns(row: Call) -> dict[str, Any]:
    """What `asdict` gives, without its copies: values are plain."""
    return {column.name: getattr(row, column.name) for column in fields(row)}


def journal_path(database: Path) -> Path:
    """Where replies wait to be moved into the database."""
    return database.with_suffix(".calls.jsonl")


def _possible(number: Any) -> bool:
    """Whether a count or a price is one that the table takes."""
    return number is None or (isinstance(number, int | float) and 0 <= number <= MOST)


def _read(path: Path) -> list[Call]:
    """The rows of a journal. A line that was cut short by a full disk is left out, with a word about it."""
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            found: dict[str, Any] = json.loads(line)
            found["asked_at"] = datetime.fromisoformat(found["asked_at"])
            rows.append(Call(**found | {name: None for name in COUNTED if not _possible(found[name])}))
        except (ValueError, TypeError, KeyError):
            log.warning("%s: a line of %d bytes is not whole and was left out", path, len(line))
    return rows
