"""The logit lens of every feature of a run's dictionary: computed once, kept in the table lens, and shown."""

import time
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp import lens, targets
from autointerp.report import Reading
from autointerp.show import visible
from autointerp.store import Store
from autointerp.store_lens import lensed, lenses
from autointerp.subject import Subject
from autointerp.tally import Bar, Tally


def pending(reading: Reading, store: Store) -> list[int]:
    """The features that were encoded and have no lens yet, ascending."""
    collection_id = reading.run.collection_id
    encoded = store.encoded_features(collection_id)
    everyone = range(int(reading.collection["width"])) if encoded is None else encoded
    return sorted(set(everyone) - lensed(store, collection_id))


def compute(reading: Reading, store: Store, bar: Bar) -> Tally:
    """Find the lens of the features that have none. One unit is a feature.

    Raises DictionaryError where the dictionary writes what does not reach the unembedding.
    """
    started, tally = time.perf_counter(), Tally("lens")
    settings, features = reading.settings, pending(reading, store)
    sketch = Subject.sketch(settings.subject)
    target = targets.collected(reading, sketch)
    lens.check(sketch, target.dictionary, target.keys.hookpoint)
    read = lens.Lens(settings.subject, target.dictionary, target.keys.hookpoint)
    bar.start("lens", total=len(features), unit="features")
    with store.transaction():
        for rows in read.rows(reading.run.collection_id, features):
            store.add(rows)
            tally.ok += len(rows)
            bar.advance(len(rows))
    tally.seconds = time.perf_counter() - started
    return tally


def as_json(reading: Reading, store: Store) -> list[dict[str, Any]]:
    """Every lens with the feature's id and label, by feature."""
    labels = _labels(reading)
    name = reading.collection["dictionary"]
    return [
        {"feature_id": f"{name}/{feature}", "label": labels.get(feature)}
        | {key: value for key, value in asdict(found).items() if key != "collection_id"}
        for feature, found in _all(reading, store).items()
    ]


def to_terminal(reading: Reading, store: Store, console: Console, tokens: int, everyone: bool) -> None:
    """A line per feature that has a label, or per feature."""
    labels = _labels(reading)
    table = Table(box=None, pad_edge=False, header_style="bold cyan")
    table.add_column("feature", justify="right", no_wrap=True)
    for name in ("label", "promotes", "suppresses"):
        table.add_column(name, ratio=1, overflow="fold")
    for feature, found in _all(reading, store).items():
        if everyone or labels.get(feature) is not None:
            lists = (found.promoted[:tokens], found.suppressed[:tokens])
            shown = (Text("  ".join(visible(token).strip() for token in tokens_)) for tokens_ in lists)
            table.add_row(str(feature), Text(visible(labels.get(feature) or "")), *shown)
    console.print(table)


def _labels(reading: Reading) -> dict[int, str | None]:
    return {label.feature: label.label for label in reading.labels}


def _all(reading: Reading, store: Store) -> dict[int, Any]:
    return lenses(store, reading.run.collection_id, list(range(int(reading.collection["width"]))))
