"""Explainers beside each other: whose labels predict best, by how much, what was lost and what they cost.

Each explainer (a method, and the provider and model that it asks) is represented on every eligible feature by its own
candidate that did best on select, so that one that offers more candidates wins nothing by that on score.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from autointerp import metrics, store_report
from autointerp.rows import Run, Split
from autointerp.store import Store
from autointerp.text import printable

BOOTSTRAP = 2000  # draws behind the interval of a mean over features
COST = ("calls", "input_tokens", "output_tokens", "usd", "unpriced")
HEADER = (
    "explainer", "r_rank", "95 %", "behind", "chosen", "labelled", "tokens in", "out", "$", "$ / 1,000", "lost",
)  # fmt: skip
NARROW = (0, 1, 2, 3, 4, 9)  # columns for which a terminal of 80 has room
TEXTUAL = ("explainer", "lost")


def compared(store: Store, run: Run, eligible: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Explainer -> its figures, the best first. The name holds who was asked: `marks (openai/gpt-5.4-nano)`.

    mean, lo, hi  r_rank over eligible features with its 95 % interval, a feature without a label or a grade counting 0
    on            the split of these grades: score; select where the simulator is paid and so grades the chosen alone
    behind        mean, lo, hi of how much the best explainer is ahead on the same features; None for the best itself
    n, labelled, graded, chosen  eligible features, those that it labelled, those whose label has been graded, those
                  whose label is its own
    lost          replies and features that gave no label, by reason
    calls, input_tokens, output_tokens, usd, unpriced  what it took, samples and repairs included; usd adds up the
                  calls of known price, unpriced counts the others

    Before anything is graded, mean and what follows from it are None.
    """
    split: Split = "score" if run.chooser_id is None else "select"
    rows = store_report.by_explainer(store, run, eligible, split)
    grades = {row["explainer_id"]: np.array(row.pop("grades"), dtype=np.float64) for row in rows}
    names = {row["explainer_id"]: _name(row, rows) for row in rows}
    # Sums differ in their last bits from time to time, so they are rounded: equal means keep the order of their names.
    sums = {key: round(float(own.sum()), 9) for key, own in grades.items()}
    rows.sort(key=lambda row: (not row["graded"], -sums[row["explainer_id"]], names[row["explainer_id"]]))
    best = grades[rows[0]["explainer_id"]] if rows and rows[0]["graded"] else None
    result: dict[str, dict[str, Any]] = {}
    for row in rows:
        own, random = grades[row["explainer_id"]], np.random.default_rng([0, len(eligible)])
        mean = metrics.mean_interval(own if row["graded"] else own[:0], BOOTSTRAP, random)
        behind = None
        if best is not None and best is not own and row["graded"]:
            found = metrics.mean_interval(best - own, BOOTSTRAP, random)
            behind = {"mean": found.value, "lo": found.lo, "hi": found.hi}
        told = {key: row[key] for key in ("method", "provider", "base_url", "model")}
        counted = {key: row[key] for key in ("labelled", "graded", "chosen", "lost", *COST)}
        figures = {"mean": mean.value, "lo": mean.lo, "hi": mean.hi, "on": split, "behind": behind, "n": len(own)}
        result[names[row["explainer_id"]]] = told | figures | counted
    return result


