"""Certification: a scorer is graded before it grades.

Features whose truth can be executed are planted in real text, collected and drawn like any others, and given labels of
known quality. Whatever cannot tell the right one from a wrong one here is not to be believed elsewhere.
"""

import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstest, spearmanr

from autointerp import __version__, metrics
from autointerp.certificate import Certificate, Gate, Line
from autointerp.config import Settings
from autointerp.errors import ConfigError
from autointerp.metrics import Cell
from autointerp.planted import NOISE, RUNGS, Feature, Label, Ladder, PlantedText, Planter, Predicate
from autointerp.planted.collection import collect
from autointerp.reference import Errors, ReferenceSimulator
from autointerp.simulators import Simulator, open_simulator
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar
from autointerp.text import token_strings
from autointerp.trials import METRICS, Bench, Outcome, Scorer

DENSITIES = (1e-2, 1e-3, 1e-4)  # that the gates are judged at
TOO_RARE = 1e-5  # ... and one at which the only right answer is "insufficient data"
GATED = ("r_rank", "f1")  # hard-negative F1
INTERVALS = ("true", "half", "broad2")  # rungs whose r_pop intervals are checked against the whole split
BARS = {
    "auroc_shuffled": (0.99, 1.0), "auroc_half": (0.95, 1.0), "auroc_broad2": (0.95, 1.0), "coverage": (0.93, 0.995),
    "null_ks": (0.01, 1.0), "missing_extra": (0.90, 1.0), "insufficient": (1.0, 1.0),
}  # fmt: skip
NOISE_SD = 0.08  # of the real-valued variant, beside hits of about 1
NULLS = 999
BACKGROUND = 512  # passages of explain that a simulator is calibrated on
CALIBRATION_LABELS = 16  # labels that a real simulator's threshold is fitted on
TOKENS = 2_500_000  # of the corpus that are read, at most: at density 1e-4 less leaves too few passages


SMALL = {"noise": 20, "rare": 8}  # of the other sizes, where a real simulator reads every passage


class Size(NamedTuple):
    """How much is planted."""

    per_density: int = 146  # some are too rare after all; 400 have to be left
    noise: int = 60
    rare: int = 20
    draws: int = 400  # replicates behind an interval


@dataclass
class Planted:
    """Everything that scorers are tried on."""

    bench: Bench
    labels: list[dict[str, Label]]  # by feature; empty for noise
    truths: dict[str, Predicate] = field(default_factory=dict)  # label text -> where it holds

    @property
    def features(self) -> Sequence[Feature]:
        """The planted features."""
        return self.bench.features


def plant(settings: Settings, store: Store, size: Size, bar: Bar, text: PlantedText | None = None) -> Planted:
    """Read the corpus, plant features at every density, collect them into the store, and make their labels.

    Raises CorpusError where the corpus cannot be read.
    """
    seed = settings.run.seed
    bar.start("plant", total=None, unit="features")
    if text is None:
        reader = Subject.reader(settings.subject)
        corpus = settings.corpus.model_copy(update={"tokens": TOKENS})
        text = PlantedText.read(settings.model_copy(update={"corpus": corpus}), reader.tokenizer, reader.token_bytes)
    planter = Planter(text, seed)
    features = [f for density in DENSITIES for f in planter.plant(density, size.per_density)]
    features += planter.plant(TOO_RARE, size.rare) + planter.noise(DENSITIES[0], size.noise) + planter.dense(4)
    identity, activations = collect(store, text, features, settings.collect, seed)
    bench = Bench(store, identity, text, features, activations, settings.score.score_passages, seed)
    ladder = Ladder(planter, features)
    tested = [
        f.density in DENSITIES and f.family != NOISE and bool(bench.kinds.eligible[i]) for i, f in enumerate(features)
    ]
    found = Planted(bench, [ladder.labels(i) if tested[i] else {} for i in range(len(features))])
    for labels in found.labels:
        for rung, label in labels.items():
            if found.truths.setdefault(label.text, label.predicate) != label.predicate:
                # Two wordings that fell together, such as one field's name for two lists: tell them apart.
                labels[rung] = Label(rung, f"{label.text} ({len(found.truths)})", label.predicate)
                found.truths[labels[rung].text] = label.predicate
    return found


