"""The pages of a served run: overview, list, feature, text; and the one write, what somebody says of a label.

Pages work without a script: views are addresses, searches are forms. Writing alone needs one, since the token that the
guard asks for travels in a header. A page that waits for work, or for a run, is asked for again by its script.
"""

import json
from collections.abc import Awaitable, Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from autointerp import by_explainer, charts, edits, firing
from autointerp.edits import Edit
from autointerp.errors import AutointerpError, ConfigError, FeatureError, StoreBusy, StoreError, UserError
from autointerp.firing import Fired, TextReader
from autointerp.firing_shown import Shown, shown
from autointerp.likeness import Likeness
from autointerp.page import pieces
from autointerp.population import feature_index
from autointerp.report import Reading
from autointerp.said import Remarks, Said
from autointerp.serve_values import FILTERS, asked_of, feature_link, growing_of, link
from autointerp.shelf import Book, Shelf
from autointerp.show import KINDS, Found, visible
from autointerp.store_catalog import SORTS, UNJUDGED, View
from autointerp.tally import Bar
from autointerp.verdicts import MEANING, WORDS
from autointerp.working import Job, Loaded, Worker

TEMPLATES = Path(__file__).parent / "templates" / "serve"
CONTEXTS = 8  # passages per stratum of a feature's page
POINTS = 1500  # of the scatter; a larger dictionary is sampled
SOON_S = 1.0  # work that ends within it is in the answer; for longer work the page asks again
TEXTS = 16  # typed texts whose firings are kept
BODY = 20_000  # bytes of a write
NAME = 80  # characters of an author's name


class Site:
    """The pages of one run."""

    def __init__(self, shelf: Shelf, token: str) -> None:
        self.shelf, self.token = shelf, token
        self.remarks = Remarks(shelf.path.parent)
        self.likeness = Likeness(shelf.path.parent)
        self.worker: Worker[Any] = Worker(TEXTS)  # one for all that runs the subject
        self.loaded = Loaded()
        self.templates = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self.templates.filters |= FILTERS
        self.templates.globals |= {"meaning": MEANING, "kinds": KINDS, "link": link, "feature_link": feature_link}
        self.templates.globals |= {"explainers": by_explainer}

    # -- answering -----------------------------------------------------------------------------------------------------

    def answer(self, page: Callable[[Request], str]) -> Callable[[Request], Response]:
        """A page as an endpoint: what the reader can put right is one line under a status of its own."""

        def respond(request: Request) -> Response:
            try:
                return HTMLResponse(page(request))
            except UserError as problem:
                html = self.templates.get_template("message.html.j2").render(
                    line=one_line(problem), busy=isinstance(problem, StoreBusy)
                )
                return HTMLResponse(html, _status(problem))

        return respond

    def reading(self, page: Callable[[Request, Book], str]) -> Callable[[Request], Response]:
        """A page of the run as it is now, as an endpoint."""

        def opened(request: Request) -> str:
            with self.shelf.open() as book:
                return page(request, book)

        return self.answer(opened)

    def render(self, name: str, book: Book, **values: Any) -> str:
        run = book.readings[0].run
        return self.templates.get_template(f"{name}.html.j2").render(
            run=run, growing=growing_of(book), dictionaries=list(book.libraries), page=name, token=self.token, **values
        )

    def nowhere(self, request: Request) -> str:
        pages = "/, /features, /text, /attribute and /feature/<feature id>"
        raise FeatureError(f"no page at {request.url.path}: there are {pages}")

    # -- pages ---------------------------------------------------------------------------------------------------------

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

    def progress(self, request: Request, book: Book) -> str:
        """How far a run has come that is being written: what its pages ask for again and again."""
        return self.templates.get_template("growing.html.j2").render(growing=growing_of(book))

    def features(self, request: Request) -> str:
        """The list: the address is the view."""
        view = View.of(dict(request.query_params))
        job = self._compare(view, SOON_S)
        with self.shelf.open() as book:
            ready = not view.meant or book.catalog.near == view.meant  # another phrase may have come between
            found = book.catalog.page(view) if ready else None
            return self.render(
                "features", book, view=view, list=found, job=job and job.bar, words=[*WORDS, UNJUDGED],
                sorts=list(SORTS), hookpoints=list(book.catalog.hookpoints), categories=book.catalog.categories,
            )  # fmt: skip

    def feature(self, request: Request) -> str:
        """One feature, with the features before and after it in the view it was opened from."""
        view = View.of(dict(request.query_params))
        job = self._compare(view, SOON_S)
        with self.shelf.open() as book:
            return self._feature(request.path_params["feature_id"], book, View() if job is not None else view)

    def _feature(self, name: str, book: Book, view: View) -> str:
        library = book.library(name)
        found = library.look_up(name, CONTEXTS)
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
        said, unread = self._said(found)
        return self.render(
            "feature", book, f=found, l=found.chosen, view=view, before=before, after=after, contexts=contexts,
            near=[(n, ids[n.other], lines.get(ids[n.other])) for n in near], said=said, unread=unread,
            histogram=charts.strengths(found.histogram, found.max_activation), asked=asked_of(rows, found, book.store),
            longest=edits.LONGEST, longest_name=NAME,
        )  # fmt: skip

    def _said(self, found: Found) -> tuple[list[Said], str]:
        """What people said of a feature's label; or why that cannot be read, which must not hide the page."""
        try:
            return self.remarks.of(found.feature_id, found.chosen.label if found.chosen else None), ""
        except StoreError as problem:
            return [], one_line(problem)

    def _compare(self, view: View, wait_s: float) -> Job[NDArray[Any]] | None:
        """Makes a view by meaning ready to be shown; the job under way, if that takes longer."""
        if not view.meant:
            return None
        with self.shelf.open() as book:
            if book.catalog.near == view.meant:
                return None
            texts, stamp = book.catalog.texts(), book.stamp
        found = self.likeness.ask(view.meant, texts, stamp, wait_s)
        if isinstance(found, Job):
            return found
        with self.shelf.open() as book:
            if book.stamp == stamp:  # else the page asks again
                book.catalog.compare(view.meant, texts, found)
        return None

    # -- a text that is typed ------------------------------------------------------------------------------------------

    def text(self, request: Request) -> str:
        """Which features fire on a text."""
        text = request.query_params.get("text", "").replace("\r\n", "\n")
        found: Fired | Job[Fired] | None = None
        problem = ""
        try:
            if text:
                firing.check(text)
                found = self.worker.ask(*self._work(text), SOON_S)
        except AutointerpError as reason:
            problem = one_line(reason)
        with self.shelf.open() as book:
            return self.render(
                "text", book, text=text, problem=problem, longest=firing.LONGEST,
                job=found.bar if isinstance(found, Job) else None, subject=book.readings[0].collection["subject"],
                context=book.readings[0].settings.collect.context_tokens,
                loaded=self.loaded.has(_wanted(book.readings)),
                shown=_shown(found, book) if isinstance(found, Fired) else None,
            )  # fmt: skip

    def _work(self, text: str) -> tuple[object, Callable[[Bar], Fired]]:
        """(key, work) of reading a text with what the run was collected with."""
        with self.shelf.open() as book:
            readings = book.readings
        wanted = _wanted(readings)

        def read(bar: Bar) -> Fired:
            reader = self.loaded.get(wanted, lambda: TextReader(readings), bar)
            bar.start("reading the text", total=None, unit="")
            return reader.read(text)

        return (wanted, text), read

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, taken: Callable[[bytes], None]) -> Callable[[Request], Awaitable[Response]]:
        """A write as an endpoint: nothing comes back, or one line about what is wrong."""

        async def respond(request: Request) -> Response:
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY:
                    return PlainTextResponse(f"a write has at most {BODY:,} bytes\n", 413)
            try:
                await run_in_threadpool(taken, body)
            except UserError as problem:
                return PlainTextResponse(one_line(problem) + "\n", _status(problem))
            return Response(status_code=204)

        return respond

    def say(self, body: bytes) -> None:
        """A label or a vote of the reader's, kept beside the run. Raises a UserError for what cannot be kept."""
        try:
            given = json.loads(body)
            feature, kind, label, author = (str(given[key]) for key in ("feature_id", "kind", "label", "author"))
        except (ValueError, TypeError, KeyError):
            raise ConfigError("expected JSON with feature_id, kind, label and author") from None
        if len(author) > NAME:
            raise ConfigError(f"a name has at most {NAME} characters")
        with self.shelf.open() as book:
            row = book.library(feature).reading.collection
            index = feature_index(feature, row["dictionary"], row["width"])
        if kind == "label":  # a vote is for a label as it is
            label = " ".join(label.split())
        try:
            edit = Edit(f"{row['dictionary']}/{index}", kind, label, " ".join(author.split()))  # type: ignore[arg-type]
        except StoreError as problem:
            raise ConfigError(str(problem)) from None
        edits.append(self.shelf.path.parent, [edit])


def _status(problem: UserError) -> int:
    if isinstance(problem, FeatureError):
        return 404
    return 400 if isinstance(problem, ConfigError) else 503


def one_line(problem: AutointerpError) -> str:
    """What is the matter, in one line that is safe to show."""
    return visible(" ".join(str(problem).split()))


def _wanted(readings: Sequence[Reading]) -> Hashable:
    """What a reader of texts was loaded for."""
    return "firing", tuple(reading.run.collection_id for reading in readings)


def _shown(fired: Fired, book: Book) -> Shown:
    ids = [f"{name}/{spikes.feature}" for name, found in fired.spikes.items() for spikes in found]
    lines = {key: line for key, line in book.catalog.labels(ids).items() if line.label is not None}
    return shown(fired, lines, book.largest(ids))
