"""Reads a run: the figures of the whole, the labels with their grades, and the report in its three forms.

Every mean is printed with how many features it covers and how many it lost, by reason. Nothing here computes a grade.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.panel import Panel as Box
from rich.table import Table
from rich.text import Text

from autointerp import by_explainer, metrics, store_report, verdicts
from autointerp.config import Settings, model_of
from autointerp.draws import OWN_TOKENS
from autointerp.edits import Votes
from autointerp.errors import ConfigError, StoreError, nearest
from autointerp.grades import METRICS
from autointerp.people import votes
from autointerp.population import Population, population
from autointerp.rows import Run, Score
from autointerp.store import Store
from autointerp.store_outputs import Said, latest, speaking
from autointerp.text import printable, words

FORMATS = ("html", "md")
BOOTSTRAP = 2000  # draws behind the interval of a mean over features
JUDGED = {  # kind of judge -> its metrics, by what they are called in print
    "detection": {"f1": "F1", "balanced_accuracy": "balanced accuracy", "tnr_b": "TNR_B", "tnr_c": "TNR_C"},
    "fuzzing": {"accuracy": "accuracy"},
}
CHUNK_LABELS = 25_000  # read at once: all of 100,000 would take twice the memory for a moment
ENDS = ("r_rank_lo", "r_rank_hi", "r_pop_lo", "r_pop_hi")
REPEATED = ("method", "model", "author", "verdict", "reason", "failed", "category")  # few words, each kept once
FIELDS = ("r_rank", "r_tok", "lift", "null", "r_pop", "f1")  # metrics that are fields of a label


@dataclass(frozen=True)
class Label:
    """A feature with its chosen label and grades. None means that there is none; `reason` says why."""

    feature: int
    feature_id: str
    kind: str  # eligible, dense, too_rare, dead
    density: float  # share of tokens on which it fires
    label: str | None
    method: str | None
    model: str | None
    verdict: str | None  # good, too_broad ...; None where none was given
    r_rank: float | None
    r_rank_lo: float | None
    r_rank_hi: float | None
    r_tok: float | None
    lift: float | None
    null: float | None
    r_pop: float | None
    r_pop_lo: float | None
    r_pop_hi: float | None
    f1: float | None
    numbers: dict[str, float | None]  # every other metric of the chosen label on score, by name
    basis: str | None  # of the verdict, as JSON: see `evidence`
    n_passages: int  # passages that r_rank was computed on
    quotes: bool  # the label holds one of the feature's heaviest tokens word for word
    reason: str | None
    explanation_id: str | None
    author: str | None = None  # of a label from outside: whoever says so, "" for nobody; None: an explainer made it
    up: int = 0  # votes for the label
    down: int = 0  # votes against it
    category: str | None = None  # name of the labels that mean something like it; None: not grouped

    @property
    def evidence(self) -> dict[str, Any]:
        """What the verdict is based on: numbers against thresholds, passages that show it; {} where there is none.

        Read when it is asked for: as dicts, those of 100,000 labels would take several hundred MB.
        """
        return json.loads(self.basis) if self.basis else {}

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values, the evidence among them."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "basis"}
        return plain | {"evidence": self.evidence}


@dataclass(frozen=True)
class Reading:
    """Everything that readers show of a run."""

    run: Run
    settings: Settings
    collection: dict[str, Any]
    population: Population
    labels: list[Label]
    summary: dict[str, Any]
    judged: dict[int, dict[str, float | None]]  # feature -> metric of a judge -> value; {} where nobody was asked
    certificate: dict[str, Any] | None  # of the simulator that graded; None: uncertified
    alone: bool = True  # False where the configuration has other dictionaries, which have readings of their own
    does: Mapping[int, Said] = field(default_factory=dict)  # feature -> its output label, which no grade here reads


def read(store: Store, dictionary: str | None = None, only: Sequence[int] | None = None) -> Reading:
    """The latest run of a store: its first dictionary, or the one of this name; with `only`, these features of it.

    Raises StoreError where nothing has been collected.
    """
    return read_run(store, store.latest_run(dictionary), only)


def read_run(store: Store, run: Run, only: Sequence[int] | None = None) -> Reading:
    """One run of a store, whichever; with `only`, as if just those of its features had been selected."""
    if only is not None:
        run = replace(run, features=sorted(set(run.features or []) & set(only)))
    alone = len(store.latest_runs()) == 1
    settings = Settings.model_validate_json(run.settings)
    row = store.collection(run.collection_id)
    if row is None:
        raise StoreError(f"{store.path}: nothing has been collected yet; `autointerp run` does it")
    found = population(store, run.collection_id, settings.features)
    labels = _labels(store, run, found, row["dictionary"])
    judged = _judged(store, run, labels)
    known = store.certificate(run.simulator_id)
    certificate = None if known is None else json.loads(known.certificate)
    summary = _summary(store, run, found, labels, judged) | {"scorer": _scorer(settings, certificate)}
    values = {f: {metric: score.value for metric, score in by.items()} for f, by in judged.items()}
    said = latest(store, run.collection_id, run.features or [])
    does = {feature: one for feature, all_ in said.items() if (one := speaking(all_)) is not None}
    return Reading(run, settings, row, found, labels, summary, values, certificate, alone, does)


def read_all(store: Store, only: Sequence[int] | None = None) -> list[Reading]:
    """The latest run of a store, one reading per dictionary of its configuration; `only` as in `read_run`."""
    return [read(store, run.dictionary, only) for run in store.latest_runs()]


def _scorer(settings: Settings, certificate: dict[str, Any] | None) -> dict[str, Any]:
    """Who graded, and what it was found able to do: gates that hold and gates that do not."""
    cfg = settings.simulator
    found: dict[str, Any] = {"kind": cfg.kind, "model": model_of(cfg).name if cfg.paid else None}
    if certificate is None:
        return found | {"certified": None, "certifiable": cfg.certifiable}
    holds = certificate["holds"]
    return found | {
        "certified": certificate["date"], "holds": [name for name, ok in holds.items() if ok],
        "fails": [name for name, ok in holds.items() if not ok],
    }  # fmt: skip


def _labels(store: Store, run: Run, found: Population, dictionary: str) -> list[Label]:
    """The labels of the selected features, ascending."""
    by = verdicts.thresholds_id(Settings.model_validate_json(run.settings).verdict)
    pieces, _ = store.tokens(run.collection_id)
    words_of = {t: piece.decode("utf-8", "replace").strip().lower() for t, piece in pieces.items()}
    features, density = run.features or [], found.density.tolist()
    voted = votes(store, dictionary)
    labels: list[Label] = []
    seen: dict[str | None, str | None] = {}
    for start in range(0, len(features), CHUNK_LABELS):
        part = replace(run, features=features[start : start + CHUNK_LABELS])
        columns = store_report.graded(store, part, by, OWN_TOKENS).to_pydict()
        for name in REPEATED:
            columns[name] = [seen.setdefault(value, value) for value in columns[name]]
        kinds = found.kinds(np.array(columns["feature"], dtype=np.int64))
        for i, feature in enumerate(columns["feature"]):
            label, tokens = columns["label"][i], columns["top_tokens"][i] or ()
            labels.append(Label(
                feature=feature, feature_id=f"{dictionary}/{feature}", kind=kinds[i], density=density[feature],
                label=label, method=columns["method"][i], model=columns["model"][i], verdict=columns["verdict"][i],
                basis=columns["evidence"][i], reason=_reason(columns, i),
                **{name: columns[name][i] for name in (*FIELDS, *ENDS)},
                numbers={metric: columns[metric][i] for metric in METRICS if metric not in FIELDS},
                n_passages=columns["n"][i] or 0, quotes=_quotes(label, {words_of[token] for token in tokens}),
                explanation_id=columns["explanation_id"][i], author=columns["author"][i],
                category=columns["category"][i],
                **voted.get((feature, label or ""), Votes())._asdict(),
            ))  # fmt: skip
        store.shrink()
    return labels


def _reason(columns: Mapping[str, Sequence[Any]], i: int) -> str | None:
    """Why a feature has no label, or its label no grade; None where it has one."""
    if columns["explanation_id"][i] is None:
        return columns["failed"][i] or "not_explained"
    reason: str | None = columns["reason"][i]
    return reason if columns["ranked"][i] else "not_scored"


def _quotes(label: str | None, own: set[str]) -> bool:
    return label is not None and any(word.text.lower() in own for word in words([label]))


def _judged(store: Store, run: Run, labels: list[Label]) -> dict[int, dict[str, Score]]:
    """Feature -> metric -> what judges' verdicts on its chosen label add up to, on score."""
    chosen = {label.explanation_id for label in labels}
    result: dict[int, dict[str, Score]] = {}
    for score in store.judged(run, "score"):
        if score.explanation_id in chosen:
            result.setdefault(score.feature, {})[score.metric] = score
    return result


