"""The run that requests share: what is kept between them is never old, and never in a writer's way."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autointerp import report, show
from autointerp.errors import StoreBusy
from autointerp.shelf import Shelf
from autointerp.store import Store
from autointerp.store_places import LOW, Places, places
from tests.bench import large_run

FEATURES = 60

WRITER = """
import os, sys
from pathlib import Path
from autointerp.errors import StoreBusy
from autointerp.store import Store
path, name, killed = sys.argv[1:]
try:
    store = Store.create(Path(path))
except StoreBusy:
    sys.exit("busy")
store.db.execute("UPDATE run SET name = ?", [name])
if killed:
    os._exit(0)  # before what was committed is in the file itself: it is in the log beside it
store.close()
"""


def written(path: Path, name: str, killed: bool = False) -> bool:
    """Whether another process could write the run, giving it this name."""
    found = subprocess.run(
        [sys.executable, "-c", WRITER, str(path), name, "killed" if killed else ""], capture_output=True, text=True
    )
    assert found.returncode == 0 or found.stderr == "busy\n", found.stderr
    return found.returncode == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("shelf") / "made-up"
    large_run.write(found / "run.duckdb", FEATURES)
    return found


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made / "run.duckdb", tmp_path))


def test_a_file_that_stays_as_it_is_is_opened_once(path: Path) -> None:
    shelf = Shelf(path.parent)
    with shelf.open() as book:
        kept, answer = book.store.db, show.look_up(book.readings[0], book.store, "7", 3)
    with shelf.open() as book:
        assert book.store.db is kept and book.libraries[large_run.DICTIONARY].look_up("7", 3) == answer


def test_a_writer_is_kept_out_during_a_request_and_only_then(path: Path) -> None:
    shelf = Shelf(path.parent)
    for n in range(3):  # the first request opens the file, the second finds it open, the third finds it changed
        with shelf.open() as book:
            before = book.readings[0].run.name
            assert not written(path, f"during {n}")
            assert book.store.latest_run().name == before
        if n == 1:
            assert written(path, "between")
    with shelf.open() as book:
        assert book.readings[0].run.name == book.store.latest_run().name == "between"


def test_what_a_killed_writer_left_in_the_log_is_seen(path: Path) -> None:
    shelf = Shelf(path.parent)
    with shelf.open() as book:
        assert book.readings[0].run.name == "made-up"
    known = path.stat()
    for name in ("killed", "killed again"):
        assert written(path, name, killed=True)
        with shelf.open() as book:
            assert book.readings[0].run.name == name
    found = path.stat()
    assert (found.st_size, found.st_ino) == (known.st_size, known.st_ino)


def test_a_run_that_is_put_in_its_place_is_read(path: Path, tmp_path: Path) -> None:
    shelf = Shelf(path.parent)
    with shelf.open():
        pass
    (tmp_path / "other").mkdir()
    other = Path(shutil.copy2(path, tmp_path / "other" / "run.duckdb"))
    assert written(other, "another")
    other.replace(path)
    with shelf.open() as book:
        assert book.readings[0].run.name == "another"


def test_a_writer_in_the_way_is_said_and_then_forgotten(path: Path) -> None:
    shelf = Shelf(path.parent)
    with shelf.open() as book:
        assert not book.growing
    holds = "from autointerp.store import Store; from pathlib import Path; import sys\n"
    holds += "with Store.create(Path(sys.argv[1])): print('writing', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        for _ in range(2):
            with pytest.raises(StoreBusy), shelf.open():
                pass
        writer.stdin.close()
        assert writer.wait(60) == 0
    with shelf.open() as book:
        assert len(book.readings[0].labels) == FEATURES


def test_little_of_the_file_stays_in_memory(path: Path) -> None:
    asked = "SELECT sum(memory_usage_bytes) FROM duckdb_memory() WHERE tag = 'BASE_TABLE'"
    with Store.read(path) as store:
        store.query("SELECT sum(octet_length(tokens)) FROM passage")
        before = store.query(asked)[1][0][0]
        store.shrink(1)
        assert store.query(asked)[1][0][0] < 1e6 < before
        assert store.query("SELECT current_setting('memory_limit')") == Store.memory().query(
            "SELECT current_setting('memory_limit')"
        )


def test_what_is_in_memory_alone_is_not_given_back() -> None:
    with Store.memory() as store:
        store.db.execute("CREATE TABLE t AS SELECT hash(range) AS x FROM range(1_000_000)")
        store.shrink(1)
        assert store.query("SELECT count(DISTINCT x) FROM t")[1] == [(1_000_000,)]


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_feature_is_the_same_with_and_without_places(path: Path) -> None:
    with Store.read(path) as store:
        reading = report.read(store)
        known = places(store, reading.run)
        assert show.Library(reading, store).places is None
        for feature in range(FEATURES):
            found = show.Library(reading, store, known).look_up(str(feature), 4)
            assert found == show.look_up(reading, store, str(feature), 4)
            assert found.chosen is not None
            if found.chosen.label:
                assert {kind: len(contexts) for kind, contexts in found.contexts.items()} == dict.fromkeys(show.KINDS, 4)
            first, last = known.of(feature)[0]
            assert last - first + 1 == large_run.FIRING + large_run.CLAIMED + large_run.SILENT


def test_places_are_those_of_the_run_alone(path: Path) -> None:
    with Store.create(path) as store:
        run = report.read(store).run
        before = places(store, run)
        for column, of in (("scorer_id", "draw"), ("simulator_id", "simulation")):
            store.db.execute(f"INSERT INTO {of} SELECT * REPLACE ('other' AS {column}) FROM {of} LIMIT 500")
        store.db.execute("INSERT INTO passage SELECT * REPLACE ('other' AS collection_id) FROM passage LIMIT 500")
        for a, b in zip(places(store, run), before, strict=True):
            assert np.array_equal(a, b)


def test_passages_that_share_half_an_id_are_told_apart(path: Path) -> None:
    with Store.create(path) as store:
        run = report.read(store).run
        ids = np.array(store.query("SELECT passage_id FROM passage ORDER BY rowid LIMIT 2")[1]).ravel()
        twin = int(ids[0]) ^ (1 << 40)
        assert twin & LOW == int(ids[0]) & LOW
        store.db.execute("INSERT INTO passage SELECT * REPLACE (? AS passage_id) FROM passage WHERE passage_id = ?", [twin, int(ids[1])])
        known: Places = places(store, run)
        assert len(known.of_passages(ids)) == 3 and known.of_passages(ids[:0]) == []
        texts = show.Texts(store, run.collection_id, known)
        plain = show.Texts(store, run.collection_id)
        for passage in (*ids.tolist(), twin):
            assert texts.row(passage) == plain.row(passage)
        assert texts.row(twin).tokens == texts.row(int(ids[1])).tokens != texts.row(int(ids[0])).tokens


def test_who_looks_at_a_run_needs_no_torch() -> None:
    code = "import sys, autointerp.serve, autointerp.cli; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
