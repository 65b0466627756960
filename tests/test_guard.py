"""A loopback page answers to its own name, and takes writes from its own pages only."""

import asyncio
from typing import Any

import pytest

from autointerp import guard

HOST = ("host", "127.0.0.1:8000")
TOKEN = (guard.TOKEN_HEADER, "right")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST:8000", "[::1]:8000"])
def test_own_names_read(host: str) -> None:
    assert guard.refusal("GET", [("host", host)], 8000, "right") is None


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        ["evil.example:8000"],
        ["localhost:8001"],
        ["localhost"],
        ["localhost:8000.evil.example"],
        ["localhost:8000", "evil.example"],
    ],
)
def test_other_names_are_refused(hosts: list[str]) -> None:
    refused = guard.refusal("GET", [("host", host) for host in hosts], 8000, "right")
    assert refused is not None and refused[0] == 421


@pytest.mark.parametrize(
    "extra",
    [
        [],
        [(guard.TOKEN_HEADER, "wrong")],
        [(guard.TOKEN_HEADER, "é")],
        [TOKEN, TOKEN],
        [TOKEN, ("origin", "http://evil.example")],
        [TOKEN, ("origin", "null")],
        [TOKEN, ("origin", "http://localhost:8000")],
        [TOKEN, ("sec-fetch-site", "cross-site")],
        [TOKEN, ("sec-fetch-site", "same-site")],
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
def test_foreign_writes_are_refused(method: str, extra: list[tuple[str, str]]) -> None:
    refused = guard.refusal(method, [HOST, *extra], 8000, "right")
    assert refused is not None and refused[0] == 403


@pytest.mark.parametrize(("extra", "works", "allowed"), [
    ([], True, True), ([("sec-fetch-site", "none")], True, True), ([("sec-fetch-site", "same-origin")], True, True),
    ([("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], False, True),  # a link to a page
    ([("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], True, False),
    ([("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], False, False),  # an image, a script
    ([("sec-fetch-site", "cross-site")], False, False), ([("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], True, False),
])  # fmt: skip
def test_other_sites_may_link_and_no_more(extra: list[tuple[str, str]], works: bool, allowed: bool) -> None:
    refused = guard.refusal("GET", [HOST, *extra], 8000, "right", works)
    assert refused is None if allowed else refused is not None and refused[0] == 403


def test_own_page_writes() -> None:
    own = [HOST, TOKEN, ("origin", "http://127.0.0.1:8000"), ("sec-fetch-site", "same-origin")]
    assert guard.refusal("POST", own, 8000, "right") is None


@pytest.mark.parametrize(("host", "status", "reached"), [("127.0.0.1:8000", 200, 1), ("evil.example", 421, 0)])
def test_every_answer_carries_the_policy(host: str, status: int, reached: int) -> None:
    sent: list[Any] = []
    calls: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope["method"])
        loose = [(b"Content-Security-Policy", b"script-src *")]
        await send({"type": "http.response.start", "status": 200, "headers": loose})
        await send({"type": "http.response.body", "body": b"page"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "headers": [(b"Host", host.encode())]}

    async def visit() -> None:
        await guard.guarded(app, 8000, "right")(scope, receive, send)

    asyncio.run(visit())
    assert sent[0]["status"] == status and len(calls) == reached
    policies = [value for name, value in sent[0]["headers"] if name.lower() == b"content-security-policy"]
    assert len(policies) == 1 and b"default-src 'none'" in policies[0] and b"unsafe" not in policies[0]
