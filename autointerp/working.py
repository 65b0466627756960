"""Work that outlasts a request: a thread that does it, one piece after another, and results that are asked for again.

A page that needs seconds of work is answered at once with how far it has come, and asks again; whoever asks for the
same thing meanwhile shares the work.
"""

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

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

    def start(self, description: str, total: float | None, unit: str) -> None:
        self.doing, self.total, self.unit, self.done = description, total, unit, 0.0

    def advance(self, n: float = 1, note: str | None = None) -> None:
        self.done += n


class Busy(UserError):
    """Too much work is waiting already."""


class Job(Generic[T]):
    """A piece of work that was asked for, and how far it has come."""

    def __init__(self, work: Callable[[Bar], T]) -> None:
        self.bar = Watched()
        self.over = threading.Event()
        self._work, self._result, self._problem = work, list[T](), list[BaseException]()

    def do(self) -> None:
        """Do the work and keep what comes of it, be it an error."""
        try:
            self._result.append(self._work(self.bar))
        except BaseException as problem:  # whoever asked raises it
            self._problem.append(problem)
        finally:
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
    """One thread, which begins with the first work that it is asked for; the latest results are kept."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Job[T]] = queue.SimpleQueue()
        self._jobs: OrderedDict[Hashable, Job[T]] = OrderedDict()
        self._thread: threading.Thread | None = None

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
                self._queue.put(job)
                self._forget()
            if self._thread is None:  # a daemon: loading a large model must not keep Ctrl-C waiting
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
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
            self._queue.get().do()
