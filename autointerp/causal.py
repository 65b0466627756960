"""The causal score: does turning a feature up make what its label names likelier? A second axis, beside the grades.

Each labelled feature's decoder row is added to the subject, on texts of the score split, with the strength that takes
it a given KL divergence from itself (`matched.py`); so are random directions of the same norms. Its label stands for
the tokens of the vocabulary that are nearest to it in meaning (`lexicon.py`), and the score is how much more their
log-probability rises than under a random direction, in nats. The interval is over the texts, by document.

    causal               rise of the label's tokens minus that under random directions
    causal_null          rise under random directions, the mean
    causal_p             share of random directions, this one counted, that raise them as much
    causal_others        share of other features' labels whose tokens this feature raises less than its own label's
    causal_strength      what was added, in multiples of the feature's largest activation
    causal_kl            KL that it gave, nats per token
    lens_agreement       cosine to the label of the words that the decoder row promotes through the unembedding, minus
                         that of the words that random directions promote
    lens_agreement_p     share of random directions, this one counted, whose promoted words are as near

These are rows of `score` under an id of their own, as those of judges are. Nothing that chooses or grades a label reads
them: a feature may well fire on what it does not promote. What it promotes has labels of its own kind: `outputs.py`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp import attribute, intervene, lens, metrics, targets
from autointerp.config import Settings, SubjectSection, fingerprint
from autointerp.dictionary import Dictionary
from autointerp.errors import ConfigError, DictionaryError, StoreError
from autointerp.lexicon import Lexicon
from autointerp.matched import Prompts, Pushed, random_directions
from autointerp.population import feature_index
from autointerp.report import Label, Reading
from autointerp.rows import Score, Split
from autointerp.store import Store
from autointerp.store_causal import causal_scores, prompt_passages
from autointerp.subject import Subject
from autointerp.tally import Bar, Tally

VERSION = 1  # raised when the code changes what it would write
PUSHED = ("causal", "causal_null", "causal_p", "causal_others", "causal_strength", "causal_kl")
LENS = ("lens_agreement", "lens_agreement_p")
METRICS = (*PUSHED, *LENS)

KL = 0.5  # nats per token: a change that shows, and leaves sentences whole
TEXTS = 10  # documents, one text of each
TOKENS = 12  # of each text
FIRST = 3  # distributions count from the one after this token, from 0: before it there is nothing to go by
RELATED = 20  # words that a label stands for
PROMOTED = 10  # words of a lens that are compared with a label
RANDOM = 32  # random directions that are turned up
RANDOM_LENS = 256  # random directions that are read through the unembedding; the first of them are those
BOOTSTRAP = 2000  # draws behind an interval
LEVEL = 0.05  # of p: random directions are below it this often


@dataclass(frozen=True)
class Row:
    """A number of one label, or why there is none."""

    value: float | None
    lo: float | None = None
    hi: float | None = None
    n: int = 0
    reason: str | None = None


def causal_id(settings: Settings, kl: float) -> str:
    """Hash of everything that decides these scores beside the label and its collection."""
    sizes = [TEXTS, TOKENS, FIRST, RELATED, PROMOTED, RANDOM, RANDOM_LENS, BOOTSTRAP]
    return fingerprint(["causal", VERSION, kl, sizes, settings.simulator.encoder, settings.run.seed])


def labelled(reading: Reading) -> list[Label]:
    """The features that have a label, in the order of the run."""
    return [label for label in reading.labels if label.label is not None]


def wanted(reading: Reading, features: Sequence[str]) -> list[Label]:
    """The labelled features of these ids; all of them where none is named.

    Raises FeatureError for an unknown id, ConfigError for a feature that has no label.
    """
    known = {label.feature: label for label in labelled(reading)}
    row = reading.collection
    indices = [feature_index(feature, row["dictionary"], row["width"]) for feature in features]
    if missing := [index for index in indices if index not in known]:
        raise ConfigError(f"feature {missing[0]} has no label in this run: the causal score is of a label")
    return [known[index] for index in indices] if features else list(known.values())


def pending(reading: Reading, store: Store, labels: Sequence[Label], kl: float) -> list[Label]:
    """Those that lack a number."""
    ids = [label.explanation_id or "" for label in labels]
    done = {(s.explanation_id, s.metric) for s in causal_scores(store, ids, causal_id(reading.settings, kl))}
    return [label for label in labels if any((label.explanation_id, metric) not in done for metric in METRICS)]


class Beside(Protocol):
    """What is found of features while each is turned up, so that nothing is turned up twice: `outputs.Outputs`."""

    def pending(self, labels: Sequence[Label]) -> list[Label]:
        """The features that it is not done with."""
        ...

    def begin(self, scoring: "Scoring") -> None:
        """Called once, before the first feature; not at all where nothing is pending."""
        ...

    def take(self, label: Label, pushed: Pushed | None) -> None:
        """A pending feature at this KL; None where no strength gives it."""
        ...

    def flush(self) -> None:
        """No more features come."""
        ...


def compute(
    reading: Reading, store: Store, labels: Sequence[Label], kl: float, bar: Bar, beside: Beside | None = None
) -> Tally:
    """Score what is pending of these labels, feature by feature. One unit is a feature.

    Raises DictionaryError where features cannot be added to the subject, StoreError without texts of the score split.
    """
    started, tally = time.perf_counter(), Tally("causal")
    mine = {label.feature for label in pending(reading, store, labels, kl)}
    theirs = {label.feature for label in beside.pending(labels)} if beside is not None else set()
    if todo := [label for label in labels if label.feature in mine | theirs]:
        scoring = Scoring(reading, store, kl, bar)
        if beside is not None and theirs:
            beside.begin(scoring)
        bar.start("causal", total=len(todo), unit="features")
        for label in todo:
            if label.feature in mine:
                _add(reading, store, label, kl, scoring.rows(label), tally)
            if beside is not None and label.feature in theirs:
                beside.take(label, scoring.push(label.feature))
            bar.advance()
        if beside is not None and theirs:
            beside.flush()
    tally.seconds = time.perf_counter() - started
    return tally


def _add(reading: Reading, store: Store, label: Label, kl: float, found: dict[str, Row], tally: Tally) -> None:
    key, explanation = causal_id(reading.settings, kl), label.explanation_id or ""
    with store.transaction():
        store.add([score(reading, explanation, label.feature, metric, key, row) for metric, row in found.items()])
    if (lost := found["causal"].reason) is None:
        tally.ok += 1
    else:
        tally.failed[lost] += 1


class Promotion:
    """The words that features promote through the unembedding, beside those that random directions promote."""

    def __init__(
        self, subject: Subject, section: SubjectSection, dictionary: Dictionary, null: Dictionary, hookpoint: str,
        lexicon: Lexicon,
    ) -> None:  # fmt: skip
        """`null`: the random directions. Of a dictionary that does not reach the unembedding there is no lens."""
        self.lexicon = lexicon
        self.lens: lens.Lens | None = None
        try:
            lens.check(subject, dictionary, hookpoint)
        except DictionaryError:
            return
        self.lens = lens.Lens(section, dictionary, hookpoint)
        directions = lens.Lens(section, null, hookpoint)
        logits = [directions.logits(i).numpy() for i in range(RANDOM_LENS)]
        self.null_words = np.stack([lexicon.strongest(row, PROMOTED) for row in logits])  # [direction, PROMOTED]
        self.null_logits = np.stack(logits[:RANDOM])  # [direction, token], of those that are turned up

    def rows(self, feature: int, similarity: NDArray[np.float32]) -> dict[str, Row]:
        """How near the promoted words are to a label; similarity [word] to it."""
        if self.lens is None:
            return dict.fromkeys(LENS, Row(None, reason="no_lens"))
        words = self.lexicon.strongest(self.lens.logits(feature).numpy(), PROMOTED)
        own, null = float(similarity[words].mean()), similarity[self.null_words].mean(axis=1)
        return {
            "lens_agreement": Row(own - float(null.mean()), n=len(null)),
            "lens_agreement_p": Row(p_of(own, null), n=len(null)),
        }


class Scoring:
    """What scoring many features shares: the subject, its words, and what random directions do."""

    def __init__(self, reading: Reading, store: Store, kl: float, bar: Bar) -> None:
        settings = reading.settings
        target = targets.collected(reading)
        self.dictionary, self.kl, self.seed = target.dictionary, kl, settings.run.seed
        intervene.check(self.dictionary, target.keys.hookpoint, [])
        subject = attribute.for_attribution(settings)
        self.lexicon = Lexicon.of(subject, settings.simulator.encoder, bar)
        labels = labelled(reading)
        near = self.lexicon.similarities([label.label or "" for label in labels], bar)
        self.similarity = {label.feature: found for label, found in zip(labels, near, strict=True)}
        self.tokens = {f: self.lexicon.tokens(s, RELATED) for f, s in self.similarity.items() if s is not None}
        self.largest = store.features(reading.run.collection_id)["max"].max(axis=0)
        # Of the whole run, not of what is pending: a resumed run must find the same.
        features = [label.feature for label in labels]
        self.directions = null = random_directions(self.dictionary, features, RANDOM_LENS, self.seed)
        self.texts = Prompts(subject, target.keys.hookpoint, texts(store, reading.run.collection_id), FIRST)
        start = float(np.median(self.largest[features]))
        hookpoint = target.keys.hookpoint
        self.promotion = Promotion(subject, settings.subject, self.dictionary, null, hookpoint, self.lexicon)
        self._latest: tuple[int, Pushed | None] | None = None
        self.null_amounts: dict[int, float] = {}  # random direction -> what was added, of those that were turned up
        self.null, self.null_by_text = self._push_null(null, start, bar)

    def _push_null(self, null: Dictionary, start: float, bar: Bar) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What random directions do to every token: [direction, token] over the texts, [text, token] over them."""
        bar.start("random", total=RANDOM, unit="directions")
        each, total, n = [], torch.zeros(()), 0
        for i in range(RANDOM):
            pushed = self.texts.pushed(null, i, self.kl, start)
            if pushed is not None:
                each.append(pushed.change.mean(dim=0).cpu())
                total, n = total + pushed.change.cpu(), n + 1
                start = self.null_amounts[i] = pushed.amount
            bar.advance()
        if n < RANDOM // 2:
            raise ConfigError(f"no strength of random directions gives a KL of {self.kl:g}: ask for another --kl")
        return torch.stack(each).numpy(), (total / n).numpy()

    def rows(self, label: Label) -> dict[str, Row]:
        """Every metric of one label."""
        similarity = self.similarity[label.feature]
        if similarity is None:
            return dict.fromkeys(METRICS, Row(None, reason="label_without_words"))
        return self._pushed(label) | self.promotion.rows(label.feature, similarity)

    def push(self, feature: int) -> Pushed | None:
        """The feature at this KL; None where no strength gives it. The latest is kept: it may be asked for twice."""
        if self._latest is None or self._latest[0] != feature:
            found = self.texts.pushed(self.dictionary, feature, self.kl, float(self.largest[feature]) / 2)
            self._latest = feature, found
        return self._latest[1]

    def above(
        self, pushed: Pushed, tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], float, NDArray[np.float32]]:
        """The rise of these tokens above that under random directions [text], the rise itself, and that under each
        random direction [direction]."""
        change = pushed.change.cpu().numpy()
        above = (change[:, tokens] - self.null_by_text[:, tokens]).mean(axis=1)
        return above.astype(np.float64), float(change[:, tokens].mean()), self.null[:, tokens].mean(axis=1)

    def _pushed(self, label: Label) -> dict[str, Row]:
        feature = label.feature
        largest, pushed = float(self.largest[feature]), self.push(feature)
        if pushed is None:
            return dict.fromkeys(PUSHED, Row(None, reason="kl_not_reached"))
        return self.compared(feature, pushed) | {
            "causal_strength": Row(pushed.amount / largest, n=len(self.texts.ids)),
            "causal_kl": Row(pushed.kl, n=len(self.texts.ids)),
        }

    def compared(self, feature: int, pushed: Pushed) -> dict[str, Row]:
        """The label's tokens under this direction, against random directions and against other labels' tokens."""
        tokens = self.tokens[feature]
        above, own, null = self.above(pushed, tokens)
        interval = metrics.mean_interval(above, BOOTSTRAP, np.random.default_rng([self.seed, feature]))
        over_null = pushed.change.cpu().numpy().mean(axis=0) - self.null_by_text.mean(axis=0)
        others = np.array([over_null[ids].mean() for other, ids in self.tokens.items() if other != feature])
        beaten = float(np.mean(others < over_null[tokens].mean())) if len(others) else None
        return {
            "causal": Row(interval.value, interval.lo, interval.hi, len(above)),
            "causal_null": Row(float(null.mean()), n=len(null)),
            "causal_p": Row(p_of(own, null), n=len(null)),
            "causal_others": Row(beaten, n=len(others), reason=None if len(others) else "no_other_labels"),
        }


