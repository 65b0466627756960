"""Vectors of labels are read once, whatever the file beside the run is, and a search finds the same with it."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autointerp import label_vectors

TEXTS = ["days of the week", "war", "", "\x1b[31m \0 \ud800", "war"]


class Encoder:
    """Vectors that depend on the text alone; knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        rows = [np.random.default_rng([ord(c) for c in text]).normal(size=8) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def test_a_text_is_read_once_and_has_the_same_vector_ever_after(tmp_path: Path) -> None:
    encoder = Encoder()
    first = label_vectors.kept(tmp_path, "e", encoder)(TEXTS)
    assert sorted(encoder.asked) == sorted(set(TEXTS))
    again = label_vectors.kept(tmp_path, "e", encoder)(TEXTS[::-1])
    assert (again == first[::-1]).all() and len(encoder.asked) == 4
    np.testing.assert_allclose(first, Encoder()(TEXTS), atol=1e-3)
    label_vectors.kept(tmp_path, "e", encoder)([*TEXTS, "peace"])
    assert encoder.asked[4:] == ["peace"]


def test_another_encoder_has_vectors_of_its_own(tmp_path: Path) -> None:
    encoder = Encoder()
    label_vectors.kept(tmp_path, "e", encoder)(["war"])
    label_vectors.kept(tmp_path, "f", encoder)(["war"])
    assert encoder.asked == ["war", "war"]


@pytest.mark.parametrize("damage", ["empty", "cut", "pickle", "shape", "nan"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / label_vectors.NAME
    want = label_vectors.kept(tmp_path, "e", Encoder())(TEXTS)
    whole = path.read_bytes()
    if damage in ("empty", "cut"):
        path.write_bytes(whole[: {"empty": 0, "cut": len(whole) // 2}[damage]])
    else:
        key, vector = np.zeros((1, 16), np.uint8), np.full((1, 8), np.nan, np.float16)
        bad = {"pickle": (np.array([{}]), vector), "shape": (key, np.zeros(3, np.float16)), "nan": (key, vector)}[damage]
        with path.open("wb") as file:
            np.savez(file, key=bad[0], vector=bad[1])
    with caplog.at_level(logging.WARNING):
        found = label_vectors.kept(tmp_path, "e", Encoder())(TEXTS)
    assert (found == want).all() and "made anew" in caplog.text
    encoder = Encoder()
    label_vectors.kept(tmp_path, "e", encoder)(TEXTS)
    assert encoder.asked == []


def test_a_folder_that_cannot_be_written_goes_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = tmp_path / "not there"
    with caplog.at_level(logging.WARNING):
        assert label_vectors.kept(missing, "e", Encoder())(TEXTS).shape == (5, 8)
    assert "not kept" in caplog.text
