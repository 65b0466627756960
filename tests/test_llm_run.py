"""A run whose model is behind a server: switching providers, budgets, and what a user can get wrong, from the command line."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from autointerp import config
from autointerp.errors import ConfigError
from autointerp.keys import explainer_id
from autointerp.llm import Model
from autointerp.store import Store

from . import test_cli
from .llm_server import Asked, Server
from .test_cli import Autointerp, refused, sets
from .test_pipeline import finished_run, quick_overrides

autointerp = test_cli.autointerp  # the fixture that runs a command in this process

SERVED = {"openai": "gpt-6-luna", "anthropic": "claude-haiku-5-5"}
BOTH = pytest.mark.parametrize("provider", sorted(SERVED))


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(variable, "test-key-secret")


@pytest.fixture
def results(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with a copy of the finished run, `t`."""
    shutil.copytree(finished_run(tiny), tmp_path / "t")
    return tmp_path


def asking(tiny: dict[str, Path], results: Path, **changes: object) -> list[str]:
    """--set options of a run that asks a model."""
    given: dict[str, object] = {"explainer__methods": '["llm"]', "llm__timeout_s": 60, "llm__tries": 3}
    return sets(quick_overrides(tiny, results, **(given | changes)))


def served(server: Server, provider: str) -> dict[str, object]:
    return {
        "explainer__provider": provider, "explainer__model": SERVED[provider],
        "explainer__base_url": getattr(server, provider),
    }  # fmt: skip


def says(asked: Asked) -> str:
    return f"words of kind {asked.number}"


def test_labels_of_both_providers_and_of_counts_are_in_one_database(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path
) -> None:
    with Server(says=says) as server:
        for provider in SERVED:
            ended = autointerp("explain", *asking(tiny, results, **served(server, provider)))
            assert ended.code == 0, ended
            assert "explain: 6 ok" in ended.err
        ended = autointerp("explain", *asking(tiny, results, **served(server, "openai")))
        assert "nothing pending" in ended.err
        assert len(server.log) == 12
    with Store.read(results / "t" / "run.duckdb") as store:
        found = store.query("SELECT method, model, count(DISTINCT feature) FROM explanation GROUP BY ALL ORDER BY ALL")[1]
        spent = store.spending()
    assert found == [("marks", "claude-haiku-5-5", 6), ("marks", "gpt-6-luna", 6), ("mined", None, 6)]
    assert [(line["stage"], line["provider"], line["calls"], line["unpriced"]) for line in spent] == [
        ("explain", "anthropic", 6, 0), ("explain", "openai", 6, 0)
    ]  # fmt: skip
    assert all(line["usd"] > 0 for line in spent)


def test_labels_of_both_providers_and_of_counts_are_compared_in_one_report(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path
) -> None:
    with Server(says=says) as server:
        other = f"marks@anthropic/claude-haiku-5-5@{server.anthropic}"
        options = asking(
            tiny, results, **(served(server, "openai") | {"explainer__methods": f'["mined", "marks", "{other}"]'})
        )
        ended = autointerp("run", *options)
        assert ended.code == 0, ended
        assert Counter(asked.body["model"] for asked in server.log) == {"gpt-6-luna": 6, "claude-haiku-5-5": 6}
        assert "nothing pending" in autointerp("explain", *options).err
    found = json.loads(autointerp("report", results / "t", "--json").out)
    compared = found["by_explainer"]
    assert set(compared) == {"mined", "marks (openai/gpt-6-luna)", "marks (anthropic/claude-haiku-5-5)"}
    assert sum(row["chosen"] for row in compared.values()) == 6
    for row in compared.values():
        assert (row["labelled"], row["graded"], row["on"]) == (6, 6, "score")
        assert (row["calls"], row["usd"] > 0) == ((0, False) if row["method"] == "mined" else (6, True))
    assert [(line["provider"], line["calls"]) for line in found["spent"]] == [("anthropic", 6), ("openai", 6)]
    assert sum(row["usd"] for row in compared.values()) == pytest.approx(sum(line["usd"] for line in found["spent"]))


