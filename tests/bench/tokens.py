"""Tokens per feature of the stages that ask a chat model, over loopback HTTP, beside delphi's.

`python -m tests.bench.tokens RUN [OUT.json]`: RUN is the folder or database of a finished default run, whose collection
is used (a copy; nothing is written into it). A server answers as a right model would: the chat simulator's replies
quote every word that really fires, the judges' list the passages in which the feature fires. Tokens are counted with
the subject's tokenizer, of what was sent and of what came back.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from autointerp import config
from autointerp.config import EXPLAINERS, Settings
from autointerp.fence import neutral
from autointerp.grading import Grading
from autointerp.pipeline import Pipeline, prepare
from autointerp.rehearsal import stand_in
from autointerp.simulators.chat import FIRES, spans
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar
from autointerp.text import words

from ..llm_server import Asked, Server

FEATURES = 32
SENT, RECEIVED = 14_000, 1_200  # bars, per feature, of the default path with a chat model
# Per feature, command line defaults: one explanation, 20 calls each of detection and fuzzing; and 100 passages
# simulated all at once. Counted from the sizes of its prompts and of its windows.
DELPHI = {"delphi: explanation, detection, fuzzing": (35_000, 45_000), "delphi: simulation, all at once": (105_000, 105_000)}


@dataclass(frozen=True)
class Row:
    """What one method takes per feature."""

    method: str
    calls: float
    input_tokens: float
    output_tokens: float
    n_features: int


class Right:
    """Says what a right model would."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.features: dict[str, int] = {}  # label -> the feature it was proposed for
        self.quotes: dict[tuple[int, str], list[tuple[str, int]]] = {}  # feature and passage -> what fires in it
        self.fires: dict[str, set[int]] = {}  # passage as judges see it -> features that fire in it
        self.n = 0

    def __call__(self, asked: Asked) -> str:
        """The reply to a request."""
        schema = asked.body["response_format"]["json_schema"]["schema"]
        said = json.loads(stand_in(schema, asked.last, self.samples))
        if "rules" in said:
            return json.dumps(said)
        if schema["properties"].get("1") == FIRES:
            return self._simulated(asked.last)
        if "1" in said:
            return self._judged(asked.last)
        self.n += 1  # labels of different features differ, so that it is known whose they are
        return json.dumps({"labels": [f"{label} no. {self.n}" for label in said["labels"]]})

    def _simulated(self, content: str) -> str:
        label, *lines = content.split("\n")
        feature = self.features[label.removeprefix("Label: ")]
        texts = [json.loads(line.split(": ", 1)[1]) for line in lines]
        said = {
            str(n): [[quote, place, 7] for quote, place in self.quotes.get((feature, text), [])]
            for n, text in enumerate(texts, start=1)
        }
        return json.dumps(said, ensure_ascii=False)

    def _judged(self, content: str) -> str:
        parts = content.replace("<data>\n", "").replace("\n</data>", "").split("\nPassages\n")
        labels, texts = ([json.loads(line.split(": ", 1)[1]) for line in p.split("\n") if ": " in line] for p in parts)
        said = {}
        for n, label in enumerate(labels, start=1):
            feature = self.features[label]
            fits = [i for i, text in enumerate(texts, start=1) if feature in self.fires.get(text, set())]
            said[str(n)] = fits
        return json.dumps(said)

    def learn(self, grading: Grading) -> None:
        """The truth about the passages of a run, once its labels are there."""
        run = grading.run
        for e in grading.store.explanations(run.collection_id, run.explainer_ids, run.features or []):
            self.features[e.label or ""] = e.feature
        for feature in run.features or []:
            for split in ("select", "score"):
                sample = grading.sample(feature, split).firing  # type: ignore[arg-type]
                grading.texts.fetch(sample.passage)
                for i, passage in enumerate(sample.passage.tolist()):
                    strings = neutral(grading.texts.strings(passage))
                    at = sample.positions[sample.offsets[i] : sample.offsets[i + 1]].tolist()
                    self.quotes[feature, "".join(strings)] = quoted(strings, at)
                    self.fires.setdefault("".join(strings), set()).add(feature)


def quoted(strings: Sequence[str], positions: Sequence[int]) -> list[tuple[str, int]]:
    """The words that hold these tokens, each with which of its places it is."""
    text = "".join(strings)
    found, at = [], 0
    for word in words(strings):
        start = text.index(word.text, at)
        at = start + len(word.text)
        if any(word.first <= p < word.last for p in positions):
            places = spans(word.text, text)
            if (start, at) in places:
                found.append((word.text, places.index((start, at)) + 1))
    return found


def settings_for(of_run: dict[str, Any], folder: Path, base_url: str, methods: Sequence[str]) -> Settings:
    """The defaults, with a chat model for everything, on the first dictionary of a run's settings."""
    model = {"provider": "openai", "base_url": base_url, "model": "m"}
    made = config.load(None).model_dump() | {key: of_run[key] for key in ("corpus", "collect", "subject")}
    made["run"] |= {"results": folder, "name": "tokens", "seed": of_run["run"]["seed"]}
    made["dictionary"] = of_run["dictionary"][:1]
    made["features"]["select"] = f"random:{FEATURES}"
    made["explainer"] |= model | {"methods": tuple(methods)}
    made["simulator"] |= model | {"kind": "chat", "proxy": "pattern"}  # claims in seconds; who claims sends nothing
    made["judge"] |= model | {"kinds": ("detection",), "chooses": True}
    made["score"]["nulls"] = 0
    return Settings.model_validate(made)


