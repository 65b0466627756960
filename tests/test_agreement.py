"""At size: every list and every counter of a pass is that of a dense pass in numpy, exactly; and the encoder's way with
empty slots, which a GPU takes, gives the firings of a plain nonzero."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from autointerp import collect, config, sweep, targets
from autointerp.config import Settings
from autointerp.corpus import SPLITS, contexts
from autointerp.dictionary.encode import (
    ARCHITECTURES,
    COMPETING,
    ENCODE_CHUNK_TOKENS,
    Dictionary,
    static_slots,
    units,
)
from autointerp.keep import lottery_keys, passage_ids
from autointerp.store import Store
from autointerp.subject import Subject, pad
from autointerp.tally import Bar

from .conftest import tiny_overrides
from .test_merge import write_firing
from .test_several import gather

TOKENS, WIDTH = 20_000, 64
UNIT = 2**20  # sums are integers in units of 1 / UNIT


@dataclass
class Dense:
    """What a dense pass found: everything per token, in the order in which it was read."""

    activation: np.ndarray  # [token, feature], 0 where silent or masked
    passage: np.ndarray  # [token] index of its passage
    split: np.ndarray  # [passage]
    document: np.ndarray  # [passage] key of its document
    passage_id: np.ndarray  # [passage]
    text: list[tuple[int, ...]]  # [passage]

    def peaks(self) -> np.ndarray:
        """[passage, feature]"""
        found = np.zeros((len(self.split), self.activation.shape[1]), dtype=np.float32)
        np.maximum.at(found, self.passage, self.activation)
        return found


def encode(sae: Dictionary, rows: Tensor) -> np.ndarray:
    """Dense activations [token, feature] by the definitions of the architectures, in the chunks of the encoder."""
    return np.concatenate([activations_of(sae, chunk) for chunk in rows.split(ENCODE_CHUNK_TOKENS)])


def activations_of(sae: Dictionary, x: Tensor) -> np.ndarray:
    """The definitions, dense. What is multiplied is multiplied by torch, so that no bit differs."""
    if sae.architecture == "units":
        both = np.concatenate([x.numpy(), -x.numpy()], axis=1)
        return np.where((both > 0) & (both > sae.threshold.numpy()), both, 0)  # type: ignore[union-attr]
    bias = torch.zeros_like(sae.b_enc) if sae.architecture == "gated" else sae.b_enc
    pre = torch.addmm(bias, x - sae.b_dec, sae.W_enc)
    if sae.rescale_by_decoder_norm and sae.architecture != "gated":
        pre = pre * torch.linalg.vector_norm(sae.W_dec, dim=1)
    hidden = pre.numpy()
    if sae.architecture == "topk":
        assert sae.k is not None
        hidden = np.where(hidden >= np.sort(hidden, axis=1)[:, -sae.k][:, None], hidden, 0)
    elif sae.architecture == "groupmax":
        groups = hidden.reshape(len(hidden), sae.k, -1)
        hidden = np.where(groups == groups.max(axis=2, keepdims=True), groups, 0).reshape(hidden.shape)
    elif sae.architecture == "jumprelu":
        hidden = np.where(hidden > sae.threshold.numpy(), hidden, 0)  # type: ignore[union-attr]
    elif sae.architecture == "gated":
        assert sae.r_mag is not None and sae.b_mag is not None
        magnitude = hidden * sae.r_mag.exp().numpy() + sae.b_mag.numpy()
        hidden = np.where(hidden + sae.b_enc.numpy() > 0, magnitude, 0)
    else:
        assert sae.architecture == "standard"
    return np.maximum(hidden, 0)


def dictionary_of(architecture: str, d_in: int, width: int, scale: float = 1.0, seed: int = 11) -> Dictionary:
    """Random unit directions that fire on activations of about `scale`, with biases and thresholds that matter."""
    draw = torch.Generator().manual_seed(seed)
    if architecture == "units":
        return units(width // 2, torch.rand(width, generator=draw) * scale, "sae")
    decoder = torch.nn.functional.normalize(torch.randn(width, d_in, generator=draw), dim=1)
    low = torch.rand(width, generator=draw) * scale
    given: dict[str, object] = {
        "topk": {"b_enc": low, "k": 4}, "groupmax": {"b_enc": low, "k": 8}, "standard": {"b_enc": -low},
        "jumprelu": {"b_enc": low / 4, "threshold": low + scale / 8},
        "gated": {"b_enc": -low, "r_mag": torch.randn(width, generator=draw) / 4, "b_mag": low - scale},
    }[architecture]  # fmt: skip
    b_dec = torch.randn(d_in, generator=draw) * scale / 20
    return Dictionary("sae", architecture, W_enc=decoder.T.contiguous(), W_dec=decoder, b_dec=b_dec, **given)  # type: ignore[arg-type]


def dense_pass(settings: Settings, sae: Dictionary) -> Dense:
    """Run the subject on the same batches, and keep every activation of every token."""
    model = Subject.load(settings.subject)
    width, size = settings.collect.context_tokens, settings.collect.passage_tokens
    read = [c for group in contexts(settings.corpus, model.tokenizer, width, settings.collect.split_salt) for c in group]
    special = np.array(model.tokenizer.all_special_ids)
    found: list[np.ndarray] = []
    passages: list[tuple[int, int, int]] = []  # split, document, start
    texts, owner = [], []
    for i in range(0, len(read), settings.subject.batch_contexts):
        batch = read[i : i + settings.subject.batch_contexts]
        tokens, _ = pad([c.tokens for c in batch], width)
        with torch.inference_mode():
            x = model.model(input_ids=tokens, output_hidden_states=True).hidden_states[2]  # after layer 1
            activation = encode(sae, x.reshape(-1, x.shape[-1])).reshape(len(batch), width, -1)
        norms = np.linalg.norm(x.numpy(), axis=2)
        for context, values, norm in zip(batch, activation, norms):
            n = len(context.tokens)
            middle = np.sort(norm[:n])[(n - 1) // 2]
            masked = np.isin(context.tokens, special) | (norm[:n] > settings.subject.max_norm_ratio * middle)
            found.append(np.where(masked[:, None], 0, values[:n]))
            for start in range(0, n, size):
                length = len(context.tokens[start : start + size])
                owner += [len(passages)] * length
                passages.append((context.split, context.key, context.start + start))
                texts.append(tuple(context.tokens[start : start + size].tolist()))
    split, document, start = zip(*passages)
    keys = np.array(document, dtype=np.uint64)
    return Dense(
        np.concatenate(found), np.array(owner), np.array(split), keys, passage_ids(keys, np.array(start)), texts
    )  # fmt: skip


@dataclass
class Agreement:
    settings: Settings
    store: Store
    collection_id: str
    dense: Dense


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(
    request: pytest.FixtureRequest, tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Agreement]:
    """A collection of 20,000 tokens, and the dense pass over them."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = config.load(None, tiny_overrides(tiny, folder, **{
        "corpus.tokens": TOKENS, "collect.top": 12, "collect.panel": 60,
    }))  # fmt: skip
    (target,) = targets.load(settings, Subject.sketch(settings.subject))
    sae = dictionary_of(request.param, 32, WIDTH, scale=0.04)  # a typical activation of the tiny subject
    store = Store.memory()
    with Bar(enabled=False) as bar:
        tally = collect.run(store, settings, [replace(target, dictionary=sae)], bar)
    assert tally.tokens >= TOKENS * 0.95
    yield Agreement(settings, store, target.keys.collection_id, dense_pass(settings, sae))
    store.close()


