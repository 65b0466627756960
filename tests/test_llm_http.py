"""The real SDKs against a server on loopback: what is sent, what is read, and how every kind of trouble ends."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autointerp import config
from autointerp.errors import ReplyError, Unreachable, UserError
from autointerp.llm import Answer, Door, Job, Model, Reply, Request
from autointerp.llm.prices import Prices, estimate
from autointerp.rows import Call
from autointerp.store import Store

from .llm_server import BAD_REPLIES, FAILURES, Asked, Server, fails

KEY = "test-key-secret"
NAMES = {"openai": "gpt-6-luna", "anthropic": "claude-haiku-5-5"}
BOTH = pytest.mark.parametrize("provider", sorted(NAMES))


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(variable, KEY)


def model(server: Server, provider: str) -> Model:
    return Model(provider, NAMES[provider], getattr(server, provider))


Opener = Callable[..., Door]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """opened(key=value, ...) -> a door with these settings of [llm], on a store of its own in memory."""
    made: list[tuple[Door, Store]] = []

    def make(**llm: Any) -> Door:
        llm = {"timeout_s": 60, "tries": 6} | llm
        store = Store.memory()
        door = Door(store, config.load(None, [f"llm.{key}={value}" for key, value in llm.items()]))
        made.append((door, store))
        return door

    yield make
    for door, store in made:
        door.close()
        store.close()


def label(reply: str) -> str:
    """A stand-in for a stage's own parser: a label of at most three words."""
    if reply.startswith("I'm sorry"):
        raise ReplyError("refusal")
    if len(reply.split()) > 3:
        raise ReplyError("too_long", f"{len(reply.split())} words")
    return reply


def jobs(who: Model, n: int, start: int = 0, **changes: Any) -> Iterator[Job[str]]:
    for i in range(start, start + n):
        messages = (("system", "name it"), ("user", "example"), ("assistant", "an answer"), ("user", f"n{i}"))
        yield Job(Request(who, messages, 32, **changes), f"explain test {i}", label, i)


def answers(door: Door, given: Iterator[Job[str]]) -> dict[int, Answer[str]]:
    return {job.key: answer for job, answer in door.ask(given)}


def calls(door: Door) -> list[Call]:
    names, rows = door.ledger.store.query("SELECT * FROM call ORDER BY purpose")
    return [Call(**dict(zip(names, row))) for row in rows]


# -- what is sent, what is read ----------------------------------------------------------------------------------------


@BOTH
def test_a_request_and_its_reply(opened: Opener, provider: str) -> None:
    with Server() as server:
        door = opened()
        found = answers(door, jobs(model(server, provider), 1, temperature=0.5))
        (row,) = calls(door)
    assert found == {0: Answer("ok", "label n0", None, row.call_id)}
    (asked,) = server.log
    assert asked.chat == [("system", "name it"), ("user", "example"), ("assistant", "an answer"), ("user", "n0")]
    assert asked.body["model"] == NAMES[provider]
    assert asked.body["temperature"] == 0.5
    assert asked.body["max_tokens"] == 32
    assert (row.model, row.model_answered, row.base_url) == (
        NAMES[provider], f"{NAMES[provider]}-2026", getattr(server, provider)
    )  # fmt: skip
    assert (row.purpose, row.tries, row.status) == ("explain test 0", 1, "ok")
    assert 0 < row.ms < 60_000


