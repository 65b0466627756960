"""`python -m tests.bench`: measure, print a table, write results/bench.json."""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests import peers
from tests.bench import collecting, delphi, disk, llm, simulating


@dataclass(frozen=True)
class Row:
    """One figure against its bar. `holds` is None where there is no bar."""

    name: str
    value: float
    unit: str
    bar: str
    holds: bool | None
    command: str = "make bench"


def row(name: str, value: float, unit: str, at_least: float | None = None, at_most: float | None = None) -> Row:
    """A row, judged."""
    if at_least is not None:
        return Row(name, value, unit, f">= {at_least}", value >= at_least)
    if at_most is not None:
        return Row(name, value, unit, f"<= {at_most}", value <= at_most)
    return Row(name, value, unit, "", None)


def main() -> None:
    """Run every benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="the rows that need a GPU")
    if parser.parse_args().gpu:
        show(on_gpu(), Path("results/bench-gpu.json"))
        return
    try:
        peers.latent_cache()
    except ModuleNotFoundError as problem:
        raise SystemExit(f"make bench: {problem}") from None
    rows = []
    for width in (4096, 16384):
        found = collecting.limit(width)
        rows.append(row(f"collect/limit-{width}", found.ratio, "of the limit", at_least=0.90))
        rows.append(row(f"collect/limit-{width}/collect", found.collect, "tokens/s"))
        rows.append(row(f"collect/limit-{width}/limit", found.limit, "tokens/s"))
    for width, bar in ((4096, 1.6), (16384, 1.85)):
        beside = delphi.against(width)
        rows.append(row(f"collect/delphi-{width}", beside.ratio, f"x delphi {peers.DELPHI}", at_least=bar))
        rows.append(row(f"collect/delphi-{width}/fp32", beside.fp32, "x delphi as shipped, float32"))
        rows.append(row(f"collect/delphi-{width}/tuned", beside.tuned, "x delphi with our allocator setting"))
        rows.append(row(f"collect/delphi-{width}/collect", beside.collect, "tokens/s"))
        rows.append(row(f"collect/delphi-{width}/delphi", beside.delphi, "tokens/s"))
    rows.append(row("collect/merge", collecting.merge_difference(), "rows that differ", at_most=0))
    rows.append(row("collect/memory", collecting.memory_ratio(), "x, 2M against 250k tokens", at_most=1.03))
    read = collecting.read_milliseconds()
    if read is not None:
        rows.append(row("collect/read", read[0], "ms per feature, median", at_most=3.0))
        rows.append(row("collect/read/texts", read[1], "ms per feature with its texts, median"))
    for name, kilobytes, bar in (("default", disk.default(), 8.0), ("saturated", disk.saturated(), 32.0)):
        if kilobytes is not None:
            rows.append(row(f"collect/disk-{name}", kilobytes.others, "KB per live feature", at_most=bar))
            rows.append(row(f"collect/disk-{name}/panel", kilobytes.panel, "KB per live feature"))
            rows.append(row(f"collect/disk-{name}/calls", kilobytes.calls, "KB per live feature"))
    show(rows + asking() + simulation(), Path("results/bench.json"))


def asking() -> list[Row]:
    """The rows of the door to language models."""
    rows, cpu_ms = [], []
    for provider in ("openai", "anthropic"):
        found = sorted(llm.throughput(provider) for _ in range(3))[1]  # the median of three, by throughput
        cpu_ms.append(found.cpu_ms)
        rows.append(row(f"llm/throughput-{provider}", found.ratio, "of the ideal", at_least=0.90))
        rows.append(row(f"llm/throughput-{provider}/calls", found.per_second, "calls/s"))
        rows.append(row(f"llm/throughput-{provider}/cpu", found.cpu_ms, "ms CPU per call"))
        alone = sorted(llm.alone(provider) for _ in range(3))[1]
        rows.append(row(f"llm/cpu-{provider}", found.cpu_ms / alone, "x, of the SDK's in a bare loop", at_most=1.3))
        rows.append(row(f"llm/throughput-{provider}/ledger", found.again_ms, "ms per call, from the ledger"))
    return [*rows, row("llm/cpu-ms", max(cpu_ms), "ms CPU per call, the slower one", at_most=3.0)]


def simulation() -> list[Row]:
    """The rows of simulators."""
    found = simulating.speedup()
    return [
        row("simulate/logprob-speedup", found.ratio, "x one passage at a time", at_least=3.0),
        row("simulate/logprob-speedup/ours", found.ours, "passages/s"),
        row("simulate/logprob-speedup/plain", found.plain, "passages/s"),
        row("simulate/logprob-difference", found.difference, "expected answer, 0 to 10", at_most=1e-3),
    ]


def on_gpu() -> list[Row]:
    """The rows that need a GPU."""
    import torch

    from tests.bench import gpu

    if not torch.cuda.is_available():
        raise SystemExit("make bench-gpu needs a CUDA device, and there is none here")
    found = gpu.limit(torch.device("cuda:0"))
    return [
        row("collect/gpu-65536", found.ratio, "of the limit", at_least=0.85),
        row("collect/gpu-65536/collect", found.collect, "tokens/s"),
        row("collect/gpu-65536/limit", found.limit, "tokens/s"),
        row("collect/gpu-65536/memory", found.memory_gb, f"GB on {found.device}"),
    ]


def show(rows: list[Row], path: Path) -> None:
    """Print the table, and write it as JSON."""
    table = Table("name", "value", "unit", "bar", "holds")
    for r in rows:
        table.add_row(r.name, f"{r.value:,.3f}", r.unit, r.bar, {True: "yes", False: "NO", None: ""}[r.holds])
    Console().print(table)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")


main()
