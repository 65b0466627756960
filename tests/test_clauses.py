"""What the embedding simulator takes from a label: the alternatives that it names, not the words about them."""

import pytest

from autointerp.simulators.clauses import clauses


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ('the words "last" and "final"', ["last", "final"]),
        ("the auxiliary 'have'", ["have"]),
        ("the preposition “to” before a verb", ["to"]),
        ("object pronouns such as them, it and him", ["them", "it", "him"]),
        ("colours (red, green)", ["colours", "red", "green"]),
        ("war; also enemy, victory", ["war", "enemy", "victory"]),
        ("any of army, navy, and schools", ["army", "navy", "schools"]),
        ("the word treaty", ["treaty"]),
        ("words for months", ["months"]),
        ("the military, such as army and navy", ["the military", "army", "navy"]),
    ],
)
def test_a_label_is_read_for_what_it_names(label: str, named: list[str]) -> None:
    assert clauses(label) == named


@pytest.mark.parametrize(
    "label",
    [
        "of the",
        "to",
        "also",
        "words",
        "the word",
        "and their, and its",
        "the status, on trade",
        "don't, can't",
        "'ve, 'd",
        "the soldiers' homes",
        ",",
        '""',
    ],
)
def test_words_that_are_themselves_the_label_are_kept(label: str) -> None:
    assert clauses(label) == (label.split(", ") if ", " in label else [label])
