"""Structured replies: the JSON in a reply, whatever was thought or said around it, its parts checked as they are read.

Every function raises ReplyError with what was expected, so that the repair can say it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from autointerp.errors import ReplyError


def decoded(reply: str) -> Any:
    """The JSON that a reply consists of, whatever was thought or said around it, no key twice."""
    try:
        return json.loads(alone(reply), object_pairs_hook=_once)
    except (ValueError, RecursionError) as problem:
        raise ReplyError("bad_json", f"expected JSON alone: {problem}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; what stands there twice would lose one of its values in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ReplyError("bad_json", f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


# -- what was said -----------------------------------------------------------------------------------------------------


def json_in(text: str) -> Any:
    """The JSON object or list that a reply consists of, in a code fence, after prose or bare; None for plain text.

    Raises ReplyError("bad_json") for what begins as JSON and cannot be read: cut off, mostly.
    """
    found = _found(text)
    return None if found is None else found[0]


def alone(reply: str) -> str:
    """The JSON that a reply consists of as text, without thoughts or prose around it; for a reader that checks it.

    A reply with more JSON after the first stays whole: which of the two is meant cannot be known. Raises ReplyError as
    `answer` and `json_in` do.
    """
    text = answer(reply)
    found = _found(text)
    return text if found is None or _JSON.search(text, found[1].stop) else text[found[1]]


def _found(text: str) -> tuple[Any, slice] | None:
    """The first JSON that is a reply, decoded, and where it stands."""
    start = next((m.start() for m in _JSON.finditer(text) if _opens(text[: m.start()])), None)
    if start is None:
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as problem:
        raise ReplyError("bad_json", f"expected JSON alone: {problem}") from None
    return value, slice(start, end)


_JSON = re.compile(r"\{\s*[\"“'}]|\[\s*[\"{']")


def _opens(before: str) -> bool:
    """True where JSON that comes after this text is the reply, and no part of a sentence: on a line of its own, or
    after a colon, a full stop or a tag."""
    return not before.rpartition("\n")[2].strip() or before.rstrip().endswith((":", ".", ">", "```json", "```"))


_FENCED = re.compile(r"^[ \t]*```\w*\s*(.*?)(?:```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


def unfenced(text: str) -> str:
    """What stands in the first code fence of a reply; the whole of it where there is none."""
    fenced = _FENCED.search(text)
    return (fenced[1] if fenced else text).strip()


_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning|reflection)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(r"</(?:think|thinking|thought|reasoning|reflection)>", re.IGNORECASE)
_THOUGHT_START = re.compile(r"<(?:think|thinking|thought|reasoning|reflection)>", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>(\w+)(?:<\|message\|>)?")
_TOKEN = r"(?:<\|[\w-]+\|>|</?s>|<(?:start|end)_of_turn>|</?answer>)"
_SPECIAL = re.compile(rf"^(?:\s*{_TOKEN})+|(?:{_TOKEN}\s*)+$")  # around a reply; within it they are what it is about


def answer(reply: str) -> str:
    """The reply without what the model thought aloud between tags.

    A template may have opened the tag itself, so text up to a closing tag alone is a thought too. Raises
    ReplyError("reasoning") for a thought that never ends, and "empty" for nothing after it.
    """
    text = reply.strip()
    if not text.startswith(("{", "[", "```")):  # else such a tag stands in one of the reply's texts
        text = _spoken(text)
    text = _SPECIAL.sub("", text).strip()
    if not text:
        raise ReplyError("empty")
    return text


def _spoken(text: str) -> str:
    text = _THOUGHT_END.split(_THOUGHT.sub("", text))[-1]
    if _THOUGHT_START.search(text):
        raise ReplyError("reasoning")
    channels = list(_CHANNEL.finditer(text))
    if channels and channels[-1][1] != "final":
        raise ReplyError("reasoning")
    return text[channels[-1].end() :] if channels else text


# -- schemas -----------------------------------------------------------------------------------------------------------

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
