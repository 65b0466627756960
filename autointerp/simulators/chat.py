"""The `chat` simulator: a chat model reads passages as plain text, and quotes the words that fire.

Several passages go into one call, and the reply lists the firing words alone, by quote, occurrence and strength 0-10,
instead of every token. Such a reply has to be understood, so it is checked as a whole: a passage too many or too few, a
quote that does not stand in its passage, a place that does not exist or a strength that is no number from 0 to 10, and
nothing of it is used. Its passages are rows with their reason, never zeros. A call that is too long for the model's
context is asked again in halves, down to one passage a call.

A quote is found as it stands, or else up to white space, quotation marks and the Unicode form of its characters, or
else in any case; a place that is not among those found is looked for among the next. Places are counted over whole
words where the quote is one somewhere in its passage ("the" is not found in "other"), else over all places. Every token
that the quote covers, in part or whole, gets its strength, and where quotes overlap the larger one; a token that holds
only a part of a character counts as the place where the character is.

Passages are data, as is a label: what a prompt or a chat template is made of is replaced by look-alikes of the same
length, which a quote may hold or not.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp import prompts
from autointerp.config import SimulatorSection
from autointerp.errors import ReplyError
from autointerp.fence import line, neutral, restored
from autointerp.llm import Door, Job, Request, halves
from autointerp.llm.structured import by_number, numbered
from autointerp.simulators import Lost, Predicted
from autointerp.simulators.gathered import Asked, Gathered, Wanted

MAX_STRENGTH = 10
Folded = tuple[str, Sequence[int]]  # a text in another form, and per character the place that it comes from
Fold = Callable[[str], Folded]
FIRES = {"type": "array", "items": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "number"}]}}}


class ChatSimulator(Asked):
    """Strengths 0 to 10, as a chat model states them."""

    def __init__(self, door: Door, cfg: SimulatorSection, passage_tokens: int) -> None:
        super().__init__(door, cfg, passage_tokens)
        self._halved = 0  # calls that were too long for the model

    def ask(self, wanted: Wanted) -> Iterator[tuple[int, Predicted]]:
        """As of `AskingSimulator`."""
        gathered = Gathered(wanted, self.passage_tokens)
        yield from gathered.empty()
        jobs = (
            self._job(wanted, place, slice(start, min(start + self.cfg.per_call, len(passages))))
            for place, (_, passages) in enumerate(wanted)
            for start in range(0, len(passages), self.cfg.per_call)
        )
        for job, answer in halves.ask(self.door, jobs, partial(self._halves, wanted)):
            place, rows = job.key
            if answer.value is not None:
                yield from gathered.put(place, rows, answer.value)
            else:
                yield from gathered.lose(place, rows, Lost(answer.status, answer.reason or ""))

    @property
    def note(self) -> str:
        """What there is to say about how it was asked; "" for nothing."""
        return halves.note(self._halved)

    def _job(self, wanted: Wanted, place: int, rows: slice) -> Job[NDArray[np.float32]]:
        label, passages = wanted[place]
        texts = [neutral(self._texts[i]) for i in passages[rows].tolist()]
        parse = partial(understood, passages=texts, passage_tokens=self.passage_tokens)
        return Job(self._request(label, texts), f"simulate chat {label}", parse, (place, rows))

    def _halves(self, wanted: Wanted, job: Job[NDArray[np.float32]]) -> list[Job[NDArray[np.float32]]]:
        """The same about half of the passages each: what is too long in one call is asked in two."""
        place, rows = job.key
        parts = halves.cut(rows)
        self._halved += bool(parts)
        return [self._job(wanted, place, half) for half in parts]

    def _request(self, label: str, texts: Sequence[Sequence[str]]) -> Request:
        shown = [f"{n}: {json.dumps(''.join(text), ensure_ascii=False)}" for n, text in enumerate(texts, start=1)]
        messages = prompts.fill(self.cfg.prompt_file, label=line(label), passages="\n".join(shown))
        content = tuple((message["role"], message["content"]) for message in messages)
        return Request(self.model, content, self.cfg.max_new_tokens, schema=json.dumps(numbered(len(texts), FIRES)))


# -- reading a reply ---------------------------------------------------------------------------------------------------


def understood(reply: str, passages: Sequence[Sequence[str]], passage_tokens: int) -> NDArray[np.float32]:
    """The strengths [passage, token] that a reply states for passages, which are given as their token strings.

    Raises ReplyError with the first thing that is wrong; nothing of a reply is used unless all of it can be.
    """
    found = by_number(reply, len(passages), "passage")
    values = np.zeros((len(passages), passage_tokens), dtype=np.float32)
    for (name, fires), row, strings in zip(found.items(), values, passages, strict=True):
        _mark(row[: len(strings)], name, strings, fires)
    return values


def _mark(row: NDArray[np.float32], name: str, strings: Sequence[str], fires: Any) -> None:
    """Write what is said of one passage into its row."""
    if not isinstance(fires, list):
        raise ReplyError("bad_shape", f"passage {name}: expected a list of [quote, occurrence, strength]")
    text = "".join(strings)
    lengths = np.array([len(string) for string in strings], dtype=np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    for entry in fires:
        (first, last), strength = _place(entry, name, text)
        covered = np.where(lengths > 0, (starts < last) & (first < ends), (first <= starts) & (starts < last))
        row[covered] = np.maximum(row[covered], strength)


def _place(entry: Any, name: str, text: str) -> tuple[tuple[int, int], float]:
    """Where in its passage an entry is about, and the strength that it states there."""
    if not isinstance(entry, list) or len(entry) != 3:
        raise ReplyError("bad_shape", f"passage {name}: expected [quote, occurrence, strength], not {_shown(entry)}")
    quote, occurrence, strength = entry
    if not isinstance(quote, str) or not quote:
        raise ReplyError("bad_shape", f"passage {name}: expected a text as quote, not {_shown(quote)}")
    if type(occurrence) is not int:
        raise ReplyError("bad_shape", f"passage {name}: expected a count as occurrence, not {_shown(occurrence)}")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= MAX_STRENGTH:
        raise ReplyError("out_of_range", f"passage {name}: strength {_shown(strength)} is no number from 0 to 10")
    most = 0
    for fold in FOLDS:
        places = _spans(quote, text, fold)
        if 1 <= occurrence <= len(places):
            return places[occurrence - 1], strength
        most = max(most, len(places))
    if not most:
        raise ReplyError("quote_not_found", f"passage {name} does not hold {_shown(quote)}")
    raise ReplyError("no_such_occurrence", f"passage {name} holds {_shown(quote)} {most} times, not {occurrence}")


def _shown(value: Any) -> str:
    """A value as a message shows it, of a length that can be read."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def spans(quote: str, text: str) -> list[tuple[int, int]]:
    """Where a quote stands in a text, in order: see the head of this file."""
    return next((places for fold in FOLDS if (places := _spans(quote, text, fold))), [])


