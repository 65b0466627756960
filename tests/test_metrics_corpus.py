"""r_pop: worked out by hand, against the correlation over everything, and its interval in a world that is known."""

import numpy as np
import pytest

from autointerp.metrics import Background, Cell, Interval, Moments, moments, pooled_background, r_pop

TOKENS = 8


def cell_of(actual: np.ndarray, predicted: np.ndarray, population: float, **more: object) -> Cell:
    """A cell of passages [passage, token], each from a document of its own."""
    group = np.repeat(np.arange(len(actual)), actual.shape[1])
    found = moments(actual.ravel().astype(float), predicted.ravel().astype(float), group, len(actual))
    return Cell("x", found, np.arange(len(actual)), population, **more)  # type: ignore[arg-type]


class World:
    """A split of 6,000 passages: 100 fire, and a simulator that misses some and fires falsely in `rate` of the others."""

    def __init__(self, seed: int, rate: float, n: int = 6000, n_firing: int = 100) -> None:
        random = np.random.default_rng(seed)
        self.actual, self.predicted = np.zeros((n, TOKENS)), np.zeros((n, TOKENS))
        rows, place = np.arange(n_firing), random.integers(TOKENS, size=n_firing)
        self.actual[rows, place] = random.lognormal(0, 0.35, n_firing)
        self.predicted[rows, place] = random.random(n_firing) < 0.8
        false = n_firing + np.flatnonzero(random.random(n - n_firing) < rate)
        self.predicted[false, random.integers(TOKENS, size=len(false))] = 1
        self.n, self.n_firing = n, n_firing
        self.truth = float(np.corrcoef(self.actual.ravel(), self.predicted.ravel())[0, 1])

    def cells(self, seed: int, n_firing: int = 60, n_silent: int = 40, modelled: bool = True) -> list[Cell]:
        """A scoring set: some that fire, and some of the silent passages, which are all of one kind."""
        random = np.random.default_rng(seed)
        fires = random.permutation(self.n_firing)[:n_firing]
        silent = self.n_firing + random.permutation(self.n - self.n_firing)[:n_silent]
        hit = self.predicted[silent].max(axis=1) > 0
        return [
            cell_of(self.actual[fires], self.predicted[fires], float(self.n_firing)),
            cell_of(self.actual[silent], self.predicted[silent], float(self.n - self.n_firing), panel=1200, hit=hit if modelled else None),
        ]  # fmt: skip


def test_the_value_is_the_weighted_correlation_over_tokens() -> None:
    random = np.random.default_rng(0)
    one, two = random.gamma(1, 1, (2, 5, TOKENS)), random.gamma(1, 1, (2, 9, TOKENS))
    found = r_pop([cell_of(*one, population=50.0), cell_of(*two, population=900.0)], 1.0, 0, random)
    weight = np.concatenate([np.full(5 * TOKENS, 50 / 5), np.full(9 * TOKENS, 900 / 9)])
    a, s = (np.concatenate([one[i].ravel(), two[i].ravel()]) for i in (0, 1))
    covariance = np.cov(a, s, aweights=weight)
    assert found == Interval(pytest.approx(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])), None, None)


def test_having_seen_everything_leaves_no_interval() -> None:
    world = World(0, 0.02)
    fires, silent = slice(0, 100), slice(100, None)
    cells = [
        cell_of(world.actual[fires], world.predicted[fires], 100.0),
        cell_of(world.actual[silent], world.predicted[silent], 5900.0),
    ]
    found = r_pop(cells, 1.0, 50, np.random.default_rng(0))
    assert found.value == pytest.approx(world.truth)
    assert found.lo == pytest.approx(found.value)
    assert found.hi == pytest.approx(found.value)


@pytest.mark.parametrize("constant", ["actual", "predicted"])
def test_a_constant_side_has_no_value(constant: str) -> None:
    random = np.random.default_rng(0)
    sides = {"actual": random.gamma(1, 1, (6, TOKENS)), "predicted": random.gamma(1, 1, (6, TOKENS))}
    sides[constant] = np.full((6, TOKENS), 0.3 if constant == "actual" else 0.0)
    assert r_pop([cell_of(**sides, population=10.0)], 0.5, 20, random) == Interval(None, None, None)
    assert r_pop([], 0.5, 20, random) == Interval(None, None, None)


