"""What can go wrong, and who is meant to act on it.

    AutointerpError
    ├── UserError            the user can act: one line on stderr, exit code 2
    │   ├── ConfigError      a key, a value or a file of the configuration
    │   ├── CorpusError      text that is missing, empty or cannot be read
    │   ├── SubjectError     a model or hookpoint that is missing or does not fit
    │   ├── DictionaryError  weights that are missing, broken or do not fit the subject
    │   ├── FeatureError     a feature id or a selection that names nothing
    │   ├── LabelsError      a file of labels: missing, broken, or about another dictionary
    │   ├── MissingExtra     an optional package that this command needs
    │   ├── BudgetSpent      llm.budget_usd or llm.budget_tokens: a clean stop, with what is left to do
    │   └── StoreError       the database: absent, broken, of a newer schema
    │       └── StoreBusy    another process is writing it
    ├── ReplyError           a model's reply cannot be used: the stage writes a row with the reason
    └── Unreachable          a model cannot be reached: the work stays pending and the tally says so

Anything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class AutointerpError(Exception):
    """Base of every error that autointerp raises on purpose."""


class UserError(AutointerpError):
    """Something the user can put right. The message says what was expected, what came, and what to do."""


class ConfigError(UserError):
    """A configuration key, value or file is wrong."""


class CorpusError(UserError):
    """The corpus is missing, empty, or holds a file that cannot be read."""


class SubjectError(UserError):
    """The subject model or one of its hookpoints is missing or does not fit the request."""


class DictionaryError(UserError):
    """The dictionary's files are missing, broken, or do not fit the subject."""


class FeatureError(UserError):
    """A feature id or selection names nothing in this collection."""


class LabelsError(UserError):
    """A file of labels to import is missing, cannot be read, or is about another dictionary."""


class MissingExtra(UserError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, wanted_by: str) -> None:
        super().__init__(f"{wanted_by} needs an optional package: pip install 'autointerp[{extra}]'")


class BudgetSpent(UserError):
    """The budget for model calls is spent: what was paid for is kept, the rest is pending."""


class StoreError(UserError):
    """The run's database is absent, broken, or written by a newer autointerp."""


class StoreBusy(StoreError):
    """Another process holds the run's database open for writing."""


class ReplyError(AutointerpError):
    """A model replied with something that cannot be used.

    `reason` is the machine-readable code that lands in the row (`empty`, `echo`, `too_long`, ...).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Unreachable(AutointerpError):
    """A model could not be reached after all retries; the job stays pending.

    gone  it has not answered several requests in a row, or never: asking it about more would only take time
    """

    def __init__(self, message: str, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ` (did you mean 'layers.15'?)` naming the known word closest to `word`, or ''."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""
