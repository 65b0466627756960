"""One feature, looked up: its label and rivals with grades, and contexts with true and predicted activations."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp import outputs_shown, store_outputs, store_report
from autointerp.edits import Votes
from autointerp.evidence import Texts
from autointerp.people import votes
from autointerp.population import feature_index
from autointerp.report import Label, Reading, number
from autointerp.rows import Lens, Score
from autointerp.store import Sparse, Store
from autointerp.store_causal import causal_of
from autointerp.store_lens import lenses
from autointerp.store_places import Places
from autointerp.text import printable
from autointerp.verdicts import MEANING

KINDS = {
    "evidence": "what the verdict is based on",
    "top": "strongest passages of the explain split",
    "sample": "a sample of firing passages of the score split (stratum A)",
    "B": "hard negatives of the score split: silent, though the label may claim them (stratum B)",
    "C": "other silent passages of the score split (stratum C)",
}
UNKNOWN = "left out by collect.features: nothing is known of it"
BEFORE, AFTER = 20, 12  # tokens shown around the peak in the terminal; JSON has the whole passage


@dataclass(frozen=True)
class Context:
    """A passage with the feature's activation at every token, and what the chosen label predicts there."""

    kind: str  # a key of KINDS
    cell: str | None  # why it is in the scoring set: fires, claimed, token, silent, rival; None where it is not
    passage_id: int
    document_id: str
    source: str
    start: int  # index of the first token within the document
    strings: list[str]  # together they are the text
    activations: list[float]  # per token; 0 where the feature is silent
    predicted: list[float] | None  # per token, in the simulator's unit; None where nothing was predicted
    reason: str | None  # why nothing was predicted, where that was tried
    masked: list[int]  # positions that do not count


@dataclass(frozen=True)
class Candidate:
    """One candidate label with its grades on both splits, or why there is none."""

    explanation_id: str
    method: str
    model: str | None
    chosen: bool
    label: str | None
    status: str
    reason: str | None
    select_r_rank: float | None
    r_rank: float | None
    r_rank_lo: float | None
    r_rank_hi: float | None
    n_passages: int
    score_reason: str | None  # why there is no r_rank on score; only the chosen is graded when simulators are paid
    author: str | None = None  # of a label from outside: whoever says so; None: an explainer made it
    up: int = 0  # votes for it
    down: int = 0  # votes against it
    select_f1: float | None = None  # of a judge's detection on select, where that chooses the label


@dataclass(frozen=True)
class Found:
    """Everything that readers show of a feature."""

    feature: int
    feature_id: str
    kind: str  # eligible, dense, too_rare, dead
    density: float  # share of tokens on which it fires; 0 also for a feature that was not encoded: see `encoded`
    label: str  # the chosen label, 'not selected', or the reason in brackets
    chosen: Label | None  # None for a feature outside the run's selection
    counters: dict[str, dict[str, float]]  # split -> tokens, passages, documents, mean, max
    histogram: list[int]  # firing tokens per half-octave of activation, from 2^-8
    max_activation: float  # over all splits
    max_predicted: float  # over the score split under the chosen label
    top_tokens: list[str]  # heaviest first
    lens: Lens | None  # tokens that it promotes and suppresses; None until `autointerp lens`
    causal: list[Score]  # what its label says of what it does, with its p and KL; empty until `autointerp causal`
    outputs: list[store_outputs.Said]  # what it makes the subject say, by method; empty until `autointerp causal`
    candidates: list[Candidate]  # the chosen one first
    contexts: dict[str, list[Context]]  # by key of KINDS; evidence first, where the verdict has any

    @property
    def encoded(self) -> bool:
        """False where collect.features left it out: then nothing is known of it, and its counters are no counts."""
        return self.kind != "not_encoded"

    @property
    def does(self) -> store_outputs.Said | None:
        """The output label that speaks for it."""
        return store_outputs.speaking(self.outputs)


