"""The run's database: all SQL, and nothing else knows SQL.

One process writes; DuckDB lets no other process open a file that is being written, so the writer publishes snapshots
(an atomic rename) at checkpoints and readers fall back on the latest. Opening a file applies pending migrations.
"""

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from autointerp.errors import StoreBusy, StoreError
from autointerp.migrations import STEPS
from autointerp.rows import (
    TABLES,
    Call,
    Certified,
    Draw,
    Explanation,
    Fit,
    Neighbour,
    Passage,
    Row,
    Run,
    Score,
    Split,
    Verdict,
)

# What a full or failing disk, or too little memory, makes DuckDB raise; anything else is a bug of ours.
_DISK = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.FatalException)

PACKED_ROWS = 4096  # passages packed at a time
CACHED_MB = 32  # of a file that is left to DuckDB where memory is short: with more, a feature is not read any faster

# On select the candidates of a feature are compared under one design. Labels of people join them later: a design with
# `+n` after its id compares a feature's candidates with the first n of them (keys.joined), and the last to be scored
# counts. NULL where nothing is scored.
DESIGNS = """
    SELECT feature, max_by(scorer_id, coalesce(try_cast(split_part(scorer_id, '+', 2) AS INTEGER), 0)) AS scorer_id
    FROM score
    WHERE collection_id = $collection AND split = 'select' AND metric = 'r_rank' AND simulator_id = $simulator
      AND split_part(scorer_id, '+', 1) = $scorer AND feature IN (SELECT unnest($features))
    GROUP BY feature
"""

# What readers join first: for each feature the candidate that did best on select, by a judge's detection where one
# chooses, then by r_rank. Of equals an explainer's comes before one of people: it was there first; then by id.
CHOSEN = f"""
    SELECT e.*, s.value AS select_score, s.reason AS select_reason
    FROM explanation e LEFT JOIN ({DESIGNS}) c USING (feature) LEFT JOIN score s
      ON s.explanation_id = e.explanation_id AND s.split = 'select' AND s.metric = 'r_rank'
     AND s.simulator_id = $simulator AND s.scorer_id = c.scorer_id
    LEFT JOIN score d
      ON d.explanation_id = e.explanation_id AND d.split = 'select' AND d.metric = 'detection_f1'
     AND d.simulator_id = $detector AND d.scorer_id = c.scorer_id
    WHERE e.collection_id = $collection AND e.status = 'ok' AND list_contains($explainers, e.explainer_id)
      AND e.feature IN (SELECT unnest($features))
    QUALIFY row_number() OVER (
        PARTITION BY e.feature
        ORDER BY d.value DESC NULLS LAST, s.value DESC NULLS LAST, e.author IS NOT NULL, e.explanation_id
    ) = 1
"""


class Sparse(NamedTuple):
    """Passages with sparse values: row i of `passage` has entries offsets[i]:offsets[i + 1] of the flat columns."""

    passage: NDArray[np.int64]
    offsets: NDArray[np.int64]
    positions: NDArray[np.uint8]
    values: NDArray[np.float32]


class Excerpts(NamedTuple):
    """Kept firing passages of one feature, ordered by rank."""

    why: str
    passage: NDArray[np.int64]
    peak: NDArray[np.float32]
    firing: Sparse


class PanelRows(NamedTuple):
    """The panel of one split, with every activation: entry j says feature[j] fires at position[j] of its passage."""

    passage: NDArray[np.int64]
    offsets: NDArray[np.int64]
    features: NDArray[np.int32]
    positions: NDArray[np.uint8]
    values: NDArray[np.float32]


class PassageRow(NamedTuple):
    """A kept passage, ready to be read: token ids, positions that do not count, and where it is from."""

    document_id: str
    split: Split
    start: int
    tokens: list[int]
    masked: list[int]


Span = tuple[int, int]  # numbers of a first and a last row of a table


