"""The command that compares runs."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autointerp.cli.options import app, say


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="A B", help="results folders: A, and what is compared with it")],
    more_a: Annotated[
        list[str] | None, typer.Option("--a", help="another run of A, of another seed; repeatable", show_default=False)
    ] = None,
    more_b: Annotated[list[str] | None, typer.Option("--b", help="another run of B", show_default=False)] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", "-p", help="draw the differences: .png, .svg, .pdf", show_default=False)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="differences, verdicts and pairs as JSON")] = False,
) -> None:
    """Two runs, feature by feature: paired differences B - A with intervals, and what became of each verdict.

    A folder stands for its latest run. FOLDER@NAME is one of its dictionaries, FOLDER@ID an earlier run in its
    database, such as one with another explainer or simulator: `autointerp sql "SELECT run_id, settings FROM run"`.

        autointerp compare results/demo results/other
        autointerp compare results/s0 results/t0 --a results/s1 --b results/t1
        autointerp compare results/demo@3f2a results/demo --picture compare.png --json
    """
    from autointerp import compare as comparison
    from autointerp import compare_shown as shown
    from autointerp.tally import Bar

    if len(runs) != 2:
        raise comparison.ComparisonError(
            f"compare takes two runs, got {len(runs)}: autointerp compare A B; more seeds of them by --a and --b"
        )
    if picture is not None:
        shown.check_picture(picture)
    with Bar() as bar:
        a = [comparison.open_run(text, bar) for text in (runs[0], *(more_a or []))]
        b = [comparison.open_run(text, bar) for text in (runs[1], *(more_b or []))]
        found = comparison.compare(a, b, bar)
    if json_:
        print(json.dumps(comparison.as_json(found), indent=2, ensure_ascii=False))
    else:
        shown.to_terminal(found, Console())
    if picture is not None:
        say(str(shown.draw(found, picture)))
