"""Shards read apart and put together are the collection of one pass, row for row; what cannot be put together is
refused in a line, and nothing is written."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from autointerp import collect, config, targets
from autointerp.config import Settings
from autointerp.corpus import Shard
from autointerp.merge import Merged
from autointerp.merge import merge as merge_files
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar

from . import test_cli
from .conftest import sentence, tiny_overrides, write_dictionary
from .interrupted import interrupted
from .test_cli import Autointerp, refused, sets
from .test_pipeline import assert_same, everything, quick_overrides, rows

autointerp = test_cli.autointerp  # the fixture that runs a command in this process

COLLECTED = ("collection", "document", "passage", "token", "feature", "excerpt", "panel")
# Lists that overflow, so that merging has something to throw away.
SMALL = {"collect.panel": 40, "collect.top": 4, "collect.sample_explain": 5, "collect.sample_score": 5}


def write_firing(folder: Path, architecture: str, bias: float = -0.03, **given: int) -> Path:
    """A dictionary of the tiny subject; a standard one with a bias at which features fire on some 7 % of tokens."""
    write_dictionary(folder, architecture=architecture, **given)
    if architecture == "standard":
        tensors = load_file(folder / "sae_weights.safetensors")
        save_file(tensors | {"b_enc": torch.full_like(tensors["b_enc"], bias)}, folder / "sae_weights.safetensors")
    return folder


def collect_into(path: Path, settings: Settings, shard: str | None = None) -> Path:
    """Collect the whole corpus, or a part of it, into a database."""
    found = targets.load(settings, Subject.sketch(settings.subject))
    with Store.create(path) as store, Bar(enabled=False) as bar:
        collect.run(store, settings, found, bar, None if shard is None else Shard.parse(shard))
    return path


def merge_into(path: Path, parts: list[Path]) -> list[Merged]:
    with Bar(enabled=False) as bar:
        return merge_files(parts, path, bar)


def collected(database: Path) -> dict[str, list[str]]:
    """The rows of a collection, by table."""
    return {table: rows(database, table) for table in COLLECTED}


def shards_into(folder: Path, settings: Settings, names: list[str]) -> list[Path]:
    return [collect_into(folder / f"shard-{name.replace('/', '-of-')}.duckdb", settings, name) for name in names]


QUARTERS = ["1/4", "2/4", "3/4", "4/4"]


@pytest.fixture(scope="module")
def odd_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of every length from one token to several contexts, some of them in several files, some sharing parts."""
    folder = tmp_path_factory.mktemp("odd")
    random = np.random.default_rng(3)
    shared = " ".join(sentence(random) for _ in range(12))
    for i in range(50):
        text = " ".join(sentence(random) for _ in range(int(random.integers(1, 30))))
        if i % 5 == 0:
            text = shared + " " + text  # the first passages of ten documents are the same text
        (folder / f"{i:02}.txt").write_text(text)
    for letter in "abcdefgh":
        (folder / f"one-{letter}.txt").write_text(letter)
    for i in (3, 10, 11):  # copies of whole documents, before and after the original
        shutil.copy(folder / f"{i:02}.txt", folder / f"0-copy-{i}.txt")
        shutil.copy(folder / f"{i:02}.txt", folder / f"z-copy-{i}.txt")
    lines = [json.dumps({"text": f"{sentence(random)} {sentence(random)}"}) for _ in range(20)]
    lines += [lines[0], json.dumps({"text": "a"}), json.dumps({"text": ""})]
    (folder / "many.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def make(
    tiny: dict[str, Path], odd_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Settings]:
    """Settings of a small collection of the odd corpus."""
    results = tmp_path_factory.mktemp("merge")

    def settings(**overrides: object) -> Settings:
        given = SMALL | {"corpus.source": odd_corpus} | {k.replace("__", "."): v for k, v in overrides.items()}
        return config.load(None, tiny_overrides(tiny, results, **given))

    return settings


