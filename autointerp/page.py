"""The report as one HTML page: opens from disk, loads nothing, and runs no script but its own.

Token text and labels are untrusted. They reach the page through jinja2's autoescape, as text alone, and a content
security policy lets only the page's own script run: the one whose hash it names.
"""

import base64
import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from autointerp import by_explainer
from autointerp.report import Label, Reading, fit_line, number, scorer_line
from autointerp.show import KINDS, Context, Found, Library, visible, window
from autointerp.store import Store
from autointerp.verdicts import MEANING, WORDS

TEMPLATES = Path(__file__).parent / "templates"
AROUND = 31  # tokens shown on either side of the peak of a context
WHOLE = 300  # features of a run, at most, that are all shown with contexts; of a larger one some are chosen
BEST, WORST, EACH = 40, 40, 20  # of those: the best and the worst grades, and some of each verdict at random
CONTEXTS = {"evidence": 3, "top": 4, "sample": 4, "B": 3}  # of each kind, per feature
# A page stays below 5 MB whatever is in it: bytes for features with contexts, for lines of the others, for one feature.
DETAILED, LISTED, FEATURE = 3_300_000, 900_000, 150_000
LABEL = 160  # characters of a label among the others
POINTS = 2_000  # of the scatter
FAINT = 0.05  # predictions below this share of the largest are not drawn

# Colours that matplotlib writes, and what the page's style sheet makes of them, so that charts follow dark mode.
INK, ACCENT, SECOND, THIRD = "#010203", "#010204", "#010205", "#010206"
_CSS = {INK: "currentColor", ACCENT: "var(--accent)", SECOND: "var(--second)", THIRD: "var(--muted)"}


class Piece(NamedTuple):
    """A run of text that is drawn alike: strengths in tenths of the feature's largest, 0 for none."""

    text: str
    actual: int
    predicted: int
    note: str  # the numbers, for a pointer that rests on it


@dataclass(frozen=True)
class Row:
    """One feature with its contexts."""

    label: Label
    text: str
    found: Found
    contexts: list[tuple[str, list[tuple[Context, list[Piece]]]]]  # heading -> contexts


