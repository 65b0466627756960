"""Encoding: activations of the subject -> the few features that fire, per architecture.

One pure function per architecture. Nothing here reads files, and nothing returns a dense [token, feature] matrix that
outlives its chunk of tokens. Collection encodes in two steps: `launch` queues the work and waits for nothing, so a GPU
is never made idle; `sweep.land`, on the host, drops the empty slots once they have arrived.

The order is always: centre, run-time normalisation, minus b_dec where the dictionary says so, encoder, activation.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from autointerp.errors import DictionaryError

ENCODE_CHUNK_TOKENS = 512  # tokens per encoder product: the pre-activations stay in cache and their buffer is reused
GPU_CHUNK_BYTES = 2**30  # pre-activations per encoder product on a GPU, which wants few and large kernels
SLOTS_PER_TOKEN = 128  # firing features per token that have room on a GPU at first, where the number is not fixed

# How features fire. BatchTopK and Matryoshka dictionaries are jumprelu once trained; transcoders fire like any other.
ARCHITECTURES = ("topk", "standard", "jumprelu", "gated", "groupmax", "units")
COMPETING = frozenset({"topk", "groupmax"})  # whether a feature fires depends on the others
NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm")
LAYER_NORM_EPS = 1e-5  # added to the standard deviation, as SAELens does
LEAST_NORM = 1e-8  # of a decoder row that a norm is divided by, as in SAELens
TAU_QUANTILE = 0.995  # of a unit's values: where firing begins
PROBE_TOKENS = 16_384  # positions, masked ones included, that the quantile is taken over; see `probe`
QUANTILE_ELEMENTS = 2**23  # torch.quantile takes at most 2^24 elements at once

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag", "W_skip")
PER_FEATURE = ("b_enc", "threshold", "r_mag", "b_mag")


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

    W_enc [d_in, width], b_enc [width] (gated: the gate's bias), W_dec [width, d_out], b_dec [d_out]. For an
    autoencoder d_out is d_in; a transcoder predicts another hookpoint's activation. `units` have W_enc [d_in, 0].
    `identity` is a hash of the weights and of everything that changes how they encode.
    """

    name: str
    architecture: str
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int | None = None  # topk: features per token; groupmax: groups, of which each has one winner
    threshold: Tensor | None = None  # [width]: jumprelu fires above it; units: tau, of +x_i then of -x_i
    r_mag: Tensor | None = None  # [width], gated: log of the magnitude's scale
    b_mag: Tensor | None = None  # [width], gated: the magnitude's bias
    W_skip: Tensor | None = None  # [d_out, d_in], skip transcoders: added to the prediction
    apply_b_dec_to_input: bool = True
    rescale_by_decoder_norm: bool = False  # topk: winners and activations are in units of what they write
    normalise: str = "none"  # one of NORMALISATIONS, per position at run time
    centre: bool = False  # subtract each position's mean first: trained with TransformerLens' center_writing_weights
    input_scale: float = 1.0  # expected_average_only_in: the factor of its training; it is in the weights already
    transcoder: bool = False  # predicts the activation of `hookpoint_out`
    decoder_norm_folded: bool = False  # activations were multiplied by the norm of their decoder row
    random: bool = False  # directions were replaced by random ones
    frozen_decoder: bool = False  # a null: decoder rows are what they were drawn as, all else was trained
    subject_seed: int | None = None  # a null: trained on the subject with weights drawn anew from this seed
    trained_as: str | None = None  # its architecture in training, where that is another
    hookpoint: str | None = None  # where its own files say it was trained, in their words; '.input' is a module's input
    hookpoint_out: str | None = None  # what a transcoder predicts, likewise
    model: str | None = None  # the subject that its own files name
    prepend_bos: bool | None = None  # None: its files do not say
    context_size: int | None = None  # tokens
    declared_l0: float | None = None  # mean firing features per token that its own files state
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
        return self.full_width or self._columns

    @property
    def _columns(self) -> int:
        """Features that are computed."""
        return 2 * self.d_in if self.architecture == "units" else int(self.W_enc.shape[1])

    def only(self, features: Tensor) -> "Dictionary":
        """This dictionary, encoding no feature but these (int64 [n], ascending); their numbers stay what they are.

        Where features do not compete the others are never computed; topk and groupmax need them all to find the
        winners, and drop them afterwards. Units cost nothing to compute.
        """
        if self.architecture in COMPETING or self.architecture == "units":
            return replace(self, wanted=features, _buffer=None)
        cut = {n: getattr(self, n)[features] for n in PER_FEATURE if getattr(self, n) is not None}
        return replace(
            self, **cut, W_enc=self.W_enc[:, features], W_dec=self.W_dec[features],
            wanted=features, full_width=self.width, _buffer=None,
        )  # fmt: skip

    def for_encoding(self) -> "Dictionary":
        """Without the decoder, where encoding does not read it: half the memory."""
        if self.rescale_by_decoder_norm:
            return replace(self, W_skip=None, _buffer=None)
        return replace(self, W_dec=self.W_dec[:, :0], W_skip=None, _buffer=None)

    def encoding_dtype(self, subject: torch.dtype) -> torch.dtype:
        """The dtype to encode in, for a subject that runs in another.

        A topk compares features with one another, and loses nothing in the subject's dtype. Where a feature is compared
        with a number (jumprelu, gated, standard, units), bfloat16 rounds the pre-activation by up to .4 % of its size
        and flips whoever is nearer to the threshold than that. Cost: about twice the encoder's time (measured on a CPU
        with bfloat16 products), and twice the memory of its weights.
        """
        return subject if self.architecture in COMPETING else torch.float32

    def to(self, device: torch.device, dtype: torch.dtype) -> "Dictionary":
        """A copy of the dictionary on a device, in a dtype."""
        tensors = {n: getattr(self, n).to(device=device, dtype=dtype) for n in WEIGHTS if getattr(self, n) is not None}
        wanted = None if self.wanted is None else self.wanted.to(device)
        return replace(self, **tensors, wanted=wanted, _buffer=None)

    def fold_input_scale(self, scale: float, output_scale: float | None = None) -> "Dictionary":
        """The same dictionary for raw activations x, where it was trained on `scale` * x and predicted
        `output_scale` * (its target), which is `scale` unless it is a transcoder with another.

        SAELens' fold_activation_norm_scaling_factor: W_enc * s, W_dec / s, b_dec / s. Pre-activations stay what they
        were, and so do b_enc and thresholds, except where they are in units of a decoder norm, which shrinks.
        """
        out = scale if output_scale is None else output_scale
        threshold = self.threshold
        if threshold is not None and self.rescale_by_decoder_norm:
            threshold = threshold / out
        return replace(
            self, W_enc=self.W_enc * scale, W_dec=self.W_dec / out, b_dec=self.b_dec / out, threshold=threshold,
            input_scale=self.input_scale * scale, _buffer=None,
        )  # fmt: skip

    def fold_decoder_norm(self) -> "Dictionary":
        """The same features and reconstruction with decoder rows of norm 1: activations become a_i * |W_dec_i|.

        Encoder, biases and thresholds all take the factor; r_mag is a ratio and takes none. Raises DictionaryError for
        a topk or groupmax whose rows differ in norm and that was not trained with the norms: others would win.
        """
        if self.architecture == "units" or self.decoder_norm_folded:
            return self
        if not self.W_dec.shape[1]:
            raise DictionaryError(f"{self.name} is without its decoder, so its norms cannot be folded")
        norm = torch.linalg.vector_norm(self.W_dec, dim=1).clamp_min(LEAST_NORM)
        if self.architecture in COMPETING and not self.rescale_by_decoder_norm:
            if not torch.allclose(norm, torch.ones_like(norm), rtol=1e-3):
                raise DictionaryError(
                    f"{self.name}: decoder norms ({float(norm.min()):.3g} to {float(norm.max()):.3g}) cannot be folded "
                    f"into a {self.architecture} dictionary, because other features would win; leave them"
                )
            return replace(self, decoder_norm_folded=True, identity=_fingerprint(self.identity, "decoder norm folded"))
        scaled = {n: getattr(self, n) * norm for n in ("b_enc", "b_mag") if getattr(self, n) is not None}
        if self.threshold is not None:  # with the rescaling flag it is in units of the norm already
            scaled["threshold"] = self.threshold if self.rescale_by_decoder_norm else self.threshold * norm
        return replace(
            self, **scaled, W_enc=self.W_enc * norm, W_dec=self.W_dec / norm[:, None], rescale_by_decoder_norm=False,
            decoder_norm_folded=True, identity=_fingerprint(self.identity, "decoder norm folded"), _buffer=None,
        )  # fmt: skip

    def pre_activations(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """What the activation function is given at x [position, d_in]: [position, width].

        (prepared x) @ W_enc + b_enc; without b_enc for a gated one, whose two paths have biases of their own.
        `out` [position, width] is filled where given.
        """
        x = self.prepare(x)
        if self.architecture == "units":
            return torch.cat([x, -x], dim=1, out=out)
        if self.architecture == "gated":
            return torch.mm(x, self.W_enc, out=out) if out is not None else torch.mm(x, self.W_enc)
        hidden = (
            torch.addmm(self.b_enc, x, self.W_enc, out=out)
            if out is not None
            else torch.addmm(self.b_enc, x, self.W_enc)
        )
        if self.rescale_by_decoder_norm:
            hidden.mul_(torch.linalg.vector_norm(self.W_dec, dim=1))
        return hidden

    def prepare(self, x: Tensor) -> Tensor:
        """What the encoder multiplies, from raw activations x [position, d_in]; the same shape."""
        if self.centre:
            x = x - x.mean(dim=1, keepdim=True)
        x = normalised(x, self.normalise)
        return x - self.b_dec if self.apply_b_dec_to_input else x

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
            rows = max(GPU_CHUNK_BYTES // (self._columns * self.W_enc.element_size()), rows)
        for start in range(0, len(x), rows):
            yield start, x[start : start + rows].to(self.W_enc.dtype)

    def _launch_chunk(self, chunk: Tensor, start: int, slots_per_token: int) -> Slots:
        if self._buffer is None or self._buffer.device != chunk.device or len(self._buffer) < len(chunk):
            self._buffer = torch.empty(
                max(len(chunk), ENCODE_CHUNK_TOKENS), self._columns, dtype=self.W_enc.dtype, device=chunk.device
            )
        hidden = self.pre_activations(chunk, out=self._buffer[: len(chunk)])
        if self.architecture == "topk":
            return topk_slots(hidden, self.k or 1, start)
        if self.architecture == "groupmax":
            return groupmax_slots(hidden, self.k or 1, start)
        if self.architecture == "standard":
            return relu_slots(hidden, slots_per_token, start)
        if self.architecture == "gated":
            assert self.r_mag is not None and self.b_mag is not None
            return gated_slots(hidden, self.b_enc, self.r_mag, self.b_mag, slots_per_token, start)
        assert self.threshold is not None
        return jumprelu_slots(hidden, self.threshold, slots_per_token, start)

    @torch.inference_mode()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, Triples]:
        """What the features that fire at x [position, d_in] say: x_hat [position, d_out], float32, and the triples.

        An autoencoder gives x back: normalisation, scale and centring are undone. A transcoder predicts the activation
        of `hookpoint_out`; its output has no run-time normalisation, and the skip connection reads raw x (as SAELens).
        """
        triples = self.encode(x)
        x = x.float()
        if self.architecture == "units":
            sign = torch.where(triples.feature < self.d_in, 1.0, -1.0)
            found = torch.zeros_like(x)
            found.index_put_(
                (triples.position, triples.feature % self.d_in), sign * triples.value.float(), accumulate=True
            )
            return found, triples
        column = triples.feature
        if self.full_width:
            assert self.wanted is not None
            column = torch.searchsorted(self.wanted, column)
        value = triples.value.float()
        if self.rescale_by_decoder_norm:
            value = value / torch.linalg.vector_norm(self.W_dec.float(), dim=1)[column]
        weights = torch.sparse_coo_tensor(
            torch.stack([triples.position, column]), value, (len(x), self._columns), check_invariants=False
        )
        found = torch.sparse.mm(weights, self.W_dec.float()) + self.b_dec.float()
        if not self.transcoder:
            mean = x.mean(dim=1, keepdim=True) if self.centre else 0.0
            found = denormalised(found, x - mean, self.normalise) + mean
        if self.W_skip is not None:
            found = found + x @ self.W_skip.float().T
        return found, triples


# -- what the encoder reads --------------------------------------------------------------------------------------------


def normalised(x: Tensor, how: str) -> Tensor:
    """Activations x [position, d_in] as a dictionary trained with a run-time normalisation reads them (SAELens).

    constant_norm_rescale  every position gets norm sqrt(d_in)
    layer_norm             every position gets mean 0 and standard deviation (unbiased) 1
    """
    if how == "constant_norm_rescale":
        return x * (x.shape[1] ** 0.5 / torch.linalg.vector_norm(x, dim=1, keepdim=True))
    if how == "layer_norm":
        x = x - x.mean(dim=1, keepdim=True)
        return x / (x.std(dim=1, keepdim=True) + LAYER_NORM_EPS)
    return x


def denormalised(x_hat: Tensor, x: Tensor, how: str) -> Tensor:
    """A reconstruction of normalised(x) as one of x; both [position, d_in]. As in SAELens, without the epsilon."""
    if how == "constant_norm_rescale":
        return x_hat * (torch.linalg.vector_norm(x, dim=1, keepdim=True) / x.shape[1] ** 0.5)
    if how == "layer_norm":
        return x_hat * x.std(dim=1, keepdim=True) + x.mean(dim=1, keepdim=True)
    return x_hat


# -- one function per architecture -------------------------------------------------------------------------------------


def topk_slots(hidden: Tensor, k: int, start: int) -> Slots:
    """The k largest pre-activations of each row of hidden [position, width], where positive (Gao et al. 2024).

    TopK before ReLU: negative winners become empty slots, which equals relu(topk(hidden)) and topk(relu(hidden)).
    """
    value, feature = hidden.topk(k, dim=1, sorted=False)
    return _winners(value, feature, start)


def groupmax_slots(hidden: Tensor, k: int, start: int) -> Slots:
    """The largest pre-activation of each of k equal groups of neighbouring features, where positive (sparsify).

    hidden [position, width], width divisible by k.
    """
    value, within = hidden.unflatten(1, (k, -1)).max(dim=2)
    first = torch.arange(0, hidden.shape[1], hidden.shape[1] // k, device=hidden.device)
    return _winners(value, within + first, start)


def _winners(value: Tensor, feature: Tensor, start: int) -> Slots:
    """Slots of a fixed number of winners per row; value and feature [position, k]."""
    position = torch.arange(start, start + len(value), dtype=torch.int32, device=value.device)
    return Slots(
        position[:, None].expand_as(feature).reshape(-1), feature.to(torch.int32).reshape(-1),
        value.clamp_min_(0).reshape(-1), None, value.numel(),
    )  # fmt: skip


def relu_slots(hidden: Tensor, slots_per_token: int, start: int) -> Slots:
    """The positive pre-activations of hidden [position, width] (ReLU; Bricken et al. 2023)."""
    return _sparse(hidden, ~(hidden <= 0), slots_per_token, start)  # a NaN fires, so that it is seen and refused


def jumprelu_slots(hidden: Tensor, threshold: Tensor, slots_per_token: int, start: int) -> Slots:
    """The pre-activations of hidden [position, width] above threshold [width] and 0 (Rajamanoharan et al. 2024b).

    Also how BatchTopK and Matryoshka dictionaries encode once they are trained, and how units fire.
    """
    return _sparse(hidden, ~(hidden <= threshold.clamp_min(0)), slots_per_token, start)


def gated_slots(
    hidden: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor, slots_per_token: int, start: int
) -> Slots:
    """relu(hidden * exp(r_mag) + b_mag) where hidden + b_gate > 0 (Rajamanoharan et al. 2024a).

    hidden [position, width] is x @ W_enc without a bias, which both paths share; b_gate, r_mag, b_mag [width]. The
    magnitude is computed where the gate is open alone, so there is no second matrix of its size.
    """
    slots = _sparse(hidden, ~(hidden <= -b_gate), slots_per_token, start)
    feature = slots.feature.long()
    magnitude = slots.value * r_mag.exp()[feature] + b_mag[feature]
    if slots.n is not None:  # an empty slot must stay empty
        magnitude = torch.where(torch.arange(slots.room, device=hidden.device) < slots.n, magnitude, 0)
    return slots._replace(value=magnitude.clamp_min(0))


def _sparse(hidden: Tensor, fires: Tensor, slots_per_token: int, start: int) -> Slots:
    """The entries of hidden [position, width] where `fires`.

    On the CPU there is nothing to wait for, and as many slots as firings.
    """
    if hidden.device.type == "cpu":
        position, feature = torch.nonzero(fires, as_tuple=True)
        value = hidden[position, feature]
        return Slots(position.to(torch.int32) + start, feature.to(torch.int32), value, None, len(value))
    return static_slots(hidden, fires, slots_per_token * len(hidden), start)


def static_slots(hidden: Tensor, fires: Tensor, room: int, start: int) -> Slots:
    """The entries of hidden [position, width] where `fires`, in exactly `room` slots, the full ones first."""
    where = torch.nonzero_static(fires, size=room, fill_value=-1)
    full = where[:, 0] >= 0
    value = torch.where(full, hidden[where[:, 0].clamp_min(0), where[:, 1].clamp_min(0)], 0)
    position = where[:, 0].clamp_min(0).to(torch.int32) + start
    return Slots(position, where[:, 1].clamp_min(0).to(torch.int32), value, fires.sum(), room)


# -- what a dictionary is compared with --------------------------------------------------------------------------------


def units(d: int, tau: Tensor | None = None, name: str = "units", hookpoint: str | None = None) -> Dictionary:
    """The hookpoint's own coordinates as a dictionary of 2 d features: feature i is +x_i, feature d + i is -x_i.

    tau  float [2 d], see `tau_of`: a feature fires where its value exceeds max(tau, 0). None where it is yet to be
         probed (`probe.completed`): what the probe will find follows from subject, corpus and the constants above, so
         the identity holds those.
    Raises DictionaryError when tau has another shape or is not finite.
    """
    identity = _fingerprint("units", d, "probed", TAU_QUANTILE, PROBE_TOKENS)
    if tau is not None:
        if tuple(tau.shape) != (2 * d,) or not torch.isfinite(tau).all():
            raise DictionaryError(
                f"{name}: tau must be {2 * d} finite numbers, +x_i then -x_i of {d} units; got shape {list(tau.shape)}"
            )
        tau = tau.float().cpu()
        identity = _fingerprint("units", d, tau.tolist())
    return Dictionary(
        name=name,
        architecture="units",
        W_enc=torch.empty(d, 0),
        b_enc=torch.empty(0),
        W_dec=torch.empty(0, d),
        b_dec=torch.zeros(d),
        threshold=tau,
        apply_b_dec_to_input=False,
        hookpoint=hookpoint,
        identity=identity,
    )


def tau_of(activations: Tensor, quantile: float = TAU_QUANTILE) -> Tensor:
    """The quantile of each unit's values, +x_i then -x_i: float32 [2 d], from activations [position, d] of a probe."""
    rows, d = activations.shape
    step = max(QUANTILE_ELEMENTS // max(rows, 1), 1)
    at = torch.tensor([quantile, 1 - quantile], device=activations.device)
    parts = [torch.quantile(activations[:, i : i + step].float(), at, dim=0) for i in range(0, d, step)]
    high, low = torch.cat(parts, dim=1)
    return torch.cat([high, -low])


def randomised(dictionary: Dictionary, seed: int) -> Dictionary:
    """A null: the same activation rule, biases and thresholds on random directions; its name ends in `-random`.

    Decoder rows are uniform on the sphere; the encoder is their transpose with the column norms that it had (for a
    transcoder, whose input and output are different spaces, random directions of its own). Raises DictionaryError for
    units, which have no directions to replace.
    """
    if dictionary.architecture == "units":
        raise DictionaryError(f"{dictionary.name} has no directions to make random: give `random` to an SAE")
    if dictionary.rescale_by_decoder_norm:  # the norms are part of the rule; rows of norm 1 cannot carry them
        dictionary = dictionary.fold_decoder_norm()
    generator = torch.Generator().manual_seed(int(_fingerprint(seed, "random", dictionary.identity)[:15], 16))
    W_dec = directions(dictionary.width, dictionary.W_dec.shape[1], generator)  # noqa: N806
    read = directions(dictionary.width, dictionary.d_in, generator) if dictionary.transcoder else W_dec
    norms = torch.linalg.vector_norm(dictionary.W_enc, dim=0)
    return replace(
        dictionary, name=f"{dictionary.name}-random", W_enc=(read.T * norms).contiguous(), W_dec=W_dec, random=True,
        identity=_fingerprint(dictionary.identity, "random", seed), _buffer=None,
    )  # fmt: skip


def directions(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Random directions, uniform on the sphere: float32 [n, d], rows of norm 1."""
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)


def _fingerprint(*parts: object) -> str:
    return hashlib.md5(json.dumps(parts).encode()).hexdigest()[:16]
