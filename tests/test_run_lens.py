"""The logit lens as a part of a run: there for readers, and left out with a reason where it cannot be had."""

import html
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from autointerp import lens_stage, serve
from autointerp.show import visible
from autointerp.store import Store
from autointerp.store_lens import lensed, lenses

from . import test_cli
from .conftest import write_dictionary
from .test_cli import Autointerp, sets
from .test_pipeline import finished_run, quick_overrides, quick_settings, run_all

autointerp = test_cli.autointerp  # the fixture that runs a command in this process


def known(database: Path) -> set[int]:
    with Store.read(database) as store:
        return lensed(store, store.latest_run().collection_id)


def test_a_run_leaves_the_lens_of_every_feature(autointerp: Autointerp, tiny: dict[str, Path]) -> None:
    run = finished_run(tiny)
    assert known(run / "run.duckdb") == set(range(64))
    with Store.read(run / "run.duckdb") as store:
        asked = store.latest_run()
        assert "lens" in [row["stage"] for row in store.stages(asked.run_id)]
    shown = autointerp("show", (asked.features or [])[0], run)
    assert shown.code == 0 and "promotes" in shown.out and "suppresses" in shown.out


def test_the_page_of_a_feature_shows_it(tiny: dict[str, Path]) -> None:
    run = finished_run(tiny)
    with Store.read(run / "run.duckdb") as store:
        asked = store.latest_run()
        feature = (asked.features or [])[0]
        found = lenses(store, asked.collection_id, [feature])[feature]
    client = TestClient(serve.application(run, 8123), base_url="http://127.0.0.1:8123")
    page = client.get(f"/feature/{asked.dictionary}/{feature}").text
    for name, tokens in (("promotes", found.promoted), ("suppresses", found.suppressed)):
        part = page.partition(f"Tokens that it {name}</h3>")[2].partition("</ul>")[0]
        shown = [html.unescape(word) for word in re.findall(r"<li[^>]*>(.*?)</li>", part)]
        assert shown == [visible(token).strip() for token in tokens]


def test_rows_that_do_not_reach_the_unembedding_leave_it_out(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path
) -> None:
    wide = write_dictionary(tmp_path / "wide", d_in=64)
    overrides = quick_overrides(
        tiny, tmp_path / "r", dictionary__source=wide, subject__hookpoint="model.layers.1.mlp.act_fn"
    )
    ended = autointerp("run", *sets(overrides))
    assert ended.code == 0, ended
    assert "lens: left out: " in ended.err and "width 64" in ended.err
    assert known(tmp_path / "r/t/run.duckdb") == set()
    assert autointerp("run", *sets(overrides)).code == 0  # nor the second time


def test_a_lens_that_takes_minutes_is_left_to_its_own_command(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lens_stage, "MOST_FLOP", 1e5)
    settings = quick_settings(tiny, tmp_path, features__select="0,3")
    assert any("lens: left out: 64 features take minutes; `autointerp lens`" in line for line in run_all(settings))
    assert known(settings.database) == set()


def test_of_a_random_subject_there_is_none(tiny: dict[str, Path], tmp_path: Path) -> None:
    settings = quick_settings(tiny, tmp_path, features__select="0,3", subject__random="true")
    assert any("lens: left out: " in line and "drawn anew" in line for line in run_all(settings))
