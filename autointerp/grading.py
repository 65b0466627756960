"""What simulating and scoring share within one process: texts, designs, and simulators with their passages read in.

Two simulators have a part in a grade. The proxy is free: it reads the whole panel, and the passages that it claims are
a label's hard negatives. The simulator predicts, on the passages that were drawn. They may be one and the same. Where
the simulator is paid or slow, the proxy also grades the candidates on select, and the simulator sees the chosen alone.

Everything is made on first use, so a run with nothing pending loads nothing.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autointerp.config import Settings
from autointerp.draws import Cell, Design, claim_threshold
from autointerp.evidence import ExplainEvidence, Texts
from autointerp.keep import mix, salted
from autointerp.llm import Door
from autointerp.rows import Explanation, Run, Split
from autointerp.simulators import AskingSimulator, Predicted, Simulator, open_simulator
from autointerp.simulators.chat import ChatSimulator
from autointerp.simulators.lookup import LookupSimulator
from autointerp.simulators.pattern import sentence_of
from autointerp.simulators.served import ServedSimulator
from autointerp.store import Excerpts, Store
from autointerp.tally import Bar

Opens = Callable[[Store, Settings], Door]
CLAIM_BLOCK = 64  # labels whose claims are worked out together: a prediction on the panel is a MB for each
PAID_SAYS_SO = 1.0  # of 10, on the scale that models answer on
PAID_NULLS = 50  # features whose null is worked out where the simulator is paid (METHOD: pooled, no p per feature)


class _Means:
    """What is read of a collection once, whichever candidates of it are graded."""

    def __init__(self, store: Store, collection_id: str) -> None:
        self.store, self.collection_id = store, collection_id

    @cached_property
    def texts(self) -> Texts:
        return Texts(self.store, self.collection_id)

    @cached_property
    def evidence(self) -> ExplainEvidence:
        return ExplainEvidence(self.store, self.collection_id, self.texts)


class Grading:
    """One run's means of grading. `run.features` must be set."""

    def __init__(self, store: Store, settings: Settings, run: Run, bar: Bar, opens: Opens = Door) -> None:
        self.store, self.settings, self.run, self.bar, self.opens = store, settings, run, bar, opens
        self._fitted = run  # thresholds are fitted on its candidates
        self._means = _Means(store, run.collection_id)
        self._designs: dict[Split, Design] = {}
        self._read: dict[str, set[int]] = {}  # kind of simulator -> passages that it has read
        self._simulators: dict[str, Simulator] = {}
        self._sample: tuple[tuple[int, Split], Excerpts] | None = None
        self._claimed: dict[tuple[Split, str], NDArray[np.bool_]] = {}  # [panel passage]
        self._thresholds: dict[str, float] = {}  # by kind of simulator

    def for_run(self, run: Run) -> "Grading":
        """The same means for another set of candidates of the same collection: what has been loaded is shared."""
        if run == self.run:
            return self
        found = copy.copy(self)
        found.run, found._fitted, found._claimed, found._thresholds = run, run, {}, {}
        return found

    def beside(self, run: Run) -> "Grading":
        """The same means, thresholds included, for a run that has other labels beside those they were fitted on."""
        found = copy.copy(self)
        found.run = run
        return found

    @property
    def texts(self) -> Texts:
        """Passages of the collection."""
        return self._means.texts

    @property
    def evidence(self) -> ExplainEvidence:
        """The explain split, by feature."""
        return self._means.evidence

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
                self.store, self.run.collection_id, split, self.settings.scoring, self.settings.run.seed, self.texts
            )
        return self._designs[split]

    # -- simulators ------------------------------------------------------------------------------------------------

    @property
    def simulator(self) -> Simulator:
        """The simulator that predicts on the score split."""
        return self._simulator(self.settings.simulator.kind)

    @property
    def proxy(self) -> Simulator:
        """The simulator that claims hard negatives."""
        return self._simulator(self.settings.simulator.claims)

    def _grader(self, split: Split) -> str:
        """The kind of simulator that predicts on a split."""
        cfg = self.settings.simulator
        return cfg.claims if cfg.paid and split == "select" else cfg.kind

    def _simulator(self, kind: str) -> Simulator:
        """A kind of simulator, calibrated on the explain panel; made on first use."""
        if kind not in self._simulators:
            found = self._simulators[kind] = self._open(kind)
            background = np.sort(self.evidence.panel.passages)[:512]
            self._read_in(kind, background)
            found.calibrate(background)
        return self._simulators[kind]

    def _open(self, kind: str) -> Simulator:
        if kind == "lookup":
            return LookupSimulator(self.evidence, self.settings.collect.passage_tokens)
        if kind == "chat" or (kind == "logprob" and self.settings.simulator.served):
            asks = ChatSimulator if kind == "chat" else ServedSimulator
            door = self.opens(self.store, self.settings)
            return asks(door, self.settings.simulator, self.settings.collect.passage_tokens)
        section = self.settings.simulator.model_copy(update={"kind": kind})
        return open_simulator(self.settings.model_copy(update={"simulator": section}))

    def _read_in(self, kind: str, passages: NDArray[np.int64]) -> None:
        """Make a simulator ready to be asked about these passages."""
        self.texts.fetch(passages)
        known = self._read.setdefault(kind, set())
        new = [i for i in dict.fromkeys(passages.tolist()) if i not in known]  # in the order of the features
        self._simulator(kind).read({i: self.texts.strings(i) for i in new}, self.bar)
        known.update(new)

    def key(self, explanation: Explanation) -> str:
        """What is told of an explanation: its label; for `pattern` its rules; for the look-up table its feature."""
        kinds = (self.settings.simulator.kind, self.settings.simulator.claims)
        if "lookup" in kinds:
            return str(explanation.feature)
        return (explanation.rules if "pattern" in kinds else None) or explanation.label or ""

    def read(self, passages: NDArray[np.int64]) -> None:
        """Make the simulator ready to be asked about these passages."""
        self._read_in(self.settings.simulator.kind, passages)

    def read_all(self, split: Split, features: list[int]) -> None:
        """Read in everything that grading these features on a split will ask about, in one go."""
        design, cfg = self.design(split), self.settings.simulator
        firing = [design.firing(f) for f in features] if self._grader(split) == cfg.claims else []
        self._read_in(cfg.claims, np.concatenate([design.panel.passages, *firing]))

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """The simulator's predictions [label, passage, token]; passages are read in where they are new."""
        self.read(passages)
        kind = self.settings.simulator.kind
        return self.simulator.predict([_told(kind, label) for label in labels], passages)

    def predict_all(
        self, wanted: Sequence[tuple[str, NDArray[np.int64]]], split: Split
    ) -> Iterator[tuple[int, Predicted]]:
        """For (label, passages) pairs of a split: the place of a pair and its predictions, as they are complete.

        Raises Unreachable or BudgetSpent after everything that is complete.
        """
        kind = self._grader(split)
        simulator = self._simulator(kind)
        self._read_in(kind, np.concatenate([np.empty(0, dtype=np.int64), *(passages for _, passages in wanted)]))
        if isinstance(simulator, AskingSimulator):
            for place, predicted in simulator.ask([(_told(kind, label), passages) for label, passages in wanted]):
                yield place, predicted.checked(wanted[place][1])
            return
        for place, (label, passages) in enumerate(wanted):
            yield place, Predicted(simulator.predict([_told(kind, label)], passages)[0], {}).checked(passages)

    def note(self, split: Split) -> str:
        """What the simulator of a split has to say about how it was asked; "" for nothing."""
        return str(getattr(self._simulators.get(self._grader(split)), "note", ""))

    # -- scoring sets ----------------------------------------------------------------------------------------------

    @property
    def threshold(self) -> float:
        """The peak above which the proxy claims a passage, fitted on select."""
        return self._threshold(self.settings.simulator.claims)

    @property
    def says_so(self) -> float:
        """The predicted peak above which the simulator says that the feature fires in a passage.

        Fitted on select like the proxy's, which it may be; a paid simulator sees nothing of select, and says so above
        PAID_SAYS_SO.
        """
        cfg = self.settings.simulator
        return PAID_SAYS_SO if cfg.paid else self._threshold(cfg.kind)

    def _threshold(self, kind: str) -> float:
        if kind not in self._thresholds:
            run = self._fitted
            candidates = self.store.explanations(run.collection_id, run.explainer_ids, run.features or [])
            first: dict[int, str] = {}
            for explanation in candidates:
                if explanation.label is not None:
                    first.setdefault(explanation.feature, _told(kind, self.key(explanation)))
            design = self.design("select")
            self._read_in(kind, design.panel.passages)
            self._read_in(kind, np.concatenate([design.sample(f) for f in first] or [np.empty(0, dtype=np.int64)]))
            self._thresholds[kind] = claim_threshold(design, self._simulator(kind), sorted(first.items()))
        return self._thresholds[kind]

    def cells(self, feature: int, labels: Sequence[str], split: Split) -> list[list[Cell]]:
        """The scoring set of each of these labels of a feature, on one split."""
        self.claim(labels, split)
        return [self.design(split).cells(feature, self._claimed[split, label]) for label in labels]

    def claim(self, labels: Sequence[str], split: Split) -> None:
        """Work out which panel passages the labels claim, CLAIM_BLOCK labels in one pass over the panel; held for later
        use."""
        new = [label for label in dict.fromkeys(labels) if (split, label) not in self._claimed]
        for start in range(0, len(new), CLAIM_BLOCK):
            block = new[start : start + CLAIM_BLOCK]
            kind, threshold, panel = self.settings.simulator.claims, self.threshold, self.design(split).panel.passages
            self._read_in(kind, panel)
            told = [_told(kind, label) for label in block]
            for label, predicted in zip(block, self.proxy.predict(told, panel), strict=True):
                self._claimed[split, label] = predicted.max(axis=1) > threshold

    def wanted(self, split: Split) -> list[Explanation]:
        """The labels to grade: every candidate of the run; for a paid simulator, on score, the chosen ones alone."""
        if self.settings.simulator.paid and split == "score":
            return self.store.chosen(self.run)
        candidates = self.store.explanations(self.run.collection_id, self.run.explainer_ids, self.run.features or [])
        return [e for e in candidates if e.status == "ok"]

    def with_null(self, features: Iterable[int]) -> set[int]:
        """The features whose null is worked out: all; for a paid simulator PAID_NULLS of them, to be pooled."""
        if not self.settings.simulator.paid:
            return set(features)
        found = np.array(sorted(features), dtype=np.int64)
        order = np.argsort(mix(found.view(np.uint64) ^ salted(self.settings.run.seed, 5)), kind="stable")
        return set(found[order[:PAID_NULLS]].tolist())

    @cached_property
    def explain_tokens(self) -> NDArray[np.int64]:
        """Token ids of the explain panel, [passage, token], -1 after the end."""
        return self.texts.grid(self.evidence.panel.passages, self.settings.collect.passage_tokens)[0]

    @property
    def n_nulls(self) -> int:
        """Labels of other features that a feature is also scored with; one, where each costs money or minutes."""
        return min(self.settings.score.nulls, 1) if self.settings.simulator.paid else self.settings.score.nulls


def _told(kind: str, key: str) -> str:
    """What a kind of simulator is told of a key: rules are for `pattern` alone, the others read the sentence."""
    return key if kind == "pattern" else sentence_of(key)
