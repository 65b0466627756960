"""What prompts begin with, run through a model once and kept: instructions and examples are most of a prompt.

Only for models whose layers all attend to everything before: another layer's state cannot be cut where prompts part.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT = 8  # prefixes kept, a prompt file's each; the one used longest ago goes first


class Prefix(NamedTuple):
    """Tokens, and their keys and values [1, head, token, d] by layer."""

    ids: list[int]
    layers: list[tuple[Tensor, Tensor]]


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that two prompts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


class Prefixes:
    """The prefixes of one model."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model = model
        kinds = [type(layer) for layer in DynamicCache(config=model.config).layers]
        self.n_layers = len(kinds) if set(kinds) == {DynamicLayer} else 0  # 0: nothing can be kept
        self._kept: OrderedDict[Hashable, Prefix] = OrderedDict()

    def held(self, key: Hashable, ids: Sequence[int]) -> int:
        """How many of these first tokens are kept already."""
        return common(self._kept[key].ids, ids) if key in self._kept else 0

    @torch.inference_mode()
    def cache(self, key: Hashable, ids: Sequence[int], n_rows: int, n_tokens: int) -> Cache | None:
        """A cache for so many prompts of so many tokens, replies included, filled with what they begin with.

        None where nothing can be kept of this model. `key`: what this prefix will be known by.
        """
        if not self.n_layers:
            return None
        rows = [_Rows(n_rows, n_tokens) for _ in range(self.n_layers)]
        if ids:
            for layer, held in zip(rows, self._layers(key, ids), strict=True):
                layer.update(*(part[..., : len(ids), :].expand(n_rows, -1, -1, -1) for part in held))
        return Cache(layers=list(rows))

    def _layers(self, key: Hashable, ids: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a prefix that begins with these tokens."""
        if self.held(key, ids) < len(ids):
            run = [_Rows(1, len(ids)) for _ in range(self.n_layers)]
            self.model.base_model(
                input_ids=torch.tensor([list(ids)], device=self.model.device),
                past_key_values=Cache(layers=list(run)), use_cache=True,
            )  # fmt: skip
            self._kept[key] = Prefix(list(ids), [layer.filled for layer in run])
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key].layers


class _Rows(DynamicLayer):
    """Keys and values of a batch in memory taken once: joined anew for every token, all before it would be copied."""

    def __init__(self, n_rows: int, n_tokens: int) -> None:
        super().__init__()
        self.n_rows, self.n_tokens = n_rows, n_tokens
        self._room: list[Tensor] = []

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        """The keys and values that are there."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values with those of new tokens."""
        new = key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(*new)
            self._room = [part.new_empty(self.n_rows, part.shape[1], self.n_tokens, part.shape[3]) for part in new]
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        for room, part in zip(self._room, new, strict=True):
            room[:, :, before:after] = part
        self.keys, self.values = (room[:, :, :after] for room in self._room)
        return self.filled
