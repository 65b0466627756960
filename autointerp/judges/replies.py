"""How judges ask and are understood: labels x passages in one call, and per label the numbers of those that fit.

All labels of a feature share a call, because its passages are most of what is sent. A reply is checked as a whole: a
label or passage that is not there, one that stands there twice, a label without its list, and nothing of it is used.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import prompts
from autointerp.config import JudgeSection, model_of
from autointerp.errors import ReplyError
from autointerp.explainers.fence import line
from autointerp.judges import Item
from autointerp.llm import Answer, Door, Job, Request
from autointerp.llm.structured import decoded, integers
from autointerp.rows import Status

Verdicts = NDArray[np.bool_]  # [label, passage]

NUMBERS = {"type": "array", "items": {"type": "integer"}}


def schema(n_labels: int) -> dict[str, Any]:
    """Of a reply about so many labels, the shortest that names all: {"1": [passages that fit], "2": [...], ...}."""
    names = [str(n) for n in range(1, n_labels + 1)]
    return {
        "type": "object",
        "properties": dict.fromkeys(names, NUMBERS),
        "required": names,
        "additionalProperties": False,
    }


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
    missing: int = 0  # calls without an answer


class Panel:
    """One kind of judge: a prompt file and a model."""

    def __init__(self, door: Door, cfg: JudgeSection, prompt: str) -> None:
        self.door, self.cfg, self.prompt, self.model = door, cfg, prompt, model_of(cfg)

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """The place of a question and its verdicts, as they are complete, in any order.

        Raises Unreachable or BudgetSpent after everything that is complete; the other questions stay pending.
        """
        found: dict[int, Verdict] = {}
        for place, question in enumerate(questions):
            shape = len(question.labels), len(question.items)
            calls = -(-len(question.items) // question.per_call)
            found[place] = Verdict(np.zeros(shape, dtype=bool), missing=calls)
            if not calls:
                yield place, found.pop(place)
        for job, answer in self.door.ask(self._jobs(questions)):
            place, part = job.key
            verdict = found[place]
            _take(verdict, part, answer)
            if not verdict.missing:
                yield place, found.pop(place)

    def _jobs(self, questions: Iterable[Question]) -> Iterator[Job[Verdicts]]:
        for place, question in enumerate(questions):
            for start in range(0, len(question.items), question.per_call):
                part = slice(start, min(start + question.per_call, len(question.items)))
                items = question.items[part]
                parse = partial(understood, n_labels=len(question.labels), n_passages=len(items))
                yield Job(self.request(question.labels, items), question.purpose, parse, (place, part))

    def request(self, labels: Sequence[str], items: Sequence[Item]) -> Request:
        """What is asked about some passages. Labels come from a model that has read the corpus: they are data too."""
        messages = prompts.fill(
            self.prompt,
            labels=_numbered([line(label) for label in labels]),
            passages=_numbered([i.text for i in items]),
        )
        content = tuple((message["role"], message["content"]) for message in messages)
        return Request(self.model, content, self.cfg.max_new_tokens, schema=json.dumps(schema(len(labels))))


def _take(verdict: Verdict, part: slice, answer: Answer[Verdicts]) -> None:
    verdict.missing -= 1
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
    found = decoded(reply)
    if not isinstance(found, dict):
        raise ReplyError("bad_shape", f"expected an object with a list for every label, not {type(found).__name__}")
    names = [str(n) for n in range(1, n_labels + 1)]
    if unknown := sorted(found.keys() - set(names)):
        raise ReplyError("wrong_label", f"there is no label {unknown[0]!r}; they are numbered 1 to {n_labels}")
    if missing := [name for name in names if name not in found]:
        raise ReplyError("missing_label", f"no list for label {', '.join(missing)}")
    says = np.zeros((n_labels, n_passages), dtype=bool)
    for row, name in enumerate(names):
        fits = integers(found, name)
        for number in fits:
            if not 1 <= number <= n_passages:
                raise ReplyError("wrong_passage", f"there is no passage {number}; they are numbered 1 to {n_passages}")
        if len(set(fits)) < len(fits):
            raise ReplyError("wrong_passage", f"label {name}: a passage stands there twice")
        says[row, np.array(fits, dtype=np.int64) - 1] = True
    return says
