"""The `logprob` simulator: all of a passage's activations from one forward pass of a causal language model.

After Bills et al. 2023 (openai/automated-interpretability, `ExplanationNeuronSimulator`): the passage is written one
token to a line, each with `unknown` where its activation would stand, and the prediction for a token is the expected
value of the number that the model would have written there instead, over the answers 0 to 10 and nothing else. As all
answers stay `unknown`, no prediction is fed back into the next.

Where we differ: the answers' probabilities come from their own logits (not from the 15 likeliest tokens, renormalised
over those of the answers that happen to be among them), a token that holds a tab or a line break is escaped instead of
breaking the format, and text is cut into tokens at every tab and line break of a list, so that where an answer begins
never depends on what a tokenizer would have merged across it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autointerp import prompts
from autointerp.config import SimulatorSection
from autointerp.errors import ConfigError
from autointerp.tally import Bar

ANSWERS = tuple(range(11))  # OpenAI's scale: a share of the feature's maximum, in tenths
UNKNOWN = "unknown"


class AnswerReader(Protocol):
    """Who can say how likely a model finds each answer: a model in this process, or a server with prompt logprobs."""

    def expect(self, label: str, passages: Sequence[Sequence[str]]) -> list[NDArray[np.float32]]:
        """The expected answer at every token, 0 to 10, one array [token] per passage (given as its token strings)."""
        ...


class LogprobSimulator:
    """Expected activation of every token on the scale 0 to 10; never exactly 0, as no answer is impossible."""

    def __init__(self, reader: AnswerReader, passage_tokens: int) -> None:
        self.reader, self.passage_tokens = reader, passage_tokens
        self._texts: dict[int, Sequence[str]] = {}

    @classmethod
    def load(cls, cfg: SimulatorSection, device: str, passage_tokens: int) -> "LogprobSimulator":
        """Load the model. Raises SubjectError when it cannot be read, ConfigError when it cannot simulate."""
        from autointerp.simulators.answers import LocalAnswers

        return cls(LocalAnswers.load(cfg, device, passage_tokens), passage_tokens)

    def read(self, passages: Mapping[int, Sequence[str]], bar: Bar) -> None:
        """Hold the passages' tokens; the model sees them when it is asked."""
        self._texts |= passages

    def calibrate(self, background: NDArray[np.int64]) -> None:
        """Nothing to calibrate: the model states activations on a scale of its own."""

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """Expected answers [label, passage, token], 0 to 10."""
        result = np.zeros((len(labels), len(passages), self.passage_tokens), dtype=np.float32)
        texts = [self._texts[int(passage)] for passage in passages]
        for row, label in zip(result, labels, strict=True):
            for into, expected in zip(row, self.reader.expect(label, texts), strict=True):
                into[: len(expected)] = expected
        return result


# -- the prompt --------------------------------------------------------------------------------------------------------


def prefix(prompt: str) -> str:
    """What comes before the label: instructions and examples, the same for every label."""
    return _sections(prompt, "")[0] + "\n\n"


def heading(prompt: str, label: str) -> str:
    """What stands between the prefix and the passage's first line: the label, on one line."""
    return _sections(prompt, " ".join(label.split()))[1] + "\n"


def _sections(prompt: str, label: str) -> list[str]:
    messages = prompts.fill(prompt, label=label)
    if [message["role"] for message in messages] != ["system", "user"]:
        raise ConfigError(
            f"prompt {prompt!r}: expected a '# system' section, the same for all labels, and one '# user'"
        )
    return [message["content"] for message in messages]


def one_line(token: str) -> str:
    """A token as the list shows it: everything that would end its line or its column is escaped."""
    return _BREAKS.sub(lambda found: repr(found.group())[1:-1], token)


_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
_LINE = re.compile(r"^([^\t\n]*\t)([^\t\n]*)(\n)", re.MULTILINE)


def pieces(text: str) -> list[str]:
    """The prompt cut where its lists are: after a token's tab, after its number, after the line. Together the text."""
    return [piece for piece in _LINE.split(text) if piece]