@BOTH
def test_the_key_is_sent_and_is_nowhere_in_the_ledger(opened: Opener, provider: str) -> None:
    with Server() as server:
        door = opened()
        answers(door, jobs(model(server, provider), 1))
        text = repr(calls(door))
    assert server.log[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in text


@BOTH
def test_asked_again_nobody_is_asked(opened: Opener, provider: str) -> None:
    with Server() as server:
        door = opened()
        first = answers(door, jobs(model(server, provider), 20))
        assert answers(door, jobs(model(server, provider), 20)) == first
    assert len(server.log) == 20


def test_draws_are_calls_of_their_own(opened: Opener) -> None:
    with Server(says=lambda asked: f"label {asked.number}") as server:
        door = opened()
        who = model(server, "openai")
        found = [next(iter(door.ask(jobs(who, 1, draw=draw))))[1].value for draw in (0, 1, 2, 0)]
    assert found == ["label 0", "label 1", "label 2", "label 0"]
    assert len(server.log) == 3


@BOTH
def test_text_of_any_kind_goes_out_and_comes_back_as_it_was(opened: Opener, provider: str) -> None:
    text = "a\0b\n\r\u2028\u202e\x1b[31m 🏳️‍🌈 e\u0301 \ufffd\U0010ffff'\"\\{}<think>"
    with Server(says=lambda asked: asked.last) as server:
        job = Job(Request(model(server, provider), (("user", text),), 32), "test", str)
        door = opened()
        ((_, answer),) = door.ask([job])
        (row,) = calls(door)
    assert server.log[0].last == text
    assert answer.value == text == row.reply
    assert json.loads(row.request) == [["user", text]]


@BOTH
def test_dollars_are_tokens_times_prices(opened: Opener, provider: str) -> None:
    with Server(cached_tokens=40) as server:  # 40 tokens of the 40 that the server says it was sent
        door = opened()
        answers(door, jobs(model(server, provider), 1))
        (row,) = calls(door)
    assert (row.input_tokens, row.cached_tokens, row.output_tokens) == (40, 40, 2)
    assert row.usd == pytest.approx((40 * 0.01 + 2 * 0.50) / 1e6)


def test_a_model_without_a_price_has_no_dollars_and_one_that_does_not_count_no_tokens(opened: Opener) -> None:
    with Server(counts=False) as server:
        door = opened()
        answers(door, jobs(Model("openai", "some/model", server.openai), 1))
        answers(door, jobs(model(server, "openai"), 1))
        rows = calls(door)
    assert [(row.usd, row.input_tokens, row.cached_tokens, row.output_tokens) for row in rows] == [(None,) * 4] * 2
    (line,) = [line for line in door.ledger.store.spending() if line["model"] == "some/model"]
    assert (line["stage"], line["calls"], line["usd"], line["unpriced"]) == ("explain", 1, 0, 1)


def test_claude_is_told_where_the_shared_part_ends_also_when_a_reply_is_repaired(opened: Opener) -> None:
    with Server(says=lambda asked: "far too many words" if asked.number == 0 else "fine") as server:
        found = answers(opened(), jobs(model(server, "anthropic"), 1))
    assert found[0].value == "fine"
    for asked in server.log:
        marked = [i for i, m in enumerate(asked.body["messages"]) if "cache_control" in m["content"][0]]
        assert marked == [1]  # the last of the examples
        assert "cache_control" not in asked.body["system"][0]
    assert [len(asked.body["messages"]) for asked in server.log] == [3, 5]


@BOTH
def test_a_schema_is_sent_and_left_out_where_the_server_does_not_know_it(opened: Opener, provider: str) -> None:
    where = {"openai": "response_format", "anthropic": "output_config"}[provider]
    schema = '{"type": "object", "properties": {"label": {"type": "string"}}}'
    with Server() as server:
        answers(opened(), jobs(model(server, provider), 1, schema=schema))
    assert '"label"' in json.dumps(server.log[0].body[where])
    known = frozenset({"temperature", "thinking", "reasoning_effort"})
    with Server(knows=known) as server:
        door = opened()
        assert {a.status for a in answers(door, jobs(model(server, provider), 1, schema=schema)).values()} == {"ok"}
        answers(door, jobs(model(server, provider), 5, start=1, schema=schema))
        assert {row.tries for row in calls(door)} == {1}
    assert server.kinds() == {f"unknown {where}": 1, "ok": 6}  # it is remembered


@BOTH
def test_a_server_that_knows_no_optional_part_is_asked_without(opened: Opener, provider: str) -> None:
    with Server(knows=frozenset()) as server:
        found = answers(opened(), jobs(model(server, provider), 30))
    assert {answer.status for answer in found.values()} == {"ok"}
    assert server.kinds()["ok"] == 30
    assert not {"temperature", "thinking", "reasoning_effort"} & set(server.log[-1].body)


def test_a_schema_is_not_left_out_of_other_requests_where_it_was_not_to_blame(opened: Opener) -> None:
    odd = (400, b'{"error": {"message": "this one I do not like"}}')
    with Server(plays={"odd": odd}, plan=lambda asked: "odd" if asked.last == "n1" else "ok") as server:
        found = answers(opened(max_in_flight=1), jobs(model(server, "openai"), 4, schema='{"type": "object"}'))
    assert (found.pop(1).reason, {answer.status for answer in found.values()}) == ("bad_request", {"ok"})
    assert {"response_format" in asked.body for asked in server.log if asked.kind == "ok"} == {True}


def test_a_server_of_ones_own_that_knows_the_other_name_of_the_limit_is_told_by_it(opened: Opener) -> None:
    said = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    body = json.dumps({"error": {"message": said, "param": "max_tokens", "code": "unsupported_parameter"}}).encode()
    with Server(plays={"no": (400, body)}, plan=lambda asked: "no" if "max_tokens" in asked.body else "ok") as server:
        found = answers(opened(max_in_flight=1), jobs(model(server, "openai"), 5, schema='{"type": "object"}'))
    assert {answer.status for answer in found.values()} == {"ok"}
    assert server.kinds() == {"no": 1, "ok": 5}
    assert {(a.body["max_completion_tokens"], "response_format" in a.body) for a in server.log[1:]} == {(32, True)}


def test_the_same_request_asked_later_among_others_is_paid_once(opened: Opener) -> None:
    with Server() as server:
        who = model(server, "openai")
        door = opened(max_in_flight=1)
        twice = [*jobs(who, 40), *jobs(who, 40)]
        assert len(list(door.ask(twice))) == 80
        assert len(calls(door)) == 40
    assert len(server.log) == 40


@BOTH
def test_a_prompt_that_is_refused_before_any_other_is_answered_stops_nobody(opened: Opener, provider: str) -> None:
    odd = (400, b'{"error": {"message": "this one I do not like"}}')

    with Server(plays={"odd": odd}, plan=lambda asked: "odd" if asked.last == "n3" else "ok", latency_s=0.3) as server:
        door = opened()
        found = answers(door, jobs(model(server, provider), 40))
        assert (found.pop(3).reason, {answer.status for answer in found.values()}) == ("bad_request", {"ok"})
        # In a later command it is asked alone, of a server that is known to answer.
        later = Door(door.ledger.store, door.settings)
        assert answers(later, jobs(model(server, provider), 40))[3].reason == "bad_request"
        later.close()
    assert Counter(asked.last for asked in server.log)["n3"] == 2


@BOTH
def test_a_server_that_refuses_everybody_is_one_line(opened: Opener, provider: str) -> None:
    odd = (400, b'{"error": {"message": "this one I do not like"}}')
    with Server(plays={"odd": odd}, plan=lambda asked: "odd", latency_s=0.05) as server:
        with pytest.raises(UserError, match="refuses the request: this one I do not like"):
            answers(opened(), jobs(model(server, provider), 40))
        assert len(server.log) < 40


def test_a_schema_that_one_reply_did_not_follow_is_still_sent_with_others(opened: Opener) -> None:
    """Groq's words, where a model wrote something that is no JSON."""
    said = "Failed to validate JSON. Please adjust your prompt. See 'failed_generation' for more details."
    odd = (400, json.dumps({"error": {"message": said, "code": "json_validate_failed"}}).encode())

    def plan(asked: Asked) -> str:
        return "odd" if asked.last == "n3" and "response_format" in asked.body else "ok"

    with Server(plays={"odd": odd}, plan=plan) as server:
        found = answers(opened(max_in_flight=1), jobs(model(server, "openai"), 10, schema='{"type": "object"}'))
    assert {answer.status for answer in found.values()} == {"ok"}
    assert [asked.last for asked in server.log if "response_format" not in asked.body] == ["n3"]


# -- trouble that passes -----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", [*FAILURES, "503", "429-date"])
def test_a_failure_that_passes_is_tried_again(opened: Opener, provider: str, kind: str) -> None:
    with Server(plan=lambda asked: kind if asked.number < 2 else "ok") as server:
        door = opened(timeout_s=0.5 if kind == "hang" else 60)
        found = answers(door, jobs(model(server, provider), 1))
        (row,) = calls(door)
    assert (found[0].status, found[0].value) == ("ok", "label n0")
    assert row.tries == 3
    assert [asked.kind for asked in server.log] == [kind, kind, "ok"]


@pytest.mark.parametrize(("kind", "said"), [("500", 1), ("429", 0)])
def test_a_server_in_trouble_is_told_of_once_and_one_with_limits_never(
    opened: Opener, caplog: pytest.LogCaptureFixture, kind: str, said: int
) -> None:
    with Server(plan=lambda asked: kind if asked.number < 4 else "ok") as server:
        found = answers(opened(), jobs(model(server, "openai"), 3))
    assert {answer.status for answer in found.values()} == {"ok"}
    assert sum("tried again" in record.message for record in caplog.records) == said


ODD = {
    "half a character": (200, '{"choices": [{"message": {"content": "w\u00f6'.encode()[:-1]),
    "error inside": (200, b'{"error": {"code": "rate_limit_exceeded", "message": "slow down"}}'),
    "error of a number": (200, b'{"error": {"code": 502, "message": "upstream"}}'),
    "broken off": (200, b'{"choices": [{"finish_reason": "error", "message": {"content": "lab"}}]}'),
    "broken off, with why": (200, b'{"choices": [{"error": {"code": 502, "message": "x"}, "message": {"content": "l"}}]}'),
}


@pytest.mark.parametrize("kind", ODD)
def test_half_a_reply_and_an_error_within_one_are_tried_again(opened: Opener, kind: str) -> None:
    with Server(plays=ODD, plan=lambda asked: kind if asked.number < 2 else "ok") as server:
        door = opened()
        found = answers(door, jobs(model(server, "openai"), 1))
        (row,) = calls(door)
    assert (found[0].status, found[0].value, row.tries) == ("ok", "label n0", 3)


@pytest.mark.parametrize("body", [
    b'{"choices": [{"text": "x"}]}', b'{"choices": [{"message": null}]}', b'{"choices": {"a": 1}}',
    b'{"error": "Unexpected endpoint or method. (POST /chat/completions)"}', b"[]", b"null", b'"hello"', b"7",
])  # fmt: skip
@BOTH
def test_a_reply_of_another_form_is_no_such_api(opened: Opener, provider: str, body: bytes) -> None:
    said = pytest.raises(UserError, match=r"no such API there \(.*check base_url")
    with Server(plays={"odd": (200, body)}, plan=lambda asked: "odd") as server, said:
        answers(opened(), jobs(model(server, provider), 3))


def test_content_in_parts_is_one_text(opened: Opener) -> None:
    parts = [{"type": "text", "text": "label"}, {"type": "image_url"}, {"type": "text", "text": " n0"}]
    body = json.dumps({"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}).encode()
    with Server(plays={"parts": (200, body)}, plan=lambda asked: "parts") as server:
        assert answers(opened(), jobs(model(server, "openai"), 1))[0].value == "label n0"


ODD_FIELDS = {
    "openai": [
        ("cached", {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5000}}),
        ("huge", {"prompt_tokens": 2**70, "completion_tokens": 2}),
        ("negative", {"prompt_tokens": -1, "completion_tokens": 2}),
        ("words", {"prompt_tokens": "10", "completion_tokens": {}, "prompt_tokens_details": {"cached_tokens": "5"}}),
        ("floats", {"prompt_tokens": 1.5, "completion_tokens": float("nan"), "prompt_tokens_details": 7}),
        ("list", [1, 2]), ("truth", {"prompt_tokens": True, "completion_tokens": False}), ("none", None),
    ],
    "anthropic": [
        ("empty", {}), ("half", {"input_tokens": None, "output_tokens": 2}),
        ("words", {"input_tokens": "10", "output_tokens": "2", "cache_read_input_tokens": []}),
        ("huge", {"input_tokens": 2**70, "output_tokens": 2}), ("list", []),
    ],
}  # fmt: skip


def with_text(provider: str, content: Any, usage: Any = None, stop: Any = None) -> bytes:
    """A reply as the provider forms it, of whatever is given."""
    if provider == "anthropic":
        return json.dumps({"model": "x", "content": content, "usage": usage, "stop_reason": stop}).encode()
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": stop}
    return json.dumps({"model": "x", "choices": [choice], "usage": usage, "error": "none to speak of"}).encode()


@pytest.mark.parametrize(
    ("provider", "usage"),
    [pytest.param(p, usage, id=f"{p}-{name}") for p, found in ODD_FIELDS.items() for name, usage in found],
)
def test_odd_counts_are_no_counts_and_every_row_is_kept(tmp_path: Path, provider: str, usage: Any) -> None:
    text: Any = "label n0" if provider == "openai" else [{"type": "text", "text": "label n0"}]
    with Server(plays={"odd": (200, with_text(provider, text, usage))}, plan=lambda asked: "odd") as server:
        with Store.create(tmp_path / "run.duckdb") as store:
            door = Door(store, config.load(None))
            assert answers(door, jobs(model(server, provider), 1))[0].value == "label n0"
            door.close()
        with Store.create(tmp_path / "run.duckdb") as store:
            (row,) = Door(store, config.load(None)).ledger.store.spending()
    assert (row["calls"], row["usd"] >= 0, row["input_tokens"] < 2**31) == (1, True, True)


@pytest.mark.parametrize(("provider", "content", "stop", "ends"), [
    ("openai", {"label": "x"}, None, "ok"), ("openai", 7, None, "empty"), ("openai", ["label ", "n0"], None, "ok"),
    ("openai", [{"type": "text", "text": {"a": 1}}], [], "ok"), ("openai", True, {"a": 1}, "empty"),
    ("openai", None, "content_filter", "content_filter"), ("openai", "label n0", "stop", "ok"), ("anthropic", [{"type": "text", "text": 5}], [], "empty"),
    ("anthropic", ["label"], {}, "empty"), ("anthropic", None, "refusal", "refusal"), ("anthropic", [], None, "empty"),
])  # fmt: skip
def test_odd_content_ends_as_a_row(opened: Opener, provider: str, content: Any, stop: Any, ends: str) -> None:
    with Server(plays={"odd": (200, with_text(provider, content, stop=stop))}) as server:
        server.plan = lambda asked: "odd" if asked.last == "n0" else "ok"
        door = opened()
        found = answers(door, jobs(model(server, provider), 3))
    assert found[0].reason == (None if ends == "ok" else ends)
    assert [found[i].status for i in (1, 2)] == ["ok", "ok"]
    assert len(calls(door)) == len(server.log)


@pytest.mark.parametrize("body", [b'{"choices": null, "usage": {"prompt_tokens": 7}}', b'{"choices": []}'])
def test_no_choices_for_one_prompt_is_an_empty_reply_and_not_asked_again(opened: Opener, body: bytes) -> None:
    with Server(plays={"none": (200, body)}, plan=lambda asked: "none" if asked.last == "n3" else "ok") as server:
        door = opened()
        found = answers(door, jobs(model(server, "openai"), 20))
        assert (found.pop(3).reason, {answer.status for answer in found.values()}) == ("empty", {"ok"})
        asked = len(server.log)
        answers(door, jobs(model(server, "openai"), 20))
    assert len(server.log) == asked == 20


@BOTH
@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"hello": "world"}', b"", b"[]"])
def test_a_reply_of_another_form_among_good_ones_is_tried_again(opened: Opener, provider: str, body: bytes) -> None:
    seen: Counter[str] = Counter()

    def plan(asked: Asked) -> str:
        seen[asked.last] += 1
        return "odd" if asked.last == "n3" and seen["n3"] < 3 else "ok"

    with Server(plays={"odd": (200, body)}, plan=plan, latency_s=0.05) as server:
        found = answers(opened(), jobs(model(server, provider), 20))
    assert {answer.status for answer in found.values()} == {"ok"}


@pytest.mark.parametrize("body", [
    b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}',
    b'{"error": {"type": "api_error", "message": "oh"}}',
])  # fmt: skip
def test_an_error_within_a_reply_of_claude_is_tried_again(opened: Opener, body: bytes) -> None:
    with Server(plays={"odd": (200, body)}, plan=lambda asked: "odd" if asked.number < 2 else "ok") as server:
        assert answers(opened(), jobs(model(server, "anthropic"), 1))[0].status == "ok"


