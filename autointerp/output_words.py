"""What output labels are made of: the words that a direction raises, and the prompt that shows them to a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp import prompts
from autointerp.explainers.shown import listed
from autointerp.fence import line
from autointerp.lexicon import Lexicon

PROMPT = "explain-output"
LISTED = 5  # words of a counted label
SHOWN = 20  # words that are kept as what a label is made of, and shown to a model
NOTHING = "(nothing known)"


@dataclass(frozen=True)
class Evidence:
    """What one method found of one direction. Words are places in the lexicon, those that stand out most first."""

    promoted: NDArray[np.int64]
    suppressed: NDArray[np.int64]
    strength: float  # of the LISTED first, the mean: nats, or standard deviations of a lens

    def beside(self, other: "Evidence") -> "Evidence":
        """Both, the other's words after these."""
        return Evidence(
            _joined(self.promoted, other.promoted), _joined(self.suppressed, other.suppressed), self.strength
        )


def _joined(first: NDArray[np.int64], then: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.array(list(dict.fromkeys([*first.tolist(), *then.tolist()])), dtype=np.int64)


def evidence(rise: NDArray[np.float32], lexicon: Lexicon, whole: NDArray[np.bool_]) -> Evidence:
    """The words that stand out by a rise [token], and those by its opposite; `whole` [word]: those that may."""
    up, down = (np.where(whole, lexicon.best(side), -np.inf) for side in (rise, -rise))
    n = min(SHOWN, int(whole.sum()))
    promoted, suppressed = (np.argsort(-side, kind="stable")[:n] for side in (up, down))
    return Evidence(promoted, suppressed, float(up[promoted[:LISTED]].mean()) if n else 0.0)


def counted(found: Evidence, lexicon: Lexicon) -> str:
    """The label of a method that asks nobody."""
    return ", ".join(spelled(found.promoted[:LISTED], lexicon))


def spelled(places: NDArray[np.int64], lexicon: Lexicon) -> list[str]:
    """The words at these places."""
    return [lexicon.words[place] for place in places.tolist()]


def standardised(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits [token] in standard deviations from their mean over these tokens: a lens has no unit of its own."""
    known = logits[tokens]
    found: NDArray[np.float32] = (logits - known.mean()) / max(float(known.std()), 1e-30)
    return found


def without(rows: NDArray[np.float32], i: int) -> NDArray[np.float32]:
    """The mean over all rows but the i-th."""
    mean: NDArray[np.float32] = np.delete(rows, i, axis=0).mean(axis=0)
    return mean


def messages(words: Mapping[str, Sequence[str]], suppressed: Sequence[str], max_words: int) -> list[dict[str, str]]:
    """The filled prompt as chat messages; `words`: method -> the words that it found promoted. Words are data."""

    def shown(found: Sequence[str]) -> str:
        return listed([line(word) for word in found]) if found else NOTHING

    return prompts.fill(
        PROMPT, likelier=shown(words.get("token-change", ())), unlikelier=shown(suppressed),
        direction=shown(words.get("vocab-proj", ())), max_words=str(max_words),
    )  # fmt: skip