def test_the_dense_pass_has_something_to_say(pair: Agreement) -> None:
    fires = pair.dense.activation > 0
    assert len(fires) > 19_000
    assert (fires.sum(axis=0) > 50).sum() > WIDTH // 2
    assert 0.03 < fires.mean() < 0.3


def test_counts_of_tokens_passages_and_documents_are_equal_in_every_split(pair: Agreement) -> None:
    dense, counters = pair.dense, pair.store.features(pair.collection_id)
    fires = dense.activation > 0
    peaks = dense.peaks() > 0
    for s in range(3):
        inside = dense.split == s
        np.testing.assert_array_equal(counters["n_tokens"][s], fires[inside[dense.passage]].sum(axis=0))
        np.testing.assert_array_equal(counters["n_passages"][s], peaks[inside].sum(axis=0))
        documents = [len(set(dense.document[inside & peaks[:, f]].tolist())) for f in range(WIDTH)]
        assert counters["n_documents"][s].tolist() == documents


def test_sums_in_fixed_point_and_maxima_are_equal_in_every_split(pair: Agreement) -> None:
    dense, counters = pair.dense, pair.store.features(pair.collection_id)
    units = np.rint(dense.activation.astype(np.float64) * UNIT).astype(np.int64)
    for s in range(3):
        inside = (dense.split == s)[dense.passage]
        np.testing.assert_array_equal(counters["sum"][s] * UNIT, units[inside].sum(axis=0))
        np.testing.assert_array_equal(counters["max"][s], dense.activation[inside].max(axis=0))


