"""Labels of known quality: for every planted feature the right one, and wrong ones of every kind."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autointerp.planted.features import Feature, Planter
from autointerp.planted.predicate import Clause, Predicate, Words
from autointerp.planted.text import PlantedText

# What each rung is. Those that mean the same as the truth must tie with it; all others must score below it.
TIES = ("paraphrase", "verbose")
WRONG = ("half", "broad2", "broad10", "sibling", "token_only", "shuffled", "constant", "missing", "extra")
RUNGS = ("true", *TIES, *WRONG)
CONSTANT = Predicate((Clause(everything=True),))
CONSTANT_TEXT = "text"


@dataclass(frozen=True)
class Label:
    """A label in words, and where it says that the feature fires."""

    rung: str
    text: str
    predicate: Predicate


class Ladder:
    """Makes the labels of features. Shuffled ones are the true labels of others."""

    def __init__(self, planter: Planter, features: Sequence[Feature]) -> None:
        self.planter, self.text, self.features = planter, planter.text, features

    def labels(self, number: int) -> dict[str, Label]:
        """Every rung that the feature of this number has, by name.

        A plain list of words has no token_only label: that would be the truth. A rung for which the text has no words
        is absent.
        """
        feature = self.features[number]
        random = np.random.default_rng([self.planter.seed, feature.predicate.key, 1])
        truth, said = feature.predicate, feature.description
        target = len(self.text.cells(truth.extension(self.text))[0]) / self.text.n_tokens
        found = {
            "true": (said, truth),
            "paraphrase": (feature.alias, truth),
            "verbose": (f"{said}, as is usual in speeches and in formal writing", truth),
            "half": self._half(feature, random),
            "broad2": self._broad(feature, target, random),
            "broad10": self._broad(feature, 9 * target, random),
            "sibling": self._sibling(feature, target, random),
            "token_only": _token_only(feature, self.planter),
            "shuffled": self._shuffled(number, random),
            "constant": (CONSTANT_TEXT, CONSTANT),
            # Oikarinen et al. 2025: half of what the right label says is taken away; as much again is added at random.
            "missing": (f"{said} (half of them)", _thinned(truth)),
            "extra": (f"{said} (and as many others)", _padded(truth, self.text)),
        }
        return {rung: Label(rung, *made) for rung, made in found.items() if made is not None and made[1] != truth} | {
            rung: Label(rung, *made) for rung, made in found.items() if made is not None and rung in ("true", *TIES)
        }

    def _half(self, feature: Feature, random: np.random.Generator) -> tuple[str, Predicate]:
        """Half of what is true: one part of a union, or some of the words; else the first half of each passage."""
        clauses = feature.predicate.clauses
        if len(clauses) > 1:
            return self.planter.quoted(clauses[0].words), Predicate(clauses[:1])
        clause = clauses[0]
        whole = len(feature.predicate.extension(self.text))
        for _ in range(40):
            words = tuple(sorted(random.permutation(clause.words)[: max(len(clause.words) // 2, 1)].tolist()))
            some = Predicate((replace(clause, words=words),))
            if 0.4 <= len(some.extension(self.text)) / whole <= 0.6:
                whole_said, kept = self.planter.quoted(clause.words), self.planter.quoted(words)
                said = feature.description
                return said.replace(whole_said, kept) if whole_said in said else f"{said}: only {kept}", some
        said = f"{feature.description}, in the first half of the text"
        return said, Predicate((replace(clause, first_half=True),))

    def _broad(self, feature: Feature, more: float, random: np.random.Generator) -> tuple[str, Predicate] | None:
        """The truth, and other words that cover `more` of the tokens: of its field first."""
        clauses = feature.predicate.clauses
        banned = feature.predicate.words
        kin = tuple(word for word in feature.kin if word not in banned)
        words = self.planter.pick(random, more, among=kin, without=banned) if kin else ()
        covered = sum(int(self.text.mass[word]) for word in words) / self.text.n_tokens
        if more - covered > 0.1 * more:
            words += self.planter.pick(random, more - covered, without={*banned, *words})
        covered = sum(int(self.text.mass[word]) for word in words) / self.text.n_tokens
        if not 0.7 * more <= covered <= 1.4 * more:
            return None
        said = f"{feature.description}; also {self.planter.quoted(words)}"
        return said, Predicate((*clauses, Clause(words)))

    def _sibling(self, feature: Feature, target: float, random: np.random.Generator) -> tuple[str, Predicate] | None:
        """Other words of the field, or of no field, that cover as much."""
        banned = feature.predicate.words
        kin = tuple(word for word in feature.kin if word not in banned)
        words = self.planter.pick(random, target, among=kin, without=banned) if kin else ()
        if sum(int(self.text.mass[word]) for word in words) < 0.5 * target * self.text.n_tokens:
            words = self.planter.pick(random, target, without=banned)
        return (self.planter.quoted(words), Predicate((Clause(words),))) if words else None

    def _shuffled(self, number: int, random: np.random.Generator) -> tuple[str, Predicate] | None:
        """The true label of another feature, matched in density, that shares no word with it."""
        mine = self.features[number]
        others = [
            f for i, f in enumerate(self.features)
            if i != number and f.density == mine.density and f.description
            and not f.predicate.words & mine.predicate.words
        ]  # fmt: skip
        if not others:
            return None
        other = others[int(random.integers(len(others)))]
        return other.description, other.predicate


def _token_only(feature: Feature, planter: Planter) -> tuple[str, Predicate] | None:
    """The words without what stands around them; of an absorbed feature, with the word that was taken."""
    clauses = tuple(Clause(clause.words) for clause in feature.predicate.clauses)
    if feature.family == "absorbed":
        clauses = (Clause(tuple(sorted({*clauses[0].words, *feature.kin}))),)
    if Predicate(clauses) == feature.predicate:
        return None
    words: Words = tuple(sorted({word for clause in clauses for word in clause.words}))
    return planter.quoted(words), Predicate(clauses)


def _thinned(truth: Predicate) -> Predicate:
    return Predicate(tuple(replace(clause, share=0.5) for clause in truth.clauses))


def _padded(truth: Predicate, text: PlantedText) -> Predicate:
    wanted = len(text.cells(truth.extension(text))[0]) * len(text.word) / text.mass.sum()  # that cover as many tokens
    return Predicate((*truth.clauses, Clause(strays=round(wanted), salt=truth.key % 2**31)))
