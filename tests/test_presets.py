"""Presets: each is a whole commented configuration, and each finds its subject and its dictionary on a stand-in of the
hub, and fits them together."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import torch

from autointerp import config, presets, streams
from autointerp.errors import ConfigError
from autointerp.pipeline import prepare
from autointerp.subject import Subject

from . import hub as stand_in
from .conftest import tiny_overrides
from .hub import WIDTH, D, Hub

ON_THE_HUB = [name for name in presets.names() if name != "default"]
ROOT = Path(__file__).parent.parent


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_presets_are_those_that_people_ask_for() -> None:
    assert presets.names() == [
        "default", "gemma-scope-2", "gemma-scope-2b", "gpt2-small-res-jb", "llama-scope", "pythia-sparsify",
    ]  # fmt: skip


def test_the_default_is_the_packaged_configuration() -> None:
    assert presets.text("default") == config.packaged_file().read_text("utf-8")


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_a_preset_is_the_commented_configuration_with_its_values(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(presets.text(name))
    settings = config.load(path).model_dump()
    wanted = tomllib.loads((Path(presets.__file__).parent / f"{name}.toml").read_text())
    expected = config.Settings().model_dump()
    for section, values in wanted.items():
        (expected[section][0] if section == "dictionary" else expected[section]).update(values)
    assert settings == expected != config.Settings().model_dump()
    packaged = config.packaged_file().read_text().splitlines()
    comments = [line.partition(" # ")[2] for line in packaged if " # " in line]
    lines = path.read_text().splitlines()
    assert [line.partition(" # ")[2] for line in lines if " # " in line] == comments
    assert all(line in lines for line in packaged if line.startswith("[") or line.startswith("# name"))


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_a_preset_says_what_it_is_and_what_it_needs(name: str) -> None:
    about, _, rest = presets.text(name).partition("\n\n")
    assert about.splitlines()[0] == f"# {presets.summary(name)}"
    assert re.search(r"# Needs the extras? ", about) and re.search(r"\d GB of memory", about)
    assert rest.startswith("[run]")
    assert max(map(len, about.splitlines())) <= 120


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'llama-scope'.*known: default, gemma-scope-2, "):
        presets.text("lama-scope")


def test_the_values_of_a_preset_never_swallow_the_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        presets, "_read", lambda _: '# one\n\n[run]\nname = "' + "n" * 80 + '"\n[dictionary]\nname = "short"\n'
    )
    text = presets.text("some")
    assert f'name = "{"n" * 80}" # name of the run' in text
    assert re.search(r'^name = "short" +# prefix of feature ids', text, flags=re.MULTILINE)
    monkeypatch.setattr(presets, "_read", lambda _: "# one\n\n[run]\nnothing = 1\n")
    with pytest.raises(ConfigError, match=r"run\.nothing"):
        presets.text("some")


# -- through the hub ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def there(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    pytest.importorskip("sae_lens", reason="needs the extra `saelens`")
    found = Hub()
    stand_in.add_everything(found)
    stand_in.add_subjects(found, tmp_path_factory.mktemp("subjects"), tiny["subject"])
    yield found
    found.close()


def written(name: str, folder: Path) -> Path:
    path = folder / "config.toml"
    path.write_text(presets.text(name))
    return path


# preset -> architecture, module that is read, centred, input scale, k
EXPECTED = {
    "gpt2-small-res-jb": ("standard", "transformer.h.6:input", True, 1.0, None),
    "gemma-scope-2b": ("jumprelu", "model.layers.12", False, 1.0, None),
    "gemma-scope-2": ("jumprelu", "model.layers.13", False, 1.0, None),
    "llama-scope": ("jumprelu", "model.layers.15", False, stand_in.LLAMA_FACTOR, None),
    "pythia-sparsify": ("topk", "gpt_neox.layers.6", False, 1.0, 8),
}


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_a_preset_finds_its_subject_and_dictionary_and_they_fit(name: str, there: Hub, tmp_path: Path) -> None:
    streams._latest.cache_clear()
    with there.pointed_at(tmp_path / "cache"):
        settings = config.load(written(name, tmp_path), ["simulator.kind=lookup", "features.select=7"])
        (target,) = prepare(settings).targets
        subject = Subject.load(settings.subject)
    streams._latest.cache_clear()
    d = target.dictionary
    architecture, module, centre, scale, k = EXPECTED[name]
    assert (d.architecture, d.centre, d.k, d.normalise, d.width) == (architecture, centre, k, "none", WIDTH)
    assert d.input_scale == pytest.approx(scale)
    assert target.keys.hookpoint == module
    assert subject.hookpoint(d.hookpoint or "") == module  # what its own files say
    assert settings.subject.prepend_bos == bool(d.prepend_bos)
    assert (d.model or "").rpartition("/")[2] in (settings.subject.model.rpartition("/")[2], "gpt2-small")
    tokens = torch.tensor([[5, 17, 42, 99]])
    x = subject.activations(tokens, [module])[module][0].float()
    assert x.shape == (4, D)
    assert len(d.encode(x).value) > 0


def test_init_and_collect_with_a_preset_wholly_from_the_hub(there: Hub, tiny: dict[str, Path], tmp_path: Path) -> None:
    # a process of its own: HF_ENDPOINT and HF_HOME are read once, when huggingface_hub is imported
    def autointerp(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        known = os.environ | {"PYTHONPATH": str(ROOT)} | there.environment(tmp_path / "home") | environment
        command = [sys.executable, "-m", "autointerp", *map(str, arguments)]
        return subprocess.run(command, env=known, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert autointerp("init", "--preset", "gpt2-small-res-jb").returncode == 0
    keep = {"run", "collect", "corpus", "features", "score", "explainer"}
    small = [o for o in tiny_overrides(tiny, tmp_path / "results") if o.split(".")[0] in keep]
    sets = [word for o in [*small, "dictionary.check=off", "simulator.kind=lookup"] for word in ("--set", o)]
    ended = autointerp("collect", *sets)
    assert ended.returncode == 0, ended.stderr
    asked = {path.partition("/resolve/")[0] for path in there.downloads()}
    assert {"/openai-community/gpt2", "/jbloom/GPT2-Small-SAEs-Reformatted"} <= asked
    with duckdb.connect(str(tmp_path / "results" / "t" / "run.duckdb"), read_only=True) as store:
        row = store.execute("SELECT hookpoint, dictionary, n_tokens FROM collection").fetchone()
    assert row is not None and row[:2] == ("transformer.h.6:input", "gpt2-small-res-jb-blocks.6.hook_resid_pre")
    assert sum(row[2]) > 10_000
    there.requests.clear()
    again = autointerp("collect", *sets, "--set", "run.name=again", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert there.requests == []


def test_the_presets_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from autointerp import cli

    monkeypatch.setattr(sys, "argv", ["autointerp", "init", "--list-presets"])
    with pytest.raises(SystemExit):
        cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == presets.names()
