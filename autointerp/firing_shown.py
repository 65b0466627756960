"""What fires on a text, with the labels of a run: rows of the page."""

from collections.abc import Mapping
from typing import NamedTuple

from autointerp.firing import Fired, Spikes
from autointerp.page import Piece, tenths
from autointerp.show import visible
from autointerp.store_catalog import Line

ROWS = 60  # labelled features whose passages are drawn, strongest first
OTHERS = 20  # features without a label that are named
PER_TOKEN = 4  # labelled features named beside a token


class Row(NamedTuple):
    """A labelled feature that fires on the text."""

    line: Line
    peak: float
    share: float  # of its largest activation in the collection
    pieces: list[Piece]


class Token(NamedTuple):
    """A token of the text, and the labelled features that fire there, strongest first (by share of their largest)."""

    text: str
    masked: bool
    firing: list[tuple[Line, float]]
    n_firing: int  # with the features that have no label


class Shown(NamedTuple):
    """What fires on one text."""

    rows: list[Row]
    n_labelled: int  # labelled features that fire
    n_firing: int  # features that fire
    others: list[tuple[str, float]]  # feature ids without a label, with their peaks
    tokens: list[Token]


def shown(fired: Fired, lines: Mapping[str, Line], largest: Mapping[str, float]) -> Shown:
    """The rows of the page.

    lines    labelled features by id
    largest  feature id -> its largest activation in the collection; a feature that never fired there is missing
    """
    found = [(f"{name}/{spikes.feature}", spikes) for name, firing in fired.spikes.items() for spikes in firing]
    shares = {key: min(spikes.peak / largest[key], 1.0) if largest.get(key) else 1.0 for key, spikes in found}
    labelled = sorted((pair for pair in found if pair[0] in lines), key=lambda pair: -shares[pair[0]])
    others = sorted((pair for pair in found if pair[0] not in lines), key=lambda pair: -shares[pair[0]])
    rows = [
        Row(lines[key], spikes.peak, shares[key], _pieces(fired.strings, spikes, largest.get(key, 0.0)))
        for key, spikes in labelled[:ROWS]
    ]  # fmt: skip
    return Shown(
        rows, len(labelled), len(found), [(key, spikes.peak) for key, spikes in others[:OTHERS]],
        _tokens(fired, labelled, found, lines, largest),
    )  # fmt: skip


def _pieces(strings: list[str], spikes: Spikes, largest: float) -> list[Piece]:
    """The text in runs that are drawn alike."""
    at = dict(zip(spikes.positions, spikes.activations, strict=True))
    result: list[Piece] = []
    for i, string in enumerate(strings):
        value = at.get(i, 0.0)
        if value > 0:
            share = value / (largest or spikes.peak)
            result.append(Piece(visible(string), tenths(share), 0, f"activation {value:.2f}"))
        elif result and not result[-1].note:
            result[-1] = result[-1]._replace(text=result[-1].text + visible(string))
        else:
            result.append(Piece(visible(string), 0, 0, ""))
    return result


def _tokens(
    fired: Fired, labelled: list[tuple[str, Spikes]], found: list[tuple[str, Spikes]], lines: Mapping[str, Line],
    largest: Mapping[str, float],
) -> list[Token]:  # fmt: skip
    counts = [0] * len(fired.strings)
    for _, spikes in found:
        for position in spikes.positions:
            counts[position] += 1
    firing: list[list[tuple[float, Line, float]]] = [[] for _ in fired.strings]
    for key, spikes in labelled:
        for position, value in zip(spikes.positions, spikes.activations, strict=True):
            firing[position].append((value / (largest.get(key) or spikes.peak), lines[key], value))
    masked = set(fired.masked)
    return [
        Token(string, i in masked, [(line, value) for _, line, value in _strongest(firing[i])], counts[i])
        for i, string in enumerate(fired.strings)
    ]  # fmt: skip


def _strongest(firing: list[tuple[float, Line, float]]) -> list[tuple[float, Line, float]]:
    return sorted(firing, key=lambda found: -found[0])[:PER_TOKEN]
