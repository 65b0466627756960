"""Jobs in, answers out as they complete: the ledger first, then many requests in flight, one repair for a bad reply."""

import functools
import itertools
import os
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from autointerp import prompts
from autointerp.config import Settings
from autointerp.errors import AutointerpError, BudgetSpent, ConfigError, ReplyError, Unreachable, UserError
from autointerp.llm import online
from autointerp.llm.ledger import ENOUGH, Ledger
from autointerp.llm.prices import Budget, Cost, Prices, estimate
from autointerp.llm.request import Answer, Job, Model, Request
from autointerp.llm.sent import Sent
from autointerp.llm.trouble import KEY_VARIABLE, NoReply
from autointerp.rows import Call, Status
from autointerp.store import Store

T = TypeVar("T")

BLOCK = 64  # jobs that are looked up in the ledger at once
GRACE_S = 30.0  # how long replies that are paid for are waited for, when the asking has to stop


class Line(Protocol):
    """Where the requests to one model go."""

    def send(self, sent: Sent) -> None:
        """Take a request; its outcome will be put into `sent.done`."""
        ...

    def flush(self) -> None:
        """No more requests for now: do not wait for any."""
        ...

    def halt(self) -> None:
        """Begin nothing new; what has not begun ends without a reply."""
        ...

    def resume(self) -> None:
        """Take requests again."""
        ...

    def abandon(self, done: Any) -> None:
        """Drop the requests whose outcomes go there."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def check(model: Model, settings: Settings) -> None:
    """Is there all that it takes to ask this model? Raises ConfigError, before any work, for a missing key or price."""
    if model.provider == "local":
        from autointerp.subject import resolve_model

        resolve_model(model.name)
        return
    variable = KEY_VARIABLE[model.provider]
    key = os.environ.get(variable, "")
    if model.base_url is None and not key:
        raise ConfigError(f"{model} needs a key: put it into the environment variable {variable}")
    if not (key.isascii() and key.isprintable() and " " not in key):  # it could not even be sent
        raise ConfigError(f"{model}: {variable} in the environment is no key: white space or special characters in it")
    if settings.llm.budget_usd and Prices(settings.price).of(model) is None:
        raise ConfigError(
            f"llm.budget_usd = {settings.llm.budget_usd:g}, but the price of {model.name} is unknown: add a [[price]] "
            f'row with model = "{model.name}", or set llm.budget_tokens instead'
        )


class Door:
    """Asks models, and keeps the ledger. Doors on one store share its ledger and what has been spent of the budget."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger.of(store)
        self.prices = Prices(settings.price)
        self.budget = Budget(settings.llm, self.ledger.spent)
        self._lines: dict[Model, Line] = {}

    def ask(self, jobs: Iterable[Job[T]]) -> Iterator[tuple[Job[T], Answer[T]]]:
        """Answers as they complete, in any order; jobs are drawn lazily, so thousands can be given.

        After everything that completed has been yielded, it raises, where need be: Unreachable (no answer after all
        tries: those jobs stay pending), BudgetSpent (a clean stop, saying how many are left). A UserError, such as a
        key that is refused, stops it at once; replies that are in flight are still taken.
        """
        return _Asking(self, jobs).answers()

    def line(self, model: Model) -> Line:
        """Where the requests to a model go, opened on first use."""
        if model not in self._lines:
            check(model, self.settings)
            self._lines[model] = self._open(model)
        return self._lines[model]

    def _open(self, model: Model) -> Line:
        if model.provider == "local":
            from autointerp.llm import local

            return local.Batches(model, self.settings.subject.device, self.settings.explainer.batch)
        known = self.ledger.knows(model)
        return online.Online(functools.partial(_client, model), model, self.settings.llm, known)

    def close(self) -> None:
        """Close connections; models in this process are let go."""
        for line in self._lines.values():
            line.close()
        self._lines = {}


def _client(model: Model) -> online.Chat:
    """The SDK's client. SDKs take a second to import, so each is imported where it is used."""
    if model.provider == "anthropic":
        from autointerp.llm.anthropic import AnthropicChat

        return AnthropicChat(model)
    from autointerp.llm.openai import OpenAIChat

    return OpenAIChat(model)


