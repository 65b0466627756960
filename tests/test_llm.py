"""The door to a language model: what was asked once is never asked again, and every call is in the ledger."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from autointerp import config
from autointerp.errors import ReplyError, StoreError
from autointerp.llm import Answer, Door, Job, Model, Reply, Request
from autointerp.llm.ledger import Ledger, journal_path
from autointerp.store import Store


class Echo:
    """A provider in this process that answers with a running number, and counts."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.batches: list[int] = []
        self.replies: list[str] = []  # given out first

    def ask(self, requests: list[Request]) -> list[Reply]:
        self.batches.append(len(requests))
        found = []
        for request in requests:
            text = self.replies.pop(0) if self.replies else f"reply {len(self.asked)}"
            found.append(Reply(text, "echo-1", 7, 3, 12.5))
            self.asked.append(request)
        return found


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    """The provider behind every door of the test."""
    made = Echo()
    monkeypatch.setattr("autointerp.llm.local.LocalProvider", lambda *_: made)
    monkeypatch.setattr("autointerp.subject.resolve_model", lambda name: name)
    return made


@pytest.fixture
def door() -> Door:
    """A door on a store in memory."""
    return door_on(Store.memory())


def door_on(store: Store) -> Door:
    made = Door(store, config.load(None, ["explainer.batch=4"]))
    made.keep = store  # type: ignore[attr-defined]  # the ledger does not keep it alive
    return made


LOCAL = Model("local", "m")


def request(text: str, **changes: Any) -> Request:
    """A request of the provider `local`."""
    given = {"model": LOCAL, "messages": (("system", "s"), ("user", text)), "max_new_tokens": 8}
    return Request(**(given | changes))


def ask(door: Door, *requests: Request) -> list[str]:
    """The replies' texts, in the order of the requests."""
    found: dict[int, Answer[str]] = {}
    for job, answer in door.ask(Job(r, f"test {i}", str, i) for i, r in enumerate(requests)):
        found[job.key] = answer
    assert {answer.status for answer in found.values()} == {"ok"}
    return [found[i].value or "" for i in range(len(requests))]


def test_the_same_request_again_comes_from_the_ledger(door: Door, echo: Echo) -> None:
    first = ask(door, request("a"), request("b"))
    assert ask(door, request("b"), request("a")) == first[::-1]
    assert len(echo.asked) == 2
    assert door.ledger.store.query("SELECT count(*) FROM call")[1] == [(2,)]


def test_only_what_is_new_is_asked(door: Door, echo: Echo) -> None:
    ask(door, request("b"))
    assert ask(door, request("a"), request("b"), request("c")) == ["reply 1", "reply 0", "reply 2"]
    assert [r.messages[-1][1] for r in echo.asked] == ["b", "a", "c"]


def test_nothing_new_opens_no_provider(door: Door, echo: Echo) -> None:
    ask(door, request("a"))
    other = Door(door.ledger.store, door.settings)
    ask(other, request("a"))
    assert other._lines == {}


@pytest.mark.parametrize(
    "change",
    [
        {"draw": 1},
        {"model": Model("local", "other")},
        {"model": Model("local", "m", "http://elsewhere")},
        {"max_new_tokens": 9},
        {"temperature": 0.5},
        {"schema": "{}"},
        {"messages": (("user", "a"),)},
        {"messages": (("system", "s"), ("assistant", "a"))},
    ],
)
def test_another_draw_model_or_parameter_is_another_call(door: Door, echo: Echo, change: dict[str, Any]) -> None:
    assert sorted(ask(door, request("a"), request("a", **change))) == ["reply 0", "reply 1"]
    assert door.ledger.store.query("SELECT count(DISTINCT call_id) FROM call")[1] == [(2,)]


def test_what_may_be_cached_is_no_part_of_a_calls_key() -> None:
    assert request("a").call_id == request("a", stable=1).call_id == request("a", stable=0).call_id


def test_keys_of_calls_are_those_of_the_first_release() -> None:
    assert Request(LOCAL, (("user", "a"),), 8).call_id == "f8b14e46c98930c4"


def test_the_same_request_twice_is_asked_once(door: Door, echo: Echo) -> None:
    first, second = ask(door, request("a"), request("a"))
    assert first == second
    assert len(echo.asked) == 1


def test_requests_run_in_full_batches_and_jobs_are_drawn_as_they_are_needed(door: Door, echo: Echo) -> None:
    drawn = []

    def jobs() -> Any:
        for i in range(1000):
            drawn.append(i)
            yield Job(request(str(i)), "test", str)

    answers = door.ask(jobs())
    next(answers)
    assert len(drawn) < 200
    assert sum(1 for _ in answers) == 999
    assert set(echo.batches) == {4}


def test_the_ledger_says_what_was_asked_what_came_and_what_it_cost(door: Door, echo: Echo) -> None:
    ((_, answer),) = door.ask([Job(request("héllo", draw=3), "explain llm d/17", str)])
    found = door.ledger.store.calls([answer.call_id or ""])[answer.call_id or ""]
    columns = {name: getattr(found, name) for name in found.comments()}
    assert columns.pop("asked_at") is not None
    assert columns == {
        "call_id": request("héllo", draw=3).call_id, "provider": "local", "base_url": None, "model": "m",
        "model_answered": "echo-1", "purpose": "explain llm d/17", "draw": 3,
        "request": '[["system", "s"], ["user", "héllo"]]', "reply": "reply 0", "status": "ok", "reason": None,
        "repair_of": None, "input_tokens": 7, "cached_tokens": 0, "output_tokens": 3, "usd": 0.0, "ms": 12.5, "tries": 1,
    }  # fmt: skip


