"""Categories as the last step of a run: every chosen label in one. -> category

Categories depend on all labels of a run together, so one label more may move others; the rows are then written anew as
a whole. Readers read the table: what an encoder says is asked once, here.
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
from autointerp.store_categories import groupings, regroup
from autointerp.tally import Bar, Tally


def pending(store: Store, runs: Sequence[Run]) -> bool:
    """Whether the chosen labels of these runs are not grouped as they are now."""
    labels = _labels(store, runs)
    return bool(labels) and groupings(store, [run.run_id for run in runs]) != {_grouping_id(labels)}


def run(store: Store, runs: Sequence[Run], bar: Bar) -> Tally:
    """Group the chosen labels of these runs, all together, where that is pending. One unit is a label.

    Raises ConfigError where the sentence encoder cannot be found or read.
    """
    started, tally = time.perf_counter(), Tally("categories")
    labels, ids = _labels(store, runs), [run.run_id for run in runs]
    grouping_id = _grouping_id(labels)
    if not labels or groupings(store, ids) == {grouping_id}:
        return tally
    found = categories.kinds([text for _, _, text in labels], vectors(store.path.parent if store.path else None, bar))
    of = {
        text: (kind.name, cosine)
        for kind in found for text, cosine in zip(kind.texts, kind.similarity, strict=True)
    }  # fmt: skip
    regroup(store, ids, [
        Grouped(run_id, grouping_id, label.feature, label.explanation_id, *of[text]) for run_id, label, text in labels
    ])  # fmt: skip
    tally.ok, tally.note = len(labels), f"{len(found)} categories"
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


def _labels(store: Store, runs: Sequence[Run]) -> list[tuple[str, Explanation, str]]:
    """Run, chosen candidate and its text, of every feature that has one."""
    return [(run.run_id, e, e.label) for run in runs for e in store.chosen(run) if e.label is not None]


def _grouping_id(labels: Sequence[tuple[str, Explanation, str]]) -> str:
    return categories.grouping_id(((e.explanation_id, text) for _, e, text in labels), PACKAGED_ENCODER)
