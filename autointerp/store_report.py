"""The SQL of the report: every label of a run with its grades in one pass, and what is asked of one feature.

A run may have 100,000 features and twenty numbers for each, so nothing here is asked feature by feature or made a
record per number: the database turns numbers into columns, one row a feature.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from autointerp.grades import METRICS
from autointerp.rows import Run, Score, Split
from autointerp.store import CHOSEN, DESIGNS, Store, chosen_parameters

# Metrics with an interval, as columns <metric>_lo and <metric>_hi.
INTERVALS = ("r_rank", "r_pop")


def graded(store: Store, run: Run, thresholds_id: str, n_tokens: int) -> pa.Table:
    """One row per selected feature, ascending: its chosen candidate, every metric on score, and its verdict.

    n_tokens  heaviest tokens of the feature that are read, as `top_tokens`

    explanation_id, label, method, model and author are NULL where there is no label, and `failed` may say why.
    Metrics are columns of their names; `ranked` says whether there is a row of r_rank, `reason` why it has no value,
    `n` on how many passages it was computed. `verdict` and `evidence` (JSON) are NULL where none was given, `category`
    where the label was not grouped.
    """
    value = [f"max(value) FILTER (metric = '{metric}') AS \"{metric}\"" for metric in METRICS]
    ends = [f'max({end}) FILTER (metric = \'{metric}\') AS "{metric}_{end}"'
            for metric in INTERVALS for end in ("lo", "hi")]  # fmt: skip
    return store.db.sql(
        f"""
        WITH selected AS (SELECT unnest($features)::INTEGER AS feature),
        chosen AS ({CHOSEN}),
        failed AS (
            SELECT feature, arg_max(reason, (explainer_id, draw)) AS failed
            FROM explanation SEMI JOIN selected USING (feature)
            WHERE collection_id = $collection AND status <> 'ok' AND list_contains($explainers, explainer_id)
            GROUP BY feature
        ),
        number AS (
            SELECT explanation_id, {", ".join(value + ends)}, count(*) FILTER (metric = 'r_rank') > 0 AS ranked,
                   max(reason) FILTER (metric = 'r_rank') AS reason, max(n) FILTER (metric = 'r_rank') AS n
            FROM score SEMI JOIN chosen USING (explanation_id)
            WHERE collection_id = $collection AND split = 'score' AND simulator_id = $grader AND scorer_id = $scorer
              AND feature IN (FROM selected)
            GROUP BY explanation_id
        ),
        judged AS (
            SELECT explanation_id, verdict, evidence FROM verdict SEMI JOIN chosen USING (explanation_id)
            WHERE collection_id = $collection AND simulator_id = $grader AND scorer_id = $scorer
              AND thresholds_id = $thresholds AND feature IN (FROM selected)
        ),
        heavy AS (
            SELECT feature, top_tokens[1:$n_tokens] AS top_tokens FROM feature SEMI JOIN selected USING (feature)
            WHERE collection_id = $collection
        ),
        grouped AS (
            SELECT explanation_id, category FROM category SEMI JOIN chosen USING (explanation_id)
            WHERE grouping_id = $grouping AND feature IN (FROM selected)
        )
        SELECT selected.feature, chosen.explanation_id, chosen.label, chosen.method, chosen.model, chosen.author,
               failed.failed,
               number.* EXCLUDE (explanation_id), judged.verdict, judged.evidence, grouped.category, heavy.top_tokens
        FROM selected LEFT JOIN chosen USING (feature) LEFT JOIN failed USING (feature) LEFT JOIN heavy USING (feature)
        LEFT JOIN number ON number.explanation_id = chosen.explanation_id
        LEFT JOIN judged ON judged.explanation_id = chosen.explanation_id
        LEFT JOIN grouped ON grouped.explanation_id = chosen.explanation_id
        ORDER BY selected.feature
        """,
        params=chosen_parameters(run) | {
            "grader": run.simulator_id, "thresholds": thresholds_id, "n_tokens": n_tokens, "grouping": run.grouping_id,
        },
    ).to_arrow_table()  # fmt: skip


# Calls behind the explanations of `own`, by explainer: also samples that said what another had said, of which no row
# was made. They share purpose and messages with one that is behind a row; where the same was asked in several ways
# (with another limit, say), of each draw the one asked nearest in time. And repairs, with what they repair.
PAID = """
    asked AS (SELECT DISTINCT explainer_id, call_id FROM own WHERE call_id IS NOT NULL),
    first AS (
        SELECT DISTINCT a.explainer_id, coalesce(c.repair_of, c.call_id) AS call_id
        FROM asked a JOIN call c USING (call_id)
    ),
    drawn AS (
        SELECT f.explainer_id, d.call_id
        FROM first f JOIN call c USING (call_id)
        JOIN call d ON d.purpose = c.purpose AND d.request = c.request AND d.provider = c.provider AND d.model = c.model
          AND d.base_url IS NOT DISTINCT FROM c.base_url
        QUALIFY row_number() OVER (
            PARTITION BY f.explainer_id, d.purpose, d.request, d.provider, d.model, d.base_url, d.draw
            ORDER BY d.call_id <> c.call_id, abs(epoch(d.asked_at) - epoch(c.asked_at)), d.call_id
        ) = 1
    ),
    paid AS (FROM drawn UNION SELECT d.explainer_id, r.call_id FROM drawn d JOIN call r ON r.repair_of = d.call_id)
"""
TOTALS = """
    count(*) AS calls, coalesce(sum(input_tokens), 0)::BIGINT AS input_tokens,
    coalesce(sum(output_tokens), 0)::BIGINT AS output_tokens, coalesce(sum(usd), 0)::DOUBLE AS usd,
    count(*) FILTER (WHERE usd IS NULL) AS unpriced
