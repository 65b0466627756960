# ruff: noqa: F811 - fixtures are imported, and then asked for by name
"""Grades: a perfect prediction scores 1, one that says nothing has no score, and nothing missing becomes a zero."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autointerp import others, report, score, simulate
from autointerp.grades import METRICS
from autointerp.rows import Neighbour, Score, Split
from autointerp.scoring_set import STRATUM

from .test_simulate import Bench, MakeBench, Planted, Reader, bench, planted  # noqa: F401 - fixtures


class Constant(Reader):
    """Predicts one value everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.full((len(labels), len(passages), self.width), self.value, dtype=np.float32)


class Noise(Reader):
    """Predicts noise that depends on the label and the passage alone."""

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        def noise(label: str, passage: int) -> NDArray[np.float64]:
            return np.random.default_rng([*label.encode(), passage]).random(self.width)

        return np.array([[noise(label, p) for p in passages.tolist()] for label in labels], dtype=np.float32)


def graded(
    found: Bench, splits: Sequence[Split] = ("select", "score")
) -> dict[tuple[int, str, str], list[Score]]:
    """Simulates and scores; (feature, split, metric) -> scores of its labels, in the order of their draw."""
    for split in splits:
        simulate.run(found.grading, split)
        score.run(found.grading, split)
    return collected(found)


def collected(found: Bench) -> dict[tuple[int, str, str], list[Score]]:
    """The scores in the store."""
    order = {e.explanation_id: e.draw for e in found.grading.wanted("score")}
    result: dict[tuple[int, str, str], list[Score]] = {}
    for split in ("select", "score"):
        for row in sorted(
            found.store.scores(found.grading.run, split), key=lambda s: order[s.explanation_id]
        ):
            result.setdefault((row.feature, split, row.metric), []).append(row)
    return result


Detectors = Mapping[int, str]


@pytest.fixture
def truth(planted: Planted) -> Callable[[int], dict[int, list[str]]]:
    """truth(n) -> the true labels of the first n planted features."""
    return lambda n: {f: [w] for f, w in list(planted.words.items())[:n]}


def chosen(n: int) -> str:
    """features.select for the first n."""
    return ",".join(str(i) for i in range(n))


# -- the ends of the scale ---------------------------------------------------------------------------------------------


def test_a_perfect_simulator_scores_1(bench: MakeBench, truth: Callable) -> None:
    found = graded(bench(truth(4), Reader(), features__select=chosen(4)))
    for feature in range(4):
        for split in ("select", "score"):
            (row,) = found[feature, split, "r_rank"]
            assert row.value == pytest.approx(1.0, abs=1e-6)
        assert row.lo == pytest.approx(1.0, abs=1e-6)
        assert row.hi == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_a_constant_prediction_has_no_score_and_says_why(
    bench: MakeBench, truth: Callable, value: float
) -> None:
    found = graded(bench(truth(2), Constant(value), features__select=chosen(2)))
    for feature in range(2):
        for split in ("select", "score"):
            (row,) = found[feature, split, "r_rank"]
            assert (row.status, row.value, row.reason) == ("skipped", None, "constant_prediction")
        assert found[feature, "score", "lift"][0].value is None
        assert found[feature, "score", "lift"][0].reason == "no_r_rank"
        assert found[feature, "score", "r_tok"][0].value is not None, "the table needs no simulator"


def test_a_feature_that_is_silent_on_its_passages_has_no_score_and_says_why(
    bench: MakeBench, truth: Callable
) -> None:
    made = bench(truth(1), Reader(), features__select="0")
    made.store.db.execute("DELETE FROM excerpt WHERE feature = 0 AND split = 'score'")
    (row,) = graded(made)[0, "score", "r_rank"]
    assert (row.value, row.reason) == (None, "constant_actual")


def test_noise_scores_about_0_and_its_interval_covers_0(bench: MakeBench, truth: Callable) -> None:
    found = graded(bench(truth(6), Noise(), features__select=chosen(6)))
    rows = [found[f, "score", "r_rank"][0] for f in range(6)]
    assert all(abs(row.value) < 0.15 for row in rows)
    assert sum(row.lo <= 0 <= row.hi for row in rows) >= 4


