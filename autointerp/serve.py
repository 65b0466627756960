"""A run as pages on this machine: the application that starlette serves, behind the guard, and its socket.

Requests share the run in memory (`shelf`) and pass the guard (`guard`), which also forbids all that is inline or from
elsewhere; so strengths are classes of the style sheet, and bars and charts are SVG with attributes. What the pages show
is in `serve_pages`.
"""

import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from autointerp.errors import ConfigError, StoreBusy
from autointerp.guard import App, guarded
from autointerp.serve_attribution import AttributionPage
from autointerp.serve_pages import Site
from autointerp.shelf import Shelf

STATIC = Path(__file__).parent / "static"
WORKS = ("/text", "/attribute")  # where a read has the subject run


def application(folder: Path | Shelf, port: int) -> App:
    """The guarded application of the run in a folder, or on a shelf that has read it, to be reached under this port."""
    token = secrets.token_urlsafe(32)
    site = Site(folder if isinstance(folder, Shelf) else Shelf(folder), token)
    routes = [
        Route("/", site.reading(site.overview)),
        Route("/features", site.answer(site.features)),
        Route("/feature/{feature_id:path}", site.answer(site.feature)),
        Route("/text", site.answer(site.text)),
        Route("/attribute", site.answer(AttributionPage(site).page)),
        Route("/progress", site.reading(site.progress)),
        Route("/say", site.write(site.say), methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/{rest:path}", site.answer(site.nowhere)),
    ]
    return guarded(Starlette(routes=routes), port, token, WORKS)


def bound(port: int) -> socket.socket:
    """A listening socket on loopback; 0 takes a free port. Raises ConfigError where the port is taken or not ours."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as problem:
        listener.close()
        reason = (problem.strerror or str(problem)).lower()
        raise ConfigError(
            f"cannot listen on 127.0.0.1:{port}: {reason}; choose another port, or 0 for any: --port 0"
        ) from None
    return listener


def serve(folder: Path, port: int, say: Callable[[str], None]) -> None:
    """Answer until interrupted. Raises before that where the port is taken, or there is no run to show."""
    import uvicorn

    with bound(port) as listener:
        port = listener.getsockname()[1]
        shelf = Shelf(folder)
        say(f"{folder}: {_state(shelf)}\nhttp://127.0.0.1:{port}/  (Ctrl-C ends it)")
        settings = uvicorn.Config(
            application(shelf, port), log_level="warning", lifespan="off", server_header=False, ws="none"
        )
        uvicorn.Server(settings).run(sockets=[listener])


def _state(shelf: Shelf) -> str:
    """What there is to be shown, in a few words. Raises StoreError where there is nothing."""
    try:
        with shelf.open() as book:
            n = sum(len(reading.labels) for reading in book.readings)
            return f"{n:,} features{', still being written' if book.growing else ''}"
    except StoreBusy:
        return "a run is writing it, and has published nothing yet"
