"""Output labels: what a feature makes the subject say, apart from what makes it fire. -> output_label, score

    vocab-proj      the words that its decoder row promotes through the unembedding (the logit lens)
    token-change    the words that get likelier when it is turned up on texts of the explain split
    output          a label by a model that is shown both, where the run's explainer asks one

(VocabProj and TokenChange: Gur-Arieh et al. 2025, 2501.08319; of the change, that under random directions at the same
KL is taken off.) Where a feature's words stand out less than those of most random directions, there is no label:
`no_pattern`.

The grade is the causal score and nothing else, taken on the very distributions that grade the input label:

    output_causal         rise of the label's tokens minus that under random directions, nats
    output_p              share of random directions, this one counted, that raise them as much
    output_chance         share of random directions for which that is at most .05 with labels of their own, made in the
                          same way
    output_own            output_causal minus the mean rise of random directions' own labels
    output_own_p          share of random directions, this one counted, that raise their own labels as much
    output_unseen...      the same five, of the words nearest to the label in meaning that it was not made of

A label that is made of what a direction raises is graded by how much the direction raises it. So most random
directions, given a label in this way, pass output_p (output_chance says how many): it must not be read like the p of an
input label. What guards against that: the texts of the grade are of other documents than those of the label; a random
direction's own label has the same advantage (own); and words that had no part in the label have less of it (unseen).

No input label enters an output label, and nothing that makes, chooses or grades input labels reads `output_label`.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import causal, output_grade, prompts
from autointerp.asking import examples
from autointerp.causal import Row, Scoring, causal_id, p_of
from autointerp.config import Settings, fingerprint, model_of
from autointerp.errors import BudgetSpent, Unreachable
from autointerp.explainers.replies import Candidate, Given, labels, labels_schema
from autointerp.llm import Door, Job, Request
from autointerp.matched import Prompts, Pushed
from autointerp.output_grade import Tokens, Worth
from autointerp.output_words import (
    LISTED,
    PROMPT,
    SHOWN,
    Evidence,
    counted,
    evidence,
    messages,
    spelled,
    standardised,
    without,
)
from autointerp.report import Label, Reading
from autointerp.rows import OutputLabel, Score, Status
from autointerp.store import Store
from autointerp.store_outputs import NAMED, UNSEEN, answered
from autointerp.tally import Bar, Tally

VERSION = 1  # raised when the code changes what it would write
COUNTED = ("vocab-proj", "token-change")  # methods that ask nobody
PATTERN = 0.5  # share of random directions whose words stand out as far, above which there is no pattern
CHUNK_FEATURES = 16  # held with what they do to every token, and asked about at once: 32 MB for 49,152 tokens


class Found(NamedTuple):
    """A label or the reason why there is none, and the call behind it."""

    candidate: Candidate
    call_id: str | None = None


@dataclass
class _Waiting:
    """A feature that has been turned up, and what is to be written of it."""

    label: Label
    pushed: Pushed | None
    evidence: dict[str, Evidence]
    found: dict[str, Found]  # by method


def asks(settings: Settings) -> bool:
    """True where the run's explainer asks a model."""
    return any(method != "mined" for method in settings.explainer.methods)


def labeller_ids(settings: Settings, kl: float, ask: bool) -> dict[str, str]:
    """Method -> hash of everything that decides its labels beside the feature and its collection."""
    sizes = [VERSION, causal_id(settings, kl), LISTED, SHOWN, PATTERN]
    found = {method: fingerprint(["output label", method, sizes]) for method in COUNTED}
    if ask:
        cfg, model = settings.explainer, model_of(settings.explainer)
        asked = [model.provider, model.name, model.base_url, prompts.fingerprint(PROMPT), cfg.max_words]
        found["output"] = fingerprint(["output label", "output", sizes, asked, cfg.max_new_tokens])
    return found


def pending(reading: Reading, store: Store, labels: Sequence[Label], kl: float, ask: bool) -> list[Label]:
    """The features that some method has not answered for; `ask`: where a model is asked too."""
    ids = labeller_ids(reading.settings, kl, ask)
    done = answered(store, reading.run.collection_id, list(ids.values()))
    return [label for label in labels if any((label.feature, key) not in done for key in ids.values())]


