"""Whole texts as unit vectors of the packaged sentence encoder: what labels are searched by."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.simulators.encoder import PACKAGED_ENCODER, load_encoder
from autointerp.tally import Bar

PIECES = 64  # wordpieces of a text that are read
WIDTH = 16  # texts are padded to a multiple of so many, so that a vector depends on its text alone
BATCH = 32  # texts per forward pass; always full, for the same reason


def sentence_vectors(
    texts: Sequence[str], bar: Bar, encoder: str = PACKAGED_ENCODER, pieces: int = PIECES, quick: bool = False
) -> NDArray[np.float32]:
    """One unit vector per text, [text, d]: the mean of its wordpieces' last hidden states, as the encoder was trained.

    pieces  wordpieces that are read of a text, its marks of beginning and end among them
    quick   texts are padded to the longest beside them only: a vector's last bits then depend on what it is asked with
    Equal texts are read once. Raises ConfigError when the encoder cannot be found or read.
    """
    model, tokenizer = _encoder(encoder)
    different = list(dict.fromkeys(texts)) or [""]
    bar.start("embed", total=len(different), unit="texts")
    parts, read = [], list[str]()
    for width, chunk in _batches(different, tokenizer, pieces, quick):
        encoded = tokenizer(
            chunk if quick else chunk + chunk[-1:] * (BATCH - len(chunk)), return_tensors="pt",
            padding="longest" if quick else "max_length", truncation=True, max_length=width,
        )  # fmt: skip
        with torch.inference_mode():
            hidden = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"][..., None]
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        parts.append(torch.nn.functional.normalize(mean, dim=-1)[: len(chunk)].numpy())
        read += chunk
        bar.advance(len(chunk))
    vectors, row = np.concatenate(parts), {text: n for n, text in enumerate(read)}
    return vectors[[row[text] for text in texts]]


def _batches(texts: list[str], tokenizer: Any, pieces: int, quick: bool) -> Iterator[tuple[int, list[str]]]:
    """Texts that are read together, and to how many wordpieces each is padded or cut; of one width where not quick."""
    widths: dict[int, list[str]] = {}
    if quick:
        widths[pieces] = sorted(texts, key=len)
    else:
        for text, ids in zip(texts, tokenizer(texts, truncation=True, max_length=pieces)["input_ids"], strict=True):
            widths.setdefault(min(-(-len(ids) // WIDTH) * WIDTH, pieces), []).append(text)
    for width, those in sorted(widths.items()):
        for start in range(0, len(those), BATCH):
            yield width, those[start : start + BATCH]


def wordpieces(texts: Sequence[str], encoder: str = PACKAGED_ENCODER) -> NDArray[np.int64]:
    """Into how many wordpieces the encoder's tokenizer takes each text, [text].

    Raises ConfigError when the encoder cannot be found or read.
    """
    _, tokenizer = _encoder(encoder)
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return np.array([len(ids) for ids in found], dtype=np.int64)


@lru_cache(maxsize=1)  # a page asks for one phrase after another
def _encoder(name: str) -> tuple[Any, Any]:
    model, tokenizer = load_encoder(name)
    return model.eval(), tokenizer
