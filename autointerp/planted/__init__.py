"""Planted truth: features whose predicate can be executed, on real text, and labels of known quality for them."""

from autointerp.planted.features import DENSE, NOISE, Feature, Planter
from autointerp.planted.ladder import RUNGS, TIES, WRONG, Label, Ladder
from autointerp.planted.predicate import Clause, Predicate, distinct, uniform
from autointerp.planted.text import PlantedText

__all__ = [
    "DENSE", "NOISE", "RUNGS", "TIES", "WRONG", "Clause", "Feature", "Label", "Ladder", "PlantedText", "Planter",
    "Predicate", "distinct", "uniform",
]  # fmt: skip
