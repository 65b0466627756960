"""Change what features write while the subject runs: add to one, hold it at a value, or take it out.

    with intervening(subject, hookpoint, dictionary, [Edit(17, "add", 4 * largest)]):
        subject.model(input_ids=tokens)  # or model.generate, or a loop of one's own

Every edit adds a multiple of the feature's decoder row to the activation at the dictionary's hookpoint: `add` the
amount itself, `clamp` the amount minus the activation that is there, `ablate` minus that activation. The reconstruction
error stays in the activation, so nothing else changes, and an edit of zero changes nothing at all (Templeton et al.
2024).

At a hookpoint inside a block (the input of an attention's or an MLP's output projection) the direction is added there,
and the subject's own projection takes it to the residual stream.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from autointerp import hooks
from autointerp.dictionary import Dictionary
from autointerp.errors import DictionaryError, FeatureError, SubjectError
from autointerp.lens import direction_of
from autointerp.subject import Subject

Kind = Literal["add", "clamp", "ablate"]
LINEAR = frozenset({"scale", "center"})  # transforms of a hookpoint that a direction can be taken back through


@dataclass(frozen=True)
class Edit:
    """One feature, and what to do to it. `amount` is in units of its activation, for every context of a batch or one
    for each; ablation has none."""

    feature: int
    kind: Kind
    amount: float | tuple[float, ...] = 0.0

    @property
    def amounts(self) -> tuple[float, ...]:
        """One amount, or one per context."""
        return self.amount if isinstance(self.amount, tuple) else (self.amount,)


@contextmanager
def intervening(subject: Subject, hookpoint: str, dictionary: Dictionary, edits: Sequence[Edit]) -> Iterator[None]:
    """While this is open, every pass of `subject.model` runs with the edits made at the hookpoint, at all positions.

    hookpoint   canonical text, as `Subject.hookpoint` gives it
    dictionary  an autoencoder of that hookpoint, or its units; with its decoder
    edits       made together, each on what is there before any of them; of one feature several are added up

    Positions that never count, attention sinks (`Subject.judge`), are left as they are: what a dictionary encodes there
    means nothing. In a pass of one token, as with a key-value cache, they are told by the median norm of the pass
    before it. The hook is removed however the block is left.
    Raises DictionaryError for a transcoder and for a hookpoint that is a normalised copy, FeatureError for a feature
    that is not there or an amount that is not finite; during a pass SubjectError where widths differ.
    """
    check(dictionary, hookpoint, edits)
    with replacing(subject, hookpoint, _Change(subject, hooks.parse(hookpoint), dictionary, edits)):
        yield


@contextmanager
def replacing(subject: Subject, hookpoint: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While this is open, what `change` makes of the activations at a hookpoint takes their place.

    change  from activations [context, token, d], or with contexts laid end to end [position, d], to the same shape
    The hook is removed however the block is left.
    """
    handle = hooks.parse(hookpoint).replace(subject.model, change)
    try:
        yield
    finally:
        handle.remove()


def check(dictionary: Dictionary, hookpoint: str, edits: Sequence[Edit]) -> None:
    """Raises DictionaryError or FeatureError where these edits cannot be made."""
    if dictionary.transcoder:
        raise DictionaryError(
            f"{dictionary.name} is a transcoder, which reads one hookpoint and writes another: only features of an "
            "autoencoder can be changed"
        )
    bent = [name for name, _ in hooks.parse(hookpoint).transforms if name not in LINEAR]
    if bent:
        raise DictionaryError(
            f"{dictionary.name} reads {hookpoint!r}, a copy ({bent[0]}) that the subject does not compute with: "
            "features can be changed at a plain hookpoint only"
        )
    for edit in edits:
        if not 0 <= edit.feature < dictionary.width:
            raise FeatureError(f"{dictionary.name} has features 0 to {dictionary.width - 1}, not {edit.feature}")
        if dictionary.wanted is not None and edit.feature not in dictionary.wanted.tolist():
            raise FeatureError(f"feature {edit.feature} of {dictionary.name} was left out by collect.features")
        if edit.kind != "add" and dictionary.architecture == "units" and dictionary.threshold is None:
            raise DictionaryError(
                f"{dictionary.name}: where units begin to fire is probed at collection, so they can only be added to"
            )
        if not all(math.isfinite(amount) for amount in edit.amounts):
            raise FeatureError(f"feature {edit.feature}: expected a finite amount to {edit.kind}, got {edit.amount}")