@pytest.mark.parametrize("code", ["0", '"context_length_exceeded"', "400"])
def test_a_prompt_that_is_too_long_may_be_told_within_a_reply(opened: Opener, code: str) -> None:
    body = f'{{"error": {{"code": {code}, "message": "maximum context length is 10 tokens"}}}}'.encode()
    with Server(plays={"odd": (200, body)}, plan=lambda asked: "odd" if asked.last == "n1" else "ok") as server:
        found = answers(opened(), jobs(model(server, "openai"), 3))
    assert [found[i].reason for i in range(3)] == [None, "context_too_long", None]


def test_what_a_model_thinks_is_counted_where_only_the_total_holds_it(opened: Opener) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 151, "total_tokens": 553}
    with Server(plays={"thinks": (200, with_text("openai", "hi", usage))}, plan=lambda asked: "thinks") as server:
        door = opened()
        answers(door, jobs(model(server, "openai"), 1))
        (row,) = calls(door)
    assert (row.input_tokens, row.output_tokens) == (20, 533)


@pytest.mark.parametrize("why", [b"", b', "error": {"code": 502, "message": "x"}'])
def test_a_reply_that_broke_off_counts_against_a_budget(opened: Opener, why: bytes) -> None:
    body = b'{"choices": [{"finish_reason": "error", "message": {"content": "lab"}' + why + b"}]}"
    with Server(plays={"broken": (200, body)}, plan=lambda asked: "broken") as server:
        door = opened(tries=2)
        with pytest.raises(Unreachable):
            answers(door, jobs(model(server, "openai"), 1))
    assert door.ledger.spent.done.tokens > 60


