"""Reading files that strangers wrote: nothing in them is run, and what is wrong is named."""

import hashlib
import json
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from autointerp.dictionary.encode import ARCHITECTURES, COMPETING
from autointerp.errors import DictionaryError
from autointerp.tally import available_memory_bytes

BROKEN = (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, struct.error)  # what readers raise
LFS_POINTER = b"version https://git-lfs"


def read_config(path: Path, wrote: str) -> dict[str, Any]:
    """A JSON object. `wrote` is who writes such folders. Raises DictionaryError for a missing or broken file."""
    if not path.is_file():
        raise DictionaryError(f"{path.parent} holds no {path.name}: expected a {wrote} folder")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise DictionaryError(f"{path} is not valid JSON: {problem}") from None
    if not isinstance(config, dict):
        raise DictionaryError(f"{path}: expected an object, got {type(config).__name__}")
    return config


def table(config: Mapping[str, Any], key: str, path: Path, *, required: bool = False) -> dict[str, Any]:
    """An object within a configuration; empty where it may be missing and is. Raises DictionaryError for another."""
    value = config.get(key)
    if value is None and not required:
        return {}
    if not isinstance(value, dict):
        found = "nothing" if value is None else type(value).__name__
        raise DictionaryError(f"{path}: {key} must be an object, not {found}")
    return value


def number(value: object) -> float | None:
    """The value where it is a finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def text(value: object) -> str | None:
    """The value where it is text that says something."""
    return value if isinstance(value, str) and value else None


def flag(value: object) -> bool | None:
    """The value where it is true or false."""
    return value if isinstance(value, bool) else None


def switch(config: Mapping[str, Any], key: str, path: Path, default: bool = False) -> bool:
    """A setting that changes how a dictionary encodes. Raises DictionaryError for anything but true, false and null."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise DictionaryError(f"{path}: {key} = {value!r}, expected true or false")
    return default if value is None else value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DictionaryError for a missing, truncated or too large one."""
    _refuse_missing(path)
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        _refuse_too_large(path, shapes)
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise DictionaryError(f"{path} cannot be read (truncated download?): {problem}") from None


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file, without pickles. Raises DictionaryError as `read_safetensors`."""
    _refuse_missing(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_too_large(path, {i.filename: (i.file_size // 4,) for i in archive.infolist()})
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (*BROKEN, TypeError, zipfile.BadZipFile, zlib.error) as problem:
        if "pickle" in str(problem).lower():
            raise DictionaryError(f"{path} holds pickled objects, which are never loaded: expected arrays") from None
        raise DictionaryError(f"{path} cannot be read (truncated download?): {problem}") from None


def read_pickle(path: Path) -> dict[str, Any]:
    """A state dictionary of a torch file, with `weights_only`: code in it is not run but refused.

    Raises DictionaryError for code, for a truncated file and for anything but a dictionary.
    """
    _refuse_missing(path)
    _refuse_too_large(path, {path.name: (path.stat().st_size // 4,)})
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        if "truncated" in str(problem):
            raise DictionaryError(f"{path} cannot be read (truncated download?): {_first_line(problem)}") from None
        raise DictionaryError(
            f"{path} holds pickled objects other than tensors, whose code is never run: expected a state dict"
        ) from None
    except BROKEN as problem:
        raise DictionaryError(f"{path} cannot be read (truncated download?): {_first_line(problem)}") from None
    if not isinstance(found, dict):
        raise DictionaryError(f"{path}: expected a state dict of tensors, got {type(found).__name__}")
    return found


def checked(path: Path, tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors named in `expected`, in float32.

    Raises DictionaryError, naming the tensor, for one that is missing, has another shape (or is transposed), is no
    float, or holds values that are not finite.
    """
    result = {}
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor):
            raise DictionaryError(f"{path}: tensor {name} is missing; found {', '.join(sorted(tensors)) or 'none'}")
        found = tuple(tensor.shape)
        if found != shape:
            transposed = " (transposed)" if found == shape[::-1] and len(shape) == 2 else ""
            raise DictionaryError(f"{path}: {name} has shape {list(found)}{transposed}, expected {list(shape)}")
        if not torch.isfinite(tensor).all():
            raise DictionaryError(f"{path}: {name} holds NaN or infinite values")
        result[name] = tensor.float()
    return result


def matrix(path: Path, tensors: Mapping[str, Any], name: str, shape: str) -> tuple[int, int]:
    """The two sizes of a matrix. `shape` is what is expected, in words. Raises DictionaryError for anything else."""
    tensor = tensors.get(name)
    if not isinstance(tensor, Tensor):
        raise DictionaryError(f"{path}: tensor {name} is missing; found {', '.join(sorted(tensors)) or 'none'}")
    if tensor.ndim != 2:
        raise DictionaryError(f"{path}: {name} has shape {list(tensor.shape)}, expected {shape}")
    return int(tensor.shape[0]), int(tensor.shape[1])


def refuse_unknown_architecture(where: Path, named: object, also: tuple[str, ...] = ()) -> None:
    """Raises DictionaryError with what is known: our names, and those that a format has for them (`also`)."""
    known = ", ".join(dict.fromkeys([*also, *ARCHITECTURES]))
    raise DictionaryError(f"{where}: unknown architecture {named!r}; known: {known}")


def checked_k(where: Path, k: object, width: int, architecture: str) -> int:
    """k as a whole number that fits. Raises DictionaryError for another."""
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= width:
        raise DictionaryError(
            f"{where}: k = {k!r}; a {architecture} dictionary of width {width} needs 1 <= k <= {width}"
        )
    if architecture == "groupmax" and width % k:
        raise DictionaryError(f"{where}: k = {k} groups do not divide the {width} features of a groupmax dictionary")
    return k


def identity_of(path: Path, architecture: str, meaning: Mapping[str, Any], more: Mapping[str, Any]) -> str:
    """Hash of a weight file and of everything else that changes how it encodes.

    meaning  always hashed; `more` only where it says anything (an entry that is not None, False or 'none')
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "md5")
    digest.update(json.dumps(meaning, sort_keys=True).encode())
    said = {key: value for key, value in more.items() if value not in (None, False, "none")}
    if architecture not in COMPETING:
        said["encoder"] = "float32"  # earlier versions encoded these in the subject's dtype
    if said:
        digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        partial = sorted(path.parent.glob(f"{path.name}*.incomplete")) + sorted(path.parent.glob(f"{path.name}.part*"))
        hint = f" (but {partial[0].name}: the download did not finish)" if partial else ""
        raise DictionaryError(f"{path.parent} holds no {path.name}{hint}")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DictionaryError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")


def _refuse_too_large(path: Path, shapes: Mapping[str, Any]) -> None:
    """A file is held once as it is and once in float32 while it is read."""
    needed = path.stat().st_size + 4 * sum(math.prod(shape) for shape in shapes.values())
    free = available_memory_bytes()
    if needed > free:
        largest = max(shapes, key=lambda name: math.prod(shapes[name]))
        raise DictionaryError(
            f"{path} needs {needed / 1e9:.1f} GB of memory ({largest} is {' x '.join(map(str, shapes[largest]))}), and "
            f"{free / 1e9:.1f} GB are free: use a larger machine"
        )


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
