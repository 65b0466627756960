"""The command line: a bad input gets one line and exit code 2, and leaves nothing behind; every command has help."""

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest
import typer

from autointerp import __version__, cli, export
from autointerp.prompts import packaged_folder
from autointerp.rows import TABLES

from .conftest import write_dictionary
from .test_pipeline import finished_run, quick_overrides, rows

COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


class Ended:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


Autointerp = Callable[..., Ended]


@pytest.fixture
def autointerp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Autointerp:
    """autointerp("show", "17") runs the command in this process, in an empty folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["autointerp", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            cli.main()
            raise SystemExit(0)
        code = ending.value.code
        return Ended(code if isinstance(code, int) else 0 if code is None else 1, *capsys.readouterr())

    return run


def sets(overrides: list[str]) -> list[str]:
    """The values as --set options."""
    return [word for value in overrides for word in ("--set", value)]


def refused(ended: Ended, *said: str) -> None:
    """Asserts one line on stderr that says these things, nothing on stdout, and exit code 2."""
    assert ended.code == 2, ended
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1, ended
    assert ended.err.startswith("autointerp: ")
    for text in said:
        assert text in ended.err, ended


def left(results: Path) -> list[str]:
    """Files in a results folder."""
    return sorted(str(p.relative_to(results)) for p in results.rglob("*") if p.is_file())


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder that does not exist yet."""
    return tmp_path / "results"


