"""What a provider's error means: another try, a row with a reason, or a line for the user.

The two SDKs have one design: a status error with the response, and a connection error around what httpx raised.
"""

import math
import re
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from autointerp.errors import UserError
from autointerp.llm.request import Model
from autointerp.rows import Status

KEY_VARIABLE = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
BUSY = {429, 503, 529}
AGAIN = {408, 409, 425}
NEVER = {501, 505}  # what answers there knows no such request: a server of files, mostly
TOO_LONG = re.compile(
    r"context[ _]length|context window|context size|maximum context|maximum model length|maximum prompt length|"
    r"prompt is too long|too many (input )?tokens|input is too long|input token count|`inputs` (tokens|must)|"
    r"exceeds? (the )?(available )?context"
)
TOO_LARGE = re.compile(r"request too large")  # for the tokens of a minute, so at any time
FILTERED = re.compile(r"content[ _](filter|policy|management)|invalid_prompt|safety system|usage policies|was flagged")
# OpenAI's word of any limit for a minute tells of its page on billing: that alone says nothing.
NO_MONEY = re.compile(
    r"insufficient_quota|credit balance|billing[ _](hard[ _]limit|not[ _]active|error)|account is not active|"
    r"spend(ing)? limit|api usage limits"
)
NO_MODEL = re.compile(
    r"model_not_found|model.{0,80}(not found|not exist|not a valid|not supported|invalid)|(^|not_found_error )model: |"
    r"not a valid model|no endpoints found for"
)
MISSING = re.compile(r"model_not_found|does(n't| not) exist|not found")  # of NO_MODEL, what no part is to blame for
UNFORMED = re.compile(r"json_validate_failed|failed to (validate|generate) json")  # a reply, not the request
WITHIN = (  # what an error means that has words and no status
    (TOO_LONG, 400), (FILTERED, 400),
    (re.compile(r"rate_limit|too many requests"), 429), (re.compile("overloaded"), 529),
)  # fmt: skip


