"""Provider `openai`: any server that speaks OpenAI's chat completions (vLLM, Ollama, OpenRouter, llama.cpp, ...).

Prompts that are read instead of answered go to the completions of a server that speaks vLLM's: see `completions`.
"""

import os
from typing import Any

from autointerp.errors import UserError
from autointerp.llm import completions, structured
from autointerp.llm.raw import count, field, patience, post, text
from autointerp.llm.request import Model, Reading, Reply
from autointerp.llm.sent import Sent
from autointerp.llm.trouble import KEY_VARIABLE, Alien, BadRequest, Judge, Transient
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
        # No retries of the SDK's, and a timeout for the connection alone: `online` has its own.
        self.client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=model.base_url or HOME, max_retries=0, timeout=patience()
        )
        # Servers of one's own that take either name know max_tokens, and some ignore the other.
        self.limits = LIMITS if model.base_url is None else LIMITS[::-1]

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
        body: dict[str, Any] = {
            "model": self.model.name,
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
        return self._read(await post(self.client, "/chat/completions", body), parts)

    def _read(self, found: Any, parts: set[str]) -> Reply:
        choice, message = self._said(found, parts)
        usage = field(found, "usage")
        status, reason = _ending(field(choice, "finish_reason"), message)
        details = field(usage, "prompt_tokens_details")
        sent, got, total = (count(usage, f"{what}_tokens") for what in ("prompt", "completion", "total"))
        if sent is not None and got is not None and total is not None:
            got = max(got, total - sent)  # some servers count what a model thinks in the total alone
        return Reply(
            text=text(field(message, "content")) or text(field(message, "refusal")) or "",
            model=text(field(found, "model")) or self.model.name, ms=0.0, input_tokens=sent,
            cached_tokens=None if sent is None else count(details, "cached_tokens") or 0,
            written_tokens=count(details, "cache_write_tokens") or 0, output_tokens=got, status=status, reason=reason,
        )  # fmt: skip

    def _said(self, found: Any, parts: set[str]) -> tuple[Any, Any]:
        """Choice and message of a reply; None where there is no choice, which is how some servers say nothing.

        Raises what `judge` says of an error in it, and Alien where it is no reply of this API.
        """
        choices = field(found, "choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        finish, message = field(choice, "finish_reason"), field(choice, "message")
        error = field(found, "error") or field(choice, "error")
        self._check(error, parts, begun=choice is not None)
        if finish == "error":
            raise Transient("a reply that broke off", billed=True)
        if not isinstance(message, dict) and finish != "content_filter" and not _nothing(found):
            raise Alien(f"it says {error[:200]!r}" if isinstance(error, str) else "a reply without choices")
        return choice, message

    def _check(self, error: Any, parts: set[str], begun: bool = False) -> None:
        """Raise what an error means that is reported with status 200, as OpenRouter does with trouble further on."""
        if isinstance(error, dict):
            problem = self.judge.within(error, parts)
            if isinstance(problem, Transient):
                problem.billed |= begun
            raise problem

    async def _heard(self, reading: Reading, parts: set[str]) -> Reply:
        """What a server that reads prompts says of one."""
        body = {"model": self.model.name, **completions.body(reading, parts)}
        try:
            found = await post(self.client, "/completions", body)
        except self.judge.sdk.APIStatusError as error:
            problem = self.judge.read(error, parts)
            if isinstance(problem, UserError | BadRequest) and completions.UNFIT.search(str(problem)):
                raise completions.unfit(self.model, reading.top, str(problem)) from None
            raise
        self._check(field(found, "error"), parts)
        return completions.reply(self.model, reading, found)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()


def _nothing(found: Any) -> bool:
    """Whether a reply says that there are no choices; Gemini's servers do so where a filter or a limit left none."""
    return isinstance(found, dict) and found.get("choices", 0) in (None, [])


def _ending(finish: Any, message: Any) -> tuple[Status, str | None]:
    """Status and reason of a reply by the way it ended."""
    if finish == "content_filter":
        return "refused", "content_filter"
    if field(message, "refusal"):
        return "refused", "refusal"
    if finish == "length":
        return "unparsed", "cut_off"
    return "ok", None
