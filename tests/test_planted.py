"""Planted features are what they say, on real text, and go through the keeper and the store like any others."""

import numpy as np
import pytest

from autointerp.planted import DENSE, NOISE, TIES, Clause, Feature, PlantedText, Planter, Predicate
from autointerp.reference import Errors, ReferenceSimulator
from autointerp.text import token_strings, words

from .planted_world import SIZE, planted, text

DENSITIES = (1e-2, 1e-3, 1e-4)


@pytest.fixture(scope="module")
def world() -> PlantedText:
    return text()


@pytest.fixture(scope="module")
def features() -> list[Feature]:
    return list(planted()[0].features)


def index(world: PlantedText, *wanted: str) -> tuple[int, ...]:
    return tuple(world.vocabulary.index(word) for word in wanted)


def passage_words(world: PlantedText, row: int) -> list[tuple[str, int, int]]:
    """The words of a passage with their cells, from its tokens alone."""
    tokens = world.tokens[row, : world.length[row]].tolist()
    found = words(token_strings(tokens, {t: world.piece(t) for t in set(tokens)}))
    return [(word.text.lower(), row * world.width + word.first, row * world.width + word.last) for word in found]


def brute_force(world: PlantedText, predicate: Predicate, row: int) -> set[int]:
    """The cells of a passage where a predicate holds, word by word."""
    found: set[int] = set()
    line = passage_words(world, row)
    name = world.vocabulary.__getitem__
    for clause in predicate.clauses:
        near = {name(w) for w in clause.near}
        if near and not near & {word for word, _, _ in line}:
            continue
        for i, (word, first, last) in enumerate(line):
            before = line[i - 1][0] if i else None
            if word not in {name(w) for w in clause.words}:
                continue
            if clause.after and before not in {name(w) for w in clause.after}:
                continue
            if clause.not_after and before in {name(w) for w in clause.not_after}:
                continue
            if clause.first_half and first % world.width >= world.width // 2:
                continue
            found |= set(range(first, last))
    return found


# -- the text ------------------------------------------------------------------------------------------------


def test_the_index_of_words_agrees_with_the_passages(world: PlantedText) -> None:
    for row in (0, 17, 5000, len(world.length) - 1):
        mine = np.flatnonzero(world.passage == row)
        found = [(world.vocabulary[world.word[i]], int(world.first[i]), int(world.last[i])) for i in mine]
        assert found == passage_words(world, row)


def test_every_document_is_in_one_split_and_every_passage_is_known_by_its_id(world: PlantedText) -> None:
    for key in np.unique(world.document)[:50]:
        assert len(np.unique(world.split[world.document == key])) == 1
    rows = np.random.default_rng(0).permutation(len(world.length))[:500]
    assert world.rows(world.ids[rows]).tolist() == rows.tolist()
    with pytest.raises(KeyError, match="no passage"):
        world.rows(np.array([12345]))


# -- predicates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda w: Clause(index(w, "war")),
        lambda w: Clause(index(w, "the", "of", "our")),
        lambda w: Clause(index(w, "government"), after=index(w, "the")),
        lambda w: Clause(index(w, "government", "states"), not_after=index(w, "the", "united")),
        lambda w: Clause(index(w, "the"), near=index(w, "war", "peace")),
        lambda w: Clause(index(w, "and"), first_half=True),
    ],
)
def test_a_predicate_holds_where_going_through_the_words_says_so(world: PlantedText, make: object) -> None:
    predicate = Predicate((make(world),))  # type: ignore[operator]
    cells = world.cells(predicate.extension(world))[0]
    for row in np.random.default_rng(1).permutation(len(world.length))[:60].tolist():
        mine = set(cells[(cells >= row * world.width) & (cells < (row + 1) * world.width)].tolist())
        assert mine == brute_force(world, predicate, row)


def test_a_union_holds_where_one_of_its_clauses_does(world: PlantedText) -> None:
    one, two = Clause(index(world, "war")), Clause(index(world, "war", "peace"), after=index(world, "of"))
    parts = [set(Predicate((clause,)).extension(world).tolist()) for clause in (one, two)]
    assert set(Predicate((one, two)).extension(world).tolist()) == parts[0] | parts[1]


def test_everything_everywhere_and_a_share_of_it(world: PlantedText) -> None:
    assert len(Predicate((Clause(everything=True),)).extension(world)) == len(world.word)
    whole = Clause(index(world, "the"))
    half = Predicate((Clause(whole.words, share=0.5),)).extension(world)
    assert set(half.tolist()) < set(Predicate((whole,)).extension(world).tolist())
    assert len(half) / len(Predicate((whole,)).extension(world)) == pytest.approx(0.5, abs=0.02)


# -- features ------------------------------------------------------------------------------------------------


def test_features_have_the_density_that_was_asked_for(world: PlantedText, features: list[Feature]) -> None:
    for feature in features:
        if feature.family != DENSE:
            n = len(feature.activations(world, 0)[0])
            assert 0.6 <= n / world.n_tokens / feature.density <= 1.5, feature


def test_every_family_is_planted_and_no_feature_twice(features: list[Feature]) -> None:
    families = {f.family for f in features}
    assert families == {
        "token", "words", "field", "regex", "gate", "negation", "position", "union", "absorbed", NOISE, DENSE,
    }  # fmt: skip
    assert len({f.predicate for f in features}) == len(features)
    for density in DENSITIES:
        assert sum(f.density == density and f.family != NOISE for f in features) == SIZE.per_density


def test_planting_again_plants_the_same_and_another_seed_plants_others(world: PlantedText) -> None:
    first, again, other = (Planter(world, seed).plant(1e-3, 8) for seed in (0, 0, 1))
    assert first == again != other
    for one, two in zip(first[0].activations(world, 0), again[0].activations(world, 0)):
        assert (one == two).all()


