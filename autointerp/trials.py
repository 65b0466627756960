"""Labels of known quality, scored: what every metric says of every rung of every planted feature.

Passages come from the store as in any run. The old ways of scoring (top-and-random passages, random negatives) are
computed beside ours, from the same predictions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from autointerp import baselines, grades, metrics, relate, strata
from autointerp.config import FeaturesSection
from autointerp.draws import silent_panel
from autointerp.evidence import ExplainEvidence, PanelIndex, Texts
from autointerp.metrics import Cell
from autointerp.planted import Feature, Label, PlantedText, Predicate
from autointerp.planted.collection import Activations
from autointerp.population import population
from autointerp.store import Store
from autointerp.tally import Bar

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
SCORE = 2  # index of the score split
PAIRED = ("r_rank", "f1", "f1_design")  # compared on the union of both labels' hard negatives
ALONE = ("r_pop", "f1_pop", "top_and_random", "random_negatives")  # of each label on its own passages
METRICS = (*PAIRED, *ALONE)


class Scorer(Protocol):
    """A simulator under test, and how it claims passages."""

    name: str
    threshold: float  # a predicted peak above it says that the feature fires

    def predict(self, labels: Sequence[str], passages: I64) -> F32:
        """Predicted activations [label, passage, token], 0 after a passage's end."""
        ...

    def claims(self, label: str, passages: I64) -> NDArray[np.bool_]:
        """[passage] whether the cheap proxy claims it for the label."""
        ...


class Predictions:
    """What a scorer predicts for a label, by rows of a sheet: each is asked once, and not before it is wanted."""

    def __init__(self, scorer: Scorer, label: str, sheet: "Sheet") -> None:
        self.scorer, self.label, self.passages = scorer, label, sheet.passages
        self._values = np.zeros(sheet.actual.shape, dtype=np.float32)
        self._known = np.zeros(len(sheet.passages), dtype=bool)

    def __getitem__(self, rows: I64) -> F32:
        """Predicted activations [row, token] of these rows."""
        new = np.unique(rows[~self._known[rows]])
        if len(new):
            self._values[new] = self.scorer.predict([self.label], self.passages[new])[0]
            self._known[new] = True
        found: F32 = self._values[rows]
        return found


class Outcome(NamedTuple):
    """What a metric says of the right label and of another, on the same feature. A constant prediction counts 0."""

    right: float
    other: float


@dataclass(frozen=True)
class Sheet:
    """The passages that one feature's labels are scored on, and the truth on them. Rows: the panel, A, the top."""

    passages: I64  # [row] ids
    document: NDArray[np.uint64]  # [row]
    actual: F32  # [row, token]
    usable: NDArray[np.bool_]  # [row, token]
    firing: I64  # rows of A
    top: I64  # rows of the strongest passages of the split
    silent: strata.Silent
    n_firing: int  # firing passages of the split


