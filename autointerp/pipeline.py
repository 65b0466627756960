"""The order of the stages, and what is checked before any of them works.

`autointerp run` = collect -> relate -> lens -> explain -> [simulate(select) -> score(select) -> revise] x rounds ->
simulate(select) -> score(select) -> simulate(score) -> score(score) -> categories -> report, export; judges, where they
are asked for, follow each score.
Stages do not know one another; what passes between them are tables.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from autointerp import categories_stage as grouping
from autointerp import check, collect, corpus, edits, explainers, judge, lens, prompts, relate, score, simulate, targets
from autointerp import lens_stage as lenses
from autointerp import people as persons
from autointerp import population as populations
from autointerp import store_people as labels_of_people
from autointerp.config import ModelSection, Settings, asked_of, method_of, model_of, named_in_vain
from autointerp.corpus import Shard
from autointerp.errors import ConfigError, StoreError, UserError
from autointerp.explain import Explaining
from autointerp.explainers import Shown
from autointerp.grading import Grading, Opens
from autointerp.keys import joined
from autointerp.llm import Door, door
from autointerp.llm.ledger import Ledger
from autointerp.rows import Run, Split, Stage
from autointerp.sample import Sample
from autointerp.simulators import served
from autointerp.simulators.encoder import resolve_encoder
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.sweep import Replica, load_replicas
from autointerp.tally import Bar, Tally, peak_memory_mb
from autointerp.targets import Target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Settings that have been checked: everything they name is there and fits together."""

    settings: Settings
    targets: tuple[Target, ...]  # one per dictionary, in the order of the configuration

    @property
    def names(self) -> list[str]:
        """The dictionaries, by name."""
        return [target.dictionary.name for target in self.targets]


def prepare(settings: Settings, rehearsal: bool = False) -> Prepared:
    """Check everything that a run will need, without doing any work.

    rehearsal  nobody out there will be asked: no key and no price is needed

    Raises a UserError naming the first thing that is missing or does not fit.
    """
    corpus.check(settings.corpus)
    asked = [entry for entry in settings.explainer.methods if entry != "mined"]
    for entry in asked:
        prompts.locate(explainers.named(method_of(entry))[1])
        _check_model(asked_of(settings.explainer, entry), settings, rehearsal)
    if settings.explainer.rounds:
        _check_model(settings.explainer, settings, rehearsal)
    elif not asked and (idle := named_in_vain(settings.explainer)):
        log.warning(
            "explainer.%s is not used: no method asks a model; --set explainer.methods='[\"mined\",\"marks\"]' does",
            idle,
        )
    simulator = settings.simulator
    if "embedding" in (simulator.kind, simulator.claims):
        resolve_encoder(simulator.encoder)
    if simulator.paid:
        prompts.locate(simulator.prompt_file)
        _check_model(simulator, settings, rehearsal)
        if simulator.served:
            served.check(simulator)
    for kind in settings.judge.kinds:
        prompts.locate(settings.judge.prompt(kind))
        _check_model(settings.judge, settings, rehearsal)
    sketch = Subject.sketch(settings.subject)
    sketch.check_context(settings.collect.context_tokens)
    if settings.corpus.chat:
        corpus.Reader.of(settings.corpus, Subject.reader(settings.subject).tokenizer)
    prepared = Prepared(settings, targets.load(settings, sketch))
    for target in prepared.targets:
        dictionary = target.dictionary
        populations.check_selection(
            settings.features.select, dictionary.name, dictionary.width, prepared.names, target.features
        )
        if settings.explainer.logit_lens and (asked or settings.explainer.rounds):
            lens.check(sketch, dictionary, target.keys.hookpoint)
    return prepared


def _check_model(section: ModelSection, settings: Settings, rehearsal: bool) -> None:
    if section.provider == "local" or not rehearsal:
        door.check(model_of(section), settings)


