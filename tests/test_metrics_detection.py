"""Detection, fit and nulls: hand-worked tables, laws that hold for any input, and None where there is no number."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import kstest

from autointerp.baselines import bag_of_words
from autointerp.metrics import (
    Confusion,
    absolute_deviation_centred,
    absolute_deviation_explained,
    auprc,
    auroc,
    balanced_accuracy,
    benjamini_hochberg,
    calibration,
    confusion,
    correlation,
    discrimination,
    f1,
    lift,
    matthews,
    partial_correlation,
    permutation_p,
    r2_calibrated,
    r2_centred,
    r2_uncentred,
    true_negative_rate,
    why_none,
    win_rate,
)

SEEDS = range(20)


def verdicts(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, verdicts that are better than chance, and weights."""
    random = np.random.default_rng(seed)
    fires = random.random(n) < 0.4
    return fires, random.random(n) < np.where(fires, 0.8, 0.2), random.gamma(2, 1, n)


# -- detection -----------------------------------------------------------------------------------------------

#        fires  claimed  weight
TABLE = [(1, 1, 2.0), (1, 1, 2.0), (1, 0, 2.0), (0, 1, 5.0), (0, 0, 5.0), (0, 0, 1.0), (0, 0, 1.0)]


def test_a_weighted_confusion_by_hand() -> None:
    fires, claimed, weight = (np.array(column) for column in zip(*TABLE))
    found = confusion(fires.astype(bool), claimed.astype(bool), weight)
    assert found == Confusion(tp=4, fp=5, fn=2, tn=7)
    assert f1(found) == pytest.approx(8 / 15)
    assert balanced_accuracy(found) == pytest.approx((4 / 6 + 7 / 12) / 2)
    assert true_negative_rate(found) == pytest.approx(7 / 12)
    assert matthews(found) == pytest.approx((4 * 7 - 5 * 2) / math.sqrt(9 * 6 * 12 * 9))
    plain = confusion(fires.astype(bool), claimed.astype(bool))
    assert plain == Confusion(tp=2, fp=1, fn=1, tn=3)


