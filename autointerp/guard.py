"""What a page on loopback refuses: other hosts' names, and writes and work that other sites ask for.

A server on 127.0.0.1 is reachable by every page the same browser has open. Two attacks follow: a foreign name that is
made to resolve to loopback (DNS rebinding) reads the run, and a foreign page posts a form to it, or has it compute.
The first is seen in the `Host` header, the second in `Origin`, `Sec-Fetch-Site` and a token that only our pages hold.
"""

import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

NAMES = ("127.0.0.1", "localhost", "[::1]")
READS = ("GET", "HEAD")
TOKEN_HEADER = "x-autointerp-token"
HEADERS = {
    # Nothing inline and nothing from elsewhere: text that escapes a template by mistake still runs nothing.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def refusal(
    method: str, headers: list[tuple[str, str]], port: int, token: str, works: bool = False
) -> tuple[int, str] | None:
    """Status and one line for a request that must not be answered; None for one that may.

    headers: (lower-case name, value), repeated names kept: a second `Host` or `Origin` is refused, not picked from.
    A write needs the token, and an `Origin` and `Sec-Fetch-Site`, where sent, that are our own. Another site may lead
    a reader to a page, but embed none; and not even that to an address that `works`, which computes for seconds.
    """
    hosts = [value.lower() for name, value in headers if name == "host"]
    ours = [f"{name}:{port}" for name in NAMES] + (list(NAMES) if port == 80 else [])
    if len(hosts) != 1 or hosts[0] not in ours:
        return 421, f"this page answers to {ours[0]} only: open it under that address"
    sites = [value.lower() for name, value in headers if name == "sec-fetch-site"]
    if method in READS:
        modes = [value.lower() for name, value in headers if name == "sec-fetch-mode"]
        if all(site in ("same-origin", "none") for site in sites) or (modes == ["navigate"] and not works):
            return None
        return 403, "a request from another site is refused: open the page itself"
    origins = [value.lower() for name, value in headers if name == "origin"]
    if any(origin != f"http://{hosts[0]}" for origin in origins) or any(site != "same-origin" for site in sites):
        return 403, "a write from another site is refused: edit on the page itself"
    tokens = [value for name, value in headers if name == TOKEN_HEADER]
    if len(tokens) != 1 or not hmac.compare_digest(tokens[0].encode(), token.encode()):
        return 403, "the page is from an earlier start of the server: reload it and try again"
    return None


def guarded(app: App, port: int, token: str, works: Collection[str] = ()) -> App:
    """The ASGI application `app` behind `refusal`, with HEADERS on every answer; only lifespan and HTTP pass.

    works  paths at which a read computes for seconds
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"expected an HTTP request, got {scope['type']}: this page has no other kind")

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", []) if pair[0].decode("latin-1").lower() not in HEADERS]
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": kept + added}
            await send(message)

        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        refused = refusal(scope["method"], headers, port, token, scope.get("path") in works)
        if refused is None:
            await app(scope, receive, dressed)
            return
        status, line = refused
        plain = [(b"content-type", b"text/plain; charset=utf-8")]
        await dressed({"type": "http.response.start", "status": status, "headers": plain})
        await dressed({"type": "http.response.body", "body": f"{line}\n".encode()})

    return answer
