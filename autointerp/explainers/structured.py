"""`structured`: the evidence of `marks`, answered by rules that can be executed.

The rules say on what the feature fires, where, how strongly and with which exceptions (`autointerp.rules`); beside them
stands a label of a few words, so that every simulator can read the same row. Several candidates are several calls: a
set of rules is long, and one reply with three of them repeats itself.
"""

import re
from typing import Any

from autointerp import rules
from autointerp.errors import ReplyError
from autointerp.explainers import marks
from autointerp.explainers.method import Method
from autointerp.explainers.replies import Candidate, Given, clean_label
from autointerp.fence import restored
from autointerp.llm.structured import answer, json_in


def read(reply: str, given: Given, wanted: int, max_words: int) -> list[Candidate]:
    """One candidate with its rules. Raises ReplyError where rules or label cannot be used."""
    value = json_in(answer(reply))
    if value is None:
        raise ReplyError("bad_json", "expected a JSON object with `label` and `rules`")
    found = rules.parse(_restored(value))
    label = clean_label(found.label, given, max_words, entry=True)
    return [Candidate(label, rules=rules.Rules(label, found.rules).text)]


def _restored(value: Any) -> Any:
    """The reply with the corpus' own characters, which is what its items are matched with."""
    if isinstance(value, dict):
        return {key: _restored(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_restored(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if rules.is_regex(value):  # look-alikes of what means something in an expression stand for themselves
        value = re.sub(r"\\?([∗⟦⟧])", lambda found: "\\" + found[1], value)
    return restored(value)


METHOD = Method("structured", marks.evidence, read, lambda wanted, max_words: rules.SCHEMA, one_reply=False, version=2)
