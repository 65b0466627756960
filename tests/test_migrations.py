"""A database of the first release opens under this one: nothing is lost, nothing reads differently."""

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from autointerp import report
from autointerp.errors import StoreError
from autointerp.migrations import STEPS
from autointerp.rows import TABLES, Passage
from autointerp.store import Store, lists

from . import test_cli
from .test_cli import Autointerp, refused
from .test_pipeline import finished_run

autointerp = test_cli.autointerp  # the fixture that runs a command in this process

FIRST, _ = STEPS[0]
# Tables that came after the first release.
LATER = {
    "category", "fit", "judgement", "label_edit", "lens", "neighbour", "output_label", "verdict", "certificate",
}  # fmt: skip


def first_schema(path: Path) -> duckdb.DuckDBPyConnection:
    """An empty database as the first release made it."""
    db = duckdb.connect(str(path))
    db.execute("CREATE TABLE migration (n INTEGER, name VARCHAR, applied TIMESTAMP DEFAULT now())")
    db.execute(STEPS[0][1])
    db.execute("INSERT INTO migration (n, name) VALUES (0, ?)", [FIRST])
    return db


def tables(db: duckdb.DuckDBPyConnection) -> list[str]:
    return sorted(name for (name,) in db.execute("SELECT table_name FROM duckdb_tables()").fetchall())


def rows(db: duckdb.DuckDBPyConnection, table: str, columns: list[str]) -> list[str]:
    found = db.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
    return sorted(map(repr, found))


def columns(db: duckdb.DuckDBPyConnection, table: str) -> list[str]:
    return [row[0] for row in db.execute(f"DESCRIBE {table}").fetchall()]


def _insert_passages(db: duckdb.DuckDBPyConnection, found: list[tuple[Any, ...]]) -> None:
    names = ("collection_id", "passage_id", "document_id", "split", "start", "tokens", "masked")
    db.register("incoming", pa.table(dict(zip(names, map(list, zip(*found))))))
    db.execute("INSERT INTO passage SELECT * FROM incoming")
    db.unregister("incoming")


EDGES = [0, 1, 127, 128, 129, 255, 256, 16_383, 16_384, 16_385, 49_151, 65_535, 65_536, 128_255, 199_999, 200_000]


def random_passages(seed: int, n: int = 200) -> list[tuple[int, list[int], list[int]]]:
    """(id, tokens, masked) of passages of every length, the empty one included, with small and large ids mixed."""
    random = np.random.default_rng(seed)
    found: list[tuple[int, list[int], list[int]]] = [(1, [], []), (2, EDGES, [0, 15]), (3, EDGES[::-1], [])]
    found += [(10 + i, [edge], [0]) for i, edge in enumerate(EDGES)]
    for i in range(n):
        ids = np.floor(200_001 ** random.random(int(random.integers(1, 65)))).astype(int) - 1
        masked = sorted(random.choice(len(ids), size=int(random.integers(0, len(ids))), replace=False).tolist())
        found.append((2**62 + i, ids.tolist(), masked))
    return found


OLD_RUNS = [("r1", "c1", "2026-01-01"), ("r2", "c2", "2026-01-02"), ("r3", "nowhere", "2026-01-03")]


