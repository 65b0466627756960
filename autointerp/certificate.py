"""What a scorer is known to be able to do: gates that hold or do not, and the table behind them."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from autointerp.planted import RUNGS
from autointerp.text import printable

GATE_NAMES = ("auroc_shuffled", "auroc_half", "auroc_broad2", "coverage", "null_ks", "missing_extra", "insufficient")


@dataclass(frozen=True)
class Gate:
    """One figure against its bar. The figure is the worst over densities; None where there was nothing to compute."""

    name: str
    scorer: str
    metric: str
    value: float | None
    bar: tuple[float, float]  # holds where lo <= value <= hi
    holds: bool

    @classmethod
    def of(cls, name: str, scorer: str, metric: str, value: float | None, bar: tuple[float, float]) -> "Gate":
        """A gate, judged."""
        return cls(name, scorer, metric, value, bar, value is not None and bar[0] <= value <= bar[1])


@dataclass(frozen=True)
class Line:
    """One line of the table: what a metric says of one kind of wrong label at one density."""

    density: float
    rung: str
    metric: str
    n: int  # features
    auroc: float | None  # of right against wrong labels, over features
    win_rate: float | None  # of the right label over the wrong one of the same feature
    right: float  # mean score of the right labels
    other: float  # of the others
    known_f1: float  # mean F1 of what the other label says against the truth, by token


@dataclass(frozen=True)
class Certificate:
    """A scorer, graded on planted truth."""

    scorer: str
    model: str | None  # of a simulator that has one
    prompt_hash: str | None
    date: str  # ISO day
    version: str  # of autointerp
    seed: int
    passages: int  # per label
    counts: dict[str, int]  # features by kind
    table: list[Line]
    gates: list[Gate]
    figures: dict[str, float | None] = field(
        default_factory=dict
    )  # what the gates were computed from, and what was spent

    @property
    def holds(self) -> dict[str, bool]:
        """By gate: whether it holds for at least one metric. A gate that was not computed is absent."""
        names = [name for name in GATE_NAMES if any(gate.name == name for gate in self.gates)]
        return {name: any(gate.holds for gate in self.gates if gate.name == name) for name in names}

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON-able values. A bar is a number to reach, or [low, high]."""
        found = asdict(self) | {"holds": self.holds}
        for gate in found["gates"]:
            low, high = gate["bar"]
            gate["bar"] = low if high >= 1 else [low, high]
        return found

    def to_terminal(self, console: Console) -> None:
        """The gates, and per density the AUROC of right against wrong labels by metric."""
        facts = [f"scorer {self.scorer}", self.date, f"autointerp {self.version}", f"seed {self.seed}"]
        facts += [f"model {self.model}"] * bool(self.model) + [f"prompt {self.prompt_hash}"] * bool(self.prompt_hash)
        counts = ", ".join(f"{n} {kind}" for kind, n in self.counts.items())
        console.print(printable(f"\n{' | '.join(facts)}\n{self.passages} passages per label; features: {counts}"))
        for density in sorted({line.density for line in self.table}, reverse=True):
            console.print(self._at(density))
        console.print(self._gates())
        broken = [name for name, holds in self.holds.items() if not holds]
        console.print(f"gates that do not hold: {', '.join(broken)}" if broken else "all gates hold", highlight=False)

    def _at(self, density: float) -> Table:
        metrics = list(dict.fromkeys(line.metric for line in self.table))
        found = {(line.rung, line.metric): line for line in self.table if line.density == density}
        n = max(line.n for line in found.values())
        table = Table(
            title=f"density {density:g}: AUROC of the right label against ...", title_justify="left", box=None
        )
        table.add_column(f"{n} features", no_wrap=True)
        table.add_column("F1", justify="right")
        for metric in metrics:
            table.add_column(metric.replace("_", " "), justify="right")  # wraps between words on narrow terminals
        for rung in RUNGS:
            lines = [found.get((rung, metric)) for metric in metrics]
            known = next((line for line in lines if line is not None), None)
            if known is not None:
                cells = ["" if line is None or line.auroc is None else f"{line.auroc:.3f}" for line in lines]
                table.add_row(rung, f"{known.known_f1:.2f}", *cells)
        means = {line.metric: line.right for line in found.values()}
        table.add_row("mean of right", "", *(f"{means[metric]:.2f}" if metric in means else "" for metric in metrics))
        return table

    def _gates(self) -> Table:
        table = Table(title="gates (the worst density)", title_justify="left", box=None)
        for name in ("gate", "metric", "value", "bar", "holds"):
            table.add_column(name, justify="right" if name in ("value", "bar") else "left")
        for gate in self.gates:
            low, high = gate.bar
            bar = f">= {low:g}" if high >= 1 else f"{low:g} to {high:g}"
            value = "-" if gate.value is None else f"{gate.value:.3f}"
            table.add_row(gate.name, gate.metric, value, bar, "yes" if gate.holds else "NO")
        return table