def test_json_that_is_called_text_is_read(opened: Opener) -> None:
    with Server(plan=lambda asked: "plain") as server:
        assert answers(opened(), jobs(model(server, "openai"), 1))[0].value == "label n0"


@pytest.mark.parametrize(
    ("provider", "more", "hint"),
    [("openai", "", "check base_url, which for openai mostly ends in /v1"), ("openai", "/v1", "check base_url"),
     ("anthropic", "/v1", "check base_url, which for anthropic ends before /v1"), ("anthropic", "", "check base_url")],
)  # fmt: skip
def test_an_address_without_its_end_or_with_another_providers_is_told_so(
    opened: Opener, provider: str, more: str, hint: str
) -> None:
    with Server(plan=lambda asked: "no-path") as server:
        who = Model(provider, "m", server.anthropic + more)
        with pytest.raises(UserError, match="no such API there") as problem:
            answers(opened(), jobs(who, 2))
    assert str(problem.value).endswith(hint)


def test_a_server_of_claudes_api_need_not_count(opened: Opener) -> None:
    body = b'{"type": "message", "role": "assistant", "model": "x", "content": [{"type": "text", "text": "hi"}]}'
    with Server(plays={"bare": (200, body)}, plan=lambda asked: "bare") as server:
        door = opened()
        assert answers(door, jobs(model(server, "anthropic"), 1))[0].value == "hi"
        (row,) = calls(door)
    assert (row.usd, row.input_tokens, row.cached_tokens, row.output_tokens) == (None,) * 4