def fill(db: duckdb.DuckDBPyConnection) -> dict[str, list[tuple[int, list[int], list[int]]]]:
    """Rows in every table: three runs, one of which collected nothing, and two collections; the passages of each."""
    for run, collection, asked in OLD_RUNS:
        db.execute("INSERT INTO run VALUES (?, 'n', '{}', '0.1.0', ?, ['e'], 's', 'd', [1, 2], ?)", [run, collection, asked])
    db.execute("INSERT INTO run VALUES ('r0', 'n', '{}', '0.1.0', 'c1', [], 's', 'd', NULL, '2025-01-01')")
    db.execute("INSERT INTO stage VALUES ('r1', 'collect', 1.5, 10, 2, '{\"empty\": 3}', 99, '2026-01-01')")
    passages = {}
    for i, (collection, name) in enumerate((("c1", "first"), ("c2", "second"))):
        db.execute(
            "INSERT INTO collection VALUES (?, 'm', 'h', ?, 'topk', 8, 'text', '{}', 128, 64, [1,2,3], [4,5,6], [7,8,9], "
            "[1,1,1], 5)", [collection, name],
        )  # fmt: skip
        passages[collection] = random_passages(i)
        splits = ("explain", "select", "score")
        _insert_passages(
            db, [(collection, p, "00ff", splits[p % 3], 64, tokens, masked) for p, tokens, masked in passages[collection]]
        )
        db.execute("INSERT INTO document VALUES (?, '00ff', 'a.txt:3', 'score', 70)", [collection])
        db.execute("INSERT INTO token VALUES (?, 200000, '\\xFF\\x00a'::BLOB, 12)", [collection])
        db.execute(
            "INSERT INTO feature VALUES (?, 3, ? || '/3', [1,2,3], [1,2,3], [1,2,3], [0.5,1.5,2.5], [0.1,0.2,0.3], [0,1], "
            "[200000])", [collection, name],
        )  # fmt: skip
        db.execute("INSERT INTO excerpt VALUES (?, 3, 'explain', 'top', 0, 2, 0.25, [0, 5], [0.25, 0.125])", [collection])
        db.execute("INSERT INTO panel VALUES (?, 'select', 3, [1, 3], [0, 0], [0.5, 0.25])", [collection])
        db.execute(
            "INSERT INTO explanation VALUES (? || 'x', ?, 3, 'e', 'llm', 'm', 0, 'ok', 'a label', NULL, 'k'), "
            "(? || 'y', ?, 3, 'e', 'mined', NULL, 1, 'refused', NULL, 'echo', NULL)", [collection] * 4,
        )  # fmt: skip
        db.execute("INSERT INTO draw VALUES (? || 'x', 'd', 'score', 2, 'A', 'fires', 3, 1.5)", [collection])
        db.execute(
            "INSERT INTO simulation VALUES (? || 'x', 's', 'score', 2, 'ok', NULL, [1], [0.5]), "
            "(? || 'x', 's', 'score', 3, 'failed', 'why', NULL, NULL)", [collection] * 2,
        )  # fmt: skip
        db.execute(
            "INSERT INTO score VALUES (? || 'z', ? || 'x', ?, 3, 'score', 's', 'd', 'r_rank', 'ok', 0.5, 0.1, 0.9, 9, NULL), "
            "(? || 'w', ? || 'x', ?, 3, 'score', 's', 'd', 'null', 'skipped', NULL, NULL, NULL, 0, 'none')",
            [collection] * 6,
        )
    db.execute("INSERT INTO call VALUES ('k', 'local', 'm', 'm', 'p', 0, '[]', 'reply', 1, 0, 2, 0.0, 5.5, 1, '2026-01-01')")
    return passages


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, list[str]]]:
    """A filled database of the first release: its path, its passages, and all rows by table."""
    path = tmp_path / "run.duckdb"
    with first_schema(path) as db:
        passages = fill(db)
        before = {table: rows(db, table, columns(db, table)) for table in tables(db) if table != "migration"}
    return path, passages, before


Old = tuple[Path, dict[str, Any], dict[str, list[str]]]


def test_every_table_of_the_first_schema_is_filled_here(old: Old) -> None:
    assert all(old[2].values())
    assert set(old[2]) == {table.table for table in TABLES} - LATER


def opened(path: Path, how: str) -> None:
    (Store.read if how == "read" else Store.create)(path).close()


@pytest.mark.parametrize("how", ["read", "create"])
def test_no_row_and_no_value_is_lost(old: Old, how: str) -> None:
    path, _, before = old
    with first_schema(path.with_name("empty.duckdb")) as db:
        known = {table: columns(db, table) for table in before}
    opened(path, how)
    with duckdb.connect(str(path), read_only=True) as db:
        assert tables(db) == sorted([*before, *LATER, "migration"])
        for table, expected in before.items():
            kept = [name for name in known[table] if (table, name) != ("passage", "tokens")]
            assert set(known[table]) <= set(columns(db, table))
            if table == "passage":
                assert len(rows(db, table, kept)) == len(expected)
            else:
                assert rows(db, table, kept) == expected, table
        assert db.execute("SELECT name FROM migration ORDER BY n").fetchall() == [(name,) for name, _ in STEPS]


