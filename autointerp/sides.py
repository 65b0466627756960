"""A dictionary that is compared with another one: its directions, the activations that a run kept, its labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autointerp import hooks, targets
from autointerp.config import Settings
from autointerp.dictionary import Dictionary
from autointerp.dictionary import load as load_dictionary
from autointerp.errors import DictionaryError, StoreError, SubjectError, UserError, nearest
from autointerp.keys import folder_fingerprint
from autointerp.relate import decoder_directions
from autointerp.rows import Run
from autointerp.store import PanelRows, Store
from autointerp.store_relations import heaviest_tokens, labels_of
from autointerp.subject import Subject, resolve_model

SPLITS = ("explain", "select", "score")  # whose panels are read: nothing that is found here enters a grade


class RelationError(UserError):
    """Two dictionaries that cannot be compared."""


@dataclass(frozen=True)
class Kept:
    """What a run kept of one dictionary's activations on its panel."""

    panel: PanelRows  # of all splits
    length: NDArray[np.int64]  # [passage] positions that count
    same_text: tuple[Any, ...]  # two collections for which this is equal give a passage of one id the same tokens


@dataclass(frozen=True)
class Side:
    """One of the two. Where it is a dictionary without a run, it has directions alone."""

    name: str  # as it was asked for
    dictionary: Dictionary
    features: NDArray[np.int64]  # that are compared, ascending: those that fired in the run; without one, all
    hookpoint: str | None  # canonical; None where a dictionary's files do not say
    kept: Kept | None
    labels: Mapping[int, str]
    tokens: Mapping[int, list[str]]  # heaviest tokens of features, for want of a label

    def directions(self) -> Tensor:
        """Decoder rows of the features, with norm 1: float32 [feature, d_out]; [0, d_out] for plain units."""
        numbers, rows = decoder_directions(self.dictionary)
        if not len(numbers):
            return rows
        places: Tensor = rows[np.searchsorted(numbers, self.features)]
        return places


def open_all(a: str, others: list[str]) -> tuple[Side, list[Side], Subject]:
    """The run `a`; each of the others, a run or a dictionary; and their subject, without weights.

    A run is its folder, with `@NAME` for one of several dictionaries, or `@RUN_ID`. Raises RelationError where they
    have no common subject, StoreError or DictionaryError for what is not there.
    """
    store, run = _open_run(a)
    with store:
        settings = Settings.model_validate_json(run.settings)
        sketch = Subject.sketch(settings.subject)
        mine = _side(store, run, a, settings, sketch)
    found = [_other(text, settings, sketch) for text in others]
    return mine, found, sketch


def _other(text: str, settings: Settings, sketch: Subject) -> Side:
    if not _is_run(text):
        return _dictionary(text, settings, sketch)
    store, run = _open_run(text)
    with store:
        theirs = Settings.model_validate_json(run.settings)
        subjects = [(folder_fingerprint(resolve_model(s.subject.model)), s.subject_seed) for s in (settings, theirs)]
        if subjects[0] != subjects[1]:
            names = [s.subject.model + (" with random weights" if s.subject.random else "") for s in (settings, theirs)]
            raise RelationError(
                f"{text} is of another subject: expected features of {names[0]}, got features of {names[1]}; compare "
                "dictionaries of one subject"
            )
        return _side(store, run, text, theirs, sketch)


def _is_run(text: str) -> bool:
    path = _folder(text)[0]
    return (path / "run.duckdb").is_file()


def _folder(text: str) -> tuple[Path, str]:
    """Folder, and what follows an @."""
    where, _, name = text.rpartition("@") if "@" in Path(text).name else (text, "", "")
    path = Path(where)
    return (path.parent if path.suffix == ".duckdb" else path), name


def _open_run(text: str) -> tuple[Store, Run]:
    folder, name = _folder(text)
    store = Store.read(folder / "run.duckdb")
    try:
        latest = {run.dictionary: run for run in store.latest_runs()}
        if not name:
            return store, next(iter(latest.values()))
        if name in latest:
            return store, latest[name]
        found = [run for run in store.runs() if run.run_id.startswith(name)]
        if len(found) != 1:
            known = [*latest, *(run.run_id for run in store.runs())]
            raise RelationError(
                f"{text}: no single run or dictionary {name!r}{nearest(name, known)}; it holds {', '.join(known)}"
            )
        return store, found[0]
    except BaseException:
        store.close()
        raise


def _side(store: Store, run: Run, name: str, settings: Settings, sketch: Subject) -> Side:
    collection_id = run.collection_id
    row = store.collection(collection_id)
    if row is None:
        raise StoreError(f"{name}: nothing has been collected yet; `autointerp run` does it")
    dictionary = targets.collected_among(targets.load(settings, sketch), run.dictionary, row).dictionary
    fired = np.flatnonzero(store.features(collection_id)["n_tokens"].sum(axis=0) > 0)
    return Side(
        name, dictionary, fired, row["hookpoint"], _kept(store, row, settings), labels_of(store, run),
        heaviest_tokens(store, collection_id),
    )  # fmt: skip


def _kept(store: Store, row: Mapping[str, Any], settings: Settings) -> Kept:
    parts = [store.panel(row["collection_id"], split) for split in SPLITS]  # type: ignore[arg-type]
    ends = np.cumsum([0, *(len(part.features) for part in parts)])
    whole = PanelRows(
        np.concatenate([part.passage for part in parts]),
        np.concatenate([[0], *(part.offsets[1:] + end for part, end in zip(parts, ends, strict=False))]),
        *(np.concatenate([part[i] for part in parts]) for i in (2, 3, 4)),
    )
    texts = store.passages(row["collection_id"], whole.passage)
    length = np.array([len(texts[p].tokens) - len(texts[p].masked) for p in whole.passage.tolist()], dtype=np.int64)
    same = (row["context_tokens"], row["passage_tokens"], settings.subject.prepend_bos)
    return Kept(whole, length, same)


def _dictionary(text: str, settings: Settings, sketch: Subject) -> Side:
    """A dictionary by its folder or name. What its files do not say is taken to be as in the run."""
    try:
        found = load_dictionary(text)
    except DictionaryError as problem:
        raise RelationError(f"{text} is neither a run (a folder with run.duckdb) nor a dictionary: {problem}") from None
    seed = found.subject_seed
    if seed is not None and seed != settings.subject_seed:
        raise RelationError(
            f"{text}: trained on a subject of random weights (seed {seed}): expected a dictionary of "
            f"{settings.subject.model} as it was trained"
        )
    said = found.hookpoint_out if found.transcoder else found.hookpoint
    try:
        hookpoint = None if said is None else sketch.hookpoint(said)
    except SubjectError as problem:
        raise RelationError(f"{text} is of another subject than {settings.subject.model}: {problem}") from None
    return Side(text, found, np.arange(found.width), hookpoint, None, {}, {})


def space(side: Side, sketch: Subject) -> str | None:
    """Where the rows of a dictionary lie: `residual stream`, or a hookpoint; None where its files do not say."""
    said = side.dictionary.hookpoint_out if side.dictionary.transcoder else side.hookpoint
    if said is None:
        return None
    hook = hooks.parse(sketch.hookpoint(said) if side.dictionary.transcoder else said)
    return "the residual stream" if hook.module.rpartition(".")[2].isdigit() else str(hook)
