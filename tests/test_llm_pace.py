"""How many requests are in flight: doubled until the first refusal, halved once a round, grown by one a round."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from autointerp.llm.online import PER_CLIENT, Clients
from autointerp.llm.pace import START, Pace
from autointerp.llm.trouble import retry_after


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def test_it_starts_low_and_a_round_of_answers_doubles_it() -> None:
    async def work() -> None:
        pace = Pace(64)
        for expected in (START, 32, 64, 64):
            assert int(pace.limit) == expected
            for _ in range(expected):
                pace.answered()

    run(work)


def test_refusals_of_one_round_halve_it_once_and_a_round_of_answers_adds_one() -> None:
    async def work() -> None:
        pace = Pace(16)
        tickets = [await pace.enter() for _ in range(16)]
        for ticket in tickets:
            pace.refused(ticket, None)
            pace.leave()
        assert pace.limit == 8
        again = await pace.enter()
        pace.refused(again, None)
        pace.leave()
        assert pace.limit == 4
        for _ in range(4):
            pace.answered()
        assert 4.9 < pace.limit <= 5

    run(work)


def test_it_never_falls_below_one() -> None:
    async def work() -> None:
        pace = Pace(2)
        for _ in range(10):
            pace.refused(await pace.enter(), None)
            pace.leave()
        assert pace.limit == 1

    run(work)


def test_there_are_never_more_inside_than_the_limit_and_everybody_gets_in() -> None:
    inside, most, done = 0, 0, 0

    async def visit(pace: Pace, i: int) -> None:
        nonlocal inside, most, done
        ticket = await pace.enter()
        inside += 1
        most = max(most, inside)
        assert inside <= 5
        await asyncio.sleep(0)
        if i % 7 == 0:
            pace.refused(ticket, 0.001)
        else:
            pace.answered()
        inside -= 1
        pace.leave()
        done += 1

    async def work() -> None:
        pace = Pace(5)
        await asyncio.gather(*(visit(pace, i) for i in range(200)))
        assert pace.in_flight == 0

    run(work)
    assert done == 200
    assert most <= 5


def test_one_who_gives_up_waiting_keeps_no_place() -> None:
    async def work() -> None:
        pace = Pace(1)
        await pace.enter()
        waiting = [asyncio.create_task(pace.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        pace.leave()
        waiting[1].cancel()  # it has been given the place, and does not know yet
        await asyncio.gather(*waiting[:2], return_exceptions=True)
        await asyncio.wait_for(waiting[2], 1)
        assert pace.in_flight == 1

    run(work)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"retry-after": "3"}, 3.0), ({"retry-after": "0.25"}, 0.25), ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, 0.0), ({"retry-after": "nan"}, None), ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)  # fmt: skip
def test_how_long_a_provider_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_date_to_come_is_so_many_seconds_from_now() -> None:
    assert (retry_after({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}) or 0) > 1e9


class Idle:
    """A client that does nothing."""

    judge: Any = None
    closed = False

    async def reply(self, sent: Any, without: set[str]) -> Any: ...

    def parts(self, sent: Any) -> set[str]:
        return set()

    async def close(self) -> None:
        self.closed = True


def test_a_client_takes_few_requests_at_a_time_and_few_requests_keep_to_one() -> None:
    async def work() -> None:
        made: list[Idle] = []

        def opened() -> Idle:
            made.append(Idle())
            return made[-1]

        clients = Clients(opened)
        with contextlib.ExitStack() as stack:
            lent = [stack.enter_context(clients.lent()) for _ in range(2 * PER_CLIENT + 1)]
        assert len(made) == 3
        assert max(Counter(id(chat) for chat in lent).values()) == PER_CLIENT
        for _ in range(2):  # all are free again
            with clients.lent() as chat:
                assert chat is made[0]
        with contextlib.suppress(ValueError), clients.lent():
            raise ValueError  # a request that failed gives its place back, too
        with contextlib.ExitStack() as stack:
            assert {id(stack.enter_context(clients.lent())) for _ in range(PER_CLIENT)} == {id(made[0])}
        await clients.close()
        assert all(client.closed for client in made)

    run(work)
