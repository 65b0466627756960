"""Structured replies: JSON out of a reply, its parts checked as they are read.

Every function raises ReplyError with what was expected, so that the repair can say it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from autointerp.errors import ReplyError

_THOUGHT_END = re.compile(r"</(?:think|thinking|thought|reasoning|reflection)>", re.IGNORECASE)


def decoded(reply: str) -> Any:
    """The JSON that a reply consists of, in a code fence or not, after a thought or not, no key twice."""
    if not reply.lstrip().startswith(("{", "[")):  # else what ends a thought may stand in a text of the reply
        reply = _THOUGHT_END.split(reply)[-1]
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


BOUNDS = {"minItems", "maxItems", "maxLength", "minimum", "maximum"}


def plain(schema: str | None) -> Any:
    """A schema, decoded, without the bounds that providers refuse in one. A model in this process is held to them."""
    return json.loads(schema or "{}", object_hook=lambda part: {k: v for k, v in part.items() if k not in BOUNDS})


def numbered(n: int, entry: dict[str, Any]) -> dict[str, Any]:
    """The schema of a reply about n numbered things, the shortest that names all: {"1": entry, "2": entry, ...}."""
    names = [str(i) for i in range(1, n + 1)]
    return {
        "type": "object",
        "properties": dict.fromkeys(names, entry),
        "required": names,
        "additionalProperties": False,
    }


def by_number(reply: str, n: int, what: str) -> dict[str, Any]:
    """The entries of such a reply, number -> entry, in order. Raises ReplyError for one too many or too few.

    what  is numbered: label or passage
    """
    found = decoded(reply)
    if not isinstance(found, dict):
        raise ReplyError("bad_shape", f"expected an object with a list for every {what}, not {type(found).__name__}")
    names = [str(i) for i in range(1, n + 1)]
    if unknown := sorted(found.keys() - set(names)):
        raise ReplyError(f"wrong_{what}", f"there is no {what} {unknown[0][:20]!r}; they are numbered 1 to {n}")
    if missing := [name for name in names if name not in found]:
        raise ReplyError(f"missing_{what}", f"no list for {what} {', '.join(missing)}")
    return {name: found[name] for name in names}


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
