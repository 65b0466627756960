"""Schema steps, append-only. A step that has been released is never edited; a new one is added below it.

Tables have no indexes: rows are written sorted by feature, so zone maps find a feature's rows, and an index would
double the file for nothing. What must never be wrong is said in CHECKs: a value exists exactly when the status is ok,
and a NaN is not a value (it sorts above every number, so BETWEEN refuses it; isfinite() would do the same, but a
database that was killed could not replay its log with it).
"""

STEPS: tuple[tuple[str, str], ...] = (
    (
        "m001_first_tables",
        """
        CREATE TYPE split AS ENUM ('explain', 'select', 'score');
        CREATE TYPE status AS ENUM ('ok', 'unparsed', 'refused', 'failed', 'skipped');
        CREATE TYPE stratum AS ENUM ('A', 'B', 'C');
        CREATE TYPE why AS ENUM ('top', 'sample');

        CREATE TABLE run (
            run_id VARCHAR NOT NULL, name VARCHAR NOT NULL, settings VARCHAR NOT NULL, code_version VARCHAR NOT NULL,
            collection_id VARCHAR NOT NULL, explainer_ids VARCHAR[] NOT NULL, simulator_id VARCHAR NOT NULL,
            scorer_id VARCHAR NOT NULL, features INTEGER[], asked_at TIMESTAMP NOT NULL DEFAULT now()
        );
        CREATE TABLE stage (
            run_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, seconds DOUBLE NOT NULL, tokens BIGINT NOT NULL,
            ok BIGINT NOT NULL, failed VARCHAR NOT NULL, peak_memory_mb DOUBLE NOT NULL,
            ended_at TIMESTAMP NOT NULL DEFAULT now()
        );
        CREATE TABLE collection (
            collection_id VARCHAR NOT NULL, subject VARCHAR NOT NULL, hookpoint VARCHAR NOT NULL,
            dictionary VARCHAR NOT NULL, architecture VARCHAR NOT NULL, width INTEGER NOT NULL, corpus VARCHAR NOT NULL,
            settings VARCHAR NOT NULL, context_tokens INTEGER NOT NULL, passage_tokens INTEGER NOT NULL,
            n_tokens BIGINT[] NOT NULL, n_passages BIGINT[] NOT NULL, n_documents BIGINT[] NOT NULL,
            n_panel BIGINT[] NOT NULL, n_masked BIGINT NOT NULL
        );
        CREATE TABLE document (
            collection_id VARCHAR NOT NULL, document_id VARCHAR NOT NULL, source VARCHAR NOT NULL, split split NOT NULL,
            n_tokens INTEGER NOT NULL
        );
        CREATE TABLE passage (
            collection_id VARCHAR NOT NULL, passage_id BIGINT NOT NULL, document_id VARCHAR NOT NULL,
            split split NOT NULL, start INTEGER NOT NULL, tokens INTEGER[] NOT NULL, masked UTINYINT[] NOT NULL
        );
        CREATE TABLE token (
            collection_id VARCHAR NOT NULL, token_id INTEGER NOT NULL, piece BLOB NOT NULL, n_explain BIGINT NOT NULL
        );
        CREATE TABLE feature (
            collection_id VARCHAR NOT NULL, feature INTEGER NOT NULL, feature_id VARCHAR NOT NULL,
            n_tokens BIGINT[] NOT NULL, n_passages BIGINT[] NOT NULL, n_documents BIGINT[] NOT NULL,
            sum DOUBLE[] NOT NULL, max FLOAT[] NOT NULL, histogram BIGINT[] NOT NULL, top_tokens INTEGER[] NOT NULL
        );
        CREATE TABLE excerpt (
            collection_id VARCHAR NOT NULL, feature INTEGER NOT NULL, split split NOT NULL, why why NOT NULL,
            rank USMALLINT NOT NULL, passage_id BIGINT NOT NULL, peak FLOAT NOT NULL,
            positions UTINYINT[] NOT NULL, activations FLOAT[] NOT NULL
        );
        CREATE TABLE panel (
            collection_id VARCHAR NOT NULL, split split NOT NULL, passage_id BIGINT NOT NULL,
            features INTEGER[] NOT NULL, positions UTINYINT[] NOT NULL, activations FLOAT[] NOT NULL
        );
        CREATE TABLE explanation (
            explanation_id VARCHAR NOT NULL, collection_id VARCHAR NOT NULL, feature INTEGER NOT NULL,
            explainer_id VARCHAR NOT NULL, method VARCHAR NOT NULL, model VARCHAR, draw INTEGER NOT NULL,
            status status NOT NULL, label VARCHAR, reason VARCHAR, call_id VARCHAR,
            CHECK ((status = 'ok') = (label IS NOT NULL)), CHECK ((status = 'ok') = (reason IS NULL))
        );
        CREATE TABLE draw (
            explanation_id VARCHAR NOT NULL, scorer_id VARCHAR NOT NULL, split split NOT NULL,
            passage_id BIGINT NOT NULL, stratum stratum NOT NULL, kind VARCHAR NOT NULL, population DOUBLE NOT NULL,
            weight DOUBLE NOT NULL
        );
        CREATE TABLE simulation (
            explanation_id VARCHAR NOT NULL, simulator_id VARCHAR NOT NULL, split split NOT NULL,
            passage_id BIGINT NOT NULL, status status NOT NULL, reason VARCHAR, positions UTINYINT[], predicted FLOAT[],
            CHECK ((status = 'ok') = (predicted IS NOT NULL)), CHECK ((status = 'ok') = (positions IS NOT NULL)),
            CHECK (positions IS NULL OR len(positions) = len(predicted))
        );
        CREATE TABLE score (
            score_id VARCHAR NOT NULL, explanation_id VARCHAR NOT NULL, collection_id VARCHAR NOT NULL,
            feature INTEGER NOT NULL, split split NOT NULL, simulator_id VARCHAR NOT NULL, scorer_id VARCHAR NOT NULL,
            metric VARCHAR NOT NULL, status status NOT NULL, value DOUBLE, lo DOUBLE, hi DOUBLE, n INTEGER NOT NULL,
            reason VARCHAR,
            CHECK ((status = 'ok') = (value IS NOT NULL AND value BETWEEN -1e308 AND 1e308)),
            CHECK (lo IS NULL OR lo BETWEEN -1e308 AND 1e308), CHECK (hi IS NULL OR hi BETWEEN -1e308 AND 1e308),
            CHECK ((status = 'ok') = (reason IS NULL))
        );
        CREATE TABLE call (
            call_id VARCHAR NOT NULL, provider VARCHAR NOT NULL, model VARCHAR NOT NULL,
            model_answered VARCHAR NOT NULL, purpose VARCHAR NOT NULL, draw INTEGER NOT NULL, request VARCHAR NOT NULL,
            reply VARCHAR NOT NULL,
            input_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
            usd DOUBLE NOT NULL, ms DOUBLE NOT NULL, tries INTEGER NOT NULL, asked_at TIMESTAMP NOT NULL DEFAULT now()
        );
        """,
    ),
    (
        "m002_shards_and_several_dictionaries",
        """
        ALTER TABLE collection ADD COLUMN whole_id VARCHAR DEFAULT '';
        ALTER TABLE collection ALTER COLUMN whole_id SET NOT NULL;
        ALTER TABLE collection ALTER COLUMN whole_id DROP DEFAULT;
        ALTER TABLE collection ADD COLUMN shards VARCHAR[];
        ALTER TABLE run ADD COLUMN dictionary VARCHAR DEFAULT '';
        ALTER TABLE run ALTER COLUMN dictionary SET NOT NULL;
        ALTER TABLE run ALTER COLUMN dictionary DROP DEFAULT;
        ALTER TABLE run ADD COLUMN place INTEGER DEFAULT 0;
        ALTER TABLE run ALTER COLUMN place SET NOT NULL;
        UPDATE collection SET whole_id = collection_id;
        UPDATE run SET dictionary = coalesce(
            (SELECT any_value(c.dictionary) FROM collection c WHERE c.collection_id = run.collection_id), '');
        """,
    ),
    (
        "m003_packed_tokens",
        """
        CREATE TABLE packed (
            collection_id VARCHAR NOT NULL, passage_id BIGINT NOT NULL, document_id VARCHAR NOT NULL,
            split split NOT NULL, start INTEGER NOT NULL, tokens BLOB NOT NULL USING COMPRESSION zstd,
            masked UTINYINT[] NOT NULL
        );
        INSERT INTO packed SELECT * REPLACE (
            unhex(array_to_string(list_transform(tokens, lambda t: CASE
                WHEN t < 128 THEN printf('%02x', t)
                WHEN t < 16384 THEN printf('%02x%02x', t & 127 | 128, t >> 7)
                ELSE printf('%02x%02x%02x', t & 127 | 128, (t >> 7) & 127 | 128, t >> 14) END), '')) AS tokens
        ) FROM passage;
        DROP TABLE passage;
        ALTER TABLE packed RENAME TO passage;
        """,
    ),
    (
        "m004_fit",
        """
        CREATE TABLE fit (
            collection_id VARCHAR NOT NULL, outcome VARCHAR NOT NULL, fvu DOUBLE, l0 DOUBLE,
            n_tokens BIGINT NOT NULL, n_masked BIGINT NOT NULL, reasons VARCHAR[] NOT NULL, notes VARCHAR[] NOT NULL,
            trials VARCHAR NOT NULL, checked_at TIMESTAMP NOT NULL DEFAULT now(),
            CHECK (outcome IN ('fits', 'misfits', 'unchecked') AND (outcome = 'unchecked') = (l0 IS NULL))
        );
        """,
    ),
    (
        "m005_ledger",
        """
        CREATE TABLE asked (
            call_id VARCHAR NOT NULL, provider VARCHAR NOT NULL, base_url VARCHAR, model VARCHAR NOT NULL,
            model_answered VARCHAR NOT NULL, purpose VARCHAR NOT NULL, draw INTEGER NOT NULL, request VARCHAR NOT NULL,
            reply VARCHAR NOT NULL, status status NOT NULL, reason VARCHAR, repair_of VARCHAR,
            input_tokens INTEGER, cached_tokens INTEGER, output_tokens INTEGER, usd DOUBLE,
            ms DOUBLE NOT NULL, tries INTEGER NOT NULL, asked_at TIMESTAMP NOT NULL,
            CHECK ((status = 'ok') = (reason IS NULL)), CHECK (usd IS NULL OR usd BETWEEN 0 AND 1e308)
        );
        INSERT INTO asked BY NAME SELECT *, 'ok' AS status FROM call;
        DROP TABLE call;
        ALTER TABLE asked RENAME TO call;
        """,
    ),
    (
        "m006_structured_labels",
        """
        ALTER TABLE explanation ADD COLUMN rules VARCHAR;
        ALTER TABLE explanation ADD COLUMN excerpts INTEGER;
        """,
    ),
    (
        "m007_neighbour",
        """
        CREATE TABLE neighbour (
            collection_id VARCHAR NOT NULL, feature INTEGER NOT NULL,
            kind VARCHAR NOT NULL CHECK (kind IN ('firing', 'decoder')), rank INTEGER NOT NULL, other INTEGER NOT NULL,
            similarity DOUBLE NOT NULL CHECK (similarity BETWEEN 0 AND 1.001)
        );
        """,
    ),
    ("m008_who_chooses", "ALTER TABLE run ADD COLUMN chooser_id VARCHAR;"),
    (
        "m009_judgement",
        """
        CREATE TABLE judgement (
            explanation_id VARCHAR NOT NULL, judge_id VARCHAR NOT NULL, scorer_id VARCHAR NOT NULL,
            split split NOT NULL, passage_id BIGINT NOT NULL,
            kind VARCHAR NOT NULL CHECK (kind IN ('detection', 'fuzzing')), stratum stratum NOT NULL,
            status status NOT NULL, reason VARCHAR, says BOOLEAN, marked BOOLEAN,
            CHECK ((status = 'ok') = (says IS NOT NULL)), CHECK ((status = 'ok') = (reason IS NULL)),
            CHECK ((kind = 'fuzzing') = (marked IS NOT NULL))
        );
        ALTER TABLE run ADD COLUMN judge_ids VARCHAR[];
        ALTER TABLE run ADD COLUMN detector_id VARCHAR;
        """,
    ),
    (
        "m010_verdicts",
        """
        ALTER TABLE draw ADD COLUMN panel INTEGER;
        CREATE TABLE verdict (
            verdict_id VARCHAR NOT NULL, explanation_id VARCHAR NOT NULL, collection_id VARCHAR NOT NULL,
            feature INTEGER NOT NULL, simulator_id VARCHAR NOT NULL, scorer_id VARCHAR NOT NULL,
            thresholds_id VARCHAR NOT NULL, verdict VARCHAR, reason VARCHAR, evidence VARCHAR NOT NULL,
            CHECK ((verdict IS NULL) = (reason IS NOT NULL)),
            CHECK (verdict IN ('good', 'too_broad', 'too_narrow', 'token_only', 'collides', 'no_pattern', 'dense',
                               'insufficient_data'))
        );
        CREATE TABLE certificate (
            simulator_id VARCHAR NOT NULL, scorer VARCHAR NOT NULL, model VARCHAR, prompt_hash VARCHAR,
            date VARCHAR NOT NULL, code_version VARCHAR NOT NULL, certificate VARCHAR NOT NULL,
            certified_at TIMESTAMP NOT NULL DEFAULT now()
        );
        """,
    ),
    (
        "m011_lens",
        """
        CREATE TABLE lens (
            collection_id VARCHAR NOT NULL, feature INTEGER NOT NULL, promoted VARCHAR[] NOT NULL,
            promoted_by FLOAT[] NOT NULL, suppressed VARCHAR[] NOT NULL, suppressed_by FLOAT[] NOT NULL,
            CHECK (len(promoted) = len(promoted_by)), CHECK (len(suppressed) = len(suppressed_by))
        );
        """,
    ),
    (
        "m012_labels_of_people",
        """
        ALTER TABLE explanation ADD COLUMN author VARCHAR;
        ALTER TABLE explanation ADD COLUMN made_at TIMESTAMP;
        CREATE TABLE label_edit (
            edit_id VARCHAR NOT NULL, feature_id VARCHAR NOT NULL,
            kind VARCHAR NOT NULL CHECK (kind IN ('label', 'up', 'down')), label VARCHAR NOT NULL,
            method VARCHAR NOT NULL, model VARCHAR, author VARCHAR NOT NULL, made_at TIMESTAMP,
            source VARCHAR NOT NULL, reason VARCHAR, imported_at TIMESTAMP NOT NULL DEFAULT now()
        );
        """,
    ),
    (
        "m013_categories",
        """
        CREATE TABLE category (
            grouping_id VARCHAR NOT NULL, feature INTEGER NOT NULL, explanation_id VARCHAR NOT NULL,
            category VARCHAR NOT NULL, similarity DOUBLE NOT NULL CHECK (similarity BETWEEN -1.001 AND 1.001)
        );
        ALTER TABLE run ADD COLUMN grouping_id VARCHAR;
        """,
    ),
    (
        "m014_output_labels",
        """
        CREATE TABLE output_label (
            output_id VARCHAR NOT NULL, collection_id VARCHAR NOT NULL, feature INTEGER NOT NULL,
            labeller_id VARCHAR NOT NULL,
            method VARCHAR NOT NULL CHECK (method IN ('vocab-proj', 'token-change', 'output')), model VARCHAR,
            kl DOUBLE NOT NULL, status status NOT NULL, label VARCHAR, reason VARCHAR, promoted VARCHAR[] NOT NULL,
            suppressed VARCHAR[] NOT NULL, call_id VARCHAR, made_at TIMESTAMP NOT NULL DEFAULT now(),
            CHECK ((status = 'ok') = (label IS NOT NULL)), CHECK ((status = 'ok') = (reason IS NULL)),
            CHECK ((method = 'output') = (model IS NOT NULL))
        );
        """,
    ),
)
