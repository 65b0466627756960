"""The causal score: effects at one KL, words by meaning, a second axis that nothing else reads."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autointerp import causal, causal_judge, causal_shown, report
from autointerp import dictionary as dictionaries
from autointerp.causal import METRICS, p_of
from autointerp.config import SubjectSection
from autointerp.dictionary import Dictionary
from autointerp.errors import Unreachable
from autointerp.intervene import Edit, intervening, written_by
from autointerp.lexicon import Lexicon
from autointerp.llm import Job
from autointerp.matched import TOLERANCE, Prompts, random_directions, search
from autointerp.rows import Score
from autointerp.store import Store
from autointerp.store_causal import causal_scores
from autointerp.subject import Subject
from autointerp.tally import Bar

from .doubles import FakeDoor
from .test_cli import Autointerp, autointerp, refused  # noqa: F401
from .test_pipeline import finished_run

QUIET = Bar(enabled=False)
POINT = "model.layers.1"
KL = 0.002  # the tiny subject is random: its next tokens are nearly uniform, wherever it is pushed
AT = ("--kl", str(KL))
LABEL = "places such as the river and the harbour"


@pytest.fixture(scope="module")
def subject(tiny: dict[str, Path]) -> Subject:
    return Subject.load(SubjectSection(model=str(tiny["subject"]), dtype="float32", device="cpu"))  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def dictionary(tiny: dict[str, Path]) -> Dictionary:
    return dictionaries.load(str(tiny["dictionary"]))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


# -- matched KL --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(
    "kl_of",
    [
        lambda a: 0.02 * a**2,
        lambda a: 0.3 * math.sqrt(a),
        lambda a: 0.01 * a if a < 20 else float("inf"),  # breaks soon after the amount that is looked for
        lambda a: 5 / (1 + math.exp(8 - a)),
    ],
)
def test_the_amount_of_a_kl_is_found_wherever_one_begins(kl_of: Callable[[float], float], start: float) -> None:
    amount = search(kl_of, 0.15, start)
    assert amount is not None and kl_of(amount) == pytest.approx(0.15, rel=TOLERANCE)


def test_a_kl_that_no_amount_gives_is_none() -> None:
    assert search(lambda a: min(a, 0.2), 0.5, 1.0) is None
    assert search(lambda _: float("inf"), 0.5, 1.0) is None


def test_a_push_has_the_kl_and_the_change_of_a_direct_computation(subject: Subject, dictionary: Dictionary) -> None:
    ids = np.random.default_rng(0).integers(2, 400, (3, 9)).tolist()
    texts = Prompts(subject, POINT, ids, first=2)
    found = texts.pushed(dictionary, 7, KL, 1.0)
    assert found is not None and found.kl == pytest.approx(KL, rel=TOLERANCE)
    with torch.no_grad():
        before = subject.model(input_ids=torch.tensor(ids)).logits[:, 2:].log_softmax(-1)
        with intervening(subject, POINT, dictionary, [Edit(7, "add", found.amount)]):
            after = subject.model(input_ids=torch.tensor(ids)).logits[:, 2:].log_softmax(-1)
    assert found.kl == pytest.approx(float((before.exp() * (before - after)).sum(-1).mean()), rel=1e-4)
    torch.testing.assert_close(found.change, (after - before).mean(dim=1), rtol=1e-4, atol=1e-5)


def test_random_directions_have_the_norms_of_the_features(dictionary: Dictionary) -> None:
    scaled = replace(dictionary, W_dec=dictionary.W_dec * torch.linspace(1, 3, 64)[:, None])
    found = random_directions(scaled, [5, 60], 5, seed=3)
    norms = written_by(scaled, [5, 60]).norm(dim=1)
    torch.testing.assert_close(found.W_dec.norm(dim=1), norms[[0, 1, 0, 1, 0]])
    assert torch.equal(found.W_dec[:3], random_directions(scaled, [5, 60], 3, seed=3).W_dec)
    assert not torch.equal(found.W_dec, random_directions(scaled, [5, 60], 5, seed=4).W_dec)


# -- words -------------------------------------------------------------------------------------------------------------


def test_a_label_stands_for_the_words_nearest_to_its_clauses(subject: Subject) -> None:
    lexicon = Lexicon.of(subject, "all-MiniLM-L6-v2", QUIET)
    assert {"river", "harbour", "red"} <= set(lexicon.words)
    near, none = lexicon.similarities([LABEL, '",", ";"'], QUIET)
    assert near is not None and none is None
    tokens = lexicon.tokens(near, 2)
    assert {subject.token_bytes(int(i)).decode() for i in tokens} == {" river", " harbour"}
    logits = np.zeros(subject.vocabulary_size, dtype=np.float32)
    logits[subject.tokenizer(" castle", add_special_tokens=False)["input_ids"][0]] = 2
    assert lexicon.words[lexicon.strongest(logits, 1)[0]] == "castle"


def test_vectors_of_words_are_kept(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Lexicon.of(subject, "all-MiniLM-L6-v2", QUIET)
    monkeypatch.setattr("autointerp.lexicon.sentence_vectors", None)
    assert np.array_equal(Lexicon.of(subject, "all-MiniLM-L6-v2", QUIET).vectors, first.vectors)


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run(tiny), tmp_path / "t"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer directions; all else as it is."""
    monkeypatch.setattr(causal, "RANDOM", 6)
    monkeypatch.setattr(causal, "RANDOM_LENS", 8)


