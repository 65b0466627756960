"""Which features there are to label: dead, dense, too rare, eligible; and the ones that a run selects."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp.config import FeaturesSection
from autointerp.errors import FeatureError
from autointerp.store import Store

SCORE = 2  # index of the score split
KINDS = ("not_encoded", "dead", "dense", "too_rare", "eligible")  # every feature is of one of them


@dataclass(frozen=True)
class Population:
    """Every feature of a collection, sorted into kinds. All arrays are [feature]."""

    density: NDArray[np.float64]  # firing tokens over usable tokens, all splits
    dead: NDArray[np.bool_]  # never fires
    dense: NDArray[np.bool_]  # fires on more than features.max_density of tokens
    too_rare: NDArray[np.bool_]  # too few firing passages or documents in score
    eligible: NDArray[np.bool_]  # none of these
    not_encoded: NDArray[np.bool_]  # left out by collect.features: nothing is known of them

    @property
    def counts(self) -> dict[str, int]:
        """How many features are live, eligible, dead, dense, too rare. live = eligible + dense + too_rare."""
        kinds = {name: int(getattr(self, name).sum()) for name in ("eligible", "dead", "dense", "too_rare")}
        others = {"not_encoded": int(self.not_encoded.sum())} if self.not_encoded.any() else {}
        return {"live": int((~self.dead & ~self.not_encoded).sum()), **kinds, **others}

    def kind(self, feature: int) -> str:
        """eligible, dead, dense, too_rare, or not_encoded."""
        return next(name for name in KINDS if getattr(self, name)[feature])

    def kinds(self, features: NDArray[np.int64]) -> list[str]:
        """The kind of each of these features."""
        which = np.select([getattr(self, name)[features] for name in KINDS], range(len(KINDS)))
        return [KINDS[i] for i in which.tolist()]


def population(store: Store, collection_id: str, cfg: FeaturesSection) -> Population:
    """Sort the features of a collection into kinds (METHOD: 'insufficient data' is too_rare)."""
    counters = store.features(collection_id)
    row = store.collection(collection_id)
    assert row is not None
    tokens = max(int(np.sum(row["n_tokens"])), 1)
    density = counters["n_tokens"].sum(axis=0) / tokens
    encoded = counters["encoded"]
    dead = (counters["n_tokens"].sum(axis=0) == 0) & encoded
    dense = density > cfg.max_density
    rare = (counters["n_passages"][SCORE] < cfg.min_passages) | (counters["n_documents"][SCORE] < cfg.min_documents)
    return Population(density, dead, dense, rare & ~dead & ~dense & encoded, ~(rare | dead | dense), ~encoded)


def select(text: str, found: Population, seed: int, dictionary: str, names: Sequence[str] = ()) -> list[int]:
    """The features that `features.select` names, ascending; of several dictionaries (`names`) those of this one.

    random:N samples N eligible features (all of them where there are fewer); density:LO..HI and all take every
    eligible one (in that range); indices or ids, in the setting or a file, are taken as they are.
    Raises FeatureError for a selection that names nothing or a feature that does not exist.
    """
    eligible = np.flatnonzero(found.eligible)
    if match := re.fullmatch(r"random:(\d+)", text):
        wanted = min(int(match[1]), len(eligible))
        chosen = np.random.default_rng([seed, 0x73656C]).permutation(eligible)[:wanted]
    elif match := re.fullmatch(r"density:([0-9.eE+-]+?)\.\.([0-9.eE+-]+)", text):
        low, high = _number(match[1], text), _number(match[2], text)
        chosen = eligible[(found.density[eligible] >= low) & (found.density[eligible] <= high)]
    elif text == "all":
        chosen = eligible
    else:
        words = addressed(listed(text), dictionary, names)
        if not words and len(names) > 1:
            return []  # all of them are of other dictionaries
        chosen = np.array([feature_index(w, dictionary, len(found.dead)) for w in words], dtype=np.int64)
        if found.not_encoded[chosen].any():
            first = int(chosen[found.not_encoded[chosen]][0])
            raise FeatureError(f"features.select = {text!r}: feature {first} was left out by collect.features")
    if not len(chosen):
        counts = ", ".join(f"{n} {kind}" for kind, n in found.counts.items())
        raise FeatureError(
            f"features.select = {text!r} selects no feature ({counts}); lower features.min_passages or read more text"
        )
    return sorted({int(i) for i in chosen})


def listed(text: str) -> list[str]:
    """The feature ids that a selection lists, itself or in the file that it names."""
    if _is_file(text):
        try:
            text = Path(text).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            raise FeatureError(f"features.select: the file {text} cannot be read as UTF-8 text") from None
    return [word for word in re.split(r"[,\s]+", text) if word]


def addressed(words: Sequence[str], dictionary: str, names: Sequence[str]) -> list[str]:
    """The words that mean this dictionary: bare indices mean every one, `name/17` the one of that name.

    names  every dictionary of the configuration; a word with another name is kept, so that it is refused later
    """
    others = set(names) - {dictionary}
    return [word for word in words if word.rpartition("/")[0] not in others]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def check_selection(
    text: str, dictionary: str, width: int, names: Sequence[str] = (), encoded: Sequence[int] | None = None
) -> None:
    """Raises FeatureError for a selection that cannot mean anything, before any work is done."""
    if re.fullmatch(r"random:[1-9]\d*|all", text):
        return
    if match := re.fullmatch(r"density:([0-9.eE+-]+?)\.\.([0-9.eE+-]+)", text):
        _number(match[1], text)
        _number(match[2], text)
        return
    words = listed(text)
    if words and (_is_file(text) or all(re.fullmatch(r"([\w.\-]+/)?\d+", word) for word in words)):
        for word in addressed(words, dictionary, names):
            index = feature_index(word, dictionary, width)
            if encoded is not None and index not in encoded:
                raise FeatureError(f"features.select = {text!r}: feature {index} is left out by collect.features")
    else:
        raise FeatureError(
            f"features.select = {text!r}: expected random:64, 0,17,650, all, density:1e-4..1e-2, or a file of indices"
        )


def feature_index(text: str, dictionary: str, width: int) -> int:
    """The index of a feature given as `17` or `dictionary/17`. Raises FeatureError when there is none."""
    name, _, number = text.rpartition("/")
    if not (number.isascii() and number.isdigit()) or name not in {"", dictionary}:
        raise FeatureError(f"no feature {text!r}: expected an index such as 17, or {dictionary}/17")
    if int(number) >= width:
        raise FeatureError(f"no feature {text!r}: {dictionary} has {width} features, 0 to {width - 1}")
    return int(number)


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise FeatureError(f"features.select = {whole!r}: {text!r} is not a number") from None
