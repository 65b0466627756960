"""`detection`: does the feature fire anywhere in this passage? (Paulo et al. 2024; passages by our own strata.)

Half of the passages are firing ones (A), a quarter hard negatives (B), a quarter other silent ones (C): a label twice
too broad is told from a right one by B alone, which is why TNR_B stands apart from TNR_C. The candidates of a feature
are judged on the same passages, the union of what they claim among them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import Texts
from autointerp.fence import neutral
from autointerp.judges import Item
from autointerp.keep import mix, salted
from autointerp.rows import Draw, Stratum

SALT = 6


def choose(drawn: Mapping[str, Sequence[Draw]], n: int, feature: int, seed: int) -> dict[int, Stratum]:
    """Passage id -> its stratum, for up to n passages of the scoring sets that the labels of a feature have on a split.

    A passage that any of the labels claims is a hard negative for all of them. Where hard negatives run short, other
    silent passages take their places. Which passages win is decided by keyed hashes, so never by what a label scores.
    """
    by_passage: dict[int, Stratum] = {}
    for draw in (draw for draws in drawn.values() for draw in draws):
        known = by_passage.get(draw.passage_id)
        by_passage[draw.passage_id] = draw.stratum if known is None else min(known, draw.stratum)
    order = shuffled(list(by_passage), feature, seed).tolist()
    pools = {stratum: [p for p in order if by_passage[p] == stratum] for stratum in ("A", "B", "C")}
    firing, hard = pools["A"][: n // 2], pools["B"][: n // 4]
    others = pools["C"][: n - n // 2 - len(hard)]
    wanted = {*firing, *hard, *others}
    return {passage: by_passage[passage] for passage in order if passage in wanted}


def shuffled(passages: Sequence[int], feature: int, seed: int) -> NDArray[np.int64]:
    """Passage ids in an order of their own, the same in every run."""
    ids = np.array(passages, dtype=np.int64)
    return ids[np.argsort(mix(ids.view(np.uint64) ^ salted(seed * 0x10001 + feature, SALT)), kind="stable")]


def items(strata: Mapping[int, Stratum], texts: Texts) -> list[Item]:
    """The passages as a judge sees them, in the order given."""
    return [Item(p, "".join(neutral(texts.strings(p))), stratum == "A") for p, stratum in strata.items()]
