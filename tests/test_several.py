"""Several dictionaries in one pass, some features of one, several devices: no row is other than it would be alone."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from autointerp import collect, config, sweep, targets
from autointerp.config import Settings
from autointerp.corpus import contexts
from autointerp.errors import ConfigError
from autointerp.pipeline import prepare
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar, Tally

from . import test_cli
from .conftest import tiny_overrides
from .interrupted import interrupted
from .test_cli import Autointerp, refused, sets
from .test_merge import COLLECTED, write_firing
from .test_pipeline import assert_same, everything, query, quick_overrides

autointerp = test_cli.autointerp  # the fixture that runs a command in this process

SMALL = {
    "corpus.tokens": 12_000, "collect.panel": 40, "collect.top": 4, "collect.sample_explain": 5,
    "collect.sample_score": 5,
}  # fmt: skip
HOOKPOINTS = {"one": "model.layers.1", "two": "model.layers.1", "shallow": "model.layers.0"}


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three dictionaries: two at one hookpoint, one at an earlier one."""
    root = tmp_path_factory.mktemp("saes")
    return {
        "one": write_firing(root / "one", "topk", seed=1),
        "two": write_firing(root / "two", "standard", seed=2),
        "shallow": write_firing(root / "shallow", "standard", seed=3, width=48),
    }


def toml(saes: dict[str, Path], *names: str) -> str:
    # Random weights reconstruct nothing, which a check of the fit would say.
    unchecked = "check = 'off'\n" if "check" in config.DictionarySection.model_fields else ""
    return "\n".join(
        f"[[dictionary]]\nsource = '{saes[name]}'\nhookpoint = '{HOOKPOINTS[name]}'\n{unchecked}" for name in names
    )


def without_dictionary(overrides: list[str]) -> list[str]:
    return [value for value in overrides if not value.startswith("dictionary.")]


