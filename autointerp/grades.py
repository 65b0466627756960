"""The numbers of one label on one scoring set: pure arithmetic, the same for certification as for a run.

A label says that the feature fires in a passage where its predicted peak is above the simulator's threshold.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import metrics
from autointerp.draws import STRATA
from autointerp.metrics import F64, Background, Interval

WEAK = 0.3  # share of the firing passages, by their peak, that count as weak: the lowest three deciles
FEW = 3  # weak passages, at least, that a recall is computed on

DETECTION = ("f1", "precision", "recall", "recall_low", "auprc", "claimed_own", "balanced_accuracy", "tnr_b", "tnr_c")
TABLE = ("r_tok", "r_tok_ac", "lift", "partial")
# Metrics of the chosen label alone, on the score split; those over the whole run come after them.
ON_CHOSEN = (*DETECTION, *TABLE, "bag_of_words", "null", "null_p", "discrimination")
OVER_RUN = ("r_pop", "null_q")
METRICS = ("r_rank", *ON_CHOSEN, *OVER_RUN)

Numbers = dict[str, float | None]


class Marked(NamedTuple):
    """A scoring set with what a label predicts there. Every array is by passage; rivals are not in it."""

    passages: NDArray[np.int64]  # ids
    kind: NDArray[np.str_]  # cell: fires, claimed, token, neighbour, silent
    population: F64  # passages of the split that its cell stands for
    panel: NDArray[np.int64]  # panel passages of its cell; -1 where the population is exact
    document: NDArray[np.int64]
    moments: metrics.Moments  # of true and predicted activations
    truth: F64  # largest true activation
    said: F64  # largest predicted one
    own: NDArray[np.bool_]  # it holds one of the feature's heaviest tokens

    @property
    def fires(self) -> NDArray[np.bool_]:
        """Where the feature fires."""
        return self.kind == "fires"

    @property
    def weight(self) -> F64:
        """How many passages of the split each stands for."""
        kinds, which, count = np.unique(self.kind, return_inverse=True, return_counts=True)
        return np.asarray(self.population / count[which]) if len(kinds) else np.empty(0)

    def of(self, *kinds: str) -> NDArray[np.bool_]:
        """The passages of these kinds."""
        return np.isin(self.kind, kinds)

    def stratum(self, letter: str) -> NDArray[np.bool_]:
        """The passages of A, B or C."""
        return self.of(*(kind for kind, stratum in STRATA.items() if stratum == letter))

    @property
    def weak(self) -> NDArray[np.bool_]:
        """The firing passages with the smallest peaks."""
        fires = self.fires
        return fires & (self.truth <= np.quantile(self.truth[fires], WEAK)) if fires.any() else fires


def detection(found: Marked, threshold: float) -> Numbers:
    """Does a passage fire? What the label says of it against the truth; None where there is nothing to tell.

    f1, precision  of the passages that fire (A) or that the label's proxy claims (its part of B), weighted to the
                   corpus. Silent passages that nobody claims are left out: so weighted, one false positive of the
                   simulator among them outweighs all else; tnr_c and r_pop tell of those
    recall         of A; recall_low of its weakest three deciles
    auprc          of all passages, weighted to the corpus: how well predicted peaks rank them
    balanced_accuracy  of all passages as they were drawn, for comparison with others
    claimed_own    of the silent passages that its proxy claims, the share that hold the feature's own tokens: near 1
                   where a label names the right tokens and leaves out when they count
    tnr_b, tnr_c   the share of B, and of C, of which the label rightly says nothing
    """
    said, fires = found.said > threshold, found.fires
    mine = found.of("fires", "claimed")
    told = metrics.confusion(fires[mine], said[mine], found.weight[mine])
    weak, claimed = found.weak, found.of("claimed")
    return {
        "f1": metrics.f1(told),
        "precision": told.tp / (told.tp + told.fp) if told.tp + told.fp > 0 else None,
        "recall": float(said[fires].mean()) if fires.any() else None,
        "recall_low": float(said[weak].mean()) if weak.sum() >= FEW else None,
        "auprc": metrics.auprc(fires, found.said, found.weight),
        "claimed_own": float(found.own[claimed].mean()) if claimed.any() else None,
        "balanced_accuracy": metrics.balanced_accuracy(metrics.confusion(fires, said)),
        **{f"tnr_{letter.lower()}": _silent(found.stratum(letter), said) for letter in "BC"},
    }


def _silent(rows: NDArray[np.bool_], said: NDArray[np.bool_]) -> float | None:
    return metrics.true_negative_rate(metrics.confusion(np.zeros(int(rows.sum()), dtype=bool), said[rows]))


def beside_table(actual: F64, predicted: F64, table: F64, unguided: NDArray[np.bool_]) -> Numbers:
    """What the token look-up table gets on the same tokens, and what the label knows beyond it.

    actual, predicted, table  [token]
    unguided                  [token] of A and C: own-token negatives penalise the table by construction
    """
    r = metrics.correlation(actual, predicted)
    r_tok = metrics.correlation(actual, table)
    return {
        "r_tok": r_tok,
        "r_tok_ac": metrics.correlation(actual[unguided], table[unguided]),
        "lift": metrics.lift(r, r_tok),
        "partial": metrics.partial_correlation(r, r_tok, metrics.correlation(predicted, table)),
    }


def cells(found: Marked, threshold: float) -> list[metrics.Cell]:
    """The scoring set as r_pop takes it: A and what the label's proxy claims are resampled, the rest is modelled."""
    said, made = found.said > threshold, []
    for kind in STRATA:
        rows = np.flatnonzero(found.kind == kind)
        if len(rows):
            panel = int(found.panel[rows[0]])
            made.append(metrics.Cell(
                kind, metrics.Moments(*(column[rows] for column in found.moments)), found.document[rows],
                float(found.population[rows[0]]), None if panel < 0 else panel,
                None if kind in ("fires", "claimed") else said[rows],
            ))  # fmt: skip
    return made


