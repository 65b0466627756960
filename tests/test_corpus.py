"""Text becomes documents, splits and contexts in the same way whatever holds it and whatever its order."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autointerp.config import CorpusSection
from autointerp.corpus import (
    SPLITS,
    Allotment,
    Context,
    Shard,
    context_starts,
    contexts,
    document_id,
    documents,
    files,
    split_of,
)
from autointerp.errors import CorpusError


class Letters:
    """A tokenizer with one token per character."""

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


def section(source: Path, tokens: int = 0, field: str = "text") -> CorpusSection:
    return CorpusSection(source=str(source), tokens=tokens, text_field=field)


def folder(where: Path, texts: Sequence[str]) -> Path:
    where.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts):
        (where / f"{i:04}.txt").write_bytes(text.encode())
    return where


def jsonl(where: Path, texts: Sequence[str], field: str = "text") -> Path:
    where.write_text("".join(json.dumps({"n": i, field: t}) + "\n" for i, t in enumerate(texts)), "utf-8")
    return where


def parquet(where: Path, texts: Sequence[str | None], field: str = "text") -> Path:
    pq.write_table(pa.table({field: pa.array(texts, pa.string()), "n": range(len(texts))}), where)
    return where


def read(cfg: CorpusSection, size: int = 8, **options: object) -> list[Context]:
    return [c for group in contexts(cfg, Letters(), size, "salt", **options) for c in group]  # type: ignore[arg-type]


def fails(source: Path, field: str = "text") -> str:
    """The CorpusError's message for reading the whole source."""
    with pytest.raises(CorpusError) as problem:
        list(documents(section(source, field=field)))
    return str(problem.value)


TEXTS = [f"document {i} " + "x" * (7 * i) + " héllo 👋\nsecond line" for i in range(12)]

# -- documents -----------------------------------------------------------------------------------------------


def test_duplicate_texts_share_an_id_and_appear_once(tmp_path: Path) -> None:
    found = list(documents(section(folder(tmp_path / "a", ["one", "two", "one", "three", "two"]))))
    assert [d.text for d in found] == ["one", "two", "three"]
    assert len({d.document_id for d in found}) == 3
    assert document_id("one") == found[0].document_id


def test_a_text_that_repeats_within_and_across_files_is_read_once(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", ["shared", "own"])
    jsonl(root / "more.jsonl", ["shared", "shared", "other"])
    assert sorted(d.text for d in documents(section(root))) == ["other", "own", "shared"]


def test_empty_and_blank_texts_are_passed_over(tmp_path: Path) -> None:
    assert [d.text for d in documents(section(folder(tmp_path / "a", ["", " \n\t", "text"])))] == ["text"]


def test_txt_jsonl_and_parquet_hold_the_same_documents(tmp_path: Path) -> None:
    sources = [
        folder(tmp_path / "txt", TEXTS), jsonl(tmp_path / "a.jsonl", TEXTS), parquet(tmp_path / "a.parquet", TEXTS),
    ]  # fmt: skip
    read_texts = [[(d.document_id, d.text) for d in documents(section(s))] for s in sources]
    assert read_texts[0] == read_texts[1] == read_texts[2]
    assert [t for _, t in read_texts[0]] == TEXTS


def test_a_source_says_which_line_or_row_a_document_is_from(tmp_path: Path) -> None:
    assert [d.source for d in documents(section(jsonl(tmp_path / "a.jsonl", ["x", "y"])))] == [
        "a.jsonl:1",
        "a.jsonl:2",
    ]
    assert [d.source for d in documents(section(parquet(tmp_path / "a.parquet", ["x", None, "y"])))] == [
        "a.parquet:1", "a.parquet:3",
    ]  # fmt: skip
    assert [d.source for d in documents(section(folder(tmp_path / "t", ["x"])))] == ["0000.txt"]


def test_another_field_can_hold_the_text(tmp_path: Path) -> None:
    for source in (
        jsonl(tmp_path / "a.jsonl", TEXTS, "body"),
        parquet(tmp_path / "a.parquet", TEXTS, "body"),
    ):
        assert [d.text for d in documents(section(source, field="body"))] == TEXTS


def test_blank_lines_of_jsonl_are_passed_over_and_still_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": "y"}', "utf-8")
    assert [d.source for d in documents(section(tmp_path / "a.jsonl"))] == ["a.jsonl:1", "a.jsonl:3"]


def test_line_separators_inside_json_strings_do_not_cut_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", "utf-8")
    assert [d.text for d in documents(section(tmp_path / "a.jsonl"))] == [text]


def test_the_files_of_a_folder_are_found_at_any_depth_and_others_ignored(tmp_path: Path) -> None:
    folder(tmp_path / "deep" / "er", ["x"])
    (tmp_path / "notes.md").write_text("no corpus")
    assert [p.name for p in files(str(tmp_path))] == ["0000.txt"]


# -- errors --------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_utf8_is_named_with_the_byte(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("abcé".encode("latin-1"))
    message = fails(tmp_path)
    assert "latin.txt" in message
    assert "byte 3" in message


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    message = fails(tmp_path / "a.jsonl")
    assert "a.jsonl" in message
    assert "line 2" in message


@pytest.mark.parametrize("line", ['{"body": "x"}', '{"text": 3}', '{"text": null}', '["text"]', '"text"'])
def test_a_line_without_text_is_named_with_the_field(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    message = fails(tmp_path / "a.jsonl")
    assert "line 2" in message
    assert "'text'" in message
    assert "corpus.text_field" in message


def test_a_parquet_file_without_the_column_is_named_with_the_columns_that_it_has(tmp_path: Path) -> None:
    message = fails(parquet(tmp_path / "a.parquet", ["x"], "body"))
    assert "a.parquet" in message
    assert "body" in message


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1 truncated"])
def test_a_broken_parquet_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    assert "a.parquet" in fails(tmp_path / "a.parquet")


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "a.parquet", TEXTS).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert "a.parquet" in fails(tmp_path / "a.parquet")


def test_a_parquet_column_that_is_no_text_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2, 3]}), tmp_path / "a.parquet")
    message = fails(tmp_path / "a.parquet")
    assert "'text'" in message
    assert "corpus.text_field" in message


