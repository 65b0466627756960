"""Provider `openai`: any server that speaks OpenAI's chat completions (vLLM, Ollama, OpenRouter, llama.cpp, ...).

Prompts that are read instead of answered go to the completions of a server that speaks vLLM's: see `completions`.
"""

import os
from typing import Any

from autointerp.errors import UserError
from autointerp.llm import completions, structured
from autointerp.llm.request import Model, Reading, Reply
from autointerp.llm.sent import Sent
from autointerp.llm.trouble import KEY_VARIABLE, BadRequest, Judge, Transient
from autointerp.rows import Status

HOME = "https://api.openai.com/v1"
# Parts of a request that a server may not know, and the words by which it says so. The default models think before
# they answer unless told not to, and with thought they take no temperature.
OPTIONAL = {
    "schema": r"response_format|json_schema|structured|guided|grammar",
    "temperature": r"temperature",
    "reasoning_effort": r"reasoning",
    "max_completion_tokens": r"max_completion_tokens",
    "max_tokens": r"max_tokens.{0,20}(is not supported|unsupported)",
    "logprob_token_ids": r"logprob_token_ids",
}
LIMITS = ("max_completion_tokens", "max_tokens")  # the names of a reply's limit: OpenAI's, and that of other servers


class OpenAIChat:
    """One server's client."""

    def __init__(self, model: Model) -> None:
        import openai

        self.model = model
        # A server of one's own usually wants no key, but the SDK does. The address is always given: the SDK would
        # take another one from the environment, and the keys of rows would not know.
        key = os.environ.get(KEY_VARIABLE["openai"], "")
        self.judge = Judge(openai, model, key, OPTIONAL)
        # No retries and no timeouts of the SDK's: `online` has its own.
        self.client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=model.base_url or HOME, max_retries=0, timeout=None
        )
        # Servers of one's own that take either name know max_tokens, and some ignore the other.
        self.limits = LIMITS if model.base_url is None else LIMITS[::-1]
        # The SDK imports a resource at its first use: now, not in the time that the first attempts may take.
        self.chats, self.prompts = self.client.chat.completions, self.client.completions

    def parts(self, sent: Sent) -> set[str]:
        """The optional parts of this request."""
        if sent.request.reading is not None:
            return completions.parts(sent.request.reading)
        found = {"temperature", "reasoning_effort", self.limits[0]}
        return found | ({"schema"} if sent.request.schema is not None else set())

    async def reply(self, sent: Sent, without: set[str]) -> Reply:
        """The reply to one request."""
        request, parts = sent.request, self.parts(sent) - without
        if request.reading is not None:
            return await self._heard(request.reading, parts)
        limit = self.limits[0] if self.limits[0] in parts else self.limits[1]
        # Messages go past the SDK's conversion of typed dicts, which takes more time than the rest of a call.
        body: dict[str, Any] = {
            "messages": [{"role": role, "content": content} for role, content in request.messages],
            limit: request.max_new_tokens,
        }
        if "temperature" in parts:
            body["temperature"] = request.temperature
        if "reasoning_effort" in parts:
            body["reasoning_effort"] = "none"
        if "schema" in parts:
            form = {"name": "reply", "schema": structured.plain(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        found = await self.chats.create(model=self.model.name, messages=[], extra_body=body)
        return self._read(found, parts)

    def _read(self, found: Any, parts: set[str]) -> Reply:
        choices = getattr(found, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        error = getattr(found, "error", None) or getattr(choice, "error", None)
        if isinstance(error, dict):  # OpenRouter reports trouble further on with status 200
            code = str(error.get("code"))
            raise self.judge.status(int(code) if code.isdecimal() else 502, str(error.get("message", "")), {}, parts)
        message, usage = getattr(choice, "message", None), found.usage if choice is not None else None
        if choice is None or message is None:
            why = f"it says {error[:200]!r}" if isinstance(error, str) else "a reply without choices"
            raise UserError(f"{self.model}: no such API there ({why}); check base_url")
        if choice.finish_reason == "error":
            raise Transient("a reply that broke off", billed=True)
        status, reason = _ending(choice.finish_reason, message)
        cached = written = None
        if usage is not None:
            details = usage.prompt_tokens_details
            cached = getattr(details, "cached_tokens", None) or 0
            written = getattr(details, "cache_write_tokens", None)
        return Reply(
            text=message.content or message.refusal or "", model=found.model or self.model.name, ms=0.0,
            input_tokens=None if usage is None else usage.prompt_tokens, cached_tokens=cached,
            written_tokens=written or 0, output_tokens=None if usage is None else usage.completion_tokens,
            status=status, reason=reason,
        )  # fmt: skip

    async def _heard(self, reading: Reading, parts: set[str]) -> Reply:
        """What a server that reads prompts says of one."""
        body = completions.body(reading, parts)
        try:
            found = await self.prompts.create(model=self.model.name, prompt="", extra_body=body)
        except self.judge.sdk.APIStatusError as error:
            problem = self.judge.read(error, parts)
            if isinstance(problem, UserError | BadRequest) and completions.UNFIT.search(str(problem)):
                raise completions.unfit(self.model, reading.top, str(problem)) from None
            raise
        return completions.reply(self.model, reading, found)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()


def _ending(finish: str | None, message: Any) -> tuple[Status, str | None]:
    """Status and reason of a reply by the way it ended."""
    if finish == "content_filter":
        return "refused", "content_filter"
    if getattr(message, "refusal", None):
        return "refused", "refusal"
    if finish == "length":
        return "unparsed", "cut_off"
    return "ok", None
