"""Predicates: truths that can be executed. A feature fires, or a label says so, where its predicate holds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.config import fingerprint
from autointerp.keep import first_of_each, mix
from autointerp.planted.text import PlantedText

I64 = NDArray[np.int64]
Words = tuple[int, ...]


@dataclass(frozen=True)
class Clause:
    """Occurrences of some words, narrowed by what stands around them. Words are indices into the vocabulary."""

    words: Words = ()
    after: Words = ()  # only directly after one of these
    not_after: Words = ()  # not directly after one of these
    near: Words = ()  # only in passages that hold one of these
    first_half: bool = False  # only in the first half of a passage
    share: float = 1.0  # only this share of them, by a hash
    strays: int = 0  # and so many occurrences of any word, by a hash
    everything: bool = False  # every occurrence of every word
    salt: int = 0  # makes hashes of otherwise equal clauses differ


@dataclass(frozen=True)
class Predicate:
    """A union of clauses."""

    clauses: tuple[Clause, ...]

    @property
    def key(self) -> int:
        """A 64-bit number that is the same for equal predicates, in any process."""
        return int(fingerprint([vars(clause) for clause in self.clauses]), 16)

    @property
    def words(self) -> set[int]:
        """All words that a clause fires on."""
        return {word for clause in self.clauses for word in clause.words}

    def extension(self, text: PlantedText) -> I64:
        """The occurrences where it holds, ascending."""
        if any(clause.everything for clause in self.clauses):
            return np.arange(len(text.word))
        found = [self._hold(text, clause) for clause in self.clauses]
        return distinct(np.concatenate([np.empty(0, dtype=np.int64), *found]))

    def _hold(self, text: PlantedText, clause: Clause) -> I64:
        found = np.concatenate([np.empty(0, dtype=np.int64), *(text.occurrences(word) for word in clause.words)])
        if clause.after:
            found = found[np.isin(text.before[found], clause.after)]
        if clause.not_after:
            found = found[~np.isin(text.before[found], clause.not_after)]
        if clause.near:
            near = np.zeros(len(text.length), dtype=bool)
            for word in clause.near:
                near[text.passage[text.occurrences(word)]] = True
            found = found[near[text.passage[found]]]
        if clause.first_half:
            found = found[text.first[found] % text.width < text.width // 2]
        if clause.share < 1:
            found = found[uniform(found, self.key) < clause.share]
        if clause.strays:
            random = np.random.default_rng(self.key)
            found = np.concatenate([found, random.integers(len(text.word), size=clause.strays)])
        return found


def distinct(values: I64) -> I64:
    """The different values, ascending. (On runs of integers numpy's hashing `unique` takes a hundred times that.)"""
    values = np.sort(values)
    return values[first_of_each(values)] if len(values) else values


def uniform(values: I64, salt: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each value, by a hash of it and the salt."""
    mixed = mix(values.astype(np.uint64) ^ mix(np.array([salt & (2**64 - 1)], dtype=np.uint64))[0])
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
