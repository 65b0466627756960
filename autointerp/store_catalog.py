"""The labels of a run as one table in memory that can be searched, filtered, sorted and paged: SQL for the list.

The grades a reader shows are joined and derived in `report`; this holds the outcome, so that a view of it costs one
scan and never touches the run's file. Pages are cut by keyset: a page begins after the key of the last row of the one
before, which costs the same for the first page and the last, and stays right when rows are added in between.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from autointerp.errors import ConfigError, nearest
from autointerp.report import Reading
from autointerp.store import Store

SORTS = {  # what the list can be sorted by -> largest first
    "r_rank": True, "r_pop": True, "f1": True, "r_tok": True, "lift": True, "null": True, "density": True,
    "mean": True, "feature": False,
}  # fmt: skip
UNJUDGED = "unjudged"  # verdict of a label that has none
PAGE = 50
_LAST = 1e308  # key of a row without a value: after all others, whichever way the list is sorted


class Line(NamedTuple):
    """One feature of the list. None means that there is none."""

    place: int  # of its dictionary, from 0
    feature: int
    feature_id: str
    dictionary: str
    label: str | None
    reason: str | None
    method: str | None
    verdict: str
    category: str | None
    density: float
    mean: float | None  # mean activation where it fires
    r_rank: float | None
    r_rank_lo: float | None
    r_rank_hi: float | None
    r_pop: float | None
    f1: float | None
    r_tok: float | None
    lift: float | None
    null: float | None
    similarity: float | None = None  # cosine to what a view is searched for by meaning


@dataclass(frozen=True)
class View:
    """What the list shows: the fields are the keys of its address."""

    q: str = ""  # words that the label or the feature id holds; or what the label means
    by: str = ""  # "meaning": nearest to q first, whatever else is sorted by; "": words
    verdict: str = ""
    category: str = ""
    dictionary: str = ""
    hookpoint: str = ""
    min: str = ""  # r_rank, at least
    rarest: str = ""  # density, at least, per cent
    densest: str = ""  # density, at most, per cent
    sort: str = "r_rank"
    order: str = ""  # "up" or "down"; "" is the usual one of the sort
    after: str = ""  # key of the row before the page
    before: str = ""  # key of the row after the page

    @classmethod
    def of(cls, found: dict[str, str]) -> "View":
        """The view of an address; keys that are not ours are left out. Raises ConfigError for what cannot be read."""
        view = cls(**{f.name: found[f.name].replace("\0", "") for f in fields(cls) if found.get(f.name)})
        if view.sort not in SORTS:
            raise ConfigError(f"sort: expected {', '.join(SORTS)}, got {view.sort!r}{nearest(view.sort, SORTS)}")
        if view.order not in ("", "up", "down"):
            raise ConfigError(f"order: expected up or down, got {view.order!r}")
        if view.by not in ("", "meaning"):
            raise ConfigError(f"by: expected meaning, or nothing, got {view.by!r}")
        _ = view.limits, _key(view.after), _key(view.before)
        return view

    @property
    def limits(self) -> list[tuple[str, float]]:
        """What numbers of a line have to fulfil, as SQL, with its value. Raises ConfigError for what is no number."""
        asked = {"min": "r_rank >= ?", "rarest": "100 * density >= ?", "densest": "100 * density <= ?"}
        return [(sql, _finite(name, text)) for name, sql in asked.items() if (text := getattr(self, name)).strip()]

    @property
    def meant(self) -> str:
        """What is searched for by meaning; "" where nothing is."""
        return self.q.strip() if self.by else ""

    @property
    def ranked(self) -> str:
        """The number that lines are sorted by."""
        return "similarity" if self.meant else self.sort

    @property
    def falling(self) -> bool:
        """Largest first."""
        return bool(self.meant) or (SORTS[self.sort] if not self.order else self.order == "down")

    def kept(self, **changed: str) -> dict[str, str]:
        """The keys of the address of this view with some changed, from its first page; defaults are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)} | {"after": "", "before": ""} | changed
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}


class Page(NamedTuple):
    """A page of the list, and the keys of the pages beside it; "" where there is none."""

    lines: list[Line]
    total: int
    first: int  # place of its first line in the view, from 1
    newer: str  # `before` of the page before
    older: str  # `after` of the page after


