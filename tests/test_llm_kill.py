"""A run that is killed: nothing that was paid and had arrived is paid again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autointerp.llm.ledger import Ledger
from autointerp.store import Store

from .llm_server import FAILURES, Server, fails

N, IN_FLIGHT = 150, 8

# Explains nothing, but asks as a stage does: rows are written as answers come.
CHILD = """
import sys
from pathlib import Path
from autointerp import config
from autointerp.llm import Door, Job, Model, Request
from autointerp.store import Store

provider, base_url, path = sys.argv[1:4]
model = Model(provider, "gpt-6-luna", base_url)
settings = config.load(None, ["llm.max_in_flight=8", "llm.timeout_s=4", "llm.tries=12"])
with Store.create(Path(path)) as store:
    jobs = (Job(Request(model, (("system", "s"), ("user", f"n{i}")), 16), f"test {i}", str) for i in range(150))
    for job, answer in Door(store, settings).ask(jobs):
        print(answer.status, flush=True)
"""


def start(server: Server, provider: str, path: Path) -> subprocess.Popen[str]:
    """The child, asking."""
    command = [sys.executable, "-c", CHILD, provider, getattr(server, provider), str(path)]
    keys = {"OPENAI_API_KEY": "test-key-secret", "ANTHROPIC_API_KEY": "test-key-secret"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | keys, cwd=path.parent)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_after_a_kill_only_what_was_in_flight_is_paid_again(tmp_path: Path, provider: str, share: float) -> None:
    path = tmp_path / "run.duckdb"
    with Server(latency_s=0.05, plan=fails(share, FAILURES), retry_after="0.05") as server:
        child = start(server, provider, path)
        for _ in range(60):  # some answers have been used, others are on their way
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "ok", child.wait()
        child.send_signal(signal.SIGKILL)
        child.wait()
        while server.in_flight:  # what the server finishes for nobody is billed too
            time.sleep(0.05)
            server.cancel()
        before = server.whole()
        with Store.create(path) as store:
            Ledger.of(store)  # takes over the journal
            known = {row[0] for row in store.query("SELECT request FROM call")[1]}
        assert len(known) >= 60
        assert known <= set(before)
        assert len(set(before) - known) <= IN_FLIGHT
        child = start(server, provider, path)
        said, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        assert said.split() == ["ok"] * N
        after = server.whole()
    assert len(after) == N
    assert {request for request, times in after.items() if times > 1} <= set(before) - known
    with Store.read(path) as store:
        assert store.query("SELECT count(*), count(DISTINCT call_id) FROM call")[1] == [(N, N)]
    assert [file.name for file in tmp_path.iterdir()] == ["run.duckdb"]


def test_the_ledger_and_the_servers_books_agree(tmp_path: Path) -> None:
    path = tmp_path / "run.duckdb"
    with Server() as server:
        start(server, "openai", path).communicate(timeout=120)
    with Store.read(path) as store:
        found = store.query("SELECT request, input_tokens, output_tokens FROM call")[1]
    assert {request for request, _, _ in found} == {json.dumps(asked.chat) for asked in server.log}
    assert {(sent, got) for _, sent, got in found} == {(0, 2), (1, 2)}  # a token is four characters there