def _name(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Method, provider and model; with the server, then the id, where others are called the same."""
    plain = _plain(row)
    same = [other for other in rows if _plain(other) == plain]
    if len({other["base_url"] for other in same}) > 1 and row["base_url"]:
        plain = f"{plain[:-1]} at {row['base_url']})"
        same = [other for other in same if other["base_url"] == row["base_url"]]
    # The first by id keeps the plain name.
    first = min(other["explainer_id"] for other in same)
    return plain if row["explainer_id"] == first else f"{plain} {row['explainer_id']}"


def _plain(row: Mapping[str, Any]) -> str:
    if row["model"] is None:
        return str(row["method"])
    return f"{row['method']} ({'/'.join(part for part in (row['provider'], row['model']) if part)})"


# -- for people --------------------------------------------------------------------------------------------------------


def cells(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of text per explainer, under HEADER."""
    return [
        (
            name, _number(e["mean"]), _ends(e), _behind(e["behind"]), f"{e['chosen']:,}", f"{e['labelled']:,}",
            *((f"{e['input_tokens']:,}", f"{e['output_tokens']:,}", *_dollars(e)) if e["calls"] else ("-",) * 4),
            ", ".join(f"{n:,} {reason}" for reason, n in e["lost"].items()) or "-",
        )
        for name, e in found.items()
    ]  # fmt: skip


def made_by(method: str | None, model: str | None) -> Text:
    """Who made a label, as a cell."""
    return Text(printable(f"{method} ({model})" if method and model else method or ""))


def caption(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What the table's numbers are."""
    first = next(iter(found.values()))
    which = (
        "on score" if first["on"] == "score" else
        "on select, by the free simulator (the paid one grades the chosen labels alone)"
    )  # fmt: skip
    return (
        f"r_rank of the best candidate of each {which}; n = {first['n']:,}, a feature "
        "that it could not label counts 0. Behind: how much the best is ahead on the same features, 95 % interval. "
        "Chosen: features whose label is its own. "
        "$ / 1,000: per 1,000 features labelled"
    )


def table(found: Mapping[str, Mapping[str, Any]], wide: bool) -> Table:
    """The table for a terminal."""
    shown = range(len(HEADER)) if wide else NARROW
    result = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=caption(found), caption_justify="left"
    )
    for i in shown:
        text = HEADER[i] in TEXTUAL
        result.add_column(HEADER[i], justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for e, row in zip(found.values(), cells(found), strict=True):
        # In a narrow terminal the model matters more than who runs it.
        name = row[0] if wide or not e["provider"] else row[0].replace(f"({e['provider']}/", "(", 1)
        result.add_row(*(Text(printable(name if i == 0 else row[i])) for i in shown))
    return result


def spent_lines(spending: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per stage and model of the ledger: calls, tokens, dollars, replies that could not be used, tries."""
    lines = []
    for row in spending:
        cached = f" ({row['cached_tokens']:,} cached)" if row["cached_tokens"] else ""
        dollars = "unknown price" if row["unpriced"] == row["calls"] else f"${row['usd']:.4f}"
        if 0 < row["unpriced"] < row["calls"]:
            dollars += f" and {row['unpriced']:,} calls of unknown price"
        same = {other["base_url"] for other in spending if _who(other) == _who(row)}
        where = f" at {row['base_url']}" if len(same) > 1 and row["base_url"] else ""
        more = [f"{row['unusable']:,} refused or cut off"] if row["unusable"] else []
        more += [f"{row['repairs']:,} repairs"] if row["repairs"] else []
        more += [f"{row['tries'] - row['calls']:,} tries in vain"] if row["tries"] > row["calls"] else []
        lines.append(
            f"{row['stage']} {row['provider']}/{row['model']}{where}: {row['calls']:,} calls, "
            f"{row['input_tokens']:,} tokens in{cached}, {row['output_tokens']:,} out, {dollars}"
            + (f" ({', '.join(more)})" if more else "")
        )
    return lines


def _who(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["stage"], row["provider"], row["model"]


def _number(value: float | None) -> str:
    return "-" if value is None else format(value, "z.2f")


def _ends(found: Mapping[str, Any]) -> str:
    return "-" if found["lo"] is None else f"{_number(found['lo'])}..{_number(found['hi'])}"


def _behind(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else _ends(found)


def _dollars(found: Mapping[str, Any]) -> tuple[str, str]:
    """All of them, and those per 1,000 features labelled."""
    if found["unpriced"]:
        return "unknown", "unknown"
    return f"{found['usd']:.4f}", f"{1000 * found['usd'] / found['labelled']:.2f}" if found["labelled"] else "-"