@pytest.fixture
def done(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the finished run: its folder."""
    return Path(shutil.copytree(finished_run(tiny), tmp_path / "done"))


# -- bad settings ------------------------------------------------------------------------------------------------------


def broken_dictionary(folder: Path, kind: str) -> Path:
    """A SAELens folder with something wrong."""
    write_dictionary(folder, d_in=16 if kind == "narrow" else 32)
    weights, cfg = folder / "sae_weights.safetensors", folder / "cfg.json"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-500])
    elif kind == "truncated header":
        weights.write_bytes(weights.read_bytes()[:20])
    elif kind == "empty":
        weights.write_bytes(b"")
    elif kind == "no weights":
        weights.unlink()
    elif kind == "no config":
        cfg.unlink()
    elif kind == "broken config":
        cfg.write_text('{"architecture": "topk", ')
    elif kind == "list":
        cfg.write_text("[1]")
    elif kind == "unknown architecture":
        cfg.write_text(cfg.read_text().replace("topk", "temporal"))
    return folder


def text_file(folder: Path, content: bytes, name: str = "a.txt") -> Path:
    """A corpus of one file."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


def broken(kind: str) -> Callable[[Path], dict[str, object]]:
    """Settings with a broken dictionary."""
    return lambda p: {"dictionary__source": broken_dictionary(p / "d", kind)}


def corpus(content: bytes, name: str = "a.txt") -> Callable[[Path], dict[str, object]]:
    """Settings with a corpus of one file."""
    return lambda p: {"corpus__source": text_file(p / "c", content, name)}


# name -> (settings, what the line says); settings get (a folder to write in)
BAD_SETTINGS: dict[str, tuple[Callable[[Path], dict[str, object]], tuple[str, ...]]] = {
    "missing_dictionary": (lambda p: {"dictionary__source": p / "none"}, ("no dictionary at", "none")),
    "truncated_dictionary": (broken("truncated"), ("cannot be read",)),
    "truncated_header": (broken("truncated header"), ("cannot be read",)),
    "empty_weights": (broken("empty"), ("cannot be read",)),
    "no_weights": (broken("no weights"), ("sae_weights",)),
    "no_dictionary_config": (broken("no config"), ("cfg.json",)),
    "broken_config": (broken("broken config"), ("not valid JSON",)),
    "config_is_a_list": (broken("list"), ("expected an object",)),
    "architecture": (broken("unknown architecture"), ("temporal", "topk")),
    "wrong_d_in": (broken("narrow"), ("16", "32")),
    "unknown_hookpoint": (lambda p: {"subject__hookpoint": "model.layer.1"}, ("did you mean 'model.layers.1",)),
    "layer_too_deep": (lambda p: {"subject__hookpoint": "model.layers.9"}, ("model.layers.9", "did you mean")),
    "ambiguous_hookpoint": (lambda p: {"subject__hookpoint": "mlp"}, ("ambiguous", "model.layers.0.mlp")),
    "missing_subject": (lambda p: {"subject__model": p / "none"}, ("no subject at",)),
    "empty_subject_folder": (lambda p: {"subject__model": text_file(p / "m", b"")}, ("config.json",)),
    "unknown_device": (lambda p: {"subject__device": "tpu"}, ("tpu",)),
    "long_context": (lambda p: {"collect__context_tokens": 512}, ("512", "256 positions")),
    "missing_corpus": (lambda p: {"corpus__source": p / "none"}, ("no corpus at",)),
    "empty_corpus_folder": (lambda p: {"corpus__source": p}, ("holds no .txt",)),
    "unknown_corpus_file": (lambda p: {"corpus__source": text_file(p / "c", b"x", "a.docx") / "a.docx"}, (".docx",)),
    "unknown_feature": (lambda p: {"features__select": "3,64"}, ("'64'", "0 to 63")),
    "unknown_feature_id": (lambda p: {"features__select": "other/3"}, ("other/3", "sae/17")),
    "bad_selection": (lambda p: {"features__select": "best:5"}, ("best:5", "random:64")),
    "empty_selection": (lambda p: {"features__select": ""}, ("features.select",)),
    "no_random_features": (lambda p: {"features__select": "random:0"}, ("random:0",)),
    "unknown_provider": (lambda p: {"explainer__provider": "opneai"}, ("opneai", "local")),
    "unknown_method": (lambda p: {"explainer__methods": '["mind"]'}, ("did you mean 'mined'",)),
    "unknown_simulator": (lambda p: {"simulator__kind": "oracle"}, ("oracle", "embedding")),
    "missing_encoder": (lambda p: {"simulator__encoder": str(p / "none")}, ("no sentence encoder",)),
    "unknown_prompt": (
        lambda p: {"explainer__methods": '["marks:explain-mraks"]'},
        ("no prompt named 'explain-mraks'", "explain-marks"),
    ),
    "missing_llm": (lambda p: {"explainer__methods": '["marks"]', "explainer__model": p / "none"}, ("none",)),
    "unknown_key": (lambda p: {"corpus__token": 5}, ("did you mean 'corpus.tokens'",)),
    "unknown_section": (lambda p: {"corpsu__tokens": 5}, ("did you mean 'corpus'",)),
    "wrong_type": (lambda p: {"corpus__tokens": "many"}, ("corpus.tokens", "many")),
    "run_name": (lambda p: {"run__name": "../out"}, ("folder name",)),
    "passages": (lambda p: {"collect__passage_tokens": 48}, ("passage_tokens",)),
    # Found while the corpus is read:
    "empty_text_file": (corpus(b" \n"), ("holds no text",)),
    "not_utf8": (corpus(b"caf\xe9 au lait"), ("a.txt is not UTF-8", "byte 3")),
    "not_json": (corpus(b'{"text": "x"}\n{', "a.jsonl"), ("line 2 is not JSON",)),
    "no_text_field": (corpus(b'{"body": "x"}', "a.jsonl"), ("text_field", "body")),
    "not_parquet": (corpus(b"PAR?", "a.parquet"), ("not a readable parquet",)),
    # Found when the selection is made:
    "unknown_feature_in_a_file": (
        lambda p: {"features__select": text_file(p / "f", b"3\n640\n") / "a.txt"}, ("'640'", "0 to 63"),
    ),
    "density_that_is_no_number": (lambda p: {"features__select": "density:1e..1"}, ("1e",)),
    "bos_over_the_limit": (
        lambda p: {"subject__prepend_bos": "true", "collect__context_tokens": 256}, ("256 positions",),
    ),
}  # fmt: skip

def ask_for(autointerp: Autointerp, tiny: dict[str, Path], folder: Path, results: Path, name: str) -> Ended:
    """Runs collect and explain with something wrong."""
    folder.mkdir()
    overrides = sets(quick_overrides(tiny, results, **BAD_SETTINGS[name][0](folder)))
    ended = autointerp("collect", *overrides)
    # A selection is only made once there is a collection.
    return ended if ended.code else autointerp("explain", *overrides)


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_bad_setting_gets_one_line_and_exit_2(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path, results: Path, name: str
) -> None:
    ended = ask_for(autointerp, tiny, tmp_path / "bad", results, name)
    refused(ended, *BAD_SETTINGS[name][1])


@pytest.mark.parametrize(
    "name", sorted(BAD_SETTINGS)
)
def test_a_bad_setting_leaves_nothing_in_the_results_folder(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path, results: Path, name: str
) -> None:
    assert ask_for(autointerp, tiny, tmp_path / "bad", results, name).code == 2
    assert left(results) == []


@pytest.mark.parametrize(
    "command", ["run", "collect", "explain", "simulate", "score", "config", "report", "export"]
)
def test_a_configuration_file_that_is_missing_is_named(
    autointerp: Autointerp, tmp_path: Path, command: str
) -> None:
    refused(autointerp(command, "-c", tmp_path / "none.toml"), "none.toml", "autointerp init")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[corpus\n", "not valid TOML"),
        ("[corpus]\ntokens = 5\ntexts = 3\n", "unknown key corpus.texts (did you mean 'corpus.t"),
        ("[corpse]\n", "did you mean 'corpus'"),
        ("corpus = 5\n", "must be a table"),
    ],
)
def test_a_bad_configuration_file_is_refused(
    autointerp: Autointerp, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "bad.toml").write_text(text)
    refused(autointerp("config", "-c", tmp_path / "bad.toml"), "bad.toml", said)


