"""Requests to a server: many in flight, retried, paced, and recorded as they arrive.

One event loop, in a thread of its own, serves every server. What it calls on (SDK clients, pace) is touched in that
thread alone.
"""

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from autointerp.config import LlmSection
from autointerp.errors import Unreachable, UserError
from autointerp.llm.pace import Pace
from autointerp.llm.request import Model, Reply
from autointerp.llm.sent import Sent
from autointerp.llm.trouble import Alien, BadRequest, Judge, NoReply, Transient, Unsupported

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0  # a provider that asks for more is not waited for
TRIES_OF_NOBODY = 4  # where nothing has ever answered at the address
PER_CLIENT = 8  # requests in flight
LOST_IN_A_ROW = 3  # requests without an answer after all tries, before the server is given up

_backoff = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_S)


class Chat(Protocol):
    """An SDK's client: one request, one attempt."""

    judge: Judge

    async def reply(self, sent: Sent, without: set[str]) -> Reply:
        """The reply. Raises what the SDK raises, or one of `trouble`.

        without  optional parts of a request that this server does not know
        """
        ...

    def parts(self, sent: Sent) -> set[str]:
        """The optional parts that this request would have."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


class Online:
    """The requests to one model of one server."""

    def __init__(self, open_chat: Callable[[], Chat], model: Model, cfg: LlmSection, known: bool = False) -> None:
        self.model, self.cfg = model, cfg
        self._known = known  # it has answered before
        self._clients = Clients(open_chat)
        self._pace = Pace(cfg.max_in_flight)
        self._without: set[str] = set()  # optional parts that the server does not know
        self._took: set[str] = set()  # optional parts of requests that it has answered
        self._doubts: list[asyncio.Future[bool]] = []  # of requests that would like to know whether it answers others
        self._answered = False
        self._told = False  # of its trouble
        self._lost = 0  # requests in a row without an answer after all tries
        self._gone = False  # it has been given up
        self._halt = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], Sent] = {}

    # -- called from outside -----------------------------------------------------------------------------------------

    def send(self, sent: Sent) -> None:
        """Take a request; its outcome goes into `sent.done`."""
        _loop().call_soon_threadsafe(self._start, sent)

    def flush(self) -> None:
        """Nothing waits here for company."""

    def halt(self) -> None:
        """No new attempts: what waits for another try ends at once, the rest when it has a place."""
        _loop().call_soon_threadsafe(self._stop)

    def resume(self) -> None:
        """Take requests again."""
        _loop().call_soon_threadsafe(self._start_over)

    def abandon(self, done: Any) -> None:
        """Drop the requests whose outcomes go there."""
        _loop().call_soon_threadsafe(self._cancel, done)

    def close(self) -> None:
        """Close the connections."""
        asyncio.run_coroutine_threadsafe(self._clients.close(), _loop())

    # -- in the loop's thread ----------------------------------------------------------------------------------------

    def _start(self, sent: Sent) -> None:
        task = asyncio.get_running_loop().create_task(self._run(sent))
        self._tasks[task] = sent
        task.add_done_callback(self._tasks.pop)

    def _cancel(self, done: Any) -> None:
        for task, sent in self._tasks.items():
            if sent.done is done:
                task.cancel()

    def _start_over(self) -> None:
        self._halt.clear()
        self._gone = False  # but what was lost in a row counts on

    def _stop(self) -> None:
        self._halt.set()
        self._pace.hurry()

    async def _run(self, sent: Sent) -> None:
        try:
            outcome: Any = sent.record(await self._answer(sent))
            self._lost = 0
        except Transient as problem:
            self._count_lost(problem)
            tries = f"{sent.tries} {'try' if sent.tries == 1 else 'tries'}"
            outcome = Unreachable(f"{self.model}: {problem} ({tries})", gone=self._gone)
        except asyncio.CancelledError:
            outcome = Unreachable(f"{self.model}: dropped")
        except Exception as problem:  # for the thread that asked: bugs keep their traceback
            outcome = problem
        sent.done.put((sent, outcome))

    def _count_lost(self, problem: Transient) -> None:
        """Give the server up where nobody ever answered, or nobody does any more."""
        if isinstance(problem, _Halted):
            return
        self._lost += 1
        if self._lost >= LOST_IN_A_ROW or (problem.absent and not self._answered):
            self._gone = True
            self._stop()

    async def _answer(self, sent: Sent) -> Reply:
        """The reply after as many tries as it takes. Raises Transient when they are used up."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Transient),
            stop=self._enough,
            wait=self._wait,
            sleep=self._sleep,
            reraise=True,
        )
        reply: Reply = await retrying(self._try, sent)
        return replace(reply, ms=(time.perf_counter() - sent.started) * 1000, tries=sent.tries)

    def _enough(self, state: RetryCallState) -> bool:
        problem = state.outcome.exception() if state.outcome is not None else None
        if isinstance(problem, _Halted) or (isinstance(problem, Transient) and _too_long(problem)):
            return True
        nobody = isinstance(problem, Transient) and problem.absent and not self._answered
        tries = min(TRIES_OF_NOBODY, self.cfg.tries) if nobody else self.cfg.tries
        return state.attempt_number >= tries

    def _wait(self, state: RetryCallState) -> float:
        problem = state.outcome.exception() if state.outcome is not None else None
        asked = problem.retry_after if isinstance(problem, Transient) else None
        return max(asked or 0.0, _backoff(state))

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._halt.wait(), seconds)

    async def _try(self, sent: Sent) -> Reply:
        """One attempt, in a place of its own; more than one request where the server does not know a part of it."""
        ticket = await self._pace.enter()
        try:
            if self._halt.is_set():
                raise _Halted("stopped")
            sent.tries += 1
            sent.started = sent.started or time.perf_counter()
            with self._clients.lent() as chat:
                reply = await self._negotiated(chat, sent)
            self._answered = True
        except Transient as problem:
            if problem.busy:
                self._pace.refused(ticket, None if _too_long(problem) else problem.retry_after)
            if problem.billed:
                sent.lost = sent.lost.plus(sent.expected)
            self._tell(problem)
            raise
        finally:
            self._pace.leave()
            self._weigh()
        self._pace.answered()
        return reply

    async def _answers(self) -> bool:
        """Whether the server answers others than this request; waits until that shows."""
        doubt = asyncio.get_running_loop().create_future()
        self._doubts.append(doubt)
        self._weigh()
        return await doubt

    def _weigh(self) -> None:
        """Tell those who doubt whether the server answers: once it has, or where everybody in flight doubts it.

        Then it answers nobody; or, if it did in an earlier command, these few are what it did not answer there.
        """
        doubts = [doubt for doubt in self._doubts if not doubt.done()]
        if self._answered or len(doubts) >= self._pace.in_flight:
            for doubt in doubts:
                doubt.set_result(self._answered or (self._known and len(doubts) < LOST_IN_A_ROW))
            self._doubts = []

    def _tell(self, problem: Transient) -> None:
        """Say once that a server is in trouble: waiting for it may take long. Limits are no trouble."""
        if not (self._told or problem.busy or isinstance(problem, _Halted) or self.cfg.tries == 1):
            self._told = True
            log.warning("%s: %s; such requests are tried again", self.model, problem)

    async def _negotiated(self, chat: Chat, sent: Sent) -> Reply:
        dropped: set[str] = set()  # for this request; what was left out in vain is not left out of others
        while True:
            without = self._without | dropped
            try:
                async with asyncio.timeout(self.cfg.timeout_s):
                    reply = await chat.reply(sent, without)
                self._took |= chat.parts(sent) - without
                self._without |= dropped - self._took
                return reply
            except (Transient, NoReply, UserError):
                raise
            except Alien as alien:
                if not await self._answers():
                    raise UserError(f"{self.model}: no such API there ({alien}); check base_url") from None
                raise Transient("a reply of another form", billed=True) from None
            except Exception as error:
                problem = chat.judge.read(error, chat.parts(sent) - without)
            if isinstance(problem, Unsupported):
                if problem.named:
                    self._took -= problem.parts
                dropped |= problem.parts
                continue
            if isinstance(problem, BadRequest):
                if not await self._answers():  # so it would be with every request
                    raise UserError(f"{self.model} refuses the request: {problem}")
                log.warning("%s: %s refuses the request: %s", sent.purpose, self.model, problem)
                raise NoReply("failed", "bad_request")
            raise problem


