"""A whole run on a server that fails: every feature ends, nothing is scored as zero, nothing is paid twice."""

import shutil
from pathlib import Path

import pytest

from autointerp import config
from autointerp.store import Store

from .bench.llm_faults import IN_FLIGHT, SHARE, books, failing, finished, killed, options, says
from .llm_server import Asked, Plan, Server
from .test_pipeline import finished_run

# What does not depend on other features' labels.
GRADES = """
    SELECT s.explanation_id, s.split::VARCHAR, s.metric, s.value, s.reason,
        (SELECT md5(string_agg(d.passage_id::VARCHAR, ',' ORDER BY d.passage_id)) FROM draw d
         WHERE d.explanation_id = s.explanation_id AND d.scorer_id = s.scorer_id AND d.split = s.split) AS drawn
    FROM score s WHERE metric IN ('r_rank', 'detection_f1', 'fuzzing_accuracy')
      AND explanation_id IN (SELECT explanation_id FROM explanation WHERE method = 'marks')
"""


@pytest.fixture
def folder(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with two copies of a finished run of counts, whose collection is used."""
    for name in ("clean", "failing"):
        shutil.copytree(finished_run(tiny), tmp_path / name / "t")
    return tmp_path


def grades(database: Path) -> dict[tuple[str, ...], tuple[float | None, str | None]]:
    """(explanation, split, metric, the passages drawn) -> value and reason."""
    with Store.read(database) as store:
        return {(e, split, metric, drawn): (value, why) for e, split, metric, value, why, drawn in store.query(GRADES)[1]}


def losing(plan: Plan) -> Plan:
    """The plan, but the first request to simulate always meets a content filter."""
    doomed: list[str] = []

    def planned(asked: Asked) -> str:
        if asked.last.startswith("Label: ") and asked.last in (doomed or [asked.last]):
            doomed.append(asked.last)
            return "filtered"
        return plan(asked)

    return planned


def test_a_run_on_a_failing_server_ends_with_reasons_and_the_grades_of_a_clean_one(
    tiny: dict[str, Path], folder: Path
) -> None:
    with Server(says=says) as server:
        port = server.port
        overrides = options(tiny, folder / "clean", server)
        finished(overrides, server)
        clean = grades(config.load(None, overrides).database)
        n_clean = len(server.log)
        assert set(server.kinds()) == {"ok"} and max(server.whole().values()) == 1
    with Server(says=says, plan=losing(failing(SHARE)), port=port) as server:  # the same address: the same explainers
        overrides = options(tiny, folder / "failing", server)
        database = config.load(None, overrides).database
        lost = [killed(overrides, server, database, n) for n in (5, n_clean // 3)]  # in explain, and in a later stage
        assert all(len(requests) <= IN_FLIGHT for requests in lost)
        finished(overrides, server)
        found = books(server, database, set().union(*lost))
        asked = len(server.log)
        assert "nothing pending" in finished(overrides, server) and len(server.log) == asked
    assert len(set(found["server"]["ended"])) > 10, "most kinds of failure were met"
    assert found["paid_twice"] == 0
    assert found["answered_and_not_in_the_ledger"] == found["in_the_ledger_and_never_answered"] == 0
    assert found["features_with_an_outcome"] == found["features"] == 6
    assert set(found["rows_without_number_or_reason"].values()) == {0}
    assert any(status != "ok" for status, _, _ in found["ended"]["simulation"]), "something was lost"
    failed = grades(database)
    both = failed.keys() & clean.keys()
    assert {key[2] for key in both} >= {"r_rank", "detection_f1"}
    for key in both:
        value, reason = failed[key]
        assert (value is None and reason) or value == pytest.approx(clean[key][0], abs=1e-6), key
    assert any(failed[key][0] is not None for key in both) and any(failed[key][0] is None for key in both)
