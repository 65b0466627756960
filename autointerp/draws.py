"""The scoring set of a label: which passages of a split it is tested on, and what each stands for.

A  firing passages, from the feature's uniform sample (so all deciles of the peak are there in proportion);
B  hard negatives: silent panel passages that the label's cheap proxy claims, that hold the feature's own top tokens, or
   where a neighbour fires;
C  the other silent panel passages.
`strata` says how many of each. Drawn by keyed hashes of (seed, feature, passage), so nothing depends on order, and two
labels of a feature share what they can. Which hashes win never depends on what a label scores.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp import strata
from autointerp.config import ScoreSection
from autointerp.evidence import PanelIndex, Texts
from autointerp.keep import mix, salted
from autointerp.metrics import balanced_threshold
from autointerp.rows import Draw, Neighbour, Split, Stratum
from autointerp.simulators import Simulator
from autointerp.store import Store

OWN_TOKENS = 5  # the feature's heaviest tokens; silent passages that hold one are hard negatives
NEIGHBOURS = 5  # nearest features of each kind (by firing, by decoder) in whose passages hard negatives are looked for
# Neighbours are taken, nearest first, while together they fire in no more than this share of the silent passages: where
# a feature fires everywhere it makes nothing a hard negative, and "the other silent passages" have to be left.
NEAR = 0.25
CALIBRATION_LABELS = 64  # labels that the claim threshold is fitted on
STRATA: dict[str, Stratum] = {"fires": "A", "claimed": "B", "token": "B", "neighbour": "B", "rival": "B", "silent": "C"}


@dataclass(frozen=True)
class Cell:
    """Part of a stratum: passages drawn from one kind, and how many passages of the split they stand for."""

    stratum: Stratum
    kind: str
    passages: NDArray[np.int64]
    population: float
    panel: int | None = None  # panel passages of the kind; None where the population is exact

    def rows(self, explanation_id: str, scorer_id: str, split: Split) -> list[Draw]:
        """The cell as rows of `draw`."""
        weight = self.population / len(self.passages) if len(self.passages) else 0.0
        return [
            Draw(
                explanation_id, scorer_id, split, passage, self.stratum, self.kind, self.population, weight, self.panel
            )
            for passage in self.passages.tolist()
        ]


class Design:
    """Draws scoring sets in one split of one collection."""

    def __init__(
        self, store: Store, collection_id: str, split: Split, cfg: ScoreSection, seed: int, texts: Texts
    ) -> None:
        self.store, self.collection_id, self.split, self.seed = store, collection_id, split, seed
        self.size = cfg.select_passages if split == "select" else cfg.score_passages
        self.panel = PanelIndex(store, collection_id, split)
        row = store.collection(collection_id)
        assert row is not None
        index = ("explain", "select", "score").index(split)
        self.n_passages = int(row["n_passages"][index])
        self.firing_passages = store.features(collection_id)["n_passages"][index]
        self._held: _Facts | None = None
        self.tokens, _ = texts.grid(self.panel.passages, int(row["passage_tokens"]))

    def firing(self, feature: int) -> NDArray[np.int64]:
        """Stratum A: passages where the feature fires, the first of its uniform sample."""
        return self._facts(feature).firing

    def sample(self, feature: int) -> NDArray[np.int64]:
        """The whole uniform sample of firing passages, however many a scoring set takes of it."""
        return self._facts(feature).sample

    def _facts(self, feature: int) -> "_Facts":
        """What every scoring set of a feature shares; the last feature asked about is held."""
        if self._held is None or self._held.feature != feature:
            sample = self.store.excerpts(self.collection_id, feature, self.split, "sample")
            self._held = _Facts(
                feature=feature,
                sample=sample.passage,
                firing=sample.passage[: self.size // 2],
                silent=silent_panel(self.store, self.collection_id, self.panel, self.tokens, feature, self.seed),
            )
        return self._held

    def cells(self, feature: int, claimed: NDArray[np.bool_]) -> list[Cell]:
        """The scoring set of a label of `feature`.

        claimed  [panel passage] where the label's simulator predicts firing; see `claim_threshold`
        """
        facts = self._facts(feature)
        n_firing = float(self.firing_passages[feature])
        per_passage = (self.n_passages - n_firing) / max(int(facts.silent.silent.sum()), 1)
        hard = self.size // 4
        drawn = strata.draw(facts.silent, claimed, hard, self.size - self.size // 2 - hard)
        cells = [Cell("A", "fires", facts.firing, n_firing)]
        for kind in strata.KINDS:
            n = drawn.panel[kind]
            cells.append(Cell(STRATA[kind], kind, self.panel.passages[drawn.rows[kind]], n * per_passage, n))
        return [cell for cell in cells if len(cell.passages)]

    def unguided(self, feature: int, size: int) -> list[Cell]:
        """Firing and silent passages, half and half, drawn without regard to any label."""
        facts = self._facts(feature)
        order = facts.silent.order
        silent = self.panel.passages[order[facts.silent.silent[order]]]
        n_firing = float(self.firing_passages[feature])
        return [
            Cell("A", "fires", facts.firing[: size // 2], n_firing),
            Cell("C", "silent", silent[: size - size // 2], self.n_passages - n_firing, len(silent)),
        ]


@dataclass(frozen=True)
class _Facts:
    feature: int
    sample: NDArray[np.int64]  # passage ids
    firing: NDArray[np.int64]  # those of them that a scoring set takes
    silent: strata.Silent  # what B and C are drawn from


def silent_panel(
    store: Store, collection_id: str, panel: PanelIndex, tokens: NDArray[np.int64], feature: int, seed: int
) -> strata.Silent:
    """The panel as one feature sees it.

    tokens  [panel passage, position] ids, -1 after the end
    """
    top = store.top_tokens(collection_id, feature)[:OWN_TOKENS]
    silent = panel.silent(feature)
    near = np.zeros(len(silent), dtype=bool)
    for other in _nearest(store.neighbours(collection_id, feature)):
        more = near.copy()
        more[panel.firing(other).row] = True
        if (more & silent).sum() <= NEAR * silent.sum():
            near = more
    key = mix(panel.passages.astype(np.uint64) ^ salted(seed * 0x10001 + feature, 3))
    own = np.asarray(np.isin(tokens, top).any(axis=1))
    return strata.Silent(silent, own, near, np.argsort(key, kind="stable"))


def _nearest(found: list[Neighbour]) -> list[int]:
    """The nearest of each kind in turn, each feature once."""
    ranked = sorted((n for n in found if n.rank < NEIGHBOURS), key=lambda n: (n.rank, n.kind != "firing"))
    return list(dict.fromkeys(n.other for n in ranked))


def claim_threshold(design: Design, simulator: Simulator, labels: list[tuple[int, str]]) -> float:
    """The predicted peak above which a passage counts as claimed, fitted on select for a simulator.

    design  of the select split
    labels  (feature, label) pairs; the first CALIBRATION_LABELS are used
    The threshold that best tells firing from silent passages, pooled over the labels (balanced). Infinite, so that
    nothing is claimed, when there is nothing to fit it on.
    """
    firing, silent = [], []
    for feature, label in labels[:CALIBRATION_LABELS]:
        positives = design.sample(feature)
        negatives = design.panel.passages[design.panel.silent(feature)]
        if len(positives) and len(negatives):
            firing.append(simulator.predict([label], positives)[0].max(axis=1))
            silent.append(simulator.predict([label], negatives)[0].max(axis=1))
    peaks = [_finite(np.concatenate(kind)) if kind else np.empty(0) for kind in (firing, silent)]
    return balanced_threshold(*peaks) if all(map(len, peaks)) else float("inf")


def _finite(peaks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Those that are numbers: a passage with another has a reason in the place of a prediction."""
    return peaks[np.isfinite(peaks)].astype(np.float64)
