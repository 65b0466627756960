"""Commands that show what features do to the subject: steer, lens."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from autointerp.cli.options import ConfigFile, Dictionary, Overrides, RunFolder, app, folder_of, readings_of, say
from autointerp.errors import ConfigError

if TYPE_CHECKING:
    from autointerp.intervene import Kind
    from autointerp.steer import Steerer
    from autointerp.tally import Bar


@app.command()
def steer(
    feature: Annotated[
        str | None, typer.Argument(help="feature id: 17, or dictionary/17; or --label", show_default=False)
    ] = None,
    run: RunFolder = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="text to continue")] = "I think that",
    strength: Annotated[
        list[float] | None,
        typer.Option("--strength", "-s", help="multiples of the feature's own maximum activation", show_default=False),
    ] = None,
    features: Annotated[
        list[str] | None, typer.Option("--feature", "-f", help="one more feature to change", show_default=False)
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="the feature whose label is nearest in meaning", show_default=False)
    ] = None,
    clamp: Annotated[bool, typer.Option("--clamp", help="hold the activation at strength x maximum")] = False,
    ablate: Annotated[bool, typer.Option("--ablate", help="take out what the feature writes")] = False,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="tokens to write")] = 40,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: greedy; else sampled, by seed")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="of the sampling")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="baseline and results as JSON")] = False,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """What the subject writes while a feature is turned up, beside what it writes by itself.

    strength x maximum activation x decoder row is added to the activation at every position, prompt included. KL says
    how far that takes the subject from itself; repetition, where it breaks.

    autointerp steer 17 --strength 0 --strength 4 --strength 8 --prompt "The best thing about the weekend is"
    autointerp steer 17 results/demo --feature 650 --strength 2
    autointerp steer --label "wars and battles" --prompt "My grandmother told me about" --json
    autointerp steer 17 --ablate --prompt "On the fourth of July"
    """
    from autointerp import steer as steering
    from autointerp.tally import Bar

    feature, run = _names(feature, run, features, label)
    if clamp and ablate:
        raise ConfigError("--clamp and --ablate exclude one another: give one of them")
    edit: Kind = "ablate" if ablate else "clamp" if clamp else "add"
    strengths = steering.strengths_of(strength or [], edit)
    with readings_of(run, config, overrides, dictionary) as (readings, store, _), Bar() as bar:
        wanted = [name for name in (feature, *(features or [])) if name is not None]
        steerer = steering.Steerer(_reading(readings, wanted), store)
        changed = _changed(steerer, wanted, label, bar)
        found = steerer.steer(changed, prompt, strengths, edit, steering.Sampling(tokens, temperature, seed), bar)
    if json_:
        print(json.dumps(steering.as_json(found), indent=2, ensure_ascii=False))
    else:
        steering.to_terminal(found, Console())


def _names(
    feature: str | None, run: Path | None, features: list[str] | None, label: str | None
) -> tuple[str | None, Path | None]:
    """(feature, run) of the two arguments; where options name the features, the only argument is the run."""
    elsewhere = bool(features) or label is not None
    if elsewhere and run is None and feature is not None and not re.fullmatch(r"(.*/)?\d+", feature):
        return None, Path(feature)
    if feature is None and not elsewhere:
        raise ConfigError('no feature: give its id, such as `autointerp steer 17`, or --label "what it is about"')
    return feature, run


def _reading(readings: list[Any], wanted: list[str]) -> Any:
    """The reading of the dictionary that the features are named with, else the first."""
    names = {name.rpartition("/")[0] for name in wanted}
    return next((reading for reading in readings if reading.run.dictionary in names), readings[0])


def _changed(steerer: "Steerer", wanted: list[str], label: str | None, bar: "Bar") -> list[Any]:
    found = [steerer.changed(name) for name in wanted]
    return found if label is None else [*found, steerer.by_meaning(label, bar)]


@app.command("lens")
def lens_(
    run: RunFolder = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, max=10, help="tokens shown of each feature")] = 6,
    json_: Annotated[bool, typer.Option("--json", help="every feature of the dictionary as JSON")] = False,
    all_: Annotated[bool, typer.Option("--all", help="show features without a label too")] = False,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """The tokens that each feature's decoder row makes likelier and less likely, read through the unembedding.

    Computed once for the whole dictionary and kept in the table lens; `autointerp show` and --json have them too.

    autointerp lens
    autointerp lens results/demo --all --tokens 10
    autointerp sql "SELECT feature, promoted FROM lens WHERE list_contains(promoted, ' war')"
    """
    from autointerp import lenses
    from autointerp.store import Store
    from autointerp.tally import Bar

    folder = folder_of(run, config, overrides)
    with readings_of(folder, None, None, dictionary) as (readings, store, _):
        pending = [reading for reading in readings if lenses.pending(reading, store)]
    if pending:
        with Store.create(folder / "run.duckdb") as store, Bar() as bar:
            for reading in pending:
                say(lenses.compute(reading, store, bar).line())
    with readings_of(folder, None, None, dictionary) as (readings, store, _):
        if json_:
            found = [lenses.as_json(reading, store) for reading in readings]
            print(json.dumps(found[0] if len(found) == 1 else found, indent=2, ensure_ascii=False))
            return
        for reading in readings:
            lenses.to_terminal(reading, store, Console(), tokens, all_)


@app.command("causal")
def causal_(
    run: RunFolder = None,
    features: Annotated[
        str | None, typer.Option("--features", help="ids, such as 17,650; default all labelled", show_default=False)
    ] = None,
    kl: Annotated[float, typer.Option("--kl", min=1e-4, max=5, help="nats per token that each push may cost")] = 0.5,
    judge: Annotated[
        bool | None,
        typer.Option(
            "--judge/--no-judge", help="ask the run's [judge]; default where judge.kinds is set", show_default=False
        ),
    ] = None,
    explain: Annotated[
        bool | None,
        typer.Option(
            "--explain/--no-explain", show_default=False,
            help="ask the run's [explainer] what features do; default where explainer.methods asks a model",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="summary and every number as JSON")] = False,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Whether turning a feature up makes what its label names likelier than random directions at the same KL do.

    A second axis: no grade, choice of label or verdict reads it. Features that are scored already are not scored again,
    so an interrupted command goes on where it was. A judge is shown what the subject writes with the feature turned up,
    among texts of two other features, and says which one the label is about.

    Beside it each feature gets output labels: what it makes the subject say, counted, and with --explain by a model.
    They are graded on the same steered texts, under names of their own. Such a label is made of what the feature
    raises, so it stands beside what random directions do to labels of their own.

    autointerp causal
    autointerp causal results/demo --features 17,650 --json
    autointerp causal results/demo --judge
    autointerp causal results/demo --no-explain
    autointerp sql "SELECT feature, value, lo, hi FROM score WHERE metric = 'causal' ORDER BY value DESC"
    autointerp sql "SELECT feature, method, label FROM output_label WHERE status = 'ok' ORDER BY feature"
    """
    from contextlib import closing, nullcontext

    from autointerp import causal, causal_judge, causal_shown, outputs
    from autointerp.llm import Door
    from autointerp.population import listed
    from autointerp.store import Store
    from autointerp.tally import Bar

    def judges(reading: Any) -> bool:
        return bool(reading.settings.judge.kinds) if judge is None else judge

    def explains(reading: Any) -> bool:
        return outputs.asks(reading.settings) if explain is None else explain

    folder, named = folder_of(run, config, overrides), listed(features) if features else []
    with readings_of(folder, None, None, dictionary) as (readings, store, _):
        chosen = [_reading(readings, named)] if named else readings
        asked = [(reading, causal.wanted(reading, named)) for reading in chosen]
        todo = any(
            causal.pending(*one, kl) or outputs.pending(*one, kl, explains(reading))
            or (judges(reading) and causal_judge.pending(*one, kl))
            for reading, labels in asked for one in [(reading, store, labels)]
        )  # fmt: skip
    if todo:
        with Store.create(folder / "run.duckdb") as store, Bar() as bar:
            for reading, labels in asked:
                with closing(Door(store, reading.settings)) if explains(reading) else nullcontext() as explainer:
                    said = outputs.Outputs(reading, store, kl, explainer, bar)
                    say(causal.compute(reading, store, labels, kl, bar, said).line())
                    say(said.tally.line())
                if judges(reading):
                    with closing(Door(store, reading.settings)) as door:
                        say(causal_judge.compute(reading, store, labels, kl, door, bar).line())
    with readings_of(folder, None, None, dictionary) as (_, store, __):
        found = [causal_shown.as_json(reading, store, labels, kl) for reading, labels in asked]
    if json_:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2, ensure_ascii=False))
        return
    for one in found:
        causal_shown.to_terminal(one, Console())
