"""Labels by meaning: the ones nearest to a phrase, by the sentence encoder that the run's simulator uses."""

from collections.abc import Sequence

import torch
from torch import Tensor

from autointerp.errors import ConfigError
from autointerp.simulators.encoder import resolve_encoder
from autointerp.subject import quiet_transformers

BATCH = 64  # labels per forward pass of the encoder


def nearest(phrase: str, labels: Sequence[str], encoder: str, n: int = 1) -> list[tuple[int, float]]:
    """The n labels nearest to a phrase: their places in `labels` and cosines, nearest first, ties by place.

    encoder  as simulator.encoder. Raises ConfigError when it cannot be found or read
    """
    found = embed([phrase, *labels], encoder)
    cosine = found[1:] @ found[0]
    order = torch.argsort(cosine, descending=True, stable=True)[:n]
    return [(int(i), float(cosine[i])) for i in order]


@torch.inference_mode()
def embed(texts: Sequence[str], encoder: str) -> Tensor:
    """Unit vectors [text, d]: the mean of a text's wordpieces in the last layer (Reimers & Gurevych 2019)."""
    from transformers import AutoModel, AutoTokenizer

    where = resolve_encoder(encoder)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(where)
            model = AutoModel.from_pretrained(where, trust_remote_code=False).eval()
    except (OSError, ValueError) as problem:
        raise ConfigError(f"encoder {encoder!r} cannot be loaded: {str(problem).splitlines()[0]}") from None
    parts = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(list(texts[start : start + BATCH]), return_tensors="pt", padding=True, truncation=True)
        hidden = model(**batch).last_hidden_state
        real = batch["attention_mask"][..., None]
        parts.append((hidden * real).sum(dim=1) / real.sum(dim=1))
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)