@pytest.fixture
def make(tiny: dict[str, Path], saes: dict[str, Path], tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a small collection for the named dictionaries."""

    def settings(*names: str, **overrides: object) -> Settings:
        file = tmp_path / f"{'-'.join(names)}.toml"
        file.write_text(toml(saes, *names))
        given = SMALL | {key.replace("__", "."): value for key, value in overrides.items()}
        return config.load(file, without_dictionary(tiny_overrides(tiny, tmp_path, **given)))

    return settings


def gather(settings: Settings, store: Store | None = None) -> tuple[Store, list[str], Tally]:
    """Collect; the store, the collections' ids in the order of the configuration, and the tally."""
    found = targets.load(settings, Subject.sketch(settings.subject))
    store = store or Store.memory()
    with Bar(enabled=False) as bar:
        tally = collect.run(store, settings, found, bar)
    return store, [target.keys.collection_id for target in found], tally


def rows_of(store: Store, collection: str) -> dict[str, list[str]]:
    """Every row of one collection."""
    return {
        table: sorted(map(repr, store.query(f"SELECT * FROM {table} WHERE collection_id = '{collection}'")[1]))
        for table in COLLECTED
    }


# -- one pass, as if alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("one", "two", "shallow"), ("shallow", "one"), ("two", "one")])
def test_each_dictionary_gets_the_rows_of_a_run_with_it_alone(make: Callable[..., Settings], names: tuple[str]) -> None:
    together, ids, _ = gather(make(*names))
    assert len(set(ids)) == len(names)
    for name, collection in zip(names, ids):
        alone, (same,), _ = gather(make(name))
        assert same == collection
        found = rows_of(together, collection)
        assert all(found.values())
        assert len(found["excerpt"]) > 300
        assert_same(found, rows_of(alone, collection))


class Counted:
    """How often the subject and each of its layers were run, by every Subject.load from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        load = Subject.load.__func__  # type: ignore[attr-defined]

        def counting(cls: type[Subject], *given: Any) -> Subject:
            found: Subject = load(cls, *given)
            modules = {"model": found.model, **{f"layer {i}": m for i, m in enumerate(found.model.model.layers)}}
            for name, module in modules.items():
                module.register_forward_pre_hook(lambda *_, name=name: self.calls.update([name]))
            return found

        monkeypatch.setattr(Subject, "load", classmethod(counting))


def n_batches(settings: Settings) -> int:
    """Batches that one pass takes."""
    tokenizer = Subject.reader(settings.subject).tokenizer
    n = sum(len(group) for group in contexts(settings.corpus, tokenizer, 128, settings.collect.split_salt))
    return -(-n // settings.subject.batch_contexts)


@pytest.mark.parametrize(
    ("names", "layers"), [(("one", "two", "shallow"), 2), (("shallow", "one"), 2), (("shallow",), 1)]
)
def test_one_forward_pass_per_batch_and_no_layer_after_the_deepest_hookpoint(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, names: tuple[str], layers: int
) -> None:
    settings = make(*names)
    batches = n_batches(settings)
    assert batches > 4
    counted = Counted(monkeypatch)
    gather(settings)
    assert counted.calls == {"model": batches, **{f"layer {i}": batches for i in range(layers)}}


def test_a_dictionary_added_later_is_collected_alone_and_leaves_the_others_as_they_were(
    make: Callable[..., Settings],
) -> None:
    store, (first,), _ = gather(make("one"))
    before = rows_of(store, first)
    _, ids, tally = gather(make("shallow", "one"), store)
    assert tally.worked
    assert ids[1] == first
    assert_same(rows_of(store, first), before)
    alone, _, _ = gather(make("shallow"))
    assert_same(rows_of(store, ids[0]), rows_of(alone, ids[0]))
    assert not gather(make("one", "shallow"), store)[2].worked


def test_a_pass_for_several_goes_on_from_its_checkpoint(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make("one", "two", "shallow")
    undisturbed, ids, _ = gather(settings)
    with interrupted(monkeypatch, 8), Store.create(settings.database) as store:  # the second dictionary of the third batch
        gather(settings, store)
    assert (settings.folder / "collect.checkpoint.npz").is_file()
    with Store.create(settings.database) as store:
        gather(settings, store)
        for collection in ids:
            assert_same(rows_of(store, collection), rows_of(undisturbed, collection))


def test_two_replicas_give_the_rows_of_one(make: Callable[..., Settings]) -> None:
    one, ids, _ = gather(make("one", "shallow", subject__device="cpu"))
    two, same, _ = gather(make("one", "shallow", subject__device="cpu,cpu"))
    assert same == ids
    for collection in ids:
        assert_same(rows_of(two, collection), rows_of(one, collection))


def test_two_replicas_share_the_work(make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    run_by: Counter[int] = Counter()
    launch = sweep.launch

    def noted(replica: sweep.Replica, *given: Any) -> sweep.Flight:
        run_by.update([id(replica)])
        return launch(replica, *given)

    monkeypatch.setattr(sweep, "launch", noted)
    settings = make("one", subject__device="cpu,cpu")
    gather(settings)
    batches = n_batches(settings)
    assert sorted(run_by.values()) == [batches // 2, batches - batches // 2]


# -- some features alone -----------------------------------------------------------------------------------------------


def of_features(store: Store, collection: str, features: list[int]) -> dict[str, list[Any]]:
    """What is kept of these features, without the collection's id; panels cut to them."""
    listed = ", ".join(map(str, features))
    where = f"WHERE collection_id = '{collection}'"
    found = {
        table: store.query(
            f"SELECT * EXCLUDE collection_id FROM {table} {where} AND feature IN ({listed}) ORDER BY ALL"
        )[1]
        for table in ("feature", "excerpt")
    }
    panel = store.query(f"SELECT split, passage_id, features, positions, activations FROM panel {where} ORDER BY ALL")[1]
    found["panel"] = [
        (split, passage, [entry for entry in zip(*entries) if entry[0] in features])
        for split, passage, *entries in panel
    ]
    counts = "n_tokens, n_passages, n_documents, n_panel, n_masked, width"
    found["collection"] = store.query(f"SELECT {counts} FROM collection {where}")[1]
    return found


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("one", [5]), ("one", [3, 17, 40]), ("one", [*range(0, 64, 2)]),
    ],
)  # fmt: skip
def test_features_collected_alone_get_the_rows_of_the_full_run(
    make: Callable[..., Settings], name: str, wanted: list[int]
) -> None:
    full, (whole,), _ = gather(make(name))
    text = ",".join(map(str, reversed(wanted)))
    some, (part,), _ = gather(make(name, collect__features=text))
    assert part != whole
    expected = of_features(full, whole, wanted)
    assert len(expected["excerpt"]) > 5 * len(wanted)
    assert any(entries for *_, entries in expected["panel"])
    assert of_features(some, part, wanted) == expected
    # Nothing is kept of the others: they have no row, rather than rows of zeros.
    for table in ("feature", "excerpt"):
        assert {f for (f,) in some.query(f"SELECT DISTINCT feature FROM {table}")[1]} <= set(wanted)
    assert len(some.query("SELECT feature FROM feature")[1]) == len(wanted)
    assert {f for (f,) in some.query("SELECT DISTINCT unnest(features) FROM panel")[1]} <= set(wanted)


