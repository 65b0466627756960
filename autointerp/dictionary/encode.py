"""Encoding: activations of the subject -> the few features that fire, per architecture.

One pure function per architecture. Nothing here reads files, and nothing returns a dense [token, feature] matrix that
outlives its chunk of tokens. Collection encodes in two steps: `launch` queues the work and waits for nothing, so a GPU
is never made idle; `collect`, on the host, drops the empty slots once they have arrived.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

ENCODE_CHUNK_TOKENS = 512  # tokens per encoder product: the pre-activations stay in cache and their buffer is reused
GPU_CHUNK_BYTES = 2**30  # pre-activations per encoder product on a GPU, which wants few and large kernels
SLOTS_PER_TOKEN = 128  # firing features per token that have room on a GPU at first, where the number is not fixed

ARCHITECTURES = ("topk", "standard")


class Triples(NamedTuple):
    """Firing features of a batch of positions, sparse. All three have one entry per firing (position, feature)."""

    position: Tensor  # int64, row of the input
    feature: Tensor  # int64
    value: Tensor  # > 0, in the dtype of the encoder


class Slots(NamedTuple):
    """Firing features with room to spare, so that their shape is known before they are: empty slots have value 0."""

    position: Tensor  # int32 [slot], row of the input
    feature: Tensor  # int32 [slot]
    value: Tensor  # [slot] >= 0, in the dtype of the encoder
    n: Tensor | None  # int64 [chunk], firings of each chunk of rows; None where there is room for all by construction
    room: int  # slots of a chunk


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
    wanted: Tensor | None = None  # int64 [n], the features that are encoded, ascending; None: all
    full_width: int = 0  # width of the dictionary that `only` was cut from; 0 where it is whole
    _buffer: Tensor | None = field(default=None, repr=False)

    @property
    def d_in(self) -> int:
        """Width of the activations it reads."""
        return int(self.W_enc.shape[0])

    @property
    def width(self) -> int:
        """Number of features, those that are not encoded included."""
        return self.full_width or int(self.W_enc.shape[1])

    def only(self, features: Tensor) -> "Dictionary":
        """This dictionary, encoding no feature but these (int64 [n], ascending); their numbers stay what they are.

        Where features do not compete (standard) the others are never computed; a topk needs them all to find its k,
        and drops them afterwards.
        """
        if self.architecture == "topk":
            return replace(self, wanted=features, _buffer=None)
        return replace(
            self, W_enc=self.W_enc[:, features], b_enc=self.b_enc[features], W_dec=self.W_dec[features],
            wanted=features, full_width=self.width, _buffer=None,
        )  # fmt: skip

    def for_encoding(self) -> "Dictionary":
        """Without the decoder, where encoding does not read it: half the memory."""
        if self.rescale_by_decoder_norm:
            return self
        return replace(self, W_dec=self.W_dec[:, :0], _buffer=None)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Dictionary":
        """A copy of the dictionary on a device, in a dtype."""
        tensors = {n: getattr(self, n).to(device=device, dtype=dtype) for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
        wanted = None if self.wanted is None else self.wanted.to(device)
        return replace(self, **tensors, wanted=wanted, _buffer=None)

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
        room = SLOTS_PER_TOKEN
        while True:
            slots = self.launch(x, room)
            if slots.n is None or int(slots.n.max()) <= slots.room:
                break
            room *= 2
        keep = slots.value > 0
        return Triples(slots.position[keep].long(), slots.feature[keep].long(), slots.value[keep])

    @torch.inference_mode()
    def launch(self, x: Tensor, slots_per_token: int = SLOTS_PER_TOKEN) -> Slots:
        """Queue the encoding of x [position, d_in]; on a GPU nothing waits for its result.

        slots_per_token  room on average over a chunk of rows, for architectures whose number of firing features is
                         not fixed; where `n` says that a chunk had more, the surplus is missing: launch again with more
        """
        parts = [self._launch_chunk(chunk, start, slots_per_token) for start, chunk in self._chunks(x)]
        if not parts:
            empty = torch.empty(0, dtype=torch.int32, device=x.device)
            return Slots(empty, empty.clone(), torch.empty(0, device=x.device), None, 0)
        position, feature, value = (torch.cat([getattr(p, c) for p in parts]) for c in ("position", "feature", "value"))
        if self.wanted is not None:
            if self.full_width:  # only the wanted were computed
                feature = self.wanted[feature].to(torch.int32)
            else:
                value = torch.where(torch.isin(feature, self.wanted.to(torch.int32)), value, 0)
        counts = [p.n for p in parts if p.n is not None]
        return Slots(position, feature, value, torch.stack(counts) if counts else None, parts[0].room)

    def _chunks(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        rows = ENCODE_CHUNK_TOKENS
        if x.device.type == "cuda":
            rows = max(GPU_CHUNK_BYTES // (self.W_enc.shape[1] * self.W_enc.element_size()), rows)
        for start in range(0, len(x), rows):
            yield start, x[start : start + rows].to(self.W_enc.dtype)

    def _launch_chunk(self, chunk: Tensor, start: int, slots_per_token: int) -> Slots:
        if self._buffer is None or self._buffer.device != chunk.device or len(self._buffer) < len(chunk):
            self._buffer = torch.empty(
                max(len(chunk), ENCODE_CHUNK_TOKENS), self.W_enc.shape[1], dtype=self.W_enc.dtype, device=chunk.device
            )
        hidden = self.pre_activations(chunk, out=self._buffer[: len(chunk)])
        if self.architecture == "topk":
            return topk_slots(hidden, self.k or 1, start)
        return relu_slots(hidden, slots_per_token, start)

    @torch.inference_mode()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, Triples]:
        """x_hat = sum of firing decoder rows + b_dec, [position, d_in], and the triples behind it."""
        triples = self.encode(x)
        weights = torch.sparse_coo_tensor(
            torch.stack([triples.position, triples.feature]), triples.value.float(), (len(x), self.width),
            check_invariants=False,
        )  # fmt: skip
        return torch.sparse.mm(weights, self.W_dec.float()) + self.b_dec.float(), triples


def topk_slots(hidden: Tensor, k: int, start: int) -> Slots:
    """The k largest pre-activations of each row of hidden [position, width], where positive (Gao et al. 2024).

    TopK before ReLU: negative winners become empty slots, which equals relu(topk(hidden)).
    """
    value, feature = hidden.topk(k, dim=1, sorted=False)
    position = torch.arange(start, start + len(hidden), dtype=torch.int32, device=hidden.device)
    return Slots(
        position[:, None].expand_as(feature).reshape(-1), feature.to(torch.int32).reshape(-1),
        value.clamp_min_(0).reshape(-1), None, k * len(hidden),
    )  # fmt: skip


def relu_slots(hidden: Tensor, slots_per_token: int, start: int) -> Slots:
    """The positive pre-activations of hidden [position, width] (ReLU; Bricken et al. 2023).

    On the CPU there is nothing to wait for, and as many slots as firings.
    """
    fires = ~(hidden <= 0)  # a NaN fires, so that it is seen and refused
    if hidden.device.type == "cpu":
        position, feature = torch.nonzero(fires, as_tuple=True)
        value = hidden[position, feature]
        return Slots(position.to(torch.int32) + start, feature.to(torch.int32), value, None, len(value))
    return static_slots(hidden, fires, slots_per_token * len(hidden), start)


def static_slots(hidden: Tensor, fires: Tensor, room: int, start: int) -> Slots:
    """The entries of hidden [position, width] where `fires`, in exactly `room` slots."""
    where = torch.nonzero_static(fires, size=room, fill_value=-1)
    full = where[:, 0] >= 0
    value = torch.where(full, hidden[where[:, 0].clamp_min(0), where[:, 1].clamp_min(0)], 0)
    position = where[:, 0].clamp_min(0).to(torch.int32) + start
    return Slots(position, where[:, 1].clamp_min(0).to(torch.int32), value, fires.sum(), room)
