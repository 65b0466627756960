"""The figures of two dictionaries side by side, and everything that was found of them as JSON."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from autointerp.relations import F32, NULL_QUANTILE, Matched, Measure, Relation
from autointerp.sides import Side
from autointerp.splits import Split

WORD = re.compile(r"[^\W\d_]{2,}")  # of a label


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


class Alike(NamedTuple):
    """Whether matched features say the same: pairs of which both have a label."""

    pairs: int
    share: float  # of them whose labels have a word in common
    chance: float  # the same share of all pairs of the one's label and of another's match


def alike(rows: Sequence[Mapping[str, Any]]) -> dict[str, Alike]:
    """Of what `pairs` gives, by measure; not of a measure by which fewer than two matches have labels."""
    result = {}
    for name in ("decoder", "activation"):
        told = [(row["label"], row[name]["label"]) for row in rows if row[name] and row["label"] and row[name]["label"]]
        if len(told) > 1:
            ours, theirs = ([set(WORD.findall(label.lower())) for label in side] for side in zip(*told, strict=True))
            places = {word: i for i, word in enumerate(sorted(set().union(*ours, *theirs)))}
            common = _incidence(ours, places) @ _incidence(theirs, places).T
            own, n = int((common.diagonal() > 0).sum()), len(told)
            result[name] = Alike(n, own / n, (common.nnz - own) / (n * (n - 1)))
    return result


def _incidence(labels: list[set[str]], places: dict[str, int]) -> csr_array:
    """[label, word], 1 where a label has a word."""
    column = [places[word] for words in labels for word in sorted(words)]
    ends = np.cumsum([0, *(len(words) for words in labels)])
    return csr_array((np.ones(len(column), dtype=np.int64), column, ends), shape=(len(labels), len(places)))


def as_json(found: Relation, everyone: bool) -> dict[str, Any]:
    """The pair, its figures, splits and merges, and the match of every labelled feature of a, or of every one."""
    return {
        "a": _side_json(found.a), "b": _side_json(found.b), "threshold": found.threshold, "passages": found.passages,
        "notes": found.notes,
        **{name: _measure_json(getattr(found, name), found.threshold) for name in ("decoder", "activation")},
        "agreement": None if found.decoder.there is None or found.activation.there is None
        else agreement(found.decoder.there, found.activation.there),
        "labels": {name: told._asdict() for name, told in alike(pairs(found, everyone=False)).items()},
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