def test_labels_dealt_to_wrong_features_score_about_0(bench: MakeBench, truth: Callable) -> None:
    right = truth(6)
    wrong = {f: right[(f + 1) % 6] for f in right}
    found = graded(bench(wrong, Reader(), features__select=chosen(6)))
    values = [found[f, "score", "r_rank"][0].value for f in range(6)]
    assert all(v is not None and abs(v) < 0.1 for v in values), values


def test_a_label_twice_too_broad_scores_between_a_wrong_one_and_the_right_one(bench: MakeBench) -> None:
    w = bench.words
    found = graded(bench({0: [w[0], f"{w[0]}, {w[1]}", w[2]]}, Reader(), features__select="0"))
    for split in ("select", "score"):
        right, broad, wrong = (row.value for row in found[0, split, "r_rank"])
        assert right > broad + 0.05 > wrong + 0.1


def test_an_interval_holds_its_value_and_stands_on_the_score_split_alone(bench: MakeBench) -> None:
    w = bench.words
    found = graded(bench({0: [f"{w[0]}, {w[1]}"]}, Reader(), features__select="0"))
    (row,) = found[0, "score", "r_rank"]
    assert -1 <= row.lo < row.value < row.hi <= 1
    (row,) = found[0, "select", "r_rank"]
    assert (row.lo, row.hi) == (None, None)


# -- missing is not zero -----------------------------------------------------------------------------------------------


def test_a_missing_simulation_is_never_a_zero(bench: MakeBench, truth: Callable) -> None:
    made = bench(truth(2), Reader(), features__select=chosen(2))
    graded(made, ["select"])
    simulate.run(made.grading, "score")
    label = next(e.explanation_id for e in made.grading.wanted("score") if e.feature == 0)
    made.store.db.execute(
        "DELETE FROM simulation WHERE explanation_id = ? AND split = 'score' AND passage_id = "
        "(SELECT min(passage_id) FROM simulation WHERE explanation_id = ? AND split = 'score')", [label, label],
    )  # fmt: skip
    tally = score.run(made.grading, "score")
    found = collected(made)
    for metric in METRICS:
        (row,) = found[0, "score", metric]
        assert (row.status, row.value, row.lo, row.hi, row.reason) == (
            "skipped",
            None,
            None,
            None,
            "not_simulated",
        )
    assert found[1, "score", "r_rank"][0].value == pytest.approx(1.0)
    assert tally.failed["not_simulated"] == len(METRICS) + 1, "and the verdict"


def test_a_failed_simulation_gives_its_own_reason(bench: MakeBench, truth: Callable) -> None:
    made = bench(truth(1), Reader(), features__select="0")
    simulate.run(made.grading, "select")
    made.store.db.execute(
        "UPDATE simulation SET status = 'unparsed', reason = 'wrong_length', positions = NULL, predicted = NULL "
        "WHERE passage_id = (SELECT min(passage_id) FROM simulation)"
    )
    score.run(made.grading, "select")
    (row,) = collected(made)[0, "select", "r_rank"]
    assert (row.value, row.reason) == (None, "wrong_length")


def test_a_label_without_any_simulation_stays_pending(bench: MakeBench, truth: Callable) -> None:
    made = bench(truth(1), Reader(), features__select="0")
    assert not score.run(made.grading, "score").worked
    assert collected(made) == {}


def test_means_over_the_population_count_a_feature_without_a_grade_as_0_and_say_so(
    bench: MakeBench, truth: Callable
) -> None:
    class Half(Reader):
        """Knows the words of the first two features alone, and is constant on the others."""

        def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
            known = [label if label in (bench.words[0], bench.words[1]) else "nothing" for label in labels]
            return super().predict(known, passages)

    made = bench(truth(4), Half(), features__select=chosen(4))
    graded(made)
    summary = report.read(made.store).summary
    assert summary["features"] == 2
    rank = summary["r_rank"]
    assert (rank["n"], rank["n_scored"], rank["lost"]) == (4, 2, {"constant_prediction": 2})
    assert rank["mean"] == pytest.approx(0.5)
    assert rank["mean_of_scored"] == pytest.approx(1.0)
    assert summary["stages"] == {} or "score" in summary["stages"]


def test_every_reason_of_a_lost_grade_is_in_the_figures(bench: MakeBench, truth: Callable) -> None:
    made = bench(truth(2), Constant(0.0), features__select=chosen(3))
    graded(made)
    lost = report.read(made.store).summary["r_rank"]["lost"]
    assert lost == {"constant_prediction": 2, "not_explained": 1}