def p_of(own: float, null: NDArray[np.float32]) -> float:
    """Share of a null, one's own value counted, that is as large."""
    return float((1 + np.sum(null >= own)) / (1 + len(null)))


def texts(store: Store, collection_id: str, split: Split = "score") -> list[list[int]]:
    """Token ids of the texts of a split. Raises StoreError where it has none that is long enough."""
    ids = prompt_passages(store, collection_id, TOKENS, TEXTS, split)
    found = store.passages(collection_id, np.array(ids, dtype=np.int64)) if ids else {}
    texts = [found[i].tokens[:TOKENS] for i in ids]
    if not texts:
        raise StoreError(f"the {split} split has no panel passage of {TOKENS} tokens to steer the subject on")
    return texts


def score(reading: Reading, explanation_id: str, feature: int, metric: str, key: str, row: Row) -> Score:
    """The row of a number; `key` is the id that it is kept under."""
    return Score(
        score_id=fingerprint([explanation_id, key, reading.run.scorer_id, metric]),
        explanation_id=explanation_id, collection_id=reading.run.collection_id, feature=feature,
        split="score", simulator_id=key, scorer_id=reading.run.scorer_id, metric=metric,
        status="ok" if row.value is not None else "skipped", value=row.value, lo=row.lo, hi=row.hi, n=row.n,
        reason=None if row.value is not None else row.reason,
    )  # fmt: skip
