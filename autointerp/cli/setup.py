"""Commands before a run: init, config, train."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autointerp import config as configuration
from autointerp.cli.options import ConfigFile, Overrides, app, load
from autointerp.errors import ConfigError, nearest


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
    settings = load(config, overrides)
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
                value = getattr(section, key)
                shown = "is not set" if value is None else f"= {json.dumps(value, default=str)}"
                console.print(f"  [cyan]{key}[/cyan] {shown}", end="  ", highlight=False)
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
    settings = load(config, [*(overrides or []), *(["subject.random=true"] if null == "random-subject" else [])])
    frozen = null == "frozen-decoder"
    recipe = Recipe(architecture, width, k, l1, tokens, buffer, lr=lr, seed=settings.run.seed, frozen_decoder=frozen)
    check(recipe, output)
    with Progress(console=Console(stderr=True)) as progress:
        fitness = train_dictionary(settings, recipe, output, progress)
    print(
        f"{output}: FVU {fitness.fvu:.3f}, L0 {fitness.l0:.1f}, dead {fitness.dead:.2%} "
        f"on {fitness.tokens:,} tokens of {fitness.documents} documents never trained on"
    )
