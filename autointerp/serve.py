"""A run as pages on this machine: overview, list, feature. Starlette serves them, jinja2 writes them, escaped.

Every page works without a script: views are addresses, the search is a form. Requests share the run in memory (`shelf`)
and pass the guard (`guard`), which also forbids all that is inline or from elsewhere; so strengths are classes of the
style sheet, and bars and charts are SVG with attributes.
"""

import json
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from autointerp import charts
from autointerp.errors import ConfigError, FeatureError, UserError
from autointerp.guard import App, guarded
from autointerp.page import figure, pieces
from autointerp.report import fit_line, scorer_line
from autointerp.rows import Call, Explanation
from autointerp.shelf import Book, Shelf
from autointerp.show import KINDS, Found, visible
from autointerp.store import Store
from autointerp.store_catalog import SORTS, UNJUDGED, View
from autointerp.text import printable
from autointerp.verdicts import MEANING, WORDS

HERE = Path(__file__).parent
CONTEXTS = 8  # passages per stratum of a feature's page
POINTS = 1500  # of the scatter; a larger dictionary is sampled
AXIS = (-0.2, 1.0)  # ends of the interval bars


def application(folder: Path | Shelf, port: int) -> App:
    """The guarded application of the run in a folder, or on a shelf that has read it, to be reached under this port."""
    site = Site(folder if isinstance(folder, Shelf) else Shelf(folder))
    routes = [
        Route("/", site.answer(site.overview)),
        Route("/features", site.answer(site.features)),
        Route("/feature/{feature_id:path}", site.answer(site.feature)),
        Mount("/static", StaticFiles(directory=HERE / "static")),
        Route("/{rest:path}", site.answer(site.nowhere)),
    ]
    return guarded(Starlette(routes=routes), port, secrets.token_urlsafe(32))


