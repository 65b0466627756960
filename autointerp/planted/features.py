"""Features whose truth is known, at densities that are asked for.

Each family is a way of choosing a predicate at random and keeping it when it holds on about the wanted share of tokens.
Words are chosen by what they cover in this text, so any text and tokenizer will do.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.planted.fields import FIELDS
from autointerp.planted.predicate import Clause, Predicate, Words
from autointerp.planted.text import PlantedText

TRIES = 150  # draws before a family has nothing at a density
NEAR_ENOUGH = (0.7, 1.4)  # of the wanted density
SIGMA = 0.35  # of the log of an activation
NOISE = "noise"  # the family of features that nothing explains
DENSE = "dense"  # ... and of those that fire on over a tenth of the tokens


@dataclass(frozen=True)
class Feature:
    """One planted feature. `kin` are words of its field, or none."""

    family: str
    density: float  # that was asked for
    predicate: Predicate  # for noise: its strays
    description: str  # in words: its true label
    alias: str  # the same in other words
    kin: Words = ()

    def activations(self, text: PlantedText, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Cells where it fires and how strongly: log-normal, alike within an occurrence, stronger for some words."""
        found = self.predicate.extension(text)
        random = np.random.default_rng([seed, self.predicate.key])
        by_word = np.exp(random.normal(0, SIGMA, len(text.vocabulary)))
        strength = 2.0 * by_word[text.word[found]] * np.exp(random.normal(0, SIGMA, len(found)))
        cells, owner = text.cells(found)
        return cells, strength[owner].astype(np.float32)


