"""Charts of the served pages as plain shapes: numbers in, coordinates out; the template draws them as SVG.

A template and not a plotting library, because each point is a link and the colours follow the page's style sheet.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from autointerp.report import Label
from autointerp.store_catalog import Line

WIDTH, HEIGHT = 560.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 12.0, 14.0, 44.0
BIN = 0.05  # of a grade


class Tick(NamedTuple):
    """A mark on an axis."""

    at: float
    text: str


class Bar(NamedTuple):
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    title: str


class Dot(NamedTuple):
    """A point of a scatter: a feature."""

    x: float
    y: float
    line: Line


class Chart(NamedTuple):
    """Shapes within WIDTH x HEIGHT, y downwards."""

    x: list[Tick]
    y: list[Tick]
    bars: list[Bar]
    paths: dict[str, str]  # CSS class -> outline
    dots: list[Dot]


def grades(labels: Iterable[Label]) -> Chart | None:
    """Histogram of r_rank, with the outlines of token look-up (r_tok) and others' labels (null); None without any."""
    labels, names = list(labels), ("r_rank", "r_tok", "null")
    found = {name: [v for label in labels if (v := getattr(label, name)) is not None] for name in names}
    if not found["r_rank"]:
        return None
    low = math.floor(min(0.0, *(v for values in found.values() for v in values)) / BIN)
    edges = list(range(low, round(1 / BIN) + 1))
    counts = {name: _counts(values, edges) for name, values in found.items()}
    # Null labels all lie near 0: their peak must not flatten the distribution that the chart is about.
    top = 1.15 * max(*counts["r_rank"], *counts["r_tok"], 1)
    x = _scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y = _scale(0, top, HEIGHT - BOTTOM, TOP)
    bars = [
        Bar(x(edge) + 1, y(n), x(edge + 1) - x(edge) - 2, y(0) - y(n),
            f"{n} labels with r_rank from {edge * BIN:.2f} to {(edge + 1) * BIN:.2f}")
        for edge, n in zip(edges, counts["r_rank"], strict=False) if n
    ]  # fmt: skip
    paths = {name: _outline(edges, [min(n, top) for n in counts[name]], x, y) for name in ("r_tok", "null")}
    marks = [Tick(x(e), f"{e * BIN:.1f}".replace("-", "−")) for e in edges if e % 4 == 0]
    return Chart(marks, [Tick(y(n), f"{n:,}") for n in _steps(top)], bars, paths, [])


def scatter(lines: Sequence[Line]) -> Chart | None:
    """Density against mean activation, a point a feature, both axes of powers of ten; None without points."""
    points = [(line.density, line.mean, line) for line in lines if line.density > 0 and line.mean]
    if not points:
        return None
    x, across = _log([density for density, _, _ in points], LEFT, WIDTH - RIGHT, percent=True)
    y, up = _log([mean for _, mean, _ in points], HEIGHT - BOTTOM, TOP, percent=False)
    return Chart(across, up, [], {}, [Dot(round(x(d), 1), round(y(m), 1), line) for d, m, line in points])


def strengths(histogram: Sequence[int], largest: float) -> Chart | None:
    """Firing tokens by half-octaves of activation; None for a feature that never fired."""
    if not any(histogram):
        return None
    first = next(i for i, n in enumerate(histogram) if n)
    last = max(i for i, n in enumerate(histogram) if n) + 1
    x, y = _scale(first, last, LEFT, WIDTH - RIGHT), _scale(0, 1.1 * max(histogram), HEIGHT - BOTTOM, TOP)
    bars = [
        Bar(x(i) + 1, y(n), x(i + 1) - x(i) - 2, y(0) - y(n), f"{n:,} tokens from {_edge(i):.3g} to {_edge(i + 1):.3g}")
        for i, n in enumerate(histogram[:last]) if n
    ]  # fmt: skip
    every = max(1, math.ceil((last - first) / 6))
    marks = [Tick(x(i), f"{_edge(i):.3g}") for i in range(first, last + 1, every)]
    return Chart(marks, [Tick(y(n), f"{n:,}") for n in _steps(1.1 * max(histogram))], bars, {}, [])


def _edge(i: int) -> float:
    """The activation at which a bin of a feature's histogram begins."""
    return float(2.0 ** (i / 2 - 8))


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From low..high to start..end, on a line."""
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (end - start)


def _log(
    values: Sequence[float], start: float, end: float, percent: bool
) -> tuple[Callable[[float], float], list[Tick]]:
    """A logarithmic axis around positive values, with marks at 1, 2 and 5 where it is short, else at powers of ten."""
    low, high = math.log10(min(values)) - 0.08, math.log10(max(values)) + 0.08
    scale = _scale(low, high, start, end)
    heads = (1, 2, 5) if high - low < 2.2 else (1,)
    marks = [(math.log10(head) + power, head * 10.0**power)
             for power in range(math.floor(low), math.ceil(high) + 1) for head in heads]  # fmt: skip
    text = "{:.3g} %" if percent else "{:.3g}"
    ticks = [Tick(scale(at), text.format(value * (100 if percent else 1))) for at, value in marks if low <= at <= high]
    return (lambda value: scale(math.log10(value))), ticks


def _counts(values: Sequence[float], edges: Sequence[int]) -> list[int]:
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(max(math.floor(value / BIN) - edges[0], 0), len(counts) - 1)] += 1
    return counts


def _outline(
    edges: Sequence[int], counts: Sequence[float], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """The upper edge of a histogram as an SVG path."""
    parts = [f"M{x(edges[0]):.1f} {y(0):.1f}"]
    for edge, n in zip(edges, counts, strict=False):
        parts.append(f"V{y(n):.1f}H{x(edge + 1):.1f}")
    return "".join(parts) + f"V{y(0):.1f}"


def _steps(top: float) -> list[int]:
    """About four round numbers from 0 up to at most `top`."""
    step = 10 ** max(0, math.floor(math.log10(max(top, 1) / 4)))
    step = next(step * head for head in (1, 2, 5, 10) if top / (step * head) <= 5)
    return list(range(0, int(top) + 1, step))


class Point(NamedTuple):
    """Two numbers of one thing; on the chart, coordinates."""

    x: float
    y: float
    kind: str
    title: str


class Agreement(NamedTuple):
    """Two estimates of the same, one against the other, on axes of one scale: equal on the diagonal."""

    x: list[Tick]
    y: list[Tick]
    diagonal: tuple[float, float, float, float]  # x, y of its ends
    dots: list[Point]


def agreement(points: Sequence[Point]) -> Agreement:
    """The scatter of at least one point, with zero in sight."""
    values = [0.0, *(v for point in points for v in (point.x, point.y))]
    low, high = min(values), max(values)
    rim = 0.05 * ((high - low) or 1.0)
    low, high = low - rim, high + rim
    x, y = _scale(low, high, LEFT, WIDTH - RIGHT), _scale(low, high, HEIGHT - BOTTOM, TOP)
    step = 10.0 ** math.floor(math.log10((high - low) / 7))
    step = next(step * head for head in (1, 2, 5, 10) if (high - low) / (step * head) <= 7)
    places = [n * step for n in range(math.ceil(low / step), int(high // step) + 1)]
    marks = [(at, f"{at:.3g}".replace("-", "−")) for at in places]
    dots = [Point(round(x(p.x), 1), round(y(p.y), 1), p.kind, p.title) for p in points]
    return Agreement(
        [Tick(x(at), text) for at, text in marks], [Tick(y(at), text) for at, text in marks],
        (x(low), y(low), x(high), y(high)), dots,
    )  # fmt: skip