@BOTH
def test_a_provider_that_asks_to_be_left_alone_is(opened: Opener, provider: str) -> None:
    times: list[float] = []

    def plan(asked: Asked) -> str:
        times.append(time.monotonic())
        return "429" if asked.number == 0 else "ok"

    with Server(plan=plan, retry_after="1.5") as server:
        answers(opened(max_in_flight=1), jobs(model(server, provider), 3))
    assert times[1] - times[0] >= 1.5  # a lower bound, so a slow machine cannot fail it
    assert len(times) == 4


@BOTH
def test_there_are_never_more_in_flight_than_allowed_and_refusals_lower_it(opened: Opener, provider: str) -> None:
    with Server(latency_s=0.02, limit=6, retry_after="0.01") as server:
        found = answers(opened(max_in_flight=24, tries=12), jobs(model(server, provider), 300))
    assert {answer.status for answer in found.values()} == {"ok"}
    assert server.most <= 24
    # Halved where it was refused and grown by one a round, it stays near the limit: few of the requests are refused.
    assert server.kinds()["429"] < 100


@BOTH
def test_a_third_of_all_calls_failing_every_job_ends_with_a_label_or_a_reason(opened: Opener, provider: str) -> None:
    kinds = (*FAILURES, *BAD_REPLIES)
    with Server(latency_s=0.01, limit=64, plan=fails(0.3, kinds), retry_after="0.05") as server:
        door = opened(timeout_s=4, tries=10)
        found = answers(door, jobs(model(server, provider), 200))
        rows = {row.call_id: row for row in calls(door)}
    assert sorted(found) == list(range(200))
    ended = Counter((answer.status, answer.reason) for answer in found.values())
    reasons = {"refusal", "content_filter", "empty", "cut_off", "too_long"}
    assert ended["ok", None] > 140
    assert {status for status, _ in ended} == {"ok", "refused", "unparsed"}
    assert {reason for _, reason in ended} - {None} <= reasons
    for i, answer in found.items():
        assert (answer.value is not None) == (answer.status == "ok")
        row = rows[answer.call_id or ""]
        assert answer.value is None or answer.value == row.reply == f"label {json.loads(row.request)[-1][1]}" or row.repair_of
        assert f"explain test {i}" in row.purpose
    # Every reply that arrived whole is in the ledger, once; those that were cut had to be paid twice.
    assert Counter(row.request for row in rows.values()) == server.whole()


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("refused", "refused", "refusal"), ("filtered", "refused", "content_filter"), ("empty", "unparsed", "empty"),
        ("cut_off", "unparsed", "cut_off"), ("refusal", "refused", "refusal"), ("language", "unparsed", "too_long"),
    ],
)  # fmt: skip
def test_a_reply_that_is_none_is_paid_and_has_its_reason(opened: Opener, kind: str, status: str, reason: str) -> None:
    with Server(plan=lambda asked: kind) as server:
        door = opened()
        found = answers(door, jobs(model(server, "openai"), 1))
        rows = calls(door)
        again = answers(door, jobs(model(server, "openai"), 1))
    assert (found[0].status, found[0].value, found[0].reason) == (status, None, reason)
    assert again == found
    assert all(row.usd and row.usd > 0 for row in rows)
    assert len(rows) == len(server.log) == (2 if kind == "language" else 1)


