"""STAGE 2: excerpt (explain split) -> explanation.

Every enabled method proposes candidates; which of them is the label is decided later, on the select split. A reply that
is no label is a row with its reason, not a gap.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from autointerp import prompts
from autointerp.config import Settings, fingerprint, model_of
from autointerp.errors import BudgetSpent, ReplyError, Unreachable, UserError
from autointerp.evidence import ExplainEvidence
from autointerp.keys import Keys
from autointerp.llm import Door, Job, Request
from autointerp.mine import Miner
from autointerp.rows import Explanation, Status
from autointerp.store import Store
from autointerp.tally import Bar, Tally
from autointerp.text import words

log = logging.getLogger(__name__)

CHUNK_FEATURES = 16  # features per transaction
LONGEST_STEP_S = 5.0  # ... or fewer, where labels come slowly
CONTEXT_WORDS = 12  # words shown on each side of an excerpt's strongest token
MARK_SHARE = 0.3  # tokens above this share of the excerpt's peak are marked


def run(
    store: Store,
    settings: Settings,
    keys: Keys,
    features: Sequence[int],
    evidence: Callable[[], ExplainEvidence],
    bar: Bar,
) -> Tally:
    """Ask every enabled method for the labels that are pending. One unit is one candidate label.

    evidence  gives the explain split by feature; asked for only when something is pending
    """
    started = time.perf_counter()
    tally = Tally("explain")
    for method, explainer in keys.explainers.items():
        done = store.explained(keys.collection_id, explainer)
        pending = [feature for feature in features if feature not in done]
        if not pending:
            continue
        bar.start(f"explain {method}", total=len(pending), unit="features")
        propose = _Mined(settings, evidence()) if method == "mined" else _Asked(store, settings, evidence())
        labels = propose.labels(pending, keys.collection_id, explainer)
        try:
            for rows in _in_steps(labels):
                with store.transaction():
                    store.add(rows)
                tally.ok += sum(row.status == "ok" for row in rows)
                tally.failed += Counter(row.reason for row in rows if row.reason is not None)
                newest = next((row.label for row in reversed(rows) if row.label), "")
                bar.advance(len({row.feature for row in rows}), note=newest[:60])
        except (Unreachable, BudgetSpent) as problem:  # no rows: these features stay pending
            left = len(set(pending) - store.explained(keys.collection_id, explainer))
            if isinstance(problem, BudgetSpent):
                tally.failed["budget_spent"] += left
                tally.stopped = problem
                break
            log.warning("%s", problem)
            tally.failed["unreachable"] += left
    tally.seconds = time.perf_counter() - started
    return tally


def _in_steps(labels: Iterator[list[Explanation]]) -> Iterator[list[Explanation]]:
    """Rows of several features at once: as many as make a transaction worth it, or as came within some seconds.

    Where the labels end with an error that leaves work pending, what came before it is given out first.
    """
    rows: list[Explanation] = []
    features, since, stopped = 0, time.monotonic(), None
    try:
        for found in labels:
            rows, features = [*rows, *found], features + 1
            if features >= CHUNK_FEATURES or time.monotonic() - since > LONGEST_STEP_S:
                yield rows
                rows, features, since = [], 0, time.monotonic()
    except (UserError, Unreachable) as problem:
        stopped = problem
    if rows:
        yield rows
    if stopped is not None:
        raise stopped


class _Mined:
    """Candidates from counts."""

    def __init__(self, settings: Settings, evidence: ExplainEvidence) -> None:
        self.cfg = settings.explainer
        self.miner = Miner(evidence, self.cfg.max_words)

    def labels(self, features: Sequence[int], collection: str, explainer: str) -> Iterator[list[Explanation]]:
        """Rows per feature; one row with the reason where nothing can be said."""
        for feature in features:
            found = self.miner.propose(feature, self.cfg.candidates)
            rows = [
                _row(collection, feature, explainer, "mined", None, draw, label) for draw, label in enumerate(found)
            ]
            yield rows or [_row(collection, feature, explainer, "mined", None, 0, None, "never_fires_in_explain")]


class _Asked:
    """Candidates from a language model that sees marked excerpts."""

    def __init__(self, store: Store, settings: Settings, evidence: ExplainEvidence) -> None:
        self.store, self.cfg, self.evidence = store, settings.explainer, evidence
        self.model = model_of(settings.explainer)
        # A small model repeats the answers that the prompt gives as examples.
        self._examples = [m["content"] for m in prompts.fill(self.cfg.prompt, excerpts="") if m["role"] == "assistant"]
        self.door = Door(store, settings)

    def labels(self, features: Sequence[int], collection: str, explainer: str) -> Iterator[list[Explanation]]:
        """One row per feature, as replies come: the label, or why there is none."""
        silent: list[int] = []

        def jobs() -> Iterator[Job[str]]:
            for feature in features:
                shown = self._excerpts(collection, feature)
                if not shown:
                    silent.append(feature)
                    continue
                parse = partial(clean_label, given=[*shown, *self._examples], max_words=self.cfg.max_words)
                yield Job(self._request(shown), f"explain llm {feature}", parse, feature)

        name = self.model.name
        for job, answer in self.door.ask(jobs()):
            call, status = answer.call_id, answer.status
            yield [_row(collection, job.key, explainer, "llm", name, 0, answer.value, answer.reason, call, status)]
        for feature in silent:
            yield [_row(collection, feature, explainer, "llm", name, 0, None, "never_fires_in_explain")]

    def _request(self, excerpts: list[str]) -> Request:
        messages = prompts.fill(self.cfg.prompt, excerpts="\n".join(f"- {line}" for line in excerpts))
        content = tuple((message["role"], message["content"]) for message in messages)
        return Request(self.model, content, self.cfg.max_new_tokens)

    def _excerpts(self, collection: str, feature: int) -> list[str]:
        """Marked excerpts of the explain split, from all quantiles of the peak, strongest first."""
        sample = self.store.excerpts(collection, feature, "explain", "sample")
        if not len(sample.passage):
            return []
        order = np.argsort(-sample.peak, kind="stable")
        places = np.unique(np.linspace(0, len(order) - 1, min(self.cfg.excerpts, len(order))).round().astype(int))
        shown = []
        for i in order[places].tolist():
            first, last = sample.firing.offsets[i], sample.firing.offsets[i + 1]
            strings = self.evidence.texts.strings(int(sample.passage[i]))
            shown.append(
                marked(strings, sample.firing.positions[first:last].tolist(), sample.firing.values[first:last].tolist())
            )
        return shown


def marked(strings: Sequence[str], positions: Sequence[int], values: Sequence[float]) -> str:
    """An excerpt around the strongest token, on one line, with the words that fire strongly between << and >>.

    Angle brackets of the text itself are replaced, so that it cannot fake a mark.
    """
    strings = [s.replace("<", "‹").replace(">", "›") for s in strings]
    found = words(strings)
    peak = max(values)
    strong = {p for p, v in zip(positions, values, strict=True) if v >= MARK_SHARE * peak}
    at_peak = positions[int(np.argmax(values))]
    if not found:
        return " ".join("".join(strings).split())
    # The peak may be on a space or a line end: then the next word stands for it.
    place = next((i for i, word in enumerate(found) if word.last > at_peak), len(found) - 1)
    strong.add(found[place].first)
    pieces: list[str] = []
    previous_end = None
    for word in found[max(place - CONTEXT_WORDS, 0) : place + CONTEXT_WORDS + 1]:
        text = f"<<{word.text}>>" if any(t in strong for t in range(word.first, word.last)) else word.text
        glued = not word.text[0].isalnum() or (previous_end is not None and previous_end in "'’-(")
        pieces.append(text if glued or not pieces else " " + text)
        previous_end = word.text[-1]
    return "".join(pieces)


_REFUSAL = re.compile(r"^((i['’]?m|i am) (sorry|unable)|sorry[,.!]|i can(not|['’]t)|as an ai)", re.IGNORECASE)
_OF_THE_PROMPT = {"excerpts", "excerpt", "words", "words or idea", "idea", "the excerpts", "marked words"}
_THINKING = re.compile(
    r"^(<think|let (me|us) (see|look|think|analy|find|start)|let['’]s (see|look|think|analy)|okay[,.]|"
    r"first,? (i|we|let)\b|looking at|to (determine|find)|we need)",
    re.IGNORECASE,
)
_PREFIX = re.compile(
    r"^(sure[!,.]\s*)?(label|answer|explanation|words or idea|"
    r"(the )?(marked )?(words?|phrases?|excerpts?|tokens?)?( that)?"
    r"( (all )?(have in common|share|are|is))?( that)?)\s*:\s*|^sure[!,.]\s*",
    re.IGNORECASE,
)


def clean_label(reply: str, given: Sequence[str], max_words: int) -> str:
    """The label in a model's reply.

    given  what the prompt held: its excerpts and its example answers
    Raises ReplyError with the reason when the reply is no label: empty, refusal, reasoning (leaked), echo (an example
    answer, or five words and more of an excerpt), marks, too_long.
    """
    lines = [line.strip(" \t-*•`") for line in reply.strip().splitlines()]
    line = next((text for text in lines if text.strip("\"'“”")), "")
    line = _unquoted(_PREFIX.sub("", line).strip(" `").removesuffix("."))
    if not line or not any(c.isalnum() for c in line):
        raise ReplyError("empty")
    if _REFUSAL.match(line):
        raise ReplyError("refusal")
    if _THINKING.match(line):
        raise ReplyError("reasoning")
    if line.lower() in _OF_THE_PROMPT:
        raise ReplyError("echo")
    if "<<" in line or ">>" in line:
        raise ReplyError("marks")
    plain = " ".join(re.findall(r"\w+", line.lower()))
    known = [" ".join(re.findall(r"\w+", text.lower())) for text in given]
    if plain in known or (len(plain.split()) > 4 and any(plain in text for text in known)):
        raise ReplyError("echo")
    if len(line.split()) > max_words:
        raise ReplyError("too_long")
    return line


def _unquoted(line: str) -> str:
    """The line without quotation marks around the whole of it; marks around single words stay."""
    for opening, closing in (('"', '"'), ("'", "'"), ("“", "”")):
        inner = line[1:-1]
        if len(line) > 2 and line[0] == opening and line[-1] == closing and not {opening, closing} & set(inner):
            return inner.strip(" .")
    return line


def _row(
    collection: str, feature: int, explainer: str, method: str, model: str | None, draw: int,
    label: str | None, reason: str | None = None, call: str | None = None, status: Status | None = None,
) -> Explanation:  # fmt: skip
    return Explanation(
        explanation_id=fingerprint([collection, feature, explainer, draw]), collection_id=collection, feature=feature,
        explainer_id=explainer, method=method, model=model, draw=draw,
        status=status or ("skipped" if label is None else "ok"), label=label, reason=reason, call_id=call,
    )  # fmt: skip
