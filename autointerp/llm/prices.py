"""Dollars and tokens: what a reply cost, what a request may cost, and when a budget is spent."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from autointerp.config import LlmSection, PriceSection
from autointerp.errors import BudgetSpent
from autointerp.llm.request import Model, Reply, Request

MILLION = 1_000_000
BYTES_PER_TOKEN = 3  # on the safe side: English text has four and more
TOKENS_PER_MESSAGE = 8  # what a chat template adds


class Prices:
    """The [[price]] table."""

    def __init__(self, rows: Iterable[PriceSection]) -> None:
        self._rows = {row.model: row for row in rows}

    def of(self, model: Model) -> PriceSection | None:
        """The row of a model; None where there is none. A model in this process costs nothing."""
        if model.provider == "local":
            return PriceSection(model=model.name)  # type: ignore[call-arg]
        return self._rows.get(model.name)

    def usd(self, model: Model, reply: Reply) -> float | None:
        """Dollars for a reply; None where the price is unknown, or what it depends on was not counted."""
        row = self.of(model)
        if row is None:
            return None
        if row.free:
            return 0.0
        if reply.input_tokens is None or reply.output_tokens is None:
            return None
        cached, written = reply.cached_tokens or 0, reply.written_tokens
        plain = max(reply.input_tokens - cached - written, 0)  # some servers count more from the cache than was sent
        read = row.input if row.cached is None else row.cached
        write = row.input if row.written is None else row.written
        return (plain * row.input + cached * read + written * write + reply.output_tokens * row.output) / MILLION


class Cost(NamedTuple):
    """Dollars (0 where the price is unknown) and tokens."""

    usd: float = 0.0
    tokens: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """The sum."""
        return Cost(self.usd + other.usd, self.tokens + other.tokens)


NOTHING = Cost()


def estimate(request: Request, price: PriceSection | None) -> Cost:
    """The most that a request is likely to cost: all of it new to the cache, the longest reply."""
    if request.reading is not None:
        sent = request.reading.n_tokens
    else:
        texts = [content for _, content in request.messages] + ([request.schema] if request.schema else [])
        sent = sum(len(text.encode()) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE for text in texts)
    if price is None:
        return Cost(0.0, sent + request.max_new_tokens)
    dearest = max(price.input, price.written or 0.0)
    return Cost((sent * dearest + request.max_new_tokens * price.output) / MILLION, sent + request.max_new_tokens)


@dataclass
class Spent:
    """What calls have cost since the database was opened, and what those in flight may cost."""

    done: Cost = NOTHING
    in_flight: Cost = NOTHING
    calls: int = 0

    def send(self, cost: Cost) -> None:
        """A request goes out."""
        self.in_flight = self.in_flight.plus(cost)

    def arrived(self, expected: Cost, cost: Cost, calls: int = 1) -> None:
        """It is over, and cost this; no call where its reply was not waited for."""
        self.in_flight = Cost(self.in_flight.usd - expected.usd, self.in_flight.tokens - expected.tokens)
        self.done = self.done.plus(cost)
        self.calls += calls


class Budget:
    """llm.budget_usd and llm.budget_tokens; 0 is no limit."""

    def __init__(self, cfg: LlmSection, spent: Spent) -> None:
        self.usd, self.tokens, self.spent = cfg.budget_usd, cfg.budget_tokens, spent

    def allows(self, cost: Cost, and_in_flight: bool = True) -> bool:
        """True where a request of this cost fits, beside those in flight or once they turn out to cost nothing."""
        total = self.spent.done.plus(cost)
        if and_in_flight:
            total = total.plus(self.spent.in_flight)
        return not (self.usd and total.usd > self.usd) and not (self.tokens and total.tokens > self.tokens)

    def problem(self) -> BudgetSpent:
        """What to raise when it is spent."""
        done = self.spent.done
        if self.usd and (not self.tokens or done.usd / self.usd > done.tokens / self.tokens):
            limit, came = f"${self.usd:g}", f"${done.usd:.4f}"
        else:
            limit, came = f"{self.tokens:,} tokens", f"{done.tokens:,} tokens"
        return BudgetSpent(f"the budget of {limit} is spent ({came} in {self.spent.calls:,} calls)")
