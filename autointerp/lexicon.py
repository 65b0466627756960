"""The words of a subject's vocabulary, by meaning: which of its tokens a label is about."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autointerp.config import fingerprint
from autointerp.simulators.clauses import clauses
from autointerp.simulators.sentences import sentence_vectors, wordpieces
from autointerp.subject import Subject, cache_folder
from autointerp.tally import Bar

WORD = re.compile(r" ([^\W\d_]{2,})")  # a token that begins a word and is letters throughout
PIECES = 6  # wordpieces of a word that are read, its two marks of beginning and end among them


@dataclass(frozen=True)
class Lexicon:
    """Words, lower case, each once; and the tokens that spell them."""

    words: list[str]
    vectors: NDArray[np.float32]  # unit vectors [word, d]
    token: NDArray[np.int64]  # [entry] token ids, ascending
    word: NDArray[np.int64]  # [entry] place in `words` of each of them
    encoder: str

    @classmethod
    def of(cls, subject: Subject, encoder: str, bar: Bar) -> "Lexicon":
        """The lexicon of a subject's tokenizer. Vectors are kept in the cache folder: reading 25,000 words takes a
        minute. Raises ConfigError when the encoder cannot be found or read."""
        spelled = [(i, subject.token_bytes(i).decode("utf-8", "replace")) for i in range(len(subject.tokenizer))]
        found = [(i, match[1].lower()) for i, text in spelled if (match := WORD.fullmatch(text))]
        words = sorted({word for _, word in found})
        place = {word: n for n, word in enumerate(words)}
        return cls(
            words, _vectors(words, encoder, bar), np.array([i for i, _ in found], dtype=np.int64),
            np.array([place[word] for _, word in found], dtype=np.int64), encoder,
        )  # fmt: skip

    def similarities(self, labels: Sequence[str], bar: Bar) -> list[NDArray[np.float32] | None]:
        """Per label, the cosine of every word to the nearest of its clauses, [word]; None for a label that has no
        letters."""
        split = [[part for part in clauses(label) if any(c.isalpha() for c in part)] for label in labels]
        flat = [part.lower() for found in split for part in found]
        vectors = sentence_vectors(flat, bar, self.encoder) if flat else np.empty((0, self.vectors.shape[1]))
        ends = np.cumsum([0, *(len(found) for found in split)])
        return [(vectors[a:b] @ self.vectors.T).max(axis=0) if b > a else None for a, b in pairwise(ends)]

    def among(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """The cosine of every word to the nearest of these words, [word]: `similarities` of a list of them."""
        nearest: NDArray[np.float32] = (self.vectors[places] @ self.vectors.T).max(axis=0)
        return nearest

    def tokens(self, similarity: NDArray[np.float32], n: int) -> NDArray[np.int64]:
        """Ids of all tokens that spell one of the n words nearest in meaning."""
        nearest = np.argsort(-similarity, kind="stable")[:n]
        return self.token[np.isin(self.word, nearest)]

    def strongest(self, logits: NDArray[np.float32], n: int) -> NDArray[np.int64]:
        """The n words (places) with the largest logit of any token that spells them; logits [token]."""
        return np.argsort(-self.best(logits), kind="stable")[:n]

    def best(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The largest of [token] values among the tokens that spell each word: [word]."""
        best = np.full(len(self.words), -np.inf, dtype=np.float32)
        np.maximum.at(best, self.word, values[self.token])
        return best

    def whole(self) -> NDArray[np.bool_]:
        """[word], False for what the encoder's tokenizer takes to pieces: parts of words, and rare ones."""
        return wordpieces(self.words, self.encoder) == 1


def _vectors(words: Sequence[str], encoder: str, bar: Bar) -> NDArray[np.float32]:
    path = cache_folder() / f"words-{fingerprint([encoder, PIECES, list(words)])}.npy"
    if path.is_file():
        known: NDArray[np.float32] = np.load(path, allow_pickle=False)
        return known
    found = sentence_vectors(words, bar, encoder, PIECES)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".writing")
    with scratch.open("wb") as file:
        np.save(file, found)
    scratch.replace(path)
    return found
