"""Hard negatives: who is drawn, of how many, and what two labels share."""

import numpy as np
import pytest

from autointerp.evidence import Firing
from autointerp.strata import HARD, KINDS, Silent, cofiring, draw, draw_together, shares

N = 400


def silent(seed: int = 0, fires: float = 0.2, token: float = 0.3, neighbour: float = 0.3) -> Silent:
    random = np.random.default_rng(seed)
    masks = [random.random(N) < share for share in (1 - fires, token, neighbour)]
    return Silent(*masks, order=random.permutation(N))


def claims(share: float, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(N) < share


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [
        (40, (100, 100, 100), [14, 13, 13]),
        (40, (5, 100, 100), [5, 18, 17]),
        (40, (5, 100, 3), [5, 32, 3]),
        (40, (0, 0, 0), [0, 0, 0]),
        (40, (6, 7, 8), [6, 7, 8]),  # too few: what exists is taken
        (1, (0, 2, 2), [0, 1, 0]),
        (0, (5, 5, 5), [0, 0, 0]),
    ],
)
def test_a_third_each_and_what_one_lacks_from_the_others(wanted: int, available: tuple, expected: list[int]) -> None:
    assert shares(wanted, available) == expected


@pytest.mark.parametrize("seed", range(20))
def test_kinds_part_the_silent_passages(seed: int) -> None:
    found, claimed = silent(seed), claims(0.3, seed)
    kinds = found.kinds(claimed)
    assert (np.stack(list(kinds.values())).sum(axis=0) == found.silent).all()
    assert not (kinds["silent"] & (claimed | found.token | found.neighbour)).any()
    assert (kinds["claimed"] == (found.silent & claimed)).all()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_drawn_is_of_its_kind_once_and_counted(seed: int) -> None:
    found, claimed = silent(seed), claims(0.02 * (seed % 5), seed)
    drawn = draw(found, claimed, 40, 40)
    kinds = found.kinds(claimed)
    rows = np.concatenate([drawn.rows[kind] for kind in KINDS])
    assert len(set(rows.tolist())) == len(rows)
    for kind in KINDS:
        assert kinds[kind][drawn.rows[kind]].all()
        assert drawn.panel[kind] == kinds[kind].sum() >= len(drawn.rows[kind])
    assert len(drawn.hard) == min(40, sum(drawn.panel[kind] for kind in HARD))
    assert len(drawn.others) == min(40, drawn.panel["silent"])


def test_b_is_small_where_there_is_little_to_draw() -> None:
    found = silent(token=0.0, neighbour=0.01)
    drawn = draw(found, claims(0.02), 40, 40)
    assert len(drawn.hard) == sum(drawn.panel[kind] for kind in HARD) < 40
    assert len(drawn.others) == 40


@pytest.mark.parametrize("seed", range(20))
def test_two_labels_share_both_of_their_hard_negatives(seed: int) -> None:
    found, one, two = silent(seed), claims(0.1, seed), claims(0.3, seed + 100)
    together = draw_together(found, [one, two], 40, 40)
    each = [draw(found, claimed, 40, 40).hard for claimed in (one, two)]
    assert set(together.hard.tolist()) == set(each[0].tolist()) | set(each[1].tolist())
    assert not set(together.hard.tolist()) & set(together.others.tolist())
    assert not (one | two)[together.others].any()
    swapped = draw_together(found, [two, one], 40, 40)
    assert (swapped.hard == together.hard).all() and (swapped.others == together.others).all()


@pytest.mark.parametrize("seed", range(20))
def test_weights_add_up_to_the_claimed_silent_passages_of_the_panel(seed: int) -> None:
    found, one, two = silent(seed), claims(0.2, seed), claims(0.3, seed + 100)
    together = draw_together(found, [one, two], 120, 40)
    code = one + 2 * two
    for who in (1, 2, 3):
        mine = code[together.hard] == who
        assert mine.any()
        assert together.weight[mine].sum() == pytest.approx((found.silent & (code == who)).sum())
    assert (together.weight[code[together.hard] == 0] == 0).all()


class Panel:
    """Where features fire: (passage row, position) pairs."""

    def __init__(self, firing: dict[int, list[tuple[int, int]]]) -> None:
        self.found, self.passages = firing, np.arange(10)

    def firing(self, feature: int) -> Firing:
        table = np.array(self.found.get(feature, []), dtype=np.int64).reshape(-1, 2)
        return Firing(table[:, 0], table[:, 1], np.ones(len(table), dtype=np.float32))


def test_neighbours_fire_on_the_same_tokens() -> None:
    shared = [(0, 1), (0, 2), (3, 7)]
    panel = Panel({4: shared, 5: shared[:2], 6: [(0, 1), (5, 5), (6, 6), (7, 7)], 7: [(9, 9)], 8: []})
    found = cofiring(panel, [4, 5, 6, 7, 8], 2)  # type: ignore[arg-type]
    assert found == {4: [5, 6], 5: [4, 6], 6: [5, 4], 7: [], 8: []}  # 2 / sqrt 6; 1 / sqrt 12; 1 / sqrt 8


def test_neighbours_by_brute_force() -> None:
    random = np.random.default_rng(3)
    firing = {f: [divmod(int(c), 8) for c in random.permutation(80)[: random.integers(1, 30)]] for f in range(12)}
    cosine = np.array([
        [len(set(a) & set(b)) / np.sqrt(len(a) * len(b)) for b in firing.values()] for a in firing.values()
    ]) - np.eye(12)  # fmt: skip
    for feature, found in cofiring(Panel(firing), list(range(12)), 4).items():  # type: ignore[arg-type]
        expected = np.sort(cosine[feature])[::-1][:4]
        assert [cosine[feature, other] for other in found] == pytest.approx(expected[expected > 0].tolist())
