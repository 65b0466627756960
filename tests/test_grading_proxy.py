"""Who claims, who predicts, who chooses: a free proxy reads the panel, and a paid simulator sees the chosen label alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autointerp import config, keys, score, simulate
from autointerp.config import Settings
from autointerp.errors import Unreachable
from autointerp.grading import PAID_NULLS, Grading
from autointerp.keys import scorer_id, simulator_id
from autointerp.simulators import AskingSimulator, Lost, Predicted

from .test_simulate import Bench, MakeBench, Reader
from .test_simulate import bench as bench  # a fixture
from .test_simulate import planted as planted  # a fixture


class Watched(Reader):
    """A perfect simulator that keeps a list of what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []  # (label, passage)

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        self.asked += [(label, int(p)) for label in labels for p in passages]
        return super().predict(labels, passages)


class Asked(Watched):
    """The same, asked for many pairs at once; loses the passages that `loses` says, or cannot be reached at all."""

    def __init__(self, loses: Callable[[str, int], Lost | None] = lambda label, passage: None) -> None:
        super().__init__()
        self.loses, self.unreachable = loses, set[str]()

    def ask(self, wanted: Sequence[tuple[str, NDArray[np.int64]]]) -> Iterator[tuple[int, Predicted]]:
        for place, (label, passages) in reversed(list(enumerate(wanted))):  # not in the order of asking
            if label in self.unreachable:
                continue
            lost = {p: why for p in passages.tolist() if (why := self.loses(label, p)) is not None}
            values = self.predict([label], passages)[0]
            values[[p in lost for p in passages.tolist()]] = np.nan
            yield place, Predicted(values, lost)
        if self.unreachable & {label for label, _ in wanted}:
            raise Unreachable("no answer")


