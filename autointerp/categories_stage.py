"""Categories as the last step of a run: every chosen label in one. -> category

Categories depend on all labels of a run together, so one label more may move others: a grouping is written as a
whole, under the hash of its labels, and the run says which is its own. Readers read the table and ask no encoder.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp import categories, label_vectors
from autointerp.rows import Explanation, Grouped, Run
from autointerp.simulators.encoder import PACKAGED_ENCODER
from autointerp.store import Store
from autointerp.store_categories import grouped, regroup
from autointerp.tally import Bar, Tally


def pending(store: Store, runs: Sequence[Run]) -> bool:
    """Whether the chosen labels of these runs are not grouped as they are now."""
    labels = _labels(store, runs)
    return bool(labels) and {run.grouping_id for run in runs} != {_grouping_id(labels)}


def run(store: Store, runs: Sequence[Run], bar: Bar) -> Tally:
    """Group the chosen labels of these runs, all together, where that is pending. One unit is a label.

    Raises ConfigError where the sentence encoder cannot be found or read.
    """
    started, tally = time.perf_counter(), Tally("categories")
    labels, ids = _labels(store, runs), [run.run_id for run in runs]
    if not labels:
        return tally
    grouping_id = _grouping_id(labels)
    if grouped(store, grouping_id):
        regroup(store, ids, grouping_id, [])
        return tally
    texts = [text for _, text in labels]
    found = categories.kinds(texts, vectors(store.path.parent if store.path else None, bar))
    of = {
        text: (kind.name, cosine)
        for kind in found for text, cosine in zip(kind.texts, kind.similarity, strict=True)
    }  # fmt: skip
    regroup(store, ids, grouping_id, [
        Grouped(grouping_id, label.feature, label.explanation_id, *of[text]) for label, text in labels
    ])  # fmt: skip
    tally.ok, tally.note = len(labels), f"{len(found)} {'category' if len(found) == 1 else 'categories'}"
    tally.seconds = time.perf_counter() - started
    return tally


def vectors(folder: Path | None, bar: Bar) -> categories.Vectors:
    """Vectors of what labels name, kept in a run's folder, where `search` finds and leaves them too.

    folder  None: kept nowhere
    """

    def embedded(texts: Sequence[str]) -> NDArray[np.float32]:
        from autointerp.simulators.sentences import sentence_vectors  # torch takes seconds

        return sentence_vectors(texts, bar)

    def asked(texts: Sequence[str]) -> NDArray[np.float32]:
        found = label_vectors.kept(folder, PACKAGED_ENCODER, embedded)(texts) if folder else embedded(texts)
        bar.start("categories", total=None, unit="")
        return found

    return asked


def _labels(store: Store, runs: Sequence[Run]) -> list[tuple[Explanation, str]]:
    """The chosen candidate and its text, of every feature that has one."""
    return [(e, e.label) for run in runs for e in store.chosen(run) if e.label is not None]


def _grouping_id(labels: Sequence[tuple[Explanation, str]]) -> str:
    return categories.grouping_id(((e.explanation_id, text) for e, text in labels), PACKAGED_ENCODER)
