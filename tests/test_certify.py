"""The certificate: METHOD's gates hold for the reference simulator on real text, and fail for scorers that are no good."""

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from autointerp import cli, config, puzzles
from autointerp.candidates import Planted, Size, configured_scorer, plant, reference_scorers
from autointerp.certificate import Certificate
from autointerp.certify import JUDGED, as_json, certify
from autointerp.errors import ConfigError
from autointerp.grading import PAID_SAYS_SO
from autointerp.planted import RUNGS
from autointerp.reference import ReferenceSimulator
from autointerp.simulators.pattern import PatternSimulator
from autointerp.store import Store
from autointerp.tally import Bar
from autointerp.trials import METRICS, PAIRED

from .planted_world import SIZE, planted, text

QUIET = Bar(False)
NAMES = {"auroc_shuffled", "auroc_half", "auroc_broad2", "coverage", "null_ks", "missing_extra", "insufficient"}


@pytest.fixture(scope="module")
def certificates() -> dict[str, Certificate]:
    found, _ = planted()
    return {s.name: certify(found, s, SIZE, QUIET) for s in reference_scorers(found, 0)}


@pytest.mark.parametrize("scorer", ["reference", "reference-noisy"])
def test_every_gate_of_the_method_holds(certificates: dict[str, Certificate], scorer: str) -> None:
    """`autointerp certify` plants 146 features per density; these 20 are the same machinery and the same bars."""
    found = certificates[scorer]
    assert set(found.holds) == NAMES
    assert found.holds == dict.fromkeys(NAMES, True), [gate for gate in found.gates if not gate.holds]
    assert found.counts["tested"] >= 55


def test_both_metrics_are_printed_and_the_old_ways_are_blind_beside_them(certificates: dict[str, Certificate]) -> None:
    found = certificates["reference"]
    for name in ("auroc_shuffled", "auroc_half", "auroc_broad2", "missing_extra"):
        assert {gate.metric for gate in found.gates if gate.name == name} == {"r_rank", "f1"}
    table = {(line.density, line.rung, line.metric): line for line in found.table}
    assert {key[2] for key in table} == set(METRICS)
    for density in (1e-3, 1e-4):
        ours = table[density, "broad2", "f1"].auroc
        for old in ("top_and_random", "random_negatives"):
            assert ours - table[density, "broad2", old].auroc > 0.15
    for old in ("top_and_random", "random_negatives"):  # chance, at density 1e-4
        assert 0.3 < table[1e-4, "broad2", old].win_rate < 0.7


def test_two_ways_of_saying_the_same_tie(certificates: dict[str, Certificate]) -> None:
    for line in certificates["reference"].table:
        if line.rung in ("paraphrase", "verbose") and line.metric in PAIRED:
            assert line.known_f1 == 1
            assert abs(line.right - line.other) < 0.05


def test_scores_go_with_the_known_quality_of_labels(certificates: dict[str, Certificate]) -> None:
    for metric in ("r_rank", "f1"):
        assert certificates["reference"].figures[f"spearman_f1.{metric}"] > 0.8
        assert certificates["reference"].figures[f"auroc_broad2.words+field.{metric}"] > 0.75


def test_rungs_and_densities_are_all_there(certificates: dict[str, Certificate]) -> None:
    found = certificates["reference"]
    assert {line.rung for line in found.table} == set(RUNGS) - {"true"}
    assert {line.density for line in found.table} == {1e-2, 1e-3, 1e-4}


def test_the_json_has_the_gates_with_their_names_and_bars(certificates: dict[str, Certificate]) -> None:
    found = json.loads(json.dumps(as_json(list(certificates.values()))))
    assert len(found["certificates"]) == 2
    for gate in found["gates"]:
        assert set(gate) == {"name", "scorer", "metric", "value", "bar", "holds"}
        low, high = gate["bar"] if isinstance(gate["bar"], list) else (gate["bar"], 1.0)
        assert gate["holds"] == (low <= gate["value"] <= high)
    assert {gate["name"] for gate in found["gates"]} == NAMES


def test_the_terminal_names_what_does_not_hold(certificates: dict[str, Certificate]) -> None:
    console = Console(record=True, width=140, file=None, quiet=False)
    with console.capture() as captured:
        certificates["reference"].to_terminal(console)
    assert "broad2" in captured.get()
    assert "all gates hold" in captured.get()


# -- scorers that are no good --------------------------------------------------------------------------------


class Broken:
    """A scorer whose predictions have nothing to do with the label."""

    threshold = 0.5

    def __init__(self, name: str, say: Callable[[str, np.ndarray], np.ndarray]) -> None:
        self.name, self.say = name, say

    def predict(self, labels: Sequence[str], passages: np.ndarray) -> np.ndarray:
        return np.stack([self.say(label, passages).astype(np.float32) for label in labels])

    def claims(self, label: str, passages: np.ndarray) -> np.ndarray:
        return self.predict([label], passages)[0].max(axis=1) > self.threshold


