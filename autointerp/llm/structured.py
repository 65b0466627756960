"""Structured replies: JSON out of a reply, its parts checked as they are read.

Every function raises ReplyError with what was expected, so that the repair can say it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from autointerp.errors import ReplyError


def decoded(reply: str) -> Any:
    """The JSON that a reply consists of, in a code fence or not, no key twice."""
    fenced = re.search(r"```(?:json)?\s*(.*?)```", reply, re.DOTALL)
    try:
        return json.loads(fenced.group(1) if fenced else reply, object_pairs_hook=_once)
    except (ValueError, RecursionError) as problem:
        raise ReplyError("bad_json", f"expected JSON alone: {problem}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; what stands there twice would lose one of its values in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ReplyError("bad_json", f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def entries(value: Any, name: str) -> list[Mapping[str, Any]]:
    """The list of objects under a name."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ReplyError("bad_shape", f"expected an object with a list of objects `{name}`")
    return found


def integer(entry: Mapping[str, Any], name: str) -> int:
    """The whole number under a name."""
    value = entry.get(name)
    if type(value) is not int:
        raise ReplyError("bad_shape", f"expected a whole number `{name}`, not {value!r}")
    return value


def integers(entry: Mapping[str, Any], name: str) -> list[int]:
    """The list of whole numbers under a name."""
    value = entry.get(name)
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise ReplyError("bad_shape", f"expected a list of whole numbers `{name}`, not {value!r}")
    return value
