"""How fast the door asks: against a server on loopback that takes half a second and lets 64 requests in."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autointerp import config
from autointerp.llm import Door, Job, Model, Request
from autointerp.store import Store

CALLS, LATENCY_S, LIMIT = 2000, 0.5, 64
NAMES = {"openai": "gpt-6-luna", "anthropic": "claude-haiku-5-5"}
# A prompt of the size that explains a feature: instructions and examples that all share, then twelve excerpts.
SHARED = (("system", "s" * 1500), ("user", "e" * 600), ("assistant", "units of money"))
EXCERPTS = "- words of an <<excerpt>> that is about as long as they are\n" * 12


class Asked(NamedTuple):
    """What asking took."""

    ratio: float  # of the ideal throughput
    per_second: float  # calls
    cpu_ms: float  # of this process, per call: ours, the SDK's and the ledger's
    again_ms: float  # per call, when all of them are in the ledger


def throughput(provider: str) -> Asked:
    """2,000 calls to a server in a process of its own, into a database on disk.

    The ideal is the limit over the latency. The clock runs from the first job to the last answer, the transaction
    that puts the last replies into the table included; a warm-up round before it imports the SDK and opens connections.
    """
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        os.environ.setdefault(variable, "none")
    command = [sys.executable, "-m", "tests.llm_server", "0", str(LATENCY_S), str(LIMIT)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server,
        tempfile.TemporaryDirectory() as folder,
        Store.create(Path(folder) / "run.duckdb") as store,
    ):
        try:
            assert server.stdout is not None
            base_url = f"http://127.0.0.1:{int(server.stdout.readline())}" + ("/v1" if provider == "openai" else "")
            door = Door(store, config.load(None, [f"llm.max_in_flight={LIMIT}"]))
            model = Model(provider, NAMES[provider], base_url)
            _ask(door, _jobs(model, CALLS, CALLS + LIMIT))
            before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            _ask(door, _jobs(model, 0, CALLS))
            seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            started = time.perf_counter()
            _ask(door, _jobs(model, 0, CALLS))
            again = time.perf_counter() - started
            door.close()
        finally:
            server.kill()
    ideal = CALLS * LATENCY_S / LIMIT
    return Asked(ideal / seconds, CALLS / seconds, 1000 * cpu / CALLS, 1000 * again / CALLS)


def _jobs(model: Model, first: int, last: int) -> Iterator[Job[str]]:
    for i in range(first, last):
        yield Job(Request(model, (*SHARED, ("user", f"{i}\n{EXCERPTS}")), 32), f"explain bench {i}", str.strip, i)


def _ask(door: Door, jobs: Iterator[Job[str]]) -> None:
    bad = [answer.reason for _, answer in door.ask(jobs) if answer.status != "ok"]
    assert not bad, bad[:3]
