# ruff: noqa: F811 - fixtures are imported, and then asked for by name
"""Revision: the worst errors on select are shown, score never is, and the better label wins."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autointerp.config import Settings
from autointerp.errors import Unreachable
from autointerp.evidence import Texts
from autointerp.explainers.revise import Errors
from autointerp.keys import Keys
from autointerp.llm import Job
from autointerp.pipeline import Pipeline, prepare
from autointerp.rows import Explanation
from autointerp.store import Store
from autointerp.tally import Bar

from .doubles import FakeDoor, Say
from .test_simulate import Planted, Reader, planted  # noqa: F401 - a fixture

WRONG = "silver"


class Ran:
    """A run of all stages on the planted features: its rows, and what was asked."""

    def __init__(self, settings: Settings, keys: Keys, door: FakeDoor, said: list[str]) -> None:
        self.settings, self.keys, self.door, self.said = settings, keys, door, said

    @property
    def revisions(self) -> list[Job[Any]]:
        return [job for job in self.door.asked if job.purpose.startswith("explain revise")]

    def chosen(self) -> dict[int, Explanation]:
        with Store.read(self.settings.database) as store:
            return {e.feature: e for e in store.chosen(store.latest_run())}

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with Store.read(self.settings.database) as store:
            return store.query(sql)[1]


Run = Callable[..., Ran]


@pytest.fixture
def run(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(what a model says, section__key=value) -> all stages with a simulator that reads words, in one folder."""
    features = sorted(f for f, word in planted.words.items() if word != WRONG)[:4]
    first = {"explainer__methods": ("marks",), "explainer__rounds": 1, "features__select": ",".join(map(str, features))}
    copied = planted.copy(tmp_path, **first)
    monkeypatch.setattr("autointerp.grading.open_simulator", lambda settings: Reader())

    def go(say: Say, **changes: object) -> Ran:
        made = copied.model_dump()
        for key, value in changes.items():
            section, name = key.split("__")
            made[section][name] = value
        settings = Settings.model_validate(made)
        door = FakeDoor(say)
        monkeypatch.setattr("autointerp.pipeline.Door", door)
        said: list[str] = []
        with Store.create(settings.database) as store, Bar(enabled=False) as bar:
            pipeline = Pipeline(store, prepare(settings), bar, said.append)
            pipeline.all()
        return Ran(settings, pipeline.labellings[0].target.keys, door, said)

    return go


def word_of(planted: Planted, job: Job[Any]) -> str:
    return planted.words[job.key[0]]


def corrected(planted: Planted) -> Say:
    """Says the wrong word first, and the right one when it is shown what was wrong."""
    return lambda job: word_of(planted, job) if "revise" in job.purpose else WRONG


def test_the_better_label_of_a_revision_is_chosen(run: Run, planted: Planted) -> None:
    ran = run(corrected(planted))
    assert len(ran.revisions) == 4
    for feature, label in ran.chosen().items():
        assert (label.method, label.label) == ("revise-1", planted.words[feature])
    values = ran.rows("SELECT value FROM score WHERE split = 'score' AND metric = 'r_rank' AND value > 0.95")
    assert len(values) == 4


def test_a_worse_revision_is_not(run: Run, planted: Planted) -> None:
    ran = run(lambda job: WRONG if "revise" in job.purpose else word_of(planted, job))
    assert {e.method for e in ran.chosen().values()} == {"marks"}


def test_what_is_shown_is_what_the_label_gets_wrong(run: Run, planted: Planted) -> None:
    ran = run(corrected(planted))
    guessed = set()
    for job in ran.revisions:
        prompt = job.request.messages[-1][1]
        label, fires, missed, wrong = re.split(r"Fires:|Missed:|Wrongly guessed:", prompt)
        assert f"Label: {WRONG}" in label
        marks = [re.findall(r"\*\*(.+?)\*\*", part) for part in (fires, missed, wrong)]
        assert set(marks[0]) == set(marks[1]) == {word_of(planted, job)}
        assert 1 <= len(re.findall(r"^- ", missed, re.MULTILINE)) <= 4
        assert len(re.findall(r"^- ", wrong, re.MULTILINE)) <= 4
        guessed |= set(marks[2])
    assert guessed == {WRONG}  # a feature that fires in most passages may leave none to guess wrongly


def test_errors_are_the_largest_gaps_of_the_scoring_set_on_select(run: Run, planted: Planted) -> None:
    ran = run(lambda job: WRONG)
    with Store.read(ran.settings.database) as store:
        before = ran.keys.rounds[0].of(store.latest_run())
        errors = Errors(store, before, Texts(store, before.collection_id))
        n_wrong = 0
        for feature, label in errors.labels.items():
            drawn = store.drawn([label.explanation_id], before.scorer_id, "select")[label.explanation_id]
            fires = {row.passage_id for row in drawn if row.stratum == "A"}
            missed, wrong = errors.worst(feature)
            assert missed
            n_wrong += len(wrong)
            assert {e.passage for e in missed} <= fires
            assert {e.passage for e in wrong} <= {row.passage_id for row in drawn} - fires
            assert all(0.2 <= e.gap <= 1 for e in (*missed, *wrong))
            assert [e.gap for e in missed] == sorted((e.gap for e in missed), reverse=True)
        assert n_wrong


