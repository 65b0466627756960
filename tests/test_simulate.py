"""Scoring sets and predictions: drawn by the rules of METHOD.md, from the label alone, rivals on the same ground."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from autointerp import config, simulate
from autointerp.config import Settings, fingerprint
from autointerp.grading import Grading
from autointerp.pipeline import Pipeline, prepare
from autointerp.rows import Draw, Explanation, Split
from autointerp.store import Store
from autointerp.tally import Bar

from . import conftest as made_of
from .conftest import tiny_overrides

# Each is one token of the tiny tokenizer in the middle of a sentence, so a detector of the token detects the word.
PLANTED = [*made_of.COLOURS, *made_of.PLACES]


# -- planted truth: features that detect exactly one token -------------------------------------------------------------


def write_detectors(folder: Path, subject: Path) -> tuple[Path, dict[int, str]]:
    """A dictionary on the token embeddings whose features fire on one token each, and feature -> word."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(subject)
    embedding = AutoModelForCausalLM.from_pretrained(subject).get_input_embeddings().weight.detach().float()
    ids = [tokenizer(" " + word, add_special_tokens=False)["input_ids"] for word in PLANTED]
    found = [(word, i[0]) for word, i in zip(PLANTED, ids, strict=True) if len(i) == 1]
    rows = embedding[[i for _, i in found]]
    w = rows / (rows**2).sum(dim=1, keepdim=True)  # 1 on its own token
    others = embedding @ w.T
    others[[i for _, i in found], range(len(found))] = 0
    threshold = float(others.max())
    assert threshold < 0.97, "random embeddings came out too much alike"
    folder.mkdir(parents=True, exist_ok=True)
    bias = torch.full((len(found),), -(threshold + 1) / 2)
    save_file(
        {"W_enc": w.T.contiguous(), "W_dec": rows.contiguous(), "b_enc": bias, "b_dec": torch.zeros(32)},
        folder / "sae_weights.safetensors",
    )
    (folder / "cfg.json").write_text('{"architecture": "standard", "d_in": 32, "d_sae": %d}' % len(found))  # noqa: UP031
    return folder, {feature: word for feature, (word, _) in enumerate(found)}


class Planted:
    """A collected run of detectors; `store` gives each test its own copy."""

    def __init__(self, settings: Settings, words: dict[int, str]) -> None:
        self.settings, self.words = settings, words

    def copy(self, results: Path, **changes: object) -> Settings:
        """Settings of a copy of the run in another results folder; section__key=value changes them."""
        made = self.settings.model_dump()
        made["run"]["results"] = results
        for key, value in changes.items():
            section, name = key.split("__")
            made[section][name] = value
        settings = Settings.model_validate(made)
        shutil.copytree(self.settings.folder, settings.folder)
        return settings


_planted: dict[Path, Planted] = {}


def planted_run(tiny: dict[str, Path]) -> Planted:
    """The planted collection, made once for all modules; nothing is explained yet."""
    root = tiny["root"]
    if root not in _planted:
        folder, words = write_detectors(root / "planted" / "detectors", tiny["subject"])
        settings = config.load(None, tiny_overrides(
            tiny, root / "planted" / "results", dictionary__source=folder, subject__hookpoint="model.embed_tokens",
            features__select="all", explainer__candidates=2, collect__panel=900, score__nulls=8,
        ))  # fmt: skip
        with Store.create(settings.database) as store, Bar(enabled=False) as bar:
            Pipeline(store, prepare(settings), bar, lambda _: None).collect()
        _planted[root] = Planted(settings, words)
    return _planted[root]


@pytest.fixture(scope="session")
def planted(tiny: dict[str, Path]) -> Planted:
    """A collection of features whose truth is known."""
    return planted_run(tiny)


class Reader:
    """A fake simulator that predicts 1 on every token that holds a word of the label, and 0 elsewhere."""

    width = 64

    def __init__(self) -> None:
        self.texts: dict[int, Sequence[str]] = {}

    def read(self, passages: Mapping[int, Sequence[str]], bar: Bar) -> None:
        self.texts |= passages

    def calibrate(self, background: NDArray[np.int64]) -> None:
        pass

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        result = np.zeros((len(labels), len(passages), self.width), dtype=np.float32)
        for i, label in enumerate(labels):
            wanted = set(label.replace(",", " ").split())
            for j, passage in enumerate(passages.tolist()):
                for k, token in enumerate(self.texts[passage]):
                    result[i, j, k] = token.strip() in wanted
        return result


