"""What is certified, and on what: planted features in a store with their labels, and scorers that are tried on them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import metrics
from autointerp.config import Settings
from autointerp.errors import ConfigError
from autointerp.grading import PAID_SAYS_SO
from autointerp.planted import NOISE, Feature, Label, Ladder, PlantedText, Planter, Predicate
from autointerp.planted.collection import collect
from autointerp.reference import Errors, ReferenceSimulator
from autointerp.simulators import Simulator, open_simulator
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar
from autointerp.text import token_strings
from autointerp.trials import Bench

DENSITIES = (1e-2, 1e-3, 1e-4)  # that the gates are judged at
TOO_RARE = 1e-5  # ... and one at which the only right answer is "insufficient data"
TOKENS = 2_500_000  # of the corpus that are read, at most: at density 1e-4 less leaves too few passages
NOISE_SD = 0.08  # of the real-valued variant, beside hits of about 1
BACKGROUND = 512  # passages of explain that a simulator is calibrated on
CALIBRATION_LABELS = 16  # labels that a real simulator's threshold is fitted on


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
    bench = Bench(store, identity, text, features, activations, settings.scoring.score_passages, seed)
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


class Configured:
    """The configured simulator as a scorer, as runs use it: a free one claims what it predicts to fire, and for one
    that is paid a free one does."""

    def __init__(self, simulator: Simulator, name: str, text: PlantedText, proxy: "Configured | None" = None) -> None:
        self.simulator, self.name, self.text, self.threshold = simulator, name, text, PAID_SAYS_SO
        self.proxy = proxy or self
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
        """[passage] whether the proxy predicts the label to fire there."""
        return np.asarray(self.proxy.predict([label], passages)[0].max(axis=1) > self.proxy.threshold)

    def _read(self, passages: NDArray[np.int64]) -> None:
        new = np.unique(passages[~np.isin(passages, np.fromiter(self._known, dtype=np.int64, count=len(self._known)))])
        rows = self.text.rows(new)
        tokens = [self.text.tokens[row, : self.text.length[row]].tolist() for row in rows.tolist()]
        for token in {token for line in tokens for token in line} - self._pieces.keys():
            self._pieces[token] = self.text.piece(token)
        strings = {int(i): token_strings(line, self._pieces) for i, line in zip(new, tokens, strict=True)}
        if strings:
            self.simulator.read(strings, Bar(enabled=False))  # the bar is of features: reading is a part of that
            self._known.update(strings)


def configured_scorer(settings: Settings, simulator: Simulator, found: Planted) -> Configured:
    """The configured simulator, ready to be tried."""
    cfg, text, proxy = settings.simulator, found.bench.text, None
    if cfg.paid:
        section = cfg.model_copy(update={"kind": cfg.proxy})
        free = settings.model_copy(update={"simulator": section})
        proxy = configured_scorer(free, open_simulator(free), found)
    scorer = Configured(simulator, cfg.kind, text, proxy)
    if not cfg.paid:  # a paid one sees nothing that its threshold could be fitted on, here as in a run
        scorer.threshold = fitted_threshold(found, scorer, CALIBRATION_LABELS)
    return scorer


def open_configured(settings: Settings) -> Simulator:
    """The configured simulator. Raises ConfigError where it is not there, reads no label, or would have to be paid."""
    kind = settings.simulator.kind
    if kind == "lookup":
        raise ConfigError("simulator.kind = lookup reads no label, so there is nothing to certify; choose another")
    if not settings.simulator.certifiable:
        raise ConfigError(
            f"simulator.kind = {kind} with provider = {settings.simulator.provider} cannot be certified yet: it would "
            "be asked about every planted feature; choose embedding, pattern, or logprob with provider = local"
        )
    return open_simulator(settings)