def reference_scorers(found: Planted, seed: int) -> list[ReferenceSimulator]:
    """The reference simulator, and its noisy real-valued variant with its threshold fitted."""
    scorers = [ReferenceSimulator(found.bench.text, found.truths, Errors(noise=sd), seed) for sd in (0.0, NOISE_SD)]
    for scorer in scorers:
        scorer.threshold = fitted_threshold(found, scorer)
    return scorers


def fitted_threshold(found: Planted, scorer: Any, n_labels: int = 64) -> float:
    """The predicted peak that best tells firing from silent passages of select, pooled over right labels (balanced)."""
    bench = found.bench
    text = bench.text
    rows = np.flatnonzero(text.split == 1)
    peaks: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
    known = [i for i, labels in enumerate(found.labels) if labels]
    for i in known[:: max(len(known) // n_labels, 1)]:
        firing = np.zeros(len(text.length), dtype=bool)
        firing[bench.activations[i].cell // text.width] = True
        silent = rows[~firing[rows]][: len(rows) // 8]
        for kind, mine in enumerate((rows[firing[rows]], silent)):
            label = found.labels[i]["true"].text
            peaks[kind].append(scorer.predict([label], text.ids[mine])[0].max(axis=1).astype(np.float64))
    return metrics.balanced_threshold(np.concatenate(peaks[0]), np.concatenate(peaks[1]))


def certify(
    found: Planted, scorer: Scorer, size: Size, bar: Bar, model: str | None = None, prompt_hash: str | None = None,
    census: bool = True,
) -> Certificate:  # fmt: skip
    """The certificate of one scorer.

    census  check intervals against the whole split: one prediction of every passage of score for each label
    """
    bench = found.bench
    tested = [i for i, labels in enumerate(found.labels) if labels]
    outcomes: dict[tuple[float, str, str], list[Outcome]] = defaultdict(list)
    passed: dict[tuple[float, str], list[bool]] = defaultdict(list)
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    known: dict[tuple[float, str], list[float]] = defaultdict(list)
    cells: dict[tuple[int, str], list[Cell]] = {}
    bar.start("certify", total=len(tested), unit="features")
    for i in tested:
        density, labels = found.features[i].density, found.labels[i]
        sheet = bench.sheet(i)
        quality = {rung: bench.known_f1(i, label.predicate) for rung, label in labels.items()}
        for rung, value in quality.items():
            known[density, rung].append(value)
        for metric, by_rung in bench.compare(sheet, labels, scorer).items():
            for rung, outcome in by_rung.items():
                outcomes[density, rung, metric].append(outcome)
                pairs[metric].append((outcome.other, quality[rung]))
            both = [by_rung[name] for name in ("missing", "extra") if name in by_rung]
            passed[density, metric].append(len(both) == 2 and all(o.right > o.other for o in both))
        for rung in INTERVALS if census else ():
            if rung in labels:
                cells[i, rung] = bench.own_cells(sheet, labels[rung], scorer)
        bar.advance()
    table = [_line(*key, found_, known[key[0], key[1]]) for key, found_ in outcomes.items()]
    figures = {f"spearman_f1.{metric}": _spearman(pairs[metric]) for metric in METRICS}
    gates = _aurocs(scorer.name, table)
    gates += _missing_extra(scorer.name, passed)
    p = null_p(found, scorer, bar)
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
    for rung in ("shuffled", "half", "broad2"):
        for metric in GATED:
            values = [line.auroc for line in table if (line.rung, line.metric) == (rung, metric)]
            worst = min((v for v in values if v is not None), default=None)
            gates.append(Gate.of(f"auroc_{rung}", scorer, metric, worst, BARS[f"auroc_{rung}"]))
    return gates


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
    pools = {
        kind: metrics.pooled_background([cell for set_ in cells.values() for cell in set_ if cell.kind == kind])
        for kind in {cell.kind for set_ in cells.values() for cell in set_ if cell.hit is not None}
    }
    bar.start("intervals", total=len(cells), unit="labels")
    held: dict[str, list[bool]] = defaultdict(list)
    widths = []
    for (i, rung), set_ in cells.items():
        random = np.random.default_rng([bench.seed, i, RUNGS.index(rung)])
        modelled = [cell._replace(background=pools.get(cell.kind)) if cell.hit is not None else cell for cell in set_]
        interval = metrics.r_pop(modelled, bench.panel_share, draws, random)
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


class Configured:
    """The configured simulator as a scorer: it reads passages as they come, and claims what it predicts to fire."""

    def __init__(self, simulator: Simulator, name: str, text: PlantedText, bar: Bar) -> None:
        self.simulator, self.name, self.text, self.bar, self.threshold = simulator, name, text, bar, 0.0
        self._pieces: dict[int, bytes] = {}
        self._known: set[int] = set()
        explain = np.flatnonzero(text.split == 0)
        background = text.ids[explain[:: max(len(explain) // BACKGROUND, 1)][:BACKGROUND]]
        self._read(background)
        simulator.calibrate(background)

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """Predicted activations [label, passage, token]."""
        self._read(passages)
        return self.simulator.predict(labels, passages)

    def claims(self, label: str, passages: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[passage] whether it predicts the label to fire there: a free simulator is its own proxy."""
        return np.asarray(self.predict([label], passages)[0].max(axis=1) > self.threshold)

    def _read(self, passages: NDArray[np.int64]) -> None:
        new = np.unique(passages[~np.isin(passages, np.fromiter(self._known, dtype=np.int64, count=len(self._known)))])
        rows = self.text.rows(new)
        tokens = [self.text.tokens[row, : self.text.length[row]].tolist() for row in rows.tolist()]
        for token in {token for line in tokens for token in line} - self._pieces.keys():
            self._pieces[token] = self.text.piece(token)
        strings = {int(i): token_strings(line, self._pieces) for i, line in zip(new, tokens, strict=True)}
        if strings:
            self.simulator.read(strings, self.bar)
            self._known.update(strings)


def open_configured(settings: Settings) -> Simulator:
    """The configured simulator. Raises ConfigError where it is not there, or reads no label."""
    if settings.simulator.kind == "lookup":
        raise ConfigError("simulator.kind = lookup reads no label, so there is nothing to certify; choose another")
    return open_simulator(settings)


def run(settings: Settings, bar: Bar, configured: bool = False, per_density: int | None = None) -> list[Certificate]:
    """Certificates of the reference simulator, of its noisy variant, and of the configured simulator if asked for."""
    simulator = open_configured(settings) if configured else None
    size = Size(20, **SMALL) if configured else Size()
    size = size if per_density is None else size._replace(per_density=per_density)
    with Store.memory() as store:
        found = plant(settings, store, size, bar)
        scorers: list[Scorer] = [*reference_scorers(found, settings.run.seed)]
        certificates = [certify(found, scorer, size, bar) for scorer in scorers]
        if simulator is not None:
            scorer = Configured(simulator, settings.simulator.kind, found.bench.text, bar)
            scorer.threshold = fitted_threshold(found, scorer, CALIBRATION_LABELS)
            certificates.append(certify(found, scorer, size, bar, model=settings.simulator.encoder, census=False))
    return certificates


def as_json(certificates: Sequence[Certificate]) -> dict[str, Any]:
    """All gates in one list, and every certificate whole."""
    found = [certificate.as_json() for certificate in certificates]
    return {"gates": [gate for certificate in found for gate in certificate["gates"]], "certificates": found}