def label_rows(pipeline: Pipeline, labels: Mapping[int, Sequence[str]]) -> list[Explanation]:
    """Explanations as the explainer of the run would have written them."""
    (explainer,) = pipeline.labellings[0].target.keys.explainers.values()
    collection = pipeline.labellings[0].target.keys.collection_id
    rows = []
    for feature, found in labels.items():
        for draw, label in enumerate(found):
            key = fingerprint([collection, feature, explainer, draw])
            rows.append(
                Explanation(key, collection, feature, explainer, "mined", None, draw, "ok", label, None, None)
            )
    return rows


class Bench:
    """A pipeline on planted features, with labels of our choice and a simulator of our choice."""

    def __init__(
        self, settings: Settings, labels: Mapping[int, Sequence[str]], store: Store, bar: Bar
    ) -> None:
        self.pipeline = Pipeline(store, prepare(settings), bar, lambda _: None)
        store.add(label_rows(self.pipeline, labels))
        self.store = store

    @property
    def grading(self) -> Grading:
        return self.pipeline.labellings[0].grading

    def draws(self, split: Split) -> dict[str, list[Draw]]:
        """The scoring sets of a split, by explanation."""
        ids = [e.explanation_id for e in self.grading.wanted(split)]
        return self.store.drawn(ids, self.grading.run.scorer_id, split)


