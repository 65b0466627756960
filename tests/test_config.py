"""Settings are closed: what is not known is refused with a hint, and every default is written down once."""

import tomllib
from pathlib import Path

import pytest

from autointerp import config
from autointerp.config import Settings, asked_of, load, method_of, model_of
from autointerp.errors import ConfigError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # ./config.toml would be read otherwise


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as problem:
        config.load(path, overrides)
    return str(problem.value)


def test_without_a_file_the_built_in_defaults_are_used() -> None:
    assert config.load(None) == Settings()


def test_the_config_file_of_the_package_equals_the_built_in_defaults() -> None:
    assert config.load(config.packaged_file()) == Settings()


def test_every_key_stands_in_the_config_file_of_the_package() -> None:
    text = config.packaged_file().read_text("utf-8")
    section, found = "", set()
    for line in text.splitlines():
        bare = line.removeprefix("# ")
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in bare and bare.split("=")[0].strip().isidentifier():
            found.add(f"{section}.{bare.split('=')[0].strip()}")
    assert found == set(config.known_keys())


def test_every_key_is_described_as_in_the_config_file() -> None:
    text = config.packaged_file().read_text("utf-8")
    missing = [
        key
        for key, field in config.known_keys().items()
        if not field.description or field.description not in text
    ]
    assert missing == []


def test_the_working_folders_config_is_read_by_default(tmp_path: Path) -> None:
    write(tmp_path / "config.toml", "[run]\nseed = 5\n")
    assert config.load(None).run.seed == 5


def test_keys_that_a_file_leaves_out_keep_their_defaults(tmp_path: Path) -> None:
    found = config.load(write(tmp_path / "a.toml", "[corpus]\ntokens = 7\n"))
    assert found.corpus.tokens == 7
    assert found.corpus.source == Settings().corpus.source
    assert found.collect == Settings().collect


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.toml", "[corpus]\ntokens = 7\ntext_field = 'body'\n")
    found = config.load(path, ["corpus.tokens=8"])
    assert (found.corpus.tokens, found.corpus.text_field) == (8, "body")


