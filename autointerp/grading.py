"""What simulating and scoring share within one process: texts, designs, and the simulator with its passages read in.

Everything is made on first use, so a run with nothing pending loads nothing.
"""

import copy
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autointerp.config import Settings
from autointerp.draws import Cell, Design, claim_threshold
from autointerp.evidence import ExplainEvidence, Texts
from autointerp.rows import Explanation, Run, Split
from autointerp.simulators import Simulator, open_simulator
from autointerp.simulators.lookup import LookupSimulator
from autointerp.store import Excerpts, Store
from autointerp.tally import Bar


class Grading:
    """One run's means of grading. `run.features` must be set."""

    def __init__(self, store: Store, settings: Settings, run: Run, bar: Bar) -> None:
        self.store, self.settings, self.run, self.bar = store, settings, run, bar
        self._designs: dict[Split, Design] = {}
        self._known: set[int] = set()
        self._sample: tuple[tuple[int, Split], Excerpts] | None = None
        self._claimed: dict[tuple[Split, str], NDArray[np.bool_]] = {}  # [panel passage]

    def for_run(self, run: Run) -> "Grading":
        """The same means for another set of candidates of the same collection: what has been loaded is shared."""
        if run == self.run:
            return self
        found = copy.copy(self)
        found.run, found._claimed = run, {}
        found.__dict__.pop("threshold", None)  # fitted on the candidates
        return found

    @cached_property
    def texts(self) -> Texts:
        """Passages of the collection."""
        return Texts(self.store, self.run.collection_id)

    @cached_property
    def evidence(self) -> ExplainEvidence:
        """The explain split, by feature."""
        return ExplainEvidence(self.store, self.run.collection_id, self.texts)

    def sample(self, feature: int, split: Split) -> Excerpts:
        """The feature's uniform sample of firing passages on a split; the last one asked for is held."""
        if self._sample is None or self._sample[0] != (feature, split):
            found = self.store.excerpts(self.run.collection_id, feature, split, "sample")
            self._sample = ((feature, split), found)
        return self._sample[1]

    def design(self, split: Split) -> Design:
        """Draws scoring sets of one split."""
        if split not in self._designs:
            self._designs[split] = Design(
                self.store, self.run.collection_id, split, self.settings.score, self.settings.run.seed, self.texts
            )
        return self._designs[split]

    @cached_property
    def simulator(self) -> Simulator:
        """The simulator, calibrated on the explain panel."""
        simulator: Simulator
        if self.settings.simulator.kind == "lookup":
            simulator = LookupSimulator(self.evidence, self.settings.collect.passage_tokens)
        else:
            simulator = open_simulator(self.settings)
        background = np.sort(self.evidence.panel.passages)[:512]
        self._simulator = simulator
        self.read(background)
        simulator.calibrate(background)
        return simulator

    def key(self, explanation: Explanation) -> str:
        """What the simulator is told of an explanation: its label; for the look-up table its feature."""
        return str(explanation.feature) if self.settings.simulator.kind == "lookup" else explanation.label or ""

    def read(self, passages: NDArray[np.int64]) -> None:
        """Make the simulator ready to be asked about these passages."""
        self.texts.fetch(passages)
        new = [int(i) for i in np.unique(passages) if int(i) not in self._known]
        self._simulator.read({i: self.texts.strings(i) for i in new}, self.bar)
        self._known.update(new)

    def read_all(self, split: Split, features: list[int]) -> None:
        """Read in everything that grading these features on a split will ask about, in one go."""
        design = self.design(split)
        _ = self.simulator
        self.read(np.concatenate([design.panel.passages, *(design.firing(f) for f in features)]))

    def predict(self, label: str, passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """Predictions [passage, token] for a label; passages are read in where they are new."""
        simulator = self.simulator
        self.read(passages)
        return simulator.predict([label], passages)[0]

    @cached_property
    def threshold(self) -> float:
        """The peak above which this simulator claims a passage, fitted on select."""
        candidates = self.store.explanations(self.run.collection_id, self.run.explainer_ids, self.run.features or [])
        first: dict[int, str] = {}
        for explanation in candidates:
            if explanation.label is not None:
                first.setdefault(explanation.feature, self.key(explanation))
        design = self.design("select")
        simulator = self.simulator
        self.read(design.panel.passages)
        self.read(np.concatenate([design.sample(f) for f in first] or [np.empty(0, dtype=np.int64)]))
        return claim_threshold(design, simulator, sorted(first.items()))

    def cells(self, feature: int, labels: Sequence[str], split: Split) -> list[list[Cell]]:
        """The scoring set of each of these labels of a feature, on one split."""
        self._claim(labels, split)
        return [self.design(split).cells(feature, self._claimed[split, label]) for label in labels]

    def _claim(self, labels: Sequence[str], split: Split) -> None:
        """Work out which panel passages the labels claim, all in one pass over the panel; held for later use."""
        new = [label for label in dict.fromkeys(labels) if (split, label) not in self._claimed]
        if new:
            threshold, simulator, panel = self.threshold, self.simulator, self.design(split).panel.passages
            self.read(panel)
            for label, predicted in zip(new, simulator.predict(new, panel), strict=True):
                self._claimed[split, label] = predicted.max(axis=1) > threshold

    def wanted(self, split: Split) -> list[Explanation]:
        """The labels to grade: every candidate of the run (this simulator is free), on either split."""
        candidates = self.store.explanations(self.run.collection_id, self.run.explainer_ids, self.run.features or [])
        return [e for e in candidates if e.status == "ok"]
