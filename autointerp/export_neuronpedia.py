"""Labels in Neuronpedia's batch layout: gzipped JSON lines under v1/MODEL/LAYER-SET, as its importer reads them.

Its importer takes the columns from a file's first line, refuses NaN, and shows tokens one by one: here every line of a
kind has the same keys, a number that is none is null, no token is empty and none holds a zero byte. It reads no
scores, so those of a label stand in its `notes` too. Ids are hashes: what is exported again is not imported twice.
"""

import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from autointerp.export_contexts import Contexts, Kept, distinct, write_folder
from autointerp.report import Label, Reading
from autointerp.rows import Score
from autointerp.store import Store
from autointerp.tally import Bar

BATCH = 1024  # features a file, as in Neuronpedia's own exports; it sees the first 1000 files of a folder
SILENT = 5  # records without activation a feature: its scorers refuse a feature with fewer
INTERVALS = 5  # equal parts of 0..maximum that sampled passages are shown in
CREATOR = "clkht01d40000jv08hvalcvly"  # the user that a new Neuronpedia database is seeded with
EMPTY = "\u2400"  # stands for a token without text of its own: part of a character, or a special one
KINDS = ("features", "activations", "explanations", "scores")
TYPES = {"token-act": "oai_token-act-pair", "max-act-logits": "np_max-act-logits", "human": "human"}
HISTOGRAM_FIRST, HISTOGRAM_STEP = -8.0, 0.5  # log2 of activation at the first bin's lower end, and a bin's width


def write(readings: Sequence[Reading], store: Store, path: Path, bar: Bar) -> Path:
    """Write every dictionary's features, activations, explanations and scores; returns the folder.

    Raises StoreError where it cannot be written.
    """

    def fill(folder: Path) -> None:
        ids = source_ids([reading.collection for reading in readings])
        for reading, name in zip(readings, ids, strict=True):
            source = Source(reading, store, name)
            _write(source, store, folder / "v1" / source.model / source.layer, bar)

    return write_folder(path, fill)


class Source:
    """What all records of one dictionary share; `name` is Neuronpedia's name of it."""

    def __init__(self, reading: Reading, store: Store, name: str) -> None:
        self.reading, self.layer, self.set = reading, name, name.partition("-")[2]
        self.model = re.sub(r"[^a-z0-9._-]+", "-", reading.collection["subject"].rstrip("/").rpartition("/")[2].lower())
        ended = [row["ended_at"] for row in store.stages(reading.run.run_id)]
        when = max(ended) if ended else datetime.now(UTC)
        self.created = when.isoformat(timespec="milliseconds").partition("+")[0] + "Z"

    def of(self, feature: int) -> dict[str, str]:
        """The three fields by which every record names its feature."""
        return {"modelId": self.model, "layer": self.layer, "index": str(feature)}


def source_ids(collections: Sequence[Mapping[str, Any]]) -> list[str]:
    """What Neuronpedia calls the dictionaries of these collections: layer and set, `12-my-set`."""
    sets = distinct([set_name(row["dictionary"]) for row in collections])
    layers = [re.search(r"\d+", row["hookpoint"]) for row in collections]
    return [f"{layer[0] if layer else 'e'}-{name}" for layer, name in zip(layers, sets, strict=True)]


def set_name(dictionary: str) -> str:
    """A dictionary's name as Neuronpedia allows one: lower case, digits and single hyphens, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", dictionary.lower()).strip("-")
    return plain if plain[:1].isalpha() else f"set-{plain}".rstrip("-")


def _write(source: Source, store: Store, folder: Path, bar: Bar) -> None:
    reading = source.reading
    bar.start("export", total=len(reading.labels), unit="features")
    largest = store.features(reading.run.collection_id)["max"].max(axis=0)
    scores: dict[str, list[Score]] = {}
    for score in [*store.scores(reading.run, "score"), *store.judged(reading.run, "score")]:
        scores.setdefault(score.explanation_id, []).append(score)
    contexts = Contexts(reading, store)
    features = (pair for block in contexts.blocks() for pair in block)
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(features):
        with ExitStack() as stack:
            files = {kind: stack.enter_context(_lines(folder / kind / f"batch-{number}.jsonl.gz")) for kind in KINDS}
            for label, kept in chain([first], islice(features, BATCH - 1)):
                histogram = store.histogram(reading.run.collection_id, label.feature)
                silent = contexts.silent(label.feature, SILENT)
                _put(files["features"], [feature(source, label, float(largest[label.feature]), histogram)])
                _put(files["activations"], activations(source, label, kept, silent))
                _put(files["explanations"], explanation(source, label))
                _put(files["scores"], score_rows(source, scores.get(label.explanation_id or "", [])))
                bar.advance()


def feature(source: Source, label: Label, largest: float, histogram: Sequence[int]) -> dict[str, Any]:
    """The record of one feature. Its histogram's bins are half octaves; their heights stand at their centres."""
    last = max((i for i, n in enumerate(histogram) if n), default=-1)
    first = next((i for i, n in enumerate(histogram) if n), 0)
    bins = range(first, last + 1)
    return source.of(label.feature) | {
        "sourceSetName": source.set, "creatorId": CREATOR, "createdAt": source.created,
        "maxActApprox": largest, "frac_nonzero": label.density,
        "freq_hist_data_bar_heights": [float(histogram[i]) for i in bins],
        "freq_hist_data_bar_values": [2.0 ** (HISTOGRAM_FIRST + HISTOGRAM_STEP * (i + 0.5)) for i in bins],
    }  # fmt: skip