class Bench:
    """Planted features in a store, ready for any scorer."""

    def __init__(
        self, store: Store, collection_id: str, text: PlantedText, features: Sequence[Feature],
        activations: Sequence[Activations], passages: int, seed: int,
    ) -> None:  # fmt: skip
        """passages: per label, half of them firing; activations: all of each feature's, by feature."""
        self.store, self.collection_id, self.text, self.features = store, collection_id, text, features
        self.activations, self.size, self.seed = activations, passages, seed
        self.panel = PanelIndex(store, collection_id, "score")
        self.n_firing = store.features(collection_id)["n_passages"][SCORE]
        self.kinds = population(store, collection_id, FeaturesSection())  # type: ignore[call-arg]
        texts = Texts(store, collection_id)
        self.evidence = ExplainEvidence(store, collection_id, texts)
        self.tokens, self.usable = texts.grid(self.panel.passages, text.width)
        self._known_f1: dict[tuple[int, Predicate], float] = {}
        self.score_rows = np.flatnonzero(text.split == SCORE)
        eligible = np.flatnonzero(self.kinds.eligible).tolist()
        relate.run(store, collection_id, None, eligible, Bar(False))

    @property
    def n_passages(self) -> int:
        """Passages of the score split."""
        return len(self.score_rows)

    @property
    def panel_share(self) -> float:
        """Which share of them is in the panel."""
        return len(self.panel.passages) / self.n_passages

    def sheet(self, feature: int) -> Sheet:
        """The passages of one feature."""
        text, half = self.text, self.size // 2
        sample = self.store.excerpts(self.collection_id, feature, "score", "sample")
        firing = sample.passage[:half]
        everywhere = self.activations[feature]
        inside = text.split[everywhere.cell // text.width] == SCORE
        rows, place = np.unique(everywhere.cell[inside] // text.width, return_inverse=True)
        peak = np.zeros(len(rows), dtype=np.float32)
        np.maximum.at(peak, place, everywhere.value[inside])
        top = text.ids[rows[np.lexsort((rows, -peak))[:half]]]
        n_panel = len(self.panel.passages)
        passages = np.concatenate([self.panel.passages, firing, top])
        at = text.rows(passages)
        actual = np.zeros((len(passages), text.width), dtype=np.float32)
        found = self.panel.firing(feature)
        actual[found.row, found.position] = found.value
        lengths = np.diff(sample.firing.offsets)[:half]
        n = int(lengths.sum())
        actual[n_panel + np.repeat(np.arange(len(firing)), lengths), sample.firing.positions[:n]] = (
            sample.firing.values[:n]
        )
        actual[n_panel + len(firing) :] = self.truth(feature, top)
        return Sheet(
            passages, text.document[at], actual, np.arange(text.width) < text.length[at][:, None],
            firing=n_panel + np.arange(len(firing)), top=n_panel + len(firing) + np.arange(len(top)),
            silent=silent_panel(self.store, self.collection_id, self.panel, self.tokens, feature, self.seed),
            n_firing=int(self.n_firing[feature]),
        )  # fmt: skip

    def truth(self, feature: int, passages: I64) -> F32:
        """Activations [passage, token] of passages by id, from what was planted instead of the store."""
        cells, values = self.activations[feature]
        rows, again = np.unique(self.text.rows(passages), return_inverse=True)
        grid = np.zeros((len(rows), self.text.width), dtype=np.float32)
        place = np.full(len(self.text.length), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        inside = np.flatnonzero(place[cells // self.text.width] >= 0)
        grid[place[cells[inside] // self.text.width], cells[inside] % self.text.width] = values[inside]
        return grid[again]

    # -- scoring ---------------------------------------------------------------------------------------------------

    def compare(
        self, sheet: Sheet, labels: Mapping[str, Label], scorer: Scorer, paired: bool = False
    ) -> dict[str, dict[str, Outcome]]:
        """By metric and rung: the true label's score and the rung's; `paired`: only by metrics of shared passages."""
        n_panel = len(self.panel.passages)
        predicted = {rung: Predictions(scorer, label.text, sheet) for rung, label in labels.items()}
        claims = {rung: scorer.claims(label.text, sheet.passages[:n_panel]) for rung, label in labels.items()}
        names = () if paired else ALONE
        alone = {rung: self._alone(sheet, predicted[rung], claims[rung], scorer.threshold) for rung in labels if names}
        found: dict[str, dict[str, Outcome]] = {metric: {} for metric in (*PAIRED, *names)}
        for rung in labels:
            if rung == "true":
                continue
            drawn = strata.draw_together(sheet.silent, [claims["true"], claims[rung]], self.size // 4, self.size // 4)
            scores = [self._paired(sheet, predicted[name], drawn, scorer.threshold) for name in ("true", rung)]
            for metric in PAIRED:
                found[metric][rung] = Outcome(scores[0][metric], scores[1][metric])
            for metric in names:
                found[metric][rung] = Outcome(alone["true"][metric], alone[rung][metric])
        return found

    def _paired(
        self, sheet: Sheet, predicted: Predictions, drawn: strata.Together, threshold: float
    ) -> dict[str, float]:
        """Scores on passages that two labels share.

        f1 is of the passages that fire (A) or that a label claims (the label-guided part of B), weighted to the corpus.
        Where a label is twice too broad at density 1e-4, the panel holds some 15 passages to show it by, of 160: each
        then has to count for what it stands for. What nobody claims is left out: one false positive of the simulator
        would outweigh all else. f1_design is of A + B + C as drawn, each passage counting 1.
        """
        rows = np.concatenate([sheet.firing, drawn.hard, drawn.others])
        claimed = drawn.hard[drawn.weight > 0]
        weight = np.concatenate([
            np.full(len(sheet.firing), sheet.n_firing / max(len(sheet.firing), 1)),
            drawn.weight[drawn.weight > 0] / self.panel_share,
        ])  # fmt: skip
        return {
            "r_rank": _correlation(sheet, predicted, rows),
            "f1": _f1(sheet, predicted, np.concatenate([sheet.firing, claimed]), threshold, weight),
            "f1_design": _f1(sheet, predicted, rows, threshold),
        }

    def _alone(
        self, sheet: Sheet, predicted: Predictions, claimed: NDArray[np.bool_], threshold: float
    ) -> dict[str, float]:
        half = self.size // 2
        found = self.marked(sheet, predicted, claimed)
        order = sheet.silent.order
        unguided = np.concatenate([sheet.firing, order[sheet.silent.silent[order]][:half]])
        cells = grades.cells(found, threshold)
        return {
            "r_pop": metrics.r_pop(cells, self.panel_share, 0, np.random.default_rng(0)).value or 0.0,
            "f1_pop": metrics.f1(metrics.confusion(found.fires, found.said > threshold, found.weight)) or 0.0,
            "top_and_random": _correlation(sheet, predicted, np.concatenate([sheet.top, order[: len(sheet.top)]])),
            "random_negatives": _f1(sheet, predicted, unguided, threshold),
        }

    def marked(self, sheet: Sheet, predicted: Predictions, claimed: NDArray[np.bool_]) -> grades.Marked:
        """A label's own scoring set with what it predicts there."""
        drawn = strata.draw(sheet.silent, claimed, self.size // 4, self.size // 4)
        per_passage = (self.n_passages - sheet.n_firing) / max(int(sheet.silent.silent.sum()), 1)
        rows = np.concatenate([sheet.firing, *(drawn.rows[kind] for kind in strata.KINDS)])
        kind = np.repeat(["fires", *strata.KINDS], [len(sheet.firing), *(len(drawn.rows[k]) for k in strata.KINDS)])
        panel = np.array([-1 if k == "fires" else drawn.panel[k] for k in kind.tolist()], dtype=np.int64)
        own = np.concatenate([
            np.ones(len(sheet.firing), dtype=bool), *(sheet.silent.token[drawn.rows[k]] for k in strata.KINDS)
        ])  # fmt: skip
        return grades.Marked(
            sheet.passages[rows], kind, np.where(panel < 0, float(sheet.n_firing), panel * per_passage), panel,
            sheet.document.view(np.int64)[rows], self.moments(sheet, predicted, rows),
            sheet.actual[rows].max(axis=1).astype(np.float64), predicted[rows].max(axis=1).astype(np.float64), own,
        )  # fmt: skip

    def numbers(self, feature: int, sheet: Sheet, label: Label, scorer: Scorer) -> grades.Numbers:
        """What a run would say of a label, as far as it can be said without the labels of others."""
        predicted = Predictions(scorer, label.text, sheet)
        found = self.marked(sheet, predicted, scorer.claims(label.text, self.panel.passages))
        at = np.argsort(sheet.passages, kind="stable")
        rows = at[np.searchsorted(sheet.passages[at], found.passages)]
        usable = sheet.usable[rows]
        actual, said = sheet.actual[rows][usable].astype(np.float64), predicted[rows][usable].astype(np.float64)
        tokens = self.text.tokens[self.text.rows(found.passages)][usable].astype(np.int64)
        table = baselines.lookup(tokens, self.evidence.mean_by_token(feature))
        unguided = np.broadcast_to(~found.stratum("B")[:, None], usable.shape)[usable]
        return {
            "r_rank": metrics.correlation(actual, said),
            **grades.detection(found, scorer.threshold),
            **grades.beside_table(actual, said, table, unguided),
        }

    def moments(self, sheet: Sheet, predicted: Predictions, rows: I64) -> metrics.Moments:
        """Moments per passage of these rows."""
        usable = sheet.usable[rows]
        row = np.nonzero(usable)[0]
        actual, said = sheet.actual[rows][usable], predicted[rows][usable]
        return metrics.moments(actual.astype(np.float64), said.astype(np.float64), row, len(rows))

    def own_cells(self, sheet: Sheet, label: Label, scorer: Scorer) -> list[Cell]:
        """A label's own scoring set as r_pop takes it."""
        predicted = Predictions(scorer, label.text, sheet)
        claimed = scorer.claims(label.text, self.panel.passages)
        return grades.cells(self.marked(sheet, predicted, claimed), scorer.threshold)

    def known_f1(self, feature: int, label: Predicate) -> float:
        """F1 of where a label holds against where the feature fires, by token, over the whole text."""
        if (feature, label) not in self._known_f1:
            self._known_f1[feature, label] = self._f1_of(feature, label)
        return self._known_f1[feature, label]

    def _f1_of(self, feature: int, label: Predicate) -> float:
        fires = self.activations[feature].cell
        said = self.text.cells(label.extension(self.text))[0]
        met = np.searchsorted(fires, said)
        both = int((fires[np.minimum(met, len(fires) - 1)] == said).sum()) if len(fires) else 0
        return 2 * both / max(len(fires) + len(said), 1)

    def census(self, feature: int, label: str, scorer: Scorer) -> float | None:
        """The correlation over every token of the score split: what r_pop estimates."""
        predicted = scorer.predict([label], self.text.ids[self.score_rows])[0].astype(np.float64)
        cells, values = self.activations[feature]
        place = np.full(len(self.text.length), -1, dtype=np.int64)
        place[self.score_rows] = np.arange(len(self.score_rows))
        inside = place[cells // self.text.width] >= 0
        cells, values = cells[inside], values[inside].astype(np.float64)
        met = predicted[place[cells // self.text.width], cells % self.text.width]
        n = float(self.text.length[self.score_rows].sum())
        sums = (n, values.sum(), predicted.sum(), (values**2).sum(), (predicted**2).sum(), (values * met).sum())
        r = float(metrics.correlation_of(metrics.Moments(*(np.array([s]) for s in sums))))
        return None if np.isnan(r) else r


def _correlation(sheet: Sheet, predicted: Predictions, rows: I64) -> float:
    usable = sheet.usable[rows]
    actual, said = sheet.actual[rows][usable], predicted[rows][usable]
    return metrics.correlation(actual.astype(np.float64), said.astype(np.float64)) or 0.0


def _f1(
    sheet: Sheet, predicted: Predictions, rows: I64, threshold: float, weight: NDArray[np.float64] | None = None
) -> float:
    fires = sheet.actual[rows].max(axis=1) > 0
    return metrics.f1(metrics.confusion(fires, predicted[rows].max(axis=1) > threshold, weight)) or 0.0
