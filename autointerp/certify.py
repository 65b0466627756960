"""Certification: a scorer is graded before it grades.

Features whose truth can be executed are planted in real text, collected and drawn like any others, and given labels of
known quality. Whatever cannot tell the right one from a wrong one here is not to be believed elsewhere.
"""

import datetime
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstest, spearmanr

from autointerp import __version__, grades, keys, metrics, prompts
from autointerp.candidates import (
    DENSITIES,
    TOO_RARE,
    Planted,
    Size,
    configured_scorer,
    open_configured,
    plant,
    reference_scorers,
)
from autointerp.certificate import Certificate, Gate, Line
from autointerp.config import Settings, SimulatorSection, model_of
from autointerp.metrics import Cell
from autointerp.planted import NOISE, RUNGS
from autointerp.rows import Certified
from autointerp.store import Store
from autointerp.tally import Bar
from autointerp.trials import METRICS, Outcome, Scorer

GATED = ("r_rank", "f1")  # hard-negative F1
APART = ("shuffled", "half", "broad2")  # rungs that the right label has to be told from
JUDGED = ("true", *APART, "missing", "extra")  # rungs that a gate reads
INTERVALS = ("true", "half", "broad2")  # rungs whose r_pop intervals are checked against the whole split
BARS = {
    "auroc_shuffled": (0.99, 1.0), "auroc_half": (0.95, 1.0), "auroc_broad2": (0.95, 1.0), "coverage": (0.93, 0.995),
    "null_ks": (0.01, 1.0), "missing_extra": (0.90, 1.0), "insufficient": (1.0, 1.0),
}  # fmt: skip
WORDY = ("words", "field")  # families whose truth is a set of words
NULLS = 999
SMALL = {"noise": 20, "rare": 8}  # of the other sizes, where a real simulator reads passages
PAID_FEATURES = 4  # per density, where a simulator costs money or minutes


def certify(
    found: Planted, scorer: Scorer, size: Size, bar: Bar, model: str | None = None, prompt_hash: str | None = None,
    census: bool = True, paid: bool = False,
) -> Certificate:  # fmt: skip
    """The certificate of one scorer.

    census  check intervals against the whole split: one prediction of every passage of score for each label
    paid    ask for no more than the gates need that compare labels: no rungs beside theirs, no older metrics, no nulls
    """
    bench = found.bench
    tested = [i for i, labels in enumerate(found.labels) if labels]
    outcomes: dict[tuple[float, str, str], list[Outcome]] = defaultdict(list)
    broad: dict[tuple[str, str], list[Outcome]] = defaultdict(list)  # twice too broad, by family and metric
    passed: dict[tuple[float, str], list[bool]] = defaultdict(list)
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    known: dict[tuple[float, str], list[float]] = defaultdict(list)
    cells: dict[tuple[int, str], list[Cell]] = {}
    bar.start("certify", total=len(tested), unit="features")
    for i in tested:
        density = found.features[i].density
        labels = {rung: label for rung, label in found.labels[i].items() if not paid or rung in JUDGED}
        sheet = bench.sheet(i)
        quality = {rung: bench.known_f1(i, label.predicate) for rung, label in labels.items()}
        for rung, value in quality.items():
            known[density, rung].append(value)
        for metric, by_rung in bench.compare(sheet, labels, scorer, paid).items():
            for rung, outcome in by_rung.items():
                outcomes[density, rung, metric].append(outcome)
                if rung == "broad2" and metric in GATED:
                    broad[found.features[i].family, metric].append(outcome)
                pairs[metric].append((outcome.other, quality[rung]))
            both = [by_rung[name] for name in ("missing", "extra") if name in by_rung]
            passed[density, metric].append(len(both) == 2 and all(o.right > o.other for o in both))
        for rung in INTERVALS if census else ():
            if rung in labels:
                cells[i, rung] = bench.own_cells(sheet, labels[rung], scorer)
        bar.advance()
    table = [_line(*key, found_, known[key[0], key[1]]) for key, found_ in outcomes.items()]
    figures = {f"spearman_f1.{metric}": _spearman(pairs[metric]) for metric in METRICS if metric in pairs}
    figures |= _lists_and_fields(broad)
    gates = _aurocs(scorer.name, table)
    gates += _missing_extra(scorer.name, passed)
    p = np.empty(0) if paid else null_p(found, scorer, bar)
    if len(p):
        gates.append(Gate.of("null_ks", scorer.name, "r_rank", float(kstest(p, "uniform").pvalue), BARS["null_ks"]))
        figures["null_p_mean"] = float(p.mean())
    if census:
        covered = coverage(found, scorer, cells, size.draws, bar)
        figures |= {f"coverage.{name}": value for name, value in covered.items()}
        gates.append(Gate.of("coverage", scorer.name, "r_pop", covered["all"], BARS["coverage"]))
    rare = [bench.kinds.kind(i) == "too_rare" for i, f in enumerate(found.features) if f.density == TOO_RARE]
    gates.append(
        Gate.of("insufficient", scorer.name, "population", float(np.mean(rare)) if rare else None, BARS["insufficient"])
    )
    return Certificate(
        scorer.name, model, prompt_hash, datetime.date.today().isoformat(), __version__, bench.seed, bench.size,
        {"tested": len(tested)} | bench.kinds.counts, table, gates, figures,
    )  # fmt: skip


