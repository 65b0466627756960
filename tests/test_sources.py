"""Text and weights from elsewhere: chats, Hugging Face datasets, quantised subjects; or one line that says why not."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autointerp import corpus, keys, streams
from autointerp.config import CorpusSection, Settings, SubjectSection
from autointerp.corpus import Allotment, documents
from autointerp.errors import CorpusError, MissingExtra, SubjectError
from autointerp.pipeline import prepare
from autointerp.streams import Stream
from autointerp.subject import Subject

from . import families
from .conftest import sentence
from .test_pipeline import query, quick_settings, run_all

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'robot' %}{{ raise_exception('no robots here') }}{% endif %}"
    "<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
)
CHAT = [{"role": "user", "content": "Where did Ada go?"}, {"role": "assistant", "content": "To the red river."}]
RENDERED = "<s>user: Where did Ada go?</s><s>assistant: To the red river.</s>"


@pytest.fixture(scope="module")
def chatty(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny subject with a chat template."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny["subject"], tmp_path_factory.mktemp("chatty") / "subject")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(chatty: Path) -> Any:
    return Subject.reader(SubjectSection(model=str(chatty))).tokenizer


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def chats(source: object, **more: object) -> CorpusSection:
    return CorpusSection(**({"source": str(source), "tokens": 0, "chat": True} | more))  # type: ignore[arg-type]


def many_chats(n: int) -> list[dict]:
    import numpy as np

    random = np.random.default_rng(3)

    def turn(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(sentence(random) for _ in range(8))}

    return [{"messages": [turn("user"), turn("assistant"), turn("user"), turn("assistant")]} for _ in range(n)]


# -- chats -------------------------------------------------------------------------------------------------------------


def test_a_chat_is_rendered_by_the_subjects_template_and_known_by_the_rendered_text(
    tmp_path: Path, tokenizer: Any
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = write_jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}, {"messages": []}, {"messages": CHAT}])
    table = tmp_path / "b.parquet"
    pq.write_table(pa.table({"messages": [CHAT, None]}), table)
    for source, place in ((lines, "a.jsonl:1"), (table, "b.parquet:1")):
        (found,) = documents(chats(source), tokenizer)
        assert (found.text, found.source) == (RENDERED, place)
        assert found.document_id == corpus.document_id(RENDERED)


def test_the_field_of_chats_is_a_setting_and_other_keys_of_a_message_are_ignored(
    tmp_path: Path, tokenizer: Any
) -> None:
    odd = write_jsonl(tmp_path / "a.jsonl", [{"turns": [m | {"id": 3} for m in CHAT], "messages": "x"}])
    (found,) = documents(chats(odd, messages_field="turns"), tokenizer)
    assert found.text == RENDERED


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "plain"}, "a list of messages in field 'messages', found text; set corpus.messages_field"),
        ({"messages": "plain"}, "expected a list of messages"),
        ({"messages": ["hello"]}, "expected a list of {role, content}"),
        ({"messages": [{"role": "user"}]}, "expected a list of {role, content}"),
        ({"messages": [{"from": "human", "value": "hi"}]}, "expected a list of {role, content}"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "both text"),
        ({"messages": [{"role": "robot", "content": "beep"}]}, "refuses this chat: no robots here"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "surrogate"),
    ],
)
def test_a_record_that_is_no_chat_is_refused_with_its_place(
    tmp_path: Path, tokenizer: Any, record: dict, says: str
) -> None:
    bad = write_jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}, record])
    with pytest.raises(CorpusError) as problem:
        list(documents(chats(bad), tokenizer))
    assert "a.jsonl line 2" in str(problem.value)
    assert says in str(problem.value)
    assert "\n" not in str(problem.value)


def test_plain_text_holds_no_chats(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.txt").write_text("hello")
    pq.write_table(pa.table({"messages": ["hello"]}), tmp_path / "b.parquet")
    for name, says in (("a.txt", "no chats"), ("b.parquet", "not a list of messages")):
        with pytest.raises(CorpusError, match=says):
            list(documents(chats(tmp_path / name), tokenizer))


def test_a_subject_without_a_template_is_refused_before_any_work(tiny: dict[str, Path], tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}])
    settings = quick_settings(tiny, tmp_path, corpus__source=lines, corpus__chat="true")
    with pytest.raises(CorpusError, match="no chat template"):
        prepare(settings)


def test_chats_run_the_whole_main_job_and_their_markers_are_masked(
    tiny: dict[str, Path], chatty: Path, tmp_path: Path
) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", many_chats(90))
    settings = quick_settings(
        tiny, tmp_path, corpus__source=lines, corpus__chat="true", corpus__tokens=40_000, subject__model=chatty
    )
    assert len(run_all(settings)) == 9
    ((n,),) = query(settings.database, "SELECT count(*) FROM score WHERE metric = 'r_rank' AND value IS NOT NULL")
    assert n > 0
    whole = Subject.load(settings.subject)
    ids = whole.tokenizer(RENDERED, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([ids])
    usable = whole.usable(tokens, torch.ones(1, len(ids), 4), torch.tensor([len(ids)]))
    assert int((~usable).sum()) == 4  # two turns, each with a beginning and an end


# -- what is the same work ---------------------------------------------------------------------------------------------


def test_the_template_is_part_of_the_collections_id(tiny: dict[str, Path], chatty: Path, tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}])
    mine = shutil.copytree(chatty, tmp_path / "subject")

    def identity(**more: object) -> str:
        settings = quick_settings(tiny, tmp_path, corpus__source=lines, subject__model=mine, **more)
        return prepare(settings).targets[0].keys.collection_id

    plain, chat = identity(), identity(corpus__chat="true")
    assert identity(corpus__messages_field="turns") == plain  # without chats it says nothing
    (template,) = mine.glob("*.jinja")
    template.write_text(TEMPLATE.replace("user", "human") + " ")
    assert identity(corpus__chat="true") not in {plain, chat}
    assert identity() == plain


def test_what_is_not_asked_for_leaves_the_id_as_it_was(tiny: dict[str, Path], tmp_path: Path) -> None:
    settings = quick_settings(tiny, tmp_path)
    assert keys.corpus_read(settings) == [0, "text"]
    assert keys.corpus_fingerprint(str(tiny["corpus"])) == [
        keys.file_fingerprint(path) for path in corpus.files(str(tiny["corpus"]))
    ]
    fewer = quick_settings(tiny, tmp_path, corpus__max_documents=7)
    assert prepare(fewer).targets[0].keys.collection_id != prepare(settings).targets[0].keys.collection_id


def test_no_more_than_the_first_documents_are_read(tiny: dict[str, Path]) -> None:
    cfg = CorpusSection(source=str(tiny["corpus"]), tokens=0)  # type: ignore[call-arg]
    everything = list(documents(cfg))
    first = list(documents(cfg.model_copy(update={"max_documents": 7})))
    assert first == everything[:7]
    few = cfg.model_copy(update={"max_documents": 7, "tokens": 640})
    assert sorted(Allotment.plan(few, 64).keys) == sorted(d.key for d in first)  # type: ignore[arg-type]


# -- datasets by name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stream"),
    [
        ("hf:owner/name", Stream("owner/name")),
        ("hf:wikitext", Stream("wikitext")),
        ("hf:owner/name:en", Stream("owner/name", "en")),
        ("hf:owner/name:en:test", Stream("owner/name", "en", "test")),
        ("hf:owner/name::test", Stream("owner/name", None, "test")),
        ("hf:owner/name@1a2b:en", Stream("owner/name", "en", "train", "1a2b")),
    ],
)
def test_a_dataset_is_named_with_configuration_split_and_revision(text: str, stream: Stream) -> None:
    assert Stream.parse(text) == stream


@pytest.mark.parametrize("text", ["hf:", "hf:a/b:c:d:e", "hf:a/b@", "hf:/no/such/folder", "hf:a/b/c", "hf:./x"])
def test_a_name_that_is_none_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(CorpusError, match="expected hf:owner/name") as problem:
        Stream.parse(text)
    assert "\n" not in str(problem.value)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if a package were not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else real(name, *a))


def test_without_datasets_the_extra_is_named_before_any_work(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "datasets")
    with pytest.raises(MissingExtra, match=r"autointerp\[datasets\]"):
        prepare(quick_settings(tiny, tmp_path, corpus__source="hf:owner/name"))


@pytest.fixture(scope="module")
def dataset(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny corpus as a dataset: a folder of data files, and one written by save_to_disk; split of both: train, test."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("datasets")
    texts = [path.read_text("utf-8") for path in sorted(tiny["corpus"].glob("*.txt"))]
    parts = {"train": {"text": [*texts[:60], "", texts[0], None]}, "test": {"text": texts[60:]}}
    whole = datasets.DatasetDict({name: datasets.Dataset.from_dict(part) for name, part in parts.items()})
    whole.save_to_disk(root / "saved")
    (root / "files").mkdir()
    for name, part in whole.items():
        part.to_parquet(root / "files" / f"{name}-00000-of-00001.parquet")
    return {"saved": root / "saved", "files": root / "files"}


@pytest.mark.parametrize("kind", ["saved", "files"])
def test_a_dataset_gives_the_documents_of_its_split(tiny: dict[str, Path], dataset: dict[str, Path], kind: str) -> None:
    texts = [path.read_text("utf-8") for path in sorted(tiny["corpus"].glob("*.txt"))]
    found = list(documents(CorpusSection(source=f"hf:{dataset[kind]}")))  # type: ignore[call-arg]
    assert [d.text for d in found] == texts[:60]  # without the empty one, the repeated one, and none
    assert found[1].source == f"{kind}:train:2"
    assert found[1].document_id == corpus.document_id(texts[1])
    other = documents(CorpusSection(source=f"hf:{dataset[kind]}::test"))  # type: ignore[call-arg]
    assert [d.text for d in other] == texts[60:]


@pytest.mark.parametrize("kind", ["saved", "files"])
def test_a_split_or_field_that_is_not_there_is_refused_in_one_line(dataset: dict[str, Path], kind: str) -> None:
    for keys_, says in (
        ({"source": f"hf:{dataset[kind]}::nowhere"}, "nowhere"),
        ({"source": f"hf:{dataset[kind]}", "text_field": "body"}, "no field 'body', found text; set corpus.text_field"),
        ({"source": f"hf:{dataset[kind].parent}/gone"}, "expected hf:owner/name"),
    ):
        with pytest.raises(CorpusError) as problem:
            list(documents(CorpusSection(**keys_)))  # type: ignore[arg-type]
        assert says in str(problem.value)
        assert "\n" not in str(problem.value)


def test_chats_of_a_dataset_are_rendered_too(tmp_path: Path, tokenizer: Any) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"messages": [CHAT]}).save_to_disk(tmp_path / "d")
    (found,) = documents(chats(f"hf:{tmp_path / 'd'}"), tokenizer)
    assert (found.text, found.source) == (RENDERED, "d:train:1")


def test_a_dataset_runs_as_far_as_files_do_and_to_the_same_rows(
    tiny: dict[str, Path], dataset: dict[str, Path], tmp_path: Path
) -> None:
    from autointerp import collect
    from autointerp.store import Store
    from autointerp.tally import Bar

    found = []
    for name, source in (("files", tiny["corpus"]), ("stream", f"hf:{dataset['saved']}")):
        settings = quick_settings(tiny, tmp_path, run__name=name, corpus__source=source, corpus__max_documents=60)
        prepared = prepare(settings)
        with Store.create(settings.database) as store, Bar(enabled=False) as bar:
            collect.run(store, settings, prepared.targets, bar)
        found.append(query(settings.database, "SELECT document_id, split, n_tokens FROM document ORDER BY 1"))
    assert found[0] == found[1]


def test_a_dataset_is_known_by_what_is_in_it(tiny: dict[str, Path], dataset: dict[str, Path], tmp_path: Path) -> None:
    mine = shutil.copytree(dataset["files"], tmp_path / "files")
    before = keys.corpus_fingerprint(f"hf:{mine}")
    assert keys.corpus_fingerprint(f"hf:{mine}") == before
    assert keys.corpus_fingerprint(f"hf:{mine}::test") != before
    (mine / "test-00000-of-00001.parquet").write_bytes(b"other")
    assert keys.corpus_fingerprint(f"hf:{mine}") != before


def test_a_hub_dataset_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    assert keys.corpus_fingerprint("hf:owner/name@1a2b:en:test") == ["hf:", "owner/name", "en", "test", "1a2b"]
    monkeypatch.setattr(streams, "_latest", lambda name: "f00d")
    assert keys.corpus_fingerprint("hf:owner/name") == ["hf:", "owner/name", None, "train", "f00d"]


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hf:owner/name", ("owner/name", None, "train", "f00d")),
        ("hf:owner/name@1a2b:en:test", ("owner/name", "en", "test", "1a2b")),
    ],
)
def test_a_hub_dataset_is_streamed_at_the_commit_that_its_id_names(
    monkeypatch: pytest.MonkeyPatch, source: str, asked: tuple
) -> None:
    datasets = pytest.importorskip("datasets")
    read: list[int] = []

    def records() -> Any:
        for i in range(10**9):
            read.append(i)
            yield {"text": f"text {i}"}

    def load(name: str, config: str | None, *, split: str, revision: str, streaming: bool) -> Any:
        assert (name, config, split, revision) == asked
        assert streaming
        return records()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(streams, "_latest", lambda name: "f00d")
    found = list(documents(CorpusSection(source=source, max_documents=5)))  # type: ignore[call-arg]
    assert [d.source for d in found] == [f"owner/name:{asked[2]}:{i}" for i in range(1, 6)]
    assert len(read) == 5


def test_without_the_hub_a_dataset_that_is_not_pinned_is_refused_in_one_line() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(CorpusError, match="pin one: hf:owner/name@<commit>") as problem:  # the tests are offline
        keys.corpus_fingerprint("hf:owner/name")
    assert "\n" not in str(problem.value)
    with pytest.raises(CorpusError, match="hf:owner/name cannot be read") as problem:
        list(documents(CorpusSection(source="hf:owner/name@1a2b")))  # type: ignore[call-arg]
    assert "\n" not in str(problem.value)


# -- quantised subjects ------------------------------------------------------------------------------------------------


@pytest.fixture
def quantised(tiny: dict[str, Path]) -> Callable[..., SubjectSection]:
    def make(bits: str, **keys_: object) -> SubjectSection:
        base = {"model": str(tiny["subject"]), "dtype": "float32", "device": "cpu", "quantization": bits}
        return SubjectSection(**(base | keys_))  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_without_bitsandbytes_the_extra_is_named_before_any_work(
    quantised: Callable[..., SubjectSection], monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    without(monkeypatch, "bitsandbytes")
    for attempt in (Subject.load, Subject.sketch):
        with pytest.raises(MissingExtra, match=r"autointerp\[quantized\]"):
            attempt(quantised(bits))


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_device_that_bitsandbytes_cannot_use_is_refused_in_one_line(
    quantised: Callable[..., SubjectSection], monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    from transformers import AutoModelForCausalLM

    given: dict[str, Any] = {}

    def refuse(*_: object, **arguments: Any) -> None:
        given.update(arguments)
        raise RuntimeError("no kernel for this device\nand a long story")

    monkeypatch.setattr("autointerp.subject.check_quantization", lambda _: None)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(SubjectError, match=r"subject\.quantization = '\dbit' does not work on cpu here") as problem:
        Subject.load(quantised(bits))
    assert "\n" not in str(problem.value)
    assert given["quantization_config"].quantization_method() == ("llm_int8" if bits == "8bit" else "nf4")
    assert given["device_map"] == {"": torch.device("cpu")}


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_subject_gives_nearly_the_activations_of_the_whole_one(
    quantised: Callable[..., SubjectSection], tiny: dict[str, Path], tmp_path: Path, bits: str
) -> None:
    pytest.importorskip("bitsandbytes")
    # bitsandbytes rounds blocks of 64 weights, so the model is as wide as that.
    folder = families.save("llama", tmp_path / "llama", vocabulary=400, d=64, positions=256, intermediate_size=128)
    for path in tiny["subject"].glob("tokenizer*"):
        shutil.copy(path, folder)
    tokens = torch.randint(5, 400, (2, 12), generator=torch.Generator().manual_seed(0))
    small, whole = (Subject.load(quantised(b, model=str(folder))) for b in (bits, "none"))
    assert "bitsandbytes" in type(small.model.model.layers[1].mlp.down_proj).__module__
    text = "model.layers.0.self_attn.q_proj"  # later, the sharp attention of random weights makes anything of an error
    near, exact = (s.activations(tokens, [text])[text] for s in (small, whole))
    assert 0 < float((near - exact).norm() / exact.norm()) < (0.02 if bits == "8bit" else 0.12)


def test_a_model_that_is_quantised_already_is_not_quantised_again(
    quantised: Callable[..., SubjectSection], tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny["subject"], tmp_path / "subject")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    monkeypatch.setattr("autointerp.subject.check_quantization", lambda _: None)
    with pytest.raises(SubjectError, match="quantised already"):
        Subject.load(quantised("8bit", model=str(folder)))


def test_quantisation_is_part_of_the_collections_id(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autointerp.subject.check_quantization", lambda _: None)

    def identity(settings: Settings) -> str:
        return prepare(settings).targets[0].keys.collection_id

    found = {identity(quick_settings(tiny, tmp_path, subject__quantization=bits)) for bits in ("none", "8bit", "4bit")}
    assert len(found) == 3
