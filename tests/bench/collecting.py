"""Collection against its limit, in memory, read back, and merged."""

import gc
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from autointerp import config
from autointerp.corpus import contexts
from autointerp.dictionary import Dictionary
from autointerp.dictionary.encode import ENCODE_CHUNK_TOKENS
from autointerp.keep import Keeper
from autointerp.store import Store
from autointerp.subject import Subject, pad
from autointerp.sweep import Place, Read, Replica, encode_batch, keep_freed_memory

ROUNDS, BATCHES = 5, 6


class Speed(NamedTuple):
    """Medians over rounds in which the two take turns."""

    ratio: float
    collect: float  # tokens per second
    limit: float


class Collector:
    """Our collection, fed batch by batch: what `sweep` does between reading and the end, on the CPU."""

    def __init__(self, settings: config.Settings, subject: Subject, dictionary: Dictionary) -> None:
        self.settings = settings
        self.replica = Replica(subject, [dictionary], [subject.hookpoint(settings.subject.hookpoint)], [0])
        self.keeper = Keeper(settings.collect, dictionary.width, subject.vocabulary_size, settings.run.seed)

    def batches(self, n: int, only_full: bool = False) -> list[list[Read]]:
        """The first n batches of the corpus."""
        size, tokens = self.settings.subject.batch_contexts, self.settings.collect.context_tokens
        stream = contexts(
            self.settings.corpus, self.replica.subject.tokenizer, tokens, self.settings.collect.split_salt
        )
        found = (Read(c, 0, Place()) for group in stream for c in group if not only_full or len(c.tokens) == tokens)
        reads = [read for read, _ in zip(found, range(n * size), strict=False)]
        return [reads[i : i + size] for i in range(0, len(reads), size)]

    def add(self, batch: list[Read]) -> None:
        """Collect a batch."""
        self.keeper.add(encode_batch(self.replica, self.settings, batch)[0])


def limit(width: int) -> Speed:
    """Collect against the bare cut forward pass plus the encoder's matrix product, same dtype, batches and threads."""
    keep_freed_memory()
    settings = config.load(Path("config.toml"), ["run.name=bench"])
    subject = Subject.load(settings.subject)
    hookpoint = subject.hookpoint(settings.subject.hookpoint)
    dictionary = random_dictionary(576, width, subject.device)
    size, tokens = settings.subject.batch_contexts, settings.collect.context_tokens
    collector = Collector(settings, subject, dictionary)
    batches = collector.batches(BATCHES * (ROUNDS + 1))
    buffer = torch.empty(ENCODE_CHUNK_TOKENS, width, dtype=torch.bfloat16)

    def bare(chunk: list[Read]) -> None:
        ids, _ = pad([read.context.tokens for read in chunk], tokens)
        x = subject.activations(ids, [hookpoint])[hookpoint].reshape(-1, dictionary.d_in)
        with torch.inference_mode():
            for start in range(0, len(x), ENCODE_CHUNK_TOKENS):
                part = x[start : start + ENCODE_CHUNK_TOKENS]
                torch.mm(part, dictionary.W_enc, out=buffer[: len(part)])

    for chunk in batches[:BATCHES]:  # warm up both
        bare(chunk)
        collector.add(chunk)
    ratios, rates = [], {"bare": [], "collect": []}
    for n in range(ROUNDS):
        seconds = {"bare": 0.0, "collect": 0.0}
        for chunk in batches[BATCHES * (n + 1) : BATCHES * (n + 2)]:
            for name, work in (("bare", bare), ("collect", collector.add)):
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


TABLES = ("collection", "document", "passage", "token", "feature", "excerpt", "panel")


def tiny_run(folder: Path, sentences: int, documents: int, width: int, *more: str) -> list[str]:
    """Arguments that collect a generated corpus with a tiny random subject and dictionary, made in `folder`."""
    from tests.conftest import write_corpus, write_dictionary, write_subject

    if not (folder / "subject").is_dir():
        write_subject(folder / "subject", write_corpus(folder / "vocabulary"))
        write_dictionary(folder / "sae", width=width, k=8)
    corpus = folder / f"corpus-{sentences * documents}"
    if not corpus.is_dir():
        write_corpus(corpus, documents, sentences)
    keys = {
        "run.results": folder / "results", "subject.model": folder / "subject", "subject.hookpoint": "model.layers.1",
        "subject.dtype": "float32", "dictionary.source": folder / "sae", "corpus.source": corpus, "corpus.tokens": 0,
        "dictionary.check": "off",
    }  # fmt: skip
    command = [sys.executable, "-m", "autointerp", "collect", *more]
    return command + [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]


def merge_difference() -> int:
    """Rows of every table of collect that differ between four merged shards and one pass, by the real commands."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quiet = {"check": True, "capture_output": True}
        subprocess.run(tiny_run(folder, 45, 80, 64), **quiet)
        for i in range(1, 5):
            subprocess.run(tiny_run(folder, 45, 80, 64, "--shard", f"{i}/4"), **quiet)
        run = folder / "results" / "demo"
        shards = sorted(map(str, run.glob("shard-*.duckdb")), reverse=True)
        merged = run / "merged.duckdb"
        subprocess.run([sys.executable, "-m", "autointerp", "merge", *shards, "-o", str(merged)], **quiet)
        return sum(different_rows(run / "run.duckdb", merged).values())


def different_rows(a: Path, b: Path) -> dict[str, int]:
    """Rows of each table of collect that only one of two databases has."""
    import duckdb

    with duckdb.connect() as db:
        db.execute(f"ATTACH '{a}' AS a (READ_ONLY); ATTACH '{b}' AS b (READ_ONLY)")
        return {
            table: db.execute(
                f"SELECT count(*) FROM ((FROM a.{table} EXCEPT ALL FROM b.{table}) UNION ALL "
                f"(FROM b.{table} EXCEPT ALL FROM a.{table}))"
            ).fetchall()[0][0]
            for table in TABLES
        }


def memory_ratio() -> float:
    """Largest resident memory of `collect` on 2M tokens, over that on 250k; each in a process of its own.

    A tiny random subject and 16 features that fire everywhere, so that at 250k tokens every list is full of passages of
    its own: what a larger corpus adds beyond that is what this asks about.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peaks = []
        for documents in (125, 1000):  # of about 2,000 tokens
            command = tiny_run(folder, 120, documents, 16, "--set", "collect.panel=512", "--set", f"run.name={documents}")
            subprocess.run(command, check=True, capture_output=True)
            with Store.read(folder / "results" / str(documents) / "run.duckdb") as store:
                ((peak,),) = store.query("SELECT peak_memory_mb FROM stage WHERE stage = 'collect'")[1]
                peaks.append(peak)
    return peaks[1] / peaks[0]


def read_milliseconds() -> tuple[float, float] | None:
    """Median times to read one feature's whole example set from results/demo, and its texts besides.

    None where there is no such run.
    """
    path = Path("results/demo/run.duckdb")
    if not path.is_file():
        return None
    with Store.read(path) as store:
        run = store.latest_run()
        collection = store.collection(run.collection_id)
        assert collection is not None
        random = np.random.default_rng(0)
        times, texts = [], []
        gc.disable()
        for feature in random.integers(0, collection["width"], 100).tolist():
            started = time.perf_counter()
            found = store.example_set(run.collection_id, feature)
            times.append((time.perf_counter() - started) * 1000)
            passages = [excerpts.passage for excerpts in found.values()]
            if passages:
                store.passages(run.collection_id, np.concatenate(passages))
                texts.append((time.perf_counter() - started) * 1000)
        gc.enable()
    return statistics.median(times), statistics.median(texts)
