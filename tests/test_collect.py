"""Collection on a real (tiny) model: the rows are those of a naive dense pass, however the pass is cut or interrupted."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autointerp import collect, dictionary, kept, subject, targets
from autointerp.config import Settings
from autointerp.corpus import SPLITS, contexts, documents, split_of
from autointerp.errors import CorpusError, DictionaryError, StoreError, SubjectError
from autointerp.keep import Keeper
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar, Tally

from .conftest import write_dictionary
from .interrupted import interrupted

SMALL = {"corpus__tokens": 12_000, "collect__panel": 50, "collect__top": 4}
Make = Callable[..., Settings]


def gather(settings: Settings, store: Store | None = None) -> tuple[Store, str, Tally]:
    """Collect into a store; also the (first) collection's id and the tally."""
    found = targets.load(settings, Subject.sketch(settings.subject))
    store = store or Store.memory()
    with Bar(enabled=False) as bar:
        tally = collect.run(store, settings, found, bar)
    return store, found[0].keys.collection_id, tally


TABLES = ("collection", "document", "passage", "token", "feature", "excerpt", "panel")


def rows(store: Store, table: str) -> list[tuple[Any, ...]]:
    return store.query(f"SELECT * FROM {table} ORDER BY ALL")[1]


def excerpts(store: Store) -> list[tuple[Any, ...]]:
    order = "feature, split, why, rank"
    return store.query(
        f"SELECT {order}, passage_id, positions, peak, activations FROM excerpt ORDER BY {order}"
    )[1]


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Equal, with a float tolerance, through lists and tuples."""
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, b, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-4), f"{where}: {found} {expected}"
    else:
        assert found == expected, where


@pytest.fixture(scope="module")
def make(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Settings of a small collection."""
    from autointerp import config

    from .conftest import tiny_overrides

    results = tmp_path_factory.mktemp("collect")
    return lambda **overrides: config.load(None, tiny_overrides(tiny, results, **(SMALL | overrides)))


@dataclass
class Collected:
    """A collection that nothing disturbed."""

    settings: Settings
    store: Store
    collection_id: str
    tally: Tally


@pytest.fixture(scope="module")
def reference(make: Make) -> Iterator[Collected]:
    settings = make()
    collected = Collected(settings, *gather(settings))
    yield collected
    collected.store.close()


# -- against a naive pass ------------------------------------------------------------------------------------


@dataclass
class Dense:
    """Every passage of the corpus with every activation, one context at a time."""

    document_id: str
    split: int
    start: int
    tokens: list[int]
    activation: np.ndarray  # [position, feature]


def dense_pass(settings: Settings) -> list[Dense]:
    """Run the subject on one unpadded context at a time, and encode with one dense product."""
    model = Subject.load(settings.subject)
    sae = dictionary.load(settings.dictionary[0].source)
    found = []
    read = contexts(
        settings.corpus, model.tokenizer, settings.collect.context_tokens, settings.collect.split_salt
    )
    with torch.inference_mode():
        for context in (c for group in read for c in group):
            tokens = torch.from_numpy(context.tokens.astype(np.int64))[None]
            x = model.model(input_ids=tokens, output_hidden_states=True).hidden_states[2][0]  # after layer 1
            pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
            if sae.k is not None:
                pre = torch.where(pre >= pre.topk(sae.k, dim=1).values[:, -1:], pre, 0)
            activation = pre.relu().numpy()
            norm = x.norm(dim=1)
            special = torch.isin(tokens[0], torch.tensor(model.tokenizer.all_special_ids))
            activation[(special | (norm > settings.subject.max_norm_ratio * norm.median())).numpy()] = 0
            size = settings.collect.passage_tokens
            for i in range(0, len(context.tokens), size):
                part = slice(i, i + size)
                found.append(Dense(
                    context.document_id, context.split, context.start + i, context.tokens[part].tolist(), activation[part]
                ))  # fmt: skip
    return found


@pytest.fixture(scope="module")
def dense(reference: Collected) -> list[Dense]:
    return dense_pass(reference.settings)