def scores(run: Path) -> list[Score]:
    with Store.read(run / "run.duckdb") as store:
        rows = store.query("SELECT * FROM score WHERE metric LIKE 'causal%' OR metric LIKE 'lens%' ORDER BY ALL")[1]
    return [Score(*row) for row in rows]


@pytest.mark.usefixtures("small")
def test_every_labelled_feature_has_every_number_or_its_reason(run: Path, autointerp: Autointerp) -> None:  # noqa: F811
    ended = autointerp("causal", str(run), *AT, "--json")
    assert ended.code == 0, ended
    found = json.loads(ended.out)
    with Store.read(run / "run.duckdb") as store:
        labelled = [label.feature for label in report.read(store).labels if label.label]
    assert [row["feature"] for row in found["features"]] == labelled
    for row in found["features"]:
        assert all(row[metric] is not None or row["reasons"][metric] for metric in METRICS)
        assert row["causal_kl"] == pytest.approx(KL, rel=TOLERANCE)
        assert row["causal_lo"] <= row["causal"] <= row["causal_hi"]
        assert row["causal_strength"] > 0 and 1 / 7 <= row["causal_p"] <= 1
    means = [row["causal"] for row in found["features"]]
    assert found["summary"]["causal"]["mean"] == pytest.approx(np.mean(means))
    assert "causal: 6 ok" in ended.err
    shown = autointerp("show", str(labelled[0]), str(run)).out
    line = next(text for text in shown.splitlines() if text.startswith("causal "))
    assert f"causal {found['features'][0]['causal']:+.2f} [" in line and "nats above random directions" in line
    table = autointerp("causal", str(run), *AT).out
    assert "chance 50%" in table and "rank correlation" in table
    again = autointerp("causal", str(run), *AT, "--json")
    assert again.out == ended.out and "causal:" not in again.err


@pytest.mark.usefixtures("small")
def test_a_command_that_goes_on_finds_what_one_that_never_stopped_does(run: Path, tmp_path: Path, autointerp: Autointerp) -> None:  # noqa: F811
    with Store.read(run / "run.duckdb") as store:
        first = next(label.feature for label in report.read(store).labels if label.label)
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    assert autointerp("causal", str(run), *AT, "--features", str(first)).code == 0
    assert {row.feature for row in scores(run)} == {first}
    for folder in (run, whole):
        assert autointerp("causal", str(folder), *AT).code == 0
    assert scores(run) == scores(whole)


@pytest.mark.usefixtures("small")
def test_no_grade_choice_or_verdict_reads_it(run: Path, autointerp: Autointerp) -> None:  # noqa: F811
    before = autointerp("report", str(run), "--json").out, autointerp("search", "river", str(run), "--json").out
    with Store.read(run / "run.duckdb") as store:
        reading = report.read(store)
        chosen, verdicts = store.chosen(reading.run), store.query("SELECT * FROM verdict ORDER BY ALL")
    assert autointerp("causal", str(run), *AT).code == 0
    with Store.create(run / "run.duckdb") as store:  # as large as can be: whoever reads one would follow it
        store.db.execute("UPDATE score SET value = 1e6 WHERE metric IN (SELECT unnest(?)) AND status = 'ok'", [list(METRICS)])
    after = autointerp("report", str(run), "--json").out, autointerp("search", "river", str(run), "--json").out
    assert after == before
    with Store.read(run / "run.duckdb") as store:
        assert store.chosen(reading.run) == chosen
        assert store.query("SELECT * FROM verdict ORDER BY ALL") == verdicts
        kept = {(s.simulator_id, s.metric) for split in ("select", "score") for s in store.scores(reading.run, split)}  # type: ignore[arg-type]
    assert not {metric for _, metric in kept} & set(METRICS)


@pytest.mark.usefixtures("small")
def test_a_direction_that_writes_its_labels_words_beats_random_ones(
    run: Path, dictionary: Dictionary, subject: Subject
) -> None:
    """Planted: a feature whose decoder row is the unembedding of the words that its label names."""
    with Store.read(run / "run.duckdb") as store:
        reading = report.read(store)
        label = next(label for label in reading.labels if label.label)
        reading.labels[reading.labels.index(label)] = planted = replace(label, label='"river", "harbour", "castle"')
        scoring = causal.Scoring(reading, store, KL, QUIET)
    words = [subject.tokenizer(f" {w}", add_special_tokens=False)["input_ids"][0] for w in ("river", "harbour", "castle")]
    row = torch.nn.functional.normalize(subject.model.get_input_embeddings().weight[words].detach().mean(dim=0), dim=0)
    W_dec = dictionary.W_dec.clone()  # noqa: N806
    W_dec[planted.feature] = row
    scoring.dictionary = replace(dictionary, W_dec=W_dec)
    assert scoring.promotion.lens is not None
    scoring.promotion.lens.dictionary = scoring.dictionary
    scoring.tokens[planted.feature] = np.array(words)
    found = scoring.rows(planted)
    assert found["causal"].lo is not None and found["causal"].lo > 0
    assert found["causal_p"].value == pytest.approx(1 / 7) and found["causal_others"].value == 1
    assert found["lens_agreement"].value is not None and found["lens_agreement"].value > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--features", "4096"], "0 to 63"), (["--features", "other/3"], "no feature"), (["--kl", "0"], "")],
)
def test_bad_input_is_one_line(run: Path, autointerp: Autointerp, words: list[str], said: str) -> None:  # noqa: F811
    ended = autointerp("causal", str(run), *words)
    assert ended.code == 2, ended
    if said:
        refused(ended, said)


