"""The keeper against a reference that is written as naively as possible: dense arrays, Python loops, Python integers."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from autointerp import keep
from autointerp.config import CollectSection
from autointerp.keep import Batch, Keeper, Ragged, mix, panel_sizes, passage_ids, strength_keys

WIDTH, VOCABULARY, T, SEED = 11, 40, 8, 3
CFG = CollectSection(
    context_tokens=16, passage_tokens=T, top=4, sample_explain=5, sample_select=3, sample_score=6, panel=24
)
M = 2**64 - 1


@dataclass
class Text:
    """A passage as the tests make it, with every activation."""

    document: int
    key: int
    split: int
    start: int
    tokens: list[int]
    usable: list[bool]
    activation: np.ndarray  # float32 [position, feature]


def make(n_documents: int = 60, seed: int = 0) -> list[Text]:
    """Passages of documents of 1 to 7, some with the same text, many with equal peaks, some features dead or dense."""
    random = np.random.default_rng(seed)
    density = np.array([0, 0.9, 0.3, 0.1, 0.05, 0.05, 0.02, 0.02, 0.01, 0.002, 0.0])
    repeated = random.integers(0, VOCABULARY, T).tolist()
    texts = []
    for document in range(n_documents):
        key, split, n = (
            int(random.integers(0, M, dtype=np.uint64)),
            int(random.integers(3)),
            int(random.integers(1, 8)),
        )
        for i in range(n):
            length = T if i < n - 1 else int(random.integers(1, T + 1))
            tokens = (
                repeated[:length]
                if random.random() < 0.25
                else random.integers(0, VOCABULARY, length).tolist()
            )
            usable = (random.random(length) > 0.1).tolist()
            value = np.exp(random.normal(0, 2, (length, WIDTH)))
            coarse = np.round(value * 4) / 4 + 0.25  # many equal peaks
            value = np.where(random.random(value.shape) < 0.5, value, coarse)
            fires = (random.random(value.shape) < density) & np.array(usable)[:, None]
            texts.append(
                Text(
                    document, key, split, i * T, tokens, usable, np.where(fires, value, 0).astype(np.float32)
                )
            )
    return texts


TEXTS = make()


def batch(texts: Sequence[Text]) -> Batch:
    n = len(texts)
    tokens, usable = np.zeros((n, T), dtype=np.int32), np.zeros((n, T), dtype=bool)
    row, feature, value = [], [], []
    for i, text in enumerate(texts):
        tokens[i, : len(text.tokens)] = text.tokens
        usable[i, : len(text.tokens)] = text.usable
        for position, f in zip(*np.nonzero(text.activation), strict=True):
            row.append(i * T + position)
            feature.append(f)
            value.append(text.activation[position, f])
    return Batch(
        tokens=tokens, lengths=np.array([len(t.tokens) for t in texts]), usable=usable,
        document_key=np.array([t.key for t in texts], dtype=np.uint64),
        split=np.array([t.split for t in texts]), start=np.array([t.start for t in texts]),
        row=np.array(row, dtype=np.int64), feature=np.array(feature, dtype=np.int64),
        value=np.array(value, dtype=np.float32),
    )  # fmt: skip


def keeper(cfg: CollectSection = CFG, seed: int = SEED) -> Keeper:
    return Keeper(cfg, WIDTH, VOCABULARY, seed)


def kept(texts: Sequence[Text], size: int = 7, cfg: CollectSection = CFG, seed: int = SEED) -> Keeper:
    """A settled keeper that was fed the passages in batches of `size`."""
    found = keeper(cfg, seed)
    for i in range(0, len(texts), size):
        found.add(batch(texts[i : i + size]))
    found.settle()
    return found


COUNTERS = (
    "n_tokens", "n_passages", "n_documents", "sums", "maxima", "histogram", "token_count", "total_tokens",
    "total_passages", "total_documents", "n_masked",
)  # fmt: skip


def state(found: Keeper) -> dict[str, np.ndarray]:
    """Everything that a keeper holds."""
    arrays = {name: np.asarray(getattr(found, name)) for name in COUNTERS}
    arrays |= {f"pool.{n}": getattr(found.pool, n) for n in ("feature", "passage", "text", "peak")}
    arrays["panel.id"], arrays["panel.key"], arrays["panel.split"] = (
        found.panel_id,
        found.panel_key,
        found.panel_split,
    )
    for name, ragged in (("pool", found.pool.firing), ("panel", found.panel_firing)):
        arrays[f"{name}.offsets"] = ragged.offsets
        arrays |= {f"{name}:{column}": values for column, values in ragged.columns.items()}
    arrays |= {f"passages.{n}": getattr(found.passages, n) for n in found.passages.COLUMNS}
    for i, shelf in enumerate(found.shelves):
        arrays |= {f"shelf{i}.entry": shelf.entry, f"shelf{i}.key": shelf.key}
    return arrays


def assert_same(found: Keeper, expected: Keeper) -> None:
    """Bit for bit."""
    a, b = state(found), state(expected)
    assert [
        n
        for n in b
        if a[n].dtype != b[n].dtype or a[n].shape != b[n].shape or a[n].tobytes() != b[n].tobytes()
    ] == []


# -- the reference -------------------------------------------------------------------------------------------


def mixed(x: int) -> int:
    """The finaliser of splitmix64 on a Python integer."""
    x = (x + 0x9E3779B97F4A7C15) & M
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M
    return x ^ (x >> 31)


def salt(purpose: int, seed: int = SEED) -> int:
    return mixed((seed * 0x1000003 + purpose) & M)


def identity(text: Text) -> int:
    return mixed(text.key ^ mixed(text.start)) >> 1


def lottery(text: Text, feature: int) -> int:
    return mixed(identity(text) ^ mixed(feature ^ salt(1)))


def firing(texts: Sequence[Text], feature: int, split: int) -> list[Text]:
    return [t for t in texts if t.split == split and t.activation[:, feature].any()]


def top(texts: Sequence[Text], feature: int, n: int) -> list[Text]:
    """The strongest by peak in explain, one per text; equal peaks by the upper half of the hash."""
    ranked = sorted(
        firing(texts, feature, 0), key=lambda t: (-t.activation[:, feature].max(), lottery(t, feature) >> 32)
    )
    seen, found = set(), []
    for t in ranked:
        if tuple(t.tokens) not in seen:
            seen.add(tuple(t.tokens))
            found.append(t)
    return found[:n]


def sample(texts: Sequence[Text], feature: int, split: int, n: int) -> list[Text]:
    return sorted(firing(texts, feature, split), key=lambda t: lottery(t, feature))[:n]


def panel(texts: Sequence[Text], split: int, n: int) -> list[Text]:
    return sorted((t for t in texts if t.split == split), key=lambda t: mixed(identity(t) ^ salt(2)))[:n]


@pytest.fixture(scope="module")
def whole() -> Keeper:
    return kept(TEXTS)


def listed(found: Keeper, shelf: int, feature: int) -> list[int]:
    """Passage ids of one list, best first."""
    entry = found.shelves[shelf].entry
    return found.pool.passage[entry[found.pool.feature[entry] == feature]].tolist()


def test_the_data_of_these_tests_has_what_makes_keeping_hard() -> None:
    assert len({tuple(t.tokens) for t in TEXTS}) < len(TEXTS) - 20
    assert len(firing(TEXTS, 0, 0)) == 0 < len(firing(TEXTS, 8, 0))
    peaks = [t.activation[:, 2].max() for t in firing(TEXTS, 2, 0)]
    assert len(set(peaks)) < len(peaks)
    assert len(firing(TEXTS, 2, 0)) > 4 * CFG.top
    assert all(
        len([t for t in TEXTS if t.split == s]) > 2 * size for s, size in enumerate(panel_sizes(CFG.panel))
    )


# -- counters ------------------------------------------------------------------------------------------------


def test_counters_are_exact(whole: Keeper) -> None:
    for split in range(3):
        inside = [t for t in TEXTS if t.split == split]
        assert whole.total_tokens[split] == sum(sum(t.usable) for t in inside)
        assert whole.total_passages[split] == len(inside)
        assert whole.total_documents[split] == len({t.document for t in inside})
        for f in range(WIDTH):
            fires = firing(TEXTS, f, split)
            values = [float(v) for t in fires for v in t.activation[:, f] if v > 0]
            assert whole.n_tokens[split, f] == len(values)
            assert whole.n_passages[split, f] == len(fires)
            assert whole.n_documents[split, f] == len({t.document for t in fires})
            assert whole.sums[split, f] == sum(round(v * 2**20) for v in values)
            assert whole.maxima[split, f] == max(values, default=0)
    assert whole.n_masked == sum(len(t.usable) - sum(t.usable) for t in TEXTS)


def test_histograms_count_every_firing_token_in_half_octaves(whole: Keeper) -> None:
    expected = np.zeros((WIDTH, keep.HISTOGRAM_BINS), dtype=int)
    for t in TEXTS:
        for _, f in zip(*np.nonzero(t.activation), strict=True):
            value = float(t.activation[_, f])
            expected[f, min(max(math.floor((math.log2(value) + 8) * 2), 0), keep.HISTOGRAM_BINS - 1)] += 1
    assert whole.histogram.tolist() == expected.tolist()
    assert whole.histogram.sum(axis=1).tolist() == whole.n_tokens.sum(axis=0).tolist()


def test_values_beyond_the_histogram_go_into_its_outer_bins() -> None:
    activation = np.zeros((2, WIDTH), dtype=np.float32)
    activation[:, 0] = [1e-30, 1e6]
    histogram = kept([Text(0, 9, 0, 0, [1, 2], [True, True], activation)]).histogram[0]
    assert histogram[0] == histogram[-1] == 1
    assert histogram.sum() == 2


def test_token_occurrences_are_those_of_usable_explain_positions(whole: Keeper) -> None:
    expected = np.zeros(VOCABULARY, dtype=int)
    for t in TEXTS:
        for token, counts in zip(t.tokens, t.usable, strict=True):
            expected[token] += counts and t.split == 0
    assert whole.token_count.tolist() == expected.tolist()


# -- lists and panel -----------------------------------------------------------------------------------------


def test_ids_and_hashes_are_those_of_the_reference() -> None:
    numbers = np.array([0, 1, 2**63, M], dtype=np.uint64)
    assert mix(numbers).tolist() == [mixed(int(n)) for n in numbers]
    ids = passage_ids(np.array([t.key for t in TEXTS], dtype=np.uint64), np.array([t.start for t in TEXTS]))
    assert ids.tolist() == [identity(t) for t in TEXTS]
    assert len(set(ids.tolist())) == len(TEXTS)


def test_the_top_list_holds_the_strongest_passages_one_per_text(whole: Keeper) -> None:
    for f in range(WIDTH):
        assert listed(whole, 0, f) == [identity(t) for t in top(TEXTS, f, CFG.top)], f"feature {f}"


@pytest.mark.parametrize(
    ("split", "size"), [(0, CFG.sample_explain), (1, CFG.sample_select), (2, CFG.sample_score)]
)
def test_a_sample_holds_the_passages_with_the_smallest_hashes(whole: Keeper, split: int, size: int) -> None:
    for f in range(WIDTH):
        assert listed(whole, 1 + split, f) == [identity(t) for t in sample(TEXTS, f, split, size)], (
            f"feature {f}"
        )


def test_a_kept_passage_comes_with_its_peak_and_every_firing_position(whole: Keeper) -> None:
    by_id = {identity(t): t for t in TEXTS}
    pool, offsets = whole.pool, whole.pool.firing.offsets
    assert len(pool) > 50
    for i in range(len(pool)):
        activation = by_id[int(pool.passage[i])].activation[:, pool.feature[i]]
        inside = slice(offsets[i], offsets[i + 1])
        assert pool.firing.columns["position"][inside].tolist() == np.flatnonzero(activation).tolist()
        assert pool.firing.columns["value"][inside].tolist() == activation[activation > 0].tolist()
        assert pool.peak[i] == activation.max()


def test_the_panel_holds_the_smallest_hashes_of_each_split_with_all_activations(whole: Keeper) -> None:
    by_id = {identity(t): t for t in TEXTS}
    for split, size in enumerate(panel_sizes(CFG.panel)):
        expected = [identity(t) for t in panel(TEXTS, split, size)]
        assert whole.panel_id[whole.panel_split == split].tolist() == expected
    firings = whole.panel_firing
    for i, passage in enumerate(whole.panel_id.tolist()):
        inside = slice(firings.offsets[i], firings.offsets[i + 1])
        found = {
            (f, p): v
            for f, p, v in zip(
                *(firings.columns[n][inside].tolist() for n in ("feature", "position", "value"))
            )
        }
        activation = by_id[passage].activation
        expected = {(f, p): float(activation[p, f]) for p, f in zip(*np.nonzero(activation), strict=True)}
        assert found == expected
        assert firings.columns["feature"][inside].tolist() == sorted(f for f, _ in expected)


def test_the_text_of_every_listed_passage_is_held_and_no_other(whole: Keeper) -> None:
    passages, by_id = whole.passages, {identity(t): t for t in TEXTS}
    assert set(passages.id.tolist()) == set(whole.pool.passage.tolist()) | set(whole.panel_id.tolist())
    for i, passage in enumerate(passages.id.tolist()):
        t = by_id[passage]
        n = int(passages.length[i])
        assert passages.tokens[i, :n].tolist() == t.tokens
        assert passages.usable[i, :n].tolist() == t.usable
        assert not passages.usable[i, n:].any()
        assert (passages.document[i], passages.split[i], passages.start[i]) == (t.key, t.split, t.start)


def test_what_is_held_is_bounded_by_lists_and_panel_however_much_is_read() -> None:
    lists = CFG.top + CFG.sample_explain + CFG.sample_select + CFG.sample_score
    for n in (60, 240):
        found = kept(make(n, seed=5))
        assert len(found.pool) <= WIDTH * lists
        assert len(found.passages.id) <= WIDTH * lists + CFG.panel
        assert [len(s.entry) <= WIDTH * s.size for s in found.shelves] == [True] * 4
        assert np.bincount(found.panel_split, minlength=3).tolist() == list(panel_sizes(CFG.panel))


def test_lists_and_panels_of_size_0_stay_empty() -> None:
    cfg = CFG.model_copy(
        update={"top": 0, "sample_explain": 0, "sample_select": 0, "sample_score": 2, "panel": 0}
    )
    found = kept(TEXTS, cfg=cfg)
    assert [len(s.entry) > 0 for s in found.shelves] == [False, False, False, True]
    assert len(found.panel_id) == 0
    assert listed(found, 3, 2) == [identity(t) for t in sample(TEXTS, 2, 2, 2)]


def test_another_seed_draws_other_samples_and_the_same_top() -> None:
    one, other = kept(TEXTS), kept(TEXTS, seed=SEED + 1)
    assert listed(one, 3, 2) != listed(other, 3, 2)
    assert set(one.panel_id.tolist()) != set(other.panel_id.tolist())
    unique = [
        f
        for f in range(WIDTH)
        if len({t.activation[:, f].max() for t in firing(TEXTS, f, 0)}) == len(firing(TEXTS, f, 0))
    ]
    assert unique
    assert [listed(one, 0, f) for f in unique] == [listed(other, 0, f) for f in unique]


def test_the_samples_of_two_features_are_drawn_independently() -> None:
    texts = make(120, seed=8)
    for t in texts:
        t.activation[:] = 0
        t.activation[0, :2] = 1.0  # both fire everywhere
    found = kept(texts)
    assert listed(found, 1, 0) != listed(found, 1, 1)


# -- nothing depends on how it came --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 13, 64, 10_000])
def test_batches_of_another_size_leave_the_same_state(whole: Keeper, size: int) -> None:
    assert_same(kept(TEXTS, size), whole)


@pytest.mark.parametrize("at", [1, 50, 150])
def test_cutting_the_lists_more_often_leaves_the_same_state(
    whole: Keeper, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts, settle = [0], Keeper.settle

    def counted(self: Keeper) -> None:
        cuts[0] += 1
        settle(self)

    monkeypatch.setattr(keep, "MERGE_AT", at)
    monkeypatch.setattr(Keeper, "settle", counted)
    assert_same(kept(TEXTS), whole)
    assert cuts[0] > 2


def test_settling_again_changes_nothing() -> None:
    found = kept(TEXTS)
    found.settle()
    assert_same(found, kept(TEXTS))


def test_documents_in_another_order_leave_the_same_state(whole: Keeper) -> None:
    documents = defaultdict(list)
    for t in TEXTS:
        documents[t.document].append(t)
    order = np.random.default_rng(1).permutation(list(documents)).tolist()
    assert_same(kept([t for d in order for t in documents[d]]), whole)


def shards(n: int, texts: Sequence[Text] = TEXTS) -> list[list[Text]]:
    return [[t for t in texts if t.key % n == i] for i in range(n)]


def merged(parts: Sequence[Keeper]) -> Keeper:
    found = keeper()
    for part in parts:
        found.merge(part)
    return found


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_merging_shards_in_any_order_gives_the_whole_bit_for_bit(whole: Keeper, order: list[int]) -> None:
    parts = [kept(shard, size=5 + i) for i, shard in enumerate(shards(4))]
    assert_same(merged([parts[i] for i in order]), whole)


def test_merging_is_associative(whole: Keeper) -> None:
    a, b, c = (kept(shard) for shard in shards(3))
    b.merge(c)
    a.merge(b)
    assert_same(a, whole)


def test_merging_an_empty_keeper_changes_nothing(whole: Keeper) -> None:
    assert_same(merged([kept(TEXTS), keeper()]), whole)
    assert_same(merged([keeper(), kept(TEXTS)]), whole)


def test_merging_leaves_the_other_keeper_as_it_was() -> None:
    part = kept(shards(2)[1])
    found = keeper()
    found.merge(part)
    assert_same(part, kept(shards(2)[1]))


def test_merging_duplicate_texts_of_two_shards_lists_them_once() -> None:
    activation = np.zeros((T, WIDTH), dtype=np.float32)
    activation[2, 4] = 3.0
    texts = [Text(i, 10 + i, 0, 0, list(range(T)), [True] * T, activation) for i in range(6)]
    found = merged([kept(texts[:3]), kept(texts[3:])])
    assert len(listed(found, 0, 4)) == 1
    assert len(listed(found, 1, 4)) == CFG.sample_explain  # the sample is of passages, duplicates included
    assert found.n_passages[0, 4] == 6


def through_a_file(found: Keeper, folder: Path) -> Keeper:
    """A keeper that took over the state of another, as a checkpoint does."""
    np.savez(folder / "state.npz", **found.state())
    second = keeper()
    with np.load(folder / "state.npz") as saved:
        second.restore({name: saved[name] for name in saved.files})
    return second


@pytest.mark.parametrize("at", [1, 20, len(TEXTS) // 7])
def test_saving_and_restoring_in_the_middle_leaves_the_same_state(
    whole: Keeper, at: int, tmp_path: Path
) -> None:
    first, cut = keeper(), at * 7
    for i in range(0, cut, 7):
        first.add(batch(TEXTS[i : i + 7]))
    second = through_a_file(first, tmp_path)
    for i in range(cut, len(TEXTS), 7):
        for both in (first, second):
            both.add(batch(TEXTS[i : i + 7]))
    for both in (first, second):
        both.settle()
        assert_same(both, whole)


def test_a_document_that_goes_on_after_a_restore_is_counted_once(tmp_path: Path) -> None:
    activation = np.zeros((T, WIDTH), dtype=np.float32)
    activation[0, 3] = 1.0
    texts = [Text(0, 77, 1, i * T, [1] * T, [True] * T, activation) for i in range(4)]
    first = keeper()
    first.add(batch(texts[:2]))
    second = through_a_file(first, tmp_path)
    second.add(batch(texts[2:]))
    assert (second.n_documents[1, 3], second.total_documents[1]) == (1, 1)
    assert second.n_passages[1, 3] == 4


def test_a_batch_of_more_passages_than_16_bits_count_is_kept_like_smaller_ones() -> None:
    n = 70_000
    cfg = CollectSection(
        context_tokens=1, passage_tokens=1, top=1, sample_explain=1, sample_select=0, sample_score=0, panel=40
    )
    random = np.random.default_rng(0)
    value, keys = random.random(n).astype(np.float32) + 1, random.integers(0, M, n, dtype=np.uint64)

    def cut(first: int, last: int) -> Batch:
        size = last - first
        zeros = np.zeros(size, dtype=np.int64)
        return Batch(
            tokens=np.ones((size, 1), dtype=np.int32), lengths=zeros + 1, usable=np.ones((size, 1), dtype=bool),
            document_key=keys[first:last], split=zeros, start=zeros,
            row=np.arange(size), feature=zeros, value=value[first:last],
        )  # fmt: skip

    at_once, in_parts = Keeper(cfg, 1, 2, 0), Keeper(cfg, 1, 2, 0)
    at_once.add(cut(0, n))
    for i in range(0, n, 10_000):
        in_parts.add(cut(i, i + 10_000))
    at_once.settle()
    in_parts.settle()
    assert_same(at_once, in_parts)


# -- small parts ---------------------------------------------------------------------------------------------


def test_ragged_rows_can_be_taken_in_any_order_and_joined() -> None:
    rows = Ragged(np.array([0, 2, 2, 5]), {"v": np.array([1, 2, 3, 4, 5])})
    taken = rows.take(np.array([2, 1, 0, 2]))
    assert [taken.columns["v"][a:b].tolist() for a, b in zip(taken.offsets, taken.offsets[1:])] == [
        [3, 4, 5], [], [1, 2], [3, 4, 5],
    ]  # fmt: skip
    joined = Ragged.concat([rows, taken])
    assert len(joined) == 7
    assert joined.offsets.tolist() == [0, 2, 2, 5, 8, 8, 10, 13]
    assert len(rows.take(np.array([], dtype=np.int64))) == 0


def test_strength_keys_put_the_strongest_first_and_break_ties_by_the_hash() -> None:
    peak = np.array([1.0, 3.0, 1e-30, 3.0, 2e30], dtype=np.float32)
    tie = np.array([0, 9 << 32, 0, 2 << 32, M], dtype=np.uint64)
    assert np.argsort(strength_keys(peak, tie)).tolist() == [4, 3, 1, 0, 2]


@pytest.mark.parametrize("total", [0, 1, 2, 7, 8192])
def test_panel_sizes_add_up_to_the_total(total: int) -> None:
    assert sum(panel_sizes(total)) == total
    assert min(panel_sizes(total)) >= 0