class Pipeline:
    """The stages of one prepared run on one open store. With several dictionaries each stage does one after another."""

    def __init__(
        self, store: Store, prepared: Prepared, bar: Bar, say: Callable[[str], None], opens: Opens | None = None,
        shows: Callable[..., Shown] = Shown,
    ) -> None:  # fmt: skip
        """`opens` makes the door to language models, if it is to be another than `Door`; `shows` what is explained."""
        self.store, self.prepared, self.bar, self.say, self.opens = store, prepared, bar, say, opens or Door
        self.shows = shows
        self.settings = prepared.settings
        ledger = Ledger.of(store)  # takes over the replies that a killed run had paid for
        bar.cost = self._spent = lambda: ledger.spent.done.usd
        self._told = 0.0  # dollars that the stages so far have said
        self._unanswered: Counter[str] = Counter()  # stage -> units that nobody answered for
        self.labellings = [Labelling(self, target, place) for place, target in enumerate(prepared.targets)]

    def collect(self, shard: Shard | None = None) -> Tally:
        """Stage 1, for every dictionary in one pass over the text; or a part of it, for `autointerp merge`."""
        wanted = collect.pending(self.store, self.settings, self.prepared.targets, shard)
        replicas = load_replicas(self.settings, wanted) if wanted else []
        self._check(wanted, replicas)
        if self.settings.engine.kind == "ray":  # the workers load their own
            replicas = []
        tally = collect.run(self.store, self.settings, wanted, self.bar, shard, replicas)
        return self.log(tally, self.labellings[0].asked)

    def _check(self, wanted: Sequence[Target], replicas: Sequence[Replica]) -> None:
        """Does each dictionary encode what it was trained on? Raises DictionaryError where it does not, unless asked to
        warn only."""
        modes = {
            t.dictionary.name: d.check for t, d in zip(self.prepared.targets, self.settings.dictionary, strict=True)
        }
        sample: Sample | None = None
        for target in wanted:
            mode = modes[target.dictionary.name]
            if mode == "off":
                continue
            self.bar.start("check", total=None, unit="")
            sample = sample or Sample(self.settings, replicas[0].subject)
            finding = check.check(self.settings, target, replicas[0].subject, sample)
            if self.store.fit(target.keys.collection_id) is None:
                self.store.add([finding.row(target.keys.collection_id)])
            if mode == "refuse":
                finding.refuse()
            self.say(f"check: {finding.line}")

    @cached_property
    def people(self) -> persons.Taken:
        """What people have said of labels since the last command that wrote: taken over once, after collecting."""
        homes = [persons.Home.of(self.store, target.keys.collection_id) for target in self.prepared.targets]
        said = persons.of_edits(edits.read(self.settings.folder), edits.FILE)
        found = persons.take_over(self.store, said, homes, self.settings.explainer.max_words)
        if found.tally.worked:
            self.log(found.tally, self.labellings[0].asked)
        return found

    def explain(self) -> None:
        """Stage 2."""
        for labelling in self.labellings:
            labelling.explain()

    def simulate_all(self) -> None:
        """Stage 3 on both splits; the candidates are ranked between them."""
        for labelling in self.labellings:
            labelling.relate()
            labelling.simulate("select")
            labelling.score("select")
            labelling.judge("select")
            labelling.simulate("score")

    def score_all(self) -> None:
        """Stage 4: whatever has been simulated on either split."""
        for labelling in self.labellings:
            labelling.score("select")
            labelling.score("score")

    def judge_all(self) -> None:
        """Stage 5: whatever has a scoring set on either split."""
        for labelling in self.labellings:
            for split in SPLITS_GRADED:
                labelling.judge(split)

    def all(self) -> None:
        """Every stage that writes."""
        self.collect()
        for labelling in self.labellings:
            labelling.relate()
            labelling.lens()
            labelling.explain()
            for split in SPLITS_GRADED:
                labelling.simulate(split)
                labelling.score(split)
                labelling.judge(split)
        self.categories()

    def categories(self) -> Tally | None:
        """The labels of all dictionaries by meaning; None, and the reason said, where there is no encoder to ask.

        Nothing else needs them, so that is no error.
        """
        try:
            tally = grouping.run(self.store, [labelling.asked for labelling in self.labellings], self.bar)
        except ConfigError as problem:
            self.say(f"categories: left out: {problem}")
            return None
        return self.log(tally, self.labellings[0].asked)

    def log(self, tally: Tally, asked: Run) -> Tally:
        """Say how a stage ended and what it has spent, keep it in the store, and let readers see what it wrote."""
        spent, budget = self._spent(), self.settings.llm.budget_usd
        tally.usd, self._told = spent - self._told, spent
        tally.left = max(budget - spent, 0.0) if budget else None
        if not self.bar.ended(tally):
            self.say(tally.line())
        if tally.worked:
            failed = json.dumps(tally.failed)
            row = Stage(asked.run_id, tally.stage, tally.seconds, tally.tokens, tally.ok, failed, peak_memory_mb())
            self.store.add([row])
            self.store.publish()
        if tally.stopped is not None:
            raise tally.stopped
        self._unanswered[tally.stage] += tally.failed["unreachable"]
        return tally

    def check_whole(self) -> None:
        """Raises UserError where work was left pending because no model answered."""
        if left := ", ".join(f"{stage} {n:,}" for stage, n in self._unanswered.items() if n):
            raise UserError(f"not whole: no model answered for what is left of {left}; run it again to go on")


SPLITS_GRADED: tuple[Split, ...] = ("select", "score")


