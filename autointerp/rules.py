"""Structured labels: rules that say on which words of a passage a feature fires, and how strongly.

As JSON, which is what a model replies and what the column `explanation.rules` holds:

    {"label": "dollar amounts after a verb of spending",
     "rules": [{"trigger": ["dollars", "/\\$(\\d{1,9})/"], "context": ["spent", "paid"], "strength": 4,
                "exceptions": ["dollars short"]}]}

A rule reads: on each match of one of its triggers fires `strength`, provided that one of the `context` items matches
in the passage before it (an empty list asks for none), and that no exception matches text that overlaps the match.
Where several rules fire on one character, the strongest counts. An item is one of

- a literal: a token, word or phrase. Matched as whole words; in any case when it is all lower case, else as written;
- `/a regular expression/`, case-sensitive. With a capture group, the group alone fires (triggers) or counts (others).

Regular expressions come from a model, and Python's engine backtracks, so only those are accepted whose time is bounded:
no repeated groups, no look-around, no back-references, few ways to match from one place (`_ways`).
"""

import json
import math
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from autointerp.errors import ReplyError

MAX_RULES = 8  # per label
MAX_ITEMS = 12  # in one list of a rule
MAX_CHARS = 80  # in one item
MAX_STRENGTH = 5
MAX_WAYS = 10_000  # ways in which an expression may match from one place
UNBOUNDED = 500  # ways that `*`, `+` and `{n,}` count for: about the length of a passage in characters


@dataclass(frozen=True, slots=True)
class Rule:
    """When a feature fires: see above."""

    trigger: tuple[str, ...]  # at least one
    context: tuple[str, ...]  # () asks for none
    strength: int  # 0-5; a rule of strength 0 fires nothing
    exceptions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """A structured label: the sentence for people, and what it means."""

    label: str
    rules: tuple[Rule, ...]  # at least one

    @property
    def text(self) -> str:
        """The JSON that `load` reads back."""
        return json.dumps(asdict(self), ensure_ascii=False)


_ITEMS = {"type": "array", "items": {"type": "string", "maxLength": MAX_CHARS}, "maxItems": MAX_ITEMS}
_RULE = {
    "type": "object",
    "properties": {
        "trigger": {**_ITEMS, "minItems": 1},
        "context": _ITEMS,
        "strength": {"type": "integer", "minimum": 0, "maximum": MAX_STRENGTH},
        "exceptions": _ITEMS,
    },
    "required": ["trigger", "context", "strength", "exceptions"],
    "additionalProperties": False,
}
SCHEMA = {  # of the reply; bounds are checked here as well, because not every provider's schemas can say them
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "rules": {"type": "array", "items": _RULE, "minItems": 1, "maxItems": MAX_RULES},
    },
    "required": ["label", "rules"],
    "additionalProperties": False,
}


def load(text: str) -> Rules:
    """The rules in the column `explanation.rules`. Raises ReplyError like `parse`."""
    try:
        return parse(json.loads(text))
    except ValueError as problem:
        raise ReplyError("bad_json", str(problem)) from None


def parse(value: Any) -> Rules:
    """Rules from decoded JSON, checked: every item can be matched, and in bounded time.

    Raises ReplyError("bad_rules", ...) naming the first thing that is wrong.
    """
    if not isinstance(value, dict) or not isinstance(value.get("label"), str):
        raise _bad("expected an object with a text `label`")
    found = value.get("rules")
    if not isinstance(found, list) or not 0 < len(found) <= MAX_RULES:
        raise _bad(f"`rules` must be a list of 1 to {MAX_RULES} rules")
    return Rules(value["label"], tuple(_rule(entry) for entry in found))


def _rule(value: Any) -> Rule:
    if not isinstance(value, dict):
        raise _bad("a rule must be an object")
    strength = value.get("strength")
    if type(strength) is not int or not 0 <= strength <= MAX_STRENGTH:
        raise _bad(f"`strength` must be a whole number from 0 to {MAX_STRENGTH}, not {strength!r}")
    trigger = _items(value, "trigger")
    if not trigger:
        raise _bad("a rule without a trigger")
    return Rule(trigger, _items(value, "context"), strength, _items(value, "exceptions"))