def test_the_last_of_two_overrides_wins() -> None:
    assert config.load(None, ["run.seed=1", "run.seed=2"]).run.seed == 2


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("corpus.tokens=65536", "corpus", "tokens", 65536),
        ("corpus.tokens=65_536", "corpus", "tokens", 65536),
        ("corpus.tokens = 3", "corpus", "tokens", 3),
        ("features.max_density=0.25", "features", "max_density", 0.25),
        ("features.max_density=1e-2", "features", "max_density", 0.01),
        ("subject.prepend_bos=true", "subject", "prepend_bos", True),
        ("features.select=17", "features", "select", "17"),
        ("features.select=0,17,650", "features", "select", "0,17,650"),
        ("features.select=density:1e-4..1e-2", "features", "select", "density:1e-4..1e-2"),
        ("features.select='random:3'", "features", "select", "random:3"),
        ("run.name=2026", "run", "name", "2026"),
        ("run.name=2026-01-02", "run", "name", "2026-01-02"),
        ("run.name=true", "run", "name", "true"),
        ("run.name=a=b", "run", "name", "a=b"),
        ("dictionary.name=5", "dictionary", "name", "5"),
        ("subject.model=owner/model", "subject", "model", "owner/model"),
        ("run.results=/tmp/some where", "run", "results", Path("/tmp/some where")),
        ('explainer.methods=["mined", "llm"]', "explainer", "methods", ("mined", "marks")),
        ("explainer.methods=['llm']", "explainer", "methods", ("marks",)),  # its name in the first release
        ("explainer.methods=['marks:mine', 'marks']", "explainer", "methods", ("marks:mine", "marks")),
    ],
)
def test_an_override_is_read_as_toml_or_as_text_where_the_key_holds_text(
    override: str, section: str, key: str, value: object
) -> None:
    settings = config.load(None, [override])
    found = getattr(settings.dictionary[0] if section == "dictionary" else getattr(settings, section), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("corpus.token", "corpus.tokens"),
        ("collect.sample_explian", "collect.sample_explain"),
        ("run.sed", "run.seed"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path, key: str, nearest: str) -> None:
    section, _, name = key.partition(".")
    for message in (
        refusal(None, f"{key}=1"),
        refusal(write(tmp_path / "a.toml", f"[{section}]\n{name} = 1\n")),
    ):
        assert f"unknown key {key}" in message
        assert repr(nearest) in message


def test_an_unknown_section_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    for message in (
        refusal(None, "corpsu.tokens=1"),
        refusal(write(tmp_path / "a.toml", "[corpsu]\ntokens = 1\n")),
    ):
        assert "[corpsu]" in message
        assert "'corpus'" in message


def test_a_refusal_names_the_file(tmp_path: Path) -> None:
    assert "mine.toml" in refusal(write(tmp_path / "mine.toml", "[corpus]\ntoken = 1\n"))


def test_a_key_outside_every_section_is_refused(tmp_path: Path) -> None:
    assert "tokens" in refusal(write(tmp_path / "a.toml", "tokens = 1\n"))
    assert "corpus" in refusal(write(tmp_path / "a.toml", "corpus = 1\n"))


def test_an_override_of_a_section_that_is_no_table_is_refused(tmp_path: Path) -> None:
    assert "corpus" in refusal(write(tmp_path / "a.toml", "corpus = 1\n"), "corpus.tokens=1")


@pytest.mark.parametrize("override", ["", "corpus.tokens", "tokens=1", ".tokens=1", "corpus.=1", "=1", "."])
def test_an_override_that_is_no_assignment_is_refused_with_an_example(override: str) -> None:
    assert "section.key=value" in refusal(None, override)


@pytest.mark.parametrize("text", ["[run", "[run]\nname = ", "[run]\nseed = 1\nseed = 2\n"])
def test_bad_toml_is_refused_with_the_place(tmp_path: Path, text: str) -> None:
    message = refusal(write(tmp_path / "a.toml", text))
    assert "a.toml" in message
    assert "line" in message or "end of document" in message


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes('[run]\nname = "é"\n'.encode("latin-1"))
    assert "a.toml" in refusal(tmp_path / "a.toml")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "nowhere.toml" in refusal(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    "override",
    [
        "corpus.tokens=-1", "corpus.tokens=many", "corpus.tokens=1.5", "corpus.tokens=nan", "corpus.tokens=[1]",
        "features.max_density=1.5", "features.max_density=nan", "collect.context_tokens=0", "subject.max_norm_ratio=1",
        "subject.dtype=float64", "explainer.methods=[]", "explainer.methods=mined", "explainer.provider=nobody",
        "simulator.kind=nothing", "collect.passage_tokens=100", "run.name=a/b", "run.name=..", "run.name=",
        "subject.batch_contexts=0", "score.bootstrap=0", "explainer.methods=['mined:x']", "explainer.methods=['marks:']",
        "explainer.methods=['marks', 'llm']", "explainer.methods=['mined@openai']", "explainer.methods=['marks@opneai']",
        "explainer.methods=['marks@openai/']", "explainer.methods=['marks@local@http://localhost:8000/v1']",
        "explainer.methods=['marks', 'marks@local']", "explainer.methods=['marks@openai@http://localhost:8000/v1']",
        "explainer.rounds=-1", "explainer.samples=0", "explainer.temperature=-1",
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_with_its_key(override: str) -> None:
    section = override.split(".")[0]
    message = refusal(None, override)
    assert section in message
    assert "\n" not in message


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    message = refusal(None, 'explainer.methods=["mine"]')
    assert "did you mean 'mined'" in message


def test_a_word_in_place_of_a_list_is_answered_with_the_list() -> None:
    assert 'such as ["marks"]' in refusal(None, "explainer.methods=marks")


@pytest.mark.parametrize(
    ("entry", "asked"),
    [
        ("marks", ("openai", "some/model", "http://localhost:8000/v1")),
        ("marks:mine", ("openai", "some/model", "http://localhost:8000/v1")),
        ("marks@anthropic", ("anthropic", "claude-haiku-5-5", None)),
        ("marks@anthropic/claude-opus-5-5", ("anthropic", "claude-opus-5-5", None)),
        ("marks:mine@openai/another/model", ("openai", "another/model", "http://localhost:8000/v1")),
        ("marks@openai/gpt-6-luna@https://api.openai.com/v1", ("openai", "gpt-6-luna", "https://api.openai.com/v1")),
    ],
)
def test_an_entry_of_methods_may_name_whom_it_asks(entry: str, asked: tuple[str, str, str | None]) -> None:
    server = ("explainer.provider=openai", "explainer.model=some/model", "explainer.base_url=http://localhost:8000/v1")
    cfg = load(None, [f"explainer.methods=['{entry}']", *server]).explainer
    model = model_of(asked_of(cfg, entry))
    assert (model.provider, model.name, model.base_url) == asked
    assert method_of(entry) == entry.partition("@")[0]


def test_a_key_that_is_gone_says_what_has_taken_its_place(tmp_path: Path) -> None:
    assert "marks:my-prompt" in refusal(None, "explainer.prompt=explain")
    made = config.load(None).model_dump()
    made["explainer"]["prompt"] = "explain"  # as in the database of an earlier release
    assert Settings.model_validate(made) == config.load(None)


def test_passages_longer_than_a_byte_can_count_are_refused() -> None:
    assert "256" in refusal(None, "collect.context_tokens=512", "collect.passage_tokens=512")
    assert (
        config.load(None, ["collect.context_tokens=512", "collect.passage_tokens=256"]).collect.passage_tokens
        == 256
    )


def test_every_seed_that_is_accepted_can_seed_a_generator() -> None:
    import numpy as np

    from autointerp.population import Population, select

    on, off = np.ones(4, dtype=bool), np.zeros(4, dtype=bool)
    try:
        seed = config.load(None, ["run.seed=-1"]).run.seed
    except ConfigError:
        return  # refusing it is as good
    assert len(select("random:2", Population(np.ones(4), off, off, off, on), seed, "d")) == 2


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        config.load(None).run.seed = 3  # type: ignore[misc]


def test_reading_settings_creates_nothing(tmp_path: Path) -> None:
    config.load(None, ["run.results=deep/er", "run.name=x"])
    assert list(tmp_path.iterdir()) == []


def test_settings_survive_json() -> None:
    found = config.load(None, ["run.seed=3", "explainer.methods=['llm']", "run.results=/x"])
    assert Settings.model_validate_json(found.model_dump_json()) == found


def test_a_fingerprint_does_not_depend_on_the_order_of_keys_and_differs_for_other_values() -> None:
    assert config.fingerprint({"a": 1, "b": [1, 2]}) == config.fingerprint({"b": [1, 2], "a": 1})
    different = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": [1]}, {"a": 1.5}, ["a", 1], None]
    assert len({config.fingerprint(v) for v in different}) == len(different)
    assert len(config.fingerprint(1, length=7)) == 7


def test_the_packaged_file_is_valid_toml_without_values_that_are_out_commented_by_mistake() -> None:
    tables = tomllib.loads(config.packaged_file().read_text("utf-8"))
    sections = {name: table[0] if isinstance(table, list) else table for name, table in tables.items()}
    written = {f"{section}.{key}" for section, table in sections.items() for key in table}
    optional = {key for key, field in config.known_keys().items() if field.default is None}
    assert written == set(config.known_keys()) - optional | {"price.cached"}  # not every row has it; this one does
