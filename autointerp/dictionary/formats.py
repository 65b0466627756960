"""Dictionaries on disk: read what others wrote, or refuse with a reason.

SAELens folders (cfg.json + sae_weights.safetensors) of the architectures `topk` and `standard`. Weights are untrusted:
only safetensors are read, shapes and values are checked, and nothing is guessed silently.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from autointerp.dictionary.encode import ARCHITECTURES, Dictionary
from autointerp.errors import DictionaryError
from autointerp.tally import available_memory_bytes

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
PACKAGED = Path(__file__).parent / "packaged"


def locate(source: str) -> Path:
    """The folder behind `dictionary.source`: a path, or the name of a packaged dictionary.

    Raises DictionaryError when there is none, naming the packaged ones.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if (PACKAGED / source).is_dir() and "/" not in source and source not in {"", ".", ".."}:
        return PACKAGED / source
    packaged = ", ".join(sorted(p.name for p in PACKAGED.iterdir() if p.is_dir())) if PACKAGED.is_dir() else "none"
    raise DictionaryError(f"no dictionary at {source}: expected a SAELens folder, or a packaged one ({packaged})")


def load(source: str, name: str | None = None) -> Dictionary:
    """Read a dictionary from a SAELens folder or by packaged name, in float32 on the CPU.

    name  prefix of the feature ids; the folder's name by default
    Raises DictionaryError for missing, truncated or inconsistent files and for architectures that are not known.
    """
    folder = locate(source)
    config = _config(folder)
    architecture = _architecture(config)
    if architecture not in ARCHITECTURES:
        raise DictionaryError(f"{folder}: unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    for key, harmless in (("normalize_activations", ("none", None)), ("reshape_activations", ("none", None))):
        if config.get(key) not in harmless:
            raise DictionaryError(f"{folder}: {key} = {config[key]!r} is not supported yet; fold it into the weights")
    tensors = _weights(folder, config)
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    width = tensors["W_enc"].shape[1]
    if architecture == "topk" and not (isinstance(k, int) and 1 <= k <= width):
        raise DictionaryError(f"{folder}: k = {k!r}; a topk dictionary of width {width} needs 1 <= k <= {width}")
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise DictionaryError(f"{folder / CONFIG_FILE}: metadata must be an object, not {type(metadata).__name__}")
    return Dictionary(
        name=name or folder.resolve().name,
        architecture=architecture,
        **tensors,  # type: ignore[arg-type]
        k=k if architecture == "topk" else None,
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        rescale_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        hookpoint=metadata.get("hook_name") or config.get("hook_name"),
        identity=_identity(folder, config),
    )


def _architecture(config: dict[str, Any]) -> str:
    """The architecture that cfg.json names; before SAELens 6 a standard one could hide another activation."""
    named = str(config.get("architecture") or "standard")
    activation = str(config.get("activation_fn_str") or config.get("activation_fn") or "relu")
    return activation if named == "standard" and activation != "relu" else named


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise DictionaryError(f"{folder} holds no {CONFIG_FILE}: expected a SAELens folder")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise DictionaryError(f"{path} is not valid JSON: {problem}") from None
    if not isinstance(config, dict):
        raise DictionaryError(f"{path}: expected an object, got {type(config).__name__}")
    return config


def _weights(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise DictionaryError(f"{folder} holds no {WEIGHTS_FILE}")
    _refuse_too_large(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as problem:
        raise DictionaryError(f"{path} cannot be read (truncated download?): {problem}") from None
    if "W_enc" in tensors and tensors["W_enc"].ndim != 2:
        raise DictionaryError(f"{path}: W_enc has shape {list(tensors['W_enc'].shape)}, expected [d_in, d_sae]")
    d_in = config.get("d_in") or (tensors["W_enc"].shape[0] if "W_enc" in tensors else 0)
    width = config.get("d_sae") or (tensors["W_enc"].shape[1] if "W_enc" in tensors else 0)
    expected = {"W_enc": (d_in, width), "b_enc": (width,), "W_dec": (width, d_in), "b_dec": (d_in,)}
    for name, shape in expected.items():
        if name not in tensors:
            raise DictionaryError(f"{path}: tensor {name} is missing; found {', '.join(sorted(tensors)) or 'none'}")
        found = tuple(tensors[name].shape)
        if found != shape:
            transposed = " (transposed)" if found == shape[::-1] and len(shape) == 2 else ""
            raise DictionaryError(f"{path}: {name} has shape {list(found)}{transposed}, expected {list(shape)}")
        if not torch.isfinite(tensors[name]).all():
            raise DictionaryError(f"{path}: {name} holds NaN or infinite values")
    return {name: tensors[name].float() for name in expected}


def _refuse_too_large(path: Path) -> None:
    """A file is held once as it is and once in float32 while it is read."""
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise DictionaryError(f"{path} cannot be read (truncated download?): {problem}") from None
    needed = path.stat().st_size + 4 * sum(math.prod(shape) for shape in shapes.values())
    free = available_memory_bytes()
    if needed > free:
        largest = max(shapes, key=lambda name: math.prod(shapes[name]))
        raise DictionaryError(
            f"{path} needs {needed / 1e9:.1f} GB of memory ({largest} is {' x '.join(map(str, shapes[largest]))}), and "
            f"{free / 1e9:.1f} GB are free: use a larger machine"
        )


def _identity(folder: Path, config: dict[str, Any]) -> str:
    digest = hashlib.md5((folder / WEIGHTS_FILE).read_bytes())
    keys = ("architecture", "k", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm")
    digest.update(json.dumps({key: config.get(key) for key in keys}, sort_keys=True).encode())
    return digest.hexdigest()[:16]
