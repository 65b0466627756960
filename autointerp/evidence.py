"""What the tables know about a feature, in the shape that explaining, drawing and baselines need it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.rows import Split
from autointerp.store import PassageRow, Store
from autointerp.store_places import Places
from autointerp.text import token_strings


class Firing(NamedTuple):
    """Where a feature fires in a set of passages; one entry per firing token."""

    row: NDArray[np.int64]  # row of the passage in the set
    position: NDArray[np.int64]
    value: NDArray[np.float32]


class PanelIndex:
    """The panel of one split, by feature."""

    def __init__(self, store: Store, collection_id: str, split: Split) -> None:
        rows = store.panel(collection_id, split)
        self.passages = rows.passage  # ids, ascending
        order = np.argsort(rows.features, kind="stable")  # by feature; passages stay in order within it
        self._feature = rows.features[order]
        self._row = np.repeat(np.arange(len(rows.passage)), np.diff(rows.offsets))[order]
        self._position = rows.positions[order]
        self._value = rows.values[order]

    def firing(self, feature: int) -> Firing:
        """Every firing of the feature in the panel."""
        first, last = np.searchsorted(self._feature, [feature, feature + 1])
        return Firing(self._row[first:last], self._position[first:last].astype(np.int64), self._value[first:last])

    def silent(self, feature: int) -> NDArray[np.bool_]:
        """[passage] True where the feature fires nowhere in the passage."""
        silent = np.ones(len(self.passages), dtype=bool)
        silent[self.firing(feature).row] = False
        return silent


class Texts:
    """Passages of a collection, read on demand and held: tokens, strings, what counts, and which document."""

    def __init__(self, store: Store, collection_id: str, places: Places | None = None) -> None:
        """places  where rows lie, if that is known"""
        self.store, self.collection_id, self.places = store, collection_id, places
        self._rows: dict[int, PassageRow] = {}

    @cached_property
    def _tokens(self) -> tuple[Mapping[int, bytes], Mapping[int, int]]:
        return self.store.tokens(self.collection_id)

    @property
    def pieces(self) -> Mapping[int, bytes]:
        """Token id -> its bytes."""
        return self._tokens[0]

    @property
    def n_explain(self) -> Mapping[int, int]:
        """Token id -> usable occurrences in the whole explain split."""
        return self._tokens[1]

    def fetch(self, ids: NDArray[np.int64]) -> None:
        """Read these passages in one query."""
        missing = np.array([i for i in np.unique(ids).tolist() if i not in self._rows], dtype=np.int64)
        if len(missing):
            rows = None if self.places is None else self.places.of_passages(missing)
            found = self.store.passages(self.collection_id, missing, rows)
            self._rows |= {i: found[i] for i in missing.tolist()}

    def row(self, passage: int) -> PassageRow:
        """One passage."""
        if passage not in self._rows:
            self.fetch(np.array([passage]))
        return self._rows[passage]

    def strings(self, passage: int) -> list[str]:
        """The passage's token strings; together they are its text."""
        return token_strings(self.row(passage).tokens, self.pieces)

    def forget(self, ids: Sequence[int]) -> None:
        """Drop passages from memory."""
        for i in ids:
            self._rows.pop(i, None)

    def grid(self, passages: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Token ids [passage, width] (-1 after the end) and which positions count [passage, width]."""
        self.fetch(passages)
        tokens = np.full((len(passages), width), -1, dtype=np.int64)
        counts = np.zeros((len(passages), width), dtype=bool)
        for i, passage in enumerate(passages.tolist()):
            row = self._rows[passage]
            tokens[i, : len(row.tokens)] = row.tokens
            counts[i, : len(row.tokens)] = True
            counts[i, row.masked] = False
        return tokens, counts


class ExplainEvidence:
    """What may be known of features before anything is scored: the explain split alone.

    A feature's firing passages come from the panel (a uniform sample of all passages, with everything that fires) or
    from its own uniform sample, whichever holds more of them; either stands for the whole split by its weight.
    """

    def __init__(self, store: Store, collection_id: str, texts: Texts) -> None:
        self.store, self.collection_id, self.texts = store, collection_id, texts
        row = store.collection(collection_id)
        assert row is not None
        self.panel = PanelIndex(store, collection_id, "explain")
        self.n_passages = int(row["n_passages"][0])
        self.firing_passages = store.features(collection_id)["n_passages"][0]
        texts.fetch(self.panel.passages)

    def firing(self, feature: int) -> tuple[NDArray[np.int64], Firing, float]:
        """Passage ids, firings (rows index those ids), and how many passages of the split each one stands for."""
        firing = self.panel.firing(feature)
        in_panel = len(np.unique(firing.row))
        sample = self.store.excerpts(self.collection_id, feature, "explain", "sample")
        if in_panel >= len(sample.passage):
            return self.panel.passages, firing, self.n_passages / max(len(self.panel.passages), 1)
        lengths = np.diff(sample.firing.offsets)
        row = np.repeat(np.arange(len(sample.passage)), lengths)
        weight = float(self.firing_passages[feature]) / len(sample.passage)
        firing = Firing(row, sample.firing.positions.astype(np.int64), sample.firing.values)
        return sample.passage, firing, weight

    def mean_by_token(self, feature: int) -> dict[int, float]:
        """The token look-up table: mean activation of the feature per token id, over the whole explain split.

        Token ids that it never fires on are absent. Exact where the panel holds every explain passage, else the
        Horvitz-Thompson estimate: summed activation times weight, over the exact number of occurrences.
        """
        ids, firing, weight = self.firing(feature)
        tokens, _ = self.texts.grid(ids, 256) if len(ids) else (np.empty((0, 0), dtype=np.int64), None)
        at = tokens[firing.row, firing.position] if len(firing.row) else np.empty(0, dtype=np.int64)
        unique, inverse = np.unique(at, return_inverse=True)
        mass = np.bincount(inverse, weights=firing.value, minlength=len(unique)) * weight
        return {
            int(t): float(m / self.texts.n_explain[int(t)])
            for t, m in zip(unique, mass, strict=True)
            if self.texts.n_explain.get(int(t))
        }
