"""How providers and servers word their errors, and what each ends as: the words are theirs, the server is on loopback."""

import json
import socketserver
import threading
from collections.abc import Iterator

import pytest

from autointerp.errors import UserError
from autointerp.llm import Model

from . import test_llm_http
from .llm_server import Server
from .test_llm_http import Opener, answers, calls, jobs, model

_keys, opened = test_llm_http._keys, test_llm_http.opened  # the fixtures

SCHEMA = '{"type": "object", "properties": {"label": {"type": "string"}}}'


def error(provider: str, message: str, kind: str = "invalid_request_error", code: str | None = None) -> bytes:
    """An error as the provider sends it: only OpenAI's has a code."""
    found = {"type": kind, "message": message}
    if provider == "anthropic":
        return json.dumps({"type": "error", "error": found, "request_id": "req_1"}).encode()
    return json.dumps({"error": found | {"param": None, "code": code}}).encode()


TOO_LONG = [
    ("openai", 400, "This model's maximum context length is 2048 tokens. However, you requested 2600 tokens (2088 in "
                    "the messages, 512 in the completion)."),  # OpenAI, vLLM
    ("openai", 400, "The decoder prompt (length 3000) is longer than the maximum model length of 2048."),  # vLLM
    ("openai", 400, "request (3300 tokens) exceeds the available context size (2048 tokens), try increasing it"),
    ("openai", 500, "Context size has been exceeded."),  # llama.cpp, both
    ("openai", 400, "The input (3000 tokens) is longer than the model's context length (2048 tokens)."),  # SGLang
    ("openai", 422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1800 `inputs` "
                    "tokens and 512 `max_new_tokens`"),  # TGI
    ("openai", 400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."),  # Gemini
    ("openai", 400, "This model's maximum prompt length is 131072 but the request contains 200000 tokens."),  # xAI
    ("openai", 413, "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 7019"),  # Groq
    ("openai", 429, "Request too large for gpt-6-luna on tokens per min (TPM): Limit 30000, Requested 40000. The input "
                    "or output tokens must be reduced in order to run successfully."),
    ("anthropic", 400, "prompt is too long: 210000 tokens > 200000 maximum"),
    ("anthropic", 400, "input length and `max_tokens` exceed context limit: 199900 + 512 > 200000, decrease input "
                       "length or `max_tokens` and try again"),
    ("anthropic", 413, "Request exceeds the maximum size"),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "status", "said"), TOO_LONG)
def test_a_prompt_that_is_too_long_is_known_by_every_servers_words(
    opened: Opener, provider: str, status: int, said: str
) -> None:
    with Server(plays={"long": (status, error(provider, said))}) as server:
        server.plan = lambda asked: "long" if asked.last == "n1" else "ok"
        found = answers(opened(), jobs(model(server, provider), 3, schema=SCHEMA))
    assert (found[1].status, found[1].reason) == ("failed", "context_too_long")
    assert [found[i].status for i in (0, 2)] == ["ok", "ok"]
    assert len(server.log) == 3, "it is asked once"


PASSES = [
    ("openai", 429, "Rate limit reached for gpt-6-luna in organization org-1 on requests per min (RPM): Limit 3, Used 3, "
                    "Requested 1. Please try again in 20s. You can increase your rate limit by adding a payment method "
                    "to your account at https://platform.openai.com/account/billing."),
    ("openai", 429, "You exceeded your current quota, please check your plan and billing details. Quota exceeded for "
                    "metric: generate_requests_per_minute. Please retry in 1s."),  # Gemini's limit for a minute
    ("anthropic", 429, "This request would exceed the rate limit for your organization of 50,000 input tokens per "
                       "minute. Contact sales or see billing to raise it."),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "status", "said"), PASSES)
def test_a_limit_for_a_minute_is_waited_for_although_it_speaks_of_billing(
    opened: Opener, provider: str, status: int, said: str
) -> None:
    with Server(plays={"busy": (status, error(provider, said, "requests"))}) as server:
        server.plan = lambda asked: "busy" if asked.number == 0 else "ok"
        found = answers(opened(), jobs(model(server, provider), 3))
    assert {answer.status for answer in found.values()} == {"ok"}


