"""How readers keep up with a large run: `python -m tests.bench.serve_scale [--features N] [--run FOLDER] [--out FILE]`.

A made-up run (`large_run`) is written into a temporary folder, or read where --run names one that was made before.
`autointerp serve` reads it as a process of its own, and is asked over HTTP on loopback by a client that waits for every
answer. Of each kind of request there are the times that the client saw, and the processor time that the server took:
on a machine that others use too, the second says what the first would be if it were idle. Then the commands, each as a
process of its own. Rows are judged by what the client saw.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from tests.bench import large_run

MB = 1e6
OVERVIEW_MS, PAGE_MS, MEMORY_MB, REPORT_MB = 1000.0, 200.0, 1000.0, 5.0  # bars


@dataclass(frozen=True)
class Asked:
    """One kind of request, asked many times: milliseconds."""

    what: str
    n: int
    median_ms: float
    worst_ms: float
    cpu_ms: float  # median processor time of the server
    kilobytes: float  # median size of the answer
    bar_ms: float

    @property
    def holds(self) -> bool:
        return self.median_ms <= self.bar_ms

    @property
    def holds_by_cpu(self) -> bool:
        return self.cpu_ms <= self.bar_ms


@dataclass(frozen=True)
class Ran:
    """One command: wall-clock and processor seconds, and its largest resident memory."""

    command: str
    seconds: float
    cpu_seconds: float
    peak_memory_mb: float


class Server:
    """`autointerp serve` on a run, and a connection to it."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = psutil.Process(process.pid), port
        self.client = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def get(self, path: str) -> tuple[float, float, int]:
        """Milliseconds to the whole answer, processor milliseconds of the server, and bytes."""
        cpu, started = self.cpu_seconds, time.perf_counter()
        self.client.request("GET", path)
        answer = self.client.getresponse()
        body = answer.read()
        spent = 1000 * (time.perf_counter() - started)
        if answer.status != 200:
            raise SystemExit(f"GET {path}: {answer.status} {body[:200]!r}")
        return spent, 1000 * (self.cpu_seconds - cpu), len(body)

    @property
    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def asked(self, what: str, paths: Sequence[str], bar_ms: float) -> Asked:
        """The figures of requests of one kind, one after another."""
        found = [self.get(path) for path in paths]
        wall, cpu, size = ([row[i] for row in found] for i in range(3))
        return Asked(
            what, len(found), statistics.median(wall), max(wall), statistics.median(cpu), statistics.median(size) / 1000,
            bar_ms,
        )  # fmt: skip

    @property
    def memory_mb(self) -> dict[str, float]:
        """Resident memory now, and the largest so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        return {"now": self.process.memory_info().rss / MB, "peak": int(peak[1]) * 1024 / MB if peak else float("nan")}


@contextmanager
def serving(folder: Path) -> Iterator[tuple[Server, float]]:
    """A server that answers, and the seconds until it did."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "autointerp", "serve", str(folder), "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                yield Server(process, int(found[1])), time.perf_counter() - started
                return
        raise SystemExit(f"serve ended: {' '.join(lines)}")
    finally:
        process.terminate()
        process.wait(60)


def requests(features: int, n: int, random: np.random.Generator) -> dict[str, tuple[list[str], float]]:
    """Kind of request -> addresses, and what they may take."""
    words, ids = large_run.vocabulary(), random.integers(0, features, n).tolist()
    verdicts = ("good", "too_broad", "too_narrow", "token_only")
    return {
        "overview": (["/"] * n, OVERVIEW_MS),
        "list": (["/features"] * n, PAGE_MS),
        "search by text": ([f"/features?q={words[i % len(words)]}" for i in ids], PAGE_MS),
        "filter": ([f"/features?verdict={verdicts[i % 4]}&min=0.3&sort=density" for i in ids], PAGE_MS),
        "category": ([f"/features?{urlencode({'category': large_run.category(i % 60, words)})}" for i in ids], PAGE_MS),
        "feature page": ([f"/feature/{large_run.DICTIONARY}/{i}" for i in ids], PAGE_MS),
    }


