"""How the tokens of a reply are chosen in this process: within a JSON schema and, above temperature 0, by chance.

Masks over the vocabulary come from llguidance, so a reply has the form that was asked for whatever the model tends to
write, and ends where that form ends. A sample is the greedy choice under Gumbel noise (Gumbel 1954; Maddison et al.
2014), which every request draws from a generator of its own: a reply depends neither on what shares its batch nor on
the order of the requests.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from autointerp.llm.request import Request

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from transformers import PreTrainedTokenizerBase

# As the examples in the prompts are laid out: with free white space a small model may write nothing else.
LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Forms:
    """The forms that replies of one model may be held to, by schema.

    vocabulary  logits of the model, which may be more than its tokenizer's tokens
    ends        tokens that end a reply
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocabulary: int, ends: Sequence[int]) -> None:
        self.tokenizer, self.vocabulary, self.ends = tokenizer, vocabulary, list(ends)
        self._begun: dict[str, LLMatcher] = {}

    def of(self, schema: str | None) -> "LLMatcher | None":
        """The form at its beginning. None where none is asked for, and for tokenizers that no masks can be made of."""
        if schema is None or not self.ends or not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return None
        if schema not in self._begun:
            from llguidance import LLMatcher

            found = LLMatcher(self._tokens, LLMatcher.grammar_from_json_schema(schema, overrides=LAYOUT))
            if found.is_error():  # the schemas are ours
                raise ValueError(f"{schema}: {found.get_error()}")
            self._begun[schema] = found
        return self._begun[schema].deep_copy()

    @cached_property
    def _tokens(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self.tokenizer, self.vocabulary, self.ends)  # type: ignore[arg-type]


class Choice(LogitsProcessor):
    """Logits [row, token] of a batch of requests -> those of which the largest is the choice."""

    def __init__(self, requests: Sequence[Request], forms: Forms, n_prompt: int, device: torch.device) -> None:
        self.requests, self.n_prompt = requests, n_prompt
        self.forms = [forms.of(request.schema) for request in requests]
        self.chance = [torch.Generator(device).manual_seed(int(request.call_id[:15], 16)) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits with noise, and with minus infinity for every token that would leave the form."""
        scores = scores.float()
        for row, request in enumerate(self.requests):
            if request.temperature > 0:
                uniform = torch.rand(scores.shape[1], generator=self.chance[row], device=scores.device)
                noise = -(-uniform.clamp_min(torch.finfo(torch.float32).tiny).log()).log()
                scores[row] = scores[row] / request.temperature + noise
        allowed = self._allowed(input_ids, scores.shape[1])
        if allowed is not None:
            scores.masked_fill_(~torch.from_numpy(allowed).to(scores.device), -torch.inf)
        return scores

    def _allowed(self, input_ids: Tensor, n_tokens: int) -> NDArray[np.bool_] | None:
        """Which tokens may come next [row, token]; after a complete form its end alone. None where no row has one."""
        if not any(self.forms):
            return None
        newest = input_ids[:, self.n_prompt :][:, -1:].tolist()  # [row][1], or [row][0] before the first
        allowed = np.ones((len(self.forms), n_tokens), dtype=np.bool_)
        for row, form in enumerate(self.forms):
            if form is not None:
                if not form.is_stopped():
                    form.consume_tokens(newest[row])
                bits = np.frombuffer(form.compute_bitmask(), dtype=np.uint8)
                allowed[row] = np.unpackbits(bits, count=n_tokens, bitorder="little")
        return allowed
