"""Vectors of labels kept beside a run, so that a search by meaning reads the labels once and not at every search.

One row per text: the hash of (encoder, text) and its unit vector in half precision. Vectors are rounded before they are
used the first time too, so that a search finds the same with the file and without it. A file that cannot be read is no
reason to stop: it is made anew.
"""

import contextlib
import hashlib
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp.search import Vectors

NAME = "label-vectors.npz"
KEY_BYTES = 16

log = logging.getLogger(__name__)


def kept(folder: Path, encoder: str, vectors: Vectors) -> Vectors:
    """`vectors` that remembers, in a file of the run's folder, what it was asked for.

    encoder  what the vectors depend on besides the text: its name, or the folder that it is read from
    """

    def asked(texts: Sequence[str]) -> NDArray[np.float32]:
        keys = [_key(encoder, text) for text in texts]
        path = folder / NAME
        known = _read(path)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            found = vectors(list(new.values())).astype(np.float16)
            known |= dict(zip(new, found, strict=True))
            _write(path, known)
        return np.stack([known[key] for key in keys]).astype(np.float32)

    return asked


def _key(encoder: str, text: str) -> bytes:
    return hashlib.blake2b(f"{encoder}\0{text}".encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def _read(path: Path) -> dict[bytes, NDArray[np.float16]]:
    """Key -> vector; empty where there is no file, or none of ours."""
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, found = file["key"], file["vector"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        log.warning("%s cannot be read and is made anew", path)
        return {}
    whole = (
        keys.dtype == np.uint8 and found.dtype == np.float16 and keys.shape == (len(found), KEY_BYTES)
        and found.ndim == 2 and bool(np.isfinite(found).all())
    )  # fmt: skip
    if not whole:
        log.warning("%s is not a file of vectors and is made anew", path)
        return {}
    return dict(zip((key.tobytes() for key in keys), found, strict=True))


def _write(path: Path, known: dict[bytes, NDArray[np.float16]]) -> None:
    """By an atomic rename; a folder that cannot be written goes without."""
    scratch = path.with_suffix(".writing")
    keys = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(-1, KEY_BYTES)
    try:
        with scratch.open("wb") as file:
            np.savez(file, key=keys, vector=np.stack(list(known.values())))
        scratch.replace(path)
    except OSError as problem:
        log.warning("vectors of labels are not kept: %s", problem.strerror or problem)
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
