"""Commands that say which features made the subject predict a token: attribute."""

import json
from typing import Annotated

import typer
from rich.console import Console

from autointerp.cli.options import ConfigFile, Dictionary, Overrides, RunFolder, app, readings_of


@app.command()
def attribute(
    text: Annotated[str, typer.Argument(help="text whose next token is explained")],
    run: RunFolder = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="one token; default the subject's own likeliest", show_default=False),
    ] = None,
    position: Annotated[
        int | None,
        typer.Option("--position", help="token after which the target stands; default the last", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="features listed")] = 15,
    checked: Annotated[
        int, typer.Option("--check", min=0, help="(feature, token) pairs ablated to check; 0: none")
    ] = 200,
    json_: Annotated[bool, typer.Option("--json", help="every pair and total as JSON on stdout")] = False,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Which features fire on each token of a text, and what each adds to the logit of the next.

    A contribution is activation x gradient along the decoder row, of the target's logit minus the mean logit. The last
    line says how well that agrees with taking features out one by one.

    autointerp attribute "The Eiffel Tower is in the city of"
    autointerp attribute "The war in the Gulf made the price of" results/demo --target " oil"
    autointerp attribute "I think that we should" --position 2 --check 0 --json
    """
    from autointerp import attribution
    from autointerp.tally import Bar

    with readings_of(run, config, overrides, dictionary) as (readings, _, __), Bar() as bar:
        explained = attribution.Attributor(readings[0]).explain(text, bar, target, position, checked)
    if json_:
        print(json.dumps(attribution.as_json(explained, top), indent=2, ensure_ascii=False))
    else:
        attribution.to_terminal(explained, Console(), top)
