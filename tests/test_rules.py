"""Structured labels: what a model may reply, and that whatever is accepted can be matched in bounded time."""

import json
from typing import Any

import numpy as np
import pytest

from autointerp import rules
from autointerp.errors import ReplyError
from autointerp.rules import Rule, Rules, load, parse, pattern


def reply(**changes: Any) -> dict[str, Any]:
    rule = {"trigger": ["dollars"], "context": [], "strength": 4, "exceptions": []} | changes
    return {"label": "money", "rules": [rule]}


def refusal(value: Any) -> str:
    with pytest.raises(ReplyError) as problem:
        parse(value)
    assert problem.value.reason == "bad_rules"
    return str(problem.value)


def test_rules_are_read_whole_and_read_back_from_their_text() -> None:
    found = parse(reply(trigger=["dollars", " cents ", "dollars"], context=["spent"], exceptions=["/short\\b/"]))
    assert found == Rules("money", (Rule(("dollars", "cents"), ("spent",), 4, ("/short\\b/",)),))
    assert load(found.text) == found
    assert json.loads(found.text)["rules"][0]["trigger"] == ["dollars", "cents"]


def test_the_schema_has_the_shape_that_is_parsed() -> None:
    rule = rules.SCHEMA["properties"]["rules"]["items"]  # type: ignore[index]
    assert set(rule["required"]) == set(rule["properties"]) == set(Rule.__dataclass_fields__)
    assert set(rules.SCHEMA["required"]) == set(Rules.__dataclass_fields__)


def test_lists_that_are_left_out_are_empty() -> None:
    found = parse({"label": "money", "rules": [{"trigger": ["cent"], "strength": 0}]})
    assert found.rules == (Rule(("cent",), (), 0, ()),)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "label"),
        ([], "label"),
        ({"rules": []}, "label"),
        ({"label": 3, "rules": []}, "label"),
        ({"label": "money"}, "1 to 8"),
        ({"label": "money", "rules": []}, "1 to 8"),
        ({"label": "money", "rules": [reply()["rules"][0]] * 9}, "1 to 8"),
        ({"label": "money", "rules": ["dollars"]}, "object"),
        (reply(trigger=[]), "without a trigger"),
        (reply(trigger=["", " "]), "without a trigger"),
        (reply(trigger="dollars"), "list of texts"),
        (reply(trigger=[3]), "list of texts"),
        (reply(trigger=[str(i) for i in range(13)]), "at most 12"),
        (reply(trigger=["x" * 81]), "at most 80"),
        (reply(context={"before": "x"}), "list of texts"),
        (reply(strength=6), "0 to 5"),
        (reply(strength=-1), "0 to 5"),
        (reply(strength=2.5), "0 to 5"),
        (reply(strength=True), "0 to 5"),
        (reply(strength="4"), "0 to 5"),
        (reply(exceptions=["/(/"]), "/(/"),
    ],
)
def test_rules_that_cannot_be_used_are_refused_and_say_why(value: Any, says: str) -> None:
    assert says in refusal(value)


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(ReplyError) as problem:
        load("{")
    assert problem.value.reason == "bad_json"


# -- items -------------------------------------------------------------------------------------------------------------


def spans(item: str, text: str) -> list[str]:
    """What an item finds: its group where it has one."""
    found = pattern(item)
    return [match.group(found.groups) for match in found.finditer(text)]


@pytest.mark.parametrize(
    ("item", "text", "found"),
    [
        ("may", "May I, may you, mayor, dismay", ["May", "may"]),
        ("May", "May I, may you, MAY", ["May"]),
        ("per cent", "5 per cent, per\n cent, percent", ["per cent", "per\n cent"]),
        ("$", "$5 and US$ 6", ["$", "$"]),
        ("don't", "I don't, they Don't", ["don't", "Don't"]),
        ("c++", "C++ and c+++", ["C++", "c++"]),
        ("straße", "Straße", ["Straße"]),
        ("дом", "Дом и домой", ["Дом"]),
        (r"/\d{4}/", "in 1990 and 45", ["1990"]),
        (r"/(\d{1,2}) [ap]\.m/", "at 10 p.m. and 7 a.m.", ["10", "7"]),
        (r"/\w+ing\b/", "going and singer", ["going"]),
        ("/", "a/b", ["/"]),
        ("//", "a//b", ["//"]),
        (r"/[Tt]he/", "The cat, the dog", ["The", "the"]),
        (r"/(?:very|so) \w+/", "very good, so bad", ["very good", "so bad"]),
    ],
)
def test_an_item_finds_what_it_says(item: str, text: str, found: list[str]) -> None:
    assert spans(item, text) == found


@pytest.mark.parametrize(
    "item",
    [
        "/(a+)+b/", "/(a*)*b/", "/(a|a)*b/", "/(a?){30}b/", "/(?:a|aa)+$/", "/((a+))+/", "/.*.*=.*/", r"/(\w+\s?)*$/",
        "/(?=a)a/", "/(?!a)b/", "/(?<=a)b/", "/(?<!a)b/", "/(?i)a/", "/(?P<x>a)/", "/(?#x)a/", r"/(a)\1/", "/a{1,99}/",
        "/a{99999999999999999999}/", "/a{2000000000}/", "/[/", "/(/", "/a)/", "/*a/", "/a**/", "/(a)(b)/", "/a?/", "/a*/",
        "/(?:)/", "/()/", "/|/", "/x|/", r"/\b/", "/^/", "/(?>a)/", "/(?(1)a)b/", "/" + "a?" * 14 + "a" * 14 + "/",
        "/" + "(?:a|b|c|d)" * 7 + "/",
    ],
)  # fmt: skip
def test_an_expression_that_is_broken_empty_or_not_bounded_in_time_is_refused(item: str) -> None:
    with pytest.raises(ReplyError) as problem:
        pattern(item)
    assert problem.value.reason == "bad_rules"


PIECES = ["a", "b", "[ab]", ".", r"\w", "(?:a|b)", "(a)", "a?", "a*", "b+", "a{2,5}", "(?:ab)?", r"\s*", "|"]


def test_whatever_is_accepted_ends_on_the_longest_passage() -> None:
    random = np.random.default_rng(0)
    texts = ["a" * 1500, "ab" * 750, " " * 1500, "a" * 1499 + "c"]
    accepted = 0
    for _ in range(400):
        body = "".join(random.choice(PIECES, size=int(random.integers(2, 7)))) + str(random.choice(["", "c", "$", "!"]))
        try:
            found = pattern(f"/{body}/")
        except ReplyError:
            continue
        accepted += 1
        for text in texts[: 1 + accepted % 4]:
            for _match in found.finditer(text):
                pass
    assert accepted > 60


@pytest.mark.parametrize("item", ["x" * 80, "/" + "a" * 78 + "/"])
def test_the_longest_item_is_accepted(item: str) -> None:
    assert spans(item, item.strip("/")) == [item.strip("/")]