class Catalog:
    """The labels of every dictionary of a run."""

    def __init__(self, readings: Sequence[Reading], store: Store) -> None:
        columns: dict[str, list[Any]] = {name: [] for name in _TYPES}
        for place, reading in enumerate(readings):
            means = mean_activations(store, reading.run.collection_id)
            for label in reading.labels:
                known = {name: getattr(label, name) for name in _TYPES if hasattr(label, name)}
                mean = float(means[label.feature])
                known |= {
                    "place": place, "dictionary": reading.collection["dictionary"],
                    "verdict": label.verdict or UNJUDGED, "mean": mean if mean else None,
                }  # fmt: skip
                for name, value in known.items():
                    columns[name].append(value)
        self.hookpoints: dict[str, list[int]] = {}  # hookpoint -> places of the dictionaries that read it
        for place, reading in enumerate(readings):
            self.hookpoints.setdefault(reading.collection["hookpoint"], []).append(place)
        self.near = ""  # what the table of similarities is about
        self.db = duckdb.connect(":memory:", config={"threads": 1})
        table = pa.table({name: pa.array(values, _TYPES[name]) for name, values in columns.items()})
        self.db.register("given", table)
        self.db.execute("CREATE TABLE line AS FROM given")
        self.db.unregister("given")
        self.categories = dict(self.db.execute(  # category -> its labels, the largest first
            "SELECT category, count(*) AS n FROM line WHERE category IS NOT NULL GROUP BY ALL ORDER BY n DESC, category"
        ).fetchall())  # fmt: skip

    def close(self) -> None:
        self.db.close()

    def texts(self) -> list[str]:
        """The different labels."""
        rows = self.db.execute("SELECT DISTINCT label FROM line WHERE label IS NOT NULL ORDER BY label").fetchall()
        return [text for (text,) in rows]

    def compare(self, phrase: str, texts: Sequence[str], similarity: NDArray[np.float32]) -> None:
        """From now on views that search for this phrase by meaning can be shown; of others they no longer can."""
        self.db.register("given", pa.table({"label": pa.array(texts, pa.string()), "similarity": similarity}))
        self.db.execute("CREATE OR REPLACE TABLE near AS SELECT label, similarity::DOUBLE AS similarity FROM given")
        self.db.unregister("given")
        self.near = phrase

    def page(self, view: View, size: int = PAGE) -> Page:
        """One page of a view, and how many lines the whole of it has."""
        where, parameters = self._where(view)
        total = self._one(f"SELECT count(*) FROM {_lines(view)} WHERE {where}", parameters)
        key = _key(view.before) or _key(view.after)
        back = bool(view.before)
        lines = self._beside(view, key, size + 1, back)
        more, lines = len(lines) > size, lines[:size]
        lines = lines[::-1] if back else lines
        ahead, behind = (more, key is not None) if back else (key is not None, more)
        first = self._ahead(view, lines[0]) + 1 if lines else 0
        return Page(
            lines, total, first, _text(view, lines[0]) if lines and ahead else "",
            _text(view, lines[-1]) if lines and behind else "",
        )  # fmt: skip

    def around(self, view: View, feature_id: str) -> tuple[Line | None, Line | None]:
        """The lines before and after a feature in a view; None at its ends, and for a feature that is not listed."""
        found = self._lines(f"SELECT {_COLUMNS} FROM {_lines(view)} WHERE feature_id = ?", [feature_id])
        if not found:
            return None, None
        key = _key(_text(view, found[0]))
        before, after = (self._beside(view, key, 1, back) for back in (True, False))
        return (before[0] if before else None), (after[0] if after else None)

    def labels(self, feature_ids: Sequence[str]) -> dict[str, Line]:
        """The lines of these features, by id; those that the run did not select are not in it."""
        wanted = "feature_id IN (SELECT unnest(?))"
        found = self._lines(f"SELECT {_COLUMNS} FROM {_PLAIN} WHERE {wanted}", [list(feature_ids)])
        return {line.feature_id: line for line in found}

    def sample(self, place: int, most: int) -> list[Line]:
        """At most so many lines of a dictionary, spread over its features, always the same ones."""
        return self._lines(
            f"SELECT {_COLUMNS} FROM (FROM {_PLAIN} WHERE place = ? ORDER BY hash(feature) LIMIT ?) ORDER BY feature",
            [place, most],
        )

    def _beside(self, view: View, key: tuple[float, int, int] | None, limit: int, back: bool) -> list[Line]:
        """Lines on one side of a key, nearest first."""
        where, parameters = self._where(view)
        rank, way, sign = _rank(view), "DESC" if back else "ASC", "<" if back else ">"
        if key is not None:
            where += f" AND ({rank}, place, feature) {sign} (?, ?, ?)"
            parameters = [*parameters, *key]
        return self._lines(
            f"SELECT {_COLUMNS} FROM {_lines(view)} WHERE {where} "
            f"ORDER BY {rank} {way}, place {way}, feature {way} LIMIT ?",
            [*parameters, limit],
        )

    def _ahead(self, view: View, line: Line) -> int:
        """How many lines of a view come before this one."""
        where, parameters = self._where(view)
        key = _key(_text(view, line))
        assert key is not None
        return self._one(
            f"SELECT count(*) FROM {_lines(view)} WHERE {where} AND ({_rank(view)}, place, feature) < (?, ?, ?)",
            [*parameters, *key],
        )

    def _where(self, view: View) -> tuple[str, list[Any]]:
        conditions, parameters = ["true"], list[Any]()
        for word in [] if view.meant else view.q.split():
            conditions.append("(contains(lower(label), lower(?)) OR contains(lower(feature_id), lower(?)))")
            parameters += [word, word]
        for name in ("verdict", "category", "dictionary"):
            if getattr(view, name):
                conditions.append(f"{name} = ?")
                parameters.append(getattr(view, name))
        if view.hookpoint:
            conditions.append("list_contains(?::INTEGER[], place)")
            parameters.append(self.hookpoints.get(view.hookpoint, []))
        for sql, value in view.limits:
            conditions.append(sql)
            parameters.append(value)
        return " AND ".join(conditions), parameters

    def _lines(self, sql: str, parameters: list[Any]) -> list[Line]:
        return [Line(*row) for row in self.db.execute(sql, parameters).fetchall()]

    def _one(self, sql: str, parameters: list[Any]) -> int:
        return int(self.db.execute(sql, parameters).fetchall()[0][0])


