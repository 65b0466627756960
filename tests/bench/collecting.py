"""Collection against its limit, in memory, read back, and merged."""

import gc
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from autointerp import config
from autointerp.collect import encode_batch, keep_freed_memory
from autointerp.corpus import Context, contexts
from autointerp.dictionary import Dictionary
from autointerp.dictionary.encode import ENCODE_CHUNK_TOKENS
from autointerp.keep import Batch, Keeper
from autointerp.store import Store
from autointerp.subject import Subject, pad

ROUNDS, BATCHES = 5, 6


class Speed(NamedTuple):
    """Medians over rounds in which the two take turns."""

    ratio: float
    collect: float  # tokens per second
    limit: float


def limit(width: int) -> Speed:
    """Collect against the bare cut forward pass plus the encoder's matrix product, same dtype, batches and threads."""
    keep_freed_memory()
    settings = config.load(Path("config.toml"), ["run.name=bench"])
    subject = Subject.load(settings.subject)
    hookpoint = subject.hookpoint(settings.subject.hookpoint)
    dictionary = random_dictionary(576, width, subject.device)
    size, tokens = settings.subject.batch_contexts, settings.collect.context_tokens
    stream = contexts(settings.corpus, subject.tokenizer, tokens, settings.collect.split_salt)
    found = [(i, c) for i, group in enumerate(stream) for c in group]
    batches = [found[i : i + size] for i in range(0, size * BATCHES * (ROUNDS + 1), size)]
    keeper = Keeper(settings.collect, width, subject.vocabulary_size, 0)
    buffer = torch.empty(ENCODE_CHUNK_TOKENS, width, dtype=torch.bfloat16)

    def bare(chunk: list[tuple[int, Context]]) -> None:
        ids, _ = pad([c.tokens for _, c in chunk], tokens)
        x = subject.activations(ids, [hookpoint])[hookpoint].reshape(-1, dictionary.d_in)
        with torch.inference_mode():
            for start in range(0, len(x), ENCODE_CHUNK_TOKENS):
                part = x[start : start + ENCODE_CHUNK_TOKENS]
                torch.mm(part, dictionary.W_enc, out=buffer[: len(part)])

    def collect(chunk: list[tuple[int, Context]]) -> None:
        keeper.add(encode_batch(settings, subject, hookpoint, dictionary, chunk))

    for chunk in batches[:BATCHES]:  # warm up both
        bare(chunk)
        collect(chunk)
    ratios, rates = [], {"bare": [], "collect": []}
    for n in range(ROUNDS):
        seconds = {"bare": 0.0, "collect": 0.0}
        for chunk in batches[BATCHES * (n + 1) : BATCHES * (n + 2)]:
            for name, work in (("bare", bare), ("collect", collect)):
                started = time.perf_counter()
                work(chunk)
                seconds[name] += time.perf_counter() - started
        for name, spent in seconds.items():
            rates[name].append(BATCHES * size * tokens / spent)
        ratios.append(seconds["bare"] / seconds["collect"])
    return Speed(statistics.median(ratios), statistics.median(rates["collect"]), statistics.median(rates["bare"]))


def random_dictionary(d_in: int, width: int, device: torch.device) -> Dictionary:
    """TopK, k = 32, random unit rows, bf16."""
    rows = torch.nn.functional.normalize(torch.randn(width, d_in, generator=torch.Generator().manual_seed(0)), dim=1)
    zeros = torch.zeros(width), torch.zeros(d_in)
    found = Dictionary("random", "topk", rows.T.contiguous(), zeros[0], rows, zeros[1], k=32)
    return found.to(device, torch.bfloat16)


def random_batch(random: np.random.Generator, ordinal: int, cfg: config.CollectSection, width: int) -> Batch:
    """A document of 32 passages with 32 firing features a token, as the keeper receives it."""
    n, per_passage = 32, cfg.passage_tokens
    rows = np.repeat(np.arange(n * per_passage), 32)
    # Skewed like real features: some fire often, most rarely.
    feature = np.minimum((width * random.random((n * per_passage, 32)) ** 3).astype(np.int64), width - 1)
    feature = np.sort(feature, axis=1)
    keep = np.ones(feature.shape, dtype=bool)
    keep[:, 1:] = feature[:, 1:] != feature[:, :-1]
    value = random.gamma(2.0, 4.0, feature.shape).astype(np.float32) + 0.01
    return Batch(
        tokens=random.integers(0, 500, (n, per_passage)).astype(np.int32), lengths=np.full(n, per_passage),
        usable=np.ones((n, per_passage), dtype=bool), document=np.full(n, ordinal),
        document_key=np.full(n, ordinal * 7919 + 1, dtype=np.uint64), split=np.full(n, ordinal % 3),
        start=np.arange(n) * per_passage, row=rows[keep.reshape(-1)], feature=feature[keep], value=value[keep],
    )  # fmt: skip


def merge_difference() -> float:
    """Kept (feature, passage) pairs and counters that differ between four merged shards and one pass."""
    cfg, width = config.CollectSection(panel=64), 512
    batches = [random_batch(np.random.default_rng(i), i, cfg, width) for i in range(40)]
    whole = Keeper(cfg, width, 500, 0)
    shards = [Keeper(cfg, width, 500, 0) for _ in range(4)]
    for i, batch in enumerate(batches):
        whole.add(batch)
        shards[i % 4].add(batch)
    whole.settle()
    merged = shards[2]
    merged.settle()
    for n in (0, 3, 1):
        merged.merge(shards[n], 0)
    differ = int((whole.sums != merged.sums).sum() + (whole.n_documents != merged.n_documents).sum())
    for a, b in zip(whole.shelves, merged.shelves, strict=True):
        one = {*zip(whole.pool.feature[a.entry], whole.pool.passage[a.entry], strict=True)}
        other = {*zip(merged.pool.feature[b.entry], merged.pool.passage[b.entry], strict=True)}
        differ += len(one ^ other)
    return differ + len({*whole.panel_id} ^ {*merged.panel_id})


def memory_ratio() -> float:
    """Largest resident memory of a keeper that read 2M tokens, over that of one that read 250k; each in a process."""
    script = (
        "import sys, numpy as np\n"
        "from autointerp import config\n"
        "from autointerp.collect import keep_freed_memory\n"
        "from autointerp.keep import Keeper\n"
        "from autointerp.tally import peak_memory_mb\n"
        "from tests.bench.collecting import random_batch\n"
        "keep_freed_memory(); cfg = config.CollectSection(panel=256); k = Keeper(cfg, 1024, 500, 0)\n"
        "for i in range(int(sys.argv[1]) // 2048): k.add(random_batch(np.random.default_rng(i), i, cfg, 1024))\n"
        "k.settle(); print(peak_memory_mb())\n"
    )
    peaks = []
    for tokens in (250_000, 2_000_000):
        done = subprocess.run([sys.executable, "-c", script, str(tokens)], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    return peaks[1] / peaks[0]


def read_milliseconds() -> float | None:
    """Median time to read one feature's whole example set from results/demo; None where there is no such run."""
    path = Path("results/demo/run.duckdb")
    if not path.is_file():
        return None
    with Store.read(path) as store:
        run = store.latest_run()
        collection = store.collection(run.collection_id)
        assert collection is not None
        random = np.random.default_rng(0)
        times = []
        gc.disable()
        for feature in random.integers(0, collection["width"], 100).tolist():
            started = time.perf_counter()
            store.example_set(run.collection_id, feature)
            times.append((time.perf_counter() - started) * 1000)
        gc.enable()
    return statistics.median(times)