def test_a_configuration_file_that_is_not_utf8_is_refused(autointerp: Autointerp, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b'[corpus]\nsource = "caf\xe9"\n')
    refused(autointerp("config", "-c", tmp_path / "bad.toml"), "bad.toml")


@pytest.mark.parametrize("text", ["corpus.tokens", "tokens=5", "=5", "corpus.=5"])
def test_a_set_that_is_no_assignment_is_refused(autointerp: Autointerp, text: str) -> None:
    refused(autointerp("config", "--set", text), "section.key=value")


def test_a_results_folder_that_is_a_file_is_refused(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("mine")
    refused(autointerp("collect", *sets(quick_overrides(tiny, tmp_path / "taken"))), "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_stage_before_the_first_is_refused(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path
) -> None:
    for command in ("explain", "simulate", "score"):
        refused(autointerp(command, *sets(quick_overrides(tiny, results))), "autointerp collect")


# -- bad runs ----------------------------------------------------------------------------------------------------------

READERS = {"report": [], "show": ["9"], "export": [], "sql": ["SELECT 1"]}


@pytest.mark.parametrize("command", READERS)
def test_a_run_that_is_not_there_is_named(autointerp: Autointerp, tmp_path: Path, command: str) -> None:
    refused(autointerp(command, *READERS[command], tmp_path / "none"), "no run at", "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", READERS)
def test_a_file_that_is_no_database_is_refused(autointerp: Autointerp, tmp_path: Path, command: str) -> None:
    (tmp_path / "run.duckdb").write_bytes(b"this is no database" * 1000)
    before = (tmp_path / "run.duckdb").read_bytes()
    refused(autointerp(command, *READERS[command], tmp_path), "cannot be opened")
    assert (tmp_path / "run.duckdb").read_bytes() == before


@pytest.mark.parametrize("command", READERS)
def test_a_database_of_something_else_is_refused_and_left_alone(
    autointerp: Autointerp, tmp_path: Path, command: str
) -> None:
    with duckdb.connect(str(tmp_path / "run.duckdb")) as db:
        db.execute("CREATE TABLE mine AS SELECT 1 AS x")
    refused(autointerp(command, *READERS[command], tmp_path), "not of autointerp")
    with duckdb.connect(str(tmp_path / "run.duckdb"), read_only=True) as db:
        assert db.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("mine",)]


