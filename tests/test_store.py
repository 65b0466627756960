"""What must never be wrong is said in the schema; one process writes, and readers are never kept out."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pytest

from autointerp import migrations
from autointerp.errors import StoreBusy, StoreError
from autointerp.rows import (
    TABLES,
    Call,
    Certified,
    Collection,
    Document,
    Draw,
    Excerpt,
    Explanation,
    Feature,
    Fit,
    Grouped,
    Judgement,
    LabelEdit,
    Lens,
    Neighbour,
    OutputLabel,
    Panel,
    Passage,
    Row,
    Run,
    Score,
    Simulation,
    Stage,
    Token,
    Verdict,
)  # fmt: skip
from autointerp.store import Store, lists, packed, snapshot_path, unpacked

EXPLANATION = Explanation("e", "c", 1, "x", "mined", None, 0, "ok", "a label", None, None)
SIMULATION = Simulation("e", "s", "score", 5, "ok", None, [0, 3], [0.5, 2.0])
SCORE = Score("sc", "e", "c", 1, "score", "s", "d", "r_rank", "ok", 0.5, 0.4, 0.6, 100, None)
RUN = Run("r", "t", "{}", "0", "c", ["x"], "s", "d", None, "d", 0)
ROWS: tuple[Row, ...] = (
    RUN,
    Stage("r", "collect", 1.5, 10, 2, "{}", 3.0),
    Collection(
        "c", "m", "h", "d", "topk", 2, "sotu", "{}", 128, 64, [9, 8, 7], [3, 2, 1], [1, 1, 1], [1, 0, 1], 4, "w", ["1/2"]
    ),
    Fit("c", "misfits", 0.6, 31.5, 2032, 16, ["wrong 'layer'"], [], '[{"what": "as configured"}]'),
    Document("c", "doc'ument", "ünï.txt:3", "select", 100),
    Passage("c", 2**62, "doc", "explain", 64, [1, 2, 3], []),
    Token("c", 7, b"\xf0\x9f\x00'", 12),
    Feature("c", 1, "d/1", [1, 2, 3], [1, 1, 1], [1, 1, 1], [0.5, 1.0, 2.0], [0.5, 0.0, 1.0], [0, 1], [7]),
    Excerpt("c", 1, "score", "sample", 65535, -5, 2.5, [0, 255], [0.5, 2.5]),
    Panel("c", "score", 9, [1, 1, 2], [0, 255, 3], [0.5, 0.25, 1.0]),
    Neighbour("c", 1, "firing", 0, 2, 0.25),
    Lens("c", 1, [" tax", " levy"], [4.5, 3.25], ["!"], [-2.5]),
    EXPLANATION,
    OutputLabel("o", "c", 1, "l", "output", "m", 0.5, "ok", "say 'tax'", None, ["tax", "levy"], [], "k"),
    LabelEdit("i", "d/1", "up", "a 'label'", "human", None, "ana", datetime(2026, 1, 2), "edits.jsonl", "too_long"),
    Draw("e", "d", "select", 9, "B", "claimed", 12.5, 0.5),
    SIMULATION,
    Judgement("e", "j", "d", "select", 9, "detection", "B", "ok", None, True, None),
    SCORE,
    Verdict("v", "e", "c", 1, "s", "d", "t", "too_broad", None, '{"numbers": []}'),
    Grouped("g", 1, "e", "tax / duty", 0.5),
    Certified("s", "chat", "m", "hash", "2026-11-01", "0", '{"gates": []}'),
    Call(
        "k", "local", None, "m", "m", "explain 1", 0, "[]", "re'ply", "ok", None, None, 5, 0, 6, 0.0, 1.5, 1, datetime(2026, 1, 2),
    ),
)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.memory() as found:
        yield found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "run.duckdb"


def stored(store: Store, table: str) -> list[dict]:
    names, rows = store.query(f"SELECT * FROM {table}")
    return [dict(zip(names, row, strict=True)) for row in rows]


# -- the schema says what rows.py says -----------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.table)
def test_the_columns_of_a_table_are_the_fields_of_its_record(store: Store, table: type[Row]) -> None:
    found = store.query(
        f"SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = '{table.table}'"
    )[1]
    names = [name for name, kind in found if kind != "TIMESTAMP" or name in table.comments()]
    assert names == [f.name for f in fields(table)]  # type: ignore[arg-type]


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.table)
def test_every_column_has_the_comment_of_its_field(store: Store, table: type[Row]) -> None:
    found = store.query(
        f"SELECT column_name, comment FROM duckdb_columns() WHERE table_name = '{table.table}' AND comment IS NOT NULL"
    )[1]
    assert dict(found) == table.comments()
    assert all(comment for _, comment in found)
    assert store.query(f"SELECT comment FROM duckdb_tables() WHERE table_name = '{table.table}'")[1][0][0]


def test_there_is_no_table_without_a_record(store: Store) -> None:
    names = {name for (name,) in store.query("SELECT table_name FROM duckdb_tables()")[1]}
    assert names == {t.table for t in TABLES} | {"migration"}


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.table)
def test_a_row_comes_back_as_it_went_in(store: Store, row: Row) -> None:
    store.add([row])
    (found,) = stored(store, row.table)
    if isinstance(row, Passage):
        found["tokens"] = unpacked([found["tokens"]])[1].tolist()
    for field in fields(row):  # type: ignore[arg-type]
        assert found[field.name] == getattr(row, field.name), field.name


def test_there_is_a_row_of_every_table_in_these_tests() -> None:
    assert {type(row) for row in ROWS} == set(TABLES)


# -- checks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        replace(SCORE, value=None),
        replace(SCORE, value=float("nan")),
        replace(SCORE, value=float("inf")),
        replace(SCORE, reason="why"),
        replace(SCORE, status="skipped", reason="why"),
        replace(SCORE, status="failed", value=None),
        replace(SCORE, status="fine"),
        replace(SCORE, split="train"),
        replace(EXPLANATION, label=None),
        replace(EXPLANATION, reason="why"),
        replace(EXPLANATION, status="refused", reason="why"),
        replace(EXPLANATION, status="unparsed", label=None),
        replace(SIMULATION, predicted=None),
        replace(SIMULATION, positions=None),
        replace(SIMULATION, status="unparsed", reason="why"),
        replace(SIMULATION, status="failed", reason="why", positions=None),
        replace(next(row for row in ROWS if isinstance(row, Draw)), stratum="D"),
        replace(next(row for row in ROWS if isinstance(row, Excerpt)), why="middle"),
    ],
    ids=repr,
)
def test_a_row_that_contradicts_itself_is_refused(store: Store, row: Row) -> None:
    with pytest.raises(duckdb.Error):
        store.add([row])
    assert stored(store, row.table) == []


@pytest.mark.parametrize(
    "row",
    [
        replace(SCORE, status="skipped", value=None, lo=None, hi=None, reason="constant prediction"),
        replace(EXPLANATION, status="refused", label=None, reason="refusal"),
        replace(SIMULATION, status="unparsed", positions=None, predicted=None, reason="length"),
        replace(SIMULATION, positions=[], predicted=[]),
        replace(SCORE, lo=None, hi=None),
    ],
    ids=repr,
)
def test_a_failure_or_an_empty_prediction_is_a_row(store: Store, row: Row) -> None:
    store.add([row])
    assert len(stored(store, row.table)) == 1


@pytest.mark.parametrize(
    "row",
    [replace(SCORE, lo=float("nan")), replace(SCORE, hi=float("nan")), replace(SIMULATION, predicted=[1.0])],
    ids=["lo", "hi", "lengths"],
)
def test_an_interval_that_is_nan_or_lists_of_two_lengths_are_refused(store: Store, row: Row) -> None:
    with pytest.raises(duckdb.Error):
        store.add([row])


# -- ragged columns ------------------------------------------------------------------------------------------


def test_ragged_columns_come_back_as_they_went_in(store: Store) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(0, 5, 5000)
    lengths[:3] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    features, positions = (
        random.integers(0, 4096, offsets[-1]).astype(np.int32),
        random.integers(0, 256, offsets[-1]).astype(np.uint8),
    )
    values = random.random(offsets[-1]).astype(np.float32)
    ids = np.sort(random.choice(2**62, 5000, replace=False))
    store.add_columns(Panel, {
        "collection_id": ["c"] * 5000, "split": ["score"] * 5000, "passage_id": ids,
        "features": lists(offsets, features), "positions": lists(offsets, positions), "activations": lists(offsets, values),
    })  # fmt: skip
    found = store.panel("c", "score")
    for got, expected in zip(found, (ids, offsets, features, positions, values), strict=True):
        assert got.tolist() == expected.tolist()
    assert len(store.panel("c", "select").passage) == 0


def test_passages_come_back_by_id_with_empty_lists(store: Store) -> None:
    kept = [Passage("c", i, f"d{i}", "explain", 0, list(range(i)), [0][: i % 2]) for i in range(1, 6)]
    store.add(kept)
    found = store.passages("c")
    assert {i: (row.tokens, row.masked) for i, row in found.items()} == {
        p.passage_id: (p.tokens, p.masked) for p in kept
    }
    assert set(store.passages("c", np.array([2, 4, 4, 99]))) == {2, 4}
    assert store.passages("c", np.array([], dtype=np.int64)) == {}
    assert store.passages("other") == {}


def test_excerpts_come_back_by_rank(store: Store) -> None:
    store.add([Excerpt("c", 1, "score", "top", rank, 100 + rank, 1.0, [rank], [1.0]) for rank in (2, 0, 1)])
    store.add([Excerpt("c", 1, "score", "sample", 0, 200, 1.0, [5, 6], [1.0, 0.5])])
    found = store.excerpts("c", 1, "score", "top")
    assert found.passage.tolist() == [100, 101, 102]
    assert found.firing.positions.tolist() == [0, 1, 2]
    assert store.excerpts("c", 1, "score", "sample").firing.offsets.tolist() == [0, 2]
    assert len(store.excerpts("c", 2, "score", "top").passage) == 0


def test_simulations_come_apart_into_predictions_and_failures(store: Store) -> None:
    store.add([SIMULATION, replace(SIMULATION, passage_id=4, positions=[], predicted=[])])
    store.add(
        [replace(SIMULATION, passage_id=6, status="failed", reason="length", positions=None, predicted=None)]
    )
    sparse, failed = store.simulations("e", "s", "score")
    assert sparse.passage.tolist() == [4, 5]
    assert sparse.offsets.tolist() == [0, 0, 2]
    assert sparse.values.tolist() == [0.5, 2.0]
    assert failed == {6: "length"}
    assert store.simulated(["e"], "s", "score") == {"e": {4, 5, 6}}


# -- choosing ------------------------------------------------------------------------------------------------


def test_the_candidate_that_did_best_on_select_is_chosen_whatever_it_did_on_score(store: Store) -> None:
    run = replace(RUN, features=[1, 2])
    for key, feature, on_select, on_score in (
        ("a", 1, 0.2, 0.9),
        ("b", 1, 0.6, 0.1),
        ("z", 2, 0.3, 0.0),
        ("y", 2, 0.3, 0.5),
    ):
        store.add([replace(EXPLANATION, explanation_id=key, feature=feature)])
        for split, value in (("select", on_select), ("score", on_score)):
            store.add(
                [
                    replace(
                        SCORE,
                        score_id=key + split,
                        explanation_id=key,
                        feature=feature,
                        split=split,
                        value=value,
                    )
                ]
            )
    store.add([replace(EXPLANATION, explanation_id="c", label=None, status="failed", reason="x")])
    assert [e.explanation_id for e in store.chosen(run)] == ["b", "y"]  # a tie goes to the smaller id
    assert [e.explanation_id for e in store.chosen(replace(run, features=[2]))] == ["y"]


def test_a_candidate_without_a_number_is_chosen_only_when_there_is_no_other(store: Store) -> None:
    store.add([replace(EXPLANATION, explanation_id=key) for key in ("a", "b")])
    nothing = replace(
        SCORE, split="select", explanation_id="a", status="skipped", value=None, reason="constant"
    )
    store.add([nothing, replace(SCORE, split="select", explanation_id="b", value=-0.4)])
    assert [e.explanation_id for e in store.chosen(replace(RUN, features=[1]))] == ["b"]


def test_asking_again_moves_a_run_to_the_end_and_adds_no_row(store: Store) -> None:
    other = replace(RUN, run_id="q", features=[3])
    for run in (RUN, other, RUN):
        store.ask(run)
    assert store.latest_run() == RUN
    assert len(stored(store, "run")) == 2


def test_a_store_without_a_run_says_so(store: Store) -> None:
    with pytest.raises(StoreError, match="no run"):
        store.latest_run()


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.add([EXPLANATION])
        raise ZeroDivisionError
    with pytest.raises(duckdb.Error), store.transaction():
        store.add([EXPLANATION])
        store.add([replace(SCORE, value=None)])
    assert stored(store, "explanation") == []
    store.add([EXPLANATION])  # and the store goes on
    assert len(stored(store, "explanation")) == 1


# -- files and migrations ------------------------------------------------------------------------------------


def test_an_empty_file_is_migrated_and_opening_again_changes_nothing(path: Path) -> None:
    with Store.create(path) as store:
        store.add([RUN])
        first = stored(store, "migration")
    with Store.create(path) as store:
        assert stored(store, "migration") == first
        assert store.latest_run() == RUN
    assert [row["name"] for row in first] == [name for name, _ in migrations.STEPS]


def test_an_older_schema_is_migrated_on_reading_and_keeps_its_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.create(path) as store:
        store.add([RUN])
    newer = (*migrations.STEPS, ("m999_more", "ALTER TABLE run ADD COLUMN extra INTEGER DEFAULT 7"))
    monkeypatch.setattr("autointerp.store.STEPS", newer)
    with Store.read(path) as store:
        assert store.query("SELECT run_id, extra FROM run")[1] == [("r", 7)]


def test_a_migration_that_fails_leaves_the_old_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.create(path).close()
    steps = (*migrations.STEPS, ("m998_half", "CREATE TABLE half (x INTEGER); SELECT nonsense"))
    monkeypatch.setattr("autointerp.store.STEPS", steps)
    with pytest.raises(duckdb.Error):
        Store.create(path)
    monkeypatch.undo()
    with Store.create(path) as store:
        assert store.query("SELECT * FROM duckdb_tables() WHERE table_name = 'half'")[1] == []


@pytest.mark.parametrize("how", ["create", "read"])
def test_a_newer_schema_is_refused_and_left_alone(path: Path, how: str) -> None:
    with Store.create(path) as store:
        store.db.execute("INSERT INTO migration (n, name) VALUES (99, 'm099_future')")
    with pytest.raises(StoreError, match="m099_future") as problem:
        getattr(Store, how)(path)
    assert "upgrade" in str(problem.value)
    with duckdb.connect(str(path)) as db:  # nothing holds it open
        assert db.execute("SELECT count(*) FROM migration").fetchall() == [(len(migrations.STEPS) + 1,)]


@pytest.mark.parametrize("how", ["create", "read"])
def test_a_duckdb_file_that_is_not_ours_is_refused_and_left_alone(tmp_path: Path, how: str) -> None:
    path = tmp_path / "theirs.duckdb"
    with duckdb.connect(str(path)) as db:
        db.execute("CREATE TABLE precious AS SELECT 1 AS x")
    with pytest.raises(StoreError, match="not of autointerp"):
        getattr(Store, how)(path)
    with duckdb.connect(str(path)) as db:
        assert [row[0] for row in db.execute("SELECT table_name FROM duckdb_tables()").fetchall()] == [
            "precious"
        ]


@pytest.mark.parametrize("how", ["create", "read"])
@pytest.mark.parametrize(
    "folder",
    [
        "run",
        "blocks",
    ],
)
def test_a_file_that_is_no_database_is_refused_as_such(tmp_path: Path, how: str, folder: str) -> None:
    path = tmp_path / folder / "run.duckdb"
    path.parent.mkdir()
    path.write_bytes(b"no database at all " * 1000)
    with pytest.raises(StoreError, match=r"run\.duckdb") as problem:
        getattr(Store, how)(path)
    assert not isinstance(problem.value, StoreBusy)
    assert "\n" not in str(problem.value)


def test_reading_where_nothing_is_is_refused_and_creates_nothing(path: Path) -> None:
    with pytest.raises(StoreError, match="no run at"):
        Store.read(path)
    assert not path.parent.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create"):
        Store.create(tmp_path / "file" / "run.duckdb")


# -- one writer, many readers --------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from autointerp.rows import Run
from autointerp.store import Store
store = Store.create(Path(sys.argv[1]))
run = Run("r", "t", "{}", "0", "c", ["x"], "s", "d", None, "d", 0)
if sys.argv[2] == "publish":
    store.add([run])
    store.publish()
    store.add([Run("later", "t", "{}", "0", "c", ["x"], "s", "d", None, "d", 0)])
print("ready", flush=True)
sys.stdin.read()
store.close()
"""


