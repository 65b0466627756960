"""`python -m tests.bench.curve`: memory and tokens a second over a pass through the whole default corpus, as a picture.

Writes results/reference/collect-memory.{json,svg}. Takes 15 to 20 minutes on two cores.
"""

import json
import tempfile
import time
from pathlib import Path

import psutil

from autointerp import collect, config, targets
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.sweep import keep_freed_memory
from autointerp.tally import Bar, peak_memory_mb

EVERY_TOKENS = 16_384
OUT = Path("results/reference")


class Recorder(Bar):
    """A progress bar that notes the memory of the process as the pass moves on."""

    def __init__(self) -> None:
        super().__init__(enabled=False)
        self.tokens, self.points, self._process = 0.0, [], psutil.Process()
        self._started = time.perf_counter()

    def advance(self, n: float = 1, note: str | None = None) -> None:
        """Count, and note a point every so many tokens."""
        before, self.tokens = self.tokens, self.tokens + n
        if before // EVERY_TOKENS != self.tokens // EVERY_TOKENS:
            rss = self._process.memory_info().rss / 1e6
            self.points.append((int(self.tokens), round(time.perf_counter() - self._started, 1), round(rss)))
            if len(self.points) % 10 == 0:
                print(*self.points[-1], flush=True)


def main() -> None:
    """Run the pass and write both files."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        settings = config.load(Path("config.toml"), ["corpus.tokens=0", f"run.results={folder}"])
        found = targets.load(settings, Subject.sketch(settings.subject))
        recorder = Recorder()
        with Store.create(settings.database) as store:
            tally = collect.run(store, settings, found, recorder)
        size = settings.database.stat().st_size / 1e6
    summary = {
        "command": "python -m tests.bench.curve", "tokens": tally.tokens, "documents": tally.ok,
        "seconds": round(tally.seconds), "tokens_per_second": round(tally.tokens / tally.seconds),
        "peak_memory_mb_with_writing": round(peak_memory_mb()), "database_mb": round(size, 1),
        "columns": ["tokens", "seconds", "resident_mb"], "points": recorder.points,
    }  # fmt: skip
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "collect-memory.json").write_text(json.dumps(summary) + "\n")
    draw(summary, OUT / "collect-memory.svg")
    print({key: value for key, value in summary.items() if key != "points"})


def draw(summary: dict, path: Path) -> None:
    """The memory curve."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    tokens = [point[0] / 1e6 for point in summary["points"]]
    axis.plot(tokens, [point[2] for point in summary["points"]], color="#1f6feb", linewidth=1.5)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("tokens read (millions)")
    axis.set_ylabel("resident memory (MB)")
    axis.set_title(
        f"collect over {summary['tokens']:,} tokens, 4,096 features: {summary['tokens_per_second']:,} tokens/s", loc="left",
        fontsize=10,
    )  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#ddd", linewidth=0.6)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
