"""Train a dictionary on the subject's own activations, with SAELens' trainer (extra `train`).

We give the trainer a stream of activations; the trainer, its losses and its schedule are SAELens'. Documents are split
by hash into those that are trained on and those that are only measured on.
"""

import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from autointerp.config import Settings, fingerprint
from autointerp.corpus import Context, contexts, split_of
from autointerp.dictionary.encode import Dictionary, directions
from autointerp.dictionary.formats import CONFIG_FILE, WEIGHTS_FILE, load
from autointerp.errors import CorpusError, DictionaryError, MissingExtra
from autointerp.subject import Subject, pad

HELD_OUT_SALT = "train"  # documents that fall into the first part (explain's 40 %) of this split ...
HELD_OUT_SHARE = 4  # ... and every fourth of those by key: a tenth of the documents is never trained on
HELD_OUT_TOKENS = 131_072
NULLS = ("frozen-decoder", "random-subject")  # what `autointerp train --null` makes


@dataclass(frozen=True)
class Recipe:
    """What `autointerp train` asks of the trainer. Adam, linear warm-up and decay, AuxK on silent latents (topk)."""

    architecture: str = "topk"  # topk | standard (ReLU + L1)
    width: int = 4096
    k: int = 32  # topk: features per token
    l1: float = 2.0  # standard: weight of the L1 penalty, on activations scaled to mean norm sqrt(d)
    tokens: int = 4_000_000  # activations the trainer sees; above `buffer` they are seen again in another order
    buffer: int = 2_400_000  # activations held in memory (bf16) and shuffled
    batch: int = 2048
    lr: float = 8e-4
    seed: int = 0
    frozen_decoder: bool = False  # a null: decoder rows stay the random directions that they were drawn as


@dataclass(frozen=True)
class Fitness:
    """How well a dictionary reconstructs documents that it was never trained on."""

    fvu: float  # squared error over the variance around the mean activation
    l0: float  # mean firing features per token
    dead: float  # share of features that fire on none of `tokens`
    tokens: int
    documents: int


def is_held_out(context: Context) -> bool:
    """True for contexts of documents that no training run ever sees."""
    return split_of(context.document_id, HELD_OUT_SALT) == 0 and context.key % HELD_OUT_SHARE == 0


def train_dictionary(settings: Settings, recipe: Recipe, folder: Path, progress: Progress) -> Fitness:
    """Train, write a SAELens folder (float16), and measure it on held-out documents.

    The folder appears in one piece at the end. Raises MissingExtra without sae-lens, DictionaryError when the folder
    is not empty, CorpusError when the corpus is too small to hold documents out.
    """
    check(recipe, folder)
    subject = Subject.load(settings.subject, seed=settings.run.seed)
    subject.check_context(settings.collect.context_tokens)
    hookpoint = subject.hookpoint(settings.dictionary[0].hookpoint or settings.subject.hookpoint)
    read = list(_all_contexts(settings, subject))
    seen = [c for c in read if not is_held_out(c)]
    held_out = [c for c in read if is_held_out(c)]
    if not seen or not held_out:
        raise CorpusError(f"corpus {settings.corpus.source!r} has too few documents to hold some out of training")
    torch.manual_seed(recipe.seed)
    stream = ActivationStream(settings, subject, hookpoint, seen, recipe, progress)
    sae = _fit(recipe, stream, subject)
    folder.mkdir(parents=True, exist_ok=True)
    _save(sae, stream.scale, folder, settings, subject, hookpoint, recipe)
    fitness = measure(load(str(folder)), settings, subject, hookpoint, held_out)
    (folder / "training.json").write_text(
        json.dumps({"recipe": asdict(recipe), "held_out": asdict(fitness), "activations": stream.rows}, indent=2) + "\n"
    )
    return fitness