class Store:
    """An open database. Use `Store.create`, `Store.read` or `Store.memory`, and close it (it is a context manager)."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, path: Path | None, snapshot_of: Path | None = None
    ) -> None:
        self.db, self.path, self.snapshot_of = connection, path, snapshot_of
        self._file: BinaryIO | None = None
        self.transacting = False  # True within `transaction`

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def memory(cls) -> "Store":
        """An empty store that lives in memory."""
        store = cls(duckdb.connect(":memory:"), None)
        store._migrate()
        return store

    @classmethod
    def create(cls, path: Path) -> "Store":
        """Open for writing, creating the file and its folder where needed, and apply pending migrations.

        Raises StoreBusy while another process writes it, StoreError for a file that is not ours or is newer than us.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise StoreError(f"cannot create {path.parent}: {problem.strerror}") from None
        known, store = path.exists(), None
        try:
            store = cls(_connect(path, read_only=False), path)
            store._migrate()
        except BaseException:
            if store is not None:
                with contextlib.suppress(*_DISK):
                    store.db.close()
            if not known:  # half a database would be in the way of the next start
                for leftover in (path, path.with_suffix(".duckdb.wal")):
                    leftover.unlink(missing_ok=True)
            raise
        return store

    @classmethod
    def read(cls, path: Path) -> "Store":
        """Open for reading; while a run writes it, its latest snapshot. Raises StoreError when there is neither."""
        if not path.is_file():
            raise StoreError(f"no run at {path.parent}: expected {path.name} in it; `autointerp run` makes one")
        try:
            store = cls(_connect(path, read_only=True), path)
        except StoreBusy:
            snapshot = snapshot_path(path)
            if not snapshot.is_file():
                raise
            store = cls(_connect(snapshot, read_only=True), snapshot, snapshot_of=path)
        try:
            if store._version() < len(STEPS):
                store.db.close()
                cls.create(path).close()  # an older schema: migrate it, then read
                store = cls(_connect(path, read_only=True), path)
        except BaseException:
            store.db.close()
            raise
        return store

    def _version(self) -> int:
        """Number of migrations applied. Raises StoreError for a schema that this version does not know."""
        try:
            applied = [name for (name,) in self.db.execute("SELECT name FROM migration ORDER BY n").fetchall()]
        except duckdb.CatalogException:
            tables = self._one("SELECT count(*) FROM duckdb_tables()")
            if tables and tables[0]:
                raise StoreError(f"{self.path} is a DuckDB file, but not of autointerp") from None
            return 0
        known = [name for name, _ in STEPS]
        if applied != known[: len(applied)]:
            raise StoreError(
                f"{self.path} has schema {applied[-1]}, newer than this autointerp knows: upgrade autointerp"
            )
        return len(applied)

    def _migrate(self) -> None:
        done = self._version()
        if done == len(STEPS):
            return
        with self.transaction():
            self.db.execute(
                "CREATE TABLE IF NOT EXISTS migration (n INTEGER, name VARCHAR, applied TIMESTAMP DEFAULT now())"
            )
            for n, (name, sql) in list(enumerate(STEPS))[done:]:
                self.db.execute(sql)
                self.db.execute("INSERT INTO migration (n, name) VALUES (?, ?)", [n, name])
            for table in TABLES:
                self.db.execute(f"COMMENT ON TABLE {table.table} IS {_quoted((table.__doc__ or '').splitlines()[0])}")
                for column, comment in table.comments().items():
                    self.db.execute(f"COMMENT ON COLUMN {table.table}.{column} IS {_quoted(comment)}")

    def close(self) -> None:
        """Close the file; a writer's snapshot is removed, because readers can open the file itself again."""
        with contextlib.suppress(*_DISK):  # closing checkpoints; where that fails the log is replayed at the next start
            self.db.close()
        if self._file is not None:
            self._file.close()
        if self.path is not None and self.snapshot_of is None:
            snapshot_path(self.path).unlink(missing_ok=True)

    def shrink(self, mb: int = CACHED_MB) -> None:
        """Give back what DuckDB keeps of the file in memory beyond so many MB; it may take more again at any time."""
        with contextlib.suppress(duckdb.OutOfMemoryException):  # more is in use, or is nowhere but in memory
            self.db.execute(f"SET memory_limit = '{mb}MB'")  # a limit frees at once what is above it
        self.db.execute("RESET memory_limit")

    def discard_if_empty(self) -> None:
        """Close, and delete the file (and its folder, if nothing else is in it) when nothing was ever collected."""
        try:
            found = self._one("SELECT count(*) FROM collection")
        except duckdb.Error:  # the database gave up, on a full disk perhaps: what it holds is left to the next start
            found = None
        self.close()
        if self.path is not None and found == (0,):
            for leftover in (self.path, self.path.with_suffix(".duckdb.wal")):
                leftover.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        with self._writing():
            self.db.execute("BEGIN")
        self.transacting = True
        try:
            yield
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                self.db.execute("ROLLBACK")
            raise
        finally:
            self.transacting = False
        try:
            with self._writing():
                self.db.execute("COMMIT")
        except duckdb.TransactionException as problem:  # what a commit raises where the log cannot be written
            raise StoreError(f"{self.path} cannot be written: {str(problem).splitlines()[0]}") from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what a full disk makes DuckDB raise into one line."""
        try:
            yield
        except _DISK as problem:
            raise StoreError(
                f"{self.path} cannot be written: {str(problem).splitlines()[0]}; what was finished before is kept: "
                "make room, and run the same command again"
            ) from None

    def publish(self) -> None:
        """Checkpoint, and put a snapshot beside the file for readers while this process goes on writing.

        Raises StoreError where the disk is full.
        """
        if self.path is None:
            return
        with self._writing():
            self.db.execute("CHECKPOINT")
        # The file is read through one descriptor that stays open until the database is closed: closing any
        # descriptor of a file drops this process' POSIX locks on it, DuckDB's among them.
        if self._file is None:
            self._file = self.path.open("rb")
        scratch = self.path.with_suffix(".writing")
        self._file.seek(0)
        try:
            with scratch.open("wb") as copy:
                shutil.copyfileobj(self._file, copy, 2**20)
            scratch.replace(snapshot_path(self.path))
        except OSError as problem:
            scratch.unlink(missing_ok=True)
            raise StoreError(f"cannot write a snapshot of {self.path}: {problem.strerror or problem}") from None

    # -- writing ---------------------------------------------------------------------------------------------------

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows of one table."""
        if rows:
            names = [f.name for f in fields(rows[0])]  # type: ignore[arg-type]
            self.add_columns(type(rows[0]), {name: [getattr(row, name) for row in rows] for name in names})

    def add_columns(self, table: type[Row], columns: Mapping[str, Any]) -> None:
        """Append rows given by column: arrays, lists, or arrow arrays (for columns that hold lists)."""
        incoming = pa.table({name: _arrow(column) for name, column in columns.items()})
        rows = PACKED_ROWS if table is Passage else max(len(incoming), 1)
        for start in range(0, len(incoming), rows):
            part = incoming.slice(start, rows)
            if table is Passage:
                tokens = packed(*ragged(part["tokens"]))
                part = part.set_column(part.column_names.index("tokens"), "tokens", tokens)
            self.db.register("incoming", part)
            with self._writing():
                self.db.execute(f"INSERT INTO {table.table} BY NAME SELECT * FROM incoming")
            self.db.unregister("incoming")

    def add_calls(self, rows: Sequence[Call]) -> None:
        """Append calls, those that are there already left out."""
        known = self.calls([row.call_id for row in rows])
        with self.transaction():
            self.add([row for row in rows if row.call_id not in known])

    def ask(self, run: Run) -> None:
        """Record what is asked for, as the latest run."""
        known = self._one("SELECT features, grouping_id FROM run WHERE run_id = ?", [run.run_id])
        if known is not None:  # the selection is known from an earlier stage, and how labels were grouped at its end
            features, grouping = known
            run = replace(
                run, features=features if run.features is None else run.features,
                grouping_id=run.grouping_id or grouping,
            )  # fmt: skip
        with self.transaction():
            self.db.execute("DELETE FROM run WHERE run_id = ?", [run.run_id])
            self.add([run])

    # -- reading: runs and collections -----------------------------------------------------------------------------

    def latest_run(self, dictionary: str | None = None) -> Run:
        """What was asked last; of a configuration with several dictionaries the first, or the one of this name.

        Raises StoreError in a database without a run, or without that dictionary.
        """
        runs = self.latest_runs()
        if dictionary is None:
            return runs[0]
        found = next((run for run in runs if run.dictionary == dictionary), None)
        if found is None:
            known = ", ".join(run.dictionary for run in runs)
            raise StoreError(f"{self.path}: no dictionary {dictionary!r} in the latest run, which has {known}")
        return found

    def latest_runs(self) -> list[Run]:
        """What was asked last: one run per dictionary of the configuration, in its order."""
        found = self._rows(
            "WITH last AS (SELECT settings, code_version FROM run ORDER BY asked_at DESC LIMIT 1) "
            "SELECT * EXCLUDE asked_at FROM run SEMI JOIN last USING (settings, code_version) "
            "QUALIFY row_number() OVER (PARTITION BY place ORDER BY asked_at DESC) = 1 ORDER BY place"
        )
        if not found:
            raise StoreError(f"{self.path} holds no run yet")
        return [Run(**row) for row in found]

    def runs(self) -> list[Run]:
        """Everything that was ever asked for, the latest first."""
        return [Run(**row) for row in self._rows("SELECT * EXCLUDE asked_at FROM run ORDER BY asked_at DESC")]

    def collection(self, collection_id: str) -> dict[str, Any] | None:
        """The collection's row as a dict, or None."""
        found = self._rows("SELECT * FROM collection WHERE collection_id = ?", [collection_id])
        return found[0] if found else None

    def collections(self) -> list[dict[str, Any]]:
        """Every collection's row as a dict, by dictionary."""
        return self._rows("SELECT * FROM collection ORDER BY dictionary, collection_id")

    def fit(self, collection_id: str) -> Fit | None:
        """What the check found of the collection of this id, or None where none was made."""
        found = self._rows(
            "SELECT * EXCLUDE checked_at FROM fit WHERE collection_id = ? ORDER BY checked_at DESC LIMIT 1",
            [collection_id],
        )
        return Fit(**found[0]) if found else None

    def encoded_features(self, collection_id: str) -> list[int] | None:
        """The features that were encoded, ascending; None where that is all of them."""
        encoded = self.features(collection_id)["encoded"]
        return None if encoded.all() else np.flatnonzero(encoded).tolist()

    def largest_token(self, collection_id: str) -> int:
        """The largest token id of a collection; 0 where it has none."""
        found = self._one("SELECT coalesce(max(token_id), 0) FROM token WHERE collection_id = ?", [collection_id])
        return int(found[0]) if found else 0

    def rows_of(self, table: type[Row], collection_id: str, order: str) -> pa.Table:
        """All rows of a table that belong to a collection, as arrow columns (enums as text), by the columns `order`."""
        enums = {"split", "why"} & {f.name for f in fields(table)}  # type: ignore[arg-type]
        text = f"REPLACE ({', '.join(f'{e}::VARCHAR AS {e}' for e in sorted(enums))})" if enums else ""
        found = self._arrow(
            f"SELECT * {text} FROM {table.table} WHERE collection_id = ? ORDER BY {order}", [collection_id]
        )
        if table is Passage:
            tokens = lists(*unpacked(found["tokens"].to_pylist()))
            found = found.set_column(found.column_names.index("tokens"), "tokens", tokens)
        return found

    def stages(self, run_id: str) -> list[dict[str, Any]]:
        """Every execution of a stage for this run, oldest first; `failed` is parsed."""
        found = self._rows("SELECT * FROM stage WHERE run_id = ? ORDER BY ended_at", [run_id])
        return [row | {"failed": json.loads(row["failed"])} for row in found]

    def features(self, collection_id: str) -> dict[str, NDArray[Any]]:
        """Counters of all features, by index: n_tokens, n_passages, n_documents, sum, max, each [3, feature].

        Features that were not encoded (collect.features) have zeros; `encoded` [feature] says which were.
        """
        names = ("n_tokens", "n_passages", "n_documents", "sum", "max")
        table = self._arrow(
            f"SELECT feature, {', '.join(names)} FROM feature WHERE collection_id = ? ORDER BY feature", [collection_id]
        )
        row = self._one("SELECT width FROM collection WHERE collection_id = ?", [collection_id])
        width, feature = (row[0] if row else 0), table["feature"].to_numpy()
        found: dict[str, NDArray[Any]] = {"encoded": np.zeros(width, dtype=bool)}
        found["encoded"][feature] = True
        for name in names:
            flat = _flat(table[name])
            found[name] = np.zeros((3, width), dtype=flat.dtype)
            found[name][:, feature] = flat.reshape(-1, 3).T
        return found

    def top_tokens(self, collection_id: str, feature: int) -> list[int]:
        """The feature's heaviest token ids, heaviest first."""
        found = self._one(
            "SELECT top_tokens FROM feature WHERE collection_id = ? AND feature = ?", [collection_id, feature]
        )
        return list(found[0]) if found else []

    def histogram(self, collection_id: str, feature: int) -> list[int]:
        """Firing tokens per half-octave of activation."""
        found = self._one(
            "SELECT histogram FROM feature WHERE collection_id = ? AND feature = ?", [collection_id, feature]
        )
        return list(found[0]) if found else []

    def related(self, collection_id: str) -> set[int]:
        """The features whose neighbours are known."""
        rows = self.db.execute("SELECT DISTINCT feature FROM neighbour WHERE collection_id = ?", [collection_id])
        return {feature for (feature,) in rows.fetchall()}

    def neighbours(self, collection_id: str, feature: int) -> list[Neighbour]:
        """The features near one, nearest first: by firing, then by decoder."""
        found = self._rows(
            "SELECT * FROM neighbour WHERE collection_id = ? AND feature = ? ORDER BY kind DESC, rank",
            [collection_id, feature],
        )
        return [Neighbour(**row) for row in found]

    def tokens(self, collection_id: str) -> tuple[dict[int, bytes], dict[int, int]]:
        """Per token id: the bytes it stands for, and its usable occurrences in explain."""
        rows = self.db.execute(
            "SELECT token_id, piece, n_explain FROM token WHERE collection_id = ?", [collection_id]
        ).fetchall()
        return {t: p for t, p, _ in rows}, {t: n for t, _, n in rows}

    # -- reading: passages -----------------------------------------------------------------------------------------

    def excerpts(self, collection_id: str, feature: int, split: Split, why: str) -> Excerpts:
        """The kept excerpts of one feature in one split: why = 'top' or 'sample', by rank."""
        table = self._arrow(
            "SELECT passage_id, peak, positions, activations FROM excerpt "
            "WHERE collection_id = ? AND feature = ? AND split = ? AND why = ? ORDER BY rank",
            [collection_id, feature, split, why],
        )
        passage = table["passage_id"].to_numpy()
        offsets = _offsets(table["positions"])
        firing = Sparse(passage, offsets, _flat(table["positions"]), _flat(table["activations"]))
        return Excerpts(why, passage, table["peak"].to_numpy(), firing)

    def example_set(self, collection_id: str, feature: int) -> dict[tuple[str, str], Excerpts]:
        """Every kept excerpt of one feature, by (split, why), in one query."""
        table = self._arrow(
            "SELECT split::VARCHAR AS split, why::VARCHAR AS why, passage_id, peak, positions, activations "
            "FROM excerpt WHERE collection_id = ? AND feature = ? ORDER BY split, why, rank",
            [collection_id, feature],
        )
        kinds = list(zip(table["split"].to_pylist(), table["why"].to_pylist(), strict=True))
        found: dict[tuple[str, str], Excerpts] = {}
        for kind in dict.fromkeys(kinds):
            part = table.slice(kinds.index(kind), kinds.count(kind))
            passage = part["passage_id"].to_numpy()
            firing = Sparse(passage, _offsets(part["positions"]), _flat(part["positions"]), _flat(part["activations"]))
            found[kind] = Excerpts(kind[1], passage, part["peak"].to_numpy(), firing)
        return found

    def panel(self, collection_id: str, split: Split) -> PanelRows:
        """The panel passages of one split, ordered by id, with all activations."""
        table = self._arrow(
            "SELECT passage_id, features, positions, activations FROM panel "
            "WHERE collection_id = ? AND split = ? ORDER BY passage_id",
            [collection_id, split],
        )
        return PanelRows(
            table["passage_id"].to_numpy(), _offsets(table["features"]), _flat(table["features"]),
            _flat(table["positions"]), _flat(table["activations"]),
        )  # fmt: skip

    def passages(
        self, collection_id: str, ids: NDArray[np.int64] | None = None, rows: Sequence[int] | None = None
    ) -> dict[int, PassageRow]:
        """Kept passages by id: all of them, or those asked for.

        rows  numbers of the rows that those asked for are among, if that is known
        """
        where, parameters = "", list[Any]([collection_id])
        if ids is not None:
            # In two steps, because passages of a feature lie together: a few rows by their number cost less than
            # a scan of all texts by id.
            rows = self._rows_of_passages(collection_id, ids) if rows is None else rows
            where, parameters = " AND rowid IN (SELECT unnest(?))", [collection_id, rows]
        table = self._arrow(
            "SELECT passage_id, document_id, split::VARCHAR AS split, start, tokens, masked "
            f"FROM passage WHERE collection_id = ?{where} ORDER BY passage_id",
            parameters,
        )
        offsets, flat = unpacked(table["tokens"].to_pylist())
        tokens = [flat[i:j].tolist() for i, j in itertools.pairwise(offsets.tolist())]
        found, document, split, start, masked = (
            table[name].to_pylist() for name in ("passage_id", "document_id", "split", "start", "masked")
        )
        return dict(zip(found, map(PassageRow, document, split, start, tokens, masked), strict=True))

    def _rows_of_passages(self, collection_id: str, ids: NDArray[np.int64]) -> list[int]:
        self.db.register("wanted", pa.table({"id": pa.array(np.unique(ids))}))
        rows = self._arrow(
            "SELECT rowid FROM passage WHERE collection_id = ? AND passage_id IN (SELECT id FROM wanted)",
            [collection_id],
        )
        self.db.unregister("wanted")
        found: list[int] = rows["rowid"].to_pylist()
        return found

    def document_sources(self, collection_id: str) -> dict[str, str]:
        """Where each document came from, by id."""
        rows = self.db.execute("SELECT document_id, source FROM document WHERE collection_id = ?", [collection_id])
        return dict(rows.fetchall())

    # -- reading: labels, simulations, scores ----------------------------------------------------------------------

    def explanations(
        self, collection_id: str, explainer_ids: Sequence[str], features: Sequence[int]
    ) -> list[Explanation]:
        """Every candidate of these explainers for these features, failures included, by feature and id."""
        found = self._rows(
            "SELECT * FROM explanation WHERE collection_id = ? AND list_contains(?, explainer_id) "
            "AND feature IN (SELECT unnest(?)) ORDER BY feature, explainer_id, draw",
            [collection_id, list(explainer_ids), list(features)],
        )
        return [Explanation(**row) for row in found]

    def explained(self, collection_id: str, explainer_id: str) -> set[int]:
        """Features that this explainer has answered for, well or not."""
        rows = self.db.execute(
            "SELECT DISTINCT feature FROM explanation WHERE collection_id = ? AND explainer_id = ?",
            [collection_id, explainer_id],
        )
        return {feature for (feature,) in rows.fetchall()}

    def chosen(self, run: Run) -> list[Explanation]:
        """For each selected feature, the candidate of the run that did best on select, by feature."""
        found = self._rows(
            f"SELECT * EXCLUDE (select_score, select_reason) FROM ({CHOSEN}) ORDER BY feature", chosen_parameters(run)
        )
        return [Explanation(**row) for row in found]

    def drawn(
        self, explanation_ids: Sequence[str], scorer_id: str, split: Split, span: Span | None = None
    ) -> dict[str, list[Draw]]:
        """The scoring sets already drawn, by explanation; all of their rows are within `span`, where that is known."""
        found = self._rows(
            "SELECT * FROM draw WHERE explanation_id IN (SELECT unnest(?)) AND scorer_id = ? AND split = ? "
            f"AND {_within(span)} ORDER BY explanation_id, stratum, kind, passage_id",
            [list(explanation_ids), scorer_id, split],
        )
        result: dict[str, list[Draw]] = {}
        for row in found:
            result.setdefault(row["explanation_id"], []).append(Draw(**row))
        return result

    def simulated(self, explanation_ids: Sequence[str], simulator_id: str, split: Split) -> dict[str, set[int]]:
        """Passages that already have a simulation row, by explanation."""
        rows = self.db.execute(
            "SELECT explanation_id, list(passage_id) FROM simulation WHERE explanation_id IN (SELECT unnest(?)) "
            "AND simulator_id = ? AND split = ? GROUP BY explanation_id",
            [list(explanation_ids), simulator_id, split],
        )
        return {explanation: set(passages) for explanation, passages in rows.fetchall()}

    def simulations(
        self, explanation_id: str, simulator_id: str, split: Split, span: Span | None = None
    ) -> tuple[Sparse, dict[int, str]]:
        """Predictions of one label by passage id, and the passages without one with the reason.

        span  where all of their rows are, if that is known
        """
        asked = [explanation_id, simulator_id, split]
        where = "explanation_id = ? AND simulator_id = ? AND split = ?"
        if span is None:  # those of a label lie together: what is far from the first and the last is not read
            ends = self._one(f"SELECT min(rowid), max(rowid) FROM simulation WHERE {where}", asked)
            span = ends if ends is not None and ends[0] is not None else (0, -1)
        near = f"{_within(span)} AND {where}"
        table = self._arrow(
            f"SELECT passage_id, positions, predicted FROM simulation WHERE {near} AND status = 'ok' "
            "ORDER BY passage_id",
            asked,
        )
        failed = self.db.execute(
            f"SELECT passage_id, reason FROM simulation WHERE {near} AND status <> 'ok'", asked
        ).fetchall()
        sparse = Sparse(
            table["passage_id"].to_numpy(),
            _offsets(table["positions"]),
            _flat(table["positions"]),
            _flat(table["predicted"]),
        )
        return sparse, dict(failed)

    def scored(self, score_ids: Sequence[str]) -> set[str]:
        """Which of these scores exist."""
        rows = self.db.execute("SELECT score_id FROM score WHERE score_id IN (SELECT unnest(?))", [list(score_ids)])
        return {score for (score,) in rows.fetchall()}

    def scores(self, run: Run, split: Split) -> list[Score]:
        """Every score of the run's explainers, simulator and design on one split, by feature and metric."""
        found = self._rows(
            f"SELECT s.* FROM score s JOIN explanation e USING (explanation_id) LEFT JOIN ({DESIGNS}) c "
            "ON c.feature = s.feature WHERE s.collection_id = $collection AND s.split = $split "
            "AND s.simulator_id = $grader AND s.scorer_id = if($split = 'select', c.scorer_id, $scorer) "
            "AND list_contains($explainers, e.explainer_id) AND s.feature IN (SELECT unnest($features)) "
            "ORDER BY s.feature, s.explanation_id, s.metric",
            _asked(run) | {"split": split, "grader": run.grader(split), "explainers": run.explainer_ids},
        )
        return [Score(**row) for row in found]

    def judged(self, run: Run, split: Split) -> list[Score]:
        """Every score of the run's judges on its design, on one split, by feature and metric."""
        found = self._rows(
            f"SELECT s.* FROM score s LEFT JOIN ({DESIGNS}) c ON c.feature = s.feature "
            "WHERE s.collection_id = $collection AND s.split = $split AND list_contains($judges, s.simulator_id) "
            "AND s.scorer_id = if($split = 'select', c.scorer_id, $scorer) AND s.feature IN (SELECT unnest($features)) "
            "ORDER BY s.feature, s.explanation_id, s.metric",
            _asked(run) | {"split": split, "judges": run.judge_ids or []},
        )
        return [Score(**row) for row in found]

    def concluded(self, verdict_ids: Sequence[str]) -> set[str]:
        """Which of these verdicts exist."""
        rows = self.db.execute(
            "SELECT verdict_id FROM verdict WHERE verdict_id IN (SELECT unnest(?))", [list(verdict_ids)]
        )
        return {verdict for (verdict,) in rows.fetchall()}

    def verdicts(self, run: Run, thresholds_id: str) -> dict[str, Verdict]:
        """The verdicts of a run's simulator and design by these thresholds, by explanation."""
        found = self._rows(
            "SELECT * FROM verdict WHERE collection_id = ? AND simulator_id = ? AND scorer_id = ? "
            "AND thresholds_id = ? ORDER BY feature, explanation_id",
            [run.collection_id, run.simulator_id, run.scorer_id, thresholds_id],
        )
        return {row["explanation_id"]: Verdict(**row) for row in found}

    def certificate(self, simulator_id: str) -> Certified | None:
        """The latest certificate of a simulator; None where it is uncertified."""
        found = self._rows(
            "SELECT * EXCLUDE certified_at FROM certificate WHERE simulator_id = ? ORDER BY certified_at DESC LIMIT 1",
            [simulator_id],
        )
        return Certified(**found[0]) if found else None

    def calls(self, call_ids: Sequence[str]) -> dict[str, Call]:
        """Recorded requests and replies, by id; ids that were never asked are not in it."""
        if not call_ids:
            return {}
        found = self._rows("SELECT * FROM call WHERE call_id IN (SELECT unnest(?))", [list(call_ids)])
        return {row["call_id"]: Call(**row) for row in found}

    def spending(self) -> list[dict[str, Any]]:
        """The whole ledger by stage and model: calls, those refused or unusable, repairs, tries, tokens, dollars.

        `usd` adds up the calls whose price is known; `unpriced` counts the others.
        """
        return self._rows(
            "SELECT split_part(purpose, ' ', 1) AS stage, provider, base_url, model, count(*) AS calls, "
            "count(*) FILTER (WHERE status <> 'ok') AS unusable, count(repair_of) AS repairs, "
            "sum(tries)::BIGINT AS tries, "
            "coalesce(sum(input_tokens), 0)::BIGINT AS input_tokens, "
            "coalesce(sum(cached_tokens), 0)::BIGINT AS cached_tokens, "
            "coalesce(sum(output_tokens), 0)::BIGINT AS output_tokens, coalesce(sum(usd), 0) AS usd, "
            "count(*) FILTER (WHERE usd IS NULL) AS unpriced "
            "FROM call GROUP BY stage, provider, base_url, model ORDER BY ALL"
        )

    # -- reading: anything -----------------------------------------------------------------------------------------

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of any SELECT. Raises StoreError with DuckDB's own first line for bad SQL."""
        try:
            result = self.db.execute(sql)
            return [column[0] for column in result.description or []], result.fetchall()
        except duckdb.Error as problem:
            raise StoreError(" ".join(str(problem).split("\n\n")[0].split())) from None

    def _one(self, sql: str, parameters: Any = None) -> tuple[Any, ...] | None:
        # fetchone would leave the result open, and an open result blocks the connection.
        rows = self.db.execute(sql, parameters).fetchall()
        return rows[0] if rows else None

    def _rows(self, sql: str, parameters: Any = None) -> list[dict[str, Any]]:
        result = self.db.execute(sql, parameters)
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def _arrow(self, sql: str, parameters: Any = None) -> pa.Table:
        return self.db.sql(sql, params=parameters).to_arrow_table()


