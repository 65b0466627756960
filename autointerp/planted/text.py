"""The text that features are planted in: a corpus as the subject's tokenizer cuts it, indexed by word.

Positions are cells: cell = passage * passage_tokens + position, over all passages in document order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.config import Settings
from autointerp.corpus import Allotment, contexts
from autointerp.keep import first_of_each, passage_ids
from autointerp.text import token_strings, words

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class PlantedText:
    """Passages of a corpus and every word in them. Words are known without regard to case."""

    tokens: NDArray[np.int32]  # [passage, passage_tokens], 0 after the end
    length: I64  # [passage] tokens
    document: NDArray[np.uint64]  # [passage] key of the document
    split: I64  # [passage] 0 explain, 1 select, 2 score
    start: I64  # [passage] index of the first token in the document
    sources: dict[int, str]  # key of a document -> where it is from
    vocabulary: list[str]  # words by index
    word: I64  # [occurrence] index of the word, in text order
    first: I64  # [occurrence] cell of its first token
    last: I64  # [occurrence] cell after its last token
    piece: Callable[[int], bytes]  # the bytes that a token stands for

    @classmethod
    def read(cls, settings: Settings, tokenizer: Any, piece: Callable[[int], bytes]) -> "PlantedText":
        """The corpus of the settings, dealt to splits as collecting deals it. Raises CorpusError."""
        width, per_context = settings.collect.passage_tokens, settings.collect.context_tokens
        allotment = Allotment.plan(settings.corpus, per_context, tokenizer)
        found = list(chain.from_iterable(
            contexts(settings.corpus, tokenizer, per_context, settings.collect.split_salt, allotment=allotment)
        ))  # fmt: skip
        cut = [(c, i, c.tokens[i : i + width]) for c in found for i in range(0, len(c.tokens), width)]
        grid = np.zeros((len(cut), width), dtype=np.int32)
        for row, (_, _, tokens) in enumerate(cut):
            grid[row, : len(tokens)] = tokens
        pieces = {int(t): piece(int(t)) for t in np.unique(grid)}
        index: dict[str, int] = {}
        occurrences: list[tuple[int, int, int]] = []
        for row, (_, _, tokens) in enumerate(cut):
            at = row * width
            for word in words(token_strings(tokens.tolist(), pieces)):
                known = index.setdefault(word.text.lower(), len(index))
                occurrences.append((known, at + word.first, at + word.last))
        table = np.array(occurrences, dtype=np.int64).reshape(-1, 3)
        return cls(
            tokens=grid, length=np.array([len(tokens) for _, _, tokens in cut], dtype=np.int64),
            document=np.array([c.key for c, _, _ in cut], dtype=np.uint64),
            split=np.array([c.split for c, _, _ in cut], dtype=np.int64),
            start=np.array([c.start + i for c, i, _ in cut], dtype=np.int64),
            sources={c.key: c.source for c in found}, vocabulary=list(index),
            word=table[:, 0], first=table[:, 1], last=table[:, 2], piece=piece,
        )  # fmt: skip

    @property
    def width(self) -> int:
        """Tokens per passage."""
        return self.tokens.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole text."""
        return int(self.length.sum())

    @cached_property
    def ids(self) -> I64:
        """[passage] ids, as the store knows them."""
        return passage_ids(self.document, self.start)

    @cached_property
    def _by_id(self) -> tuple[I64, I64]:
        order = np.argsort(self.ids)
        return self.ids[order], order

    def rows(self, passages: I64) -> I64:
        """The rows of passages by id. Raises KeyError for one that is not of this text."""
        ids, order = self._by_id
        place = np.searchsorted(ids, passages).clip(max=len(ids) - 1)
        if (ids[place] != passages).any():
            raise KeyError(f"no passage {int(passages[ids[place] != passages][0])} in this text")
        return order[place]

    @cached_property
    def passage(self) -> I64:
        """[occurrence] the passage it is in."""
        return self.first // self.width

    @cached_property
    def before(self) -> I64:
        """[occurrence] the word before it in its passage; -1 where it is the first."""
        before = np.append(np.int64(-1), self.word[:-1])
        before[1:][self.passage[1:] != self.passage[:-1]] = -1
        return before

    @cached_property
    def mass(self) -> I64:
        """[word] tokens that its occurrences cover."""
        return np.bincount(self.word, weights=self.last - self.first, minlength=len(self.vocabulary)).astype(np.int64)

    @cached_property
    def _postings(self) -> tuple[I64, I64]:
        order = np.argsort(self.word, kind="stable")
        return order, np.searchsorted(self.word[order], np.arange(len(self.vocabulary) + 1))

    def occurrences(self, word: int) -> I64:
        """Every occurrence of a word, in text order."""
        order, starts = self._postings
        return order[starts[word] : starts[word + 1]]

    def cells(self, occurrences: I64) -> tuple[I64, I64]:
        """The cells that occurrences (ascending) cover, and which of them each belongs to, the first where two meet."""
        lengths = self.last[occurrences] - self.first[occurrences]
        owner = np.repeat(np.arange(len(occurrences)), lengths)
        starts = np.cumsum(lengths) - lengths
        cells = np.repeat(self.first[occurrences] - starts, lengths) + np.arange(len(owner))
        new = first_of_each(cells)  # words follow one another, so cells never go back
        return cells[new], owner[new]