class Library:
    """What looking up many features shares, read once."""

    def __init__(self, reading: Reading, store: Store, places: Places | None = None) -> None:
        """places  where rows lie: worth finding out where features are looked up for as long as somebody reads"""
        self.reading, self.store, self.places = reading, store, places
        self.collection_id = reading.run.collection_id
        self.texts = Texts(store, self.collection_id, places)
        self.labels = {label.feature: label for label in reading.labels}

    @cached_property
    def _counters(self) -> dict[str, NDArray[Any]]:
        return self.store.features(self.collection_id)

    @cached_property
    def _votes(self) -> dict[tuple[int, str], Votes]:
        return votes(self.store, self.reading.collection["dictionary"])

    def look_up(self, feature: str, contexts: int) -> Found:
        """The feature with at most so many contexts of each kind. Raises FeatureError for an unknown id."""
        row = self.reading.collection
        index = feature_index(feature, row["dictionary"], row["width"])
        label = self.labels.get(index)
        predicted = self._predictions(index, label)
        top = [self.texts.pieces.get(t, b"").decode("utf-8", "replace")
               for t in self.store.top_tokens(self.collection_id, index)]  # fmt: skip
        return Found(
            feature=index, feature_id=f"{row['dictionary']}/{index}", kind=self.reading.population.kind(index),
            density=float(self.reading.population.density[index]), label=_label_text(label), chosen=label,
            counters=self._by_split(index), histogram=self.store.histogram(self.collection_id, index),
            max_activation=float(self._counters["max"][:, index].max()), max_predicted=predicted.largest,
            top_tokens=top, lens=lenses(self.store, self.collection_id, [index]).get(index),
            causal=causal_of(self.store, index, label.explanation_id) if label else [],
            outputs=store_outputs.latest(self.store, self.collection_id, [index]).get(index, []),
            candidates=self._candidates(index, label),
            contexts=self._contexts(index, label, predicted, contexts),
        )  # fmt: skip

    def _by_split(self, feature: int) -> dict[str, dict[str, float]]:
        c, result = self._counters, {}
        for i, split in enumerate(("explain", "select", "score")):
            tokens = int(c["n_tokens"][i, feature])
            result[split] = {
                "tokens": tokens, "passages": int(c["n_passages"][i, feature]),
                "documents": int(c["n_documents"][i, feature]),
                "mean": float(c["sum"][i, feature]) / tokens if tokens else 0.0, "max": float(c["max"][i, feature]),
            }  # fmt: skip
        return result

    def _candidates(self, feature: int, label: Label | None) -> list[Candidate]:
        found, run = [], self.reading.run
        ranks = store_report.ranks_of(self.store, run, feature)
        f1: dict[str, float | None] = {}
        if run.detector_id is not None:
            judged = self.store.judged(replace(run, features=[feature]), "select")
            f1 = {s.explanation_id: s.value for s in judged if s.metric == "detection_f1"}
        for e in self.store.explanations(self.collection_id, run.explainer_ids, [feature]):
            select, score = ranks.get((e.explanation_id, "select")), ranks.get((e.explanation_id, "score"))
            found.append(Candidate(
                e.explanation_id, e.method, e.model, label is not None and label.explanation_id == e.explanation_id,
                e.label, e.status, e.reason, select.value if select else None, score.value if score else None,
                score.lo if score else None, score.hi if score else None, score.n if score else 0,
                score.reason if score else "not_scored" if e.status == "ok" else None, e.author,
                *self._votes.get((feature, e.label or ""), Votes()), select_f1=f1.get(e.explanation_id),
            ))  # fmt: skip
        return sorted(found, key=lambda c: (not c.chosen, _downward(c.select_f1), _downward(c.select_r_rank)))

    def _predictions(self, feature: int, label: Label | None) -> "_Predictions":
        if label is None or label.explanation_id is None:
            return _Predictions({}, {}, {})
        run, key = self.reading.run, label.explanation_id
        near = self.places.of(feature) if self.places is not None else (None, None)
        draws = self.store.drawn([key], run.scorer_id, "score", near[0]).get(key, [])
        sparse, failed = self.store.simulations(key, run.simulator_id, "score", near[1])
        cells: dict[int, tuple[str, str]] = {d.passage_id: (d.stratum, d.kind) for d in draws}
        return _Predictions(_by_passage(sparse), failed, cells)

    def _contexts(
        self, feature: int, label: Label | None, predicted: "_Predictions", limit: int
    ) -> dict[str, list[Context]]:
        top = _by_passage(self.store.excerpts(self.collection_id, feature, "explain", "top").firing)
        sample = _by_passage(self.store.excerpts(self.collection_id, feature, "score", "sample").firing)
        # Passages that were graded come first: beside them the prediction can be seen.
        order = sorted(sample, key=lambda passage: predicted.cells.get(passage, ("", ""))[0] != "A")
        evidence = label.evidence.get("passages", {}) if label else {}
        chosen: dict[str, list[int]] = {"evidence": [p for ids in evidence.values() for p in ids][:limit]}
        chosen |= {"top": list(top)[:limit], "sample": order[:limit]}
        for stratum in ("B", "C"):
            ids = [p for p, (s, cell) in predicted.cells.items() if s == stratum and cell != "rival"]
            # The negatives that the label claims most are the ones to learn from.
            chosen[stratum] = sorted(ids, key=lambda p: (-predicted.peak(p), p))[:limit]
        wanted = [p for ids in chosen.values() for p in ids]
        self.texts.fetch(np.array(wanted, dtype=np.int64))
        documents = {p: self.texts.row(p).document_id for p in wanted}
        sources = store_report.sources(self.store, self.collection_id, list(documents.values()))
        true = {"evidence": sample, "top": top, "sample": sample}
        found = {
            kind: [self._context(kind, passage, true.get(kind, {}).get(passage), predicted,
                                 sources.get(documents[passage], "")) for passage in ids]
            for kind, ids in chosen.items()
        }  # fmt: skip
        self.texts.forget(wanted)  # a page that is open for days would end up with every passage in memory
        return found

    def _context(
        self, kind: str, passage: int, true: "_Spikes | None", predicted: "_Predictions", source: str
    ) -> Context:
        row, strings = self.texts.row(passage), self.texts.strings(passage)
        guess = predicted.by_passage.get(passage)
        return Context(
            kind=kind, cell=predicted.cells[passage][1] if passage in predicted.cells else None, passage_id=passage,
            document_id=row.document_id, source=source, start=row.start,
            strings=strings, activations=_dense(true, len(strings)),
            predicted=_dense(guess, len(strings)) if guess is not None else None,
            reason=predicted.failed.get(passage), masked=list(row.masked),
        )  # fmt: skip