class Clients:
    """As many clients of one server as the requests in flight want.

    A client's pool goes over all of its connections, and asks the system about the idle ones, whenever a request comes
    or ends: with 64 in one pool that is a quarter of what a request costs. Few in flight keep to few clients. The
    connections of a client without work stay open until `close`; there are never more than were in flight at once.
    """

    def __init__(self, open_chat: Callable[[], Chat]) -> None:
        self._open = open_chat
        self._busy: dict[Chat, int] = {}  # requests in flight

    @contextlib.contextmanager
    def lent(self) -> Iterator[Chat]:
        """A client for one request."""
        chat = next((chat for chat, busy in self._busy.items() if busy < PER_CLIENT), None) or self._open()
        self._busy[chat] = self._busy.get(chat, 0) + 1
        try:
            yield chat
        finally:
            if chat in self._busy:  # it has not been closed meanwhile
                self._busy[chat] -= 1

    async def close(self) -> None:
        """Close their connections."""
        chats, self._busy = list(self._busy), {}
        await asyncio.gather(*(chat.close() for chat in chats), return_exceptions=True)


class _Halted(Transient):
    """The asking has been stopped meanwhile."""


def _too_long(problem: Transient) -> bool:
    return problem.retry_after is not None and problem.retry_after > LONGEST_RETRY_AFTER_S


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop, running in a daemon thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="llm", daemon=True).start()
    return loop