def test_tokens_and_masks_read_the_same(old: Old) -> None:
    path, passages, _ = old
    with Store.create(path) as store:
        for collection, expected in passages.items():
            found = store.passages(collection)
            assert {p: (row.tokens, row.masked) for p, row in found.items()} == {
                p: (tokens, masked) for p, tokens, masked in expected
            }
            assert {(row.document_id, row.start) for row in found.values()} == {("00ff", 64)}
            assert {p: row.split for p, row in found.items()} == {
                p: ("explain", "select", "score")[p % 3] for p, *_ in expected
            }
            some = np.array([p for p, *_ in expected[::7]])
            assert store.passages(collection, some) == {p: found[p] for p in sorted(some.tolist())}


def test_what_is_new_is_filled_in(old: Old) -> None:
    path, _, _ = old
    opened(path, "create")
    with duckdb.connect(str(path), read_only=True) as db:
        assert db.execute("SELECT collection_id, whole_id, shards FROM collection ORDER BY ALL").fetchall() == [
            ("c1", "c1", None), ("c2", "c2", None)
        ]  # fmt: skip
        assert db.execute("SELECT run_id, dictionary, place FROM run ORDER BY ALL").fetchall() == [
            ("r0", "first", 0), ("r1", "first", 0), ("r2", "second", 0), ("r3", "", 0)
        ]  # fmt: skip


def test_a_migrated_database_has_the_columns_and_types_of_a_new_one(old: Old, tmp_path: Path) -> None:
    opened(old[0], "create")
    opened(tmp_path / "new.duckdb", "create")
    described = []
    for path in (old[0], tmp_path / "new.duckdb"):
        with duckdb.connect(str(path), read_only=True) as db:
            sql = "SELECT table_name, column_name, data_type, is_nullable, comment FROM duckdb_columns() ORDER BY ALL"
            described.append(db.execute(sql).fetchall())
    assert described[0] == described[1]


def test_a_migrated_database_takes_new_rows(old: Old) -> None:
    path, _, _ = old
    with Store.create(path) as store:
        n = len(store.passages("c1"))
        store.add_columns(Passage, {
            "collection_id": ["c1"], "passage_id": np.array([7]), "document_id": ["00ff"], "split": ["score"],
            "start": np.array([0], dtype=np.int32),
            "tokens": lists(np.array([0, 3]), np.array([5, 200_000, 128], dtype=np.int32)),
            "masked": lists(np.array([0, 1]), np.array([2], dtype=np.uint8)),
        })  # fmt: skip
        found = store.passages("c1")
        assert len(found) == n + 1
        assert (found[7].tokens, found[7].masked) == ([5, 200_000, 128], [2])
        assert found[2].tokens == EDGES


def test_migrating_twice_is_migrating_once(old: Old) -> None:
    path, _, _ = old
    opened(path, "create")
    with duckdb.connect(str(path), read_only=True) as db:
        before = {table: rows(db, table, columns(db, table)) for table in tables(db)}
    for how in ("create", "read"):
        opened(path, how)
    with duckdb.connect(str(path), read_only=True) as db:
        assert {table: rows(db, table, columns(db, table)) for table in tables(db)} == before


@pytest.mark.parametrize("how", ["read", "create"])
def test_an_empty_database_of_the_first_schema_migrates(tmp_path: Path, how: str) -> None:
    path = tmp_path / "run.duckdb"
    first_schema(path).close()
    opened(path, how)
    with Store.read(path) as store:
        assert store.collections() == []
        with pytest.raises(StoreError, match="no run yet"):
            store.latest_runs()


