"""A comparison as tables on the terminal, and as a picture."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from autointerp.compare import Comparison, ComparisonError, Difference
from autointerp.text import printable

PICTURES = (".png", ".svg", ".pdf")
DRAWN = "r_rank"


def check_picture(path: Path) -> None:
    """Raises ComparisonError for a file that no picture can be written to."""
    if path.suffix not in PICTURES:
        raise ComparisonError(f"--picture {path}: expected a name that ends in {', '.join(PICTURES)}")
    if not path.absolute().parent.is_dir():
        raise ComparisonError(f"--picture {path}: there is no folder {path.absolute().parent}; make it first")


def to_terminal(found: Comparison, console: Console) -> None:
    """Who is compared, the differences, what each lost, and what became of verdicts."""
    for letter, names, seeds in zip("AB", (found.a, found.b), found.seeds.values(), strict=True):
        console.print(printable(f"{letter}  {', '.join(names)}  (seed {', '.join(map(str, seeds))})"), highlight=False)
    n = found.features
    console.print(
        f"{n['both']} features in both, {n['only_a']} in A alone, {n['only_b']} in B alone", highlight=False
    )
    if not found.same_collection:
        console.print("the runs are of different collections: their features were not graded on the same text")
    console.print(_differences(found.differences))
    for letter, reasons in zip("AB", found.lost.values(), strict=True):
        if reasons:
            lost = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
            console.print(printable(f"{letter} has no r_rank for: {lost}"), highlight=False)
    console.print(_verdicts(found))


def _differences(rows: list[Difference]) -> Table:
    title = "means over features that both have, and B - A"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("metric", "n", "A", "B", "B - A", "95 %", "B wins", "only A/B"):
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    for row in rows:
        mark = "" if row.lo is None or row.hi is None or row.lo <= 0 <= row.hi else " *"
        ends = "" if row.lo is None else f"{row.lo:+.3f}..{row.hi:+.3f}"
        share = "" if row.wins is None else f"{row.wins:.0%}"
        table.add_row(
            row.metric.replace("_", " "), str(row.n), _number(row.a), _number(row.b), _number(row.mean, "+") + mark,
            ends, share, f"{row.only_a}/{row.only_b}",
        )  # fmt: skip
    table.caption = f"* 0 is outside the interval, over features (r rank: {rows[0].over or 'no interval'})"
    return table


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _verdicts(found: Comparison) -> Table:
    """Verdicts of A in lines, of B in columns."""
    columns = sorted({verdict for counts in found.verdicts.values() for verdict in counts})
    table = Table(title="verdicts: of A in lines, of B in columns", title_justify="left", box=None)
    table.add_column("A \\ B")
    for verdict in columns:
        table.add_column(verdict.replace("_", " "), justify="right")
    for verdict, counts in found.verdicts.items():
        table.add_row(verdict.replace("_", " "), *(str(counts.get(column, 0)) for column in columns))
    return table


def draw(found: Comparison, path: Path) -> Path:
    """Write the picture: r_rank of every feature in A against B, and how the differences are spread; its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    scatter, spread = figure.subplots(1, 2)
    x, y = (np.array([row[i] for row in found.pairs[DRAWN]], dtype=np.float64) for i in (1, 2))
    ends = (min([0.0, *x, *y]) - 0.03, max([0.0, *x, *y]) + 0.03)
    scatter.plot(ends, ends, color="0.6", linewidth=0.8)
    scatter.scatter(x, y, s=12, alpha=0.7, linewidths=0)
    scatter.set(xlim=ends, ylim=ends, aspect="equal", xlabel="r_rank in A", ylabel="r_rank in B")
    row = next(row for row in found.differences if row.metric == DRAWN)
    if len(x):
        spread.hist(y - x, bins=min(max(len(x) // 3, 5), 40), color="0.75")
        spread.axvline(0, color="0.4", linewidth=0.8)
        spread.axvline(row.mean, color="C0", label=f"mean {row.mean:+.3f}")
    if row.lo is not None and row.hi is not None:
        ends_said = f"95 %: {row.lo:+.3f} to {row.hi:+.3f}"
        spread.axvspan(row.lo, row.hi, color="C0", alpha=0.2, linewidth=0, label=ends_said)
    if len(x):
        spread.legend(frameon=False, fontsize=8)
    spread.set(xlabel="r_rank, B - A", ylabel="features")
    for axes in (scatter, spread):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path
