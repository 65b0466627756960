"""Labels that others made, or that an export wrote, read back: files -> rows of `label_edit`.

    labels.jsonl, .csv, .parquet    a table with feature_id and label; method, model and author where they are known
    a dataset folder                the same table, as `export --format hf` writes it
    .jsonl, .json (also .gz)        explanations as Neuronpedia hands them out, one a line or a list of them
    a batch folder                  v1/MODEL/SOURCE/explanations/*.jsonl.gz, as Neuronpedia and our export lay it out
    edits.jsonl                     what people said on the page of another run: labels and votes

Files come from outside: a line that cannot be read ends the reading, with its number, before anything is written.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autointerp import label_files
from autointerp.config import Settings
from autointerp.edits import Edit
from autointerp.errors import LabelsError, StoreError, nearest
from autointerp.export_neuronpedia import source_ids
from autointerp.label_files import Record
from autointerp.people import HUMAN, IMPORTED, Home, Taken, edit, of_edits, take_over, when
from autointerp.rows import LabelEdit, Stage
from autointerp.store import Store
from autointerp.tally import Bar, peak_memory_mb
from autointerp.text import printable

NEURONPEDIA = "neuronpedia"


class Places:
    """Which dictionary a file speaks of."""

    def __init__(self, sources: Mapping[str, str], dictionary: str | None = None) -> None:
        """
        sources     Neuronpedia's name of a dictionary (`12-my-set`) -> the dictionary
        dictionary  the one that is meant, where the user said so

        Raises LabelsError for a dictionary that the run does not have.
        """
        self.sources, self.dictionary, self.names = sources, dictionary, sorted(set(sources.values()))
        self.given = ""  # the source that `dictionary` stands for
        if dictionary is not None and dictionary not in self.names:
            raise LabelsError(f"no dictionary {dictionary!r}{self._known(dictionary)}")

    def of_source(self, source: str) -> str:
        """The dictionary of one of Neuronpedia's sources. Raises LabelsError where it cannot be told."""
        if self.dictionary is None:
            found = self.sources.get(source) or (source if source in self.names else None)
            if found is None:
                known = f"{source!r} is none of this run's dictionaries{self._known(source)}"
                raise LabelsError(f"{known}; name the one that it is with --dictionary")
            return found
        self.given = self.given or source
        if source != self.given:
            raise LabelsError(
                f"--dictionary names one dictionary, and the file is about {self.given!r} and {source!r}: "
                "import the files of one source at a time"
            )
        return self.dictionary

    def of_row(self, row: Record) -> str:
        """dictionary/index of a row of a table; the name that stands there gives way to the one that the user said."""
        text = row.get("feature_id")
        text = _text(row, "feature") if text in (None, "") else _text(row, "feature_id")
        name, _, index = text.rpartition("/")
        if not (index.isascii() and index.isdecimal()):
            raise LabelsError(f"expected a feature as dictionary/index, got {text[:80]!r}")
        if not name and self.dictionary is None and len(self.names) > 1:
            raise LabelsError(f"{text!r} is of one of {', '.join(self.names)}: name it with --dictionary")
        return f"{self.dictionary or name or self.names[0]}/{_plain(index)}"

    def _known(self, name: str) -> str:
        sources = ", ".join(f"{name} ({source})" for source, name in self.sources.items())
        return f"{nearest(name, [*self.sources, *self.names])}; the run has {sources}"


def read(path: Path, places: Places, bar: Bar) -> Iterator[LabelEdit]:
    """What a file or folder says of labels, in its order.

    Raises LabelsError naming the file and the line that cannot be read, or for a file that is none of ours.
    """
    for file in label_files.files(path):
        bar.start("import", total=None, unit="labels")
        try:
            for place, value in label_files.records(file):
                try:
                    yield _edit(label_files.record(value), places, file.name)
                except LabelsError as problem:
                    raise label_files.Broken(f"{place}: {problem}") from None
                bar.advance()
        except label_files.Broken as problem:
            raise LabelsError(f"{file}, {problem}") from None
        except OSError as problem:
            raise LabelsError(f"cannot read {file}: {problem.strerror or problem}") from None


def bring(
    store: Store, path: Path, bar: Bar, dictionary: str | None = None, max_words: int | None = None
) -> tuple[Taken, int]:
    """Take the labels of a file over into a run, for the next command that grades; also how many of the features that
    they are of are not selected, so that nothing is graded there.

    dictionary  the one that the file is about, where its own name does not say so
    max_words   longer labels are counted as too_long; None: explainer.max_words of the run

    Raises LabelsError for a file that cannot be read, StoreError for a run that has collected nothing.
    """
    runs = store.latest_runs()
    homes = [Home.of(store, run.collection_id) for run in runs]
    rows = [row for home in homes if (row := store.collection(home.collection_id))]
    places = Places(dict(zip(source_ids(rows), (home.dictionary for home in homes), strict=True)), dictionary)
    said = list(read(path, places, bar))
    settings = Settings.model_validate_json(runs[0].settings)
    taken = take_over(store, said, homes, max_words or settings.explainer.max_words, again=True)
    if taken.written:
        tally = taken.tally
        failed = json.dumps(tally.failed)
        store.add([Stage(runs[0].run_id, "import", tally.seconds, 0, tally.ok, failed, peak_memory_mb())])
    selected = {f"{run.dictionary}/{feature}" for run in runs for feature in run.features or []}
    return taken, len(taken.features - selected)


