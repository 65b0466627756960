"""The command that shows a run in a browser: serve."""

from contextlib import suppress
from typing import Annotated

import typer

from autointerp.cli.options import ConfigFile, Overrides, RunFolder, app, folder_of, say


@app.command()
def serve(
    run: RunFolder = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="port on 127.0.0.1; 0 takes a free one")] = 8765,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """A run in the browser: overview, a list to search and filter, a page per feature, and what fires on a text.

    Only this machine can reach it, and nothing is loaded from elsewhere. A run that is still being written is followed
    from snapshot to snapshot. Votes and labels of readers are kept beside the run, which grades them when it is run
    again.

    autointerp serve
    autointerp serve results/demo --port 9000
    """
    from autointerp import serve as server

    with suppress(KeyboardInterrupt):  # how it is meant to end
        server.serve(folder_of(run, config, overrides), port, say)