def _judges(judged: dict[int, dict[str, Score]], labels: list[Label]) -> dict[str, Any]:
    """Per metric: mean and median over eligible features that have it, how many, and those that lost it by reason."""
    result: dict[str, Any] = {}
    eligible = [label.feature for label in labels if label.kind == "eligible"]
    for metric in sorted({metric for by in judged.values() for metric in by}):
        found = [judged.get(feature, {}).get(metric) for feature in eligible]
        values = [score.value for score in found if score is not None and score.value is not None]
        lost = Counter("not_judged" if score is None else score.reason for score in found
                       if score is None or score.value is None)  # fmt: skip
        result[metric] = {"mean": _mean(values), "median": _median(values), "n": len(values), "lost": dict(lost)}
    return result


def _summary(
    store: Store, run: Run, found: Population, labels: list[Label], judged: dict[int, dict[str, Score]]
) -> dict[str, Any]:
    """The figures of `report --json`. Population figures cover eligible features; one without a grade counts 0."""
    eligible = [label for label in labels if label.kind == "eligible"]
    graded = np.array([label.r_rank or 0.0 for label in eligible])
    random = np.random.default_rng([0, len(graded)])
    mean = metrics.mean_interval(graded, BOOTSTRAP, random)
    scored = np.array([label.r_rank for label in eligible if label.r_rank is not None])
    return {
        "run": run.name,
        "verdicts": _counts(labels),
        "features": sum(label.r_rank is not None for label in labels),
        "r_rank": {
            "mean": mean.value, "median": _median(graded), "lo": mean.lo, "hi": mean.hi, "n": len(graded),
            "mean_of_scored": _mean(scored), "n_scored": len(scored),
            "lost": dict(Counter(label.reason for label in eligible if label.r_rank is None)),
        },
        "r_tok": _mean_and_n([label.r_tok for label in eligible]),
        "unquoted": _mean_and_n([label.r_rank for label in eligible if label.label and not label.quotes]),
        "lift": _mean_and_n([label.lift for label in eligible]),
        "r_pop": _mean_and_n([label.r_pop for label in eligible]),
        "f1": _mean_and_n([label.f1 for label in eligible]),
        "null": _mean_and_n([label.null for label in eligible]),
        "beats_lookup": sum((label.lift or 0.0) > 0 for label in eligible),
        "by_explainer": by_explainer.compared(store, run, [label.feature for label in eligible]),
        "categories": _categories(labels),
        "judges": _judges(judged, labels),
        "chosen_by": _chosen_by(store, run, labels),
        "population": found.counts,
        "fit": _fit(store, run),
        "stages": _stages(store, run),
        "peak_memory_mb": max((s["peak_memory_mb"] for s in store.stages(run.run_id)), default=None),
        "llm": store_report.call_totals(store, run),
        "spent": store.spending(),
    }  # fmt: skip


