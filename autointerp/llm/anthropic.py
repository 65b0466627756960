"""Provider `anthropic`: Claude, through the Messages API."""

import os
from dataclasses import replace
from typing import Any

from autointerp.errors import UserError
from autointerp.llm import structured
from autointerp.llm.raw import field, post
from autointerp.llm.request import Model, Reply, Request
from autointerp.llm.sent import Sent
from autointerp.llm.trouble import KEY_VARIABLE, Judge
from autointerp.rows import Status

HOME = "https://api.anthropic.com"
# Models think unless told not to, and the later ones take no temperature.
OPTIONAL = {
    "schema": r"output_config|output_format|json_schema|structured|schema",
    "temperature": r"temperature|sampling",
    "thinking": r"thinking",
}
OK: tuple[Status, str | None] = ("ok", None)
ENDINGS: dict[str | None, tuple[Status, str | None]] = {
    "refusal": ("refused", "refusal"),
    "max_tokens": ("unparsed", "cut_off"),
    "model_context_window_exceeded": ("unparsed", "context_too_long"),
}


class AnthropicChat:
    """The client."""

    def __init__(self, model: Model) -> None:
        import anthropic

        self.model = model
        key = os.environ.get(KEY_VARIABLE["anthropic"], "")
        self.judge = Judge(anthropic, model, key, OPTIONAL)
        # No retries and no timeouts of the SDK's: `online` has its own.
        self.client = anthropic.AsyncAnthropic(
            api_key=key or "none", base_url=model.base_url or HOME, max_retries=0, timeout=None
        )

    def parts(self, sent: Sent) -> set[str]:
        """The optional parts of this request."""
        return {"temperature", "thinking"} | ({"schema"} if sent.request.schema is not None else set())

    async def reply(self, sent: Sent, without: set[str]) -> Reply:
        """The reply to one request."""
        request, parts = sent.request, self.parts(sent) - without
        system, messages = _cached(request)
        body: dict[str, Any] = {
            "model": self.model.name, "max_tokens": request.max_new_tokens, "messages": messages
        }  # fmt: skip
        if system:
            body["system"] = system
        if "temperature" in parts:
            body["temperature"] = request.temperature
        if "thinking" in parts:
            body["thinking"] = {"type": "disabled"}
        if "schema" in parts:
            body["output_config"] = {"format": {"type": "json_schema", "schema": structured.plain(request.schema)}}
        return self._read(await post(self.client, "/v1/messages", body))

    def _read(self, found: Any) -> Reply:
        content, usage = field(found, "content"), field(found, "usage")
        if not isinstance(content, list):
            raise UserError(f"{self.model}: no such API there (a reply without content); check base_url")
        text = "".join(field(block, "text") or "" for block in content if field(block, "type") == "text")
        status, reason = ENDINGS.get(field(found, "stop_reason"), OK)
        reply = Reply(
            text, field(found, "model") or self.model.name, None, None, 0.0, None, status=status, reason=reason
        )
        if usage is None:  # other servers that speak this API may not count
            return reply
        read, written = field(usage, "cache_read_input_tokens") or 0, field(usage, "cache_creation_input_tokens") or 0
        return replace(
            reply, input_tokens=(field(usage, "input_tokens") or 0) + read + written, cached_tokens=read,
            written_tokens=written, output_tokens=field(usage, "output_tokens"),
        )  # fmt: skip

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()


def _cached(request: Request) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """System and messages, with a mark at the end of what other requests share: up to there the provider caches."""
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for i, (role, content) in enumerate(request.messages):
        block: dict[str, Any] = {"type": "text", "text": content}
        if i == request.n_stable - 1:
            block["cache_control"] = {"type": "ephemeral"}
        if role == "system":
            system.append(block)
        else:
            messages.append({"role": role, "content": [block]})
    return system, messages
