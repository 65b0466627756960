"""What a configuration will take, before anything is spent: tokens, seconds, memory, disk and dollars per stage.

A probe of a few thousand tokens and a handful of features runs through the real stages in a scratch folder; its costs
are scaled by what the whole run will have more of. The same costs, scaled to a far larger corpus and dictionary, show
where time and memory would go there.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from autointerp import corpus
from autointerp.config import PriceSection, Settings
from autointerp.errors import FeatureError
from autointerp.grading import PAID_NULLS
from autointerp.keep import Keeper, counter_bytes
from autointerp.llm.prices import MILLION
from autointerp.pipeline import SPLITS_GRADED, Labelling, Pipeline, Prepared, prepare
from autointerp.rehearsal import Filled, Rehearsal
from autointerp.simulators import served
from autointerp.store import Store
from autointerp.subject import Subject, pad
from autointerp.sweep import Place, Read, Replica, land, launch, load_replicas
from autointerp.tally import Bar, peak_memory_mb

PROBE_BATCHES, PROBE_FEATURES = 6, 4
SPILL = 2.5  # the largest that lists take while they are cut, over what they hold (measured on the default run)
# Bytes on disk, measured by tests/bench/disk.py on a saturated collection.
EXCERPT_BYTES, PASSAGE_BYTES, FIRING_BYTES, FEATURE_BYTES = 48, 205, 5.2, 900


@dataclass(frozen=True)
class Use:
    """What a stage asks of a language model."""

    model: str
    calls: float
    input_tokens: float
    output_tokens: float
    usd: float | None  # at the price of the model; None where it is unknown

    def times(self, n: float) -> "Use":
        """n times as much."""
        usd = None if self.usd is None else self.usd * n
        return Use(self.model, self.calls * n, self.input_tokens * n, self.output_tokens * n, usd)

    def and_(self, other: "Use") -> "Use":
        """Both together."""
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        model = self.model if self.model == other.model else f"{self.model} and {other.model}"
        calls, sent = self.calls + other.calls, self.input_tokens + other.input_tokens
        return Use(model, calls, sent, self.output_tokens + other.output_tokens, usd)

    def at(self, row: PriceSection) -> float:
        """Dollars at a row of [[price]], with nothing cached."""
        return (self.input_tokens * row.input + self.output_tokens * row.output) / MILLION


@dataclass(frozen=True)
class Cost:
    """What the probe measured, per unit. Seconds of this machine with these settings."""

    device: str
    forward: float  # per token
    encode: dict[str, float]  # per token, by dictionary
    keep: dict[str, float]  # per token, by dictionary
    tokenise: float  # per token; runs beside the forward pass
    load: float  # to load subject and dictionaries
    firing: dict[str, float]  # firing features per token, by dictionary
    explain: float  # per feature
    labels: float  # per feature
    read: float  # per passage that the simulator reads in; where it is paid, that its proxy reads in
    predict: float  # per label and passage, likewise
    paid: float  # per feature, of a paid simulator on the chosen label; 0 where it is free
    score: float  # per label
    judge: float  # per feature
    asked: dict[str, Use]  # what language models are asked, per feature, by stage
    base_memory_mb: float  # of the process after loading


@dataclass(frozen=True)
class Size:
    """How much there is to do."""

    tokens: float
    features: dict[str, float]  # width of each dictionary
    labelled: float  # features that get labels, over all dictionaries


@dataclass(frozen=True)
class Estimate:
    """What a run of some size takes, by stage; seconds of one worker like this machine."""

    size: Size
    seconds: dict[str, float]
    collect: dict[str, float]  # where collect's seconds go
    memory_mb: dict[str, float]
    disk_mb: dict[str, float]
    asked: dict[str, Use]  # of language models, by stage
    prices: dict[str, float]  # dollars for all of it, by model: the cheapest, the middle and the dearest of [[price]]

    @property
    def usd(self) -> float | None:
        """Dollars for all stages; None where a price is unknown."""
        dollars = [use.usd for use in self.asked.values()]
        return None if None in dollars else sum(usd for usd in dollars if usd is not None)


def probe(settings: Settings, bar: Bar) -> tuple[Cost, Prepared]:
    """Run a little of every stage in a scratch folder, and return what each costs per unit.

    Raises a UserError for whatever would stop the run itself.
    """
    with tempfile.TemporaryDirectory(prefix="autointerp-plan-") as folder:
        tokens = PROBE_BATCHES * settings.subject.batch_contexts * settings.collect.context_tokens
        small = settings.model_copy(update={
            "run": settings.run.model_copy(update={"results": Path(folder), "name": "probe"}),
            "corpus": settings.corpus.model_copy(update={"tokens": tokens}),
            "features": settings.features.model_copy(update={
                "select": f"random:{PROBE_FEATURES}", "min_passages": 3, "min_documents": 2, "max_density": 0.5,
            }),
            "engine": settings.engine.model_copy(update={"kind": "local"}),
            "llm": settings.llm.model_copy(update={"budget_usd": 0.0, "budget_tokens": 0}),
        })  # fmt: skip
        if small.simulator.paid:  # the null is of some features alone, and is added when costs are scaled
            small = small.model_copy(update={"score": small.score.model_copy(update={"nulls": 0})})
        prepared = prepare(small, rehearsal=True)
        started = time.perf_counter()
        bar.start("probe: load", total=None, unit="")
        replicas = load_replicas(small, prepared.targets)
        load = time.perf_counter() - started
        parts = _probe_collect(small, replicas[0], prepared, bar)
        memory = peak_memory_mb()
        stages = _probe_stages(small, prepared, bar)
        device = replicas[0].subject.device
        threads = torch.get_num_threads()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {threads} threads"
        return Cost(name, load=load, base_memory_mb=memory, **parts, **stages), prepare(settings, rehearsal=True)


def _probe_collect(settings: Settings, replica: Replica, prepared: Prepared, bar: Bar) -> dict[str, Any]:
    subject, width = replica.subject, settings.collect.context_tokens
    names = prepared.names
    started = time.perf_counter()
    allotment = corpus.Allotment.plan(settings.corpus, width, subject.tokenizer)
    groups = list(corpus.contexts(
        settings.corpus, subject.tokenizer, width, settings.collect.split_salt, allotment=allotment
    ))  # fmt: skip
    reads = [Read(context, 0, Place()) for group in groups for context in group]
    n_tokens = sum(len(read.context.tokens) for read in reads)
    tokenise = (time.perf_counter() - started) / max(n_tokens, 1)
    size = settings.subject.batch_contexts
    batches = [reads[i : i + size] for i in range(0, len(reads), size)]
    keepers = [
        Keeper(settings.collect, t.dictionary.width, subject.vocabulary_size, settings.run.seed)
        for t in prepared.targets
    ]
    bar.start("probe: collect", total=len(batches), unit="batches")
    spent = {"forward": 0.0, **{f"encode {n}": 0.0 for n in names}, **{f"keep {n}": 0.0 for n in names}}
    firing, timed = dict.fromkeys(names, 0), 0
    for i, batch in enumerate(batches):
        seconds: dict[str, float] = {}
        clock = time.perf_counter()
        _forward(replica, settings, batch)
        seconds["forward"] = _since(clock, subject)
        for j, name in enumerate(names):
            one = replace(
                replica, dictionaries=[replica.dictionaries[j]], hookpoints=[replica.hookpoints[j]],
                room=[replica.room[j]],
            )  # fmt: skip
            clock = time.perf_counter()
            flight = launch(one, settings, batch)
            whole = _since(clock, subject)
            clock = time.perf_counter()
            found = land(flight, settings)
            keepers[j].add(found[0])
            seconds[f"keep {name}"] = time.perf_counter() - clock
            seconds[f"encode {name}"] = max(whole - seconds["forward"], 0.0)
            firing[name] += len(found[0].row)
        if i > 0 or len(batches) == 1:  # the first one warms up
            timed += sum(len(read.context.tokens) for read in batch)
            for part, value in seconds.items():
                spent[part] += value
        bar.advance(1)
    return {
        "forward": spent["forward"] / timed, "tokenise": tokenise,
        "encode": {n: spent[f"encode {n}"] / timed for n in names},
        "keep": {n: spent[f"keep {n}"] / timed for n in names},
        "firing": {n: firing[n] / max(n_tokens, 1) for n in names},
    }  # fmt: skip


def _forward(replica: Replica, settings: Settings, batch: list[Read]) -> None:
    tokens, lengths = pad([read.context.tokens for read in batch], settings.collect.context_tokens)
    found = replica.subject.activations(tokens, list(dict.fromkeys(replica.hookpoints)))
    for activation in found.values():
        replica.subject.judge(tokens, activation, lengths)


def _since(clock: float, subject: Subject) -> float:
    if subject.device.type == "cuda":
        torch.cuda.synchronize(subject.device)
    return time.perf_counter() - clock


def _probe_stages(settings: Settings, prepared: Prepared, bar: Bar) -> dict[str, Any]:
    """The stages after collect on a few features of the first dictionary; zeros where it has none that fire enough."""
    nothing: dict[str, Any] = dict.fromkeys(("explain", "labels", "read", "predict", "paid", "score", "judge"), 0.0)
    nothing["asked"] = {}
    first = Prepared(settings, prepared.targets[:1])
    with Store.create(settings.database) as store:
        opens = partial(Rehearsal, count=_counter(settings))
        pipeline = Pipeline(store, first, bar, lambda line: None, opens, Filled)
        pipeline.collect()
        labelling = pipeline.labellings[0]
        try:
            grading = labelling.grading
        except FeatureError:
            return nothing
        features = len(grading.run.features or [])
        started = time.perf_counter()
        labelling.explain()
        explain = (time.perf_counter() - started) / features
        labels = len(grading.wanted("select"))
        if not labels:
            return nothing | {"explain": explain, "asked": _asked(store, features)}
        read, predict = _probe_simulator(labelling)
        scoring = judging = 0.0
        for split in SPLITS_GRADED:  # a paid simulator grades what was chosen on select
            started = time.perf_counter()
            labelling.simulate(split)
            simulating = time.perf_counter() - started
            started = time.perf_counter()
            labelling.score(split)
            scoring += time.perf_counter() - started
            started = time.perf_counter()
            labelling.judge(split)
            judging += time.perf_counter() - started
        return {
            "explain": explain, "labels": labels / features, "read": read, "predict": predict,
            "paid": simulating / features if settings.simulator.paid else 0.0,
            "score": scoring / labels, "judge": judging / features, "asked": _asked(store, features),
        }  # fmt: skip


def _counter(settings: Settings) -> Callable[[str], int]:
    """Counts the tokens of a text, with the subject's tokenizer in place of a model's that cannot be had."""
    tokenizer = Subject.reader(settings.subject).tokenizer
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _asked(store: Store, features: int) -> dict[str, Use]:
    """What the ledger holds, per feature, by stage; of a stage that asks several models, of all together."""
    found: dict[str, Use] = {}
    for row in store.spending():
        use = Use(
            row["model"], row["calls"], row["input_tokens"], row["output_tokens"],
            None if row["unpriced"] else row["usd"],
        ).times(1 / features)  # fmt: skip
        found[row["stage"]] = found[row["stage"]].and_(use) if row["stage"] in found else use
    return found


def _probe_simulator(labelling: Labelling) -> tuple[float, float]:
    """Seconds per passage read in, and per label and passage predicted, by the simulator that reads the panel."""
    grading = labelling.grading
    proxy = grading.proxy  # loads it
    passages = grading.design("score").panel.passages
    started = time.perf_counter()
    grading.read_all("score", [])
    read = (time.perf_counter() - started) / max(len(passages), 1)
    labels = [grading.key(e) for e in grading.wanted("select")]
    proxy.predict(labels, passages)  # clauses are read once per label
    started = time.perf_counter()
    proxy.predict(labels, passages)
    return read, (time.perf_counter() - started) / max(len(passages) * len(labels), 1)


# -- scaling -----------------------------------------------------------------------------------------------------------


def size_of(settings: Settings, prepared: Prepared) -> Size:
    """How much this configuration asks for. Reads the corpus once for lengths where it has no token budget."""
    if settings.corpus.tokens:
        tokens = float(settings.corpus.tokens)
    else:
        tokenizer = Subject.reader(settings.subject).tokenizer
        tokens = _tokens_of_everything(settings, tokenizer)
    widths = {t.dictionary.name: float(t.dictionary.width) for t in prepared.targets}
    labelled = sum(_labelled(settings.features.select, width) for width in widths.values())
    return Size(tokens, widths, labelled)


def _tokens_of_everything(settings: Settings, tokenizer: Any) -> float:
    characters, sampled, tokens = 0, 0, 0
    for document in corpus.documents(settings.corpus, tokenizer):
        characters += len(document.text)
        if sampled < 500_000:  # tokens per character, from the first few documents
            sampled += len(document.text)
            tokens += len(tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"])
    return characters * tokens / max(sampled, 1)


def _labelled(select: str, width: float) -> float:
    if select.startswith("random:"):
        return min(float(select.removeprefix("random:")), width)
    if select == "all" or select.startswith("density:"):
        return width  # at most: the eligible ones are known after collecting
    return float(len([word for word in select.replace(",", " ").split() if word]))


def estimate(settings: Settings, prepared: Prepared, cost: Cost, size: Size) -> Estimate:
    """Scale the probe's costs to a size."""
    cfg = settings.collect
    probed = {t.dictionary.name: float(t.dictionary.width) for t in prepared.targets}
    n_passages = size.tokens / cfg.passage_tokens
    panel = min(float(cfg.panel), n_passages)
    collect = {"forward": cost.forward * size.tokens}
    # The encoder's product and its top-k grow with the width; what is kept per token does not.
    collect["encode"] = sum(cost.encode[n] * size.tokens * size.features[n] / probed[n] for n in probed)
    collect["keep"] = sum(cost.keep.values()) * size.tokens
    labels = cost.labels * size.labelled
    samples = cfg.sample_select + cfg.sample_score
    read = min(panel + size.labelled * samples, n_passages)
    grading = settings.score.select_passages + settings.score.score_passages
    predictions = labels * (panel * 0.6 + grading) + size.labelled * (panel * 0.2 + cfg.sample_select)
    seconds = {
        "load": cost.load, "collect": sum(collect.values()), "explain": cost.explain * size.labelled,
        "simulate": cost.read * read + cost.predict * predictions + cost.paid * size.labelled,
        "score": cost.score * labels,
    }  # fmt: skip
    if settings.judge.kinds:
        seconds["judge"] = cost.judge * size.labelled
    state, held = _state_bytes(settings, cost, size)
    weights = sum(
        t.dictionary.d_in * size.features[t.dictionary.name] * _bytes_per_weight(settings) for t in prepared.targets
    ) - sum(t.dictionary.d_in * t.dictionary.width * _bytes_per_weight(settings) for t in prepared.targets)
    memory = {"subject, dictionary, libraries": cost.base_memory_mb + weights / 1e6, "lists and panel": state / 1e6}
    firing = sum(cost.firing.values())
    width = sum(size.features.values())
    disk = {
        "features and passages": (width * FEATURE_BYTES + held["entries"] * EXCERPT_BYTES
                                  + held["passages"] * PASSAGE_BYTES) / 1e6,
        "panel": panel * cfg.passage_tokens * firing * FIRING_BYTES / 1e6,
    }  # fmt: skip
    asked = {
        stage: use.times(_times(settings, stage, size.labelled) * _whole(settings, stage, use))
        for stage, use in cost.asked.items()
    }  # fmt: skip
    return Estimate(size, seconds, collect, memory, disk, asked, _at_three_prices(settings, asked))


