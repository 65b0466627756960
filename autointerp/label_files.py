"""Files of labels that come from outside -> records, each with its place in the file.

Nothing here knows what a record means. A file that cannot be read any further ends with its line.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from autointerp.errors import LabelsError
from autointerp.export import from_cell

LONGEST_LINE = 2**24  # bytes: what a line may hold before it is taken for something else
LARGEST_JSON = 2**30  # bytes of a list that is read whole; larger files come as lines
FILES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet")
COLUMNS = ("feature_id", "feature", "label", "method", "model", "author", "at")  # of a table, those that are read

Record = Mapping[str, Any]
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


class Broken(LabelsError):
    """A file that cannot be read any further; the message says where, not in which file."""


def files(path: Path) -> list[Path]:
    """The files to read. Raises LabelsError where there is none."""
    if path.is_file():
        if not path.name.endswith(FILES):
            raise LabelsError(f"{path}: expected a file that ends in {', '.join(FILES)}, or a folder")
        return [path]
    if not path.is_dir():
        raise LabelsError(f"{path} is not there: expected a file or folder of labels")
    tables = [path / f"labels{suffix}" for suffix in (".parquet", ".jsonl", ".csv")]
    if table := next((table for table in tables if table.is_file()), None):
        return [table]
    batches = [path] if path.name == "explanations" else sorted(path.rglob("explanations"))
    found = [file for folder in batches for file in sorted(folder.iterdir(), key=_batch) if ".jsonl" in file.suffixes]
    if not found:
        raise LabelsError(f"{path} holds no labels: expected labels.parquet, or explanations/batch-0.jsonl.gz in it")
    return found


def _batch(file: Path) -> tuple[int, str]:
    """batch-10 comes after batch-9."""
    digits = "".join(c for c in file.name if c.isdecimal() and c.isascii())
    return int(digits[:9] or 0), file.name


def records(file: Path) -> Iterator[tuple[str, object]]:
    """Where each record stands (`line 3`, `row 3`, `entry 3`) and what stands there: an object, or a line to be parsed.

    Raises Broken, or OSError.
    """
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    return {"csv": _csv, "parquet": _parquet, "json": _json}.get(kind, _jsonl)(file)


def _jsonl(file: Path) -> Iterator[tuple[str, bytes]]:
    number = 0
    try:
        with _opened(file) as lines:
            while line := lines.readline(LONGEST_LINE):
                number += 1
                if line.strip():
                    yield f"line {number}", line
    except _DAMAGED as problem:
        raise Broken(f"line {number + 1}: the archive is damaged or cut off ({problem})") from None


def _json(file: Path) -> Iterator[tuple[str, object]]:
    """The entries of a list, or of `explanations` of an object; or lines, under a name that
    hides that they are."""
    try:
        with _opened(file) as opened:
            whole = opened.read(LARGEST_JSON)
    except _DAMAGED as problem:
        raise Broken(f"line 1: the archive is damaged or cut off ({problem})") from None
    try:
        found = json.loads(whole)
    except json.JSONDecodeError as problem:
        if problem.msg != "Extra data":
            raise Broken(f"line {problem.lineno}: no JSON ({problem.msg})") from None
        yield from ((f"line {n}", line) for n, line in enumerate(whole.splitlines(), start=1) if line.strip())
        return
    except (ValueError, RecursionError) as problem:
        raise Broken(f"line 1: no JSON ({problem})") from None
    if isinstance(found, dict):
        found = found.get("explanations", [found])
    entries = found if isinstance(found, list) else [found]
    yield from ((f"entry {n}", entry) for n, entry in enumerate(entries, start=1))


def record(value: object) -> Record:
    """A line or an entry as a record. Raises LabelsError where it is none."""
    if isinstance(value, bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as problem:
            raise LabelsError(f"no JSON ({problem})") from None
    if not isinstance(value, dict):
        raise LabelsError(f"expected a JSON object, got {str(value)[:60]!r}")
    return value


def _csv(file: Path) -> Iterator[tuple[str, Record]]:
    """Rows with the line that each ends on; what kept a spreadsheet from running a cell is taken off."""
    csv.field_size_limit(LONGEST_LINE)
    with _opened(file) as opened:
        rows = csv.DictReader(_text_lines(opened), strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    raise Broken(f"line {rows.line_num}: expected {len(rows.fieldnames or [])} cells")
                yield f"line {rows.line_num}", {name: from_cell(cell) or None for name, cell in row.items()}
        except csv.Error as problem:
            raise Broken(f"line {rows.reader.line_num}: {problem}") from None


def _text_lines(opened: BinaryIO) -> Iterator[str]:
    number = 0
    while line := opened.readline(LONGEST_LINE):
        number += 1
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as problem:
            raise Broken(f"line {number}: no UTF-8 text ({problem})") from None


def _parquet(file: Path) -> Iterator[tuple[str, Record]]:
    try:
        with pq.ParquetFile(file) as table:
            columns = [name for name in table.schema_arrow.names if name in COLUMNS]
            if "label" not in columns or not {"feature_id", "feature"} & set(columns):
                names = ", ".join(table.schema_arrow.names)[:200]
                raise Broken(f"row 1: expected columns feature_id and label, got {names}")
            batches = table.iter_batches(columns=columns)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((f"row {n}", row) for n, row in enumerate(rows, start=1))
    except pa.ArrowException as problem:
        raise Broken(f"row 1: no parquet file that can be read ({str(problem).splitlines()[0]})") from None


def _opened(file: Path) -> BinaryIO:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]
