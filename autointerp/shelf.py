"""A run that many requests read: what was read of it stays in memory, and its file is locked only during a request.

DuckDB lets nobody write a file that somebody has open. A page that is left open must not stop the next run, and opening
a large file for every request costs as much as reading a feature. So the connection is kept and its lock is given up
(`unwritten`); a request takes the lock again, and when the file has changed since, the run is opened and read anew.
"""

import contextlib
import fcntl
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp import report
from autointerp.errors import FeatureError
from autointerp.report import Reading
from autointerp.show import Library
from autointerp.store import Store, snapshot_path
from autointerp.store_catalog import Catalog
from autointerp.store_places import places

Stamp = tuple[Path, int, tuple[int, ...]]  # file that was read, its time of change (ns), what else changes with it


class Book:
    """A run as it was at one moment."""

    def __init__(self, store: Store, stamp: Stamp) -> None:
        self.store, self.stamp = store, stamp
        where = [places(store, run) for run in store.latest_runs()]  # first: what it takes for a moment is then free
        store.shrink()
        self.readings = report.read_all(store)
        self.catalog = Catalog(self.readings, store)
        self.libraries = {
            reading.collection["dictionary"]: Library(reading, store, found)
            for reading, found in zip(self.readings, where, strict=True)
        }

    def close(self) -> None:
        """Give up the connection and the list; a snapshot stays, because others read it."""
        self.store.db.close()
        self.catalog.close()

    def largest(self, features: Iterable[str]) -> dict[str, float]:
        """Feature id -> its largest activation in the collection; those that never fired are not in it."""
        found = {}
        for feature in features:
            name, _, index = feature.rpartition("/")
            if (value := float(self._largest[name][int(index)])) > 0:
                found[feature] = value
        return found

    @cached_property
    def _largest(self) -> dict[str, NDArray[np.float32]]:
        """Dictionary -> [feature]."""
        return {
            reading.collection["dictionary"]: self.store.features(reading.run.collection_id)["max"].max(axis=0)
            for reading in self.readings
        }

    @property
    def published(self) -> datetime:
        """When the file that is shown was written, local time."""
        return datetime.fromtimestamp(self.stamp[1] / 1e9).astimezone()

    @property
    def growing(self) -> bool:
        """A run is writing it: this is its latest snapshot."""
        return self.store.snapshot_of is not None

    def library(self, feature: str) -> Library:
        """Where a feature is looked up: `17` is of the first dictionary. Raises FeatureError for an unknown one."""
        name, slash, _ = feature.rpartition("/")
        if not slash:
            return next(iter(self.libraries.values()))
        if name not in self.libraries:
            raise FeatureError(f"no dictionary {name!r} in this run: it has {', '.join(self.libraries)}")
        return self.libraries[name]

    def reading(self, dictionary: str) -> Reading:
        """The reading of a dictionary; "" is the first. Raises FeatureError for an unknown one."""
        return self.library(f"{dictionary}/" if dictionary else "").reading


class Shelf:
    """The run in a folder, for one request at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.duckdb"
        self._lock = threading.Lock()
        self._book: Book | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Book]:
        """The run as it is now. Raises StoreError where there is none, or nothing in it yet."""
        with self._lock, unwritten(self.path) as free:
            # Before it is opened: of a snapshot that is replaced in between, the next request sees that it is newer.
            stamp = _stamp(self.path if free else snapshot_path(self.path))
            if self._book is None or self._book.stamp != stamp:
                self._book = self._read(stamp)
            try:
                yield self._book
            finally:
                self._book.store.shrink()

    def _read(self, stamp: Stamp) -> Book:
        if self._book is not None:  # first: a process that opens a file twice gets what it opened before
            self._book.close()
            self._book = None
        store = Store.read(self.path)
        try:
            return Book(store, stamp)
        except BaseException:
            store.db.close()
            raise


@contextlib.contextmanager
def unwritten(path: Path) -> Iterator[bool]:
    """Whether nobody is writing a file; if so, nobody begins to until this ends.

    The lock is of DuckDB's own kind (POSIX). A process loses all such locks on a file when it closes any descriptor of
    it. At the end of this DuckDB's is lost too, on purpose: its connection stays, is not read from, and bars no writer.
    """
    with contextlib.ExitStack() as held:
        try:
            fcntl.lockf(held.enter_context(path.open("rb")), fcntl.LOCK_SH | fcntl.LOCK_NB)
            free = True
        except OSError:  # a writer has it; or there is no such file, which opening it will say
            free = False
        yield free


def _stamp(path: Path) -> Stamp:
    """What differs once a file was changed or replaced, or the log beside it, which a writer that was killed leaves."""
    found = []
    for part in (path, path.with_name(path.name + ".wal")):
        try:
            known = part.stat()
            found += [known.st_mtime_ns, known.st_size, known.st_ino]
        except OSError:
            found += [0, 0, 0]
    return path, found[0], tuple(found[1:])