def _items(value: dict[str, Any], name: str) -> tuple[str, ...]:
    found = value.get(name, [])
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise _bad(f"`{name}` must be a list of texts")
    items = tuple(dict.fromkeys(text for item in found if (text := item.strip())))
    if len(items) > MAX_ITEMS:
        raise _bad(f"{len(items)} items in `{name}`, at most {MAX_ITEMS} are allowed")
    for item in items:
        pattern(item)
    return items


def is_regex(item: str) -> bool:
    """True for an item between slashes."""
    return len(item) > 2 and item[0] == item[-1] == "/"


@lru_cache(maxsize=4096)
def pattern(item: str) -> re.Pattern[str]:
    """What finds an item in a passage's text; group 1, where the pattern has one, is the part that counts.

    Raises ReplyError("bad_rules", ...) for an item that is too long, no expression, or not bounded in time.
    """
    if len(item) > MAX_CHARS:
        raise _bad(f"an item of {len(item)} characters, at most {MAX_CHARS} are allowed")
    if not is_regex(item):
        return _literal(item)
    body = item[1:-1]
    if _ways(body) > MAX_WAYS:
        raise _bad(f"{item}: too many ways to match; repeat less, or list words instead")
    try:
        compiled = re.compile(body)
    except (re.error, OverflowError) as problem:
        raise _bad(f"{item}: {problem}") from None
    if compiled.groups > 1:
        raise _bad(f"{item}: more than one capture group; write (?:...) for the others")
    if compiled.match("") or any(not found.group() for found in compiled.finditer(" a.1")):
        raise _bad(f"{item}: matches the empty text")
    return compiled


def _literal(item: str) -> re.Pattern[str]:
    """Whole words, whatever white space is between them; smart case."""
    before = r"(?<!\w)" if re.match(r"\w", item[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", item[-1]) else ""
    body = r"\s+".join(re.escape(word) for word in item.split())
    return re.compile(before + body + after, re.IGNORECASE if item == item.lower() else 0)


_PART = re.compile(
    r"(?P<escape>\\(?P<escaped>.))|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<open>\((?P<special>\?:?)?)|"
    r"(?P<repeat>[*+?]|\{(?P<least>\d*)(?P<comma>,)?(?P<most>\d*)\})|(?P<other>.)",
    re.DOTALL,
)


def _ways(body: str) -> float:
    """An upper bound on the ways in which an expression can match from one place.

    Each repeat multiplies by the number of its lengths, each alternative by one more: an overestimate that needs no
    parser. Raises ReplyError for what it does not bound: repeated groups, look-around, back-references, inline flags.
    """
    ways, previous = 1.0, ""
    alternatives = [1]
    for part in _PART.finditer(body):
        if part["special"] == "?" or re.fullmatch("[1-9]", part["escaped"] or ""):
            raise _bad(f"/{body}/: only plain groups, sets, escapes and repeats are allowed")
        if part["open"]:
            alternatives.append(1)
        elif part["other"] == "|":
            alternatives[-1] += 1
        elif part["other"] == ")":
            ways *= alternatives.pop() if len(alternatives) > 1 else 1
        elif part["repeat"]:
            if previous == ")" and part["repeat"] != "?":
                raise _bad(f"/{body}/: a repeated group")
            ways *= _lengths(part)
        previous = part.group()
    return ways * math.prod(alternatives)


def _lengths(repeat: re.Match[str]) -> int:
    """How many lengths a repeat can have."""
    text = repeat["repeat"]
    if text == "?":
        return 2
    if text in "*+" or (repeat["comma"] and not repeat["most"]):
        return UNBOUNDED
    least = int(repeat["least"] or 0)
    most = int(repeat["most"]) if repeat["comma"] else least
    if most > MAX_CHARS:
        raise _bad(f"{text}: repeats more than {MAX_CHARS} times")
    return max(most - least, 0) + 1


def _bad(detail: str) -> ReplyError:
    return ReplyError("bad_rules", detail)
