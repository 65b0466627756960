"""Collection side by side with EleutherAI's delphi (eai-delphi 0.1.3), on a CPU, over the same windows.

Both get the default subject and hookpoint, the same random TopK dictionary of k = 32, full contexts of 128 tokens, the
same number of threads, and batches of 32 contexts: delphi's default, and within 3 % of its best of 8, 32 and 64.
delphi is given the model without its head, as its command line does, and the encoder of `tests.peers`, which spares it
a pass over the dense latents that sparsify makes. What is timed is delphi's `LatentCache.run`, and on our side
`encode_batch` and `Keeper.add` over the round's batches and a `settle` at its end: neither tokenises nor writes to disk.
Attention sinks are not masked here, so both see every activation, and the numbers that they see are compared.

delphi runs in processes of its own, which wait while we work and work while we wait: collection tells glibc to keep
freed memory, which speeds up delphi as well where it is told so, and is no part of it. How fast it would then be is
measured beside.
"""

import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp import config
from autointerp.dictionary import Dictionary
from autointerp.subject import Subject, quiet_transformers, resolve_model
from autointerp.sweep import keep_freed_memory
from tests import peers
from tests.bench.collecting import Collector, random_dictionary

ROUNDS, FEWER_ROUNDS = 5, 3  # the ratio with a bar, the others
BATCH, BATCHES = 32, 2  # contexts, and batches per round
CPU = torch.device("cpu")


class Against(NamedTuple):
    """Medians over rounds in which all take turns."""

    ratio: float  # collect over delphi in the same dtype, bfloat16
    fp32: float  # collect in bfloat16 over delphi in float32, the dtype of its dictionaries
    tuned: float  # collect over delphi in bfloat16 with our setting of the allocator
    collect: float  # tokens per second
    delphi: float  # the same, in bfloat16


class Timed(NamedTuple):
    """One round of one side."""

    seconds: float
    firings: int  # (position, feature) pairs seen to fire


def against(width: int) -> Against:
    """Collect against delphi on a random dictionary of `width` features.

    Raises ModuleNotFoundError naming the command that installs delphi, and RuntimeError where one side sees more.
    """
    peers.latent_cache()
    keep_freed_memory()
    # No norm is too large here: nothing is masked that delphi keeps.
    settings = config.load(Path("config.toml"), [
        "run.name=bench", "subject.device=cpu", "subject.max_norm_ratio=1e9", f"subject.batch_contexts={BATCH}",
    ])  # fmt: skip
    subject = Subject.load(settings.subject)
    dictionary = random_dictionary(576, width, CPU)
    collector = Collector(settings, subject, dictionary)
    batches = collector.batches(1 + BATCHES * ROUNDS, only_full=True)  # delphi knows no padding
    tokens = np.stack([read.context.tokens for batch in batches for read in batch]).astype(np.int64)

    def collect(part: slice) -> Timed:
        before = int(collector.keeper.n_tokens.sum())
        started = time.perf_counter()
        for batch in batches[part]:
            collector.add(batch)
        collector.keeper.settle()
        return Timed(time.perf_counter() - started, int(collector.keeper.n_tokens.sum()) - before)

    name, hookpoint = settings.subject.model, subject.hookpoint(settings.subject.hookpoint)
    with Delphi(name, hookpoint, dictionary, tokens) as plain, Delphi(name, hookpoint, dictionary, tokens, True) as tuned:
        sides: dict[str, Callable[[slice], Timed]] = {
            "collect": collect,
            "delphi": functools.partial(plain.run, "bfloat16"),
            "fp32": functools.partial(plain.run, "float32"),
            "tuned": functools.partial(tuned.run, "bfloat16"),
        }
        for side in sides.values():
            side(slice(1))  # warm up
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for n in range(ROUNDS):
            names = list(sides)[: None if n < FEWER_ROUNDS else 2]
            part = slice(1 + BATCHES * n, 1 + BATCHES * (n + 1))
            found = {side: sides[side](part) for side in (names[::-1] if n % 2 else names)}
            if len({timed.firings for timed in found.values()}) != 1:
                raise RuntimeError(f"the sides do not see the same number of firings: {found}")
            for side, timed in found.items():
                seconds[side].append(timed.seconds)

    def ratio(side: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds["collect"], seconds[side], strict=False))

    def rate(side: str) -> float:
        return BATCHES * BATCH * tokens.shape[1] / statistics.median(seconds[side])

    return Against(ratio("delphi"), ratio("fp32"), ratio("tuned"), rate("collect"), rate("delphi"))


class Delphi:
    """delphi in a process of its own, with the model and the dictionary in both dtypes. A context manager.

    tuned  with collection's setting of the allocator
    """

    def __init__(
        self, name: str, hookpoint: str, dictionary: Dictionary, tokens: NDArray[np.int64], tuned: bool = False
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._line, self._theirs = spawn.Pipe()
        weights = dictionary.W_enc.T.float().numpy()
        asked = (self._theirs, name, hookpoint, weights, dictionary.k, tokens, torch.get_num_threads(), tuned)
        self._process = spawn.Process(target=_serve, args=asked, daemon=True)

    def __enter__(self) -> "Delphi":
        self._process.start()
        self._theirs.close()  # so that a process that ends closes the line
        return self

    def __exit__(self, *exc: object) -> None:
        self._line.close()
        self._process.join()

    def run(self, dtype: str, batches: slice) -> Timed:
        """`LatentCache.run` over a slice of the batches."""
        self._line.send((dtype, slice(*(n and n * BATCH for n in (batches.start, batches.stop)))))
        try:
            found: Timed = self._line.recv()
        except EOFError:
            raise RuntimeError("delphi's process ended; its traceback is above") from None
        return found


def _serve(
    line: Connection, name: str, hookpoint: str, weights: NDArray[np.float32], k: int, tokens: NDArray[np.int64],
    threads: int, tuned: bool,
) -> None:  # fmt: skip
    """The process: answer (dtype, slice of the windows) with Timed until the line is closed."""
    from transformers import AutoModel

    torch.set_num_threads(threads)
    if tuned:
        keep_freed_memory()
    sides = {}
    for dtype in (torch.bfloat16, torch.float32):
        with quiet_transformers():
            model = AutoModel.from_pretrained(resolve_model(name), dtype=dtype).eval()
        weight = torch.from_numpy(weights).to(dtype).contiguous()
        zeros = torch.zeros(len(weight), dtype=dtype), torch.zeros(weight.shape[1], dtype=dtype)
        sides[str(dtype).removeprefix("torch.")] = model, peers.encoder(weight, *zeros, k)
    windows = torch.from_numpy(tokens)
    while True:
        try:
            dtype_name, part = line.recv()
        except EOFError:
            os._exit(0)  # nothing is left to do, and duckdb's bindings would complain of leaks on the way out
        model, encode = sides[dtype_name]
        # AutoModel's names are without the causal model's own prefix.
        place = hookpoint.removeprefix(f"{model.base_model_prefix}.")
        started = time.perf_counter()
        cache = peers.run_cache(model, place, encode, windows[part], BATCH)
        seconds = time.perf_counter() - started
        line.send(Timed(seconds, len(cache.latent_activations[place])))
        del cache
