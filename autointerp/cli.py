"""Flags in, one call, a tally out, an exit code.

0 is success, 2 is something the user can put right (one line on stderr), 130 an interrupt; a bug keeps its traceback.
"""

import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from autointerp import __version__
from autointerp import config as configuration
from autointerp.config import Settings
from autointerp.errors import ConfigError, UserError, nearest

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="Label the features of a sparse autoencoder, and say how far each label can be trusted.\n\n"
    "    autointerp run                      every stage, with config.toml\n\n"
    "    autointerp show 17                  one feature: label, grades, contexts\n\n"
    "    autointerp report --json            the figures",
)  # fmt: skip

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; default ./config.toml", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="override a key: --set corpus.tokens=65536", show_default=False)
]
RunFolder = Annotated[
    Path | None, typer.Argument(metavar="[RUN]", help="results folder; default the config's", show_default=False)
]


def main() -> None:
    """Entry point: turns errors that the user can act on into one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except UserError as problem:
        print(f"autointerp: {' '.join(str(problem).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("autointerp: interrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None


Engine = Annotated[
    str | None, typer.Option("--engine", help="local or ray; same as --set engine.kind=", show_default=False)
]
Address = Annotated[
    str | None, typer.Option("--address", help="ray: auto, or host:port of a cluster", show_default=False)
]


BudgetUsd = Annotated[
    float | None,
    typer.Option("--budget-usd", help="stop before model calls cost more; as llm.budget_usd", show_default=False),
]
BudgetTokens = Annotated[
    int | None,
    typer.Option("--budget-tokens", help="stop before they take more tokens; as llm.budget_tokens", show_default=False),
]


def _with_budget(overrides: list[str] | None, usd: float | None, tokens: int | None) -> list[str]:
    chosen = {"llm.budget_usd": usd, "llm.budget_tokens": tokens}
    return [*(overrides or []), *(f"{key}={value}" for key, value in chosen.items() if value is not None)]


def _with_engine(overrides: list[str] | None, engine: str | None, address: str | None) -> list[str]:
    chosen = {"engine.kind": engine, "engine.address": address}
    return [*(overrides or []), *(f"{key}={value}" for key, value in chosen.items() if value is not None)]


def _settings(config: Path | None, overrides: list[str] | None) -> Settings:
    return configuration.load(config, overrides or [])


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def _pipeline(config: Path | None, overrides: list[str] | None, database: Path | None = None) -> Iterator[Any]:
    """A checked configuration on its open store: the run's, or another file (a bare name is put into its folder)."""
    from autointerp.pipeline import Pipeline, prepare
    from autointerp.store import Store
    from autointerp.tally import Bar

    settings = _settings(config, overrides)
    prepared = prepare(settings)
    path = settings.database if database is None else database
    if database is not None and database.parent == Path():
        path = settings.folder / database
    with Store.create(path) as store, Bar() as bar:
        try:
            yield Pipeline(store, prepared, bar, _say)
        except UserError:
            store.discard_if_empty()  # bad input leaves no half-written result
            raise


def _folder(run: Path | None, config: Path | None, overrides: list[str] | None) -> Path:
    """The run to read: the folder given, or the config's. A .duckdb file stands for its folder."""
    if run is None:
        return _settings(config, overrides).folder
    return run.parent if run.suffix == ".duckdb" else run


Dictionary = Annotated[
    str | None, typer.Option("--dictionary", "-d", help="of a run with several: its name", show_default=False)
]


@contextmanager
def _reading(
    run: Path | None, config: Path | None, overrides: list[str] | None, dictionary: str | None = None
) -> Iterator[tuple[list[Any], Any, Path]]:
    """(readings, store, folder) of a run: every dictionary of its configuration, or the one of this name."""
    from autointerp import report
    from autointerp.store import Store

    folder = _folder(run, config, overrides)
    with Store.read(folder / "run.duckdb") as store:
        if store.snapshot_of is not None:
            _say("the run is still being written: reading its latest snapshot")
        yield report.read_all(store) if dictionary is None else [report.read(store, dictionary)], store, folder


