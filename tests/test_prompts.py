"""A prompt is a file with holes: each is filled, none is left over, and what is filled in stays data."""

from pathlib import Path

import pytest

from autointerp import prompts
from autointerp.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with prompts of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    write(tmp_path, "mine", "# system\nBe {mood}.\n\n# user\nSay {word}.\n")
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / "prompts" / f"{name}.md").write_text(text, "utf-8")


def test_a_filled_prompt_is_chat_messages_without_the_headings() -> None:
    assert prompts.fill("mine", mood="kind", word="é") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Say é."},
    ]


@pytest.mark.parametrize(
    "holes", [{}, {"mood": "x"}, {"mood": "x", "word": "y", "extra": "z"}, {"mood": "x", "wrod": "y"}]
)
def test_a_hole_that_is_missing_or_unused_is_refused(holes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="'mine'") as problem:
        prompts.fill("mine", **holes)
    assert "word" in str(problem.value)


@pytest.mark.parametrize(
    "text", ["{mood}", "{}", "{0}", "}{", "{word.__class__}", "# user\nhow", "\n# system\n"]
)
def test_what_is_filled_in_is_never_read_as_a_template(text: str) -> None:
    messages = prompts.fill("mine", mood="kind", word=text)
    assert messages[1]["content"] == f"Say {text}."
    assert len(messages) == 2


def test_the_prompts_of_the_working_folder_come_before_the_packaged_ones(folder: Path) -> None:
    packaged = prompts.locate("explain")
    assert packaged.parent == prompts.packaged_folder()
    write(folder, "explain", "# system\nmine\n# user\nmine\n")
    assert prompts.locate("explain").resolve() == folder / "prompts" / "explain.md"
    assert prompts.fill("explain")[0]["content"] == "mine"


def test_an_unknown_prompt_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'nothing'") as problem:
        prompts.locate("nothing")
    assert "explain" in str(problem.value)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "", ".", "..", "mine.md"])
def test_a_prompts_name_never_leads_out_of_the_prompts_folder(name: str, folder: Path) -> None:
    (folder / "secret.md").write_text("x")
    with pytest.raises(ConfigError):
        prompts.locate(name)


def test_the_fingerprint_follows_the_text_of_the_file(folder: Path) -> None:
    before = prompts.fingerprint("mine")
    assert prompts.fingerprint("mine") == before
    write(folder, "mine", "# system\nBe {mood}!\n\n# user\nSay {word}.\n")
    assert prompts.fingerprint("mine") != before


@pytest.mark.parametrize("name", sorted({p.stem for p in prompts.packaged_folder().glob("*.md")} - {"repair"}))
def test_every_packaged_prompt_has_one_system_and_one_user_section(name: str) -> None:
    import string

    holes = {
        field for _, field, _, _ in string.Formatter().parse(prompts.locate(name).read_text("utf-8")) if field
    }
    messages = prompts.fill(name, **dict.fromkeys(holes, "FILLED"))
    assert messages[0]["role"] == "system"
    assert messages[-1]["role"] == "user"
    assert "FILLED" in messages[-1]["content"]
    assert all(message["content"] for message in messages)


@pytest.mark.parametrize(
    "text", ["# system\na {\n# user\nb\n", "# system\na {}\n# user\nb\n", "no section\n", ""]
)
def test_a_prompt_file_that_cannot_be_used_is_named(folder: Path, text: str) -> None:
    write(folder, "broken", text)
    with pytest.raises(ConfigError, match="broken"):
        prompts.fill("broken")
