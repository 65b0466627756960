"""Jobs that hold several things: what is too long for a model's context is asked again in halves."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from autointerp.llm.door import Door
from autointerp.llm.request import Answer, Job

T = TypeVar("T")

TOO_LONG = "context_too_long"


def ask(
    door: Door, jobs: Iterable[Job[T]], halves: Callable[[Job[T]], Sequence[Job[T]]]
) -> Iterator[tuple[Job[T], Answer[T]]]:
    """Answers as of `Door.ask`; a job that is too long ends as the jobs that `halves` makes of it, so nothing is left
    out. Where it makes none (one thing alone is too long) the job ends with its reason.

    Raises what `Door.ask` raises, after everything that completed has been given.
    """
    asked: Iterable[Job[T]] = jobs
    while True:
        again: list[Job[T]] = []
        for job, answer in door.ask(asked):
            parts = halves(job) if answer.reason == TOO_LONG else ()
            again += parts
            if not parts:
                yield job, answer
        if not again:
            return
        asked = again


def cut(part: slice) -> tuple[slice, ...]:
    """The two halves of a range, the first one not the smaller; none of a range of one."""
    middle = part.start + -(-(part.stop - part.start) // 2)
    return () if middle == part.stop else (slice(part.start, middle), slice(middle, part.stop))


def note(n: int) -> str:
    """What a tally says of n jobs that were asked again; "" for none."""
    return f"calls too long for the model's context, asked again in halves: {n:,}" if n else ""