def backgrounds(sets: list[list[metrics.Cell]]) -> dict[str, Background | None]:
    """What false positives of a simulator look like, by kind of cell, pooled over its labels."""
    kinds = {cell.kind for cells_ in sets for cell in cells_ if cell.hit is not None}
    return {
        kind: metrics.pooled_background([cell for cells_ in sets for cell in cells_ if cell.kind == kind])
        for kind in sorted(kinds)
    }


def r_pop(
    found: list[metrics.Cell], pools: dict[str, Background | None], panel_share: float, draws: int,
    random: np.random.Generator, level: float = 0.95,
) -> Interval:  # fmt: skip
    """r_pop with its interval, modelled cells leaning on the pool of their kind."""
    modelled = [c._replace(background=pools.get(c.kind)) if c.hit is not None else c for c in found]
    return metrics.r_pop(modelled, panel_share, draws, random, level)


def examples(found: Marked, threshold: float, n: int) -> dict[str, list[int]]:
    """Passages that show what is the matter, by kind of error, the clearest `n` of each: ids.

    claimed_but_silent  silent passages of which the label says that the feature fires, surest first; those that its
                        proxy claims before others
    missed              firing passages of which it says nothing, the weakest three deciles first, strongest first
    """
    said, fires = found.said > threshold, found.fires
    false = np.flatnonzero(~fires & said)
    false = false[np.lexsort((found.passages[false], -found.said[false], found.kind[false] != "claimed"))]
    lost = np.flatnonzero(fires & ~said)
    lost = lost[np.lexsort((found.passages[lost], -found.truth[lost], ~found.weak[lost]))]
    return {"claimed_but_silent": found.passages[false[:n]].tolist(), "missed": found.passages[lost[:n]].tolist()}