def _counts(labels: list[Label]) -> dict[str, int]:
    """Labels by verdict; `unjudged` are those of features without a label, or without a grade yet."""
    counts = Counter(label.verdict or "unjudged" for label in labels)
    return {word: counts[word] for word in (*verdicts.WORDS, "unjudged") if counts[word]}


def _categories(labels: list[Label]) -> dict[str, dict[str, Any]]:
    """Category -> its labels, how many of them are graded, and their mean; the largest first, {} where none is kept."""
    found: dict[str, list[float | None]] = {}
    for label in labels:
        if label.category is not None:
            found.setdefault(label.category, []).append(label.r_rank)
    by_size = sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return {name: {"labels": len(grades)} | _mean_and_n(grades) for name, grades in by_size}


def _chosen_by(store: Store, run: Run, labels: list[Label]) -> dict[str, Any] | None:
    """Where a judge was to choose the labels: for how many features it did, and why r_rank did for the others."""
    if run.detector_id is None:
        return None
    found = {s.explanation_id: s for s in store.judged(run, "select") if s.metric == "detection_f1"}
    chosen = [found.get(label.explanation_id) for label in labels if label.explanation_id is not None]
    others = Counter("not_judged" if s is None else s.reason for s in chosen if s is None or s.value is None)
    return {"detection_f1": len(chosen) - others.total(), "r_rank": others.total(), "lost": dict(others)}


