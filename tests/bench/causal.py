"""`python -m tests.bench.causal RUN OUT.json`: the causal scores of a finished run, and a picture beside them.

RUN is a results folder in which `autointerp causal` has been run. OUT.json is what its --json gives.
"""

import json
import sys
from pathlib import Path
from typing import Any

from autointerp import causal, causal_shown, report
from autointerp.store import Store


def draw(found: dict[str, Any], path: Path) -> None:
    """The picture: every label with its interval, and the score beside the grade by which labels are chosen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted((row for row in found["features"] if row["causal"] is not None), key=lambda row: row["causal"])
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1], sharey=True)
    for place in (left, right):
        place.axhline(0, color="0.6", linewidth=0.8)
        place.spines[["top", "right"]].set_visible(False)
    for beats, colour, name in ((True, "tab:green", "above 95 % of random directions"), (False, "0.55", "not above")):
        chosen = [(i, row) for i, row in enumerate(rows) if (row["causal_p"] <= causal.LEVEL) is beats]
        left.vlines(
            [i for i, _ in chosen], [r["causal_lo"] for _, r in chosen], [r["causal_hi"] for _, r in chosen],
            color=colour, linewidth=1,
        )  # fmt: skip
        left.plot([i for i, _ in chosen], [r["causal"] for _, r in chosen], "o", color=colour, markersize=3, label=name)
        graded = [(r["r_rank"], r["causal"]) for _, r in chosen if r["r_rank"] is not None]
        right.plot([x for x, _ in graded], [y for _, y in graded], "o", color=colour, markersize=4)
    left.set(
        xlabel="labelled features, by score", ylabel="causal: nats above random directions",
        title=f"the label's tokens at a KL of {found['kl']:g}",
    )  # fmt: skip
    left.legend(frameon=False, fontsize=8)
    spearman = found["summary"]["r_rank_spearman"]
    right.set(xlabel="r_rank: does the label say when it fires?", title=f"two axes: rank correlation {spearman:.2f}")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main(run: Path, out: Path) -> None:
    """Read, write, draw."""
    with Store.read(run / "run.duckdb") as store:
        reading = report.read(store)
        found = causal_shown.as_json(reading, store, causal.labelled(reading), causal.KL)
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    draw(found, out.with_suffix(".png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
