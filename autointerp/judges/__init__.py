"""Judges: a model says, passage by passage, whether a label fits; nothing is predicted token by token.

    detection   does the feature fire anywhere in this passage?
    fuzzing     are the marked words those that it fires on?

Both ask the same kind of question, so they share how it is put and how the reply is read (`verdicts`): numbered labels
and numbered passages go into a call, and the reply lists, for each label, the passages that fit.
"""

from typing import NamedTuple


class Item(NamedTuple):
    """A passage as it is put before a judge."""

    passage: int  # id
    text: str  # as it is shown, harmless
    truth: bool  # what a right verdict says: the feature fires in it, or its marks are where the feature fires
    marked: bool | None = None  # fuzzing: marks on firing tokens, or on silent ones; None: no marks
