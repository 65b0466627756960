"""Hard negatives: who is drawn, of how many, and what two labels share."""

import numpy as np
import pytest

from autointerp.strata import HARD, KINDS, Silent, draw, draw_together, shares

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
