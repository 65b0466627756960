"""Labels of other features on a feature's passages: what a label gets that has nothing to do with it (the null), and
whether it can be told from its neighbours' (discrimination)."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import baselines, metrics
from autointerp.grading import Grading
from autointerp.population import population
from autointerp.rows import Explanation
from autointerp.scoring_set import ScoringSet, scoring_set

NULL_PASSAGES = 40  # behind a null, half of them firing: what a paid simulator is asked as well
NULL_BLOCK = 128  # labels predicted at once, so that memory does not grow with their number


class Null(NamedTuple):
    """The label of a feature among labels of others, all on the same passages."""

    own: float | None  # r_rank of its own label there; None where there is none
    values: NDArray[np.float64]  # [label] of the others


class Others:
    """The chosen labels of a run, each tried on features that it does not belong to."""

    def __init__(self, grading: Grading, chosen: Mapping[int, Explanation]) -> None:
        self.grading = grading
        self.labels = {feature: grading.key(e) for feature, e in chosen.items()}
        self.with_null = grading.with_null(chosen)
        density = population(grading.store, grading.run.collection_id, grading.settings.features).density
        self.density = {feature: float(density[feature]) for feature in self.labels}
        self.rest = self._rest()

    def _rest(self) -> list[dict[int, str]]:
        """What was not chosen: feature -> its n-th other candidate, for every n. Labels as likely to mean something as
        the chosen ones, for runs with fewer features than nulls."""
        grading, found = self.grading, dict[int, list[str]]()
        run = grading.run
        for e in grading.store.explanations(run.collection_id, run.explainer_ids, run.features or []):
            if e.status == "ok" and e.feature in self.labels and grading.key(e) != self.labels[e.feature]:
                found.setdefault(e.feature, []).append(grading.key(e))
        depth = max(map(len, found.values()), default=0)
        return [{feature: keys[n] for feature, keys in found.items() if n < len(keys)} for n in range(depth)]

    def _strangers(self, feature: int) -> list[str]:
        """Labels of other features, matched in density and length: chosen ones, then other candidates as needed."""
        wanted, found = self.grading.n_nulls, dict[str, None]()
        own = self.labels[feature]
        for labels in (self.labels, *self.rest):
            if len(found) >= wanted:
                break
            matched = baselines.shuffled_labels(feature, labels | {feature: own}, self.density, len(labels))
            found |= dict.fromkeys(label for _, label in matched)
        return list(found)[:wanted]

    def null(self, feature: int) -> Null:
        """The label among labels that have nothing to do with its feature, on firing and silent passages that no label
        had a say in: A + C of METHOD, on which all of them are tried alike. A lost prediction leaves its label out."""
        grading = self.grading
        strangers = self._strangers(feature) if feature in self.with_null else []
        if not strangers:
            return Null(None, np.empty(0))
        cells = grading.design("score").unguided(feature, NULL_PASSAGES)
        found = scoring_set(grading, feature, "score", [row for cell in cells for row in cell.rows("", "", "score")])
        if not len(found.actual):
            return Null(None, np.empty(0))
        paid = grading.settings.simulator.paid  # its nulls are pooled, so the label itself need not be asked about
        asked = strangers if paid else [self.labels[feature], *strangers]
        scores = np.concatenate(list(self._correlations(found, asked)))
        own, values = (np.nan, scores) if paid else (scores[0], scores[1:])
        return Null(float(own) if own and not np.isnan(own) else None, values[~np.isnan(values)])

    def _correlations(self, found: ScoringSet, labels: list[str]) -> Iterator[NDArray[np.float64]]:
        """r_rank of labels on a set, a block at a time; 0 exactly for a constant prediction, NaN for a lost one."""
        actual = found.actual - found.actual.mean()
        length = np.sqrt(actual @ actual)
        for start in range(0, len(labels), NULL_BLOCK):
            said = found.at(self.grading.predict(labels[start : start + NULL_BLOCK], found.passages))
            said -= said.mean(axis=1, keepdims=True)
            lengths = length * np.sqrt(np.einsum("ij,ij->i", said, said))
            flat = lengths <= 1e-12 * max(length, 1.0)
            yield np.where(flat, 0.0, said @ actual / np.where(flat, 1.0, lengths))

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