def _line(density: float, rung: str, metric: str, found: list[Outcome], known: list[float]) -> Line:
    right, other = (np.array(column) for column in zip(*found, strict=True))
    return Line(
        density, rung, metric, len(found), metrics.auroc(right, other), metrics.win_rate(right, other),
        float(right.mean()), float(other.mean()), float(np.mean(known)),
    )  # fmt: skip


def _spearman(pairs: list[tuple[float, float]]) -> float | None:
    """Rank correlation of scores with the known F1 of labels; None where all scores are equal."""
    scores, known = (np.array(column) for column in zip(*pairs, strict=True))
    return float(spearmanr(scores, known)[0]) if np.ptp(scores) and np.ptp(known) else None


def _aurocs(scorer: str, table: Sequence[Line]) -> list[Gate]:
    """At the worst density, for r_rank and for hard-negative F1; the old ways of scoring are in the table."""
    gates = []
    for rung in APART:
        for metric in GATED:
            values = [line.auroc for line in table if (line.rung, line.metric) == (rung, metric)]
            worst = min((v for v in values if v is not None), default=None)
            gates.append(Gate.of(f"auroc_{rung}", scorer, metric, worst, BARS[f"auroc_{rung}"]))
    return gates


def _lists_and_fields(broad: dict[tuple[str, str], list[Outcome]]) -> dict[str, float | None]:
    """AUROC of the right label against one twice too broad by family of truth, over all densities, and over word lists
    and fields together: what a simulator that reads words alone can be asked to tell."""
    families = sorted({family for family, _ in broad})
    groups = {family: [family] for family in families} | {"words+field": [f for f in families if f in WORDY]}
    found = {
        f"auroc_broad2.{name}.{metric}": [outcome for family in group for outcome in broad[family, metric]]
        for name, group in groups.items() for metric in GATED
    }  # fmt: skip
    return {
        name: metrics.auroc(np.array([o.right for o in outcomes]), np.array([o.other for o in outcomes]))
        for name, outcomes in found.items()
    }


def _missing_extra(scorer: str, passed: dict[tuple[float, str], list[bool]]) -> list[Gate]:
    """Oikarinen et al. 2025: the score falls when half of what the label says is taken away, and when as much again is
    added at random. The share of features that pass both, at the worst density."""
    gates = []
    for metric in GATED:
        shares = [float(np.mean(found)) for (_, name), found in passed.items() if name == metric]
        gates.append(Gate.of("missing_extra", scorer, metric, min(shares, default=None), BARS["missing_extra"]))
    return gates