def _fit(store: Store, run: Run) -> dict[str, Any] | None:
    """What the check before collection found; None where it was off."""
    fit = store.fit(run.collection_id)
    return None if fit is None else asdict(fit) | {"trials": json.loads(fit.trials)}


def _stages(store: Store, run: Run) -> dict[str, Any]:
    """Per stage, over all its executions for this run: units ok, failures by reason, seconds, tokens per second."""
    result: dict[str, Any] = {}
    for row in store.stages(run.run_id):
        into = result.setdefault(row["stage"], {"ok": 0, "failed": {}, "seconds": 0.0, "tokens": 0})
        into["ok"] += row["ok"]
        into["seconds"] += row["seconds"]
        into["tokens"] += row["tokens"]
        for reason, n in row["failed"].items():
            into["failed"][reason] = into["failed"].get(reason, 0) + n
    for into in result.values():
        tokens = into.pop("tokens")
        into["tokens_per_second"] = tokens / into["seconds"] if tokens and into["seconds"] else None
    return result


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _median(values: Any) -> float | None:
    return float(np.median(values)) if len(values) else None


def _mean_and_n(values: list[float | None]) -> dict[str, float | int | None]:
    found = [v for v in values if v is not None]
    return {"mean": _mean(found), "n": len(found)}


def as_json(reading: Reading) -> dict[str, Any]:
    """The summary, with every label beside it."""
    labels = [label.as_json() | reading.judged.get(label.feature, {}) for label in reading.labels]
    return reading.summary | {"labels": labels}


# -- terminal ----------------------------------------------------------------------------------------------------------


def to_terminal(reading: Reading, console: Console, limit: int | None = None) -> None:
    """Print the table of labels, best first, and the figures of the whole."""
    labels = sorted(
        reading.labels, key=lambda label: (-(label.r_rank if label.r_rank is not None else -2), label.feature)
    )
    wide = console.width >= 132  # in a narrow terminal the label matters more than the last columns
    several = len({label.model for label in labels if label.model}) > 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("feature", justify="right", style="cyan")
    table.add_column("verdict", no_wrap=True)
    table.add_column("label", ratio=1, overflow="fold")
    beside, last = (["r_pop", "f1"], ["null", "by"]) if wide else ([], [])
    for name in ["r_rank", "95 %", *beside, "r_tok", "lift", *last]:
        table.add_column(name, justify="right", no_wrap=True)
    for label in labels[:limit]:
        text = Text(printable(label.label)) if label.label else Text(f"({label.reason})", style="dim")
        cells: list[Text | str] = [
            _grade(label.r_rank),
            _ends(label.r_rank_lo, label.r_rank_hi),
            *((number(label.r_pop), number(label.f1)) if wide else ()),
            number(label.r_tok),
            number(label.lift, "+.2f"),
        ]
        if wide:
            cells += [number(label.null), by_explainer.made_by(label.method, label.model if several else None)]
        table.add_row(str(label.feature), _word(label.verdict), text, *cells)
    parts: list[Any] = [table]
    if limit is not None and len(labels) > limit:
        parts.append(Text(f"... and {len(labels) - limit} more (--all shows them)", style="dim"))
    if len(reading.summary["by_explainer"]) > 1:
        parts.append(by_explainer.table(reading.summary["by_explainer"], wide=console.width >= 140))
    console.print(Group(*parts, Box("\n".join(headline(reading)), title=reading.run.name, expand=False)))


