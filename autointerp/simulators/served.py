"""The `logprob` simulator of a model on a server that reads prompts (vLLM): the same numbers as of one in this process.

A passage is one request, which reads the answers' likelihoods at all of its tokens in one pass. Token ids are sent, as
the served model's tokenizer writes them, so that text is cut where the prompt's lists are. Two things may be left open,
and are asked again in one more request per passage, with a prompt that ends at each such token: how a number that is
several tokens goes on (P(10) = P(1) x P(0 after it)), and the answers that are not among the likeliest tokens, which
newer servers then say exactly.

What stays open is bounded, never nothing: an answer that a server leaves out is at most as likely as the least that it
says. A prediction is the middle of what is possible. Where a token's lies further than MOST from the ends of that, its
passage is lost, with reason `answers_out_of_reach`.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autointerp.config import SimulatorSection, SubjectSection, model_of
from autointerp.errors import ConfigError
from autointerp.llm import Door, Job, Reading, Request
from autointerp.simulators import Lost, Predicted
from autointerp.simulators.bounds import Bounds, Heard, heard, mean, odds
from autointerp.simulators.gathered import Asked, Gathered, Wanted
from autointerp.simulators.logprob import UNKNOWN, heading, one_line, prefix
from autointerp.simulators.pieces import List, Pieces, choices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CLOSE = 5e-4  # of 10: a prediction that is as near as this is not asked about again
MOST = 0.05  # of 10: a prediction that may be further off than this is none
LOST = Lost("failed", "answers_out_of_reach")


@dataclass
class _Passage:
    """A passage under one label: what is known of its answers."""

    place: int  # of its pair
    row: int  # in its pair
    label: str
    messages: tuple[tuple[str, str], ...]
    ids: tuple[int, ...]
    places: tuple[int, ...]  # per token of the passage: prompt tokens before its answer
    first: Heard | None = None  # where an answer begins
    second: Heard | None = None  # after the token that several answers begin with


class ServedSimulator(Asked):
    """Expected activation of every token on the scale 0 to 10, as `LogprobSimulator`'s."""

    def __init__(
        self, door: Door, cfg: SimulatorSection, passage_tokens: int, tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> None:
        """Raises SubjectError where the served model's tokenizer is not there, ConfigError where it cannot simulate."""
        super().__init__(door, cfg, passage_tokens)
        self.pieces = Pieces(_tokenizer(cfg) if tokenizer is None else tokenizer)
        self.choices = choices(self.pieces)
        self.wanted = tuple(dict.fromkeys(self.choices.tokens))
        columns = [self.wanted.index(token) for token in self.choices.tokens]
        self._first = columns[: len(self.choices.first)]
        self._second = [columns[place] for place in self.choices.second.values()]
        self._warned = False

    def ask(self, wanted: Wanted) -> Iterator[tuple[int, Predicted]]:
        """As of `AskingSimulator`."""
        gathered = Gathered(wanted, self.passage_tokens)
        yield from gathered.empty()
        doubtful: list[_Passage] = []
        for job, answer in self.door.ask(self._jobs(wanted)):
            passage: _Passage = job.key
            if answer.value is None:
                yield from gathered.lose(passage.place, _only(passage), Lost(answer.status, answer.reason or ""))
                continue
            passage.first, passage.second = self._checked(answer.value), _nothing(len(passage.places), len(self.wanted))
            if self._unsure(passage).any():
                doubtful.append(passage)
            else:
                yield from self._end(gathered, passage)
        for job, answer in self.door.ask(self._again(doubtful)):
            passage, asked = job.key
            if answer.value is None:
                yield from gathered.lose(passage.place, _only(passage), Lost(answer.status, answer.reason or ""))
                continue
            _fill(passage, asked, answer.value)
            yield from self._end(gathered, passage)

    def _end(self, gathered: Gathered, passage: _Passage) -> Iterator[tuple[int, Predicted]]:
        """Put what is known of a passage, or why that is not enough."""
        found = self._expected(passage)
        if (found.width > 2 * MOST).any():
            self._warn()
            yield from gathered.lose(passage.place, _only(passage), LOST)
            return
        middle = ((found.low + found.high) / 2).astype(np.float32)
        yield from gathered.put(passage.place, _only(passage), middle[None])

    def _warn(self) -> None:
        """Say once what can be done about answers that are left out."""
        if not self._warned:
            log.warning(
                "%s leaves out too many answers: raise simulator.top_logprobs (%d) up to the server's --max-logprobs",
                self.model, self.cfg.top_logprobs,
            )  # fmt: skip
        self._warned = True

    # -- asking ------------------------------------------------------------------------------------------------------

    def _jobs(self, wanted: Wanted) -> Iterator[Job[Heard]]:
        """Every passage as it stands."""
        shared = self.pieces.start + self.pieces.of(prefix(self.cfg.prompt_file))
        for place, (label, passages) in enumerate(wanted):
            before = shared + self.pieces.of(heading(self.cfg.prompt_file, label))
            for row, passage_id in enumerate(passages.tolist()):
                passage = self._passage(place, row, label, self._texts[passage_id], before)
                reading = Reading(passage.ids, passage.places, self.wanted, self.cfg.top_logprobs)
                yield self._job(passage, reading, passage)

    def _passage(self, place: int, row: int, label: str, strings: Sequence[str], before: list[int]) -> _Passage:
        listed: List = self.pieces.listed(strings)
        lines = "".join(f"{one_line(string)}\t{UNKNOWN}\n" for string in strings)
        said = ("system", prefix(self.cfg.prompt_file)), ("user", heading(self.cfg.prompt_file, label) + lines)
        places = tuple(len(before) + end + 1 for end in listed.ends)
        return _Passage(place, row, label, said, (*before, *listed.ids), places)

    def _again(self, passages: Iterable[_Passage]) -> Iterator[Job[Heard]]:
        """The tokens of each passage that are open, with the prompt up to there."""
        after = () if self.choices.after is None else (self.choices.after,)
        for passage in passages:
            asked = [(token, question) for question, token in np.argwhere(self._unsure(passage)).tolist()]
            reading = Reading(
                passage.ids, tuple(passage.places[token] for token, _ in asked), self.wanted, self.cfg.top_logprobs,
                endings=tuple(after if question else () for _, question in asked),
            )  # fmt: skip
            yield self._job(passage, reading, (passage, asked))

    def _job(self, passage: _Passage, reading: Reading, key: object) -> Job[Heard]:
        request = Request(self.model, passage.messages, max_new_tokens=len(reading.prompts), reading=reading)
        return Job(request, f"simulate logprob {passage.label}", heard, key)

    # -- what is known -----------------------------------------------------------------------------------------------

    def _checked(self, found: Heard) -> Heard:
        """What a server said of a prompt. Raises ConfigError where its tokens are not those of our tokenizer."""
        for token, theirs in found.texts.items():
            ours = str(self.pieces.tokenizer.decode([token]))
            if theirs.strip() != ours.strip():
                raise ConfigError(
                    f"simulator.tokenizer: token {token} is {ours!r} to the tokenizer of "
                    f"{self.cfg.tokenizer or self.model.name} and {theirs!r} to {self.model}; name the served model's"
                )
        return found

    def _values(self, passage: _Passage) -> Bounds:
        """What an answer is worth by the token that it begins with, [token, first token]."""
        assert passage.second is not None
        n = len(passage.places)
        low, high = (np.tile(np.array([a[0] for a in self.choices.first], dtype=np.float64), (n, 1)) for _ in range(2))
        if self.choices.after is not None:
            answers = np.tile(np.array(list(self.choices.second), dtype=np.float64), (n, 1))
            column = self.choices.tokens.index(self.choices.after)
            low[:, column], high[:, column] = mean(odds(passage.second, self._second), Bounds(answers, answers))
        return Bounds(low, high)

    def _expected(self, passage: _Passage) -> Bounds:
        """The expected answer at every token."""
        assert passage.first is not None
        return mean(odds(passage.first, self._first), self._values(passage))

    def _unsure(self, passage: _Passage) -> NDArray[np.bool_]:
        """What has to be asked again, [question, token]: where an answer begins, and how one goes on."""
        assert passage.first is not None
        begun, values = odds(passage.first, self._first), self._values(passage)
        left_out = mean(begun, Bounds(values.low, values.low)).width
        goes_on = mean(Bounds(begun.high, begun.high), values).width
        return np.stack([left_out, goes_on]) > CLOSE


def check(cfg: SimulatorSection) -> int:
    """Requests that a passage may take, 1 or 2. Raises SubjectError without the served model's tokenizer, ConfigError
    where it cannot simulate."""
    return 1 if choices(Pieces(_tokenizer(cfg))).after is None else 2


def _tokenizer(cfg: SimulatorSection) -> "PreTrainedTokenizerBase":
    from autointerp.subject import Subject

    named = SubjectSection(model=cfg.tokenizer or model_of(cfg).name)  # type: ignore[call-arg]
    return Subject.reader(named).tokenizer


def _nothing(n_places: int, n_wanted: int) -> Heard:
    """Nothing has been said: anything may be as likely as anything."""
    return Heard(np.full((n_places, n_wanted), np.nan), np.zeros(n_places), {})


def _fill(passage: _Passage, asked: Sequence[tuple[int, int]], found: Heard) -> None:
    """Put what was asked again where it belongs."""
    for row, (token, question) in enumerate(asked):
        into = passage.second if question else passage.first
        assert into is not None
        said = np.isfinite(found.logprobs[row])
        into.logprobs[token, said] = found.logprobs[row, said]
        into.floors[token] = min(into.floors[token], found.floors[row])


def _only(passage: _Passage) -> slice:
    return slice(passage.row, passage.row + 1)
