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
        self._kept: OrderedDict[Hashable, Prefix] = OrderedDict()

    def held(self, key: Hashable, ids: Sequence[int]) -> int:
        """How many of these first tokens are kept already."""
        return common(self._kept[key].ids, ids) if key in self._kept else 0

    @torch.inference_mode()
    def cache(self, key: Hashable, ids: Sequence[int], n_rows: int, n_tokens: int) -> Cache | None:
        """A cache for so many prompts of so many tokens, replies included, filled with what they begin with.

        None where the model has a layer that is not plain attention. `key`: what this prefix will be known by.
        """
        kinds = [type(layer) for layer in DynamicCache(config=self.model.config).layers]
        if not kinds or set(kinds) != {DynamicLayer}:
            return None
        if self.held(key, ids) < len(ids):
            one = Cache(layers=[_Rows(None, 1, len(ids)) for _ in kinds])
            self.model.base_model(
                input_ids=torch.tensor([list(ids)], device=self.model.device), past_key_values=one, use_cache=True
            )
            self._kept[key] = Prefix(list(ids), [(layer.keys, layer.values) for layer in one.layers])  # type: ignore[misc]
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        layers = self._kept[key].layers
        return Cache(layers=[_Rows((k[..., : len(ids), :], v[..., : len(ids), :]), n_rows, n_tokens) for k, v in layers])


class _Rows(DynamicLayer):
    """Keys and values of a batch in memory taken once: joined anew for every token, all before it would be copied."""

    def __init__(self, held: tuple[Tensor, Tensor] | None, n_rows: int, n_tokens: int) -> None:
        super().__init__()
        self.n_rows, self.n_tokens = n_rows, n_tokens
        self._room: tuple[Tensor, Tensor] | None = None
        if held is not None:
            self.update(*(part.expand(n_rows, -1, -1, -1) for part in held))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values with those of new tokens."""
        if self._room is None:
            self.lazy_initialization(key_states, value_states)
            self._room = tuple(  # type: ignore[assignment]
                new.new_empty(self.n_rows, new.shape[1], self.n_tokens, new.shape[3]) for new in (key_states, value_states)
            )
        assert self._room is not None
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, before:after] = new
        self.keys, self.values = (room[:, :, :after] for room in self._room)
        return self.keys, self.values