def _spans(quote: str, text: str, fold: Fold) -> list[tuple[int, int]]:
    """Where it stands up to this; of whole words, where there are such."""
    folded, origin = fold(text)
    wanted = fold(quote.strip() or quote)[0]
    pattern = re.escape(wanted) if fold is _exact else r"\s+".join(map(re.escape, wanted.split())) or re.escape(wanted)
    matches = (match.span() for match in re.finditer(pattern, folded))
    places = [(origin[first], origin[last - 1] + 1) for first, last in matches if first < last]
    return [(a, b) for a, b in places if not (_within_word(text, a) or _within_word(text, b))] or places


def _within_word(text: str, place: int) -> bool:
    """True where a place is between two characters of one word."""
    return 0 < place < len(text) and _letter(text[place - 1]) and _letter(text[place])


def _letter(character: str) -> bool:
    return character.isalnum() or character == "_"


_LOOKALIKES = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‑": "-"})


def _exact(text: str) -> Folded:
    return text, range(len(text))


def _alike(text: str) -> Folded:
    """One form for characters that look alike."""
    characters, origin = [], []
    for match in re.finditer(r"(?s).[\u0300-\u036f]*", text):  # a letter with its accents
        form = unicodedata.normalize("NFKC", restored(match.group())).translate(_LOOKALIKES)
        characters.append(form)
        origin += [match.start()] * len(form)
    return "".join(characters), origin


def _any_case(text: str) -> Folded:
    """The same, in lower case: a few capitals are two small letters."""
    characters, origin = _alike(text)
    lower = [character.lower() for character in characters]
    return "".join(lower), [place for place, small in zip(origin, lower, strict=True) for _ in small]


FOLDS: tuple[Fold, ...] = (_exact, _alike, _any_case)
