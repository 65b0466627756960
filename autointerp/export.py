"""Labels as tables for others: parquet, jsonl, csv. Column names and types are a promise; a test holds them."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp.errors import ConfigError, StoreError, nearest
from autointerp.report import Label, Reading
from autointerp.store_outputs import Said
from autointerp.text import printable

RISKY = ("=", "+", "-", "@", "\t", "\r", "\n", "'")  # what a cell begins with that must not be run
FORMATS = ("parquet", "jsonl", "csv")  # one file, of labels alone
FOLDERS = ("hf", "neuronpedia")  # a folder, with scores and contexts: export_hf.py, export_neuronpedia.py

METHODS = "who made the label: an entry of explainer.methods, revise-1 ..., human, or imported:... of another tool"

SCHEMA = pa.schema([
    pa.field("feature_id", pa.string(), nullable=False, metadata={"doc": "dictionary/index"}),
    pa.field("feature", pa.int32(), nullable=False, metadata={"doc": "index within the dictionary"}),
    pa.field("label", pa.string(), metadata={"doc": "the chosen label; null where there is none (see reason)"}),
    pa.field("category", pa.string(), metadata={"doc": "group of labels alike in meaning; null: not grouped"}),
    pa.field("verdict", pa.string(), metadata={"doc": "what is the matter with the label: good, too_broad, ..."}),
    pa.field("evidence", pa.string(), metadata={"doc": "JSON: the numbers that decided it, and passages that show it"}),
    pa.field("r_rank", pa.float64(), metadata={"doc": "Pearson over strata A+B+C of the score split"}),
    pa.field("r_rank_lo", pa.float64(), metadata={"doc": "lower end of its 95 % document-bootstrap interval"}),
    pa.field("r_rank_hi", pa.float64(), metadata={"doc": "upper end"}),
    pa.field("r_pop", pa.float64(), metadata={"doc": "the same, weighted to the corpus"}),
    pa.field("r_pop_lo", pa.float64(), metadata={"doc": "lower end of its 95 % interval"}),
    pa.field("r_pop_hi", pa.float64(), metadata={"doc": "upper end"}),
    pa.field("f1", pa.float64(), metadata={"doc": "does it fire: F1 over A and claimed passages, weighted"}),
    pa.field("precision", pa.float64(), metadata={"doc": "of the same passages"}),
    pa.field("recall", pa.float64(), metadata={"doc": "share of firing passages (A) that the label claims"}),
    pa.field("auprc", pa.float64(), metadata={"doc": "area under precision over recall, weighted to the corpus"}),
    pa.field("tnr_b", pa.float64(), metadata={"doc": "share of hard negatives of which it rightly says nothing"}),
    pa.field("tnr_c", pa.float64(), metadata={"doc": "share of the other silent passages"}),
    pa.field("null_q", pa.float64(), metadata={"doc": "false discovery rate among labels of other features"}),
    pa.field("discrimination", pa.float64(), metadata={"doc": "share of neighbours' labels that score below it here"}),
    pa.field("r_tok", pa.float64(), metadata={"doc": "the token look-up table's r on the same passages"}),
    pa.field("lift", pa.float64(), metadata={"doc": "r_rank - r_tok"}),
    pa.field("null", pa.float64(), metadata={"doc": "mean r_rank of other features' labels on this feature"}),
    pa.field("n_passages", pa.int32(), nullable=False, metadata={"doc": "passages behind r_rank"}),
    pa.field("output_label", pa.string(), metadata={"doc": "what the feature makes the subject say; null: not known"}),
    pa.field("output_method", pa.string(), metadata={"doc": "vocab-proj, token-change, or output of a model"}),
    pa.field("output_causal", pa.float64(), metadata={"doc": "nats by which its tokens rise above random directions"}),
    pa.field("output_p", pa.float64(), metadata={"doc": "share of random directions that raise them as much"}),
    pa.field("output_own_p", pa.float64(), metadata={"doc": "the same, of random directions' own labels"}),
    pa.field("density", pa.float64(), nullable=False, metadata={"doc": "share of tokens on which the feature fires"}),
    pa.field("kind", pa.string(), nullable=False, metadata={"doc": "eligible, dense, too_rare or dead"}),
    pa.field("method", pa.string(), metadata={"doc": METHODS}),
    pa.field("model", pa.string(), metadata={"doc": "model asked; null where none was"}),
    pa.field("author", pa.string(), metadata={"doc": "who says so, of a label from outside; null: an explainer"}),
    pa.field("up", pa.int32(), nullable=False, metadata={"doc": "votes for the label"}),
    pa.field("down", pa.int32(), nullable=False, metadata={"doc": "votes against it"}),
    pa.field("reason", pa.string(), metadata={"doc": "why there is no label or grade; null when there is"}),
    pa.field("subject", pa.string(), nullable=False, metadata={"doc": "model whose activations were read"}),
    pa.field("hookpoint", pa.string(), nullable=False, metadata={"doc": "the tensor that was encoded"}),
    pa.field("collection_id", pa.string(), nullable=False, metadata={"doc": "hash of what was collected"}),
    pa.field("explanation_id", pa.string(), metadata={"doc": "key of the label in run.duckdb"}),
    pa.field("code_version", pa.string(), nullable=False, metadata={"doc": "version of autointerp"}),
])  # fmt: skip


def check_format(format: str) -> None:
    """Raises ConfigError for a format that is not known."""
    known = FORMATS + FOLDERS
    if format not in known:
        raise ConfigError(f"unknown export format {format!r}{nearest(format, known)}; known: {', '.join(known)}")


def records(*readings: Reading) -> list[dict[str, Any]]:
    """One dict per selected feature, with the columns of SCHEMA; dictionaries one after another."""
    return [row for reading in readings for row in _records(reading)]


def _records(reading: Reading) -> list[dict[str, Any]]:
    shared = {
        "subject": reading.collection["subject"], "hookpoint": reading.collection["hookpoint"],
        "collection_id": reading.run.collection_id, "code_version": reading.run.code_version,
    }  # fmt: skip
    return [
        {name: (_columns(label) | _does(reading.does.get(label.feature)) | shared)[name] for name in SCHEMA.names}
        for label in reading.labels
    ]


def _columns(label: Label) -> dict[str, Any]:
    evidence = json.dumps(label.evidence) if label.evidence else None
    return asdict(label) | label.numbers | {"evidence": evidence}


def _does(said: Said | None) -> dict[str, Any]:
    """The columns of a feature's output label."""
    numbers = {metric: said.value(metric) if said else None for metric in ("output_causal", "output_p", "output_own_p")}
    return numbers | {
        "output_label": said.row.label if said else None, "output_method": said.row.method if said else None,
    }  # fmt: skip


