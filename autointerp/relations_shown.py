"""Relations as tables on the terminal, and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp.relations import Matched, Measure, Relation
from autointerp.relations_json import agreement, alike, described, pairs, summary
from autointerp.show import visible
from autointerp.sides import Side
from autointerp.splits import Split

MEASURES = {"decoder": "decoder cosine", "activation": "correlation of activations"}
BINS = np.linspace(-0.1, 1.0, 56)


def said(feature: dict[str, Any]) -> Text:
    """A feature in a cell: its label, else its heaviest tokens in another style."""
    text = Text(feature["feature_id"].rpartition("/")[2] + " ", style="bold")
    if feature["label"] is not None:
        return text.append(visible(feature["label"]), style="not bold")
    return text.append("  ".join(visible(token).strip() for token in feature["tokens"]), style="not bold dim")


def to_terminal(found: Relation, console: Console, rows: int) -> None:
    """The figures, the matches of labelled features, splits and merges; of each list the first `rows`."""
    for letter, side in zip("AB", (found.a, found.b), strict=True):
        console.print(Text(visible(
            f"{letter}  {side.name}: {side.dictionary.name}, {len(side.features):,} of {side.dictionary.width:,} "
            f"features compared, at {side.hookpoint or 'a place that its files do not say'}"
        )))  # fmt: skip
    for note in found.notes:
        console.print(Text(visible(note), style="yellow"))
    console.print(_figures(found))
    for name, measure in _measures(found):
        if measure.reason is not None:
            console.print(Text(f"not compared by {MEASURES[name]}: {visible(measure.reason)}", style="yellow"))
    if found.decoder.there is not None and found.activation.there is not None:
        share = agreement(found.decoder.there, found.activation.there)
        if share is not None:
            console.print(f"both measures name the same match for {share:.0%} of A's features", highlight=False)
    if told := alike(pairs(found, everyone=False)):
        shares = ", ".join(
            f"{it.share:.0%} of {it.pairs} by {MEASURES[name]} ({it.chance:.0%} of pairs of others)"
            for name, it in told.items()
        )
        console.print(f"labels of matched features that share a word: {shares}", highlight=False)
    _lists(found, console, rows)


def _lists(found: Relation, console: Console, rows: int) -> None:
    matched = pairs(found, everyone=False)
    if matched:
        by = [name for name, measure in _measures(found) if measure.reason is None]
        console.print(_matches(matched[:rows], by))
        _rest(console, len(matched), rows)
    if found.splits is None or found.merges is None:
        return
    for title, divided, whole, part in (
        ("splits: one feature of A, several of B", found.splits, found.a, found.b),
        ("merges: several features of A, one of B", found.merges, found.b, found.a),
    ):
        share = len(divided) / max(len(whole.features), 1)
        console.print(Text(f"\n{title}: {len(divided):,} ({share:.1%} of {len(whole.features):,})"))
        if divided:
            console.print(_splits(divided[:rows], whole, part))
            _rest(console, len(divided), rows)


def _rest(console: Console, n: int, rows: int) -> None:
    if n > rows:
        console.print(Text(f"... and {n - rows:,} more: --rows, --json", style="dim"))


def _measures(found: Relation) -> list[tuple[str, Measure]]:
    return [("decoder", found.decoder), ("activation", found.activation)]


def _figures(found: Relation) -> Table:
    table = Table(title="best matches; in brackets by chance", title_justify="left", box=None)
    for name in ("", "n", "mean", f">= {found.threshold:g}", "and mutual", "above chance"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, measure in _measures(found):
        if measure.there is None or measure.back is None:
            continue
        table.add_row(Text(MEASURES[name], style="bold"))
        for way, matched in (("A in B", measure.there), ("B in A", measure.back)):
            table.add_row(f"  {way}", *_cells(matched, found.threshold))
    table.caption = "above chance: better than 99 % of the best matches that mean nothing"
    return table


def _cells(matched: Matched, threshold: float) -> list[str]:
    row = summary(matched, threshold)
    if not row["features"]:
        return ["0", *["-"] * 4]
    nulls = list(row["null"].values())  # the harder one counts
    mean, share = (max((null[key] for null in nulls), default=0.0) for key in ("mean", "share"))
    return [
        f"{row['features']:,}", f"{row['mean']:.3f} ({mean:.3f})", f"{row['share']:.1%} ({share:.1%})",
        f"{row['share_mutual']:.1%}", "-" if row["above_chance"] is None else f"{row['above_chance']:.1%}",
    ]  # fmt: skip


def _matches(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> Table:
    table = Table(title="\nlabelled features of A and their best matches (= mutual)", title_justify="left", box=None)
    table.add_column("A", ratio=2)
    for name in by:
        table.add_column("", justify="right", no_wrap=True)
        table.add_column(f"B by {name}", ratio=2)
    for row in rows:
        cells: list[Text] = [said(row)]
        for name in by:
            match = row[name]
            cells += [Text("-"), Text("")] if match is None else [_number(match), said(match)]
        table.add_row(*cells)
    return table


def _number(match: dict[str, Any]) -> Text:
    return Text(f"{match['similarity']:.2f}{' =' if match['mutual'] else '  '}")


def _splits(rows: Sequence[Split], whole: Side, part: Side) -> Table:
    table = Table(box=None)
    for name in ("covered", "whole", "adds", "inside", "cosine", "part"):
        if name in {"whole", "part"}:
            table.add_column(name, ratio=1)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        for i, feature in enumerate(row.parts):
            first = (f"{row.covered:.0%}", said(described(whole, row.whole))) if i == 0 else ("", Text(""))
            cosine = "-" if row.cosine is None else f"{row.cosine[i]:.2f}"
            table.add_row(*first, f"{row.adds[i]:.0%}", f"{row.inside[i]:.0%}", cosine, said(described(part, feature)))
    return table


# -- the picture -------------------------------------------------------------------------------------------------------


def draw(found: Sequence[Relation], path: Path) -> Path:
    """Write the picture: a row per pair, best similarities of both sides against those by chance; its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 0.6 + 2.5 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(found), 2, squeeze=False, sharex=True)
    for line, relation in zip(grid, found, strict=True):
        for axes, (name, measure) in zip(line, _measures(relation), strict=True):
            _histogram(axes, relation, name, measure)
    figure.savefig(path, dpi=150)
    return path


