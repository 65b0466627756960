"""What a pass may meet, and what it then says: activations that are no numbers are named by document and position; a
checkpoint of something else, a folder in use and a full disk are one line, and nothing that was done is lost."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from autointerp import config, dictionary
from autointerp.config import Settings
from autointerp.corpus import Context, contexts, document_id
from autointerp.errors import DictionaryError, StoreError, SubjectError
from autointerp.store import Store
from autointerp.subject import Subject, pad

from . import test_cli
from .conftest import sentence, tiny_overrides, write_dictionary
from .interrupted import interrupted
from .test_cli import Autointerp, refused, sets
from .test_merge import collect_into, collected, write_firing
from .test_pipeline import assert_same, everything, quick_overrides

autointerp = test_cli.autointerp  # the fixture that runs a command in this process

MARK = "~"  # a sign that is one token, and that no text has but where a test puts it


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Ten documents of several contexts."""
    random = np.random.default_rng(5)
    return [" ".join(sentence(random) for _ in range(24)) for _ in range(10)]


@pytest.fixture
def make(tiny: dict[str, Path], tmp_path: Path) -> Callable[..., Settings]:
    return lambda **given: config.load(None, tiny_overrides(tiny, tmp_path / "results", **given))


def write(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i:02}.txt").write_text(text)
    return folder


def marked(text: str, share: float) -> str:
    """A mark in the text, this share of the way through it."""
    at = int(len(text) * share)
    return text[:at] + MARK + text[at:]


