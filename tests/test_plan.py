"""What a run will cost is known before it runs: the real prompts, counted, without asking anybody."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autointerp import config, explainers, plan
from autointerp.config import EXPLAINERS
from autointerp.explainers.replies import Given
from autointerp.pipeline import Pipeline, prepare
from autointerp.rehearsal import stand_in
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar

from .llm_server import Server
from .test_logprob import tokenizer_of
from .test_pipeline import quick_overrides

PAID: dict[str, Any] = {
    "explainer__methods": '["marks"]', "explainer__provider": "openai", "explainer__model": "gpt-6-luna",
    "simulator__kind": "chat", "simulator__provider": "openai", "simulator__model": "gpt-6-sol",
    "judge__kinds": '["detection", "fuzzing"]', "judge__chooses": "true", "judge__provider": "anthropic",
}  # fmt: skip


def planned(settings: config.Settings) -> tuple[plan.Cost, dict[str, plan.Estimate]]:
    with Bar(enabled=False) as bar:
        cost, prepared = plan.probe(settings, bar)
    size = plan.size_of(settings, prepared)
    sizes = {"this configuration": size, "at scale": plan.scaled(size, 1e9, 1e5)}
    return cost, {name: plan.estimate(settings, prepared, cost, found) for name, found in sizes.items()}


@pytest.fixture(scope="module")
def paid(tiny: dict[str, Path]) -> tuple[config.Settings, plan.Cost, dict[str, plan.Estimate]]:
    settings = config.load(None, quick_overrides(tiny, tiny["root"] / "planned", **PAID))
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
            patch.delenv(variable, raising=False)
        return settings, *planned(settings)


def test_nobody_is_asked_and_no_key_is_needed(
    paid: tuple[config.Settings, plan.Cost, dict[str, plan.Estimate]],
) -> None:
    settings, cost, _ = paid
    assert set(cost.asked) == {"explain", "simulate", "judge"}
    assert {stage: use.model for stage, use in cost.asked.items()} == {
        "explain": "gpt-6-luna", "simulate": "gpt-6-sol", "judge": "claude-haiku-5-5",
    }  # fmt: skip
    assert not settings.folder.exists(), "a plan leaves nothing behind"


def test_the_sums_of_the_table(paid: tuple[config.Settings, plan.Cost, dict[str, plan.Estimate]]) -> None:
    settings, cost, estimates = paid
    rows = {row.model: row for row in settings.price}
    found = estimates["at scale"]
    nulls = 50 * (settings.score.nulls > 0)
    for stage, n in (("explain", 1e5), ("simulate", 1e5 + nulls), ("judge", 1e5)):
        use, probed = found.asked[stage], cost.asked[stage]
        # 40 passages in fives; detection of 24 on both splits and fuzzing on one
        calls = max({"simulate": 8, "judge": 15}.get(stage, 0), probed.calls)
        assert use.calls == pytest.approx(calls * n)
        assert use.input_tokens == pytest.approx(probed.input_tokens * n * calls / probed.calls)
        assert use.input_tokens > 100 * n
        assert use.usd == pytest.approx(
            (use.input_tokens * rows[use.model].input + use.output_tokens * rows[use.model].output) / 1e6
        )
    assert found.usd == pytest.approx(sum(use.usd or 0 for use in found.asked.values()))
    assert len(found.prices) == 3 and set(found.prices) <= set(rows)
    everything = (sum(u.input_tokens for u in found.asked.values()), sum(u.output_tokens for u in found.asked.values()))
    for model, usd in found.prices.items():
        assert usd == pytest.approx((everything[0] * rows[model].input + everything[1] * rows[model].output) / 1e6)
    assert list(found.prices.values()) == sorted(found.prices.values())
    at_any = [(everything[0] * row.input + everything[1] * row.output) / 1e6 for row in rows.values()]
    assert list(found.prices.values())[::2] == pytest.approx([min(at_any), max(at_any)])


def test_the_json_and_the_table_say_the_same(
    paid: tuple[config.Settings, plan.Cost, dict[str, plan.Estimate]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, cost, estimates = paid
    found = json.loads(json.dumps(plan.as_json(cost, estimates)))["at scale"]
    assert found["usd"] == pytest.approx(estimates["at scale"].usd)
    plan.to_terminal(cost, estimates, Console(width=300))
    said = capsys.readouterr().out
    for use in estimates["at scale"].asked.values():
        assert f"{use.model}: {use.calls:,.0f} calls, {use.input_tokens:,.0f} tokens in, {use.output_tokens:,.0f} out" in said
    for model, usd in found["prices"].items():
        assert f"{model} ${usd:,.2f}" in said
    assert "counted with the subject's tokenizer" in said


def test_an_unknown_price_is_said_and_not_nothing(tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"explainer__methods": '["marks"]', "explainer__provider": "openai", "explainer__model": "my-own"}
    cost, estimates = planned(config.load(None, quick_overrides(tiny, tiny["root"] / "planned", **changes)))
    assert estimates["at scale"].usd is None and cost.asked["explain"].usd is None
    plan.to_terminal(cost, estimates, Console(width=300))
    assert "unknown" in capsys.readouterr().out
    assert len(estimates["at scale"].prices) == 3


def test_a_run_without_models_costs_nothing(tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    cost, estimates = planned(config.load(None, quick_overrides(tiny, tiny["root"] / "planned")))
    assert cost.asked == {} and estimates["at scale"].usd == 0 and estimates["at scale"].prices == {}
    plan.to_terminal(cost, estimates, Console(width=300))
    assert "$" not in capsys.readouterr().out


def test_a_plan_is_near_what_the_run_then_asks(
    paid: tuple[config.Settings, plan.Cost, dict[str, plan.Estimate]], tiny: dict[str, Path], tmp_path: Path
) -> None:
    """The same stages over HTTP: as many calls of each stage for a feature, and about as many characters sent."""
    _, cost, _ = paid

    def says(asked: Any) -> str:
        body = asked.body
        schema = body["response_format"]["json_schema"] if "response_format" in body else body["output_config"]["format"]
        return stand_in(schema["schema"], asked.last, 3)

    with Server(says=says) as server:
        where = {
            f"{s}__{k}": v for s in ("explainer", "simulator", "judge")
            for k, v in (("provider", "openai"), ("base_url", server.openai), ("model", "m"))
        }  # fmt: skip
        made = quick_overrides(tiny, tmp_path, **(PAID | where | {"score__nulls": 0, "features__select": "random:4"}))
        settings = config.load(None, made)
        with Store.create(settings.database) as store, Bar(enabled=False) as bar:
            pipeline = Pipeline(store, prepare(settings), bar, lambda _: None)
            pipeline.all()
            n = len(pipeline.labellings[0].grading.run.features or [])
            spent = {row["stage"]: row for row in store.spending()}
    assert set(spent) == set(cost.asked)
    for stage, use in cost.asked.items():
        assert spent[stage]["calls"] / n == pytest.approx(use.calls, rel=0.35), stage
        assert spent[stage]["unusable"] == 0


@pytest.mark.parametrize("method", ["marks", "contrastive", "token-act"])
def test_a_plan_counts_as_many_excerpts_as_a_run_shows(method: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    """The probe's text holds few passages of a feature; tokens sent are those of a prompt that is full."""
    changes: dict[str, Any] = {
        "explainer__methods": f'["{method}"]', "explainer__provider": "openai", "explainer__model": "m",
        "explainer__base_url": "http://127.0.0.1:9", "collect__sample_explain": 120, "collect__top": 120,
        "explainer__excerpts": 120, "features__select": "random:12", "features__min_passages": 120,
    }  # fmt: skip
    cost, _ = planned(config.load(None, quick_overrides(tiny, tmp_path / "planned", **changes)))

    def says(asked: Any) -> str:
        return stand_in(asked.body["response_format"]["json_schema"]["schema"], asked.last, 3)

    with Server(says=says) as server:
        changes["explainer__base_url"] = server.openai
        settings = config.load(None, quick_overrides(tiny, tmp_path, **changes))
        with Store.create(settings.database) as store, Bar(enabled=False) as bar:
            pipeline = Pipeline(store, prepare(settings), bar, lambda _: None)
            pipeline.collect()
            pipeline.labellings[0].explain()
    tokenizer = Subject.reader(settings.subject).tokenizer
    sent = [sum(len(tokenizer(text)["input_ids"]) for _, text in asked.chat) for asked in server.log]
    assert cost.asked["explain"].input_tokens == pytest.approx(sum(sent) / len(sent), rel=0.1)


