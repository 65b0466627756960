"""Two dictionaries of one subject side by side: which features have a match, which split, which merge.

By what they write (cosine of decoder rows) where both write into the same space; by when they fire (Pearson's r of
activations) where both runs kept the same passages. Every share stands beside the same share of matches by chance.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp import matches, splits
from autointerp.matches import Best, Block
from autointerp.sides import RelationError, Side, space
from autointerp.splits import Split
from autointerp.subject import Subject
from autointerp.tally import Bar

THRESHOLD = 0.7  # a match: decoder cosine, or correlation, of at least this (Paulo & Belrose 2025)
NULL_DIRECTIONS = 4096  # random directions at most, whose best matches are the null
NULL_QUANTILE = 0.99  # of the null; a feature with a better match has one that is not by chance
LEAST_FIRINGS = 10  # tokens of the shared passages on which a feature must fire to be correlated
LEAST_PASSAGES = 100  # shared passages that activations are compared on
KEY = 0x72656C  # of the random numbers here

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Matched:
    """The best matches of one dictionary's features in the other, by one measure."""

    best: Best  # places in the other side's features
    mutual: NDArray[np.bool_]
    null: dict[str, F32]  # what chance gives: best similarities, by name of the null


@dataclass(frozen=True)
class Measure:
    """One measure in both directions; `reason` where the two cannot be compared by it."""

    there: Matched | None = None  # of a's features in b
    back: Matched | None = None  # of b's features in a
    reason: str | None = None


@dataclass(frozen=True)
class Relation:
    """All that was found of a pair."""

    a: Side
    b: Side
    threshold: float
    passages: int  # that both kept, with all their activations
    decoder: Measure
    activation: Measure
    splits: list[Split] | None  # of a's features in b; None where activations cannot be compared
    merges: list[Split] | None  # of b's features: several of a, one of b
    notes: list[str]


def relate(a: Side, b: Side, sketch: Subject, bar: Bar, threshold: float = THRESHOLD, seed: int = 0) -> Relation:
    """Compare two sides. Raises RelationError where neither measure can be had."""
    notes: list[str] = []
    decoder, near = _by_decoder(a, b, sketch, bar, seed, notes)
    activation, divided, shared = _by_activation(a, b, near, decoder, bar, seed)
    if decoder.reason is not None and activation.reason is not None:
        raise RelationError(f"{a.name} and {b.name} cannot be compared: {decoder.reason}; {activation.reason}")
    parted, joined = divided or (None, None)
    return Relation(a, b, threshold, shared, decoder, activation, parted, joined, notes)


# -- by what they write ------------------------------------------------------------------------------------------------


def _by_decoder(
    a: Side, b: Side, sketch: Subject, bar: Bar, seed: int, notes: list[str]
) -> tuple[Measure, tuple[Tensor, Tensor] | None]:
    """The measure, and the directions of both where they lie in one space."""
    where = [space(side, sketch) for side in (a, b)]
    if where[1] is None:
        notes.append(f"the files of {b.name} do not say where it was trained: taken to be at {where[0]}")
    elif where[0] != where[1]:
        return Measure(reason=f"decoder rows lie in different spaces ({where[0]}; {where[1]})"), None
    elif a.hookpoint != b.hookpoint and None not in (a.hookpoint, b.hookpoint):
        notes.append(f"different places in the residual stream ({a.hookpoint}; {b.hookpoint}): rows share its axes")
    rows = a.directions(), b.directions()
    if rows[0].shape[1] != rows[1].shape[1]:
        raise RelationError(
            f"{b.name} writes into a space of width {rows[1].shape[1]}: expected {rows[0].shape[1]}, as {a.name}; "
            "compare dictionaries of one subject"
        )
    if not len(rows[0]) or not len(rows[1]):
        unit = a.name if not len(rows[0]) else b.name
        return Measure(reason=f"{unit} holds plain units, which write along axes"), None
    n = [min(len(mine), NULL_DIRECTIONS) for mine in rows]
    drawn = [matches.random_directions(mine, n[side], seed * 2 + side) for side, mine in enumerate(rows)]
    pairs = [rows, *((null, other) for nulls, other in zip(drawn, rows[::-1], strict=True) for null in nulls.values())]
    bar.start("decoder", total=sum(matches.blocks_of(len(x), len(y)) for x, y in pairs), unit="blocks")
    there, back = matches.best(_told(matches.cosines(*rows), bar), len(rows[0]), len(rows[1]))
    nulls = [
        {name: matches.best(_told(matches.cosines(null, other), bar), len(null), len(other))[0].similarity
         for name, null in of_side.items()}
        for of_side, other in zip(drawn, rows[::-1], strict=True)
    ]  # fmt: skip
    return _measure(there, back, nulls), rows