def chosen_parameters(run: Run) -> dict[str, Any]:
    """What the query CHOSEN asks for."""
    return _asked(run) | {"explainers": run.explainer_ids, "detector": run.detector_id}


def snapshot_path(path: Path) -> Path:
    """Where the writer of `path` publishes its snapshots."""
    return path.with_name(path.stem + ".snapshot.duckdb")


def row_dict(row: Row) -> dict[str, Any]:
    """A row as a plain dict."""
    return asdict(row)  # type: ignore[call-overload]


def _connect(path: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    try:
        # Data is untrusted: no extension is loaded, and SQL typed by a user reaches no other file.
        config: dict[str, Any] = {"enable_external_access": "false", "autoload_known_extensions": "false"}
        return duckdb.connect(str(path), read_only=read_only, config=config)
    except duckdb.Error as problem:
        text = str(problem)
        if "Could not set lock" in text:
            holder = re.search(r"PID (\d+)", text)
            who = f" (process {holder[1]})" if holder else ""
            raise StoreBusy(f"{path} is in use by another run{who}: wait for it, or choose another run.name") from None
        raise StoreError(f"{path} cannot be opened: {text.splitlines()[0]}") from None


def lists(offsets: NDArray[np.int64], flat: NDArray[Any], null: NDArray[np.bool_] | None = None) -> pa.Array:
    """An arrow column of lists from offsets and flat values, without a Python loop; NULL where `null` is true."""
    mask = None if null is None or not null.any() else pa.array(null)
    return pa.LargeListArray.from_arrays(pa.array(offsets, type=pa.int64()), pa.array(flat), mask=mask)


def packed(offsets: NDArray[np.int64], ids: NDArray[np.int32]) -> pa.Array:
    """Token ids as bytes, one value per list: LEB128, seven bits a byte, the low ones first.

    A bit-packed list of ids takes 16 bits a token; these bytes compress (zstd) to 12.6 where ids are drawn at random
    from Zipf's law, and text is more regular than that.
    """
    n = np.ones(len(ids), dtype=np.int64)
    for bits in (7, 14, 21, 28):
        n += ids >= 1 << bits
    place = np.concatenate([[0], np.cumsum(n)])
    flat = np.zeros(place[-1], dtype=np.uint8)
    for i in range(5):
        more = n > i
        flat[place[:-1][more] + i] = (ids[more] >> 7 * i) & 127 | np.where(n[more] > i + 1, 128, 0)
    buffers = [None, pa.py_buffer(place[offsets]), pa.py_buffer(flat)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def unpacked(blobs: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Offsets and flat ids of `packed` values."""
    flat = np.frombuffer(b"".join(blobs), dtype=np.uint8).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(np.fromiter(map(len, blobs), dtype=np.int64, count=len(blobs)))])
    last = flat < 128
    first = np.flatnonzero(np.concatenate([[True], last[:-1]])) if len(flat) else np.empty(0, dtype=np.int64)
    shift = 7 * (np.arange(len(flat)) - np.repeat(first, np.diff(np.append(first, len(flat)))))
    ids = np.add.reduceat((flat & 127) << shift, first) if len(first) else flat
    return np.concatenate([[0], np.cumsum(last)])[ends], ids.astype(np.int32)


def _arrow(column: Any) -> pa.Array:
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return column
    if isinstance(column, np.ndarray) and column.ndim == 2:
        return lists(np.arange(0, column.size + 1, column.shape[1], dtype=np.int64), column.reshape(-1))
    return pa.array(column)


def ragged(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Offsets and flat values of a column of lists: the inverse of `lists`."""
    return _offsets(column), _flat(column)


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(chunks) if chunks else np.empty(0, dtype=column.type.value_type.to_pandas_dtype())


def _offsets(column: pa.ChunkedArray) -> NDArray[np.int64]:
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
    return (
        np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64) if lengths else np.zeros(1, np.int64)
    )


def _within(span: Span | None) -> str:
    """A condition on rows."""
    return "true" if span is None else f"rowid BETWEEN {int(span[0])} AND {int(span[1])}"


def _asked(run: Run) -> dict[str, Any]:
    """What a run asks for, as parameters of a query; `simulator` is the one that grades on select."""
    return {
        "collection": run.collection_id, "simulator": run.grader("select"), "scorer": run.scorer_id,
        "features": run.features or [],
    }  # fmt: skip


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
