"""Labels of other features on a feature's passages: what a label gets that has nothing to do with it (the null), and
whether it can be told from its neighbours' (discrimination)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autointerp import baselines, metrics
from autointerp.grading import Grading
from autointerp.population import population
from autointerp.rows import Explanation
from autointerp.scoring_set import ScoringSet, scoring_set


class Others:
    """The chosen labels of a run, each tried on features that it does not belong to."""

    def __init__(self, grading: Grading, chosen: Mapping[int, Explanation]) -> None:
        self.grading = grading
        self.labels = {feature: grading.key(e) for feature, e in chosen.items()}
        self.with_null = grading.with_null(chosen)
        density = population(grading.store, grading.run.collection_id, grading.settings.features).density
        self.density = {feature: float(density[feature]) for feature in self.labels}

    def nulls(self, feature: int) -> list[float]:
        """r_rank of labels of other features, each on a scoring set of its own drawn by the rule of a real label: with
        hard negatives that it claims itself. A constant prediction counts 0, a lost one is left out."""
        grading = self.grading
        if feature not in self.with_null:
            return []
        wanted = baselines.shuffled_labels(feature, self.labels, self.density, grading.n_nulls)
        if not wanted:
            return []
        labels = [label for _, label in wanted]
        sets = [
            scoring_set(grading, feature, "score", [row for cell in cells for row in cell.rows("", "", "score")])
            for cells in grading.cells(feature, labels, "score")
        ]
        values = []
        for found, predicted in zip(sets, self._predicted(labels, sets), strict=True):
            if not np.isnan(predicted).any():
                values.append(metrics.correlation(found.actual, predicted) or 0.0)
        return values

    def _predicted(self, labels: list[str], sets: list[ScoringSet]) -> list[NDArray[np.float64]]:
        """What each label predicts on its own set, by token. A free simulator is asked once for all of them, because
        they share most passages."""
        if self.grading.settings.simulator.paid:
            return [
                found.at(self.grading.predict([z], found.passages)[0]) for z, found in zip(labels, sets, strict=True)
            ]
        union = np.unique(np.concatenate([found.passages for found in sets]))
        grids = self.grading.predict(labels, union)
        return [found.at(grids[i, np.searchsorted(union, found.passages)]) for i, found in enumerate(sets)]

    def why_no_null(self, feature: int) -> str:
        """Why a feature has no null."""
        return "no_other_label" if feature in self.with_null else "null_of_a_sample"

    def near(self, feature: int) -> list[str]:
        """The labels of its nearest features, as far as these have one in this run."""
        found = self.grading.store.neighbours(self.grading.run.collection_id, feature)
        return [self.labels[other] for other in dict.fromkeys(n.other for n in found) if other in self.labels]

    def discrimination(
        self, feature: int, found: ScoringSet, predicted: NDArray[np.float64]
    ) -> tuple[float | None, int, str]:
        """The share of its neighbours' labels that score below its own label on A + C, their number, and why there is
        no share. (B is made against the feature's own label, so it is left out.)"""
        if self.grading.settings.simulator.paid:
            return None, 0, "for_free_simulators"
        labels = self.near(feature)
        if not labels:
            return None, 0, "no_labelled_neighbour"
        here = found.unguided
        own = metrics.correlation(found.actual[here], predicted[here])
        rivals = found.at(self.grading.predict(labels, found.passages))[:, here]
        scores = np.array([metrics.correlation(found.actual[here], rival) or 0.0 for rival in rivals])
        return metrics.discrimination(own, scores), len(labels), "no_r_rank"