def _times(settings: Settings, stage: str, labelled: float) -> float:
    """How many features' worth of a stage is asked: a paid simulator also predicts some nulls."""
    nulls = min(settings.score.nulls, 1) * min(PAID_NULLS, labelled) if stage == "simulate" else 0.0
    return labelled + nulls


def _whole(settings: Settings, stage: str, use: Use) -> float:
    """How much more a feature with whole scoring sets takes than one of the probe, whose text holds fewer passages."""
    simulator, judge = settings.simulator, settings.judge
    calls = 0
    if stage == "simulate" and simulator.kind == "chat":
        calls = math.ceil(simulator.passages / simulator.per_call)
    if stage == "simulate" and simulator.served:
        calls = simulator.passages * served.check(simulator)
    if stage == "judge":
        calls = math.ceil(judge.passages / judge.per_call) * (len(judge.kinds) + judge.chooses)
    return max(calls / use.calls, 1.0) if use.calls else 1.0


def _at_three_prices(settings: Settings, asked: dict[str, Use]) -> dict[str, float]:
    """Dollars for everything that is asked, at the cheapest, the middle and the dearest row of [[price]]."""
    rows = {row.model: sum(use.at(row) for use in asked.values()) for row in settings.price if not row.free}
    ranked = sorted(rows, key=lambda model: (rows[model], model))
    if not asked or not ranked:
        return {}
    return {ranked[i]: rows[ranked[i]] for i in sorted({0, len(ranked) // 2, len(ranked) - 1})}


def _bytes_per_weight(settings: Settings) -> int:
    return 4 if settings.subject.dtype == "float32" else 2


def _state_bytes(settings: Settings, cost: Cost, size: Size) -> tuple[float, dict[str, float]]:
    """Largest memory of the keepers' state, and how many list entries and passages they hold on disk."""
    cfg = settings.collect
    n_passages = size.tokens / cfg.passage_tokens
    total, entries_held, passages_held = 0.0, 0.0, 0.0
    for name, width in size.features.items():
        lists = cfg.top + cfg.sample_explain + cfg.sample_select + cfg.sample_score
        fires = cost.firing[name] * size.tokens / width  # firing tokens of a mean feature
        entries = width * min(lists, fires)
        per_entry = 28 + 16 + 5 * min(max(fires / n_passages, 2), 8)
        passages = min(entries, n_passages) + min(cfg.panel, n_passages)
        per_passage = 40 + 5 * cfg.passage_tokens
        counters = counter_bytes(int(width))
        panel = min(cfg.panel, n_passages) * cfg.passage_tokens * cost.firing[name] * 9
        total += counters + SPILL * (entries * per_entry + passages * per_passage + panel)
        entries_held, passages_held = entries_held + entries, passages_held + passages
    return total, {"entries": entries_held, "passages": passages_held}


# -- for people --------------------------------------------------------------------------------------------------------


def scaled(size: Size, tokens: float, features: float) -> Size:
    """Another size: so many tokens, and so many features in every dictionary, all labelled."""
    widths = dict.fromkeys(size.features, features)
    return Size(tokens, widths, features * len(widths))


def as_json(cost: Cost, estimates: dict[str, Estimate]) -> dict[str, Any]:
    """Everything, for a script."""
    return {"cost": asdict(cost), **{name: asdict(found) | {"usd": found.usd} for name, found in estimates.items()}}


def to_terminal(cost: Cost, estimates: dict[str, Estimate], console: Console) -> None:
    """A table per size."""
    for title, found in estimates.items():
        size = found.size
        widths = " + ".join(f"{width:,.0f}" for width in size.features.values())
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold",
            title=f"{title}: {size.tokens:,.0f} tokens, {widths} features, {size.labelled:,.0f} labelled",
        )  # fmt: skip
        for name in ("stage", "time", "dollars", "what"):
            table.add_column(name, justify="left" if name in ("stage", "what") else "right")
        for stage, seconds in found.seconds.items():
            use = found.asked.get(stage)
            table.add_row(stage, duration(seconds), dollars(use.usd if use else 0.0), _what(stage, found, cost))
        table.add_row("[bold]total[/bold]", duration(sum(found.seconds.values())), dollars(found.usd), _priced(found))
        table.add_section()
        for name, parts in (("memory", found.memory_mb), ("disk", found.disk_mb)):
            text = ", ".join(f"{part} {amount(mb)}" for part, mb in parts.items())
            table.add_row(name, amount(sum(parts.values())), "", text)
        console.print(table)
    if cost.asked:
        console.print(
            "Tokens of models: the real prompts of a few features, counted with the subject's tokenizer; replies as "
            "long as good ones; excerpts and scoring sets as many as asked for; nothing cached, nothing asked again; "
            "without the time of servers.",
            style="dim",
        )
    console.print(
        f"One worker like this machine ({cost.device}); n workers divide collect by n (--shard, --engine ray). "
        "A short probe: expect 20 % on collect and on the total, less on the small stages. Memory is that of collect.",
        style="dim",
    )


def _what(stage: str, found: Estimate, cost: Cost) -> str:
    if stage == "collect":
        total = sum(found.collect.values())
        shares = ", ".join(f"{part} {share / total:.0%}" for part, share in found.collect.items())
        return f"{found.size.tokens / total:,.0f} tokens/s: {shares}"
    if stage in found.asked:
        return _of_model(found.asked[stage])
    if stage == "simulate":
        return f"{cost.labels:.0f} labels a feature; {cost.read * 1e3:.1f} ms to read a passage"
    return ""


def _of_model(use: Use) -> str:
    return f"{use.model}: {use.calls:,.0f} calls, {use.input_tokens:,.0f} tokens in, {use.output_tokens:,.0f} out"


def _priced(found: Estimate) -> str:
    """What it would be at other prices."""
    if not found.prices:
        return ""
    return "; ".join(f"{model} ${usd:,.2f}" for model, usd in found.prices.items())


def dollars(usd: float | None) -> str:
    """Dollars and cents; a word where the price is unknown."""
    return "unknown" if usd is None else f"{usd:,.2f}"


def duration(seconds: float) -> str:
    """`4.5 s`, `3 min`, `7.2 h`, `51 days`, `12 years`."""
    for limit, unit, size in ((90, "s", 1.0), (5400, "min", 60.0), (172_800, "h", 3600.0), (6.3e7, "days", 86_400.0)):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{seconds / 31_557_600:,.0f} years"


def amount(mb: float) -> str:
    """`73 MB`, `12 GB`, `3.1 TB`."""
    for limit, unit, size in ((1000, "MB", 1.0), (1e6, "GB", 1e3)):
        if mb < limit:
            return f"{mb / size:,.0f} {unit}" if mb / size >= 10 else f"{mb / size:.1f} {unit}"
    return f"{mb / 1e6:,.1f} TB"