@pytest.mark.parametrize("command", READERS)
def test_a_database_of_a_newer_schema_is_refused(autointerp: Autointerp, done: Path, command: str) -> None:
    with duckdb.connect(str(done / "run.duckdb")) as db:
        db.execute("INSERT INTO migration (n, name) VALUES (99, 'm999_from_the_future')")
    refused(autointerp(command, *READERS[command], done), "m999_from_the_future", "upgrade autointerp")


def test_a_run_into_a_database_of_a_newer_schema_changes_nothing(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path
) -> None:
    shutil.copytree(finished_run(tiny), results / "t")
    database = results / "t" / "run.duckdb"
    with duckdb.connect(str(database)) as db:
        db.execute("INSERT INTO migration (n, name) VALUES (99, 'm999_from_the_future')")
    before = {table: rows(database, table) for table in ("run", "explanation")}
    refused(autointerp("explain", *sets(quick_overrides(tiny, results))), "upgrade autointerp")
    assert {table: rows(database, table) for table in ("run", "explanation")} == before


@pytest.fixture
def held(tiny: dict[str, Path], results: Path) -> Iterator[Path]:
    """The folder of a run that another process is writing."""
    shutil.copytree(finished_run(tiny), results / "t")
    hold = "import sys; from pathlib import Path; from autointerp.store import Store\n"
    hold += "store = Store.create(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(results / "t" / "run.duckdb")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    yield results / "t"
    holder.communicate("")


def test_a_folder_in_use_by_another_run_is_refused_and_named_with_the_process(
    autointerp: Autointerp, tiny: dict[str, Path], held: Path
) -> None:
    before = left(held)
    refused(
        autointerp("collect", *sets(quick_overrides(tiny, held.parent))), "in use by another run", "(process "
    )
    refused(autointerp("report", "--json", held), "in use by another run")
    assert left(held) == before
    # With a snapshot, readers have something to show, and say that it is one.
    shutil.copyfile(finished_run(tiny) / "run.duckdb", held / "run.snapshot.duckdb")
    ended = autointerp("sql", "SELECT count(*) AS n FROM collection", held, "--json")
    assert (ended.code, json.loads(ended.out)) == (0, [{"n": 1}])
    ended = autointerp("report", "--json", held)
    assert ended.code == 0
    assert "snapshot" in ended.err
    assert json.loads(ended.out)["features"] == 6


# -- readers -----------------------------------------------------------------------------------------------------------


SQUARED = "²"


@pytest.mark.parametrize("feature", ["64", "9999", "other/3", "-", "x", "3.5", "sae/", "sae/64", "", SQUARED])
def test_an_unknown_feature_is_refused_with_what_there_is(
    autointerp: Autointerp, done: Path, feature: str
) -> None:
    refused(autointerp("show", "--", feature, done), "no feature")


def test_a_feature_is_shown_by_index_and_by_id(autointerp: Autointerp, done: Path) -> None:
    by_index, by_id = autointerp("show", "9", done, "--json"), autointerp("show", "sae/9", done, "--json")
    assert (by_index.code, by_id.code) == (0, 0)
    assert json.loads(by_index.out) == json.loads(by_id.out)
    assert json.loads(by_index.out)["feature_id"] == "sae/9"


@pytest.mark.parametrize(
    "query",
    [
        "SELEC 1",
        "SELECT nothing FROM feature",
        "SELECT * FROM nowhere",
        "SELECT 1; SELEC 2",
        "SELECT 'x'::INT",
    ],
)
def test_bad_sql_is_refused_with_what_the_database_says(
    autointerp: Autointerp, done: Path, query: str
) -> None:
    refused(autointerp("sql", query, done), "Error")


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM score",
        "CREATE TABLE x (y INT)",
        "DROP TABLE feature",
        "UPDATE run SET name = 'x'",
        "COPY feature TO '/tmp/x.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "ATTACH '/tmp/x.duckdb'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
    ],
)
def test_sql_changes_nothing_and_reaches_no_other_file(
    autointerp: Autointerp, done: Path, query: str
) -> None:
    before = (done / "run.duckdb").read_bytes()
    refused(autointerp("sql", query, done), "Error")
    assert (done / "run.duckdb").read_bytes() == before