# -- the label is chosen on select -------------------------------------------------------------------------------------


def test_the_best_candidate_on_select_is_the_label_and_is_graded_on_score(bench: MakeBench) -> None:
    w = bench.words
    made = bench({0: [w[3], f"{w[0]}, {w[1]}", w[0]], 1: [w[1], w[0]]}, Reader(), features__select="0,1")
    found = graded(made)
    labels = {label.feature: label for label in report.read(made.store).labels}
    assert labels[0].label == w[0]
    assert labels[1].label == w[1]
    assert labels[0].r_rank == found[0, "score", "r_rank"][2].value
    # What only the chosen label has is there once.
    assert all(len(found[f, "score", metric]) == 1 for f in (0, 1) for metric in ("r_tok", "lift", "null"))
    assert len(found[0, "score", "r_rank"]) == 3


def test_a_candidate_without_a_score_on_select_never_wins_over_one_that_has(bench: MakeBench) -> None:
    made = bench({0: ["zzz", bench.words[4]]}, Reader(), features__select="0")
    graded(made)
    (label,) = report.read(made.store).labels
    assert label.label == bench.words[4]
    assert label.r_rank is not None
    assert label.r_rank < 0.1


def test_a_second_scoring_has_nothing_to_do(bench: MakeBench, truth: Callable) -> None:
    made = bench(truth(2), Reader(), features__select=chosen(2))
    before = graded(made)
    assert not score.run(made.grading, "select").worked
    assert not score.run(made.grading, "score").worked
    assert collected(made) == before


# -- what a label has to beat ------------------------------------------------------------------------------------------


def test_the_token_table_is_right_on_a_detector_of_one_token(bench: MakeBench, truth: Callable) -> None:
    found = graded(bench(truth(4), Reader(), features__select=chosen(4)))
    for feature in range(4):
        (tok,) = found[feature, "score", "r_tok"]
        (lift,) = found[feature, "score", "lift"]
        assert tok.value == pytest.approx(1.0, abs=1e-6)
        assert lift.value == pytest.approx(0.0, abs=1e-6)


def test_lift_is_what_the_label_adds_to_the_token_table(bench: MakeBench) -> None:
    w = bench.words
    found = graded(bench({0: [f"{w[0]}, {w[1]}"], 1: [w[5]]}, Reader(), features__select="0,1"))
    for feature in (0, 1):
        value = {m: found[feature, "score", m][0].value for m in ("r_rank", "r_tok", "lift")}
        assert value["lift"] == pytest.approx(value["r_rank"] - value["r_tok"])
        assert value["lift"] < -0.1


def test_the_null_of_a_faithful_simulator_is_about_0_with_right_labels(
    bench: MakeBench, truth: Callable
) -> None:
    found = graded(bench(truth(6), Reader(), features__select=chosen(6)))
    for feature in range(6):
        (row,) = found[feature, "score", "null"]
        assert row.n == 5
        assert abs(row.value) < 0.1


def test_the_null_of_a_single_feature_does_not_exist(bench: MakeBench, truth: Callable) -> None:
    (row,) = graded(bench(truth(1), Reader(), features__select="0"))[0, "score", "null"]
    assert (row.value, row.n, row.reason) == (None, 0, "no_other_label")


