"""Commands that group labels: categories."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from autointerp.cli.options import ConfigFile, Dictionary, Overrides, RunFolder, app, folder_of, readings_of, say
from autointerp.errors import StoreError

if TYPE_CHECKING:
    from autointerp.tally import Bar


@app.command()
def categories(
    run: RunFolder = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n", "-n", min=1, help="categories; default the square root of the number of labels", show_default=False
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="categories with their features as JSON")] = False,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Labels grouped by meaning: what a dictionary speaks of, each kind called by its most central labels.

    Cohesion is the mean cosine of a category's labels to their mean; where it is low the labels have little in common.
    These are the categories that the run keeps, for its page, its report and its exports; it makes them where its
    labels have changed. With -n they are made for once, and not kept.

    autointerp categories results/demo
    autointerp categories results/demo -n 12 --json
    """
    from autointerp import categories as grouping
    from autointerp import categories_stage as stage
    from autointerp.tally import Bar

    folder = folder_of(run, config, overrides)
    with Bar() as bar:
        kept = n is None and _kept(folder, bar)
        with readings_of(folder, None, None, dictionary) as (readings, store, _):
            found = grouping.known(readings, store) if kept else []
            found = found or grouping.categories(readings, stage.vectors(folder, bar), n)
    if json_:
        print(json.dumps(grouping.as_json(found), indent=2, ensure_ascii=False))
    else:
        grouping.to_terminal(found, Console())


def _kept(folder: Path, bar: "Bar") -> bool:
    """Whether the run keeps the categories of its labels as they are now: they are made where they are pending.

    False, and the reason said, where they cannot be written.
    """
    from autointerp import categories_stage as stage
    from autointerp.store import Store

    path = folder / "run.duckdb"
    with Store.read(path) as store:
        if not stage.pending(store, store.latest_runs()):
            return True
    try:
        with Store.create(path) as store:
            say(stage.run(store, store.latest_runs(), bar).line())
    except StoreError as problem:
        say(f"categories: not kept: {problem}")
        return False
    return True
