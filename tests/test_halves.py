"""What is too long is asked again in halves, and nothing of it is left out."""

import pytest

from autointerp.llm import Answer, Job, Model, Request, halves

from .doubles import FakeDoor

MODEL = Model("openai", "m", "http://127.0.0.1:9/v1")


def job(part: slice) -> Job[str]:
    return Job(Request(MODEL, (("user", f"{part.start} to {part.stop}"),), 1), "test", str, part)


@pytest.mark.parametrize(("n", "fits"), [(1, 1), (5, 1), (5, 2), (5, 3), (7, 2), (8, 8)])
def test_the_parts_that_fit_are_the_whole(n: int, fits: int) -> None:
    def say(asked: Job[str]) -> str | Answer[str]:
        part = asked.key
        return "yes" if part.stop - part.start <= fits else Answer("failed", None, halves.TOO_LONG, None)

    door = FakeDoor(say)  # type: ignore[arg-type]
    found = list(halves.ask(door, [job(slice(0, n))], lambda asked: [job(part) for part in halves.cut(asked.key)]))  # type: ignore[arg-type]
    assert sorted(i for asked, answer in found for i in range(asked.key.start, asked.key.stop) if answer.value) == list(range(n))


def test_what_cannot_be_halved_ends_with_its_reason_and_other_reasons_are_not_asked_again() -> None:
    reasons = {0: halves.TOO_LONG, 1: "refusal"}

    def say(asked: Job[str]) -> str | Answer[str]:
        return Answer("failed", None, reasons[asked.key.start], None)

    door = FakeDoor(say)  # type: ignore[arg-type]
    asked = [job(slice(0, 1)), job(slice(1, 9))]
    found = list(halves.ask(door, asked, lambda one: [job(part) for part in halves.cut(one.key)]))  # type: ignore[arg-type]
    assert [answer.reason for _, answer in found] == [halves.TOO_LONG, "refusal"] and len(door.asked) == 2
