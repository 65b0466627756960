"""Commands that read a run: report, show, export, sql."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autointerp.cli.options import ConfigFile, Dictionary, Overrides, RunFolder, app, folder_of, readings_of


@app.command()
def report(
    run: RunFolder = None,
    json_: Annotated[bool, typer.Option("--json", help="figures and labels as JSON on stdout")] = False,
    format: Annotated[
        str, typer.Option("--format", "-f", help="what is written: html, the page; md, a summary of a few kB")
    ] = "html",
    all_: Annotated[bool, typer.Option("--all", help="print every label")] = False,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """The labels with their grades, and the figures of the whole; writes report.html, or report.md.

    The page is one file below 5 MB that opens without a network: of a large run it shows the best features, the worst,
    and some of each verdict at random. With several dictionaries there is one page, and in the JSON one object, for
    each.

    autointerp report
    autointerp report --format md
    autointerp report results/demo --json
    """
    from autointerp import report as reports

    reports.check_format(format)
    with readings_of(run, config, overrides, dictionary) as (readings, store, folder):
        if json_:
            found = [reports.as_json(reading) for reading in readings]
            print(json.dumps(found[0] if len(found) == 1 else found, indent=2, ensure_ascii=False))
            return
        pages = [reports.write(reading, store, folder, format) for reading in readings]
        for reading in readings:
            reports.to_terminal(reading, Console(), limit=None if all_ else 40)
    print("\n" + "\n".join(str(page) for page in pages))


@app.command()
def show(
    feature: Annotated[str, typer.Argument(help="feature id: 17, or dictionary/17")],
    run: RunFolder = None,
    json_: Annotated[bool, typer.Option("--json", help="everything about the feature as JSON")] = False,
    contexts: Annotated[int, typer.Option("--contexts", "-n", min=1, help="contexts per kind")] = 6,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """One feature: its label and rivals with grades, and contexts with activations as background colour.

    autointerp show 17
    autointerp show smollm2-135m-l15-4k/17 results/demo --json
    """
    from autointerp import show as shows

    number = feature.rpartition("/")[2]
    only = [int(number)] if number.isascii() and number.isdigit() else []  # what is no number is refused below
    with readings_of(run, config, overrides, dictionary, only) as (readings, store, _):
        named = [reading for reading in readings if reading.run.dictionary == feature.rpartition("/")[0]]
        found = shows.look_up((named or readings)[0], store, feature, contexts)
        if json_:
            print(json.dumps(shows.as_json(found), indent=2, ensure_ascii=False))
        else:
            shows.to_terminal(found, Console())


@app.command()
def export(
    run: RunFolder = None,
    format: Annotated[str, typer.Option("--format", "-f", help="parquet, jsonl, csv, hf, neuronpedia")] = "parquet",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file or folder to write; default labels.<format> in the run")
    ] = None,
    dictionary: Dictionary = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """The labels with their grades as a table; or, with scores and contexts, as a folder for others' tools.

    hf is a dataset folder that `datasets.load_dataset` opens, neuronpedia the batch layout that its importer reads.

    autointerp export --format csv
    autointerp export results/demo --format jsonl --output labels.jsonl
    autointerp export results/demo --format hf --output my-labels
    """
    from autointerp import export as exports
    from autointerp import export_hf, export_neuronpedia
    from autointerp.tally import Bar

    exports.check_format(format)
    with readings_of(run, config, overrides, dictionary) as (readings, store, folder), Bar() as bar:
        path = output or folder / f"labels.{format}"
        if format == "hf":
            written = export_hf.write(readings, store, path, bar)
        elif format == "neuronpedia":
            written = export_neuronpedia.write(readings, store, path, bar)
        else:
            written = exports.write(readings, format, folder, output)
    print(written)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="a SELECT; tables and columns: FROM duckdb_columns()")],
    run: RunFolder = None,
    csv: Annotated[bool, typer.Option("--csv", help="rows as CSV")] = False,
    json_: Annotated[bool, typer.Option("--json", help="rows as JSON")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Look into the run's database, read-only.

    autointerp sql "SELECT feature, label FROM explanation LIMIT 5"
    autointerp sql "SELECT table_name, column_name, comment FROM duckdb_columns()" --csv
    """
    from autointerp import export as exports
    from autointerp.store import Store

    with Store.read(folder_of(run, config, overrides) / "run.duckdb") as store:
        names, rows = store.query(query)
    exports.print_rows(names, rows, "csv" if csv else "json" if json_ else "table")
