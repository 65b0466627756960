"""The SQL of output labels. Their grades are rows of `score` whose explanation_id is an output_id, so that what reads
labels by way of `explanation` meets neither."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from autointerp.rows import OutputLabel, Score
from autointerp.store import Store
from autointerp.store_causal import SCORE_COLUMNS

# Metrics, as in outputs.py: of a label's tokens, and of words near it.
NAMED = ("output_causal", "output_p", "output_chance", "output_own", "output_own_p")
UNSEEN = ("output_unseen", "output_unseen_p", "output_unseen_chance", "output_unseen_own", "output_unseen_own_p")
METRICS = (*NAMED, *UNSEEN)
ORDER = ("output", "token-change", "vocab-proj")  # of methods: the first that has a label speaks for a feature
_COLUMNS = ", ".join(field.name for field in fields(OutputLabel))


@dataclass(frozen=True)
class Said:
    """An output label with its grades."""

    row: OutputLabel
    scores: dict[str, Score]  # by metric

    def value(self, metric: str) -> float | None:
        """A number of it; None where there is none."""
        found = self.scores.get(metric)
        return None if found is None else found.value


def answered(store: Store, collection_id: str, labeller_ids: Sequence[str]) -> set[tuple[int, str]]:
    """(feature, labeller_id) of what these labellers have answered for, with a label or without."""
    rows = store.db.execute(
        "SELECT feature, labeller_id FROM output_label WHERE collection_id = ? AND labeller_id IN (SELECT unnest(?))",
        [collection_id, list(labeller_ids)],
    )
    return {(feature, labeller) for feature, labeller in rows.fetchall()}


def said_by(store: Store, collection_id: str, labeller_ids: Sequence[str]) -> dict[int, list[Said]]:
    """Feature -> what these labellers say of it, in ORDER of their methods."""
    rows = store.db.execute(
        f"SELECT {_COLUMNS} FROM output_label WHERE collection_id = ? AND labeller_id IN (SELECT unnest(?))",
        [collection_id, list(labeller_ids)],
    )
    return _said(store, [OutputLabel(*row) for row in rows.fetchall()])


def latest(store: Store, collection_id: str, features: Sequence[int]) -> dict[int, list[Said]]:
    """Feature -> the last label of each method, in ORDER of methods."""
    rows = store.db.execute(
        f"SELECT {_COLUMNS} FROM output_label WHERE collection_id = ? AND feature IN (SELECT unnest(?)) "
        "QUALIFY row_number() OVER (PARTITION BY feature, method ORDER BY made_at DESC, output_id) = 1",
        [collection_id, list(features)],
    )
    return _said(store, [OutputLabel(*row) for row in rows.fetchall()])


def speaking(said: Sequence[Said]) -> Said | None:
    """The one that speaks for a feature: the first with a label; grades have no part in it."""
    return next((one for one in said if one.row.label is not None), None)


def _said(store: Store, rows: list[OutputLabel]) -> dict[int, list[Said]]:
    scores: dict[str, dict[str, Score]] = {row.output_id: {} for row in rows}
    found = store.db.execute(  # the table is ordered by feature, and most runs have no such rows
        f"SELECT {SCORE_COLUMNS} FROM score WHERE feature IN (SELECT unnest(?)) "
        "AND explanation_id IN (SELECT unnest(?))",
        [sorted({row.feature for row in rows}), list(scores)],
    )
    for score in (Score(*row) for row in found.fetchall()):
        scores[score.explanation_id][score.metric] = score
    by: dict[int, list[Said]] = {}
    for row in sorted(rows, key=lambda row: (row.feature, ORDER.index(row.method), row.output_id)):
        by.setdefault(row.feature, []).append(Said(row, scores[row.output_id]))
    return by
