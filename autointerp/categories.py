"""Labels grouped by meaning: which kinds of thing a dictionary speaks of.

Each different label is one unit vector, of what it names alone ("the word", "forms of" and the like say nothing about
meaning). Vectors are grouped by Ward's method (Ward 1963), and a category is called by its most central labels.

A run keeps its categories in a table (`categories_stage.py`), so that readers ask no encoder; what is grouped here
for somebody who wants another number of them is not kept.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.cluster.hierarchy import fcluster, linkage

from autointerp.config import fingerprint
from autointerp.errors import ConfigError
from autointerp.report import Label, Reading, number
from autointerp.simulators.clauses import clauses
from autointerp.store import Store
from autointerp.store_categories import similarities
from autointerp.text import printable

F32 = NDArray[np.float32]
Vectors = Callable[[Sequence[str]], F32]  # texts -> unit vectors [text, d]

MOST = 60  # categories, however many labels there are: a list that can still be read
GROUPED = 4096  # labels that are grouped, evenly drawn from all in order; pairs of them have to fit into memory
VERSION = 1  # raised when the same labels would be grouped, or called, otherwise
NAMES = 2  # central labels that a category is called by
CALLED = 80  # characters of each of them
UNLABELLED = "no labels to group: expected a run with labelled features; `autointerp run` makes them"


class Kind(NamedTuple):
    """Different texts that are alike in meaning, the most central first."""

    name: str  # its most central texts; no two kinds have the same
    texts: list[str]
    similarity: list[float]  # cosine of each to their mean


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

    vectors, n  as in `kinds`

    Raises ConfigError for a run without labels, or for more categories than different labels.
    """
    found: dict[str, list[Label]] = {}
    for label in (label for reading in readings for label in reading.labels):
        if label.label is not None:
            found.setdefault(label.label, []).append(label)
    if not found:
        raise ConfigError(UNLABELLED)
    return _largest_first(
        Category(
            kind.name, [label for text in kind.texts for label in sorted(found[text], key=lambda x: x.feature_id)],
            float(np.mean(kind.similarity)),
        )
        for kind in kinds(found, vectors, n)
    )  # fmt: skip


def known(readings: Sequence[Reading], store: Store) -> list[Category]:
    """The categories that a run keeps, of the labels in these readings, the largest first; [] where it keeps none."""
    groupings = {reading.run.grouping_id for reading in readings}  # one, unless a dictionary has no label
    cosine = {key: value for grouping in groupings for key, value in similarities(store, grouping).items()}
    found: dict[str, list[tuple[float, str, Label]]] = {}
    for label in (label for reading in readings for label in reading.labels):
        if label.category is not None and label.label is not None and label.explanation_id is not None:
            found.setdefault(label.category, []).append((cosine[label.explanation_id], label.label, label))
    made = []
    for name, members in found.items():
        members.sort(key=lambda member: (-member[0], member[1], member[2].feature_id))
        different = {text: value for value, text, _ in members}
        made.append(Category(name, [label for _, _, label in members], float(np.mean(list(different.values())))))
    return _largest_first(made)


def _largest_first(found: Iterable[Category]) -> list[Category]:
    return sorted(found, key=lambda category: (-len(category.features), category.name))


def kinds(labels: Iterable[str], vectors: Vectors, n: int | None = None) -> list[Kind]:
    """Labels by meaning: each different one is in one kind, whatever their order.

    vectors  asked once, for what each different label names
    n        kinds; None: the square root of the number of different labels, rounded, at most MOST

    Raises ConfigError for more kinds than different labels.
    """
    texts = sorted(set(labels))
    wanted = n if n is not None else max(min(round(len(texts) ** 0.5), MOST), 1)
    if not 1 <= wanted <= len(texts):
        raise ConfigError(f"{wanted} categories: expected 1 to {len(texts)}, the number of different labels")
    points = vectors([", ".join(clauses(text)) for text in texts])
    made: dict[str, Kind] = {}
    for rows in group(points, wanted):
        found = _kind([texts[i] for i in rows], points[rows])
        name, again = found.name, 1
        while name in made:  # one label may read like two others with a stroke between them
            again += 1
            name = f"{found.name} ({again})"
        made[name] = found._replace(name=name)
    return list(made.values())


def grouping_id(labels: Iterable[tuple[str, str]], encoder: str) -> str:
    """Hash of labels that are grouped, each with the id of its explanation, and of the encoder."""
    return fingerprint([sorted(labels), encoder, VERSION])


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


def _kind(texts: Sequence[str], points: F32) -> Kind:
    cosine = points @ _unit(points.sum(axis=0))
    order = np.argsort(-cosine, kind="stable").tolist()
    name = " / ".join(_called(texts[i]) for i in order[:NAMES])
    return Kind(name, [texts[i] for i in order], cosine[order].tolist())


def _called(label: str) -> str:
    """A label as part of a name: it stands in addresses, lists and tables, so it is one line that can be printed."""
    text = " ".join(printable(label).split()) or "(empty)"
    return text if len(text) <= CALLED else text[: CALLED - 1] + "…"


def _unit(vector: F32) -> F32:
    found: F32 = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return found


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
