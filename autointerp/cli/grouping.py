"""Commands that group labels: categories."""

import json
from typing import Annotated

import typer
from rich.console import Console

from autointerp.cli.options import ConfigFile, Dictionary, Overrides, RunFolder, app, readings_of


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

    autointerp categories results/demo
    autointerp categories results/demo -n 12 --json
    """
    from autointerp import categories as grouping
    from autointerp.simulators.sentences import sentence_vectors
    from autointerp.tally import Bar

    with readings_of(run, config, overrides, dictionary) as (readings, _, _), Bar() as bar:
        found = grouping.categories(readings, lambda texts: sentence_vectors(texts, bar), n)
    if json_:
        print(json.dumps(grouping.as_json(found), indent=2, ensure_ascii=False))
    else:
        grouping.to_terminal(found, Console())
