"""The order of the stages, and what is checked before any of them works.

`autointerp run` = collect -> explain -> simulate(select) -> score(select) -> simulate(score) -> score(score) -> report,
export. Stages do not know one another; what passes between them are tables.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from autointerp import collect, corpus, explain, prompts, score, simulate
from autointerp import population as populations
from autointerp.config import Settings
from autointerp.dictionary import Dictionary
from autointerp.dictionary import load as load_dictionary
from autointerp.errors import CorpusError, DictionaryError, StoreError
from autointerp.grading import Grading
from autointerp.keys import Keys, keys
from autointerp.rows import Run, Stage
from autointerp.simulators.embedding import resolve_encoder
from autointerp.store import Store
from autointerp.subject import Subject, resolve_model
from autointerp.tally import Bar, Tally, peak_memory_mb


@dataclass(frozen=True)
class Prepared:
    """Settings that have been checked: everything they name is there and fits together."""

    settings: Settings
    keys: Keys
    dictionary: Dictionary


def prepare(settings: Settings) -> Prepared:
    """Check everything that a run will need, without doing any work.

    Raises a UserError naming the first thing that is missing or does not fit.
    """
    if not corpus.files(settings.corpus.source):
        raise CorpusError(f"corpus {settings.corpus.source!r} holds no file")
    dictionary = load_dictionary(settings.dictionary.source, settings.dictionary.name)
    populations.check_selection(settings.features.select, dictionary.name, dictionary.width)
    if "llm" in settings.explainer.methods:
        prompts.locate(settings.explainer.prompt)
        resolve_model(settings.explainer.model)
    if settings.simulator.kind == "embedding":
        resolve_encoder(settings.simulator.encoder)
    sketch = Subject.sketch(settings.subject)
    sketch.check_context(settings.collect.context_tokens)
    found = keys(settings, sketch, dictionary)
    width = sketch.width_at(found.hookpoint)
    if width is not None and width != dictionary.d_in:
        raise DictionaryError(
            f"{dictionary.name} reads activations of width {dictionary.d_in}, but {found.hookpoint} of "
            f"{settings.subject.model} gives {width}"
        )
    return Prepared(settings, found, dictionary)


class Pipeline:
    """The stages of one prepared run on one open store."""

    def __init__(self, store: Store, prepared: Prepared, bar: Bar, say: Callable[[str], None]) -> None:
        self.store, self.prepared, self.bar, self.say = store, prepared, bar, say
        self.settings, self.keys = prepared.settings, prepared.keys
        self.asked: Run = self.keys.run(self.settings)
        store.ask(self.asked)

    @cached_property
    def grading(self) -> Grading:
        """Shared by explain, simulate and score; needs the collection."""
        return Grading(self.store, self.settings, self._selected(), self.bar)

    def _selected(self) -> Run:
        """The run with its features, which can be selected once the collection exists."""
        row = self.store.collection(self.keys.collection_id)
        if row is None:
            raise StoreError("nothing has been collected for these settings yet: `autointerp collect` comes first")
        found = populations.population(self.store, self.keys.collection_id, self.settings.features)
        features = populations.select(
            self.settings.features.select, found, self.settings.run.seed, self.prepared.dictionary.name
        )
        self.asked = replace(self.asked, features=features)
        self.store.ask(self.asked)
        return self.asked

    def collect(self) -> Tally:
        """Stage 1."""
        return self._log(collect.run(self.store, self.settings, self.keys, self.prepared.dictionary, self.bar))

    def explain(self) -> Tally:
        """Stage 2."""
        grading = self.grading
        features = grading.run.features or []
        # Evidence is only read when a feature is pending, which the stage finds out first.
        return self._log(
            explain.run(self.store, self.settings, self.keys, features, lambda: grading.evidence, self.bar)
        )

    def simulate(self, split: str) -> Tally:
        """Stage 3 on one split."""
        return self._log(simulate.run(self.grading, split))  # type: ignore[arg-type]

    def score(self, split: str) -> Tally:
        """Stage 4 on one split."""
        return self._log(score.run(self.grading, split))  # type: ignore[arg-type]

    def simulate_all(self) -> None:
        """Both splits; the candidates are ranked between them."""
        self.simulate("select")
        self.score("select")
        self.simulate("score")

    def score_all(self) -> None:
        """Whatever has been simulated on either split."""
        self.score("select")
        self.score("score")

    def all(self) -> None:
        """Every stage that writes."""
        self.collect()
        self.explain()
        for split in ("select", "score"):
            self.simulate(split)
            self.score(split)

    def _log(self, tally: Tally) -> Tally:
        """Say how a stage ended, keep it in the store, and let readers see what it wrote."""
        self.say(tally.line())
        if tally.worked:
            failed = json.dumps(tally.failed)
            row = Stage(self.asked.run_id, tally.stage, tally.seconds, tally.tokens, tally.ok, failed, peak_memory_mb())
            self.store.add([row])
            self.store.publish()
        return tally
