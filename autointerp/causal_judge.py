"""A judge's side of the causal score: of three steered texts, which one is the label about? (Gur-Arieh et al. 2025)

    causal_choice        share of beginnings on which the judge chooses the text that the feature wrote; chance is 1/3

All three go on from the same beginning, under three features of the run, each with the strength of its causal score. So
a text cannot be told by how broken it is. The interval is the exact binomial one, over beginnings.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from autointerp import attribute, causal, prompts, steer, targets
from autointerp.causal import Row, causal_id, labelled, texts
from autointerp.config import Settings, fingerprint, model_of
from autointerp.errors import BudgetSpent, ReplyError, Unreachable
from autointerp.fence import line, neutral
from autointerp.intervene import Edit, intervening
from autointerp.llm import Answer, Door, Job, Request
from autointerp.llm.structured import decoded, integer
from autointerp.report import Label, Reading
from autointerp.store import Store
from autointerp.store_causal import causal_scores
from autointerp.tally import Bar, Tally

VERSION = 1
METRIC = "causal_choice"
PROMPT = "judge-steered"
CHOICES = 3  # texts to choose from
BEGINNINGS = 6  # texts of the causal score that are gone on with
HOW = steer.Sampling(tokens=24)
BATCH = 16  # texts written together
SCHEMA = json.dumps({
    "type": "object", "properties": {"text": {"type": "integer"}}, "required": ["text"], "additionalProperties": False,
})  # fmt: skip


def judge_id(settings: Settings, kl: float) -> str:
    """Hash of everything that decides what is asked, and of whom."""
    model, sizes = model_of(settings.judge), [CHOICES, BEGINNINGS, HOW.tokens, settings.judge.max_new_tokens]
    asked = [model.provider, model.name, model.base_url, prompts.fingerprint(PROMPT)]
    return fingerprint([causal_id(settings, kl), VERSION, sizes, asked])


def pending(reading: Reading, store: Store, labels: Sequence[Label], kl: float) -> list[Label]:
    """Those without a choice, or a reason why there is none."""
    ids = [label.explanation_id or "" for label in labels]
    done = {found.explanation_id for found in causal_scores(store, ids, judge_id(reading.settings, kl))}
    return [label for label in labels if label.explanation_id not in done]


def compute(reading: Reading, store: Store, labels: Sequence[Label], kl: float, door: Door, bar: Bar) -> Tally:
    """Ask about what is pending of these labels, once all features of the run have a strength. One unit is a feature.

    A model that cannot be reached leaves its features pending, and the tally says so.
    """
    started, tally = time.perf_counter(), Tally("judge")
    if left := len(causal.pending(reading, store, labelled(reading), kl)):
        tally.failed["not_scored"] += left
        tally.note = "texts of other features stand beside each, so nobody is asked before all have a score"
    else:
        judging = _Judging(reading, store, kl, tally, bar)
        judging.run(pending(reading, store, labels, kl), door)
    tally.seconds = time.perf_counter() - started
    return tally


class _Judging:
    """The features of one run before the judge."""

    def __init__(self, reading: Reading, store: Store, kl: float, tally: Tally, bar: Bar) -> None:
        self.reading, self.store, self.tally, self.bar = reading, store, tally, bar
        self.judge_id = judge_id(reading.settings, kl)
        self.amounts = _amounts(reading, store, kl)

    def run(self, todo: Sequence[Label], door: Door) -> None:
        """Write the texts, ask, add a row per feature."""
        asked = [label for label in todo if label.feature in self.amounts and len(self.amounts) >= CHOICES]
        for label in (label for label in todo if label not in asked):
            self._add(label, Row(None, reason="nothing_to_show"))
        if not asked:
            return
        seed = self.reading.settings.run.seed
        rivals = {label.feature: drawn(label.feature, list(self.amounts), seed) for label in asked}
        wanted = sorted({feature for row in rivals.values() for feature in row})
        written = _written(self.reading, self.store, {f: self.amounts[f] for f in wanted}, self.bar)
        by_feature = {label.feature: label for label in asked}
        waiting: dict[int, list[Answer[int]]] = {feature: [] for feature in by_feature}
        self.bar.start("judge", total=len(asked), unit="features")
        try:
            for job, answer in door.ask(_jobs(self.reading.settings, asked, rivals, written)):
                feature, right = job.key
                value = None if answer.value is None else int(answer.value == right)
                waiting[feature].append(Answer(answer.status, value, answer.reason, answer.call_id))
                if len(waiting[feature]) == len(written[feature]):
                    self._add(by_feature[feature], choice(waiting.pop(feature)))
                    self.bar.advance()
        except (Unreachable, BudgetSpent) as problem:  # no rows: these features stay pending
            self.tally.failed["budget_spent" if isinstance(problem, BudgetSpent) else "unreachable"] += len(waiting)
            self.tally.note = str(problem)

    def _add(self, label: Label, row: Row) -> None:
        with self.store.transaction():
            explanation = label.explanation_id or ""
            self.store.add([causal.score(self.reading, explanation, label.feature, METRIC, self.judge_id, row)])
        self.tally.ok += row.reason is None
        self.tally.failed += Counter([row.reason] if row.reason is not None else [])


def drawn(feature: int, known: Sequence[int], seed: int) -> list[int]:
    """The feature and CHOICES - 1 others of those known, in the order in which their texts are shown."""
    random = np.random.default_rng([seed, feature, VERSION])
    others = random.permutation([other for other in known if other != feature])[: CHOICES - 1]
    return [int(f) for f in random.permutation([feature, *others])]


def choice(answers: Sequence[Answer[int]]) -> Row:
    """The share of right choices, with its exact binomial interval; one lost reply loses the number."""
    from scipy.stats import binomtest  # takes a second to import

    lost = next((answer.reason for answer in answers if answer.value is None), None)
    if lost is not None:
        return Row(None, reason=lost)
    right = sum(answer.value or 0 for answer in answers)
    interval = binomtest(right, len(answers)).proportion_ci(0.95, method="exact")
    return Row(right / len(answers), float(interval.low), float(interval.high), len(answers))


def _amounts(reading: Reading, store: Store, kl: float) -> dict[int, float]:
    """Feature -> the amount of its causal score, in units of activation."""
    ids = [label.explanation_id or "" for label in labelled(reading)]
    largest = store.features(reading.run.collection_id)["max"].max(axis=0)
    return {
        found.feature: found.value * float(largest[found.feature])
        for found in causal_scores(store, ids, causal_id(reading.settings, kl))
        if found.metric == "causal_strength" and found.value is not None
    }


def _written(reading: Reading, store: Store, wanted: dict[int, float], bar: Bar) -> dict[int, list[str]]:
    """Feature -> what the subject writes with it turned up, beginnings included."""
    settings, target = reading.settings, targets.collected(reading)
    subject = attribute.for_attribution(settings)
    beginnings = texts(store, reading.run.collection_id)[:BEGINNINGS]
    found: dict[int, list[str]] = {feature: [] for feature in wanted}
    features = list(wanted)
    bar.start("write", total=len(beginnings) * -(-len(features) // BATCH) * HOW.tokens, unit="tokens")
    for ids in beginnings:
        for start in range(0, len(features), BATCH):
            batch = features[start : start + BATCH]
            edits = alone([(feature, wanted[feature]) for feature in batch])
            with intervening(subject, target.keys.hookpoint, target.dictionary, edits):
                after = steer.continued(subject, subject.begun(ids), HOW, len(batch), bar)
            for feature, tokens in zip(batch, after, strict=True):
                found[feature].append(str(subject.tokenizer.decode([*ids, *tokens], skip_special_tokens=True)))
    return found


def alone(amounts: Sequence[tuple[int, float]]) -> list[Edit]:
    """Edits that add each feature (with its amount) in a context of its own, in their order."""
    places = range(len(amounts))
    return [
        Edit(feature, "add", tuple(amount if i == place else 0.0 for i in places))
        for place, (feature, amount) in enumerate(amounts)
    ]


def _jobs(
    settings: Settings, todo: Sequence[Label], rivals: dict[int, list[int]], written: dict[int, list[str]]
) -> Iterator[Job[int]]:
    """A question per feature and beginning; its key holds the right answer."""
    for label in todo:
        order = rivals[label.feature]
        for n in range(len(written[label.feature])):
            # Turned by one each time, so that no place of the right text is preferred.
            shown = [order[(i + n) % len(order)] for i in range(len(order))]
            messages = prompts.fill(
                PROMPT, label=json.dumps(line(label.label or ""), ensure_ascii=False),
                texts="\n".join(
                    f"{place}: {json.dumps(''.join(neutral([written[f][n]])), ensure_ascii=False)}"
                    for place, f in enumerate(shown, start=1)
                ),
            )  # fmt: skip
            content = tuple((message["role"], message["content"]) for message in messages)
            request = Request(model_of(settings.judge), content, settings.judge.max_new_tokens, schema=SCHEMA)
            yield Job(request, f"judge steered {label.feature_id}", partial(understood, n=len(shown)),
                      (label.feature, shown.index(label.feature) + 1))  # fmt: skip


def understood(reply: str, n: int) -> int:
    """The number of the text that a reply names, 1 to n. Raises ReplyError for anything else."""
    found: Any = decoded(reply)
    if not isinstance(found, dict):
        raise ReplyError("bad_shape", f"expected an object with the number `text`, not {type(found).__name__}")
    number = integer(found, "text")
    if not 1 <= number <= n:
        raise ReplyError("wrong_passage", f"there is no text {number}; they are numbered 1 to {n}")
    return number
