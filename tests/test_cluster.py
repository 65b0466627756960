"""The ray engine on a real cluster of this machine: whoever does the work, and whoever dies at it, the rows are those
of one process."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from autointerp import cli, cluster, collect, config, targets
from autointerp.config import Settings
from autointerp.errors import ConfigError, CorpusError
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar

from .conftest import tiny_overrides, write_corpus
from .test_cli import sets
from .test_merge import collect_into, collected, write_firing
from .test_pipeline import assert_same, query

STARTS_WITHIN = 60  # seconds that a cluster may take on a busy machine

needs_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers through /proc")


class Cluster:
    """A Ray cluster of two CPUs, and the process whose children its own are."""

    def __init__(self, address: str, process: "subprocess.Popen[bytes]") -> None:
        self.address, self.process = address, process

    def workers(self, task: str) -> list[int]:
        """Processes of this cluster, and of no other on the machine, that are at a task of this name."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if title.startswith(f"ray::{task}") and self.process.pid in _ancestors(int(entry.name)):
                        found.append(int(entry.name))
        return found


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """A cluster that outlives what connects to it; nobody else can use it, for it asks for a token of its own."""
    pytest.importorskip("ray")
    folder = Path(f"/tmp/autointerp-ray-{os.getpid()}")  # sockets lie in it, and their paths must be short
    folder.mkdir()
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port=0", "--num-cpus=2",
        "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats",
        "--object-store-memory=100000000", f"--temp-dir={folder}",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_DISABLE_DOCKER_CPU_WARNING", "1")
        _forget_token()
        try:
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
            try:
                yield Cluster(_address(folder, process), process)
            finally:
                process.terminate()  # it ends its children
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    _forget_token()


def _address(folder: Path, process: "subprocess.Popen[bytes]") -> str:
    until = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < until and process.poll() is None:
        if "Ray runtime started" in (folder / "log").read_text():
            return (folder / "ray_current_cluster").read_text().strip()
        time.sleep(0.1)
    raise RuntimeError(f"no Ray cluster: {(folder / 'log').read_text()[-2000:]}")


def _forget_token() -> None:
    """Let a Ray that was imported before read the environment again."""
    if "ray" in sys.modules:
        from ray._private.authentication_test_utils import reset_auth_token_state

        reset_auth_token_state()