def check(recipe: Recipe, folder: Path) -> None:
    """Raises DictionaryError or MissingExtra for what can be known before any work."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DictionaryError(f"{folder} is not empty: give `autointerp train` a new folder")
    if recipe.architecture not in {"topk", "standard"}:
        raise DictionaryError(f"unknown architecture {recipe.architecture!r}; train knows topk, standard")
    if importlib.util.find_spec("sae_lens") is None:
        raise MissingExtra("train", "autointerp train")


def _all_contexts(settings: Settings, subject: Subject) -> Iterator[Context]:
    collect = settings.collect
    for document in contexts(settings.corpus, subject.tokenizer, collect.context_tokens, collect.split_salt):
        yield from document


def _batches(found: list[Context], size: int) -> Iterator[list[Context]]:
    for start in range(0, len(found), size):
        yield found[start : start + size]


class ActivationStream:
    """An endless iterator of shuffled activation batches, float32 [batch, d], scaled to mean norm sqrt(d).

    Up to `recipe.buffer` activations are held in bf16. Where the corpus fits, the subject runs once and every further
    epoch is another permutation of the same rows.
    """

    def __init__(
        self,
        settings: Settings,
        subject: Subject,
        hookpoint: str,
        found: list[Context],
        recipe: Recipe,
        progress: Progress,
    ) -> None:
        self.settings, self.subject, self.hookpoint, self.recipe = settings, subject, hookpoint, recipe
        self.random = np.random.default_rng([recipe.seed, 0x7261696E])
        self.contexts = [found[i] for i in self.random.permutation(len(found))]
        self.next_context = 0
        self.rows = 0
        self.progress = progress
        self.buffer = self._fill()
        norms = torch.linalg.vector_norm(self.buffer[:65_536].float(), dim=1)
        self.scale = math.sqrt(self.buffer.shape[1]) / float(norms.mean())
        self._batches = self._serve()

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        return next(self._batches)

    def _fill(self) -> Tensor:
        """The next `buffer` activations, [row, d] bf16; all of them where the corpus is smaller."""
        parts: list[Tensor] = []
        wanted, held = self.recipe.buffer, 0
        width = self.settings.collect.context_tokens
        fits = sum(len(c.tokens) for c in self.contexts) <= wanted
        task = self.progress.add_task(
            "activations", total=sum(len(c.tokens) for c in self.contexts) if fits else wanted
        )
        step = self.settings.subject.batch_contexts
        while held < wanted:
            chunk = self.contexts[self.next_context : self.next_context + step]
            self.next_context += step
            if self.next_context >= len(self.contexts):
                self.next_context = 0
            rows = _activations(self.subject, self.hookpoint, chunk, width)
            parts.append(rows.to(torch.bfloat16).cpu())
            held += len(rows)
            self.progress.update(task, completed=held)
            if fits and self.next_context == 0:
                break
        self.progress.remove_task(task)
        self.rows += held
        self._fits = fits
        return torch.cat(parts)

    def _serve(self) -> Iterator[Tensor]:
        size = self.recipe.batch
        while True:
            order = torch.from_numpy(self.random.permutation(len(self.buffer)))
            for start in range(0, max(len(order) - size, 0) + 1, size):
                yield self.buffer[order[start : start + size]].float() * self.scale
            if not self._fits:
                self.buffer = self._fill()


def _activations(subject: Subject, hookpoint: str, found: list[Context], width: int) -> Tensor:
    tokens, lengths = pad([c.tokens for c in found], width)
    activation = subject.activations(tokens, [hookpoint])[hookpoint]
    return activation[subject.usable(tokens, activation, lengths)]


def _fit(recipe: Recipe, stream: ActivationStream, subject: Subject) -> Any:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    steps = max(recipe.tokens // recipe.batch, 1)
    shape = {"d_in": stream.buffer.shape[1], "d_sae": recipe.width, "dtype": "float32", "device": str(subject.device)}
    sae: Any
    if recipe.architecture == "topk":
        # Sparse activations fail on the CPU.
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**shape, k=recipe.k, use_sparse_activations=False))
    else:
        sae = StandardTrainingSAE(
            StandardTrainingSAEConfig(**shape, l1_coefficient=recipe.l1, l1_warm_up_steps=max(steps // 10, 1))
        )
    sae.b_dec.data.copy_(stream.buffer[:262_144].float().mean(dim=0) * stream.scale)
    if recipe.frozen_decoder:
        _freeze(sae, recipe.seed)
    cfg = SAETrainerConfig(
        total_training_samples=steps * recipe.batch,
        train_batch_size_samples=recipe.batch,
        lr=recipe.lr,
        lr_end=recipe.lr * 0.01,
        lr_warm_up_steps=max(steps // 20, 1),
        lr_decay_steps=max(steps // 2, 1),
        device=str(subject.device),
        dead_feature_window=40,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg, sae, stream).fit()


@torch.no_grad()
def _freeze(sae: Any, seed: int) -> None:
    """Give the decoder random unit rows that the optimiser leaves alone; the encoder begins as their transpose.

    Frozen Decoder SAEs (Korznikov et al. 2026, arXiv 2602.14111), whose labels score nearly as well as trained ones.
    Rows are rounded to what `_save` writes before anything is trained on them, so that it writes them as they are; of
    norm 1 but for that rounding, they are neither rescaled in training nor folded after it.
    """
    generator = torch.Generator().manual_seed(int(fingerprint([seed, "frozen decoder"])[:15], 16))
    width, d = sae.W_dec.shape
    rows = directions(width, d, generator).half().float().to(sae.W_dec.device)
    sae.W_dec.data.copy_(rows)
    sae.W_dec.requires_grad_(False)
    sae.W_enc.data.copy_(rows.T * sae.cfg.decoder_init_norm)  # as long as SAELens would have them
    if hasattr(sae.cfg, "rescale_acts_by_decoder_norm"):
        sae.cfg.rescale_acts_by_decoder_norm = False


@torch.no_grad()
def _save(
    sae: Any, scale: float, folder: Path, settings: Settings, subject: Subject, hookpoint: str, recipe: Recipe
) -> None:
    """Write a SAELens inference folder whose weights read *raw* activations and have unit decoder rows. What makes it a
    null (a frozen decoder, a subject of random weights) goes into its metadata, where our loader finds it.

    The trainer saw scale * x. With unit rows, (s x - b) W + c = s ((x - b/s) W + c/s): dividing both biases by s gives
    the same features on x, with activations divided by s, and the same reconstruction. Exact for topk and ReLU alike.
    """
    if not recipe.frozen_decoder:
        sae.fold_W_dec_norm()
    sae.b_enc.data /= scale
    sae.b_dec.data /= scale
    sae.cfg.dtype = "float16"
    if recipe.architecture == "topk":
        sae.cfg.rescale_acts_by_decoder_norm = False  # just folded; rows have norm 1
    sae.half()
    sae.save_inference_model(folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["device"] = "cpu"
    config["metadata"] = config.get("metadata", {}) | {
        "model_name": subject.name,
        "hook_name": hookpoint,
        "context_size": settings.collect.context_tokens,
        "prepend_bos": subject.prepend_bos,
        **({"frozen_decoder": True} if recipe.frozen_decoder else {}),
        **({"subject_seed": settings.subject_seed} if settings.subject.random else {}),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    assert (folder / WEIGHTS_FILE).is_file()


@torch.inference_mode()
def measure(
    dictionary: Dictionary, settings: Settings, subject: Subject, hookpoint: str, found: list[Context]
) -> Fitness:
    """FVU, L0 and dead share of a dictionary on up to HELD_OUT_TOKENS tokens, spread over the given contexts."""
    dictionary = dictionary.to(subject.device, torch.float32)
    width = settings.collect.context_tokens
    wanted = max(HELD_OUT_TOKENS // width, 1)
    chosen = found if len(found) <= wanted else [found[int(i * len(found) / wanted)] for i in range(wanted)]
    squared, total, total_squared = 0.0, torch.zeros(dictionary.d_in, dtype=torch.float64), 0.0
    fired, active, rows = torch.zeros(dictionary.width, dtype=torch.bool), 0, 0
    for chunk in _batches(chosen, settings.subject.batch_contexts):
        x = _activations(subject, hookpoint, chunk, width).float()
        guess, triples = dictionary.reconstruct(x)
        squared += float(((x - guess) ** 2).sum(dtype=torch.float64))
        total += x.double().sum(dim=0).cpu()
        total_squared += float((x.double() ** 2).sum())
        fired[triples.feature.unique().cpu()] = True
        active += len(triples.feature)
        rows += len(x)
    variance = total_squared - float((total**2).sum()) / rows
    return Fitness(
        fvu=squared / variance,
        l0=active / rows,
        dead=1.0 - float(fired.float().mean()),
        tokens=rows,
        documents=len({c.document_id for c in chosen}),
    )