def render(reading: Reading, store: Store) -> str:
    """The page of a run: all of its features, or those of `chosen` with contexts and a line for as many as fit."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters |= {"number": figure, "visible": visible, "share": _share}
    environment.filters |= {"fit_line": fit_line, "scorer_line": scorer_line}
    environment.globals |= {"meaning": MEANING, "explainers": by_explainer}
    script = (TEMPLATES / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rows, others = _features(reading, store, environment)
    return environment.get_template("report.html.j2").render(
        r=reading, s=reading.summary, c=reading.collection, rows=list(rows.values()), first=next(iter(rows), 17),
        others=others, left=len(reading.labels) - len(rows) - len(others), script=Markup(script), digest=digest,
        style=Markup((TEMPLATES / "report.css").read_text("utf-8")), reasons=_reasons(reading),
        distribution=_distribution(reading.labels), scatter=_scatter(reading.labels),
    )  # fmt: skip


def _reasons(reading: Reading) -> dict[str, int]:
    """Every reason for which a selected feature has no grade -> number of features."""
    counts: dict[str, int] = {}
    for label in reading.labels:
        if label.r_rank is None:
            reason = label.reason or "unknown"
            counts[reason] = counts.get(reason, 0) + 1
    return counts


# -- features ----------------------------------------------------------------------------------------------------------


def chosen(labels: list[Label], seed: int) -> list[Label]:
    """The features that a page shows with contexts, best first; those without a grade come last.

    All of a small run. Of a larger one the best and the worst grades, and some of each verdict at random.
    """
    ranked = sorted(labels, key=lambda label: (-(-2 if label.r_rank is None else label.r_rank), label.feature))
    if len(labels) <= WHOLE:
        return ranked
    graded = [label.feature for label in ranked if label.r_rank is not None]
    wanted = {*graded[:BEST], *graded[-WORST:]}
    by_verdict: dict[str, list[int]] = {}
    for label in labels:
        by_verdict.setdefault(label.verdict or "unjudged", []).append(label.feature)
    for place, word in enumerate((*WORDS, "unjudged")):
        random = np.random.default_rng([seed, 0x70616765, place])
        wanted |= set(random.permutation(np.array(by_verdict.get(word, []), dtype=np.int64))[:EACH].tolist())
    return [label for label in ranked if label.feature in wanted]


def _features(reading: Reading, store: Store, environment: Environment) -> tuple[dict[int, Markup], list[Markup]]:
    """Feature -> its rows of the table, and the lines of the others, best first; as many of each as there is room for.

    Bytes are counted as they are made, because neither labels nor tokens have a largest length.
    """
    whole, line = (environment.get_template(f"report_{name}.html.j2") for name in ("feature", "line"))
    library = Library(reading, store)
    rows: dict[int, Markup] = {}
    room = DETAILED
    for label in chosen(reading.labels, reading.settings.run.seed):
        made = whole.render(row=_row(label, library), l=label)
        size = len(made.encode())
        if size <= min(room, FEATURE):
            rows[label.feature] = Markup(made)
            room -= size
    others, room = [], LISTED
    ranked = sorted(reading.labels, key=lambda label: (-(-2 if label.r_rank is None else label.r_rank), label.feature))
    for label in ranked:
        if label.feature in rows:
            continue
        made = line.render(l=label, text=_cut(_text(label)))
        room -= len(made.encode())
        if room < 0:
            break
        others.append(Markup(made))
    return rows, others


def _text(label: Label) -> str:
    return visible(label.label) if label.label is not None else f"({label.reason})"


def _cut(text: str) -> str:
    return text if len(text) <= LABEL else text[:LABEL] + "…"


def _row(label: Label, library: Library) -> Row:
    found = library.look_up(str(label.feature), max(CONTEXTS.values()))
    contexts = [
        (KINDS[kind], [(context, pieces(context, found)) for context in found.contexts[kind][:limit]])
        for kind, limit in CONTEXTS.items() if found.contexts[kind]
    ]  # fmt: skip
    return Row(label, _text(label), found, contexts)


def pieces(context: Context, found: Found) -> list[Piece]:
    """The passage around its peak, in runs of text that are drawn alike."""
    shown = window(context, AROUND, AROUND)
    result: list[Piece] = [Piece("…", 0, 0, "")] if shown.start > 0 else []
    for i in shown:
        actual, guess = context.activations[i], context.predicted[i] if context.predicted else 0.0
        text, fires = visible(context.strings[i]), tenths(actual / (found.max_activation or 1.0))
        predicted = tenths(guess / (found.max_predicted or 1.0), FAINT)
        if fires or predicted:
            notes = [f"activation {actual:.2f}"] + ([f"predicted {guess:.2f}"] if context.predicted else [])
            result.append(Piece(text, fires, predicted, ", ".join(notes)))
        elif result and not result[-1].note:
            result[-1] = result[-1]._replace(text=result[-1].text + text)
        else:
            result.append(Piece(text, 0, 0, ""))
    return [*result, Piece("…", 0, 0, "")] if shown.stop < len(context.strings) else result


def tenths(share: float, faint: float = 0.0) -> int:
    """1 to 9 for a share of the largest, 0 for nothing to draw."""
    return 0 if share <= faint else max(1, min(9, round(share * 9)))


def figure(value: float | None, spec: str = ".2f") -> str:
    """A number as it is set on the page: a true minus, no minus before a rounded zero, a dash for none."""
    text = number(value, spec) if value is not None else "–"
    return text.replace("-", "−") if any(c in "123456789" for c in text) or value is None else text.lstrip("+-")


def _share(value: float | None, low: float = -0.2) -> str:
    """Where a grade lies on the interval bar, which runs from -0.2 to 1, in per cent."""
    return f"{100 * (min(max(value if value is not None else low, low), 1.0) - low) / (1.0 - low):.1f}"


# -- charts ------------------------------------------------------------------------------------------------------------


def _distribution(labels: list[Label]) -> Markup | None:
    """Histogram of r_rank with the token look-up table and the shuffled labels beside it; None without grades."""
    ranks = [label.r_rank for label in labels if label.r_rank is not None]
    if not ranks:
        return None
    with _Chart() as chart:
        lookup, null = ([v for label in labels if (v := getattr(label, m)) is not None] for m in ("r_tok", "null"))
        low = min([*ranks, *lookup, *null, 0.0])
        bins = np.arange(np.floor(low * 20) / 20, 1.0501, 0.05)
        chart.axes.hist(ranks, bins=bins, color=ACCENT, alpha=0.75, label="labels (r_rank)", rwidth=0.9)
        chart.axes.hist(lookup, bins=bins, histtype="step", color=SECOND, lw=1.8, label="token look-up (r_tok)")
        # Null labels all lie near 0: their peak must not flatten the distribution that the page is about.
        tallest, peak = (max(np.histogram(v, bins=bins)[0].max() for v in of) for of in ((ranks, lookup), (null,)))
        top = tallest * 1.35
        name = "others' labels (null)" + (f", peak {peak} cut off" if peak > top else "")
        chart.axes.hist(null, bins=bins, histtype="step", color=THIRD, lw=1.4, ls="--", label=name)
        chart.axes.set_ylim(0, top)
        chart.axes.set_xlabel("correlation with the true activations, on text nobody has seen")
        chart.axes.set_ylabel("features")
        chart.axes.legend(frameon=False, labelcolor=INK, loc="upper right")
    return chart.svg


def _scatter(labels: list[Label]) -> Markup | None:
    """Density against r_rank, one point a feature, of a large run evenly spaced ones; None without grades."""
    points = [(label.density, label.r_rank) for label in labels if label.r_rank is not None and label.density > 0]
    if not points:
        return None
    points = points[:: -(-len(points) // POINTS)]
    with _Chart() as chart:
        chart.axes.scatter(*zip(*points, strict=True), s=26, color=ACCENT, alpha=0.65, linewidths=0)
        chart.axes.set_xscale("log")
        chart.axes.axhline(0, color=THIRD, lw=0.8, alpha=0.6)
        chart.axes.set_xlabel("density: share of tokens on which the feature fires (log)")
        chart.axes.set_ylabel("r_rank")
    return chart.svg


class _Chart:
    """Axes to draw on; afterwards `svg` holds the chart, coloured by the page's style sheet."""

    svg: Markup
    axes: Any

    def __enter__(self) -> "_Chart":
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        # Text stays text (readable, and in the page's font); a fixed salt makes the same run give the same bytes.
        self._style = rc_context({
            "svg.fonttype": "none", "svg.hashsalt": "autointerp", "font.size": 10, "axes.spines.top": False,
            "axes.spines.right": False, **dict.fromkeys(
                ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
        })  # fmt: skip
        self._style.__enter__()
        self._figure = Figure(figsize=(6.2, 3.3), layout="constrained")
        FigureCanvasSVG(self._figure)
        self.axes = self._figure.subplots()
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            if exc[0] is None:
                buffer = io.StringIO()
                nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
                self._figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
                self.svg = _inline(buffer.getvalue())
        finally:
            self._style.__exit__(*exc)


def _inline(svg: str) -> Markup:
    """An SVG file as an element of the page: no prologue, no style for `*`, no size, colours of the style sheet."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', svg, count=1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    return Markup(svg)  # made of numbers and of words in this file, nothing untrusted
