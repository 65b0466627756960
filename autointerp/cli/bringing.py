"""The command that brings labels from outside into a run: import."""

import json
from pathlib import Path
from typing import Annotated

import typer

from autointerp.cli.options import ConfigFile, Dictionary, Overrides, app, folder_of
from autointerp.errors import StoreError


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="file or folder of labels, as `export` or Neuronpedia wrote it")],
    run: Annotated[
        Path | None, typer.Option("--run", help="results folder; default the config's", show_default=False)
    ] = None,
    dictionary: Dictionary = None,
    max_words: Annotated[
        int | None,
        typer.Option("--max-words", min=1, help="longer labels are left out; default explainer.max_words of the run"),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="what became of the labels as JSON")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Labels that people or other tools made, as candidates: the next `autointerp run` grades them beside ours.

    Reads what `export` writes (parquet, jsonl, csv, a dataset folder, Neuronpedia's batch layout), explanations as
    Neuronpedia hands them out (jsonl, json, also .gz), and any table with feature_id and label. Twice is once.

    autointerp import labels.csv
    autointerp import batch-0.jsonl.gz --run results/demo --dictionary smollm2-135m-l15-4k --max-words 30
    """
    from autointerp import imports
    from autointerp.store import Store
    from autointerp.tally import Bar

    database = folder_of(run, config, overrides) / "run.duckdb"
    if not database.is_file():
        raise StoreError(f"no run at {database.parent}: `autointerp run` makes one, and labels can be brought into it")
    with Store.create(database) as store, Bar() as bar:
        taken, unselected = imports.bring(store, file, bar, dictionary, max_words)
    if json_:
        print(json.dumps(imports.as_json(taken, unselected), indent=2, ensure_ascii=False))
        return
    print("\n".join(imports.lines(taken, unselected)))