def measure(run: Path) -> list[Row]:
    """Tokens per feature: of each explainer, of detection, of the simulation of the chosen, and of the default path."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, Bar() as bar:
        copy = Path(folder) / "tokens" / "run.duckdb"
        copy.parent.mkdir()
        shutil.copy(run, copy)
        says = Right(config.load(None).explainer.samples)
        with Server(says=says) as server, Store.create(copy) as store:
            of_run = json.loads(store.latest_run().settings)
            for method in (m for m in EXPLAINERS if m != "mined"):
                settings = settings_for(of_run, Path(folder), server.openai, [method])
                pipeline = Pipeline(store, prepare(settings), bar, lambda line: print(line, file=sys.stderr))
                labelling = pipeline.labellings[0]
                labelling.explain()
                features = set(labelling.grading.run.features or [])
                count = _counter(settings)
                rows.append(_row(store, f"explain {method}, 3 candidates", f"explain {method} %", features, count))
                if method != "marks":
                    continue
                says.learn(labelling.grading)
                labelling.simulate("select")
                labelling.score("select")
                labelling.judge("select")
                labelling.simulate("score")
                whole = _whole(labelling.grading)
                names = {f"simulate chat {label}": feature for label, feature in says.features.items()}
                judged = _row(store, "detection of 3 candidates on 24 passages", "judge detection %", whole, count)
                simulated = _row(store, "chat simulation of the chosen on 40", "simulate chat %", whole, count, names)
                parts = [rows[-1], judged, simulated]
            assert store.query("SELECT count(*) FROM call WHERE repair_of IS NOT NULL")[1] == [(0,)]
    total = [sum(getattr(part, name) for part in parts) for name in ("calls", "input_tokens", "output_tokens")]
    return [*rows, *parts[1:], Row("all of the default path with marks", *total, parts[1].n_features)]


def _whole(grading: Grading) -> set[int]:
    """The features whose labels were judged and simulated on as many passages as they should be; others cost less."""
    store, run, cfg = grading.store, grading.run, grading.settings
    labels = grading.wanted("score")
    drawn = store.drawn([e.explanation_id for e in labels], run.scorer_id, "score")
    judged = dict(store.query(
        "SELECT explanation_id, count(*) FROM judgement WHERE kind = 'detection' AND split = 'select' GROUP BY 1"
    )[1])  # fmt: skip
    return {
        e.feature for e in labels
        if len(drawn[e.explanation_id]) == cfg.simulator.passages and judged[e.explanation_id] == cfg.judge.passages
    }  # fmt: skip


def _counter(settings: Settings) -> Callable[[str], int]:
    tokenizer = Subject.reader(settings.subject).tokenizer
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _row(
    store: Store, name: str, purpose: str, features: set[int], count: Callable[[str], int],
    names: dict[str, int] | None = None,
) -> Row:  # fmt: skip
    """What the ledger holds for a purpose, per feature of these.

    names  purpose -> feature, where it does not end with it
    """
    asked = store.query(f"SELECT purpose, request, reply FROM call WHERE purpose LIKE '{purpose}'")[1]
    of = [(names[p] if names else int(p.rpartition("/")[2]), request, reply) for p, request, reply in asked]
    calls = [(request, reply) for feature, request, reply in of if feature in features]
    n = len(features)
    sent = sum(count(content) for request, _ in calls for _, content in json.loads(request))
    return Row(name, len(calls) / n, sent / n, sum(count(reply) for _, reply in calls) / n, n)


def main() -> None:
    """Measure, print the table, write it."""
    run = Path(sys.argv[1])
    rows = measure(run / "run.duckdb" if run.is_dir() else run)
    whole = rows[-1]
    table = Table("method", "features", "calls", "tokens in", "tokens out", "bar")
    for row in rows:
        bar = f"<= {SENT:,} in, {RECEIVED:,} out" if row is whole else ""
        table.add_row(row.method, str(row.n_features), f"{row.calls:.1f}", f"{row.input_tokens:,.0f}", f"{row.output_tokens:,.0f}", bar)
    for name, (low, high) in DELPHI.items():
        table.add_row(name, "", "41" if low < high else "100", f"{low:,}" + (f"-{high:,}" if high > low else ""), "", "counted")
    Console().print(table)
    holds = bool(np.all([whole.input_tokens <= SENT, whole.output_tokens <= RECEIVED]))
    found: dict[str, Any] = {
        "command": "python -m tests.bench.tokens results/demo", "tokenizer": "the subject's", "holds": holds,
        "bar": {"input_tokens": SENT, "output_tokens": RECEIVED}, "rows": [asdict(row) for row in rows],
        "delphi": {name: {"input_tokens": list(ends)} for name, ends in DELPHI.items()},
    }  # fmt: skip
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