class _Change:
    """From the activations at a hookpoint to the edited ones: what the hook calls."""

    def __init__(self, subject: Subject, hook: hooks.Hook, dictionary: Dictionary, edits: Sequence[Edit]) -> None:
        self.subject, self.hook, self.name = subject, hook, dictionary.name
        self.added = [edit for edit in edits if edit.kind == "add" and any(edit.amounts)]
        self.held = [edit for edit in edits if edit.kind != "add"]
        written = written_by(dictionary, [edit.feature for edit in (*self.added, *self.held)])
        factor = math.prod(number for name, number in hook.transforms if name == "scale")
        self.written = written.to(subject.device) / factor
        self.adds, self.holds = self._amounts(self.added), self._amounts(self.held)
        self.normalise = dictionary.normalise
        self.encoder = self._encoder(dictionary)
        self.typical: Tensor | None = None  # [context, 1], median norm of the last pass of more than one token

    def _amounts(self, edits: Sequence[Edit]) -> Tensor:
        """float32 [context, edit], with one row where all contexts get the same."""
        rows = max((len(edit.amounts) for edit in edits), default=1)
        columns = [torch.tensor(edit.amounts, dtype=torch.float32).expand(rows) for edit in edits]
        found = torch.stack(columns, dim=1) if columns else torch.empty(rows, 0)
        return found.to(self.subject.device)

    def _encoder(self, dictionary: Dictionary) -> Dictionary | None:
        """What tells the activations of the held features; None where none is."""
        if not self.held:
            return None
        wanted = torch.tensor(sorted({edit.feature for edit in self.held}))
        if dictionary.wanted is None:
            dictionary = dictionary.only(wanted)
        dtype = dictionary.encoding_dtype(self.subject.model.dtype)
        return dictionary.for_encoding().to(self.subject.device, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Activations [context, token, d], or with contexts laid end to end [position, d]; the same shape and dtype."""
        if x.shape[-1] != self.written.shape[1]:
            raise SubjectError(
                f"{self.name} writes vectors of width {self.written.shape[1]}, but {self.hook} of {self.subject.name} "
                f"has width {x.shape[-1]}"
            )
        if not self.added and not self.held:
            return x
        contexts = x if x.ndim == 3 else x.view(max(len(self.adds), len(self.holds)), -1, x.shape[-1])
        seen = self.hook.apply(contexts)
        change = (self.adds @ self.written[: len(self.added)])[:, None]
        if self.encoder is not None:
            missing = self.holds[:, None] - self._now(seen, self.encoder)
            change = change + missing @ self.written[len(self.added) :]
        change = (change * unit_of(seen.float(), self.normalise)).expand(contexts.shape)
        change = change.masked_fill(self._sinks(contexts)[..., None], 0.0)
        return (contexts.float() + change).to(x.dtype).view(x.shape)  # where the change is 0, x bit for bit

    def _now(self, seen: Tensor, encoder: Dictionary) -> Tensor:
        """The activations of the held features, float32 [context, token, held]."""
        found = encoder.encode(seen.reshape(-1, seen.shape[-1]))
        now = torch.zeros(seen.shape[:-1].numel(), len(self.held), device=seen.device)
        for column, edit in enumerate(self.held):
            own = found.feature == edit.feature
            now[found.position[own], column] = found.value[own].float()
        return now.view(*seen.shape[:-1], -1)

    def _sinks(self, x: Tensor) -> Tensor:
        """bool [context, token], of x [context, token, d]: the norm exceeds the subject's ratio times the median."""
        norms = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
        known = self.typical
        if norms.shape[1] > 1 or known is None or len(known) != len(norms):
            known = self.typical = norms.median(dim=-1, keepdim=True).values
        return norms > self.subject.max_norm_ratio * known


def written_by(dictionary: Dictionary, features: Sequence[int]) -> Tensor:
    """What features write per unit of their activation, float32 [feature, d_out]: decoder rows.

    Of a dictionary whose activations are in units of what they write (`rescale_by_decoder_norm`) rows of norm 1.
    """
    if not features:
        return torch.empty(0, dictionary.d_in)
    rows = torch.stack([direction_of(dictionary, feature) for feature in features]).float()
    if dictionary.rescale_by_decoder_norm:
        rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows


def unit_of(x: Tensor, normalise: str) -> Tensor | float:
    """How long one unit of what the dictionary reads is at x [..., d_in]: [..., 1], or 1 for raw activations."""
    if normalise == "constant_norm_rescale":
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    if normalise == "layer_norm":
        return x.std(dim=-1, keepdim=True)
    return 1.0
