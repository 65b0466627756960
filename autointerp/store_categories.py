"""SQL of the table category: which label is in which category."""

from collections.abc import Sequence

from autointerp.rows import Grouped
from autointerp.store import Store


def groupings(store: Store, run_ids: Sequence[str]) -> set[str]:
    """Ids of the groupings that these runs keep: one for all of them, none where nothing was grouped."""
    rows = store.db.execute(
        "SELECT DISTINCT grouping_id FROM category WHERE run_id IN (SELECT unnest(?))", [list(run_ids)]
    ).fetchall()
    return {grouping for (grouping,) in rows}


def regroup(store: Store, run_ids: Sequence[str], rows: Sequence[Grouped]) -> None:
    """Put these rows in the place of what the runs kept."""
    with store.transaction():
        store.db.execute("DELETE FROM category WHERE run_id IN (SELECT unnest(?))", [list(run_ids)])
        store.add(rows)


def similarities(store: Store, run_id: str) -> dict[str, float]:
    """Explanation -> cosine to the mean of its category."""
    rows = store.db.execute("SELECT explanation_id, similarity FROM category WHERE run_id = ?", [run_id]).fetchall()
    return dict(rows)
