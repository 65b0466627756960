"""Token bytes -> strings that add up to the text, and words -> the tokens they cover."""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


def token_strings(token_ids: Iterable[int], pieces: Mapping[int, bytes]) -> list[str]:
    """One string per token, which together are the passage's text.

    A character that is spread over several tokens is given to the one that completes it; bytes that never make a
    character become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    strings = [decoder.decode(pieces.get(token, b"")) for token in token_ids]
    if strings:
        strings[-1] += decoder.decode(b"", final=True)
    return strings


class Word(NamedTuple):
    """A word of a passage: its text, and the tokens first:last (last excluded) that it touches."""

    text: str
    first: int
    last: int


_WORD = re.compile(r"\d+(?:[.,]\d+)*%?|\w+(?:['’\-]\w+)*|[^\w\s]")


def words(strings: Sequence[str]) -> list[Word]:
    """The words, numbers and punctuation marks of a passage with the tokens that they cover."""
    starts = [0]
    for string in strings:
        starts.append(starts[-1] + len(string))
    found: list[Word] = []
    token = 0
    for match in _WORD.finditer("".join(strings)):
        while starts[token + 1] <= match.start():
            token += 1
        last = token
        while starts[last + 1] < match.end():
            last += 1
        found.append(Word(match.group(), token, last + 1))
    return found


def printable(value: Any) -> str:
    """A value for a terminal: control characters, which could be escape sequences, are shown instead of sent."""
    text = "" if value is None else str(value)
    if text.isprintable():  # nearly always, and a page has thousands of tokens
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
