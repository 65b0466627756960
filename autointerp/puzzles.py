"""Known-answer puzzles: sentences with activations, the explanation behind them, and false ones.

The format is that of `puzzles.json` in openai/automated-interpretability (19 puzzles written by hand):
{name: {"explanation": "...", "sentences": [["token", ["token", activation], ...], ...], "false_explanations": ["..."]}}
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from autointerp import metrics
from autointerp.errors import ConfigError
from autointerp.simulators import Simulator
from autointerp.tally import Bar
from autointerp.text import printable


class Sentence(NamedTuple):
    """Tokens as strings, and the activation on each."""

    tokens: list[str]
    activations: list[float]


@dataclass(frozen=True)
class Puzzle:
    """One puzzle."""

    name: str
    explanation: str
    sentences: list[Sentence]
    false_explanations: list[str]


@dataclass(frozen=True)
class Solved:
    """What a simulator makes of one puzzle: correlations over all its tokens; None for a constant prediction."""

    name: str
    right: float | None  # of the right explanation
    against_others: float  # share of the other puzzles' explanations that it beats; ties, and no correlation, half
    against_false: float | None  # ... of its own false ones
    first: bool  # it beats all of them


def read(path: Path) -> list[Puzzle]:
    """The puzzles of a file. Raises ConfigError, in one line, for a file that is not of this shape."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no puzzles at {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ConfigError(f"{path} is not a readable JSON file: {problem}") from None
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise ConfigError(f"{path}: expected an object of puzzles by name, as in OpenAI's puzzles.json")
    puzzles = [_puzzle(name, value, f"{path}: puzzle {name!r}") for name, value in found.items()]
    if len(puzzles) < 2:
        raise ConfigError(f"{path}: expected at least 2 puzzles, whose explanations compete, found {len(puzzles)}")
    return puzzles


def solve(puzzles: Sequence[Puzzle], simulator: Simulator, width: int, bar: Bar) -> list[Solved]:
    """Let a simulator predict every puzzle's sentences from every explanation.

    width  tokens that the simulator reads at once; longer sentences are cut
    """
    windows: dict[int, tuple[int, Sentence]] = {}  # passage id -> number of its puzzle, and its text
    for number, puzzle in enumerate(puzzles):
        for tokens, activations in puzzle.sentences:
            for i in range(0, len(tokens), width):
                windows[len(windows)] = number, Sentence(tokens[i : i + width], activations[i : i + width])
    simulator.read({i: sentence.tokens for i, (_, sentence) in windows.items()}, bar)
    simulator.calibrate(np.array(list(windows), dtype=np.int64))
    owner = np.array([number for number, _ in windows.values()])
    solved = []
    bar.start("puzzles", total=len(puzzles), unit="puzzles")
    for number, puzzle in enumerate(puzzles):
        mine = np.flatnonzero(owner == number)
        others = [p.explanation for p in puzzles if p is not puzzle and p.explanation != puzzle.explanation]
        labels = [puzzle.explanation, *others, *puzzle.false_explanations]
        scores = _scores(simulator, labels, mine, windows)
        counted = np.array([score or 0.0 for score in scores])
        wrong, false = counted[1 : 1 + len(others)], counted[1 + len(others) :]
        solved.append(Solved(
            puzzle.name, scores[0], metrics.discrimination(float(counted[0]), wrong) or 0.0,
            metrics.discrimination(float(counted[0]), false), bool((counted[0] > counted[1:]).all()),
        ))  # fmt: skip
        bar.advance()
    return solved


def _scores(
    simulator: Simulator, labels: Sequence[str], mine: NDArray[np.int64], windows: Mapping[int, tuple[int, Sentence]]
) -> list[float | None]:
    sentences = [windows[int(i)][1] for i in mine]
    actual = np.concatenate([sentence.activations for sentence in sentences])
    predicted = simulator.predict(labels, mine)
    kept = [np.concatenate([p[: len(s.tokens)] for p, s in zip(label, sentences, strict=True)]) for label in predicted]
    return [metrics.correlation(actual, said.astype(np.float64)) for said in kept]


def as_json(solved: Sequence[Solved], simulator: str) -> dict[str, Any]:
    """The outcome of all puzzles, and of each."""
    rights = [puzzle.right for puzzle in solved if puzzle.right is not None]
    false = [puzzle.against_false for puzzle in solved if puzzle.against_false is not None]
    return {
        "simulator": simulator,
        "n": len(solved),
        "n_constant": len(solved) - len(rights),
        "win_rate": float(np.mean([puzzle.against_others for puzzle in solved])),
        "win_rate_false": float(np.mean(false)) if false else None,
        "first": float(np.mean([puzzle.first for puzzle in solved])),
        "mean_correlation": float(np.mean(rights)) if rights else None,
        "puzzles": [asdict(puzzle) for puzzle in solved],
    }


def to_terminal(solved: Sequence[Solved], simulator: str, console: Console) -> None:
    """A line per puzzle, and the means."""
    table = Table(title=f"puzzles, simulator {simulator}", title_justify="left", box=None)
    for name in ("puzzle", "r", "beats others", "beats false", "first"):
        table.add_column(name, justify="left" if name == "puzzle" else "right")
    for puzzle in solved:
        cells = [
            f"{v:.2f}" if v is not None else "-" for v in (puzzle.right, puzzle.against_others, puzzle.against_false)
        ]
        table.add_row(printable(puzzle.name), *cells, "yes" if puzzle.first else "no")
    console.print(table)
    found = as_json(solved, simulator)
    false = "-" if found["win_rate_false"] is None else f"{found['win_rate_false']:.3f}"
    console.print(
        f"win rate against other explanations {found['win_rate']:.3f}, against false ones {false} (chance .5); "
        f"first in {found['first']:.0%}; {found['n_constant']} of {found['n']} predictions constant", highlight=False,
    )  # fmt: skip


def _puzzle(name: str, value: dict[str, Any], where: str) -> Puzzle:
    explanation, false = value.get("explanation"), value.get("false_explanations", [])
    sentences = value.get("sentences")
    if not isinstance(explanation, str) or not explanation.strip():
        raise ConfigError(f"{where}: expected a text under 'explanation'")
    if not isinstance(false, list) or not all(isinstance(text, str) for text in false):
        raise ConfigError(f"{where}: expected a list of texts under 'false_explanations'")
    if not isinstance(sentences, list) or not sentences or not all(isinstance(s, list) and s for s in sentences):
        raise ConfigError(f"{where}: expected a list of sentences, each a list of tokens, under 'sentences'")
    return Puzzle(name, explanation, [_sentence(sentence, where) for sentence in sentences], false)


def _sentence(sentence: list[Any], where: str) -> Sentence:
    tokens, activations = [], []
    for item in sentence:
        token, activation = item if isinstance(item, list) and len(item) == 2 else (item, 0.0)
        number = isinstance(activation, int | float) and not isinstance(activation, bool) and math.isfinite(activation)
        if not isinstance(token, str) or not number:
            raise ConfigError(f"{where}: expected a token, or a [token, activation] pair, got {str(item)[:60]}")
        tokens.append(token)
        activations.append(float(activation))
    return Sentence(tokens, activations)