@pytest.mark.parametrize("ten", ["two tokens", "one token"])
def test_a_plan_of_prompts_that_a_server_reads(ten: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    where = tiny["subject"]
    if ten == "one token":
        where = tmp_path / "served"
        shutil.copytree(tiny["subject"], where)
        tokenizer_of(tiny, ten).save_pretrained(where)
    changes = {
        "simulator__kind": "logprob", "simulator__provider": "openai", "simulator__model": "m", "simulator__passages": 12,
        "simulator__base_url": "http://127.0.0.1:9/v1", "simulator__tokenizer": where,
    }  # fmt: skip
    cost, estimates = planned(config.load(None, quick_overrides(tiny, tmp_path, **changes)))
    use, scaled = cost.asked["simulate"], estimates["at scale"].asked["simulate"]
    per_passage = 1 if ten == "one token" else 2
    assert scaled.calls / (1e5 + 50) == pytest.approx(12 * per_passage)
    assert use.input_tokens / use.calls > (2_000 if ten == "one token" else 30_000), "a prompt for every token"


# -- replies that stand in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [m for m in EXPLAINERS if m != "mined"])
def test_a_reply_that_stands_in_is_understood(method: str) -> None:
    found, _ = explainers.named(method)
    text = stand_in(json.loads(json.dumps(found.schema(3, 12))), "an excerpt", 3)
    candidates = found.read(text, Given(["an excerpt about money"]), 3, 12)
    assert all(candidate.label for candidate in candidates) and len(candidates) == (3 if found.one_reply else 1)