def test_a_feature_without_a_label_is_one_line(run: Path, autointerp: Autointerp) -> None:  # noqa: F811
    with Store.read(run / "run.duckdb") as store:
        known = {label.feature for label in report.read(store).labels}
    refused(autointerp("causal", str(run), "--features", str(next(i for i in range(64) if i not in known))), "no label")


def test_p_counts_ones_own_value() -> None:
    assert p_of(3.0, np.array([1.0, 2.0, 4.0], dtype=np.float32)) == 0.5
    assert p_of(5.0, np.array([1.0, 2.0, 4.0], dtype=np.float32)) == 0.25


# -- the judge ---------------------------------------------------------------------------------------------------------


def scored_run(run: Path) -> None:
    with Store.create(run / "run.duckdb") as store:
        reading = report.read(store)
        causal.compute(reading, store, causal.labelled(reading), KL, QUIET)


def judged(run: Path, say: Callable[[str], str | Exception]) -> tuple[FakeDoor, list[Score]]:
    with Store.create(run / "run.duckdb") as store:
        reading, door = report.read(store), FakeDoor(lambda job: say(job.request.messages[-1][1]))
        causal_judge.compute(reading, store, causal.labelled(reading), KL, door, QUIET)  # type: ignore[arg-type]
        ids = [label.explanation_id or "" for label in reading.labels]
        return door, causal_scores(store, ids, causal_judge.judge_id(reading.settings, KL))


@pytest.mark.usefixtures("small")
def test_a_judge_who_knows_nothing_is_right_in_a_third_and_asked_once(run: Path) -> None:
    """The right text stands in every place equally often."""
    scored_run(run)
    door, rows = judged(run, lambda _: '{"text": 1}')
    assert len(door.asked) == 6 * causal_judge.BEGINNINGS
    assert [(row.value, row.n) for row in rows] == [(pytest.approx(1 / 3), causal_judge.BEGINNINGS)] * 6
    assert all(row.lo is not None and row.lo < 1 / 3 < (row.hi or 0) for row in rows)
    again, _ = judged(run, lambda _: '{"text": 1}')
    assert not again.asked


@pytest.mark.usefixtures("small")
def test_a_judge_who_sees_the_features_own_text_is_right(run: Path) -> None:
    scored_run(run)
    keys: list[int] = []

    def knows(job: Job[int]) -> str:
        keys.append(job.key[1])
        return json.dumps({"text": job.key[1]})

    with Store.create(run / "run.duckdb") as store:
        reading = report.read(store)
        door = FakeDoor(knows)
        tally = causal_judge.compute(reading, store, causal.labelled(reading), KL, door, QUIET)  # type: ignore[arg-type]
        found = causal_shown.as_json(reading, store, causal.labelled(reading), KL)
    assert tally.ok == 6 and set(keys) == {1, 2, 3}
    assert found["summary"]["causal_choice"] == {"mean": 1.0, "lo": 1.0, "hi": 1.0, "n": 6, "chance": 1 / 3}
    text = door.prompts[0]
    assert text.count("<data>") == text.count("</data>") == 1
    assert sum(line[:2] in ("1:", "2:", "3:") for line in text.splitlines()) == 3


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("reply", "reason"), [('{"text": 4}', "wrong_passage"), ("[1]", "bad_shape"), ("two", "bad_json"), ('{"text": "2"}', "bad_shape")]
)
def test_a_reply_that_cannot_be_used_is_a_reason(run: Path, reply: str, reason: str) -> None:
    scored_run(run)
    _, rows = judged(run, lambda _: reply)
    assert {(row.status, row.value, row.reason) for row in rows} == {("skipped", None, reason)}


@pytest.mark.usefixtures("small")
def test_a_judge_out_of_reach_leaves_features_pending(run: Path) -> None:
    scored_run(run)
    _, rows = judged(run, lambda _: Unreachable("down"))
    assert rows == []


@pytest.mark.usefixtures("small")
def test_nobody_is_asked_before_all_features_have_a_strength(run: Path) -> None:
    with Store.create(run / "run.duckdb") as store:
        reading, door = report.read(store), FakeDoor(lambda _: '{"text": 1}')
        tally = causal_judge.compute(reading, store, causal.labelled(reading), KL, door, QUIET)  # type: ignore[arg-type]
    assert not door.asked and tally.failed == {"not_scored": 6}