# -- stages ------------------------------------------------------------------------------------------------------------


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

    overrides = _with_budget(_with_engine(overrides, engine, address), budget_usd, budget_tokens)
    with _pipeline(config, overrides) as pipeline:
        pipeline.all()
        folder = pipeline.settings.folder
        readings = [reports.read(pipeline.store, name) for name in pipeline.prepared.names]
        files = [reports.write(reading, pipeline.store, folder) for reading in readings]
        files += [exports.write(readings, format, folder) for format in ("parquet", "jsonl")]
    for reading in readings:
        reports.to_terminal(reading, Console(), limit=24)
    print("\n" + "\n".join(str(path) for path in files))


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

    settings = _settings(config, overrides)
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

    settings = _settings(config, overrides)
    with Bar() as bar:
        cost, prepared = plans.probe(settings, bar)
        size = plans.size_of(settings, prepared)
    sizes = {"this configuration": size, "at scale": plans.scaled(size, tokens, features)}
    estimates = {name: plans.estimate(settings, prepared, cost, found) for name, found in sizes.items()}
    if json_:
        print(json.dumps(plans.as_json(cost, estimates), indent=2))
    else:
        plans.to_terminal(cost, estimates, Console())


@app.command()
def certify(
    simulator: Annotated[bool, typer.Option("--simulator", help="the configured simulator too (takes longer)")] = False,
    features: Annotated[
        int | None,
        typer.Option(
            "--features",
            min=4,
            help="planted features per density; default 146, 20 with --simulator",
            show_default=False,
        ),
    ] = None,
    puzzles: Annotated[
        Path | None,
        typer.Option(
            "--puzzles", metavar="FILE", help="known-answer puzzles (OpenAI's puzzles.json) instead", show_default=False
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="gates and tables as JSON")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Can the grader be believed? Grades it on planted features whose truth is known, with labels of known quality.

    Needs no model: the reference simulator is told what every label means, and errs at known rates. With --simulator
    the certificate is kept in the run's database, and reports of what that simulator graded print it.

        autointerp certify
        autointerp certify --simulator --features 20
        autointerp certify --puzzles puzzles.json --json
    """
    from autointerp import candidates
    from autointerp import certify as certification
    from autointerp import puzzles as known_answers
    from autointerp.tally import Bar

    settings = _settings(config, overrides)
    if puzzles is not None:
        asked = known_answers.read(puzzles)
        with Bar() as bar:
            scorer = candidates.open_configured(settings)
            solved = known_answers.solve(asked, scorer, settings.collect.passage_tokens, bar)
        if json_:
            print(json.dumps(known_answers.as_json(solved, settings.simulator.kind), indent=2, ensure_ascii=False))
        else:
            known_answers.to_terminal(solved, settings.simulator.kind, Console())
        return
    with Bar() as bar:
        found = certification.run(settings, bar, configured=simulator, per_density=features)
    if simulator:
        _say(f"the certificate of {found[-1].scorer} is in {certification.store_certificate(settings, found[-1])}")
    if json_:
        print(json.dumps(certification.as_json(found), indent=2, ensure_ascii=False))
    else:
        for certificate in found:
            certificate.to_terminal(Console())


def _stage(name: str, work: Callable[[Any], object], doc: str) -> None:
    def command(config: ConfigFile = None, overrides: Overrides = None) -> None:
        with _pipeline(config, overrides) as pipeline:
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
        with _pipeline(config, _with_budget(overrides, budget_usd, budget_tokens)) as pipeline:
            work(pipeline)

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
    with _pipeline(config, _with_engine(overrides, engine, address), database) as pipeline:
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

    _settings(config, overrides)
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


# -- readers -----------------------------------------------------------------------------------------------------------


@app.command()
def report(
    run: RunFolder = None,
    json_: Annotated[bool, typer.Option("--json", help="figures and labels as JSON on stdout")] = False,
    all_: Annotated[bool, typer.Option("--all", help="print every label")] = False,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """The labels with their grades, and the figures of the whole; writes report.html.

    With several dictionaries there is one page, and in the JSON one object, for each.

    autointerp report
    autointerp report results/demo --json
    """
    from autointerp import report as reports

    with _reading(run, config, overrides, dictionary) as (readings, store, folder):
        if json_:
            found = [reports.as_json(reading) for reading in readings]
            print(json.dumps(found[0] if len(found) == 1 else found, indent=2, ensure_ascii=False))
            return
        pages = [reports.write(reading, store, folder) for reading in readings]
        for reading in readings:
            reports.to_terminal(reading, Console(), limit=None if all_ else 40)
    print("\n" + "\n".join(str(page) for page in pages))


@app.command()
def show(
    feature: Annotated[str, typer.Argument(help="feature id: 17, or dictionary/17")],
    run: RunFolder = None,
    json_: Annotated[bool, typer.Option("--json", help="everything about the feature as JSON")] = False,
    contexts: Annotated[int, typer.Option("--contexts", "-n", min=1, help="contexts per kind")] = 6,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """One feature: its label and rivals with grades, and contexts with activations as background colour.

    autointerp show 17
    autointerp show smollm2-135m-l15-4k/17 results/demo --json
    """
    from autointerp import show as shows

    with _reading(run, config, overrides, dictionary) as (readings, store, _):
        named = [reading for reading in readings if reading.run.dictionary == feature.rpartition("/")[0]]
        found = shows.look_up((named or readings)[0], store, feature, contexts)
        if json_:
            print(json.dumps(shows.as_json(found), indent=2, ensure_ascii=False))
        else:
            shows.to_terminal(found, Console())


@app.command()
def export(
    run: RunFolder = None,
    format: Annotated[str, typer.Option("--format", "-f", help="parquet, jsonl or csv")] = "parquet",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file to write; default labels.<format> in the run")
    ] = None,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """The labels with their grades as a table.

    autointerp export --format csv
    autointerp export results/demo --format jsonl --output labels.jsonl
    """
    from autointerp import export as exports

    exports.check_format(format)
    with _reading(run, config, overrides, dictionary) as (readings, _, folder):
        print(exports.write(readings, format, folder, output))


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="a SELECT; tables and columns: FROM duckdb_columns()")],
    run: RunFolder = None,
    csv: Annotated[bool, typer.Option("--csv", help="rows as CSV")] = False,
    json_: Annotated[bool, typer.Option("--json", help="rows as JSON")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Look into the run's database, read-only.

    autointerp sql "SELECT feature, label FROM explanation LIMIT 5"
    autointerp sql "SELECT table_name, column_name, comment FROM duckdb_columns()" --csv
    """
    from autointerp import export as exports
    from autointerp.store import Store

    with Store.read(_folder(run, config, overrides) / "run.duckdb") as store:
        names, rows = store.query(query)
    exports.print_rows(names, rows, "csv" if csv else "json" if json_ else "table")


# -- setting up --------------------------------------------------------------------------------------------------------


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="folder to set up")] = Path(),
    preset: Annotated[str, typer.Option("--preset", "-p", help="whose dictionary: see --list-presets")] = "default",
    list_presets: Annotated[bool, typer.Option("--list-presets", help="the presets, and what each is")] = False,
) -> None:
    """Write a commented config.toml and the prompts into a folder. Existing files are left alone.

    A preset is the configuration of a dictionary that people use, with its subject; its comments say what it needs.

        autointerp init
        autointerp init my-study
        autointerp init --list-presets
        autointerp init gpt2 --preset gpt2-small-res-jb
    """
    from autointerp import presets, prompts

    if list_presets:
        for name in presets.names():
            print(f"{name:<20}{presets.summary(name)}")
        return
    wanted = {folder / "config.toml": presets.text(preset)}
    for prompt in sorted(prompts.packaged_folder().glob("*.md")):
        wanted[folder / "prompts" / prompt.name] = prompt.read_text("utf-8")
    try:
        (folder / "prompts").mkdir(parents=True, exist_ok=True)
        for target, text in wanted.items():
            if target.exists():
                print(f"{target} exists: left alone")
            else:
                target.write_text(text, "utf-8")
                print(target)
    except OSError as problem:
        raise ConfigError(f"cannot write into {folder}: {problem.strerror}") from None