_Spikes = tuple[list[int], list[float]]  # positions, values


@dataclass(frozen=True)
class _Predictions:
    """What the chosen label predicts on the score split, and the cell of each passage in its scoring set."""

    by_passage: dict[int, _Spikes]
    failed: dict[int, str]
    cells: dict[int, tuple[str, str]]  # passage -> stratum, cell

    @property
    def largest(self) -> float:
        return max((max(values, default=0.0) for _, values in self.by_passage.values()), default=0.0)

    def peak(self, passage: int) -> float:
        return max(self.by_passage.get(passage, ([], []))[1], default=0.0)


def look_up(reading: Reading, store: Store, feature: str, contexts: int) -> Found:
    """A feature given as `17` or `dictionary/17`, with at most so many contexts of each kind.

    A feature outside the run's selection has contexts and counters but no label. Raises FeatureError for an unknown id.
    """
    return Library(reading, store).look_up(feature, contexts)


def as_json(found: Found) -> dict[str, Any]:
    """Everything about the feature as plain dicts and lists; passages are whole. Without counts where not encoded."""
    chosen = None if found.chosen is None else found.chosen.as_json()
    said = outputs_shown.as_json(found.outputs)
    return asdict(found) | {"chosen": chosen} | said | ({} if found.encoded else {"density": None, "counters": {}})


def _label_text(label: Label | None) -> str:
    if label is None:
        return "not selected"
    return label.label if label.label is not None else f"({label.reason})"


def _by_passage(sparse: Sparse) -> dict[int, _Spikes]:
    """Passage id -> positions and values, in the order of the rows."""
    ends = sparse.offsets.tolist()
    return {
        passage: (sparse.positions[a:b].tolist(), sparse.values[a:b].tolist())
        for passage, a, b in zip(sparse.passage.tolist(), ends, ends[1:], strict=False)
    }


def _dense(spikes: _Spikes | None, n: int) -> list[float]:
    values = [0.0] * n
    for position, value in zip(*spikes, strict=True) if spikes else ():
        values[position] = value
    return values