def test_sql_as_csv_and_as_json_parses_and_agrees(autointerp: Autointerp, done: Path) -> None:
    query = "SELECT feature, label, reason, draw FROM explanation ORDER BY feature, draw"
    as_csv, as_json = autointerp("sql", query, done, "--csv"), autointerp("sql", query, done, "--json")
    table = list(csv.DictReader(io.StringIO(as_csv.out)))
    found = json.loads(as_json.out)
    assert len(table) == len(found) == 18
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in found] == table
    assert (as_csv.err, as_json.err) == ("", "")


def test_sql_as_json_parses_for_every_table(autointerp: Autointerp, done: Path) -> None:
    names = json.loads(autointerp("sql", "SELECT table_name FROM duckdb_tables()", done, "--json").out)
    assert len(names) == len(TABLES) + 1  # and the schema steps
    for row in names:
        ended = autointerp("sql", f"SELECT * FROM {row['table_name']} LIMIT 2", done, "--json")
        assert isinstance(json.loads(ended.out), list)


def test_sql_prints_a_table_for_people(autointerp: Autointerp, done: Path) -> None:
    ended = autointerp("sql", "SELECT 17 AS seventeen", done)
    assert ended.code == 0
    assert "seventeen" in ended.out
    assert "17" in ended.out


@pytest.mark.parametrize("format", ["parkett", "CSV", "json"])
def test_an_unknown_export_format_is_refused_with_the_nearest(
    autointerp: Autointerp, done: Path, format: str
) -> None:
    before = left(done)
    ended = autointerp("export", done, "--format", format)
    refused(
        ended, "unknown export format", "did you mean" if format != "CSV" else "known: parquet, jsonl, csv"
    )
    assert left(done) == before


@pytest.mark.parametrize("format", export.FORMATS)
def test_an_output_that_cannot_be_written_is_refused(
    autointerp: Autointerp, done: Path, tmp_path: Path, format: str
) -> None:
    before = left(tmp_path)
    refused(autointerp("export", done, "-f", format, "-o", tmp_path / "none" / "x"), "cannot write")
    assert left(tmp_path) == before


def test_export_prints_the_path_that_it_wrote(autointerp: Autointerp, done: Path) -> None:
    ended = autointerp("export", done, "-f", "csv")
    assert ended.code == 0
    assert Path(ended.out.strip()) == done / "labels.csv"
    assert (done / "labels.csv").is_file()


def test_the_report_as_json_has_every_figure_that_was_promised(autointerp: Autointerp, done: Path) -> None:
    before = left(done)
    found = json.loads(autointerp("report", done, "--json").out)
    promised = {
        "r_rank": {"mean", "median", "lo", "hi", "n"},
        "r_tok": {"mean", "n"},
        "null": {"mean", "n"},
        "population": {"live", "eligible", "dead", "dense", "too_rare"},
        "llm": {"calls", "input_tokens", "output_tokens", "usd"},
    }
    for name, keys in promised.items():
        assert keys <= set(found[name]), name
    assert found["features"] == found["r_rank"]["n"] == found["null"]["n"] == 6
    assert found["peak_memory_mb"] > 0
    assert set(found["stages"]) == {"collect", "relate", "lens", "explain", "simulate", "score", "categories"}
    assert all(
        {"ok", "failed", "seconds", "tokens_per_second"} <= set(stage) for stage in found["stages"].values()
    )
    kinds = found["population"]
    assert kinds["live"] == kinds["eligible"] + kinds["dense"] + kinds["too_rare"]
    assert kinds["live"] + kinds["dead"] == 64
    assert left(done) == before, "figures for a script write no file"


def test_a_page_that_cannot_be_written_is_refused(autointerp: Autointerp, done: Path) -> None:
    (done / "report.html").mkdir()
    refused(autointerp("report", done), "report.html")
    assert left(done) == ["label-vectors.npz", "run.duckdb"]


def test_a_run_may_be_named_by_its_database(autointerp: Autointerp, done: Path) -> None:
    assert autointerp("sql", "SELECT 1 AS x", done / "run.duckdb", "--csv").out.split() == ["x", "1"]


