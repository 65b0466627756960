"""Edits put together by label, with the votes that count."""

import os
from pathlib import Path

import pytest

from autointerp import edits
from autointerp.edits import Edit
from autointerp.errors import StoreError
from autointerp.said import Remarks, said


def edit(kind: str, label: str, author: str = "") -> Edit:
    return Edit("sae/1", kind, label, author)  # type: ignore[arg-type]


def test_the_last_vote_of_a_person_on_a_label_counts() -> None:
    votes = [edit("up", "a", "ana"), edit("up", "a", "bo"), edit("down", "a", "ana"), edit("up", "b", "ana"), edit("up", "a"), edit("up", "a")]
    found = {one.label: (one.ups, one.downs) for one in said(votes, "a")}
    assert found == {"a": (2, 1), "b": (1, 0)}


def test_the_label_comes_first_then_those_most_voted_for() -> None:
    votes = [edit("label", "b"), edit("label", "c", "ana"), edit("up", "c"), edit("down", "x"), edit("label", "c", "bo")]
    found = said(votes, "x")
    assert [one.label for one in found] == ["x", "c", "b"]
    assert [e.author for e in found[1].written] == ["ana", "bo"]
    assert [one.label for one in said([], "x")] == ["x"] and said([], None) == []


def test_what_is_said_meanwhile_is_seen(tmp_path: Path) -> None:
    remarks = Remarks(tmp_path)
    assert remarks.of("sae/1", None) == []
    edits.append(tmp_path, [edit("label", "a")])
    assert [one.label for one in remarks.of("sae/1", None)] == ["a"] and remarks.of("sae/2", None) == []
    edits.append(tmp_path, [edit("label", "b")])
    assert len(remarks.of("sae/1", None)) == 2
    (tmp_path / edits.FILE).unlink()
    assert remarks.of("sae/1", None) == []
    (tmp_path / edits.FILE).write_text("broken\n")
    os.utime(tmp_path / edits.FILE, (1, 1))
    for _ in range(2):  # never taken for read
        with pytest.raises(StoreError, match="line 1"):
            remarks.of("sae/1", None)