# -- trouble that stays ------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("kind", "status", "reason"), [
    ("context", "failed", "context_too_long"), ("policy", "refused", "content_filter"),
])  # fmt: skip
def test_a_request_that_cannot_be_answered_is_a_row_of_its_own_and_no_call(
    opened: Opener, provider: str, kind: str, status: str, reason: str
) -> None:
    with Server(plan=lambda asked: kind if asked.last == "n3" else "ok") as server:
        door = opened()
        found = answers(door, jobs(model(server, provider), 10))
        assert len(calls(door)) == 9
    assert found.pop(3) == Answer(status, None, reason, None)  # type: ignore[arg-type]
    assert {answer.status for answer in found.values()} == {"ok"}
    assert len(server.log) == 10


@BOTH
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("401", "API_KEY"), ("403", "API_KEY"), ("402", "paid"), ("quota", "quota"), ("404", "no such model"),
        ("400", "unexpected thing"), ("html", "no such API"), ("no-choices", "no such API"),
    ],
)  # fmt: skip
def test_what_the_user_has_to_put_right_stops_at_once_with_one_line(
    opened: Opener, provider: str, kind: str, says: str
) -> None:
    with Server(plan=lambda asked: kind) as server:
        door = opened()
        with pytest.raises(UserError, match=says) as problem:
            answers(door, jobs(model(server, provider), 500))
        assert calls(door) == []
    assert "\n" not in str(problem.value)
    assert KEY not in str(problem.value)
    assert NAMES[provider] in str(problem.value)
    assert len(server.log) <= 64


