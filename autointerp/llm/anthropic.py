"""Provider `anthropic`: Claude, through the Messages API."""

import os
from typing import Any

from autointerp.llm import structured
from autointerp.llm.raw import count, field, patience, post, text
from autointerp.llm.request import Model, Reply, Request
from autointerp.llm.sent import Sent
from autointerp.llm.trouble import KEY_VARIABLE, Alien, Judge
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
        # No retries of the SDK's, and a timeout for the connection alone: `online` has its own.
        self.client = anthropic.AsyncAnthropic(
            api_key=key or "none", base_url=model.base_url or HOME, max_retries=0, timeout=patience()
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
        return self._read(await post(self.client, "/v1/messages", body), parts)

    def _read(self, found: Any, parts: set[str]) -> Reply:
        if isinstance(error := field(found, "error"), dict):  # with status 200
            raise self.judge.within(error, parts)
        content, usage, stop = field(found, "content"), field(found, "usage"), text(field(found, "stop_reason"))
        if not isinstance(content, list) and stop not in ENDINGS:
            raise Alien("a reply without content")
        blocks = [block for block in content or () if field(block, "type") == "text"]
        status, reason = ENDINGS.get(stop, OK)
        read, written = count(usage, "cache_read_input_tokens"), count(usage, "cache_creation_input_tokens")
        sent = count(usage, "input_tokens")  # other servers that speak this API may not count
        if sent is not None:
            sent, read, written = sent + (read or 0) + (written or 0), read or 0, written or 0
        return Reply(
            text="".join(text(field(block, "text")) or "" for block in blocks),
            model=text(field(found, "model")) or self.model.name, ms=0.0, input_tokens=sent, cached_tokens=read,
            written_tokens=written or 0, output_tokens=count(usage, "output_tokens"), status=status, reason=reason,
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
