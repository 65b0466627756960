"""A text that is typed fires as the same text did when it was collected, and the page says on which labels."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from autointerp import config, firing, report, serve
from autointerp.corpus import SPLITS, document_id
from autointerp.errors import SubjectError
from autointerp.firing import Fired, Spikes, TextReader
from autointerp.firing_shown import shown
from autointerp.pipeline import Pipeline, prepare
from autointerp.report import Reading
from autointerp.store import Store
from autointerp.store_catalog import Line
from autointerp.tally import Bar
from tests.conftest import tiny_overrides, write_corpus
from tests.served import HOSTILE, copy_without, hostile_run
from tests.test_merge import write_firing
from tests.test_page import Tags

PORT = 8124


@pytest.fixture(scope="module")
def folder(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tiny, tmp_path_factory.mktemp("firing"))


@pytest.fixture(scope="module")
def readings(folder: Path) -> list[Reading]:
    with Store.read(folder / "run.duckdb") as store:
        return report.read_all(store)


@pytest.fixture(scope="module")
def reader(readings: list[Reading]) -> TextReader:
    return TextReader(readings)


@pytest.fixture
def client(folder: Path) -> TestClient:
    return TestClient(serve.application(folder, PORT), base_url=f"http://127.0.0.1:{PORT}")


def answered(client: TestClient, text: str) -> str:
    """The page once the text has been read: the subject is loaded beside the requests."""
    for _ in range(300):
        page = client.get("/text", params={"text": text}).text
        if "data-again" not in page:
            return page
        time.sleep(0.2)
    raise AssertionError("never read")


def agreeing(store: Store, reading: Reading, reader: TextReader, corpus: Path) -> int:
    """Typed texts of the corpus against what was collected of them; how many panel passages were compared."""
    collection = reading.run.collection_id
    texts = {document_id(path.read_text("utf-8")): path.read_text("utf-8") for path in sorted(corpus.glob("*.txt"))}
    n = 0
    for split in SPLITS:
        panel = store.panel(collection, split)
        rows = store.passages(collection, panel.passage)
        for i, passage in enumerate(panel.passage.tolist()):
            row = rows[passage]
            if row.start + len(row.tokens) > 192 or n >= 20:  # so far every text is whole within the limit
                continue
            found = reader.read(texts[row.document_id][: firing.LONGEST])
            here = slice(int(panel.offsets[i]), int(panel.offsets[i + 1]))
            keys = zip(panel.features[here].tolist(), panel.positions[here].tolist())
            kept = dict(zip(keys, panel.values[here].tolist()))
            typed = {
                (spikes.feature, position - row.start): value
                for spikes in found.spikes[reading.run.dictionary] for position, value in zip(spikes.positions, spikes.activations)
                if row.start <= position < row.start + len(row.tokens)
            }  # fmt: skip
            assert set(typed) == set(kept)
            np.testing.assert_allclose([typed[key] for key in kept], list(kept.values()), rtol=1e-5)
            masked = {position - row.start for position in found.masked}
            assert masked & set(range(len(row.tokens))) == set(row.masked)
            n += 1
    return n


def test_a_text_of_the_corpus_fires_as_it_was_collected(
    tiny: dict[str, Path], folder: Path, readings: list[Reading], reader: TextReader
) -> None:
    with Store.read(folder / "run.duckdb") as store:
        assert agreeing(store, readings[0], reader, tiny["corpus"]) > 3


def test_every_dictionary_of_a_run_reads_the_text(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Two layers, kinds and widths; nothing is labelled yet."""
    places = {"deep": ("model.layers.1", "topk", 64), "shallow": ("model.layers.0", "standard", 48)}
    file = tmp_path / "two.toml"
    file.write_text("\n".join(
        f"[[dictionary]]\nsource = '{write_firing(tmp_path / name, kind, seed=1, width=width)}'\nhookpoint = '{place}'\ncheck = 'off'"
        for name, (place, kind, width) in places.items()
    ))  # fmt: skip
    corpus = write_corpus(tmp_path / "corpus", documents=12)
    given = [x for x in tiny_overrides(tiny | {"corpus": corpus}, tmp_path) if not x.startswith("dictionary.")]
    settings = config.load(file, given)
    with Store.create(settings.database) as store:
        Pipeline(store, prepare(settings), Bar(), print).collect()
        found = report.read_all(store)
        reader = TextReader(found)
        for reading in found:
            assert agreeing(store, reading, reader, corpus) > 3
    client = TestClient(serve.application(settings.folder, PORT), base_url=f"http://127.0.0.1:{PORT}")
    page = client.get("/features").text
    assert all(f'<option value="{place}">' in page for place, _, _ in places.values())  # by layer
    assert "<b>0</b> labelled features" in answered(client, "Ada walked to the river.")


