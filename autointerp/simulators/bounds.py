"""What a mean can be where some of its weights, or of its values, are known within bounds alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Bounds(NamedTuple):
    """The least and the largest that something may be."""

    low: Floats
    high: Floats

    @property
    def width(self) -> Floats:
        """How far apart they are."""
        return self.high - self.low


class Heard(NamedTuple):
    """What a server said of a prompt."""

    logprobs: Floats  # [place, wanted token]; NaN where it was left out
    floors: Floats  # [place] what was left out is not likelier
    texts: Mapping[int, str]  # token -> its text, where the server gave one


def heard(reply: str) -> Heard:
    """A reply of `llm.completions`, as arrays."""
    found = json.loads(reply)
    logprobs = np.array(found["logprobs"], dtype=np.float64)  # null becomes NaN
    texts = {int(token): text for token, text in found["texts"].items()}
    return Heard(logprobs, np.array(found["floors"], dtype=np.float64), texts)


def odds(found: Heard, columns: Sequence[int]) -> Bounds:
    """How likely these tokens are, [place, token], up to a factor of each place."""
    said = found.logprobs[:, columns]
    known = np.isfinite(said)
    high = np.where(known, said, found.floors[:, None])
    high = np.exp(high - high.max(axis=1, keepdims=True))
    return Bounds(np.where(known, high, 0.0), high)


def mean(weights: Bounds, values: Bounds) -> Bounds:
    """The least and the largest mean [place] that values [place, token] can have, weights within their bounds.

    A mean is largest where all weight that is free lies on the values above some value; each of them is tried.
    """
    low = _extreme(weights, values.low, np.less_equal, np.nanmin)
    return Bounds(low, _extreme(weights, values.high, np.greater_equal, np.nanmax))


def _extreme(weights: Bounds, values: Floats, beyond: np.ufunc, best: Callable[..., Floats]) -> Floats:
    free = beyond(values[:, None, :], values[:, :, None])  # [place, cut, token]
    weight = np.where(free, weights.high[:, None, :], weights.low[:, None, :])
    with np.errstate(invalid="ignore"):  # of nothing but weights that are no number's worth: another cut has more
        means = (weight * values[:, None, :]).sum(axis=2) / weight.sum(axis=2)
    return best(means, axis=1)
