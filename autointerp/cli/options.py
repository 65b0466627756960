"""What commands share: the application, its common options, and how a configuration, a run or a reading is opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from autointerp import config as configuration
from autointerp.config import Settings
from autointerp.errors import ConfigError, UserError
from autointerp.logs import say as say  # commands take it from here

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="Label the features of a sparse autoencoder, and say how far each label can be trusted.\n\n"
    "    autointerp run                      every stage, with config.toml\n\n"
    "    autointerp show 17                  one feature: label, grades, contexts\n\n"
    "    autointerp report --json            the figures\n\n"
    "    autointerp --log-format json run    one JSON object a line on stderr",
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


def with_budget(overrides: list[str] | None, usd: float | None, tokens: int | None) -> list[str]:
    chosen = {"llm.budget_usd": usd, "llm.budget_tokens": tokens}
    for key, value in chosen.items():
        if value == 0:  # in the configuration that is no limit, and who types it here may mean the opposite
            option = key.replace("llm.", "--").replace("_", "-")
            raise ConfigError(f"{option} 0: expected more than 0; no limit is --set {key}=0, the default")
    return [*(overrides or []), *(f"{key}={value}" for key, value in chosen.items() if value is not None)]


def with_engine(overrides: list[str] | None, engine: str | None, address: str | None) -> list[str]:
    chosen = {"engine.kind": engine, "engine.address": address}
    return [*(overrides or []), *(f"{key}={value}" for key, value in chosen.items() if value is not None)]


def load(config: Path | None, overrides: list[str] | None) -> Settings:
    return configuration.load(config, overrides or [])


@contextmanager
def opened(config: Path | None, overrides: list[str] | None, database: Path | None = None) -> Iterator[Any]:
    """A checked configuration on its open store: the run's, or another file (a bare name is put into its folder)."""
    from autointerp.pipeline import Pipeline, prepare
    from autointerp.store import Store
    from autointerp.tally import Bar

    settings = load(config, overrides)
    prepared = prepare(settings)
    path = settings.database if database is None else database
    if database is not None and database.parent == Path():
        path = settings.folder / database
    with Store.create(path) as store, Bar() as bar:
        try:
            yield Pipeline(store, prepared, bar, say)
        except UserError:
            store.discard_if_empty()  # bad input leaves no half-written result
            raise


def folder_of(run: Path | None, config: Path | None, overrides: list[str] | None) -> Path:
    """The run to read: the folder given, or the config's. A .duckdb file stands for its folder."""
    if run is None:
        return load(config, overrides).folder
    return run.parent if run.suffix == ".duckdb" else run


Dictionary = Annotated[
    str | None, typer.Option("--dictionary", "-d", help="of a run with several: its name", show_default=False)
]


@contextmanager
def readings_of(
    run: Path | None, config: Path | None, overrides: list[str] | None, dictionary: str | None = None,
    only: list[int] | None = None,
) -> Iterator[tuple[list[Any], Any, Path]]:  # fmt: skip
    """(readings, store, folder) of a run: every dictionary of its configuration, or the one of this name.

    only  features to read, where a command needs no others
    """
    from autointerp import report
    from autointerp.store import Store

    folder = folder_of(run, config, overrides)
    with Store.read(folder / "run.duckdb") as store:
        if store.snapshot_of is not None:
            say("the run is still being written: reading its latest snapshot")
        found = report.read_all(store, only) if dictionary is None else [report.read(store, dictionary, only)]
        yield found, store, folder
