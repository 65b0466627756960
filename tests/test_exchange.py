"""Exports that are folders: each opens in its usual reader, says what the report says, and survives hostile text."""

import csv
import gzip
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from autointerp import export, export_hf, export_neuronpedia, report
from autointerp.errors import StoreError
from autointerp.report import Reading
from autointerp.store import Store
from autointerp.tally import Bar

from .test_pipeline import finished_run

HOSTILE = [  # one a label; the last ones are also put into the corpus
    '=HYPERLINK("http://x","y")', "@SUM(A1)", "'=already quoted", "'", "tabs\tand\r\nlines", "nul \0 inside",
    "\x1b[2J\x1b]0;title\x07", "\u202eright to left\u202c", "<script>alert(1)</script>", "👩‍👩‍👧 family", '"quoted", comma',
]  # fmt: skip

# Neuronpedia's records: name -> test of the value. Keys are those of its import classes, no others.
MODEL = {
    "modelId": lambda v: re.fullmatch(r"[a-z0-9._-]+", v),
    "layer": lambda v: re.fullmatch(r"(\d+|e)-[a-z](-?[a-z0-9])*(__\d+)?", v),  # the source, not a number
    "index": lambda v: isinstance(v, str) and v.isdecimal(),
}
IS_ID = {"id": lambda v: re.fullmatch(r"c[0-9a-z]{24}", v)}
TIME = {"createdAt": lambda v: re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", v)}


def is_user(value: Any) -> bool:
    return value == "clkht01d40000jv08hvalcvly"


def is_number(value: Any) -> bool:
    return isinstance(value, float)


def are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def is_json(value: Any) -> bool:
    return isinstance(json.loads(value, parse_constant=lambda name: pytest.fail(name)), dict)


NEURONPEDIA: dict[str, dict[str, Callable[[Any], Any]]] = {
    "features": MODEL | TIME | {
        "sourceSetName": is_text, "creatorId": is_user, "maxActApprox": is_number,
        "frac_nonzero": lambda v: is_number(v) and 0 <= v <= 1,
        "freq_hist_data_bar_heights": are_numbers, "freq_hist_data_bar_values": are_numbers,
    },
    "activations": IS_ID | MODEL | TIME | {
        "creatorId": is_user, "tokens": lambda v: v and all(is_text(t) and t for t in v), "values": are_numbers,
        "maxValue": is_number, "maxValueTokenIndex": lambda v: isinstance(v, int), "minValue": is_number,
        "binMin": is_number, "binMax": is_number, "binContains": is_number, "dataSource": is_text, "dataIndex": is_text,
    },
    "explanations": IS_ID | MODEL | TIME | {
        "description": lambda v: is_text(v) and v, "authorId": is_user,
        "typeName": lambda v: v in (None, "oai_token-act-pair", "np_max-act-logits", "human"),
        "explanationModelName": lambda v: v is None or (is_text(v) and "/" not in v), "notes": is_json,
    },
    "scores": IS_ID | TIME | {
        "initiatedByUserId": is_user, "value": is_number, "explanationId": IS_ID["id"],
        "explanationScoreTypeName": is_text, "explanationScoreModelName": is_text, "jsonDetails": is_json,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=["plain", "hostile"])
def database(
    request: pytest.FixtureRequest, tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run as it is, and one with hostile text as labels and as tokens of its corpus."""
    finished = finished_run(tiny)
    if request.param == "plain":
        return finished / "run.duckdb"
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("hostile") / "t")
    with duckdb.connect(str(folder / "run.duckdb")) as db:
        keys = [key for (key,) in db.execute("SELECT explanation_id FROM explanation WHERE status = 'ok' ORDER BY 1").fetchall()]
        assert len(keys) >= len(HOSTILE)
        for n, key in enumerate(keys):
            db.execute("UPDATE explanation SET label = ? WHERE explanation_id = ?", [HOSTILE[n % len(HOSTILE)], key])
        tokens = [t for (t,) in db.execute("SELECT token_id FROM token ORDER BY n_explain DESC, token_id").fetchall()]
        pieces = [text.encode() for text in HOSTILE] + [b"", b"\xf0\x9f", b"\0"]
        for token, piece in zip(tokens, pieces, strict=False):
            db.execute("UPDATE token SET piece = ? WHERE token_id = ?", [piece, token])
    return folder / "run.duckdb"


@pytest.fixture(scope="module")
def opened(database: Path) -> Iterator[tuple[Reading, Store]]:
    with Store.read(database) as store:
        yield report.read(store), store


@pytest.fixture(scope="module")
def hf(opened: tuple[Reading, Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    reading, store = opened
    return export_hf.write([reading], store, tmp_path_factory.mktemp("hf") / "labels", Bar(enabled=False))


@pytest.fixture(scope="module")
def neuronpedia(opened: tuple[Reading, Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    reading, store = opened
    return export_neuronpedia.write([reading], store, tmp_path_factory.mktemp("np") / "labels", Bar(enabled=False))


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind, read as strictly as Neuronpedia's database reads JSON."""
    found = []
    for path in sorted(folder.glob(f"v1/*/*/{kind}/batch-*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).decode("utf-8").removesuffix("\n").split("\n"):
            assert "\\u0000" not in line
            found.append(json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")))
    return found


# -- Neuronpedia -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NEURONPEDIA)
def test_every_neuronpedia_record_is_as_its_importer_wants_it(neuronpedia: Path, kind: str) -> None:
    rows = lines(neuronpedia, kind)
    assert rows
    for row in rows:
        assert set(row) == set(NEURONPEDIA[kind])
        assert list(row) == list(rows[0]), "columns are taken from the first line"
        for name, holds in NEURONPEDIA[kind].items():
            assert holds(row[name]), (name, row[name])
    if kind != "features":
        assert len({row["id"] for row in rows}) == len(rows)


def test_neuronpedia_activations_agree_with_themselves(neuronpedia: Path) -> None:
    for row in lines(neuronpedia, "activations"):
        assert len(row["tokens"]) == len(row["values"])
        assert row["maxValue"] == max(row["values"]) == row["values"][row["maxValueTokenIndex"]]
        assert row["minValue"] == min(row["values"])
        assert row["binMin"] == -1 or row["binMin"] <= row["maxValue"] <= row["binMax"] * (1 + 1e-9)


def test_every_feature_has_silent_records_too(neuronpedia: Path, opened: tuple[Reading, Store]) -> None:
    reading, store = opened
    found = Counter(int(row["index"]) for row in lines(neuronpedia, "activations") if row["maxValue"] == 0)
    wanted = {}
    for label in reading.labels:
        ((n,),) = store.query(
            f"SELECT count(*) FROM panel WHERE split = 'score' AND NOT list_contains(features, {label.feature})"
        )[1]
        wanted[label.feature] = min(n, 5)  # a feature that fires in every passage has none
    assert 5 in wanted.values()
    assert {label.feature: found[label.feature] for label in reading.labels} == wanted


def test_neuronpedia_says_of_a_feature_what_the_report_says(neuronpedia: Path, opened: tuple[Reading, Store]) -> None:
    reading = opened[0]
    features = {row["index"]: row for row in lines(neuronpedia, "features")}
    explained = {row["index"]: row for row in lines(neuronpedia, "explanations")}
    values = {(s["explanationId"], s["explanationScoreTypeName"]): s["value"] for s in lines(neuronpedia, "scores")}
    assert list(features) == [str(label.feature) for label in reading.labels]
    assert any(label.r_rank is not None for label in reading.labels)
    for label in reading.labels:
        row = explained.get(str(label.feature))
        assert features[str(label.feature)]["frac_nonzero"] == label.density
        assert (row is None) == (label.label is None)
        if row is not None and label.label is not None:
            assert row["description"] == label.label.replace("\0", " ")
            assert json.loads(row["notes"])["scores"]["r_rank"] == label.r_rank
            assert values.get((row["id"], "autointerp_r_rank")) == label.r_rank


def test_the_top_group_is_the_strongest_of_the_explain_split(neuronpedia: Path, opened: tuple[Reading, Store]) -> None:
    reading, store = opened
    for label in reading.labels:
        want = store.excerpts(reading.run.collection_id, label.feature, "explain", "top").peak.tolist()
        top = [r["maxValue"] for r in lines(neuronpedia, "activations") if r["index"] == str(label.feature) and r["binMin"] == -1]
        assert top == want


def test_features_are_spread_over_files_of_a_batch_each(
    opened: tuple[Reading, Store], neuronpedia: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export_neuronpedia.BATCH >= 128, "the importer sees the first 1000 files"
    monkeypatch.setattr(export_neuronpedia, "BATCH", 4)
    path = export_neuronpedia.write([opened[0]], opened[1], tmp_path / "np", Bar(enabled=False))
    assert sorted(p.name for p in path.glob("v1/*/*/features/*")) == ["batch-0.jsonl.gz", "batch-1.jsonl.gz"]
    for kind in NEURONPEDIA:
        assert lines(path, kind) == lines(neuronpedia, kind)


@pytest.mark.parametrize(
    ("name", "want"),
    [("smollm2-135m-l15-4k", "smollm2-135m-l15-4k"), ("Gemma_Scope//16k", "gemma-scope-16k"), ("65k", "set-65k"), ("日本", "set")],
)
def test_a_dictionary_name_becomes_one_that_neuronpedia_allows(name: str, want: str) -> None:
    assert export_neuronpedia.set_name(name) == want
    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", want) and "--" not in want


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def test_the_dataset_folder_opens_with_load_dataset(
    hf: Path, opened: tuple[Reading, Store], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    found = {name: datasets.load_dataset(str(hf), name, cache_dir=str(tmp_path))["train"] for name in export_hf.CONFIGS}
    assert {name: set(rows.column_names) for name, rows in found.items()} == {
        name: set(schema.names) for name, schema in export_hf.CONFIGS.items()
    }
    reading, store = opened
    assert found["labels"]["label"][:] == [label.label for label in reading.labels]
    ranks = {row["feature_id"]: row["value"] for row in found["scores"] if row["metric"] == "r_rank"}
    assert ranks == {label.feature_id: label.r_rank for label in reading.labels if label.explanation_id}
    assert found["contexts"].num_rows == sum(
        len(excerpts.passage)
        for label in reading.labels
        for excerpts in store.example_set(reading.run.collection_id, label.feature).values()
    )


def test_contexts_hold_each_passage_token_by_token(hf: Path, opened: tuple[Reading, Store]) -> None:
    reading, store = opened
    rows = pq.read_table(hf / "contexts.parquet").to_pylist()
    assert all(len(row["tokens"]) == len(row["activations"]) and max(row["activations"]) > 0 for row in rows)
    assert all(row["predicted"] is None or len(row["predicted"]) == len(row["tokens"]) for row in rows)
    assert any(row["predicted"] is not None for row in rows)
    assert all(row["predicted"] is None for row in rows if row["split"] != "score")
    label = reading.labels[0]
    top = [row for row in rows if row["feature_id"] == label.feature_id and row["why"] == "top"]
    peaks = store.excerpts(reading.run.collection_id, label.feature, "explain", "top").peak.tolist()
    assert [max(row["activations"]) for row in top if row["split"] == "explain"] == peaks


SCORES = {
    "feature_id": "string not null", "explanation_id": "string not null", "metric": "string not null", "value": "double",
    "lo": "double", "hi": "double", "n": "int32 not null", "reason": "string", "simulator_id": "string not null",
    "scorer_id": "string not null",
}  # fmt: skip
CONTEXTS = {
    "feature_id": "string not null", "split": "string not null", "why": "string not null", "rank": "int32 not null",
    "document_id": "string not null", "source": "string not null", "start": "int32 not null",
    "tokens": "list<element: string> not null", "activations": "list<element: float> not null",
    "predicted": "list<element: float>",
}  # fmt: skip


@pytest.mark.parametrize(("name", "frozen"), [("scores", SCORES), ("contexts", CONTEXTS)])
def test_the_columns_of_the_dataset_are_frozen(hf: Path, name: str, frozen: dict[str, str]) -> None:
    schema = pq.read_schema(hf / f"{name}.parquet")
    found = {f.name: f"{f.type}{'' if f.nullable else ' not null'}" for f in schema}
    assert list(found.items()) == list(frozen.items())
    assert all(f"| {f.name} |" in (hf / "README.md").read_text("utf-8") for f in schema)


# -- both, and tables --------------------------------------------------------------------------------------------------

WRITERS = {"hf": export_hf.write, "neuronpedia": export_neuronpedia.write}


@pytest.mark.parametrize("kind", WRITERS)
def test_exporting_again_replaces_the_folder_and_says_the_same(
    opened: tuple[Reading, Store], tmp_path: Path, kind: str
) -> None:
    def everything(path: Path) -> dict[str, bytes]:
        return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}

    reading, store = opened
    first = everything(WRITERS[kind]([reading], store, tmp_path / "out", Bar(enabled=False)))
    (tmp_path / "out" / "left over").touch()
    assert everything(WRITERS[kind]([reading], store, tmp_path / "out", Bar(enabled=False))) == first
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_of_somebody_else_is_never_replaced(
    opened: tuple[Reading, Store], tmp_path: Path, kind: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(StoreError, match="no folder that an export wrote"):
        WRITERS[kind]([opened[0]], opened[1], tmp_path / "mine", Bar(enabled=False))
    with pytest.raises(StoreError, match="cannot write"):
        WRITERS[kind]([opened[0]], opened[1], tmp_path / "no" / "where", Bar(enabled=False))
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.tex"]


def test_every_label_comes_back_from_csv_as_it_was(opened: tuple[Reading, Store], tmp_path: Path) -> None:
    with export.write(opened[0], "csv", tmp_path).open(encoding="utf-8", newline="") as file:
        cells = [row["label"] for row in csv.DictReader(file)]
    assert [export.from_cell(cell) or None for cell in cells] == [label.label for label in opened[0].labels]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in cells)
