"""What a command says while it works: a bar, lines, JSON lines, or nothing; and that text in it stays text."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from autointerp import cli, logs
from autointerp.errors import ConfigError
from autointerp.tally import Bar, Tally

HOSTILE = "[/bold] [red]war[/red]\x1b[2J\u202e\nnext line"


@pytest.fixture(autouse=True)
def forms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every progress line is due at once; the form is chosen by the test, and forgotten after it."""
    monkeypatch.setattr(logs, "EVERY_S", 0.0)
    yield
    logs.configure()


def worked(bar: Bar, newest: str = "days of the week", done: float = 0) -> None:
    """A stage of four features, one of which this process does."""
    with bar:
        bar.start("explain marks", total=4, unit="features", done=done)
        bar.advance(1, newest)


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_have_the_keys_that_are_promised(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    bar = Bar()
    bar.cost = lambda: 0.25
    worked(bar, done=2)
    assert bar.ended(Tally("explain", ok=4, failed=Counter(no_label_in_reply=2), tokens=10, seconds=1.5))
    start, progress, end = events(capsys.readouterr().err)
    assert list(start) == ["time", "event", "stage", "total", "unit"]
    assert list(progress) == [
        "time", "event", "stage", "done", "total", "unit", "per_second", "seconds_left", "usd", "newest",
    ]  # fmt: skip
    assert (progress["done"], progress["total"], progress["usd"], progress["newest"]) == (3, 4, 0.25, "days of the week")
    assert progress["per_second"] > 0 and progress["seconds_left"] == pytest.approx(1 / progress["per_second"], abs=0.06)
    assert {key: end[key] for key in end if key not in ("time", "event")} == {
        "stage": "explain", "ok": 4, "failed": {"no_label_in_reply": 2}, "seconds": 1.5, "tokens": 10, "note": "",
    }  # fmt: skip


@pytest.mark.parametrize("columns", [80, 110, 160])
def test_a_long_label_takes_no_room_from_the_figures(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    bar = Bar(True)
    bar.cost = lambda: 0.25
    worked(bar, newest="a label that is far too long for any terminal, and goes on and on and on " * 3)
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    for figure in ("explain marks ━", "/4 features ", " 0:00:00 ", " $0.2500 ", "a "):
        assert figure in said, figure


def test_a_stage_says_what_it_spent_and_what_is_left_of_the_budget() -> None:
    assert Tally("judge", ok=4, seconds=1.5, usd=0.0125, left=0.5).line() == (
        "judge: 4 ok in 1.5 s, $0.0125 ($0.5000 of the budget left)"
    )
    assert Tally("judge", ok=4, seconds=1.5, usd=0.0125).line() == "judge: 4 ok in 1.5 s, $0.0125"
    assert Tally("score", ok=4, seconds=1.5, left=0.5).line() == "score: 4 ok in 1.5 s"


def test_without_a_terminal_a_line_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    bar.cost = lambda: 0.25
    worked(bar)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("explain marks: 1 of 4 features, ") and "left" in line and "$0.2500" in line
    assert line.endswith("newest: days of the week")
    assert not bar.ended(Tally("explain")), "the stage's own line is said by whoever ran it"


def test_lines_come_at_most_every_so_often(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "EVERY_S", 3600.0)
    worked(Bar())
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_rate_cost_and_the_newest_label(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    bar = Bar(True)
    bar.cost = lambda: 0.25
    with bar:
        bar.start("explain", total=4, unit="features")
        for _ in range(3):
            bar.advance(1, HOSTILE)
        bar._progress.refresh()
    shown = capsys.readouterr().err
    assert "3/4" in shown and "/s" in shown and "$0.2500" in shown
    assert "[/bold] [red]war[/red]" in shown, "markup in a label is text"
    assert "\x1b[2J" not in shown and "\u202e" not in shown


@pytest.mark.parametrize("form", ["lines", "json"])
def test_a_label_cannot_break_a_line(capsys: pytest.CaptureFixture[str], form: str) -> None:
    logs.configure(form)
    worked(Bar(), newest=HOSTILE)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (2 if form == "json" else 1)
    assert not {"\x1b", "\u202e"} & set("".join(lines))


def test_quiet_leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("auto", quiet=True)
    worked(Bar())
    logs.say("collect: done")
    assert capsys.readouterr().err == ""
    logs.problem("no run", 2)
    logs.Handler().emit(logging.LogRecord("x", logging.WARNING, "", 0, "slow", None, None))
    assert capsys.readouterr().err.splitlines()[0] == "autointerp: no run"


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown log format 'jsn' \(did you mean 'json'\?\)"):
        logs.configure("jsn")


def test_messages_and_warnings_are_json_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logs.say("check: fits")
    logs.Handler().emit(logging.LogRecord("x", logging.WARNING, "", 0, "slow %s", ("server",), None))
    found = events(capsys.readouterr().err)
    assert [(e["event"], e["text"]) for e in found] == [("message", "check: fits"), ("warning", "slow server")]


@pytest.mark.parametrize("form", ["json", "auto"])
def test_the_command_line_chooses_and_an_error_ends_it(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["autointerp", "--log-format", form, "report", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    err = capsys.readouterr().err
    if form == "json":
        (found,) = events(err)
        assert (found["event"], found["code"]) == ("error", 2) and "no run at" in found["text"]
    else:
        assert err.startswith("autointerp: no run at")
