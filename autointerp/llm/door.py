"""Requests, replies, and the ledger between them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from autointerp.config import ExplainerSection, fingerprint
from autointerp.rows import Call
from autointerp.store import Store


@dataclass(frozen=True)
class Request:
    """What is asked of a model. Two requests with equal content and draw are the same call, and are paid once."""

    provider: str
    model: str
    messages: tuple[tuple[str, str], ...]  # (role, content)
    max_new_tokens: int
    temperature: float = 0.0
    draw: int = 0  # k samples of one request are k calls

    @property
    def call_id(self) -> str:
        """The call's key in the ledger."""
        return fingerprint([self.provider, self.model, self.messages, self.max_new_tokens, self.temperature, self.draw])


@dataclass(frozen=True)
class Reply:
    """What came back. Times are for this reply's share of its batch."""

    text: str
    model: str
    input_tokens: int
    output_tokens: int
    ms: float
    cached_tokens: int = 0
    usd: float = 0.0
    tries: int = 1


class Provider(Protocol):
    """Who runs a model."""

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests. Raises Unreachable when there is no answer to be had."""
        ...


class Door:
    """Asks a provider, and keeps the ledger."""

    def __init__(self, store: Store, cfg: ExplainerSection, device: str) -> None:
        self.store, self.cfg, self.device = store, cfg, device
        self._provider: Provider | None = None

    def ask(self, requests: Sequence[Request], purpose: Callable[[int], str]) -> list[tuple[str, str]]:
        """(call_id, reply text) per request; new replies are written to the ledger within the caller's transaction.

        purpose  index of a request -> what it is for, kept in the ledger
        """
        known = {r.call_id: found["reply"] for r in requests if (found := self.store.call(r.call_id)) is not None}
        first = {request.call_id: i for i, request in reversed(list(enumerate(requests)))}  # asked twice, paid once
        new = sorted(i for call, i in first.items() if call not in known)
        if new:
            replies = self.provider.ask([requests[i] for i in new])
            self.store.add([_row(requests[i], reply, purpose(i)) for i, reply in zip(new, replies, strict=True)])
            known |= {requests[i].call_id: reply.text for i, reply in zip(new, replies, strict=True)}
        return [(request.call_id, known[request.call_id]) for request in requests]

    @property
    def provider(self) -> Provider:
        """The configured provider, opened on first use."""
        if self._provider is None:
            from autointerp.llm.local import LocalProvider

            self._provider = LocalProvider(self.cfg.model, self.device)
        return self._provider


def _row(request: Request, reply: Reply, purpose: str) -> Call:
    return Call(
        call_id=request.call_id, provider=request.provider, model=request.model, model_answered=reply.model,
        purpose=purpose, draw=request.draw, request=json.dumps(request.messages, ensure_ascii=False), reply=reply.text,
        input_tokens=reply.input_tokens, cached_tokens=reply.cached_tokens, output_tokens=reply.output_tokens,
        usd=reply.usd, ms=reply.ms, tries=reply.tries,
    )  # fmt: skip
