"""Asks a model for labels: prompts -> jobs -> answers -> rows of `explanation`.

Where a prompt is too long for the model's context it is asked again with half the excerpts, at most twice; a row says
how many it was shown.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from autointerp.config import Settings, fingerprint
from autointerp.explainers import Candidate, Given, Method, Shown, messages
from autointerp.llm import Answer, Door, Job, Model, Request
from autointerp.rows import Explanation

HALVINGS = 2  # of the excerpts, where the context is too short
TOO_LONG = "context_too_long"


@dataclass
class _Answers:
    """What has come back for one feature."""

    excerpts: int  # shown
    wanted: int
    by_draw: dict[int, Answer[list[Candidate]]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return len(self.by_draw) == self.wanted

    @property
    def too_long(self) -> bool:
        return any(answer.reason == TOO_LONG for answer in self.by_draw.values())


class Asking:
    """One method of the settings, asking a model about features."""

    def __init__(
        self, door: Door, settings: Settings, shown: Shown, method: Method, prompt: str, name: str, model: Model
    ) -> None:
        self.door, self.cfg, self.shown, self.method, self.prompt, self.name = (
            door, settings.explainer, shown, method, prompt, name
        )  # fmt: skip
        self.model = model
        self.draws = 1 if method.one_reply else self.cfg.samples  # calls per feature
        self.wanted = self.cfg.samples if method.one_reply else 1  # labels per call
        self.schema = json.dumps(method.schema(self.wanted, self.cfg.max_words))
        self.shortened: set[int] = set()  # features whose prompt was too long for the model

    @property
    def note(self) -> str:
        """What a tally says of how it was asked; "" for nothing."""
        n = len(self.shortened)
        return f"{self.name}: features asked with fewer excerpts, for the model's context: {n:,}" if n else ""

    def rows(
        self, features: Sequence[int], collection: str, explainer: str, nothing: str = "never_fires_in_explain"
    ) -> Iterator[list[Explanation]]:
        """The rows of each feature, as its answers are complete.

        nothing  reason for a feature that there is nothing to show of
        Raises what `Door.ask` raises, after everything that completed has been given.
        """
        make = partial(self._row, collection, explainer)
        asked = dict.fromkeys(features, self.cfg.excerpts)  # feature -> how many excerpts it may be shown
        for halving in range(HALVINGS + 1):
            waiting: dict[int, _Answers] = {}
            silent: list[int] = []
            again: dict[int, int] = {}
            for job, answer in self.door.ask(self._jobs(asked, waiting, silent)):
                feature, draw = job.key
                found = waiting[feature]
                found.by_draw[draw] = answer
                if not found.whole:
                    continue
                del waiting[feature]
                if found.too_long and halving < HALVINGS and found.excerpts > 1:
                    again[feature] = min(found.excerpts, asked[feature]) // 2  # some have fewer than they may show
                else:
                    yield _numbered(found, partial(make, feature))
            yield from ([make(feature, 0, "skipped", Candidate(None, nothing), None, None)] for feature in silent)
            if not again:
                return
            asked = dict(sorted(again.items()))
            self.shortened |= again.keys()

    def _jobs(
        self, asked: Mapping[int, int], waiting: dict[int, _Answers], silent: list[int]
    ) -> Iterator[Job[list[Candidate]]]:
        """The calls of each feature; those with nothing to show are put into `silent`."""
        for feature, excerpts in asked.items():
            filled = messages(self.method, self.prompt, self.shown, feature, excerpts, self.wanted, self.cfg.max_words)
            if filled is None:
                silent.append(feature)
                continue
            content, n_shown = filled
            waiting[feature] = _Answers(n_shown, self.draws)
            given = Given([m["content"] for m in content], examples(content))
            parse = partial(_read, self.method, given, self.wanted, self.cfg.max_words)
            for draw in range(self.draws):
                request = Request(
                    self.model, tuple((m["role"], m["content"]) for m in content), self.cfg.max_new_tokens,
                    temperature=self.cfg.temperature if draw else 0.0, draw=draw, schema=self.schema,
                )  # fmt: skip
                yield Job(request, f"explain {self.name} {self.shown.collection_id}/{feature}", parse, (feature, draw))

    def _row(
        self, collection: str, explainer: str, feature: int, draw: int, status: Any, candidate: Candidate,
        call: str | None, excerpts: int | None,
    ) -> Explanation:  # fmt: skip
        return Explanation(
            explanation_id=fingerprint([collection, feature, explainer, draw]), collection_id=collection,
            feature=feature, explainer_id=explainer, method=self.name, model=self.model.name, draw=draw, status=status,
            label=candidate.label, reason=candidate.reason, call_id=call, rules=candidate.rules, excerpts=excerpts,
        )  # fmt: skip


def _read(method: Method, given: Given, wanted: int, max_words: int, reply: str) -> list[Candidate]:
    return method.read(reply, given, wanted, max_words)


def _numbered(found: _Answers, make: Any) -> list[Explanation]:
    """A feature's rows, numbered in the order of its calls; a candidate that an earlier call gave is left out."""
    rows: list[Explanation] = []
    seen: set[tuple[str, str | None]] = set()
    for _, answer in sorted(found.by_draw.items()):
        candidates = answer.value if answer.status == "ok" and answer.value else [Candidate(None, answer.reason)]
        for candidate in candidates:
            same = (candidate.label or "").casefold(), candidate.rules
            if candidate.label and same in seen:
                continue
            seen.add(same)
            status = "ok" if candidate.label else answer.status if answer.status != "ok" else _status(candidate.reason)
            rows.append(make(len(rows), status, candidate, answer.call_id, found.excerpts))
    return rows


def _status(reason: str | None) -> str:
    return "refused" if reason == "refusal" else "unparsed"


def examples(content: list[dict[str, str]]) -> list[str]:
    """The labels in a prompt's example answers: a small model repeats them."""
    found: list[str] = []
    for message in content:
        if message["role"] == "assistant":
            try:
                value = json.loads(message["content"])
            except ValueError:  # a prompt of one's own may have plain answers
                found.append(message["content"])
                continue
            found += value.get("labels") or [value["label"]]
    return found
