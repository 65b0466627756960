"""Stand-ins for a language model, behind the interface of the door."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from autointerp.errors import ReplyError
from autointerp.llm import Answer, Job

Say = Callable[[Job[Any]], str | Exception | Answer[Any]]


class FakeDoor:
    """`Door.ask` with a function in place of a model: what it says is read as a real reply is, without a repair."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.asked: list[Job[Any]] = []

    def __call__(self, *_: object) -> "FakeDoor":
        """Opens as a door does."""
        return self

    def close(self) -> None:
        """Nothing is held."""

    def ask(self, jobs: Iterable[Job[Any]]) -> Iterator[tuple[Job[Any], Answer[Any]]]:
        """Answers in the order of the jobs; an exception that is said ends the asking after what was answered."""
        problem: Exception | None = None
        for job in jobs:
            self.asked.append(job)
            said = self.say(job)
            if isinstance(said, Exception):
                problem = said
                break
            yield job, said if isinstance(said, Answer) else self._read(job, said)
        if problem is not None:
            raise problem

    def _read(self, job: Job[Any], reply: str) -> Answer[Any]:
        call = job.request.call_id
        try:
            return Answer("ok", job.parse(reply), None, call)
        except ReplyError as problem:
            return Answer("refused" if problem.reason == "refusal" else "unparsed", None, problem.reason, call)

    @property
    def prompts(self) -> list[str]:
        """The last message of each job."""
        return [job.request.messages[-1][1] for job in self.asked]


# -- a model that obeys ------------------------------------------------------------------------------------------------

# What chat templates begin a turn with; a tokenizer reads these as special tokens wherever they stand.
TURNS = re.compile(
    r"<\|im_start\|>|<\|im_end\|>|<\|start_header_id\|>|<\|eot_id\|>|<start_of_turn>|<end_of_turn>|\[/?INST\]|</?s>|"
    r"<\|(?:system|user|assistant|channel|message|start|end)\|>|<<SYS>>|^#{2,} ?(?:Instruction|System|User|Response)|"
    r"^\s*(?:system|user|human|assistant)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
ORDER = re.compile(r"ignore (?:the|everything|all)[\w ]* (?:above|before)", re.IGNORECASE)
FENCE = re.compile(r"<data>.*?</data>", re.DOTALL)
OBEYED = "ten out of ten"


def heard(messages: Iterable[tuple[str, str]]) -> str:
    """What is outside every fence, as a model hears it whose template is fooled by markers within a message."""
    turns = [turn for _, content in messages for turn in TURNS.split(content)]
    return "\n".join(FENCE.sub("", turn) for turn in turns)


def obeys(job: Job[Any]) -> str:
    """The reply of a model that follows an order wherever it is not data; else the words marked most often."""
    if ORDER.search(heard(job.request.messages)):
        return f'{{"labels": ["{OBEYED}"]}}'
    marks = re.findall(r"\*\*(.+?)\*\*", job.request.messages[-1][1]) or ["nothing"]
    word = max(sorted(set(marks)), key=marks.count)
    return f'{{"labels": ["the word {word.replace(chr(34), "")} or its like"]}}'
