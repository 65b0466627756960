"""Labels grouped by meaning: found again, the same each time, named by what is central, and safe to print."""

import json
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from autointerp import categories as grouping
from autointerp import cli, report
from autointerp.errors import ConfigError
from autointerp.report import Reading
from autointerp.simulators.sentences import sentence_vectors
from autointerp.store import Store
from autointerp.tally import Bar

from .test_exchange import HOSTILE
from .test_pipeline import finished_run

KINDS = {
    "months": ["january, february", "july, august", "october, november", "march and april", "the month of december"],
    "animals": ["dogs", "cats and kittens", "horses, cows", "the word \"sheep\"", "wolves"],
    "money": ["dollars", "gold coin, silver coin", "currency", "cents, dollar", "bank notes"],
}  # fmt: skip
LABELS = [text for kind in zip(*KINDS.values(), strict=True) for text in kind]


@pytest.fixture(scope="module")
def reading(tiny: dict[str, Path]) -> Reading:
    """A finished run with a label of each kind in turn, one of them twice, and a feature without a label."""
    with Store.read(finished_run(tiny) / "run.duckdb") as store:
        found = report.read(store)
    return with_labels(found, [*LABELS, LABELS[0], None])


def with_labels(found: Reading, labels: Sequence[str | None]) -> Reading:
    """The reading with these labels, features numbered from 0; grades are .1, .2, ..."""
    like = found.labels[0]
    return replace(found, labels=[
        replace(like, feature=i, feature_id=f"demo/{i:03}", label=text, r_rank=i / 10 if text else None)
        for i, text in enumerate(labels)
    ])  # fmt: skip


def encoder(texts: Sequence[str]) -> NDArray[np.float32]:
    return sentence_vectors(texts, Bar(enabled=False))


def kinds_of(category: grouping.Category) -> set[str]:
    return {kind for kind, texts in KINDS.items() for label in category.features if label.label in texts}


def test_kinds_of_things_are_found_again(reading: Reading) -> None:
    found = grouping.categories([reading], encoder, 3)
    assert [len(category.features) for category in found] == [6, 5, 5]
    assert sorted(kind for category in found for kind in kinds_of(category)) == sorted(KINDS), "one kind in each"
    assert all(0 < category.cohesion < 1 for category in found)


def test_a_category_is_called_by_its_most_central_labels(reading: Reading) -> None:
    for category in grouping.categories([reading], encoder, 3):
        texts = list(dict.fromkeys(label.label for label in category.features))
        points = encoder([", ".join(grouping.clauses(text or "")) for text in texts])
        near = (points @ points.sum(axis=0)).tolist()
        assert near == sorted(near, reverse=True)
        assert category.name == " / ".join(map(str, texts[:2]))


def test_every_feature_with_a_label_is_in_one_category_and_no_other(reading: Reading) -> None:
    found = grouping.categories([reading], encoder)
    assert len(found) == 4, "the square root of 15 different labels"
    ids = [label.feature_id for category in found for label in category.features]
    assert sorted(ids) == [label.feature_id for label in reading.labels if label.label]
    named = grouping.by_feature(found)
    assert set(named) == set(ids)
    assert named["demo/000"] == named["demo/015"], "the same label twice"


def test_the_order_of_features_changes_nothing(reading: Reading) -> None:
    turned = replace(reading, labels=reading.labels[::-1])
    assert grouping.as_json(grouping.categories([turned], encoder)) == grouping.as_json(
        grouping.categories([reading], encoder)
    )


def test_grades_of_a_category_are_of_labels_that_have_one(reading: Reading) -> None:
    labels = [replace(label, r_rank=None if label.feature % 2 else 0.5) for label in reading.labels]
    found = grouping.categories([replace(reading, labels=labels)], encoder, 3)
    assert [category.r_rank for category in found] == [0.5, 0.5, 0.5]
    none = replace(reading, labels=[replace(label, r_rank=None) for label in reading.labels])
    assert {category.r_rank for category in grouping.categories([none], encoder, 3)} == {None}


def test_more_labels_than_are_grouped_join_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    points = np.repeat(np.eye(3, 8), [50, 30, 20], axis=0) + random.normal(0, 0.1, (100, 8))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    want = [list(range(50)), list(range(50, 80)), list(range(80, 100))]
    assert sorted(grouping.group(points, 3)) == want
    monkeypatch.setattr(grouping, "GROUPED", 12)
    assert sorted(grouping.group(points, 3)) == want


def test_equal_vectors_are_one_group_however_many_are_asked_for() -> None:
    points = np.tile(np.eye(1, 4, dtype=np.float32), (6, 1))
    assert grouping.group(points, 3) == [list(range(6))]


@pytest.mark.parametrize("n", [0, 16])
def test_a_number_of_categories_that_cannot_be_is_refused(reading: Reading, n: int) -> None:
    with pytest.raises(ConfigError, match=rf"{n} categories: expected 1 to 15"):
        grouping.categories([reading], encoder, n)


def test_a_run_without_labels_is_refused_and_one_label_is_a_category(reading: Reading) -> None:
    with pytest.raises(ConfigError, match="no labels to group"):
        grouping.categories([with_labels(reading, [None, None])], encoder)
    (only,) = grouping.categories([with_labels(reading, ["dogs", None])], encoder)
    assert (only.name, len(only.features), round(only.cohesion, 5)) == ("dogs", 1, 1.0)


def test_hostile_labels_do_not_steer_the_terminal(reading: Reading) -> None:
    found = grouping.categories([with_labels(reading, [*HOSTILE, *LABELS])], encoder)
    screen = StringIO()
    grouping.to_terminal(found, Console(file=screen, width=100))
    assert not {c for c in screen.getvalue() if not c.isprintable() and c != "\n"}


def test_the_command_prints_a_table_and_json(tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(finished_run(tiny))
    assert cli.app(["categories", folder, "--json"], standalone_mode=False) in (None, 0)
    found = json.loads(capsys.readouterr().out)
    assert set(found[0]) == {"category", "n", "cohesion", "r_rank", "features"}
    assert sum(len(category["features"]) for category in found) == sum(category["n"] for category in found)
    cli.app(["categories", folder, "-n", "1"], standalone_mode=False)
    assert "cohesion" in capsys.readouterr().out