def at_random(label: str, passages: np.ndarray) -> np.ndarray:
    """The same for a passage whenever it is asked about, another for each label."""
    rows = [np.random.default_rng([int(p) % 2**32, len(label), ord(label[-1])]).random(64) for p in passages]
    return np.array(rows) > 0.99


@pytest.fixture(scope="module")
def few() -> object:
    store = Store.memory()
    return plant(config.load(None), store, Size(per_density=6, noise=10, rare=2), QUIET, text())


@pytest.mark.parametrize(
    "say", [lambda label, passages: np.zeros((len(passages), 64)), at_random], ids=["constant", "random"]
)
def test_a_scorer_that_knows_nothing_is_not_certified(few: object, say: Callable) -> None:
    found = certify(few, Broken("broken", say), SIZE, QUIET, census=False)  # type: ignore[arg-type]
    for name in ("auroc_shuffled", "auroc_half", "auroc_broad2", "missing_extra"):
        assert not found.holds[name]
    assert found.holds["insufficient"]


class Counting:
    """A scorer that writes down what it is asked: pairs of label and passage."""

    def __init__(self, scorer: ReferenceSimulator) -> None:
        self.scorer, self.name, self.threshold = scorer, scorer.name, scorer.threshold
        self.asked: Counter[tuple[str, int]] = Counter()

    def predict(self, labels: Sequence[str], passages: np.ndarray) -> np.ndarray:
        self.asked.update((label, passage) for label in labels for passage in passages.tolist())
        return self.scorer.predict(labels, passages)

    def claims(self, label: str, passages: np.ndarray) -> np.ndarray:
        return self.scorer.claims(label, passages)