def test_a_corpus_of_empty_texts_is_refused(tmp_path: Path) -> None:
    assert "holds no text" in fails(folder(tmp_path / "a", ["", "  "]))


def test_a_folder_without_text_files_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in fails(tmp_path)


def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    message = fails(tmp_path / "a.csv")
    assert ".csv" in message
    assert ".parquet" in message


def test_a_path_where_nothing_is_is_named(tmp_path: Path) -> None:
    assert "nowhere" in fails(tmp_path / "nowhere")


def test_text_that_no_tokenizer_can_read_is_refused_with_its_place(
    tmp_path: Path, tiny: dict[str, Path]
) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "half a pair: \\ud83d"}\n')
    tokenizer = AutoTokenizer.from_pretrained(tiny["subject"])
    with pytest.raises(CorpusError, match="line 2"):
        list(contexts(section(tmp_path / "a.jsonl"), tokenizer, 8, "salt"))


# -- splits --------------------------------------------------------------------------------------------------


def test_splits_get_about_40_20_and_40_percent_of_documents() -> None:
    n = 20_000
    share = np.bincount([split_of(document_id(str(i)), "salt") for i in range(n)], minlength=3) / n
    assert share == pytest.approx([0.4, 0.2, 0.4], abs=0.015)  # four standard errors


def test_the_split_of_a_document_depends_on_its_id_and_the_salt_alone() -> None:
    ids = [document_id(str(i)) for i in range(300)]
    assert [split_of(i, "a") for i in ids] == [split_of(i, "a") for i in reversed(ids)][::-1]
    assert [split_of(i, "a") for i in ids] != [split_of(i, "b") for i in ids]
    assert {split_of(i, "a") for i in ids} == set(range(len(SPLITS)))


def test_all_contexts_of_a_document_are_in_its_one_split(tmp_path: Path) -> None:
    found = read(section(folder(tmp_path / "a", [f"{i} " * 40 for i in range(30)])))
    assert len({c.split for c in found}) == 3
    for document in {c.document_id for c in found}:
        assert {c.split for c in found if c.document_id == document} == {split_of(document, "salt")}


# -- contexts ------------------------------------------------------------------------------------------------


def test_without_a_budget_every_token_is_read_once_and_contexts_never_cross_documents(tmp_path: Path) -> None:
    groups = list(contexts(section(folder(tmp_path / "a", TEXTS)), Letters(), 8, "salt"))
    assert ["".join(chr(t) for c in group for t in c.tokens) for group in groups] == TEXTS
    for group in groups:
        assert len({c.document_id for c in group}) == 1
        assert [c.start for c in group] == list(range(0, 8 * len(group), 8))
        assert all(len(c.tokens) == 8 for c in group[:-1])


