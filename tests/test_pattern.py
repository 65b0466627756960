"""The `pattern` simulator executes rules as rules.py defines them, and makes literal rules of any other label."""

import json
import re
from collections.abc import Sequence

import numpy as np
import pytest

from autointerp import prompts, score, simulate
from autointerp.rules import Rule
from autointerp.simulators.pattern import PatternSimulator, rules_of, sentence_of
from autointerp.tally import Bar

from .test_simulate import MakeBench
from .test_simulate import bench as bench  # a fixture
from .test_simulate import planted as planted  # a fixture

TEXT = ["We", " paid", " nine", " dol", "lars", " and", " the", " other", " paid", " in", " dollars", " short", "."]


def test_white_space_fires_where_it_is_all_that_a_trigger_is_about() -> None:
    strings = ["End", ".", "\n\n", "Next", " line", "\n", " last"]
    assert fires(told(rule(r"/\n+/")), strings) == {2: 5, 5: 5}
    assert fires(told(rule("/\n\n/")), strings) == {2: 5}
    assert fires(told(rule(r"/\.\n+/")), strings) == {1: 5}, "at the ends of more it is no part of it"


def test_the_example_rules_of_the_prompt_fire_on_the_marks_of_its_excerpts() -> None:
    messages = prompts.fill("explain-structured", lens="", excerpts="", max_words="12")
    shown = 0
    for asked, answered in zip(messages[1:-1:2], messages[2::2]):
        for excerpt in re.findall(r"^- (.+)$", asked["content"], re.MULTILINE):
            pieces = re.split(r"\*\*", excerpt)
            # Marks have no part in what a rule covers beside them: a colon between two marked numbers.
            fired = {i for i in fires(answered["content"], pieces) if re.search(r"\w", pieces[i])}
            assert fired == set(range(1, len(pieces), 2)), excerpt
            shown += 1
    assert shown == 9


def rule(*trigger: str, context: Sequence[str] = (), strength: int = 5, exceptions: Sequence[str] = ()) -> dict[str, object]:
    """A rule as JSON."""
    return {"trigger": trigger, "context": context, "strength": strength, "exceptions": exceptions}


def told(*rules: dict[str, object]) -> str:
    """A structured label."""
    return json.dumps({"label": "money", "rules": rules})


def fires(label: str, strings: Sequence[str]) -> dict[int, float]:
    """Token -> strength, of the tokens that fire."""
    simulator = PatternSimulator(len(strings) + 2)
    simulator.read({7: strings}, Bar(enabled=False))
    row = simulator.predict([label], np.array([7]))[0, 0]
    assert (row[len(strings) :] == 0).all(), "nothing after the passage's end"
    return {i: float(value) for i, value in enumerate(row) if value}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([rule("dollars")], {3: 5, 4: 5, 10: 5}),  # both tokens of a word
        ([rule("Dollars")], {}),  # written with a capital: as it stands
        ([rule("the")], {6: 5}),  # not within "other"
        ([rule("nine dollars", strength=2)], {2: 2, 3: 2, 4: 2}),
        ([rule("dollars", context=["the"])], {10: 5}),  # the context stands before it
        ([rule("dollars", context=["short"])], {}),  # ... not after
        ([rule("paid", context=["paid"])], {8: 5}),  # ... and is not the match itself
        ([rule("dollars", context=["absent", "nine"])], {3: 5, 4: 5, 10: 5}),  # one of them is enough
        ([rule("dollars", exceptions=["dollars short"])], {3: 5, 4: 5}),
        ([rule("dollars", exceptions=["short"])], {3: 5, 4: 5, 10: 5}),  # stands beside it, does not overlap
        ([rule("dollars", strength=2), rule("nine dollars", strength=4)], {2: 4, 3: 4, 4: 4, 10: 2}),  # the strongest
        ([rule("dollars", strength=0)], {}),
        ([rule(r"/paid (\w+)/")], {2: 5, 9: 5}),  # the group alone
        ([rule("/ nine /")], {2: 5}),  # white space at the ends fires nothing
        ([rule("/d/")], {1: 5, 3: 5, 5: 5, 8: 5, 10: 5}),
        ([rule("dollars"), rule("short", strength=1)], {3: 5, 4: 5, 10: 5, 11: 1}),
    ],
)
def test_rules_by_hand(rules: list[dict[str, object]], expected: dict[int, float]) -> None:
    assert fires(told(*rules), TEXT) == expected


