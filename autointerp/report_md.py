"""The report as Markdown: the figures of the whole and the best and worst labels, for a wiki, a pull request, a mail.

Text of the run is untrusted: every character that Markdown or HTML could act on is escaped, so that it reads as it is.
"""

import re
from collections.abc import Iterable
from typing import Any

from autointerp import by_explainer
from autointerp.report import Label, Reading, fit_line, number, scorer_line
from autointerp.show import visible
from autointerp.verdicts import MEANING

SHOWN = 20  # labels at either end
LABEL = 160  # characters of one
COLUMNS = ("feature", "label", "verdict", "r_rank", "95 %", "r_tok", "lift")
_ACTS = re.compile(r"([\\`*_\[\]<>|~&$#!@:{}]|(?<=www)\.)")


def render(reading: Reading) -> str:
    """The text, a few kB at any size of the run."""
    s, c = reading.summary, reading.collection
    rank, kinds = s["r_rank"], s["population"]
    graded = sorted((x for x in reading.labels if x.r_rank is not None), key=lambda x: (-(x.r_rank or 0.0), x.feature))
    facts = {
        "dictionary": f"{c['dictionary']} ({c['architecture']}, {c['width']:,} features) at {c['hookpoint']} of "
                      f"{c['subject']}",
        "text": f"{sum(c['n_tokens']):,} tokens of {sum(c['n_documents']):,} documents from {c['corpus']}",
        "features": f"{len(reading.labels):,} selected; {kinds['live']:,} live: {kinds['eligible']:,} eligible, "
                    f"{kinds['dense']:,} dense, {kinds['too_rare']:,} too rare; {kinds['dead']:,} dead",
        "who graded": scorer_line(s["scorer"]),
        "does it encode": fit_line(s["fit"]),
        "r_rank": f"mean {number(rank['mean'])} (95 % interval {number(rank['lo'])} to {number(rank['hi'])}), median "
                  f"{number(rank['median'])}, n = {rank['n']:,}; lost: {_counts(rank['lost'])}",
        "token look-up, r_tok": f"mean {number(s['r_tok']['mean'])}, n = {s['r_tok']['n']:,}; {s['beats_lookup']:,} "
                                "labels beat it",
        "labels of others, null": f"mean {number(s['null']['mean'])}, n = {s['null']['n']:,}",
        "models": _spent(s["llm"]),
    }  # fmt: skip
    parts = [f"# {_text(reading.run.name)}", *(f"- **{name}**: {_text(value)}" for name, value in facts.items())]
    parts += _table("Verdicts", ("verdict", "n", "meaning"), (
        (word.replace("_", " "), f"{n:,}", MEANING.get(word, "no label, or no grade yet"))
        for word, n in s["verdicts"].items()
    ))  # fmt: skip
    if len(s["by_explainer"]) > 1:
        parts += _table("Explainers", by_explainer.HEADER, by_explainer.cells(s["by_explainer"]))
        parts += ["", _text(by_explainer.caption(s["by_explainer"]) + ".")]
    if s["spent"]:
        parts += ["", "## Models asked", "", *(f"- {_text(line)}" for line in by_explainer.spent_lines(s["spent"]))]
    if s["categories"]:
        shown = list(s["categories"].items())[:SHOWN]
        more = f" (the largest {SHOWN} of {len(s['categories'])})" if len(s["categories"]) > SHOWN else ""
        parts += _table(f"Categories{more}", ("category", "labels", "mean r_rank", "n"), (
            (name, f"{x['labels']:,}", number(x["mean"]), f"{x['n']:,}") for name, x in shown
        ))  # fmt: skip
    # Of a small run the two tables together are all of it, and no label stands in both.
    half = min(SHOWN, -(-len(graded) // 2))
    worst = graded[half:][-SHOWN:]
    for title, labels in ((f"The best {half} labels", graded[:half]), (f"The worst {len(worst)}", worst)):
        if labels:
            parts += _table(title, COLUMNS, map(_row, labels))
    parts += _table("Stages", ("stage", "ok", "failed", "seconds"), (
        (name, f"{x['ok']:,}", _counts(x["failed"]), number(x["seconds"], ",.1f")) for name, x in s["stages"].items()
    ))  # fmt: skip
    return "\n".join(parts) + "\n"


def _row(label: Label) -> tuple[str, ...]:
    text = label.label or ""
    return (
        str(label.feature), text if len(text) <= LABEL else text[:LABEL] + "…",
        (label.verdict or "-").replace("_", " "), number(label.r_rank),
        f"{number(label.r_rank_lo)} to {number(label.r_rank_hi)}", number(label.r_tok), number(label.lift, "+.2f"),
    )  # fmt: skip


def _table(title: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [[_text(cell) for cell in row] for row in rows]
    return ["", f"## {title}", "", *(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *lines))]


def _text(text: str) -> str:
    """Text that reads as it is wherever it stands."""
    shown = _ACTS.sub(r"\\\1", visible(text)).strip()
    return re.sub(r"^(\d+)(?=[.)])|^(?=[-+=])", lambda m: (m[1] or "") + "\\", shown)


def _counts(found: dict[str, Any]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in found.items()) or "none"


def _spent(llm: dict[str, Any]) -> str:
    if not llm["calls"]:
        return "none was asked"
    unknown = f", and {llm['unpriced']:,} calls of unknown price" if llm["unpriced"] else ""
    return (
        f"{llm['calls']:,} calls, {llm['input_tokens']:,} tokens in, {llm['output_tokens']:,} out, "
        f"${llm['usd']:.4f}{unknown}"
    )
