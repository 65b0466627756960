"""What a label has to beat."""

import numpy as np

from autointerp.baselines import lookup, shuffled_labels


def test_the_lookup_table_predicts_the_mean_of_each_token_and_0_for_others() -> None:
    tokens = np.array([[7, 3, 9], [-1, 10**6, 7]])
    assert lookup(tokens, {3: 0.5, 7: 2.0, 100: 1.0}).tolist() == [[2.0, 0.5, 0.0], [0.0, 0.0, 2.0]]


def test_the_lookup_table_equals_a_dictionary_on_any_tokens() -> None:
    random = np.random.default_rng(0)
    table = {int(t): float(v) for t, v in zip(random.permutation(300)[:50], random.random(50), strict=True)}
    tokens = random.integers(-1, 300, (20, 30))
    assert lookup(tokens, table).tolist() == [[table.get(int(t), 0.0) for t in row] for row in tokens]


def test_an_empty_table_predicts_nothing_anywhere() -> None:
    assert lookup(np.array([[1, 2]]), {}).tolist() == [[0.0, 0.0]]


LABELS = {
    0: "red things",
    1: "blue things",
    2: "a much longer label than the others are",
    3: "green things",
    4: "red things",
}
DENSITY = {0: 1e-3, 1: 1e-3, 2: 1e-3, 3: 1e-1, 4: 1e-3}


def test_null_labels_are_those_of_other_features_nearest_in_density_and_length() -> None:
    assert shuffled_labels(0, LABELS, DENSITY, 3) == [(1, LABELS[1]), (2, LABELS[2]), (3, LABELS[3])]


def test_a_label_equal_to_the_features_own_is_no_null() -> None:
    assert 4 not in dict(shuffled_labels(0, LABELS, DENSITY, 10))
    assert 0 not in dict(shuffled_labels(0, LABELS, DENSITY, 10))


def test_no_more_nulls_are_given_than_wanted_or_there_are() -> None:
    assert len(shuffled_labels(0, LABELS, DENSITY, 1)) == 1
    assert shuffled_labels(0, LABELS, DENSITY, 0) == []
    assert shuffled_labels(0, {0: "x"}, {0: 1.0}, 5) == []


def test_nulls_do_not_depend_on_the_order_of_labels() -> None:
    backward = dict(reversed(LABELS.items()))
    assert shuffled_labels(3, backward, DENSITY, 4) == shuffled_labels(3, LABELS, DENSITY, 4)


def test_features_of_density_0_can_be_matched() -> None:
    assert shuffled_labels(0, {0: "a", 1: "b"}, {0: 0.0, 1: 0.0}, 1) == [(1, "b")]