def write(reading: Reading | Sequence[Reading], format: str, folder: Path, output: Path | None = None) -> Path:
    """Write the labels as `labels.<format>` in the folder, or to `output`, by an atomic rename; returns the path.

    reading  one dictionary's, or several

    Raises ConfigError for an unknown format, StoreError where the file cannot be written.
    """
    check_format(format)
    path = output or folder / f"labels.{format}"
    scratch = path.with_name(path.name + ".writing")
    rows = records(reading) if isinstance(reading, Reading) else records(*reading)
    try:
        if format == "parquet":
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), scratch)
        elif format == "jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            scratch.write_text(text, "utf-8")
        else:
            with scratch.open("w", encoding="utf-8", newline="") as file:
                _write_csv(file, SCHEMA.names, [list(row.values()) for row in rows])
        scratch.replace(path)
    except OSError as problem:
        scratch.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {problem.strerror or problem}") from None
    return path


def print_rows(names: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> None:
    """Rows of a query on stdout: csv, json, or a table for people."""
    if form == "csv":
        _write_csv(sys.stdout, names, rows)
    elif form == "json":
        found = [dict(zip(names, row, strict=True)) for row in rows]
        print(json.dumps(found, indent=2, ensure_ascii=False, default=_jsonable))
    else:
        table = Table()
        for name in names:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(value)) for value in row))
        Console().print(table)


def _jsonable(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)


def _write_csv(file: Any, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    writer = csv.writer(file)
    writer.writerow(names)
    writer.writerows([_harmless(value) for value in row] for row in rows)


def _harmless(value: Any) -> Any:
    """A cell that a spreadsheet cannot take for a formula: text that begins like one gets a leading quote.

    So does text that begins with a quote of its own: `from_cell` then gives every text back as it was.
    """
    return "'" + value if isinstance(value, str) and value.startswith(RISKY) else value


def from_cell(cell: str) -> str:
    """The text that a cell of our CSV stands for: without the quote that kept a spreadsheet from running it. A quote
    before anything else is the text's own."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(RISKY) else cell
