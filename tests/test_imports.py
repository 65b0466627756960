"""Labels read back: what an export wrote, what Neuronpedia hands out, and what anybody wrote by hand."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autointerp import edits, export, export_hf, export_neuronpedia, imports, people, report
from autointerp.edits import Edit
from autointerp.errors import LabelsError
from autointerp.people import Taken
from autointerp.said import Remarks
from autointerp.store import Store
from autointerp.tally import Bar

from . import test_cli
from .test_cli import Autointerp, refused
from .test_exchange import HOSTILE
from .test_pipeline import finished_run, query, quick_settings, run_all

autointerp = test_cli.autointerp  # the fixture that runs a command in this process

LABELLED = ("explanation", "draw", "simulation", "score", "verdict", "label_edit", "call", "stage")
FORMATS = ("jsonl", "csv", "parquet", "hf", "neuronpedia")


@pytest.fixture
def done(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the finished run: its folder."""
    return Path(shutil.copytree(finished_run(tiny), tmp_path / "results" / "t"))


@pytest.fixture
def fresh(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of its collection, of which nothing has been explained: the folder."""
    folder = Path(shutil.copytree(finished_run(tiny), tmp_path / "fresh" / "t"))
    with duckdb.connect(str(folder / "run.duckdb")) as db:
        for table in LABELLED:
            db.execute(f"DELETE FROM {table}")
    return folder


def exported(folder: Path, kind: str, output: Path) -> Path:
    """The run's labels in one of the formats."""
    with Store.read(folder / "run.duckdb") as store, Bar(enabled=False) as bar:
        readings = report.read_all(store)
        if kind in export.FOLDERS:
            return {"hf": export_hf, "neuronpedia": export_neuronpedia}[kind].write(readings, store, output, bar)
        return export.write(readings, kind, folder, output.with_suffix(f".{kind}"))


def brought(folder: Path, path: Path, **options: Any) -> Taken:
    """What became of a file that was imported into a run."""
    with Store.create(folder / "run.duckdb") as store, Bar(enabled=False) as bar:
        return imports.bring(store, path, bar, **options)[0]


def labels(folder: Path) -> list[tuple[int, str]]:
    """Feature and chosen label, of those that have one."""
    with Store.read(folder / "run.duckdb") as store:
        return [(label.feature, label.label) for label in report.read(store).labels if label.label is not None]


def made(folder: Path) -> list[tuple]:
    """What was made of labels from outside."""
    return query(folder / "run.duckdb", "SELECT feature, label, method, model, author FROM explanation WHERE author IS NOT NULL ORDER BY ALL")


def everything(folder: Path) -> list[tuple]:
    return query(folder / "run.duckdb", "FROM explanation ORDER BY ALL") + query(folder / "run.duckdb", "FROM label_edit ORDER BY ALL")


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_what_an_export_wrote_comes_back_as_the_same_labels_and_twice_is_once(done: Path, fresh: Path, tmp_path: Path, kind: str) -> None:
    path, wanted = exported(done, kind, tmp_path / "out"), labels(done)
    assert wanted
    taken = brought(fresh, path)
    assert [(feature, label) for feature, label, *_ in made(fresh)] == sorted(wanted)
    assert {method for _, _, method, *_ in made(fresh)} == {"imported:mined"}
    assert taken.tally.ok == len(wanted) and taken.by_method == {"imported:mined": len(wanted)} and not taken.known
    before, stages = everything(fresh), query(fresh / "run.duckdb", "FROM stage")
    again = brought(fresh, path)
    assert (again.tally.ok, again.known) == (0, len(wanted))
    assert everything(fresh) == before and query(fresh / "run.duckdb", "FROM stage") == stages


def test_one_run_in_two_formats_is_the_same_labels(done: Path, fresh: Path, tmp_path: Path) -> None:
    first, *others = (exported(done, kind, tmp_path / kind) for kind in FORMATS)
    brought(fresh, first)
    before = everything(fresh)
    for path in others:
        assert brought(fresh, path).tally.ok == 0, path
    assert everything(fresh) == before


@pytest.mark.parametrize("kind", FORMATS)
def test_a_persons_label_stays_a_persons_whatever_it_travels_in(tiny: dict[str, Path], done: Path, fresh: Path, tmp_path: Path, kind: str) -> None:
    settings = quick_settings(tiny, tmp_path / "results", explainer__methods=["mined"])
    feature = labels(done)[0][0]
    with duckdb.connect(str(done / "run.duckdb")) as db:  # the only label of its feature, so that it is chosen
        db.execute("DELETE FROM explanation WHERE feature = ?", [feature])
        db.execute("INSERT INTO explanation (explanation_id, collection_id, feature, explainer_id, method, draw, status, label, reason) "
                   "SELECT 'none', collection_id, ?, explainer_ids[1], 'mined', 0, 'skipped', NULL, 'none' FROM run", [feature])  # fmt: skip
    edits.append(settings.folder, [Edit(f"sae/{feature}", "label", "it's the river", "ana"), Edit(f"sae/{feature}", "up", "it's the river")])
    run_all(settings)
    path = exported(done, kind, tmp_path / "out")
    brought(fresh, path)
    assert (feature, "it's the river", "human", None, "ana") in made(fresh)
    if kind == "jsonl":
        row = next(row for line in path.read_text("utf-8").splitlines() if (row := json.loads(line))["feature"] == feature)
        assert (row["method"], row["author"], row["up"], row["down"]) == ("human", "ana", 1, 0)
    if kind == "neuronpedia":
        (file,) = path.rglob("explanations/batch-0.jsonl.gz")
        with gzip.open(file, "rt", encoding="utf-8") as opened:
            assert {"human", None} == {json.loads(line)["typeName"] for line in opened}


def test_imported_labels_are_graded_beside_ours_and_nothing_is_left_to_do(tiny: dict[str, Path], done: Path, tmp_path: Path) -> None:
    settings = quick_settings(tiny, tmp_path / "results")
    before = query(done / "run.duckdb", "SELECT score_id, value FROM score ORDER BY ALL")
    features = [feature for feature, _ in labels(done)]
    lines = [neuronpedia(feature, f"the {word} castle") for feature, word in zip(features, ("red", "blue", "white"))]
    taken = brought(done, written(tmp_path / "batch-0.jsonl", lines))
    assert taken.tally.ok == len(lines)
    run_all(settings)
    graded = query(
        done / "run.duckdb", "SELECT e.feature, s.split, s.n > 0 FROM explanation e JOIN score s USING (explanation_id) "
        "WHERE author IS NOT NULL AND metric = 'r_rank' ORDER BY ALL",
    )  # fmt: skip
    assert graded == [(feature, split, True) for feature in sorted(features[:3]) for split in ("select", "score")]
    assert set(before) <= set(query(done / "run.duckdb", "SELECT score_id, value FROM score"))
    with Store.read(done / "run.duckdb") as store:
        assert "imported:neuronpedia/oai_token-act-pair (gpt-4o-mini)" in report.read(store).summary["by_explainer"]
    assert all(line.endswith("nothing pending") for line in run_all(settings))


# -- Neuronpedia -------------------------------------------------------------------------------------------------------


def neuronpedia(index: object, description: object = "rivers", **changes: object) -> dict[str, object]:
    """An explanation as Neuronpedia hands it out; the tiny run's dictionary is 1-sae there."""
    return {
        "id": "c0123456789abcdef0123456a", "modelId": "t", "layer": "1-sae", "index": index, "description": description,
        "authorId": "clkht01d40000jv08hvalcvly", "embedding": None, "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini", "notes": None, "createdAt": "2026-01-02T03:04:05.678Z",
    } | changes  # fmt: skip


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    """A file of JSON lines, packed where its name says so."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_an_explanation_keeps_who_made_it_and_when(fresh: Path, tmp_path: Path) -> None:
    lines = [
        neuronpedia("3"), neuronpedia(3, "seas", typeName=None), neuronpedia("5", "lakes", typeName="human", authorId="u1"),
        neuronpedia("7", "ponds", createdAt="yesterday", explanationModelName=None),
    ]  # fmt: skip
    brought(fresh, written(tmp_path / "batch-0.jsonl.gz", lines))
    public = "clkht01d40000jv08hvalcvly"
    assert made(fresh) == [
        (3, "rivers", "imported:neuronpedia/oai_token-act-pair", "gpt-4o-mini", public),
        (3, "seas", "imported:neuronpedia", "gpt-4o-mini", public),
        (5, "lakes", "human", "gpt-4o-mini", "u1"),
        (7, "ponds", "imported:neuronpedia/oai_token-act-pair", None, public),
    ]
    times = query(fresh / "run.duckdb", "SELECT feature, made_at FROM explanation WHERE author IS NOT NULL ORDER BY feature")
    assert str(times[0][1]) == "2026-01-02 03:04:05.678000" and times[-1] == (7, None)


@pytest.mark.parametrize("form", ["list", "list.gz", "object", "lines", "folder", "batches"])
def test_every_form_that_it_comes_in_says_the_same(fresh: Path, tmp_path: Path, form: str) -> None:
    rows = [neuronpedia(1), neuronpedia(2, "seas")]
    if form.startswith("list"):
        path = tmp_path / ("all.json.gz" if form.endswith("gz") else "all.json")
        text = json.dumps(rows, indent=1).encode()
        path.write_bytes(gzip.compress(text) if form.endswith("gz") else text)
    elif form == "object":
        path = tmp_path / "feature.json"
        path.write_text(json.dumps({"modelId": "t", "explanations": rows}))
    elif form == "lines":
        path = written(tmp_path / "all.json", rows)
    else:
        folder = tmp_path / "v1" / "t" / "1-sae" / "explanations"
        for n, row in zip((2, 10), rows, strict=True):
            written(folder / f"batch-{n}.jsonl.gz", [row])
        path = folder if form == "batches" else tmp_path / "v1"
    brought(fresh, path)
    assert [(feature, label) for feature, label, *_ in made(fresh)] == [(1, "rivers"), (2, "seas")]


def test_a_source_of_another_name_needs_to_be_said_and_a_file_of_two_is_refused(fresh: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "theirs.jsonl", [neuronpedia(1, layer="12-gemmascope-res-16k")])
    with pytest.raises(LabelsError, match=r"theirs.jsonl, line 1: '12-gemmascope-res-16k' is none of .*the run has sae \(1-sae\); .*--dictionary"):
        brought(fresh, path)
    assert brought(fresh, path, dictionary="sae").tally.ok == 1
    two = written(tmp_path / "two.jsonl", [neuronpedia(1, layer="1-a"), neuronpedia(1, layer="2-a")])
    with pytest.raises(LabelsError, match="line 2: --dictionary names one dictionary, and the file is about '1-a' and '2-a'"):
        brought(fresh, two, dictionary="sae")
    with pytest.raises(LabelsError, match=r"no dictionary 'sea' \(did you mean 'sae'\?\)"):
        brought(fresh, path, dictionary="sea")
    assert len(made(fresh)) == 1


# -- what cannot be graded ---------------------------------------------------------------------------------------------


def test_what_cannot_be_graded_is_counted_by_reason_kept_and_judged_again_under_a_larger_limit(fresh: Path, tmp_path: Path) -> None:
    long = "words " * 13
    lines = [
        neuronpedia(1), neuronpedia(1), neuronpedia(2, ""), neuronpedia(2, None), neuronpedia(2, " \n"), neuronpedia(64), neuronpedia("9" * 5000),
        neuronpedia(3, long),
    ]  # fmt: skip
    path = written(tmp_path / "batch-0.jsonl", lines)
    taken = brought(fresh, path)
    assert (taken.tally.ok, taken.known) == (1, 3), "an empty label is an empty label"
    assert taken.tally.failed == {"empty": 1, "unknown_feature": 2, "too_long": 1}
    assert query(fresh / "run.duckdb", "SELECT reason, count(*) FROM label_edit GROUP BY 1 ORDER BY 1 NULLS FIRST") == [
        (None, 1), ("empty", 1), ("too_long", 1), ("unknown_feature", 2),
    ]  # fmt: skip
    more = brought(fresh, path, max_words=20)
    assert (more.tally.ok, more.tally.failed) == (1, {"empty": 1, "unknown_feature": 2})
    assert len(made(fresh)) == 2 and query(fresh / "run.duckdb", "SELECT count(*) FROM label_edit") == [(5,)]
    table = tmp_path / "mine.csv"
    table.write_text("feature_id,label\nother/3,rivers\nsae/0064,rivers\n")
    assert brought(fresh, table).tally.failed == {"unknown_dictionary": 1, "unknown_feature": 1}


def test_features_that_were_left_out_of_the_collection_are_no_candidates(tiny: dict[str, Path], tmp_path: Path) -> None:
    settings = quick_settings(tiny, tmp_path / "some", collect__features="1,2,3", features__select="1,2")
    from autointerp.pipeline import Pipeline, prepare

    prepared = prepare(settings)
    with Store.create(settings.database) as store, Bar(enabled=False) as bar:
        Pipeline(store, prepared, bar, lambda line: None).collect()
        path = written(tmp_path / "batch-0.jsonl", [neuronpedia(1), neuronpedia(3), neuronpedia(4)])
        taken, unselected = imports.bring(store, path, bar)
    assert (taken.tally.ok, taken.tally.failed) == (2, {"not_collected": 1})
    assert unselected == 2, "nothing is selected yet"


# -- tables by hand, and edits -----------------------------------------------------------------------------------------


def test_a_table_by_hand_is_of_people(fresh: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("\ufefffeature_id,label,author\nsae/3,\"rivers, seas\",ana\n4,'s genitive,\nsae/05,'=1+1,\n", "utf-8")
    brought(fresh, path)
    assert made(fresh) == [
        (3, "rivers, seas", "human", None, "ana"), (4, "'s genitive", "human", None, ""), (5, "=1+1", "human", None, ""),
    ]  # fmt: skip


def test_edits_of_another_run_bring_labels_and_votes(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    made_there = [Edit("sae/3", "label", "rivers", "ana"), Edit("sae/3", "up", "rivers", "bo"), Edit("sae/3", "down", "rivers", "bo")]
    made_there += [Edit("sae/3", "up", "rivers"), Edit("sae/3", "up", "rivers", at="2026-01-01T00:00:00+00:00")]
    edits.append(tmp_path / "other", made_there)
    taken = brought(fresh, tmp_path / "other" / edits.FILE)
    assert (taken.tally.ok, taken.votes, taken.by_method) == (5, 4, {"human": 1})
    with Store.read(fresh / "run.duckdb") as store:
        found = people.votes(store, "sae")
    assert found == {(3, "rivers"): (1, 1)}, "bo changed their mind, and nobody's name is one person"
    (page,) = Remarks(tmp_path / "other").of("sae/3", "rivers")
    assert (page.ups, page.downs) == found[3, "rivers"], "the page, which reads the file, counts alike"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_one_line_that_prints(fresh: Path, tmp_path: Path, text: str) -> None:
    lines = [neuronpedia(1, text, authorId=text, typeName=text, createdAt=text, explanationModelName=text)]
    brought(fresh, written(tmp_path / "batch-0.jsonl", lines), max_words=10**6)
    for _, label, method, _, author in made(fresh):
        assert all(part.isprintable() for part in (label, method, author))


# -- bad input ---------------------------------------------------------------------------------------------------------

GOOD = json.dumps(neuronpedia(1))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + "\n{\n", "line 2: no JSON"), ("a.jsonl", "\n\n3", "line 3: expected a JSON object, got '3'"),
        ("a.jsonl", "{}", "line 1: expected feature_id and label, or index and description"),
        ("a.jsonl", '{"feature_id": "sae/3"}', "line 1: expected a column `label`"),
        ("a.jsonl", '{"feature_id": "sae/x", "label": "a"}', "line 1: expected a feature as dictionary/index, got 'sae/x'"),
        ("a.jsonl", '{"feature_id": 3.5, "label": "a"}', "line 1: expected `feature_id` to be text or a whole number"),
        ("a.jsonl", '{"feature_id": "sae/3", "label": ["a"]}', "line 1: expected `label` to be text"),
        ("a.jsonl", json.dumps(neuronpedia(-1)), "line 1: expected `index` to be the index of a feature, got '-1'"),
        ("a.jsonl", json.dumps(neuronpedia(True)), "line 1: expected `index` to be text or a whole number"),
        ("a.jsonl", json.dumps(neuronpedia(1, 5)), "line 1: expected `description` to be text"),
        ("a.jsonl", '{"feature_id": "sae/3", "kind": "up", "label": "", "at": ""}', "line 1: an edit's label has"),
        ("a.jsonl", "[" * 100_000, "line 1: no JSON"), ("a.jsonl", b"\xff\xfe{}", "line 1: no JSON"),
        ("a.json", "[{}, \n3", "line 2: no JSON"), ("a.json", f"[{GOOD}, 3]", "entry 2: expected a JSON object"),
        ("a.json", "", "line 1: no JSON"), ("a.json.gz", b"PK", "line 1: the archive is damaged"),
        ("a.jsonl.gz", gzip.compress((GOOD + "\n").encode() * 999)[:-20], "the archive is damaged or cut off"),
        ("a.csv", "feature_id,label\nsae/1,a\nsae/2\n", "line 3: expected 2 cells"),
        ("a.csv", "feature_id,label\nsae/1,a,b\n", "line 2: expected 2 cells"), ("a.csv", "a,b\n1,2\n", "line 2: expected feature_id and label"),
        ("a.csv", 'feature_id,label\nsae/1,"a" b\n', "line 2: "), ("a.csv", b"feature_id,label\nsae/1,\xff\n", "line 2: no UTF-8 text"),
        ("a.parquet", b"PAR1 no", "row 1: no parquet file that can be read"), ("a.txt", "x", "expected a file that ends in"),
        ("nothing/here.jsonl", None, "is not there"), ("a.csv.gz", b"", "expected a file that ends in"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line_with_its_place_and_leaves_nothing(
    autointerp: Autointerp, fresh: Path, tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    path, before = tmp_path / name, everything(fresh)
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(autointerp("import", path, "--run", fresh), message, name)
    assert everything(fresh) == before


def test_a_table_without_its_columns_and_an_empty_folder_are_refused(fresh: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"feature": [1], "text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(LabelsError, match=r"a\.parquet, row 1: expected columns feature_id and label, got feature, text"):
        brought(fresh, tmp_path / "a.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabelsError, match="holds no labels"):
        brought(fresh, tmp_path / "empty")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_became_of_the_labels(autointerp: Autointerp, done: Path, tmp_path: Path) -> None:
    feature = labels(done)[0][0]
    outside = next(f for f in range(64) if f not in dict(labels(done)))
    path = written(tmp_path / "a.jsonl", [neuronpedia(feature), neuronpedia(outside), neuronpedia(99)])
    ended = autointerp("import", path, "--run", done, "--json")
    assert ended.code == 0, ended
    assert json.loads(ended.out) == {
        "new": 2, "known": 0, "refused": {"unknown_feature": 1}, "votes": 0, "features": 2, "features_not_selected": 1,
        "labels": {"imported:neuronpedia/oai_token-act-pair": 2},
    }  # fmt: skip
    again = autointerp("import", path, "--run", done)
    assert "2 known before" in again.out and "1 unknown_feature" in again.out and "1 of 2 features are not selected" in again.out
    assert query(done / "run.duckdb", "SELECT ok, failed FROM stage WHERE stage = 'import'") == [(2, '{"unknown_feature": 1}')]


def test_a_run_that_is_not_there_is_refused(autointerp: Autointerp, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [neuronpedia(1)])
    refused(autointerp("import", path, "--run", tmp_path / "no"), "no run at")
    assert not (tmp_path / "no").exists()
