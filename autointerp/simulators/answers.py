"""How likely a causal language model finds each answer of a list, for many passages that share a prompt.

Instructions and examples are run once, a label's heading once per label; every passage then costs its own list alone.
What they share is kept as keys and values and expanded over the batch as it is needed, never stored per passage.

An answer may be several tokens: most new tokenizers write 10 as 1 and 0. Which answer a model means is then decided
token by token, each time among the tokens that lead to an answer: P(10) = P(1, as first token) x P(0 after it, rather
than the end of the line). The question after the 1 is put at every token of the list at once: as many tokens `1` stand
at the list's end, each at the place, and with the view, of an answer within it. Where every answer is one token this is
OpenAI's computation exactly.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from autointerp.config import SimulatorSection, model_of
from autointerp.errors import ConfigError
from autointerp.simulators.logprob import ANSWERS, heading, prefix
from autointerp.simulators.pieces import Choices, List, Pieces, choices
from autointerp.subject import load_causal_lm, pick_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Shared(NamedTuple):
    """Keys and values [1, head, position, d] of what passages share, by layer."""

    layers: list[tuple[Tensor, Tensor]]
    n_tokens: int


class LocalAnswers:
    """Answers of a model in this process."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompt: str, batch: int) -> None:
        self.model, self.prompt, self.batch = model, prompt, batch
        self.pieces = Pieces(tokenizer)
        self.choices = choices(self.pieces)
        self.windows = _windows(model.config)
        _keep_rows(model, self.choices.tokens)
        self._prefix: Shared | None = None

    @classmethod
    def load(cls, cfg: SimulatorSection, device: str, passage_tokens: int) -> "LocalAnswers":
        """Load the model: float32 on a CPU, bfloat16 elsewhere. Raises SubjectError, or ConfigError where it is one
        that cannot simulate."""
        chosen = pick_device(device)
        model, tokenizer = load_causal_lm(model_of(cfg).name, "float32" if chosen.type == "cpu" else "bfloat16", chosen)
        return cls(model, tokenizer, cfg.prompt_file, cfg.batch)

    @torch.inference_mode()
    def expect(self, label: str, passages: Sequence[Sequence[str]]) -> list[NDArray[np.float32]]:
        """The expected answer at every token, 0 to 10, one array [token] per passage.

        Raises ConfigError where the prompt is longer than the model's context.
        """
        if self._prefix is None:
            self._prefix = self._extend(Shared([], 0), self.pieces.start + self.pieces.of(prefix(self.prompt)))
        shared = self._extend(self._prefix, self.pieces.of(heading(self.prompt, label)))
        lists = [self.pieces.listed(strings) for strings in passages]
        self._check_length(shared.n_tokens + max((len(listed.ids) for listed in lists), default=0))
        result = [np.empty(0, dtype=np.float32)] * len(lists)
        order = [i for i in sorted(range(len(lists)), key=lambda i: len(lists[i].ids)) if lists[i].ids]
        for start in range(0, len(order), self.batch):  # neighbours in length share a batch: little is padded
            chosen = order[start : start + self.batch]
            for i, expected in zip(chosen, self._expected([lists[i] for i in chosen], shared), strict=True):
                result[i] = expected
        return result

    def _check_length(self, n_tokens: int) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and n_tokens > limit:
            raise ConfigError(
                f"simulator.model reads {limit} tokens, and its prompt with a passage takes {n_tokens}: take a model "
                "with a longer context, a smaller collect.passage_tokens, or a prompt with fewer examples"
            )

    def _extend(self, shared: Shared, ids: Sequence[int]) -> Shared:
        """What is shared, with these tokens after it."""
        place = torch.arange(len(ids))[None]
        layers = self._run(torch.tensor([list(ids)]), place, place[:, None] <= place[..., None], shared, keep=True)[1]
        return Shared([layer.held for layer in layers], shared.n_tokens + len(ids))

    def _expected(self, lists: Sequence[List], shared: Shared) -> list[NDArray[np.float32]]:
        """Expected answers of one batch."""
        n, width = len(lists), max(len(listed.ids) for listed in lists)
        asked = max(len(listed.ends) for listed in lists)
        ids, ends = torch.zeros(n, width, dtype=torch.long), torch.zeros(n, asked, dtype=torch.long)
        for row, listed in enumerate(lists):
            ids[row, : len(listed.ids)] = torch.tensor(listed.ids)
            ends[row, : len(listed.ends)] = torch.tensor(listed.ends)
        place = torch.arange(width).expand(n, -1)
        seen = (place[:, None] <= place[..., None]).expand(n, -1, -1)
        if self.choices.after is not None:
            ids = torch.cat([ids, torch.full_like(ends, self.choices.after)], dim=1)
            seen = torch.nn.functional.pad(seen, (0, asked))
            own = torch.eye(asked, dtype=torch.bool).expand(n, -1, -1)
            seen = torch.cat([seen, torch.cat([place[:, None] <= ends[..., None], own], dim=2)], dim=1)
            place = torch.cat([place, ends + 1], dim=1)
        logits = self._run(ids, place, seen, shared)[0].float().cpu()
        first = logits.gather(1, ends[..., None].expand(-1, -1, logits.shape[2]))
        values = expected(first, logits[:, width:], self.choices).numpy()
        return [values[row, : len(listed.ends)] for row, listed in enumerate(lists)]

    def _run(
        self, ids: Tensor, place: Tensor, seen: Tensor, shared: Shared, keep: bool = False
    ) -> "tuple[Tensor, list[_Layer]]":
        """Logits [row, token, choice] of tokens after what is shared, and the keys and values that they were run with.

        place  [row, token] where each token stands, counted from the end of what is shared
        seen   [row, token, token] which tokens each one may look at, beside all that is shared
        keep   hold the tokens' keys and values in the cache
        """
        ids, place, seen = (part.to(self.model.device) for part in (ids, place, seen))
        n, before = len(ids), shared.n_tokens
        position = (place + before).expand(n, -1)
        key_position = torch.cat([torch.arange(before, device=ids.device).expand(n, -1), position], dim=1)
        visible = torch.nn.functional.pad(seen.expand(n, -1, -1), (before, 0), value=True)
        masks = {
            kind: self._mask(visible, position[..., None] - key_position[:, None], window)
            for kind, window in self.windows.items()
        }
        n_layers = int(self.model.config.get_text_config().num_hidden_layers)
        layers = [_Layer(shared.layers[i] if shared.layers else None, keep) for i in range(n_layers)]
        logits = self.model(
            input_ids=ids, position_ids=position, past_key_values=Cache(layers=list(layers)),
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())), use_cache=True,
        ).logits  # fmt: skip
        return logits, layers

    def _mask(self, visible: Tensor, distance: Tensor, window: int | None) -> Tensor:
        """The additive mask [row, 1, token, key] of a kind of layer."""
        if window is not None:
            visible = visible & (distance < window)
        mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)[:, None]


