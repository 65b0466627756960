"""SQL of what relations between features are shown with: neighbours of many features, their labels and tokens."""

from autointerp.rows import Neighbour, Run
from autointerp.store import Store
from autointerp.text import token_strings

TOKENS = 4  # of a feature's heaviest, shown where it has no label


def neighbours_of(store: Store, collection_id: str, features: list[int], nearest: int) -> list[Neighbour]:
    """The `nearest` neighbours of each feature, by feature, kind and rank."""
    rows = store.db.execute(
        "SELECT collection_id, feature, kind, rank, other, similarity FROM neighbour "
        "WHERE collection_id = ? AND feature IN (SELECT unnest(?)) AND rank < ? ORDER BY feature, kind DESC, rank",
        [collection_id, features, nearest],
    )
    return [Neighbour(*row) for row in rows.fetchall()]


def labels_of(store: Store, run: Run) -> dict[int, str]:
    """Feature -> its chosen label, for every selected feature that has one."""
    if not run.features:
        return {}
    return {found.feature: found.label for found in store.chosen(run) if found.label is not None}


def heaviest_tokens(store: Store, collection_id: str, n: int = TOKENS) -> dict[int, list[str]]:
    """Feature -> its n heaviest tokens as text, heaviest first; features that never fired have none."""
    pieces, _ = store.tokens(collection_id)
    rows = store.db.execute(
        "SELECT feature, top_tokens[:?] FROM feature WHERE collection_id = ?", [n, collection_id]
    ).fetchall()
    return {feature: [token_strings([token], pieces)[0] for token in tokens] for feature, tokens in rows}