@pytest.mark.parametrize("seed", SEEDS)
def test_weighting_a_passage_twice_is_having_it_twice(seed: int) -> None:
    fires, claimed, _ = verdicts(seed)
    twice = np.random.default_rng(seed).random(len(fires)) < 0.5
    weighted = confusion(fires, claimed, 1.0 + twice)
    repeated = confusion(np.concatenate([fires, fires[twice]]), np.concatenate([claimed, claimed[twice]]))
    assert weighted == repeated
    score = np.random.default_rng(seed + 1).random(len(fires))
    assert auprc(fires, score, 1.0 + twice) == pytest.approx(
        auprc(np.concatenate([fires, fires[twice]]), np.concatenate([score, score[twice]]))
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_scale_of_weights_does_not_matter(seed: int) -> None:
    fires, claimed, weight = verdicts(seed)
    for metric in (f1, balanced_accuracy, true_negative_rate, matthews):
        assert metric(confusion(fires, claimed, weight)) == pytest.approx(metric(confusion(fires, claimed, 7 * weight)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_perfect_judge_gets_1_and_its_opposite_0(seed: int) -> None:
    fires, _, weight = verdicts(seed)
    assert f1(confusion(fires, fires, weight)) == balanced_accuracy(confusion(fires, fires, weight)) == 1
    assert f1(confusion(fires, ~fires, weight)) == balanced_accuracy(confusion(fires, ~fires, weight)) == 0
    assert auprc(fires, fires.astype(float), weight) == pytest.approx(1)


@pytest.mark.parametrize("answer", [True, False])
def test_a_constant_answer_has_balanced_accuracy_one_half(answer: bool) -> None:
    fires, _, weight = verdicts(3)
    assert balanced_accuracy(confusion(fires, np.full(len(fires), answer), weight)) == 0.5


def test_average_precision_by_hand() -> None:
    # sorted by score: hit, miss, hit, hit, miss -> precisions 1, 2/3, 3/4 at recalls 1/3, 2/3, 1
    fires, score = np.array([1, 0, 1, 1, 0], dtype=bool), np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    assert auprc(fires, score) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert auprc(fires, np.full(5, 0.3)) == pytest.approx(3 / 5)  # no information: the share that fires
    assert auprc(fires, np.full(5, 0.3), np.array([1.0, 4, 1, 1, 3])) == pytest.approx(3 / 10)


def test_what_does_not_exist_is_none() -> None:
    nothing = np.zeros(4, dtype=bool)
    assert f1(confusion(nothing, ~nothing)) is None
    assert balanced_accuracy(confusion(nothing, nothing)) is None
    assert true_negative_rate(confusion(~nothing, nothing)) is None
    assert matthews(confusion(~nothing, nothing)) is None
    assert auprc(nothing, np.zeros(4)) is None
    assert f1(confusion(~nothing, nothing)) == 0.0  # claiming nothing is an answer, and a bad one
    empty = np.array([], dtype=bool)
    assert f1(confusion(empty, empty)) is auprc(empty, np.array([])) is None


@pytest.mark.parametrize("weight", [[1.0, np.nan], [1.0, np.inf], [1.0, 0.0], [1.0, -2.0]])
def test_weights_that_are_not_finite_and_above_0_are_refused(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        confusion(np.array([True, False]), np.array([True, False]), np.array(weight))


def test_lengths_that_differ_and_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        confusion(np.ones(3, dtype=bool), np.ones(2, dtype=bool))
    with pytest.raises(ValueError, match="finite"):
        auprc(np.ones(2, dtype=bool), np.array([0.1, np.nan]))


# -- fit -----------------------------------------------------------------------------------------------------


def test_the_variants_by_hand() -> None:
    actual, predicted = np.array([0.0, 0, 2, 4]), np.array([0.0, 1, 2, 2])
    assert r2_uncentred(actual, predicted) == pytest.approx(1 - 5 / 20)
    assert r2_centred(actual, predicted) == pytest.approx(1 - 5 / 11)  # mean 1.5: 2.25 * 2 + .25 + 6.25 = 11
    assert absolute_deviation_explained(actual, predicted) == pytest.approx(1 - 3 / 6)
    assert absolute_deviation_centred(actual, predicted) == pytest.approx(1 - 3 / 6)  # median 1: 1 + 1 + 1 + 3


@pytest.mark.parametrize("seed", SEEDS)
def test_calibrated_on_the_same_text_r2_is_the_squared_correlation(seed: int) -> None:
    random = np.random.default_rng(seed)
    actual = np.where(random.random(300) < 0.2, random.gamma(2, 2, 300), 0.0)
    predicted = 0.1 * actual + random.normal(0, 0.3, 300)
    r = correlation(actual, predicted)
    assert r is not None
    line = calibration(actual, predicted)
    assert line is not None
    assert r2_calibrated(actual, predicted, line) == pytest.approx(r**2)
    other = line._replace(slope=line.slope * 3)
    assert r2_calibrated(actual, predicted, other) < r**2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_perfect_prediction_explains_everything_and_a_constant_one_nothing_centred(seed: int) -> None:
    actual = np.random.default_rng(seed).gamma(1, 2, 50)
    for metric in (r2_uncentred, r2_centred, absolute_deviation_explained, absolute_deviation_centred):
        assert metric(actual, actual) == 1
    assert r2_centred(actual, np.full(50, actual.mean())) == pytest.approx(0)
    assert absolute_deviation_centred(actual, np.full(50, np.median(actual))) == pytest.approx(0)
    assert r2_uncentred(actual, np.zeros(50)) == absolute_deviation_explained(actual, np.zeros(50)) == 0


def test_a_constant_feature_explains_nothing_and_says_why() -> None:
    flat, other, empty = np.full(5, 2.0), np.arange(5.0), np.array([])
    assert r2_centred(flat, other) is absolute_deviation_centred(flat, other) is None
    assert r2_uncentred(np.zeros(5), other) is absolute_deviation_explained(np.zeros(5), other) is None
    assert why_none(flat, other) == "constant_actual"
    assert why_none(other, flat) == "constant_prediction"
    assert why_none(empty, empty) == "empty"
    for metric in (r2_uncentred, r2_centred, absolute_deviation_explained, absolute_deviation_centred):
        assert metric(empty, empty) is None
        with pytest.raises(ValueError, match="finite"):
            metric(np.array([1.0, np.nan]), np.array([1.0, 2.0]))


# -- nulls ---------------------------------------------------------------------------------------------------


def test_a_permutation_p_by_hand() -> None:
    nulls = np.array([0.1, 0.2, 0.2, 0.5])
    assert permutation_p(0.6, nulls) == 1 / 5
    assert permutation_p(0.2, nulls) == 4 / 5  # ties count against the label
    assert permutation_p(0.0, nulls) == 1.0
    tied = [permutation_p(0.2, nulls, np.random.default_rng(i)) for i in range(300)]
    assert set(tied) == {2 / 5, 3 / 5, 4 / 5}  # one of the three places among equals
    with pytest.raises(ValueError, match="null"):
        permutation_p(0.5, np.array([]))
    with pytest.raises(ValueError, match="finite"):
        permutation_p(0.5, np.array([np.nan]))


def test_p_is_uniform_under_the_null_even_where_scores_tie() -> None:
    random = np.random.default_rng(0)
    p = []
    for _ in range(500):
        scores = random.integers(0, 4, 1000) / 4  # four values: hardly anything but ties
        p.append(permutation_p(scores[0], scores[1:], random))
    assert kstest(p, "uniform").pvalue > 0.01
    assert abs(np.mean(p) - 0.5) < 0.05


def test_q_values_by_hand() -> None:
    #  p sorted .01 .02 .03 .5 -> p m / i: .04 .04 .04 .5
    assert benjamini_hochberg(np.array([0.03, 0.5, 0.01, 0.02])).tolist() == pytest.approx([0.04, 0.5, 0.04, 0.04])
    assert benjamini_hochberg(np.array([])).tolist() == []
    assert benjamini_hochberg(np.array([1.0, 1.0])).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"0\.\.1"):
        benjamini_hochberg(np.array([1.2]))


@pytest.mark.parametrize("seed", SEEDS)
def test_discoveries_equal_the_step_up_procedure(seed: int) -> None:
    p = np.random.default_rng(seed).beta(0.5, 2, 40)
    for rate in (0.01, 0.05, 0.2):
        below = [i for i, v in enumerate(np.sort(p), start=1) if v <= rate * i / len(p)]
        expected = p <= (np.sort(p)[max(below) - 1] if below else -1)
        assert (benjamini_hochberg(p) <= rate).tolist() == expected.tolist()


def test_the_false_discovery_rate_is_what_was_asked_for() -> None:
    random = np.random.default_rng(5)
    false = []
    for _ in range(300):
        p = np.concatenate([random.random(80), random.beta(0.02, 1, 20)])
        found = benjamini_hochberg(p) <= 0.1
        false.append(found[:80].sum() / max(found.sum(), 1))
    assert np.mean(false) < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_partial_correlation_is_the_correlation_of_what_the_table_leaves(seed: int) -> None:
    random = np.random.default_rng(seed)
    table = random.normal(size=400)
    actual, said = table + random.normal(size=400), 0.5 * table + random.normal(size=400)
    rest = [v - np.polyval(np.polyfit(table, v, 1), table) for v in (actual, said)]
    found = partial_correlation(correlation(actual, said), correlation(actual, table), correlation(said, table))
    assert found == pytest.approx(np.corrcoef(*rest)[0, 1])


def test_partial_correlation_and_lift_without_one_of_their_parts() -> None:
    for parts in itertools.product([0.5, None], repeat=3):
        assert (partial_correlation(*parts) is None) == (None in parts)
    assert partial_correlation(0.9, 1.0, 0.9) is None  # the table says everything
    assert lift(0.5, 0.2) == pytest.approx(0.3)
    assert lift(None, 0.2) is lift(0.5, None) is None


def test_discrimination_auroc_and_win_rate_by_hand() -> None:
    assert discrimination(0.5, np.array([0.1, 0.5, 0.9, 0.2])) == pytest.approx(2.5 / 4)
    assert discrimination(0.5, np.array([])) is discrimination(None, np.array([0.1])) is None
    right, wrong = np.array([0.9, 0.5]), np.array([0.1, 0.5, 0.7])
    assert auroc(right, wrong) == pytest.approx((3 + 1.5) / 6)
    assert auroc(right, np.array([])) is None
    assert win_rate(right, np.array([0.5, 0.5])) == pytest.approx(0.75)
    assert win_rate(np.array([]), np.array([])) is None
    with pytest.raises(ValueError, match="equally many"):
        win_rate(right, wrong)


@pytest.mark.parametrize("seed", SEEDS)
def test_auroc_is_the_share_of_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    right, wrong = random.integers(0, 6, 15) / 5, random.integers(0, 5, 11) / 5
    pairs = [(a > b) + (a == b) / 2 for a in right for b in wrong]
    assert auroc(right, wrong) == pytest.approx(np.mean(pairs))
    assert auroc(right, wrong) + auroc(wrong, right) == pytest.approx(1)


# -- bag of words --------------------------------------------------------------------------------------------


def test_a_bag_of_words_finds_a_feature_that_is_a_word_and_not_one_that_is_an_order() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(0, 50, (1200, 20))
    tokens[random.random((1200, 20)) < 0.1] = -1
    word = (tokens == 7).any(axis=1)
    after = ((tokens[:, 1:] == 3) & (tokens[:, :-1] < 25) & (tokens[:, :-1] >= 0)).any(axis=1)
    train, test = slice(0, 800), slice(800, None)
    found = bag_of_words(tokens[train], word[train], tokens[test])
    assert auroc(found[word[test]], found[~word[test]]) > 0.99
    ordered = bag_of_words(tokens[train], after[train], tokens[test])
    assert 0.6 < auroc(ordered[after[test]], ordered[~after[test]]) < 0.95


@pytest.mark.parametrize("damp", [0.5, 10.0])
def test_a_bag_of_words_is_the_ridge_solution(damp: float) -> None:
    random = np.random.default_rng(1)
    tokens, asked = random.integers(0, 6, (40, 8)), random.integers(0, 8, (5, 8))  # 6 and 7 were never seen
    fires = random.random(40) < 0.5
    counts, new = (np.stack([(t == i).sum(axis=1) for i in range(6)], axis=1) for t in (tokens, asked))
    weights = np.linalg.solve(counts.T @ counts + damp * np.eye(6), counts.T @ (fires - fires.mean()))
    assert bag_of_words(tokens, fires, asked, damp) == pytest.approx(fires.mean() + new @ weights, abs=1e-6)


def test_a_bag_of_words_of_one_kind_alone_has_learnt_nothing() -> None:
    tokens = np.zeros((4, 3), dtype=np.int64)
    for fires in (np.zeros(4, dtype=bool), np.ones(4, dtype=bool), np.empty(0, dtype=bool)):
        assert bag_of_words(tokens[: len(fires)], fires, tokens) is None
