"""SQL of the table category: which label is in which category. A run says by `grouping_id` which rows are its own."""

from collections.abc import Sequence

from autointerp.rows import Grouped
from autointerp.store import Store


def grouped(store: Store, grouping_id: str) -> bool:
    """Whether there are rows of this grouping."""
    rows = store.db.execute("SELECT count(*) > 0 FROM category WHERE grouping_id = ?", [grouping_id]).fetchall()
    return bool(rows[0][0])


def regroup(store: Store, run_ids: Sequence[str], grouping_id: str, rows: Sequence[Grouped]) -> None:
    """From now on this is the grouping of these runs; `rows` are its own where it has none yet. What no run refers to
    any more is deleted."""
    with store.transaction():
        store.db.execute(
            "UPDATE run SET grouping_id = ? WHERE run_id IN (SELECT unnest(?))", [grouping_id, list(run_ids)]
        )
        store.db.execute(
            "DELETE FROM category WHERE grouping_id NOT IN (SELECT grouping_id FROM run WHERE grouping_id IS NOT NULL)"
        )
        store.add(rows)


def similarities(store: Store, grouping_id: str | None) -> dict[str, float]:
    """Explanation -> cosine to the mean of its category."""
    rows = store.db.execute("SELECT explanation_id, similarity FROM category WHERE grouping_id = ?", [grouping_id])
    return dict(rows.fetchall())
