"""Features are sorted into kinds by their counters, and a selection names features or is refused."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autointerp.config import FeaturesSection
from autointerp.errors import FeatureError
from autointerp.population import Population, check_selection, feature_index, population, select
from autointerp.rows import Collection, Feature
from autointerp.store import Store

CFG = FeaturesSection(select="all", min_passages=5, min_documents=3, max_density=0.1)
# name -> firing tokens per split, firing passages and documents in score
KINDS = {
    "eligible": ([10, 5, 10], 5, 3), "dead": ([0, 0, 0], 0, 0), "dense": ([40, 20, 41], 40, 20),
    "few passages": ([10, 5, 10], 4, 3), "few documents": ([10, 5, 10], 5, 2), "just not dense": ([40, 20, 40], 40, 20),
    "silent in score": ([10, 5, 0], 0, 0), "dense and rare": ([100, 100, 1], 1, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> Iterator[Population]:
    with Store.memory() as store:
        store.add(
            [
                Collection(
                    "c",
                    "m",
                    "h",
                    "d",
                    "topk",
                    8,
                    "x",
                    "{}",
                    128,
                    64,
                    [400, 200, 400],
                    [9] * 3,
                    [9] * 3,
                    [0] * 3,
                    0,
                    "c",
                    None,
                )
            ]
        )
        store.add([
            Feature("c", i, f"d/{i}", tokens, [9, 9, passages], [9, 9, documents], [1.0] * 3, [1.0] * 3, [0], [])
            for i, (tokens, passages, documents) in reversed(list(enumerate(KINDS.values())))
        ])  # fmt: skip
        yield population(store, "c", CFG)


def test_every_feature_is_of_the_kind_that_its_counters_say(found: Population) -> None:
    assert {name: found.kind(i) for i, name in enumerate(KINDS)} == {
        "eligible": "eligible", "dead": "dead", "dense": "dense", "few passages": "too_rare",
        "few documents": "too_rare", "just not dense": "eligible", "silent in score": "too_rare", "dense and rare": "dense",
    }  # fmt: skip


def test_every_feature_is_of_one_kind_and_the_counts_add_up(found: Population) -> None:
    kinds = np.stack([found.eligible, found.dead, found.dense, found.too_rare])
    assert kinds.sum(axis=0).tolist() == [1] * len(KINDS)
    assert found.counts == {"live": 7, "eligible": 2, "dead": 1, "dense": 2, "too_rare": 3}


def test_density_is_the_share_of_usable_tokens_of_all_splits(found: Population) -> None:
    assert found.density[:3].tolist() == [0.025, 0, 0.101]


@pytest.fixture(scope="module")
def many() -> Population:
    """A hundred features, the even ones eligible, of densities 0, .01, .02 ..."""
    off, even = np.zeros(100, dtype=bool), np.arange(100) % 2 == 0
    return Population(np.arange(100) / 100, off, off, ~even, even, off)


def test_all_selects_every_eligible_feature(many: Population) -> None:
    assert select("all", many, 0, "d") == list(range(0, 100, 2))


def test_random_selects_that_many_eligible_features_and_the_same_for_a_seed(many: Population) -> None:
    chosen = select("random:10", many, 0, "d")
    assert len(chosen) == 10
    assert chosen == sorted(set(chosen)) == select("random:10", many, 0, "d")
    assert all(many.eligible[chosen])
    assert select("random:10", many, 1, "d") != chosen


def test_a_larger_random_selection_contains_a_smaller_one(many: Population) -> None:
    assert set(select("random:10", many, 3, "d")) < set(select("random:20", many, 3, "d"))


def test_random_takes_all_where_there_are_fewer(many: Population) -> None:
    assert select("random:1000", many, 0, "d") == select("all", many, 0, "d")


def test_every_eligible_feature_has_the_same_chance(many: Population) -> None:
    times = np.bincount(
        np.concatenate([select("random:5", many, seed, "d") for seed in range(600)]), minlength=100
    )
    assert times[1::2].sum() == 0
    assert times[::2].min() > 30  # 60 are expected, with a standard deviation of 7
    assert times[::2].max() < 95


def test_a_range_of_density_selects_the_eligible_features_within_it(many: Population) -> None:
    assert select("density:0.10..0.16", many, 0, "d") == [10, 12, 14, 16]
    assert select("density:1e-1..1.6e-1", many, 0, "d") == [10, 12, 14, 16]


@pytest.mark.parametrize("text", ["5,3,3", "d/3 d/5", "3, d/5", "5\n3"])
def test_named_features_are_taken_as_they_are_eligible_or_not(many: Population, text: str) -> None:
    assert select(text, many, 0, "d") == [3, 5]


def test_features_can_be_listed_in_a_file(many: Population, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("7\nd/9\n\n 1 \n")
    check_selection(str(tmp_path / "list.txt"), "d", 1000)
    assert select(str(tmp_path / "list.txt"), many, 0, "d") == [1, 7, 9]


@pytest.mark.parametrize("text", ["density:0.5..0.4", "density:2..3"])
def test_a_selection_of_nothing_is_refused_with_the_counts(many: Population, text: str) -> None:
    with pytest.raises(FeatureError, match="50 eligible"):
        select(text, many, 0, "d")


@pytest.mark.parametrize(
    "text", ["100", "d/100", "other/3", "3,abc", "-1", "1.5", "density:a..b", "density:1e..2"]
)
def test_a_feature_that_does_not_exist_is_refused(many: Population, text: str) -> None:
    with pytest.raises(FeatureError):
        select(text, many, 0, "d")


@pytest.mark.parametrize(
    "text", ["random:0", "random:x", "random", "", " ", "everything", "density:1", "1;2", "nofile.txt"]
)
def test_a_selection_that_cannot_mean_anything_is_refused_beforehand(text: str) -> None:
    with pytest.raises(FeatureError, match=r"features\.select"):
        check_selection(text, "d", 1000)


@pytest.mark.parametrize(
    "text", ["random:64", "all", "0,17,650", "17", "d/17 d/18", "density:1e-4..1e-2", "1,2,"]
)
def test_a_selection_that_may_mean_something_passes(text: str) -> None:
    check_selection(text, "d", 1000)


def test_a_feature_is_named_by_its_index_with_or_without_its_dictionary() -> None:
    assert feature_index("17", "my-sae", 18) == feature_index("my-sae/17", "my-sae", 18) == 17


@pytest.mark.parametrize(
    "text", ["18", "my-sae/18", "other/3", "-1", "1.0", "", "my-sae/", "x", "my-sae/3/4"]
)
def test_a_name_of_no_feature_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(FeatureError, match="my-sae"):
        feature_index(text, "my-sae", 18)


def test_a_superscript_is_no_feature() -> None:
    with pytest.raises(FeatureError):
        feature_index("²", "my-sae", 18)
