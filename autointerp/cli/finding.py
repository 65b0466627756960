"""Commands that find labels in a run: search, top."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from autointerp.cli.options import ConfigFile, Dictionary, Overrides, RunFolder, app, readings_of

if TYPE_CHECKING:
    from autointerp.search import Hit

HowMany = Annotated[int, typer.Option("--n", "-n", min=1, help="labels shown at most")]
Verdicts = Annotated[
    list[str] | None, typer.Option("--verdict", help="only labels of this verdict; repeatable", show_default=False)
]
Kinds = Annotated[
    list[str] | None,
    typer.Option("--kind", help="only features: eligible, dense, too_rare, dead", show_default=False),
]
MethodName = Annotated[
    str | None, typer.Option("--method", help="only labels of this explainer, as in explainer.methods")
]
CategoryName = Annotated[
    str | None, typer.Option("--category", help="only labels of categories with this in their name")
]
Least = Annotated[float, typer.Option("--min-density", min=0, max=1, help="fires on this share of tokens or more")]
Most = Annotated[float, typer.Option("--max-density", min=0, max=1, help="fires on this share of tokens or less")]
Json = Annotated[bool, typer.Option("--json", help="the labels with all grades as JSON")]


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="part of a label, or what it should mean")],
    run: RunFolder = None,
    n: HowMany = 20,
    verdict: Verdicts = None,
    kind: Kinds = None,
    method: MethodName = None,
    category: CategoryName = None,
    min_density: Least = 0.0,
    max_density: Most = 1.0,
    json_: Json = False,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Labels that hold a text, then labels that mean something like it.

    The first are ordered by grade; the others by cosine between the packaged sentence encoder's vectors, which are kept
    beside the run for the next search.

    autointerp search "days of the week"
    autointerp search war results/demo --verdict good --json
    """
    from autointerp import label_vectors
    from autointerp import search as finding
    from autointerp.tally import Bar

    density = min_density, max_density
    chosen = finding.Filter(frozenset(verdict or ()), frozenset(kind or ()), method, density, category)
    with readings_of(run, config, overrides, dictionary) as (readings, _, folder), Bar() as bar:

        def vectors(texts: Sequence[str]) -> Any:
            from autointerp.simulators.encoder import PACKAGED_ENCODER  # torch takes seconds
            from autointerp.simulators.sentences import sentence_vectors

            read = label_vectors.kept(folder, PACKAGED_ENCODER, lambda new: sentence_vectors(new, bar))
            return read(texts)

        hits = finding.search(readings, text, n, chosen, vectors)
    _print(hits, json_, None)


@app.command()
def top(
    run: RunFolder = None,
    by: Annotated[str, typer.Option("--by", help="any metric of the run: r_rank, f1, lift, density ...")] = "r_rank",
    n: HowMany = 20,
    lowest: Annotated[bool, typer.Option("--lowest", help="the smallest first")] = False,
    verdict: Verdicts = None,
    kind: Kinds = None,
    method: MethodName = None,
    category: CategoryName = None,
    min_density: Least = 0.0,
    max_density: Most = 1.0,
    json_: Json = False,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """The labels with the most of a metric. Labels that have no value of it are left out.

    autointerp top --by r_rank --verdict good -n 20
    autointerp top results/demo --by lift --lowest --json
    autointerp top results/demo --category years -n 5
    """
    from autointerp import search as finding

    density = min_density, max_density
    chosen = finding.Filter(frozenset(verdict or ()), frozenset(kind or ()), method, density, category)
    with readings_of(run, config, overrides, dictionary) as (readings, _, _):
        hits = finding.top(readings, by, n, chosen, lowest)
    _print(hits, json_, by)


def _print(hits: Sequence["Hit"], json_: bool, metric: str | None) -> None:
    from autointerp import search as finding

    if json_:
        print(json.dumps(finding.as_json(hits), indent=2, ensure_ascii=False))
    else:
        finding.to_terminal(hits, Console(), metric)
