"""Judges over HTTP, with the real SDKs: grades of known judges, failures as rows, nothing paid twice."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from autointerp import judge, report, score, simulate
from autointerp.errors import BudgetSpent, ConfigError
from autointerp.llm import Door
from autointerp.pipeline import prepare
from autointerp.rows import Split
from autointerp.tally import Tally

from .llm_server import Asked, Server
from .test_judges import marks, reply, shown
from .test_simulate import Bench, MakeBench, Reader
from .test_simulate import bench as bench  # a fixture
from .test_simulate import planted as planted  # a fixture


def right(asked: Asked) -> str:
    """The reply of a judge who takes labels at their word: it is there, or all that is marked is it."""
    labels, passages = shown(asked.last)
    marked = "are the marked words" in asked.chat[0][1]
    return reply(*[
        [n for n, text in enumerate(passages, start=1) if fits(label.split(", "), text, marked)] for label in labels
    ])  # fmt: skip


def fits(wanted: list[str], text: str, marked: bool) -> bool:
    if marked:
        return all(mark.strip() in wanted for mark in marks(text))
    return any(re.search(rf"\b{word}\b", text) for word in wanted)


Served = Callable[..., tuple[Bench, Server]]


@pytest.fixture
def served(bench: MakeBench) -> Iterator[Served]:
    """served(labels, says=..., plan=..., section__key=value): a Bench whose judge is a server, simulated on both splits."""
    opened: list[Server] = []

    def make(
        labels: dict[int, list[str]], says: Callable[[Asked], str] = right,
        plan: Callable[[Asked], str] = lambda asked: "ok", provider: str = "openai", **changes: Any,
    ) -> tuple[Bench, Server]:  # fmt: skip
        server = Server(says=says, plan=plan)
        opened.append(server.__enter__())
        given = {
            "judge__kinds": ("detection", "fuzzing"), "judge__provider": provider, "judge__model": "m",
            "judge__base_url": getattr(server, provider), "score__nulls": 0, "llm__tries": 2,
            "features__select": ",".join(map(str, labels)),
        }  # fmt: skip
        found = bench(labels, Reader(), **(given | changes))
        for split in ("select", "score"):
            simulate.run(found.grading, split)  # type: ignore[arg-type]
            score.run(found.grading, split)  # type: ignore[arg-type]
        return found, server

    yield make
    for server in opened:
        server.__exit__(None, None, None)


def judged(found: Bench, split: Split = "score") -> Tally:
    """Run the judges of the settings on a split."""
    keys = found.pipeline.labellings[0].target.keys
    return judge.run(found.grading, split, keys.judges, Door(found.store, found.pipeline.settings))


def values(found: Bench, split: Split = "score") -> dict[str, dict[str, float | str | None]]:
    """Label -> metric -> its value, or the reason why there is none."""
    names = {e.explanation_id: e.label or "" for e in found.grading.wanted("select")}
    result: dict[str, dict[str, float | str | None]] = {}
    for row in found.store.judged(found.grading.run, split):
        result.setdefault(names[row.explanation_id], {})[row.metric] = row.reason if row.value is None else row.value
    return result


# A right label claims no silent passage, and its feature's one token fires wherever it stands: no hard negatives.
FLAWLESS = {metric: 1.0 for metrics in judge.METRICS.values() for metric in metrics} | {
    "detection_tnr_b": "no_hard_negatives"
}


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_right_judge_grades_a_right_label_1_and_a_broad_one_below(
    served: Served, bench: MakeBench, provider: str
) -> None:
    w = bench.words
    found, server = served({0: [w[0]], 1: [f"{w[1]}, {w[2]}"], 2: [w[3]]}, provider=provider)
    tally = judged(found)
    assert not tally.failed
    grades = values(found)
    assert grades[w[0]] == FLAWLESS
    broad = grades[f"{w[1]}, {w[2]}"]
    assert broad["detection_tnr_b"] < 1 and broad["detection_tnr_c"] == 1 and broad["detection_f1"] < 1  # type: ignore[operator]
    wrong = grades[w[3]]
    assert wrong["detection_balanced_accuracy"] <= 0.5 and wrong["fuzzing_accuracy"] <= 0.5  # type: ignore[operator]
    rows = found.store.query("SELECT kind, says, marked, count(*) FROM judgement WHERE split = 'score' GROUP BY ALL")[1]
    assert sum(n for *_, n in rows) == tally.ok
    assert {(kind, marked is None) for kind, _, marked, _ in rows} == {("detection", True), ("fuzzing", False)}
    sizes = found.store.query("SELECT count(*) FROM judgement GROUP BY explanation_id, kind")[1]
    asked = sum(-(-n // 5) for (n,) in sizes)
    # Calls, not requests: one that took too long on a busy machine is sent again.
    assert found.store.query("SELECT count(*) FROM call")[1] == [(asked,)], "five passages a call"
    schema = server.log[0].body["response_format" if provider == "openai" else "output_config"]
    assert '"required": ["1"]' in json.dumps(schema)
    sent = len(server.log)
    assert not judged(found).worked and len(server.log) == sent >= asked, "twice is once"


def test_fuzzing_never_shows_a_passage_twice_in_a_call(served: Served, bench: MakeBench) -> None:
    found, server = served({0: [bench.words[0]]}, judge__kinds=("fuzzing",), judge__passages=8)
    judged(found)
    for asked in server.log:
        texts = [text.replace("**", "") for text in shown(asked.last)[1]]
        assert len(set(texts)) == len(texts) <= 4
    pairs = found.store.query("SELECT passage_id, count(DISTINCT marked), count(*) FROM judgement GROUP BY 1")[1]
    assert len(pairs) == 4 and {pair[1:] for pair in pairs} == {(2, 2)}


def test_one_passage_a_call_is_an_option(served: Served, bench: MakeBench) -> None:
    found, server = served({0: [bench.words[0]]}, judge__per_call=1, judge__kinds=("detection",))
    tally = judged(found)
    assert len(server.log) == tally.ok > 16
    assert values(found)[bench.words[0]].items() <= FLAWLESS.items()


def test_candidates_share_their_calls_and_detection_chooses(served: Served, bench: MakeBench) -> None:
    w = bench.words

    def says(asked: Asked) -> str:  # reads the first feature's labels the other way round from the simulator
        labels, _ = shown(asked.last)
        said = json.loads(right(asked))
        if w[0] in labels:
            return reply(*list(said.values())[::-1])
        return json.dumps(said)

    labels = {0: [w[0], w[1]], 1: [w[2], w[1], w[1]]}
    found, server = served(labels, says, judge__kinds=("detection",), judge__chooses=True)
    before = {e.feature: e.label for e in found.store.chosen(found.grading.run)}
    assert before == {0: w[0], 1: w[1]}
    tally = judged(found, "select")
    passages = found.store.query(
        "SELECT e.feature, count(DISTINCT passage_id) FROM judgement JOIN explanation e USING (explanation_id) "
        "GROUP BY 1 ORDER BY 1"
    )[1]
    (_, n), (_, m) = passages
    assert not tally.failed and tally.ok == n * 2 + m * 3 and 16 < min(n, m) <= max(n, m) <= 24
    assert len(server.log) == -(-n // 5) + -(-m // 5), "one call for all labels of a feature"
    assert {tuple(sorted(shown(asked.last)[0])) for asked in server.log} == {
        tuple(sorted([w[0], w[1]])), tuple(sorted([w[2], w[1]]))
    }, "and a label that was proposed twice stands there once"  # fmt: skip
    assert {e.feature: e.label for e in found.store.chosen(found.grading.run)} == {0: w[1], 1: w[1]}
    on_select = values(found, "select")
    assert on_select[w[2]]["detection_f1"] < on_select[w[1]]["detection_f1"]  # type: ignore[operator]
    shares = found.store.query(
        "SELECT count(*) FROM (SELECT DISTINCT e.feature, j.passage_id, j.stratum FROM judgement j JOIN explanation e USING (explanation_id))"
    )[1]
    assert shares == [(n + m,)], "on the same passages, in the same strata"
    judged(found, "score")
    assert set(values(found, "score")) == {w[1]}, "on score the chosen ones alone"


def test_where_the_judge_that_chooses_is_not_there_r_rank_does_and_it_is_said(
    served: Served, bench: MakeBench
) -> None:
    w = bench.words
    found, server = served(
        {0: [w[0], w[1]], 1: [w[2], w[1]], 2: [w[2], w[3]]}, judge__kinds=("detection",), judge__chooses=True,
        plan=lambda asked: {w[0]: "500", w[3]: "refused"}.get(min(set(shown(asked.last)[0]) & {w[0], w[3]}, default=""), "ok"),
        features__min_passages=3, features__min_documents=2, features__max_density=0.5,
    )  # fmt: skip
    tally = judged(found, "select")
    assert set(tally.failed) == {"unreachable", "refusal"}
    assert tally.line().endswith("; features without a verdict, for which r_rank chooses: 2")
    reading = report.read(found.store)
    assert reading.summary["chosen_by"] == {"detection_f1": 1, "r_rank": 2, "lost": {"not_judged": 1, "refusal": 1}}
    assert "chosen  1 by detection F1, 2 by r_rank (lost: 1 not_judged, 1 refusal)" in report.headline(reading)
    server.plan = lambda asked: "ok"
    tally = judged(found, "select")
    assert tally.ok and not tally.note
    assert report.read(found.store).summary["chosen_by"]["lost"] == {"refusal": 1}, "what was paid is not asked again"


def test_a_reply_that_cannot_be_used_costs_its_numbers_after_one_repair_and_no_zeros(
    served: Served, bench: MakeBench
) -> None:
    w = bench.words
    spoiled: list[str] = []

    def says(asked: Asked) -> str:
        first = next(text for _, text in asked.chat[3:])
        if shown(first)[0] == [w[1]] and spoiled in ([], [first]):  # one call of one feature, and its repair
            spoiled[:] = [first]
            return reply([99])
        return right(asked)

    found, server = served({0: [w[0]], 1: [w[1]]}, says, judge__kinds=("detection",), llm__max_in_flight=1)
    tally = judged(found)
    lost = len(shown(spoiled[0])[1])
    assert tally.failed == {"wrong_passage": lost}
    rows = found.store.query("SELECT status::VARCHAR, reason, says IS NULL, count(*) FROM judgement GROUP BY ALL ORDER BY 1")[1]
    assert rows == [("ok", None, False, tally.ok), ("unparsed", "wrong_passage", True, lost)]
    assert sum("cannot be used" in asked.last for asked in server.log) == 1
    assert set(values(found)[w[1]].values()) == {"wrong_passage"}
    assert values(found)[w[0]].items() <= FLAWLESS.items()
    n_asked = len(server.log)
    assert not judged(found).worked and len(server.log) == n_asked


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [("refused", "refused", "refusal"), ("filtered", "refused", "content_filter"), ("empty", "unparsed", "empty")],
)
def test_a_refusal_is_a_row_and_no_verdict(
    served: Served, bench: MakeBench, kind: str, status: str, reason: str
) -> None:
    found, _ = served({0: [bench.words[0]]}, plan=lambda asked: kind)
    tally = judged(found)
    assert tally.ok == 0 and set(tally.failed) == {reason}
    assert found.store.query("SELECT DISTINCT status::VARCHAR, reason, says FROM judgement")[1] == [(status, reason, None)]
    assert set(values(found)[bench.words[0]].values()) == {reason}


@pytest.mark.parametrize("most", [3, 1])
def test_calls_that_are_too_long_are_asked_again_in_halves(served: Served, bench: MakeBench, most: int) -> None:
    def plan(asked: Asked) -> str:
        return "context" if len(shown(asked.last)[1]) > most else "ok"

    found, server = served({0: [bench.words[0]]}, plan=plan)
    tally = judged(found)
    assert not tally.failed and tally.ok > 30
    assert values(found)[bench.words[0]]["detection_f1"] == values(found)[bench.words[0]]["fuzzing_accuracy"] == 1
    assert max(len(shown(asked.last)[1]) for asked in server.log if asked.kind == "ok") == most
    assert tally.note.count("asked again in halves") == 2, "of detection, and of fuzzing"
    assert max(server.whole().values()) == 1


def test_a_passage_that_is_too_long_by_itself_has_no_verdict(served: Served, bench: MakeBench) -> None:
    found, _ = served({0: [bench.words[0]]}, plan=lambda asked: "context")
    tally = judged(found)
    assert tally.ok == 0 and set(tally.failed) == {"context_too_long"}
    assert set(values(found)[bench.words[0]].values()) == {"context_too_long"}


def test_a_judge_that_is_not_there_leaves_its_features_pending(served: Served, bench: MakeBench) -> None:
    w = bench.words
    down = [True]
    found, server = served(
        {0: [w[0]], 1: [w[1]]}, plan=lambda asked: "500" if down[0] and w[1] in shown(asked.last)[0] else "ok"
    )
    tally = judged(found)
    assert set(tally.failed) == {"unreachable"}
    assert set(values(found)) == {w[0]}
    down[0] = False
    assert judged(found).ok == tally.failed["unreachable"]
    assert set(values(found)) == {w[0], w[1]} and max(server.whole().values()) == 1


def test_a_judge_who_is_gone_is_not_asked_about_the_rest(
    served: Served, bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "CHUNK_FEATURES", 1)
    found, server = served({f: [bench.words[f]] for f in range(4)}, plan=lambda asked: "500", llm__tries=2, llm__max_in_flight=1)
    tally = judged(found)
    assert tally.ok == 0 and set(tally.failed) == {"unreachable"}
    # Three requests, twice each, one that was under way; then one of the other kind of judge, to see whether it is back.
    assert 3 * 2 + 2 <= len(server.log) <= 3 * 2 + 1 + 2 + 1


def test_a_spent_budget_stops_and_what_was_paid_is_not_paid_again(served: Served, bench: MakeBench) -> None:
    labels = {f: [bench.words[f]] for f in (0, 1, 2)}
    found, server = served(labels, llm__budget_tokens=9000, llm__max_in_flight=1)
    tally = judged(found)
    assert isinstance(tally.stopped, BudgetSpent) and tally.failed["budget_spent"] > 0
    assert found.store.query("SELECT count(*) FROM call")[1] == [(server.whole().total(),)]
    free = found.pipeline.settings.model_copy(
        update={"llm": found.pipeline.settings.llm.model_copy(update={"budget_tokens": 0})}
    )
    keys = found.pipeline.labellings[0].target.keys
    assert not judge.run(found.grading, "score", keys.judges, Door(found.store, free)).failed
    assert max(server.whole().values()) == 1 and len(values(found)) == 3


def test_a_passage_that_gives_orders_changes_no_more_than_its_own(served: Served, bench: MakeBench) -> None:
    word = bench.words[0]
    found, server = served({0: [word]})
    obeyed: list[str] = []

    def obeying(asked: Asked) -> str:
        """Says the opposite of a passage that holds this word, and of that one alone."""
        _, passages = shown(asked.last)
        said = set(json.loads(right(asked))["1"])
        orders = {n for n, text in enumerate(passages, start=1) if n == 1}
        obeyed.extend(passages[n - 1] for n in orders)
        return reply(sorted(said ^ orders))

    server.says = obeying
    judged(found)
    rows = found.store.query("SELECT count(*) FROM judgement WHERE kind = 'detection' AND says <> (stratum = 'A')")[1]
    assert rows == [(5,)], "one in each call"


def test_the_report_prints_what_judges_found(served: Served, bench: MakeBench) -> None:
    w = bench.words
    found, _ = served({0: [w[0]], 1: [w[1]]}, features__min_passages=3, features__min_documents=2, features__max_density=0.5)
    judged(found)
    reading = report.read(found.store)
    summary = report.as_json(reading)
    assert set(summary["judges"]) == {m for metrics in judge.METRICS.values() for m in metrics}
    assert summary["judges"]["detection_f1"] == {"mean": 1.0, "median": 1.0, "n": 2, "lost": {}}
    assert {label["fuzzing_accuracy"] for label in summary["labels"]} == {1.0}
    lines = [line for line in report.headline(reading) if line.startswith("judge")]
    assert lines[0] == "judge   detection: F1 1.00, balanced accuracy 1.00, TNR_B -, TNR_C 1.00; n = 2 (lost: none)"
    assert lines[1] == "judge   fuzzing: accuracy 1.00; n = 2 (lost: none)"


def test_a_report_of_a_run_without_judges_says_nothing_of_them(served: Served, bench: MakeBench) -> None:
    found, server = served({0: [bench.words[0]]}, judge__kinds=())
    assert found.pipeline.labellings[0].judge("score") is None and not server.log
    reading = report.read(found.store)
    assert reading.summary["chosen_by"] is None
    assert reading.summary["judges"] == {} and not any(line.startswith("judge") for line in report.headline(reading))


def test_a_missing_key_or_prompt_is_said_before_any_work(served: Served, bench: MakeBench, monkeypatch: Any) -> None:
    found, server = served({0: [bench.words[0]]})
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = found.pipeline.settings
    for change, expected in (({"base_url": ""}, "OPENAI_API_KEY"), ({"detection_prompt": "nope"}, "nope")):
        changed = made.model_copy(update={"judge": made.judge.model_copy(update=change)})
        with pytest.raises(ConfigError, match=expected):
            prepare(changed)
    assert not server.log
