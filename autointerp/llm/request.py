"""What goes through the door: a model, a request, a job around it, a reply, an answer."""

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from autointerp.config import fingerprint
from autointerp.rows import Status

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """Who is asked."""

    provider: str  # local | openai | anthropic
    name: str  # never empty: config's "" has been replaced by the provider's default
    base_url: str | None = None  # a server of one's own; None is the provider's

    def __str__(self) -> str:
        return f"{self.provider}/{self.name}" + (f" at {self.base_url}" if self.base_url else "")


@dataclass(frozen=True)
class Reading:
    """What is read of a prompt instead of a reply: how likely some tokens are at some places in it.

    Without endings the prompt is read as it stands, in one pass. With them there is one prompt per place: the tokens
    before it, then its ending; what is read is what would follow. A server that caches prefixes runs the endings alone.
    """

    ids: tuple[int, ...]  # the prompt, as the model's tokenizer writes it
    places: tuple[int, ...]  # tokens before what is read
    wanted: tuple[int, ...]  # tokens that are read, no two alike
    top: int  # likeliest tokens that the server is asked for at a place
    endings: tuple[tuple[int, ...], ...] | None = None  # of each place

    @property
    def prompts(self) -> list[list[int]]:
        """What is sent."""
        if self.endings is None:
            return [list(self.ids)]
        return [[*self.ids[:place], *ending] for place, ending in zip(self.places, self.endings, strict=True)]

    @property
    def n_tokens(self) -> int:
        """Tokens sent."""
        return len(self.ids) if self.endings is None else sum(self.places) + sum(map(len, self.endings))


@dataclass(frozen=True)
class Request:
    """What is asked of a model. Two requests with equal content and draw are the same call, and are paid once."""

    model: Model
    messages: tuple[tuple[str, str], ...]  # (role, content); the stable prefix comes first
    max_new_tokens: int
    temperature: float = 0.0  # left out where the model takes none
    draw: int = 0  # k samples of one request are k calls
    schema: str | None = None  # JSON schema as text; a provider without structured replies gets the messages alone
    stable: int | None = None  # messages that other requests share, which a provider may cache; None: all but the last
    reading: Reading | None = None  # read the prompt instead of answering it; messages are then what its tokens say

    def __post_init__(self) -> None:
        if any(not _is_text(content) for _, content in self.messages):  # half a surrogate pair cannot be sent
            clean = tuple((role, content.encode("utf-8", "replace").decode()) for role, content in self.messages)
            object.__setattr__(self, "messages", clean)

    @cached_property
    def call_id(self) -> str:
        """The call's key in the ledger."""
        model = self.model
        parts: list[object] = [
            model.provider, model.name, self.messages, self.max_new_tokens, self.temperature, self.draw
        ]  # fmt: skip
        # What is not asked for leaves keys as they were before it could be.
        reading = None if self.reading is None else astuple(self.reading)
        more = {"base_url": model.base_url, "schema": self.schema, "reading": reading}
        return fingerprint([*parts, *({key: value} for key, value in more.items() if value is not None)])

    @property
    def n_stable(self) -> int:
        """How many messages other requests share, counted from the first."""
        return len(self.messages) - 1 if self.stable is None else self.stable

    def followed_by(self, *messages: tuple[str, str]) -> "Request":
        """The same conversation, with more messages; what other requests share stays what it was."""
        return replace(self, messages=(*self.messages, *messages), stable=self.n_stable)


def _is_text(content: str) -> bool:
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Job(Generic[T]):
    """A request, what it is for, and how its reply is read."""

    request: Request
    purpose: str  # stage and unit, such as "explain marks smollm2-135m-l15-4k/17"; kept in the ledger
    parse: Callable[[str], T]  # pure; raises ReplyError where the reply cannot be used
    key: Any = None  # the caller's own


@dataclass(frozen=True)
class Reply:
    """What came back. Tokens are None where the server does not count them."""

    text: str
    model: str  # that answered, as the provider names it
    input_tokens: int | None  # sent, cached ones included
    output_tokens: int | None
    ms: float  # to this reply; of a batch its share
    cached_tokens: int | None = 0  # of the input, read from the provider's cache
    written_tokens: int = 0  # of the input, written to it
    tries: int = 1
    status: Status = "ok"  # unparsed: cut off or empty; refused
    reason: str | None = None  # None when ok


@dataclass(frozen=True)
class Answer(Generic[T]):
    """How a job ended."""

    status: Status
    value: T | None  # what parse returned; None unless ok
    reason: str | None  # machine-readable; None when ok
    call_id: str | None  # ledger row behind it (of the repair, where one was needed); None where no reply came
