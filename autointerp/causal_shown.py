"""Causal scores of a run: the figures of the whole, JSON and the terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp import causal_judge, metrics, outputs_shown
from autointerp.causal import BOOTSTRAP, LEVEL, METRICS, causal_id
from autointerp.outputs import labeller_ids
from autointerp.report import Label, Reading, number
from autointerp.rows import Score
from autointerp.show import visible
from autointerp.store import Store
from autointerp.store_causal import causal_scores
from autointerp.store_outputs import said_by


def as_json(reading: Reading, store: Store, labels: Sequence[Label], kl: float) -> dict[str, Any]:
    """`summary` over these labels, and `features`: each with its label, its grade and all numbers or their reasons, and
    with its output labels and theirs."""
    key = causal_id(reading.settings, kl)
    by: dict[str, dict[str, Score]] = {}
    for score in causal_scores(store, [label.explanation_id or "" for label in labels], key):
        by.setdefault(score.explanation_id, {})[score.metric] = score
    for score in causal_scores(store, list(by), causal_judge.judge_id(reading.settings, kl)):
        by[score.explanation_id][score.metric] = score
    rows = [_row(label, by[label.explanation_id]) for label in labels if label.explanation_id in by]
    makers = list(labeller_ids(reading.settings, kl, ask=True).values())
    said = said_by(store, reading.run.collection_id, makers)
    rows = [row | outputs_shown.as_json(said.get(row["feature"], [])) for row in rows]
    return {
        "run": reading.run.name, "kl": kl, "causal_id": key,
        "summary": summary(rows) | {"outputs": outputs_shown.summary(rows, LEVEL, _mean)}, "features": rows,
    }  # fmt: skip


def _row(label: Label, found: dict[str, Score]) -> dict[str, Any]:
    numbers = {metric: found[metric].value for metric in (*METRICS, causal_judge.METRIC) if metric in found}
    own, reasons = found.get("causal"), {m: s.reason for m, s in found.items() if s.reason is not None}
    return {
        "feature": label.feature, "feature_id": label.feature_id, "label": label.label, "verdict": label.verdict,
        "r_rank": label.r_rank, **numbers, "causal_lo": own.lo if own else None, "causal_hi": own.hi if own else None,
        "reasons": reasons,
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the features that have the number, with bootstrap intervals over features, and what chance gives."""
    return {
        "features": len(rows),
        "causal": _mean([row.get("causal") for row in rows]) | {"chance": 0.0},
        "causal_share": _mean([_below(row.get("causal_p")) for row in rows]) | {"chance": LEVEL},
        "causal_beaten": _mean([_beaten(row.get("causal_p")) for row in rows]) | {"chance": 0.5},
        "causal_others": _mean([row.get("causal_others") for row in rows]) | {"chance": 0.5},
        "causal_choice": _mean([row.get("causal_choice") for row in rows]) | {"chance": 1 / causal_judge.CHOICES},
        "lens_agreement": _mean([row.get("lens_agreement") for row in rows]) | {"chance": 0.0},
        "lens_beaten": _mean([_beaten(row.get("lens_agreement_p")) for row in rows]) | {"chance": 0.5},
        "lens_share": _mean([_below(row.get("lens_agreement_p")) for row in rows]) | {"chance": LEVEL},
        "r_rank_spearman": _spearman(rows),
    }


def _below(p: float | None) -> float | None:
    return None if p is None else float(p <= LEVEL)


def _beaten(p: float | None) -> float | None:
    """Share of random directions below; a little less, because p counts one's own value among those above."""
    return None if p is None else 1 - p


def _mean(values: Sequence[float | None]) -> dict[str, float | int | None]:
    found = np.array([value for value in values if value is not None], dtype=np.float64)
    interval = metrics.mean_interval(found, BOOTSTRAP, np.random.default_rng([0, len(found)]))
    return {"mean": interval.value, "lo": interval.lo, "hi": interval.hi, "n": len(found)}


def _spearman(rows: Sequence[dict[str, Any]]) -> float | None:
    """Rank correlation of the causal score with the grade: how far the two axes are one."""
    from scipy.stats import rankdata  # takes a second to import

    pairs = [(row["causal"], row["r_rank"]) for row in rows if None not in (row.get("causal"), row["r_rank"])]
    if len(pairs) < 3:
        return None
    own, grade = (rankdata(side) for side in zip(*pairs, strict=True))
    return metrics.correlation(own, grade)


def to_terminal(found: dict[str, Any], console: Console) -> None:
    """A line per label, the largest score first, below it the feature's output label, and the figures of the whole."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("feature", justify="right", style="cyan")
    table.add_column("label", ratio=1, overflow="fold")
    for name in ("causal", "95 %", "p", "others", "strength", "lens p", "r_rank", "own p"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(found["features"], key=lambda row: (row["causal"] is None, -(row["causal"] or 0.0))):
        ends = _ends(row["causal_lo"], row["causal_hi"])
        cells = (row.get("causal_p"), row.get("causal_others"), row.get("causal_strength"), row.get("lens_agreement_p"))
        causal = number(row["causal"], "+.2f") if row["causal"] is not None else row["reasons"].get("causal", "-")
        table.add_row(
            str(row["feature"]), Text(visible(row["label"])), causal, ends, *map(number, cells), number(row["r_rank"])
        )
        if (does := row["output"]) is not None:
            ends = _ends(does["output_causal_lo"], does["output_causal_hi"])
            table.add_row(
                "", Text(f"does: {visible(does['label'])}", style="dim"), number(does["output_causal"], "+.2f"), ends,
                number(does["output_p"]), "", "", "", "", number(does["output_own_p"]),
            )  # fmt: skip
    console.print(table)
    for line in lines(found):
        console.print(Text(line))


def _ends(lo: float | None, hi: float | None) -> str:
    return "-" if lo is None or hi is None else f"{lo:.2f}..{hi:.2f}"


def lines(found: dict[str, Any]) -> list[str]:
    """The figures of the whole, one fact a line, each with its interval, its n and what chance gives."""
    s = found["summary"]

    def told(name: str, spec: str) -> str:
        it = s[name]
        ends = f"[{number(it['lo'], spec)}, {number(it['hi'], spec)}]"
        return f"{number(it['mean'], spec)} {ends}, chance {it['chance']:{spec}}, n = {it['n']}"

    return [
        f"causal  at a KL of {found['kl']:g}, nats by which the label's tokens rise above what random directions do: "
        + told("causal", "+.2f"),
        f"        above 95 % of random directions: {told('causal_share', '.0%')}",
        f"        share of random directions below: {told('causal_beaten', '.0%')}",
        f"        share of other labels' tokens below: {told('causal_others', '.0%')}",
        *([f"judge   chooses the feature's text: {told('causal_choice', '.0%')}"] if s["causal_choice"]["n"] else []),
        "lens    promoted words nearer to the label than those of 95 % of random directions: "
        + told("lens_share", ".0%"),
        f"        random directions whose promoted words are further from it: {told('lens_beaten', '.0%')}",
        f"r_rank  rank correlation with the causal score: {number(s['r_rank_spearman'])}",
        *outputs_shown.lines(s["outputs"]),
    ]
