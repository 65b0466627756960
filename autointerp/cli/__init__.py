"""Flags in, one call, a tally out, an exit code.

0 is success, 2 is something the user can put right (one line on stderr), 130 an interrupt; a bug keeps its traceback.
"""

import inspect
import logging
import sys
from typing import Annotated

import typer

from autointerp import __version__, logs
from autointerp.cli.options import app
from autointerp.errors import UserError

# isort: off
# fmt: off
from autointerp.cli import (  # noqa: F401  each adds its commands, in this order
    stages, trust, comparing, readers, bringing, finding, grouping, pages, causal, attribution, relations, setup,
)
# fmt: on
# isort: on


def main() -> None:
    """Entry point: turns errors that the user can act on into one line and exit code 2."""
    logs.configure()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[logs.Handler()])
    try:
        app()
    except UserError as problem:
        logs.problem(" ".join(str(problem).split()), 2)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        logs.problem("interrupted; run the same command again to go on", 130)
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None


def _version(wanted: bool) -> None:
    if wanted:
        print(f"autointerp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="on stderr, warnings and errors only")] = False,
    log_format: Annotated[
        str,
        typer.Option("--log-format", help="stderr: bar, lines, json (an object a line); auto: bar on a terminal"),
    ] = "auto",
) -> None:
    logs.configure(log_format, quiet)


def _with_examples_apart(doc: str) -> str:
    """Help in which paragraphs of examples are blocks: a line each, as they stand in the docstring."""
    paragraphs = inspect.cleandoc(doc).split("\n\n")
    return "\n\n".join(
        f"```console\n{inspect.cleandoc(text)}\n```" if text.lstrip().startswith("autointerp ") else text
        for text in paragraphs
    )


for _command in app.registered_commands:
    assert _command.callback is not None
    _command.help = _with_examples_apart(_command.callback.__doc__ or "")
