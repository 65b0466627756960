"""Whole texts as unit vectors of the packaged sentence encoder: what labels are searched by."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.simulators.encoder import PACKAGED_ENCODER, load_encoder
from autointerp.tally import Bar

PIECES = 64  # wordpieces of a text that are read; all are padded to it, so that a vector depends on its text alone
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
    if quick:
        different.sort(key=len)
    bar.start("embed", total=len(different), unit="texts")
    parts = []
    for start in range(0, len(different), BATCH):
        chunk = different[start : start + BATCH]
        encoded = tokenizer(
            chunk if quick else chunk + chunk[-1:] * (BATCH - len(chunk)), return_tensors="pt",
            padding="longest" if quick else "max_length", truncation=True, max_length=pieces,
        )  # fmt: skip
        with torch.inference_mode():
            hidden = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"][..., None]
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        parts.append(torch.nn.functional.normalize(mean, dim=-1)[: len(chunk)].numpy())
        bar.advance(len(chunk))
    vectors, row = np.concatenate(parts), {text: n for n, text in enumerate(different)}
    return vectors[[row[text] for text in texts]]


def pieces(texts: Sequence[str], encoder: str = PACKAGED_ENCODER) -> NDArray[np.int64]:
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
