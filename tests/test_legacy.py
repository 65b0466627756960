"""Scores of other tools equal theirs: the real package's where it can be imported, hand computations elsewhere."""

import asyncio
import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest

from autointerp.metrics import (
    absolute_deviation_explained,
    calibration,
    correlation,
    delphi_accuracy,
    openai_bins,
    openai_score,
    openai_slices,
    r2_uncentred,
    saebench_accuracy,
    saebench_null,
    top_and_random,
)

# Imported at the top of neuron_explainer and of delphi's result_analysis; used by what is not asked for here alone:
# API clients, prompts, files, plots.
OPENAI_STUBS: dict[str, dict] = {
    "blobfile": {}, "boostedblob": {"ensure_session": lambda function: function}, "tiktoken": {}, "httpx": {},
    "sklearn": {"linear_model": ModuleType("linear_model")},
}  # fmt: skip
DELPHI_STUBS: dict[str, dict] = {
    "plotly": {}, "plotly.express": {}, "plotly.graph_objects": {},
    "sklearn": {}, "sklearn.metrics": {"roc_auc_score": None, "roc_curve": None},
}  # fmt: skip


def imported(name: str, stubs: dict[str, dict]) -> ModuleType:
    """A peer's module; what it imports besides, and is not installed, is stubbed meanwhile."""
    missing = [stub for stub in stubs if importlib.util.find_spec(stub.partition(".")[0]) is None]
    for stub in missing:
        sys.modules[stub] = ModuleType(stub)
        vars(sys.modules[stub]).update(stubs[stub])
        parent, _, child = stub.partition(".")
        if child:
            setattr(sys.modules[parent], child, sys.modules[stub])
    try:
        return importlib.import_module(name)
    finally:
        for stub in missing:  # others ask whether these packages are there
            del sys.modules[stub]


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    """neuron_explainer of the package automated-interpretability, installed without its dependencies."""
    pytest.importorskip("neuron_explainer", reason="pip install --no-deps automated-interpretability")
    return imported("neuron_explainer.explanations.scoring", OPENAI_STUBS)


