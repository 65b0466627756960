"""What a command says on stderr while it works: a bar on a terminal, lines elsewhere, or one JSON object a line.

The form is chosen once per process, by the command line. Results go to stdout, and are not affected. JSON lines have
the keys `time` (ISO, UTC) and `event`, and by event:

    start     stage, total, unit                         a stage begins; total is null where it is unknown
    progress  stage, done, total, unit, per_second, seconds_left, usd, newest     every EVERY_S seconds
    end       stage, ok, failed (reason -> n), seconds, tokens, note              a stage is over
    message   text
    warning   text
    error     text, code                                 the last line: the exit code is `code`

usd is what models have cost since the command began, newest the latest label; null where there is none.
"""

import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from autointerp.errors import ConfigError, nearest

Form = Literal["bar", "lines", "json"]
FORMS = ("auto", "bar", "lines", "json")
EVERY_S = 30.0  # seconds between two progress lines of one stage


@dataclass(frozen=True)
class Output:
    """How a process speaks."""

    form: Form
    quiet: bool = False  # warnings and errors only


_chosen: Output | None = None


def configure(form: str = "auto", quiet: bool = False) -> None:
    """Choose the form for this process; auto is a bar where stderr is a terminal, else lines.

    Raises ConfigError for a form that is not known.
    """
    global _chosen
    if form not in FORMS:
        raise ConfigError(f"unknown log format {form!r}{nearest(form, FORMS)}; known: {', '.join(FORMS)}")
    _chosen = None if form == "auto" and not quiet else Output(_automatic() if form == "auto" else form, quiet)  # type: ignore[arg-type]


def current() -> Output:
    """The form of this process."""
    return _chosen or Output(_automatic())


def _automatic() -> Form:
    return "bar" if sys.stderr.isatty() else "lines"


def say(text: str) -> None:
    """A message for people; nothing where they asked for quiet."""
    out = current()
    if out.quiet:
        return
    if out.form == "json":
        event("message", text=text)
    else:
        print(text, file=sys.stderr)


def event(kind: str, **values: Any) -> None:
    """One JSON line."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"time": time, "event": kind, **values}, ensure_ascii=False), file=sys.stderr, flush=True)


def problem(text: str, code: int) -> None:
    """Why a command ends with this exit code, on one line."""
    if current().form == "json":
        event("error", text=text, code=code)
    else:
        print(f"autointerp: {text}", file=sys.stderr)


class Handler(logging.Handler):
    """Warnings of the library in the form of this process."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        text = self.format(record)
        if current().form == "json":
            event("warning", text=text)
        else:
            print(text, file=sys.stderr)