def visible(text: str) -> str:
    """Text in which nothing acts: line ends and tabs as signs, control and direction characters spelled out."""
    return printable(text.replace("\r\n", "↵").replace("\n", "↵").replace("\t", "⇥"))


def window(context: Context, before: int, after: int) -> range:
    """Positions around the strongest activation, or around the strongest prediction where the feature is silent."""
    values = context.activations if any(context.activations) else context.predicted or context.activations
    peak = int(np.argmax(values)) if values else 0
    return range(max(0, peak - before), min(len(values), peak + after + 1))


# -- terminal ----------------------------------------------------------------------------------------------------------


def to_terminal(found: Found, console: Console) -> None:
    """Print label, grades, rivals, counters and contexts, in this order."""
    console.print(Text(visible(found.label), style="bold"))
    fires = UNKNOWN if not found.encoded else f"fires on {found.density:.2%} of tokens"
    console.print(Text(f"{found.feature_id}  {found.kind.replace('_', ' ')}, {fires}", style="dim"))
    if found.chosen is not None:
        if found.chosen.verdict is not None:
            console.print(_verdict(found.chosen))
        console.print(_grades(found.chosen))
        if found.chosen.category is not None:
            console.print(Text(f"category {visible(found.chosen.category)}"))
    for line in _causal(found.causal):
        console.print(line)
    if found.does is not None:
        console.print(_does(found.does))
    if found.candidates:
        console.print(_rivals(found.candidates))
    if found.encoded:
        _print_counters(found, console)
    for kind, contexts in found.contexts.items():
        if contexts:
            console.print()
            console.print(Text(f"{kind}: {KINDS[kind]}", style="bold cyan"))
        for context in contexts:
            console.print(_passage(context, found, console.color_system is not None))


def _verdict(label: Label) -> Text:
    """The verdict, what it means, and the numbers against their thresholds."""
    assert label.verdict is not None
    parts = Text.assemble(("verdict ", ""), (label.verdict.replace("_", " "), "bold"), f": {MEANING[label.verdict]}")
    for check in label.evidence.get("numbers", []):
        sign = ">" if check["wanted"] == "above" else "<"
        style = "green" if check["holds"] else "red"
        parts.append(f"\n  {check['metric']} {number(check['value'])}", style=style)
        parts.append(f" (good is {sign} {check['threshold']:g})", style="dim")
    return parts


def _grades(label: Label) -> Text:
    if label.r_rank is None:
        return Text(f"no grade: {label.reason}", style="yellow")
    ends = f" [{number(label.r_rank_lo)}, {number(label.r_rank_hi)}]" if label.r_rank_lo is not None else ""
    return Text.assemble(
        "r_rank ", (f"{label.r_rank:.2f}", "bold"), f"{ends} on {label.n_passages} passages   ",
        f"r_pop {number(label.r_pop)} [{number(label.r_pop_lo)}, {number(label.r_pop_hi)}]   f1 {number(label.f1)}\n",
        f"r_tok {number(label.r_tok)}   lift {number(label.lift, '+.2f')}   null {number(label.null)}",
    )  # fmt: skip


def _causal(scores: list[Score]) -> list[Text]:
    """A line per KL that the causal score was taken at."""
    by: dict[str, dict[str, Score]] = {}
    for score in scores:
        by.setdefault(score.simulator_id, {})[score.metric] = score
    lines = []
    for found in by.values():
        if {"causal", "causal_kl", "causal_p"} <= found.keys():
            own, kl, p = (found[metric] for metric in ("causal", "causal_kl", "causal_p"))
            lines.append(Text.assemble(
                "causal ", (number(own.value, "+.2f"), "bold"), f" [{number(own.lo, '+.2f')}, {number(own.hi, '+.2f')}]"
                f" nats above random directions at a KL of {number(kl.value)}, p {number(p.value)}",
            ))  # fmt: skip
    return lines


def _does(said: store_outputs.Said) -> Text:
    """What the feature makes the subject say, and how much likelier than random directions do."""
    own, text = said.scores.get("output_causal"), Text.assemble("does ", (visible(said.row.label or ""), "bold"))
    text.append(f" ({said.row.method})", style="dim")
    if own is not None and own.value is not None:
        text.append(
            f" {number(own.value, '+.2f')} [{number(own.lo, '+.2f')}, {number(own.hi, '+.2f')}] nats above random "
            f"directions at a KL of {said.row.kl:g}; p {number(said.value('output_own_p'))} against their own labels"
        )
    return text