def test_before_anything_is_graded_the_report_says_so_and_gives_no_means(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path
) -> None:
    with Server(says=says) as server:
        options = asking(tiny, results, **served(server, "openai"), explainer__methods='["mined", "marks"]')
        assert autointerp("explain", *options).code == 0
    found = json.loads(autointerp("report", results / "t", "--json").out)["by_explainer"]
    assert [(row["mean"], row["behind"], row["graded"]) for row in found.values()] == [(None, None, 0)] * 2
    assert "nothing has been graded (lost: 6 not_scored)" in autointerp("report", results / "t").out


def test_a_run_of_every_stage_on_a_served_model(autointerp: Autointerp, tiny: dict[str, Path], results: Path) -> None:
    with Server(says=says) as server:
        ended = autointerp("run", *asking(tiny, results, **served(server, "anthropic")))
    assert ended.code == 0, ended
    ended = autointerp("report", results / "t", "--json")
    figures = json.loads(ended.out)["llm"]
    assert (figures["calls"], figures["unpriced"]) == (6, 0)
    assert figures["usd"] > 0


def test_samples_that_said_the_same_are_among_the_costs_of_their_explainer(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path
) -> None:
    """Three draws of `structured` a feature, all alike: one row, three calls; and some of them repaired."""
    rules = json.dumps({
        "label": "words of walking", "rules": [{"trigger": ["walked"], "context": [], "strength": 5, "exceptions": []}]
    })  # fmt: skip

    def often(asked: Asked) -> str:
        return rules if asked.number % 4 else "that is hard"

    with Server(says=often) as server:
        options = asking(tiny, results, **served(server, "openai"), explainer__methods='["mined", "structured"]')
        assert autointerp("explain", *options).code == 0
        # Another limit of the reply is another explainer, with calls of its own.
        assert autointerp("explain", *options, "--set", "explainer.max_new_tokens=99").code == 0
        paid = len(server.log)
    found = json.loads(autointerp("report", results / "t", "--json").out)
    with Store.read(results / "t" / "run.duckdb") as store:
        (counts,) = store.query("SELECT count(*), count(repair_of) FROM call")[1]
    assert counts[0] == paid and counts[1] > 2
    (explainer,) = [row for row in found["by_explainer"].values() if row["method"] == "structured"]
    assert explainer["calls"] == found["llm"]["calls"]
    assert 6 * 3 <= explainer["calls"] <= paid / 2 + 3  # the halves may have had unlike numbers of repairs