class Labelling:
    """The stages after the first, for one dictionary."""

    def __init__(self, pipeline: Pipeline, target: Target, place: int) -> None:
        self.pipeline, self.target = pipeline, target
        self.store, self.settings = pipeline.store, pipeline.settings
        self.asked: Run = target.keys.run(self.settings, place)
        self._ask()

    def _ask(self) -> None:
        """Record what is asked for: the configuration's labels, and those that people gave the same features."""
        others = labels_of_people.explainers(self.store, self.asked.collection_id)
        self.asked = replace(self.asked, explainer_ids=sorted({*self.asked.explainer_ids, *others}))
        self.store.ask(self.asked)

    @cached_property
    def grading(self) -> Grading:
        """Shared by explain, simulate and score; needs the collection."""
        return Grading(self.store, self.settings, self._selected(), self.pipeline.bar, self.pipeline.opens)

    def _selected(self) -> Run:
        """The run with its features, which can be selected once the collection exists; without labels of people, which
        must not change what the configuration's own are worth."""
        collection_id = self.target.keys.collection_id
        if self.store.collection(collection_id) is None:
            raise StoreError("nothing has been collected for these settings yet: `autointerp collect` comes first")
        found = populations.population(self.store, collection_id, self.settings.features)
        features = populations.select(
            self.settings.features.select, found, self.settings.run.seed, self.target.dictionary.name,
            self.pipeline.prepared.names,
        )  # fmt: skip
        _ = self.pipeline.people
        self.asked = replace(self.asked, features=features)
        self._ask()
        return self.target.keys.rounds[-1].of(self.asked)

    def relate(self) -> Tally:
        """Which features are near the selected ones."""
        features = self.grading.run.features or []
        return self._log(relate.run(
            self.store, self.target.keys.collection_id, self.target.dictionary, features, self.pipeline.bar
        ))  # fmt: skip

    def lens(self) -> Tally | None:
        """What the features promote; None, and the reason said, where that takes more than seconds or cannot be had."""
        name, bar = self.target.dictionary.name, self.pipeline.bar
        tally = lenses.compute(self.store, self.settings, name, bar, self.pipeline.say)
        return None if tally is None else self._log(tally)

    def explain(self) -> Tally:
        """Stage 2, with its rounds of revision: each is made from what the candidates before it scored on select.

        Returns the tally of what comes before them.
        """
        with closing(self.pipeline.opens(self.store, self.settings)) as opened:
            explaining = self._explaining(opened)
            tally = self._log(explaining.run(self.target.keys))
            rounds = self.target.keys.rounds
            for earlier, later in pairwise(rounds):
                self.grading = self.grading.for_run(earlier.of(self.grading.run))
                self.simulate("select")
                self.score("select")
                self.judge("select")
                (name,) = later.explainers.keys() - earlier.explainers.keys()
                self._log(explaining.revise(earlier, name, later.explainers[name], self.asked))
            self.grading = self.grading.for_run(rounds[-1].of(self.grading.run))
        return tally

    def _explaining(self, door: Door) -> Explaining:
        features = self.grading.run.features or []
        wanted = self.settings.explainer.logit_lens
        read = lens.Lens(self.settings.subject, self.target.dictionary, self.target.keys.hookpoint)
        promoted = read.promoted if wanted else None
        # Evidence is only read when a feature is pending, which the stage finds out first.
        return Explaining(
            self.store, self.settings, features, lambda: self.grading.evidence, door, self.pipeline.bar,
            promoted, self.pipeline.shows,
        )  # fmt: skip

    def simulate(self, split: Split) -> Tally:
        """Stage 3 on one split."""
        return self._log(self._over(split, lambda grading: simulate.run(grading, split)))

    def score(self, split: Split) -> Tally:
        """Stage 4 on one split."""
        return self._log(self._over(split, lambda grading: score.run(grading, split)))

    def judge(self, split: Split) -> Tally | None:
        """Stage 5 on one split; None where no judge is asked for there."""
        cfg, judges = self.settings.judge, self.target.keys.judges
        if not judges or (split == "select" and not cfg.chooses):
            return None
        with closing(self.pipeline.opens(self.store, self.settings)) as opened:
            return self._log(self._over(split, lambda grading: judge.run(grading, split, judges, opened)))

    def _over(self, split: Split, stage: Callable[[Grading], Tally]) -> Tally:
        """One stage on everything that is compared on a split, in one tally."""
        first, *others = self._compared(split)
        tally = stage(first)
        for grading in others:
            if tally.stopped is None:
                tally.add(stage(grading))
        return tally

    def _compared(self, split: Split) -> Iterator[Grading]:
        """What is graded together. On score each label stands alone. On select the configuration's candidates are
        compared with one another, then with the labels of people where a feature has some (see `keys.joined`)."""
        if split == "score":
            yield self.grading.beside(self.asked)
            return
        yield self.grading
        if self.grading.run.scorer_id == self.asked.scorer_id:  # not in an earlier round of revising
            found = labels_of_people.labelled(self.store, self.asked.collection_id, self.asked.features or [])
            for n, features in found.items():
                run = replace(self.asked, features=features, scorer_id=joined(self.asked.scorer_id, n))
                yield self.grading.beside(run)

    def _log(self, tally: Tally) -> Tally:
        return self.pipeline.log(tally, self.asked)
