"""A finished run of any size, made up: its rows are written straight into a store, in blocks of features.

What readers touch is there and as long as in a real run: counters, kept excerpts with their passages (no two of them
alike, as in a corpus much larger than what is kept), three candidate labels a feature from three explainers, two of
which asked different providers; a scoring set with predictions of the chosen label, scores, verdicts with their
evidence, a category; neighbours. Numbers are drawn, texts are words of a made-up vocabulary by Zipf's law.

`python -m tests.bench.large_run FOLDER FEATURES` writes one.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from autointerp import __version__, config, verdicts
from autointerp.grades import METRICS
from autointerp.rows import (
    Call,
    Collection,
    Document,
    Draw,
    Excerpt,
    Explanation,
    Feature,
    Grouped,
    Neighbour,
    Panel,
    Passage,
    Run,
    Score,
    Simulation,
    Stage,
    Token,
    Verdict,
)
from autointerp.store import Store, lists

BLOCK = 2_000  # features written at once
VOCABULARY, PASSAGE_TOKENS, PASSAGES_PER_DOCUMENT = 32_768, 64, 8
TOP, SAMPLE = 20, 40  # excerpts of a feature: the strongest of explain, a sample of score
FIRING, CLAIMED, SILENT = 30, 15, 15  # passages of a scoring set: A from the sample; B and C of other features
NEIGHBOURS = 8
DICTIONARY = "made-up"
COLLECTION, SIMULATOR, SCORER, RUN, GROUPING = (f"{n:016x}" for n in (1, 2, 3, 4, 5))
CATEGORIES = 60
EXPLAINERS = (  # id, method, provider, model
    ("e000000000000001", "mined", None, None),
    ("e000000000000002", "marks", "openai", "gpt-5.4-nano"),
    ("e000000000000003", "contrastive", "anthropic", "claude-haiku-5-5"),
)
UNPARSED = 50  # of one feature in so many, no candidate is a label
SOUNDS = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Some features, and all that is drawn for them."""

    first: int
    n: int
    random: np.random.Generator

    @property
    def features(self) -> I64:
        return np.arange(self.first, self.first + self.n)


def write(path: Path, features: int, seed: int = 0, say: Any = None) -> None:
    """Write a run of so many features, all of them eligible and selected. say(done) after every block."""
    random = np.random.default_rng(seed)
    with Store.create(path) as store:
        _write_head(store, features, path.parent, random)
        words = vocabulary()
        tokens = Token, {
            "collection_id": [COLLECTION] * VOCABULARY, "token_id": np.arange(VOCABULARY),
            "piece": [f" {word}".encode() for word in words], "n_explain": _zipf_counts(),
        }  # fmt: skip
        store.add_columns(*tokens)
        for first in range(0, features, BLOCK):
            block = Block(first, min(BLOCK, features - first), random)
            with store.transaction():
                for table, columns in _rows(block, features, words):
                    store.add_columns(table, columns)
            if say is not None:
                say(first + block.n)
        store.db.execute("CHECKPOINT")


def _write_head(store: Store, features: int, folder: Path, random: np.random.Generator) -> None:
    """The run, its collection, and what its stages took."""
    settings = config.load(None, [f"run.results={folder.parent}", f"run.name={folder.name}", "features.select=all"])
    store.add([Collection(
        COLLECTION, settings.subject.model, "model.layers.15", DICTIONARY, "topk", features, "made up", "{}", 128,
        PASSAGE_TOKENS, [400_000_000, 200_000_000, 400_000_000], [6_250_000, 3_125_000, 6_250_000],
        [400_000, 200_000, 400_000], [1, 1, 1], 0, COLLECTION, None,
    )])  # fmt: skip
    store.add([Run(
        RUN, folder.name, settings.model_dump_json(), __version__, COLLECTION, [e[0] for e in EXPLAINERS],
        SIMULATOR, SCORER, list(range(features)), DICTIONARY, 0, grouping_id=GROUPING,
    )])  # fmt: skip
    for stage in ("collect", "explain", "simulate", "score"):
        store.add([Stage(RUN, stage, 3600.0, 10**9, features, "{}", 4096.0)])
    for n, split in enumerate(("explain", "select", "score")):
        store.add([Panel(COLLECTION, split, n, [0, 1], [3, 4], [1.0, 2.0])])  # type: ignore[arg-type]


