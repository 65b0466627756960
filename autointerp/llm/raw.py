"""Replies as the JSON that servers sent.

The SDKs check nothing of a reply that they make an object of, and that and their conversion of typed dicts take more
time than the rest of a call; so requests go out through their `post`, with their headers, key and errors, and replies
are read here.
"""

import json
from typing import Any


async def post(client: Any, path: str, body: dict[str, Any]) -> Any:
    """What a server replies: JSON, or text that says it is no JSON.

    Raises what the SDK raises, and ValueError for JSON that was cut short.

    client  openai.AsyncOpenAI or anthropic.AsyncAnthropic
    """
    import httpx2

    response = await client.post(path, cast_to=httpx2.Response, body=body)
    try:
        return json.loads(response.content)
    except ValueError:
        if response.headers.get("content-type", "").partition(";")[0].strip().endswith("json"):
            raise
        return response.text


def field(found: Any, name: str) -> Any:
    """A field of an object in a reply; None where that is no object, or has none."""
    return found.get(name) if isinstance(found, dict) else None
