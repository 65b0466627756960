"""The SQL of the table lens."""

from autointerp.rows import Lens
from autointerp.store import Store


def lensed(store: Store, collection_id: str) -> set[int]:
    """The features whose lens is known."""
    rows = store.db.execute("SELECT feature FROM lens WHERE collection_id = ?", [collection_id])
    return {feature for (feature,) in rows.fetchall()}


def lenses(store: Store, collection_id: str, features: list[int]) -> dict[int, Lens]:
    """Feature -> its lens, where that is known."""
    rows = store.db.execute(
        "SELECT collection_id, feature, promoted, promoted_by, suppressed, suppressed_by FROM lens "
        "WHERE collection_id = ? AND feature IN (SELECT unnest(?)) ORDER BY feature",
        [collection_id, features],
    )
    return {row[1]: Lens(*row) for row in rows.fetchall()}
