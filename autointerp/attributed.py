"""What an attribution is, once it has been made: records that a reader shows without loading what made them."""

from collections.abc import Sequence
from dataclasses import dataclass

CHECKED = 200  # pairs that are ablated by default


@dataclass(frozen=True)
class Target:
    """The token whose logit is attributed, and what the subject gives it."""

    token: str
    token_id: int
    logit: float
    logit_over_mean: float  # minus the mean logit of the vocabulary: what is attributed
    probability: float


@dataclass(frozen=True)
class Pair:
    """One feature firing on one token."""

    position: int
    feature: int
    activation: float
    contribution: float  # activation x slope of the target along the decoder row
    ablated: float | None = None  # what the target really loses without this firing; None where not tried


@dataclass(frozen=True)
class Check:
    """Contributions against ablations. None where there are too few pairs, or either side is constant."""

    n: int  # pairs that were ablated: the strongest half, and a random half of the others
    pearson: float | None
    spearman: float | None
    pearson_random: float | None  # over the random half alone
    n_random: int


@dataclass(frozen=True)
class Attribution:
    """One text, one target. Lists have one entry per token."""

    text: str
    tokens: list[str]  # up to and with the one after which the target stands
    target: Target
    predicted: list[Target]  # the subject's own next tokens, likeliest first
    hookpoint: str
    pairs: list[Pair]  # largest contribution by size first
    error: list[float]  # contribution of the reconstruction error
    bias: list[float]  # ... of the dictionary's bias
    masked: list[float]  # ... of the whole activation, at positions that do not count; 0 elsewhere
    check: Check


def by_feature(pairs: Sequence[Pair]) -> dict[int, float]:
    """Feature -> its contribution over all tokens, largest by size first."""
    total: dict[int, float] = {}
    for pair in pairs:
        total[pair.feature] = total.get(pair.feature, 0.0) + pair.contribution
    return dict(sorted(total.items(), key=lambda item: -abs(item[1])))