class Planter:
    """Chooses features of a text."""

    def __init__(self, text: PlantedText, seed: int) -> None:
        self.text, self.seed = text, seed
        self.index = {word: i for i, word in enumerate(text.vocabulary)}
        self.lexical = np.array([word.isalpha() and len(word) > 1 for word in text.vocabulary])
        self.fields = {name: self._known(words.split()) for name, words in FIELDS.items()}
        self.families: dict[str, Callable[[np.random.Generator, float], Feature | None]] = {
            "token": self._token, "words": self._list, "field": self._field, "regex": self._regex, "gate": self._gate,
            "negation": self._negation, "position": self._position, "union": self._union, "absorbed": self._absorbed,
        }  # fmt: skip

    def plant(self, density: float, wanted: int) -> list[Feature]:
        """Up to `wanted` different features at a density, of every family that has one there, in turn."""
        random = np.random.default_rng([self.seed, round(1 / density)])
        chosen: dict[int, Feature] = {}
        open_families = dict(self.families)
        while len(chosen) < wanted and open_families:
            for name, make in list(open_families.items()):
                found = next(filter(None, (self._fitting(make, random, density, chosen) for _ in range(TRIES))), None)
                if found is None:
                    del open_families[name]
                else:
                    chosen[found.predicate.key] = found
        return list(chosen.values())[:wanted]

    def noise(self, density: float, wanted: int) -> list[Feature]:
        """Features that fire at random: the right answer is that there is no pattern."""
        strays = round(density * len(self.text.word))
        return [
            Feature(NOISE, density, Predicate((Clause(strays=strays, salt=i + 1),)), "", "")
            for i in range(wanted)
        ]  # fmt: skip

    def dense(self, wanted: int) -> list[Feature]:
        """Features on over a tenth of the tokens: the commonest words, the i-th of them left out."""
        common = np.argsort(-self.text.mass, kind="stable")[:12].tolist()
        lists = [tuple(word for j, word in enumerate(common) if j != i) for i in range(min(wanted, len(common)))]
        return [Feature(DENSE, 0.1, Predicate((Clause(words),)), self.quoted(words), "") for words in lists]

    def _fitting(
        self, make: Callable[[np.random.Generator, float], Feature | None], random: np.random.Generator,
        density: float, chosen: dict[int, Feature],
    ) -> Feature | None:  # fmt: skip
        found = make(random, density)
        if found is None or found.predicate.key in chosen:
            return None
        low, high = (edge * density * self.text.n_tokens for edge in NEAR_ENOUGH)
        return found if low <= len(self.text.cells(found.predicate.extension(self.text))[0]) <= high else None

    # -- families ------------------------------------------------------------------------------------------------------

    def _token(self, random: np.random.Generator, density: float) -> Feature | None:
        target = density * self.text.n_tokens
        fits = np.flatnonzero(self.lexical & (self.text.mass >= 0.7 * target) & (self.text.mass <= 1.4 * target))
        if not len(fits):
            return None
        word = int(random.choice(fits))
        return self._feature("token", density, Clause((word,)), f"the word {self.quoted((word,))}")

    def _list(self, random: np.random.Generator, density: float) -> Feature | None:
        return self._feature("words", density, Clause(self.pick(random, density)))

    def _field(self, random: np.random.Generator, density: float) -> Feature | None:
        name = list(self.fields)[random.integers(len(self.fields))]
        words = self.pick(random, density, among=self.fields[name])
        if len(words) < 2:
            return None
        clause = Clause(words)
        return self._feature("field", density, clause, self.quoted(words), f"words for {name}", self.fields[name])

    def _regex(self, random: np.random.Generator, density: float) -> Feature | None:
        known = np.flatnonzero(self.lexical)
        sample = self.text.vocabulary[int(random.choice(known))]
        n = int(random.integers(2, 6))
        pattern, said = random.choice([
            [f"{re.escape(sample[-n:])}$", f"words ending in -{sample[-n:]}"],
            [f"^{re.escape(sample[:n])}", f"words beginning with {sample[:n]}-"],
        ])  # fmt: skip
        match = re.compile(str(pattern)).search
        words = tuple(i for i in known.tolist() if match(self.text.vocabulary[i]))
        if len(words) < 3:
            return None
        return self._feature("regex", density, Clause(words), str(said), f"{said}, of any kind")

    def _gate(self, random: np.random.Generator, density: float) -> Feature | None:
        words = self.pick(random, density * random.uniform(2.5, 5))
        near = self.pick(random, random.uniform(0.002, 0.01))
        said = f"{self.quoted(words)} where the passage also has {self.quoted(near)}"
        other = f"in passages with {self.quoted(near)}, the words {self.quoted(words)}"
        return self._feature("gate", density, Clause(words, near=near), said, other) if words and near else None

    def _negation(self, random: np.random.Generator, density: float) -> Feature | None:
        words = self.pick(random, density * random.uniform(1.5, 2.5))
        if not words:
            return None
        found = Predicate((Clause(words),)).extension(self.text)
        before, times = np.unique(self.text.before[found], return_counts=True)
        order = np.argsort(-times, kind="stable")
        common = before[order][before[order] >= 0][: int(random.integers(1, 4))]
        banned = tuple(sorted(common.tolist()))
        said = f"{self.quoted(words)}, but not directly after {self.quoted(banned)}"
        return self._feature("negation", density, Clause(words, not_after=banned), said, f"only the words {said}")

    def _position(self, random: np.random.Generator, density: float) -> Feature | None:
        ends = self._known(".!?;:")
        words = self.pick(random, density * random.uniform(3, 20))
        said = f"{self.quoted(words)} as the first word of a sentence"
        other = f"sentences that begin with {self.quoted(words)}"
        return self._feature("position", density, Clause(words, after=ends), said, other) if words else None

    def _union(self, random: np.random.Generator, density: float) -> Feature | None:
        one, two = (self.pick(random, density / 2) for _ in range(2))
        if not one or not two or set(one) & set(two):
            return None
        said = f"{self.quoted(one)}; or {self.quoted(two)}"
        clauses = Clause(one), Clause(two)
        return Feature("union", density, Predicate(clauses), said, f"{self.quoted(two)}; or {self.quoted(one)}")

    def _absorbed(self, random: np.random.Generator, density: float) -> Feature | None:
        """A list without its commonest word, which a feature of its own has taken."""
        whole = self.pick(random, density * random.uniform(1.4, 1.8))
        if len(whole) < 3:
            return None
        child = max(whole, key=lambda word: (int(self.text.mass[word]), word))
        words = tuple(word for word in whole if word != child)
        return self._feature("absorbed", density, Clause(words), kin=(child,))

    # -- words ---------------------------------------------------------------------------------------------------------

    def pick(
        self, random: np.random.Generator, density: float, among: Words = (), without: Iterable[int] = ()
    ) -> Words:
        """Words that together cover about this share of the tokens, none of them most of it where that can be."""
        target = density * self.text.n_tokens
        mass = self.text.mass
        pool = np.array(among, dtype=np.int64) if among else np.flatnonzero(
            self.lexical & (mass >= target / 12) & (mass <= target / 2)
        )  # fmt: skip
        banned = set(without)
        chosen: list[int] = []
        total = 0
        for word in random.permutation(pool).tolist():
            if word not in banned and total + mass[word] <= 1.1 * target:
                chosen.append(word)
                total += int(mass[word])
            if total >= 0.9 * target:
                break
        return tuple(sorted(chosen))

    def quoted(self, words: Words) -> str:
        """The words themselves, the commonest first; no more than twelve."""
        ordered = sorted(words, key=lambda word: (-int(self.text.mass[word]), word))[:12]
        return ", ".join(self.text.vocabulary[word] for word in ordered)

    def _known(self, words: Iterable[str]) -> Words:
        return tuple(sorted({self.index[word] for word in words if word in self.index}))

    def _feature(
        self, family: str, density: float, clause: Clause, said: str = "", other: str = "", kin: Words = ()
    ) -> Feature | None:
        if not clause.words:
            return None
        listed = self.quoted(clause.words)
        reversed_ = ", ".join(reversed(listed.split(", ")))
        return Feature(family, density, Predicate((clause,)), said or listed, other or f"any of {reversed_}", kin)