def test_histograms_are_equal(pair: Agreement) -> None:
    for feature in range(WIDTH):
        values = pair.dense.activation[:, feature]
        values = values[values > 0]
        edges = 2.0 ** (np.arange(49) / 2 - 8)
        expected = np.histogram(np.clip(values.astype(np.float64), edges[0], None), edges)[0]
        assert pair.store.histogram(pair.collection_id, feature) == expected.tolist(), feature


def test_top_passages_are_the_same_in_the_same_order(pair: Agreement) -> None:
    dense, peaks = pair.dense, pair.dense.peaks()
    checked = 0
    for feature in range(WIDTH):
        candidates = np.flatnonzero((dense.split == 0) & (peaks[:, feature] > 0))
        tie = lottery_keys(0, np.full(len(candidates), feature), dense.passage_id[candidates])
        order = candidates[np.lexsort((tie >> np.uint64(32), -peaks[candidates, feature]))]
        texts: set[tuple[int, ...]] = set()
        expected = [i for i in order if not (dense.text[i] in texts or texts.add(dense.text[i]))]
        expected = expected[: pair.settings.collect.top]
        found = pair.store.excerpts(pair.collection_id, feature, "explain", "top")
        assert found.passage.tolist() == dense.passage_id[expected].tolist(), feature
        assert found.peak.tolist() == peaks[expected, feature].tolist()
        checked += len(expected)
    assert checked > 500


def test_samples_are_the_same_in_the_same_order_with_the_same_activations(pair: Agreement) -> None:
    dense, peaks = pair.dense, pair.dense.peaks()
    starts = np.searchsorted(dense.passage, np.arange(len(dense.split) + 1))
    cfg = pair.settings.collect
    for feature in range(WIDTH):
        for s, size in enumerate((cfg.sample_explain, cfg.sample_select, cfg.sample_score)):
            candidates = np.flatnonzero((dense.split == s) & (peaks[:, feature] > 0))
            key = lottery_keys(0, np.full(len(candidates), feature), dense.passage_id[candidates])
            expected = candidates[np.argsort(key)][:size]
            found = pair.store.excerpts(pair.collection_id, feature, SPLITS[s], "sample")
            assert found.passage.tolist() == dense.passage_id[expected].tolist(), (feature, s)
            for i, passage in enumerate(expected):
                values = dense.activation[starts[passage] : starts[passage + 1], feature]
                a, b = found.firing.offsets[i], found.firing.offsets[i + 1]
                assert found.firing.positions[a:b].tolist() == np.flatnonzero(values).tolist()
                assert found.firing.values[a:b].tolist() == values[values > 0].tolist()