def _rows(block: Block, features: int, words: list[str]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every table's rows of a block of features, by column."""
    yield _counters(block)
    yield from _passages(block)
    yield _excerpts(block)
    yield from _labels(block, words)
    chosen, silent = _chosen(block)
    yield _draws(block, features, chosen)
    yield _simulations(block, features, chosen)
    scores, of_chosen = _scores(block, chosen, silent)
    yield scores
    yield _verdicts(block, chosen, silent, of_chosen)
    yield _grouped(block, chosen, silent, words)
    n = block.n * NEIGHBOURS
    yield Neighbour, {
        "collection_id": [COLLECTION] * n, "feature": np.repeat(block.features, NEIGHBOURS), "kind": ["firing"] * n,
        "rank": np.tile(np.arange(NEIGHBOURS), block.n), "other": block.random.integers(0, features, n),
        "similarity": np.sort(block.random.uniform(0.05, 0.9, (block.n, NEIGHBOURS)))[:, ::-1].reshape(-1),
    }  # fmt: skip


def _counters(block: Block) -> tuple[Any, dict[str, Any]]:
    random, n = block.random, block.n
    density = np.exp(random.normal(-7, 1.2, n)).clip(1e-5, 0.09)
    tokens = np.maximum((density[:, None] * np.array([4e8, 2e8, 4e8])).astype(np.int64), 1000)
    level = np.exp(random.normal(1.6, 0.6, n))
    bins = np.exp(-((np.arange(40) / 2 - 7.75 - np.log2(level)[:, None]) ** 2))
    return Feature, {
        "collection_id": [COLLECTION] * n, "feature": block.features,
        "feature_id": [f"{DICTIONARY}/{f}" for f in block.features], "n_tokens": tokens, "n_passages": tokens // 3,
        "n_documents": tokens // 4, "sum": tokens * level[:, None],
        "max": (level[:, None] * random.uniform(20, 60, (n, 3))).astype(np.float32),
        "histogram": (bins / bins.sum(axis=1, keepdims=True) * tokens.sum(axis=1)[:, None]).astype(np.int64),
        "top_tokens": random.integers(0, VOCABULARY, (n, 20)),
    }  # fmt: skip


def _passage_ids(feature: I64, places: I64) -> I64:
    """Ids of the passages that features keep at these places: scattered like hashes, so a table of them has no order."""
    number = (feature * (TOP + SAMPLE) + places).astype(np.uint64)
    mixed = number * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(1)).astype(np.int64)


