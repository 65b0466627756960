"""What people say of labels, kept as JSON lines."""

import json
import threading
from pathlib import Path

import pytest

from autointerp import edits
from autointerp.edits import Edit
from autointerp.errors import StoreError

from .test_exchange import HOSTILE


def test_edits_come_back_in_the_order_they_were_made(tmp_path: Path) -> None:
    made = [Edit("sae/17", "label", "days of the week", "ana", "2026-01-01T00:00:00+00:00"), Edit("sae/17", "up", "days")]
    assert edits.read(tmp_path) == []
    assert edits.append(tmp_path, made[:1]) == edits.append(tmp_path, made[1:]) == 1
    found = edits.read(tmp_path)
    assert found[0] == made[0]
    assert (found[1].kind, found[1].label) == ("up", "days") and found[1].at.endswith("+00:00")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_one_line_and_comes_back(tmp_path: Path, text: str) -> None:
    edits.append(tmp_path, [Edit("sae/1", "label", text, author=text)])
    assert (tmp_path / edits.FILE).read_bytes().count(b"\n") == 1
    (found,) = edits.read(tmp_path)
    assert (found.label, found.author) == (text, text)


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    def write(author: str) -> None:
        for n in range(20):
            edits.append(tmp_path, [Edit(f"sae/{n}", "label", "x" * 1000, author)])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [(edit.author, edit.feature_id) for edit in edits.read(tmp_path)]
    assert sorted(found) == sorted((a, f"sae/{n}") for a in "abcd" for n in range(20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_id": "17"}, "dictionary/index"), ({"feature_id": "sae/-1"}, "dictionary/index"),
        ({"kind": "delete"}, "label, up, down"), ({"label": " "}, "1 to 2000"), ({"label": "x" * 2001}, "1 to 2000"),
        ({"label": 5}, "strings"),
    ],
)  # fmt: skip
def test_what_is_no_edit_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    row = {"feature_id": "sae/1", "kind": "label", "label": "war"} | change
    with pytest.raises(StoreError, match=message):
        Edit(**row)  # type: ignore[arg-type]
    (tmp_path / edits.FILE).write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(StoreError, match=rf"line 2: not an edit \(.*{message}"):
        edits.read(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", '{"feature": 1}', "\x00", '{"feature_id": "sae/1"}'])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / edits.FILE).write_text(line + "\n")
    with pytest.raises(StoreError, match="line 1: not an edit"):
        edits.read(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        edits.append(tmp_path / "no", [Edit("sae/1", "up", "war")])
