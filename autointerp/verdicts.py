"""What is the matter with a label: from numbers and thresholds to one word, and the numbers that decided it.

Thresholds are those of the section [verdict], chosen on planted truth (ARCHITECTURE.md, "Verdicts").
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from autointerp.config import VerdictSection, fingerprint

Word = Literal["good", "too_broad", "too_narrow", "token_only", "collides", "no_pattern", "dense", "insufficient_data"]
WORDS: tuple[Word, ...] = (
    "good", "too_broad", "too_narrow", "token_only", "collides", "no_pattern", "dense", "insufficient_data"
)  # fmt: skip
MEANING: dict[str, str] = {
    "good": "nothing is held against it",
    "too_broad": "it says that the feature fires in passages where it is silent",
    "too_narrow": "it says nothing of passages in which the feature fires",
    "token_only": "it says that the feature fires wherever its tokens stand, and there is more to it than that",
    "collides": "labels of neighbouring features predict this feature as well",
    "no_pattern": "it does not predict the feature at all",
    "dense": "the feature fires on too large a share of tokens to have a label",
    "insufficient_data": "too few firing passages or documents to tell",
}
VERSION = 2  # raised when the same numbers and thresholds would give another verdict
# Null labels times the largest false discovery rate, at least. No p is below 1 / (labels + 1), so with fewer of them a
# single label that chance explains lifts the q of all others above the threshold.
ENOUGH_NULLS = 5.0


class Evidence(NamedTuple):
    """One number against its threshold."""

    metric: str
    value: float | None
    threshold: float
    wanted: Literal["above", "below"]  # where a good label's number lies

    @property
    def holds(self) -> bool:
        """False where the number speaks against the label. What was not computed says nothing."""
        if self.value is None:
            return True
        return self.value > self.threshold if self.wanted == "above" else self.value < self.threshold


class Found(NamedTuple):
    """A verdict, and the numbers that decided it: those that speak against the label, or all that were looked at."""

    verdict: Word
    evidence: tuple[Evidence, ...]


def thresholds_id(cfg: VerdictSection) -> str:
    """Hash of what verdicts are given by."""
    return fingerprint([cfg.model_dump(), VERSION])


def decide(
    kind: str, numbers: Mapping[str, float | None], cfg: VerdictSection, max_density: float, n_nulls: int = 0
) -> Found:
    """The verdict on a label.

    kind         of its feature: eligible, dense, too_rare, dead
    numbers      metric -> value on score, and `density`; what is None or absent is not held against the label
    max_density  share of tokens above which a feature is dense
    n_nulls      labels that null_q is made of; with few of them it cannot be small, and is not looked at
    The first that applies, from what leaves nothing to say to what is a matter of degree.
    """
    if kind in ("dead", "too_rare"):
        return Found("insufficient_data", ())
    if kind == "dense":
        return Found("dense", (Evidence("density", numbers.get("density"), max_density, "below"),))
    looked: list[Evidence] = []

    def against(*checks: Evidence) -> tuple[Evidence, ...]:
        looked.extend(check for check in checks if check.value is not None)
        return tuple(check for check in checks if not check.holds)

    def above(metric: str, threshold: float) -> Evidence:
        return Evidence(metric, numbers.get(metric), threshold, "above")

    checks = [above("r_rank", cfg.no_pattern)]
    if n_nulls * cfg.max_q >= ENOUGH_NULLS:
        checks.append(Evidence("null_q", numbers.get("null_q"), cfg.max_q, "below"))
    if numbers.get("r_rank") is None or (found := against(*checks)):
        return Found("no_pattern", found if numbers.get("r_rank") is not None else tuple(checks[:1]))
    if found := against(above("discrimination", cfg.collides)):
        return Found("collides", found)
    broad = against(above("precision", cfg.precision))
    narrow = against(above("recall", cfg.recall), above("recall_low", cfg.recall_low))
    if broad:
        tokens = Evidence("claimed_own", numbers.get("claimed_own"), cfg.claimed_own, "below")
        return Found("too_broad", broad) if tokens.holds else Found("token_only", (*broad, tokens))
    if narrow:
        return Found("too_narrow", narrow)
    return Found("good", tuple(looked))


def shown(verdict: Word, examples: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Of the passages in which a label errs (`grades.examples`), those that its verdict is about."""
    about = {
        "too_broad": ("claimed_but_silent",),
        "token_only": ("claimed_but_silent",),
        "collides": ("claimed_but_silent",),
        "too_narrow": ("missed",),
        "no_pattern": ("claimed_but_silent", "missed"),
    }.get(verdict, ())
    return {name: examples[name] for name in about if examples[name]}