def test_panels_hold_every_activation_of_their_passages(pair: Agreement) -> None:
    dense = pair.dense
    starts = np.searchsorted(dense.passage, np.arange(len(dense.split) + 1))
    place = {int(i): p for p, i in enumerate(dense.passage_id)}
    n = 0
    for s, split in enumerate(SPLITS):
        found = pair.store.panel(pair.collection_id, split)
        for i, passage in enumerate(found.passage.tolist()):
            p = place[passage]
            assert dense.split[p] == s
            values = dense.activation[starts[p] : starts[p + 1]]
            feature, position = np.nonzero(values.T)
            a, b = found.offsets[i], found.offsets[i + 1]
            assert found.features[a:b].tolist() == feature.tolist()
            assert found.positions[a:b].tolist() == position.tolist()
            assert found.values[a:b].tolist() == values.T[feature, position].tolist()
            n += b - a
    assert n > 1000


# -- slots: what a GPU does, on the CPU --------------------------------------------------------------------------------


def random_hidden(rows: int, width: int = 40, share: float = 0.1, seed: int = 0) -> Tensor:
    """Pre-activations of which about this share is positive."""
    found = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return found - torch.quantile(found.flatten(), 1 - share) if share else -found.abs() - 1


@pytest.mark.parametrize("room", ["exact", "one more", "plenty"])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_static_slots_hold_what_nonzero_finds(share: float, room: str) -> None:
    hidden = random_hidden(30, share=share)
    fires = hidden > 0
    n = int(fires.sum())
    size = {"exact": n, "one more": n + 1, "plenty": 5 * n + 7}[room]
    slots = static_slots(hidden, fires, size, start=100)
    assert {len(slots.position), len(slots.feature), len(slots.value), slots.room} == {size}
    assert int(slots.n) == n  # type: ignore[arg-type]
    full = slots.value > 0
    position, feature = fires.nonzero(as_tuple=True)
    assert int(full.sum()) == n
    assert (slots.position[full] - 100).tolist() == position.tolist()
    assert slots.feature[full].tolist() == feature.tolist()
    assert slots.value[full].tolist() == hidden[position, feature].tolist()


@pytest.mark.parametrize("room", [1, 7])
def test_static_slots_that_overflow_say_so_and_invent_nothing(room: int) -> None:
    hidden = random_hidden(30)
    fires = hidden > 0
    n = int(fires.sum())
    assert n > room
    slots = static_slots(hidden, fires, room, start=0)
    assert int(slots.n) == n > slots.room == room  # type: ignore[arg-type]
    held = [(p, f, hidden[p, f].item()) for p, f in zip(slots.position.tolist(), slots.feature.tolist())]
    assert len({(p, f) for p, f, _ in held}) == room
    assert [value for *_, value in held] == slots.value.tolist()
    assert (slots.value > 0).all()


def dense_of(sae: Dictionary, x: Tensor) -> np.ndarray:
    """Its activations [position, feature], from its triples."""
    position, feature, value = sae.encode(x)
    found = np.zeros((len(x), sae.width), dtype=np.float32)
    found[position.numpy(), feature.numpy()] = value.numpy()
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("wanted", [[0], [3, 17, 39], [*range(40)]])
def test_only_some_features_fire_and_they_fire_as_in_the_whole(architecture: str, wanted: list[int]) -> None:
    sae, x = dictionary_of(architecture, 20, 40), torch.randn(700, 20, generator=torch.Generator().manual_seed(1))
    whole, some = dense_of(sae, x), dense_of(sae.only(torch.tensor(wanted)), x)
    others = [i for i in range(40) if i not in wanted]
    assert (whole[:, wanted] > 0).any()
    assert not some[:, others].any()
    np.testing.assert_allclose(some[:, wanted], whole[:, wanted], rtol=1e-5, atol=1e-5)
    assert sae.only(torch.tensor(wanted)).width == 40


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encoding_is_the_definition_also_without_the_decoder_where_it_does_not_rescale(architecture: str) -> None:
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(2))
    sae = dictionary_of(architecture, 20, 40)
    some = torch.tensor([1, 2, 30])
    for rescale in (False, *([True] if architecture not in ("units", "gated") else [])):
        sae = replace(sae, rescale_by_decoder_norm=rescale, W_dec=sae.W_dec * 1.7)
        expected = activations_of(sae, x)
        assert (expected > 0).sum() > 30
        np.testing.assert_array_equal(dense_of(sae, x), expected)
        np.testing.assert_array_equal(dense_of(sae.for_encoding(), x), expected)
        np.testing.assert_array_equal(dense_of(sae.only(some).for_encoding(), x), dense_of(sae.only(some), x))


