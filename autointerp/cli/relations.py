"""The command that says which features belong together: within a dictionary, and between two."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from autointerp.cli.options import ConfigFile, Dictionary, Overrides, app, folder_of, say
from autointerp.errors import ConfigError

if TYPE_CHECKING:
    from autointerp.neighbours import Neighbourhood


@app.command("relate")
def relate_(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="results folder; with --to also RUN@NAME, RUN@ID", show_default=False),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="a run or a dictionary of the same subject; repeatable", show_default=False),
    ] = None,
    threshold: Annotated[float, typer.Option("--threshold", min=0, max=1, help="similarity that is a match")] = 0.7,
    nearest: Annotated[int, typer.Option("--nearest", "-n", min=1, max=8, help="within: neighbours of each kind")] = 3,
    rows: Annotated[int, typer.Option("--rows", min=1, help="--to: rows of each list on the terminal")] = 20,
    all_: Annotated[bool, typer.Option("--all", help="every feature, not only those selected for labels")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", "-p", help="--to: draw them: .png, .svg, .pdf", show_default=False)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="everything as JSON")] = False,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Features that belong together, with their labels: neighbours in one dictionary, or matches in another.

    Without --to: the features that write alike and that fire together. With it: the best match of every feature in the
    other dictionary (another width, seed or layer), which features split and which merge, beside what chance gives. A
    run is compared by decoder rows and by activations on the passages that both runs kept; a dictionary by its rows.

        autointerp relate
        autointerp relate results/demo --nearest 5 --json
        autointerp relate results/demo --to results/seed1 --to results/narrow --picture relations.png
        autointerp relate results/demo --to my-dictionary --all --json
    """
    if to:
        if dictionary is not None:
            raise ConfigError("--dictionary does not go with --to: name it with the run, RUN@NAME")
        folder = run or str(folder_of(None, config, overrides))
        _between(folder, to, threshold, rows, all_, picture, json_)
        return
    if picture is not None:
        raise ConfigError("--picture draws matches between two dictionaries: give the other one by --to")
    found = _within(folder_of(None if run is None else Path(run), config, overrides), dictionary, all_, nearest)
    from autointerp import neighbours

    if json_:
        listed = [neighbours.as_json(one) for one in found]
        print(json.dumps(listed[0] if len(listed) == 1 else listed, indent=2, ensure_ascii=False))
    else:
        for one in found:
            neighbours.to_terminal(one, Console())


def _within(folder: Path, dictionary: str | None, everyone: bool, nearest: int) -> list["Neighbourhood"]:
    from autointerp import neighbours
    from autointerp.store import Store
    from autointerp.tally import Bar

    def runs(store: Any) -> list[Any]:
        return store.latest_runs() if dictionary is None else [store.latest_run(dictionary)]

    path = folder / "run.duckdb"
    with Store.read(path) as store:
        pending = [run for run in runs(store) if neighbours.pending(store, run, everyone)]
    if pending:
        with Store.create(path) as store, Bar() as bar:
            for run in pending:
                say(neighbours.compute(store, run, everyone, bar).line())
    with Store.read(path) as store:
        return [neighbours.read(store, run, everyone, nearest) for run in runs(store)]


def _between(
    run: str, others: list[str], threshold: float, rows: int, everyone: bool, picture: Path | None, json_: bool
) -> None:
    from autointerp import relations, relations_json, relations_shown, sides
    from autointerp.compare_shown import check_picture
    from autointerp.tally import Bar

    if picture is not None:
        check_picture(picture)
    mine, theirs, sketch = sides.open_all(run, others)
    with Bar() as bar:
        found = [relations.relate(mine, other, sketch, bar, threshold) for other in theirs]
    if json_:
        print(json.dumps([relations_json.as_json(one, everyone) for one in found], indent=2, ensure_ascii=False))
    else:
        for one in found:
            relations_shown.to_terminal(one, Console(), rows)
    if picture is not None:
        say(str(relations_shown.draw(found, picture)))
