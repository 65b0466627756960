"""Labels grouped by meaning: found again, the same each time, named by what is central, and safe to print; kept with the
run, so that readers show, filter and export them."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from autointerp import categories as grouping
from autointerp import categories_stage as stage
from autointerp import edits, export, report, search, show
from autointerp.edits import Edit
from autointerp.errors import ConfigError
from autointerp.report import Reading
from autointerp.simulators.sentences import sentence_vectors
from autointerp.store import Store
from autointerp.tally import Bar

from . import test_cli
from .test_cli import Autointerp, refused, sets
from .test_exchange import HOSTILE
from .test_pipeline import finished_run, query, quick_overrides, quick_settings, run_all

autointerp = test_cli.autointerp  # the fixture that runs a command in this process

KINDS = {
    "months": ["january, february", "july, august", "october, november", "march and april", "the month of december"],
    "animals": ["dogs", "cats and kittens", "horses, cows", "the word \"sheep\"", "wolves"],
    "money": ["dollars", "gold coin, silver coin", "currency", "cents, dollar", "bank notes"],
}  # fmt: skip
LABELS = [text for kind in zip(*KINDS.values(), strict=True) for text in kind]


@pytest.fixture(scope="module")
def reading(tiny: dict[str, Path]) -> Reading:
    """A finished run with a label of each kind in turn, one of them twice, and a feature without a label."""
    with Store.read(finished_run(tiny) / "run.duckdb") as store:
        found = report.read(store)
    return with_labels(found, [*LABELS, LABELS[0], None])


def with_labels(found: Reading, labels: Sequence[str | None]) -> Reading:
    """The reading with these labels, features numbered from 0; grades are .1, .2, ..."""
    like = found.labels[0]
    return replace(found, labels=[
        replace(like, feature=i, feature_id=f"demo/{i:03}", label=text, r_rank=i / 10 if text else None)
        for i, text in enumerate(labels)
    ])  # fmt: skip


def encoder(texts: Sequence[str]) -> NDArray[np.float32]:
    return sentence_vectors(texts, Bar(enabled=False))


def kinds_of(category: grouping.Category) -> set[str]:
    return {kind for kind, texts in KINDS.items() for label in category.features if label.label in texts}


def test_kinds_of_things_are_found_again(reading: Reading) -> None:
    found = grouping.categories([reading], encoder, 3)
    assert [len(category.features) for category in found] == [6, 5, 5]
    assert sorted(kind for category in found for kind in kinds_of(category)) == sorted(KINDS), "one kind in each"
    assert all(0 < category.cohesion < 1 for category in found)


def test_a_category_is_called_by_its_most_central_labels(reading: Reading) -> None:
    for category in grouping.categories([reading], encoder, 3):
        texts = list(dict.fromkeys(label.label for label in category.features))
        points = encoder([", ".join(grouping.clauses(text or "")) for text in texts])
        near = (points @ points.sum(axis=0)).tolist()
        assert near == sorted(near, reverse=True)
        assert category.name == " / ".join(map(str, texts[:2]))


def test_every_feature_with_a_label_is_in_one_category_and_no_other(reading: Reading) -> None:
    found = grouping.categories([reading], encoder)
    assert len(found) == 4, "the square root of 15 different labels"
    ids = [label.feature_id for category in found for label in category.features]
    assert sorted(ids) == [label.feature_id for label in reading.labels if label.label]
    (both,) = (category for category in found if LABELS[0] in [label.label for label in category.features])
    assert {"demo/000", "demo/015"} <= {label.feature_id for label in both.features}, "the same label twice"


def test_the_order_of_features_changes_nothing(reading: Reading) -> None:
    turned = replace(reading, labels=reading.labels[::-1])
    assert grouping.as_json(grouping.categories([turned], encoder)) == grouping.as_json(
        grouping.categories([reading], encoder)
    )


def test_grades_of_a_category_are_of_labels_that_have_one(reading: Reading) -> None:
    labels = [replace(label, r_rank=None if label.feature % 2 else 0.5) for label in reading.labels]
    found = grouping.categories([replace(reading, labels=labels)], encoder, 3)
    assert [category.r_rank for category in found] == [0.5, 0.5, 0.5]
    none = replace(reading, labels=[replace(label, r_rank=None) for label in reading.labels])
    assert {category.r_rank for category in grouping.categories([none], encoder, 3)} == {None}


def test_more_labels_than_are_grouped_join_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    points = np.repeat(np.eye(3, 8), [50, 30, 20], axis=0) + random.normal(0, 0.1, (100, 8))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    want = [list(range(50)), list(range(50, 80)), list(range(80, 100))]
    assert sorted(grouping.group(points, 3)) == want
    monkeypatch.setattr(grouping, "GROUPED", 12)
    assert sorted(grouping.group(points, 3)) == want


def test_equal_vectors_are_one_group_however_many_are_asked_for() -> None:
    points = np.tile(np.eye(1, 4, dtype=np.float32), (6, 1))
    assert grouping.group(points, 3) == [list(range(6))]


@pytest.mark.parametrize("n", [0, 16])
def test_a_number_of_categories_that_cannot_be_is_refused(reading: Reading, n: int) -> None:
    with pytest.raises(ConfigError, match=rf"{n} categories: expected 1 to 15"):
        grouping.categories([reading], encoder, n)


def test_a_run_without_labels_is_refused_and_one_label_is_a_category(reading: Reading) -> None:
    with pytest.raises(ConfigError, match="no labels to group"):
        grouping.categories([with_labels(reading, [None, None])], encoder)
    (only,) = grouping.categories([with_labels(reading, ["dogs", None])], encoder)
    assert (only.name, len(only.features), round(only.cohesion, 5)) == ("dogs", 1, 1.0)


def test_hostile_labels_do_not_steer_the_terminal(reading: Reading) -> None:
    found = grouping.categories([with_labels(reading, [*HOSTILE, *LABELS])], encoder)
    screen = StringIO()
    grouping.to_terminal(found, Console(file=screen, width=100))
    assert not {c for c in screen.getvalue() if not c.isprintable() and c != "\n"}


def test_no_two_categories_have_the_same_name_and_every_name_can_be_shown() -> None:
    """One label reads like two others with a stroke between them; others hold what no address and no line may."""
    points = {"a": 0, "b": 0, "a / b": 1, "zero\0byte\n" + "long" * 100: 2, "": 3}

    def vectors(texts: Sequence[str]) -> NDArray[np.float32]:
        assert len(texts) == len(points)
        return np.eye(4, 8, dtype=np.float32)[[points[text] for text in sorted(points)]]

    names = sorted(kind.name for kind in grouping.kinds(points, vectors, 4))
    assert len(set(names)) == 4 and {"(empty)", "a / b (2)"} < set(names)
    assert all(name.isprintable() and len(name) <= 2 * grouping.CALLED + 3 for name in names)


# -- kept with the run -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """The folder of a finished run of its own."""
    return Path(shutil.copytree(finished_run(tiny), tmp_path / "results" / "t"))


def of(folder: Path) -> dict[int, str | None]:
    """Feature -> its category, as readers know it."""
    with Store.read(folder / "run.duckdb") as store:
        return {label.feature: label.category for label in report.read(store).labels}


def test_a_run_leaves_every_label_in_a_category(run: Path) -> None:
    with Store.read(run / "run.duckdb") as store:
        reading = report.read(store)
        kept, made = grouping.known([reading], store), grouping.categories([reading], stage.vectors(run, Bar(False)))
        assert [row["stage"] for row in store.stages(reading.run.run_id)][-1] == "categories"
    assert grouping.as_json(kept) == grouping.as_json(made), "what is kept is what would be found"
    assert {label.feature: label.category for label in reading.labels} == {
        label.feature: category.name for category in made for label in category.features
    }
    assert reading.summary["categories"] == {
        category.name: {"labels": len(category.features), "mean": category.r_rank, "n": len(category.features)}
        for category in made
    }


def test_labels_of_people_are_grouped_by_the_next_run(tiny: dict[str, Path], run: Path) -> None:
    settings = quick_settings(tiny, run.parent)
    before = of(run)
    with Store.create(run / "run.duckdb") as store:  # so bad a label that any other is chosen before it
        feature = store.chosen(store.latest_run())[0].feature
        store.db.execute("UPDATE score SET value = -1, lo = NULL, hi = NULL WHERE feature = ? AND split = 'select'", [feature])
    edits.append(run, [Edit(f"sae/{feature}", "label", "red and golden castles")])
    said = run_all(settings)
    assert said[-1].startswith(f"categories: {len(before)} ok"), said
    after = of(run)
    assert None not in after.values() and after != before
    with Store.read(run / "run.duckdb") as store:
        assert "red and golden castles" in [label.label for label in report.read(store).labels]
    assert run_all(settings)[-1] == "categories: nothing pending"
    assert of(run) == after


def test_a_grouping_that_no_run_refers_to_is_not_kept(run: Path) -> None:
    with Store.create(run / "run.duckdb") as store:
        store.db.execute("UPDATE explanation SET label = label || ' and more' WHERE status = 'ok'")
        assert stage.pending(store, store.latest_runs())
        stage.run(store, store.latest_runs(), Bar(False))
        assert not stage.pending(store, store.latest_runs())
        assert store.query("SELECT count(DISTINCT grouping_id), count(*) FROM category")[1] == [(1, 6)]


def test_without_an_encoder_a_run_keeps_its_grades_and_says_what_is_missing(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = quick_overrides(tiny, tmp_path / "r", features__select="0,3")
    monkeypatch.setattr("autointerp.simulators.sentences.PACKAGED_ENCODER", "none")
    monkeypatch.setattr(stage, "PACKAGED_ENCODER", "none")

    def gone(name: str) -> object:
        raise ConfigError("encoder none is not installed")

    monkeypatch.setattr("autointerp.simulators.sentences._encoder", gone)
    ended = autointerp("run", *sets(overrides))
    folder = tmp_path / "r/t"
    assert ended.code == 0 and "categories: left out: encoder none is not installed" in ended.err, ended
    assert (folder / "report.html").is_file() and (folder / "labels.parquet").is_file()
    assert set(of(folder).values()) == {None}
    assert query(folder / "run.duckdb", "SELECT count(*) > 0 FROM score WHERE split = 'score'") == [(True,)]
    refused(autointerp("top", folder, "--category", "x"), "not grouped", "autointerp categories")
    refused(autointerp("categories", folder), "encoder none is not installed")
    monkeypatch.undo()
    assert autointerp("categories", folder).code == 0
    assert None not in of(folder).values()


def test_the_command_shows_what_is_kept_and_makes_it_where_it_is_not(autointerp: Autointerp, run: Path) -> None:
    ended = autointerp("categories", run, "--json")
    found = json.loads(ended.out)
    assert set(found[0]) == {"category", "n", "cohesion", "r_rank", "features"}
    assert sum(len(category["features"]) for category in found) == sum(category["n"] for category in found) == 6
    assert ended.err == "", "nothing was pending"
    with Store.create(run / "run.duckdb") as store:
        store.db.execute("UPDATE run SET grouping_id = NULL")
        store.db.execute("DELETE FROM category")
    assert set(of(run).values()) == {None}
    once = autointerp("categories", run, "-n", "1", "--json")
    assert len(json.loads(once.out)) == 1 and set(of(run).values()) == {None}, "another number is not kept"
    again = autointerp("categories", run, "--json")
    assert again.err.startswith("categories: 6 ok") and json.loads(again.out) == found
    assert set(of(run).values()) == {category["category"] for category in found}
    assert "cohesion" in autointerp("categories", run).out


def test_a_run_that_is_being_written_is_grouped_and_not_changed(autointerp: Autointerp, run: Path) -> None:
    kept = json.loads(autointerp("categories", run, "--json").out)
    with Store.create(run / "run.duckdb") as store:
        store.db.execute("UPDATE run SET grouping_id = NULL")
        store.publish()
        command = [sys.executable, "-m", "autointerp", "categories", str(run), "--json"]
        busy = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert busy.returncode == 0 and "categories: not kept: " in busy.stderr and json.loads(busy.stdout) == kept
    assert set(of(run).values()) == {None}


# -- what readers do with them -----------------------------------------------------------------------------------------


def test_labels_are_looked_for_within_a_category(autointerp: Autointerp, run: Path) -> None:
    known = of(run)
    name = str(sorted(set(known.values()), key=str)[0])
    ended = autointerp("top", run, "--category", name.upper(), "--by", "density", "--json")
    found = json.loads(ended.out)
    assert {label["feature"] for label in found} == {feature for feature, category in known.items() if category == name}
    assert {label["category"] for label in found} == {name}
    assert json.loads(autointerp("search", "a", run, "--category", name, "--json").out)
    refused(autointerp("top", run, "--category", "no such thing"), "no category with 'no such thing'")


def test_show_report_and_exports_have_the_category(autointerp: Autointerp, run: Path) -> None:
    known = of(run)
    feature, name = next(iter(known.items()))
    assert f"category {name}" in autointerp("show", feature, run).out
    assert json.loads(autointerp("show", feature, run, "--json").out)["chosen"]["category"] == name
    assert set(json.loads(autointerp("report", run, "--json").out)["categories"]) == set(known.values())
    autointerp("report", run, "--format", "md")
    assert "## Categories" in (run / "report.md").read_text()
    autointerp("report", run)
    page = (run / "report.html").read_text()
    assert len(re.findall("<h2>Categories</h2>", page)) == 1
    autointerp("export", run, "-f", "csv")
    with (run / "labels.csv").open(newline="") as file:
        rows = {int(row["feature"]): export.from_cell(row["category"]) for row in csv.DictReader(file)}
    assert rows == known


def test_a_name_is_text_to_the_terminal_and_no_formula(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.create(run / "run.duckdb") as store:
        for n, text in enumerate(HOSTILE):
            store.db.execute("UPDATE explanation SET label = ? WHERE feature % ? = ? AND status = 'ok'", [text, len(HOSTILE), n])
        store.db.execute("UPDATE explanation SET label = '=1+1' WHERE label = (SELECT min(label) FROM explanation)")
        stage.run(store, store.latest_runs(), Bar(False))
        reading = report.read(store)
        for label in reading.labels:
            assert label.category is not None and label.category.isprintable()
            found = show.look_up(reading, store, str(label.feature), 1)
            screen = StringIO()
            show.to_terminal(found, Console(file=screen, width=200))
            assert "category" in screen.getvalue() and "\x1b" not in screen.getvalue()
        path = export.write(reading, "csv", run)
        assert search.top([reading], "density", 99, search.Filter(category=""))
    with path.open(newline="") as file:
        assert not [row for row in csv.DictReader(file) if row["category"].startswith(export.RISKY[:4])]