STOPS = [
    ("openai", 429, "insufficient_quota", "You exceeded your current quota.", "wants to be paid first"),
    ("openai", 429, "billing_not_active", "Your account is not active.", "wants to be paid first"),
    ("openai", 403, None, "Your team has used all its credits or reached its monthly spending limit.", "paid first"),
    ("anthropic", 400, None, "Your credit balance is too low to access the Anthropic API.", "wants to be paid first"),
    ("anthropic", 400, None, "You have reached your specified API usage limits. You will regain access on 2026-12-01.",
     "paid first.*regain access"),
    ("openai", 403, "model_not_found", "Project `p` does not have access to model `gpt-6-luna`", "no such model there"),
    ("openai", 404, None, 'model "gpt-6-luna" not found, try pulling it first', "no such model there"),  # Ollama
    ("openai", 404, "404", "The model `gpt-6-luna` does not exist.", "no such model there"),  # vLLM
    ("openai", 400, "400", "gpt-6-luna is not a valid model ID", "no such model there"),  # OpenRouter
    ("openai", 403, None, "Country, region, or territory not supported", "status 403.*territory.*OPENAI_API_KEY"),
    ("openai", 501, None, "Unsupported method ('POST')", "no such API there.*check base_url"),  # a server of files
]  # fmt: skip


@pytest.mark.parametrize(("provider", "status", "code", "said", "line"), STOPS)
def test_what_no_other_try_changes_stops_a_run_half_way_with_one_line(
    opened: Opener, provider: str, status: int, code: str | None, said: str, line: str
) -> None:
    with Server(plays={"no": (status, error(provider, said, code=code))}) as server:
        server.plan = lambda asked: "no" if asked.number else "ok"
        door = opened(max_in_flight=1)
        with pytest.raises(UserError, match=line) as problem:
            answers(door, jobs(model(server, provider), 20, schema=SCHEMA))
        assert len(calls(door)) == 1, "no row but that of the reply"
    assert "\n" not in str(problem.value)
    assert len(server.log) <= 3


@pytest.mark.parametrize("said", [
    "Model `x`: response_format json_schema is not supported",
    "For this model, the following parameters are not supported: reasoning_effort",
])  # fmt: skip
def test_a_part_that_a_model_does_not_know_is_left_out_although_the_model_is_named(opened: Opener, said: str) -> None:
    part = "response_format" if "response_format" in said else "reasoning_effort"
    with Server(plays={"no": (400, error("openai", said))}) as server:
        server.plan = lambda asked: "no" if part in asked.body else "ok"
        found = answers(opened(), jobs(model(server, "openai"), 3, schema=SCHEMA))
    assert {answer.status for answer in found.values()} == {"ok"}


def test_an_unknown_claude_is_no_wrong_address(opened: Opener) -> None:
    with Server(plays={"no": (404, error("anthropic", "model: claude-haiku-5-5", "not_found_error"))}) as server:
        server.plan = lambda asked: "no"
        with pytest.raises(UserError, match="no such model there: not_found_error model: claude-haiku-5-5"):
            answers(opened(), jobs(model(server, "anthropic"), 3))


def test_a_filter_that_stands_before_the_model_is_no_refused_key(opened: Opener) -> None:
    said = 'm requires moderation on OpenAI. Your input was flagged for "violence". No credits were charged.'
    with Server(plays={"flagged": (403, error("openai", said, code="403"))}) as server:  # OpenRouter
        server.plan = lambda asked: "flagged" if asked.last == "n1" else "ok"
        found = answers(opened(), jobs(model(server, "openai"), 3))
    assert (found.pop(1).reason, {answer.status for answer in found.values()}) == ("content_filter", {"ok"})


def test_words_are_shown_as_they_are_where_there_is_no_key(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with Server(plays={"odd": (400, error("openai", "none of the things known"))}) as server:
        server.plan = lambda asked: "odd"
        with pytest.raises(UserError, match="none of the things known"):
            answers(opened(), jobs(model(server, "openai"), 1))


@pytest.fixture
def plain() -> Iterator[int]:
    """The port of a server that says what plain HTTP servers say to the first bytes of TLS."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_https_in_place_of_http_is_said_at_once(opened: Opener, plain: int) -> None:
    with pytest.raises(UserError, match="no TLS is spoken there; check base_url: http://"):
        answers(opened(timeout_s=5), jobs(Model("openai", "m", f"https://127.0.0.1:{plain}/v1"), 1))