def test_shares_outside_0_to_1_and_predictions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="panel_share"):
        r_pop([], 1.5, 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="finite"):
        cell_of(np.ones((2, TOKENS)), np.full((2, TOKENS), np.nan), 1.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    cells = World(1, 0.02).cells(1)
    first, again, other = (r_pop(cells, 0.2, 200, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_a_background_without_false_positives_still_leaves_doubt_and_a_bootstrap_none() -> None:
    world = World(2, 0.0)
    modelled = r_pop(world.cells(3), 0.2, 400, np.random.default_rng(0))
    plain = r_pop(world.cells(3, modelled=False), 0.2, 400, np.random.default_rng(0))
    assert plain.lo > 0.75  # 40 clean passages of 5,900, and it is sure of all of them
    assert modelled.lo < 0.6
    assert modelled.hi > 0.8


def covered(worlds: list[World], modelled: bool, pool: bool) -> float:
    """The share of intervals that hold the truth."""
    sets = [world.cells(i, modelled=modelled) for i, world in enumerate(worlds)]
    prior = pooled_background([cells[1] for cells in sets]) if pool else None
    inside = []
    for i, (world, cells) in enumerate(zip(worlds, sets)):
        cells = [cells[0], cells[1]._replace(background=prior)]
        found = r_pop(cells, 0.2, 300, np.random.default_rng(i))
        inside.append(found.lo <= world.truth <= found.hi)
    return float(np.mean(inside))


def test_intervals_cover_where_a_bootstrap_does_not() -> None:
    """60 labels whose simulators fire falsely in .2 to 4 % of silent passages: METHOD's reason for the model."""
    random = np.random.default_rng(9)
    worlds = [World(100 + i, float(random.uniform(0.002, 0.04))) for i in range(60)]
    assert covered(worlds, modelled=True, pool=True) >= 0.9
    assert covered(worlds, modelled=True, pool=False) >= 0.85
    assert covered(worlds, modelled=False, pool=False) <= 0.7


# -- the pool ------------------------------------------------------------------------------------------------


def silent_cell(n: int, hits: int, strength: float = 1.0) -> Cell:
    predicted = np.zeros((n, TOKENS))
    predicted[:hits, 0] = strength
    return cell_of(np.zeros((n, TOKENS)), predicted, 100.0, hit=np.arange(n) < hits)


def test_the_pool_is_the_share_over_all_labels_and_the_mean_false_positive() -> None:
    found = pooled_background([silent_cell(40, 1, 2.0), silent_cell(40, 0), silent_cell(20, 1, 4.0)])
    assert found is not None
    assert found.rate == pytest.approx(2 / 100)
    #                                 n, x, y, xx, yy, xy of a passage with one predicted token of 2, and one of 4
    assert found.hit.tolist() == pytest.approx([TOKENS, 0, 3, 0, 10, 0])


def test_labels_that_are_alike_make_a_strong_pool_and_labels_that_differ_a_weak_one() -> None:
    random = np.random.default_rng(0)
    alike = pooled_background([silent_cell(40, int(h)) for h in random.binomial(40, 0.1, 200)])
    differ = pooled_background([silent_cell(40, int(h)) for h in random.binomial(40, random.beta(0.3, 2.7, 200))])
    assert alike is not None and differ is not None
    assert alike.strength == 40  # as many passages as a label has of its own in C, and no more
    assert differ.strength == pytest.approx(3, rel=0.5)  # .3 + 2.7


def test_nothing_is_pooled_where_nothing_is_predicted_or_modelled() -> None:
    assert pooled_background([silent_cell(40, 0)] * 5) is None
    assert pooled_background([silent_cell(40, 40)] * 5) is None
    assert pooled_background([]) is None
    assert pooled_background([silent_cell(40, 3)._replace(hit=None)]) is None


def test_a_strong_pool_outweighs_one_unlucky_passage() -> None:
    world = World(5, 0.0)
    cells = world.cells(0)
    hit = np.zeros(40, dtype=bool)
    hit[0] = True
    columns = {name: np.array(column) for name, column in cells[1].moments._asdict().items()}
    columns["y"][0] = columns["yy"][0] = 1.0  # one false positive among 40: 2.5 % of 5,900 passages, or luck
    unlucky = cells[1]._replace(moments=Moments(**columns), hit=hit)
    rare = Background(0.001, 200.0, np.array([TOKENS, 0, 1.0, 0, 1.0, 0]))
    alone = r_pop([cells[0], unlucky], 0.2, 0, np.random.default_rng(0)).value
    helped = r_pop([cells[0], unlucky._replace(background=rare)], 0.2, 0, np.random.default_rng(0)).value
    assert alone < helped < world.truth