def test_a_provider_that_no_method_asks_is_said(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = sets(quick_overrides(tiny, results, explainer__provider="anthropic"))
    assert autointerp("explain", *options).code == 0
    assert "explainer.provider = 'anthropic' is not used: no method asks a model" in caplog.text


@BOTH
def test_a_budget_stops_with_what_is_left_and_a_second_run_goes_on(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path, provider: str
) -> None:
    with Server(says=says) as server:
        options = asking(tiny, results, **served(server, provider), llm__max_in_flight=1)
        ended = autointerp("explain", "--budget-tokens", 2500, *options)
        assert ended.code == 2, ended
        done, left = len(server.log), 6 - len(server.log)
        assert 0 < done < 6
        assert f"left to ask: {left}" in ended.err
        assert f"explain: {done} ok, {left} budget_spent" in ended.err
        assert "run again to go on: a budget is for one command" in ended.err
        ended = autointerp("explain", *options)
        assert ended.code == 0, ended
        assert f"explain: {left} ok" in ended.err
        assert len(server.log) == 6


def test_a_run_that_its_budget_stopped_does_not_go_on_to_later_stages(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path
) -> None:
    with Server(says=says) as server:
        ended = autointerp("run", "--budget-usd", "0.0000001", *asking(tiny, results, **served(server, "openai")))
    assert ended.code == 2
    assert "the budget of $1e-07 is spent ($0.0000 in 0 calls); left to ask: 6" in ended.err
    assert "simulate" not in ended.err
    assert server.log == []


def test_a_server_that_dies_half_way_leaves_the_rest_pending(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path
) -> None:
    with Server(says=says, plan=lambda asked: "ok" if asked.number < 3 else "500") as server:
        options = asking(tiny, results, **served(server, "openai"), llm__tries=1)
        ended = autointerp("explain", *options)
        assert ended.code == 2, ended
        assert "explain: 3 ok, 3 unreachable" in ended.err
        assert ended.err.rstrip().endswith("not whole: no model answered for what is left of explain 3; run it again to go on")
        server.plan = lambda asked: "ok"
        ended = autointerp("explain", *options)
        assert (ended.code, "explain: 3 ok" in ended.err) == (0, True)


def test_a_run_without_an_answer_ends_with_its_report_and_says_that_it_is_not_whole(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path
) -> None:
    with Server(plan=lambda asked: "500") as server:
        options = asking(tiny, results, **served(server, "openai"), llm__tries=1)
        ended = autointerp("run", *options)
    assert ended.code == 2, ended
    assert "report.html" in ended.out
    assert ended.err.rstrip().endswith("not whole: no model answered for what is left of explain 6; run it again to go on")


# -- bad input ---------------------------------------------------------------------------------------------------------


@BOTH
def test_a_missing_key_is_named_before_any_work(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    ended = autointerp("run", *asking(tiny, tmp_path / "none", explainer__provider=provider))
    refused(ended, f"{provider.upper()}_API_KEY", "environment", SERVED[provider])
    assert not (tmp_path / "none").exists()


def test_a_server_of_ones_own_needs_no_key(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with Server(says=says) as server:
        assert autointerp("explain", *asking(tiny, results, **served(server, "openai"))).code == 0


@BOTH
@pytest.mark.parametrize(("kind", "said"), [("401", "API_KEY"), ("404", "no such model"), ("html", "no such API")])
def test_what_a_server_refuses_is_one_line(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path, provider: str, kind: str, said: str
) -> None:
    with Server(plan=lambda asked: kind) as server:
        ended = autointerp("explain", *asking(tiny, results, **served(server, provider)))
    refused(ended, said)
    assert "secret" not in ended.err
    with Store.read(results / "t" / "run.duckdb") as store:
        assert store.query("SELECT count(*) FROM explanation WHERE method = 'llm'")[1] == [(0,)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"explainer__provider": "opneai"}, ["explainer.provider", "did you mean 'openai'"]),
        ({"explainer__provider": "openai", "explainer__base_url": "localhost:8000"}, ["explainer.base_url", "http://"]),
        ({"explainer__provider": "openai", "explainer__base_url": "http://me:pw@host/v1"}, ["explainer.base_url", "environment"]),
        ({"explainer__provider": "openai", "explainer__base_url": "http://host/v1"}, ["name a model"]),
        ({"explainer__base_url": "http://host/v1"}, ["set provider to openai"]),
        ({"llm__budget_usd": -1}, ["llm.budget_usd", "greater than or equal to 0"]),
        ({"llm__budget_tokens": -1}, ["llm.budget_tokens", "greater than or equal to 0"]),
        ({"llm__budget_usd": "nan"}, ["llm.budget_usd"]),
        ({"llm__max_in_flight": 0}, ["llm.max_in_flight"]),
        ({"llm__tries": 0}, ["llm.tries"]),
        ({"llm__timeout_s": 0}, ["llm.timeout_s"]),
        (
            {"explainer__provider": "openai", "explainer__model": "my/own", "llm__budget_usd": 1},
            ["llm.budget_usd", "[[price]]", 'model = "my/own"'],
        ),
    ],
)  # fmt: skip
def test_a_bad_setting_is_one_line_before_any_work(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path, changes: dict[str, object], said: list[str]
) -> None:
    refused(autointerp("run", *asking(tiny, tmp_path / "none", **changes)), *said)
    assert not (tmp_path / "none").exists()