@pytest.fixture(scope="module")
def parts(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny parts with a larger corpus, so that there is time to do harm."""
    root = tmp_path_factory.mktemp("cluster")
    return tiny | {"corpus": write_corpus(root / "corpus", documents=110), "other": write_firing(root / "o", "standard")}


@pytest.fixture
def on_ray(running: Cluster, parts: dict[str, Path], tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a collection by the cluster."""
    return lambda **overrides: config.load(None, _overrides(running, parts, tmp_path / "ray", **overrides))


def _overrides(running: Cluster, parts: dict[str, Path], results: Path, **overrides: object) -> list[str]:
    given = {"collect.panel": 40, "collect.top": 4, "engine.kind": "ray", "engine.address": running.address,
             "engine.shards": 3, "subject.device": "cpu"}  # fmt: skip
    given |= {key.replace("__", "."): value for key, value in overrides.items()}
    return tiny_overrides(parts, results, **given)


@pytest.fixture(scope="module")
def local(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same collection by this process alone: its database."""
    results = tmp_path_factory.mktemp("local")
    settings = config.load(None, tiny_overrides(parts, results, **{"collect.panel": 40, "collect.top": 4}))
    return collect_into(settings.database, settings)


def left(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.folder.iterdir())


def test_two_dictionaries_on_a_cluster_have_the_rows_of_one_process(
    on_ray: Callable[..., Settings], parts: dict[str, Path], tmp_path: Path
) -> None:
    asked = on_ray(corpus__tokens=20_000)
    two = (asked.dictionary[0], asked.dictionary[0].model_copy(
        update={"source": str(parts["other"]), "hookpoint": "model.layers.0"}
    ))  # fmt: skip
    asked = asked.model_copy(update={"dictionary": two})
    collect_into(asked.database, asked)
    assert left(asked) == ["run.duckdb"]
    here = asked.model_copy(update={"engine": config.EngineSection()})
    collect_into(tmp_path / "here" / "run.duckdb", here)
    assert_same(collected(asked.database), collected(tmp_path / "here" / "run.duckdb"))
    assert len(collected(asked.database)["collection"]) == 2


@needs_linux
def test_a_worker_that_is_killed_in_the_middle_changes_no_row(
    running: Cluster, on_ray: Callable[..., Settings], local: Path
) -> None:
    settings = on_ray(subject__batch_contexts=1)  # slow, so that the second shard of a worker takes a while
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        # Once a shard is done, its worker knows its way and is in the middle of another.
        while not over.is_set():
            if list(settings.folder.glob("collect.ray-*.checkpoint.npz")):
                for pid in running.workers("_sweep_shard")[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return
            time.sleep(0.01)

    murderer = threading.Thread(target=kill)
    murderer.start()
    try:
        collect_into(settings.database, settings)
    finally:
        over.set()
        murderer.join()
    if not killed:
        raise RuntimeError("no worker was killed: the test shows nothing")
    assert_same(collected(settings.database), collected(local))
    assert left(settings) == ["run.duckdb"]


def test_shards_that_were_finished_before_are_not_read_again(on_ray: Callable[..., Settings], local: Path) -> None:
    settings = on_ray()
    settings.folder.mkdir(parents=True)
    for i in (0, 2):  # what workers of a driver that died have left
        cluster._sweep_shard(settings.model_dump_json(), ["sae"], i, 3, settings.folder.resolve())
    states = sorted(settings.folder.glob("collect.ray-*.checkpoint.npz"))
    assert len(states) == 2
    for path in states:  # a mark that no reading of the text would make
        with np.load(path) as saved:
            arrays = {name: saved[name] for name in saved.files}
        np.savez(path, **(arrays | {"0/n_masked": arrays["0/n_masked"] + 1000}))
    collect_into(settings.database, settings)
    masked = [query(database, "SELECT n_masked FROM collection")[0][0] for database in (settings.database, local)]
    assert masked[0] == masked[1] + 2000
    found, expected = collected(settings.database), collected(local)
    assert_same(found | {"collection": []}, expected | {"collection": []})
    assert left(settings) == ["run.duckdb"]


def test_an_error_of_the_user_comes_out_of_a_worker_as_the_same_line(
    running: Cluster, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("Ada walked to the river. " * 50)
    (corpus / "z.txt").write_bytes(b"caf\xe9")
    said = []
    for engine in ("ray", "local"):
        given = _overrides(running, parts, tmp_path / engine, **{"corpus.source": corpus, "engine.kind": engine})
        monkeypatch.setattr(sys, "argv", ["autointerp", "collect", *sets(given)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ending:
            cli.main()
        out, err = capfd.readouterr()
        assert (ending.value.code, out) == (2, "")
        # On a slow machine the stage may have said how far it is.
        said.append([line for line in err.splitlines() if not line.startswith("collect: ")])
        assert not [path for path in (tmp_path / engine).rglob("*") if path.is_file()]
    assert said[0] == said[1]
    assert len(said[0]) == 1
    assert "z.txt is not UTF-8" in said[0][0]


def test_paths_are_those_of_the_directory_in_which_the_command_is_given(
    running: Cluster, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "texts", documents=10)
    shutil.copytree(parts["dictionary"], tmp_path / "sae")
    monkeypatch.chdir(tmp_path)
    given = {"corpus.source": "texts", "dictionary.source": "sae"}
    settings = config.load(None, _overrides(running, parts, Path("results"), **given))
    collect_into(settings.database, settings)
    here = settings.model_copy(update={"engine": config.EngineSection()})
    collect_into(tmp_path / "here.duckdb", here)
    assert_same(collected(settings.database), collected(tmp_path / "here.duckdb"))


def test_without_ray_the_extra_is_named(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    given = sets(tiny_overrides(tiny, tmp_path / "r"))
    monkeypatch.setattr(sys, "argv", ["autointerp", "collect", "--engine", "ray", *given])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "pip install 'autointerp[ray]'" in err
    assert not [path for path in (tmp_path / "r").rglob("*") if path.is_file()]


# -- gathering, without a cluster --------------------------------------------------------------------------------------


def test_settings_of_an_engine_that_is_not_known_are_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.kind"):
        config.load(None, tiny_overrides(tiny, tmp_path, **{"engine.kind": "rai"}))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_states_that_workers_send_merge_to_the_whole_in_any_order(
    tiny: dict[str, Path], tmp_path: Path, order: list[int]
) -> None:
    given = {"corpus.tokens": 12_000, "collect.panel": 40, "collect.top": 4, "subject.device": "cpu"}
    settings = config.load(None, tiny_overrides(tiny, tmp_path, **given))
    plan, names = settings.model_dump_json(), ["sae"]
    states = [cluster._sweep_shard(plan, names, i, 4, None) for i in range(4)]
    for state in states:
        for array in state.values():  # as they come from another process: read-only
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    whole = cluster._sweep_shard(plan, names, 0, 1, None)
    a, b, c, d = (states[i] for i in order)
    found = cluster._merge_states(plan, names, cluster._merge_states(plan, names, a, b), c)
    found = cluster._merge_states(plan, names, d, found)
    assert found.keys() == whole.keys()
    order_free = {"documents.key", "documents.source", "documents.split", "documents.n_tokens"}
    order_free |= {name for name in whole if name.endswith(("_last_document", "last_seen"))}  # of the pass itself
    different = [name for name in whole if name not in order_free and (found[name] != whole[name]).any()]
    assert not different
    assert sorted(found["documents.key"].tolist()) == sorted(whole["documents.key"].tolist())


def test_a_shard_without_a_text_stops_no_other(tiny: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("Ada walked to the river. " * 50)
    settings = config.load(None, tiny_overrides(tiny, tmp_path, **{"corpus.source": tmp_path / "one"}))
    states = [cluster._sweep_shard(settings.model_dump_json(), ["sae"], i, 3, None) for i in range(3)]
    assert sorted(int(state["0/total_documents"].sum()) for state in states) == [0, 0, 1]


def test_an_unreadable_text_is_an_error_of_the_user_on_a_worker_too(tiny: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    settings = config.load(None, tiny_overrides(tiny, tmp_path / "r", **{"corpus.source": tmp_path / "a.txt"}))
    with pytest.raises(CorpusError, match=r"a\.txt is not UTF-8"):
        cluster._sweep_shard(settings.model_dump_json(), ["sae"], 0, 2, None)


def test_a_local_run_needs_no_ray(tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    settings = config.load(None, tiny_overrides(tiny, tmp_path, **{"corpus.tokens": 2000}))
    found = targets.load(settings, Subject.sketch(settings.subject))
    with Bar(enabled=False) as bar:
        assert collect.run(Store.memory(), settings, found, bar).worked