# -- setting up --------------------------------------------------------------------------------------------------------


def test_init_writes_a_configuration_and_the_prompts_that_then_work(
    autointerp: Autointerp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = autointerp("init", tmp_path / "study")
    assert ended.code == 0
    made = left(tmp_path / "study")
    packaged = sorted(path.name for path in packaged_folder().glob("*.md"))
    assert made == ["config.toml", *(f"prompts/{name}" for name in packaged)]
    assert sorted(Path(line) for line in ended.out.splitlines()) == sorted(
        tmp_path / "study" / name for name in made
    )
    defaults = json.loads(autointerp("config", "--json").out)
    monkeypatch.chdir(tmp_path / "study")
    assert json.loads(autointerp("config", "--json").out) == defaults
    (tmp_path / "study" / "config.toml").write_text('[run]\nname = "mine"\n')
    assert json.loads(autointerp("config", "--json").out)["run"]["name"] == "mine"


def test_init_leaves_existing_files_alone(autointerp: Autointerp, tmp_path: Path) -> None:
    (tmp_path / "study" / "prompts").mkdir(parents=True)
    for name in ("config.toml", "prompts/explain-marks.md", "prompts/mine.md"):
        (tmp_path / "study" / name).write_text(f"mine: {name}")
    ended = autointerp("init", tmp_path / "study")
    assert ended.code == 0
    assert ended.out.count("left alone") == 2
    for name in ("config.toml", "prompts/explain-marks.md", "prompts/mine.md"):
        assert (tmp_path / "study" / name).read_text() == f"mine: {name}"


def test_init_into_a_file_is_refused(autointerp: Autointerp, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    refused(autointerp("init", tmp_path / "taken"), "taken")


def test_config_shows_every_key_with_its_value_and_meaning(autointerp: Autointerp) -> None:
    from autointerp import config

    out = autointerp("config", "--set", "corpus.tokens=12345").out
    assert "tokens = 12345" in out
    flat = " ".join(out.split())
    for key, field in config.known_keys().items():
        section = key.split(".")[0]
        assert (f"[[{section}]]" if section == "price" else f"[{section}]") in out
        assert f"{key.split('.')[1]} = " in flat
        assert " ".join(field.description.split()) in flat


TRAIN = "refused only once the progress bar is up, which adds an empty line to stderr"


def test_train_refuses_a_folder_that_is_not_empty(autointerp: Autointerp, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    refused(autointerp("train", "-o", tmp_path / "full"), "not empty")


def test_train_refuses_an_unknown_architecture(autointerp: Autointerp, tmp_path: Path) -> None:
    refused(autointerp("train", "-o", tmp_path / "new", "--architecture", "gated"), "gated", "topk")
    assert not (tmp_path / "new").exists()


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(autointerp: Autointerp, command: str) -> None:
    ended = autointerp(command, "--help")
    assert ended.code == 0
    lines = [line.strip(" │") for line in ended.out.splitlines()]
    assert any(line.startswith(f"autointerp {command}") for line in lines), ended.out
    assert any(line.startswith("Usage:") for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_argument_has_help(command: str) -> None:
    made = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]
    assert [p.name for p in made.params if p.name != "help" and not getattr(p, "help", None)] == []


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"init", "compare"}))
def test_every_command_takes_a_configuration_file_and_overrides(command: str) -> None:
    made = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]
    assert {"-c", "--config", "--set"} <= {option for p in made.params for option in p.opts}


def test_the_version_is_printed(autointerp: Autointerp) -> None:
    ended = autointerp("--version")
    assert (ended.code, ended.out.strip()) == (0, f"autointerp {__version__}")


def test_no_command_at_all_gives_help(autointerp: Autointerp) -> None:
    ended = autointerp()
    assert all(f" {command} " in ended.out + ended.err for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["shwo", "17"], ["report", "--jsn"], ["show"], ["show", "17", "-n", "0"]]
)
def test_a_command_line_that_cannot_be_read_ends_with_2(autointerp: Autointerp, arguments: list[str]) -> None:
    assert autointerp(*arguments).code == 2


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autointerp", "sql", "SELECT 1", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