def test_a_budget_of_nothing_or_less_is_refused_as_an_option_and_zero_among_the_settings_is_no_limit(
    autointerp: Autointerp, tiny: dict[str, Path], results: Path
) -> None:
    with Server(says=says) as server:
        options = asking(tiny, results, **served(server, "openai"))
        refused(autointerp("explain", "--budget-usd", "-1", *options), "llm.budget_usd")
        for option in ("budget-usd", "budget-tokens"):
            key = "llm." + option.replace("-", "_")
            refused(autointerp("explain", f"--{option}", 0, *options), f"--{option} 0", f"{key}=0")
        assert server.log == []
        ended = autointerp("explain", *options, "--set", "llm.budget_usd=0", "--set", "llm.budget_tokens=0")
        assert ended.code == 0 and len(server.log) == 6


@BOTH
@pytest.mark.parametrize("key", ["test-key-secret\n", "test key", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_named_before_any_work(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, key: str
) -> None:
    monkeypatch.setenv(f"{provider.upper()}_API_KEY", key)
    for base_url in ("", "http://127.0.0.1:9"):
        changes = {"explainer__provider": provider, "explainer__model": "m", "explainer__base_url": base_url}
        ended = autointerp("run", *asking(tiny, tmp_path / "none", **changes))
        refused(ended, f"{provider.upper()}_API_KEY", "white space")
        assert key.strip() not in ended.err
    assert not (tmp_path / "none").exists()


# -- settings and keys -------------------------------------------------------------------------------------------------


def test_a_price_row_is_added_to_the_known_ones_or_replaces_one(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[[price]]\nmodel = "mine"\ninput = 1\noutput = 2\n\n[[price]]\nmodel = "gpt-6-luna"\ninput = 9\n')
    found = {row.model: row for row in config.load(file).price}
    assert (found["mine"].input, found["mine"].output) == (1, 2)
    assert (found["gpt-6-luna"].input, found["gpt-6-luna"].output) == (9, 0)
    assert found["claude-haiku-5-5"].input == 0.10
    assert len(found) == len(config.load(file).price) == len(config.PRICES) + 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[price]]\ninput = 1\n", "needs the model"),
        ('[[price]]\nmodel = "a"\n[[price]]\nmodel = "a"\n', "two .*'a'"),
        ('[[price]]\nmodel = "a"\ninput = -1\n', "price"),
        ('[[price]]\nmodel = "a"\nimput = 1\n', r"price\.imput.*did you mean 'price\.input'"),
    ],
)
def test_a_price_row_that_is_wrong_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        config.load(tmp_path / "a.toml")


def test_an_empty_model_is_the_providers_default() -> None:
    for provider, name in config.PROVIDERS.items():
        found = config.load(None, [f"explainer.provider={provider}"])
        assert config.model_of(found.explainer) == Model(provider, name)
    served = ["explainer.provider=openai", "explainer.model=m", "explainer.base_url=http://localhost:8000/v1/"]
    assert config.model_of(config.load(None, served).explainer) == Model("openai", "m", "http://localhost:8000/v1")


def test_providers_models_and_servers_are_explainers_of_their_own_and_the_default_is_what_it_was() -> None:
    changes: list[list[str]] = [
        [], ["explainer.provider=openai"], ["explainer.provider=anthropic"], ["explainer.model=a/b"],
        ["explainer.provider=openai", "explainer.model=m", "explainer.base_url=http://a/v1"],
        ["explainer.provider=openai", "explainer.model=m", "explainer.base_url=http://b/v1"],
    ]  # fmt: skip
    ids = [explainer_id(config.load(config.packaged_file(), change), "marks") for change in changes]
    assert len(set(ids)) == len(ids)
    named = config.load(config.packaged_file(), ["explainer.model=HuggingFaceTB/SmolLM2-135M-Instruct"])
    assert ids[0] == explainer_id(named, "marks")
    faster = config.load(config.packaged_file(), ["llm.max_in_flight=3", "llm.budget_usd=1", "explainer.batch=2"])
    assert ids[0] == explainer_id(faster, "marks")
