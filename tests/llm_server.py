"""A language-model server on loopback that speaks both wire formats, can be told to fail, and keeps its own books.

`python -m tests.llm_server PORT LATENCY LIMIT` serves until it is killed; tests use `Server` in a thread.
"""

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from types import TracebackType
from typing import Any

Plan = Callable[["Asked"], str]
Says = Callable[["Asked"], str]
Reads = Callable[["Asked"], tuple[int, dict[str, Any]]]

GERMAN = "Wörter, die etwas mit Bewegung zu tun haben und die im Text besonders häufig und überall vorkommen, wie mir scheint"
REFUSAL = "I'm sorry, but I cannot help with that"
FAILURES = ("429", "500", "529", "hang", "cut", "truncated", "short")  # end well when asked again
BAD_REPLIES = ("refusal", "refused", "filtered", "empty", "language", "cut_off")  # a reply, and paid, but no good
ERRORS = {
    "400": (400, "invalid_request_error", "messages: unexpected thing"),
    "401": (401, "authentication_error", "Incorrect API key provided: test-k***-key"),
    "403": (403, "permission_error", "no access for test-key-secret"),
    "402": (402, "billing_error", "payment required"),
    "quota": (429, "insufficient_quota", "You exceeded your current quota, check your plan and billing details."),
    "404": (404, "model_not_found", "The model `m` does not exist or you do not have access to it."),
    "context": (400, "context_length_exceeded", "This model's maximum context length is 10 tokens."),
    "policy": (400, "content_filter", "The response was filtered due to the content management policy."),
    "429": (429, "rate_limit_error", "slow down"),
    "429-date": (429, "rate_limit_error", "slow down"),
    "429-far": (429, "rate_limit_error", "come back tomorrow"),
    "500": (500, "api_error", "oh no"),
    "503": (503, "api_error", "unavailable"),
    "529": (529, "overloaded_error", "Overloaded"),
}


@dataclass
class Asked:
    """A request, as it came."""

    number: int  # 0 is the first
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    kind: str = ""  # what became of it
    billed: bool = False  # the model answered: whoever asked has to pay

    @property
    def chat(self) -> list[tuple[str, str]]:
        """(role, text) of its messages, in either format; the token ids of a prompt that is completed."""
        if "prompt" in self.body:
            return [("prompt", json.dumps(self.body["prompt"]))]
        system = self.body.get("system")
        first = [("system", _text(system))] if system else []
        return first + [(m["role"], _text(m["content"])) for m in self.body["messages"]]

    @property
    def last(self) -> str:
        """The last message."""
        return self.chat[-1][1]