# Architectures in which the number of firing features is not fixed beforehand.
FREE = [name for name in ARCHITECTURES if name not in COMPETING]


@pytest.fixture
def gpu_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU encodes as a GPU does: into a number of slots that is fixed beforehand."""

    def sparse(hidden: Tensor, fires: Tensor, slots_per_token: int, start: int) -> object:
        return static_slots(hidden, fires, slots_per_token * len(hidden), start)

    monkeypatch.setattr("autointerp.dictionary.encode._sparse", sparse)


@pytest.mark.parametrize("architecture", FREE)
@pytest.mark.parametrize("room", [1, 2, 128])
@pytest.mark.usefixtures("gpu_way")
def test_encode_gives_every_firing_whatever_the_room(
    monkeypatch: pytest.MonkeyPatch, architecture: str, room: int
) -> None:
    monkeypatch.setattr("autointerp.dictionary.encode.SLOTS_PER_TOKEN", room)
    sae, x = dictionary_of(architecture, 20, 40), torch.randn(1100, 20, generator=torch.Generator().manual_seed(3))
    expected = encode(sae, x)
    assert (expected > 0).sum(axis=1).mean() > 2
    np.testing.assert_array_equal(dense_of(sae, x), expected)
    some = torch.tensor([0, 7, 39])
    found = dense_of(sae.only(some), x)
    np.testing.assert_allclose(found[:, some], expected[:, some], rtol=1e-4, atol=1e-5)
    assert (found > 0).sum() == (found[:, some] > 0).sum()


@pytest.mark.parametrize("select", ["all", "0,5,63"])
@pytest.mark.usefixtures("gpu_way")
def test_a_pass_with_too_few_slots_makes_room_and_keeps_the_same_rows(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str
) -> None:
    sae = write_firing(tmp_path / "sae", "standard", seed=11, bias=0.0)  # half of the features fire at once
    settings = config.load(None, tiny_overrides(tiny, tmp_path, **{
        "dictionary.source": sae, "corpus.tokens": 6000, "collect.features": select, "collect.panel": 40,
    }))  # fmt: skip
    enough, rooms = sweep._enough_slots, []

    def noted(flight: sweep.Flight, target: int) -> object:
        found = enough(flight, target)
        rooms.append(flight.replica.room[target])
        return found

    monkeypatch.setattr(sweep, "_enough_slots", noted)
    found = {}
    for room in (64, 1):
        rooms.clear()
        monkeypatch.setattr(sweep, "SLOTS_PER_TOKEN", room)
        store, _, _ = gather(settings)
        found[room] = [store.query(f"SELECT * FROM {t} ORDER BY ALL")[1] for t in ("feature", "excerpt", "panel")]
        if room == 1:
            assert rooms[0] == rooms[-1] > 1  # it grew at the first batch, and stayed
            assert rooms[0] & (rooms[0] - 1) == 0
        else:
            assert set(rooms) == {room}
    assert found[1] == found[64]
    assert len(found[64][1]) > 50
