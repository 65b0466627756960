"""STAGE 1: corpus -> document, passage, token, feature, excerpt, panel.

Whatever the engine, a pass is a sweep over shards whose states are merged; the rows are written in one transaction at
its end.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from autointerp import kept as rows
from autointerp.config import Settings
from autointerp.corpus import Shard
from autointerp.errors import CorpusError
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.sweep import Checkpoint, Kept, Replica, identity_of, sweep
from autointerp.tally import Bar, Tally
from autointerp.targets import Target


def pending(store: Store, settings: Settings, targets: Sequence[Target], shard: Shard | None = None) -> list[Target]:
    """The targets that have no collection yet."""
    return [t for t in targets if store.collection(rows.header(settings, t, shard)["collection_id"]) is None]


def run(
    store: Store, settings: Settings, targets: Sequence[Target], bar: Bar, shard: Shard | None = None,
    replicas: list[Replica] | None = None,
) -> Tally:  # fmt: skip
    """Collect for the dictionaries that have no collection yet, in one pass. Returns the tally: one unit is a document.

    shard     reads that part of the corpus alone; `autointerp merge` puts parts together
    replicas  the subject and the pending dictionaries, where they are loaded already
    Raises CorpusError, SubjectError or DictionaryError for what the user can put right.
    """
    wanted = pending(store, settings, targets, shard)
    if not wanted:
        return Tally("collect")
    started = time.perf_counter()
    folder = None if store.path is None else store.path.parent
    checkpoint = None
    if settings.engine.kind == "ray" and shard is None:
        from autointerp.cluster import sweep_on_ray

        found, leftovers = sweep_on_ray(settings, wanted, bar, folder)
    else:
        if store.path is not None:
            checkpoint = Checkpoint(checkpoint_path(store.path, shard), identity_of(wanted, shard))
        found = sweep(settings, wanted, bar, shard=shard, checkpoint=checkpoint, replicas=replicas)
        leftovers = [] if checkpoint is None else [checkpoint.path]
        if shard is None and folder is not None:  # of workers of an engine that this pass has done without
            leftovers += sorted(folder.glob("collect.ray-*-of-*.checkpoint.npz"))
    if shard is None and not any(keeper.total_tokens.sum() for keeper in found.keepers):
        raise CorpusError(f"corpus {settings.corpus.source!r} gave no usable token: every position is masked")
    _write(store, settings, wanted, found, shard)
    store.publish()
    for path in leftovers:
        path.unlink(missing_ok=True)
    first = found.keepers[0]
    return Tally(
        "collect", ok=int(first.total_documents.sum()), tokens=int(first.total_tokens.sum()) + first.n_masked,
        seconds=time.perf_counter() - started,
    )  # fmt: skip


def _write(store: Store, settings: Settings, targets: Sequence[Target], found: Kept, shard: Shard | None) -> None:
    reader = Subject.reader(settings.subject)
    with store.transaction():
        for target, keeper in zip(targets, found.keepers, strict=True):
            head = rows.header(settings, target, shard)
            rows.write(store, head, keeper, found.documents, reader.token_bytes, target.features)


def checkpoint_path(database: Path, shard: Shard | None) -> Path:
    """Where a pass saves what it has kept so far: in the run's folder; of a shard, beside its database by its name."""
    return database.with_name("collect.checkpoint.npz" if shard is None else f"{database.stem}.checkpoint.npz")
