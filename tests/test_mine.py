# ruff: noqa: F811 - fixtures are imported, and then asked for by name
"""Labels without a model: counted on the explain split, short, and each said once."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autointerp.evidence import ExplainEvidence, Texts
from autointerp.mine import Miner, Stats, best_prefix
from autointerp.store import Store

from .test_pipeline import finished_run
from .test_simulate import Planted, planted  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def mined(planted: Planted) -> Iterator[tuple[Miner, dict[int, str]]]:
    """A miner on the planted detectors, and the word that each detects."""
    with Store.read(planted.settings.database) as store:
        collection = store.latest_run().collection_id
        yield Miner(ExplainEvidence(store, collection, Texts(store, collection)), 12), planted.words


@pytest.fixture(scope="module")
def tangled(tiny: dict[str, Path]) -> Iterator[Miner]:
    """A miner on the random dictionary, whose features fire on all sorts of words."""
    with Store.read(finished_run(tiny) / "run.duckdb") as store:
        collection = store.latest_run().collection_id
        yield Miner(ExplainEvidence(store, collection, Texts(store, collection)), 12)


def clauses(label: str) -> list[str]:
    """The words or phrases that a label lists."""
    return [clause.strip() for clause in label.split(",") if clause.strip()]


def test_a_detector_of_one_word_is_labelled_with_that_word_first(mined: tuple[Miner, dict[int, str]]) -> None:
    miner, words = mined
    assert {feature: miner.propose(feature, 1) for feature in words} == {f: [w] for f, w in words.items()}


def test_the_background_counts_every_word_of_the_explain_panel(mined: tuple[Miner, dict[int, str]]) -> None:
    miner, words = mined
    texts = [
        " ".join("".join(miner.evidence.texts.strings(int(p))).split()) for p in miner.evidence.panel.passages
    ]
    for word in words.values():
        assert miner.background.words[word] == sum(len(re.findall(rf"\b{word}\b", text)) for text in texts)


@pytest.mark.parametrize("wanted", [1, 3, 8, 50])
def test_no_more_labels_are_proposed_than_asked_for_and_none_twice(tangled: Miner, wanted: int) -> None:
    for feature in range(0, 64, 4):
        labels = tangled.propose(feature, wanted)
        assert len(labels) <= wanted
        assert len(set(labels)) == len(labels)
        assert labels == tangled.propose(feature, 50)[:wanted]


@pytest.mark.parametrize("max_words", [3, 12])
def test_a_proposed_label_is_never_longer_than_allowed(tangled: Miner, max_words: int) -> None:
    miner = Miner(tangled.evidence, max_words)
    longest = 0
    for feature in range(0, 64, 4):
        for label in miner.propose(feature, 50):
            assert 0 < len(label.split()) <= max_words
            assert label.strip() == label
            longest = max(longest, len(label.split()))
    assert longest > 1


def test_a_label_lists_nothing_twice(tangled: Miner) -> None:
    twice = [
        label
        for f in range(64)
        for label in tangled.propose(f, 50)
        if len(set(clauses(label))) < len(clauses(label))
    ]
    assert twice == []


def test_a_feature_that_fires_nowhere_has_no_label(mined: tuple[Miner, dict[int, str]]) -> None:
    assert mined[0].propose(9999, 8) == []


def test_mining_does_not_depend_on_what_was_mined_before(tangled: Miner) -> None:
    features = [3, 9, 27]
    first = {f: tangled.propose(f, 8) for f in features}
    fresh = Miner(tangled.evidence, 12)
    assert {f: fresh.propose(f, 8) for f in reversed(features)} == first


def test_only_as_many_words_are_listed_as_help() -> None:
    strong, weak = Stats("dollar", 100.0, 100), Stats("the", 0.5, 5000)
    assert best_prefix([strong, weak], 100_000) == 1
    assert best_prefix([strong, Stats("cent", 100.0, 100), weak], 100_000) == 2


def test_the_prefix_is_the_one_that_correlates_best() -> None:
    random = np.random.default_rng(0)
    n, words = 4000, 6
    word = random.integers(0, 40, n)
    activation = np.where(word < words, np.linspace(2, 0.1, 40)[word], 0) * random.random(n)
    ranked = [
        Stats(str(w), float(activation[word == w].sum()), float((word == w).sum())) for w in range(words)
    ]
    by_hand = [np.corrcoef(word < k, activation)[0, 1] for k in range(1, words + 1)]
    assert best_prefix(ranked, n) == int(np.argmax(by_hand)) + 1