"""


def call_totals(store: Store, run: Run) -> dict[str, float]:
    """What a run's labels took: calls of PAID over all of its explainers, each once.

    `usd` adds up the calls whose price is known; `unpriced` counts the others.
    """
    result = store.db.execute(
        f"""
        WITH own AS (
            FROM explanation WHERE collection_id = $collection AND list_contains($explainers, explainer_id)
        ),
        {PAID}
        SELECT {TOTALS} FROM call WHERE call_id IN (SELECT call_id FROM paid)
        """,
        {"collection": run.collection_id, "explainers": run.explainer_ids},
    )
    names = [column[0] for column in result.description]
    (row,) = result.fetchall()
    return dict(zip(names, row, strict=True))


def by_explainer(store: Store, run: Run, eligible: Sequence[int], split: Split) -> list[dict[str, Any]]:
    """Per explainer (method, provider and model): its grades on a split, feature by feature, and what it took.

    Each is represented, on every eligible feature, by its own candidate that did best on select; `grades` are the
    r_rank of these in the order of the features, 0 where there is none. `labelled` counts features with a candidate,
    `graded` those whose candidate has been graded (a grade that was lost is one), `chosen` those whose candidate is the
    feature's label. `lost` counts replies and features without a label by reason. Calls are those of PAID. provider is
    NULL where nobody was asked; base_url where the server is the provider's own.
    By method, provider, server, model.
    """
    result = store.db.execute(
        f"""
        WITH eligible AS (SELECT unnest($eligible)::INTEGER AS feature),
        own AS (
            FROM explanation WHERE collection_id = $collection AND list_contains($explainers, explainer_id)
              AND feature IN (SELECT unnest($features))
        ),
        who AS (
            SELECT e.explainer_id, e.method, e.model, any_value(c.provider) AS provider,
                   any_value(c.base_url) AS base_url
            FROM own e LEFT JOIN call c USING (call_id) GROUP BY ALL
        ),
        label AS ({CHOSEN}),
        best AS ({CHOSEN.replace("PARTITION BY e.feature", "PARTITION BY e.explainer_id, e.feature")}),
        found AS (
            SELECT w.explainer_id, list(coalesce(s.value, 0) ORDER BY e.feature) AS grades,
                   count(b.feature) AS labelled, count(s.metric) AS graded, count(l.explanation_id) AS chosen
            FROM who w CROSS JOIN eligible e
            LEFT JOIN best b ON b.explainer_id = w.explainer_id AND b.feature = e.feature
            LEFT JOIN label l ON l.explanation_id = b.explanation_id
            LEFT JOIN ({DESIGNS}) d ON d.feature = e.feature
            LEFT JOIN score s
              ON s.explanation_id = b.explanation_id AND s.split = $split AND s.metric = 'r_rank'
             AND s.simulator_id = $grader AND s.collection_id = $collection
             AND s.scorer_id = if($split = 'select', d.scorer_id, $scorer)
            GROUP BY w.explainer_id
        ),
        failed AS (
            SELECT explainer_id, list((reason, n) ORDER BY n DESC, reason) AS lost
            FROM (SELECT explainer_id, reason, count(*) AS n FROM own WHERE status <> 'ok' GROUP BY ALL)
            GROUP BY explainer_id
        ),
        {PAID},
        cost AS (SELECT p.explainer_id, {TOTALS} FROM paid p JOIN call USING (call_id) GROUP BY p.explainer_id)
        SELECT explainer_id, method, provider, base_url, model, coalesce(grades, []) AS grades,
               coalesce(labelled, 0) AS labelled, coalesce(graded, 0) AS graded, coalesce(chosen, 0) AS chosen, lost,
               coalesce(calls, 0) AS calls, coalesce(input_tokens, 0) AS input_tokens,
               coalesce(output_tokens, 0) AS output_tokens, coalesce(usd, 0) AS usd, coalesce(unpriced, 0) AS unpriced
        FROM who LEFT JOIN found USING (explainer_id) LEFT JOIN failed USING (explainer_id)
        LEFT JOIN cost USING (explainer_id)
        ORDER BY method, provider, base_url, model, explainer_id
        """,
        chosen_parameters(run) | {"eligible": list(eligible), "grader": run.grader(split), "split": split},
    )
    names = [column[0] for column in result.description or []]
    rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    return [row | {"lost": dict(row["lost"] or [])} for row in rows]


def ranks_of(store: Store, run: Run, feature: int) -> dict[tuple[str, Split], Score]:
    """(candidate of a feature, split) -> its r_rank."""
    rows = store.db.execute(
        f"SELECT s.* FROM score s LEFT JOIN ({DESIGNS}) c USING (feature) WHERE s.collection_id = $collection "
        "AND s.feature IN (SELECT unnest($features)) AND s.metric = 'r_rank' AND "
        "if(s.split = 'select', s.simulator_id = $simulator AND s.scorer_id = c.scorer_id, "
        "s.split = 'score' AND s.simulator_id = $grader AND s.scorer_id = $scorer)",
        {"collection": run.collection_id, "simulator": run.grader("select"), "scorer": run.scorer_id,
         "features": [feature], "grader": run.grader("score")},
    ).fetchall()  # fmt: skip
    return {(score.explanation_id, score.split): score for score in (Score(*row) for row in rows)}


def sources(store: Store, collection_id: str, documents: Sequence[str]) -> dict[str, str]:
    """Where these documents came from, by id."""
    rows = store.db.execute(
        "SELECT document_id, source FROM document WHERE collection_id = ? AND document_id IN (SELECT unnest(?))",
        [collection_id, sorted(set(documents))],
    )
    return dict(rows.fetchall())
