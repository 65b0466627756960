"""What collection keeps is what EleutherAI's delphi (eai-delphi 0.1.3) finds in the same contexts, bit for bit."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from autointerp import config
from autointerp.pipeline import Pipeline, prepare
from autointerp.store import Store
from autointerp.tally import Bar

from . import peers
from .conftest import tiny_overrides, write_corpus, write_dictionary

WIDTH, TOP = 64, 12
CONTEXT, PASSAGE = 128, 64
BATCH = 4  # contexts: the same batches on both sides, and one encoder product each, so that floats are equal bit for bit


class Both(NamedTuple):
    """The same corpus, read by both."""

    store: Store
    delphi: dict[tuple[int, int], float]  # (feature, passage id) -> highest activation at a position that counts
    firings: np.ndarray  # [feature, split] positions that count where it fires, by delphi
    texts: dict[int, tuple[int, ...]]  # passage id -> token ids, explain split


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents with special tokens inside; some begin like others, so that passages occur twice word by word."""
    folder = write_corpus(tmp_path_factory.mktemp("peer") / "corpus", documents=24, sentences=24)
    for i, path in enumerate(sorted(folder.glob("*.txt"))):
        text = path.read_text("utf-8").replace("Gita", "</s>")
        path.write_text(text, "utf-8")
        if i % 2:
            (folder / f"{100 + i}.txt").write_text(text[: len(text) * 2 // 3] + " And so on.", "utf-8")
    return folder


@pytest.fixture(scope="module", params=["topk", "standard"])
def both(
    request: pytest.FixtureRequest, tiny: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("both")
    sae = dictionary(folder / "sae", request.param)
    settings = config.load(None, tiny_overrides(
        tiny, folder, dictionary__source=sae, corpus__source=corpus, subject__batch_contexts=BATCH, collect__top=TOP,
        collect__context_tokens=CONTEXT, collect__passage_tokens=PASSAGE,
    ))  # fmt: skip
    with Store.memory() as store, Bar(enabled=False) as bar:
        Pipeline(store, prepare(settings), bar, lambda _: None).collect()
        yield read_by_delphi(store, tiny["subject"], sae)


def dictionary(folder: Path, architecture: str) -> Path:
    """A random dictionary whose biases are as large as the subject's activations."""
    write_dictionary(folder, width=WIDTH, architecture=architecture, seed=3)
    tensors = load_file(folder / "sae_weights.safetensors")
    random = torch.Generator().manual_seed(4)
    tensors["b_enc"] = 0.02 * torch.randn(WIDTH, generator=random) - 0.02
    tensors["b_dec"] = 0.02 * torch.randn(tensors["b_dec"].shape, generator=random)
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def read_by_delphi(store: Store, subject: Path, sae: Path) -> Both:
    """Put the contexts together from the passages in the store, all of which the panel holds, and run delphi on them."""
    ((collection, read),) = store.query("SELECT collection_id, list_sum(n_passages) FROM collection")[1]
    source = dict(store.query("SELECT document_id, source FROM document")[1])
    found = store.passages(collection).items()
    assert len(found) == read, "the panel is too small to hold every passage"
    passages = sorted(found, key=lambda one: (source[one[1].document_id], one[1].start))  # in the order of the corpus
    contexts: dict[tuple[str, int], list[int]] = defaultdict(list)
    for _, passage in passages:
        contexts[passage.document_id, passage.start // CONTEXT] += passage.tokens
    row = {key: i for i, key in enumerate(contexts)}
    # delphi knows no padding, and drops a last batch that is not full: it is given rows of zeros to make it so, and what
    # it finds in padding is left out below. Attention is causal, so padding reaches nothing that counts.
    padded = torch.zeros(-(-len(contexts) // BATCH) * BATCH, CONTEXT, dtype=torch.int64)
    for i, tokens in enumerate(contexts.values()):
        padded[i, : len(tokens)] = torch.tensor(tokens)
    # Nothing of ours stands between the files and delphi.
    model = AutoModel.from_pretrained(subject, dtype=torch.float32)
    weights = load_file(sae / "sae_weights.safetensors")
    k = json.loads((sae / "cfg.json").read_text()).get("k")
    encode = peers.encoder(weights["W_enc"].T.contiguous(), weights["b_enc"], weights["b_dec"], k)
    cache = peers.run_cache(model, "layers.1", encode, padded, BATCH)

    passage_at = np.full((len(padded), CONTEXT), -1)  # -1: padding, special tokens and attention sinks
    split_at = np.zeros((len(padded), CONTEXT), dtype=np.int64)
    for identity, passage in passages:
        counts = np.setdiff1d(np.arange(len(passage.tokens)), passage.masked) + passage.start % CONTEXT
        context = row[passage.document_id, passage.start // CONTEXT]
        passage_at[context, counts] = identity
        split_at[context, counts] = ("explain", "select", "score").index(passage.split)
    at, token, feature = cache.latent_locations["layers.1"].numpy().T
    value = cache.latent_activations["layers.1"].numpy()
    assert value.dtype == np.float32
    peaks: dict[tuple[int, int], float] = {}
    firings = np.zeros((WIDTH, 3), dtype=np.int64)
    for c, t, f, v in zip(at, token, feature, value, strict=True):
        if (key := (int(f), int(passage_at[c, t])))[1] >= 0:
            peaks[key] = max(peaks.get(key, 0.0), float(v))
            firings[f, split_at[c, t]] += 1
    texts = {identity: tuple(passage.tokens) for identity, passage in passages if passage.split == "explain"}
    return Both(store, peaks, firings, texts)


def top(both: Both) -> dict[int, list[tuple[int, float]]]:
    """feature -> (passage, peak) of its top list, strongest first, without what delphi holds too weak to keep."""
    found: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for feature, passage, peak in both.store.query(
        "SELECT feature, passage_id, peak FROM excerpt WHERE why = 'top' ORDER BY feature, rank"
    )[1]:
        if peak > peers.DELPHI_SMALLEST:
            found[feature].append((passage, peak))
    return found


def test_peaks_of_kept_passages_are_those_of_delphi(both: Both) -> None:
    for feature, kept in top(both).items():
        assert kept == [(passage, both.delphi[feature, passage]) for passage, _ in kept], feature
    assert sum(map(len, top(both).values())) > WIDTH * TOP // 2


def test_a_top_list_holds_the_highest_peaks_that_delphi_finds_one_per_text(both: Both) -> None:
    kept = top(both)
    repeated = 0
    for feature in range(WIDTH):
        best: dict[tuple[int, ...], float] = {}
        for passage, text in both.texts.items():
            if peak := both.delphi.get((feature, passage)):
                repeated += text in best
                best[text] = max(best.get(text, 0.0), peak)
        assert [peak for _, peak in kept[feature]] == sorted(best.values(), reverse=True)[:TOP], feature
    assert repeated, "no text occurs twice: the corpus does not test what it should"


def test_every_excerpt_kept_on_any_split_has_delphis_peak(both: Both) -> None:
    excerpts = both.store.query("SELECT feature, passage_id, peak, split FROM excerpt")[1]
    assert {split for *_, split in excerpts} == {"explain", "select", "score"}
    for feature, passage, peak, _ in excerpts:
        if peak > peers.DELPHI_SMALLEST:
            assert peak == both.delphi[feature, passage]


def test_features_fire_as_often_as_in_delphi_where_positions_count(both: Both) -> None:
    counted = both.store.query("SELECT n_tokens FROM feature ORDER BY feature")[1]
    weak = both.store.query(
        f"SELECT count(*) FROM (SELECT unnest(activations) AS a FROM panel) WHERE a <= {peers.DELPHI_SMALLEST}"
    )[1][0][0]
    missing = np.array([row for (row,) in counted]) - both.firings
    assert (missing >= 0).all() and missing.sum() == weak
    ((masked,),) = both.store.query("SELECT n_masked FROM collection")[1]
    assert masked > 0, "nothing is masked: the corpus does not test what it should"
