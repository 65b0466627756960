"""STAGE 2: excerpt (explain split) -> explanation.

Every enabled method proposes candidates; which of them is the label is decided later, on the select split. A round of
revision also reads what was simulated on select. A reply that is no label is a row with its reason, not a gap.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from autointerp import explainers
from autointerp.asking import Asking
from autointerp.config import Settings, asked_of, fingerprint, method_of, model_of
from autointerp.errors import BudgetSpent, Unreachable
from autointerp.evidence import ExplainEvidence
from autointerp.explainers import Shown
from autointerp.explainers.revise import Errors
from autointerp.keys import Keys, Round
from autointerp.llm import Door
from autointerp.mine import Miner
from autointerp.rows import Explanation, Run
from autointerp.store import Store
from autointerp.tally import Bar, Tally

log = logging.getLogger(__name__)

CHUNK_FEATURES = 16  # features per transaction
Promoted = Callable[[int], list[str]]  # feature -> the tokens that it makes likelier


class Explaining:
    """One run's means of explaining.

    evidence  gives the explain split by feature; asked for only when something is pending
    promoted  the logit lens; None where it is not asked for
    shows     what there is to show of a feature
    """

    def __init__(
        self, store: Store, settings: Settings, features: Sequence[int], evidence: Callable[[], ExplainEvidence],
        door: Door, bar: Bar, promoted: Promoted | None = None, shows: Callable[..., Shown] = Shown,
    ) -> None:  # fmt: skip
        self.store, self.settings, self.features, self.bar = store, settings, features, bar
        self.evidence, self.door, self.promoted, self.shows = evidence, door, promoted, shows

    def run(self, keys: Keys) -> Tally:
        """Ask every enabled method for the labels that are pending. One unit is one candidate label."""
        started = time.perf_counter()
        tally = Tally("explain")
        for entry, explainer in keys.rounds[0].explainers.items():
            pending = self._pending(keys.collection_id, explainer)
            if tally.stopped is not None and pending:
                left = f"{_short(entry)}: features not begun: {len(pending):,}"
                tally.note = "; ".join(filter(None, (tally.note, left)))
            elif pending:
                self.bar.start(f"explain {_short(entry)}", total=len(pending), unit="features")
                asking = None if entry == "mined" else self._asked(entry)
                found = self._mined if asking is None else asking.rows
                self._write(found(pending, keys.collection_id, explainer), len(pending), tally)
                tally.note = "; ".join(filter(None, (tally.note, asking.note if asking else "")))
        tally.seconds = time.perf_counter() - started
        return tally

    def revise(self, earlier: Round, name: str, explainer: str, asked: Run) -> Tally:
        """Ask for revisions of the best labels of an earlier round, which has been scored on select.

        Features that the earlier round is not done with stay pending: a revision depends on all of its candidates.
        """
        started = time.perf_counter()
        tally = Tally("explain")
        before = earlier.of(asked)
        pending = self._pending(asked.collection_id, explainer)
        ready = self._scored(before, pending)
        tally.failed += Counter({"waits_for_select": len(pending) - len(ready)})
        if ready:
            self.bar.start(f"explain {name}", total=len(ready), unit="features")
            evidence = self.evidence()
            method = Errors(self.store, before, evidence.texts).method()
            who = model_of(self.settings.explainer)
            asking = Asking(self.door, self.settings, self._shown(evidence), method, method.prompt, name, who)
            found = asking.rows(ready, asked.collection_id, explainer, "no_label_to_revise")
            self._write(found, len(ready), tally)
            tally.note = asking.note
        tally.seconds = time.perf_counter() - started
        return tally

    def _pending(self, collection: str, explainer: str) -> list[int]:
        done = self.store.explained(collection, explainer)
        return [feature for feature in self.features if feature not in done]

    def _scored(self, before: Run, features: Sequence[int]) -> list[int]:
        """Those that every explainer has answered for, and whose labels all have their score on select."""
        explained = [self.store.explained(before.collection_id, key) for key in before.explainer_ids]
        scored = {score.explanation_id for score in self.store.scores(before, "select")}
        candidates = self.store.explanations(before.collection_id, before.explainer_ids, features)
        waiting = {e.feature for e in candidates if e.status == "ok" and e.explanation_id not in scored}
        return [f for f in features if f not in waiting and all(f in done for done in explained)]

    def _shown(self, evidence: ExplainEvidence) -> Shown:
        return self.shows(self.store, evidence, self.settings.run.seed, self.promoted)

    def _mined(self, features: Sequence[int], collection: str, explainer: str) -> Iterator[list[Explanation]]:
        """Candidates from counts, feature by feature; one row with the reason where nothing can be said."""
        cfg = self.settings.explainer
        miner = Miner(self.evidence(), cfg.max_words)
        for feature in features:
            labels: list[str | None] = list(miner.propose(feature, cfg.candidates)) or [None]
            yield [
                Explanation(
                    fingerprint([collection, feature, explainer, draw]), collection, feature, explainer, "mined", None,
                    draw, "ok" if label else "skipped", label, None if label else "never_fires_in_explain", None,
                )
                for draw, label in enumerate(labels)
            ]  # fmt: skip

    def _asked(self, entry: str) -> Asking:
        name, who = method_of(entry), asked_of(self.settings.explainer, entry)
        method, prompt = explainers.named(name)
        return Asking(self.door, self.settings, self._shown(self.evidence()), method, prompt, name, model_of(who))

    def _write(self, found: Iterator[list[Explanation]], wanted: int, tally: Tally) -> None:
        """Add rows as they come, some features at a time; what has come is kept whatever ends the asking."""
        rows: list[Explanation] = []
        n, held = 0, 0
        try:
            for feature in found:
                rows += feature
                n, held = n + 1, held + 1
                newest = next((row.label for row in reversed(feature) if row.label), "")
                self.bar.advance(1, newest)
                if held == CHUNK_FEATURES:
                    self._add(rows, tally)
                    rows, held = [], 0
        except Unreachable as problem:  # no rows: these features stay pending
            log.warning("%s", problem)
            tally.failed["unreachable"] += wanted - n
        except BudgetSpent as problem:
            tally.failed["budget_spent"] += wanted - n
            tally.stopped = problem
        finally:
            self._add(rows, tally)

    def _add(self, rows: list[Explanation], tally: Tally) -> None:
        if rows:
            with self.store.transaction():
                self.store.add(rows)
        tally.ok += sum(row.status == "ok" for row in rows)
        tally.failed += Counter(row.reason for row in rows if row.reason is not None)


def _short(entry: str) -> str:
    """An entry of `explainer.methods` without the address of its server."""
    return entry.partition("@http")[0]
