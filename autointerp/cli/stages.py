"""The commands that do the work: run, its stages one by one, and what a run would take."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from autointerp.cli.options import (
    Address,
    BudgetTokens,
    BudgetUsd,
    ConfigFile,
    Engine,
    Overrides,
    app,
    load,
    opened,
    with_budget,
    with_engine,
)
from autointerp.errors import ConfigError


@app.command()
def run(
    engine: Engine = None,
    address: Address = None,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Every stage that is pending, then the report and the exports.

    Killed anywhere and started again, it goes on where it stopped.

        autointerp run
        autointerp run --set features.select=random:256 --set run.name=wide
    """
    from autointerp import export as exports
    from autointerp import report as reports

    overrides = with_budget(with_engine(overrides, engine, address), budget_usd, budget_tokens)
    with opened(config, overrides) as pipeline:
        pipeline.all()
        folder = pipeline.settings.folder
        readings = [reports.read(pipeline.store, name) for name in pipeline.prepared.names]
        files = [reports.write(reading, pipeline.store, folder) for reading in readings]
        files += [exports.write(readings, format, folder) for format in ("parquet", "jsonl")]
    for reading in readings:
        reports.to_terminal(reading, Console(), limit=24)
    print("\n" + "\n".join(str(path) for path in files))
    pipeline.check_whole()


@app.command()
def check(
    json_: Annotated[bool, typer.Option("--json", help="every trial as JSON")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Does the dictionary encode this subject as it was trained to? Tries every layer and the usual mistakes.

    Every run asks this before it collects. Exit code 2 where another hypothesis fits much better, or none fits well.

        autointerp check
        autointerp check --set subject.hookpoint=model.layers.14
    """
    from dataclasses import asdict

    from autointerp import check as checks
    from autointerp.pipeline import prepare
    from autointerp.sample import Sample
    from autointerp.subject import Subject

    settings = load(config, overrides)
    prepared = prepare(settings)
    subject = Subject.load(settings.subject, seed=settings.run.seed)
    sample = Sample(settings, subject)
    findings = [checks.check(settings, target, subject, sample) for target in prepared.targets]
    if json_:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            checks.to_terminal(finding, Console())
    for finding in findings:
        finding.refuse()


@app.command()
def plan(
    tokens: Annotated[float, typer.Option(min=1, help="tokens of the larger corpus that is estimated too")] = 10e9,
    features: Annotated[float, typer.Option(min=1, help="features of the larger dictionary")] = 1e6,
    json_: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """What a run will take, before anything is spent: time, memory, disk and dollars, by a short probe.

    The same is printed for a far larger corpus and dictionary.

        autointerp plan
        autointerp plan --tokens 1e9 --features 65536 --set features.select=all
    """
    from autointerp import plan as plans
    from autointerp.tally import Bar

    settings = load(config, overrides)
    with Bar() as bar:
        cost, prepared = plans.probe(settings, bar)
        size = plans.size_of(settings, prepared)
    sizes = {"this configuration": size, "at scale": plans.scaled(size, tokens, features)}
    estimates = {name: plans.estimate(settings, prepared, cost, found) for name, found in sizes.items()}
    if json_:
        print(json.dumps(plans.as_json(cost, estimates), indent=2))
    else:
        plans.to_terminal(cost, estimates, Console())


def _stage(name: str, work: Callable[[Any], object], doc: str) -> None:
    def command(config: ConfigFile = None, overrides: Overrides = None) -> None:
        with opened(config, overrides) as pipeline:
            work(pipeline)

    command.__doc__ = doc
    app.command(name)(command)


def _asking_stage(name: str, work: Callable[[Any], object], doc: str) -> None:
    """A stage that may ask language models, and so has a budget."""

    def command(
        budget_usd: BudgetUsd = None,
        budget_tokens: BudgetTokens = None,
        config: ConfigFile = None,
        overrides: Overrides = None,
    ) -> None:
        with opened(config, with_budget(overrides, budget_usd, budget_tokens)) as pipeline:
            work(pipeline)
        pipeline.check_whole()

    command.__doc__ = doc
    app.command(name)(command)


@app.command()
def collect(
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="read one part of the corpus", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="with --shard: file to write; default shard-I-of-N.duckdb in the run"),
    ] = None,
    engine: Engine = None,
    address: Address = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Run the subject and the dictionaries over the corpus in one pass; keep contexts.

    Parts (whole documents, by hash) can be read on different machines, and merged:

        autointerp collect --set corpus.tokens=1000000
        autointerp collect --shard 1/4
        autointerp merge results/demo/shard-*.duckdb -o results/demo/run.duckdb
        autointerp collect --engine ray --address auto
    """
    from autointerp.corpus import Shard

    part = None if shard is None else Shard.parse(shard)
    if output is not None and part is None:
        raise ConfigError("--output goes with --shard; a whole collection is written into the run's folder")
    database = None if part is None else output or Path(f"shard-{part.index or part.of}-of-{part.of}.duckdb")
    with opened(config, with_engine(overrides, engine, address), database) as pipeline:
        pipeline.collect(part)
        if part is not None:
            print(pipeline.store.path)


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD...", help="databases that `collect --shard` wrote")],
    output: Annotated[Path, typer.Option("--output", "-o", help="database to write, or to add the result to")],
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Put shards together: all of them give the rows of one pass over the whole corpus.

    Any order and any grouping will do, so a merge of some shards can be merged again.

        autointerp merge results/demo/shard-*.duckdb -o results/demo/run.duckdb
    """
    from autointerp.merge import merge as merge_shards
    from autointerp.tally import Bar

    load(config, overrides)
    with Bar() as bar:
        found = merge_shards(shards, output, bar)
    for one in found:
        part = "whole" if not one.missing else f"{', '.join(one.shards or [])}; missing {', '.join(one.missing)}"
        print(f"{output}: {one.dictionary}, {one.n_tokens:,} tokens of {one.n_documents:,} documents ({part})")


_asking_stage("explain", lambda p: p.explain(), """Propose labels for the selected features.

        autointerp explain --set explainer.methods='["mined", "marks"]'
        autointerp explain --set explainer.methods='["marks"]' --set explainer.provider=anthropic --budget-usd 2
    """)  # fmt: skip
_asking_stage("simulate", lambda p: p.simulate_all(), """Predict held-out activations from every label.

    Ranks the candidates on the select split on the way.

        autointerp simulate --set features.select=0,17,650
    """)  # fmt: skip
_stage("score", lambda p: p.score_all(), """Grade the predictions against the true activations.

        autointerp score
    """)  # fmt: skip
_asking_stage("judge", lambda p: p.judge_all(), """Ask a model, passage by passage, whether the labels fit.

    Which judges: `judge.kinds` (detection, fuzzing); none by default. Needs what simulate has drawn.

        autointerp judge --set judge.kinds='["detection", "fuzzing"]'
        autointerp judge --set judge.kinds='["detection"]' --set judge.provider=anthropic --budget-usd 2
    """)  # fmt: skip