@pytest.mark.parametrize("wanted", [[5], [3, 17, 40], [*range(0, 64, 2)]])
def test_features_of_a_standard_dictionary_collected_alone_have_the_figures_of_the_full_run(
    make: Callable[..., Settings], wanted: list[int]
) -> None:
    full, (whole,), _ = gather(make("two"))
    some, (part,), _ = gather(make("two", collect__features=",".join(map(str, wanted))))
    everything, found = full.features(whole), some.features(part)
    assert found["encoded"].nonzero()[0].tolist() == wanted
    for name in ("n_tokens", "n_passages", "n_documents"):
        # A value beside zero may fire in one product and not in the other: no count is off by more than that.
        np.testing.assert_allclose(found[name][:, wanted], everything[name][:, wanted], atol=1, err_msg=name)
    for name in ("sum", "max"):
        np.testing.assert_allclose(found[name][:, wanted], everything[name][:, wanted], rtol=1e-4, atol=1e-5)
    assert everything["n_tokens"][:, wanted].sum(axis=0).min() > 20


def test_the_order_and_repetition_of_features_is_no_other_collection(make: Callable[..., Settings]) -> None:
    def identity(text: str) -> str:
        return prepare(make("two", collect__features=text)).targets[0].keys.collection_id

    assert identity("9,3,9, 40") == identity("3,9,40") == identity("two/3,two/40,9") != identity("3,9")


def test_features_of_several_dictionaries_are_given_by_name(make: Callable[..., Settings]) -> None:
    store, ids, _ = gather(make("one", "two", collect__features="one/3,two/5,two/6,60"))
    found = [store.query(f"SELECT feature FROM feature WHERE collection_id = '{i}' ORDER BY ALL")[1] for i in ids]
    assert found == [[(3,), (60,)], [(5,), (6,), (60,)]]
    with pytest.raises(ConfigError, match="two"):
        gather(make("one", "two", collect__features="one/3"))
    with pytest.raises(ConfigError, match="64"):
        gather(make("one", "two", collect__features="one/3,two/64"))
    with pytest.raises(ConfigError, match="three/3"):
        gather(make("one", "two", collect__features="three/3,5"))


def test_features_that_were_left_out_cannot_be_selected(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path
) -> None:
    asked = {"collect.features": "3,17,40", "corpus.tokens": 12000}
    ended = autointerp("collect", *sets(quick_overrides(tiny, tmp_path, **asked, **{"features.select": "3,17"})))
    assert ended.code == 0, ended
    refused(
        autointerp("explain", *sets(quick_overrides(tiny, tmp_path, **asked, **{"features.select": "3,18"}))),
        "18", "collect.features",
    )  # fmt: skip


def test_features_that_were_left_out_are_refused_before_any_work(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path
) -> None:
    asked = {"collect.features": "3,17,40", "corpus.tokens": 12000, "features.select": "3,18"}
    refused(autointerp("run", *sets(quick_overrides(tiny, tmp_path / "r", **asked))), "18")
    assert not (tmp_path / "r").exists()


