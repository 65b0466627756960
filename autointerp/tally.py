"""What a stage returns (a tally), and the progress bar that it moves."""

import contextlib
import resource
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from autointerp.errors import UserError


@dataclass
class Tally:
    """How a stage ended: units of work that are ok, and those that failed, by reason."""

    stage: str
    ok: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    tokens: int = 0  # tokens processed
    seconds: float = 0.0
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
        self.note = "; ".join(filter(None, (self.note, other.note)))
        self.stopped = self.stopped or other.stopped

    def line(self) -> str:
        """One line for the terminal."""
        if not self.worked:
            return f"{self.stage}: nothing pending"
        lost = "".join(f", {n} {reason}" for reason, n in sorted(self.failed.items()))
        rate = f", {self.tokens / self.seconds:,.0f} tokens/s" if self.tokens and self.seconds > 0 else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.stage}: {self.ok:,} ok{lost} in {self.seconds:.1f} s{rate}{note}"


class Bar:
    """A progress bar on stderr: rate, time left, what is being done. Silent where stderr is not a terminal."""

    def __init__(self, enabled: bool | None = None) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"),
            console=console, transient=True, disable=not (console.is_terminal if enabled is None else enabled),
        )  # fmt: skip
        self._task: TaskID | None = None

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, description: str, total: float | None, unit: str) -> None:
        """Begin a new bar in place of the last one."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total, unit=unit, note="")

    def advance(self, n: float = 1, note: str | None = None) -> None:
        """Move the bar; `note` replaces the text at its end."""
        if self._task is not None:
            fields = {} if note is None else {"note": note}
            self._progress.update(self._task, advance=n, **fields)  # type: ignore[arg-type]


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
