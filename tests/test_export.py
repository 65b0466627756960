"""Labels as tables for others: the columns are a promise, and the three formats say the same."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autointerp import export, report
from autointerp.errors import ConfigError, StoreError
from autointerp.report import Reading
from autointerp.store import Store

from .test_pipeline import finished_run

# Names, types and order, frozen. A column may be added at a place of its own; none is renamed, retyped or dropped.
FROZEN = {
    "feature_id": "string not null",
    "feature": "int32 not null",
    "label": "string",
    "category": "string",
    "verdict": "string",
    "evidence": "string",
    "r_rank": "double",
    "r_rank_lo": "double",
    "r_rank_hi": "double",
    "r_pop": "double",
    "r_pop_lo": "double",
    "r_pop_hi": "double",
    "f1": "double",
    "precision": "double",
    "recall": "double",
    "auprc": "double",
    "tnr_b": "double",
    "tnr_c": "double",
    "null_q": "double",
    "discrimination": "double",
    "r_tok": "double",
    "lift": "double",
    "null": "double",
    "n_passages": "int32 not null",
    "output_label": "string",
    "output_method": "string",
    "output_causal": "double",
    "output_p": "double",
    "output_own_p": "double",
    "density": "double not null",
    "kind": "string not null",
    "method": "string",
    "model": "string",
    "author": "string",
    "up": "int32 not null",
    "down": "int32 not null",
    "reason": "string",
    "subject": "string not null",
    "hookpoint": "string not null",
    "collection_id": "string not null",
    "explanation_id": "string",
    "code_version": "string not null",
}
GRADES = ("r_rank", "r_rank_lo", "r_rank_hi", "r_tok", "lift", "null")


@pytest.fixture(scope="module")
def reading(tiny: dict[str, Path]) -> Iterator[Reading]:
    """A finished run, one of its labels without a grade, one feature without a label, and labels that are formulas."""
    with Store.read(finished_run(tiny) / "run.duckdb") as store:
        found = report.read(store)
    labels = list(found.labels)
    none = dict.fromkeys(GRADES)
    labels[0] = replace(labels[0], label='=HYPERLINK("http://x","y")')
    labels[1] = replace(labels[1], label="comma, \"quote\", 'mark'\nand líne 日本")
    labels[2] = replace(labels[2], **none, reason="constant_prediction")
    labels[3] = replace(
        labels[3], **none, label=None, method=None, explanation_id=None, n_passages=0, reason="empty"
    )
    yield replace(found, labels=labels)


@pytest.fixture
def files(reading: Reading, tmp_path: Path) -> dict[str, Path]:
    """The run in every format."""
    return {name: export.write(reading, name, tmp_path) for name in export.FORMATS}


def test_the_parquet_columns_are_frozen(files: dict[str, Path]) -> None:
    schema = pq.read_schema(files["parquet"])
    found = {f.name: f"{f.type}{'' if f.nullable else ' not null'}" for f in schema}
    assert list(found.items()) == list(FROZEN.items())
    assert all(f.metadata and f.metadata[b"doc"] for f in schema), "every column says what it holds"


def test_parquet_opens_in_duckdb(files: dict[str, Path]) -> None:
    with duckdb.connect() as db:
        assert db.read_parquet(str(files["parquet"])).columns == list(FROZEN)


def test_parquet_and_jsonl_agree_row_by_row(files: dict[str, Path], reading: Reading) -> None:
    table = pq.read_table(files["parquet"]).to_pylist()
    lines = [json.loads(line) for line in files["jsonl"].read_text("utf-8").splitlines()]
    assert lines == table
    assert len(table) == len(reading.labels) == 6
    assert list(lines[0]) == list(FROZEN)


def test_csv_agrees_with_parquet_row_by_row(files: dict[str, Path]) -> None:
    table = pq.read_table(files["parquet"]).to_pylist()
    with files["csv"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(FROZEN)
    for row, want in zip(rows, table, strict=True):
        for name, value in want.items():
            if value is None:
                assert row[name] == ""
            elif isinstance(value, float):
                assert math.isclose(float(row[name]), value, rel_tol=1e-12)
            else:
                assert row[name].removeprefix("'") == str(value)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1 degrees", "@SUM(A1)", "\t=1", "\r=1", "'=1", "'"])
def test_a_label_that_a_spreadsheet_would_run_is_defused_in_csv_alone(
    reading: Reading, tmp_path: Path, text: str
) -> None:
    poisoned = replace(reading, labels=[replace(reading.labels[0], label=text)])
    with export.write(poisoned, "csv", tmp_path).open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["label"] == "'" + text
    assert export.from_cell(row["label"]) == text
    assert json.loads(export.write(poisoned, "jsonl", tmp_path).read_text("utf-8"))["label"] == text


def test_a_negative_number_stays_a_number_in_csv(reading: Reading, tmp_path: Path) -> None:
    below = replace(reading, labels=[replace(reading.labels[0], lift=-0.25)])
    with export.write(below, "csv", tmp_path).open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["lift"] == "-0.25"


def test_a_row_has_a_grade_or_a_reason_and_never_both(files: dict[str, Path]) -> None:
    table = pq.read_table(files["parquet"]).to_pylist()
    assert [row["reason"] for row in table] == [None, None, "constant_prediction", "empty", None, None]
    for row in table:
        assert (row["r_rank"] is None) == (row["reason"] is not None)
        assert row["r_rank"] is None or row["n_passages"] > 0
        assert not any(isinstance(row[g], float) and math.isnan(row[g]) for g in GRADES)


def test_what_is_exported_is_what_the_report_says(files: dict[str, Path], reading: Reading) -> None:
    table = pq.read_table(files["parquet"]).to_pylist()
    labels = report.as_json(reading)["labels"]
    assert [{k: row[k] for k in row if k in labels[0]} for row in table] == [
        {k: label[k] for k in table[0] if k in label}
        | {"evidence": json.dumps(label["evidence"]) if label["evidence"] else None}
        for label in labels
    ]


def test_a_file_appears_in_one_piece(
    reading: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = Path.replace
    monkeypatch.setattr(
        Path,
        "replace",
        lambda self, to: seen.append((self.stat().st_size, to.exists())) or original(self, to),
    )
    for name in export.FORMATS:
        path = export.write(reading, name, tmp_path)
        assert seen[-1] == (path.stat().st_size, False), "the file was whole before it had its name"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.csv", "labels.jsonl", "labels.parquet"]


def test_exporting_again_replaces_the_file_and_says_the_same(reading: Reading, tmp_path: Path) -> None:
    for name in export.FORMATS:
        first = export.write(reading, name, tmp_path).read_bytes()
        assert export.write(reading, name, tmp_path).read_bytes() == first


def test_an_output_elsewhere_is_written_there_and_nowhere_else(reading: Reading, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = export.write(reading, "csv", tmp_path / "run", tmp_path / "mine.csv")
    assert path == tmp_path / "mine.csv"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine.csv", "run"]


@pytest.mark.parametrize("name", export.FORMATS)
def test_an_output_in_a_folder_that_is_not_there_is_refused_in_one_line(
    reading: Reading, tmp_path: Path, name: str
) -> None:
    with pytest.raises(StoreError, match="cannot write") as problem:
        export.write(reading, name, tmp_path, tmp_path / "no" / "labels")
    assert "\n" not in str(problem.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", export.FORMATS)
def test_an_output_that_is_a_folder_is_refused_and_leaves_nothing(
    reading: Reading, tmp_path: Path, name: str
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        export.write(reading, name, tmp_path, tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_an_unknown_format_is_refused_with_the_nearest(reading: Reading, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        export.write(reading, "parkett", tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- rows of a query ---------------------------------------------------------------------------------------------------


def test_query_rows_as_csv_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    names, rows = ["a", "b", "c"], [(1, 'x, "y"', None), (2, "líne\n2", [1, 2])]
    export.print_rows(names, rows, "csv")
    found = list(csv.reader(capsys.readouterr().out.splitlines(keepends=True)))
    export.print_rows(names, rows, "json")
    as_json = json.loads(capsys.readouterr().out)
    assert found == [["a", "b", "c"], ["1", 'x, "y"', ""], ["2", "líne\n2", "[1, 2]"]]
    assert as_json == [{"a": 1, "b": 'x, "y"', "c": None}, {"a": 2, "b": "líne\n2", "c": [1, 2]}]


def test_control_characters_of_a_text_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    export.print_rows(["label"], [("evil \x1b[31m\x07 [bold]x[/bold]",)], "table")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[bold]" in out


def test_every_column_of_the_schema_is_filled_from_the_reading(reading: Reading) -> None:
    table = pa.Table.from_pylist(export.records(reading), schema=export.SCHEMA)
    empty = [name for name in table.column_names if table[name].null_count == len(table)]
    does = [name for name in export.SCHEMA.names if name.startswith("output_")]
    assert empty == [*does, "model", "author"], "only the mined explainer ran, and nothing was turned up"
