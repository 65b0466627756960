"""How fast the door asks: against a server on loopback that takes half a second and lets 64 requests in."""

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
    with (
        _served(provider) as model,
        tempfile.TemporaryDirectory() as folder,
        Store.create(Path(folder) / "run.duckdb") as store,
    ):
        door = Door(store, config.load(None, [f"llm.max_in_flight={LIMIT}"]))
        _ask(door, _jobs(model, CALLS, CALLS + LIMIT))
        before, started = _cpu_s(), time.perf_counter()
        _ask(door, _jobs(model, 0, CALLS))
        seconds, cpu_s = time.perf_counter() - started, _cpu_s() - before
        started = time.perf_counter()
        _ask(door, _jobs(model, 0, CALLS))
        again = time.perf_counter() - started
        door.close()
    ideal = CALLS * LATENCY_S / LIMIT
    return Asked(ideal / seconds, CALLS / seconds, 1000 * cpu_s / CALLS, 1000 * again / CALLS)


def alone(provider: str) -> float:
    """CPU milliseconds per call of the SDK in a bare loop: the same requests, no ledger, no retries."""
    with _served(provider) as model:
        return asyncio.run(_alone(model))


async def _alone(model: Model) -> float:
    places = asyncio.Semaphore(LIMIT)
    async with _client(model) as client:

        async def one(i: int) -> None:
            async with places:
                await _create(client, model, f"{i}\n{EXCERPTS}")

        await asyncio.gather(*map(one, range(LIMIT)))
        before = _cpu_s()
        await asyncio.gather(*map(one, range(CALLS)))
        return 1000 * (_cpu_s() - before) / CALLS


def _client(model: Model) -> Any:
    import anthropic
    import openai

    sdk = openai.AsyncOpenAI if model.provider == "openai" else anthropic.AsyncAnthropic
    return sdk(api_key="none", base_url=model.base_url, max_retries=0, timeout=None)


def _create(client: Any, model: Model, text: str) -> Coroutine[Any, Any, Any]:
    messages = [{"role": role, "content": content} for role, content in (*SHARED, ("user", text))]
    if model.provider == "openai":
        return client.chat.completions.create(model=model.name, messages=messages, max_completion_tokens=32)
    system = messages.pop(0)["content"]
    return client.messages.create(model=model.name, system=system, messages=messages, max_tokens=32)


@contextlib.contextmanager
def _served(provider: str) -> Iterator[Model]:
    """A model on a server in a process of its own."""
    command = [sys.executable, "-m", "tests.llm_server", "0", str(LATENCY_S), str(LIMIT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            base_url = f"http://127.0.0.1:{int(server.stdout.readline())}" + ("/v1" if provider == "openai" else "")
            yield Model(provider, NAMES[provider], base_url)
        finally:
            server.kill()


def _cpu_s() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _jobs(model: Model, first: int, last: int) -> Iterator[Job[str]]:
    for i in range(first, last):
        yield Job(Request(model, (*SHARED, ("user", f"{i}\n{EXCERPTS}")), 32), f"explain bench {i}", str.strip, i)


def _ask(door: Door, jobs: Iterator[Job[str]]) -> None:
    bad = [answer.reason for _, answer in door.ask(jobs) if answer.status != "ok"]
    assert not bad, bad[:3]