class Outputs:
    """Makes and grades the output labels of one run while its causal scores are taken."""

    def __init__(self, reading: Reading, store: Store, kl: float, door: Door | None, bar: Bar) -> None:
        """`door`: to the run's explainer; None: no model is asked."""
        self.reading, self.store, self.door, self.bar = reading, store, door, bar
        self.settings, self.kl = reading.settings, kl
        self.ids = labeller_ids(reading.settings, kl, door is not None)
        self.grade_id = fingerprint(["output grade", VERSION, causal_id(reading.settings, kl)])
        self.tally = Tally("output labels")
        self._waiting: list[_Waiting] = []
        self._down: str | None = None  # why the model is not asked any more
        self._done = answered(store, reading.run.collection_id, list(self.ids.values()))

    def pending(self, labels: Sequence[Label]) -> list[Label]:
        """As the function."""
        return [label for label in labels if self._missing(label.feature)]

    def _missing(self, feature: int) -> list[str]:
        return [method for method, key in self.ids.items() if (feature, key) not in self._done]

    # -- what random directions do -------------------------------------------------------------------------------------

    def begin(self, scoring: Scoring) -> None:
        """Find what random directions raise and what labels of their own would be worth: the null of every label.

        Raises StoreError without texts of the explain split.
        """
        with self._timed():
            self._begin(scoring)

    def _begin(self, scoring: Scoring) -> None:
        self.scoring, self.lexicon, self.whole = scoring, scoring.lexicon, scoring.lexicon.whole()
        texts = causal.texts(self.store, self.reading.run.collection_id, "explain")
        self.explain = Prompts(scoring.texts.subject, scoring.texts.hookpoint, texts, causal.FIRST)
        self.bar.start("random", total=len(scoring.null_amounts), unit="directions")
        changes = []
        for direction, amount in scoring.null_amounts.items():
            changes.append(self.explain.changed(scoring.directions, direction, amount).cpu().numpy())
            self.bar.advance()
        self.changes = np.stack(changes)  # [direction, token]
        rises = {"token-change": [row - without(self.changes, i) for i, row in enumerate(self.changes)]}
        if scoring.promotion.lens is not None:
            token = self.lexicon.token
            rises["vocab-proj"] = [standardised(scoring.promotion.null_logits[i], token) for i in scoring.null_amounts]
        found = partial(evidence, lexicon=self.lexicon, whole=self.whole)
        self.null = {method: [found(rise) for rise in rows] for method, rows in rises.items()}
        self.worth = {method: self._worth(found) for method, found in self.null.items()}

    def _worth(self, null: Sequence[Evidence]) -> tuple[Worth, Worth]:
        """What random directions do to labels of their own: to the tokens that are named, and to those unseen."""
        named, unseen = zip(
            *(output_grade.tokens(self.lexicon, self._near(found), found.promoted) for found in null), strict=True
        )
        return output_grade.worth(self.scoring.null, named), output_grade.worth(self.scoring.null, unseen)

    # -- labels --------------------------------------------------------------------------------------------------------

    def take(self, label: Label, pushed: Pushed | None) -> None:
        """A feature with what it does at this KL; None where no strength gives it. Written when some have come."""
        with self._timed():
            self._take(label, pushed)

    def _take(self, label: Label, pushed: Pushed | None) -> None:
        if pushed is None:
            nothing = Found(Candidate(None, "kl_not_reached"))
            self._waiting.append(_Waiting(label, None, {}, dict.fromkeys(self.ids, nothing)))
        else:
            found = self._evidence(label.feature, pushed.amount)
            made = {method: self._counted(method, found) for method in COUNTED}
            self._waiting.append(_Waiting(label, pushed, found, made))
        if len(self._waiting) == CHUNK_FEATURES:
            self._flush()

    def _evidence(self, feature: int, amount: float) -> dict[str, Evidence]:
        """By method; `output` is shown that of the others."""
        scoring, dictionary = self.scoring, self.scoring.dictionary
        change = self.explain.changed(dictionary, feature, amount).cpu().numpy() - self.changes.mean(axis=0)
        found = {"token-change": evidence(change, self.lexicon, self.whole)}
        found["output"] = found["token-change"]
        if scoring.promotion.lens is not None:
            lens = standardised(scoring.promotion.lens.logits(feature).numpy(), self.lexicon.token)
            found["vocab-proj"] = evidence(lens, self.lexicon, self.whole)
            found["output"] = found["token-change"].beside(found["vocab-proj"])
        return found

    def _counted(self, method: str, found: dict[str, Evidence]) -> Found:
        if method not in found:
            return Found(Candidate(None, "no_lens"))
        if not len(found[method].promoted):
            return Found(Candidate(None, "no_words"))
        strengths = np.array([null.strength for null in self.null[method]], dtype=np.float32)
        weak = p_of(found[method].strength, strengths) > PATTERN
        return Found(Candidate(None, "no_pattern") if weak else Candidate(counted(found[method], self.lexicon)))

    def flush(self) -> None:
        """Ask about, grade and write the features that wait. A model that cannot be reached leaves its part pending."""
        with self._timed():
            self._flush()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Its own share of the time that scoring takes."""
        started = time.perf_counter()
        yield
        self.tally.seconds += time.perf_counter() - started

    def _flush(self) -> None:
        if self.door is not None and self._down is None:
            self._ask(self.door)
        for waiting in self._waiting:
            self._write(waiting)
        self._waiting = []

    def _ask(self, door: Door) -> None:
        by = {w.label.feature: w for w in self._waiting if w.pushed and "output" in self._missing(w.label.feature)}
        try:
            for job, answer in door.ask(self._jobs(by.values())):
                candidate = answer.value[0] if answer.value else Candidate(None, answer.reason or "empty")
                by[job.key].found["output"] = Found(candidate, answer.call_id)
        except (Unreachable, BudgetSpent) as problem:
            self._down = "budget_spent" if isinstance(problem, BudgetSpent) else "unreachable"
            self.tally.note = str(problem)

    def _jobs(self, waiting: Iterable[_Waiting]) -> Iterator[Job[list[Candidate]]]:
        cfg = self.settings.explainer
        for one in waiting:
            words = {method: spelled(found.promoted, self.lexicon) for method, found in one.evidence.items()}
            suppressed = spelled(one.evidence["token-change"].suppressed, self.lexicon)
            content = messages(words, suppressed, cfg.max_words)
            given = Given([message["content"] for message in content], examples(content))
            read = partial(labels, given=given, wanted=1, max_words=cfg.max_words)
            said = tuple((message["role"], message["content"]) for message in content)
            form = json.dumps(labels_schema(1, cfg.max_words))
            request = Request(model_of(cfg), said, cfg.max_new_tokens, schema=form)
            yield Job(request, f"explain output {one.label.feature_id}", read, one.label.feature)

    # -- the grade -----------------------------------------------------------------------------------------------------

    def _write(self, waiting: _Waiting) -> None:
        """The rows of one feature that are missing, with their grades, all or none."""
        feature = waiting.label.feature
        missing = self._missing(feature)
        rows = [self._row(waiting, method) for method in missing if method in waiting.found]
        with self.store.transaction():
            self.store.add(rows)
            if waiting.pushed is not None:
                self.store.add(list(self._grades(waiting, rows, waiting.pushed)))
        self.tally.ok += sum(row.label is not None for row in rows)
        self.tally.failed += Counter(row.reason for row in rows if row.reason is not None)
        if len(rows) < len(missing):  # pending still
            self.tally.failed[self._down or "unreachable"] += len(missing) - len(rows)

    def _grades(self, waiting: _Waiting, rows: Sequence[OutputLabel], pushed: Pushed) -> Iterator[Score]:
        for row in rows:
            if row.label is not None:
                made_of = waiting.evidence[row.method]
                near = self._near(made_of) if row.method in COUNTED else self._read(row.label)
                tokens = output_grade.tokens(self.lexicon, near, made_of.promoted, row.label)
                yield from self._scores(row, pushed, tokens)

    def _near(self, made_of: Evidence) -> NDArray[np.float32] | None:
        """The cosine of every word to the nearest of a counted label, [word]; None where there are no words at all."""
        return self.lexicon.among(made_of.promoted[:LISTED]) if len(made_of.promoted) else None

    def _read(self, label: str) -> NDArray[np.float32] | None:
        return self.lexicon.similarities([label], Bar(enabled=False))[0]

    def _row(self, waiting: _Waiting, method: str) -> OutputLabel:
        (candidate, call), feature = waiting.found[method], waiting.label.feature
        made_of = waiting.evidence.get(method)
        promoted = spelled(made_of.promoted, self.lexicon) if made_of else []
        suppressed = spelled(made_of.suppressed, self.lexicon) if made_of else []
        status: Status = "skipped" if call is None else "refused" if candidate.reason == "refusal" else "unparsed"
        collection_id, key = self.reading.run.collection_id, self.ids[method]
        return OutputLabel(
            output_id=fingerprint([collection_id, feature, key]), collection_id=collection_id, feature=feature,
            labeller_id=key, method=method,
            model=model_of(self.settings.explainer).name if method == "output" else None, kl=self.kl,
            status=status if candidate.label is None else "ok", label=candidate.label, reason=candidate.reason,
            promoted=promoted, suppressed=suppressed, call_id=call,
        )  # fmt: skip

    def _scores(self, row: OutputLabel, pushed: Pushed, tokens: Tokens) -> Iterator[Score]:
        # A model was shown what both methods found; what it makes of that is compared with the words counted alone.
        null = self.worth["token-change" if row.method == "output" else row.method]
        parts = ((NAMED, tokens.named, "label_without_words"), (UNSEEN, tokens.unseen, "no_other_words"))
        for (names, ids, nothing), own in zip(parts, null, strict=True):
            rows = [Row(None, reason=nothing)] * len(names)
            if ids is not None and len(own.rise):
                random = np.random.default_rng([self.settings.run.seed, row.feature])
                rows = list(output_grade.graded(*self.scoring.above(pushed, ids), own, random))
            for metric, number in zip(names, rows, strict=True):
                yield causal.score(self.reading, row.output_id, row.feature, metric, self.grade_id, number)
