"""Provider `local`: any causal LM, in this process, through transformers.

A prompt that with its longest reply does not fit into the model's context is not run: what such a model writes past its
last position is noise. Where a chat template knows no system role, its text begins the user's first message.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jinja2 import TemplateError

from autointerp.errors import UserError
from autointerp.llm.request import Model, Reply, Request
from autointerp.llm.sent import Sent
from autointerp.llm.trouble import NoReply
from autointerp.subject import load_causal_lm, pick_device, quiet_transformers

CUT_OFF = "cut_off"  # the reason of a reply that ended at its length limit


class LocalProvider:
    """Greedy replies of a local model, one padded batch per call of `ask`."""

    def __init__(self, model: str, device: str) -> None:
        self.name = model
        self.device = pick_device(device)
        # float32 on a CPU: in bfloat16 the padding of a batch can tip a greedy choice.
        dtype = "float32" if self.device.type == "cpu" else "bfloat16"
        self.model, self.tokenizer = load_causal_lm(model, dtype, self.device)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.limit: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        ends = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        self.ends = torch.tensor([] if ends is None else ends, dtype=torch.long, device=self.device).flatten()

    def ask(self, requests: Sequence[Request]) -> list[Reply | NoReply]:
        """Replies in the order of the requests; NoReply for those that are too long for the model's context."""
        prompts = [self._prompt(request) for request in requests]
        fits = [self._fits(prompt, request) for prompt, request in zip(prompts, requests, strict=True)]
        chosen = [i for i, fit in enumerate(fits) if fit]
        limit = max((requests[i].max_new_tokens for i in chosen), default=0)
        replies = iter(self._generate([prompts[i] for i in chosen], limit) if chosen else [])
        return [next(replies) if fit else NoReply("failed", "context_too_long") for fit in fits]

    def _fits(self, prompt: str, request: Request) -> bool:
        if self.limit is None:
            return True
        n_tokens = len(self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
        return n_tokens + request.max_new_tokens <= self.limit

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Reply]:
        """Replies to prompts, which share one length limit."""
        started = time.perf_counter()
        encoded = self.tokenizer(list(prompts), return_tensors="pt", padding=True, add_special_tokens=False)
        encoded = encoded.to(self.device)
        with quiet_transformers():
            output: Any = self.model.generate(  # type: ignore[operator]
                **encoded, do_sample=False, max_new_tokens=max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id, temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
        ms = (time.perf_counter() - started) * 1000 / len(prompts)
        replies = []
        for i in range(len(prompts)):
            new = output[i, encoded["input_ids"].shape[1] :]
            n_new = int((new != self.tokenizer.pad_token_id).sum())
            text = str(self.tokenizer.decode(new, skip_special_tokens=True))
            reply = Reply(text, self.name, int(encoded["attention_mask"][i].sum()), n_new, ms)
            ended = not len(self.ends) or bool(torch.isin(new, self.ends).any())
            replies.append(reply if ended else replace(reply, status="unparsed", reason=CUT_OFF))
        return replies

    def _prompt(self, request: Request) -> str:
        if self.tokenizer.chat_template is None:
            return "\n\n".join(content for _, content in request.messages)
        (role, content), *rest = request.messages
        if role != "system":
            return self._templated(request.messages)
        # Some templates refuse a system message, and some leave it out without a word.
        with contextlib.suppress(TemplateError):
            prompt = self._templated(request.messages, raw=True)
            if content.strip() in prompt:
                return prompt
        first = f"{content}\n\n{rest[0][1]}" if rest else content
        return self._templated([("user", first), *rest[1:]])

    def _templated(self, messages: Sequence[tuple[str, str]], raw: bool = False) -> str:
        """Messages as the chat template writes them. Raises UserError where it refuses them, or, raw, its own error."""
        given = [{"role": role, "content": content} for role, content in messages]
        try:
            return str(self.tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True))
        except TemplateError as problem:
            if raw:
                raise
            said = " ".join(str(problem).split())
            raise UserError(f"the chat template of {self.name} refuses it: {said}; take another one") from None


class Batches:
    """The requests to a local model. They wait until a batch is full, which then runs in the thread that filled it."""

    def __init__(self, model: Model, device: str, size: int) -> None:
        self.model, self.device, self.size = model, device, size
        self._provider: LocalProvider | None = None
        self._waiting: list[Sent] = []

    def send(self, sent: Sent) -> None:
        """Take a request; a full batch is run at once."""
        self._waiting.append(sent)
        if len(self._waiting) == self.size:
            self.flush()

    def flush(self) -> None:
        """Run what waits."""
        batch, self._waiting = self._waiting, []
        if not batch:
            return
        if self._provider is None:
            self._provider = LocalProvider(self.model.name, self.device)
        for sent, reply in zip(batch, self._provider.ask([sent.request for sent in batch]), strict=True):
            sent.done.put((sent, reply if isinstance(reply, NoReply) else sent.record(reply)))

    def halt(self) -> None:
        """Nothing is ever in flight."""

    def resume(self) -> None:
        """Nothing was stopped."""

    def abandon(self, done: Any) -> None:
        """Forget the requests whose outcomes go there."""
        self._waiting = [sent for sent in self._waiting if sent.done is not done]

    def close(self) -> None:
        """Let the model go."""
        self._provider = None
