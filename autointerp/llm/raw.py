"""Replies as the JSON that servers sent.

The SDKs check nothing of a reply that they make an object of, and that and their conversion of typed dicts take more
time than the rest of a call; so requests go out through their `post`, with their headers, key and errors, and replies
are read here. A field that holds something else than it should is as one that is not there.
"""

import json
from typing import Any

from autointerp.llm.trouble import Transient

CONNECT_S = 15.0  # to a server, TLS included
MOST = 2**31 - 1  # tokens that a count may be


async def post(client: Any, path: str, body: dict[str, Any]) -> Any:
    """What a server replies: JSON, or text that says it is no JSON.

    Raises what the SDK raises, and Transient for JSON that was cut short.

    client  openai.AsyncOpenAI or anthropic.AsyncAnthropic
    """
    import httpx2

    response = await client.post(path, cast_to=httpx2.Response, body=body)
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):  # the end may be within a character
        if _is_json(response.headers.get("content-type", "")):
            raise Transient("a reply that was cut short", billed=True) from None
        return response.text


def patience() -> Any:
    """The timeout of a client: for connecting alone, since how long a reply may take is `online`'s to say."""
    import httpx2

    return httpx2.Timeout(None, connect=CONNECT_S)


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower().endswith("json")


def field(found: Any, name: str) -> Any:
    """A field of an object; None where that is no object, or has none."""
    return found.get(name) if isinstance(found, dict) else None


def count(found: Any, name: str) -> int | None:
    """A field that counts tokens."""
    value = field(found, name)
    return value if type(value) is int and 0 <= value <= MOST else None


def text(value: Any) -> str | None:
    """A text: as it is, from the parts in which some servers send it, or an object as its JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(part if isinstance(part, str) else text(field(part, "text")) or "" for part in value)
    return json.dumps(value) if isinstance(value, dict) else None
