"""The ray engine (extra `ray`): workers sweep shards, and their states are merged up a tree.

Ray schedules, retries and moves states; nothing of that is done here. A shard that a worker was lost with is begun
again, from its checkpoint where the run's folder is on storage that the workers share. Finished shards leave their
state there too, so a driver that was killed goes on with the others.
"""

import socket
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.config import Settings
from autointerp.corpus import Shard
from autointerp.errors import ConfigError, MissingExtra, UserError
from autointerp.sweep import Checkpoint, Kept, Place, Replica, identity_of, load_replicas, sweep
from autointerp.tally import Bar
from autointerp.targets import Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    State = dict[str, NDArray[np.generic]]

SHARDS_PER_WORKER = 4  # so that a lost worker, or a slow one, holds up little
RETRIES = 4  # lost workers that one shard survives
POLL_SECONDS = 0.5
CONNECT_SECONDS = 5.0


def sweep_on_ray(
    settings: Settings, targets: Sequence[Target], bar: Bar, folder: Path | None
) -> tuple[Kept, list[Path]]:
    """What a pass keeps, swept by the workers of a Ray cluster; and files to delete once the rows are written.

    Raises MissingExtra without Ray, ConfigError where no cluster answers, and whatever a worker raises.
    """
    ray = _connect(settings)
    try:
        gpus = 0 if settings.subject.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        workers = gpus or max(int(ray.cluster_resources().get("CPU", 1)) // settings.engine.cpus_per_worker, 1)
        n = settings.engine.shards or workers * SHARDS_PER_WORKER
        resources: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": settings.engine.cpus_per_worker}
        work = ray.remote(max_retries=RETRIES, **resources)(_sweep_shard)
        join = ray.remote(max_retries=RETRIES, num_cpus=1)(_merge_states)
        plan = with_absolute_paths(settings).model_dump_json()
        names = [target.dictionary.name for target in targets]
        where = None if folder is None else folder.resolve()
        bar.start("collect", total=n, unit="shards")
        pending = [work.remote(plan, names, i, n, where) for i in range(n)]
        state = _gather(ray, join, plan, names, pending, bar)
    finally:
        ray.shutdown()
    kept = Kept.nothing(settings, targets, _vocabulary(state))
    kept.restore(state)
    # Also what a pass with another number of shards left behind.
    return kept, [] if where is None else sorted(where.glob("collect.ray-*-of-*.checkpoint.npz"))


def with_absolute_paths(settings: Settings) -> Settings:
    """The settings with every path that exists here made absolute: workers run in folders of their own."""

    def absolute(text: str) -> str:
        path = Path(text).expanduser()
        return str(path.resolve()) if path.exists() else text

    dictionaries = tuple(d.model_copy(update={"source": absolute(d.source)}) for d in settings.dictionary)
    return settings.model_copy(update={
        "subject": settings.subject.model_copy(update={"model": absolute(settings.subject.model)}),
        "corpus": settings.corpus.model_copy(update={"source": absolute(settings.corpus.source)}),
        "collect": settings.collect.model_copy(update={"features": absolute(settings.collect.features)}),
        "dictionary": dictionaries,
    })  # fmt: skip


def _connect(settings: Settings) -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "engine.kind = 'ray'") from None
    address = settings.engine.address
    _refuse_silent(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    try:
        ray.init(address=address, **options)
    except ConnectionError as problem:
        if address != "auto":
            raise ConfigError(
                f"no Ray cluster at engine.address = {address!r}: {_line(problem)} (a cluster that asks for a token "
                "needs RAY_AUTH_MODE=token)"
            ) from None
        ray.init(include_dashboard=False, **options)  # none is running: one on this machine
    return ray


def _refuse_silent(address: str) -> None:
    """Ray tries for many minutes where nobody listens: a plain connection tells in seconds."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return  # auto, local, ray://...
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as problem:
        raise ConfigError(f"no Ray cluster at engine.address = {address!r}: {problem.strerror or problem}") from None


def _gather(ray: Any, join: Any, plan: str, names: list[str], pending: list[Any], bar: Bar) -> "State":
    """Merge states two by two as they come, on the workers: a tree whose shape does not matter to the result."""
    swept, ready = set(pending), []
    while pending:
        done, pending = ray.wait(pending, timeout=POLL_SECONDS)
        for reference in done:
            if reference in swept:
                bar.advance(1)
            ready.append(reference)
        while len(ready) > 1:
            pending.append(join.remote(plan, names, ready.pop(), ready.pop()))
    try:
        found: State = ray.get(ready[0])
    except ray.exceptions.RayTaskError as problem:
        if isinstance(problem.cause, UserError):
            raise problem.cause from None
        raise
    except _lost(ray) as problem:
        raise ConfigError(
            f"a shard lost its worker {RETRIES + 1} times ({_line(problem)}): run the same command again to go on, "
            "with more shards (engine.shards) if memory ran out"
        ) from None
    return found


def _lost(ray: Any) -> tuple[type[Exception], ...]:
    """What Ray raises when a task could not be finished because machines, workers or memory were lost."""
    found = ray.exceptions
    return found.WorkerCrashedError, found.OutOfMemoryError, found.NodeDiedError, found.ObjectLostError


# -- on the workers ----------------------------------------------------------------------------------------------------


def _sweep_shard(plan: str, names: list[str], i: int, n: int, folder: Path | None) -> "State":
    import torch

    settings, targets = _prepared(plan, tuple(names))
    torch.set_num_threads(settings.engine.cpus_per_worker)
    shard = Shard(i, n)
    checkpoint = None if folder is None else _checkpoint(folder, i, n, identity_of(targets, shard))
    with Bar(enabled=False) as bar:
        kept = sweep(settings, targets, bar, shard=shard, checkpoint=checkpoint, replicas=_replicas(plan, tuple(names)))
    if checkpoint is not None:
        checkpoint.save(kept, Place(), complete=True)
    return kept.state()


def _merge_states(plan: str, names: list[str], a: "State", b: "State") -> "State":
    settings, targets = _prepared(plan, tuple(names))
    merged, other = (Kept.nothing(settings, targets, _vocabulary(state)) for state in (a, b))
    merged.restore(a)
    other.restore(b)
    merged.merge(other)
    return merged.state()


@lru_cache(maxsize=2)
def _prepared(plan: str, names: tuple[str, ...]) -> tuple[Settings, list[Target]]:
    """Settings and targets, loaded once per worker."""
    from autointerp import targets
    from autointerp.subject import Subject

    settings = Settings.model_validate_json(plan)
    if settings.subject.device != "cpu":  # each worker has a GPU of its own
        settings = settings.model_copy(update={"subject": settings.subject.model_copy(update={"device": "auto"})})
    found = targets.load(settings, Subject.sketch(settings.subject))
    return settings, [target for target in found if target.dictionary.name in names]


@lru_cache(maxsize=1)
def _replicas(plan: str, names: tuple[str, ...]) -> list[Replica]:
    return load_replicas(*_prepared(plan, names))


def _vocabulary(state: "State") -> int:
    return len(state["0/token_count"])


def _checkpoint(folder: Path, i: int, n: int, identity: str) -> Checkpoint:
    return Checkpoint(folder / f"collect.ray-{i}-of-{n}.checkpoint.npz", identity)


def _line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
