"""Small real parts: a random Llama with its own tokenizer, a random dictionary, a generated corpus. No network."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autointerp import config
from autointerp.config import Settings

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the hub fails at once instead of waiting


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, where it is loaded
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `-n auto`: one more than there are cores, for a fifth of the tests' time is waiting (for servers that
    hang, processes that start, kills)."""
    return (os.cpu_count() or 1) + 1


NAMES = ["Ada", "Bela", "Cleo", "Dora", "Emil", "Fritz", "Gita", "Hugo", "Iris", "Jonas"]
PLACES = ["river", "mountain", "harbour", "village", "castle", "forest", "market", "bridge"]
VERBS = ["walked", "drove", "sailed", "wandered", "hurried", "climbed", "returned", "looked"]
COLOURS = ["red", "green", "blue", "yellow", "white", "black", "golden", "silver"]


def sentence(random: np.random.Generator) -> str:
    """A sentence from the word lists, so that tokens and topics repeat as they do in text."""
    pick = {name: str(random.choice(words)) for name, words in (("n", NAMES), ("p", PLACES), ("v", VERBS), ("c", COLOURS))}
    return f"{pick['n']} {pick['v']} to the {pick['c']} {pick['p']}, and it was {random.integers(1, 99)} o'clock."


def write_corpus(folder: Path, documents: int = 80, sentences: int = 45) -> Path:
    """A folder of .txt documents."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    for i in range(documents):
        text = " ".join(sentence(random) for _ in range(sentences))
        (folder / f"{i:03}.txt").write_text(text, "utf-8")
    return folder


def write_dictionary(folder: Path, d_in: int = 32, width: int = 64, k: int = 4, architecture: str = "topk", seed: int = 0) -> Path:
    """A SAELens folder with random unit-norm weights."""
    folder.mkdir(parents=True, exist_ok=True)
    decoder = torch.nn.functional.normalize(torch.randn(width, d_in, generator=torch.Generator().manual_seed(seed)), dim=1)
    tensors = {
        "W_enc": decoder.T.contiguous(), "W_dec": decoder,
        "b_enc": torch.zeros(width) if architecture == "topk" else torch.full((width,), -1.0), "b_dec": torch.zeros(d_in),
    }  # fmt: skip
    save_file(tensors, folder / "sae_weights.safetensors")
    cfg = {"architecture": architecture, "d_in": d_in, "d_sae": width, "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps(cfg | ({"k": k} if architecture == "topk" else {})))
    return folder


def write_subject(folder: Path, corpus: Path) -> Path:
    """A random Llama of 3 layers, d = 32, with a tokenizer of 400 pieces trained on the corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train([str(p) for p in sorted(corpus.glob("*.txt"))], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    ))  # fmt: skip
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny subject (3 layers, d = 32), a dictionary for layer 1, and a corpus of 80 documents."""
    root = tmp_path_factory.mktemp("tiny")
    corpus = write_corpus(root / "corpus")
    subject = write_subject(root / "subject", corpus)
    return {"subject": subject, "corpus": corpus, "dictionary": write_dictionary(root / "sae"), "root": root}


@pytest.fixture
def settings(tiny: dict[str, Path], tmp_path: Path) -> Callable[..., Settings]:
    """Settings for the tiny parts; keyword arguments override keys: settings(corpus__tokens=0)."""

    def make(**overrides: object) -> Settings:
        return config.load(None, tiny_overrides(tiny, tmp_path, **overrides))

    return make


def tiny_overrides(tiny: dict[str, Path], results: Path, **overrides: object) -> list[str]:
    """The `--set` values that point at the tiny parts; `section__key=value` adds to them."""
    values: dict[str, object] = {
        "run.results": results, "run.name": "t", "subject.model": tiny["subject"], "subject.hookpoint": "model.layers.1",
        "subject.dtype": "float32", "dictionary.source": tiny["dictionary"], "corpus.source": tiny["corpus"],
        "dictionary.check": "off",  # random weights reconstruct nothing
        "corpus.tokens": 0, "features.select": "random:6", "features.min_passages": 5, "features.min_documents": 3,
        "features.max_density": 0.5, "explainer.candidates": 3, "score.nulls": 3, "score.bootstrap": 50,
        "collect.sample_explain": 10, "collect.sample_select": 10, "collect.sample_score": 20,
        "score.select_passages": 20, "score.score_passages": 40,
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    return [f"{key}={value}" for key, value in values.items()]
