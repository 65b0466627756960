"""What people say of labels, taken into the run: lines and files -> label_edit -> explanation.

A label from outside becomes a candidate of its feature, with its author and time, and is graded like any other: drawn,
simulated, scored, and chosen where it does best on select. A vote is kept and counted; it chooses nothing.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from autointerp import store_people
from autointerp.config import fingerprint
from autointerp.edits import Edit, Votes, counted
from autointerp.errors import StoreError
from autointerp.rows import Explanation, LabelEdit
from autointerp.store import Store
from autointerp.tally import Tally

HUMAN = "human"  # the method of a label that a person wrote
IMPORTED = "imported"  # prefix of the methods of labels that another tool made


@dataclass(frozen=True)
class Home:
    """A collection in which labels can be graded."""

    dictionary: str
    collection_id: str
    width: int
    encoded: frozenset[int] | None  # features that were collected; None for all

    @classmethod
    def of(cls, store: Store, collection_id: str) -> "Home":
        """The collection of this id. Raises StoreError where it has not been collected."""
        row = store.collection(collection_id)
        if row is None:
            raise StoreError("nothing has been collected for these settings yet: `autointerp collect` comes first")
        encoded = store.encoded_features(collection_id)
        return cls(row["dictionary"], collection_id, row["width"], None if encoded is None else frozenset(encoded))

    def why_not(self, feature: int) -> str | None:
        """Why nothing can be graded of a feature here; None where it can."""
        if feature >= self.width:
            return "unknown_feature"
        return "not_collected" if self.encoded is not None and feature not in self.encoded else None


@dataclass
class Taken:
    """What was taken over: one unit is one label or vote."""

    tally: Tally = field(default_factory=lambda: Tally("import"))  # ok: what is new; failed: what cannot be graded
    known: int = 0  # what had been said before
    votes: int = 0  # of what is new
    written: int = 0  # rows that the store did not have
    by_method: Counter[str] = field(default_factory=Counter)  # new labels
    features: set[str] = field(default_factory=set)  # ids of the features that the labels are of, known ones included

    def count(self, e: LabelEdit) -> None:
        """Count one that is new, or judged anew."""
        if e.reason is not None:
            self.tally.failed[e.reason] += 1
            return
        self.tally.ok += 1
        if e.kind == "label":
            self.by_method[e.method] += 1
            self.features.add(e.feature_id)
        else:
            self.votes += 1


def edit(
    feature_id: str, kind: str, label: str, source: str, method: str = HUMAN, model: str | None = None,
    author: str = "", made_at: datetime | None = None,
) -> LabelEdit:  # fmt: skip
    """One thing that somebody said, as a row; its text is one line that can be printed."""
    label, method, author = cleaned(label), cleaned(method), cleaned(author)
    said = [feature_id, kind, label, method, model, author, made_at]
    key = fingerprint([cleaned(str(part)) for part in said])
    return LabelEdit(key, feature_id, kind, label, method, model, author, made_at, source, None)  # type: ignore[arg-type]


def cleaned(text: str) -> str:
    """Text in one line: what cannot be printed (line ends, controls, halves of surrogates) becomes a space."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def when(text: object) -> datetime | None:
    """An ISO time in UTC, without a zone as the database keeps it; None for anything else."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
        return found if found is None or found.tzinfo is None else found.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None


def of_edits(found: Iterable[Edit], source: str) -> list[LabelEdit]:
    """The lines of a file of edits as rows."""
    return [edit(e.feature_id, e.kind, e.label, source, author=e.author, made_at=when(e.at)) for e in found]


def take_over(
    store: Store, said: Sequence[LabelEdit], homes: Sequence[Home], max_words: int, again: bool = False
) -> Taken:
    """Add what is new to `label_edit`, and what can be graded to the candidates of each collection.

    again  judge anew what could not be graded before (the limit of words may have been raised)
    """
    started, taken = time.perf_counter(), Taken()
    places = {home.dictionary: home for home in homes}
    known = store_people.known(store, [e.edit_id for e in said])
    new: dict[str, LabelEdit] = {}
    for e in said:
        if e.edit_id in new or (e.edit_id in known and (known[e.edit_id] is None or not again)):
            taken.known += 1
            reason = new[e.edit_id].reason if e.edit_id in new else known[e.edit_id]
            taken.features |= {e.feature_id} if e.kind == "label" and reason is None else set()
        else:
            new[e.edit_id] = replace(e, reason=_why_not(e, places, max_words))
            taken.count(new[e.edit_id])
    written = [e for e in new.values() if e.edit_id not in known or known[e.edit_id] != e.reason]
    with store.transaction():
        store_people.forget(store, [e.edit_id for e in written if e.edit_id in known])
        store.add(written)
        for home in homes:
            store.add(list(_candidates(store, home)))
    taken.written, taken.tally.seconds = len(written), time.perf_counter() - started
    return taken


def _why_not(e: LabelEdit, places: dict[str, Home], max_words: int) -> str | None:
    """Why an edit cannot be graded; None where it can."""
    dictionary, _, index = e.feature_id.rpartition("/")
    if dictionary not in places:
        return "unknown_dictionary"
    if not e.label:
        return "empty"
    if e.kind == "label" and len(e.label.split()) > max_words:
        return "too_long"
    return "unknown_feature" if len(index) > 9 else places[dictionary].why_not(int(index))


def _candidates(store: Store, home: Home) -> Iterator[Explanation]:
    """Explanations that a collection lacks, of the labels that there are for its dictionary."""
    found = store_people.explained(store, home.collection_id)
    there, count = {e.explanation_id for e in found}, Counter((e.explainer_id, e.feature) for e in found)
    for e in store_people.labels(store, home.dictionary):
        feature = int(e.feature_id.rpartition("/")[2])
        explainer = fingerprint([e.method, e.model])
        key = fingerprint([home.collection_id, feature, explainer, e.label])
        if key in there:
            continue
        reason = home.why_not(feature)  # another collection of the dictionary may hold fewer features
        yield Explanation(
            key, home.collection_id, feature, explainer, e.method, e.model, count[explainer, feature],
            "skipped" if reason else "ok", None if reason else e.label, reason, None,
            author=e.author, made_at=e.made_at,
        )  # fmt: skip
        there.add(key)
        count[explainer, feature] += 1


def votes(store: Store, dictionary: str) -> dict[tuple[int, str], Votes]:
    """(feature, label) -> its votes, of one dictionary; `edits.counted` says which count."""
    found = counted(store_people.votes(store, dictionary))
    return {(int(feature_id.rpartition("/")[2]), label): found_ for (feature_id, label), found_ in found.items()}
