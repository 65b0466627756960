"""Labels and votes of people: graded like any other label, and nothing else is done anew."""

import json
import re
import shutil
from pathlib import Path

import pytest

from autointerp import edits, keys, report, show
from autointerp.config import Settings
from autointerp.edits import Edit
from autointerp.store import Store

from .llm_server import Asked, Server
from .test_judges import shown
from .test_judges_http import right
from .test_pipeline import assert_same, everything, finished_run, query, quick_settings, run_all

GRADED = ("explanation", "draw", "simulation", "score", "verdict")


def by_feature(database: Path, table: str, feature: int | None = None, but: int | None = None) -> list[str]:
    """Rows of a table that are of one feature's labels, or of all but one feature's; sorted, as text."""
    own = "t" if table in ("explanation", "score", "verdict") else "e"
    join = "" if own == "t" else "JOIN explanation e USING (explanation_id)"
    where = f"{own}.feature = {feature}" if feature is not None else f"{own}.feature <> {but}"
    return sorted(map(repr, query(database, f"SELECT t.* FROM {table} t {join} WHERE {where}")))


@pytest.fixture
def ran(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A results folder that holds a finished run of its own."""
    shutil.copytree(finished_run(tiny), tmp_path / "results" / "t")
    run_all(quick_settings(tiny, tmp_path / "results"))  # the run row names the results folder
    return tmp_path / "results"


def chosen(database: Path) -> dict[int, report.Label]:
    with Store.read(database) as store:
        return {label.feature: label for label in report.read(store).labels}


def test_a_later_label_is_graded_and_no_grade_that_was_there_is_lost_or_made_anew(tiny: dict[str, Path], ran: Path) -> None:
    settings = quick_settings(tiny, ran)
    database = settings.database
    before = everything(database) | {"verdict": sorted(map(repr, query(database, "FROM verdict")))}
    feature = sorted(chosen(database))[0]
    others = {table: by_feature(database, table, but=feature) for table in GRADED}
    edits.append(settings.folder, [Edit(f"sae/{feature}", "label", "red and golden castles", "ana", "2026-01-02T03:04:05+00:00")])
    said = run_all(settings)
    assert said[1].startswith("import: 1 ok"), said
    assert {table: by_feature(database, table, but=feature) for table in GRADED} == others
    after = everything(database)
    for table in ("explanation", "draw", "simulation", "score"):
        assert set(before[table]) <= set(after[table]), table
    assert_same({t: after[t] for t in ("collection", "passage", "neighbour", "call")}, {t: before[t] for t in ("collection", "passage", "neighbour", "call")})
    ((key, method, author, at),) = query(database, "SELECT explanation_id, method, author, made_at FROM explanation WHERE author IS NOT NULL")
    assert (method, author, str(at)) == ("human", "ana", "2026-01-02 03:04:05")
    ((rank, lo, n),) = query(database, "SELECT value, lo, n FROM score WHERE explanation_id = ? AND split = 'score' AND metric = 'r_rank'", key)
    assert (rank is None) == (lo is None) and n > 0
    # Nothing is predicted twice, and nothing is left to do.
    assert query(database, "SELECT count(*) FROM (SELECT 1 FROM simulation GROUP BY explanation_id, simulator_id, split, passage_id HAVING count(*) > 1)") == [(0,)]
    assert query(database, "SELECT count(*) FROM (SELECT 1 FROM score GROUP BY score_id HAVING count(*) > 1)") == [(0,)]
    assert all(line.endswith("nothing pending") for line in run_all(settings))
    assert everything(database) == after


def test_candidates_of_the_feature_are_ranked_on_the_same_passages_label_of_people_included(tiny: dict[str, Path], ran: Path) -> None:
    settings = quick_settings(tiny, ran)
    feature = sorted(chosen(settings.database))[1]
    edits.append(settings.folder, [Edit(f"sae/{feature}", "label", "walked to the village")])
    run_all(settings)
    with Store.read(settings.database) as store:
        run = store.latest_run()
        design = keys.joined(run.scorer_id, 1)
        candidates = [e for e in store.explanations(run.collection_id, run.explainer_ids, [feature]) if e.status == "ok"]
        drawn = store.drawn([e.explanation_id for e in candidates], design, "select")
        sets = [{row.passage_id for row in drawn[e.explanation_id]} for e in candidates]
        assert len(sets) > 1 and all(found == sets[0] for found in sets)
        scores = [s for s in store.scores(run, "select") if s.feature == feature]
        assert {s.explanation_id for s in scores} == {e.explanation_id for e in candidates}
        assert {s.scorer_id for s in scores} == {design}
        assert {s.scorer_id for s in store.scores(run, "select") if s.feature != feature} == {run.scorer_id}
        best = max(s.value for s in scores if s.value is not None)
        (winner,) = [e for e in store.chosen(run) if e.feature == feature]
        assert next(s.value for s in scores if s.explanation_id == winner.explanation_id) == best
        found = show.look_up(report.read(store), store, f"sae/{feature}", 1)
        assert [c.method for c in found.candidates].count("human") == 1


def test_grades_do_not_depend_on_when_a_label_came(tiny: dict[str, Path], ran: Path, tmp_path: Path) -> None:
    """Those of the configuration's labels, and of the label itself where it wins nothing over the run."""
    late, early = quick_settings(tiny, ran), quick_settings(tiny, tmp_path / "early")
    feature = sorted(chosen(late.database))[0]
    said = [Edit(f"sae/{feature}", "label", "the black bridge", "ana", "2026-01-02T03:04:05+00:00")]
    for settings in (late, early):
        settings.folder.mkdir(parents=True, exist_ok=True)
        edits.append(settings.folder, said)
        run_all(settings)
    for table in ("explanation", "draw", "simulation"):
        assert sorted(map(repr, query(late.database, f"FROM {table}"))) == sorted(map(repr, query(early.database, f"FROM {table}"))), table
    ranks = "SELECT score_id, value, lo, hi, n FROM score WHERE metric = 'r_rank' ORDER BY ALL"
    assert query(late.database, ranks) == query(early.database, ranks)


def better_labels(settings: Settings) -> dict[int, str]:
    """Labels that the run of these settings, with one candidate a feature, would have done better with: what was
    chosen of three in the run before."""
    labels = chosen(settings.database)
    with Store.read(settings.database) as store:
        before = next(run for run in store.runs() if '"candidates":3' in run.settings)
        best = {e.feature: e.label or "" for e in store.chosen(before)}
    found = {f: text for f, text in best.items() if labels[f].label != text}
    assert found, "a second candidate did better on select somewhere"
    return found


def first_words(asked: Asked) -> str:
    """The reply of a model that says that every passage fires on its first word."""
    passages = [json.loads(text) for text in re.findall(r'^\d+: (".*")$', asked.last, re.MULTILINE)]
    words = [re.findall(r"\w\w+", text) for text in passages]
    return json.dumps({str(n): [[found[0], 1, 5]] if found else [] for n, found in enumerate(words, start=1)})


def test_a_paid_simulator_is_asked_about_a_label_that_is_chosen_and_never_twice(tiny: dict[str, Path], ran: Path) -> None:
    with Server(says=first_words) as server:
        settings = quick_settings(
            tiny, ran, explainer__candidates=1, simulator__kind="chat", simulator__provider="openai", simulator__model="m",
            simulator__base_url=server.openai, score__nulls=0,
        )  # fmt: skip
        run_all(settings)
        paid, better = len(server.log), better_labels(settings)
        feature, label = next(iter(better.items()))
        edits.append(settings.folder, [Edit(f"sae/{feature}", "label", "mountain of the moon")])
        run_all(settings)
        assert len(server.log) == paid, "the free proxy found it no better"
        edits.append(settings.folder, [Edit(f"sae/{feature}", "label", label)])
        run_all(settings)
        found = chosen(settings.database)[feature]
        assert (found.label, found.method) == (label, "human") and found.verdict is not None
        asked = {re.findall("^Label: (.*)$", request.last, re.MULTILINE)[-1] for request in server.log[paid:]}
        assert asked == {label}
        bodies = [json.dumps(request.body, sort_keys=True) for request in server.log]
        assert len(set(bodies)) == len(bodies)
        now = len(server.log)
        assert all(line.endswith("nothing pending") for line in run_all(settings)) and len(server.log) == now


def test_a_judge_that_chooses_is_asked_about_the_labelled_feature_alone(tiny: dict[str, Path], ran: Path) -> None:
    with Server(says=right) as server:
        settings = quick_settings(
            tiny, ran, judge__kinds=["detection"], judge__chooses=True, judge__provider="openai", judge__model="m",
            judge__base_url=server.openai,
        )  # fmt: skip
        run_all(settings)
        paid, feature = len(server.log), sorted(chosen(settings.database))[0]
        edits.append(settings.folder, [Edit(f"sae/{feature}", "label", "village, castle")])
        run_all(settings)
        with Store.read(settings.database) as store:
            run = store.latest_run()
            candidates = [e for e in store.explanations(run.collection_id, run.explainer_ids, [feature]) if e.status == "ok"]
            judged = {s.explanation_id: s for s in store.judged(run, "select") if s.metric == "detection_f1" and s.feature == feature}
            (winner,) = [e for e in store.chosen(run) if e.feature == feature]
        assert len(server.log) > paid
        asked = {label for request in server.log[paid:] for label in shown(request.last)[0]}
        assert asked == {e.label for e in candidates} and "village, castle" in asked
        assert judged.keys() == {e.explanation_id for e in candidates} and len({s.scorer_id for s in judged.values()}) == 1
        best = max((s.value for s in judged.values() if s.value is not None), default=None)
        assert judged[winner.explanation_id].value == best
        bodies = [json.dumps(request.body, sort_keys=True) for request in server.log]
        assert len(set(bodies)) == len(bodies)
        assert all(line.endswith("nothing pending") for line in run_all(settings))


def test_a_label_that_names_its_feature_better_is_chosen(tiny: dict[str, Path], ran: Path) -> None:
    """By the same rule: best on select. The truth is known where a feature's own best label is taken for another's."""
    settings = quick_settings(tiny, ran, explainer__candidates=1)
    run_all(settings)
    labels, better = chosen(settings.database), better_labels(settings)
    edits.append(settings.folder, [Edit(f"sae/{f}", "label", text) for f, text in better.items()])
    run_all(settings)
    after = chosen(settings.database)
    assert any(after[f].method == "human" for f in better)
    for f in better:
        if after[f].method == "human":
            assert after[f].label == better[f] and after[f].verdict is not None and after[f].r_pop is not None
    assert all(after[f].label == labels[f].label for f in labels if f not in better)
