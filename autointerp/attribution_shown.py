"""An attribution with the labels of a run: what its page shows."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from autointerp import charts
from autointerp.attributed import Attribution, Pair, Target
from autointerp.attribution import PARTS, Explained, by_token, totals, trust
from autointerp.page import figure, tenths
from autointerp.store_catalog import Line

ROWS = 25  # firings listed of the whole text
AT = 100  # ... of one token
LABELLED = 10  # firings of labelled features listed after them
FAINT = 0.02  # share of the largest contribution below which a token is not coloured
FLATTER = 0.7  # exponent of a share before it becomes a colour: one strong token must not leave the others white


class Mark(NamedTuple):
    """A token of the text: its colour is the sum of what the features that fire there contribute."""

    position: int
    text: str
    value: float
    tenth: int  # depth of the colour, 0 to 9
    masked: bool  # a special token or an attention sink: no feature is looked for
    n_firing: int


class Firing(NamedTuple):
    """A feature firing on a token. Shares are of the largest contribution, -1 to 1."""

    pair: Pair
    feature_id: str
    line: Line | None  # of the run's list; None without a label
    token: str
    share: float


class Part(NamedTuple):
    """What one kind of thing contributes over all tokens."""

    name: str
    value: float
    share: float


class Shown(NamedTuple):
    """The page of one attribution."""

    target: Target
    predicted: list[Target]
    after: Mark  # the token after which the target stands
    marks: list[Mark]
    unread: str  # the text after that token
    parts: list[Part]
    at: Mark | None  # the token that was chosen
    rows: list[Firing]  # largest contribution by size first; of the chosen token, if there is one
    further: list[Firing]  # of labelled features, that are not among them
    n_firing: int  # firings that `rows` was taken from
    n_all: int  # firings on the whole text
    checked: list[Firing]  # that were ablated, largest contribution by size first
    trust: str
    believed: bool
    chart: charts.Agreement | None


def features_of(found: Attribution) -> list[int]:
    """The features that fire, ascending."""
    return sorted({pair.feature for pair in found.pairs})


def shown(explained: Explained, lines: Mapping[str, Line], at: int | None) -> Shown:
    """The page.

    lines  labelled features by id
    at     the token whose features are listed, one of the text's; None: all
    """
    found = explained.found
    marks = _marks(found)
    strongest = abs(found.pairs[0].contribution) if found.pairs else 0.0
    firings = [_firing(pair, explained, lines, strongest) for pair in found.pairs]
    here = [firing for firing in firings if at is None or firing.pair.position == at]
    most = ROWS if at is None else AT
    checked = [firing for firing in firings if firing.pair.ablated is not None]
    read, (line, believed) = "".join(found.tokens), trust(found.check)
    return Shown(
        found.target, found.predicted, marks[-1], marks,
        found.text[len(read) :] if found.text.startswith(read) else "", _parts(found),
        None if at is None else marks[at], here[:most], [f for f in here[most:] if f.line is not None][:LABELLED],
        len(here), len(firings), checked, line, believed,
        charts.agreement(_points(checked, len(checked) - found.check.n_random)) if checked else None,
    )  # fmt: skip


def _marks(found: Attribution) -> list[Mark]:
    at = by_token(found)
    sums = [sum(pair.contribution for pair in pairs) for pairs in at]
    largest = max(map(abs, sums), default=0.0) or 1.0
    return [
        Mark(i, token, sums[i], tenths((abs(sums[i]) / largest) ** FLATTER, FAINT**FLATTER),
             not at[i] and found.masked[i] != 0, len(at[i]))
        for i, token in enumerate(found.tokens)
    ]  # fmt: skip


def _firing(pair: Pair, explained: Explained, lines: Mapping[str, Line], strongest: float) -> Firing:
    key = f"{explained.dictionary}/{pair.feature}"
    share = pair.contribution / strongest if strongest else 0.0
    return Firing(pair, key, lines.get(key), explained.found.tokens[pair.position], share)


def _parts(found: Attribution) -> list[Part]:
    whole = totals(found)
    largest = max(map(abs, whole.values())) or 1.0
    return [Part(PARTS[name], value, value / largest) for name, value in whole.items()]


def _points(checked: Iterable[Firing], n_strongest: int) -> list[charts.Point]:
    """Contribution against ablation. Those that were drawn at random are all weaker than those that were not."""
    return [
        charts.Point(
            firing.pair.contribution, firing.pair.ablated or 0.0, "strong" if i < n_strongest else "random",
            f"{firing.feature_id} on token {firing.pair.position}: contribution "
            f"{figure(firing.pair.contribution, '+.3f')}, ablated {figure(firing.pair.ablated, '+.3f')}",
        )
        for i, firing in enumerate(checked)
    ]  # fmt: skip
