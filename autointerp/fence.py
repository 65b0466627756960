"""Excerpts are data: text of the corpus is made harmless before it enters a prompt.

A prompt holds data between <data> and </data>, and says that they are data. What could close that fence, fake a mark,
or pass for a turn of the chat is replaced by a look-alike of the same length, so that token strings keep their places
and a model still reads the text as it was. What a text says in plain words cannot be taken out; it stands inside the
fence, in its own excerpt.
"""

import re
import unicodedata
from collections.abc import Sequence

# Tags and special tokens, such as <|im_start|> or <start_of_turn>; and our marks. Those are no angle brackets, because
# <<s>> and <<data>> would hold a special token and the fence.
_ONE = str.maketrans("<>*", "‹›∗")
_TAG = re.compile(r"\[(/?[A-Z][A-Z_ ]*)\]")  # [INST], [/INST], [TOOL_CALLS]
_FENCE = re.compile(r"`{3,}|~{3,}|#{2,}")
_TURN = re.compile(r"(^|[\n\r])(\s*[#∗_]*(?:system|user|assistant|human|model|developer|tool)[∗_]*\s*):", re.IGNORECASE)
_LOOKALIKE = {"`": "ˋ", "~": "˜", "#": "＃"}
_BACK = str.maketrans("‹›∗ˋ˜＃꞉⟦⟧", "<>*`~#:[]")
_JOINERS = "\u200c\u200d"  # letters of Persian and Indic words, and emoji, need them


def neutral(strings: Sequence[str]) -> list[str]:
    """The token strings of a passage, each as long as it was, with nothing in them that a prompt is made of."""
    text = "".join(strings).translate(_ONE)
    text = _TAG.sub(r"⟦\1⟧", text)
    text = _FENCE.sub(lambda found: _LOOKALIKE[found.group()[0]] * len(found.group()), text)
    text = _TURN.sub(r"\1\2꞉", text)
    text = "".join("�" if _hidden(c) else c for c in text)
    parts, start = [], 0
    for string in strings:
        parts.append(text[start : start + len(string)])
        start += len(string)
    return parts


def restored(text: str) -> str:
    """What a model says of a text, with the characters that the corpus has in place of our look-alikes: a label that
    quotes one is read beside the text as it was. It is data of the corpus again, and goes into prompts through `line`.
    """
    return text.translate(_BACK)


def line(text: str) -> str:
    """A short text that stands alone (a token, a label), made harmless and on one line."""
    return " ".join("".join(neutral([text])).split())


def _hidden(character: str) -> bool:
    """True for what a reader would not see and a model would: controls, direction marks, tag characters."""
    if character.isspace() or character in _JOINERS:
        return False
    return unicodedata.category(character) in {"Cc", "Cf", "Cs"}
