"""Labels as a Hugging Face dataset folder: a card, and parquet files for three configurations.

    datasets.load_dataset(FOLDER, "labels")     a row per feature: the columns of `export --format parquet`
    datasets.load_dataset(FOLDER, "scores")     a row per score of a chosen label
    datasets.load_dataset(FOLDER, "contexts")   a row per kept passage: tokens, activations, predictions
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.export import SCHEMA, records
from autointerp.export_contexts import Contexts, write_folder
from autointerp.report import Reading
from autointerp.store import Store
from autointerp.tally import Bar
from autointerp.text import printable

SCORES = pa.schema([
    pa.field("feature_id", pa.string(), nullable=False, metadata={"doc": "dictionary/index"}),
    pa.field("explanation_id", pa.string(), nullable=False, metadata={"doc": "the chosen label, as in labels"}),
    pa.field("metric", pa.string(), nullable=False, metadata={"doc": "what the number is"}),
    pa.field("value", pa.float64(), metadata={"doc": "the number; null where there is none (see reason)"}),
    pa.field("lo", pa.float64(), metadata={"doc": "lower end of the 95 % interval; null where it has none"}),
    pa.field("hi", pa.float64(), metadata={"doc": "upper end"}),
    pa.field("n", pa.int32(), nullable=False, metadata={"doc": "what it was computed over"}),
    pa.field("reason", pa.string(), metadata={"doc": "why there is no value; null when there is"}),
    pa.field("simulator_id", pa.string(), nullable=False, metadata={"doc": "who predicted, or judged"}),
    pa.field("scorer_id", pa.string(), nullable=False, metadata={"doc": "scoring design"}),
])  # fmt: skip
CONTEXTS = pa.schema([
    pa.field("feature_id", pa.string(), nullable=False, metadata={"doc": "dictionary/index"}),
    pa.field("split", pa.string(), nullable=False, metadata={"doc": "explain, select or score"}),
    pa.field("why", pa.string(), nullable=False, metadata={"doc": "top: strongest; sample: uniform"}),
    pa.field("rank", pa.int32(), nullable=False, metadata={"doc": "0 is the strongest, or the first drawn"}),
    pa.field("document_id", pa.string(), nullable=False, metadata={"doc": "hash of the document's text"}),
    pa.field("source", pa.string(), nullable=False, metadata={"doc": "where the document was read"}),
    pa.field("start", pa.int32(), nullable=False, metadata={"doc": "index of the first token in the document"}),
    pa.field("tokens", pa.list_(pa.string()), nullable=False, metadata={"doc": "together they are the text"}),
    pa.field("activations", pa.list_(pa.float32()), nullable=False, metadata={"doc": "per token; 0 where silent"}),
    pa.field("predicted", pa.list_(pa.float32()), metadata={"doc": "per token, under the chosen label; null: none"}),
])  # fmt: skip
CONFIGS = {"labels": SCHEMA, "scores": SCORES, "contexts": CONTEXTS}
MEANING = {
    "labels": "a row per feature: its label, verdict and grades",
    "scores": "a row per score of a chosen label, on passages that its explainer never saw",
    "contexts": "a row per kept passage of a feature",
}


def write(readings: Sequence[Reading], store: Store, path: Path, bar: Bar) -> Path:
    """Write the card and the three configurations; returns the folder. Raises StoreError where that fails."""

    def fill(folder: Path) -> None:
        pq.write_table(pa.Table.from_pylist(records(*readings), schema=SCHEMA), folder / "labels.parquet")
        scores = [row for reading in readings for row in _scores(reading, store)]
        pq.write_table(pa.Table.from_pylist(scores, schema=SCORES), folder / "scores.parquet")
        with pq.ParquetWriter(folder / "contexts.parquet", CONTEXTS) as writer:
            for rows in _contexts(readings, store, bar):
                writer.write_table(pa.Table.from_pylist(rows, schema=CONTEXTS))
        (folder / "README.md").write_text(card(readings), "utf-8")

    return write_folder(path, fill)


def _scores(reading: Reading, store: Store) -> Iterator[dict[str, Any]]:
    ids = {label.explanation_id: label.feature_id for label in reading.labels if label.explanation_id is not None}
    for score in [*store.scores(reading.run, "score"), *store.judged(reading.run, "score")]:
        if score.explanation_id in ids:
            yield {"feature_id": ids[score.explanation_id]} | {
                name: getattr(score, name) for name in SCORES.names if name != "feature_id"
            }


def _contexts(readings: Sequence[Reading], store: Store, bar: Bar) -> Iterator[list[dict[str, Any]]]:
    for reading in readings:
        bar.start("export", total=len(reading.labels), unit="features")
        for block in Contexts(reading, store).blocks():
            yield [
                {
                    "feature_id": label.feature_id, "split": kept.split, "why": kept.why, "rank": kept.rank,
                    "document_id": kept.document_id, "source": kept.source, "start": kept.start,
                    "tokens": kept.strings, "activations": kept.activations, "predicted": kept.predicted,
                }
                for label, all_kept in block for kept in all_kept
            ]  # fmt: skip
            bar.advance(len(block))


def card(readings: Sequence[Reading]) -> str:
    """The dataset card: what is in it, its columns, and how the labels did. Names from the run stand in quotes."""
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}.parquet"}]} for name in CONFIGS
    ]  # fmt: skip
    head = {
        "pretty_name": f"Feature labels: {printable(readings[0].run.name)}", "configs": configs,
        "tags": ["interpretability", "sparse-autoencoder", "autointerp"],
    }  # fmt: skip
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---", ""]
    lines += ["# Labels of sparse-autoencoder features", ""]
    lines += [f"Written by autointerp {readings[0].run.code_version}. All splits are called `train`.", ""]
    for reading in readings:
        row, rank = reading.collection, reading.summary["r_rank"]
        counts = ", ".join(f"{n} {word}" for word, n in reading.summary["verdicts"].items())
        lines.append(
            f"- {_code(row['dictionary'])} at {_code(row['hookpoint'])} of {_code(row['subject'])}, corpus "
            f"{_code(row['corpus'])}: {len(reading.labels)} features; verdicts: {counts or 'none'}; mean r_rank "
            + (f"{rank['mean']:.3f}" if rank["mean"] is not None else "-")
            + f" over {rank['n']} eligible features"
        )
    lines += ["", "The split `train` holds no training data: grades are computed on documents of the split `score`,"]
    lines += ["from which no explainer was shown anything.", ""]
    for name, schema in CONFIGS.items():
        lines += [f"## {name}", "", MEANING[name][0].upper() + MEANING[name][1:] + ".", ""]
        lines += ["```python", f'datasets.load_dataset("FOLDER", "{name}")["train"]', "```", ""]
        lines += ["| column | type | what it holds |", "|---|---|---|"]
        lines += [f"| {f.name} | {f.type} | {f.metadata[b'doc'].decode()} |" for f in schema] + [""]
    return "\n".join(lines)


def _code(text: str) -> str:
    """Text from outside as inline code of one line, which no Markdown ends; of an absolute path the last part."""
    short = text.rstrip("/").rpartition("/")[2] if text.startswith("/") else text
    return "`" + " ".join(printable(short).replace("`", "'").split()) + "`"
