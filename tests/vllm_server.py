"""What a vLLM server says of prompts, by a causal LM in this process: completions with prompt logprobs, as it writes them.

The shape is that of `vllm/entrypoints/openai/completion` (July 2026): per place of a prompt the likeliest tokens and
the prompt's own, by id, with rank and text; None for the first place; -inf as -9999.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from .llm_server import Asked

Said = tuple[int, dict[str, Any]]


@dataclass
class Reads:
    """A model behind /v1/completions.

    max_logprobs  of the server: more likeliest tokens are refused
    ids           it knows `logprob_token_ids`; older servers ignore what they do not know
    """

    model: Any
    tokenizer: Any
    max_logprobs: int = 20
    ids: bool = True
    max_model_len: int = 4096
    prompts: list[list[int]] = field(default_factory=list)  # as they came
    _texts: dict[int, str] = field(default_factory=dict)

    def __call__(self, asked: Asked) -> Said:
        """Status and reply."""
        body = asked.body
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        self.prompts += prompts
        for name, shown in (("prompt_logprobs", "prompt logprobs"), ("logprobs", "sample logprobs")):
            if (n := body.get(name) or 0) > self.max_logprobs:
                return _refused(f"Requested {shown} of {n}, which is greater than max allowed: {self.max_logprobs}", name)
        if (longest := max(map(len, prompts)) + body["max_tokens"]) > self.max_model_len:
            return _refused(
                f"This model's maximum context length is {self.max_model_len} tokens. However, your request has {longest} "
                "input tokens. Please reduce the length of the input messages.", "input_tokens",
            )  # fmt: skip
        choices = [self._choice(i, prompt, body) for i, prompt in enumerate(prompts)]
        sent, got = sum(map(len, prompts)), len(prompts)
        return 200, {
            "id": f"cmpl-{asked.number}", "object": "text_completion", "created": 1, "model": body["model"],
            "choices": choices, "service_tier": None, "system_fingerprint": None, "kv_transfer_params": None,
            "usage": {
                "prompt_tokens": sent, "total_tokens": sent + got, "completion_tokens": got, "prompt_tokens_details": None,
            },
        }  # fmt: skip

    @torch.inference_mode()
    def _choice(self, index: int, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        chances = self.model(input_ids=torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        text = self._text(int(chances[-1].argmax()))
        return {
            "index": index, "text": text, "finish_reason": "length", "stop_reason": None, "token_ids": None,
            "logprobs": self._sampled(chances[-1], body) if body.get("logprobs") is not None else None,
            "prompt_logprobs": self._of_prompt(chances, prompt, body.get("prompt_logprobs")), "prompt_token_ids": None,
        }  # fmt: skip

    def _of_prompt(self, chances: torch.Tensor, prompt: list[int], n: int | None) -> list[Any] | None:
        if n is None:
            return None
        found: list[Any] = [None]
        order = chances.argsort(dim=-1, descending=True, stable=True)
        ranks = order.argsort(dim=-1).tolist()
        for row, likeliest, rank, own in zip(chances.tolist(), order[:, :n].tolist(), ranks, prompt[1:]):
            found.append({
                str(t): {"logprob": max(row[t], -9999.0), "rank": rank[t] + 1, "decoded_token": self._text(t)}
                for t in dict.fromkeys([own, *likeliest])
            })  # fmt: skip
        return found

    def _sampled(self, row: torch.Tensor, body: dict[str, Any]) -> dict[str, Any]:
        own = int(row.argmax())
        wanted = body.get("logprob_token_ids") if self.ids else None
        others = wanted or row.topk(min(body["logprobs"], len(row))).indices.tolist()
        named = body.get("return_tokens_as_token_ids", False)
        said = {f"token_id:{t}" if named else self._text(t): max(float(row[t]), -9999.0) for t in dict.fromkeys([own, *others])}
        return {"text_offset": [0], "token_logprobs": [float(row[own])], "tokens": [self._text(own)], "top_logprobs": [said]}

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = str(self.tokenizer.decode([token]))
        return self._texts[token]


def _refused(message: str, param: str) -> Said:
    return 400, {"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}}