@BOTH
def test_a_key_that_is_refused_half_way_keeps_what_was_paid(opened: Opener, provider: str) -> None:
    with Server(plan=lambda asked: "401" if asked.number >= 50 else "ok") as server:
        door = opened()
        found: dict[int, Answer[str]] = {}
        with pytest.raises(UserError, match="API_KEY"):
            found.update((job.key, answer) for job, answer in door.ask(jobs(model(server, provider), 500)))
        assert len(calls(door)) == server.kinds()["ok"] == 50


@BOTH
def test_an_address_that_is_no_api_is_said_in_one_line(opened: Opener, provider: str) -> None:
    with Server() as server, pytest.raises(UserError, match="check base_url") as problem:
        answers(opened(), jobs(Model(provider, "m", f"http://127.0.0.1:{server.port}/elsewhere"), 5))
    assert "\n" not in str(problem.value)


@BOTH
def test_nobody_at_the_address_is_soon_given_up_and_everything_stays_pending(opened: Opener, provider: str) -> None:
    with Server() as server:
        nobody = server.port
    door = opened(tries=50)
    with pytest.raises(Unreachable, match=r"no connection.*without an answer: 1,000"):
        answers(door, jobs(Model(provider, "m", f"http://127.0.0.1:{nobody}"), 1000))
    with Server(port=nobody):  # the door takes up again when there is one
        assert len(answers(door, jobs(Model(provider, "m", f"http://127.0.0.1:{nobody}" + ("/v1" if provider == "openai" else "")), 3))) == 3


@BOTH
def test_a_job_without_an_answer_after_all_tries_stays_pending_and_the_others_end(opened: Opener, provider: str) -> None:
    with Server(plan=lambda asked: "500" if asked.last == "n3" else "ok") as server:
        door = opened(tries=2)
        found: dict[int, Answer[str]] = {}
        with pytest.raises(Unreachable, match=r"status 500 \(2 tries\); without an answer: 1;"):
            for job, answer in door.ask(jobs(model(server, provider), 10)):
                found[job.key] = answer
        assert sorted(found) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        server.plan = lambda asked: "ok"
        assert len(answers(door, jobs(model(server, provider), 10))) == 10
    assert Counter(asked.last for asked in server.log) == Counter({f"n{i}": 3 if i == 3 else 1 for i in range(10)})


def test_a_wait_of_a_day_is_not_waited_for(opened: Opener) -> None:
    with Server(plan=lambda asked: "429-far") as server, pytest.raises(Unreachable, match="429"):
        answers(opened(), jobs(model(server, "openai"), 3))


