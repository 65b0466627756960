"""What an output label is worth: the rise of its tokens, against random directions and against labels of their own."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import metrics
from autointerp.causal import BOOTSTRAP, LEVEL, RELATED, Row, p_of
from autointerp.lexicon import Lexicon


class Tokens(NamedTuple):
    """What a label is graded by; None where it stands for no tokens."""

    named: NDArray[np.int64] | None  # tokens of the words nearest to it
    unseen: NDArray[np.int64] | None  # tokens of those nearest that it was not made of


class Worth(NamedTuple):
    """What random directions do to labels of their own."""

    rise: NDArray[np.float32]  # [direction] nats, above the other directions
    p: NDArray[np.float32]  # [direction] share of directions, itself counted, that raise its label's tokens as much


def tokens(lexicon: Lexicon, near: NDArray[np.float32] | None, made_of: NDArray[np.int64], label: str = "") -> Tokens:
    """What a label is graded by.

    near     [word] the cosine of every word to the label; None for a label without words
    made_of  words (places) that it was made of, or that a model was shown
    label    its text, where that may hold other words than those
    """
    if near is None:
        return Tokens(None, None)
    said = np.isin(lexicon.words, re.findall(r"[^\W\d_]+", label.lower()))
    said[made_of] = True
    n = min(RELATED, int((~said).sum()))
    unseen = lexicon.tokens(np.where(said, -np.inf, near).astype(np.float32), n) if n else None
    return Tokens(lexicon.tokens(near, RELATED), unseen)


def worth(null: NDArray[np.float32], own: Sequence[NDArray[np.int64] | None]) -> Worth:
    """What each random direction does to its own tokens.

    null  [direction, token] change of log-probability
    own   tokens of each direction's own label; directions without any are left out
    """
    rises, ps = [], []
    for i, ids in enumerate(own):
        if ids is not None:
            rise = null[:, ids].mean(axis=1)
            others = np.delete(rise, i)
            rises.append(float(rise[i] - others.mean()))
            ps.append(p_of(float(rise[i]), others))
    return Worth(np.array(rises, dtype=np.float32), np.array(ps, dtype=np.float32))


def graded(
    above: NDArray[np.float64], rise: float, null: NDArray[np.float32], own: Worth, random: np.random.Generator
) -> tuple[Row, Row, Row, Row, Row]:
    """The numbers of some tokens, in the order of NAMED and UNSEEN in store_outputs.py.

    above  [text] their rise above that under random directions
    rise   their rise
    null   [direction] their rise under each random direction
    own    what random directions do to labels of their own, at least one
    """
    interval, n, mean = metrics.mean_interval(above, BOOTSTRAP, random), len(own.rise), float(above.mean())
    return (
        Row(interval.value, interval.lo, interval.hi, len(above)), Row(p_of(rise, null), n=len(null)),
        Row(float((own.p <= LEVEL).mean()), n=n), Row(mean - float(own.rise.mean()), n=n),
        Row(p_of(mean, own.rise), n=n),
    )  # fmt: skip
