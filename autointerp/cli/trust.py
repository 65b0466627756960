"""Commands that say how far a grade can be believed."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autointerp.cli.options import ConfigFile, Overrides, app, load, say


@app.command()
def certify(
    simulator: Annotated[bool, typer.Option("--simulator", help="the configured simulator too (takes longer)")] = False,
    features: Annotated[
        int | None,
        typer.Option(
            "--features",
            min=4,
            help="planted features per density; default 146, 20 with --simulator, 4 if that asks a model",
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
    the certificate is kept in the run's database, and reports of what that simulator graded print it. One that asks a
    model (logprob) sees simulator.passages passages of a label, as in a run, and no more labels than the gates need.

        autointerp certify
        autointerp certify --simulator --features 20
        autointerp certify --puzzles puzzles.json --json
    """
    from autointerp import candidates
    from autointerp import certify as certification
    from autointerp import puzzles as known_answers
    from autointerp.tally import Bar

    settings = load(config, overrides)
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
        say(f"the certificate of {found[-1].scorer} is in {certification.store_certificate(settings, found[-1])}")
    if json_:
        print(json.dumps(certification.as_json(found), indent=2, ensure_ascii=False))
    else:
        for certificate in found:
            certificate.to_terminal(Console())
