"""Collection against its limit on a GPU: a random-weight Llama-shaped subject of 1.2B, 65,536 TopK features, bf16."""

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from autointerp import config
from autointerp.corpus import Context
from autointerp.keep import Keeper
from autointerp.subject import Subject, pad
from autointerp.sweep import IN_FLIGHT, Flight, Place, Read, Replica, land, launch
from tests.bench.collecting import random_dictionary

WIDTH, D_MODEL, LAYERS, HOOKPOINT, VOCABULARY = 65_536, 2048, 16, "model.layers.11", 32_000
BATCH_CONTEXTS, ROUNDS, BATCHES = 64, 5, 16


class Found(NamedTuple):
    """Medians over rounds in which collection and its limit take turns."""

    ratio: float
    collect: float  # tokens per second
    limit: float
    memory_gb: float  # largest memory allocated on the device
    device: str


class NoSpecials:
    """Stands in for a tokenizer: the text is made of token ids, and none of them is special."""

    all_special_ids: tuple[int, ...] = ()


def subject(device: torch.device) -> Subject:
    """Random weights; the shape of Llama-3.2-1B."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=D_MODEL, intermediate_size=8192, num_hidden_layers=LAYERS,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    with device:
        model = LlamaForCausalLM(shape).to(torch.bfloat16).eval()
    return Subject(model, NoSpecials(), "random", device)  # type: ignore[arg-type]


def batches(n: int, settings: config.Settings) -> list[list[Read]]:
    """Contexts of random token ids, eight to a document."""
    random = np.random.default_rng(0)
    width = settings.collect.context_tokens
    found = []
    for i in range(n * BATCH_CONTEXTS):
        key = 1 + i // 8
        ids = random.integers(0, VOCABULARY, width).astype(np.int32)
        context = Context(f"{key:016x}", key, key % 3, "random", i % 8 * width, ids)
        found.append(Read(context, 8 * width, Place()))
    return [found[i : i + BATCH_CONTEXTS] for i in range(0, len(found), BATCH_CONTEXTS)]


def limit(device: torch.device) -> Found:
    """Collect against the bare cut forward pass plus the encoder's product, both queued without waiting."""
    settings = config.load(Path("config.toml"), ["run.name=bench"])
    model = subject(device)
    dictionary = random_dictionary(D_MODEL, WIDTH, device)
    replica = Replica(model, [dictionary.for_encoding()], [HOOKPOINT], [0])
    keeper = Keeper(settings.collect, WIDTH, VOCABULARY, 0)
    work = batches(BATCHES * (ROUNDS + 1), settings)

    def bare(part: list[list[Read]]) -> None:
        for batch in part:
            ids, _ = pad([read.context.tokens for read in batch], settings.collect.context_tokens)
            x = model.activations(ids.pin_memory() if device.type == "cuda" else ids, [HOOKPOINT])[HOOKPOINT]
            with torch.inference_mode():
                for _, chunk in replica.dictionaries[0]._chunks(x.reshape(-1, D_MODEL)):
                    torch.mm(chunk, dictionary.W_enc)

    def collect(part: list[list[Read]]) -> None:
        flying: list[Flight] = []
        for batch in part:
            flying.append(launch(replica, settings, batch))
            if len(flying) >= IN_FLIGHT:
                keeper.add(land(flying.pop(0), settings)[0])
        for flight in flying:
            keeper.add(land(flight, settings)[0])

    rates: dict[str, list[float]] = {"bare": [], "collect": []}
    for n in range(ROUNDS + 1):
        part = work[n * BATCHES : (n + 1) * BATCHES]
        for name, function in (("bare", bare), ("collect", collect)):
            _wait(device)
            started = time.perf_counter()
            function(part)
            _wait(device)
            if n:  # the first round warms up
                seconds = time.perf_counter() - started
                rates[name].append(len(part) * BATCH_CONTEXTS * settings.collect.context_tokens / seconds)
    ratio = statistics.median(c / b for c, b in zip(rates["collect"], rates["bare"], strict=True))
    on_gpu = device.type == "cuda"
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else 0.0
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    return Found(ratio, statistics.median(rates["collect"]), statistics.median(rates["bare"]), memory, name)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
