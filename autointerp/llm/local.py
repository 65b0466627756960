"""Provider `local`: any causal LM, in this process, through transformers."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from autointerp.llm.request import Model, Reply, Request
from autointerp.llm.sent import Sent
from autointerp.subject import load_causal_lm, pick_device, quiet_transformers


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

    @torch.inference_mode()
    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests; the batch shares one length limit, the largest asked for."""
        started = time.perf_counter()
        encoded = self.tokenizer(
            [self._prompt(r) for r in requests], return_tensors="pt", padding=True, add_special_tokens=False
        )
        encoded = encoded.to(self.device)
        with quiet_transformers():
            output: Any = self.model.generate(  # type: ignore[operator]
                **encoded, do_sample=False, max_new_tokens=max(r.max_new_tokens for r in requests),
                pad_token_id=self.tokenizer.pad_token_id, temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
        ms = (time.perf_counter() - started) * 1000 / len(requests)
        replies = []
        for i in range(len(requests)):
            new = output[i, encoded["input_ids"].shape[1] :]
            n_new = int((new != self.tokenizer.pad_token_id).sum())
            text = str(self.tokenizer.decode(new, skip_special_tokens=True))
            replies.append(Reply(text, self.name, int(encoded["attention_mask"][i].sum()), n_new, ms))
        return replies

    def _prompt(self, request: Request) -> str:
        messages = [{"role": role, "content": content} for role, content in request.messages]
        if self.tokenizer.chat_template is None:
            return "\n\n".join(content for _, content in request.messages)
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


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
            sent.done.put((sent, sent.record(reply)))

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