def headline(reading: Reading) -> list[str]:
    """The figures of the whole, one fact a line, each mean with its n."""
    s, c = reading.summary, reading.collection
    kinds = s["population"]
    return [
        f"{c['dictionary']} at {c['hookpoint']} of {c['subject']}",
        f"{sum(c['n_tokens']):,} usable tokens of {sum(c['n_documents']):,} documents; "
        f"{kinds['live']:,} live features: "
        f"{kinds['eligible']:,} eligible, {kinds['dense']:,} dense, "
        f"{kinds['too_rare']:,} too rare; {kinds['dead']:,} dead",
        f"verdict {', '.join(f'{n} {word}' for word, n in s['verdicts'].items()).replace('_', ' ')}",
        f"scorer  {scorer_line(s['scorer'])}",
        f"check   {fit_line(s['fit'])}",
        *_grade_lines(reading),
        *_choice_lines(s["chosen_by"]),
        *_judge_lines(s["judges"]),
        *(f"asked   {line}" for line in by_explainer.spent_lines(s["spent"])),
    ]


def _grade_lines(reading: Reading) -> list[str]:
    """The figures of the grades; before there is one, what they wait for."""
    s = reading.summary
    rank = s["r_rank"]
    lost = ", ".join(f"{n} {reason}" for reason, n in rank["lost"].items()) or "none"
    if rank["lost"] and not rank["n_scored"]:
        more = ": `autointerp run` does what is pending" if "not_scored" in rank["lost"] else ""
        return [f"r_rank  nothing has been graded (lost: {lost}){more}"]
    return [
        f"r_rank  mean {number(rank['mean'])} [{number(rank['lo'])}, {number(rank['hi'])}], "
        f"median {number(rank['median'])}, n = {rank['n']} (lost: {lost})",
        f"r_tok   mean {number(s['r_tok']['mean'])}, n = {s['r_tok']['n']} (token look-up table, same passages); "
        f"{s['beats_lookup']} of {rank['n']} labels beat it",
        f"quotes  {sum(x.quotes for x in reading.labels)} of {len(reading.labels)} labels quote the feature's tokens; "
        f"r_rank of the others: mean {number(s['unquoted']['mean'])}, n = {s['unquoted']['n']}",
        f"null    mean {number(s['null']['mean'])}, n = {s['null']['n']} (labels of other features)",
    ]


def _choice_lines(chosen_by: dict[str, Any] | None) -> list[str]:
    """Who chose the labels, where a judge was to."""
    if chosen_by is None:
        return []
    lost = ", ".join(f"{n} {reason}" for reason, n in chosen_by["lost"].items()) or "none"
    return [f"chosen  {chosen_by['detection_f1']} by detection F1, {chosen_by['r_rank']} by r_rank (lost: {lost})"]


