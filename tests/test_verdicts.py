"""Verdicts: one word from numbers and thresholds, decided in an order, with the numbers that decided beside it."""

from collections import Counter
from collections.abc import Mapping

import pytest

from autointerp import config
from autointerp.candidates import reference_scorers
from autointerp.config import VerdictSection
from autointerp.verdicts import MEANING, WORDS, Evidence, decide, shown, thresholds_id

from .planted_world import planted

CFG = VerdictSection()  # type: ignore[call-arg]
FINE: Mapping[str, float | None] = {
    "r_rank": 0.8, "precision": 1.0, "recall": 0.85, "recall_low": 0.8, "claimed_own": None, "discrimination": 1.0,
    "null_q": 0.001, "density": 1e-3,
}  # fmt: skip
TOLD = (
    ("good", {}),
    ("no_pattern", {"r_rank": 0.05}),
    ("no_pattern", {"r_rank": None}),
    ("no_pattern", {"null_q": 0.3}),
    ("collides", {"discrimination": 0.5}),
    ("too_broad", {"precision": 0.7, "claimed_own": 0.1}),
    ("too_broad", {"precision": 0.7}),
    ("token_only", {"precision": 0.7, "claimed_own": 0.9}),
    ("too_narrow", {"recall": 0.5}),
    ("too_narrow", {"recall_low": 0.3}),
    # What leaves nothing to say comes first.
    ("no_pattern", {"r_rank": 0.0, "precision": 0.1, "recall": 0.1}),
    ("too_broad", {"precision": 0.5, "recall": 0.5}),
)


@pytest.mark.parametrize(("word", "changed"), TOLD)
def test_each_number_has_its_verdict(word: str, changed: dict[str, float | None]) -> None:
    found = decide("eligible", {**FINE, **changed}, CFG, 0.1, n_nulls=999)
    assert found.verdict == word
    if word != "good":
        against = {check.metric for check in found.evidence}
        assert against & set(changed)
        assert all(not check.holds for check in found.evidence if check.value is not None)
    else:
        assert all(check.holds for check in found.evidence)
        assert {"r_rank", "precision", "recall"} <= {check.metric for check in found.evidence}


@pytest.mark.parametrize(
    ("kind", "word"), [("dense", "dense"), ("too_rare", "insufficient_data"), ("dead", "insufficient_data")]
)
def test_a_feature_that_cannot_be_judged_is_not(kind: str, word: str) -> None:
    assert decide(kind, FINE, CFG, 0.1).verdict == word


def test_what_was_not_computed_is_not_held_against_a_label() -> None:
    assert decide("eligible", {"r_rank": 0.5}, CFG, 0.1).verdict == "good"


def test_few_nulls_cannot_condemn() -> None:
    numbers = {**FINE, "null_q": 0.2}
    assert decide("eligible", numbers, CFG, 0.1, n_nulls=5).verdict == "good"  # the smallest p there is is 1 / 6
    # 64 labels, 59 of them at the smallest p, 1 / 21: q is .0517 for all of these.
    assert decide("eligible", {**FINE, "null_q": 0.0517}, CFG, 0.1, n_nulls=20).verdict == "good"
    assert decide("eligible", numbers, CFG, 0.1, n_nulls=100).verdict == "no_pattern"


def test_a_number_at_its_threshold_is_held_against_a_label() -> None:
    assert not Evidence("precision", 0.8, 0.8, "above").holds
    assert not Evidence("claimed_own", 0.5, 0.5, "below").holds


def test_evidence_is_what_a_verdict_is_about() -> None:
    examples = {"claimed_but_silent": [3, 4], "missed": [7]}
    assert shown("too_broad", examples) == {"claimed_but_silent": [3, 4]}
    assert shown("too_narrow", examples) == {"missed": [7]}
    assert shown("good", examples) == shown("dense", examples) == {}
    assert shown("too_narrow", {"claimed_but_silent": [1], "missed": []}) == {}


def test_other_thresholds_are_other_verdicts() -> None:
    assert thresholds_id(CFG) == thresholds_id(config.load(None).verdict)
    assert thresholds_id(CFG) != thresholds_id(CFG.model_copy(update={"precision": 0.5}))
    assert set(MEANING) == set(WORDS)


# -- planted truth -----------------------------------------------------------------------------------------------------

EXPECTED = {
    "true": "good", "paraphrase": "good", "verbose": "good", "half": "too_narrow", "missing": "too_narrow",
    "broad2": "too_broad", "broad10": "too_broad", "extra": "too_broad", "sibling": "no_pattern",
    "shuffled": "no_pattern", "constant": "no_pattern",
}  # fmt: skip


@pytest.mark.parametrize("which", [0, 1])
def test_labels_of_known_quality_get_the_verdict_that_they_deserve(which: int) -> None:
    """By the reference simulator, with its errors; every rung of every third planted feature."""
    found, _ = planted()
    scorer = reference_scorers(found, 0)[which]
    counts: dict[str, Counter[str]] = {}
    for i in [i for i, labels in enumerate(found.labels) if labels][::3]:
        sheet = found.bench.sheet(i)
        for rung, label in found.labels[i].items():
            numbers = found.bench.numbers(i, sheet, label, scorer)
            counts.setdefault(rung, Counter())[decide("eligible", numbers, CFG, 0.1).verdict] += 1
    for rung, word in EXPECTED.items():
        assert counts[rung][word] >= 0.85 * counts[rung].total(), (rung, counts[rung])
    # A label that names the tokens and leaves out when they count is too broad in a way of its own, or is nearly right.
    assert counts["token_only"]["token_only"] >= 0.3 * counts["token_only"].total()
    assert not counts["token_only"]["no_pattern"]
