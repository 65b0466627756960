"""`python -m tests.bench.coverage OUT.json [FEATURES]`: nominal against actual coverage of r_pop's interval.

On planted truth, by the reference simulator: labels whose correlation over the whole score split is known, at nominal
levels of 50 to 99 %. Writes the JSON, and a picture beside it. FEATURES per density, 146 as in `autointerp certify`.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from autointerp import config, grades
from autointerp.candidates import Planted, Size, plant, reference_scorers
from autointerp.certify import INTERVALS
from autointerp.metrics import Cell
from autointerp.planted import RUNGS
from autointerp.store import Store
from autointerp.tally import Bar
from autointerp.trials import Scorer

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def measure(found: Planted, scorer: Scorer, draws: int, bar: Bar) -> dict[str, Any]:
    """Density (or `all`) -> n labels, and the share of intervals that hold the truth at each of LEVELS."""
    bench = found.bench
    wanted = [(i, rung) for i, labels in enumerate(found.labels) for rung in INTERVALS if rung in labels]
    cells: dict[tuple[int, str], list[Cell]] = {}
    bar.start("draw", total=len(wanted), unit="labels")
    for i, rung in wanted:
        cells[i, rung] = bench.own_cells(bench.sheet(i), found.labels[i][rung], scorer)
        bar.advance()
    pools = grades.backgrounds(list(cells.values()))
    held: dict[str, list[list[bool]]] = defaultdict(list)
    bar.start("intervals", total=len(wanted), unit="labels")
    for i, rung in wanted:
        truth = bench.census(i, found.labels[i][rung].text, scorer)
        inside = []
        for level in LEVELS:
            random = np.random.default_rng([bench.seed, i, RUNGS.index(rung)])
            interval = grades.r_pop(cells[i, rung], pools, bench.panel_share, draws, random, level)
            if truth is not None and interval.lo is not None and interval.hi is not None:
                inside.append(interval.lo <= truth <= interval.hi)
        if len(inside) == len(LEVELS):
            for name in ("all", f"{found.features[i].density:g}"):
                held[name].append(inside)
        bar.advance()
    return {name: {"n": len(rows), "covered": np.mean(rows, axis=0).round(4).tolist()} for name, rows in held.items()}


def draw(found: dict[str, Any], path: Path) -> None:
    """The picture: a line per density; above the diagonal an interval is wider than it says, below narrower."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(found["scorers"]), squeeze=False, sharey=True)[0]
    for place, (scorer, by) in zip(axes, found["scorers"].items(), strict=True):
        place.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=0.8)
        for name, row in by.items():
            style = {"color": "black", "linewidth": 2} if name == "all" else {"linewidth": 1.2}
            place.plot(found["levels"], row["covered"], marker="o", markersize=3, label=f"{name} (n {row['n']})", **style)
        place.set(title=scorer, xlabel="nominal", ylabel="actual coverage of r_pop" if place is axes[0] else "")
        place.legend(title="density", frameon=False, fontsize=8)
        place.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main(out: Path, per_density: int) -> None:
    """Measure, write, draw."""
    settings = config.load(None)
    size = Size(per_density=per_density, noise=4, rare=4)
    with Store.memory() as store, Bar() as bar:
        found = plant(settings, store, size, bar)
        scorers = {s.name: measure(found, s, size.draws, bar) for s in reference_scorers(found, settings.run.seed)}
    result = {"levels": LEVELS, "draws": size.draws, "features_per_density": per_density, "scorers": scorers}
    out.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, out.with_suffix(".png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else Size().per_density)
