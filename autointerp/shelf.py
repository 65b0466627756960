"""A run that many requests read: what has been read of it stays in memory, its file is open only during a request.

DuckDB lets nobody write a file that somebody has open. A page that is left open must not stop the next run, so the
connection is given back after every request; when the file has changed by the next one, the run is read anew.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp import report
from autointerp.errors import FeatureError
from autointerp.report import Reading
from autointerp.show import Library
from autointerp.store import Store
from autointerp.store_catalog import Catalog

Stamp = tuple[Path, int, int]  # file that was read, its time of change (ns), its size


class Book:
    """A run as it was at one moment."""

    def __init__(self, store: Store, stamp: Stamp) -> None:
        self.store, self.stamp = store, stamp
        self.readings = report.read_all(store)
        self.catalog = Catalog(self.readings, store)
        self.libraries = {reading.collection["dictionary"]: Library(reading, store) for reading in self.readings}

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
    """The run in a folder, opened for one request at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.duckdb"
        self._lock = threading.Lock()
        self._book: Book | None = None

    @contextmanager
    def open(self) -> Iterator[Book]:
        """The run as it is now. Raises StoreError where there is none, or nothing in it yet."""
        with self._lock, Store.read(self.path) as store:
            assert store.path is not None
            known = store.path.stat()
            stamp = (store.path, known.st_mtime_ns, known.st_size)
            if self._book is None or self._book.stamp != stamp:
                fresh = Book(store, stamp)
                if self._book is not None:
                    self._book.catalog.close()
                self._book = fresh
            else:  # what was read keeps its store, which goes on with the new connection
                self._book.store.db, self._book.store.snapshot_of = store.db, store.snapshot_of
            yield self._book
