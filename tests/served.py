"""Finished runs that readers are tested on: one of counts, and one in which every text is hostile, served or not."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from autointerp import categories_stage, config, report, serve
from autointerp.config import Settings
from autointerp.pipeline import Pipeline, prepare
from autointerp.report import Reading
from autointerp.store import Store
from autointerp.tally import Bar
from tests.conftest import write_dictionary
from tests.llm_server import Server
from tests.test_pipeline import quick_overrides

HOSTILE = [
    '</script><script>alert("x")</script>', '"><img src=x onerror=alert(1)>', "\x1b[31mred\x1b[0m", "zero\0byte",
    "\u202egnp.exe", "👩‍🔬 emoji", "'; DROP TABLE line; --", "{{ 7 * 7 }}", '=HYPERLINK("http://x")',
]  # fmt: skip
REPLY = "words about walking </pre><script>alert(2)</script>"


def small_run(tiny: dict[str, Path], results: Path) -> Iterator[tuple[Reading, Store]]:
    """A run over the tiny parts, open for writing."""
    # A dictionary sparse enough that features are silent on most passages, so that there are hard negatives.
    settings = config.load(None, quick_overrides(
        tiny, results, dictionary__source=write_dictionary(results / "sae", width=512, k=2),
        features__select="random:4", explainer__candidates=2, score__nulls=2, score__select_passages=10,
        score__score_passages=20,
    ))  # fmt: skip
    with Store.create(settings.database) as store:
        Pipeline(store, prepare(settings), Bar(), print).all()
        yield report.read(store), store


def hostile_run(tiny: dict[str, Path], results: Path) -> Path:
    """The folder of a run over the tiny parts, in which tokens, sources, labels and replies are hostile."""
    sparse = write_dictionary(results / "sae", width=512, k=2)
    with Server(says=lambda asked: f"words of kind {asked.number}") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "test-key-secret")
        settings = config.load(None, quick_overrides(
            tiny, results, dictionary__source=sparse, features__select="random:9", explainer__candidates=2,
            score__nulls=2, score__select_passages=10, score__score_passages=20,
            explainer__methods='["mined", "marks"]', explainer__provider="openai", explainer__model="gpt-6-luna",
            explainer__base_url=server.openai,
        ))  # fmt: skip
        with Store.create(settings.database) as store:
            Pipeline(store, prepare(settings), Bar(), print).all()
            features = sorted(e.feature for e in store.chosen(store.latest_run()))
            for feature, text in zip(features, HOSTILE, strict=False):
                store.db.execute("UPDATE explanation SET label = ? WHERE feature = ? AND status = 'ok'", [text, feature])
            for i, text in enumerate(HOSTILE):
                store.db.execute("UPDATE token SET piece = ? WHERE token_id % 11 = ?", [text.encode(), i])
            store.db.execute("UPDATE document SET source = ?", [HOSTILE[1]])
            store.db.execute("UPDATE call SET reply = ?", [REPLY])
            categories_stage.run(store, store.latest_runs(), Bar(enabled=False))  # the names of categories are hostile too
    return settings.folder


def copy_without(part: str, folder: Path, results: Path) -> None:
    """Copy a run to another folder, where its `subject` or `dictionary` is said to be in a place that is gone."""
    (results / "run.duckdb").write_bytes((folder / "run.duckdb").read_bytes())
    with Store.create(results / "run.duckdb") as store:
        settings = json.loads(store.latest_run().settings)
        if part == "subject":
            settings["subject"]["model"] = str(results / "gone")
        else:
            settings["dictionary"][0]["source"] = str(results / "gone")
        store.db.execute("UPDATE run SET settings = ?", [Settings.model_validate(settings).model_dump_json()])


@contextmanager
def listening(folder: Path) -> Iterator[str]:
    """The address at which a run is served meanwhile."""
    with serve.bound(0) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(serve.application(folder, port), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(20)
