"""How a tokenizer writes the pieces of the `logprob` prompt, and the answers to it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from autointerp.errors import ConfigError
from autointerp.simulators.logprob import ANSWERS, UNKNOWN, one_line, pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GUARDS = ("~", "|", "\n", "0")  # put before a piece, so that a tokenizer does not take it for the start of a text


class Choices(NamedTuple):
    """The tokens that lead to an answer."""

    tokens: list[int]  # every token that is compared with another one
    first: list[list[int]]  # [first token] answers that begin with it; tokens[: len(first)] are those tokens
    after: int | None  # the token after which the answers of one `first` part; None where none do
    second: dict[int, int]  # answer -> place in `tokens` of the token that decides for it after `after`


class List(NamedTuple):
    """A passage as the model reads it."""

    ids: list[int]
    ends: list[int]  # per token of the passage the place of its tab: what is predicted there is its answer


def choices(cut: "Pieces") -> Choices:
    """How this tokenizer writes the answers. Raises ConfigError where it writes them in a way that cannot be read."""
    written = {answer: [*cut.of(str(answer)), *cut.of("\n")] for answer in ANSWERS}
    by_first: dict[int, list[int]] = {}
    for answer, ids in written.items():
        by_first.setdefault(ids[0], []).append(answer)
    shared = [(token, answers) for token, answers in by_first.items() if len(answers) > 1]
    deciding = {answer: written[answer][1] for _, answers in shared for answer in answers}
    if len(shared) > 1 or len(set(deciding.values())) < len(deciding):
        shown = {answer: ids[:-1] for answer, ids in written.items()}
        raise ConfigError(f"simulator.model cannot simulate: its tokenizer writes the numbers 0 to 10 as {shown}")
    tokens = list(by_first)
    second = {answer: len(tokens) + n for n, answer in enumerate(deciding)}
    return Choices([*tokens, *deciding.values()], list(by_first.values()), shared[0][0] if shared else None, second)


class Pieces:
    """Token ids of the pieces of a prompt. Pieces are cut apart, so that no token lies across two of them."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        plain = tokenizer("a")["input_ids"]
        self.start: list[int] = plain[:1] if plain[0] == tokenizer.bos_token_id else []  # where the tokenizer adds it
        self._known: dict[str, list[int]] = {}
        self._unknown = [*self.of(UNKNOWN), *self.of("\n")]

    def of(self, text: str) -> list[int]:
        """The ids of a text, piece by piece. What looks like a special token in it is text."""
        return [token for piece in pieces(text) for token in self._of(piece)]

    def listed(self, strings: Sequence[str]) -> List:
        """A passage's lines, every answer unknown."""
        ids: list[int] = []
        ends: list[int] = []
        for string in strings:
            ids += self._of(one_line(string) + "\t")
            ends.append(len(ids) - 1)
            ids += self._unknown
        return List(ids, ends)

    def _of(self, piece: str) -> list[int]:
        if piece not in self._known:
            self._known[piece] = self._cut(piece)
        return self._known[piece]

    def _cut(self, piece: str) -> list[int]:
        """The ids of a piece as it is within a text: some tokenizers put a space before what they take for a start."""
        options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        for guard in GUARDS:
            whole, alone = (self.tokenizer(text, **options)["input_ids"] for text in (guard + piece, guard))
            if whole[: len(alone)] == alone:
                return list(whole[len(alone) :])
        return list(self.tokenizer(piece, **options)["input_ids"])
