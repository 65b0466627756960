"""Numbers that can be checked by hand or by numpy, and None where there is no number."""

from collections.abc import Callable

import numpy as np
import pytest

from autointerp.metrics import balanced_threshold, correlation, correlation_of, mean_interval, moments, r_rank


def series(n: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations as they are: mostly zero, heavy-tailed; and a noisy prediction."""
    random = np.random.default_rng(seed)
    actual = np.where(random.random(n) < 0.1, random.gamma(2, 5, n), 0.0)
    return actual, np.clip(actual * 0.3 + random.normal(0, 1, n), 0, None)


# -- correlation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [3, 10, 1000])
def test_a_correlation_equals_numpys(n: int, seed: int) -> None:
    actual, predicted = np.random.default_rng(seed).normal(size=(2, n))
    assert correlation(actual, predicted) == pytest.approx(np.corrcoef(actual, predicted)[0, 1], abs=1e-9)


def test_a_correlation_of_sparse_series_equals_numpys() -> None:
    actual, predicted = series()
    assert correlation(actual, predicted) == pytest.approx(np.corrcoef(actual, predicted)[0, 1], abs=1e-9)


def test_a_perfect_prediction_has_correlation_1_and_its_negative_minus_1() -> None:
    actual, _ = series()
    assert correlation(actual, actual) == pytest.approx(1)
    assert correlation(actual, -actual) == pytest.approx(-1)


@pytest.mark.parametrize("scale", [1e-6, 0.1, 10, 1e6])
def test_the_scale_of_either_side_does_not_matter(scale: float) -> None:
    actual, predicted = series()
    value = correlation(actual, predicted)
    assert correlation(actual * scale, predicted) == pytest.approx(value)
    assert correlation(actual, predicted * scale) == pytest.approx(value)
    assert correlation(actual, predicted * scale + scale) == pytest.approx(value)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 1e9, -7.3])
def test_a_constant_series_has_no_correlation(constant: float) -> None:
    actual, _ = series(n=777)
    assert correlation(actual, np.full(777, constant)) is None
    assert correlation(np.full(777, constant), actual) is None
    assert correlation(np.full(777, constant), np.full(777, constant)) is None


def test_nothing_and_one_token_have_no_correlation() -> None:
    assert correlation(np.array([]), np.array([])) is None
    assert correlation(np.array([1.0]), np.array([2.0])) is None


def test_a_single_firing_token_among_many_still_has_a_correlation() -> None:
    actual = np.zeros(100_000)
    actual[5] = 1e-4
    assert correlation(actual, actual * 3) == pytest.approx(1)


def test_a_shuffled_prediction_correlates_about_0() -> None:
    actual, predicted = series(5000)
    random = np.random.default_rng(1)
    found = [correlation(actual, random.permutation(predicted)) for _ in range(100)]
    assert abs(np.mean(found)) < 0.01  # its standard error is 1 / sqrt(5000 * 100) = 0.0014
    assert max(map(abs, found)) < 0.1
    assert correlation(actual, predicted) > 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_raise(bad: float) -> None:
    for pair in (([1.0, bad], [1.0, 2.0]), ([1.0, 2.0], [1.0, bad])):
        with pytest.raises(ValueError, match="finite"):
            correlation(*map(np.array, pair))


def test_lengths_that_differ_raise() -> None:
    for pair in (([1.0], [1.0, 2.0]), ([[1.0, 2.0]], [[1.0, 2.0]])):
        with pytest.raises(ValueError, match="equally long"):
            correlation(*map(np.array, pair))


def test_correlating_joined_passages_is_correlating_their_pooled_moments() -> None:
    actual, predicted = series(600)
    group = np.random.default_rng(2).integers(0, 40, 600)
    per_passage = moments(actual, predicted, group, 50)  # ten groups are empty
    assert len(per_passage.n) == 50
    assert per_passage.n.sum() == 600
    assert float(correlation_of(per_passage)) == pytest.approx(np.corrcoef(actual, predicted)[0, 1])
    # ... and not the mean of per-passage correlations
    each = [np.corrcoef(actual[group == g], predicted[group == g])[0, 1] for g in range(40)]
    assert abs(np.nanmean(each) - float(correlation_of(per_passage))) > 1e-3


# -- r_rank --------------------------------------------------------------------------------------------------


def clustered(n_documents: int, per_document: int, seed: int = 0):
    """Passages of 20 tokens; how well a passage is predicted is a matter of its document."""
    random = np.random.default_rng(seed)
    actual, predicted, document, stratum = [], [], [], []
    for d in range(n_documents):
        quality = random.random() < 0.5
        for _ in range(per_document):
            a = np.where(random.random(20) < 0.3, random.gamma(2, 2, 20), 0.0) * (d % 2 == 0)
            actual.append(a)
            predicted.append(a + random.normal(0, 0.3, 20) if quality else random.gamma(1, 1, 20))
            document.append(d)
            stratum.append(0 if d % 2 == 0 else 2)
    group = np.repeat(np.arange(len(actual)), 20)
    found = moments(np.concatenate(actual), np.concatenate(predicted), group, len(actual))
    return found, np.array(stratum), np.array(document)


def rank(found, stratum, document, draws: int = 400, seed: int = 0):
    return r_rank(found, stratum, document, draws, np.random.default_rng(seed))


def width(interval) -> float:
    return interval.hi - interval.lo


def test_r_rank_is_the_correlation_over_all_tokens_with_an_interval_around_it() -> None:
    found = rank(*clustered(40, 4))
    assert found.value == pytest.approx(float(correlation_of(clustered(40, 4)[0])))
    assert -1 <= found.lo < found.value < found.hi <= 1


def test_the_interval_is_the_same_for_a_seed_and_another_for_another() -> None:
    data = clustered(40, 4)
    assert rank(*data, seed=5) == rank(*data, seed=5)
    assert rank(*data, seed=5) != rank(*data, seed=6)


def test_fewer_documents_make_the_interval_wider() -> None:
    assert width(rank(*clustered(20, 4))) > 1.5 * width(rank(*clustered(320, 4)))


def test_documents_are_resampled_whole() -> None:
    found, stratum, document = clustered(30, 12)
    as_if_independent = rank(found, stratum, np.arange(len(document)))
    assert width(rank(found, stratum, document)) > 1.5 * width(as_if_independent)


def test_what_documents_are_called_does_not_matter() -> None:
    found, stratum, document = clustered(30, 3)
    assert rank(found, stratum, document * 10**12 - 5) == rank(found, stratum, document)


def test_strata_are_resampled_apart_so_that_none_can_vanish() -> None:
    # One stratum fires and one is silent; the prediction is right on both. Were they resampled together, some
    # replicates would lack one of them and have no correlation or another one.
    actual = np.concatenate([np.ones(20), np.zeros(20)])
    found = moments(actual, actual * 2, np.repeat([0, 1], 20), 2)
    result = rank(found, np.array([0, 2]), np.array([7, 8]))
    assert result == pytest.approx((1, 1, 1))


def test_a_perfect_prediction_has_r_rank_1_throughout() -> None:
    actual, _ = series(400)
    found = moments(actual, actual * 3, np.repeat(np.arange(20), 20), 20)
    assert rank(found, np.zeros(20, dtype=int), np.arange(20)) == pytest.approx((1, 1, 1))


def test_a_constant_prediction_has_no_r_rank_and_no_interval() -> None:
    actual, _ = series(400)
    found = moments(actual, np.ones(400), np.repeat(np.arange(20), 20), 20)
    assert rank(found, np.zeros(20, dtype=int), np.arange(20)) == (None, None, None)


def test_an_interval_is_not_given_when_most_replicates_have_no_correlation() -> None:
    # The actual values vary in one document and the predicted ones in another: a replicate needs both of them, which
    # 40 % of replicates of 20 documents have. Where each is a stratum of its own, none is ever lost.
    actual, predicted = np.zeros(400), np.zeros(400)
    actual[:20:2] = predicted[20:40:2] = 1.0
    found = moments(actual, predicted, np.repeat(np.arange(20), 20), 20)
    one_stratum = rank(found, np.zeros(20, dtype=int), np.arange(20))
    assert one_stratum.value is not None
    assert (one_stratum.lo, one_stratum.hi) == (None, None)
    apart = rank(found, np.minimum(np.arange(20), 2), np.arange(20))
    assert apart.lo == pytest.approx(apart.value) == pytest.approx(apart.hi)


# -- means ---------------------------------------------------------------------------------------------------


def test_a_mean_comes_with_an_interval_that_is_wider_for_fewer_values() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    many, few = (mean_interval(v, 500, np.random.default_rng(1)) for v in (values, values[:20]))
    assert many.value == pytest.approx(values.mean())
    assert many.lo < many.value < many.hi
    assert width(few) > 2 * width(many)
    assert width(many) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.2)


def test_a_mean_of_nothing_is_none() -> None:
    assert mean_interval(np.array([]), 10, np.random.default_rng(0)) == (None, None, None)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval(np.array([0.5, np.nan]), 10, np.random.default_rng(0)),
        lambda: balanced_threshold(np.array([1.0, np.nan]), np.array([0.0])),
        lambda: balanced_threshold(np.array([1.0]), np.array([0.0, np.nan])),
    ],
)
def test_every_function_raises_for_values_that_are_not_finite(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="finite"):
        call()


# -- thresholds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_balanced_threshold_is_the_best_of_all_by_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    firing, silent = (
        random.normal(1, 1, random.integers(1, 30)).round(1),
        random.normal(0, 1, random.integers(1, 60)).round(1),
    )

    def quality(t: float) -> float:
        return sum(firing > t) / len(firing) + sum(silent <= t) / len(silent)

    found = balanced_threshold(firing, silent)
    candidates = [*firing, *silent, *np.arange(-5, 5, 0.01), -np.inf, np.inf]
    assert quality(found) == pytest.approx(max(map(quality, candidates)))
    equally_good = [t for t in (*firing, *silent) if quality(t) >= quality(found) - 1e-12]
    assert found == max(equally_good)


def test_kinds_that_separate_are_told_apart_without_error() -> None:
    t = balanced_threshold(np.array([3.0, 4.0]), np.array([0.0, 1.0, 2.0]))
    assert 2 <= t < 3


@pytest.mark.parametrize(("firing", "silent"), [([], [1.0]), ([1.0], []), ([], [])])
def test_a_threshold_needs_both_kinds(firing: list[float], silent: list[float]) -> None:
    with pytest.raises(ValueError, match="firing and silent"):
        balanced_threshold(np.array(firing), np.array(silent))
