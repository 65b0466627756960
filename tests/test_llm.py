"""The door to a language model: what was asked once is never asked again, and every call is in the ledger."""

from pathlib import Path

import pytest

from autointerp import config
from autointerp.errors import SubjectError
from autointerp.llm import Door, Reply, Request
from autointerp.llm.local import LocalProvider
from autointerp.store import Store


class Echo:
    """A provider that answers with a running number, and counts."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.batches = 0

    def ask(self, requests: list[Request]) -> list[Reply]:
        self.batches += 1
        start = len(self.asked)
        self.asked += requests
        return [Reply(f"reply {start + i}", "echo-1", 7, 3, 12.5) for i in range(len(requests))]


def request(text: str, **changes: object) -> Request:
    """A request of the provider `local`."""
    given = {
        "provider": "local",
        "model": "m",
        "messages": (("system", "s"), ("user", text)),
        "max_new_tokens": 8,
    }
    return Request(**(given | changes))  # type: ignore[arg-type]


@pytest.fixture
def door() -> Door:
    """A door with a fake provider, on a store in memory."""
    made = Door(Store.memory(), config.load(None, []).explainer, "cpu")
    made._provider = Echo()
    return made


def ask(door: Door, *requests: Request) -> list[str]:
    """The replies' texts."""
    return [text for _, text in door.ask(requests, lambda i: f"test {i}")]


def test_the_same_request_again_comes_from_the_ledger(door: Door) -> None:
    first = ask(door, request("a"), request("b"))
    assert ask(door, request("b"), request("a")) == first[::-1]
    assert len(door.provider.asked) == 2  # type: ignore[attr-defined]
    assert door.store.query("SELECT count(*) FROM call")[1] == [(2,)]


def test_only_what_is_new_is_asked_and_replies_come_in_the_order_of_the_requests(door: Door) -> None:
    ask(door, request("b"))
    assert ask(door, request("a"), request("b"), request("c")) == ["reply 1", "reply 0", "reply 2"]
    assert [r.messages[-1][1] for r in door.provider.asked] == ["b", "a", "c"]  # type: ignore[attr-defined]


def test_nothing_new_opens_no_provider(door: Door) -> None:
    ask(door, request("a"))
    other = Door(door.store, door.cfg, "cpu")
    other.ask([request("a")], str)
    assert other._provider is None


@pytest.mark.parametrize(
    "change",
    [
        {"draw": 1},
        {"model": "other"},
        {"max_new_tokens": 9},
        {"temperature": 0.5},
        {"provider": "other"},
        {"messages": (("user", "a"),)},
    ],
)
def test_another_draw_model_or_parameter_is_another_call(door: Door, change: dict) -> None:
    assert ask(door, request("a"), request("a", **change)) == ["reply 0", "reply 1"]
    assert door.store.query("SELECT count(DISTINCT call_id) FROM call")[1] == [(2,)]


def test_the_same_request_twice_in_one_batch_is_asked_once(door: Door) -> None:
    first, second = ask(door, request("a"), request("a"))
    assert first == second
    assert len(door.provider.asked) == 1  # type: ignore[attr-defined]


def test_the_ledger_says_what_was_asked_what_came_and_what_it_cost(door: Door) -> None:
    ((call_id, _),) = door.ask([request("héllo", draw=3)], lambda i: "explain feature 17")
    found = door.store.call(call_id)
    assert found is not None
    assert found | {"call_id": ""} == {
        "call_id": "", "provider": "local", "model": "m", "model_answered": "echo-1", "purpose": "explain feature 17",
        "draw": 3, "request": '[["system", "s"], ["user", "héllo"]]', "reply": "reply 0", "input_tokens": 7,
        "cached_tokens": 0, "output_tokens": 3, "usd": 0.0, "ms": 12.5, "tries": 1,
    }  # fmt: skip


def test_a_call_that_is_rolled_back_is_not_in_the_ledger(door: Door) -> None:
    with pytest.raises(KeyError), door.store.transaction():
        ask(door, request("a"))
        raise KeyError
    assert door.store.query("SELECT count(*) FROM call")[1] == [(0,)]
    assert ask(door, request("a")) == ["reply 1"]


# -- the local provider ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local(tiny: dict[str, Path]) -> LocalProvider:
    """The tiny subject as a provider."""
    return LocalProvider(str(tiny["subject"]), "cpu")


TEXTS = [
    "Ada walked to",
    "the red",
    "Bela drove to the golden harbour, and it was 5 o'clock. Cleo",
    "x",
    "Dora " * 30,
]


def test_replies_of_a_batch_are_those_of_one_request_at_a_time(local: LocalProvider) -> None:
    requests = [request(text) for text in TEXTS]
    together = local.ask(requests)
    alone = [local.ask([r])[0] for r in requests]
    assert [r.text for r in together] == [r.text for r in alone]
    assert [(r.input_tokens, r.output_tokens) for r in together] == [
        (r.input_tokens, r.output_tokens) for r in alone
    ]
    assert any(r.text for r in together)


def test_replies_do_not_depend_on_the_order_of_a_batch_or_on_when_it_is_asked(local: LocalProvider) -> None:
    requests = [request(text) for text in TEXTS]
    first = [r.text for r in local.ask(requests)]
    assert [r.text for r in local.ask(requests)] == first
    assert [r.text for r in local.ask(requests[::-1])] == first[::-1]


def test_a_reply_holds_the_new_text_alone_and_is_no_longer_than_asked(local: LocalProvider) -> None:
    (reply,) = local.ask([request("Ada walked to the red", max_new_tokens=4)])
    assert "Ada walked" not in reply.text
    assert 1 <= reply.output_tokens <= 4
    encoded = local.tokenizer("s\n\nAda walked to the red", add_special_tokens=False)["input_ids"]
    assert reply.input_tokens == len(encoded)
    assert (reply.usd, reply.cached_tokens, reply.tries) == (0.0, 0, 1)


def test_a_model_that_is_not_there_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=r"no config\.json") as problem:
        LocalProvider(str(tmp_path), "cpu")
    assert "\n" not in str(problem.value)
