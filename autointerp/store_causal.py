"""The SQL of causal scores: rows of `score` under an id and metrics of their own, and the texts they are taken on."""

from collections.abc import Sequence
from dataclasses import fields

from autointerp.rows import Score, Split
from autointerp.store import Store

SCORE_COLUMNS = ", ".join(field.name for field in fields(Score))


def prompt_passages(
    store: Store, collection_id: str, tokens: int, n: int, split: Split = "score"
) -> list[int]:
    """Up to n panel passages of a split with at least so many tokens, no two of one document: the smallest ids, which
    are hashes."""
    rows = store.db.execute(
        "SELECT min(p.passage_id) AS passage FROM panel p JOIN passage USING (collection_id, passage_id) "
        "JOIN document d USING (collection_id, document_id) "
        "WHERE collection_id = ? AND p.split = ? AND d.n_tokens >= passage.start + ? "
        "GROUP BY document_id ORDER BY passage LIMIT ?",
        [collection_id, split, tokens, n],
    )
    return [passage for (passage,) in rows.fetchall()]


def causal_scores(store: Store, explanation_ids: Sequence[str], causal_id: str) -> list[Score]:
    """What is known of these labels, by feature and metric."""
    rows = store.db.execute(
        f"SELECT {SCORE_COLUMNS} FROM score WHERE simulator_id = ? AND explanation_id IN (SELECT unnest(?)) "
        "ORDER BY feature, explanation_id, metric",
        [causal_id, list(explanation_ids)],
    )
    return [Score(*row) for row in rows.fetchall()]


def causal_of(store: Store, feature: int, explanation_id: str | None) -> list[Score]:
    """The causal score of a feature's label, at every KL that it was taken at, with its p: by KL, then by metric."""
    rows = store.db.execute(
        f"SELECT {SCORE_COLUMNS} FROM score WHERE feature = ? AND explanation_id = ? AND status = 'ok' "
        "AND metric IN ('causal', 'causal_kl', 'causal_p') "
        "ORDER BY max(value) FILTER (metric = 'causal_kl') OVER (PARTITION BY simulator_id), simulator_id, metric",
        [feature, explanation_id],
    )
    return [Score(*row) for row in rows.fetchall()]
