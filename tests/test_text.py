"""Token strings add up to the text, and words know which tokens they cover."""

import pytest

from autointerp.text import printable, token_strings, words

TEXTS = ["Ada walked", "naïve café", "日本語", "👋 hi 👩‍👩‍👧!", "", "a\nb\tc", "e\u0301"]


def split(text: str, size: int) -> tuple[list[int], dict[int, bytes]]:
    """The text's bytes in pieces of `size`, as token ids with their bytes."""
    data = text.encode()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return list(range(len(pieces))), dict(enumerate(pieces))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_token_strings_concatenate_to_the_text_however_characters_are_split(text: str, size: int) -> None:
    ids, pieces = split(text, size)
    strings = token_strings(ids, pieces)
    assert "".join(strings) == text
    assert len(strings) == len(ids)


def test_a_character_spread_over_tokens_belongs_to_the_one_that_completes_it() -> None:
    assert token_strings(*split("a👋b", 1)) == ["a", "", "", "", "👋", "b"]


def test_bytes_that_never_make_a_character_are_shown_as_replacements() -> None:
    strings = token_strings([0, 1], {0: b"ok\xf0\x9f", 1: b" end"})
    assert "".join(strings) == "ok\ufffd end"
    assert token_strings([0], {0: b"ok\xf0\x9f"}) == ["ok\ufffd"]
    assert token_strings([0], {0: b"\xff"}) == ["\ufffd"]


def test_a_passage_that_begins_within_a_character_keeps_one_string_per_token() -> None:
    strings = token_strings([0, 1], {0: "👋".encode()[2:], 1: b" x"})
    assert len(strings) == 2
    assert strings[1] == " x"
    assert set(strings[0]) == {"\ufffd"}


def test_a_token_without_bytes_is_empty() -> None:
    assert token_strings([5, 0], {0: b"x"}) == ["", "x"]
    assert token_strings([], {}) == []


@pytest.mark.parametrize(
    ("strings", "expected"),
    [
        (["Ada", " walked", "."], [("Ada", 0, 1), ("walked", 1, 2), (".", 2, 3)]),
        (["wal", "ked", " on"], [("walked", 0, 2), ("on", 2, 3)]),
        ([" ", " ", "x"], [("x", 2, 3)]),
        (["a b", " c"], [("a", 0, 1), ("b", 0, 1), ("c", 1, 2)]),
        (["don", "'", "t"], [("don't", 0, 3)]),
        (["1,", "000", ".5", "%"], [("1,000.5%", 0, 4)]),
        (["well", "-", "known"], [("well-known", 0, 3)]),
        (["", "", "é", "t", "é"], [("été", 2, 5)]),
        (["x", "", "y"], [("xy", 0, 3)]),
        (["!", "?"], [("!", 0, 1), ("?", 1, 2)]),
        (["\n\n"], []),
        ([], []),
    ],
)
def test_words_cover_the_tokens_that_they_touch(
    strings: list[str], expected: list[tuple[str, int, int]]
) -> None:
    assert [tuple(word) for word in words(strings)] == expected


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_tokens_of_a_word_hold_its_text_and_no_word_is_lost(text: str, size: int) -> None:
    strings = token_strings(*split(text, size))
    found = words(strings)
    for word in found:
        assert word.text in "".join(strings[word.first : word.last])
        assert 0 <= word.first < word.last <= len(strings)
    covered = "".join(word.text for word in found)
    assert [c for c in text if c.isalnum()] == [c for c in covered if c.isalnum()]
    assert [w.first for w in found] == sorted(w.first for w in found)


def test_control_characters_are_shown_and_not_sent_to_the_terminal() -> None:
    assert printable("a\x1b[31mred\x07\x9b") == r"a\x1b[31mred\x07\x9b"
    assert printable("née 👋\n\tok") == "née 👋\n\tok"
    assert "\u202e" not in printable("abc\u202edef")  # right-to-left override
    assert "\r" not in printable("good\rbad")
    assert (printable(None), printable(3)) == ("", "3")