def _passages(block: Block) -> Iterator[tuple[Any, dict[str, Any]]]:
    per = TOP + SAMPLE
    feature, place = np.repeat(block.features, per), np.tile(np.arange(per), block.n)
    n = len(feature)
    split = np.where(place < TOP, "explain", "score")
    document = np.array([f"{i:016x}" for i in (feature * per + place) // PASSAGES_PER_DOCUMENT * 2 + (place >= TOP)])
    ids = np.searchsorted(_EDGES[:-1], block.random.random((n, PASSAGE_TOKENS))).astype(np.int32)
    yield Passage, {
        "collection_id": [COLLECTION] * n, "passage_id": _passage_ids(feature, place), "document_id": document,
        "split": split, "start": place * PASSAGE_TOKENS, "tokens": ids, "masked": lists(np.zeros(n + 1, np.int64), np.empty(0, np.uint8)),
    }  # fmt: skip
    names, where = np.unique(document, return_index=True)
    yield Document, {
        "collection_id": [COLLECTION] * len(names), "document_id": names,
        "source": [f"train-00000.parquet:{int(name, 16)}" for name in names], "split": split[where],
        "n_tokens": np.full(len(names), 1000),
    }  # fmt: skip


def _spikes(random: np.random.Generator, n: int, most: int) -> tuple[I64, NDArray[np.uint8], NDArray[np.float32]]:
    """Offsets, positions (rising within a passage) and values of `n` passages with 1 to `most` entries each."""
    length = random.integers(1, most + 1, n)
    offsets = np.concatenate([[0], np.cumsum(length)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length)
    positions = (np.repeat(random.integers(0, PASSAGE_TOKENS - 2 * most, n), length) + 2 * within).astype(np.uint8)
    return offsets, positions, random.gamma(2.0, 2.0, int(offsets[-1])).astype(np.float32) + np.float32(0.01)


def _excerpts(block: Block) -> tuple[Any, dict[str, Any]]:
    per = TOP + SAMPLE
    n = block.n * per
    place = np.tile(np.arange(per), block.n)
    offsets, positions, values = _spikes(block.random, n, 6)
    feature = np.repeat(block.features, per)
    return Excerpt, {
        "collection_id": [COLLECTION] * n, "feature": feature, "split": np.where(place < TOP, "explain", "score"),
        "why": np.where(place < TOP, "top", "sample"), "rank": np.where(place < TOP, place, place - TOP),
        "passage_id": _passage_ids(feature, place), "peak": np.maximum.reduceat(values, offsets[:-1]),
        "positions": lists(offsets, positions), "activations": lists(offsets, values),
    }  # fmt: skip


def _key(feature: int, explainer: int) -> str:
    return hashlib.md5(b"%d %d" % (feature, explainer)).hexdigest()[:16]


def _chosen(block: Block) -> tuple[list[str], NDArray[np.bool_]]:
    """The candidate of each feature that wins on select, and which features have none."""
    best = block.features % len(EXPLAINERS)
    return [_key(f, e) for f, e in zip(block.features.tolist(), best.tolist())], block.features % UNPARSED == UNPARSED - 1


def _labels(block: Block, words: list[str]) -> list[tuple[Any, dict[str, Any]]]:
    rows: dict[str, list[Any]] = {name: [] for name in Explanation.comments()}
    calls: dict[str, list[Any]] = {name: [] for name in Call.comments()}
    picks = block.random.integers(0, VOCABULARY, (block.n, len(EXPLAINERS), 6))
    for feature, picked in zip(block.features.tolist(), picks.tolist()):
        fails = feature % UNPARSED == UNPARSED - 1
        for place, (explainer, method, provider, model) in enumerate(EXPLAINERS):
            label = None if fails else ", ".join(words[i] for i in picked[place])
            key = _key(feature, place)
            values = (
                key, COLLECTION, feature, explainer, method, model, 0, "unparsed" if fails else "ok", label,
                "no_label_in_reply" if fails else None, key if provider else None, None, 24 if provider else None,
                    None, None,
            )  # fmt: skip
            for column, value in zip(rows.values(), values, strict=True):
                column.append(value)
            if provider and model:
                request = json.dumps([{"role": "user", "content": f"Label feature {feature}: " + " ".join(words[i] for row in picked for i in row)}])
                call = (
                    key, provider, None, model, model, f"explain {method} {COLLECTION}/{feature}", 0, request,
                    json.dumps({"labels": [label]}), "ok", None, None, 1400, 0, 50, 0.0003, 900.0, 1,
                    datetime(2026, 1, 1),
                )  # fmt: skip
                for column, value in zip(calls.values(), call, strict=True):
                    column.append(value)
    return [(Explanation, rows), (Call, calls)]


def _draws(block: Block, features: int, chosen: list[str]) -> tuple[Any, dict[str, Any]]:
    n = FIRING + CLAIMED + SILENT
    return Draw, {
        "explanation_id": _repeated(chosen, n), "scorer_id": [SCORER] * (n * block.n), "split": ["score"] * (n * block.n),
        "passage_id": _scoring_set(block, features), "stratum": (["A"] * FIRING + ["B"] * CLAIMED + ["C"] * SILENT) * block.n,
        "kind": (["fires"] * FIRING + ["claimed"] * CLAIMED + ["silent"] * SILENT) * block.n,
        "population": np.full(n * block.n, 187.0), "weight": np.full(n * block.n, 4.7),
        "panel": pa.nulls(n * block.n, pa.int32()),
    }  # fmt: skip


def _scoring_set(block: Block, features: int) -> I64:
    """Passage ids, [feature x passage] flat: of its own sample, then of the samples of other features."""
    own = _passage_ids(block.features[:, None], TOP + np.arange(FIRING)[None])
    other = (block.features[:, None] + 1 + np.arange(CLAIMED + SILENT)[None] * 97) % features
    return np.concatenate([own, _passage_ids(other, np.full_like(other, TOP + FIRING))], axis=1).reshape(-1)


def _simulations(block: Block, features: int, chosen: list[str]) -> tuple[Any, dict[str, Any]]:
    n = (FIRING + CLAIMED + SILENT) * block.n
    offsets, positions, values = _spikes(block.random, n, 6)
    return Simulation, {
        "explanation_id": _repeated(chosen, n // block.n), "simulator_id": [SIMULATOR] * n, "split": ["score"] * n,
        "passage_id": _scoring_set(block, features), "status": ["ok"] * n, "reason": pa.nulls(n, pa.string()),
        "positions": lists(offsets, positions), "predicted": lists(offsets, values),
    }  # fmt: skip


def _repeated(keys: list[str], times: int) -> list[str]:
    return [key for key in keys for _ in range(times)]


def _scores(block: Block, chosen: list[str], silent: NDArray[np.bool_]) -> tuple[tuple[Any, dict[str, Any]], F64]:
    """r_rank of every candidate on both splits, every other metric of the chosen; and the chosen ones' r_rank."""
    rank = block.random.beta(2.5, 2.5, block.n)
    rows: list[tuple[str, int, str, str, float]] = []
    noise = block.random.normal(0, 0.05, (block.n, len(METRICS) - 1))
    for i, f in enumerate(block.features.tolist()):
        if silent[i]:
            continue
        for place in range(len(EXPLAINERS)):
            key, wins = _key(f, place), f % len(EXPLAINERS) == place
            grade = float(rank[i]) - (0.0 if wins else 0.2)
            for part in ("select", "score"):
                rows.append((key, f, part, "r_rank", grade))
        for place, name in enumerate(METRICS[1:]):
            near = float(noise[i, place]) + (0.0 if name in ("null", "lift") else float(rank[i]))
            rows.append((chosen[i], f, "score", name, min(near, 1.0)))
    keys, feature, split, metric, value = (list(column) for column in zip(*rows))
    n, found = len(keys), np.array(value)
    columns = {
        "score_id": [hashlib.md5(f"{k} {s} {m}".encode()).hexdigest()[:16] for k, s, m in zip(keys, split, metric)],
        "explanation_id": keys, "collection_id": [COLLECTION] * n, "feature": feature, "split": split,
        "simulator_id": [SIMULATOR] * n, "scorer_id": [SCORER] * n, "metric": metric, "status": ["ok"] * n,
        "value": found, "lo": found - 0.1, "hi": found + 0.1, "n": np.full(n, 60), "reason": pa.nulls(n, pa.string()),
    }  # fmt: skip
    return (Score, columns), rank


def _verdicts(block: Block, chosen: list[str], silent: NDArray[np.bool_], rank: F64) -> tuple[Any, dict[str, Any]]:
    words = [w for w in verdicts.WORDS if w not in ("dense", "insufficient_data")]
    which = np.where(rank < 0.1, words.index("no_pattern"), block.random.integers(0, len(words) - 1, block.n))
    passages = _passage_ids(block.features[:, None], TOP + np.arange(5)[None]).tolist()
    thresholds = verdicts.thresholds_id(config.load(None).verdict)
    rows: dict[str, list[Any]] = {name: [] for name in Verdict.comments()}
    for i, key in enumerate(chosen):
        if silent[i]:
            continue
        numbers = [{"metric": m, "value": float(rank[i]), "threshold": 0.5, "wanted": "above", "holds": bool(rank[i] > 0.5)}
                   for m in ("r_rank", "precision", "recall")]  # fmt: skip
        evidence = json.dumps({"numbers": numbers, "passages": {"missed": passages[i]}})
        values = (f"v{key[1:]}", key, COLLECTION, int(block.features[i]), SIMULATOR, SCORER, thresholds, words[which[i]], None, evidence)
        for column, value in zip(rows.values(), values, strict=True):
            column.append(value)
    return Verdict, rows


def category(n: int, words: list[str]) -> str:
    """The name of a category: two labels of six words."""
    picked = [words[(97 * n + 13 * i) % VOCABULARY] for i in range(12)]
    return f"{', '.join(picked[:6])} / {', '.join(picked[6:])}"


def _grouped(block: Block, chosen: list[str], silent: NDArray[np.bool_], words: list[str]) -> tuple[Any, dict[str, Any]]:
    """Chosen labels in categories, of which the first is the largest."""
    names, features = np.array([category(n, words) for n in range(CATEGORIES)]), block.features[~silent]
    return Grouped, {
        "grouping_id": [GROUPING] * len(features), "feature": features,
        "explanation_id": [key for key, off in zip(chosen, silent.tolist()) if not off],
        "category": names[(CATEGORIES * (features * 0.618 % 1) ** 2).astype(np.int64)],
        "similarity": 0.3 + 0.6 * (features * 0.377 % 1),
    }  # fmt: skip


def vocabulary() -> list[str]:
    """Different words of three to five syllables."""
    n = len(SOUNDS)
    return [SOUNDS[i % n] + SOUNDS[i // n % n] + SOUNDS[i // n**2 % n] + "nrst"[i % 4] for i in range(VOCABULARY)]


_EDGES = np.cumsum(1 / (np.arange(VOCABULARY) + 2.7))
_EDGES /= _EDGES[-1]


def _zipf_counts() -> I64:
    return np.maximum(np.diff(_EDGES, prepend=0.0) * 4e8, 1).astype(np.int64)


if __name__ == "__main__":
    write(Path(sys.argv[1]) / "run.duckdb", int(sys.argv[2]))
