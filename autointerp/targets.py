"""What one pass collects for: each dictionary of the configuration, loaded, with its keys and its place in the subject.

Everything that can be checked without running the subject is checked here.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autointerp import population as populations
from autointerp.config import DictionarySection, Settings
from autointerp.dictionary import Dictionary, randomised, units
from autointerp.dictionary import load as load_dictionary
from autointerp.errors import ConfigError, DictionaryError, FeatureError, StoreError
from autointerp.keep import counter_bytes
from autointerp.keys import Keys, keys
from autointerp.subject import Subject
from autointerp.tally import available_memory_bytes

if TYPE_CHECKING:
    from autointerp.report import Reading

UNITS = "units"  # the source that is no file: the hookpoint's own coordinates


@dataclass(frozen=True)
class Target:
    """One dictionary to collect for, on the CPU in float32."""

    keys: Keys
    dictionary: Dictionary

    @property
    def features(self) -> list[int] | None:
        """The features that are kept, ascending; None for all."""
        wanted = self.dictionary.wanted
        return None if wanted is None else [int(i) for i in wanted]


def load(settings: Settings, sketch: Subject) -> tuple[Target, ...]:
    """The targets of a configuration. Raises a UserError for the first that does not fit the subject or another."""
    dictionaries = [_load(section, settings, sketch) for section in settings.dictionary]
    names = [dictionary.name for dictionary in dictionaries]
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise ConfigError(f"two [[dictionary]] tables are named {repeated[0]!r}: give each a name of its own")
    found = []
    for section, whole in zip(settings.dictionary, dictionaries, strict=True):
        dictionary = _only_wanted(settings.collect.features, whole, names)
        identity = keys(settings, sketch, section, dictionary)
        width = sketch.width_at(identity.hookpoint)
        if width is not None and width != dictionary.d_in:
            raise DictionaryError(
                f"{dictionary.name} reads activations of width {dictionary.d_in}, but {identity.hookpoint} of "
                f"{settings.subject.model} gives {width}"
            )
        found.append(Target(identity, dictionary))
    _refuse_too_wide(found)
    return tuple(found)


def collected(reading: "Reading", sketch: Subject | None = None) -> Target:
    """The dictionary that a finished run was collected with, with its place in the subject.

    Raises StoreError where what is loaded by its name is another one by now, other UserErrors where it is gone.
    """
    found = load(reading.settings, sketch or Subject.sketch(reading.settings.subject))
    return collected_among(found, reading.run.dictionary, reading.collection)


def collected_among(found: Sequence[Target], name: str, collection: Mapping[str, Any]) -> Target:
    """The one of these with which a collection (its row) was made, by the dictionary's name.

    Raises StoreError where none has that name, or where it is another one by now.
    """
    target = next((target for target in found if target.dictionary.name == name), None)
    if target is None:
        raise StoreError(
            f"the run was collected with {name}, but its configuration loads "
            f"{', '.join(target.dictionary.name for target in found)} by now: collect it anew"
        )
    found_at = (target.dictionary.width, target.keys.hookpoint)
    if found_at != (collection["width"], collection["hookpoint"]):
        raise StoreError(
            f"{target.dictionary.name} has width {found_at[0]} at {found_at[1]} by now, but the run was collected with "
            f"width {collection['width']} at {collection['hookpoint']}: collect it anew"
        )
    return target


def _load(section: DictionarySection, settings: Settings, sketch: Subject) -> Dictionary:
    if section.source == UNITS and not Path(UNITS).is_dir():
        dictionary = _units(section, settings, sketch)
    else:
        dictionary = load_dictionary(section.source, section.name)
        _refuse_other_subject(dictionary, settings)
    return randomised(dictionary, settings.run.seed) if section.random else dictionary


def _units(section: DictionarySection, settings: Settings, sketch: Subject) -> Dictionary:
    """The coordinates of the hookpoint: neurons, or directions of the residual stream. Where they begin to fire is
    probed once the subject is loaded."""
    hookpoint = sketch.hookpoint(section.hookpoint or settings.subject.hookpoint)
    width = sketch.width_at(hookpoint)
    if width is None:
        raise DictionaryError(f"the width of {hookpoint} cannot be told without weights, so it cannot be read as units")
    return units(width, name=section.name or f"{UNITS}-{re.sub('[^A-Za-z0-9_.-]+', '-', hookpoint)}")


def _refuse_other_subject(dictionary: Dictionary, settings: Settings) -> None:
    seed = dictionary.subject_seed
    if seed is not None and seed != settings.subject_seed:
        drawn = f"random weights of seed {settings.run.seed}" if settings.subject.random else "its trained weights"
        raise DictionaryError(
            f"{dictionary.name} was trained on a subject of random weights of seed {seed}, and this one has {drawn}: "
            f"set subject.random = true and run.seed = {seed}"
        )


def _refuse_too_wide(found: list[Target]) -> None:
    needed = sum(counter_bytes(target.dictionary.width) for target in found)
    free = available_memory_bytes()
    if needed > free:
        widths = " + ".join(f"{t.dictionary.width:,}" for t in found)
        raise DictionaryError(
            f"counters of {widths} features need {needed / 1e9:.1f} GB of memory before the first token, and "
            f"{free / 1e9:.1f} GB are free: collect the dictionaries one by one, or on a larger machine (`autointerp "
            "plan` estimates the whole)"
        )


def _only_wanted(text: str, dictionary: Dictionary, names: list[str]) -> Dictionary:
    if text == "all":
        return dictionary
    words = populations.addressed(populations.listed(text), dictionary.name, names)
    try:
        wanted = sorted({populations.feature_index(word, dictionary.name, dictionary.width) for word in words})
    except FeatureError as problem:
        raise ConfigError(f"collect.features = {text!r}: {problem}") from None
    if not wanted:
        raise ConfigError(f"collect.features = {text!r} names no feature of {dictionary.name}; leave that one out")
    return dictionary.only(torch.tensor(wanted))
