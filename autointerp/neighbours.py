"""The features near each labelled feature within one dictionary, side by side with their labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp import relate, targets
from autointerp.config import Settings
from autointerp.errors import StoreError
from autointerp.relations_shown import said
from autointerp.rows import Neighbour, Run
from autointerp.store import Store
from autointerp.store_relations import heaviest_tokens, labels_of, neighbours_of
from autointerp.subject import Subject
from autointerp.tally import Bar, Tally

KINDS = {"decoder": "writes alike", "firing": "fires together"}


@dataclass(frozen=True)
class Neighbourhood:
    """The features of a run with those that are near them."""

    run: Run
    features: list[int]
    near: dict[int, list[Neighbour]]  # feature -> its neighbours, by kind and rank
    labels: dict[int, str]
    tokens: dict[int, list[str]]  # heaviest, for want of a label


def wanted(store: Store, run: Run, everyone: bool) -> list[int]:
    """The selected features, or all that fired, ascending. Raises StoreError where there is nothing to relate."""
    if store.collection(run.collection_id) is None:
        raise StoreError(f"{store.path}: nothing has been collected yet; `autointerp run` does it")
    if everyone:
        fired = store.features(run.collection_id)["n_tokens"].sum(axis=0) > 0
        return [int(i) for i in np.flatnonzero(fired)]
    if run.features is None:
        raise StoreError(
            f"{store.path}: no features are selected yet: `autointerp run` selects some, --all relates every one"
        )
    return sorted(run.features)


def pending(store: Store, run: Run, everyone: bool) -> bool:
    """Whether any of the wanted features has not been related."""
    return bool(set(wanted(store, run, everyone)) - store.related(run.collection_id))


def compute(store: Store, run: Run, everyone: bool, bar: Bar) -> Tally:
    """Find the neighbours of the wanted features that have none, into the table neighbour."""
    settings = Settings.model_validate_json(run.settings)
    row = store.collection(run.collection_id)
    assert row is not None  # as `wanted` found
    found = targets.load(settings, Subject.sketch(settings.subject))
    dictionary = targets.collected_among(found, run.dictionary, row).dictionary
    return relate.run(store, run.collection_id, dictionary, wanted(store, run, everyone), bar)


def read(store: Store, run: Run, everyone: bool, nearest: int) -> Neighbourhood:
    """The `nearest` neighbours of each wanted feature by either kind."""
    features = wanted(store, run, everyone)
    near: dict[int, list[Neighbour]] = {feature: [] for feature in features}
    for neighbour in neighbours_of(store, run.collection_id, features, nearest):
        near[neighbour.feature].append(neighbour)
    return Neighbourhood(run, features, near, labels_of(store, run), heaviest_tokens(store, run.collection_id))


def as_json(found: Neighbourhood) -> list[dict[str, Any]]:
    """Every feature with its neighbours, as JSON-able values."""
    return [
        _described(found, feature) | {kind: _near(found, feature, kind) for kind in KINDS} for feature in found.features
    ]


def _near(found: Neighbourhood, feature: int, kind: str) -> list[dict[str, Any]]:
    near = (neighbour for neighbour in found.near[feature] if neighbour.kind == kind)
    return [_described(found, neighbour.other) | {"similarity": neighbour.similarity} for neighbour in near]


def _described(found: Neighbourhood, feature: int) -> dict[str, Any]:
    return {
        "feature_id": f"{found.run.dictionary}/{feature}", "label": found.labels.get(feature),
        "tokens": found.tokens.get(feature, []),
    }  # fmt: skip


def to_terminal(found: Neighbourhood, console: Console) -> None:
    """A block of lines per feature: its neighbours by rank, both kinds side by side."""
    table = Table(box=None, pad_edge=False, header_style="bold cyan")
    table.add_column(found.run.dictionary, ratio=1)
    for title in KINDS.values():
        table.add_column("", justify="right", no_wrap=True)
        table.add_column(title, ratio=1)
    for feature in as_json(found):
        ranks = max((len(feature[kind]) for kind in KINDS), default=0)
        for i in range(max(ranks, 1)):
            cells = [said(feature) if i == 0 else Text("")]
            for kind in KINDS:
                near = feature[kind][i : i + 1]
                cells += [Text(f"{near[0]['similarity']:.2f}"), said(near[0])] if near else [Text(""), Text("")]
            table.add_row(*cells)
    console.print(table)
    console.print(Text("cosines of decoder rows, and of firing patterns on the explain panel", style="dim"))
    console.print(Text("a feature without a label: its heaviest tokens, dim", style="dim"))
