"""SQL of what people say of labels: the table `label_edit`, and the explanations that were made of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from autointerp.rows import Explanation, LabelEdit
from autointerp.store import Store

_EDITS = "SELECT * EXCLUDE imported_at FROM label_edit"


@contextmanager
def _wanted(store: Store, edit_ids: Sequence[str]) -> Iterator[None]:
    """While this is open, the ids are the table `wanted`."""
    store.db.register("wanted", pa.table({"edit_id": pa.array(list(edit_ids), pa.string())}))
    try:
        yield
    finally:
        store.db.unregister("wanted")


def known(store: Store, edit_ids: Sequence[str]) -> dict[str, str | None]:
    """Those of these edits that are there, each with the reason why it cannot be graded (None where it can)."""
    with _wanted(store, edit_ids):
        rows = store.db.execute("SELECT edit_id, reason FROM label_edit SEMI JOIN wanted USING (edit_id)").fetchall()
        return dict(rows)


def forget(store: Store, edit_ids: Sequence[str]) -> None:
    """Delete these edits; within a transaction that writes what has become of them."""
    with _wanted(store, edit_ids):
        store.db.execute("DELETE FROM label_edit WHERE edit_id IN (FROM wanted)").fetchall()


def labels(store: Store, dictionary: str) -> list[LabelEdit]:
    """The labels that can be graded, of one dictionary's features, in the order in which they came."""
    found = store.db.execute(
        f"{_EDITS} WHERE kind = 'label' AND reason IS NULL AND starts_with(feature_id, ?) ORDER BY imported_at, rowid",
        [f"{dictionary}/"],
    ).fetchall()
    return [LabelEdit(*row) for row in found]


def votes(store: Store, dictionary: str) -> list[LabelEdit]:
    """Every vote on labels of one dictionary's features, oldest first."""
    found = store.db.execute(
        f"{_EDITS} WHERE kind <> 'label' AND reason IS NULL AND starts_with(feature_id, ?) "
        "ORDER BY made_at NULLS FIRST, imported_at, rowid",
        [f"{dictionary}/"],
    ).fetchall()
    return [LabelEdit(*row) for row in found]


def explained(store: Store, collection_id: str) -> list[Explanation]:
    """The explanations of a collection that people made."""
    result = store.db.execute(
        "SELECT * FROM explanation WHERE collection_id = ? AND author IS NOT NULL", [collection_id]
    )
    names = [column[0] for column in result.description or []]
    return [Explanation(**dict(zip(names, row, strict=True))) for row in result.fetchall()]


def explainers(store: Store, collection_id: str) -> list[str]:
    """The ids under which labels of people stand in a collection."""
    rows = store.db.execute(
        "SELECT DISTINCT explainer_id FROM explanation WHERE collection_id = ? AND author IS NOT NULL ORDER BY ALL",
        [collection_id],
    ).fetchall()
    return [explainer for (explainer,) in rows]


def labelled(store: Store, collection_id: str, features: Sequence[int]) -> dict[int, list[int]]:
    """How many labels people gave a feature -> those of these features that have so many; ascending."""
    rows = store.db.execute(
        "SELECT n, list(feature ORDER BY feature) FROM ("
        "  SELECT feature, count(*) AS n FROM explanation WHERE collection_id = ? AND author IS NOT NULL "
        "  AND status = 'ok' AND feature IN (SELECT unnest(?)) GROUP BY feature) GROUP BY n ORDER BY n",
        [collection_id, list(features)],
    ).fetchall()
    return dict(rows)