def by_place(reference: Collected, dense: list[Dense]) -> dict[int, Dense]:
    """Kept passages, by id."""
    places = {(d.document_id, d.start): d for d in dense}
    found = reference.store.query("SELECT passage_id, document_id, start FROM passage")[1]
    return {passage: places[document, start] for passage, document, start in found}


def test_kept_excerpts_are_those_of_a_dense_pass(reference: Collected, dense: list[Dense]) -> None:
    passages, found = by_place(reference, dense), excerpts(reference.store)
    assert len(found) > 500
    for feature, split, _, _, passage, positions, peak, values in found:
        kept = np.zeros(len(passages[passage].tokens))
        kept[positions] = values
        np.testing.assert_allclose(kept, passages[passage].activation[:, feature], atol=1e-5, rtol=1e-4)
        assert peak == max(values) > 0
        assert SPLITS[passages[passage].split] == split


def test_the_top_list_holds_the_highest_peaks_of_explain_one_per_text(
    reference: Collected, dense: list[Dense]
) -> None:
    peaks: dict[int, list[float]] = {}
    for feature, _, why, _, _, _, peak, _ in excerpts(reference.store):
        if why == "top":
            peaks.setdefault(feature, []).append(peak)
    for feature in range(64):
        best: dict[tuple[int, ...], float] = {}
        for d in dense:
            if d.split == 0 and d.activation[:, feature].any():
                best[tuple(d.tokens)] = max(
                    best.get(tuple(d.tokens), 0), float(d.activation[:, feature].max())
                )
        expected = sorted(best.values(), reverse=True)[: reference.settings.collect.top]
        assert_close(peaks.get(feature, []), expected, f"feature {feature}")


def test_samples_hold_firing_passages_alone_and_all_of_them_where_they_fit(
    reference: Collected, dense: list[Dense]
) -> None:
    sizes = (10, 10, 20)
    count = {
        (f, s): n for f, s, n in
        reference.store.query("SELECT feature, split, count(*) FROM excerpt WHERE why = 'sample' GROUP BY ALL")[1]
    }  # fmt: skip
    for feature in range(64):
        for s, split in enumerate(SPLITS):
            n = sum(d.split == s and bool(d.activation[:, feature].any()) for d in dense)
            assert count.get((feature, split), 0) == min(n, sizes[s]), (feature, split)


def test_counters_are_those_of_a_dense_pass(reference: Collected, dense: list[Dense]) -> None:
    counters = reference.store.features(reference.collection_id)
    for s in range(3):
        inside = [d for d in dense if d.split == s]
        fires = np.stack([(d.activation > 0).any(axis=0) for d in inside])
        assert counters["n_passages"][s].tolist() == fires.sum(axis=0).tolist()
        tokens = np.concatenate([d.activation for d in inside])
        assert counters["n_tokens"][s].tolist() == (tokens > 0).sum(axis=0).tolist()
        np.testing.assert_allclose(
            counters["sum"][s], tokens.sum(axis=0, dtype=np.float64), rtol=1e-4, atol=1e-3
        )
        np.testing.assert_allclose(counters["max"][s], tokens.max(axis=0), rtol=1e-4, atol=1e-5)
        documents_of = np.array([d.document_id for d in inside])
        for feature in range(64):
            assert counters["n_documents"][s][feature] == len(set(documents_of[fires[:, feature]]))


def test_a_panel_passage_comes_with_all_activations_of_the_dictionary(
    reference: Collected, dense: list[Dense]
) -> None:
    passages = by_place(reference, dense)
    found = reference.store.query("SELECT passage_id, features, positions, activations, split FROM panel")[1]
    assert [sum(row[4] == s for row in found) for s in SPLITS] == [20, 10, 20]
    for passage, features, positions, values, split in found:
        kept = np.zeros_like(passages[passage].activation)
        kept[positions, features] = values
        np.testing.assert_allclose(kept, passages[passage].activation, atol=1e-5, rtol=1e-4)
        assert SPLITS[passages[passage].split] == split


def test_the_collection_row_counts_what_was_read(reference: Collected, dense: list[Dense]) -> None:
    row = reference.store.collection(reference.collection_id)
    assert row is not None
    assert row["n_passages"] == [sum(d.split == s for d in dense) for s in range(3)]
    assert row["n_documents"] == [len({d.document_id for d in dense if d.split == s}) for s in range(3)]
    assert (
        sum(row["n_tokens"]) + row["n_masked"] == sum(len(d.tokens) for d in dense) == reference.tally.tokens
    )
    assert (row["width"], row["architecture"], row["hookpoint"]) == (64, "topk", "model.layers.1")
    assert reference.tally.ok == 80


