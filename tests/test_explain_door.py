"""Explainers through the real door: the SDKs over loopback, from every method to a round of revision."""

import json
from collections import Counter
from pathlib import Path

import pytest

from autointerp import config
from autointerp.pipeline import Pipeline, prepare
from autointerp.rows import Explanation
from autointerp.store import Store
from autointerp.tally import Bar

from . import test_llm_run
from .llm_server import Asked, Server
from .test_llm_run import SERVED
from .test_pipeline import quick_overrides

METHODS = ("marks", "contrastive", "token-act", "max-act-logits", "structured")
results = test_llm_run.results  # a folder with a copy of the finished run
_keys = test_llm_run._keys


def explained(
    tiny: dict[str, Path], results: Path, server: Server, provider: str = "openai", **changes: object
) -> list[Explanation]:
    """Every explanation of a run whose model is behind the server, rounds included."""
    given: dict[str, object] = {
        "explainer__provider": provider, "explainer__model": SERVED[provider],
        "explainer__base_url": getattr(server, provider), "llm__timeout_s": 60, "llm__tries": 3,
    }  # fmt: skip
    settings = config.load(None, quick_overrides(tiny, results, **(given | changes)))
    with Store.create(settings.database) as store, Bar(enabled=False) as bar:
        pipeline = Pipeline(store, prepare(settings), bar, lambda _: None)
        pipeline.all()
        run = pipeline.labellings[0].asked
        return store.explanations(run.collection_id, run.explainer_ids, run.features or [])


def says(asked: Asked) -> str:
    """What a good model says, in the form that it is asked for; three colours where it may."""
    system = asked.chat[0][1]
    if '"strength"' in system:
        rule = {"trigger": ["red", "/blu\\w{1,3}/"], "context": [], "strength": 5, "exceptions": []}
        return json.dumps({"label": "colours of places", "rules": [rule]})
    names = ("names", "verbs") if "Missed:" in asked.last else ("red, blue", "colours", "places")
    return "```json\n" + json.dumps({"labels": [f"{name} in tales" for name in names]}) + "\n```"


@pytest.mark.parametrize("provider", sorted(SERVED))
def test_all_methods_and_a_revision_are_rows_of_one_run(tiny: dict[str, Path], results: Path, provider: str) -> None:
    asked = {"explainer__methods": json.dumps(["mined", *METHODS]), "explainer__rounds": 1}
    with Server(says=says) as server:
        rows = explained(tiny, results, server, provider, **asked)
        n = len(server.log)
        again = explained(tiny, results, server, provider, **asked)
        assert len(server.log) == n == 6 * (4 + 3 + 1)
    assert again == rows
    found = Counter((row.method, row.status) for row in rows if row.method != "mined")
    assert found == {
        **{(method, "ok"): 18 for method in METHODS if method != "structured"},
        ("structured", "ok"): 6, ("revise-1", "ok"): 12,
    }  # fmt: skip
    with Store.read(results / "t" / "run.duckdb") as store:
        calls = store.calls([row.call_id or "" for row in rows])
        assert {call.model for call in calls.values()} == {SERVED[provider]}
        assert len(calls) == n - 12  # equal candidates of `structured` are one row
        assert len(store.chosen(store.latest_run())) == 6


def test_a_context_that_is_too_short_shows_fewer_excerpts(tiny: dict[str, Path], results: Path) -> None:
    def plan(asked: Asked) -> str:
        return "context" if asked.last.count("\n- ") > 6 else "ok"

    with Server(says=says, plan=plan) as server:
        rows = explained(tiny, results, server, explainer__methods='["marks"]', explainer__excerpts=12)
    assert {(row.status, row.excerpts) for row in rows} == {("ok", 6)}


def test_a_reply_without_a_label_is_asked_for_once_more_and_then_a_row(tiny: dict[str, Path], results: Path) -> None:
    def grudging(asked: Asked) -> str:
        return says(asked) if len(asked.chat) > 6 else "various words"

    with Server(says=grudging) as server:
        rows = explained(tiny, results, server, explainer__methods='["marks"]')
        assert {row.label for row in rows} >= {"colours in tales"}
        assert len(server.log) == 12
    with Server(says=lambda asked: "various words") as server:
        rows = explained(tiny, results, server, explainer__methods='["contrastive"]')
    assert {(row.status, row.reason) for row in rows} == {("unparsed", "no_pattern")}
    assert all(row.call_id for row in rows)
