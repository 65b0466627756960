"""What a label names, apart from what it says about it: the alternatives that a token may resemble.

Labels are lists of words or sentences about words: `raise, raised`, `the word "other"`, `modal verbs such as will and
would`. A token resembles a label as far as it resembles one of these alternatives, so what only speaks of words ("the
word", "forms of the verb", "also") would make every alternative resemble grammar instead.
"""

import re

_QUOTED = re.compile(
    r""""([^"]*\w[^"]*)"|“([^”]*\w[^”]*)”|`([^`]*\w[^`]*)`|(?<!\w)['‘](\w(?:[^'‘’]{0,30}\w)?)['’](?!\w)"""
)
_BETWEEN = re.compile(
    r"\s*[,;:()]\s*(?:(?:such as|including|especially)\s+)?|\s+(?:or|and|such as|including|especially)\s+"
)
_LAST = re.compile(r"(?:and|or)\s+", re.I)  # opens the last alternative of three or more

# Words that speak of words, and what may stand between, before and after them. A clause loses them from its start only
# where a noun of the first kind (or "also") is among them: `of the` and `and their` are labels too.
_LINK = (
    r"(?:(?:the|an?|any|all|some|other|of|for|to|in|about|like|as|also|only|relative|demonstrative|modal|object|subject"
    r"|personal|possessive|ordinal|expressing|denoting|describing|meaning)\s+)*"
)
_SPEECH = (
    r"(?:words?|phrases?|tokens?|terms?|forms?|references?|mentions?|names?|verbs?|nouns?|pronouns?|prepositions?"
    r"|conjunctions?|adjectives?|adverbs?|articles?|also|any\s+of)"
)
_ABOUT = re.compile(rf"{_LINK}(?:{_SPEECH}\s+{_LINK})+", re.I)
_ALL_ABOUT = re.compile(rf"{_LINK}(?:{_SPEECH}\s+{_LINK})*{_SPEECH}", re.I)


def clauses(label: str) -> list[str]:
    """The alternatives of a label, at least one; the label itself where nothing is left of it.

    Where it quotes, what is quoted; else what stands between commas, semicolons, brackets and words such as "or",
    without what only speaks of words. A single quote within or after a word is an apostrophe.
    """
    quoted = [next(filter(None, groups)).strip() for groups in _QUOTED.findall(label)]
    if quoted:
        return quoted
    found = [part for part in _BETWEEN.split(label.strip()) if part.strip()]
    if len(found) > 2 and (opening := _LAST.match(found[-1])):
        found[-1] = found[-1][opening.end() :]
    named = [part for part in found if not (" " in part and _ALL_ABOUT.fullmatch(part))]
    return [part[about.end() :] if (about := _ABOUT.match(part)) else part for part in named] or [label]
