"""What a stage returns (a tally), and the progress bar that it moves."""

import contextlib
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from autointerp import logs
from autointerp.errors import UserError
from autointerp.text import printable

NOTE = 60  # characters of the newest label that are shown


@dataclass
class Tally:
    """How a stage ended: units of work that are ok, and those that failed, by reason."""

    stage: str
    ok: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    tokens: int = 0  # tokens processed
    seconds: float = 0.0
    usd: float = 0.0  # dollars that models took
    left: float | None = None  # dollars of the command's budget that are left; None where there is none
    note: str = ""  # what else the line says
    stopped: UserError | None = None  # why the stage ended before its work did, where the run must not go on

    @property
    def worked(self) -> bool:
        """False when there was nothing pending."""
        return bool(self.ok or self.failed)

    def add(self, other: "Tally") -> None:
        """Count another part of the same stage in."""
        self.ok += other.ok
        self.failed += other.failed
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.usd += other.usd
        self.note = "; ".join(filter(None, (self.note, other.note)))
        self.stopped = self.stopped or other.stopped

    def line(self) -> str:
        """One line for the terminal."""
        if not self.worked:
            return f"{self.stage}: nothing pending"
        lost = "".join(f", {n} {reason}" for reason, n in sorted(self.failed.items()))
        rate = f", {self.tokens / self.seconds:,.0f} tokens/s" if self.tokens and self.seconds > 0 else ""
        spent = f", ${self.usd:.4f}" if self.usd else ""
        spent += f" (${self.left:.4f} of the budget left)" if self.usd and self.left is not None else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.stage}: {self.ok:,} ok{lost} in {self.seconds:.1f} s{rate}{spent}{note}"


class Bar:
    """How far a stage is, on stderr: rate, time left, dollars so far, the newest label.

    A bar on a terminal, a line from time to time elsewhere, JSON lines where they were asked for (see `logs`).

    enabled  False says nothing, True always draws the bar; None is what the process was asked for
    """

    def __init__(self, enabled: bool | None = None) -> None:
        out = logs.current()
        silent = enabled is False or (enabled is None and out.quiet)
        self._form: logs.Form | None = None if silent else "bar" if enabled else out.form
        self.cost: Callable[[], float] | None = None  # dollars so far; set by who can ask models
        console = Console(stderr=True)
        self._progress = Progress(
            _column("{task.description:>9}"), BarColumn(24 if console.width >= 100 else 8, table_column=_whole()),
            MofNCompleteColumn(table_column=_whole()), _column("{task.fields[unit]}"), _Rate(table_column=_whole()),
            TimeElapsedColumn(table_column=_whole()), TimeRemainingColumn(table_column=_whole()),
            _column("{task.fields[usd]}"), _Cut("{task.fields[note]}", style="dim"),
            console=console, transient=True, disable=self._form != "bar",
        )  # fmt: skip
        self._task: TaskID | None = None
        self._stage, self._unit = "", ""
        self._total: float | None = None
        self._done = self._said_done = 0.0
        self._said, self._newest = 0.0, ""

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, description: str, total: float | None, unit: str, done: float = 0.0) -> None:
        """Begin a new bar in place of the last one; `done` was done by an earlier process."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            printable(description), total=total, completed=done, unit=unit, note="", usd=""  # type: ignore[arg-type]
        )
        self._stage, self._total, self._unit, self._newest = description, total, unit, ""
        self._done = self._said_done = done
        self._said = time.monotonic()
        if self._form == "json":
            logs.event("start", stage=description, total=total, unit=unit)

    def advance(self, n: float = 1, note: str | None = None) -> None:
        """Move the bar; `note`, such as the newest label, replaces the text at its end."""
        if self._task is None or self._form is None:
            return
        self._done += n
        if note is not None:
            self._newest = printable(" ".join(note.split()))
        if self._form == "bar":
            usd = self.cost() if self.cost is not None else 0.0
            shown = f"${usd:.4f}" if usd else ""
            self._progress.update(self._task, advance=n, note=self._newest[:NOTE], usd=shown)
        elif (seconds := time.monotonic() - self._said) >= logs.EVERY_S:
            self._tell(seconds)

    def ended(self, tally: Tally) -> bool:
        """Tell how a stage ended, in the forms that have an event for it; False where its line is still to be said."""
        if self._form == "json":
            logs.event(
                "end", stage=tally.stage, ok=tally.ok, failed=dict(tally.failed), seconds=round(tally.seconds, 3),
                tokens=tally.tokens, note=tally.note,
            )  # fmt: skip
            return True
        return False

    def _tell(self, seconds: float) -> None:
        """A line of progress; the rate is that of the time since the line before."""
        rate = (self._done - self._said_done) / seconds if seconds else 0.0
        left = max(self._total - self._done, 0) / rate if self._total is not None and rate else None
        usd = self.cost() if self.cost is not None else None
        self._said, self._said_done = time.monotonic(), self._done
        if self._form == "json":
            logs.event(
                "progress", stage=self._stage, done=self._done, total=self._total, unit=self._unit,
                per_second=round(rate, 4), seconds_left=None if left is None else round(left, 1), usd=usd,
                newest=self._newest or None,
            )  # fmt: skip
            return
        of = "" if self._total is None else f" of {self._total:,.0f}"
        parts = [f"{self._stage}: {self._done:,.0f}{of} {self._unit}", f"{rate:,.2f}/s"]
        parts += [f"{timedelta(seconds=round(left))} left"] if left is not None else []
        parts += [f"${usd:.4f}"] if usd else []
        logs.say(", ".join(parts) + (f"; newest: {self._newest[:NOTE]}" if self._newest else ""))


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        """The rate of the last seconds."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


class _Cut(ProgressColumn):
    """One line of text that gives way where the terminal is narrow; the other columns keep their width."""

    def __init__(self, text: str, style: str = "none") -> None:
        self.text, self.style = text, style
        super().__init__(table_column=Column(overflow="ellipsis"))

    def render(self, task: Task) -> Text:
        """As it is: a label with square brackets in it is no markup."""
        return Text(self.text.format(task=task), style=self.style, no_wrap=True, overflow="ellipsis")


def _column(text: str) -> TextColumn:
    """Text as it is."""
    return TextColumn(text, markup=False, table_column=_whole())


def _whole() -> Column:
    """A column that keeps its width."""
    return Column(no_wrap=True, overflow="ellipsis")


def available_memory_bytes() -> int:
    """Memory that this process could still take without swapping."""
    return int(psutil.virtual_memory().available)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    with contextlib.suppress(OSError, StopIteration):  # Linux: getrusage would count the parent's memory before exec
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
