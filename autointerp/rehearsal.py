"""What a run would send to language models and get back, without asking any: a door that answers by itself.

The real stages run on a few features with the real prompts; each request is recorded in the ledger as if it had been
answered, its tokens counted with the subject's tokenizer as a stand-in for the model's. Replies have the form, and are
about as long, as those of a model that does well; what they say is made up, and nothing is made of it but its length.
A model in this process is asked in earnest, because what it costs is time.
"""

import itertools
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from autointerp.config import Settings
from autointerp.explainers import Shown
from autointerp.explainers.shown import Firing
from autointerp.llm import Door, Model, Reading, Reply
from autointerp.llm.door import Line
from autointerp.llm.sent import Sent
from autointerp.simulators.chat import FIRES
from autointerp.store import Store

Count = Callable[[str], int]
T = TypeVar("T")

# Labels as long as models write them: 4 to 12 words.
LABELS = (
    "sums of money and what they are spent on", "verbs of giving, lending or paying back",
    "the currency after a number in prices", "people who owe something to somebody else by law",
    "trade between neighbouring countries", "taxes, tolls, fees and other dues of the state",
)  # fmt: skip
FIRING = 2  # words that a reply quotes in a passage of those it says fire: features fire on 1.8 tokens in the median


class Rehearsal(Door):
    """A door behind which nobody is but the models of this process.

    count  tokens of a text
    """

    def __init__(self, store: Store, settings: Settings, count: Count) -> None:
        super().__init__(store, settings)
        self.count, self.samples = count, settings.explainer.samples

    def line(self, model: Model) -> Line:
        """As of a door; no key and no price is needed to rehearse."""
        if model.provider == "local":
            return super().line(model)
        if model not in self._lines:
            self._lines[model] = Rehearsed(self.count, self.samples)
        return self._lines[model]


class Filled(Shown):
    """Shows as many excerpts as are asked for: those that a feature has stand in for those that more text would hold.

    A feature of a whole run fires in more passages than explainers show; one of a few thousand tokens in half of them.
    """

    def spread(self, feature: int, n: int) -> list[Firing]:
        """As of Shown, filled up."""
        return _filled(super().spread(feature, n), n)

    def strongest(self, feature: int, n: int) -> list[Firing]:
        """As of Shown, filled up."""
        return _filled(super().strongest(feature, n), n)

    def lookalikes(self, feature: int, n: int) -> list[str]:
        """As of Shown, filled up."""
        return _filled(super().lookalikes(feature, n), n)


def _filled(found: list[T], n: int) -> list[T]:
    return list(itertools.islice(itertools.cycle(found), n if found else 0))


class Rehearsed:
    """Answers at once, and counts."""

    def __init__(self, count: Count, samples: int) -> None:
        self.count, self.samples = count, samples

    def send(self, sent: Sent) -> None:
        """Record the request with a reply of the right form."""
        request = sent.request
        if request.reading is not None:
            n_sent, n_received = request.reading.n_tokens, len(request.reading.prompts)
            text = likely(request.reading)
        else:
            text = stand_in(json.loads(request.schema or "{}"), request.messages[-1][1], self.samples)
            n_sent, n_received = sum(self.count(content) for _, content in request.messages), self.count(text)
        reply = Reply(text, request.model.name, n_sent, n_received, ms=0.0)
        sent.done.put((sent, sent.record(reply)))

    def flush(self) -> None:
        """Nothing waits."""

    def halt(self) -> None:
        """Nothing is ever in flight."""

    def resume(self) -> None:
        """Nothing was stopped."""

    def abandon(self, done: Any) -> None:
        """Nothing is ever in flight."""

    def close(self) -> None:
        """Nothing is open."""


def likely(reading: Reading) -> str:
    """What is read of a prompt, where every token is as likely as any: whatever can be open is asked again."""
    n, width = len(reading.places), len(reading.wanted)
    return json.dumps({"logprobs": [[-3.0] * width] * n, "floors": [-3.0] * n, "texts": {}})


def stand_in(schema: dict[str, Any], content: str, samples: int) -> str:
    """A reply to a message, of the form that its schema asks for.

    `samples` labels, rules, verdicts (half of the passages fit each label) or strengths (half of the passages fire).
    """
    properties = schema.get("properties", {})
    if "rules" in properties:
        rule = {"trigger": LABELS[3].split(), "context": LABELS[0].split()[:2], "strength": 4, "exceptions": []}
        return json.dumps({"label": LABELS[0], "rules": [rule, rule]})
    if properties.get("1") == FIRES:
        return json.dumps({str(n): _fires(n, text) for n, text in _numbered(content)}, ensure_ascii=False)
    if "1" in properties:
        half = [n for n, _ in _numbered(content.split("\nPassages\n", 1)[1]) if n % 2]
        return json.dumps(dict.fromkeys(properties, half))
    return json.dumps({"labels": list(itertools.islice(itertools.cycle(LABELS), samples))})


def _numbered(content: str) -> list[tuple[int, str]]:
    return [(int(n), json.loads(text)) for n, text in re.findall(r'^(\d+): (".*")$', content, re.MULTILINE)]


def _fires(number: int, text: str) -> list[list[Any]]:
    words = list(dict.fromkeys(text.split()))[:FIRING] if number % 2 else []
    return [[word, 1, 7] for word in words]
