"""Output labels with their grades, beside the causal scores of input labels: JSON, figures, lines."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from autointerp.report import number
from autointerp.store_outputs import METRICS, ORDER, Said, speaking

Mean = Callable[[Sequence[float | None]], dict[str, Any]]
NUMBERS = {  # figure -> metric, what is made of it, and the metric that says what chance gives
    "output_causal": ("output_causal", "mean", None), "output_share": ("output_p", "share", "output_chance"),
    "output_own": ("output_own", "mean", None), "output_own_share": ("output_own_p", "share", None),
    "output_unseen": ("output_unseen", "mean", None),
    "output_unseen_share": ("output_unseen_p", "share", "output_unseen_chance"),
    "output_unseen_own": ("output_unseen_own", "mean", None),
    "output_unseen_own_share": ("output_unseen_own_p", "share", None),
}  # fmt: skip


def as_json(said: Sequence[Said]) -> dict[str, Any]:
    """`output`, the label that speaks for the feature, None where none does; `outputs`, of every method."""
    one = speaking(said)
    return {"output": None if one is None else plain(one), "outputs": [plain(other) for other in said]}


def plain(one: Said) -> dict[str, Any]:
    """A label with its grades and the words that it is made of."""
    row, own = one.row, one.scores.get("output_causal")
    return {
        "method": row.method, "model": row.model, "kl": row.kl, "label": row.label, "reason": row.reason,
        **{metric: one.value(metric) for metric in METRICS}, "output_causal_lo": own.lo if own else None,
        "output_causal_hi": own.hi if own else None, "promoted": row.promoted, "suppressed": row.suppressed,
        "reasons": {metric: score.reason for metric, score in one.scores.items() if score.reason is not None},
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]], level: float, mean: Mean) -> dict[str, Any]:
    """Of the labels that speak (`speaking`) and of each method: how many, why there is none, and means over those."""
    by = {"speaking": [row["output"] for row in rows if row["output"]]}
    tried = [one for row in rows for one in row["outputs"]]
    lost: dict[str, Counter[str]] = {}
    for one in tried:
        if one["label"] is None:
            lost.setdefault(one["method"], Counter())[one["reason"]] += 1
        else:
            by.setdefault(one["method"], []).append(one)
    return {
        name: {"labels": len(by.get(name, [])), "none": dict(lost.get(name, {}))}
        | _figures(by.get(name, []), level, mean)
        for name in ("speaking", *ORDER) if by.get(name) or lost.get(name)
    }  # fmt: skip


def _figures(found: Sequence[dict[str, Any]], level: float, mean: Mean) -> dict[str, Any]:
    figures = {}
    for name, (metric, kind, chance) in NUMBERS.items():
        values = [one[metric] for one in found]
        told = values if kind == "mean" else [None if p is None else float(p <= level) for p in values]
        null = 0.0 if kind == "mean" else level
        if chance is not None:  # of random directions' own labels, which is far from the level
            null = mean([one[chance] for one in found])["mean"]
        figures[name] = mean(told) | {"chance": null}
    return figures


def lines(found: dict[str, Any]) -> list[str]:
    """What the figures of the labels that speak say, and those of each method in short; none without output labels."""
    if "speaking" not in found:
        return []

    def told(name: str, spec: str, key: str = "speaking") -> str:
        it = found[key][name]
        ends = f"[{number(it['lo'], spec)}, {number(it['hi'], spec)}]"
        return f"{number(it['mean'], spec)} {ends}, chance {number(it['chance'], spec)}, n = {it['n']}"

    text = [
        "does    nats by which the output label's tokens rise above what random directions do: "
        + told("output_causal", "+.2f"),
        f"        above 95 % of random directions: {told('output_share', '.0%')}",
        "        (made of what its direction raises, on other texts: chance is of random directions' own labels)",
        f"        above the mean of random directions' own labels, nats: {told('output_own', '+.2f')}",
        f"        above 95 % of random directions' own labels: {told('output_own_share', '.0%')}",
        f"        words near the label that it was not made of, nats: {told('output_unseen', '+.2f')}",
        f"        above 95 % of random directions: {told('output_unseen_share', '.0%')}",
        f"        above 95 % of random directions' own: {told('output_unseen_own_share', '.0%')}",
    ]
    for method in ORDER:
        if method in found:
            lost = "".join(f", {n} {reason}" for reason, n in sorted(found[method]["none"].items()))
            text.append(
                f"        {method}: {found[method]['labels']} labels{lost}; above 95 % of random directions' own: "
                + told("output_own_share", ".0%", method)
            )
    return text
