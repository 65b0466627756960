"""SQL of what is shown beside features that have no label."""

from collections.abc import Sequence

from autointerp.store import Store


def heaviest(store: Store, collection_id: str, features: Sequence[int], n: int) -> dict[int, list[int]]:
    """Feature -> the ids of at most n tokens with the most activation, heaviest first."""
    rows = store.db.execute(
        "SELECT feature, top_tokens[:?] FROM feature WHERE collection_id = ? AND feature IN (SELECT unnest(?))",
        [n, collection_id, list(features)],
    ).fetchall()
    return {int(feature): [int(token) for token in tokens] for feature, tokens in rows}