def sequences(seed: int) -> list[tuple[list[float], list[float]]]:
    """(true, simulated) activations of sequences of different lengths: sparse, heavy-tailed, noisy."""
    random = np.random.default_rng(seed)
    found = []
    for length in random.integers(3, 70, size=12):
        actual = np.where(random.random(length) < 0.2, random.gamma(2, 3, length), 0.0)
        found.append((actual.tolist(), np.clip(0.6 * actual + random.normal(0, 1, length), 0, 10).tolist()))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_correlation_r2_and_absolute_deviation_equal_the_packages_on_the_same_simulations(
    theirs: ModuleType, seed: int
) -> None:
    """Their whole path: a simulator that replays, `simulate_and_score`, the aggregate."""
    from neuron_explainer.activations.activations import ActivationRecord
    from neuron_explainer.explanations.explanations import ActivationScale, SequenceSimulation
    from neuron_explainer.explanations.scoring import simulate_and_score

    found = sequences(seed)

    class Replay:
        async def simulate(self, tokens: list[str]) -> SequenceSimulation:
            said = found[int(tokens[0])][1]
            return SequenceSimulation(
                tokens=tokens, expected_activations=said, activation_scale=ActivationScale.NEURON_ACTIVATIONS,
                distribution_values=[[v] for v in said], distribution_probabilities=[[1.0] for _ in said],
            )  # fmt: skip

    records = [
        ActivationRecord(tokens=[str(i)] * len(actual), activations=actual) for i, (actual, _) in enumerate(found)
    ]
    expected = asyncio.run(simulate_and_score(Replay(), records))
    actual, predicted = (np.concatenate(column) for column in zip(*found))
    ours = openai_score(actual, predicted)
    assert ours.ev_correlation_score == pytest.approx(expected.ev_correlation_score, abs=1e-12)
    assert ours.rsquared_score == pytest.approx(expected.rsquared_score, abs=1e-12)
    assert ours.absolute_dev_explained_score == pytest.approx(expected.absolute_dev_explained_score, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_the_parts_equal_the_packages_functions(theirs: ModuleType, seed: int) -> None:
    from neuron_explainer.explanations import scoring

    actual, predicted = (np.concatenate(column) for column in zip(*sequences(seed)))
    assert correlation(actual, predicted) == pytest.approx(scoring.correlation_score(actual, predicted), abs=1e-12)
    assert r2_uncentred(actual, predicted) == pytest.approx(scoring.rsquared_score_from_sequences(actual, predicted))
    assert absolute_deviation_explained(actual, predicted) == pytest.approx(
        scoring.absolute_dev_explained_score_from_sequences(actual, predicted)
    )


@pytest.mark.parametrize("a_max", [1.0, 7.3, 0.0, -1.0])
def test_bins_equal_the_packages(theirs: ModuleType, a_max: float) -> None:
    from neuron_explainer.activations.activation_records import normalize_activations

    activations = np.concatenate([np.random.default_rng(0).gamma(1, 2, 300), [-3.0, 0.0, 7.3, 1.0, 0.1]])
    assert openai_bins(activations, a_max).tolist() == normalize_activations(activations.tolist(), a_max)


@pytest.mark.parametrize("per_split", [1, 5, 10])
def test_splits_equal_the_packages(theirs: ModuleType, per_split: int) -> None:
    from neuron_explainer.activations.activations import get_slices_for_splits

    for kind, names in (
        ("top", ["train", "calibration", "valid", "test"]),
        ("random", ["calibration", "valid", "test"]),
    ):
        assert openai_slices(kind, per_split) == get_slices_for_splits(names, per_split)


# -- by hand -------------------------------------------------------------------------------------------------


def test_openais_bins_by_hand() -> None:
    #   a / 5 * 10:                0    .98  1.0  4.98  9.98  10   over  negative
    activations = np.array([0.0, 0.49, 0.5, 2.49, 4.99, 5.0, 9.0, -1.0])
    assert openai_bins(activations, 5.0).tolist() == [0, 0, 1, 4, 9, 10, 10, 0]


def test_openais_slices_by_hand() -> None:
    ranks = list(range(20))
    assert ranks[openai_slices("top", 5)["valid"]] == [2, 6, 10, 14, 18]
    assert ranks[openai_slices("random", 5)["valid"]] == [1, 4, 7, 10, 13]
    with pytest.raises(ValueError, match="top or random"):
        openai_slices("middle", 5)


def test_always_zero_explains_nothing_by_openais_formulas_and_the_mean_less_than_nothing() -> None:
    actual = np.array([0.0, 0, 4, 2])
    assert openai_score(actual, np.zeros(4)) == (None, 0.0, 0.0)
    assert openai_score(actual, np.full(4, 1.5)) == (None, pytest.approx(1 - 11 / 20), pytest.approx(0.0))
    assert openai_score(np.zeros(4), actual) == (None, None, None)


def test_calibration_is_the_least_squares_line() -> None:
    random = np.random.default_rng(0)
    predicted = random.gamma(2, 1, 400)
    actual = 3 * predicted - 1 + random.normal(0, 0.2, 400)
    slope, intercept = np.polyfit(predicted, actual, 1)
    assert calibration(actual, predicted) == (pytest.approx(intercept), pytest.approx(slope))
    assert calibration(actual, np.full(400, 7.0)) == (pytest.approx(actual.mean()), 0.0)
    assert calibration(np.array([]), np.array([])) is None


def test_top_and_random_is_the_correlation_over_all_tokens_of_as_many_of_both() -> None:
    random = np.random.default_rng(1)
    top, rest = random.gamma(2, 2, (2, 5, 8)), random.gamma(0.2, 1, (2, 5, 8))
    joined = np.corrcoef(
        np.concatenate([top[0].ravel(), rest[0].ravel()]), np.concatenate([top[1].ravel(), rest[1].ravel()])
    )
    assert top_and_random((top[0], top[1]), (rest[0], rest[1])) == pytest.approx(joined[0, 1])
    with pytest.raises(ValueError, match="equally many"):
        top_and_random((top[0], top[1]), (rest[0][:3], rest[1][:3]))


@pytest.mark.parametrize(
    ("activating", "predicted", "expected"),
    [
        #  3 of 4 firing found, 1 of 2 silent left alone: (3/4 + 1/2) / 2
        ([1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], 0.625),
        ([1, 1, 0, 0], [1, 1, 1, 1], 0.5),  # a constant answer
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.0),
        ([1, 1, 0, 0], [1, None, 0, None], 1.0),  # unreadable replies are dropped
        ([1, 1, 1], [1, 1, 0], 1 / 3),  # no silent example: their TNR is 0
        ([1, 0], [None, None], None),
        ([], [], None),
    ],
)
def test_delphis_accuracy_by_hand(activating: list, predicted: list, expected: float | None) -> None:
    said = [None if verdict is None else bool(verdict) for verdict in predicted]
    assert delphi_accuracy(np.array(activating, dtype=bool), said) == (
        None if expected is None else pytest.approx(expected)
    )


@pytest.mark.parametrize("seed", range(10))
def test_delphis_accuracy_equals_delphis(seed: int) -> None:
    """Their `compute_confusion` and `compute_classification_metrics`, on the columns that they read from disk."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("delphi", reason="pip install --no-deps eai-delphi")
    analysis = imported("delphi.log.result_analysis", DELPHI_STUBS)
    random = np.random.default_rng(seed)
    activating = random.random(30) < 0.5
    said = [None if random.random() < 0.1 else bool(random.random() < 0.6) for _ in range(30)]
    frame = pandas.DataFrame({"activating": activating, "prediction": [None if v is None else float(v) for v in said]})
    theirs = analysis.compute_classification_metrics(analysis.compute_confusion(frame))["accuracy"]
    assert delphi_accuracy(activating, said) == pytest.approx(theirs)


def test_saebenchs_accuracy_by_hand() -> None:
    active = np.zeros(14, dtype=bool)
    active[[0, 3, 7, 13]] = True  # windows 1, 4, 8, 14
    assert saebench_accuracy(active, [1, 4, 8, 14]) == 1.0
    assert saebench_accuracy(active, [1, 4]) == pytest.approx(12 / 14)
    assert saebench_accuracy(active, [2, 4, 8, 14]) == pytest.approx(12 / 14)  # one missed, one wrong
    assert saebench_accuracy(active, list(range(1, 15))) == pytest.approx(4 / 14)
    assert saebench_accuracy(active, []) == pytest.approx(saebench_null()) == pytest.approx(0.714, abs=5e-4)


@pytest.mark.parametrize(("n", "n_active", "chosen"), [(13, 4, []), (14, 3, []), (14, 4, [0]), (14, 4, [15])])
def test_saebenchs_accuracy_refuses_another_design(n: int, n_active: int, chosen: list[int]) -> None:
    with pytest.raises(ValueError, match="windows"):
        saebench_accuracy(np.arange(n) < n_active, chosen)