def served(folder: Path, features: int, n: int) -> tuple[list[Asked], dict[str, Any]]:
    """Requests of every kind, and what the server takes."""
    with serving(folder) as (server, ready):
        first, _, _ = server.get("/")
        kinds = requests(features, n, np.random.default_rng(0))
        found = [server.asked(what, paths, bar) for what, (paths, bar) in kinds.items()]
        return found, {"seconds_to_address": ready, "first_answer_ms": first, "memory_mb": server.memory_mb}


def ran(*arguments: str) -> Ran:
    """A command, run once."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "autointerp", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"autointerp {' '.join(arguments)} ended with {status}")
    shown = " ".join(word for word in arguments if "/" not in word)
    return Ran(shown, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MB)


def measure(folder: Path, features: int, n: int) -> dict[str, Any]:
    """Every figure of a run in a folder."""
    before = os.getloadavg()[0]
    asked, server = served(folder, features, n)
    syllable = large_run.vocabulary()[0][:4]  # stands in more labels than are asked for, so no vector is computed
    commands = [
        ran("report", str(folder)), ran("show", str(features // 2), str(folder)),
        ran("search", syllable, str(folder)), ran("top", str(folder), "--by", "f1"),
    ]  # fmt: skip
    page = folder / "report.html"
    size = page.stat().st_size / MB
    page.unlink()
    return {
        "features": features, "excerpts_per_feature": large_run.TOP + large_run.SAMPLE,
        "database_mb": (folder / "run.duckdb").stat().st_size / MB,
        "machine": {
            "cores": psutil.cpu_count(), "memory_gb": psutil.virtual_memory().total / 1e9,
            "load_before": before, "load_after": os.getloadavg()[0],
            "note": "load is the mean number of processes that want a core; above the number of cores others were "
                    "working too, and the wall-clock times are theirs as well",
        },
        "requests": [asdict(row) | {"holds": row.holds, "holds_by_cpu": row.holds_by_cpu} for row in asked],
        "server": server | {"bar_memory_mb": MEMORY_MB, "holds": server["memory_mb"]["peak"] <= MEMORY_MB},
        "report_mb": size, "bar_report_mb": REPORT_MB, "report_holds": size <= REPORT_MB,
        "commands": [asdict(row) for row in commands],
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Print the figures."""
    table = Table("request", "n", "median ms", "worst ms", "server CPU ms", "bar", "holds", "by CPU")
    for row in found["requests"]:
        numbers = (f"{row[name]:,.0f}" for name in ("median_ms", "worst_ms", "cpu_ms", "bar_ms"))
        table.add_row(row["what"], str(row["n"]), *numbers, *("yes" if row[k] else "NO" for k in ("holds", "holds_by_cpu")))
    commands = Table("command", "s", "CPU s", "MB")
    for row in found["commands"]:
        commands.add_row(row["command"], *(f"{row[name]:,.1f}" for name in ("seconds", "cpu_seconds", "peak_memory_mb")))
    server, machine = found["server"], found["machine"]
    console = Console()
    console.print(table, commands)
    console.print(
        f"server: {server['memory_mb']['now']:,.0f} MB, at most {server['memory_mb']['peak']:,.0f} MB (bar {MEMORY_MB:,.0f}); "
        f"address after {server['seconds_to_address']:.1f} s, first answer {server['first_answer_ms']:,.0f} ms\n"
        f"report.html: {found['report_mb']:.2f} MB (bar {REPORT_MB:g}); database {found['database_mb']:,.0f} MB\n"
        f"{machine['cores']} cores, load {machine['load_before']:.1f} before, {machine['load_after']:.1f} after"
    )  # fmt: skip


def main() -> None:
    """Make the run where there is none, measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=30, help="of each kind")
    parser.add_argument("--run", type=Path, help="folder of a run that large_run wrote; made there if it is missing, and kept")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autointerp-scale-") as scratch:
        folder: Path = options.run or Path(scratch) / "made-up"
        if not (folder / "run.duckdb").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            # In a process of its own: what a command inherits counts towards its largest memory.
            subprocess.run([sys.executable, "-m", "tests.bench.large_run", str(folder), str(options.features)], check=True)
        found = measure(folder, options.features, options.requests)
    command = f"python -m tests.bench.serve_scale --features {options.features} --requests {options.requests}"
    found = {"command": command} | found
    show(found)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