def test_passages_and_documents_hold_the_tokens_split_and_source_of_the_text(
    reference: Collected, dense: list[Dense]
) -> None:
    for passage, place in by_place(reference, dense).items():
        row = reference.store.passages(reference.collection_id, np.array([passage]))[passage]
        assert (row.tokens, row.split, row.start) == (place.tokens, SPLITS[place.split], place.start)
    sources = {d.document_id: d.source for d in documents(reference.settings.corpus)}
    for identity, source, split in reference.store.query("SELECT document_id, source, split FROM document")[
        1
    ]:
        assert source == sources[identity]
        assert split == SPLITS[split_of(identity, reference.settings.collect.split_salt)]


def test_token_pieces_spell_the_text_of_a_passage(reference: Collected) -> None:
    pieces, counts = reference.store.tokens(reference.collection_id)
    texts = {d.document_id: d.text for d in documents(reference.settings.corpus)}
    for row in reference.store.passages(reference.collection_id).values():
        assert b"".join(pieces[t] for t in row.tokens).decode() in texts[row.document_id]
    collection = reference.store.collection(reference.collection_id)
    assert collection is not None
    assert sum(counts.values()) == collection["n_tokens"][0]


def test_every_passage_that_a_row_names_is_there(reference: Collected) -> None:
    for table in ("excerpt", "panel"):
        missing = f"SELECT * FROM {table} ANTI JOIN passage USING (collection_id, passage_id, split)"
        assert reference.store.query(missing)[1] == []
    assert (
        reference.store.query(
            "SELECT * FROM passage ANTI JOIN document USING (collection_id, document_id, split)"
        )[1]
        == []
    )


def test_the_heaviest_tokens_are_those_with_the_most_activation_in_kept_explain_passages(
    reference: Collected,
) -> None:
    rows_of = "SELECT DISTINCT passage_id, positions, activations FROM excerpt WHERE split = 'explain' AND feature = "
    checked = 0
    for feature in range(64):
        mass: dict[int, float] = {}
        for passage, positions, values in reference.store.query(rows_of + str(feature))[1]:
            tokens = reference.store.passages(reference.collection_id, np.array([passage]))[passage].tokens
            for position, value in zip(positions, values, strict=True):
                mass[tokens[position]] = mass.get(tokens[position], 0) + value
        top = reference.store.top_tokens(reference.collection_id, feature)
        assert len(top) == min(len(mass), kept.TOP_TOKENS)
        assert_close(
            [mass[t] for t in top], sorted(mass.values(), reverse=True)[: len(top)], f"feature {feature}"
        )
        checked += len(top)
    assert checked > 100