@dataclass
class Server:
    """What is served, and what was asked.

    plan   a request -> what becomes of it: ok, or one of the words above
    says   a request -> the text of its reply
    reads  a request to complete a prompt -> status and JSON of the reply; None: this server knows chats alone
    plays  word of a plan -> status and body that are sent as they stand
    limit  requests in flight above which it says 429
    """

    latency_s: float = 0.0
    limit: int | None = None
    plan: Plan = lambda asked: "ok"
    says: Says = lambda asked: f"label {asked.last}"
    reads: Reads | None = None
    plays: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    knows: frozenset[str] | None = None  # parts of a request it knows; None: all
    counts: bool = True  # says how many tokens there were
    cached_tokens: int = 0
    retry_after: str = "0.05"
    port: int = 0
    log: list[Asked] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0  # the largest number in flight, those above the limit included
    _hanging: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def openai(self) -> str:
        """base_url for the OpenAI SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def anthropic(self) -> str:
        """base_url for the Anthropic SDK."""
        return f"http://127.0.0.1:{self.port}"

    def kinds(self) -> Counter[str]:
        """How the requests ended."""
        return Counter(asked.kind for asked in self.log)

    def whole(self) -> Counter[str]:
        """Requests whose reply was sent whole, by their messages: what has to be paid, and need not be paid again."""
        paid = [asked for asked in self.log if asked.billed and asked.kind not in {"truncated", "short"}]
        return Counter(json.dumps(asked.chat, ensure_ascii=False) for asked in paid)

    def cancel(self) -> None:
        """End the requests that hang."""
        for task in list(self._hanging):
            self._loop.call_soon_threadsafe(task.cancel)

    # -- running -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> "Server":
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=512))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply; False where the connection ends with it."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        asked = Asked(len(self.log), first.split(" ")[1], headers, body)
        self.log.append(asked)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            asked.kind = "429" if self.limit is not None and self.in_flight > self.limit else self._kind(asked)
            if asked.kind not in ERRORS and self.plays.get(asked.kind, (200, b""))[0] == 200:  # errors come at once
                await asyncio.sleep(self.latency_s)
            return await self._answer(asked, writer)
        finally:
            self.in_flight -= 1

    def _kind(self, asked: Asked) -> str:
        if asked.path == "/v1/completions" and self.reads is not None:
            return self.plan(asked)
        if asked.path not in {"/v1/chat/completions", "/v1/messages"}:
            return "no-path"
        unknown = {"temperature", "reasoning_effort", "response_format", "thinking", "output_config", "max_completion_tokens"}
        if self.knows is not None and (found := sorted(unknown & set(asked.body) - self.knows)):
            return f"unknown {found[0]}"
        return self.plan(asked)

    async def _answer(self, asked: Asked, writer: asyncio.StreamWriter) -> bool:
        kind = asked.kind
        if kind == "hang":
            task = asyncio.create_task(asyncio.sleep(3600))
            self._hanging.add(task)
            task.add_done_callback(self._hanging.discard)
            await task
        if kind in self.plays:
            return await self._send(writer, *self.plays[kind])
        if kind == "no-path":
            return await self._send(writer, 404, b'{"detail":"Not Found"}')
        if kind == "html":
            return await self._send(writer, 200, b"<html><body>hello</body></html>", "text/html")
        if kind == "no-choices":
            return await self._send(writer, 200, b'{"hello": "world"}')
        if kind.startswith("unknown "):
            word = kind.split()[1]
            return await self._send(writer, 400, _error("invalid_request_error", f"Unsupported parameter: '{word}' is not supported."))
        if kind in ERRORS:
            status, code, message = ERRORS[kind]
            more = {"429": self.retry_after, "429-date": formatdate(time.time() + 1, usegmt=True), "429-far": "86400"}
            return await self._send(writer, status, _error(code, message), retry_after=more.get(kind))
        if kind == "cut":
            return False
        status, said = 200, {}
        if asked.path == "/v1/completions" and self.reads is not None:
            status, said = self.reads(asked)
        asked.billed = status == 200
        found = json.dumps(said or self._reply(asked), ensure_ascii=False).encode()
        if kind == "truncated":
            return await self._send(writer, 200, found[: len(found) // 2])
        if kind == "short":  # fewer bytes than were promised
            await self._send(writer, 200, found[: len(found) // 2], length=len(found))
            return False
        return await self._send(writer, status, found, "text/plain" if kind == "plain" else "application/json")

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json",
        retry_after: str | None = None, length: int | None = None,
    ) -> bool:  # fmt: skip
        more = f"retry-after: {retry_after}\r\n" if retry_after is not None else ""
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body) if length is None else length}\r\n{more}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return True

    def _reply(self, asked: Asked) -> dict[str, Any]:
        kind = asked.kind
        text = {"refusal": REFUSAL, "refused": "", "filtered": "", "empty": "", "language": GERMAN}.get(kind)
        text = self.says(asked) if text is None else text
        sent, got = sum(len(t) for _, t in asked.chat) // 4, max(len(text) // 4, 1)
        sent = max(sent, self.cached_tokens)
        if asked.path.endswith("/messages"):
            stop = {"refused": "refusal", "filtered": "refusal", "cut_off": "max_tokens"}.get(kind, "end_turn")
            usage = {
                "input_tokens": sent - self.cached_tokens, "output_tokens": got,
                "cache_read_input_tokens": self.cached_tokens, "cache_creation_input_tokens": 0,
            }  # fmt: skip
            return {
                "id": f"msg_{asked.number}", "type": "message", "role": "assistant", "model": f"{asked.body['model']}-2026",
                "content": [{"type": "text", "text": text}] if text else [], "stop_reason": stop, "stop_sequence": None,
                "usage": usage,
            }  # fmt: skip
        stop = {"filtered": "content_filter", "cut_off": "length"}.get(kind, "stop")
        message = {"role": "assistant", "content": text, "refusal": REFUSAL if kind == "refused" else None}
        found = {
            "id": f"chatcmpl-{asked.number}", "object": "chat.completion", "created": 1, "model": f"{asked.body['model']}-2026",
            "choices": [{"index": 0, "finish_reason": stop, "message": message}],
        }  # fmt: skip
        usage = {
            "prompt_tokens": sent, "completion_tokens": got, "total_tokens": sent + got,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }  # fmt: skip
        return found | ({"usage": usage} if self.counts else {})


def fails(share: float, kinds: tuple[str, ...], seed: int = 0) -> Plan:
    """A plan that fails this share of requests, drawn by their number: the same requests in every run."""

    def plan(asked: Asked) -> str:
        draw = random.Random(f"{seed}/{asked.number}")
        return draw.choice(kinds) if draw.random() < share else "ok"

    return plan


def _error(code: str, message: str) -> bytes:
    """An error that both SDKs read."""
    return json.dumps({"type": "error", "error": {"type": code, "code": code, "message": message}}).encode()


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def main() -> None:
    """Serve until killed; the port is printed."""
    port, latency, limit = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    with Server(latency_s=latency, limit=limit or None, port=port) as server:
        print(server.port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