@pytest.mark.parametrize(
    ("label", "strings", "expected"),
    [
        ("red, blue", ["a", " red", " or", " blue", "berry"], {1: 5}),
        ("'red'; “blue” or green", ["red", " blue", " green", " or"], {0: 5, 1: 5, 2: 5}),
        ("new york", ["In", " New", " York", " new"], {1: 5, 2: 5}),
        ("words about colours", ["red", " words", " about", " colours"], {1: 5, 2: 5, 3: 5}),
        ("red", ["hundred", " Red", " red"], {1: 5, 2: 5}),
        ("/red/", ["red", "/red/"], {}),  # no expression: nobody wrote a rule
        (", ;", [",", ";"], {}),
        ("", ["red"], {}),
        ("{red}", ["{", "red", "}"], {0: 5, 1: 5, 2: 5}),
        ("é, don't", ["", "é", " don", "'t", " e"], {1: 5, 2: 5, 3: 5}),
        ("x" * 500, ["x" * 500], {}),
        ("red", [], {}),
    ],
)
def test_a_label_without_rules_is_executed_clause_by_clause(label: str, strings: list[str], expected: dict[int, float]) -> None:
    assert fires(label, strings) == expected


def test_the_sentence_of_a_label_is_what_other_simulators_read() -> None:
    assert sentence_of(told(rule("dollars"))) == "money"
    assert sentence_of("red, blue") == "red, blue"
    assert rules_of("red, blue") == (Rule(("red", "blue"), (), 5, ()),)


def test_a_list_of_words_scores_1_on_features_that_are_one_word(bench: MakeBench) -> None:
    # Read by nobody else: the proxy is the simulator itself.
    from autointerp.simulators import open_simulator

    found = bench({f: [bench.words[f]] for f in (0, 1)}, None, simulator__kind="pattern", simulator__proxy="pattern", features__select="0,1")
    bench.monkeypatch.setattr("autointerp.grading.open_simulator", open_simulator)
    for split in ("select", "score"):
        simulate.run(found.grading, split)  # type: ignore[arg-type]
        score.run(found.grading, split)  # type: ignore[arg-type]
    scores = {(s.feature, s.metric): s.value for s in found.store.scores(found.grading.run, "score")}
    # " red" is the feature's token; "red" at a text's start would be another one, which a word list cannot tell apart.
    assert scores[0, "r_rank"] > 0.95 and scores[1, "r_rank"] > 0.95


def test_rules_are_told_to_pattern_and_the_sentence_to_the_proxy(bench: MakeBench) -> None:
    from dataclasses import replace

    from .test_grading_proxy import Watched

    proxy, simulator = Watched(), Watched()
    found = bench({0: [bench.words[0]]}, proxy, simulator__kind="pattern", features__select="0")
    bench.monkeypatch.setattr("autointerp.grading.open_simulator", lambda s: proxy if s.simulator.kind == "embedding" else simulator)
    (label,) = found.grading.wanted("score")
    rules = json.dumps({"label": bench.words[0], "rules": [rule("red")]})
    found.store.db.execute("DELETE FROM explanation")
    found.store.add([replace(label, rules=rules)])
    simulate.run(found.grading, "score")
    assert {told for told, _ in proxy.asked} == {bench.words[0]}
    assert {told for told, _ in simulator.asked} == {rules}