def test_a_run_on_some_features_labels_them(autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path) -> None:
    asked = {"collect.features": "3,17,40,41", "corpus.tokens": 16000, "features.select": "all"}
    asked |= {"features.max_density": 1.0, "features.min_documents": 1, "features.min_passages": 1}
    given = sets(quick_overrides(tiny, tmp_path, **asked))
    ended = autointerp("run", *given)
    assert ended.code == 0, ended
    (found,) = json.loads(f"[{autointerp('report', '--json', *given).out}]")
    assert [label["feature"] for label in found["labels"]] == [3, 17, 40, 41]
    assert autointerp("show", "17", *given).code == 0
    ended = autointerp("show", "18", *given)
    assert ended.code == 0, ended
    assert "not encoded" in ended.out


# -- the whole pipeline ------------------------------------------------------------------------------------------------


class Run:
    """A finished run of two dictionaries."""

    def __init__(self, folder: Path, saes: dict[str, Path], tiny: dict[str, Path]) -> None:
        self.config, self.results = folder / "several.toml", folder / "results"
        self.config.write_text(toml(saes, "one", "shallow"))
        given = quick_overrides(tiny, self.results, **{"corpus.tokens": 16000, "features.select": "random:3"})
        self.overrides = without_dictionary(given)
        self.arguments = ["-c", str(self.config), *sets(self.overrides)]
        self.folder = self.results / "t"


