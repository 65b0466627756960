"""The whole, from text to grades: run twice = run once; killed anywhere and run again = never stopped."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pytest

from autointerp import config
from autointerp.config import Settings
from autointerp.llm import Reply, Request
from autointerp.pipeline import Pipeline, prepare
from autointerp.store import Store
from autointerp.tally import Bar

from .conftest import tiny_overrides

# Data tables, and the columns that hold a time.
TABLES = (
    "run", "collection", "fit", "document", "passage", "token", "feature", "excerpt", "panel", "neighbour", "explanation",
    "draw", "simulation", "score", "call",
)  # fmt: skip
TIMES = {"asked_at", "ended_at", "checked_at", "ms", "seconds", "applied"}


def write_encoder(folder: Path) -> Path:
    """A one-layer BERT with random weights and the tiny corpus' words: a sentence encoder that costs nothing."""
    if folder.is_dir():
        return folder
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from . import conftest as words

    known = [w.lower() for group in (words.NAMES, words.PLACES, words.VERBS, words.COLOURS) for w in group]
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *letters,
        *(f"##{c}" for c in letters),
        *known,
        "to",
        "the",
        "and",
        "it",
        "was",
    ]
    ids = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special).save_pretrained(
        folder
    )
    torch.manual_seed(1)
    BertModel(BertConfig(
        vocab_size=len(ids), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
    )).save_pretrained(folder)  # fmt: skip
    return folder


def quick_overrides(tiny: dict[str, Path], results: Path, **overrides: object) -> list[str]:
    """`tiny_overrides` with the tiny encoder."""
    encoder = write_encoder(tiny["root"] / "encoder")
    return tiny_overrides(tiny, results, **({"simulator.encoder": encoder} | overrides))


def quick_settings(tiny: dict[str, Path], results: Path, **overrides: object) -> Settings:
    """Settings for a whole run in a few seconds."""
    return config.load(None, quick_overrides(tiny, results, **overrides))


def run_all(settings: Settings) -> list[str]:
    """Every stage in this process; returns what was said."""
    said: list[str] = []
    prepared = prepare(settings)
    with Store.create(settings.database) as store, Bar(enabled=False) as bar:
        Pipeline(store, prepared, bar, said.append).all()
    return said


_finished: dict[Path, Path] = {}


def finished_run(tiny: dict[str, Path]) -> Path:
    """The results folder of one finished run, made once for all modules. Do not write into it: copy it."""
    root = tiny["root"]
    if root not in _finished:
        settings = quick_settings(tiny, root / "finished")
        run_all(settings)
        _finished[root] = settings.folder
    return _finished[root]


@pytest.fixture(scope="session")
def finished(tiny: dict[str, Path]) -> Path:
    """The finished run's folder; read-only."""
    return finished_run(tiny)


@pytest.fixture
def copied(tiny: dict[str, Path], finished: Path, tmp_path: Path) -> Path:
    """A results folder that holds a copy of the finished run, as run `t`."""
    shutil.copytree(finished, tmp_path / "results" / "t")
    return tmp_path / "results"


def query(database: Path, sql: str, *parameters: object) -> list[tuple]:
    """Rows of a query on a closed run."""
    with duckdb.connect(str(database), read_only=True) as db:
        return db.execute(sql, list(parameters)).fetchall()


def rows(database: Path, table: str) -> list[str]:
    """All rows of a table without its times, sorted."""
    with duckdb.connect(str(database), read_only=True) as db:
        found = db.execute(f"SELECT * FROM {table}")
        keep = [i for i, column in enumerate(found.description) if column[0] not in TIMES]
        return sorted(repr([row[i] for i in keep]) for row in found.fetchall())


def everything(database: Path) -> dict[str, list[str]]:
    """Every data table's rows."""
    return {table: rows(database, table) for table in TABLES}