def _histogram(axes: Any, relation: Relation, name: str, measure: Measure) -> None:
    a, b = _names(relation)
    axes.set(title=f"{a} | {b}", xlabel=f"best {MEASURES[name]}", ylabel="share of features")
    axes.title.set_fontsize(8)
    axes.spines[["top", "right"]].set_visible(False)
    if measure.there is None or measure.back is None:
        why = f"not compared:\n{measure.reason}"
        axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, fontsize=7, wrap=True)
        return
    greys = iter(("0.55", "0.8"))
    for null, values in measure.there.null.items():
        _steps(axes, values, f"by chance ({null})", next(greys), fill=True)
    _steps(axes, measure.there.best.similarity, f"{a} in {b}", "C0", fill=False)
    _steps(axes, measure.back.best.similarity, f"{b} in {a}", "C1", fill=False)
    axes.axvline(relation.threshold, color="0.4", linewidth=0.7, linestyle="--")
    axes.legend(frameon=False, fontsize=6.5)


def _names(found: Relation) -> tuple[str, str]:
    """What the two are called in the picture: their dictionaries' names, or what they were asked for by."""
    a, b = found.a, found.b
    if a.dictionary.name != b.dictionary.name:
        return a.dictionary.name, b.dictionary.name
    return Path(a.name).name, Path(b.name).name


def _steps(axes: Any, values: Any, label: str, colour: str, fill: bool) -> None:
    known = np.clip(values[~np.isnan(values)], BINS[0], BINS[-1])
    if len(known):
        style = {"alpha": 0.5, "histtype": "stepfilled"} if fill else {"histtype": "step", "linewidth": 1.2}
        axes.hist(known, bins=BINS, weights=np.full(len(known), 1 / len(known)), label=label, color=colour, **style)
