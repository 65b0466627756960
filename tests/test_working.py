"""Work beside the requests: shared while it goes on, raised once where it fails, bounded."""

import threading

import pytest

from autointerp import working
from autointerp.errors import UserError
from autointerp.tally import Bar
from autointerp.working import WAITING, Busy, Job, Loaded, Watched, Worker

LONG = 30.0  # seconds; never reached


def test_whoever_asks_for_the_same_shares_the_work() -> None:
    worker: Worker[int] = Worker(keep=4)
    go, done = threading.Event(), []

    def work(bar: Bar) -> int:
        bar.start("counting", total=3, unit="things")
        bar.advance(2)
        assert go.wait(LONG)
        done.append(1)
        return 7

    first = worker.ask("a", work, 0.0)
    assert isinstance(first, Job) and worker.ask("a", work, 0.0) is first
    while not first.bar.doing:
        pass
    assert (first.bar.doing, first.bar.total, first.bar.unit) == ("counting", 3, "things")
    go.set()
    assert worker.ask("a", work, LONG) == worker.ask("a", work, LONG) == 7 and done == [1]


def test_an_error_is_raised_and_the_work_can_be_tried_again() -> None:
    worker: Worker[int] = Worker(keep=4)
    tries = []

    def work(bar: Bar) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise UserError("no subject")
        return 7

    with pytest.raises(UserError, match="no subject"):
        worker.ask("a", work, LONG)
    assert worker.ask("a", work, LONG) == 7


def test_work_is_done_in_turn_and_not_without_end() -> None:
    worker: Worker[int] = Worker(keep=2)
    go, order = threading.Event(), list[int]()

    def work(n: int) -> int:
        assert go.wait(LONG)
        order.append(n)
        return n

    for n in range(WAITING):
        assert isinstance(worker.ask(n, lambda bar, n=n: work(n), 0.0), Job)  # type: ignore[misc]
    with pytest.raises(Busy, match="try again"):
        worker.ask("more", lambda bar: 1, 0.0)
    go.set()
    assert worker.ask(WAITING - 1, lambda bar: -1, LONG) == WAITING - 1
    assert order == list(range(WAITING))
    again = worker.ask("more", lambda bar: 1, LONG)
    assert again == 1 and worker.ask(0, lambda bar: -1, LONG) == -1  # only the latest are kept


def test_time_left_is_that_of_the_rate_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(working.time, "monotonic", lambda: now[0])
    bar = Watched()
    bar.start("ablate", total=10, unit="pairs", done=2)
    assert bar.left_s is None  # nothing is known yet
    now[0] = 106.0
    bar.advance(2)
    assert bar.left_s == 18.0
    now[0] = 130.0
    assert bar.left_s == 18.0  # until the next step: who asks again sees the same
    bar.advance(6)
    assert bar.left_s == 0.0
    bar.start("reading", total=None, unit="")
    bar.advance(1)
    assert bar.left_s is None


def test_one_thing_is_loaded_at_a_time() -> None:
    loaded, bar, held = Loaded(), Watched(), list[str]()

    def load(name: str) -> str:
        assert not any(loaded.has(key) for key in "ab")  # the other is gone before this one is there
        held.append(name)
        return name

    assert [loaded.get(key, lambda key=key: load(key), bar) for key in "aabba"] == list("aabba")  # type: ignore[misc]
    assert held == ["a", "b", "a"] and loaded.has("a") and not loaded.has("b")

    def fail() -> str:
        raise UserError("gone")

    with pytest.raises(UserError):
        loaded.get("c", fail, bar)
    assert not loaded.has("c") and not loaded.has("a") and loaded.get("a", lambda: load("a"), bar) == "a"