def _told(blocks: Iterable[Block], bar: Bar) -> Iterable[Block]:
    for block in blocks:
        yield block
        bar.advance()


def _measure(there: Best, back: Best, nulls: Sequence[dict[str, F32]]) -> Measure:
    return Measure(Matched(there, there.mutual(back), nulls[0]), Matched(back, back.mutual(there), nulls[1]))


# -- by when they fire -------------------------------------------------------------------------------------------------


def _by_activation(
    a: Side, b: Side, rows: tuple[Tensor, Tensor] | None, decoder: Measure, bar: Bar, seed: int
) -> tuple[Measure, tuple[list[Split], list[Split]] | None, int]:
    """The measure, splits and merges, and how many passages both kept."""
    if a.kept is None or b.kept is None:
        alone = a if a.kept is None else b
        return Measure(reason=f"{alone.name} is no run, so nothing is known of when its features fire"), None, 0
    if a.kept.same_text != b.kept.same_text:
        return Measure(reason="the runs cut their texts into other contexts or passages"), None, 0
    _, at_a, at_b = np.intersect1d(a.kept.panel.passage, b.kept.panel.passage, return_indices=True)
    shared = len(at_a)
    if shared < LEAST_PASSAGES:
        reason = f"the runs kept {shared} passages in common, {LEAST_PASSAGES} are needed: collect them over one corpus"
        return Measure(reason=reason), None, shared
    width = int(a.kept.same_text[1])
    tokens = int(a.kept.length[at_a].sum())
    mixed = np.random.default_rng([seed, KEY]).permutation(shared)
    mine = matches.activations(a.kept.panel, at_a, width, a.features)
    theirs = matches.activations(b.kept.panel, at_b, width, b.features)
    x, y = (matches.standard(found, tokens, LEAST_FIRINGS) for found in (mine, theirs))
    moved = matches.standard(
        matches.activations(b.kept.panel, at_b[mixed], width, b.features), tokens, LEAST_FIRINGS
    )
    parts = len(matches.chunks(len(a.features), len(b.features)))
    bar.start("firing", total=2 * parts, unit="blocks")
    there, back = matches.best(_told(matches.correlations(x, y), bar), len(a.features), len(b.features))
    null = matches.best(_told(matches.correlations(x, moved), bar), len(a.features), len(b.features))
    nulls = [{"passages paired at random": found.similarity[~np.isnan(found.similarity)]} for found in null]
    bar.start("splits", total=len(a.features), unit="features")
    pairs = splits.overlapping(mine, theirs, tokens, LEAST_FIRINGS, bar.advance)
    cosine = 0.0 if decoder.there is None else float(np.quantile(decoder.there.null["covariance"], NULL_QUANTILE))
    near, back_near = (None, None) if rows is None else (_near(*rows), _near(*rows[::-1]))
    divided = splits.splits(pairs, mine, theirs, near, cosine)
    joined = splits.merges(pairs, mine, theirs, back_near, cosine)
    return (
        _measure(there, back, nulls),
        (splits.chosen(divided, a.features, b.features), splits.chosen(joined, b.features, a.features)),
        shared,
    )


def _near(wholes: Tensor, parts: Tensor) -> Callable[[int, NDArray[np.int64]], F32]:
    def near(whole: int, places: NDArray[np.int64]) -> F32:
        found: F32 = (parts[torch.from_numpy(places)] @ wholes[whole]).numpy()
        return found

    return near
