"""The SQL of causal scores: rows of `score` under an id and metrics of their own, and the texts they are taken on."""

from collections.abc import Sequence

from autointerp.rows import Score
from autointerp.store import Store


def prompt_passages(store: Store, collection_id: str, tokens: int, n: int) -> list[int]:
    """Up to n panel passages of the score split with at least so many tokens, no two of one document: the smallest ids,
    which are hashes."""
    rows = store.db.execute(
        "SELECT min(p.passage_id) AS passage FROM panel p JOIN passage USING (collection_id, passage_id) "
        "JOIN document d USING (collection_id, document_id) "
        "WHERE collection_id = ? AND p.split = 'score' AND d.n_tokens >= passage.start + ? "
        "GROUP BY document_id ORDER BY passage LIMIT ?",
        [collection_id, tokens, n],
    )
    return [passage for (passage,) in rows.fetchall()]


def causal_scores(store: Store, explanation_ids: Sequence[str], causal_id: str) -> list[Score]:
    """What is known of these labels, by feature and metric."""
    rows = store.db.execute(
        "SELECT score_id, explanation_id, collection_id, feature, split, simulator_id, scorer_id, metric, status, "
        "value, lo, hi, n, reason FROM score WHERE simulator_id = ? AND list_contains(?, explanation_id) "
        "ORDER BY feature, explanation_id, metric",
        [causal_id, list(explanation_ids)],
    )
    return [Score(*row) for row in rows.fetchall()]