def test_a_paid_scorer_is_asked_for_what_the_gates_need_and_gets_the_same_numbers(few: Planted) -> None:
    scorer = reference_scorers(few, 0)[0]
    whole = certify(few, scorer, SIZE, QUIET, census=False)
    counting = Counting(scorer)
    spared = certify(few, counting, SIZE, QUIET, census=False, paid=True)
    assert {line.rung for line in spared.table} == set(JUDGED) - {"true"}
    assert {line.metric for line in spared.table} == set(PAIRED)
    known = {(line.density, line.rung, line.metric): line for line in whole.table}
    assert all(line == known[line.density, line.rung, line.metric] for line in spared.table)
    gates = {(gate.name, gate.metric): gate for gate in whole.gates}
    assert all(gate == gates[gate.name, gate.metric] for gate in spared.gates)
    assert {gate.name for gate in spared.gates} == NAMES - {"coverage", "null_ks"}
    judged = [{r: label for r, label in labels.items() if r in JUDGED} for labels in few.labels]
    assert {label for label, _ in counting.asked} == {label.text for labels in judged for label in labels.values()}
    # A feature's firing passages under each label; then hard negatives and others, shared by the right label and a rung.
    n = few.bench.size
    pairs = sum(len(labels) * n // 2 + 2 * (len(labels) - 1) * n // 2 for labels in judged if labels)
    assert 0 < counting.asked.total() <= pairs


def test_a_simulator_that_asks_a_model_is_claimed_for_by_its_free_proxy(few: Planted) -> None:
    settings = config.load(None, ["simulator.kind=logprob", "simulator.proxy=pattern"])

    class Asked:
        """A model that was never asked to claim anything."""

        def read(self, passages: object, bar: Bar) -> None: ...
        def calibrate(self, background: object) -> None: ...
        def predict(self, labels: object, passages: object) -> np.ndarray:
            raise AssertionError("the model was asked")

    scorer = configured_scorer(settings, Asked(), few)
    free = configured_scorer(config.load(None, ["simulator.kind=pattern"]), PatternSimulator(64), few)
    label, panel = few.labels[0]["true"].text, few.bench.panel.passages
    assert scorer.claims(label, panel).tolist() == free.claims(label, panel).tolist()
    assert (scorer.threshold, scorer.proxy.threshold) == (PAID_SAYS_SO, free.threshold)


def test_the_same_seed_gives_the_same_certificate_to_the_last_digit(few: object) -> None:
    first, again = (
        certify(few, reference_scorers(few, 0)[0], SIZE, QUIET, census=False).as_json()  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert first == again


# -- puzzles -------------------------------------------------------------------------------------------------

WORDS = {"war": ["war", "battle"], "sea": ["ship", "wave"], "farm": ["wheat", "plough"]}


def puzzle_file(folder: Path) -> Path:
    """Three puzzles whose explanation is the words on which the feature fires."""
    found = {}
    for name, fires in WORDS.items():
        sentences = [
            ["the", [fires[0], 9], "was", "long"],
            ["a", [fires[1], 7], "and", "the", "year"],
            ["nothing", "here"],
        ]
        found[name] = {
            "name": name,
            "explanation": " ".join(fires),
            "sentences": sentences,
            "false_explanations": ["the year", "was long"],
        }
    path = folder / "puzzles.json"
    path.write_text(json.dumps(found))
    return path


class Literal:
    """A simulator that takes a label for a list of words."""

    def read(self, passages: dict[int, Sequence[str]], bar: Bar) -> None:
        self.tokens = passages

    def calibrate(self, background: np.ndarray) -> None:
        """Nothing to calibrate."""

    def predict(self, labels: Sequence[str], passages: np.ndarray) -> np.ndarray:
        said = np.zeros((len(labels), len(passages), 8), dtype=np.float32)
        for i, label in enumerate(labels):
            for j, passage in enumerate(passages.tolist()):
                for k, token in enumerate(self.tokens[passage]):
                    said[i, j, k] = token in label.split()
        return said


@pytest.mark.parametrize("width", [8, 2])
def test_a_simulator_that_reads_solves_every_puzzle(tmp_path: Path, width: int) -> None:
    solved = puzzles.solve(puzzles.read(puzzle_file(tmp_path)), Literal(), width, QUIET)
    found = puzzles.as_json(solved, "literal")
    assert (found["win_rate"], found["win_rate_false"], found["first"], found["n_constant"]) == (1.0, 1.0, 1.0, 0)
    assert all(puzzle.right > 0.9 for puzzle in solved)


def test_a_simulator_that_says_nothing_is_at_chance(tmp_path: Path) -> None:
    class Nothing(Literal):
        def predict(self, labels: Sequence[str], passages: np.ndarray) -> np.ndarray:
            return np.zeros((len(labels), len(passages), 8), dtype=np.float32)

    found = puzzles.as_json(puzzles.solve(puzzles.read(puzzle_file(tmp_path)), Nothing(), 8, QUIET), "nothing")
    assert (found["win_rate"], found["win_rate_false"], found["first"]) == (0.5, 0.5, 0.0)
    assert found["n_constant"] == 3
    assert found["mean_correlation"] is None


def test_openais_own_puzzles_are_read() -> None:
    spec = importlib.util.find_spec("neuron_explainer")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install --no-deps automated-interpretability")
    found = puzzles.read(Path(spec.submodule_search_locations[0]) / "explanations" / "puzzles.json")
    assert len(found) == 19
    assert sum(len(puzzle.false_explanations) for puzzle in found) == 63
    assert found[0].explanation == "words related to colors and nothing else"
    assert (found[0].sentences[0].tokens[0], found[0].sentences[0].activations[0]) == ("Green", 9.0)


GOOD = {"explanation": "x", "sentences": [["a", ["b", 1]]], "false_explanations": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "object of puzzles"),
        ('{"a": 3}', "object of puzzles"),
        ("{", "JSON"),
        (json.dumps({"a": GOOD}), "at least 2"),
        (json.dumps({"a": GOOD, "b": GOOD | {"explanation": " "}}), "'b'.*explanation"),
        (json.dumps({"a": GOOD, "b": GOOD | {"explanation": None}}), "explanation"),
        (json.dumps({"a": GOOD, "b": GOOD | {"sentences": []}}), "sentences"),
        (json.dumps({"a": GOOD, "b": GOOD | {"sentences": ["a b"]}}), "sentences"),
        (json.dumps({"a": GOOD, "b": GOOD | {"sentences": [["a", ["b", "high"]]]}}), "pair"),
        (json.dumps({"a": GOOD, "b": GOOD | {"sentences": [["a", ["b", 1, 2]]]}}), "pair"),
        ('{"a": {"explanation": "x", "sentences": [[["b", NaN]]]}, "b": {}}', "pair"),
        (json.dumps({"a": GOOD, "b": GOOD | {"false_explanations": "no"}}), "false_explanations"),
    ],
)
def test_a_file_of_another_shape_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as problem:
        puzzles.read(path)
    assert "\n" not in str(problem.value)


def test_the_command_says_so_and_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["--puzzles", "nowhere.json"], "no puzzles at nowhere.json"),
        (["--simulator", "--set", "simulator.kind=lookup"], "reads no label"),
        (["--simulator", "--set", "simulator.kind=chat"], "cannot be certified yet"),
    ):
        monkeypatch.setattr(sys, "argv", ["autointerp", "certify", *arguments])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        assert ending.value.code == 2
        assert said in capsys.readouterr().err