# -- labels --------------------------------------------------------------------------------------------------


def test_the_rungs_have_the_quality_that_they_are_named_for() -> None:
    found, _ = planted()
    bounds = {
        "true": (1, 1), **dict.fromkeys(TIES, (1, 1)), "half": (0.5, 0.8), "broad2": (0.58, 0.75),
        "broad10": (0.12, 0.26), "sibling": (0, 0.01), "shuffled": (0, 0.01), "constant": (0, 0.03),
        "missing": (0.55, 0.75), "extra": (0.58, 0.75), "token_only": (0.02, 0.98),
    }  # fmt: skip
    seen = set()
    for i, labels in enumerate(found.labels):
        for rung, label in labels.items():
            low, high = bounds[rung]
            assert low <= found.bench.known_f1(i, label.predicate) <= high, (rung, label)
            seen.add(rung)
    assert seen == set(bounds)


def test_a_label_text_means_one_thing() -> None:
    found, _ = planted()
    for labels in found.labels:
        for label in labels.values():
            assert found.truths[label.text] == label.predicate


# -- collected -----------------------------------------------------------------------------------------------


def test_the_store_holds_what_was_planted(world: PlantedText, features: list[Feature]) -> None:
    found, store = planted()
    counters = store.features(found.bench.collection_id)
    for i in range(0, len(features), 7):
        cells, values = found.bench.activations[i]
        split = world.split[cells // world.width]
        assert counters["n_tokens"][:, i].tolist() == np.bincount(split, minlength=3).tolist()
        assert counters["sum"][:, i].sum() == pytest.approx(values.sum(), rel=1e-5)
        rows = np.unique(cells // world.width)
        assert counters["n_passages"][:, i].tolist() == np.bincount(world.split[rows], minlength=3).tolist()
        sample = store.excerpts(found.bench.collection_id, i, "score", "sample")
        truth = found.bench.truth(i, sample.passage)
        kept = np.zeros_like(truth)
        kept[np.repeat(np.arange(len(sample.passage)), np.diff(sample.firing.offsets)), sample.firing.positions] = (
            sample.firing.values
        )
        assert (kept == truth).all()


def test_sheets_read_from_the_store_agree_with_the_planted_truth(world: PlantedText) -> None:
    found, _ = planted()
    for i in (0, 25, 45):
        sheet = found.bench.sheet(i)
        assert (sheet.actual == found.bench.truth(i, sheet.passages)).all()
        assert (sheet.actual[sheet.firing].max(axis=1) > 0).all()


def test_too_rare_and_dense_features_are_not_graded(features: list[Feature]) -> None:
    found, _ = planted()
    for i, feature in enumerate(features):
        if feature.density == 1e-5:
            assert found.bench.kinds.kind(i) == "too_rare"
        if feature.family == DENSE:
            assert found.bench.kinds.kind(i) == "dense"
        if found.labels[i]:
            assert found.bench.kinds.kind(i) == "eligible"


# -- the reference simulator ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> ReferenceSimulator:
    found, _ = planted()
    return ReferenceSimulator(found.bench.text, found.truths, Errors(), 0)


def test_it_errs_at_the_rates_that_it_is_told(world: PlantedText, reference: ReferenceSimulator) -> None:
    found, _ = planted()
    missed, false, claimed = [], [], []
    for i in [i for i, f in enumerate(found.features) if f.density == 1e-2 and found.labels[i]][:8]:
        label = found.labels[i]["true"]
        cells = world.cells(label.predicate.extension(world))[0]
        holds = np.zeros(world.tokens.size, dtype=bool)
        holds[cells] = True
        said = reference.predict([label.text], world.ids)[0].ravel() > 0
        missed.append(1 - said[holds].mean())
        false.append(said[~holds].sum() / world.n_tokens)
        inside = np.unique(cells // world.width)
        claims = reference.claims(label.text, world.ids)
        claimed.append(claims[inside].mean())
        assert not claims[np.setdiff1d(np.arange(len(world.length)), inside)].any()
    assert np.mean(missed) == pytest.approx(0.2, abs=0.01)
    assert np.mean(false) == pytest.approx(2e-4, rel=0.1)
    assert np.mean(claimed) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("noise", [0.0, 0.08])
def test_what_it_says_of_a_passage_does_not_depend_on_what_else_is_asked(world: PlantedText, noise: float) -> None:
    found, _ = planted()
    first, second = (next(iter(found.labels[i].values())).text for i in (0, 21))
    rows = np.random.default_rng(0).permutation(len(world.length))[:400]
    whole = ReferenceSimulator(world, found.truths, Errors(noise=noise), 0).predict([first, second], world.ids[rows])
    other = ReferenceSimulator(world, found.truths, Errors(noise=noise), 0)
    part = other.predict([second], world.ids[np.concatenate([rows[100:200], rows[100:120]])])[0]  # some of them twice
    assert (part == whole[1][np.concatenate([np.arange(100, 200), np.arange(100, 120)])]).all()
    assert not (whole[0] == whole[1]).all()


def test_the_noisy_variant_is_real_valued_and_silent_after_the_end(world: PlantedText) -> None:
    found, _ = planted()
    noisy = ReferenceSimulator(world, found.truths, Errors(noise=0.08), 0)
    short = np.flatnonzero(world.length < world.width)[:50]
    said = noisy.predict([found.labels[0]["true"].text], world.ids[short])[0]
    inside = np.arange(world.width) < world.length[short][:, None]
    assert (said[~inside] == 0).all()
    assert (said[inside] > 0).mean() > 0.99
    assert np.median(said[inside]) < 0.1