_TYPES = {
    **dict.fromkeys(Line._fields[:-1], pa.float64()), "place": pa.int32(), "feature": pa.int32(),
    **dict.fromkeys(("feature_id", "dictionary", "label", "reason", "method", "verdict", "category"), pa.string()),
}  # fmt: skip
_COLUMNS = ", ".join(f'"{name}"' for name in Line._fields)
_PLAIN = "(SELECT *, NULL::DOUBLE AS similarity FROM line)"


def _lines(view: View) -> str:
    """The lines that a view is of, as SQL."""
    return "(FROM line JOIN near USING (label))" if view.meant else _PLAIN


def mean_activations(store: Store, collection_id: str) -> Any:
    """Mean activation of every feature where it fires, over all splits, by index; 0 where it never fires."""
    counters = store.features(collection_id)
    tokens = counters["n_tokens"].sum(0)
    return np.divide(counters["sum"].sum(0), tokens, out=np.zeros(len(tokens)), where=tokens > 0)


def _rank(view: View) -> str:
    """What a view is sorted by, as SQL of a number that rises down the list."""
    column = f'"{view.ranked}"::DOUBLE'
    return f"coalesce({'-' if view.falling else ''}{column}, {_LAST!r}::DOUBLE)"


def _text(view: View, line: Line) -> str:
    """The key of a line in a view, as it stands in an address."""
    value = getattr(line, view.ranked)
    rank = _LAST if value is None else -float(value) if view.falling else float(value)
    return f"{rank!r}_{line.place}_{line.feature}"


def _key(text: str) -> tuple[float, int, int] | None:
    """What `_text` wrote; None for "". Raises ConfigError for anything else."""
    if not text:
        return None
    parts = text.split("_")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts[1:]):
        raise ConfigError(
            f"page: expected an address that this page made, got {text[:40]!r}: start from the first page"
        )
    return _finite("page", parts[0]), int(parts[1]), int(parts[2])


def _finite(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{name}: expected a number, got {text[:40]!r}")
    return value