# -- what changes speed changes no row -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 64])
def test_another_batch_size_changes_no_excerpt(reference: Collected, make: Make, size: int) -> None:
    store, collection_id, _ = gather(make(subject__batch_contexts=size))
    assert collection_id == reference.collection_id
    assert_close(excerpts(store), excerpts(reference.store))
    for table in ("document", "passage", "token"):
        assert rows(store, table) == rows(reference.store, table)
    store.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_another_number_of_threads_changes_no_excerpt(reference: Collected, make: Make, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        store, _, _ = gather(make())
    finally:
        torch.set_num_threads(before)
    assert_close(excerpts(store), excerpts(reference.store))
    store.close()


def test_the_same_settings_give_the_same_rows_bit_for_bit(reference: Collected, make: Make) -> None:
    store, _, _ = gather(make())
    assert [t for t in TABLES if rows(store, t) != rows(reference.store, t)] == []
    store.close()


def test_the_order_of_files_changes_no_excerpt(reference: Collected, make: Make, tmp_path: Path) -> None:
    for path in Path(reference.settings.corpus.source).glob("*.txt"):
        (tmp_path / f"{999 - int(path.stem):03}.txt").write_bytes(path.read_bytes())
    store, _, _ = gather(make(corpus__source=tmp_path))
    assert_close(excerpts(store), excerpts(reference.store))
    store.close()


def test_a_second_run_does_nothing(reference: Collected, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {table: rows(reference.store, table) for table in TABLES}
    monkeypatch.setattr(
        subject.Subject, "load", classmethod(lambda *_: pytest.fail("the subject was loaded again"))
    )
    _, _, tally = gather(reference.settings, reference.store)
    assert not tally.worked
    assert {table: rows(reference.store, table) for table in TABLES} == before


# -- interrupted ---------------------------------------------------------------------------------------------


def interrupt(settings: Settings, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that saves after every batch and dies at the `at`-th."""
    with interrupted(monkeypatch, at), Store.create(settings.database) as store:
        gather(settings, store)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_pass_that_was_interrupted_goes_on_and_gives_the_rows_of_an_undisturbed_one(
    reference: Collected, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    settings = make(run__results=tmp_path)
    interrupt(settings, at, monkeypatch)
    checkpoint = settings.folder / "collect.checkpoint.npz"
    assert checkpoint.is_file() == (at > 1)
    added, add = [0], Keeper.add
    monkeypatch.setattr(
        Keeper, "add", lambda self, batch: (added.__setitem__(0, added[0] + 1), add(self, batch))[1]
    )
    with Store.create(settings.database) as store:
        gather(settings, store)
        assert [t for t in TABLES if rows(store, t) != rows(reference.store, t)] == []
    read = sum(
        reference.store.query("SELECT sum(n) FROM (SELECT unnest(n_tokens) AS n FROM collection)")[1][0]
    )
    assert added[0] < math.ceil(read / 128 / 16) + 2 - (at - 1)  # what a checkpoint covers is not read again
    assert not checkpoint.exists()


def test_a_pass_resumed_with_another_batch_size_reads_every_context_once(
    reference: Collected, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(make(run__results=tmp_path), 3, monkeypatch)  # two batches of 16 are done
    settings = make(run__results=tmp_path, subject__batch_contexts=5)
    with Store.create(settings.database) as store:
        gather(settings, store)
        assert rows(store, "collection") == rows(reference.store, "collection")
        assert_close(excerpts(store), excerpts(reference.store))


def test_the_checkpoint_of_another_configuration_is_refused_and_kept(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(make(run__results=tmp_path, run__seed=5), 3, monkeypatch)
    settings = make(run__results=tmp_path)
    before = (settings.folder / "collect.checkpoint.npz").read_bytes()
    with (
        Store.create(settings.database) as store,
        pytest.raises(StoreError, match="of another configuration: finish that one, choose another"),
    ):
        gather(settings, store)
    assert (settings.folder / "collect.checkpoint.npz").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"not an npz",
        b"",
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_named(make: Make, tmp_path: Path, content: bytes) -> None:
    settings = make(run__results=tmp_path)
    with Store.create(settings.database) as store:
        (settings.folder / "collect.checkpoint.npz").write_bytes(content)
        with pytest.raises(StoreError, match=re.escape("collect.checkpoint.npz")):
            gather(settings, store)


def test_a_pass_that_fails_leaves_no_row(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    store = Store.memory()
    monkeypatch.setattr(kept, "_write_panel", fail)
    with pytest.raises(RuntimeError, match="planted"):
        gather(make(), store)
    assert [t for t in TABLES if rows(store, t)] == []


# -- what does not fit ---------------------------------------------------------------------------------------


def test_activations_that_are_not_finite_are_refused_with_document_and_position(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make()
    first = next(contexts(settings.corpus, Subject.load(settings.subject).tokenizer, 128, ""))[0]
    load = Subject.load.__func__  # type: ignore[attr-defined]

    def plant(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        output[0, 7:9] = float("nan")
        return output

    def poisoned(cls: type[Subject], *args: Any) -> Subject:
        found: Subject = load(cls, *args)
        found.model.get_submodule("model.layers.1").register_forward_hook(plant)
        return found

    monkeypatch.setattr(Subject, "load", classmethod(poisoned))
    with pytest.raises(SubjectError) as problem:
        gather(settings)
    message = str(problem.value)
    assert f"token {first.start + 7} of document {first.document_id}" in message
    assert first.source in message
    assert "float32" in message


def test_a_weight_that_is_not_finite_stops_the_pass(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Subject.load.__func__  # type: ignore[attr-defined]

    def poisoned(cls: type[Subject], *args: Any) -> Subject:
        found: Subject = load(cls, *args)
        with torch.no_grad():
            found.model.get_submodule("model.layers.1.mlp.down_proj").weight[3, 5] = float("inf")
        return found

    monkeypatch.setattr(Subject, "load", classmethod(poisoned))
    store = Store.memory()
    with pytest.raises(SubjectError, match="NaN or infinite"):
        gather(make(), store)
    assert [t for t in TABLES if rows(store, t)] == []


def test_a_dictionary_of_another_width_is_refused_with_both_widths(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError) as problem:
        gather(make(dictionary__source=write_dictionary(tmp_path / "wide", d_in=48)))
    assert "48" in str(problem.value)
    assert "32" in str(problem.value)


def test_contexts_beyond_the_position_limit_are_refused(make: Make) -> None:
    with pytest.raises(SubjectError, match="context_tokens"):
        gather(make(collect__context_tokens=512))


def test_a_corpus_without_a_usable_token_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<s></s><s>")
    with pytest.raises(CorpusError, match="no usable token"):
        gather(make(corpus__source=tmp_path, corpus__tokens=0))


def test_an_unreadable_document_late_in_the_corpus_stops_the_pass(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ada walked to the river. " * 50)
    (tmp_path / "z.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CorpusError, match=r"z\.txt"):
        gather(make(corpus__source=tmp_path, corpus__tokens=0))


# -- odd but fine --------------------------------------------------------------------------------------------


def test_documents_of_one_token_are_collected(make: Make, tmp_path: Path) -> None:
    for i, text in enumerate("abcdefghijklmnop"):
        (tmp_path / f"{i}.txt").write_text(text)
    store, collection_id, tally = gather(make(corpus__source=tmp_path, corpus__tokens=0))
    assert tally.ok == 16
    row = store.collection(collection_id)
    assert row is not None
    assert sum(row["n_tokens"]) == sum(row["n_passages"]) == sum(row["n_documents"]) == 16
    assert {len(p.tokens) for p in store.passages(collection_id).values()} == {1}
    store.close()


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_features_that_never_fire_have_rows_of_zeros_and_no_excerpt(
    make: Make, tmp_path: Path, architecture: str
) -> None:
    folder = write_dictionary(tmp_path / "sae", architecture=architecture)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["b_enc"] = torch.where(torch.arange(64) < 60, -1e6, 0.0)
    save_file(tensors, folder / "sae_weights.safetensors")
    store, collection_id, _ = gather(make(dictionary__source=folder, corpus__tokens=4000))
    counters = store.features(collection_id)
    assert counters["n_tokens"][:, :60].sum() == counters["max"][:, :60].sum() == 0
    assert (counters["n_tokens"][:, 60:].sum(axis=0) > 0).all()
    assert {row[0] for row in excerpts(store)} == {60, 61, 62, 63}
    assert store.top_tokens(collection_id, 3) == []
    store.close()


def test_a_dictionary_that_never_fires_is_collected(make: Make, tmp_path: Path) -> None:
    folder = write_dictionary(tmp_path / "sae", architecture="standard")
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["b_enc"] = torch.full((64,), -1e6)
    save_file(tensors, folder / "sae_weights.safetensors")
    store, collection_id, tally = gather(make(dictionary__source=folder, corpus__tokens=4000))
    assert tally.worked
    assert excerpts(store) == []
    assert store.features(collection_id)["n_tokens"].sum() == 0
    assert len(store.panel(collection_id, "score").passage) > 0
    store.close()


def test_special_tokens_in_the_text_are_masked_and_counted(make: Make, tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(f"Ada walked {i} miles<s>to the river")
    store, collection_id, _ = gather(make(corpus__source=tmp_path, corpus__tokens=0))
    row = store.collection(collection_id)
    assert row is not None
    assert row["n_masked"] == 12
    for passage in store.passages(collection_id).values():
        assert [passage.tokens[p] for p in passage.masked] == [0]
    store.close()
