"""Labels found: by a text that stands in them, by meaning, or as the first of an order by any metric."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp.errors import ConfigError, nearest
from autointerp.report import Label, Reading, number
from autointerp.text import printable
from autointerp.verdicts import WORDS

Vectors = Callable[[Sequence[str]], NDArray[np.float32]]  # texts -> unit vectors [text, d]

KINDS = ("eligible", "dense", "too_rare", "dead")
PLAIN = ("r_rank", "r_rank_lo", "r_rank_hi", "r_pop", "r_pop_lo", "r_pop_hi", "f1", "r_tok", "lift", "null", "density")


@dataclass(frozen=True)
class Filter:
    """Which labels are looked at. None and empty sets let everything through."""

    verdicts: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    method: str | None = None
    density: tuple[float, float] = (0.0, 1.0)
    category: str | None = None  # a part of its name, case aside

    def __post_init__(self) -> None:
        for what, asked, known in (("verdict", self.verdicts, WORDS), ("kind", self.kinds, KINDS)):
            for word in sorted(asked - set(known)):
                raise ConfigError(f"unknown {what} {word!r}{nearest(word, known)}; known: {', '.join(known)}")

    def passes(self, label: Label) -> bool:
        """Whether the label is one of those."""
        low, high = self.density
        return (
            (not self.verdicts or label.verdict in self.verdicts)
            and (not self.kinds or label.kind in self.kinds)
            and (self.method is None or label.method == self.method)
            and low <= label.density <= high
            and (self.category is None or self._named(label.category))
        )

    def _named(self, category: str | None) -> bool:
        return category is not None and (self.category or "").casefold() in category.casefold()

    def check(self, readings: Sequence[Reading]) -> None:
        """Raises ConfigError for a category that these readings do not have."""
        if self.category is None:
            return
        known = {label.category: None for reading in readings for label in reading.labels if label.category is not None}
        if not known:
            raise ConfigError("the labels of this run are not grouped: `autointerp categories` does it")
        if not any(self._named(name) for name in known):
            raise ConfigError(
                f"no category with {self.category!r} in its name{nearest(self.category, known)}; "
                "`autointerp categories` lists them"
            )


@dataclass(frozen=True)
class Hit:
    """A label that was found, and why."""

    label: Label
    by: Literal["text", "meaning", "metric"]
    value: float | None  # cosine (None for text), or the metric


def search(readings: Sequence[Reading], query: str, n: int, chosen: Filter, vectors: Vectors) -> list[Hit]:
    """The n labels nearest to the query: those that hold it word for word (case aside), best grade first, then the
    others by cosine to it.

    vectors  asked once, for the query and the labels that do not hold it; not at all where those that do are enough

    Raises ConfigError for an empty query, and for a category that there is none of.
    """
    if not query.strip():
        raise ConfigError("nothing to search for: expected a word, a part of a label, or what it should mean")
    chosen.check(readings)
    labels = [(label, label.label) for label in _passing(readings, chosen)]
    needle = query.strip().casefold()
    literal = [label for label, text in labels if text is not None and needle in text.casefold()]
    literal.sort(key=lambda label: (-(label.r_rank if label.r_rank is not None else -2), label.feature_id))
    hits = [Hit(label, "text", None) for label in literal[:n]]
    rest = [(label, text) for label, text in labels if text is not None and needle not in text.casefold()]
    if len(hits) == n or not rest:
        return hits
    found = vectors([query.strip(), *(text for _, text in rest)])
    cosine = found[1:] @ found[0]
    order = np.argsort(-cosine, kind="stable")[: n - len(hits)]
    return hits + [Hit(rest[i][0], "meaning", float(cosine[i])) for i in order.tolist()]


def top(readings: Sequence[Reading], by: str, n: int, chosen: Filter, lowest: bool = False) -> list[Hit]:
    """The n labels with the largest (or lowest) value of a metric; labels without it are left out.

    Raises ConfigError for a metric that no label of the run has, naming those there are, and for such a category.
    """
    chosen.check(readings)
    known = metrics_of(readings)
    if by not in known:
        raise ConfigError(f"unknown metric {by!r}{nearest(by, known)}; this run has: {', '.join(known)}")
    found = [
        (value, label) for reading in readings for label in reading.labels
        if chosen.passes(label) and (value := value_of(reading, label, by)) is not None
    ]  # fmt: skip
    found.sort(key=lambda pair: (pair[0] if lowest else -pair[0], pair[1].feature_id))
    return [Hit(label, "metric", value) for value, label in found[:n]]


def metrics_of(readings: Sequence[Reading]) -> list[str]:
    """Names of the metrics that labels of the run can be ordered by."""
    stored = {name for reading in readings for label in reading.labels for name in label.numbers}
    judged = {name for reading in readings for values in reading.judged.values() for name in values}
    return [*PLAIN, *sorted((stored | judged) - set(PLAIN))]


def value_of(reading: Reading, label: Label, metric: str) -> float | None:
    """The metric of a label; None where it has none."""
    if metric in PLAIN:
        value: float | None = getattr(label, metric)
        return value
    return label.numbers.get(metric, reading.judged.get(label.feature, {}).get(metric))


def _passing(readings: Sequence[Reading], chosen: Filter) -> list[Label]:
    return [label for reading in readings for label in reading.labels if chosen.passes(label)]


def as_json(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Each label with all of its grades, and why it was found."""
    return [{"by": hit.by, "value": hit.value} | hit.label.as_json() for hit in hits]


def to_terminal(hits: Sequence[Hit], console: Console, metric: str | None = None) -> None:
    """A table, best first; text from the run cannot steer the terminal.

    metric  what the hits were ordered by; None where they were searched for
    """
    ids = {hit.label.feature_id.rpartition("/")[0] for hit in hits}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("feature", justify="right", style="cyan")
    table.add_column("verdict", no_wrap=True)
    table.add_column("label", ratio=1, overflow="fold")
    columns = ["r_rank", "found by"] if metric is None else [metric] + ["r_rank"] * (metric != "r_rank")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for hit in hits:
        label, why = hit.label, "text" if hit.by == "text" else number(hit.value)
        cells = [number(label.r_rank), why] if metric is None else [_fitting(hit.value), number(label.r_rank)]
        text = Text(printable(label.label)) if label.label else Text(f"({label.reason})", style="dim")
        shown = str(label.feature) if len(ids) == 1 else label.feature_id
        table.add_row(printable(shown), (label.verdict or "-").replace("_", " "), text, *cells[: len(columns)])
    console.print(table if hits else "no label was found")


def _fitting(value: float | None) -> str:
    """A metric of any size: densities are far below .01."""
    return number(value, ".2f" if value is None or value == 0 or abs(value) >= 0.01 else ".1e")