class Site:
    """The pages of one run."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.templates = Environment(
            loader=FileSystemLoader(HERE / "templates" / "serve"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self.templates.filters |= {
            "number": figure, "visible": visible, "percent": _percent, "at": _at, "duration": _duration,
            "fit_line": fit_line, "scorer_line": scorer_line, "words": lambda text: text.replace("_", " "),
            "lines_visible": printable, "combine": lambda first, second: {**first, **second},
        }  # fmt: skip
        self.templates.globals |= {"meaning": MEANING, "kinds": KINDS, "link": _link, "feature_link": _feature_link}

    def answer(self, page: Callable[[Request, Book], str]) -> Callable[[Request], Response]:
        """A page as an endpoint: what the reader can put right is one line under a status of its own."""

        def respond(request: Request) -> Response:
            try:
                with self.shelf.open() as book:
                    return HTMLResponse(page(request, book))
            except UserError as problem:
                status = 404 if isinstance(problem, FeatureError) else 400 if isinstance(problem, ConfigError) else 503
                line = visible(" ".join(str(problem).split()))
                return HTMLResponse(self.templates.get_template("message.html.j2").render(line=line), status)

        return respond

    def render(self, name: str, book: Book, **values: Any) -> str:
        run = book.readings[0].run
        return self.templates.get_template(f"{name}.html.j2").render(
            run=run, growing=book.growing, dictionaries=list(book.libraries), page=name, **values
        )

    def nowhere(self, request: Request, book: Book) -> str:
        raise FeatureError(f"no page at {request.url.path}: there are /, /features and /feature/<feature id>")

    def overview(self, request: Request, book: Book) -> str:
        """What was run and what came of it, for one dictionary."""
        reading = book.reading(request.query_params.get("dictionary", ""))
        dictionary = reading.collection["dictionary"]
        lines = book.catalog.sample(book.readings.index(reading), POINTS)
        reasons: dict[str, int] = {}
        for label in reading.labels:
            if label.r_rank is None:
                reasons[label.reason or "unknown"] = reasons.get(label.reason or "unknown", 0) + 1
        return self.render(
            "overview", book, r=reading, s=reading.summary, c=reading.collection, dictionary=dictionary,
            reasons=reasons, grades=charts.grades(reading.labels), scatter=charts.scatter(lines), n_points=len(lines),
            only={} if len(book.readings) == 1 else {"dictionary": dictionary},
        )  # fmt: skip

    def features(self, request: Request, book: Book) -> str:
        """The list: the address is the view."""
        view = View.of(dict(request.query_params))
        return self.render(
            "features", book, view=view, list=book.catalog.page(view), words=[*WORDS, UNJUDGED], sorts=list(SORTS)
        )

    def feature(self, request: Request, book: Book) -> str:
        """One feature, with the features before and after it in the view it was opened from."""
        name = request.path_params["feature_id"]
        library = book.library(name)
        found = library.look_up(name, CONTEXTS)
        view = View.of(dict(request.query_params))
        before, after = book.catalog.around(view, found.feature_id)
        reading = library.reading
        dictionary = reading.collection["dictionary"]
        near = book.store.neighbours(reading.run.collection_id, found.feature)
        ids = {n.other: f"{dictionary}/{n.other}" for n in near}
        lines = book.catalog.labels(list(ids.values()))
        rows = book.store.explanations(reading.run.collection_id, reading.run.explainer_ids, [found.feature])
        contexts = {
            kind: [(context, pieces(context, found)) for context in contexts]
            for kind, contexts in found.contexts.items() if contexts
        }  # fmt: skip
        return self.render(
            "feature", book, f=found, l=found.chosen, view=view, before=before, after=after, contexts=contexts,
            near=[(n, ids[n.other], lines.get(ids[n.other])) for n in near],
            histogram=charts.strengths(found.histogram, found.max_activation), asked=_asked(rows, found, book.store),
        )  # fmt: skip


def _asked(rows: list[Explanation], found: Found, store: Store) -> list[tuple[str | None, Call, list[tuple[str, str]]]]:
    """(label, call, messages) for every candidate that a model was asked for; the chosen one first."""
    chosen = found.chosen.explanation_id if found.chosen else None
    rows = sorted((row for row in rows if row.call_id), key=lambda row: row.explanation_id != chosen)
    calls = store.calls([row.call_id for row in rows if row.call_id])
    return [(row.label, calls[row.call_id], _messages(calls[row.call_id].request))
            for row in rows if row.call_id in calls]  # fmt: skip


def _messages(request: str) -> list[tuple[str, str]]:
    """(role, text) of a recorded request."""
    found = json.loads(request)
    messages = found.get("messages", []) if isinstance(found, dict) else found
    texts = ((m.get("role", ""), m.get("content", "")) for m in messages if isinstance(m, dict))
    return [(str(role), text if isinstance(text, str) else json.dumps(text, ensure_ascii=False))
            for role, text in texts]  # fmt: skip


def _link(path: str, values: dict[str, str]) -> str:
    """An address on this server."""
    return quote(path) + (f"?{urlencode(values)}" if values else "")


def _feature_link(feature_id: str, view: View | None = None) -> str:
    """The address of a feature's page, which knows the view it was opened from."""
    return _link(f"/feature/{feature_id}", view.kept() if view is not None else {})


def _at(value: float | None) -> str:
    """Where a grade lies on an interval bar 100 wide."""
    low, high = AXIS
    return f"{100 * (min(max(low if value is None else value, low), high) - low) / (high - low):.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# -- serving -----------------------------------------------------------------------------------------------------------


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
        with shelf.open() as book:
            n = sum(len(reading.labels) for reading in book.readings)
            state = ", still being written" if book.growing else ""
            say(f"{folder}: {n:,} features{state}\nhttp://127.0.0.1:{port}/  (Ctrl-C ends it)")
        settings = uvicorn.Config(
            application(shelf, port), log_level="warning", lifespan="off", server_header=False, ws="none"
        )
        uvicorn.Server(settings).run(sockets=[listener])
