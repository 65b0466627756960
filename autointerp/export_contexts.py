"""What the exports that are folders share: a feature's kept passages with activations, and how a folder is written."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp.errors import StoreError
from autointerp.evidence import PanelIndex, Texts
from autointerp.report import Label, Reading
from autointerp.rows import Split
from autointerp.store import Sparse, Store

BLOCK = 128  # features whose passages are held at a time
MARK = ".autointerp-export"  # in every folder that was written here: only such a folder is ever replaced


@dataclass(frozen=True)
class Kept:
    """A kept passage of one feature."""

    split: Split
    why: str  # top, sample; silent: a passage of the panel on which it does not fire
    rank: int  # 0 is the strongest (top) or the first drawn
    passage_id: int
    document_id: str
    source: str
    start: int  # index of the first token within the document
    strings: list[str]  # together they are the text
    activations: list[float]  # per token; 0 where the feature is silent
    predicted: list[float] | None  # per token under the chosen label; None where nothing was predicted


class Contexts:
    """The kept passages of a reading's features."""

    def __init__(self, reading: Reading, store: Store) -> None:
        self.reading, self.store = reading, store
        self.collection_id = reading.run.collection_id
        self.texts = Texts(store, self.collection_id)
        self._sources = store.document_sources(self.collection_id)
        self._panel = PanelIndex(store, self.collection_id, "score")

    def blocks(self) -> Iterator[list[tuple[Label, list[Kept]]]]:
        """Every label with its kept firing passages, BLOCK features at a time; a block's texts are one query."""
        labels = self.reading.labels
        for start in range(0, len(labels), BLOCK):
            block = labels[start : start + BLOCK]
            sets = [self.store.example_set(self.collection_id, label.feature) for label in block]
            ids = [excerpts.passage for found in sets for excerpts in found.values()]
            self.texts.fetch(np.concatenate(ids) if ids else np.empty(0, dtype=np.int64))
            yield [
                (label, list(self._kept(label, {key: found[key].firing for key in sorted(found)})))
                for label, found in zip(block, sets, strict=True)
            ]
            self.texts.forget([int(i) for part in ids for i in part])

    def silent(self, feature: int, n: int) -> list[Kept]:
        """n passages of the score split's panel on which the feature never fires; fewer where there are fewer.

        Passage ids are hashes, so any run of them is a uniform draw; where it begins depends on the feature.
        """
        passages: NDArray[np.int64] = self._panel.passages[self._panel.silent(feature)]
        first = feature * n % max(len(passages), 1)
        ids = np.roll(passages, -first)[:n]
        self.texts.fetch(ids)
        return [self._context("score", "silent", rank, int(i), {}, None) for rank, i in enumerate(ids)]

    def _kept(self, label: Label, sets: dict[tuple[str, str], Sparse]) -> Iterator[Kept]:
        predicted: dict[int, dict[int, float]] = {}
        if label.explanation_id is not None:
            found, _ = self.store.simulations(label.explanation_id, self.reading.run.simulator_id, "score")
            predicted = dict(_by_passage(found))
        for (split, why), sparse in sets.items():
            for rank, (passage, spikes) in enumerate(_by_passage(sparse)):
                guess = predicted.get(passage) if split == "score" else None
                yield self._context(split, why, rank, passage, spikes, guess)  # type: ignore[arg-type]

    def _context(
        self, split: Split, why: str, rank: int, passage: int, spikes: dict[int, float], guess: dict[int, float] | None
    ) -> Kept:
        row, strings = self.texts.row(passage), self.texts.strings(passage)
        return Kept(
            split, why, rank, passage, row.document_id, self._sources.get(row.document_id, ""), row.start, strings,
            _dense(spikes, len(strings)), None if guess is None else _dense(guess, len(strings)),
        )  # fmt: skip


def _by_passage(sparse: Sparse) -> Iterator[tuple[int, dict[int, float]]]:
    """Passage id and value by position, in the order of the rows."""
    ends = sparse.offsets.tolist()
    for passage, a, b in zip(sparse.passage.tolist(), ends, ends[1:], strict=False):
        yield passage, dict(zip(sparse.positions[a:b].tolist(), sparse.values[a:b].tolist(), strict=True))


def _dense(spikes: dict[int, float], n: int) -> list[float]:
    return [spikes.get(position, 0.0) for position in range(n)]


def write_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a folder beside `path` and give it that name once it is whole; returns the path.

    A folder that an export wrote is replaced. Raises StoreError for anything else that is there, and where the
    folder cannot be written.
    """
    if path.exists() and not (path / MARK).is_file():
        raise StoreError(f"cannot write {path}: it is there, and is no folder that an export wrote; take another")
    scratch = path.with_name(path.name + ".writing")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        (scratch / MARK).touch()
        fill(scratch)
        if path.exists():
            shutil.rmtree(path)
        scratch.replace(path)
    except OSError as problem:
        shutil.rmtree(scratch, ignore_errors=True)
        raise StoreError(f"cannot write {path}: {problem.strerror or problem}") from None
    return path


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with their places added to those that stand there before."""
    return [name if name not in names[:i] else f"{name}__{i}" for i, name in enumerate(names)]