@dataclass
class _Turn(Generic[T]):
    """One request of a job: its own, or the repair."""

    job: Job[T]
    request: Request
    repair_of: str | None = None  # the call that is being repaired
    known: Call | None = None  # what the ledger has


class _Asking(Generic[T]):
    """One call of `Door.ask`."""

    def __init__(self, door: Door, jobs: Iterable[Job[T]]) -> None:
        self.door, self.cfg = door, door.settings.llm
        self.done: queue.SimpleQueue[tuple[Sent, Any]] = queue.SimpleQueue()
        self.waiting: dict[str, list[_Turn[T]]] = {}  # by the call that they wait for
        self.under_way: dict[str, Sent] = {}  # the same calls
        self.arrived: dict[str, Call] = {}  # since the ledger was asked about the jobs that are being dealt out
        self.repairs: deque[_Turn[T]] = deque()
        self.turns = self._drawn(jobs)
        self.parked: _Turn[T] | None = None  # waits until it is known what those in flight cost
        self.lines: set[Line] = set()
        self.stop: AutointerpError | None = None
        self.deadline = 0.0  # of what is in flight, where the asking has to stop
        self.lost: list[Unreachable] = []
        self.left = 0  # jobs without an answer

    def answers(self) -> Iterator[tuple[Job[T], Answer[T]]]:
        """See Door.ask."""
        try:
            while True:
                yield from self._fill()
                if not self.waiting:
                    break
                found = self._next_outcome()
                if found is None:
                    break
                yield from self._arrived(*found)
                self.door.ledger.settle(ENOUGH)
        finally:
            if self.waiting:
                for line in self.lines:
                    line.abandon(self.done)
                self._forget()
            self.door.ledger.settle()
        self._raise()

    # -- out ---------------------------------------------------------------------------------------------------------

    def _drawn(self, jobs: Iterable[Job[T]]) -> Iterator[_Turn[T]]:
        rest = iter(jobs)
        while block := list(itertools.islice(rest, BLOCK)):
            self.arrived.clear()
            known = self.door.ledger.find([job.request.call_id for job in block])
            yield from (_Turn(job, job.request, known=known.get(job.request.call_id)) for job in block)

    def _next_turn(self) -> _Turn[T] | None:
        if self.parked is not None:
            turn, self.parked = self.parked, None
            return turn
        if self.repairs:
            turn = self.repairs.popleft()
            turn.known = self.door.ledger.find([turn.request.call_id]).get(turn.request.call_id)
            return turn
        for turn in self.turns:
            if turn.known is None:  # the same was asked before it, and has been answered since
                turn.known = self.arrived.get(turn.request.call_id)
            return turn
        return None

    def _fill(self) -> Iterator[tuple[Job[T], Answer[T]]]:
        """Send requests until there are enough under way, or an outcome waits to be looked at."""
        # More than may be in flight, so that a place that becomes free is taken while the caller is busy.
        while len(self.waiting) < 2 * self.cfg.max_in_flight and self.done.empty():
            turn = self._next_turn()
            if turn is None:
                break
            if turn.known is not None:
                yield from self._read(turn, turn.known)
            elif turn.request.call_id in self.waiting:  # asked twice, paid once
                self.waiting[turn.request.call_id].append(turn)
            elif self.stop is not None:  # what the ledger knows is still answered
                self.left += 1
            elif not self._send(turn):
                break
        else:
            return
        for line in self.lines:
            line.flush()

    def _send(self, turn: _Turn[T]) -> bool:
        """Hand a request to its line; False where it has to wait until those in flight are paid."""
        request, spent = turn.request, self.door.ledger.spent
        expected = estimate(request, self.door.prices.of(request.model))
        if not self.door.budget.allows(expected):
            if self.door.budget.allows(expected, and_in_flight=False) and self.waiting:
                self.parked = turn
                return False
            self.stop = self.door.budget.problem()
            self.left += 1
            return True
        line = self.door.line(request.model)
        if line not in self.lines:
            self.lines.add(line)
            line.resume()
        purpose = turn.job.purpose if turn.repair_of is None else f"{turn.job.purpose} repair"
        self.waiting[request.call_id] = [turn]
        spent.send(expected)
        sent = Sent(request, purpose, turn.repair_of, self.door.ledger, self.door.prices, expected, self.done)
        self.under_way[request.call_id] = sent
        line.send(sent)
        return True

    # -- in ----------------------------------------------------------------------------------------------------------

    def _next_outcome(self) -> tuple[Sent, Any] | None:
        """What completes next. None where the asking has to stop and the rest does not come in time."""
        if self.stop is None or isinstance(self.stop, BudgetSpent):
            return self.done.get()
        try:
            return self.done.get(timeout=max(self.deadline - time.monotonic(), 0.0))
        except queue.Empty:
            self.left += len(self.waiting)
            return None

    def _arrived(self, sent: Sent, outcome: Any) -> Iterator[tuple[Job[T], Answer[T]]]:
        turns = self.waiting.pop(sent.request.call_id)
        del self.under_way[sent.request.call_id]
        cost = _cost(outcome, sent) if isinstance(outcome, Call) else Cost()
        self.door.ledger.spent.arrived(sent.expected, cost.plus(sent.lost))
        if isinstance(outcome, Call):
            self.arrived[outcome.call_id] = outcome
            for turn in turns:
                yield from self._read(turn, outcome)
        elif isinstance(outcome, NoReply):
            for turn in turns:
                yield turn.job, Answer(outcome.status, None, outcome.reason, turn.repair_of)
        elif isinstance(outcome, Unreachable):
            self.left += len(turns)
            self.lost.append(outcome)
        elif isinstance(outcome, UserError):
            self.left += len(turns)
            self._halt(outcome)
        else:
            raise outcome

    def _read(self, turn: _Turn[T], call: Call) -> Iterator[tuple[Job[T], Answer[T]]]:
        """The answer in a recorded reply; none yet where it has to be repaired first."""
        # A small model in this process often goes on after its answer, until it is cut off: the answer may be whole.
        goes_on = call.provider == "local" and call.reason == "cut_off"
        if call.status != "ok" and not goes_on:
            yield turn.job, Answer(call.status, None, call.reason, call.call_id)
            return
        try:
            value = turn.job.parse(call.reply)
        except ReplyError as problem:
            if goes_on:
                yield turn.job, Answer("unparsed", None, call.reason, call.call_id)
                return
            if problem.reason != "refusal" and turn.repair_of is None:
                self.repairs.append(self._repair(turn, call, problem))
                return
            status: Status = "refused" if problem.reason == "refusal" else "unparsed"
            yield turn.job, Answer(status, None, problem.reason, call.call_id)
            return
        yield turn.job, Answer("ok", value, None, call.call_id)

    def _repair(self, turn: _Turn[T], call: Call, problem: ReplyError) -> _Turn[T]:
        """The same conversation, with the reply and what is wrong with it."""
        said = [(m["role"], m["content"]) for m in prompts.fill("repair", reason=str(problem))]
        return _Turn(turn.job, turn.request.followed_by(("assistant", call.reply), *said), call.call_id)

    def _forget(self) -> None:
        """Count what is not waited for: what was on its way may have to be paid."""
        for sent in self.under_way.values():
            cost = sent.lost.plus(sent.expected) if sent.tries else sent.lost
            self.door.ledger.spent.arrived(sent.expected, cost, calls=0)
        self.under_way = {}

    # -- stopping ----------------------------------------------------------------------------------------------------

    def _halt(self, problem: AutointerpError) -> None:
        if self.stop is None or isinstance(self.stop, BudgetSpent):
            self.stop, self.deadline = problem, time.monotonic() + GRACE_S
            for line in self.lines:
                line.halt()

    def _raise(self) -> None:
        if isinstance(self.stop, BudgetSpent):
            left = f"left to ask: {self.left:,}"
            raise BudgetSpent(f"{self.stop}; {left}; run again to go on: a budget is for one command")
        if self.stop is not None:
            raise self.stop
        if self.lost:
            gone = any(lost.gone for lost in self.lost)
            raise Unreachable(f"{self.lost[0]}; without an answer: {self.left:,}; run again to go on", gone)


def _cost(call: Call, sent: Sent) -> Cost:
    """What a call counts against a budget; where tokens were not counted, what was expected."""
    if call.input_tokens is None or call.output_tokens is None:
        return sent.expected
    return Cost(call.usd or 0.0, call.input_tokens + call.output_tokens)
