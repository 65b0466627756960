"""Two dictionaries of one subject side by side: which features have a match, which split, which merge.

By what they write (cosine of decoder rows) where both write into the same space; by when they fire (Pearson's r of
activations) where both runs kept the same passages. Every share stands beside the same share of matches by chance.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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


# -- what is said of it ------------------------------------------------------------------------------------------------


def summary(found: Matched, threshold: float) -> dict[str, Any]:
    """The figures of one direction: shares of the features that have a match at all."""
    value = found.best.similarity[found.best.place >= 0]
    if not len(value):
        return {"features": 0, "unmatched": len(found.best.place)}
    nulls = {name: _of_null(by_chance, threshold) for name, by_chance in found.null.items() if len(by_chance)}
    chance = max((null["q99"] for null in nulls.values()), default=None)
    return {
        "features": len(value), "unmatched": int(np.sum(found.best.place < 0)), "mean": float(value.mean()),
        "quartiles": [float(q) for q in np.quantile(value, [0.25, 0.5, 0.75])],
        "share": float(np.mean(value >= threshold)),
        "mutual": float(np.mean(found.mutual[found.best.place >= 0])),
        "share_mutual": float(np.mean((value >= threshold) & found.mutual[found.best.place >= 0])),
        "above_chance": None if chance is None else float(np.mean(value > chance)), "null": nulls,
    }  # fmt: skip


def _of_null(value: F32, threshold: float) -> dict[str, float]:
    return {
        "mean": float(value.mean()), "q99": float(np.quantile(value, NULL_QUANTILE)),
        "share": float(np.mean(value >= threshold)),
    }  # fmt: skip


def agreement(decoder: Matched, activation: Matched) -> float | None:
    """The share of features, of those that both measures match, for which both name the same match."""
    both = (decoder.best.place >= 0) & (activation.best.place >= 0)
    return float(np.mean(decoder.best.place[both] == activation.best.place[both])) if both.any() else None


def as_json(found: Relation, everyone: bool) -> dict[str, Any]:
    """The pair, its figures, splits and merges, and the match of every labelled feature of a, or of every one."""
    return {
        "a": _side_json(found.a), "b": _side_json(found.b), "threshold": found.threshold, "passages": found.passages,
        "notes": found.notes,
        **{name: _measure_json(getattr(found, name), found.threshold) for name in ("decoder", "activation")},
        "agreement": None if found.decoder.there is None or found.activation.there is None
        else agreement(found.decoder.there, found.activation.there),
        "splits": _splits_json(found.splits, found.a, found.b), "merges": _splits_json(found.merges, found.b, found.a),
        "matches": pairs(found, everyone),
    }  # fmt: skip


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "name": side.name, "dictionary": side.dictionary.name, "hookpoint": side.hookpoint,
        "width": side.dictionary.width, "features": len(side.features), "labels": len(side.labels),
    }  # fmt: skip


def _measure_json(measure: Measure, threshold: float) -> dict[str, Any]:
    if measure.there is None or measure.back is None:
        return {"reason": measure.reason}
    return {"a_to_b": summary(measure.there, threshold), "b_to_a": summary(measure.back, threshold)}


def _splits_json(found: list[Split] | None, whole: Side, part: Side) -> list[dict[str, Any]] | None:
    if found is None:
        return None
    return [
        asdict(split)
        | {"whole": described(whole, split.whole), "parts": [described(part, feature) for feature in split.parts]}
        for split in found
    ]


def described(side: Side, feature: int) -> dict[str, Any]:
    """A feature by id, with its label and heaviest tokens."""
    return {
        "feature_id": f"{side.dictionary.name}/{feature}", "label": side.labels.get(feature),
        "tokens": side.tokens.get(feature, []),
    }  # fmt: skip


def pairs(found: Relation, everyone: bool) -> list[dict[str, Any]]:
    """The features of a (those with a label, or all), each with its best match by either measure, by feature."""
    rows = []
    for place, feature in enumerate(found.a.features.tolist()):
        if everyone or feature in found.a.labels:
            by = {name: _match(getattr(found, name).there, place, found.b) for name in ("decoder", "activation")}
            rows.append(described(found.a, feature) | by)
    return rows


def _match(matched: Matched | None, place: int, side: Side) -> dict[str, Any] | None:
    if matched is None or matched.best.place[place] < 0:
        return None
    return described(side, int(side.features[matched.best.place[place]])) | {
        "similarity": float(matched.best.similarity[place]), "mutual": bool(matched.mutual[place]),
    }  # fmt: skip
