"""What people say of labels: a label of their own, or a vote, one JSON line each in `edits.jsonl` of the run's folder.

The file is only ever appended to, a line at a time under a lock, so that a page and a terminal can both write it. It
is kept apart from the database, which a run may be writing at the same time.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

from autointerp.errors import StoreError

FILE = "edits.jsonl"
LONGEST = 2000  # characters of a label

Kind = Literal["label", "up", "down"]


@dataclass(frozen=True)
class Edit:
    """One thing that somebody said of one feature's label."""

    feature_id: str  # dictionary/index
    kind: Kind  # label: a label of theirs; up, down: a vote for or against one that is there
    label: str  # the label's text
    author: str = ""  # whoever they say they are; may be empty
    at: str = ""  # ISO time (UTC); empty: now, when it is appended

    def __post_init__(self) -> None:
        texts = (self.feature_id, self.kind, self.label, self.author, self.at)
        if not all(isinstance(text, str) for text in texts):
            raise StoreError("an edit is made of strings: feature_id, kind, label, author, at")
        dictionary, _, index = self.feature_id.rpartition("/")
        if not dictionary or not (index.isascii() and index.isdecimal()):
            raise StoreError(f"an edit names its feature as dictionary/index, not {self.feature_id[:80]!r}")
        if self.kind not in get_args(Kind):
            raise StoreError(f"an edit is one of {', '.join(get_args(Kind))}, not {self.kind[:80]!r}")
        if not self.label.strip() or len(self.label) > LONGEST:
            raise StoreError(f"an edit's label has 1 to {LONGEST} characters; this one has {len(self.label.strip())}")


class Votes(NamedTuple):
    """Votes on one label."""

    up: int = 0
    down: int = 0


class Vote(Protocol):
    """What has been said of a feature's label, by a line of the file or by a row of `label_edit`."""

    @property
    def feature_id(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def label(self) -> str: ...
    @property
    def author(self) -> str: ...


def counted(said: Iterable[Vote]) -> dict[tuple[str, str], Votes]:
    """(feature id, label) -> its votes. Of several by one author, oldest first, the last counts; whoever gives no name
    is one author, because they are mostly the one reader of a page on their own machine."""
    last = {(e.feature_id, e.label, e.author): e.kind for e in said if e.kind != "label"}
    counts = Counter((feature_id, label, kind) for (feature_id, label, _), kind in last.items())
    return {
        (feature_id, label): Votes(counts[feature_id, label, "up"], counts[feature_id, label, "down"])
        for feature_id, label, _ in last
    }


def append(folder: Path, edits: Iterable[Edit]) -> int:
    """Add edits to the run's file, all or none of them; returns how many. Raises StoreError where that fails."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [json.dumps(asdict(edit) | {"at": edit.at or now}) + "\n" for edit in edits]
    path = folder / FILE
    try:
        with path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
            before = os.fstat(file.fileno()).st_size
            try:
                rest = "".join(lines).encode()
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), before)  # a full disk leaves no half line
                raise
    except OSError as problem:
        raise StoreError(f"cannot write {path}: {problem.strerror or problem}") from None
    return len(lines)


def read(folder: Path) -> list[Edit]:
    """Every edit of the run, oldest first; [] where there is none. Raises StoreError naming a line that is broken."""
    path = folder / FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise StoreError(f"cannot read {path}: {problem.strerror or problem}") from None
    return [_edit(line, path, n) for n, line in enumerate(lines, start=1) if line.strip()]


def _edit(line: bytes, path: Path, number: int) -> Edit:
    try:
        found: Any = json.loads(line)
        return Edit(**found)
    except (ValueError, TypeError, StoreError) as problem:
        raise StoreError(f"{path}, line {number}: not an edit ({problem}); mend or delete the line") from None