def test_the_tokens_of_a_context_are_those_at_its_start(tmp_path: Path) -> None:
    cfg = section(folder(tmp_path / "a", TEXTS), tokens=200)
    texts = {d.document_id: d.text for d in documents(cfg)}
    for c in read(cfg):
        assert "".join(chr(t) for t in c.tokens) == texts[c.document_id][c.start : c.start + 8]
        assert c.start % 8 == 0


def test_a_small_budget_reaches_every_document_and_is_met_exactly(tmp_path: Path) -> None:
    lengths = [400 + 130 * i for i in range(20)]
    texts = ["".join(chr(65 + (i + j) % 26) for j in range(n)) for i, n in enumerate(lengths)]
    for budget in (8 * 20, 8 * 33, 8 * 200, 8 * 200 - 3):
        found = read(section(folder(tmp_path / "a", texts), tokens=budget))
        assert len({c.document_id for c in found}) == 20
        assert sum(len(c.tokens) for c in found) == -(-budget // 8) * 8


def test_longer_documents_give_more_of_the_budget(tmp_path: Path) -> None:
    cfg = section(folder(tmp_path / "a", ["a" * 1000, "b" * 3000]), tokens=8 * 40)
    given = {d.text[0]: len([c for c in read(cfg) if c.document_id == d.document_id]) for d in documents(cfg)}
    assert given["a"] + given["b"] == 40
    assert given["b"] / given["a"] == pytest.approx(3, rel=0.15)


def test_a_budget_below_one_context_per_document_takes_one_from_some(tmp_path: Path) -> None:
    found = read(section(folder(tmp_path / "a", [c * 100 for c in "abcdefgh"]), tokens=24))
    assert len(found) == len({c.document_id for c in found}) == 3


def test_a_budget_larger_than_the_corpus_reads_everything(tmp_path: Path) -> None:
    cfg = section(folder(tmp_path / "a", TEXTS), tokens=10**9)
    assert sum(len(c.tokens) for c in read(cfg)) == sum(map(len, TEXTS))


@pytest.mark.parametrize(
    ("n", "size", "wanted"), [(1000, 10, 7), (1000, 10, 100), (1003, 10, 3), (64, 64, 1), (999, 8, 50)]
)
def test_the_starts_of_a_budget_are_distinct_full_and_evenly_spaced(n: int, size: int, wanted: int) -> None:
    starts = context_starts(n, size, wanted)
    assert len(set(starts)) == wanted
    assert all(s % size == 0 and s + size <= n for s in starts)
    gaps = np.diff(starts) / size
    assert wanted == 1 or gaps.max() - gaps.min() <= 1
    # No end of the document is favoured.
    assert abs((starts[0]) - (n // size * size - size - starts[-1])) <= 2 * size


def test_a_partial_context_is_read_only_when_full_ones_are_not_enough() -> None:
    assert context_starts(25, 10, 2) == [0, 10]
    assert context_starts(25, 10, 3) == [0, 10, 20]
    assert context_starts(25, 10, None) == [0, 10, 20]
    assert context_starts(3, 10, 1) == [0]
    assert context_starts(0, 10, None) == context_starts(0, 10, 4) == []


# -- order and shards ----------------------------------------------------------------------------------------


def places(found: Sequence[Context]) -> set[tuple[str, int, int]]:
    return {(c.document_id, c.start, c.split) for c in found}


@pytest.mark.parametrize("tokens", [0, 40, 333])
def test_what_is_read_does_not_depend_on_the_order_of_files(tmp_path: Path, tokens: int) -> None:
    forward, backward = folder(tmp_path / "a", TEXTS), folder(tmp_path / "b", TEXTS[::-1])
    assert places(read(section(forward, tokens))) == places(read(section(backward, tokens)))


@pytest.mark.parametrize("tokens", [0, 200])
def test_shards_partition_the_documents_and_their_union_is_the_whole(tmp_path: Path, tokens: int) -> None:
    cfg = section(folder(tmp_path / "a", [f"{i} " * 30 for i in range(25)]), tokens)
    whole = places(read(cfg))
    shards = [places(read(cfg, shard=Shard(i, 3))) for i in range(3)]
    assert set().union(*shards) == whole
    owners = [{d for d, _, _ in shard} for shard in shards]
    assert sum(map(len, owners)) == len({d for d, _, _ in whole})
    assert all(owners)


def test_an_allotment_made_beforehand_is_the_one_that_is_used(tmp_path: Path) -> None:
    cfg = section(folder(tmp_path / "a", TEXTS), 200)
    assert places(read(cfg, allotment=Allotment.plan(cfg, 8))) == places(read(cfg))
    assert read(cfg, allotment=Allotment(np.empty(0, np.uint64), np.empty(0, np.int64))) == []
