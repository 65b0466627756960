"""The documents keep up with the program: their examples parse and run, and nothing is left unmentioned."""

import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from autointerp import cli, config

from .test_pipeline import finished_run, quick_settings

ROOT = Path(__file__).parent.parent
APP = typer.main.get_command(cli.app)
COMMANDS: dict = APP.commands  # type: ignore[attr-defined]
READERS = {"report", "show", "export", "sql"}
# What a plain stage command does on a finished run is nothing, in seconds.
STAGES = {"run", "collect", "explain", "simulate", "score"}


def text(name: str) -> str:
    """A document of the repository."""
    path = ROOT / name
    return path.read_text("utf-8") if path.is_file() else ""


def examples(document: str) -> list[str]:
    """The autointerp lines of a document's shell blocks; a backslash joins lines."""
    blocks = re.findall(
        r"^ *```(?:bash|console|sh|shell)\n(.*?)^ *```", document, flags=re.DOTALL | re.MULTILINE
    )
    lines = [
        line.strip().removeprefix("$ ")
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line.startswith("autointerp ")]


def words(example: str) -> list[str]:
    """The arguments of an example, without its comment or what it is piped into."""
    found = shlex.split(example, comments=True)[1:]
    ends = [i for i, word in enumerate(found) if word in {"|", ">", ">>", "&&", ";", "2>"}]
    return found[: ends[0]] if ends else found


README = examples(text("README.md"))
HELP = [
    line.strip() for command in COMMANDS.values() for line in (command.help or "").splitlines()
    if line.strip().startswith("autointerp ")
]  # fmt: skip
EVERYWHERE = [*README, *HELP, *examples(text("ARCHITECTURE.md")), *examples(text("CONTRIBUTING.md"))]


def test_the_readme_has_examples() -> None:
    assert len(README) >= 5
    assert len(HELP) >= len(COMMANDS)


@pytest.mark.parametrize("example", dict.fromkeys(EVERYWHERE))
def test_an_example_names_a_command_and_options_that_exist(example: str) -> None:
    command, *arguments = words(example)
    if command.startswith("-"):
        assert command in {option for p in APP.params for option in p.opts}
        return
    assert command in COMMANDS
    with COMMANDS[command].make_context(
        command, list(arguments)
    ) as context:  # raises where an option is unknown
        overrides = context.params.get("overrides") or []
    for override in overrides:
        assert override.split("=")[0] in config.known_keys()
    config.load(None, [override for override in overrides if not override.startswith("run.results")])


def _runs(example: str) -> bool:
    """True for examples that take seconds on a finished run."""
    command, *arguments = words(example)
    if command in READERS:
        return "--set" not in arguments
    return (command in STAGES and not arguments) or command in {"init", "config"}


@pytest.mark.parametrize(
    "example", [example for example in dict.fromkeys([*README, *HELP]) if _runs(example)]
)
def test_an_example_runs(
    tiny: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    example: str,
) -> None:
    settings = quick_settings(tiny, Path("results"), run__name="demo")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run(tiny), "results/demo")
    # Dumped as TOML by hand, in a folder as a user has it; the tiny run answers to the name of the default one.
    lines = []
    for section, values in settings.model_dump(mode="json").items():
        values = values[0] if section in {"dictionary", "price"} else values
        lines += [f"[[{section}]]" if section == "price" else f"[{section}]", *(f"{k} = {_toml(v)}" for k, v in values.items() if v is not None)]
    Path("config.toml").write_text("\n".join(lines) + "\n", "utf-8")
    arguments = words(example)
    if arguments[0] == "show":
        arguments[1] = (
            "sae/9" if "/" in arguments[1] else "9"
        )  # the example's feature is of the default dictionary
    if arguments[0] == "merge":  # of shards that are there, into a file that is not; the shell expands the pattern
        for shard in ("1/2", "2/2"):
            monkeypatch.setattr(sys, "argv", ["autointerp", "collect", "--shard", shard])
            cli.main()
        Path("results/demo/run.duckdb").unlink()
        arguments[1:2] = map(str, Path().glob(arguments[1]))
        assert len(arguments) == 5
    monkeypatch.setattr(sys, "argv", ["autointerp", *arguments])
    with pytest.raises(SystemExit) as ending:
        cli.main()
        raise SystemExit(0)
    said = capsys.readouterr()
    assert ending.value.code in (0, None), said.err
    assert said.out.strip() or arguments[0] in STAGES


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return (
        str(value)
        if isinstance(value, int | float)
        else '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    )


def test_every_make_target_of_a_document_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", text("Makefile"), flags=re.MULTILINE))
    named = set()
    for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"):
        named |= set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text(name), flags=re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_mentioned_in_a_document(command: str) -> None:
    assert re.search(rf"autointerp {command}\b", text("README.md") + text("ARCHITECTURE.md"))


@pytest.mark.parametrize("section", config.Settings.model_fields)
def test_every_section_of_the_configuration_is_mentioned_in_a_document(section: str) -> None:
    assert re.search(
        rf"\[{section}\]|\b{section}\.[a-z_]+\b(?!\()", text("README.md") + text("ARCHITECTURE.md")
    )


def test_the_keys_that_documents_name_exist() -> None:
    documents = text("README.md") + text("ARCHITECTURE.md") + text("CONTRIBUTING.md")
    named = set(re.findall(r"`(\w+\.\w+)(?: ?=[^`]*)?`", documents))
    sections = {key for key in named if key.split(".")[0] in config.Settings.model_fields}
    files = {key for key in sections if key.rsplit(".")[-1] in {"py", "md", "toml", "duckdb"}}
    assert sections - files <= set(config.known_keys())


def modules() -> list[str]:
    """Every module of the package, as a path from it."""
    package = ROOT / "autointerp"
    found = [p.relative_to(package) for p in package.rglob("*.py") if not p.name.startswith("__")]
    return sorted(str(p) for p in found)


@pytest.mark.parametrize("module", modules())
def test_every_module_is_mentioned_in_the_architecture(module: str) -> None:
    assert re.search(rf"\b{re.escape(Path(module).stem)}\b", text("ARCHITECTURE.md"))


def test_the_architecture_names_no_module_that_is_gone() -> None:
    known = (
        {Path(m).name for m in modules()}
        | {p.name for p in ROOT.rglob("tests/**/*.py")}
        | {"__init__.py", "__main__.py"}
    )
    assert set(re.findall(r"\b(\w+\.py)\b", text("ARCHITECTURE.md"))) <= known


def test_the_changelog_mentions_the_version() -> None:
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    assert re.search(rf"^#+ .*\b{re.escape(version)}\b", text("CHANGELOG.md"), flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_a_document_has_no_placeholder_and_no_link_to_a_file_that_is_not_there(name: str) -> None:
    assert not re.findall(r"@@\w+@@|TODO|FIXME|XXX", text(name))
    links = re.findall(r"\]\(((?!https?:|#|mailto:)[^)\s]+)\)", text(name))
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []
