"""The page that says what made the subject predict a token: the address is the view, the work is done beside it.

Two pieces of work: contributions, which take a second or two, and their check against ablation, a pass over the text
for each firing. The check is asked for separately, and the page shows the contributions meanwhile.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from starlette.requests import Request

from autointerp import firing
from autointerp.attributed import CHECKED
from autointerp.attribution import Attributor, Explained
from autointerp.attribution_shown import Shown, features_of, shown
from autointerp.errors import AutointerpError, ConfigError
from autointerp.report import Reading
from autointerp.serve_pages import SOON_S, Site, one_line
from autointerp.serve_values import link
from autointerp.shelf import Book
from autointerp.store_attribution import heaviest
from autointerp.tally import Bar
from autointerp.working import Job

LONGEST_TARGET = 100  # characters
HEAVIEST = 5  # tokens that stand for a feature without a label
GLANCE_S = 0.2  # waited for a check that is under way: what is known is shown meanwhile


@dataclass(frozen=True)
class Asked:
    """What is asked for: the fields are the keys of the address, "" the default."""

    text: str = ""
    target: str = ""  # "": the subject's own likeliest token
    position: str = ""  # token after which the target stands; "": the last
    dictionary: str = ""
    check: str = ""  # "1": against ablation
    at: str = ""  # token whose features are listed

    @classmethod
    def of(cls, found: Mapping[str, str]) -> "Asked":
        """What an address asks for; keys that are not ours are left out."""
        # A form sends line ends as \r\n; an empty target or position is one that was not filled in.
        return cls(**{f.name: found[f.name].replace("\r\n", "\n") for f in fields(cls) if found.get(f.name)})

    def to(self, part: str = "", **changed: str) -> str:
        """The address of this with some keys changed, at a part of the page."""
        values = {name: value for name, value in (asdict(self) | changed).items() if value}
        return link("/attribute", values) + (f"#{part}" if part else "")

    @property
    def kept(self) -> dict[str, str]:
        """What stays in the address when another token is chosen."""
        return {name: value for name, value in asdict(self).items() if value and name != "at"}

    @property
    def place(self) -> int | None:
        """The position, None for the last. Raises ConfigError."""
        return _whole("position", self.position)

    def chosen(self, n_tokens: int) -> int | None:
        """The token whose features are listed, None for all. Raises ConfigError."""
        at = _whole("token", self.at)
        if at is not None and at >= n_tokens:
            raise ConfigError(f"token {at}: the text has tokens 0 to {n_tokens - 1}")
        return at


class Known(NamedTuple):
    """What is known of an answer so far."""

    found: Explained | None = None
    job: Job[Explained] | None = None  # contributions are under way
    checking: Job[Explained] | None = None
    problem: str = ""
    unchecked: str = ""  # why there is no check, though it was asked for


class AttributionPage:
    """The page, for a site."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def page(self, request: Request) -> str:
        """What fires on a text, and what it adds to the logit of the next token."""
        asked = Asked.of(request.query_params)
        with self.site.shelf.open() as book:
            reading = book.reading(asked.dictionary)
        known, seen, tokens, problem = self._known(asked, reading), None, dict[int, list[str]](), ""
        with self.site.shelf.open() as book:
            try:
                if known.found is not None:
                    seen = _shown(known.found, asked, book)
                    tokens = _tokens(seen, reading, book)
            except ConfigError as reason:
                problem = one_line(reason)
            return self.site.render(
                "attribute", book, asked=asked, problem=known.problem or problem, job=known.job and known.job.bar,
                shown=seen, tokens=tokens, checking=known.checking and known.checking.bar, unchecked=known.unchecked,
                reading=reading, longest=firing.LONGEST, longest_target=LONGEST_TARGET, checked=CHECKED,
                loaded=self.site.loaded.has(_wanted(reading)),
            )  # fmt: skip

    def _known(self, asked: Asked, reading: Reading) -> Known:
        if not asked.text:
            return Known()
        try:
            firing.check(asked.text)
            if len(asked.target) > LONGEST_TARGET:
                raise ConfigError(f"the target has {len(asked.target):,} characters: expected the text of one token")
            found = self.site.worker.ask(*self._work(asked, reading, 0), SOON_S)
        except AutointerpError as reason:
            return Known(problem=one_line(reason))
        if isinstance(found, Job):
            return Known(job=found)
        if not asked.check or not found.found.pairs:
            return Known(found)
        try:
            better = self.site.worker.ask(*self._work(asked, reading, CHECKED), GLANCE_S)
        except AutointerpError as reason:
            return Known(found, unchecked=one_line(reason))
        return Known(found, checking=better) if isinstance(better, Job) else Known(better)

    def _work(self, asked: Asked, reading: Reading, checked: int) -> tuple[object, Callable[[Bar], Explained]]:
        """(key, work) of an attribution with so many firings ablated. Raises ConfigError for a position."""
        wanted, position = _wanted(reading), asked.place

        def explain(bar: Bar) -> Explained:
            attributor = self.site.loaded.get(wanted, lambda: Attributor(reading), bar)
            bar.start("attributing", total=None, unit="")
            return attributor.explain(asked.text, bar, asked.target or None, position, checked)

        return (wanted, asked.text, asked.target, position, checked), explain


def _wanted(reading: Reading) -> tuple[str, str]:
    """What an attributor was loaded for."""
    return "attribution", reading.run.collection_id


def _shown(explained: Explained, asked: Asked, book: Book) -> Shown:
    """Raises ConfigError for a chosen token that is not there."""
    at = asked.chosen(len(explained.found.tokens))
    ids = [f"{explained.dictionary}/{feature}" for feature in features_of(explained.found)]
    lines = {key: line for key, line in book.catalog.labels(ids).items() if line.label is not None}
    return shown(explained, lines, at)


def _tokens(seen: Shown, reading: Reading, book: Book) -> dict[int, list[str]]:
    """Heaviest tokens of the listed features that have no label, by feature."""
    pieces = book.libraries[reading.run.dictionary].texts.pieces
    wanted = sorted({row.pair.feature for row in seen.rows if row.line is None})
    found = heaviest(book.store, reading.run.collection_id, wanted, HEAVIEST)
    return {feature: [pieces.get(i, b"").decode("utf-8", "replace") for i in ids] for feature, ids in found.items()}


def _whole(name: str, text: str) -> int | None:
    if not text.strip():
        return None
    if not (text.strip().isascii() and text.strip().isdigit() and len(text) < 10):
        raise ConfigError(f"{name}: expected the number of a token, from 0, got {text[:40]!r}")
    return int(text)
