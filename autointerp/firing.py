"""Which features of a run fire on a text that somebody typed: the subject and the dictionaries, loaded once.

The text is read as collection reads a document: the same tokens, contexts of the same length, the same positions that
do not count, the same encoder. A text of the corpus therefore fires as it did then.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autointerp.errors import SubjectError
from autointerp.report import Reading
from autointerp.text import token_strings

LONGEST = 2000  # characters of a text


@dataclass(frozen=True)
class Spikes:
    """One feature on one text; positions ascending."""

    feature: int
    positions: list[int]
    activations: list[float]

    @property
    def peak(self) -> float:
        """The largest activation."""
        return max(self.activations)


@dataclass(frozen=True)
class Fired:
    """What fires on one text."""

    strings: list[str]  # one per token; together they are the text
    masked: list[int]  # positions that do not count: special tokens and attention sinks
    spikes: dict[str, list[Spikes]]  # dictionary -> its firing features, strongest first


class TextReader:
    """The subject and the dictionaries of a run, ready to read texts.

    torch is imported here and not before: most who look at a run type no text, and it takes 190 MB and seconds.
    """

    def __init__(self, readings: Sequence[Reading]) -> None:
        """Loads both, on one device. Raises a UserError where either is gone, or is not what was collected with."""
        from autointerp import targets
        from autointerp.subject import Subject, pick_device
        from autointerp.sweep import load_replicas

        settings = readings[0].settings
        found = targets.load(settings, Subject.sketch(settings.subject))
        self.names = [reading.run.dictionary for reading in readings]
        wanted = [targets.collected_among(found, r.run.dictionary, r.collection) for r in readings]
        one = settings.subject.model_copy(update={"device": str(pick_device(settings.subject.device))})
        self.settings = settings.model_copy(update={"subject": one})
        self.replica = load_replicas(self.settings, wanted)[0]

    def read(self, text: str) -> Fired:
        """What fires on a text. Raises SubjectError for one that is empty or too long."""
        from autointerp.corpus import Context
        from autointerp.sweep import Place, Read, encode_batch

        check(text)
        subject, width = self.replica.subject, self.settings.collect.context_tokens
        ids = np.asarray(subject.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)
        if not len(ids):
            raise SubjectError(f"the text has no tokens for {subject.name}: type some words")
        reads = [
            Read(Context("the text", 0, 0, "typed", start, ids[start : start + width]), len(ids), Place())
            for start in range(0, len(ids), width)
        ]  # fmt: skip
        size = self.settings.subject.batch_contexts
        usable, firing = [], [list[np.ndarray]() for _ in self.names]
        for first in range(0, len(reads), size):
            batches = encode_batch(self.replica, self.settings, reads[first : first + size])
            usable.append(np.concatenate([u[:n] for u, n in zip(batches[0].usable, batches[0].lengths, strict=True)]))
            for rows, batch in zip(firing, batches, strict=True):
                rows.append(np.stack([batch.feature, batch.row + first * width, batch.value]))
        pieces = {int(token): subject.token_bytes(int(token)) for token in np.unique(ids)}
        return Fired(
            token_strings(ids.tolist(), pieces), np.flatnonzero(~np.concatenate(usable)).tolist(),
            {name: _by_feature(np.concatenate(rows, axis=1)) for name, rows in zip(self.names, firing, strict=True)},
        )  # fmt: skip


def check(text: str) -> None:
    """Raises SubjectError for a text that is empty or too long."""
    if not text.strip():
        raise SubjectError("the text is empty: type some words")
    if len(text) > LONGEST:
        raise SubjectError(f"a text has at most {LONGEST:,} characters, and this one has {len(text):,}: shorten it")


def _by_feature(rows: np.ndarray) -> list[Spikes]:
    """Columns of feature, position, activation -> the features, strongest first."""
    feature, position, value = rows[:, np.lexsort((rows[1], rows[0]))]
    cuts = np.flatnonzero(np.diff(feature)) + 1
    found = [
        Spikes(int(f[0]), p.astype(int).tolist(), v.tolist())
        for f, p, v in zip(*(np.split(column, cuts) for column in (feature, position, value)), strict=True) if len(f)
    ]  # fmt: skip
    return sorted(found, key=lambda spikes: (-spikes.peak, spikes.feature))
