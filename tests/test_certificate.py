# ruff: noqa: F811 - fixtures are imported, and then asked for by name
"""A certificate is kept with the run, and printed with every report that its simulator graded."""

import json
from collections.abc import Callable
from dataclasses import replace

from autointerp import keys, report
from autointerp.certificate import Certificate, Gate
from autointerp.certify import store_certificate
from autointerp.config import Settings
from autointerp.store import Store

from .test_score import graded
from .test_simulate import MakeBench, Reader, bench, planted  # noqa: F401 - fixtures

FOUND = Certificate(
    "embedding", "all-MiniLM-L6-v2", None, "2026-11-01", "9.9", 0, 160, {"tested": 60}, [],
    [Gate.of("auroc_shuffled", "embedding", "r_rank", 0.953, (0.99, 1.0)),
     Gate.of("null_ks", "embedding", "r_rank", 0.5, (0.01, 1.0))],
)  # fmt: skip


def test_what_is_kept_comes_back_by_its_simulator(settings: Callable[..., Settings]) -> None:
    made = settings()
    path = store_certificate(made, FOUND)
    with Store.read(path) as store:
        row = store.certificate(keys.simulator_id(made, "embedding"))
        assert row is not None
        assert (row.scorer, row.model, row.date) == ("embedding", "all-MiniLM-L6-v2", "2026-11-01")
        assert json.loads(row.certificate) == json.loads(json.dumps(FOUND.as_json()))
        other = made.model_copy(update={"simulator": made.simulator.model_copy(update={"floor_quantile": 0.5})})
        assert store.certificate(keys.simulator_id(other, "embedding")) is None


def test_the_latest_certificate_counts(settings: Callable[..., Settings]) -> None:
    made = settings()
    store_certificate(made, FOUND)
    path = store_certificate(made, replace(FOUND, date="2026-11-02"))
    with Store.read(path) as store:
        row = store.certificate(keys.simulator_id(made, "embedding"))
    assert row is not None
    assert row.date == "2026-11-02"


def test_a_report_says_who_graded_and_whether_that_is_certified(bench: MakeBench) -> None:
    made = bench({0: [bench.words[0]]}, Reader(), features__select="0")
    graded(made)
    reading = report.read(made.store)
    assert reading.summary["scorer"]["certified"] is None
    assert any("UNCERTIFIED" in line for line in report.headline(reading))
    settings = made.grading.settings
    made.store.add([certified(settings)])
    reading = report.read(made.store)
    assert reading.summary["scorer"] == {
        "kind": "embedding", "model": None, "certified": "2026-11-01", "holds": ["null_ks"], "fails": ["auroc_shuffled"],
    }  # fmt: skip
    (line,) = [line for line in report.headline(reading) if line.startswith("scorer")]
    assert "certified 2026-11-01" in line
    assert "does not hold auroc_shuffled" in line


def certified(settings: Settings) -> object:
    """The row that `certify --simulator` would write."""
    from autointerp.rows import Certified

    return Certified(
        keys.simulator_id(settings, settings.simulator.kind), FOUND.scorer, FOUND.model, None, FOUND.date, FOUND.version,
        json.dumps(FOUND.as_json()),
    )  # fmt: skip
