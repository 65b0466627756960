"""Provider `local`: any causal LM, in this process, through transformers.

Requests that begin alike are run together, after a prefix that is run once for all of them (`prefixes`). A reply that
was asked for in a form has it, and a sample is a sample (`decoding`). A prompt that with its longest reply does not fit
into the model's context is not run: what such a model writes past its last position is noise. Where a chat template
knows no system role, its text begins the user's first message.
"""

import contextlib
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import LogitsProcessorList

from autointerp.errors import UserError
from autointerp.llm.decoding import Choice, Forms
from autointerp.llm.prefixes import Prefixes, common
from autointerp.llm.request import Model, Reply, Request
from autointerp.llm.sent import Sent
from autointerp.llm.trouble import NoReply
from autointerp.subject import load_causal_lm, pick_device, quiet_transformers

CUT_OFF = "cut_off"  # the reason of a reply that ended at its length limit


def alike(request: Request) -> Hashable:
    """What requests of one batch have in common."""
    return request.messages[: request.n_stable], request.max_new_tokens


class LocalProvider:
    """Replies of a local model, one padded batch per call of `ask`."""

    def __init__(self, model: str, device: str) -> None:
        self.name = model
        self.device = pick_device(device)
        # float32 on a CPU: in bfloat16 the padding of a batch can tip a greedy choice.
        dtype = "float32" if self.device.type == "cpu" else "bfloat16"
        self.model, self.tokenizer = load_causal_lm(model, dtype, self.device)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config = self.model.config.get_text_config()
        self.limit: int | None = getattr(config, "max_position_embeddings", None)
        ends = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        self.ends = [] if ends is None else torch.tensor(ends).flatten().tolist()
        self.forms = Forms(self.tokenizer, config.vocab_size, self.ends)
        self.prefixes = Prefixes(self.model)

    def ask(self, requests: Sequence[Request]) -> list[Reply | NoReply]:
        """Replies in the order of the requests; NoReply for those that are too long for the model's context."""
        found: list[Reply | NoReply] = [NoReply("failed", "context_too_long")] * len(requests)
        batches: dict[Hashable, list[tuple[int, list[int]]]] = {}
        for i, request in enumerate(requests):
            ids = self._ids(request)
            if self.limit is None or len(ids) + request.max_new_tokens <= self.limit:
                batches.setdefault(alike(request), []).append((i, ids))
        for batch in batches.values():
            chosen = [requests[i] for i, _ in batch]
            for (i, _), reply in zip(batch, self._generate(chosen, [ids for _, ids in batch]), strict=True):
                found[i] = reply
        return found

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> list[Reply]:
        """Replies to requests that are alike.

        What the prompts share comes first, then padding, then what is left of each, so that all of them end together.
        """
        started = time.perf_counter()
        n, limit, pad = len(requests), requests[0].max_new_tokens, self.tokenizer.pad_token_id
        begins = self._alike(requests[0], prompts)
        shared = min(begins)
        width = max(map(len, prompts))
        gaps = [[pad] * (width - len(ids)) for ids in prompts]
        rows = [ids[:shared] + gap + ids[shared:] for ids, gap in zip(prompts, gaps, strict=True)]
        seen = [[1] * shared + [0] * len(gap) + [1] * (width - len(gap) - shared) for gap in gaps]
        cache = self.prefixes.cache(alike(requests[0]), prompts[0][:shared], n, width + limit)
        choice = Choice(requests, self.forms, width, self.device)
        with quiet_transformers():
            output: Any = self.model.generate(  # type: ignore[operator]
                input_ids=torch.tensor(rows, device=self.device), attention_mask=torch.tensor(seen, device=self.device),
                past_key_values=cache, logits_processor=LogitsProcessorList([choice]), do_sample=False,
                max_new_tokens=limit, pad_token_id=pad, temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
        ms = (time.perf_counter() - started) * 1000 / n
        replies = []
        for row, (ids, new) in enumerate(zip(prompts, output[:, width:].tolist(), strict=True)):
            text = str(self.tokenizer.decode(new, skip_special_tokens=True))
            n_new = sum(token != pad for token in new)
            reply = Reply(text, self.name, len(ids), n_new, ms, cached_tokens=begins[row])
            ended = not self.ends or bool(set(new) & set(self.ends))
            replies.append(reply if ended else replace(reply, status="unparsed", reason=CUT_OFF))
        return replies

    def _alike(self, request: Request, prompts: Sequence[list[int]]) -> list[int]:
        """How many tokens each of these prompts begins with that the others, and others like them, begin with too.

        At most all but one of each: what follows the last token of a prompt is what is asked.
        """
        if not self.prefixes.n_layers:
            return [0] * len(prompts)
        silent = tuple((role, "") for role, _ in request.messages[request.n_stable :])
        bare = self._ids(replace(request, messages=(*request.messages[: request.n_stable], *silent)))
        return [min(common(ids, bare), len(ids) - 1) for ids in prompts]

    def _ids(self, request: Request) -> list[int]:
        """The prompt's tokens."""
        return list(self.tokenizer(self._prompt(request), add_special_tokens=False, verbose=False)["input_ids"])

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
        self._waiting: dict[Hashable, list[Sent]] = {}  # by what those of a batch have in common

    def send(self, sent: Sent) -> None:
        """Take a request; a full batch is run at once."""
        batch = self._waiting.setdefault(alike(sent.request), [])
        batch.append(sent)
        if len(batch) == self.size:
            self._run(self._waiting.pop(alike(sent.request)))

    def flush(self) -> None:
        """Run what waits."""
        waiting, self._waiting = self._waiting, {}
        for batch in waiting.values():
            self._run(batch)

    def _run(self, batch: list[Sent]) -> None:
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
        kept = {key: [sent for sent in batch if sent.done is not done] for key, batch in self._waiting.items()}
        self._waiting = {key: batch for key, batch in kept.items() if batch}

    def close(self) -> None:
        """Let the model go."""
        self._provider = None
