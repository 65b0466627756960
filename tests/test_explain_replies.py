"""What a model says becomes labels, or a reason; the table of replies is fixtures/replies.jsonl."""

import json
from pathlib import Path
from typing import Any

import pytest

from autointerp.errors import ReplyError
from autointerp.explainers import Given
from autointerp.explainers.replies import clean_label, labels
from autointerp.llm.structured import answer, decoded, json_in

TABLE: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "fixtures" / "replies.jsonl").read_text("utf-8").splitlines()
]
GOOD = [row for row in TABLE if "labels" in row]
BAD = [row for row in TABLE if "reason" in row]
PROMPT = ["You find out what makes it fire.", "Ada **walked** to the red river, and it was 5 o'clock. Bela drove"]


def given(row: dict[str, Any]) -> Given:
    return Given([*PROMPT, *row.get("given", [])], ["units of money"])


def named(row: dict[str, Any]) -> str:
    return row["reply"][:40] or "nothing"


def test_the_table_is_large_and_says_everything_once() -> None:
    assert len(TABLE) >= 120
    assert len({(row["reply"], str(row.get("given"))) for row in TABLE}) == len(TABLE)
    assert {row["reason"] for row in BAD} == {
        "empty", "refusal", "reasoning", "no_pattern", "echo", "marks", "wrong_language", "too_long", "bad_json",
    }  # fmt: skip


@pytest.mark.parametrize("row", GOOD, ids=named)
def test_a_good_reply_is_labels(row: dict[str, Any]) -> None:
    found = labels(row["reply"], given(row), 3, 12)
    assert [c.label for c in found if c.label] == row["labels"]
    assert [c.reason for c in found if not c.label] == row.get("lost", [])


@pytest.mark.parametrize("row", BAD, ids=named)
def test_a_reply_without_a_label_is_refused_with_its_reason(row: dict[str, Any]) -> None:
    with pytest.raises(ReplyError) as problem:
        labels(row["reply"], given(row), 3, 12)
    assert problem.value.reason == row["reason"]


@pytest.mark.parametrize("row", GOOD, ids=named)
def test_a_label_is_a_label_when_it_is_said_again(row: dict[str, Any]) -> None:
    for label in row["labels"]:
        quoted = json.dumps({"labels": [f'"{label}"' if len(label) == 1 or label in QUOTED else label]})
        assert [c.label for c in labels(quoted, given(row), 3, 12)] == [label]


QUOTED = {"I'm sorry", "let me see", "no pattern"}


def test_one_label_is_read_of_a_list_in_plain_text_where_one_was_asked_for() -> None:
    assert [c.label for c in labels("1. rivers\n2. lakes", Given([]), 1, 12)] == ["rivers"]


@pytest.mark.parametrize("reply", ["a\x00b river", "a\u202eb river", "\ufeffab river"])
def test_what_cannot_be_seen_is_no_part_of_a_label(reply: str) -> None:
    assert clean_label(reply, Given([]), 12) == "ab river"


def test_a_reply_of_any_size_is_read_in_time_that_grows_with_it() -> None:
    for text in ("the " * 20_000, "<think>" * 5_000, "various and " * 5_000, '{"labels": [' * 900, "1. " * 9_000):
        with pytest.raises(ReplyError):
            labels(text, Given(["x"]), 3, 12)


def test_json_is_told_from_text() -> None:
    assert json_in("words in [brackets]") is None
    assert json_in('{"labels": []}') == {"labels": []}
    assert answer("<think>x</think> y ") == "y"


@pytest.mark.parametrize("tag", ["</think>", "<think>", "<|channel|>analysis", "```", "<answer>"])
def test_a_tag_or_fence_within_a_label_is_the_labels(tag: str) -> None:
    for reply in (json.dumps({"labels": [f"{tag} in chat logs"]}), f"```json\n{json.dumps([f'{tag} in chat logs'])}\n```"):
        assert decoded(reply) in ({"labels": [f"{tag} in chat logs"]}, [f"{tag} in chat logs"])