def test_text_of_any_kind_comes_back_as_it_was(door: Door, echo: Echo) -> None:
    text = "a\0b\n\r\u2028\u202e\x1b[31m ‮ 🏳️‍🌈 e\u0301 \ufffd\U0010ffff'\"\\"
    echo.replies = [text]
    assert ask(door, request(text)) == [text]
    assert ask(door, request(text)) == [text]
    assert len(echo.asked) == 1


def test_half_a_surrogate_pair_is_replaced_where_it_cannot_be_sent(door: Door, echo: Echo) -> None:
    assert request("a\ud83d").messages[-1][1] == "a?"
    ask(door, request("a\ud83d"))


# -- replies that cannot be used ---------------------------------------------------------------------------------------


def strict(reply: str) -> int:
    """A number, or why not."""
    if reply == "no":
        raise ReplyError("refusal")
    if not reply.isdigit():
        raise ReplyError("no_number", reply)
    return int(reply)


def one(door: Door, text: str = "a") -> Answer[int]:
    ((_, answer),) = door.ask([Job(request(text), "test a", strict)])
    return answer


def test_a_reply_that_cannot_be_used_is_asked_for_once_more_with_the_reason(door: Door, echo: Echo) -> None:
    echo.replies = ["seven", "7"]
    answer = one(door)
    assert (answer.status, answer.value, answer.reason) == ("ok", 7, None)
    assert echo.asked[1].messages[:3] == (*request("a").messages, ("assistant", "seven"))
    assert "no_number: seven" in echo.asked[1].messages[-1][1]
    assert echo.asked[1].call_id == answer.call_id
    rows = door.ledger.store.query("SELECT purpose, repair_of FROM call ORDER BY purpose")[1]
    assert rows == [("test a", None), ("test a repair", request("a").call_id)]


def test_one_repair_and_no_more(door: Door, echo: Echo) -> None:
    echo.replies = ["seven", "eight", "9"]
    answer = one(door)
    assert (answer.status, answer.value, answer.reason) == ("unparsed", None, "no_number")
    assert len(echo.asked) == 2
    assert one(door) == answer
    assert len(echo.asked) == 2


@pytest.mark.parametrize(("reply", "status", "reason"), [("no", "refused", "refusal"), (" \n", "unparsed", "empty")])
def test_a_refusal_and_an_empty_reply_are_not_repaired(
    door: Door, echo: Echo, reply: str, status: str, reason: str
) -> None:
    echo.replies = [reply]
    answer = one(door)
    assert (answer.status, answer.value, answer.reason) == (status, None, reason)
    assert answer.call_id is not None
    assert len(echo.asked) == 1


def test_a_bug_in_what_reads_a_reply_is_no_bad_reply(door: Door, echo: Echo) -> None:
    with pytest.raises(ZeroDivisionError):
        list(door.ask([Job(request("a"), "test", lambda reply: 1 // 0)]))
    assert len(echo.asked) == 1
    assert door.ledger.store.query("SELECT count(*) FROM call")[1] == [(1,)]  # it was paid


# -- durability --------------------------------------------------------------------------------------------------------


def test_a_reply_is_in_the_journal_before_it_is_used_and_in_the_table_at_the_end(echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "run.duckdb"
    with Store.create(path) as store:
        answers = door_on(store).ask(Job(request(str(i)), "test", str) for i in range(6))
        next(answers)
        assert journal_path(path).read_text().count("\n") == 4  # a batch
        assert store.query("SELECT count(*) FROM call")[1] == [(0,)]
        list(answers)
        assert not journal_path(path).exists()
        assert store.query("SELECT count(*) FROM call")[1] == [(6,)]


def test_the_next_writer_takes_over_what_a_journal_holds(echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "run.duckdb"
    with Store.create(path) as store:
        answers = door_on(store).ask(Job(request(str(i)), "test", str) for i in range(6))
        next(answers)
        left = journal_path(path).read_bytes()
        answers.close()
    journal_path(path).write_bytes(left + left[:50])  # killed between the transaction and the unlinking, in a line
    with Store.create(path) as store:
        door = door_on(store)
        assert store.query("SELECT count(*), count(DISTINCT call_id) FROM call")[1] == [(4, 4)]
        assert not journal_path(path).exists()
        assert ask(door, request("0")) == ["reply 0"]
    assert len(echo.asked) == 4


def test_answers_may_be_taken_within_a_transaction_and_calls_survive_its_end(echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "run.duckdb"
    with Store.create(path) as store:
        door = door_on(store)
        with pytest.raises(KeyError), store.transaction():
            ask(door, request("a"))
            raise KeyError
        assert ask(door, request("a")) == ["reply 0"]
    with Store.create(path) as store:
        assert store.query("SELECT count(*) FROM call")[1] == [(1,)]


def test_half_a_line_that_a_full_disk_left_does_not_spoil_the_next(echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "run.duckdb"
    with Store.create(path) as store:
        door = door_on(store)
        rows = []
        for i in range(3):
            answers = door.ask([Job(request(str(i)), "test", str)])
            next(answers)
            answers.close()
            rows += door.ledger.find([request(str(i)).call_id]).values()
        ledger = Ledger.of(store)
        ledger.add(rows[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal_path(path).stat().st_size + 40, hard))
        try:
            with pytest.raises(StoreError, match="disk is full"):
                ledger.add(rows[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        ledger.add(rows[2])
        left = journal_path(path).read_bytes()
    assert [json.loads(line)["call_id"] for line in left.splitlines()] == [rows[0].call_id, rows[2].call_id]