def test_what_a_label_gets_right_in_a_passage_is_not_marked_as_missed(
    run: Run, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passage in which a label gets the strongest token right, and misses the others."""
    monkeypatch.setattr("autointerp.explainers.revise.SHOWN", 1000)
    ran = run(lambda job: WRONG)
    with Store.create(ran.settings.database) as store:
        before = ran.keys.rounds[0].of(store.latest_run())
        errors = Errors(store, before, Texts(store, before.collection_id))
        feature, label = next(iter(errors.labels.items()))
        sample = store.excerpts(before.collection_id, feature, "select", "sample")
        several = [i for i in range(len(sample.passage)) if np.diff(sample.firing.offsets)[i] >= 2]
        passage = int(sample.passage[several[0]])
        at = slice(sample.firing.offsets[several[0]], sample.firing.offsets[several[0] + 1])
        positions, values = sample.firing.positions[at].tolist(), sample.firing.values[at].tolist()
        right = positions[int(np.argmax(values))]
        store.db.execute(
            "UPDATE simulation SET positions = [$at], predicted = [1e6] WHERE explanation_id = $label AND passage_id = $passage",
            {"at": right, "label": label.explanation_id, "passage": passage},
        )
        (error,) = [error for error in errors.worst(feature)[0] if error.passage == passage]
        assert error.positions and set(error.positions) <= set(positions) - {right}


def test_a_passage_without_a_prediction_is_no_error(run: Run, planted: Planted) -> None:
    ran = run(lambda job: WRONG)
    with Store.create(ran.settings.database) as store:
        before = ran.keys.rounds[0].of(store.latest_run())
        errors = Errors(store, before, Texts(store, before.collection_id))
        feature, label = next(iter(errors.labels.items()))
        lost = errors.worst(feature)[0][0].passage
        store.db.execute(
            "UPDATE simulation SET status = 'failed', reason = 'cut_off', positions = NULL, predicted = NULL "
            "WHERE explanation_id = ? AND passage_id = ?", [label.explanation_id, lost],
        )  # fmt: skip
        assert lost not in {error.passage for error in errors.worst(feature)[0]}


def test_a_right_label_has_no_errors_to_show(run: Run, planted: Planted) -> None:
    ran = run(lambda job: word_of(planted, job))
    for job in ran.revisions:
        _, _, missed, wrong = re.split(r"Fires:|Missed:|Wrongly guessed:", job.request.messages[-1][1])
        assert "- " not in missed + wrong


def test_score_is_never_shown(run: Run, planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    import autointerp.asking

    shown: dict[str, set[str]] = {"marks": set(), "revise": set()}
    building: list[str] = []
    messages, strings = autointerp.asking.messages, Texts.strings

    def build(method: Any, *args: Any) -> Any:
        building.append(method.name)
        try:
            return messages(method, *args)
        finally:
            building.pop()

    def read(self: Texts, passage: int) -> list[str]:
        if building:
            shown[building[-1]].add(self.row(passage).split)
        return strings(self, passage)

    monkeypatch.setattr("autointerp.asking.messages", build)
    monkeypatch.setattr(Texts, "strings", read)
    run(corrected(planted))
    assert shown == {"marks": {"explain"}, "revise": {"explain", "select"}}


def test_a_second_run_asks_nothing_and_changes_nothing(run: Run, planted: Planted) -> None:
    first = run(corrected(planted))
    counts = "SELECT count(*) FROM explanation UNION ALL SELECT count(*) FROM simulation UNION ALL SELECT count(*) FROM score"
    before = first.rows(counts), first.rows("SELECT count(*) FROM draw"), first.chosen()
    again = run(corrected(planted))
    assert again.door.asked == []
    assert (again.rows(counts), again.rows("SELECT count(*) FROM draw"), again.chosen()) == before
    assert again.said[1:] != first.said[1:]


def test_another_round_builds_on_the_one_before(run: Run, planted: Planted) -> None:
    one = run(lambda job: "golden" if "revise" in job.purpose else WRONG)
    two = run(lambda job: word_of(planted, job), explainer__rounds=2)
    assert [job.purpose.split(" ")[1] for job in two.door.asked] == ["revise-2"] * 4
    assert two.keys.rounds[:2] == one.keys.rounds
    assert {e.method for e in two.chosen().values()} == {"revise-2"}


def test_rounds_leave_the_ids_of_what_comes_before_them(run: Run, planted: Planted) -> None:
    ran = run(corrected(planted))
    none = run(corrected(planted), explainer__rounds=0)
    assert none.door.asked == []
    assert none.keys.rounds == ran.keys.rounds[:1]
    assert ran.keys.scorer_id != none.keys.scorer_id
    assert {e.method for e in none.chosen().values()} == {"marks"}


def test_a_feature_whose_candidates_are_not_all_there_is_revised_later(run: Run, planted: Planted) -> None:
    replies = [WRONG, WRONG]

    def interrupted(job: Job[Any]) -> str | Exception:
        if "revise" in job.purpose:
            return word_of(planted, job)
        return replies.pop() if replies else Unreachable("no answer")

    first = run(interrupted)
    assert len(first.revisions) == 2
    assert any("waits_for_select" in line for line in first.said)
    second = run(corrected(planted))
    assert [job.purpose.split(" ")[1] for job in second.door.asked] == ["marks", "marks", "revise-1", "revise-1"]
    assert len(second.chosen()) == 4


def test_a_feature_without_a_label_has_a_row_that_says_so(run: Run, planted: Planted) -> None:
    ran = run(lambda job: "various words")
    assert ran.revisions == []
    assert ran.rows("SELECT DISTINCT method, status::VARCHAR, reason FROM explanation ORDER BY ALL") == [
        ("marks", "unparsed", "no_pattern"), ("revise-1", "skipped", "no_label_to_revise")
    ]  # fmt: skip
