"""Encoding: activations of the subject -> the few features that fire, per architecture.

One pure function per architecture. Nothing here reads files, and nothing returns a dense [token, feature] matrix that
outlives its chunk of tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

ENCODE_CHUNK_TOKENS = 512  # tokens per encoder product: the pre-activations stay in cache and their buffer is reused

ARCHITECTURES = ("topk", "standard")


class Triples(NamedTuple):
    """Firing features of a batch of positions, sparse. All three have one entry per firing (position, feature)."""

    position: Tensor  # int64, row of the input
    feature: Tensor  # int64
    value: Tensor  # > 0, in the dtype of the encoder


@dataclass
class Dictionary:
    """A sparse dictionary, ready to encode.

    W_enc [d_in, width], b_enc [width], W_dec [width, d_in], b_dec [d_in]. `k` is set for topk alone.
    `identity` is a hash of the weights and of everything that changes how they encode.
    """

    name: str
    architecture: str
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int | None = None
    apply_b_dec_to_input: bool = True
    rescale_by_decoder_norm: bool = False
    hookpoint: str | None = None  # where its own files say it was trained
    identity: str = ""
    _buffer: Tensor | None = field(default=None, repr=False)

    @property
    def d_in(self) -> int:
        """Width of the activations it reads."""
        return int(self.W_enc.shape[0])

    @property
    def width(self) -> int:
        """Number of features."""
        return int(self.W_enc.shape[1])

    def to(self, device: torch.device, dtype: torch.dtype) -> "Dictionary":
        """A copy of the dictionary on a device, in a dtype."""
        tensors = {n: getattr(self, n).to(device=device, dtype=dtype) for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return replace(self, **tensors, _buffer=None)

    def pre_activations(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(x - b_dec) @ W_enc + b_enc for x [position, d_in]; `out` [position, width] is filled where given."""
        if self.apply_b_dec_to_input:
            x = x - self.b_dec
        hidden = (
            torch.addmm(self.b_enc, x, self.W_enc, out=out)
            if out is not None
            else torch.addmm(self.b_enc, x, self.W_enc)
        )
        if self.rescale_by_decoder_norm:
            hidden.mul_(torch.linalg.vector_norm(self.W_dec, dim=1))
        return hidden

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Triples:
        """The firing features at each row of x [position, d_in], which is cast to the encoder's dtype.

        Rows come in order; the order of features within a row is free.
        """
        parts = list(self._encode_chunks(x.to(self.W_enc.dtype)))
        return Triples(*(torch.cat(column) for column in zip(*parts, strict=True))) if parts else _no_triples(x.device)

    def _encode_chunks(self, x: Tensor) -> Iterator[Triples]:
        if self._buffer is None or self._buffer.device != x.device:
            self._buffer = torch.empty(ENCODE_CHUNK_TOKENS, self.width, dtype=self.W_enc.dtype, device=x.device)
        for start in range(0, len(x), ENCODE_CHUNK_TOKENS):
            chunk = x[start : start + ENCODE_CHUNK_TOKENS]
            hidden = self.pre_activations(chunk, out=self._buffer[: len(chunk)])
            found = topk_triples(hidden, self.k or 1) if self.architecture == "topk" else relu_triples(hidden)
            yield Triples(found.position + start, found.feature, found.value)

    @torch.inference_mode()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, Triples]:
        """x_hat = sum of firing decoder rows + b_dec, [position, d_in], and the triples behind it."""
        triples = self.encode(x)
        weights = torch.sparse_coo_tensor(
            torch.stack([triples.position, triples.feature]), triples.value.float(), (len(x), self.width),
            check_invariants=False,
        )  # fmt: skip
        return torch.sparse.mm(weights, self.W_dec.float()) + self.b_dec.float(), triples


def topk_triples(hidden: Tensor, k: int) -> Triples:
    """The k largest pre-activations of each row of hidden [position, width], where positive (Gao et al. 2024).

    TopK before ReLU: negative winners are dropped afterwards, which equals relu(topk(hidden)).
    """
    value, feature = hidden.topk(k, dim=1, sorted=False)
    position = torch.arange(len(hidden), device=hidden.device)[:, None].expand_as(feature)
    keep = value > 0
    return Triples(position[keep], feature[keep], value[keep])


def relu_triples(hidden: Tensor) -> Triples:
    """The positive pre-activations of hidden [position, width] (ReLU; Bricken et al. 2023)."""
    position, feature = torch.nonzero(hidden > 0, as_tuple=True)
    return Triples(position, feature, hidden[position, feature])


def _no_triples(device: torch.device) -> Triples:
    empty = torch.empty(0, dtype=torch.int64, device=device)
    return Triples(empty, empty.clone(), torch.empty(0, device=device))
