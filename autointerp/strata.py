"""The scoring design of METHOD: which silent passages a label is tested on.

B are hard negatives, up to a third each of those that the label's cheap proxy claims, that hold the feature's own top
tokens, and where a neighbouring feature fires; C are others. A kind that runs short is filled up from the others; where
all do, B stays small, and n_B says so. Two labels of one feature are compared on the union of their B.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

HARD = ("claimed", "token", "neighbour")  # kinds of stratum B, in the order in which a passage is counted
KINDS = (*HARD, "silent")  # and of C


class Silent(NamedTuple):
    """The panel as one feature sees it. All are [panel passage]."""

    silent: Flags  # the feature fires nowhere in it
    token: Flags  # it holds one of the feature's heaviest tokens
    neighbour: Flags  # a neighbouring feature fires in it
    order: I64  # panel passages as a keyed hash deals them: those drawn first come first

    def kinds(self, claimed: Flags) -> dict[str, Flags]:
        """The silent passages by kind, each in one: for a label whose proxy claims these passages."""
        rest = self.silent.copy()
        found = {}
        for kind, mask in zip(HARD, (claimed, self.token, self.neighbour), strict=True):
            found[kind] = rest & mask
            rest &= ~mask
        return found | {"silent": rest}


class Negatives(NamedTuple):
    """Silent passages drawn for a label, by kind: rows of the panel, and how many there were to draw from."""

    rows: Mapping[str, I64]
    panel: Mapping[str, int]

    @property
    def hard(self) -> I64:
        """Stratum B."""
        return np.concatenate([self.rows[kind] for kind in HARD])

    @property
    def others(self) -> I64:
        """Stratum C."""
        return self.rows["silent"]


def draw(found: Silent, claimed: Flags, n_hard: int, n_others: int) -> Negatives:
    """B and C of one label."""
    kinds = found.kinds(claimed)
    take = shares(n_hard, [int(kinds[kind].sum()) for kind in HARD])
    rows = {kind: _first(found.order, kinds[kind], n) for kind, n in zip(KINDS, (*take, n_others), strict=True)}
    return Negatives(rows, {kind: int(kinds[kind].sum()) for kind in KINDS})


class Together(NamedTuple):
    """Silent passages on which labels of one feature are compared: rows of the panel."""

    hard: I64  # the union of their B
    others: I64  # C: what none of them claims
    weight: NDArray[np.float64]  # [hard] panel passages that each stands for; 0 where no label's proxy claims it


def draw_together(found: Silent, claims: Sequence[Flags], n_hard: int, n_others: int) -> Together:
    """B and C on which labels of one feature are compared.

    Weights are by which of the labels claim a passage (post-stratified): so many panel passages are claimed by just
    these, so many of them were drawn.
    """
    hard = np.unique(np.concatenate([draw(found, claimed, n_hard, 0).hard for claimed in claims]))
    who = found.silent * (np.stack(claims).T @ 2 ** np.arange(len(claims)))  # [panel passage] 0: nobody claims it
    there, drawn = (np.bincount(codes, minlength=2 ** len(claims)) for codes in (who, who[hard]))
    weight = np.where(who[hard] > 0, there[who[hard]] / drawn[who[hard]], 0.0)
    free = found.kinds(np.any(np.stack(claims), axis=0))["silent"]
    free[hard] = False
    return Together(hard, _first(found.order, free, n_others), weight)


def shares(wanted: int, available: Sequence[int]) -> list[int]:
    """How many to take of each kind: equal parts, what one lacks filled up from the others, the first kinds first."""
    take = [0] * len(available)
    while (left := wanted - sum(take)) > 0:
        open_kinds = [i for i, n in enumerate(available) if take[i] < n]
        if not open_kinds:
            break
        for position, i in enumerate(open_kinds):
            part = left // len(open_kinds) + (position < left % len(open_kinds))
            take[i] += min(part, available[i] - take[i])
    return take


def _first(order: I64, pool: Flags, n: int) -> I64:
    return order[pool[order]][:n]