def plant(monkeypatch: pytest.MonkeyPatch, value: float, layer: str = "model.layers.0") -> None:
    """Every Subject.load from now on gives a subject whose layer puts out this value where the mark is."""
    load = Subject.load.__func__  # type: ignore[attr-defined]

    def poisoned(cls: type[Subject], *given: Any) -> Subject:
        found: Subject = load(cls, *given)
        mark = found.tokenizer.convert_tokens_to_ids(MARK)
        seen: list[torch.Tensor] = []

        def note(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[:] = [inputs[0]]

        def poison(_: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[seen[0] == mark] = value
            return output

        found.model.get_input_embeddings().register_forward_pre_hook(note)
        found.model.get_submodule(layer).register_forward_hook(poison)
        return found

    monkeypatch.setattr(Subject, "load", classmethod(poisoned))


def place_of_mark(settings: Settings, text: str) -> int:
    """The index of the mark among the document's tokens."""
    tokenizer = Subject.reader(settings.subject).tokenizer
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids(MARK)) == 1
    return ids.index(tokenizer.convert_tokens_to_ids(MARK))


# -- not finite --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("which", "share"), [(0, 0.0), (4, 0.5), (9, 0.93), (6, 1.0)])
def test_a_position_that_attention_spreads_over_its_context_is_named_exactly(
    make: Callable[..., Settings], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    which: int, share: float, value: float,
) -> None:  # fmt: skip
    text = marked(texts[which], share)
    corpus = write(tmp_path / "corpus", [*texts[:which], text, *texts[which + 1 :]])
    settings = make(corpus__source=corpus)
    place = place_of_mark(settings, text)
    plant(monkeypatch, value)
    with pytest.raises(SubjectError) as problem:
        collect_into(tmp_path / "run.duckdb", settings)
    said = f"at token {place} of document {document_id(text)} ({which:02}.txt)"
    assert said in str(problem.value)
    assert "model.layers.1" in str(problem.value)


def test_a_nan_is_spread_over_its_context_by_this_subject(
    make: Callable[..., Settings], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this the test above would show little."""
    settings = make()
    plant(monkeypatch, float("nan"))
    subject = Subject.load(settings.subject)
    ids = subject.tokenizer(marked(texts[0], 0.1), add_special_tokens=False)["input_ids"][:128]
    place = ids.index(subject.tokenizer.convert_tokens_to_ids(MARK))
    found = subject.activations(torch.tensor([ids]), ["model.layers.1"])["model.layers.1"][0]
    broken = torch.isnan(found).any(dim=1)
    assert broken[place:].all()
    assert 0 < place < 64


def test_of_several_places_the_first_in_the_corpus_is_named(
    make: Callable[..., Settings], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [texts[0], marked(texts[1], 0.7), marked(texts[2], 0.1), *texts[3:]]
    settings = make(corpus__source=write(tmp_path / "corpus", both))
    plant(monkeypatch, float("nan"))
    said = f"at token {place_of_mark(settings, both[1])} of document {document_id(both[1])}"
    with pytest.raises(SubjectError, match=re.escape(said)):
        collect_into(tmp_path / "run.duckdb", settings)


@pytest.mark.parametrize("batch", [1, 7])
def test_a_prepended_bos_moves_no_position(
    make: Callable[..., Settings], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    text = marked(texts[3], 0.4)
    settings = make(
        corpus__source=write(tmp_path / "corpus", [*texts[:3], text]), subject__prepend_bos="true",
        subject__batch_contexts=batch,
    )  # fmt: skip
    plant(monkeypatch, float("nan"))
    said = f"at token {place_of_mark(settings, text)} of document {document_id(text)}"
    with pytest.raises(SubjectError, match=re.escape(said)):
        collect_into(tmp_path / "run.duckdb", settings)


def test_from_the_command_line_it_is_one_line_and_nothing_is_left(
    autointerp: Autointerp, tiny: dict[str, Path], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = marked(texts[0], 0.5)
    given = {"corpus.source": write(tmp_path / "corpus", [*texts[1:], text])}
    plant(monkeypatch, float("nan"))
    refused(
        autointerp("collect", *sets(tiny_overrides(tiny, tmp_path / "r", **given))), document_id(text), "float32"
    )
    assert not [path for path in (tmp_path / "r").rglob("*") if path.is_file()]


def activations_of(settings: Settings) -> list[tuple[Context, torch.Tensor]]:
    """Every context of the corpus with its activations at the hookpoint."""
    subject = Subject.load(settings.subject)
    read = [c for group in contexts(settings.corpus, subject.tokenizer, 128, "") for c in group]
    tokens, _ = pad([c.tokens for c in read], 128)
    found = subject.activations(tokens, ["model.layers.1"])["model.layers.1"]
    return [(context, x[: len(context.tokens)]) for context, x in zip(read, found)]


def overflowing(folder: Path, architecture: str, settings: Settings) -> tuple[Path, Context, int]:
    """A dictionary with finite weights whose feature 7 overflows float32 at one token of the corpus, and that token."""
    write_firing(folder, architecture)
    read = activations_of(settings)
    x = torch.cat([x for _, x in read])
    direction = torch.randn(32, generator=torch.Generator().manual_seed(6))
    largest, where = (x @ direction).topk(2)
    tensors = load_file(folder / "sae_weights.safetensors")
    assert largest[0] > 1.001 * largest[1]
    # The decoder's norm, 1e19, multiplies the product: the largest ends above the limit of float32, the second below.
    limit = torch.finfo(torch.float32).max / 1e19
    tensors["W_enc"][:, 7] = direction * (limit / largest.mean())
    tensors["b_enc"][7] = 0
    tensors["W_dec"][7] = 0
    tensors["W_dec"][7, 0] = 1e19
    save_file(tensors, folder / "sae_weights.safetensors")
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | {"rescale_acts_by_decoder_norm": True}))
    at = int(where[0])
    for context, rows in read:
        if at < len(rows):
            return folder, context, context.start + at
        at -= len(rows)
    raise AssertionError


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_an_activation_that_overflows_is_named_with_its_dictionary_document_and_position(
    make: Callable[..., Settings], texts: list[str], tmp_path: Path, architecture: str
) -> None:
    corpus = write(tmp_path / "corpus", texts)
    folder, context, place = overflowing(tmp_path / "huge", architecture, make(corpus__source=corpus))
    assert context.start + 127 >= place > 0
    with pytest.raises(DictionaryError) as problem:
        collect_into(tmp_path / "run.duckdb", make(corpus__source=corpus, dictionary__source=folder))
    message = str(problem.value)
    assert f"at token {place} of document {context.document_id} ({context.source})" in message
    assert "huge" in message
    assert "infinite" in message


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_an_encoder_that_gives_nan_is_refused(
    make: Callable[..., Settings], texts: list[str], tmp_path: Path, architecture: str
) -> None:
    folder = write_firing(tmp_path / "huge", architecture)
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["b_dec"][:] = -100.0
    tensors["W_enc"][:, 7] = 3e38  # the product overflows, and infinity times a decoder of norm 0 is no number
    tensors["W_dec"][7] = 0
    save_file(tensors, folder / "sae_weights.safetensors")
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | {"rescale_acts_by_decoder_norm": True}))
    assert torch.isnan(dictionary.load(str(folder)).pre_activations(torch.zeros(5, 32))[:, 7]).all()
    corpus = write(tmp_path / "corpus", texts)
    with pytest.raises(DictionaryError, match="huge"):
        collect_into(tmp_path / "run.duckdb", make(corpus__source=corpus, dictionary__source=folder))


# -- checkpoints -------------------------------------------------------------------------------------------------------


def interrupt(settings: Settings, monkeypatch: pytest.MonkeyPatch, at: int = 3) -> Path:
    """A pass that saves after every batch and is interrupted at the `at`-th; its checkpoint."""
    with interrupted(monkeypatch, at):
        collect_into(settings.database, settings)
    return settings.folder / "collect.checkpoint.npz"


@pytest.mark.parametrize(
    "change",
    [
        {"run__seed": 3}, {"collect__top": 3}, {"corpus__tokens": 5000}, {"subject__hookpoint": "model.layers.0"},
        {"collect__features": "1,2"},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_of_other_settings_is_refused_and_its_own_settings_go_on(
    make: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    checkpoint = interrupt(make(corpus__tokens=8000), monkeypatch)
    before = checkpoint.read_bytes()
    with pytest.raises(StoreError, match="of another configuration"):
        collect_into(make().database, make(**({"corpus__tokens": 8000} | change)))
    assert checkpoint.read_bytes() == before
    collect_into(make().database, make(corpus__tokens=8000))
    undisturbed = collect_into(tmp_path / "undisturbed.duckdb", make(corpus__tokens=8000))
    assert_same(collected(make().database), collected(undisturbed))


def test_a_checkpoint_that_was_cut_short_is_refused_and_named(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = interrupt(make(corpus__tokens=8000), monkeypatch)
    whole = checkpoint.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.999):
        checkpoint.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(StoreError, match=re.escape(str(checkpoint))):
            collect_into(make().database, make(corpus__tokens=8000))


def test_a_checkpoint_of_another_kind_of_zip_is_refused_and_named(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = interrupt(make(corpus__tokens=8000), monkeypatch)
    np.savez(checkpoint, something=np.arange(3))
    with pytest.raises(StoreError, match=re.escape(str(checkpoint))):
        collect_into(make().database, make(corpus__tokens=8000))


def test_a_checkpoint_with_a_flipped_bit_is_refused_and_named(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = interrupt(make(corpus__tokens=8000), monkeypatch)
    content = bytearray(checkpoint.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] ^= 128  # "version needed to extract" of the first entry
    checkpoint.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=re.escape(str(checkpoint))):
        collect_into(make().database, make(corpus__tokens=8000))


# -- two at once -------------------------------------------------------------------------------------------------------

# Runs a command that waits with its first batch until a file appears.
SLOW = """
import sys, time
from pathlib import Path
from autointerp import cli
from autointerp.keep import Keeper
begun, go, *arguments = sys.argv[1:]
add = Keeper.add
def waiting(self, batch):
    Path(begun).touch()
    while not Path(go).exists():
        time.sleep(0.02)
    add(self, batch)
Keeper.add = waiting
sys.argv = ["autointerp", *arguments]
cli.main()
"""


def test_a_second_process_in_the_same_folder_is_refused_and_the_first_finishes(
    autointerp: Autointerp, tiny: dict[str, Path], tmp_path: Path
) -> None:
    given = {"corpus.tokens": 8000}
    arguments = ["collect", *sets(tiny_overrides(tiny, tmp_path / "r", **given))]
    begun, go = tmp_path / "begun", tmp_path / "go"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(begun), str(go), *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        while not begun.exists() and first.poll() is None:
            time.sleep(0.02)
        assert first.poll() is None
        refused(autointerp(*arguments), "in use", str(first.pid), "run.name")
        refused(autointerp("explain", *arguments[1:]), "in use")
        # A shard has a file of its own.
        assert autointerp("collect", "--shard", "1/2", *arguments[1:]).code == 0
    finally:
        go.touch()
        _, said = first.communicate()
    assert first.returncode == 0, said
    settings = config.load(None, tiny_overrides(tiny, tmp_path / "alone", **given))
    undisturbed = collect_into(settings.database, settings)
    assert_same(collected(tmp_path / "r" / "t" / "run.duckdb"), collected(undisturbed))


# -- a full disk -------------------------------------------------------------------------------------------------------

# name -> (where files may not grow any more, to what size, with a checkpoint after every batch?); one after another
# in one folder, because a person would try again, too.
FULL: dict[str, tuple[str, int, bool]] = {
    "first_commit": ("run", 20_000, False),
    "checkpoint": ("run", 200_000, True),
    "commit_of_the_rows": ("run", 300_000, False),
    "database": ("run", 700_000, False),
    "later": ("run", 1_500_000, False),
    "report": ("report", 1000, False),
    "export": ("export", 500, False),
}


@dataclass
class Ended:
    code: int
    stderr: str


@dataclass
class Tried:
    """Runs on a full disk: how each ended, and the run without a limit after them."""

    ended: dict[str, Ended]
    database: Path
    files: list[str]
    undisturbed: Path


@pytest.fixture(scope="module")
def tried(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Tried:
    root = tmp_path_factory.mktemp("full")
    given = {"corpus.tokens": 8000, "collect.panel": 60, "features.select": "random:2", "explainer.candidates": 1}
    arguments = ["run", *sets(quick_overrides(tiny, Path("results"), **given))]
    jobs: list[dict[str, Any]] = []

    def job(folder: str, at: str = "run", size: int | None = None, checkpoints: bool = False) -> None:
        (root / folder).mkdir(exist_ok=True)
        jobs.append({
            "folder": str(root / folder), "arguments": arguments, "at": at, "bytes": size, "checkpoints": checkpoints
        })  # fmt: skip

    names = [*FULL, "finally", "undisturbed", "creation", "after_creation"]
    for limit in FULL.values():
        job("tried", *limit)
    job("tried")
    job("undisturbed")
    job("created", "run", 5000)
    job("created")
    done = subprocess.run(
        [sys.executable, "-m", "tests.full_disk"], input=json.dumps(jobs), capture_output=True, text=True,
        cwd=Path(__file__).parent.parent, timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    ended = {name: Ended(**json.loads(line)) for name, line in zip(names, done.stdout.splitlines(), strict=True)}
    folders = [root / name / "results" / "t" for name in ("tried", "undisturbed")]
    return Tried(ended, folders[0] / "run.duckdb", sorted(p.name for p in folders[0].iterdir()), folders[1] / "run.duckdb")


def one_line(ended: Ended) -> str:
    """What was said beside the tallies of the stages that went well, once it is sure that it is one line, exit 2."""
    others = [
        line for line in ended.stderr.splitlines() if not re.match(r"(collect|relate|lens|explain|simulate|score|categories): (\d|nothing)", line)
    ]
    assert (ended.code, len(others)) == (2, 1), ended.stderr[-1500:]
    assert others[0].startswith("autointerp: ")
    return others[0]


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_is_one_line_that_names_the_file(tried: Tried, where: str) -> None:
    said = one_line(tried.ended[where])
    assert "results/t/" in said
    assert "File too large" in said or "cannot" in said


def test_after_a_full_disk_the_same_command_finishes_with_the_rows_of_an_undisturbed_run(tried: Tried) -> None:
    assert tried.ended["undisturbed"].code == 0, tried.ended["undisturbed"].stderr
    assert tried.ended["finally"].code == 0, tried.ended["finally"].stderr
    expected = everything(tried.undisturbed)
    assert len(expected["score"]) > 4
    assert_same(everything(tried.database), expected)
    assert tried.files == ["label-vectors.npz", "labels.jsonl", "labels.parquet", "report.html", "run.duckdb"]


def test_every_limit_was_met(tried: Tried) -> None:
    assert {name: tried.ended[name].code for name in FULL if tried.ended[name].code == 0} == {}


def test_a_disk_that_is_full_from_the_start_is_one_line(tried: Tried) -> None:
    assert "run.duckdb" in one_line(tried.ended["creation"])


def test_a_database_that_could_not_be_made_is_in_nobodys_way(tried: Tried) -> None:
    ended = tried.ended["after_creation"]
    assert ended.code == 0, ended.stderr


# -- again ------------------------------------------------------------------------------------------------------------


def test_a_database_takes_a_pass_after_one_that_failed(
    make: Callable[..., Settings], tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write(tmp_path / "corpus", [*texts, marked(texts[0], 0.5)])
    settings = make(corpus__source=corpus, dictionary__source=write_dictionary(tmp_path / "sae"))
    with monkeypatch.context() as patch:
        plant(patch, float("nan"))
        with pytest.raises(SubjectError):
            collect_into(tmp_path / "run.duckdb", settings)
    with Store.read(tmp_path / "run.duckdb") as store:
        assert store.collections() == []
    collect_into(tmp_path / "run.duckdb", settings)
    assert collected(tmp_path / "run.duckdb")["excerpt"]
