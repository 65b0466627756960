"""Neighbours: which features fire together, and which write alike, against plain counting."""

from pathlib import Path

import numpy as np
import pytest
import torch

from autointerp import relate
from autointerp.dictionary import Dictionary
from autointerp.dictionary.encode import units
from autointerp.rows import Neighbour
from autointerp.store import PanelRows, Store

from . import test_cli
from .test_cli import Autointerp, sets
from .test_pipeline import quick_overrides

autointerp = test_cli.autointerp  # the fixture that runs a command in this process


def panel(firings: list[list[tuple[int, int]]]) -> PanelRows:
    """Passages given as lists of (feature, position)."""
    flat = [pair for passage in firings for pair in sorted(passage)]
    return PanelRows(
        np.arange(len(firings)), np.cumsum([0, *map(len, firings)]), np.array([f for f, _ in flat]),
        np.array([p for _, p in flat]), np.ones(len(flat), dtype=np.float32),
    )  # fmt: skip


def a_dictionary(rows: torch.Tensor) -> Dictionary:
    n, d = rows.shape
    return Dictionary("d", "standard", rows.T.contiguous(), torch.zeros(n), rows, torch.zeros(d))


def test_firing_together_is_counted_by_token() -> None:
    # Feature 0 fires on three tokens, 1 on two of them, 2 in the same passages but on other tokens.
    fires = relate.firing_matrix(panel([[(0, 0), (1, 0), (2, 1)], [(0, 3), (1, 3), (0, 5), (2, 6)], []]), 8, 4)
    found = relate.firing_together(fires, [0, 1, 3])
    np.testing.assert_allclose(found[0], [1.0, 2 / np.sqrt(6), 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found[1], [2 / np.sqrt(6), 1.0, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(found[2], 0.0)  # never fires: no division by zero


def test_firing_together_equals_a_dense_count() -> None:
    random = np.random.default_rng(1)
    dense = random.random((30 * 16, 12)) < 0.1
    passages = [[(int(f), int(t)) for t, f in zip(*np.nonzero(part))] for part in dense.reshape(30, 16, 12)]
    fires = relate.firing_matrix(panel(passages), 16, 12)
    x = dense.astype(float)
    norms = np.linalg.norm(x, axis=0)
    np.testing.assert_allclose(relate.firing_together(fires, range(12)), x.T @ x / np.outer(norms, norms), rtol=1e-5)


def test_the_nearest_by_firing_of_a_hand_worked_panel() -> None:
    fires = relate.firing_matrix(
        panel([[(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)], [], [], [(0, 7)], [], [(2, 5)], [(2, 6)], [(2, 7)], [], [(3, 9)]]), 16, 5
    )  # fmt: skip
    together = relate.firing_together(fires, range(5))
    found = [relate.nearest(row, np.arange(5), feature, 2).tolist() for feature, row in enumerate(together)]
    assert found == [[1, 2], [0, 2], [1, 0], [], []]  # 2 / sqrt 6; 1 / sqrt 12; 1 / sqrt 8


def test_decoder_cosines_are_those_of_the_rows_whatever_their_norms() -> None:
    rows = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-3.0, 0.0], [0.0, 0.5]])
    numbers, directions = relate.decoder_directions(a_dictionary(rows))
    assert numbers.tolist() == [0, 1, 2, 3]
    found = relate.cosines(directions, np.array([0, 3]))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found, [[1, half, -1, 0], [0, half, 0, 1]], atol=1e-6)


def test_of_a_dictionary_cut_to_some_features_the_numbers_stay() -> None:
    rows = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    whole = relate.cosines(relate.decoder_directions(a_dictionary(rows))[1], np.array([2, 7]))
    numbers, directions = relate.decoder_directions(a_dictionary(rows).only(torch.tensor([2, 5, 7])))
    assert numbers.tolist() == [2, 5, 7]
    found = relate.cosines(directions, np.searchsorted(numbers, [2, 7]))
    np.testing.assert_allclose(found, whole[:, [2, 5, 7]], atol=1e-6)


def test_units_have_no_neighbours_by_direction() -> None:
    numbers, directions = relate.decoder_directions(units(3, torch.ones(6)))
    assert (len(numbers), relate.cosines(directions, np.array([0, 5])).shape) == (0, (2, 0))


@pytest.mark.parametrize(
    ("similarity", "n", "expected"),
    [
        ([1.0, 0.5, 0.9, 0.5], 8, [2, 1, 3]),  # itself left out, ties by number
        ([1.0, 0.5, 0.9, 0.5], 2, [2, 1]),
        ([1.0, 0.0, -0.9, 0.0], 8, []),  # nobody is near
    ],
)
def test_the_nearest_come_first(similarity: list[float], n: int, expected: list[int]) -> None:
    found = relate.nearest(np.array(similarity, dtype=np.float32), np.arange(4), 0, n)
    assert found.tolist() == expected


def test_a_run_knows_the_neighbours_of_its_features(autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path) -> None:
    overrides = sets(quick_overrides(tiny, tmp_path / "r", features__select="0,3,5"))
    ended = autointerp("run", *overrides)
    assert ended.code == 0 and "relate: 3 ok" in ended.err
    with Store.read(tmp_path / "r/t/run.duckdb") as store:
        run = store.latest_run()
        assert store.related(run.collection_id) == {0, 3, 5}
        found = store.neighbours(run.collection_id, 3)
    assert [n.rank for n in found if n.kind == "decoder"] == list(range(relate.NEIGHBOURS))
    assert all(isinstance(n, Neighbour) and n.other != 3 and 0 < n.similarity <= 1.001 for n in found)
    for kind in ("firing", "decoder"):
        values = [n.similarity for n in found if n.kind == kind]
        assert values and values == sorted(values, reverse=True)
    assert "relate: nothing pending" in autointerp("run", *overrides).err