def _downward(value: float | None) -> float:
    """Sorts large before small before None."""
    return 2.0 if value is None else -value


def _rivals(candidates: list[Candidate]) -> Table:
    """The candidates; with the F1 that chose one where a judge did, and with models where there are several."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    judged = any(c.select_f1 is not None for c in candidates)
    several = len({c.model for c in candidates if c.model}) > 1
    for name in ("", "by", *(["detects"] if judged else []), "select", "score"):
        table.add_column(name, justify="left" if name in ("", "by") else "right", no_wrap=name != "by")
    table.add_column("candidate", ratio=1, overflow="fold")
    for c in candidates:
        text = visible(c.label) if c.label is not None else f"({c.status}: {visible(c.reason or '')})"
        text += f"  ({c.up} for, {c.down} against)" if c.up or c.down else ""
        by = f"{c.method} ({c.model})" if several and c.model else c.method
        table.add_row(
            "→" if c.chosen else "", Text(visible(by), style="dim"), *([number(c.select_f1)] if judged else []),
            number(c.select_r_rank), number(c.r_rank), Text(text, style="" if c.label is not None else "dim"),
        )  # fmt: skip
    return table


def _print_counters(found: Found, console: Console) -> None:
    parts = [
        f"{split} {int(c['tokens']):,} tokens / {int(c['passages']):,} passages / {int(c['documents']):,} documents"
        for split, c in found.counters.items()
    ]
    console.print(Text("fires on  " + ";  ".join(parts), style="dim"))
    if any(found.histogram):
        first = next(i for i, n in enumerate(found.histogram) if n)
        last = max(i for i, n in enumerate(found.histogram) if n)
        bars = _bars(found.histogram[first : last + 1])
        ends = f"{2 ** (first / 2 - 8):.2g} .. {2 ** (last / 2 - 7.5):.2g}, max {found.max_activation:.2f}"
        console.print(Text(f"strength  {bars}  {ends} (log2)", style="dim"))
    listed = {"tokens": found.top_tokens}
    if found.lens is not None:
        listed |= {"promotes": found.lens.promoted, "suppresses": found.lens.suppressed}
    for name, tokens in listed.items():
        if tokens:
            console.print(Text(f"{name:<12}" + "  ".join(visible(t).strip() or "␣" for t in tokens), style="dim"))


def _bars(counts: Iterable[int]) -> str:
    """A histogram of block characters."""
    values = list(counts)
    return "".join(" ▁▂▃▄▅▆▇█"[0 if not n else max(1, round(8 * n / max(values)))] for n in values)


def _passage(context: Context, found: Found, coloured: bool) -> Text:
    """One context: strength as background, predictions underlined; without colours, firing tokens in guillemets."""
    shown = window(context, BEFORE, AFTER)
    line = Text(f"{max(context.activations, default=0.0):7.2f}  ", style="dim", overflow="fold")
    line.append("…" if shown.start > 0 else "")
    for i in shown:
        value, text = context.activations[i], visible(context.strings[i])
        guess = (context.predicted[i] if context.predicted else 0.0) / (found.max_predicted or 1.0)
        style = _heat(value / (found.max_activation or 1.0)) + (" underline" if guess >= 0.25 else "")
        line.append(text if coloured or not value else f"«{text}»", style=style if style.strip() else "not dim")
    line.append("…" if shown.stop < len(context.strings) else "")
    note = context.cell if context.kind in ("B", "C", "evidence") else None
    line.append(
        "  " + visible(" · ".join(part for part in (note, context.reason, context.source) if part)), style="dim"
    )
    return line


def _heat(share: float) -> str:
    """Style for an activation as a share of the largest: amber of rising strength, text dark once it is bright."""
    if share <= 0:
        return "not dim "
    share = 0.15 + 0.85 * min(share, 1.0) ** 0.7
    red, green, blue = (round(40 + (full - 40) * share) for full in (255, 176, 32))
    return f"not dim {'black' if share > 0.5 else 'white'} on rgb({red},{green},{blue})"
