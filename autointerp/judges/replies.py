"""How judges ask and are understood: labels x passages in one call, and per label the numbers of those that fit.

All labels of a feature share a call, because its passages are most of what is sent. A reply is checked as a whole: a
label or passage that is not there, one that stands there twice, a label without its list, and nothing of it is used.
A call that is too long for the model's context is asked again in halves, down to one passage a call.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import prompts
from autointerp.config import JudgeSection, model_of
from autointerp.errors import ReplyError
from autointerp.fence import line
from autointerp.judges import Item
from autointerp.llm import Answer, Door, Job, Request, halves
from autointerp.llm.structured import by_number, integers, numbered
from autointerp.rows import Status

Verdicts = NDArray[np.bool_]  # [label, passage]

NUMBERS = {"type": "array", "items": {"type": "integer"}}


class Question(NamedTuple):
    """The labels of one feature, and what they are judged on."""

    purpose: str  # of its calls, for the ledger
    labels: Sequence[str]  # no two alike
    items: Sequence[Item]
    per_call: int


@dataclass
class Verdict:
    """What came back for a question."""

    says: Verdicts  # [label, item]; meaningless where lost
    lost: dict[int, tuple[Status, str]] = field(default_factory=dict)  # item -> why there is no verdict on it
    missing: int = 0  # items without an answer


class Panel:
    """One kind of judge: a prompt file and a model."""

    def __init__(self, door: Door, cfg: JudgeSection, prompt: str) -> None:
        self.door, self.cfg, self.prompt, self.model = door, cfg, prompt, model_of(cfg)
        self.halved = 0  # calls that were too long for the model

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """The place of a question and its verdicts, as they are complete, in any order.

        Raises Unreachable or BudgetSpent after everything that is complete; the other questions stay pending.
        """
        found: dict[int, Verdict] = {}
        for place, question in enumerate(questions):
            n = len(question.items)
            found[place] = Verdict(np.zeros((len(question.labels), n), dtype=bool), missing=n)
            if not n:
                yield place, found.pop(place)
        jobs = (
            self._job(questions, place, slice(start, min(start + question.per_call, len(question.items))))
            for place, question in enumerate(questions)
            for start in range(0, len(question.items), question.per_call)
        )
        for job, answer in halves.ask(self.door, jobs, partial(self._halves, questions)):
            place, part = job.key
            verdict = found[place]
            _take(verdict, part, answer)
            if not verdict.missing:
                yield place, found.pop(place)

    def _job(self, questions: Sequence[Question], place: int, part: slice) -> Job[Verdicts]:
        question = questions[place]
        items = question.items[part]
        parse = partial(understood, n_labels=len(question.labels), n_passages=len(items))
        return Job(self.request(question.labels, items), question.purpose, parse, (place, part))

    def _halves(self, questions: Sequence[Question], job: Job[Verdicts]) -> list[Job[Verdicts]]:
        """The same about half of the items each: what is too long in one call is judged in two."""
        place, part = job.key
        parts = halves.cut(part)
        self.halved += bool(parts)
        return [self._job(questions, place, half) for half in parts]

    def request(self, labels: Sequence[str], items: Sequence[Item]) -> Request:
        """What is asked about some passages. Labels come from a model that has read the corpus: they are data too."""
        messages = prompts.fill(
            self.prompt,
            labels=_numbered([line(label) for label in labels]),
            passages=_numbered([i.text for i in items]),
        )
        content = tuple((message["role"], message["content"]) for message in messages)
        return Request(self.model, content, self.cfg.max_new_tokens, schema=json.dumps(numbered(len(labels), NUMBERS)))


def _take(verdict: Verdict, part: slice, answer: Answer[Verdicts]) -> None:
    verdict.missing -= part.stop - part.start
    if answer.value is not None:
        verdict.says[:, part] = answer.value
    else:
        assert answer.reason is not None
        verdict.lost |= dict.fromkeys(range(part.start, part.stop), (answer.status, answer.reason))


def _numbered(texts: Sequence[str]) -> str:
    """One JSON string a line, with its number."""
    return "\n".join(f"{n}: {json.dumps(text, ensure_ascii=False)}" for n, text in enumerate(texts, start=1))


def understood(reply: str, n_labels: int, n_passages: int) -> Verdicts:
    """What a reply says, [label, passage]: True where the passage fits.

    Raises ReplyError with the first thing that is wrong; nothing of a reply is used unless all of it can be.
    """
    found = by_number(reply, n_labels, "label")
    says = np.zeros((n_labels, n_passages), dtype=bool)
    for row, name in enumerate(found):
        fits = integers(found, name)
        for number in fits:
            if not 1 <= number <= n_passages:
                raise ReplyError("wrong_passage", f"there is no passage {number}; they are numbered 1 to {n_passages}")
        if len(set(fits)) < len(fits):
            raise ReplyError("wrong_passage", f"label {name}: a passage stands there twice")
        says[row, np.array(fits, dtype=np.int64) - 1] = True
    return says
