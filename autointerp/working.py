"""Work that outlasts a request: a thread that does it, one piece after another, and results that are asked for again.

A page that needs seconds of work is answered at once with how far it has come, and asks again; whoever asks for the
same thing meanwhile shares the work.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from autointerp.errors import UserError
from autointerp.tally import Bar

WAITING = 8  # pieces of work that may wait; who asks for more is told to come back
T = TypeVar("T")


class Watched(Bar):
    """A bar that is looked up instead of drawn."""

    def __init__(self) -> None:
        super().__init__(enabled=False)
        self.doing, self.unit, self.done = "", "", 0.0
        self.total: float | None = None
        self.left_s: float | None = None  # time left, as of the last step; None before the first, and without a total
        self._began, self._before = 0.0, 0.0

    def start(self, description: str, total: float | None, unit: str, done: float = 0.0) -> None:
        self.doing, self.total, self.unit, self.done = description, total, unit, done
        self.left_s, self._began, self._before = None, time.monotonic(), done

    def advance(self, n: float = 1, note: str | None = None) -> None:
        self.done += n
        if self.total is not None and self.done > self._before:
            rate = (time.monotonic() - self._began) / (self.done - self._before)
            self.left_s = max(self.total - self.done, 0.0) * rate


class Loaded:
    """What a worker has loaded to work with. One thing at a time: two subjects at once might not fit into memory."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, Any] | None = None

    def get(self, key: Hashable, load: Callable[[], T], bar: Bar) -> T:
        """What was loaded under a key; what was loaded under another is let go first. On the worker's thread only."""
        if self._kept is None or self._kept[0] != key:
            bar.start("loading the subject and the dictionary", total=None, unit="")
            self._kept = None
            self._kept = key, load()
        found: T = self._kept[1]
        return found

    def has(self, key: Hashable) -> bool:
        """What that key stands for need not be loaded any more."""
        kept = self._kept
        return kept is not None and kept[0] == key


class Busy(UserError):
    """Too much work is waiting already."""


class Job(Generic[T]):
    """A piece of work that was asked for, and how far it has come."""

    def __init__(self, work: Callable[[Bar], T]) -> None:
        self.bar = Watched()
        self.over = threading.Event()
        self._work: Callable[[Bar], T] | None = work
        self._result, self._problem = list[T](), list[BaseException]()

    def do(self) -> None:
        """Do the work and keep what comes of it, be it an error."""
        assert self._work is not None, "done before"
        try:
            self._result.append(self._work(self.bar))
        except BaseException as problem:  # whoever asked raises it
            self._problem.append(problem)
        finally:
            self._work = None  # nor what it holds on to
            self.over.set()

    @property
    def failed(self) -> bool:
        return bool(self._problem)

    def result(self) -> T:
        """What the work returned, or the error that it raised."""
        if self._problem:
            raise self._problem[0]
        return self._result[0]


class Worker(Generic[T]):
    """One thread, there while there is work; the latest results are kept."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._lock = threading.Lock()
        self._queue: deque[Job[T]] = deque()
        self._jobs: OrderedDict[Hashable, Job[T]] = OrderedDict()
        self._working = False

    def ask(self, key: Hashable, work: Callable[[Bar], T], wait_s: float) -> T | Job[T]:
        """What `work` returns, if that is there within wait_s; else the job, to be asked for again by the same key.

        Raises what the work raised, once: who asks again afterwards has it tried again. Raises Busy where too much is
        waiting.
        """
        with self._lock:
            job = self._jobs.get(key)
            if job is None:
                if sum(not known.over.is_set() for known in self._jobs.values()) >= WAITING:
                    raise Busy(f"{WAITING} pieces of work are waiting already: try again in a while")
                job = self._jobs[key] = Job(work)
                self._queue.append(job)
                self._forget()
            if not self._working and self._queue:  # a daemon: loading a large model must not keep Ctrl-C waiting
                self._working = True
                threading.Thread(target=self._run, daemon=True).start()
            self._jobs.move_to_end(key)
        if not job.over.wait(wait_s):
            return job
        if job.failed:
            with self._lock:
                self._jobs.pop(key, None)
        return job.result()

    def _forget(self) -> None:
        """Drop the oldest results beyond those that are kept."""
        over = [key for key, job in self._jobs.items() if job.over.is_set()]
        for key in over[: max(len(over) - self.keep, 0)]:
            del self._jobs[key]

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._working = False
                    return
                job = self._queue.popleft()
            job.do()