def test_a_bug_of_ours_is_not_tried_again(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    from autointerp.llm.openai import OpenAIChat

    tried = []

    def broken(self: OpenAIChat, found: object, parts: set[str]) -> None:
        tried.append(found)
        raise TypeError("a bug")

    monkeypatch.setattr(OpenAIChat, "_read", broken)
    with Server() as server, pytest.raises(TypeError, match="a bug"):
        answers(opened(), jobs(model(server, "openai"), 1))
    assert len(tried) == 1


# -- budgets -----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_budget_in_tokens_stops_cleanly_and_is_not_overrun(opened: Opener, provider: str) -> None:
    with Server(latency_s=0.02) as server:
        door = opened(budget_tokens=1000)
        found: dict[int, Answer[str]] = {}
        with pytest.raises(UserError, match=r"1,000 tokens is spent.*left to ask: \d+") as problem:
            for job, answer in door.ask(jobs(model(server, provider), 200)):
                found[job.key] = answer
        rows = calls(door)
    spent = sum((row.input_tokens or 0) + (row.output_tokens or 0) for row in rows)
    assert 800 < spent <= 1000  # as near as an estimate of the next one allows
    assert len(found) == len(rows) == len(server.log)
    assert f"left to ask: {200 - len(found)};" in str(problem.value)


def test_a_budget_in_dollars_counts_what_the_ledger_counts_and_what_is_known_is_still_answered(opened: Opener) -> None:
    with Server() as server:
        who = model(server, "openai")
        door = opened(budget_usd=0.0001, max_in_flight=4)
        with pytest.raises(UserError, match=r"\$0.0001 is spent"):
            answers(door, jobs(who, 200))
        paid = len(server.log)
        assert 0.00005 < sum(row.usd or 0 for row in calls(door)) <= 0.0001
        known = {int(row.purpose.split()[-1]) for row in calls(door)}
        found: dict[int, Answer[str]] = {}
        with pytest.raises(UserError, match=f"left to ask: {200 - len(known)}"):
            for job, answer in door.ask(jobs(who, 200)):
                found[job.key] = answer
    assert set(found) == known
    assert len(server.log) == paid


def test_attempts_that_may_have_been_billed_count_against_a_budget(opened: Opener) -> None:
    with Server(plan=lambda asked: "truncated") as server:
        door = opened(budget_tokens=150, tries=3, max_in_flight=1)
        with pytest.raises(UserError, match="is spent"):
            answers(door, jobs(model(server, "openai"), 50))
    assert len(server.log) == 6  # of the 50, the two that were under way


def test_what_is_not_waited_for_is_off_the_budget_and_what_was_on_its_way_counts_as_paid(opened: Opener) -> None:
    with Server(plan=lambda asked: "ok" if asked.number == 0 else "hang") as server:
        door = opened(budget_tokens=10_000, max_in_flight=4)
        asking = door.ask(jobs(model(server, "openai"), 50))
        next(asking)
        asking.close()
        spent = door.ledger.spent
        assert spent.in_flight == (pytest.approx(0), 0)
        assert spent.calls == 1
        assert spent.done.tokens <= 5 * (32 + 50)  # of those that wait for a place nothing


def test_what_is_expected_of_a_request_is_not_less_than_it_costs_when_all_of_it_is_written_to_the_cache() -> None:
    prices = Prices(config.load(None).price)
    who = Model("anthropic", "claude-haiku-5-5")
    request = Request(who, (("system", "s" * 30_000), ("user", "a")), 32, schema="{}" * 300)
    n_sent = 10_000 + 200
    reply = Reply("x", who.name, n_sent, 32, 0.0, cached_tokens=0, written_tokens=10_000)
    assert estimate(request, prices.of(who)).usd >= (prices.usd(who, reply) or 0)


def test_a_price_row_without_a_price_of_what_is_cached_takes_it_for_new(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[[price]]\nmodel = "mine"\ninput = 2\noutput = 4\n')
    prices = Prices(config.load(tmp_path / "a.toml").price)
    reply = Reply("x", "mine", 100, 10, 0.0, cached_tokens=60)
    assert prices.usd(Model("openai", "mine"), reply) == pytest.approx((100 * 2 + 10 * 4) / 1e6)


# -- a killed process --------------------------------------------------------------------------------------------------


def test_a_door_on_a_file_leaves_nothing_beside_it(opened: Opener, tmp_path: Path) -> None:
    with Server() as server, Store.create(tmp_path / "run.duckdb") as store:
        answers(Door(store, config.load(None, [])), jobs(model(server, "openai"), 5))
    assert [path.name for path in tmp_path.iterdir()] == ["run.duckdb"]