def test_nulls_and_the_label_itself_are_tried_on_passages_that_no_label_had_a_say_in(
    bench: MakeBench, truth: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, w = truth(4), bench.words
    sets = []
    original = others.scoring_set
    monkeypatch.setattr(others, "scoring_set", lambda *given: sets.append(original(*given)) or sets[-1])
    for labels in (right, {f: [w[f + 4]] for f in range(4)}):  # right ones, and others
        made = bench(labels, Reader(), features__select=chosen(4))
        graded(made)
        sets.clear()
        found = others.Others(made.grading, found_chosen(made))
        null = found.null(0)
        assert len(null.values) == 3 and len(sets) == 1
        if labels is right:
            assert null.own == pytest.approx(1.0, abs=1e-6) and np.abs(null.values).max() < 0.3
            first = sets[0]
    assert set(first.passages.tolist()) == set(sets[0].passages.tolist()), "whatever the labels say"
    assert set(first.stratum.tolist()) == {STRATUM["A"], STRATUM["C"]}
    assert (first.stratum == STRATUM["A"]).sum() == (first.stratum == STRATUM["C"]).sum() == others.NULL_PASSAGES / 2


def test_where_features_are_few_other_candidates_are_nulls_too_but_never_the_features_own(bench: MakeBench) -> None:
    w = bench.words
    labels = {f: [w[f], w[f + 6], w[f + 12]] for f in range(4)}
    made = bench(labels, Reader(), features__select=chosen(4), score__nulls=7)
    graded(made)
    found = others.Others(made.grading, found_chosen(made))
    assert set(found._strangers(0)[:3]) == {w[1], w[2], w[3]}, "chosen ones come first"
    assert len(found._strangers(0)) == 7 == len(set(found._strangers(0)))
    assert not set(found._strangers(0)) & set(labels[0])
    assert len(found.null(0).values) == 7


def test_nulls_do_not_depend_on_how_many_are_predicted_at_once(
    bench: MakeBench, truth: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(truth(6), Noise(), features__select=chosen(6))
    graded(made)
    found = others.Others(made.grading, found_chosen(made))
    whole = found.null(0)
    monkeypatch.setattr(others, "NULL_BLOCK", 2)
    parts = others.Others(made.grading, found_chosen(made)).null(0)
    assert parts.own == pytest.approx(whole.own) and parts.values == pytest.approx(whole.values)


def found_chosen(made: Bench) -> dict:
    """Feature -> its chosen label."""
    return {e.feature: e for e in made.store.chosen(made.grading.run)}


@pytest.mark.parametrize("batch", [1, 3])
def test_scores_do_not_depend_on_how_the_work_is_cut(
    bench: MakeBench,
    truth: Callable,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = graded(bench(truth(4), Noise(), features__select=chosen(4)))
    monkeypatch.setattr(score, "CHUNK_LABELS", batch)
    monkeypatch.setattr(simulate, "CHUNK_FEATURES", batch)
    assert graded(bench(truth(4), Noise(), features__select=chosen(4))) == expected


def test_masked_tokens_count_neither_for_nor_against(
    bench: MakeBench, truth: Callable, tmp_path: Path
) -> None:
    class Wrong(Reader):
        """Right everywhere but on the first token of a passage, where it is loud."""

        def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
            result = super().predict(labels, passages)
            result[:, :, 0] = 5.0
            return result

    made = bench(truth(1), Wrong(), features__select="0")
    made.store.db.execute("UPDATE passage SET masked = [0]")
    # A feature does not fire on a masked position.
    made.store.db.execute("UPDATE excerpt SET activations = list_transform(activations, "
                          "lambda a, i: CASE WHEN positions[i] = 0 THEN 0 ELSE a END)")  # fmt: skip
    (row,) = graded(made)[0, "score", "r_rank"]
    assert row.value == pytest.approx(1.0, abs=1e-6)


# -- the other numbers -------------------------------------------------------------------------------------------------


def test_a_right_label_has_every_number_and_is_good(bench: MakeBench, truth: Callable) -> None:
    made = bench(truth(6), Reader(), features__select=chosen(6))
    found = graded(made)
    for feature in range(6):
        value = {metric: found[feature, "score", metric][0].value for metric in METRICS}
        for metric in ("r_rank", "f1", "precision", "recall", "recall_low", "auprc", "tnr_c"):
            assert value[metric] == pytest.approx(1.0, abs=0.02), metric
        assert 0.9 < value["r_pop"] < 1, "no false positive was seen, which is not to say that there is none"
        assert value["balanced_accuracy"] == pytest.approx(1.0)
        assert value["bag_of_words"] > 0.9, "the word itself gives it away"
        assert value["null_p"] == pytest.approx(1 / 6)
        assert value["null_q"] == pytest.approx(1 / 6)
    labels = report.read(made.store).labels
    assert [label.verdict for label in labels] == ["good"] * 6
    assert report.read(made.store).summary["verdicts"] == {"good": 6}


def test_an_interval_of_r_pop_holds_its_value(bench: MakeBench, truth: Callable) -> None:
    w = bench.words
    found = graded(bench({0: [f"{w[0]}, {w[1]}"], 1: [w[1]]}, Reader(), features__select="0,1"))
    (row,) = found[0, "score", "r_pop"]
    assert -1 <= row.lo < row.value < row.hi <= 1
    assert row.value < 0.95


def test_broad_and_narrow_and_wrong_labels_are_told_apart_and_shown(bench: MakeBench, truth: Callable) -> None:
    class Deaf(Reader):
        """Says nothing of two thirds of the passages."""

        def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
            found = super().predict(labels, passages)
            deaf = [label.startswith("deaf") for label in labels]
            found[np.ix_(deaf, passages % 3 != 0)] = 0
            return found

    w = bench.words
    labels = {0: [w[0]], 1: [f"{w[1]}, {w[2]}"], 2: [f"deaf {w[2]}"], 3: [w[4]]}
    made = bench(labels, Deaf(), features__select=chosen(4))
    graded(made)
    found = {label.feature: label for label in report.read(made.store).labels}
    assert {f: label.verdict for f, label in found.items()} == {
        0: "good", 1: "too_broad", 2: "too_narrow", 3: "no_pattern",
    }  # fmt: skip
    texts = made.grading.texts
    claimed = found[1].evidence["passages"]["claimed_but_silent"]
    assert 0 < len(claimed) <= made.grading.settings.verdict.passages
    assert all(" " + w[2] in texts.strings(p) and " " + w[1] not in texts.strings(p) for p in claimed)
    assert all(" " + w[2] in texts.strings(p) and p % 3 for p in found[2].evidence["passages"]["missed"])
    (check,) = found[1].evidence["numbers"]
    assert (check["metric"], check["holds"]) == ("precision", False)
    assert check["value"] < check["threshold"]


def test_labels_that_say_the_same_collide(bench: MakeBench) -> None:
    made = bench({0: [bench.words[0]], 1: [bench.words[0]]}, Reader(), features__select="0,1")
    made.store.add([Neighbour(made.grading.run.collection_id, 0, "decoder", 0, 1, 0.9)])
    found = graded(made)
    (row,) = found[0, "score", "discrimination"]
    assert (row.value, row.n) == (0.5, 1)
    assert found[1, "score", "discrimination"][0].reason == "no_labelled_neighbour"
    assert {x.feature: x.verdict for x in report.read(made.store).labels}[0] == "collides"


def test_other_thresholds_give_other_verdicts_and_leave_the_numbers_alone(bench: MakeBench) -> None:
    w = bench.words
    made = bench({0: [f"{w[0]}, {w[1]}"]}, Reader(), features__select="0")
    before = graded(made)
    settings = made.grading.settings
    made.grading.settings = settings.model_copy(
        update={"verdict": settings.verdict.model_copy(update={"precision": 0.0})}
    )
    tally = score.run(made.grading, "score")
    assert tally.ok == 1
    assert collected(made) == before
    assert made.store.query("SELECT verdict FROM verdict ORDER BY verdict")[1] == [("good",), ("too_broad",)]


def test_nothing_over_the_run_is_written_while_a_label_lacks_a_number(bench: MakeBench, truth: Callable) -> None:
    made = bench(truth(3), Reader(), features__select=chosen(3))
    expected = graded(made)
    verdicts = made.store.query("SELECT * FROM verdict ORDER BY feature")[1]
    made.store.db.execute("DELETE FROM score WHERE metric IN ('r_pop', 'null_q')")
    made.store.db.execute("DELETE FROM verdict")
    kept = made.store.query("SELECT * FROM simulation WHERE split = 'score'")[1]
    label = next(e.explanation_id for e in made.grading.wanted("score") if e.feature == 0)
    made.store.db.execute("CREATE TABLE aside AS FROM simulation WHERE explanation_id = ?", [label])
    made.store.db.execute("DELETE FROM simulation WHERE explanation_id = ? AND split = 'score'", [label])
    made.store.db.execute("DELETE FROM score WHERE explanation_id = ? AND split = 'score'", [label])
    assert not score.run(made.grading, "score").worked
    assert not made.store.query("FROM verdict")[1]
    made.store.db.execute("INSERT INTO simulation FROM aside WHERE split = 'score'")
    made.store.db.execute("DROP TABLE aside")
    score.run(made.grading, "score")
    assert len(made.store.query("SELECT * FROM simulation WHERE split = 'score'")[1]) == len(kept)
    assert collected(made) == expected
    assert made.store.query("SELECT * FROM verdict ORDER BY feature")[1] == verdicts