def expected(first: Tensor, second: Tensor, found: Choices) -> Tensor:
    """The expected answer [row, token] from logits over `found.tokens`.

    first   [row, token, choice] where an answer begins
    second  [row, token, choice] after `found.after`; empty where there is none
    """
    begun = first[..., : len(found.first)].softmax(dim=-1)
    share = torch.ones(len(ANSWERS), *begun.shape[:-1])
    if found.second:
        places = list(found.second.values())
        share[list(found.second)] = second[..., places].softmax(dim=-1).movedim(-1, 0)
    total = torch.zeros(begun.shape[:-1])
    for place, answers in enumerate(found.first):
        for answer in answers:
            total += answer * begun[..., place] * share[answer]
    return total


def _keep_rows(model: "PreTrainedModel", tokens: Sequence[int]) -> None:
    """Cut the model's output embedding down to these tokens; whatever it does to logits afterwards, it does to them."""
    head: Any = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    small = torch.nn.Linear(head.weight.shape[1], len(tokens), bias=bias is not None)
    small.weight = torch.nn.Parameter(head.weight.detach()[list(tokens)].clone(), requires_grad=False)
    if bias is not None:
        small.bias = torch.nn.Parameter(bias.detach()[list(tokens)].clone(), requires_grad=False)
    model.set_output_embeddings(small)


def _windows(config: Any) -> dict[str, int | None]:
    """Kinds of attention layers, and how far each looks back (None: all the way).

    Raises ConfigError for layers that are no attention: they carry a state that cannot be asked about the past.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if strange := kinds - {"full_attention", "sliding_attention"}:
        raise ConfigError(f"simulator.model cannot simulate: it has layers of type {', '.join(sorted(strange))}")
    if len(kinds) > 1:
        return {"full_attention": None, "sliding_attention": window}
    return {"attention": None if kinds == {"full_attention"} else window}


class _Layer(DynamicLayer):
    """One layer of what passages share, expanded over a batch as it is asked for."""

    def __init__(self, held: tuple[Tensor, Tensor] | None, keep: bool) -> None:
        super().__init__()
        self.keep = keep
        if held is not None:
            self.lazy_initialization(*held)
            self.keys, self.values = held

    @property
    def held(self) -> tuple[Tensor, Tensor]:
        """Keys and values that are shared."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of what is shared and of these tokens, which are held only where they will be shared too."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        keys, values = (
            torch.cat([old.expand(len(new), -1, -1, -1), new], dim=-2)
            for old, new in zip(self.held, (key_states, value_states), strict=True)
        )
        if self.keep:
            self.keys, self.values = keys, values
        return keys, values