def _judge_lines(judges: dict[str, Any]) -> list[str]:
    """A line per kind of judge, with the means of its numbers and what they lost."""
    lines = []
    for kind, names in JUDGED.items():
        found = {name: judges[f"{kind}_{key}"] for key, name in names.items() if f"{kind}_{key}" in judges}
        if found:
            means = ", ".join(f"{name} {number(v['mean'])}" for name, v in found.items())
            first = next(iter(found.values()))
            lost = ", ".join(f"{n} {reason}" for reason, n in first["lost"].items()) or "none"
            lines.append(f"judge   {kind}: {means}; n = {first['n']} (lost: {lost})")
    return lines


def scorer_line(scorer: dict[str, Any]) -> str:
    """Whether the simulator that graded is certified, in one line."""
    name = scorer["kind"] + (f" ({scorer['model']})" if scorer["model"] else "")
    if scorer["certified"] is None and not scorer["certifiable"]:
        return f"{name}, UNCERTIFIED: of models on a server no certificate can be made yet"
    if scorer["certified"] is None:
        return f"{name}, UNCERTIFIED: `autointerp certify --simulator` says how far its grades can be believed"
    holds, fails = (", ".join(scorer[part]) or "nothing" for part in ("holds", "fails"))
    return f"{name}, certified {scorer['certified']} on planted truth: holds {holds}; does not hold {fails}"


def fit_line(fit: dict[str, Any] | None) -> str:
    """Whether the dictionary encodes this subject as it was trained to, in one line."""
    if fit is None:
        return "off: nobody knows whether the dictionary fits this subject"
    if fit["outcome"] == "unchecked":
        return "; ".join(fit["notes"])
    rivals = [t for t in fit["trials"] if t["what"] != "as configured" and t["fvu"] is not None]
    nearest = f"; next best {rivals[0]['what']}, FVU {rivals[0]['fvu']:.3f}" if rivals else ""
    figures = f"FVU {number(fit['fvu'], '.3f')}, L0 {fit['l0']:.1f} on {fit['n_tokens']:,} tokens{nearest}"
    return figures if fit["outcome"] == "fits" else f"MISFIT: {'; '.join(fit['reasons'])} ({figures})"


def number(value: float | None, spec: str = ".2f") -> str:
    """A number for people: a dash where there is none, no minus before a rounded zero."""
    if value is None:
        return "-"
    sign = 1 if spec[:1] in ("+", "-", " ") else 0
    return format(float(value), f"{spec[:sign]}z{spec[sign:]}")


def _ends(lo: float | None, hi: float | None) -> str:
    return "-" if lo is None or hi is None else f"{number(lo)}..{number(hi)}"


def _word(verdict: str | None) -> Text:
    if verdict is None:
        return Text("-", style="dim")
    style = {"good": "bold green", "no_pattern": "red"}.get(verdict, "yellow")
    return Text(verdict.replace("_", " "), style=style)


def _grade(value: float | None) -> Text:
    if value is None:
        return Text("-", style="dim")
    return Text(number(value), style="bold green" if value >= 0.5 else "yellow" if value >= 0.25 else "red")


def check_format(format: str) -> None:
    """Raises ConfigError for a form of the report that is not known."""
    if format not in FORMATS:
        raise ConfigError(f"unknown report format {format!r}{nearest(format, FORMATS)}; known: {', '.join(FORMATS)}")


def write(reading: Reading, store: Store, folder: Path, format: str = "html") -> Path:
    """Write the page, or its summary as Markdown, into the run's folder, by an atomic rename; returns its path.

    It is called report.html (or .md), or report-DICTIONARY.html where there are several. Raises ConfigError for a
    format that is not known, StoreError where the file cannot be written.
    """
    from autointerp import page, report_md

    check_format(format)
    name = "report"
    if not reading.alone:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", reading.run.dictionary)
        name += f"-{plain}" + (f"-{reading.run.place}" if plain != reading.run.dictionary else "")
    path = folder / f"{name}.{format}"
    scratch = path.with_suffix(".writing")
    try:
        scratch.write_text(page.render(reading, store) if format == "html" else report_md.render(reading), "utf-8")
        scratch.replace(path)
    except OSError as problem:
        scratch.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {problem.strerror or problem}") from None
    return path