def test_a_migration_that_fails_leaves_the_file_as_it_was(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, before = old
    broken = (*STEPS, ("m999_broken", "CREATE TABLE extra (x INTEGER); SELECT * FROM no_such_table;"))
    monkeypatch.setattr("autointerp.store.STEPS", broken)
    with pytest.raises(Exception, match="no_such_table"):
        opened(path, "create")
    monkeypatch.undo()
    with duckdb.connect(str(path), read_only=True) as db:
        assert {table: rows(db, table, columns(db, table)) for table in before} == before
        assert tables(db) == sorted([*before, "migration"])
    opened(path, "create")


# -- a whole run of the first release ----------------------------------------------------------------------------------


@pytest.fixture
def downgraded(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """The finished run's folder with its database written over into the first schema."""
    folder = Path(shutil.copytree(finished_run(tiny), tmp_path / "old"))
    new = tmp_path / "new.duckdb"
    (folder / "run.duckdb").rename(new)
    with Store.read(new) as store:
        collections = [row["collection_id"] for row in store.collections()]
        passages = {c: store.passages(c) for c in collections}
    with first_schema(folder / "run.duckdb") as db:
        db.execute(f"ATTACH '{new}' AS new (READ_ONLY)")
        for table in (table.table for table in TABLES if table.table not in LATER):
            if table != "passage":
                names = ", ".join(columns(db, f"main.{table}"))
                db.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM new.{table}")
        for collection, found in passages.items():
            _insert_passages(
                db, [(collection, p, r.document_id, r.split, r.start, r.tokens, r.masked) for p, r in found.items()]
            )
        # The first release had one [dictionary].
        for run_id, text in db.execute("SELECT run_id, settings FROM run").fetchall():
            settings = json.loads(text)
            settings["dictionary"] = settings["dictionary"][0]
            settings.pop("engine", None)
            settings["collect"].pop("features", None)
            db.execute("UPDATE run SET settings = ? WHERE run_id = ?", [json.dumps(settings), run_id])
    new.unlink()
    return folder


@pytest.fixture
def unjudged(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """The finished run's folder without verdicts, categories and lens, which the first release did not give."""
    folder = Path(shutil.copytree(finished_run(tiny), tmp_path / "unjudged"))
    with duckdb.connect(str(folder / "run.duckdb")) as db:
        assert db.execute("DELETE FROM verdict").fetchall() != [(0,)]
        assert db.execute("DELETE FROM category").fetchall() != [(0,)]
        assert db.execute("DELETE FROM lens").fetchall() != [(0,)]
    return folder


def test_readers_say_of_an_old_run_what_they_say_of_a_new_one(
    autointerp: Autointerp, unjudged: Path, downgraded: Path
) -> None:
    new = unjudged
    ended = autointerp("report", downgraded, "--json")
    assert ended.code == 0, ended
    assert json.loads(ended.out) == json.loads(autointerp("report", new, "--json").out)
    with Store.read(new / "run.duckdb") as store:
        features = report.read(store).run.features
    assert features
    for feature in features[:3]:
        ended = autointerp("show", feature, downgraded, "--json")
        assert ended.code == 0, ended
        assert json.loads(ended.out) == json.loads(autointerp("show", feature, new, "--json").out)
    ended = autointerp("report", downgraded)
    assert ended.code == 0, ended
    assert (downgraded / "report.html").read_text().count("<tr") > 3


def test_an_old_run_is_exported(autointerp: Autointerp, unjudged: Path, downgraded: Path, tmp_path: Path) -> None:
    outputs = []
    for folder, name in ((downgraded, "old.jsonl"), (unjudged, "new.jsonl")):
        outputs.append(tmp_path / name)
        assert autointerp("export", folder, "-f", "jsonl", "-o", outputs[-1]).code == 0
    assert outputs[0].read_text() == outputs[1].read_text()
    assert outputs[0].read_text()


def test_a_collection_of_the_first_release_cannot_be_merged_and_a_line_says_so(
    autointerp: Autointerp, downgraded: Path, tmp_path: Path
) -> None:
    with duckdb.connect(str(downgraded / "run.duckdb")) as db:
        for collection, text in db.execute("SELECT collection_id, settings FROM collection").fetchall():
            settings = json.loads(text)
            settings.pop("run", None)  # the first release did not keep the seed here
            db.execute("UPDATE collection SET settings = ? WHERE collection_id = ?", [json.dumps(settings), collection])
    refused(
        autointerp("merge", downgraded / "run.duckdb", "-o", tmp_path / "out" / "m.duckdb"), "0.1.0", "collect it again"
    )
    assert not (tmp_path / "out").exists()


def test_a_schema_of_a_later_release_is_refused_and_stays(autointerp: Autointerp, old: Old) -> None:
    path, _, _ = old
    opened(path, "create")
    with duckdb.connect(str(path)) as db:
        db.execute("INSERT INTO migration (n, name) VALUES (999, 'm999_later')")
    before = path.read_bytes()
    refused(autointerp("report", path.parent), "m999_later", "upgrade")
    assert path.read_bytes() == before


def test_a_token_id_of_three_bytes_is_kept(tmp_path: Path) -> None:
    ids = [2**21 - 1, 2**21 - 2, 0]
    with first_schema(tmp_path / "run.duckdb") as db:
        db.execute("INSERT INTO passage VALUES ('c', 1, '00', 'explain', 0, ?, [])", [ids])
    with Store.create(tmp_path / "run.duckdb") as store:
        assert store.passages("c")[1].tokens == ids
