"""How many requests are in flight: as many as the provider lets through."""

import asyncio
from collections import deque

START = 16  # requests in flight before anything is known about the provider


class Pace:
    """A limit that grows while replies come and is halved where the provider says "too many".

    As in TCP: it doubles per round until the first refusal, then grows by one per round. Refusals of requests that
    were sent before the last cut say nothing new, so there is at most one cut per round. Lives in one event loop.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(min(most, START))
        self.in_flight = 0
        self._cuts = 0
        self._not_before = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> int:
        """Wait for a place. Returns a ticket for `refused`."""
        if self._waiting or not self._free():
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            self._wake()
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():  # it had been given a place
                    self.leave()
                raise
        else:
            self.in_flight += 1
        return self._cuts

    def leave(self) -> None:
        """Give the place back."""
        self.in_flight -= 1
        self._wake()

    def answered(self) -> None:
        """A reply came."""
        self.limit = min(self.limit + (1.0 if self._cuts == 0 else 1.0 / self.limit), float(self.most))
        self._wake()

    def refused(self, ticket: int, retry_after: float | None) -> None:
        """The provider was too busy for the request with this ticket, and asked to be left alone for some seconds."""
        if ticket == self._cuts:
            self.limit = max(self.limit / 2, 1.0)
            self._cuts += 1
        if retry_after is not None:
            self._not_before = max(self._not_before, asyncio.get_running_loop().time() + retry_after)

    def hurry(self) -> None:
        """Forget that the provider asked to be left alone: nobody will ask it any more."""
        self._not_before = 0.0
        self._wake()

    def _free(self) -> bool:
        return self.in_flight < int(self.limit) and asyncio.get_running_loop().time() >= self._not_before

    def _wake(self) -> None:
        while self._waiting and self._free():
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)
        loop = asyncio.get_running_loop()
        if self._waiting and loop.time() < self._not_before:
            loop.call_at(self._not_before, self._wake)