def activations(source: Source, label: Label, kept: Sequence[Kept], silent: Sequence[Kept]) -> Iterator[dict[str, Any]]:
    """Records of the strongest passages (of the explain split), of a uniform sample (of the score split) by interval,
    and of passages on which the feature is silent."""
    top = [context for context in kept if (context.split, context.why) == ("explain", "top")]
    sample = [context for context in kept if (context.split, context.why) == ("score", "sample")]
    largest = max((max(context.activations) for context in [*top, *sample]), default=0.0)
    for context in top:
        yield _activation(source, label, context, (-1.0, largest, -1.0))
    width = largest / INTERVALS
    places = [min(int(max(context.activations) / width), INTERVALS - 1) for context in sample]
    for context, place in zip(sample, places, strict=True):
        share = places.count(place) / len(places)
        yield _activation(source, label, context, (place * width, (place + 1) * width, share))
    for context in silent:
        yield _activation(source, label, context, (0.0, 0.0, 0.0))


def _activation(source: Source, label: Label, context: Kept, part: tuple[float, float, float]) -> dict[str, Any]:
    values = context.activations
    peak = max(range(len(values)), key=values.__getitem__)
    key = _cuid(source.reading.run.collection_id, label.feature, context.split, context.why, context.passage_id)
    return {"id": key} | source.of(label.feature) | {
        "creatorId": CREATOR, "createdAt": source.created,
        "tokens": [string.replace("\0", " ") or EMPTY for string in context.strings], "values": values,
        "maxValue": values[peak], "maxValueTokenIndex": peak, "minValue": min(values),
        "binMin": part[0], "binMax": part[1], "binContains": part[2],
        "dataSource": context.source, "dataIndex": f"{context.document_id}:{context.start}",
    }  # fmt: skip


def explanation(source: Source, label: Label) -> list[dict[str, Any]]:
    """The record of a feature's chosen label; none where it has none."""
    if label.label is None or label.explanation_id is None:
        return []
    numbers = {name: getattr(label, name) for name in ("r_rank", "r_rank_lo", "r_rank_hi", "r_pop", "r_tok", "lift")}
    notes = {
        "tool": f"autointerp {source.reading.run.code_version}", "explanation_id": label.explanation_id,
        "method": label.method, "model": label.model, "author": label.author, "verdict": label.verdict,
        "scores": numbers | {"f1": label.f1, "null": label.null} | label.numbers
        | source.reading.judged.get(label.feature, {}),
    }  # fmt: skip
    return [
        {"id": _cuid(label.explanation_id)} | source.of(label.feature) | {
            "description": label.label, "authorId": CREATOR, "typeName": type_name(label.method),
            "explanationModelName": label.model.rstrip("/").rpartition("/")[2] if label.model else None,
            "notes": json.dumps(notes, ensure_ascii=False, allow_nan=False), "createdAt": source.created,
        }
    ]  # fmt: skip


def type_name(method: str | None) -> str | None:
    """Neuronpedia's name of a way to label; None for one that it has no name for."""
    name, _, detail = (method or "").partition(":")
    if name == "imported":
        return detail.partition("/")[2] or None if detail.startswith("neuronpedia/") else None
    return TYPES.get(name)


def score_rows(source: Source, scores: Iterable[Score]) -> Iterator[dict[str, Any]]:
    """A record for every score of the label that has a value, with its interval and what it was computed over."""
    scorer = source.reading.settings.simulator
    for score in scores:
        if score.value is not None:
            details = {"lo": score.lo, "hi": score.hi, "n": score.n, "split": score.split}
            yield {
                "id": _cuid(score.score_id), "initiatedByUserId": CREATOR, "value": score.value,
                "explanationId": _cuid(score.explanation_id),
                "explanationScoreTypeName": f"autointerp_{score.metric}",
                "explanationScoreModelName": (scorer.model if scorer.paid else "") or scorer.kind,
                "jsonDetails": json.dumps(details, allow_nan=False), "createdAt": source.created,
            }  # fmt: skip


def _cuid(*parts: object) -> str:
    """25 characters that look like Prisma's ids, and are the same for the same parts."""
    number = int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest())
    digits = []
    for _ in range(24):
        number, digit = divmod(number, 36)
        digits.append("0123456789abcdefghijklmnopqrstuvwxyz"[digit])
    return "c" + "".join(digits)


@contextmanager
def _lines(path: Path) -> Iterator[TextIO]:
    """A gzip file to write lines to, without a time or a name in its header: the same lines are the same bytes."""
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=5, fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, "utf-8", newline="\n") as text,
    ):
        yield text


def _put(file: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """A line for each record. The importer's JSON has no zero byte in strings: those become spaces."""
    for row in rows:
        clean = {name: value.replace("\0", " ") if isinstance(value, str) else value for name, value in row.items()}
        file.write(json.dumps(clean, ensure_ascii=False, allow_nan=False) + "\n")