@pytest.fixture
def bench(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["MakeBench"]:
    """bench(labels, simulator, section__key=value) -> a Bench on a copy of the planted run."""
    made = MakeBench(planted, tmp_path, monkeypatch)
    yield made
    made.close()


class MakeBench:
    """Opens benches, and closes them."""

    def __init__(self, planted: Planted, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.planted, self.folder, self.monkeypatch = planted, folder, monkeypatch
        self.words = planted.words
        self.opened: list[Store] = []

    def __call__(self, labels: Mapping[int, Sequence[str]], simulator: object, **changes: object) -> Bench:
        self.monkeypatch.setattr("autointerp.grading.open_simulator", lambda settings: simulator)
        settings = self.planted.copy(self.folder / str(len(self.opened)), **changes)
        self.opened.append(Store.create(settings.database))
        return Bench(settings, labels, self.opened[-1], Bar(enabled=False))

    def close(self) -> None:
        for store in self.opened:
            store.close()


# -- scoring sets ------------------------------------------------------------------------------------------------------


def test_the_planted_features_fire_on_their_token_and_nowhere_else(bench: MakeBench) -> None:
    found = bench({}, Reader(), features__select="0,1,2")
    for feature in (0, 1, 2):
        ids, firing, _ = found.grading.evidence.firing(feature)
        strings = [found.grading.texts.strings(int(i)) for i in ids]
        at = {(int(r), int(p)) for r, p in zip(firing.row, firing.position, strict=True)}
        word = " " + bench.words[feature]
        assert at == {(r, p) for r, passage in enumerate(strings) for p, s in enumerate(passage) if s == word}
        assert len(at) > 50


def test_half_a_scoring_set_fires_a_quarter_is_hard_and_the_rest_is_silent(bench: MakeBench) -> None:
    found = bench({0: [f"{bench.words[0]}, {bench.words[1]}"]}, Reader(), features__select="0")
    simulate.run(found.grading, "score")
    (draws,) = found.draws("score").values()
    strata = [row.stratum for row in draws]
    size = found.grading.settings.score.score_passages
    firing = found.grading.design("score").firing(0)
    assert {s: strata.count(s) for s in "ABC"} == {
        "A": min(size // 2, len(firing)),
        "B": size // 4,
        "C": size // 4,
    }
    assert {row.passage_id for row in draws if row.stratum == "A"} <= set(firing.tolist())


def test_hard_negatives_that_are_claimed_are_those_that_the_label_names_in_error(bench: MakeBench) -> None:
    wrong = bench.words[1]
    found = bench({0: [f"{bench.words[0]}, {wrong}"]}, Reader(), features__select="0")
    simulate.run(found.grading, "score")
    (draws,) = found.draws("score").values()
    claimed = {row.passage_id for row in draws if row.kind == "claimed"}
    others = {row.passage_id for row in draws if row.stratum == "C" or row.kind == "token"}
    assert claimed
    for passage in claimed | others:
        text = found.grading.texts.strings(passage)
        assert " " + bench.words[0] not in text
        assert (" " + wrong in text) == (passage in claimed)


def test_the_strata_together_stand_for_every_passage_of_the_split(bench: MakeBench) -> None:
    found = bench(
        {f: [word] for f, word in list(bench.words.items())[:4]}, Reader(), features__select="0,1,2,3"
    )
    simulate.run(found.grading, "score")
    design = found.grading.design("score")
    kinds = ("fires", "claimed", "token", "silent")
    for draws in found.draws("score").values():
        populations = {row.kind: row.population for row in draws}
        assert set(populations) <= set(kinds)
        # A kind that has no passage in the panel has no cell, and its population is 0.
        assert sum(populations.values()) == pytest.approx(design.n_passages, rel=1e-6)
        for kind, population in populations.items():
            weights = [row.weight for row in draws if row.kind == kind]
            assert sum(weights) == pytest.approx(population)
            assert min(weights) >= 1 - 1e-9


def test_candidates_of_a_feature_are_compared_on_the_union_of_their_hard_negatives(bench: MakeBench) -> None:
    w = bench.words
    labels = {0: [w[0], f"{w[0]}, {w[1]}", f"{w[0]}, {w[2]}"]}
    found = bench(labels, Reader(), features__select="0", collect__panel=900)
    simulate.run(found.grading, "select")
    draws = list(found.draws("select").values())
    union = {row.passage_id for rows in draws for row in rows if row.stratum == "B"}
    own = [{row.passage_id for row in rows if row.stratum == "B" and row.kind != "rival"} for rows in draws]
    assert len(draws) == 3
    assert len({frozenset(o) for o in own}) > 1, "the candidates should have hard negatives of their own"
    for rows in draws:
        assert union <= {row.passage_id for row in rows}
        rivals = [row for row in rows if row.kind == "rival"]
        assert all(row.stratum == "B" and row.population == 0 and row.weight == 0 for row in rivals)
        assert len({row.passage_id for row in rows}) == len(rows), "a passage is in a set once"
    assert any(row.kind == "rival" for rows in draws for row in rows)


def test_rivals_are_for_select_alone(bench: MakeBench) -> None:
    w = bench.words
    found = bench({0: [w[0], f"{w[0]}, {w[1]}"]}, Reader(), features__select="0")
    simulate.run(found.grading, "score")
    assert all(row.kind != "rival" for rows in found.draws("score").values() for row in rows)


def test_what_a_label_is_tested_on_does_not_depend_on_which_others_are_simulated_before(
    bench: MakeBench,
) -> None:
    labels = {f: [word] for f, word in list(bench.words.items())[:4]}
    first = bench(labels, Reader(), features__select="0,1,2,3")
    simulate.run(first.grading, "score")
    second = bench(dict(reversed(labels.items())), Reader(), features__select="3,2,1,0")
    simulate.run(second.grading, "score")
    a, b = first.draws("score"), second.draws("score")
    assert {key: {(r.passage_id, r.kind) for r in rows} for key, rows in a.items()} == {
        key: {(r.passage_id, r.kind) for r in rows} for key, rows in b.items()
    }


class Guess(Reader):
    """Predicts by a hash of the token and the label, so that peaks of firing and silent passages overlap."""

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        right = super().predict(labels, passages)
        noise = [
            [np.random.default_rng([*z.encode(), p]).random(self.width) for p in passages.tolist()]
            for z in labels
        ]
        uniform = np.array(noise, dtype=np.float32)
        return uniform**40 + right * uniform


def test_what_a_label_is_tested_on_in_score_does_not_depend_on_how_many_passages_select_has(
    bench: MakeBench,
) -> None:
    drawn = []
    for size in (20, 8):
        labels = {f: [word] for f, word in list(bench.words.items())[:4]}
        made = bench(labels, Guess(), features__select="0,1,2,3", score__select_passages=size)
        simulate.run(made.grading, "score")
        drawn.append(
            {key: sorted((r.passage_id, r.kind) for r in rows) for key, rows in made.draws("score").items()}
        )
    assert len(drawn[0]) == 4
    assert drawn[0] == drawn[1]


# -- predictions -------------------------------------------------------------------------------------------------------


def test_a_stored_simulation_is_the_simulators_prediction(bench: MakeBench) -> None:
    word = bench.words[0]
    found = bench({0: [word]}, Reader(), features__select="0")
    tally = simulate.run(found.grading, "score")
    (label,) = found.grading.wanted("score")
    sparse, failed = found.store.simulations(label.explanation_id, found.grading.run.simulator_id, "score")
    assert not failed
    assert tally.ok == len(sparse.passage) == len(found.draws("score")[label.explanation_id])
    for i, passage in enumerate(sparse.passage.tolist()):
        positions = sparse.positions[sparse.offsets[i] : sparse.offsets[i + 1]].tolist()
        assert positions == [
            p for p, s in enumerate(found.grading.texts.strings(passage)) if s.strip() == word
        ]


def test_a_second_simulation_has_nothing_to_do(bench: MakeBench) -> None:
    found = bench({0: [bench.words[0]]}, Reader(), features__select="0")
    assert simulate.run(found.grading, "score").worked
    assert not simulate.run(found.grading, "score").worked


def test_a_lost_simulation_is_made_again_on_the_same_passage(bench: MakeBench) -> None:
    found = bench({0: [bench.words[0]]}, Reader(), features__select="0")
    simulate.run(found.grading, "score")
    everything = found.store.query("SELECT * FROM simulation ORDER BY passage_id")[1]
    lost = everything[3]
    found.store.db.execute("DELETE FROM simulation WHERE passage_id = ?", [lost[3]])
    assert simulate.run(found.grading, "score").ok == 1
    assert found.store.query("SELECT * FROM simulation ORDER BY passage_id")[1] == everything


def test_a_feature_that_fires_nowhere_in_the_split_is_drawn_without_stratum_a(bench: MakeBench) -> None:
    found = bench({0: [bench.words[0]]}, Reader(), features__select="0")
    found.store.db.execute("DELETE FROM excerpt WHERE feature = 0 AND split = 'score'")
    simulate.run(found.grading, "score")
    assert {row.stratum for rows in found.draws("score").values() for row in rows} <= {"B", "C"}


# -- the embedding simulator -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedding() -> object:
    """The real sentence encoder, with a few passages read in. Skips where the packaged encoder is not installed."""
    from autointerp.simulators.embedding import EmbeddingSimulator

    settings = config.load(None, [])
    simulator = EmbeddingSimulator.load(settings.simulator, "cpu", 64)
    simulator.read(TEXTS, Bar(enabled=False))
    simulator.calibrate(np.array(sorted(TEXTS)[:20]))
    return simulator


def _tokens(text: str) -> list[str]:
    """The text cut before every space, as a tokenizer with a space mark does."""
    return [word if i == 0 else " " + word for i, word in enumerate(text.split(" "))]


TEXTS = {
    **{
        i: _tokens(f"The committee met on day {i} to discuss the budget of the coming year in detail .")
        for i in range(20)
    },
    100: _tokens("She bought a small dog and a cat at the market ."),
    101: _tokens("The treaty was signed by both governments in spring ."),
}


def test_the_embedding_simulator_fires_most_on_the_word_that_the_label_names(embedding) -> None:  # type: ignore[no-untyped-def]
    predicted = embedding.predict(["dogs and other pets", "treaty"], np.array([100, 101]))
    assert TEXTS[100][int(predicted[0, 0].argmax())] in {" dog", " cat"}
    assert TEXTS[101][int(predicted[1, 1].argmax())] == " treaty"
    assert predicted[0, 0].max() > predicted[0, 1].max()
    assert (predicted >= 0).all()


def test_the_embedding_simulator_predicts_nothing_after_a_passages_end(embedding) -> None:  # type: ignore[no-untyped-def]
    predicted = embedding.predict(["dog", "the", "anything at all"], np.array([100, 101]))
    for row, passage in enumerate((100, 101)):
        assert (predicted[:, row, len(TEXTS[passage]) :] == 0).all()


def test_the_embedding_simulator_predicts_the_same_whichever_labels_are_asked_beside(embedding) -> None:  # type: ignore[no-untyped-def]
    alone = embedding.predict(["a treaty"], np.array([100, 101]))[0]
    beside = embedding.predict(["dog", "a treaty", "words about money and time"], np.array([100, 101]))[1]
    np.testing.assert_allclose(alone, beside, atol=1e-6)


def test_the_embedding_simulator_reads_a_sentence_about_a_word_as_the_word(embedding) -> None:  # type: ignore[no-untyped-def]
    listed, said = embedding.predict(["treaty, dog", 'the words "treaty" and "dog"'], np.array([100, 101]))
    assert listed.max() > 0.01
    np.testing.assert_array_equal(listed, said)


@pytest.fixture(scope="module")
def apart(embedding):  # type: ignore[no-untyped-def]
    """The same encoder, which read one passage by itself instead of in a batch with all others."""
    from autointerp.simulators.embedding import EmbeddingSimulator

    other = EmbeddingSimulator(embedding.model, embedding.tokenizer, embedding.cfg, embedding.device, 64)
    bar = Bar(enabled=False)
    other.read({i: TEXTS[i] for i in range(20)}, bar)
    other.read({101: TEXTS[101]}, bar)
    other.calibrate(np.array(range(20)))
    return other


def test_the_embedding_simulator_reads_a_passage_alone_nearly_as_in_a_batch(embedding, apart) -> None:  # type: ignore[no-untyped-def]
    labels = ["a treaty", "dog", "government and law", "the"]
    one, other = (simulator.predict(labels, np.array([101])) for simulator in (embedding, apart))
    assert one.max() > 0.01
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_the_embedding_simulator_reads_a_passage_alone_exactly_as_in_a_batch(embedding, apart) -> None:  # type: ignore[no-untyped-def]
    vectors = [simulator._vectors[simulator._held.slot[101]].numpy() for simulator in (embedding, apart)]
    np.testing.assert_array_equal(*vectors)
