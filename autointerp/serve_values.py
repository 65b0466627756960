"""What the templates of a served run are given besides a run's own records: filters, addresses, calls, progress."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from autointerp.page import figure
from autointerp.report import fit_line, scorer_line
from autointerp.rows import Call, Explanation
from autointerp.shelf import Book
from autointerp.show import Found, visible
from autointerp.store import Store
from autointerp.store_catalog import View
from autointerp.text import printable

AXIS = (-0.2, 1.0)  # ends of the interval bars


def growing_of(book: Book) -> dict[str, Any] | None:
    """How far a run that is being written has come, as of its latest snapshot; None where none writes."""
    if not book.growing:
        return None
    labels = [label for reading in book.readings for label in reading.labels]
    stages: dict[str, float] = {}
    for reading in book.readings:
        for name, stage in reading.summary["stages"].items():
            stages[name] = stages.get(name, 0.0) + stage["seconds"]
    counts = {
        "labelled": sum(label.label is not None for label in labels),
        "graded": sum(label.r_rank is not None for label in labels),
        "judged": sum(label.verdict is not None for label in labels),
    }
    return {
        "stamp": str(book.stamp[1]), "at": f"{book.published:%H:%M:%S}", "features": len(labels), "counts": counts,
        "stages": stages,
    }  # fmt: skip


class Asked(NamedTuple):
    """A candidate that a model was asked for."""

    label: str | None
    call: Call
    messages: list[tuple[str, str]]  # role, text; a repair's hold the reply that could not be used


def asked_of(rows: list[Explanation], found: Found, store: Store) -> list[Asked]:
    """What models were asked for a feature, and what they replied; the chosen candidate's first."""
    chosen = found.chosen.explanation_id if found.chosen else None
    rows = sorted((row for row in rows if row.call_id), key=lambda row: row.explanation_id != chosen)
    calls = store.calls([row.call_id for row in rows if row.call_id])
    return [
        Asked(row.label, calls[row.call_id], json.loads(calls[row.call_id].request))
        for row in rows if row.call_id in calls
    ]  # fmt: skip


def link(path: str, values: dict[str, str]) -> str:
    """An address on this server."""
    return quote(path) + (f"?{urlencode(values)}" if values else "")


def feature_link(feature_id: str, view: View | None = None) -> str:
    """The address of a feature's page, which knows the view it was opened from."""
    return link(f"/feature/{feature_id}", view.kept() if view is not None else {})


def at(value: float | None) -> str:
    """Where a grade lies on an interval bar 100 wide."""
    low, high = AXIS
    return f"{100 * (min(max(low if value is None else value, low), high) - low) / (high - low):.1f}"


def percent(share: float) -> str:
    """A share, 0 to 1, as per cent."""
    return f"{100 * share:.3g} %"


def duration(seconds: float) -> str:
    """Seconds in the units that people say them in."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


FILTERS: dict[str, Callable[..., Any]] = {
    "number": figure, "visible": visible, "percent": percent, "at": at, "duration": duration, "fit_line": fit_line,
    "scorer_line": scorer_line, "words": lambda text: text.replace("_", " "), "lines_visible": printable,
    "combine": lambda first, second: {**first, **second},
}  # fmt: skip