def as_json(taken: Taken, unselected: int) -> dict[str, Any]:
    """What became of what was read: new, known before, and what cannot be graded, by reason."""
    return {
        "new": taken.tally.ok, "known": taken.known, "refused": dict(taken.tally.failed), "votes": taken.votes,
        "labels": dict(taken.by_method), "features": len(taken.features), "features_not_selected": unselected,
    }  # fmt: skip


def lines(taken: Taken, unselected: int) -> list[str]:
    """The same for the terminal."""
    found = [taken.tally.line() if taken.tally.worked else "import: nothing new"]
    found += [f"  {n:,} labels of {printable(method)}" for method, n in taken.by_method.items()]
    found += [f"  {n:,} {what}" for n, what in ((taken.votes, "votes"), (taken.known, "known before")) if n]
    if unselected:
        found.append(
            f"  {unselected:,} of {len(taken.features):,} features are not selected: nothing is graded there until "
            "features.select names them"
        )
    elif taken.by_method:
        found.append("  `autointerp run` grades them")
    return found


# -- records -> what was said ------------------------------------------------------------------------------------------


def _edit(row: Record, places: Places, source: str) -> LabelEdit:
    """What one record says. Raises LabelsError for one that is neither of the three."""
    if "description" in row and "index" in row:
        return _of_neuronpedia(row, places, source)
    if "feature_id" not in row and "feature" not in row:
        raise LabelsError(f"expected feature_id and label, or index and description; got {', '.join(row)[:200]}")
    if row.get("kind") in ("label", "up", "down") and "at" in row:
        return _of_edit(row, places, source)
    return _of_table(row, places, source)


def _of_table(row: Record, places: Places, source: str) -> LabelEdit:
    """A row of an export, or of a table that somebody made: without a method it is a person's."""
    if "label" not in row:
        raise LabelsError(f"expected a column `label` beside the feature; got {', '.join(row)[:200]}")
    method = _method(_maybe(row, "method"))
    return edit(
        places.of_row(row), "label", _maybe(row, "label") or "", source, method, _maybe(row, "model"),
        _maybe(row, "author") or "", when(row.get("at")),
    )  # fmt: skip


def _of_edit(row: Record, places: Places, source: str) -> LabelEdit:
    """A line of another run's edits."""
    try:
        found = Edit(**{**row, "feature_id": places.of_row(row)})
    except (TypeError, StoreError) as problem:
        raise LabelsError(str(problem)) from None
    return of_edits([found], source)[0]


def _of_neuronpedia(row: Record, places: Places, source: str) -> LabelEdit:
    """An explanation in Neuronpedia's form. What our export wrote says in its notes who made the label."""
    index = _text(row, "index")
    if not (index.isascii() and index.isdecimal()):
        raise LabelsError(f"expected `index` to be the index of a feature, got {index[:80]!r}")
    dictionary = places.of_source(_text(row, "layer"))
    notes, label = _notes(row.get("notes")), _maybe(row, "description") or ""
    feature, model = f"{dictionary}/{_plain(index)}", _maybe(row, "explanationModelName")
    if notes:  # ours: who published it, and when, is not who made it
        author = _maybe(notes, "author") or ""
        return edit(feature, "label", label, source, _method(_maybe(notes, "method")), _maybe(notes, "model"), author)
    type_name = _maybe(row, "typeName")
    method = f"{IMPORTED}:{NEURONPEDIA}" + (f"/{type_name}" if type_name else "")
    return edit(
        feature, "label", label, source, HUMAN if type_name == HUMAN else method, model,
        _maybe(row, "authorId") or "", when(row.get("createdAt")),
    )  # fmt: skip


def _method(made: str | None) -> str:
    """What a method of our own is called where its label comes from outside: a person's stays a person's."""
    if made is None or made == HUMAN:
        return HUMAN
    return made if made.startswith(f"{IMPORTED}:") else f"{IMPORTED}:{made}"


def _notes(text: object) -> Record:
    """The notes that our export wrote; {} for anybody else's."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and str(found.get("tool", "")).startswith("autointerp ") else {}


def _plain(index: str) -> str:
    """Digits without zeros before them."""
    return index.lstrip("0") or "0"


def _text(row: Record, name: str) -> str:
    """A field that has to be there, as text: numbers are written out."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise LabelsError(f"expected `{name}` to be text or a whole number, got {str(value)[:60]!r}")
    return str(value)


def _maybe(row: Record, name: str) -> str | None:
    """A field that may be missing or empty. Raises LabelsError where it is something else than text."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise LabelsError(f"expected `{name}` to be text, got {str(value)[:60]!r}")
    return value or None