class Parts:
    """A collection made whole, and its quarters."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self.whole = collect_into(folder / "whole.duckdb", settings)
        self.quarters = shards_into(folder, settings, QUARTERS)


@pytest.fixture(scope="module", params=["topk", "topk-budget", "standard", "standard-budget"])
def parts(
    request: pytest.FixtureRequest, tiny: dict[str, Path], make: Callable[..., Settings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Parts:  # fmt: skip
    architecture, _, budget = request.param.partition("-")
    folder = tmp_path_factory.mktemp("parts")
    sae = write_firing(folder / "sae", architecture)
    return Parts(folder, make(dictionary__source=sae, corpus__tokens=6000 if budget else 0))


@pytest.fixture(scope="module")
def quarters(
    tiny: dict[str, Path], make: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Parts:
    """One set of parts, for what does not depend on the settings."""
    return Parts(tmp_path_factory.mktemp("quarters"), make())


# -- merged = whole ----------------------------------------------------------------------------------------------------


def test_four_shards_merged_are_the_whole_row_for_row(parts: Parts, tmp_path: Path) -> None:
    (found,) = merge_into(tmp_path / "merged.duckdb", parts.quarters)
    whole = collected(parts.whole)
    assert all(whole.values())
    assert len(whole["excerpt"]) > 100
    assert_same(collected(tmp_path / "merged.duckdb"), whole)
    assert (found.shards, found.missing) == (None, [])


@pytest.mark.parametrize("order", [[2, 0, 3, 1]])
def test_the_order_of_shards_does_not_matter(parts: Parts, tmp_path: Path, order: list[int]) -> None:
    merge_into(tmp_path / "merged.duckdb", [parts.quarters[i] for i in order])
    assert_same(collected(tmp_path / "merged.duckdb"), collected(parts.whole))


@pytest.mark.parametrize("grouping", [[[0, 1], [2, 3]], [[3, 0], [1], [2]]])
def test_merges_of_merges_are_the_whole(parts: Parts, tmp_path: Path, grouping: list[list[int]]) -> None:
    middle = []
    for i, group in enumerate(grouping):
        middle.append(tmp_path / f"{i}.duckdb")
        merge_into(middle[-1], [parts.quarters[j] for j in group])
    merge_into(tmp_path / "merged.duckdb", middle)
    assert_same(collected(tmp_path / "merged.duckdb"), collected(parts.whole))


def test_shards_of_different_sizes_that_fit_together_are_the_whole(quarters: Parts, tmp_path: Path) -> None:
    mixed = shards_into(tmp_path, quarters.settings, ["1/2", "2/4", "4/8", "8/8"])
    merge_into(tmp_path / "merged.duckdb", mixed)
    assert_same(collected(tmp_path / "merged.duckdb"), collected(quarters.whole))


def test_the_last_shard_may_be_called_0(quarters: Parts, tmp_path: Path) -> None:
    zero = collect_into(tmp_path / "zero.duckdb", quarters.settings, "0/4")
    assert_same(collected(zero), collected(quarters.quarters[3]))


def test_the_only_shard_of_one_is_the_whole(quarters: Parts, tmp_path: Path) -> None:
    assert_same(collected(collect_into(tmp_path / "a.duckdb", quarters.settings, "1/1")), collected(quarters.whole))


def test_every_document_is_in_exactly_one_shard(parts: Parts) -> None:
    counts = [_totals(path) for path in parts.quarters]
    assert [sum(n) for n in zip(*counts)] == _totals(parts.whole)
    assert all(sum(n) > 0 for n in counts)


def _totals(database: Path) -> list[int]:
    """Tokens, passages and documents per split, and masked positions."""
    with duckdb.connect(str(database), read_only=True) as db:
        found = db.execute("SELECT n_tokens || n_passages || n_documents || [n_masked] FROM collection").fetchall()
    return list(found[0][0])


def test_shards_without_a_document_merge_like_any_other(make: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name, text in (("a", "Ada walked to the red river. " * 30), ("b", "Bela sailed to the blue harbour. " * 30)):
        (tmp_path / "corpus" / f"{name}.txt").write_text(text)
    settings = make(corpus__source=tmp_path / "corpus")
    parts = shards_into(tmp_path, settings, [f"{i}/5" for i in range(1, 6)])
    assert sum(_totals(path)[:3] == [0, 0, 0] for path in parts) >= 3
    merge_into(tmp_path / "merged.duckdb", parts)
    whole = collect_into(tmp_path / "whole.duckdb", settings)
    assert_same(collected(tmp_path / "merged.duckdb"), collected(whole))


def test_a_corpus_with_fewer_contexts_dealt_than_documents_is_split_all_the_same(
    make: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make(corpus__tokens=3000)  # 24 contexts for 77 documents
    parts = shards_into(tmp_path, settings, QUARTERS)
    merge_into(tmp_path / "merged.duckdb", parts)
    assert_same(collected(tmp_path / "merged.duckdb"), collected(collect_into(tmp_path / "w.duckdb", settings)))


def test_shards_with_some_features_alone_merge_to_the_whole_of_those(
    make: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make(collect__features="3,17,40")
    merge_into(tmp_path / "merged.duckdb", shards_into(tmp_path, settings, QUARTERS))
    whole = collect_into(tmp_path / "whole.duckdb", settings)
    assert len(rows(whole, "feature")) == 3
    assert_same(collected(tmp_path / "merged.duckdb"), collected(whole))


def test_a_text_in_several_files_is_one_document_of_one_shard(quarters: Parts, odd_corpus: Path) -> None:
    texts = {p.read_text() for p in odd_corpus.glob("*.txt")}
    lines = (odd_corpus / "many.jsonl").read_text().splitlines()
    texts |= {json.loads(line)["text"] for line in lines} - {""}
    files = len(list(odd_corpus.glob("*.txt"))) + len(lines)
    assert len(texts) < files
    assert sum(sum(_totals(p)[6:9]) for p in quarters.quarters) == len(texts) == sum(_totals(quarters.whole)[6:9])


def test_a_shard_that_was_interrupted_goes_on_and_merges_to_the_whole(
    quarters: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interrupted(monkeypatch, 2):
        collect_into(tmp_path / "shard.duckdb", quarters.settings, "2/4")
    assert list(tmp_path.glob("*.checkpoint.npz"))
    again = collect_into(tmp_path / "shard.duckdb", quarters.settings, "2/4")
    assert_same(collected(again), collected(quarters.quarters[1]))
    assert not list(tmp_path.glob("*.checkpoint.npz"))


# -- from the command line ---------------------------------------------------------------------------------------------


def graded(database: Path) -> dict[str, list[str]]:
    """Every data table but `run`, whose settings name the results folder."""
    return {table: found for table, found in everything(database).items() if table != "run"}


def test_a_merged_database_is_gone_on_with_by_run_and_gives_the_labels_and_scores_of_the_whole(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path
) -> None:
    given = {"corpus.tokens": 16000, "features.select": "random:4"}
    whole = sets(quick_overrides(tiny, tmp_path / "whole", **given))
    parts = sets(quick_overrides(tiny, tmp_path / "parts", **given))
    assert autointerp("run", *whole).code == 0
    printed = []
    for shard in ("1/3", "2/3", "0/3"):
        ended = autointerp("collect", "--shard", shard, *parts)
        assert ended.code == 0, ended
        printed.append(ended.out.strip())
    folder = tmp_path / "parts" / "t"
    assert printed == [str(folder / f"shard-{i}-of-3.duckdb") for i in (1, 2, 3)]
    ended = autointerp("merge", *printed, "-o", folder / "run.duckdb")
    assert ended.code == 0, ended
    assert "whole" in ended.out
    ended = autointerp("run", *parts)
    assert ended.code == 0, ended
    assert ended.err.splitlines()[0] == "collect: nothing pending"
    assert_same(graded(folder / "run.duckdb"), graded(tmp_path / "whole" / "t" / "run.duckdb"))
    assert len(rows(folder / "run.duckdb", "score")) > 8


def test_a_partial_merge_says_what_is_missing_and_run_does_not_take_it_for_the_whole(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path
) -> None:
    asked = sets(tiny_overrides(tiny, tmp_path, **SMALL, **{"corpus.tokens": 6000}))
    folder = tmp_path / "t"
    for shard in QUARTERS:
        assert autointerp("collect", "--shard", shard, *asked).code == 0
    three = [folder / f"shard-{i}-of-4.duckdb" for i in (1, 2, 4)]
    ended = autointerp("merge", *three, "-o", folder / "run.duckdb")
    assert ended.code == 0, ended
    assert "missing 3/4" in ended.out
    partial = collected(folder / "run.duckdb")
    for stage in ("explain", "simulate", "score"):
        refused(autointerp(stage, *asked), "collect")
    assert autointerp("collect", *asked).code == 0
    merged = autointerp("merge", *three, folder / "shard-3-of-4.duckdb", "-o", tmp_path / "four.duckdb")
    assert merged.code == 0, merged
    for table, found in collected(tmp_path / "four.duckdb").items():
        assert sorted(found + partial[table]) == rows(folder / "run.duckdb", table)


def test_a_partial_merge_completed_later_is_the_whole(quarters: Parts, tmp_path: Path) -> None:
    (some,) = merge_into(tmp_path / "some.duckdb", [quarters.quarters[2], quarters.quarters[0]])
    assert some.shards is not None
    assert (sorted(some.shards), sorted(some.missing)) == (["1/4", "3/4"], ["2/4", "4/4"])
    assert not set(rows(tmp_path / "some.duckdb", "collection")) & set(rows(quarters.whole, "collection"))
    (rest,) = merge_into(tmp_path / "all.duckdb", [quarters.quarters[3], tmp_path / "some.duckdb", quarters.quarters[1]])
    assert rest.missing == []
    assert_same(collected(tmp_path / "all.duckdb"), collected(quarters.whole))


def test_merging_adds_to_a_database_that_holds_other_collections(
    quarters: Parts, make: Callable[..., Settings], tmp_path: Path
) -> None:
    path = collect_into(tmp_path / "run.duckdb", make(run__seed=9))
    before = collected(path)
    merge_into(path, quarters.quarters)
    whole = collected(quarters.whole)
    assert_same(collected(path), {table: sorted(before[table] + whole[table]) for table in COLLECTED})


def test_several_dictionaries_are_merged_at_once(tiny: dict[str, Path], odd_corpus: Path, tmp_path: Path) -> None:
    other = write_firing(tmp_path / "other", "standard", seed=4)
    file = tmp_path / "config.toml"
    file.write_text(f"""
        [[dictionary]]
        source = "{tiny['dictionary']}"
        check = "off"
        [[dictionary]]
        source = "{other}"
        hookpoint = "model.layers.0"
        check = "off"
    """)
    given = tiny_overrides(tiny, tmp_path, **SMALL, **{"corpus.source": odd_corpus})
    settings = config.load(file, [value for value in given if not value.startswith("dictionary.")])
    parts = shards_into(tmp_path, settings, ["1/3", "2/3", "3/3"])
    found = merge_into(tmp_path / "merged.duckdb", parts)
    assert sorted(one.dictionary for one in found) == ["other", "sae"]
    assert_same(collected(tmp_path / "merged.duckdb"), collected(collect_into(tmp_path / "w.duckdb", settings)))


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused_merge(autointerp: Autointerp, tmp_path: Path) -> Callable[..., None]:
    """Asserts that a merge is refused in one line that says these things, and that it writes and changes nothing."""

    def check(parts: list[Path], *said: str) -> None:
        before = {path: path.read_bytes() for path in parts if path.is_file()}
        ended = autointerp("merge", *parts, "-o", tmp_path / "out" / "merged.duckdb")
        refused(ended, *said)
        assert not (tmp_path / "out").exists()
        assert {path: path.read_bytes() for path in before} == before

    return check


def test_shards_that_overlap_are_refused_and_named(
    refused_merge: Callable[..., None], quarters: Parts, tmp_path: Path
) -> None:
    (half,) = shards_into(tmp_path, quarters.settings, ["2/2"])
    refused_merge([half, quarters.quarters[1]], str(half), str(quarters.quarters[1]), "2/2", "2/4", "same documents")
    refused_merge([quarters.quarters[1], quarters.whole], str(quarters.whole))


def test_a_copy_of_a_shard_is_refused(refused_merge: Callable[..., None], quarters: Parts, tmp_path: Path) -> None:
    shutil.copy(quarters.quarters[1], tmp_path / "copy.duckdb")
    refused_merge([quarters.quarters[1], tmp_path / "copy.duckdb"], "same documents")


def test_a_file_named_twice_is_refused(refused_merge: Callable[..., None], quarters: Parts, tmp_path: Path) -> None:
    refused_merge([quarters.quarters[0], quarters.quarters[0]], "twice")
    (tmp_path / "link.duckdb").symlink_to(quarters.quarters[0])
    refused_merge([quarters.quarters[0], tmp_path / "link.duckdb"], "twice")


def test_halves_that_do_not_overlap_quarters_are_merged(quarters: Parts, tmp_path: Path) -> None:
    (half,) = shards_into(tmp_path, quarters.settings, ["1/2"])
    (found,) = merge_into(tmp_path / "merged.duckdb", [half, quarters.quarters[1]])
    assert found.missing == ["4/4"]


OTHER: dict[str, dict[str, object]] = {
    "seed": {"run__seed": 4},
    "top": {"collect__top": 5},
    "budget": {"corpus__tokens": 6000},
    "salt": {"collect__split_salt": "other"},
    "hookpoint": {"subject__hookpoint": "model.layers.0"},
    "features": {"collect__features": "1,2"},
}


@pytest.mark.parametrize("what", OTHER)
def test_shards_of_other_settings_are_refused(
    refused_merge: Callable[..., None], quarters: Parts, make: Callable[..., Settings], tmp_path: Path, what: str
) -> None:
    (other,) = shards_into(tmp_path, make(**OTHER[what]), ["2/4"])
    refused_merge([quarters.quarters[0], other], "not shards of one collection")


def test_shards_of_another_corpus_or_dictionary_are_refused(
    refused_merge: Callable[..., None], quarters: Parts, make: Callable[..., Settings], odd_corpus: Path, tmp_path: Path
) -> None:
    corpus = Path(shutil.copytree(odd_corpus, tmp_path / "corpus"))
    (corpus / "00.txt").write_text("Another text.")
    (other,) = shards_into(tmp_path, make(corpus__source=corpus), ["2/4"])
    refused_merge([quarters.quarters[0], other], "not shards of one collection")
    sae = write_dictionary(tmp_path / "sae", seed=8)  # other weights under the same name
    (other,) = shards_into(tmp_path, make(dictionary__source=sae), ["3/4"])
    refused_merge([quarters.quarters[0], other], "not shards of one collection")


def test_a_shard_of_a_dictionary_of_another_name_is_refused(
    refused_merge: Callable[..., None], quarters: Parts, make: Callable[..., Settings], tmp_path: Path
) -> None:
    (other,) = shards_into(tmp_path, make(dictionary__name="other"), ["2/4"])
    refused_merge([quarters.quarters[0], other], "not shards of one collection")


def test_the_files_that_do_not_belong_together_are_the_ones_that_are_named(
    refused_merge: Callable[..., None], make: Callable[..., Settings], tiny: dict[str, Path], odd_corpus: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    sae = write_dictionary(tmp_path / "zz", seed=4)
    file = tmp_path / "config.toml"
    file.write_text(f"[[dictionary]]\nsource = '{tiny['dictionary']}'\ncheck = 'off'\n[[dictionary]]\nsource = '{sae}'\ncheck = 'off'")

    def of(seed: int) -> Settings:
        given = tiny_overrides(tiny, tmp_path, **SMALL, **{"corpus.source": odd_corpus, "run.seed": seed})
        return config.load(file, [value for value in given if not value.startswith("dictionary.")])

    first = collect_into(tmp_path / "first.duckdb", of(0), "1/4")
    second = collect_into(tmp_path / "second.duckdb", of(1), "2/4")
    refused_merge([first, second], f"{first} and {second} are not shards of one collection")


def test_what_is_no_finished_shard_is_refused(
    refused_merge: Callable[..., None], quarters: Parts, tmp_path: Path
) -> None:
    good = quarters.quarters[0]
    (tmp_path / "text.duckdb").write_text("this is text, and no database " * 1000)
    with duckdb.connect(str(tmp_path / "foreign.duckdb")) as db:
        db.execute("CREATE TABLE t AS SELECT 1 AS x")
    Store.create(tmp_path / "unfinished.duckdb").close()
    (tmp_path / "cut.duckdb").write_bytes(good.read_bytes()[:50_000])
    for name, said in (
        ("missing", "missing.duckdb"), ("text", "text.duckdb"), ("foreign", "foreign.duckdb"), ("cut", "cut.duckdb"),
        ("unfinished", "not finished"),
    ):  # fmt: skip
        refused_merge([good, tmp_path / f"{name}.duckdb"], said)
        refused_merge([tmp_path / f"{name}.duckdb", good], said)
    refused_merge([good, tmp_path], tmp_path.name)


def test_a_file_of_no_bytes_is_refused_and_stays_as_it_is(
    refused_merge: Callable[..., None], quarters: Parts, tmp_path: Path
) -> None:
    (tmp_path / "nothing.duckdb").write_bytes(b"")
    refused_merge([quarters.quarters[0], tmp_path / "nothing.duckdb"], "nothing.duckdb")


def test_a_database_that_holds_the_collection_already_is_refused_and_stays_as_it_is(
    autointerp: Autointerp, quarters: Parts, tmp_path: Path
) -> None:
    path = tmp_path / "run.duckdb"
    shutil.copy(quarters.whole, path)
    before = everything(path)
    refused(autointerp("merge", *quarters.quarters, "-o", path), "already", str(path))
    assert_same(everything(path), before)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["run.duckdb"]


def test_an_output_that_is_one_of_the_shards_is_refused_and_stays_as_it_is(
    autointerp: Autointerp, quarters: Parts, tmp_path: Path
) -> None:
    one, two = (Path(shutil.copy(path, tmp_path)) for path in quarters.quarters[:2])
    before = everything(one)
    refused(autointerp("merge", one, two, "-o", one), str(one))
    assert_same(everything(one), before)


def test_an_output_that_cannot_be_written_is_named(autointerp: Autointerp, quarters: Parts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(autointerp("merge", *quarters.quarters, "-o", tmp_path / "file" / "merged.duckdb"), "file")
    (tmp_path / "foreign.txt").write_text("these are my notes, do not overwrite them " * 100)
    before = (tmp_path / "foreign.txt").read_bytes()
    refused(autointerp("merge", *quarters.quarters, "-o", tmp_path / "foreign.txt"), "foreign.txt")
    assert (tmp_path / "foreign.txt").read_bytes() == before


def test_a_shard_that_another_process_writes_is_refused(
    refused_merge: Callable[..., None], quarters: Parts, tmp_path: Path
) -> None:
    busy = Path(shutil.copy(quarters.quarters[1], tmp_path / "busy.duckdb"))
    code = f"import duckdb, sys; c = duckdb.connect({str(busy)!r}); print('open', flush=True); sys.stdin.read()"
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        refused_merge([quarters.quarters[0], busy], str(busy), "in use", str(writer.pid))
    finally:
        writer.communicate("")


@pytest.mark.parametrize("text", ["5/4", "1/0", "0/0", "-1/4", "1", "1/", "/4", "a/b", "1/4/2", "1.0/4", "٢/4"])
def test_a_shard_that_means_nothing_is_refused(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path, text: str
) -> None:
    refused(autointerp("collect", f"--shard={text}", *sets(tiny_overrides(tiny, tmp_path / "r"))), "i/n")
    assert not (tmp_path / "r").exists()


def test_output_without_a_shard_is_refused(autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path) -> None:
    refused(autointerp("collect", "-o", tmp_path / "x.duckdb", *sets(tiny_overrides(tiny, tmp_path / "r"))), "--shard")
    assert not (tmp_path / "x.duckdb").exists()


def test_residues_of_shards_partition_the_documents() -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    for n in (1, 2, 7, 64):
        held = np.stack([Shard.parse(f"{i}/{n}").holds(keys) for i in range(1, n + 1)])
        assert (held.sum(axis=0) == 1).all()
    for a, b in itertools.pairwise((2, 4, 8)):
        finer = Shard.parse(f"1/{b}").holds(keys)
        assert (Shard.parse(f"1/{a}").holds(keys) >= finer).all()
        assert finer.any()