@pytest.fixture(scope="module")
def several(tiny: dict[str, Path], saes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two dictionaries at two hookpoints; read-only, but for what commands write anew."""
    run = Run(tmp_path_factory.mktemp("several"), saes, tiny)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ending:
        patch.setattr("sys.argv", ["autointerp", "run", *run.arguments])
        test_cli.cli.main()
        raise SystemExit(0)
    assert not ending.value.code
    return run


def test_run_labels_every_dictionary_and_writes_a_page_for_each(several: Run) -> None:
    assert sorted(p.name for p in several.folder.iterdir()) == [
        "label-vectors.npz", "labels.jsonl", "labels.parquet", "report-one.html", "report-shallow.html", "run.duckdb"
    ]  # fmt: skip
    labelled = query(
        several.folder / "run.duckdb",
        "SELECT c.dictionary, count(DISTINCT s.feature) FROM score s JOIN collection c USING (collection_id) "
        "WHERE s.split = 'score' AND s.metric = 'r_rank' AND s.status = 'ok' GROUP BY ALL ORDER BY ALL",
    )
    assert labelled == [("one", 3), ("shallow", 3)]
    runs = query(several.folder / "run.duckdb", "SELECT dictionary, place, len(features) FROM run ORDER BY place")
    assert runs == [("one", 0, 3), ("shallow", 1, 3)]
    for name, other in (("one", "shallow"), ("shallow", "one")):
        page = (several.folder / f"report-{name}.html").read_text()
        assert f"{name}/" in page
        assert f"{other}/" not in page


def test_each_dictionary_gets_the_labels_and_grades_of_a_run_with_it_alone(
    several: Run, saes: dict[str, Path], autointerp: Autointerp, tmp_path: Path
) -> None:
    for name in ("one", "shallow"):
        (tmp_path / "alone.toml").write_text(toml(saes, name))
        ended = autointerp(
            "run", "-c", tmp_path / "alone.toml", *sets([*several.overrides, f"run.results={tmp_path / name}"])
        )
        assert ended.code == 0, ended
    found = everything(several.folder / "run.duckdb")
    alone = [everything(tmp_path / name / "t" / "run.duckdb") for name in ("one", "shallow")]
    both = {table: sorted(alone[0][table] + alone[1][table]) for table in found if table != "run"}
    assert len(both["score"]) > 10
    assert_same({table: found[table] for table in both}, both)


def test_exports_hold_every_dictionary(several: Run, autointerp: Autointerp, tmp_path: Path) -> None:
    table = pq.read_table(several.folder / "labels.parquet").to_pylist()
    lines = [json.loads(line) for line in (several.folder / "labels.jsonl").read_text().splitlines()]
    assert table == lines
    assert Counter(row["feature_id"].split("/")[0] for row in table) == {"one": 3, "shallow": 3}
    assert {row["feature_id"].split("/")[0]: row["hookpoint"] for row in table} == {
        name: HOOKPOINTS[name] for name in ("one", "shallow")
    }
    out = tmp_path / "some.jsonl"
    assert autointerp("export", several.folder, "-f", "jsonl", "-o", out, "--dictionary", "shallow").code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == [r for r in lines if r["feature_id"][0] == "s"]


def test_report_prints_every_dictionary_or_the_one_that_is_asked_for(several: Run, autointerp: Autointerp) -> None:
    both = json.loads(autointerp("report", several.folder, "--json").out)
    assert [[label["feature_id"].split("/")[0] for label in one["labels"]] for one in both] == [
        ["one"] * 3, ["shallow"] * 3
    ]  # fmt: skip
    one = json.loads(autointerp("report", several.folder, "--json", "--dictionary", "shallow").out)
    assert one == both[1]
    ended = autointerp("report", several.folder, "-d", "shallow")
    assert "report-shallow.html" in ended.out
    assert "report-one.html" not in ended.out
    refused(autointerp("report", several.folder, "-d", "none"), "none", "one", "shallow")


def test_show_finds_the_feature_of_the_dictionary_that_is_named(several: Run, autointerp: Autointerp) -> None:
    for name in ("one", "shallow"):
        for ended in (
            autointerp("show", f"{name}/3", several.folder, "--json"),
            autointerp("show", "3", several.folder, "--json", "--dictionary", name),
            autointerp("show", f"{name}/3", several.folder, "--json", "--dictionary", name),
        ):
            assert ended.code == 0, ended
            found = json.loads(ended.out)
            assert found["feature_id"] == f"{name}/3"
            assert found["max_activation"] == pytest.approx(_largest(several, name), rel=1e-6)
    assert _largest(several, "one") != _largest(several, "shallow")
    refused(autointerp("show", "none/3", several.folder), "none/3")
    refused(autointerp("show", "shallow/3", several.folder, "-d", "one"), "shallow/3")
    refused(autointerp("show", "shallow/50", several.folder), "48")


def _largest(several: Run, name: str) -> float:
    found = query(
        several.folder / "run.duckdb",
        "SELECT list_max(f.max) FROM feature f JOIN collection USING (collection_id) WHERE dictionary = ? AND feature = 3",
        name,
    )
    return float(found[0][0])


def test_a_run_again_finds_nothing_pending(several: Run, autointerp: Autointerp, tmp_path: Path) -> None:
    shutil.copytree(several.results, tmp_path / "results")
    ended = autointerp("run", *several.arguments, "--set", f"run.results={tmp_path / 'results'}")
    assert ended.code == 0, ended
    said = [line.split(": ")[1] for line in ended.err.splitlines()]
    assert said == ["nothing pending"] * 16  # one collect, seven stages for each dictionary, one grouping


def test_labels_of_all_dictionaries_are_grouped_together(several: Run, autointerp: Autointerp) -> None:
    database = several.folder / "run.duckdb"
    assert query(database, "SELECT count(DISTINCT grouping_id), count(*) FROM category") == [(1, 6)]
    assert query(database, "SELECT count(*) FROM run SEMI JOIN category USING (grouping_id)") == [(2,)]
    every = json.loads(autointerp("categories", several.folder, "--json").out)
    of = {feature["feature_id"]: category["category"] for category in every for feature in category["features"]}
    assert {feature.partition("/")[0] for feature in of} == {"one", "shallow"} and len(of) == 6
    one = json.loads(autointerp("categories", several.folder, "-d", "one", "--json").out)
    found = {feature["feature_id"]: category["category"] for category in one for feature in category["features"]}
    assert found == {feature: category for feature, category in of.items() if feature.startswith("one/")}


def test_features_are_selected_by_name(several: Run, autointerp: Autointerp, tmp_path: Path) -> None:
    shutil.copytree(several.results, tmp_path / "results")
    arguments = [*several.arguments, "--set", f"run.results={tmp_path / 'results'}"]
    ended = autointerp("run", *arguments, "--set", "features.select=one/3,shallow/5,shallow/7")
    assert ended.code == 0, ended
    found = json.loads(autointerp("report", *arguments, "--json").out)
    assert [[label["feature_id"] for label in one["labels"]] for one in found] == [["one/3"], ["shallow/5", "shallow/7"]]
    refused(autointerp("run", *arguments, "--set", "features.select=one/3,shallow/48"), "shallow/48")
    refused(autointerp("run", *arguments, "--set", "features.select=one/3,none/4"), "none/4")
    # Features of one dictionary alone leave the other without any, and that is no error.
    ended = autointerp("run", *arguments, "--set", "features.select=shallow/5")
    assert ended.code == 0, ended


# -- refused -----------------------------------------------------------------------------------------------------------


def test_a_key_of_several_dictionaries_cannot_be_set_from_the_command_line(several: Run, autointerp: Autointerp) -> None:
    refused(autointerp("config", "-c", several.config, "--set", "dictionary.name=x"), "dictionary.name", "2")


def test_two_dictionaries_of_one_name_are_refused(
    tiny: dict[str, Path], saes: dict[str, Path], autointerp: Autointerp, tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    given = sets(without_dictionary(tiny_overrides(tiny, tmp_path / "r")))
    file.write_text(toml(saes, "one", "one"))
    refused(autointerp("collect", "-c", file, *given), "'one'")
    file.write_text(toml(saes, "one", "shallow") + "name = 'one'")
    refused(autointerp("collect", "-c", file, *given), "'one'")
    assert not (tmp_path / "r").exists()


def test_one_dictionary_under_two_names_is_two(make: Callable[..., Settings], saes: dict[str, Path], tmp_path: Path) -> None:
    settings = make("one")
    twice = tuple(settings.dictionary[0].model_copy(update={"name": name}) for name in ("a", "b"))
    store, ids, _ = gather(settings.model_copy(update={"dictionary": twice}))
    assert ids[0] != ids[1]
    same = {i: of_features(store, i, [*range(64)]) for i in ids}
    strip = [[(f, *rest) for f, _, *rest in same[i]["feature"]] for i in ids]
    assert strip[0] == strip[1]
    assert same[ids[0]]["excerpt"] == same[ids[1]]["excerpt"]


def test_pages_of_dictionaries_whose_names_differ_in_a_sign_are_two_pages(
    tiny: dict[str, Path], saes: dict[str, Path], autointerp: Autointerp, tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    one, two = toml(saes, "one"), toml(saes, "shallow")
    file.write_text(f"{one}name = 'a b'\n{two}name = 'a_b'\n")
    given = {"corpus.tokens": 16000, "features.select": "random:1", "explainer.candidates": 1}
    arguments = ["-c", file, *sets(without_dictionary(quick_overrides(tiny, tmp_path / "r", **given)))]
    ended = autointerp("run", *arguments)
    assert ended.code == 0, ended
    assert len(list((tmp_path / "r" / "t").glob("report-*.html"))) == 2


@pytest.mark.parametrize("text", ["", "64", "-1", "x", "other/3", "3,,x"])
def test_features_that_mean_nothing_are_refused_before_any_work(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(Subject, "load", classmethod(lambda *_: pytest.fail("the subject was loaded")))
    with pytest.raises(ConfigError, match=r"collect\.features"):
        gather(make("one", collect__features=text))


def test_every_kind_of_collection_has_its_tables(make: Callable[..., Settings]) -> None:
    store, ids, _ = gather(make("one", "shallow"))
    for table in COLLECTED:
        assert {i for (i,) in store.query(f"SELECT DISTINCT collection_id FROM {table}")[1]} == set(ids)
    assert set(COLLECTED) <= {name for (name,) in store.query("SELECT table_name FROM duckdb_tables()")[1]}