@pytest.fixture
def doubles(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """doubles(labels, proxy, simulator, section__key=value): a Bench with a double for each part."""

    def make(labels: Mapping[int, Sequence[str]], proxy: object, simulator: object, **changes: object) -> Bench:
        found = bench(labels, proxy, **changes)
        kinds = {"embedding": proxy, found.grading.settings.simulator.kind: simulator}
        monkeypatch.setattr("autointerp.grading.open_simulator", lambda settings: kinds[settings.simulator.kind])
        return found

    return make


def grade_all(grading: Grading) -> None:
    """Both splits, as a run does."""
    for split in ("select", "score"):
        simulate.run(grading, split)  # type: ignore[arg-type]
        score.run(grading, split)  # type: ignore[arg-type]


def right_and_wrong(words: Mapping[int, str]) -> dict[int, list[str]]:
    """Three features, each with a wrong label before the right one."""
    return {f: [words[f + 1], words[f]] for f in (0, 1, 2)}


PAID = {"simulator__kind": "logprob", "features__select": "0,1,2", "simulator__passages": 12}


# -- keys --------------------------------------------------------------------------------------------------------------


def ids(*overrides: str) -> tuple[str, str]:
    """Simulator and scoring design of the default configuration with changes."""
    settings = config.load(None, ["explainer.methods=['mined']", *overrides])
    explainers = {"mined": keys.explainer_id(settings, "mined")}
    return simulator_id(settings, settings.simulator.kind), scorer_id(settings, explainers)


def test_the_keys_of_what_could_be_asked_before_are_what_they_were() -> None:
    assert ids() == ("57d7dbdebe3e0f00", "78315df38c3942e9")
    assert ids("simulator.kind=lookup") == ("d01f043fdefadf4c", "871bdf0c500d3fc0")


def test_simulators_that_are_claimed_for_by_the_same_proxy_are_graded_on_the_same_passages() -> None:
    design = ids()[1]
    assert ids("simulator.kind=pattern")[1] == design
    assert ids("simulator.kind=pattern", "simulator.proxy=pattern")[1] != design
    paid = ids("simulator.kind=logprob")[1]
    assert paid != design, "fewer passages are another design"
    assert ids("simulator.kind=chat")[1] == paid
    assert ids("simulator.kind=chat", "simulator.passages=20")[1] != paid


@pytest.mark.parametrize(
    ("kind", "change", "differs"),
    [
        ("logprob", "simulator.model=a/b", True), ("logprob", "simulator.batch=3", False),
        ("logprob", "simulator.per_call=3", False), ("chat", "simulator.per_call=3", True),
        ("chat", "simulator.max_new_tokens=9", True), ("chat", "simulator.provider=anthropic", True),
        ("chat", "simulator.batch=3", False), ("embedding", "simulator.model=a/b", False),
        ("embedding", "simulator.floor_quantile=.9", True), ("pattern", "simulator.encoder=x", False),
    ],
)  # fmt: skip
def test_a_key_holds_what_a_kind_uses_and_nothing_else(kind: str, change: str, differs: bool) -> None:
    plain = [f"simulator.kind={kind}"]
    assert (ids(*plain, change)[0] != ids(*plain)[0]) == differs


@pytest.mark.parametrize("change", ["simulator.top_logprobs=40", "simulator.tokenizer=a/b", "simulator.base_url=http://h/v1"])
def test_a_model_on_a_server_has_keys_of_its_own(change: str) -> None:
    local = ["simulator.kind=logprob", "simulator.model=m"]
    served = [*local, "simulator.provider=openai", "simulator.base_url=http://here/v1"]
    assert ids(*served)[0] != ids(*local)[0] and ids(*served)[1] == ids(*local)[1], "the same passages are graded"
    assert ids(*served, change)[0] != ids(*served)[0]
    if "base_url" not in change:
        assert ids(*local, change)[0] == ids(*local)[0]


# -- a free simulator beside its proxy ---------------------------------------------------------------------------------


def test_a_free_simulator_predicts_every_candidate_on_what_the_proxy_claimed(doubles: Any, bench: MakeBench) -> None:
    proxy, simulator = Watched(), Watched()
    labels = right_and_wrong(bench.words)
    few = {"features__select": "0,1,2", "score__nulls": 0}  # nulls have passages of their own
    found = doubles(labels, proxy, simulator, simulator__kind="pattern", **few)
    alone = bench(labels, Watched(), **few)
    bench.monkeypatch.setattr("autointerp.grading.open_simulator", lambda settings: {"embedding": proxy, "pattern": simulator}[settings.simulator.kind])
    grade_all(found.grading)
    simulator_asked = set(simulator.asked)
    bench.monkeypatch.setattr("autointerp.grading.open_simulator", lambda settings: Watched())
    grade_all(alone.grading)
    for split in ("select", "score"):
        drawn = found.draws(split)
        assert drawn == alone.draws(split), "who predicts does not change the passages"
        assert len(drawn) == 6
    panel = set(found.grading.design("score").panel.passages.tolist())
    assert {p for _, p in proxy.asked} >= panel
    # On select it also reads what its own threshold is fitted on; on score nothing but what was drawn.
    known = found.store.passages(found.grading.run.collection_id)
    on_score = {p for _, p in simulator_asked if known[p].split == "score"}
    assert on_score == {row.passage_id for rows in found.draws("score").values() for row in rows}
    assert found.grading.run.chooser_id is None


# -- a paid simulator --------------------------------------------------------------------------------------------------


def test_a_paid_simulator_sees_the_chosen_labels_scoring_set_and_nothing_else(doubles: Any, bench: MakeBench) -> None:
    proxy, simulator = Watched(), Asked()
    assert isinstance(simulator, AskingSimulator) and not isinstance(proxy, AskingSimulator)
    found = doubles(right_and_wrong(bench.words), proxy, simulator, **PAID, score__nulls=0)
    grade_all(found.grading)
    assert {label for label, _ in simulator.asked} == {bench.words[f] for f in (0, 1, 2)}, "the right one was chosen"
    drawn = found.draws("score")
    assert len(drawn) == 3
    assert sorted(p for _, p in simulator.asked) == sorted(row.passage_id for rows in drawn.values() for row in rows)
    assert all(6 < len(rows) <= 12 for rows in drawn.values())
    assert all(len(rows) > 12 for rows in found.draws("select").values()), "the proxy is free"


def test_the_proxy_chooses_on_select_and_the_simulator_grades_on_score(doubles: Any, bench: MakeBench) -> None:
    found = doubles(right_and_wrong(bench.words), Watched(), Asked(), **PAID, score__nulls=0)
    grade_all(found.grading)
    run = found.grading.run
    assert run.chooser_id == simulator_id(found.grading.settings, "embedding") != run.simulator_id
    assert [e.label for e in found.store.chosen(run)] == [bench.words[f] for f in (0, 1, 2)]
    who = found.store.query("SELECT DISTINCT split, simulator_id FROM simulation ORDER BY split")[1]
    assert who == [("select", run.chooser_id), ("score", run.simulator_id)]
    assert {s.simulator_id for s in found.store.scores(run, "select")} == {run.chooser_id}
    assert not simulate.run(found.grading, "score").worked, "nothing is pending"


def test_a_perfect_paid_simulator_scores_1(doubles: Any, bench: MakeBench) -> None:
    found = doubles(right_and_wrong(bench.words), Watched(), Asked(), **PAID, score__nulls=0)
    grade_all(found.grading)
    ranks = [s for s in found.store.scores(found.grading.run, "score") if s.metric == "r_rank"]
    assert len(ranks) == 3
    assert [s.value for s in ranks] == pytest.approx([1, 1, 1], abs=1e-6)


def test_a_lost_passage_is_a_row_with_its_reason_and_its_label_has_no_score(doubles: Any, bench: MakeBench) -> None:
    word = bench.words[1]
    simulator = Asked(lambda label, p: Lost("unparsed", "quote_not_found") if label == word and p % 3 == 0 else None)
    found = doubles(right_and_wrong(bench.words), Watched(), simulator, **PAID, score__nulls=0)
    grade_all(found.grading)
    rows = found.store.query(
        "SELECT label, s.status::VARCHAR, s.reason, count(*), count(predicted), count(positions) FROM simulation s "
        "JOIN explanation USING (explanation_id) WHERE split = 'score' AND s.status <> 'ok' GROUP BY ALL"
    )[1]
    assert [(label, status, reason, p, q) for label, status, reason, _, p, q in rows] == [
        (word, "unparsed", "quote_not_found", 0, 0)
    ]
    scores = {s.feature: s for s in found.store.scores(found.grading.run, "score") if s.metric == "r_rank"}
    assert (scores[1].status, scores[1].value, scores[1].reason) == ("skipped", None, "quote_not_found")
    assert scores[0].value == pytest.approx(1)


def test_what_cannot_be_reached_stays_pending_and_the_rest_is_written(doubles: Any, bench: MakeBench) -> None:
    simulator = Asked()
    found = doubles(right_and_wrong(bench.words), Watched(), simulator, **PAID, score__nulls=0)
    simulator.unreachable = {bench.words[1]}
    simulate.run(found.grading, "select")
    score.run(found.grading, "select")
    tally = simulate.run(found.grading, "score")
    lost = tally.failed["unreachable"]
    assert 6 < lost <= 12 and set(tally.failed) == {"unreachable"}
    assert found.store.query("SELECT count(*) FROM draw WHERE split = 'score'")[1] == [(tally.ok,)]
    simulator.unreachable = set()
    before = len(simulator.asked)
    assert simulate.run(found.grading, "score").ok == lost
    assert {label for label, _ in simulator.asked[before:]} == {bench.words[1]}


# -- nulls of a paid simulator -----------------------------------------------------------------------------------------


def test_nulls_of_a_paid_simulator_are_one_label_for_a_sample_of_features(doubles: Any, bench: MakeBench) -> None:
    paid = doubles(right_and_wrong(bench.words), Watched(), Asked(), **PAID).grading
    free = bench(right_and_wrong(bench.words), Watched(), features__select="0,1,2").grading
    assert (paid.n_nulls, free.n_nulls) == (1, 8)
    sampled = paid.with_null(range(1000))
    assert len(sampled) == PAID_NULLS and sampled < set(range(1000))
    assert paid.with_null(reversed(range(1000))) == sampled
    assert max(sampled) > 500, "drawn at random, not the first ones"
    assert paid.with_null(range(3)) == {0, 1, 2} and free.with_null(range(1000)) == set(range(1000))


def test_a_paid_null_that_was_lost_is_no_zero(doubles: Any, bench: MakeBench) -> None:
    known: set[tuple[str, int]] = set()
    simulator = Asked()
    found = doubles(right_and_wrong(bench.words), Watched(), simulator, **PAID)
    simulate.run(found.grading, "select")
    score.run(found.grading, "select")
    simulate.run(found.grading, "score")
    known |= set(simulator.asked)

    class Losing(Asked):
        def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
            return np.full((len(labels), len(passages), self.width), np.nan, dtype=np.float32)

    found.grading._simulators["logprob"] = Losing()  # only nulls are predicted from here on
    score.run(found.grading, "score")
    nulls = [s for s in found.store.scores(found.grading.run, "score") if s.metric == "null"]
    assert {(s.status, s.value) for s in nulls} == {("skipped", None)}


def test_settings_say_how_many_passages_are_in_force() -> None:
    def size(*overrides: str) -> int:
        settings: Settings = config.load(None, list(overrides))
        return settings.scoring.score_passages

    assert size() == size("simulator.kind=pattern") == size("simulator.kind=lookup") == 160
    assert size("simulator.kind=logprob") == size("simulator.kind=chat") == 40
    assert size("simulator.kind=chat", "simulator.passages=64") == 64
