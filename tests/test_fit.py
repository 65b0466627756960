"""What the check before collection found is a row: readers show it, shards carry it, and it is written once."""

import json
from pathlib import Path

from autointerp.store import Store

from . import test_cli
from .conftest import tiny_overrides
from .test_cli import Autointerp, refused, sets
from .test_pipeline import quick_overrides

autointerp = test_cli.autointerp  # the fixture that runs a command in this process


def fit_of(database: Path):
    with Store.read(database) as store:
        return store.fit(store.latest_run().collection_id)


def test_a_misfit_that_was_let_pass_is_said_by_every_reader(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path
) -> None:
    overrides = quick_overrides(tiny, tmp_path / "r", dictionary__check="warn")
    assert autointerp("run", *sets(overrides)).code == 0
    folder = tmp_path / "r/t"
    fit = fit_of(folder / "run.duckdb")
    assert fit.outcome == "misfits" and fit.reasons and fit.n_tokens > 0 and fit.fvu > 0.5
    found = json.loads(autointerp("report", folder, "--json").out)["fit"]
    assert found["outcome"] == "misfits" and found["fvu"] == fit.fvu
    assert any(trial["what"] == "as configured" and trial["fvu"] == fit.fvu for trial in found["trials"])
    assert "MISFIT" in autointerp("report", folder).out
    assert "MISFIT" in (folder / "report.html").read_text()
    assert autointerp("run", *sets(overrides)).code == 0  # nothing is pending, and nothing is checked again
    with Store.read(folder / "run.duckdb") as store:
        assert store.query("SELECT count(*) FROM fit")[1] == [(1,)]


def test_a_misfit_that_is_refused_leaves_no_run(autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path) -> None:
    refused(autointerp("run", *sets(quick_overrides(tiny, tmp_path / "r", dictionary__check="refuse"))), "FVU")
    assert not (tmp_path / "r/t/run.duckdb").exists()


def test_a_check_that_was_off_is_said(autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path) -> None:
    assert autointerp("run", *sets(quick_overrides(tiny, tmp_path / "r"))).code == 0
    assert json.loads(autointerp("report", tmp_path / "r/t", "--json").out)["fit"] is None
    assert "check   off" in autointerp("report", tmp_path / "r/t").out


def test_merged_shards_carry_what_their_check_found(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path
) -> None:
    overrides = sets(tiny_overrides(tiny, tmp_path / "r", dictionary__check="warn"))
    for part in ("1/2", "2/2"):
        assert autointerp("collect", "--shard", part, *overrides).code == 0
    folder = tmp_path / "r/t"
    shards = sorted(folder.glob("shard-*.duckdb"))
    assert len(shards) == 2
    assert autointerp("merge", *shards, "-o", folder / "run.duckdb").code == 0
    with Store.read(folder / "run.duckdb") as store:
        (row,) = store.collections()
        fit = store.fit(row["collection_id"])
        assert fit is not None and fit.outcome == "misfits"
    whole = tmp_path / "w"
    assert autointerp("collect", *overrides, "--set", f"run.results={whole}").code == 0
    assert fit_of(whole / "t/run.duckdb") == fit


def test_random_directions_are_marked_unchecked(autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path) -> None:
    overrides = tiny_overrides(tiny, tmp_path / "r", dictionary__check="refuse", dictionary__random="true")
    assert autointerp("collect", *sets(overrides)).code == 0
    fit = fit_of(tmp_path / "r/t/run.duckdb")
    assert (fit.outcome, fit.fvu, fit.l0) == ("unchecked", None, None)
    assert "random directions" in fit.notes[0]
