"""Labels found by text, by meaning and by metric, over a finished run, on the terminal and as JSON."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from numpy.typing import NDArray

from autointerp import cli, report, search
from autointerp.errors import ConfigError
from autointerp.report import Reading
from autointerp.search import Filter
from autointerp.simulators.sentences import sentence_vectors
from autointerp.store import Store
from autointerp.tally import Bar

from .test_exchange import HOSTILE
from .test_pipeline import finished_run

LABELS = ["days of the week", "armed conflict between nations", "fruit and vegetables", "WAR and peace", None, "commas"]
RANKS = [0.1, 0.9, 0.5, 0.3, None, None]


@pytest.fixture(scope="module")
def reading(tiny: dict[str, Path]) -> Reading:
    """A finished run with labels that mean something, one feature without a label and two without a grade."""
    with Store.read(finished_run(tiny) / "run.duckdb") as store:
        found = report.read(store)
    labels = [
        replace(label, label=text, r_rank=rank, verdict="good" if rank == 0.9 else "too_broad", kind="eligible")
        for label, text, rank in zip(found.labels, LABELS, RANKS, strict=True)
    ]
    return replace(found, labels=labels)


def encoder(texts: Sequence[str]) -> NDArray[np.float32]:
    return sentence_vectors(texts, Bar(enabled=False))


def refuse(texts: Sequence[str]) -> NDArray[np.float32]:
    raise AssertionError(f"the encoder was asked: {texts}")


def labels_of(hits: list[search.Hit]) -> list[str | None]:
    return [hit.label.label for hit in hits]


def test_labels_that_hold_the_text_come_first_and_then_those_that_mean_it(reading: Reading) -> None:
    hits = search.search([reading], "war", 3, Filter(), encoder)
    assert labels_of(hits)[:2] == ["WAR and peace", "armed conflict between nations"]
    assert [hit.by for hit in hits] == ["text", "meaning", "meaning"]
    assert hits[0].value is None
    assert hits[1].value is not None and hits[2].value is not None and 1 >= hits[1].value >= hits[2].value


@pytest.mark.parametrize(
    ("query", "want"),
    [("Monday, Tuesday", "days of the week"), ("apples", "fruit and vegetables"), ("punctuation", "commas")],
)
def test_a_meaning_is_found_without_a_word_in_common(reading: Reading, query: str, want: str) -> None:
    assert labels_of(search.search([reading], query, 1, Filter(), encoder)) == [want]


def test_no_vector_is_computed_where_the_text_is_enough(reading: Reading) -> None:
    assert labels_of(search.search([reading], " OF the ", 1, Filter(), refuse)) == ["days of the week"]


def test_labels_with_the_text_are_ordered_by_grade(reading: Reading) -> None:
    hits = search.search([reading], "e", 3, Filter(), refuse)
    assert [hit.label.r_rank for hit in hits] == [0.9, 0.5, 0.3]


def test_an_empty_query_is_refused(reading: Reading) -> None:
    with pytest.raises(ConfigError, match="nothing to search for"):
        search.search([reading], "  ", 3, Filter(), refuse)


def test_top_orders_by_a_metric_and_leaves_out_labels_without_it(reading: Reading) -> None:
    assert [hit.value for hit in search.top([reading], "r_rank", 9, Filter())] == [0.9, 0.5, 0.3, 0.1]
    assert [hit.value for hit in search.top([reading], "r_rank", 2, Filter(), lowest=True)] == [0.1, 0.3]


def test_filters_hold_for_both(reading: Reading) -> None:
    good = Filter(verdicts=frozenset({"good"}))
    assert labels_of(search.top([reading], "r_rank", 9, good)) == ["armed conflict between nations"]
    assert labels_of(search.search([reading], "war", 9, good, encoder)) == ["armed conflict between nations"]
    middle = float(np.median([label.density for label in reading.labels]))
    rare = search.top([reading], "density", 9, Filter(density=(0.0, middle)))
    assert 0 < len(rare) < len(reading.labels) and all(hit.label.density <= middle for hit in rare)
    assert search.top([reading], "r_rank", 9, Filter(method="no such method")) == []


def test_every_metric_that_is_listed_can_be_ordered_by(reading: Reading) -> None:
    known = search.metrics_of([reading])
    assert {"r_rank", "precision", "tnr_b", "density"} <= set(known) and len(set(known)) == len(known)
    for metric in known:
        values = [hit.value for hit in search.top([reading], metric, 9, Filter())]
        assert values == sorted((v for v in values if v is not None), reverse=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: search.top([r], "r_rnk", 5, Filter()), r"unknown metric 'r_rnk' \(did you mean 'r_rank'\?\)"),
        (lambda r: Filter(verdicts=frozenset({"goood"})), r"unknown verdict 'goood' \(did you mean 'good'\?\)"),
        (lambda r: Filter(kinds=frozenset({"rare"})), "unknown kind 'rare'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(reading: Reading, call: Callable[[Reading], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(reading)


# -- the encoder's vectors ---------------------------------------------------------------------------------------------


def test_a_text_has_one_unit_vector_whatever_it_is_read_with() -> None:
    texts = ["war", "", "日本 \x1b[31m \0", "a word " * 400, "war"]
    vectors = encoder(texts)
    assert vectors.shape == (5, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert (vectors[0] == vectors[4]).all()
    assert (encoder([str(n) for n in range(40)] + ["war"])[-1] == vectors[0]).all()
    assert encoder([]).shape == (0, 384)


# -- the commands ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose labels are hostile."""
    folder = shutil.copytree(finished_run(tiny), tmp_path_factory.mktemp("hostile") / "t")
    with duckdb.connect(str(folder / "run.duckdb")) as db:
        rows = db.execute("SELECT DISTINCT feature FROM explanation WHERE status = 'ok' ORDER BY 1").fetchall()
        for (feature,), text in zip(rows, HOSTILE[-len(rows) :], strict=True):
            db.execute("UPDATE explanation SET label = ? WHERE feature = ? AND status = 'ok'", [text, feature])
    return folder


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["autointerp", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0


@pytest.mark.parametrize("command", [["top", "--by", "density"], ["search", "right to left"], ["search", "\x1b[2J\0"]])
def test_hostile_labels_do_not_steer_the_terminal(
    hostile: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = 1 if command[0] == "top" else 2  # where the run's folder goes
    run(*command[:first], str(hostile), *command[first:], monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert "<script>" in shown and "\\u202e" in shown and "\\x1b" in shown
    assert not {"\0", "\x1b", "\x07", "\u202e", "\u202c"} & set(shown)


@pytest.mark.parametrize("command", ["top", "search"])
def test_json_gives_hostile_labels_as_they_are(
    hostile: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--by", "density"] if command == "top" else ["script"]
    run(command, *arguments, str(hostile), "--json", monkeypatch=monkeypatch)
    found = json.loads(capsys.readouterr().out)
    with Store.read(hostile / "run.duckdb") as store:
        want = [label.label for label in report.read(store).labels]
    assert sorted(hit["label"] for hit in found) == sorted(label for label in want if label is not None)
    assert all({"by", "value", "feature_id", "r_rank", "verdict"} <= set(hit) for hit in found)
