"""A scoring set says what it is drawn from: strata are what they are called, and stand for the whole split."""

from collections.abc import Iterator

import numpy as np
import pytest

from autointerp import draws
from autointerp.config import ScoreSection
from autointerp.draws import NEAR, OWN_TOKENS, Cell, Design, claim_threshold
from autointerp.evidence import Texts
from autointerp.rows import Collection, Excerpt, Feature, Neighbour, Panel, Passage
from autointerp.store import Store

N, WIDTH, PANEL = 400, 6, 120  # passages of the split, features, panel passages
CFG = ScoreSection(score_passages=24, select_passages=8)
TOP = {f: [10 * f + i for i in range(16)] for f in range(WIDTH)}


class World:
    """A split of made-up passages of which everything is known."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.ids = random.choice(2**62, N, replace=False)
        self.tokens = {int(i): random.integers(0, 60, 6).tolist() for i in self.ids}
        density = [0.0, 0.03, 0.2, 0.5, 0.95, 1.0]
        self.fires = {f: {int(i) for i in self.ids if random.random() < density[f]} for f in range(WIDTH)}
        self.panel = np.sort(random.choice(self.ids, PANEL, replace=False))
        self.sample = {f: random.permutation(sorted(self.fires[f])).tolist()[:40] for f in range(WIDTH)}

    def fill(self, store: Store, reverse: bool = False) -> None:
        """Write it to a store, in one order or the other."""
        order = list(self.ids.tolist())[:: -1 if reverse else 1]
        n = [0, 0, N]
        store.add([Collection("c", "m", "h", "d", "topk", WIDTH, "x", "{}", 6, 6, n, n, n, [0, 0, PANEL], 0, "c", None)])
        store.add([Passage("c", i, f"doc{i % 50}", "score", 0, self.tokens[i], []) for i in order])
        for f in range(WIDTH):
            count = len(self.fires[f])
            store.add(
                [
                    Feature(
                        "c",
                        f,
                        f"d/{f}",
                        [0, 0, count],
                        [0, 0, count],
                        [0, 0, 1],
                        [0.0] * 3,
                        [0.0] * 3,
                        [0],
                        TOP[f],
                    )
                ]
            )
            store.add(
                [
                    Excerpt("c", f, "score", "sample", r, i, 1.0, [0], [1.0])
                    for r, i in enumerate(self.sample[f])
                ]
            )
        kept = [i for i in order if i in set(self.panel.tolist())]
        for i in kept:
            firing = [f for f in range(WIDTH) if i in self.fires[f]]
            store.add([Panel("c", "score", i, firing, [0] * len(firing), [1.0] * len(firing))])


WORLD = World()


def design(store: Store, seed: int = 0, cfg: ScoreSection = CFG) -> Design:
    return Design(store, "c", "score", cfg, seed, Texts(store, "c"))


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Store.memory() as found:
        WORLD.fill(found)
        yield found


@pytest.fixture(scope="module")
def drawn(store: Store) -> Design:
    return design(store)


def claims(share: float, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(PANEL) < share


def holding(cells: list[Cell], *kinds: str) -> list[int]:
    return [
        p for cell in cells if cell.kind in kinds or cell.stratum in kinds for p in cell.passages.tolist()
    ]


CASES = [(f, share) for f in (1, 2, 3) for share in (0.0, 0.03, 0.3, 1.0)]


@pytest.mark.parametrize(("feature", "share"), CASES)
def test_strata_are_disjoint_and_hold_a_passage_once(drawn: Design, feature: int, share: float) -> None:
    passages = [p for cell in drawn.cells(feature, claims(share)) for p in cell.passages.tolist()]
    assert len(passages) == len(set(passages)) > 12


@pytest.mark.parametrize(("feature", "share"), CASES)
def test_a_fires_and_b_and_c_are_silent(drawn: Design, feature: int, share: float) -> None:
    cells = drawn.cells(feature, claims(share))
    assert set(holding(cells, "A")) <= WORLD.fires[feature]
    assert not set(holding(cells, "B", "C")) & WORLD.fires[feature]
    assert holding(cells, "A")


@pytest.mark.parametrize(("feature", "share"), CASES)
def test_hard_negatives_are_claimed_or_hold_an_own_token_and_the_others_neither(
    drawn: Design, feature: int, share: float
) -> None:
    claimed = claims(share)
    claimed_ids, own = set(WORLD.panel[claimed].tolist()), set(TOP[feature][:OWN_TOKENS])
    cells = drawn.cells(feature, claimed)
    assert set(holding(cells, "claimed")) <= claimed_ids
    for p in holding(cells, "token"):
        assert p not in claimed_ids
        assert own & set(WORLD.tokens[p])
    for p in holding(cells, "silent"):
        assert p not in claimed_ids
        assert not own & set(WORLD.tokens[p])
    assert {(c.stratum, c.kind) for c in cells} <= {
        ("A", "fires"),
        ("B", "claimed"),
        ("B", "token"),
        ("B", "neighbour"),
        ("C", "silent"),
    }


@pytest.mark.parametrize(("feature", "share"), CASES)
def test_populations_add_up_to_all_passages_of_the_split(drawn: Design, feature: int, share: float) -> None:
    cells = drawn.cells(feature, claims(share))
    assert sum(c.population for c in cells) == pytest.approx(N)
    assert next(c.population for c in cells if c.stratum == "A") == len(WORLD.fires[feature])


@pytest.mark.parametrize(("feature", "share"), CASES)
def test_weights_times_rows_give_the_populations(drawn: Design, feature: int, share: float) -> None:
    rows = [row for cell in drawn.cells(feature, claims(share)) for row in cell.rows("e", "s", "score")]
    assert sum(row.weight for row in rows) == pytest.approx(N)
    assert {(row.explanation_id, row.scorer_id, row.split) for row in rows} == {("e", "s", "score")}


def test_shares_are_half_a_quarter_and_a_quarter_where_there_is_enough(drawn: Design) -> None:
    cells = drawn.cells(2, claims(0.3))
    assert [len(holding(cells, s)) for s in "ABC"] == [12, 6, 6]
    assert len(holding(cells, "claimed")) == len(holding(cells, "token")) == 3


def test_where_one_kind_of_hard_negative_runs_short_the_other_fills_up(drawn: Design) -> None:
    assert len(holding(drawn.cells(2, claims(0.0)), "token")) == 6
    everything = drawn.cells(2, claims(1.0))
    assert (len(holding(everything, "claimed")), len(holding(everything, "token"))) == (6, 0)
    one = np.zeros(PANEL, dtype=bool)
    one[np.flatnonzero(drawn.panel.silent(2))[0]] = True
    cells = drawn.cells(2, one)
    assert (len(holding(cells, "claimed")), len(holding(cells, "token"))) == (1, 5)


def test_a_is_the_beginning_of_the_uniform_sample(drawn: Design) -> None:
    assert drawn.firing(3).tolist() == WORLD.sample[3][:12]


def test_a_feature_that_never_fires_has_no_a_and_one_that_always_fires_no_b_or_c(drawn: Design) -> None:
    assert {c.stratum for c in drawn.cells(0, claims(0.3))} == {"B", "C"}
    assert {c.stratum for c in drawn.cells(5, claims(0.3))} == {"A"}


def test_the_same_set_is_drawn_whatever_the_order_of_rows_and_of_asking(drawn: Design) -> None:
    with Store.memory() as other:
        WORLD.fill(other, reverse=True)
        backward = design(other)
        asked = [(f, share) for f, share in reversed(CASES)]
        found = {case: backward.cells(case[0], claims(case[1])) for case in asked}
    for feature, share in CASES:
        expected = drawn.cells(feature, claims(share))
        for a, b in zip(found[feature, share], expected, strict=True):
            assert (a.stratum, a.kind, a.population, a.passages.tolist()) == (
                b.stratum,
                b.kind,
                b.population,
                b.passages.tolist(),
            )


def test_another_seed_or_feature_draws_other_silent_passages(store: Store, drawn: Design) -> None:
    nothing = claims(0.0)
    assert holding(design(store, seed=1).cells(2, nothing), "C") != holding(drawn.cells(2, nothing), "C")
    assert holding(drawn.cells(1, nothing), "C") != holding(drawn.cells(0, nothing), "C")


def test_two_labels_of_a_feature_share_what_they_can(drawn: Design) -> None:
    nothing = drawn.cells(2, claims(0.0))
    own, silent = holding(nothing, "token"), holding(nothing, "silent")
    # A label that claims none of the passages drawn for the other leaves C and A as they are.
    claimed = np.isin(drawn.panel.passages, own[:1])
    cells = drawn.cells(2, claimed)
    assert holding(cells, "C") == silent
    assert holding(cells, "A") == holding(nothing, "A")
    assert holding(cells, "claimed") == own[:1]
    # One that claims a passage of C loses that one alone.
    cells = drawn.cells(2, np.isin(drawn.panel.passages, silent[:1]))
    assert holding(cells, "C")[:-1] == silent[1:]


def test_a_larger_set_contains_the_smaller_one(store: Store, drawn: Design) -> None:
    larger = design(store, cfg=ScoreSection(score_passages=48))
    for stratum in "ABC":
        smaller = set(holding(drawn.cells(2, claims(0.3)), stratum))
        assert smaller <= set(holding(larger.cells(2, claims(0.3)), stratum))


def test_populations_add_up_in_the_smallest_sets_too(store: Store) -> None:
    cells = design(store, cfg=ScoreSection(score_passages=12)).cells(2, claims(0.3))
    assert sum(c.population for c in cells) == pytest.approx(N)
    with pytest.raises(ValueError, match="greater than or equal to 12"):  # smaller ones would leave a kind undrawn
        ScoreSection(score_passages=11)


# -- neighbours ---


def related(neighbours: list[tuple[str, int, int]], feature: int = 2) -> Iterator[Design]:
    """A design in which these features (kind, rank, number) are near one."""
    with Store.memory() as store:
        WORLD.fill(store)
        store.add([Neighbour("c", feature, kind, rank, other, 0.5) for kind, rank, other in neighbours])  # type: ignore[arg-type]
        yield design(store)


def test_hard_negatives_are_looked_for_where_a_neighbour_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "NEAR", 0.5)
    for made in related([("firing", 0, 2)], feature=1):
        cells = made.cells(1, claims(0.0))
        found = holding(cells, "neighbour")
        assert found
        assert set(found) <= WORLD.fires[2] - WORLD.fires[1]
        assert not set(holding(cells, "silent")) & WORLD.fires[2]
        assert sum(c.population for c in cells) == pytest.approx(N)
        assert {c.kind: c.panel for c in cells}["fires"] is None
        assert sum(c.panel or 0 for c in cells) == made.panel.silent(1).sum()


def test_a_feature_that_fires_nearly_everywhere_is_no_neighbour() -> None:
    for made in related([("firing", 0, 4), ("firing", 1, 1)]):
        near = made._facts(2).silent.neighbour & made.panel.silent(2)
        assert 0 < near.sum() <= NEAR * made.panel.silent(2).sum()
        assert set(holding(made.cells(2, claims(0.0)), "neighbour")) <= WORLD.fires[1], "the next nearest is taken"


def test_neighbours_by_decoder_count_as_those_by_firing_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "NEAR", 0.5)
    for by_firing, by_decoder in zip(related([("firing", 0, 2)], 1), related([("decoder", 0, 2)], 1), strict=True):
        sets = [holding(made.cells(1, claims(0.1)), "neighbour") for made in (by_firing, by_decoder)]
        assert sets[0] == sets[1] != []


# -- what counts as claimed ----------------------------------------------------------------------------------


class Oracle:
    """A simulator whose label is a feature's index: right on most passages, with noise."""

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def predict(self, labels: list[str], passages: np.ndarray) -> np.ndarray:
        peak = np.array(
            [[float(p in WORLD.fires[int(label)]) for p in passages.tolist()] for label in labels]
        )
        jitter = np.array([[(p % 1009) / 1009 for p in passages.tolist()]] * len(labels))
        predicted = np.zeros((len(labels), len(passages), 6), dtype=np.float32)
        predicted[:, :, 2] = peak + self.noise * jitter
        return predicted


def test_the_threshold_separates_what_a_simulator_can_separate(drawn: Design) -> None:
    t = claim_threshold(drawn, Oracle(0.5), [(f, str(f)) for f in (1, 2, 3)])  # type: ignore[arg-type]
    assert 0.49 < t < 1


def test_nothing_is_claimed_where_there_is_nothing_to_fit_a_threshold_on(drawn: Design) -> None:
    assert claim_threshold(drawn, Oracle(0.0), []) == float("inf")  # type: ignore[arg-type]
    assert claim_threshold(drawn, Oracle(0.0), [(0, "0"), (5, "5")]) == float("inf")  # type: ignore[arg-type]