def assert_same(found: dict[str, list[str]], expected: dict[str, list[str]]) -> None:
    """Equal rows in every table; a failure names the tables and shows a row, not a megabyte."""
    wrong = {}
    for table, want in expected.items():
        if found[table] != want:
            missing, extra = sorted(set(want) - set(found[table])), sorted(set(found[table]) - set(want))
            wrong[table] = (
                len(want),
                len(found[table]),
                [r[:300] for r in missing[:1]],
                [r[:300] for r in extra[:1]],
            )
    assert not wrong, wrong


# -- run twice = run once ----------------------------------------------------------------------------------------------


def test_a_second_run_finds_nothing_pending_and_adds_no_row(tiny: dict[str, Path], copied: Path) -> None:
    settings = quick_settings(tiny, copied)
    database = settings.database
    # The run row names the results folder, so ask once under the new name before comparing.
    run_all(settings)
    before, stages = everything(database), rows(database, "stage")
    said = run_all(settings)
    assert [line.split(": ")[1] for line in said] == ["nothing pending"] * 9
    assert rows(database, "stage") == stages
    assert_same(everything(database), before)


def test_a_second_run_loads_no_model(
    tiny: dict[str, Path], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded although nothing is pending")

    monkeypatch.setattr("autointerp.subject.load_causal_lm", refuse)
    monkeypatch.setattr("autointerp.grading.open_simulator", refuse)
    said = run_all(quick_settings(tiny, copied))
    assert len(said) == 9


def test_what_changes_speed_alone_is_no_new_work(tiny: dict[str, Path], copied: Path) -> None:
    said = run_all(quick_settings(tiny, copied, subject__batch_contexts=3, subject__device="cpu"))
    assert all(line.endswith("nothing pending") for line in said), said


# -- killed anywhere and run again = never stopped ---------------------------------------------------------------------

# Runs the jobs of a JSON list, one after another, each in a fork (so that the imports are paid for once). A job
# with `kill` = [stage, split, n] dies by a real SIGKILL in that stage: at the n-th transaction, with all its rows
# written and not yet committed, or at the n-th batch of collect, just after a checkpoint.
DRIVER = """
import contextlib, json, os, signal, sys, traceback
import torch
torch.set_num_threads(1)
from autointerp import config, explain, score, simulate, sweep
from autointerp.keep import Keeper
from autointerp.pipeline import Labelling, Pipeline, prepare
from autointerp.store import Store
from autointerp.tally import Bar

sweep.CHECKPOINT_SECONDS = 0
explain.CHUNK_FEATURES = simulate.CHUNK_FEATURES = 2
score.CHUNK_LABELS = 4

def arm(stage, split, n):
    now, seen = [None], [0]
    def count(where):
        seen[0] += now[0] == where
        if seen[0] == n:
            os.kill(os.getpid(), signal.SIGKILL)
    def entering(name):
        owner = Pipeline if name == "collect" else Labelling
        method = getattr(owner, name)
        def wrapped(self, *split):
            # The selection is asked for in a transaction of its own: not the one that is meant.
            if name != "collect":
                self.grading
            now[0] = (name, *split)
            return method(self, *split)
        setattr(owner, name, wrapped)
    for name in ("collect", "explain", "simulate", "score"):
        entering(name)
    transaction, add = Store.transaction, Keeper.add
    @contextlib.contextmanager
    def deadly(self):
        with transaction(self):
            yield
            if stage != "collect" or split == "commit":
                count((stage,) if stage in ("collect", "explain") else (stage, split))
    def deadly_add(self, batch):
        if stage == "collect" and split == "batch":
            count(("collect",))
        return add(self, batch)
    Store.transaction, Keeper.add = deadly, deadly_add

for job in json.loads(sys.stdin.read()):
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 256 + os.WEXITSTATUS(status), flush=True)
        if job["keep"]:
            os.rename("results", job["keep"])
        continue
    try:
        if job["kill"]:
            arm(*job["kill"])
        settings = config.load(None, job["sets"])
        prepared = prepare(settings)
        with Store.create(settings.database) as store, Bar(enabled=False) as bar:
            Pipeline(store, prepared, bar, lambda line: None).all()
    except BaseException:
        print(job, file=sys.stderr)
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""

KILLED, FINISHED = 9, 256
KILLS = {
    "collect_after_a_checkpoint": ["collect", "batch", 5],
    "collect_before_its_commit": ["collect", "commit", 1],
    "explain": ["explain", None, 2],
    "simulate_on_select": ["simulate", "select", 2],
    "score_on_select": ["score", "select", 3],
    "simulate_on_score": ["simulate", "score", 2],
    "score_on_score": ["score", "score", 3],
}
LLM_KILLS = {
    "explain_mined": ["explain", None, 2],
    "explain_llm": ["explain", None, 5],
    "simulate": ["simulate", "select", 2],
}


@dataclass
class Resumed:
    """A run that was killed and run again: its database, how the two processes ended, and what the driver said."""

    database: Path
    endings: list[int]
    stderr: str

    def tables(self) -> dict[str, list[str]]:
        """Its rows, once it is sure that the first process was killed and the second went to the end."""
        if self.endings[0] != KILLED:
            raise RuntimeError("the run was not killed: the test shows nothing")
        assert self.endings[1] == FINISHED, self.stderr[-3000:]
        return everything(self.database)


def kill_and_resume(
    tiny: dict[str, Path], folder: Path, kills: dict[str, list], **overrides: object
) -> dict[str, Resumed]:
    """An undisturbed run, and one killed and resumed run per kill.

    The name of the results folder is in the run row, so every job works in the same folder, which is then moved away.
    """
    folder.mkdir(parents=True)
    sets = quick_overrides(tiny, Path("results"), **overrides)
    jobs = [{"sets": sets, "kill": None, "keep": "undisturbed"}]
    for name, kill in kills.items():
        jobs += [{"sets": sets, "kill": kill, "keep": None}, {"sets": sets, "kill": None, "keep": name}]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    endings = [int(line) for line in done.stdout.split()]
    assert endings[0] == FINISHED, done.stderr[-2000:]
    found = {"undisturbed": Resumed(folder / "undisturbed" / "t" / "run.duckdb", endings[:1], done.stderr)}
    for i, name in enumerate(kills):
        found[name] = Resumed(folder / name / "t" / "run.duckdb", endings[1 + 2 * i : 3 + 2 * i], done.stderr)
    return found


SMALL = {"features__select": "random:5", "features__min_passages": 5, "corpus__tokens": 16000}


@pytest.fixture(scope="module")
def interrupted(tiny: dict[str, Path]) -> dict[str, Resumed]:
    """Runs with the mined explainer."""
    return kill_and_resume(tiny, tiny["root"] / "interrupted", KILLS, **SMALL)


def long_context(subject: Path) -> Path:
    """A copy of a subject beside it, that says it reads as many tokens as a prompt has."""
    copy = subject.with_name("long-context")
    if not copy.is_dir():
        shutil.copytree(subject, copy)
        known = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(known | {"max_position_embeddings": 8192}))
    return copy


@pytest.fixture(scope="module")
def interrupted_llm(tiny: dict[str, Path]) -> dict[str, Resumed]:
    """Runs in which the tiny subject also explains."""
    asked = {"explainer__methods": '["mined", "marks"]', "explainer__model": long_context(tiny["subject"]),
             "explainer__max_new_tokens": 6,
             "explainer__excerpts": 2, "explainer__batch": 2}  # fmt: skip
    return kill_and_resume(tiny, tiny["root"] / "interrupted_llm", LLM_KILLS, **SMALL, **asked)


@pytest.mark.parametrize("where", KILLS)
def test_a_run_killed_and_run_again_leaves_the_rows_of_an_undisturbed_run(
    interrupted: dict[str, Resumed], where: str
) -> None:
    undisturbed = everything(interrupted["undisturbed"].database)
    assert all(undisturbed[t] for t in TABLES if t not in {"call", "fit"})
    assert_same(interrupted[where].tables(), undisturbed)


@pytest.mark.parametrize("where", LLM_KILLS)
def test_a_run_with_a_language_model_killed_and_run_again_leaves_the_same_rows(
    interrupted_llm: dict[str, Resumed], where: str
) -> None:
    undisturbed = everything(interrupted_llm["undisturbed"].database)
    sql = "SELECT count(*) FILTER (repair_of IS NULL), count(*) - count(DISTINCT call_id) FROM call"
    assert query(interrupted_llm[where].database, sql) == [(5, 0)]  # one request per feature, none twice
    assert_same(interrupted_llm[where].tables(), undisturbed)


@pytest.mark.parametrize(
    "where", KILLS
)
def test_a_killed_and_resumed_run_leaves_no_checkpoint_snapshot_or_scratch_file(
    interrupted: dict[str, Resumed], where: str
) -> None:
    interrupted[where].tables()
    assert sorted(p.name for p in interrupted[where].database.parent.iterdir()) == ["label-vectors.npz", "run.duckdb"]


# -- what is never mixed -----------------------------------------------------------------------------------------------


def test_a_document_is_in_one_split_alone(finished: Path) -> None:
    database = finished / "run.duckdb"
    assert (
        query(database, "SELECT document_id FROM document GROUP BY ALL HAVING count(DISTINCT split) > 1")
        == []
    )
    wrong = query(
        database,
        "SELECT * FROM passage p JOIN document d USING (collection_id, document_id) WHERE p.split <> d.split",
    )
    assert wrong == []


@pytest.mark.parametrize("split", ["select", "score"])
def test_every_scored_passage_is_from_a_document_of_its_split(finished: Path, split: str) -> None:
    splits = query(
        finished / "run.duckdb",
        "SELECT d.split::VARCHAR, count(*) FROM draw JOIN passage p USING (passage_id) "
        "JOIN document d USING (document_id) "
        "WHERE draw.split = ? GROUP BY ALL", split,
    )  # fmt: skip
    assert [s for s, _ in splits] == [split]
    assert splits[0][1] > 100


def test_simulations_and_draws_are_of_the_same_passages(finished: Path) -> None:
    differ = query(
        finished / "run.duckdb",
        "SELECT * FROM (SELECT explanation_id, split, passage_id FROM draw) FULL JOIN "
        "(SELECT explanation_id, split, passage_id, 1 AS there FROM simulation) "
        "USING (explanation_id, split, passage_id) "
        "WHERE there IS NULL OR explanation_id IS NULL",
    )  # fmt: skip
    assert differ == []


def test_explainers_are_shown_passages_of_explain_documents_alone(
    tiny: dict[str, Path], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autointerp.evidence import Texts

    read: set[int] = set()
    original = Texts.row

    def row(self: Texts, passage: int):  # type: ignore[no-untyped-def]
        read.add(passage)
        return original(self, passage)

    monkeypatch.setattr(Texts, "row", row)
    settings = quick_settings(tiny, copied, explainer__methods='["mined", "marks"]', explainer__model=tiny["subject"],
                              explainer__max_new_tokens=2, explainer__candidates=4)  # fmt: skip
    prepared = prepare(settings)
    with Store.create(settings.database) as store, Bar(enabled=False) as bar:
        tally = Pipeline(store, prepared, bar, lambda _: None).labellings[0].explain()
    assert tally.worked
    splits = {
        s for p, s in query(settings.database, "SELECT passage_id, split::VARCHAR FROM passage") if p in read
    }
    assert len(read) > 50
    assert splits == {"explain"}


def test_the_same_passage_is_never_both_firing_and_silent_for_a_label(finished: Path) -> None:
    fires = (
        "SELECT DISTINCT x.feature, x.passage_id FROM (SELECT passage_id, unnest(features) AS feature FROM panel) x "
        "UNION SELECT feature, passage_id FROM excerpt"
    )
    wrong = query(
        finished / "run.duckdb",
        f"SELECT d.stratum FROM draw d JOIN explanation e USING (explanation_id) LEFT JOIN ({fires}) f "
        "ON f.feature = e.feature AND f.passage_id = d.passage_id "
        "WHERE (d.stratum = 'A') <> (f.passage_id IS NOT NULL)",
    )
    assert wrong == []


# -- other settings are work beside the old ----------------------------------------------------------------------------


def test_another_explainer_adds_work_beside_the_old_and_overwrites_nothing(
    tiny: dict[str, Path], copied: Path
) -> None:
    run_all(quick_settings(tiny, copied))
    database = quick_settings(tiny, copied).database
    before = everything(database)
    said = run_all(quick_settings(tiny, copied, explainer__candidates=2))
    after = everything(database)
    assert said[0] == "collect: nothing pending"
    for table in TABLES:
        assert set(before[table]) <= set(after[table]), f"{table} lost rows"
    for table in ("run", "explanation", "draw", "simulation", "score"):
        assert len(after[table]) > len(before[table]), f"{table} gained none"
    for table in ("collection", "document", "passage", "token", "feature", "excerpt", "panel"):
        assert after[table] == before[table]
    # Going back is no work, and the old labels are the ones that readers see.
    assert all(line.endswith("nothing pending") for line in run_all(quick_settings(tiny, copied)))
    with Store.read(database) as store:
        run = store.latest_run()
        assert {e.explainer_id for e in store.chosen(run)} <= set(run.explainer_ids)


def test_another_seed_selects_other_features_and_passages(
    tiny: dict[str, Path], finished: Path, tmp_path: Path
) -> None:
    settings = quick_settings(tiny, tmp_path, run__seed=1, explainer__candidates=1)
    run_all(settings)
    chosen = "SELECT features FROM run"
    assert set(query(settings.database, chosen)[0][0]) != set(query(finished / "run.duckdb", chosen)[0][0])
    sample = "SELECT feature, passage_id FROM excerpt WHERE why = 'sample' AND split = 'score'"
    assert set(query(settings.database, sample)) != set(query(finished / "run.duckdb", sample))
    # What no seed may change: which document is in which split.
    assert rows_of_documents(settings.database) == rows_of_documents(finished / "run.duckdb")


def rows_of_documents(database: Path) -> list[tuple]:
    """(document, split) of a run."""
    return sorted(query(database, "SELECT document_id, split::VARCHAR FROM document"))


def score_values(database: Path, select_passages: int) -> dict[tuple, tuple]:
    """(feature, label) -> (r_rank on score, its passages) of the run with this many select passages."""
    found = query(
        database,
        "SELECT s.feature, e.label, s.value, s.lo, s.hi, list_sort(list((d.passage_id, d.stratum::VARCHAR))) "
        "FROM score s JOIN explanation e USING (explanation_id) JOIN run r ON r.scorer_id = s.scorer_id "
        "JOIN draw d ON d.explanation_id = s.explanation_id AND d.scorer_id = s.scorer_id AND d.split = 'score' "
        "WHERE s.metric = 'r_rank' AND s.split = 'score' "
        "AND (r.settings::JSON->'score'->>'select_passages')::INT = ? GROUP BY ALL",
        select_passages,
    )
    return {row[:2]: row[2:] for row in found}


def test_another_draw_on_select_leaves_the_grades_on_score_as_they_were(
    tiny: dict[str, Path], copied: Path
) -> None:
    settings = quick_settings(tiny, copied, score__select_passages=8)
    run_all(settings)
    before, after = score_values(settings.database, 20), score_values(settings.database, 8)
    assert len(after) == len(before) == 18
    moved = {key: (before[key][0], after[key][0]) for key in before if before[key] != after[key]}
    assert not moved


def test_features_selected_later_get_the_rows_that_they_get_when_selected_at_once(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    few = {"features__select": "random:3"}
    later, at_once = quick_settings(tiny, tmp_path / "later"), quick_settings(tiny, tmp_path / "at_once")
    run_all(quick_settings(tiny, tmp_path / "later", **few))
    run_all(later)
    run_all(at_once)
    assert_same({"explanation": rows(later.database, "explanation")}, {"explanation": rows(at_once.database, "explanation")})
    # The earlier design's rows stay beside the later ones, which are the same as at once.
    for table in ("draw", "simulation", "score"):
        assert set(rows(at_once.database, table)) <= set(rows(later.database, table)), table


def test_an_explainer_added_later_is_compared_with_the_old_on_the_same_passages(
    tiny: dict[str, Path], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = iter(["blue", "Ada", "river", "sailed", "golden", "Hugo", "castle", "walked"])

    class Provider:
        def __init__(self, *_: object) -> None:
            pass

        def ask(self, requests: list[Request]) -> list[Reply]:
            return [Reply(next(words), "words", 1, 1, 0.0) for _ in requests]

    monkeypatch.setattr("autointerp.llm.local.LocalProvider", Provider)
    asked = {"explainer__methods": '["mined", "marks"]', "explainer__model": tiny["subject"]}
    settings = quick_settings(tiny, copied, **asked)
    run_all(settings)
    labels = query(
        settings.database,
        "SELECT e.feature, e.method, list(d.passage_id), list(d.passage_id) FILTER (d.stratum = 'B') FROM draw d "
        "JOIN explanation e USING (explanation_id) WHERE d.split = 'select' "
        "AND d.scorer_id = (SELECT scorer_id FROM run ORDER BY asked_at DESC LIMIT 1) "
        "GROUP BY e.feature, e.method, e.explanation_id",
    )
    if {method for _, method, *_ in labels} != {"mined", "marks"}:
        raise RuntimeError("the test needs labels of both")
    for feature in {row[0] for row in labels}:
        union = {p for f, _, _, hard in labels if f == feature for p in hard or []}
        for f, method, drawn, _ in labels:
            assert f != feature or union <= set(drawn), (
                f"a {method} label of {feature} lacks hard negatives of its rivals"
            )


def test_collecting_again_keeps_what_readers_show(tiny: dict[str, Path], copied: Path) -> None:
    from autointerp import report

    settings = quick_settings(tiny, copied)
    run_all(settings)
    with Store.create(settings.database) as store, Bar(enabled=False) as bar:
        n = len(report.read(store).labels)
        Pipeline(store, prepare(settings), bar, lambda _: None).collect()
        assert n == 6
        assert len(report.read(store).labels) == n


# -- selection ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def select(tiny: dict[str, Path], finished: Path) -> Iterator[Callable[[str], list[int]]]:
    """The features that a `features.select` takes from the finished run."""
    from autointerp.population import population
    from autointerp.population import select as chosen

    with Store.read(finished / "run.duckdb") as store:
        run = store.latest_run()
        found = population(store, run.collection_id, Settings.model_validate_json(run.settings).features)
        yield lambda text: chosen(text, found, 0, "sae")


def test_a_list_of_features_may_be_as_long_as_the_dictionary(select: Callable[[str], list[int]]) -> None:
    text = ",".join(str(i) for i in [*range(64), *range(64)])
    assert len(text) > 255
    assert select(text) == list(range(64))


def test_random_features_are_a_subset_of_all_and_repeatable(select: Callable[[str], list[int]]) -> None:
    assert select("random:6") == select("random:6")
    assert set(select("random:6")) < set(select("all"))
    assert len(np.unique(select("random:6"))) == 6
