# ruff: noqa: F811 - fixtures are imported, and then asked for by name
"""Comparing runs: differences that are there are found, those that are not are not, and nothing lost is a zero."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from autointerp import compare_shown
from autointerp.compare import METRICS, ComparisonError, Documents, Run, as_json, compare, open_run
from autointerp.metrics import Moments
from autointerp.tally import Bar

from .test_cli import Autointerp, autointerp  # noqa: F401 - a fixture
from .test_pipeline import copied, finished, finished_run  # noqa: F401 - fixtures

OFF = Bar(enabled=False)
PASSAGES, TOKENS = 40, 16


def made(name: str, errs: float, n: int = 30, seed: int = 0, lost: int = 0, text: int = 0) -> Run:
    """A run whose predictions are the truth plus noise of this size; moments are of the very tokens behind r_rank."""
    random = np.random.default_rng([seed, int(errs * 1000)])
    numbers, documents = {}, {}
    for f in range(n):
        truth = np.random.default_rng([text, f]).exponential(size=(PASSAGES, TOKENS))
        said = truth + errs * random.normal(size=truth.shape)
        columns = (np.ones_like(truth), truth, said, truth**2, said**2, truth * said)
        moments = Moments(*(column.sum(axis=1) for column in columns))
        r = float(np.corrcoef(truth.ravel(), said.ravel())[0, 1])
        names = np.array([f"d{p // 2}" for p in range(PASSAGES)])
        documents[f"d/{f}"] = Documents(np.arange(PASSAGES) % 3, names, moments)
        numbers[f"d/{f}"] = dict.fromkeys(METRICS, r if f >= lost else None)
    reasons = {f"d/{f}": "constant_prediction" for f in range(lost)}
    return Run(name, f"{name}-{seed}", seed, f"c{text}", numbers, reasons, dict.fromkeys(numbers, "good"), documents)


def row(found: object, metric: str = "r_rank"):
    return next(d for d in found.differences if d.metric == metric)  # type: ignore[attr-defined]


def test_a_difference_that_is_there_is_found_with_its_sign() -> None:
    a, b = made("a", 1.5), made("b", 0.8)
    found = row(compare([a], [b], OFF, draws=400))
    assert found.mean == pytest.approx(found.b - found.a) and found.lo < found.mean < found.hi
    assert found.lo > 0.05 and found.wins == 1.0 and found.n == 30
    back = row(compare([b], [a], OFF, draws=400))
    assert back.mean == pytest.approx(-found.mean) and back.hi < 0


def test_intervals_of_no_difference_hold_0_as_often_as_they_say() -> None:
    held = []
    for seed in range(40):
        found = row(compare([made("a", 1.0, 12, 2 * seed)], [made("b", 1.0, 12, 2 * seed + 1)], OFF, draws=200))
        held.append(found.lo <= 0 <= found.hi)
    assert sum(held) >= 34  # of 40; 38 expected, and fewer than 34 of 38 would be one in a thousand


def test_documents_that_features_share_widen_the_interval() -> None:
    """A prediction that fails in the same few documents for every feature is one accident, not thirty."""
    a, b = made("a", 0.5), made("b", 0.5, seed=1)
    for run in (a, b):
        for key, found in run.documents.items():
            said = np.array(found.moments.yy)
            bad = found.document == ("d3" if run is a else "d4")
            said[bad] *= 30
            run.documents[key] = found._replace(moments=found.moments._replace(yy=said))
    both = row(compare([a], [b], OFF, draws=600))
    assert both.over == "features and documents"
    alone = row(compare([replace(a, documents={})], [b], OFF, draws=600))
    assert alone.over == "features"
    assert both.hi - both.lo > 2 * (alone.hi - alone.lo)


def test_what_one_side_lost_is_left_out_and_counted() -> None:
    found = compare([made("a", 1.0)], [made("b", 0.9, lost=4)], OFF, draws=100)
    assert row(found).n == 26 and row(found).only_a == 4 and row(found).only_b == 0
    assert found.lost == {"a": {}, "b": {"constant_prediction": 4}}
    assert len(found.pairs["r_rank"]) == 26


def test_seeds_of_an_arm_are_averaged_by_feature() -> None:
    arms = [made("a", 1.0, seed=s) for s in (1, 2)], [made("b", 1.0, seed=s) for s in (3, 4)]
    found = compare(*arms, OFF, draws=100)
    feature, x, _ = found.pairs["r_rank"][0]
    assert x == pytest.approx(np.mean([run.numbers[feature]["r_rank"] for run in arms[0]]))
    assert found.seeds == {"a": [1, 2], "b": [3, 4]}
    assert sum(n for counts in found.verdicts.values() for n in counts.values()) == 60


def test_verdicts_are_told_from_which_to_which() -> None:
    a, b = made("a", 1.0), made("b", 1.0, seed=1)
    b.verdicts["d/0"] = "too_broad"
    assert compare([a], [b], OFF, draws=50).verdicts == {"good": {"good": 29, "too_broad": 1}}


def test_runs_that_cannot_be_compared_are_refused_in_a_line() -> None:
    a = made("a", 1.0)
    with pytest.raises(ComparisonError, match="on both sides"):
        compare([a], [a], OFF)
    with pytest.raises(ComparisonError, match="twice on one side"):
        compare([a, a], [made("b", 1.0)], OFF)
    other = made("b", 1.0)
    elsewhere = replace(other, numbers={f"other/{k}": v for k, v in other.numbers.items()})
    with pytest.raises(ComparisonError, match=r"no feature is in both a \(30, such as d/0\)"):
        compare([a], [elsewhere], OFF)


def test_different_collections_are_compared_and_said_to_be_different() -> None:
    found = compare([made("a", 1.0)], [made("b", 1.0, text=1)], OFF, draws=50)
    assert not found.same_collection
    out = io.StringIO()
    compare_shown.to_terminal(found, Console(file=out, width=120))
    assert "different collections" in out.getvalue() and "r rank" in out.getvalue()


def test_a_picture_is_drawn_and_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    found = compare([made("a", 1.5)], [made("b", 0.8)], OFF, draws=50)
    for name, start in (("c.png", b"\x89PNG"), ("c.svg", b"<?xml")):
        assert compare_shown.draw(found, tmp_path / name).read_bytes().startswith(start)
    for wrong in (tmp_path / "c.txt", tmp_path / "nowhere" / "c.png"):
        with pytest.raises(ComparisonError):
            compare_shown.check_picture(wrong)


def test_r_rank_of_a_real_run_is_that_of_the_passages_read_back(tiny: dict[str, Path]) -> None:
    run = open_run(str(finished_run(tiny)), OFF)
    assert run.documents
    for feature, found in run.documents.items():
        n, x, y, xx, yy, xy = (column.sum() for column in found.moments)
        r = (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
        assert r == pytest.approx(run.numbers[feature]["r_rank"], abs=1e-9)


def test_bad_input_on_the_command_line_is_a_line(
    autointerp: Autointerp, copied: Path, tiny: dict[str, Path]
) -> None:
    before = finished_run(tiny)
    ended = autointerp("compare", before, copied / "t")
    assert ended.code == 2 and "both sides" in ended.err
    ended = autointerp("compare", before)
    assert ended.code == 2 and "two runs" in ended.err
    ended = autointerp("compare", f"{before}@nothing", before)
    assert ended.code == 2 and "no single run or dictionary" in ended.err


def test_the_json_holds_everything() -> None:
    found = json.loads(json.dumps(as_json(compare([made("a", 1.0)], [made("b", 0.9)], OFF, draws=50))))
    assert {d["metric"] for d in found["differences"]} == set(METRICS) == set(found["pairs"])
    assert found["pairs"]["r_rank"][0].keys() == {"feature_id", "a", "b"}