@app.command("config")
def config_(
    config: ConfigFile = None,
    overrides: Overrides = None,
    json_: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Every setting with its value in force and what it means.

    autointerp config --set features.select=all
    """
    settings = _settings(config, overrides)
    if json_:
        print(settings.model_dump_json(indent=2))
        return
    console = Console()
    for name in configuration.Settings.model_fields:
        found = getattr(settings, name)
        several = isinstance(found, tuple) and len(found) > 1
        for section in found if isinstance(found, tuple) else [found]:
            title = f"[[{name}]]" if several else f"[{name}]"
            console.print(f"\n{title}", style="bold", highlight=False, markup=False)
            for key, field in type(section).model_fields.items():
                value = json.dumps(getattr(section, key), default=str)
                console.print(f"  [cyan]{key}[/cyan] = {value}", end="  ", highlight=False)
                console.print(field.description, style="dim", highlight=False, markup=False)


@app.command()
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="new folder for the dictionary")],
    architecture: Annotated[str, typer.Option(help="topk, or standard (ReLU + L1)")] = "topk",
    width: Annotated[int, typer.Option(min=1, help="number of features")] = 4096,
    k: Annotated[int, typer.Option(min=1, help="topk: features per token")] = 32,
    l1: Annotated[float, typer.Option(min=0, help="standard: weight of the L1 penalty")] = 2.0,
    tokens: Annotated[int, typer.Option(min=1, help="activations the trainer sees, repeats included")] = 4_000_000,
    buffer: Annotated[int, typer.Option(min=4096, help="activations held in memory and shuffled")] = 2_400_000,
    lr: Annotated[float, typer.Option(min=0, help="learning rate")] = 8e-4,
    null: Annotated[
        str | None,
        typer.Option(help="frozen-decoder, or random-subject: same as --set subject.random=true", show_default=False),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Train a dictionary on the subject's own activations (needs the extra `train`); writes SAELens format.

    Reports FVU, L0 and dead share on documents that it never trained on.

    A null is what a dictionary is compared with: one whose decoder rows stay random, or one of a subject whose weights
    were drawn anew. The second has features on that subject alone, so it is labelled with the same setting and seed.

        autointerp train -o my-sae --architecture topk --width 4096 --k 32 --set corpus.tokens=0
        autointerp train -o my-null --null frozen-decoder
        autointerp train -o my-null --null random-subject
        autointerp run --set dictionary.source=my-null --set subject.random=true
    """
    from rich.progress import Progress

    from autointerp.dictionary.train import NULLS, Recipe, check, train_dictionary

    if null is not None and null not in NULLS:
        raise ConfigError(f"--null {null!r}: expected {' or '.join(NULLS)}{nearest(null, NULLS)}")
    settings = _settings(config, [*(overrides or []), *(["subject.random=true"] if null == "random-subject" else [])])
    frozen = null == "frozen-decoder"
    recipe = Recipe(architecture, width, k, l1, tokens, buffer, lr=lr, seed=settings.run.seed, frozen_decoder=frozen)
    check(recipe, output)
    with Progress(console=Console(stderr=True)) as progress:
        fitness = train_dictionary(settings, recipe, output, progress)
    print(
        f"{output}: FVU {fitness.fvu:.3f}, L0 {fitness.l0:.1f}, dead {fitness.dead:.2%} "
        f"on {fitness.tokens:,} tokens of {fitness.documents} documents never trained on"
    )


def _version(wanted: bool) -> None:
    if wanted:
        print(f"autointerp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def _with_examples_apart(doc: str) -> str:
    """Help in which paragraphs of examples are blocks: a line each, as they stand in the docstring."""
    paragraphs = inspect.cleandoc(doc).split("\n\n")
    return "\n\n".join(
        f"```console\n{inspect.cleandoc(text)}\n```" if text.lstrip().startswith("autointerp ") else text
        for text in paragraphs
    )


for _command in app.registered_commands:
    assert _command.callback is not None
    _command.help = _with_examples_apart(_command.callback.__doc__ or "")