def null_p(found: Planted, scorer: Scorer, bar: Bar) -> NDArray[np.float64]:
    """Permutation p of a label of another feature on each noise feature, against NULLS such labels, on A + C.

    C here is drawn without regard to any label, so all labels are scored on the same passages by the same rule.
    """
    bench = found.bench
    noise = [i for i, f in enumerate(found.features) if f.family == NOISE and bench.kinds.eligible[i]]
    density = DENSITIES[0]  # labels matched in density with the noise
    texts = sorted({
        label.text for i, labels in enumerate(found.labels) if found.features[i].density == density
        for rung, label in labels.items() if rung not in ("constant", "broad10")
    })[: NULLS + 1]  # fmt: skip
    if not noise or len(texts) < 20:
        return np.empty(0)
    passages, actual, usable = [], [], []
    for i in noise:
        sheet = bench.sheet(i)
        order = sheet.silent.order
        rows = np.concatenate([sheet.firing, order[sheet.silent.silent[order]][: bench.size // 4]])
        passages.append(sheet.passages[rows])
        actual.append(sheet.actual[rows][sheet.usable[rows]].astype(np.float64))
        usable.append(sheet.usable[rows])
    wanted, place = np.unique(np.concatenate(passages), return_inverse=True)
    places = np.split(place, np.cumsum([len(p) for p in passages])[:-1])
    scores = np.zeros((len(noise), len(texts)))
    bar.start("nulls", total=len(texts), unit="labels")
    for j, label in enumerate(texts):
        predicted = scorer.predict([label], wanted)[0]
        for k, at in enumerate(places):
            scores[k, j] = metrics.correlation(actual[k], predicted[at][usable[k]]) or 0.0
        bar.advance()
    values = []
    for k, i in enumerate(noise):
        random = np.random.default_rng([bench.seed, i, 0x6E756C6C])
        chosen = int(random.integers(len(texts)))
        values.append(metrics.permutation_p(scores[k, chosen], np.delete(scores[k], chosen), random))
    return np.array(values)


def coverage(
    found: Planted, scorer: Scorer, cells: dict[tuple[int, str], list[Cell]], draws: int, bar: Bar
) -> dict[str, float]:
    """The share of nominal 95 % intervals of r_pop that hold the whole split's correlation: all, by rung, density."""
    bench = found.bench
    pools = grades.backgrounds(list(cells.values()))
    bar.start("intervals", total=len(cells), unit="labels")
    held: dict[str, list[bool]] = defaultdict(list)
    widths = []
    for (i, rung), set_ in cells.items():
        random = np.random.default_rng([bench.seed, i, RUNGS.index(rung)])
        interval = grades.r_pop(set_, pools, bench.panel_share, draws, random)
        truth = bench.census(i, found.labels[i][rung].text, scorer)
        bar.advance()
        if interval.lo is None or interval.hi is None or truth is None:
            continue
        for name in ("all", rung, f"{found.features[i].density:g}"):
            held[name].append(interval.lo <= truth <= interval.hi)
        widths.append(interval.hi - interval.lo)
    return {name: float(np.mean(inside)) for name, inside in held.items()} | {
        "n": float(len(widths)), "width": float(np.mean(widths)),
    }  # fmt: skip


# -- the command -------------------------------------------------------------------------------------------------------


def run(settings: Settings, bar: Bar, configured: bool = False, per_density: int | None = None) -> list[Certificate]:
    """Certificates of the reference simulator, of its noisy variant, and of the configured simulator if asked for."""
    simulator = open_configured(settings) if configured else None
    paid = configured and settings.simulator.paid
    size = Size(PAID_FEATURES if paid else 20, **SMALL) if configured else Size()
    size = size if per_density is None else size._replace(per_density=per_density)
    with Store.memory() as store:
        found = plant(settings, store, size, bar)
        scorers: list[Scorer] = [*reference_scorers(found, settings.run.seed)]
        certificates = [certify(found, scorer, size, bar) for scorer in scorers]
        if simulator is not None:
            bar.start("fit", total=None, unit="labels")
            scorer = configured_scorer(settings, simulator, found)
            model, prompt_hash = _read_by(settings.simulator)
            certificates.append(certify(found, scorer, size, bar, model, prompt_hash, census=False, paid=paid))
    return certificates


def _read_by(cfg: SimulatorSection) -> tuple[str | None, str | None]:
    """The model that reads labels for a simulator, and the hash of its prompt; None where there is none."""
    if cfg.kind == "logprob":
        return model_of(cfg).name, prompts.fingerprint(cfg.prompt_file)
    return (cfg.encoder if cfg.kind == "embedding" else None), None


def store_certificate(settings: Settings, found: Certificate) -> Path:
    """Keep the certificate of the configured simulator in the run's database, where reports look for it; its path.

    Raises StoreBusy while a run writes there.
    """
    row = Certified(
        keys.simulator_id(settings, settings.simulator.kind), found.scorer, found.model, found.prompt_hash, found.date,
        found.version, json.dumps(found.as_json()),
    )  # fmt: skip
    with Store.create(settings.database) as store:
        store.add([row])
    return settings.database


def as_json(certificates: Sequence[Certificate]) -> dict[str, Any]:
    """All gates in one list, and every certificate whole."""
    found = [certificate.as_json() for certificate in certificates]
    return {"gates": [gate for certificate in found for gate in certificate["gates"]], "certificates": found}
