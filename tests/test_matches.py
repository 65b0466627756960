"""Matches, splits and merges against plain computations, and on dictionaries whose relations are known."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array
from torch.nn.functional import normalize

from autointerp import matches, splits
from autointerp.matches import Best
from autointerp.store import PanelRows

TOKENS = 8  # of a passage


def directions(n: int, d: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_best_matches_do_not_depend_on_the_blocks(rows: int) -> None:
    a, b = directions(23, 6, 0), directions(31, 6, 1)
    whole = (a @ b.T).numpy()
    there, back = matches.best(matches.cosines(a, b, rows), 23, 31)
    np.testing.assert_array_equal(there.place, whole.argmax(axis=1))
    np.testing.assert_array_equal(back.place, whole.argmax(axis=0))
    np.testing.assert_allclose(there.similarity, whole.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(back.similarity, whole.max(axis=0), atol=1e-6)
    assert len(list(matches.cosines(a, b, rows))) == matches.blocks_of(23, 31, rows)


def test_a_permuted_and_slightly_turned_dictionary_is_matched_feature_by_feature() -> None:
    a = directions(200, 64, 0)
    order = np.random.default_rng(0).permutation(200)
    b = normalize(a[torch.from_numpy(order)] + 0.02 * torch.randn(200, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    there, back = matches.best(matches.cosines(a, b), 200, 200)
    assert (order[there.place] == np.arange(200)).all() and (back.place == order).all()
    assert there.mutual(back).all()


def test_mutual_is_asked_of_both() -> None:
    there = Best(np.array([0, 0, -1]), np.zeros(3, dtype=np.float32))
    back = Best(np.array([1]), np.zeros(1, dtype=np.float32))
    assert there.mutual(back).tolist() == [False, True, False]
    assert back.mutual(there).tolist() == [True]


def test_random_directions_are_as_near_as_theory_says_and_crowded_ones_nearer() -> None:
    crowded = normalize(directions(300, 8, 0) @ torch.randn(8, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    drawn = matches.random_directions(crowded, 2000, 0)
    for found in drawn.values():
        torch.testing.assert_close(torch.linalg.vector_norm(found, dim=1), torch.ones(2000))
    pairs = (drawn["isotropic"] @ crowded.T).flatten()
    assert float(pairs.std()) == pytest.approx(1 / np.sqrt(64), rel=0.05)  # of a random direction with any other
    near = {name: matches.best(matches.cosines(found, crowded), 2000, 300)[0].similarity.mean() for name, found in drawn.items()}
    assert near["covariance"] > near["isotropic"] + 0.2
    again = matches.random_directions(crowded, 2000, 0)
    assert all(torch.equal(again[name], found) for name, found in drawn.items())


# -- activations -------------------------------------------------------------------------------------------------------


def panel(dense: NDArray[np.float32]) -> PanelRows:
    """Activations [passage, token, feature] as a panel keeps them."""
    n = len(dense)
    entries = [np.nonzero(one.T) for one in dense]  # by feature, then position
    lengths = [len(feature) for feature, _ in entries]
    features, positions = (np.concatenate([entry[i] for entry in entries]) for i in (0, 1))
    values = dense[np.repeat(np.arange(n), lengths), positions, features]
    offsets = np.cumsum([0, *lengths])
    return PanelRows(np.arange(n), offsets, features.astype(np.int32), positions.astype(np.uint8), values)


def some(n: int, features: int, density: float, seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    fires = random.random((n, TOKENS, features)) < density
    return np.where(fires, random.exponential(size=fires.shape), 0).astype(np.float32)


def test_activations_are_read_in_the_order_asked_for_and_of_the_features_asked_for() -> None:
    dense = some(9, 7, 0.3, 0)
    rows, features = np.array([4, 0, 8]), np.array([1, 2, 6])
    found = matches.activations(panel(dense), rows, TOKENS, features)
    np.testing.assert_array_equal(found.toarray(), dense[rows][:, :, features].reshape(-1, 3))


def test_correlations_are_pearsons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matches, "BLOCK_VALUES", 20)  # several blocks
    dense = some(40, 12, 0.2, 1)
    dense[:, :, 3] = 0
    dense[5, 2, 3] = 1.0  # fires once: too rare to tell
    x = dense.reshape(-1, 12)
    standard = matches.standard(csc_array(x), len(x), least=5)
    assert standard.enough.tolist() == [i != 3 for i in range(12)]
    a, b = ([matches.standard(csc_array(x[:, cut]), len(x), 5) for cut in (slice(0, 5), slice(5, 12))])
    blocks = list(matches.correlations(a, b))
    assert len(blocks) == 3
    found = np.concatenate([block.similarity for block in blocks])
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(x.T)[:5, 5:]
    np.testing.assert_allclose(found[[0, 1, 2, 4]], expected[[0, 1, 2, 4]], atol=1e-5)
    there, _ = matches.best(blocks, 5, 7)
    assert there.place[3] == -1 and np.isnan(there.similarity[3])


# -- splits ------------------------------------------------------------------------------------------------------------


def divided(n: int = 600) -> tuple[csc_array, csc_array, int]:
    """Feature 0 of a fires where 0, 1 or 2 of b do (thirds); 1 of a is 3 of b; 2 of a fires at random.

    4 of b holds 0 of a's firings, and as many others: it is no part.
    """
    tokens = n * TOKENS
    random = np.random.default_rng(0)
    a, b = np.zeros((tokens, 3), dtype=np.float32), np.zeros((tokens, 5), dtype=np.float32)
    at = random.permutation(tokens)[:90]
    strength = random.uniform(1, 2, 90)
    a[at, 0] = strength
    b[at, np.arange(90) % 3] = strength
    b[at, 4] = 1.0
    b[random.permutation(tokens)[:200], 4] = 1.0
    same = random.permutation(tokens)[:60]
    a[same, 1] = b[same, 3] = 1.0
    a[random.permutation(tokens)[:60], 2] = 1.0
    return csc_array(a), csc_array(b), tokens


def test_a_feature_whose_firings_three_others_share_is_split_and_seen_from_there_merged() -> None:
    a, b, tokens = divided()
    told: list[int] = []
    pairs = splits.overlapping(a, b, tokens, 10, told.append)
    found = splits.splits(pairs, a, b, None, 0.0)
    assert sum(told) == 3
    assert [(s.whole, sorted(s.parts)) for s in found] == [(0, [0, 1, 2])]
    (split,) = found
    assert split.covered == pytest.approx(1.0, abs=1e-5) and sum(split.adds) == pytest.approx(split.covered)
    assert split.adds == sorted(split.adds, reverse=True) and min(split.inside) > 0.95
    assert splits.merges(pairs, a, b, None, 0.0) == []
    back = splits.overlapping(b, a, tokens, 10, told.append)
    assert splits.splits(back, b, a, None, 0.0) == []
    assert splits.merges(back, b, a, None, 0.0) == found  # the same, from the other side


def test_parts_that_do_not_lie_near_are_none() -> None:
    a, b, tokens = divided()
    pairs = splits.overlapping(a, b, tokens, 10, lambda n: None)
    cosine = np.array([0.6, 0.5, 0.1, 0.9, 0.9], dtype=np.float32)
    assert splits.splits(pairs, a, b, lambda whole, parts: cosine[parts], 0.3) == []  # two thirds are too little
    (found,) = splits.splits(pairs, a, b, lambda whole, parts: cosine[parts], 0.05)
    assert found.cosine == pytest.approx([float(cosine[p]) for p in found.parts])


def test_a_feature_that_fires_nearly_everywhere_is_neither_whole_nor_part() -> None:
    a, b, tokens = divided()
    dense = csc_array(np.ones((tokens, 1), dtype=np.float32))
    assert len(splits.overlapping(a, dense, tokens, 10, lambda n: None).a) == 0
    assert len(splits.overlapping(dense, b, tokens, 10, lambda n: None).a) == 0
    assert len(splits.overlapping(a, b, tokens, 1000, lambda n: None).a) == 0  # nor one that fires too rarely