def test_strings_add_up_to_the_text(reader: TextReader) -> None:
    for text in ["Ada walked to the red river.", "x" * firing.LONGEST, "👩‍🔬 emoji", "a\nb\tc"]:
        assert "".join(reader.read(text).strings) == text


@pytest.mark.parametrize(("text", "says"), [("", "empty"), (" \n", "empty"), ("x" * (firing.LONGEST + 1), "at most 2,000")])
def test_what_is_no_text_is_refused(reader: TextReader, text: str, says: str) -> None:
    with pytest.raises(SubjectError, match=says):
        reader.read(text)


def line(feature: int) -> Line:
    return Line(0, feature, f"d/{feature}", "d", f"label {feature}", None, "m", "good", None, 0.1, 1.0, *[None] * 8)


def test_rows_are_ordered_by_the_share_of_the_largest() -> None:
    fired = Fired(["a", "b", "c"], [0], {"d": [Spikes(3, [1], [8.0]), Spikes(1, [1, 2], [4.0, 2.0]), Spikes(9, [2], [1.0])]})
    found = shown(fired, {"d/1": line(1), "d/3": line(3)}, {"d/1": 4.0, "d/3": 80.0, "d/9": 2.0})
    assert [(row.line.feature, row.peak, row.share) for row in found.rows] == [(1, 4.0, 1.0), (3, 8.0, 0.1)]
    assert (found.n_labelled, found.n_firing, found.others) == (2, 3, [("d/9", 1.0)])
    assert [(p.text, p.actual) for p in found.rows[0].pieces] == [("a", 0), ("b", 9), ("c", 4)]
    assert [(p.text, p.actual) for p in found.rows[1].pieces] == [("a", 0), ("b", 1), ("c", 0)]
    assert [(t.masked, t.n_firing, [x.feature for x, _ in t.firing]) for t in found.tokens] == [
        (True, 0, []), (False, 2, [1, 3]), (False, 2, [1])
    ]  # fmt: skip


def test_the_page_names_the_labelled_features_that_fire(
    client: TestClient, reader: TextReader, readings: list[Reading], tiny: dict[str, Path]
) -> None:
    labels = {label.feature: label for label in readings[0].labels if label.label is not None}
    texts = [path.read_text("utf-8")[:1500] for path in sorted(tiny["corpus"].glob("*.txt"))]
    text = next(t for t in texts if any(s.feature in labels for s in next(iter(reader.read(t).spikes.values()))))
    expected = {s.feature for s in next(iter(reader.read(text).spikes.values()))} & set(labels)
    html = answered(client, text)
    listed = re.findall(r'<p class="of"><a class="label" dir="auto" href="/feature/([^"]+)"', html)
    assert {f"/{labels[f].feature_id}" for f in expected} == {f"/{x}" for x in listed} and expected
    assert f"<b>{len(expected)}</b> labelled feature" in html
    assert html.count('<th scope="row" dir="auto"><code>') == len(reader.read(text).strings)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_typed_text_stays_text(client: TestClient, text: str) -> None:
    html = answered(client, text)
    tags = Tags(html)
    assert tags.count("img") == 0 and tags.count("style") == 0
    assert [a.get("src") for t, a in tags.found if t == "script"] == ["/static/theme.js", "/static/serve.js", "/static/live.js"]
    assert "labelled feature" in html


def test_too_long_a_text_and_none_are_one_line(client: TestClient) -> None:
    assert "at most 2,000 characters, and this one has 2,001" in client.get("/text", params={"text": "x" * 2001}).text
    html = client.get("/text").text
    assert "data-again" not in html and "problem" not in html and 'maxlength="2000"' in html


@pytest.mark.parametrize("part", ["subject", "dictionary"])
def test_what_is_gone_is_said_and_tried_again(folder: Path, tmp_path: Path, part: str) -> None:
    copy_without(part, folder, tmp_path)
    client = TestClient(serve.application(tmp_path, PORT), base_url=f"http://127.0.0.1:{PORT}")
    for _ in range(2):
        html = answered(client, "some words")
        alert = re.search(r'role="alert">([^<]*)<', html)
        assert alert is not None and "gone" in alert[1], html