class Transient(Exception):
    """Worth another try. The message says what happened, in a few words."""

    def __init__(
        self, what: str, retry_after: float | None = None, *, busy: bool = False, absent: bool = False,
        billed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(what)
        self.retry_after = retry_after  # seconds that the provider asked for
        self.busy = busy  # too many requests
        self.absent = absent  # nobody listens at the address
        self.billed = billed  # the provider may have answered, and been paid


class NoReply(Exception):
    """The provider will not answer this request, whenever it is asked: a row with this reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Unsupported(Exception):
    """A 400 that an optional part of the request may be to blame for.

    named  it says so; else the part may be sent again where the server has taken it before
    """

    def __init__(self, parts: set[str], named: bool) -> None:
        super().__init__(", ".join(sorted(parts)))
        self.parts, self.named = parts, named


class BadRequest(Exception):
    """A 400 of which we know no more. The message is the server's, on one line."""


class Alien(Exception):
    """A reply of status 200 that is none of the API's. The message says what is wrong with it."""


@dataclass(frozen=True)
class Judge:
    """Reads the errors of one SDK."""

    sdk: Any  # the module: openai or anthropic
    model: Model
    key: str  # never shown; "" where there is none
    optional: dict[str, str]  # part of a request that a server may not know -> words by which it says so

    def read(self, error: Exception, sent: set[str]) -> Exception:
        """What to raise instead of `error`; itself where it is a bug of ours.

        sent  optional parts of the request
        """
        import httpx2

        if isinstance(error, TimeoutError | self.sdk.APITimeoutError):
            return Transient("no reply in time", billed=True)
        if isinstance(error, self.sdk.APIConnectionError):
            cause = error.__cause__
            if (problem := self._no_tls(cause)) is not None:
                return problem
            if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
                return Transient("no connection", absent=True)
            if cause is None or isinstance(cause, httpx2.HTTPError | OSError):
                return Transient("the connection was cut", billed=True)
            return cause if isinstance(cause, Exception) else error
        if isinstance(error, httpx2.HTTPError):
            return Transient("the connection was cut", billed=True)
        if isinstance(error, self.sdk.APIStatusError):
            return self.status(error.status_code, _message(error), error.response.headers, sent)
        return error

    def _no_tls(self, cause: BaseException | None) -> UserError | None:
        """The line for a server that is there but not behind TLS, or with a certificate that is refused."""
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UserError(f"{self.model}: its certificate is refused: {cause.verify_message}; check base_url")
        if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
            return UserError(f"{self.model}: no TLS is spoken there; check base_url: http:// in place of https://?")
        return None

    def status(self, code: int, message: str, headers: Any, sent: set[str]) -> Exception:
        """The same for a reply that is an error: its status code and what it says."""
        said = message.lower()
        if code == 402 or (code in {400, 403, 429} and NO_MONEY.search(said)):
            return UserError(f"{self.model} wants to be paid first: {self._shown(message)}")
        if code == 413 or (code == 429 and TOO_LARGE.search(said)) or (code == 500 and TOO_LONG.search(said)):
            return NoReply("failed", "context_too_long")
        if code in BUSY:
            return Transient(f"status {code}", retry_after(headers), busy=True)
        if code in AGAIN or (code >= 500 and code not in NEVER):
            return Transient(f"status {code}", retry_after(headers))
        parted = code in {400, 422} and self._named(said, sent) and not MISSING.search(said)
        if code in {400, 403, 404, 422} and NO_MODEL.search(said) and not parted:
            return UserError(f"{self.model}: no such model there: {self._shown(message)}")
        if code in {401, 403}:
            return self._unwelcome(code, said, message)
        if code in {400, 422}:
            return self._refused(said, message, sent)
        said = self._shown(message)
        return UserError(f"{self.model}: no such API there (status {code}): {said}; check base_url{self._hint()}")

    def within(self, error: dict[str, Any], sent: set[str]) -> Exception:
        """The same for an error that stands in a reply of status 200."""
        message, code = _words(error), str(error.get("code"))
        number = int(code) if code.isdecimal() and len(code) == 3 else 0
        if not 400 <= number < 600:
            said = message.lower()
            number = next((status for words, status in WITHIN if words.search(said)), 502)
        return self.status(number, message, {}, sent)

    def _hint(self) -> str:
        """What is most often wrong with an address, where it is."""
        versioned = (self.model.base_url or "").rstrip("/").endswith("/v1")
        if self.model.base_url is None or versioned == (self.model.provider == "openai"):
            return ""
        return ", which for openai mostly ends in /v1" if not versioned else ", which for anthropic ends before /v1"

    def _unwelcome(self, code: int, said: str, message: str) -> Exception:
        """A key that is refused; with status 403 also a request that a filter before the model has refused."""
        if code == 403 and FILTERED.search(said):
            return NoReply("refused", "content_filter")
        why = f": {self._shown(message)}" if code == 403 else ""
        variable = KEY_VARIABLE[self.model.provider]
        return UserError(f"{self.model} refuses the key (status {code}){why}; check {variable} in the environment")

    def _refused(self, said: str, message: str, sent: set[str]) -> Exception:
        if TOO_LONG.search(said):
            return NoReply("failed", "context_too_long")
        if FILTERED.search(said):
            return NoReply("refused", "content_filter")
        if parts := self._named(said, sent):
            return Unsupported(parts, named=not UNFORMED.search(said))
        if "schema" in sent:  # servers without structured replies say so in many ways
            return Unsupported({"schema"}, named=False)
        return BadRequest(self._shown(message))

    def _named(self, said: str, sent: set[str]) -> set[str]:
        """The optional parts that a server's words are about."""
        return {part for part in sent if re.search(self.optional[part], said)}

    def _shown(self, message: str) -> str:
        """A server's words: one line, of a length that can be read, without the key."""
        text = " ".join((message.replace(self.key, "***") if self.key else message).split())
        return f"{text[:200]}..." if len(text) > 200 else text


def _message(error: Any) -> str:
    """What a server says in an error: its type, code and message where it speaks JSON, else the text."""
    found = error.body.get("error", error.body) if isinstance(error.body, dict) else error.body
    return _words(found) if isinstance(found, dict) else str(found or error.response.text)


def _words(found: dict[str, Any]) -> str:
    return " ".join(str(found[key]) for key in ("type", "code", "param", "message", "detail") if found.get(key))


def retry_after(headers: Any) -> float | None:
    """Seconds that a reply asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date; None without."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            pass
        else:
            return None if math.isnan(seconds) else max(seconds, 0.0)
        try:
            return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
        except (ValueError, TypeError):
            pass
    return None
