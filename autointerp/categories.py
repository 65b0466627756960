"""Labels grouped by meaning: which kinds of thing a dictionary speaks of.

Each different label is one unit vector, of what it names alone ("the word", "forms of" and the like say nothing about
meaning). Vectors are grouped by Ward's method (Ward 1963), and a category is called by its most central labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.cluster.hierarchy import fcluster, linkage

from autointerp.errors import ConfigError
from autointerp.report import Label, Reading, number
from autointerp.simulators.clauses import clauses
from autointerp.text import printable

F32 = NDArray[np.float32]
Vectors = Callable[[Sequence[str]], F32]  # texts -> unit vectors [text, d]

MOST = 60  # categories, however many labels there are: a list that can still be read
GROUPED = 4096  # labels that are grouped, evenly drawn from all in order; pairs of them have to fit into memory
NAMES = 2  # central labels that a category is called by


@dataclass(frozen=True)
class Category:
    """Features whose labels are alike in meaning."""

    name: str  # its most central labels
    features: list[Label]  # the most central first, then by feature
    cohesion: float  # mean cosine of its different labels to their mean: 1 where they are all the same

    @property
    def r_rank(self) -> float | None:
        """Mean grade of its labels that have one."""
        values = [label.r_rank for label in self.features if label.r_rank is not None]
        return float(np.mean(values)) if values else None


def categories(readings: Sequence[Reading], vectors: Vectors, n: int | None = None) -> list[Category]:
    """The labels of a run by meaning, the largest category first. Features without a label are in none.

    vectors  asked once, for what each different label names
    n        categories; None: the square root of the number of different labels, rounded, at most MOST

    Raises ConfigError for a run without labels, or for more categories than different labels.
    """
    found: dict[str, list[Label]] = {}
    for label in (label for reading in readings for label in reading.labels):
        if label.label is not None:
            found.setdefault(label.label, []).append(label)
    if not found:
        raise ConfigError("no labels to group: expected a run with labelled features; `autointerp run` makes them")
    texts = sorted(found)
    wanted = n if n is not None else max(min(round(len(texts) ** 0.5), MOST), 1)
    if not 1 <= wanted <= len(texts):
        raise ConfigError(f"{wanted} categories: expected 1 to {len(texts)}, the number of different labels")
    points = vectors([", ".join(clauses(text)) for text in texts])
    groups = group(points, wanted)
    made = [_category([texts[i] for i in rows], points[rows], found) for rows in groups]
    return sorted(made, key=lambda category: (-len(category.features), category.name))


def group(points: F32, n: int) -> list[list[int]]:
    """Rows of unit vectors in n groups or fewer (where vectors are equal), each in order; ties by row.

    Of more than GROUPED rows that many are grouped, and the others join the group whose mean is nearest to them.
    """
    drawn = np.unique(np.linspace(0, len(points) - 1, min(len(points), GROUPED)).round().astype(np.int64))
    if n == 1 or len(drawn) == 1:
        return [list(range(len(points)))]
    code = fcluster(linkage(points[drawn].astype(np.float64), "ward"), n, "maxclust")
    means = np.stack([_unit(points[drawn[code == c]].sum(axis=0)) for c in range(1, code.max() + 1)])
    nearest = np.argmax(points @ means.T, axis=1)
    nearest[drawn] = code - 1
    return [np.flatnonzero(nearest == c).tolist() for c in range(len(means))]


def _category(texts: Sequence[str], points: F32, found: dict[str, list[Label]]) -> Category:
    cosine = points @ _unit(points.sum(axis=0))
    order = np.argsort(-cosine, kind="stable").tolist()
    name = " / ".join(texts[i] for i in order[:NAMES])
    members = [label for i in order for label in sorted(found[texts[i]], key=lambda label: label.feature_id)]
    return Category(name, members, float(cosine.mean()))


def _unit(vector: F32) -> F32:
    found: F32 = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return found


def by_feature(found: Sequence[Category]) -> dict[str, str]:
    """Feature id -> the name of its category: a column, or what to filter by. Features without a label have none."""
    return {label.feature_id: category.name for category in found for label in category.features}


def as_json(found: Sequence[Category]) -> list[dict[str, Any]]:
    """Every category with its features."""
    return [
        {
            "category": category.name, "n": len(category.features), "cohesion": category.cohesion,
            "r_rank": category.r_rank,
            "features": [{"feature_id": label.feature_id, "label": label.label} for label in category.features],
        }
        for category in found
    ]  # fmt: skip


def to_terminal(found: Sequence[Category], console: Console) -> None:
    """A table, the largest first; text from the run cannot steer the terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("features", "cohesion", "r_rank"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("category", ratio=1, overflow="fold")
    for category in found:
        cells = (str(len(category.features)), f"{category.cohesion:.2f}", number(category.r_rank))
        table.add_row(*cells, Text(printable(category.name)))
    console.print(table)