def writing(path: Path, mode: str) -> subprocess.Popen[str]:
    """Another process that holds the file open for writing until its stdin is closed."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_a_second_writer_is_told_who_writes_and_readers_see_the_last_snapshot(path: Path) -> None:
    child = writing(path, "publish")
    try:
        with pytest.raises(StoreBusy, match=str(child.pid)):
            Store.create(path)
        with Store.read(path) as reader:
            assert [row["run_id"] for row in stored(reader, "run")] == ["r"]
            assert reader.snapshot_of == path
        assert snapshot_path(path).is_file()  # a reader leaves it to the writer
    finally:
        child.communicate("")
    assert not snapshot_path(path).exists()
    with Store.read(path) as reader:
        assert sorted(row["run_id"] for row in stored(reader, "run")) == ["later", "r"]


def test_a_reader_or_writer_is_told_that_the_run_is_busy_before_the_first_snapshot(path: Path) -> None:
    child = writing(path, "quiet")
    try:
        with pytest.raises(StoreBusy, match=str(child.pid)):
            Store.create(path)
        with pytest.raises(StoreBusy, match="in use"):
            Store.read(path)
    finally:
        child.communicate("")
    Store.read(path).close()


def test_publishing_leaves_no_scratch_file(path: Path) -> None:
    with Store.create(path) as store:
        store.publish()
        assert {p.name for p in path.parent.iterdir()} == {path.name, snapshot_path(path).name}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_publishing_a_store_in_memory_does_nothing(store: Store) -> None:
    store.publish()
    assert store.path is None


# -- queries of users ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql", ["SELEC 1", "SELECT * FROM nothing", "SELECT nothing FROM run", "SELECT 1/'x'", "SELECT ("]
)
def test_bad_sql_is_one_line_of_what_is_wrong(store: Store, sql: str) -> None:
    with pytest.raises(StoreError) as problem:
        store.query(sql)
    assert "\n" not in str(problem.value)
    assert "Error" in str(problem.value)


def test_a_query_gives_names_and_rows(store: Store) -> None:
    assert store.query("SELECT 1 AS a, NULL AS b") == (["a", "b"], [(1, None)])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('{file}')", "SELECT * FROM '{file}'", "SELECT * FROM read_text('{file}')",
        "COPY run TO '{file}.out'", "ATTACH '{file}.db' AS other", "SELECT * FROM glob('{folder}/*')",
        "SET enable_external_access = true", "INSTALL httpfs", "LOAD httpfs", "EXPORT DATABASE '{folder}/export'",
    ],
)  # fmt: skip
def test_a_query_reaches_no_file_outside_the_store(path: Path, tmp_path: Path, sql: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    Store.create(path).close()
    before = sorted(tmp_path.rglob("*"))
    with Store.read(path) as store, pytest.raises(StoreError):
        store.query(sql.format(file=secret, folder=tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_that_is_read_cannot_be_written(path: Path) -> None:
    Store.create(path).close()
    with Store.read(path) as store, pytest.raises(StoreError, match="read-only"):
        store.query("DELETE FROM run")


def test_token_ids_of_any_size_are_packed_and_come_back() -> None:
    edges = [0, 127, 128, 2**14 - 1, 2**14, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**31 - 1]
    offsets = np.array([0, 3, 3, len(edges)], dtype=np.int64)
    back, ids = unpacked(packed(offsets, np.array(edges, dtype=np.int32)).to_pylist())
    assert (back.tolist(), ids.tolist()) == (offsets.tolist(), edges)
