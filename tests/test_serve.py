"""The served run: its pages, what an address can say, and text that must stay text."""

import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from autointerp import edits, report, serve, serve_pages
from autointerp.errors import ConfigError, StoreError
from autointerp.report import Label
from autointerp.shelf import Shelf
from autointerp.show import visible
from autointerp.simulators.sentences import sentence_vectors
from autointerp.store import Store
from autointerp.store_catalog import Catalog, Line, View
from autointerp.tally import Bar
from autointerp.text import printable
from tests.served import HOSTILE, REPLY, hostile_run
from tests.test_page import Tags

PORT = 8123


@pytest.fixture(scope="module")
def folder(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tiny, tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def labels(folder: Path) -> list[Label]:
    with Store.read(folder / "run.duckdb") as store:
        return report.read(store).labels


@pytest.fixture
def client(folder: Path) -> TestClient:
    return TestClient(serve.application(folder, PORT), base_url=f"http://127.0.0.1:{PORT}")


def listed(html: str) -> list[str]:
    """Feature ids of the list, in order."""
    return re.findall(r'<td class="label"><a href="/feature/([^"?]+)', html)


def test_overview_says_what_the_report_says(client: TestClient, folder: Path, labels: list[Label]) -> None:
    html = client.get("/").text
    with Store.read(folder / "run.duckdb") as store:
        summary = report.read(store).summary
    tags = Tags(html)
    assert f"{summary['r_rank']['mean']:.2f}".lstrip("-") in tags.text and "UNCERTIFIED" in tags.text
    for word, n in summary["verdicts"].items():
        assert f'href="/features?verdict={word}"><span class="count">{n}<' in html
    assert tags.count("circle") - 1 == sum(label.density > 0 for label in labels)  # one is the sign of dark mode
    for stage in summary["stages"]:
        assert stage in tags.text


def test_every_point_of_the_scatter_opens_its_feature(client: TestClient, labels: list[Label]) -> None:
    targets = {a["href"] for t, a in Tags(client.get("/").text).found if t == "a" and a.get("tabindex") == "-1"}
    assert targets == {f"/feature/{label.feature_id}" for label in labels}
    assert all(client.get(str(target)).status_code == 200 for target in targets)


def test_feature_page_has_what_show_has(client: TestClient, folder: Path, labels: list[Label]) -> None:
    from autointerp import show

    with Store.read(folder / "run.duckdb") as store:
        found = show.look_up(report.read(store), store, str(labels[0].feature), serve_pages.CONTEXTS)
    page = Tags(client.get(f"/feature/{labels[0].feature_id}").text)
    shown = sum(1 for tag, attrs in page.found if tag == "p" and attrs.get("class") == "passage")
    assert shown == sum(map(len, found.contexts.values())) > 0
    titles = {attrs["title"] for tag, attrs in page.found if tag == "span" and "title" in attrs}
    assert any(str(title).startswith(f"activation {found.max_activation:.2f}") for title in titles)
    assert sum(tag == "tr" and attrs.get("class") == "chosen" for tag, attrs in page.found) == 1


def test_no_text_of_a_run_becomes_markup(client: TestClient, labels: list[Label]) -> None:
    pages = ["/", "/features", *(f"/feature/{label.feature_id}" for label in labels)]
    for path in pages:
        answer = client.get(path)
        tags = Tags(answer.text)
        assert answer.status_code == 200
        assert [a.get("src") for t, a in tags.found if t == "script"] == ["/static/theme.js", "/static/serve.js", "/static/live.js"]
        assert not tags.count("img") and not tags.count("style")
        assert not any(name.startswith("on") or name == "style" for _, attrs in tags.found for name in attrs)
        assert not set("\x1b\0\u202e") & set(answer.text)
        assert "'self'" in answer.headers["content-security-policy"]
    everything = "".join(client.get(path).text for path in pages)
    assert "&lt;script&gt;alert" in everything and "\\x1b[31m" in everything and "{{ 7 * 7 }}" in everything


@pytest.mark.parametrize("text", [*HOSTILE, "%", "_", "\\", "a" * 500])
def test_any_text_can_be_searched_for(client: TestClient, text: str) -> None:
    answer = client.get("/features", params={"q": text})
    assert answer.status_code == 200 and Tags(answer.text).count("img") == 0


def test_the_address_is_the_view(client: TestClient, labels: list[Label]) -> None:
    ranked = sorted((x for x in labels if x.r_rank is not None), key=lambda x: (-(x.r_rank or 0), x.feature))
    assert listed(client.get("/features").text)[: len(ranked)] == [x.feature_id for x in ranked]
    assert listed(client.get("/features?sort=feature").text) == [f"{x.feature_id}" for x in sorted(labels, key=lambda x: x.feature)]
    least = ranked[len(ranked) // 2].r_rank
    assert listed(client.get(f"/features?min={least!r}").text) == [x.feature_id for x in ranked if (x.r_rank or 0) >= (least or 0)]
    for word in {x.verdict or "unjudged" for x in labels}:
        assert set(listed(client.get(f"/features?verdict={word}").text)) == {x.feature_id for x in labels if (x.verdict or "unjudged") == word}
    sought = next(x for x in labels if x.label == HOSTILE[0])
    assert listed(client.get("/features", params={"q": "SCRIPT alert"}).text) == [sought.feature_id]
    assert "No feature is like that" in client.get("/features?q=nothing-says-this").text


def test_a_category_is_a_filter_like_the_others(client: TestClient, labels: list[Label]) -> None:
    kept = {str(x.category) for x in labels}
    assert len(kept) == 3 and any("<" in name for name in kept)
    page = Tags(client.get("/features").text)
    offered = [unescape(str(a["value"])) for t, a in page.found if t == "option" and a.get("value") in kept]
    assert set(offered) == kept and len(offered) == 3
    for name in kept:
        inside = sorted((x for x in labels if x.category == name), key=lambda x: x.feature)
        asked = {"category": name, "sort": "feature"}
        assert listed(client.get("/features", params=asked).text) == [x.feature_id for x in inside]
        asked["verdict"] = inside[0].verdict or "unjudged"
        assert listed(client.get("/features", params=asked).text) == [
            x.feature_id for x in inside if (x.verdict or "unjudged") == asked["verdict"]
        ]
        of = Tags(client.get(f"/feature/{inside[0].feature_id}").text)  # its page leads to the others
        (link,) = (str(a["href"]) for t, a in of.found if t == "a" and str(a.get("href")).startswith("/features?category="))
        assert set(listed(client.get(link).text)) == {x.feature_id for x in inside}
        assert link in {a.get("href") for t, a in Tags(client.get("/").text).found if t == "a"}
    assert "No feature is like that" in client.get("/features?category=nothing").text


def test_a_run_without_categories_says_how_they_are_made(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "run.duckdb", tmp_path)
    with Store.create(tmp_path / "run.duckdb") as store:
        store.db.execute("UPDATE run SET grouping_id = NULL")
    client = TestClient(serve.application(tmp_path, PORT), base_url=f"http://127.0.0.1:{PORT}")
    assert "<code>autointerp categories</code> does it" in client.get("/").text
    assert 'name="category"' not in client.get("/features").text


def test_previous_and_next_follow_the_view(client: TestClient) -> None:
    ids = listed(client.get("/features?sort=density").text)
    path, seen = f"/feature/{ids[0]}?sort=density", []
    while path:
        page = Tags(client.get(path).text)
        seen.append(path.removeprefix("/feature/").partition("?")[0])
        path = next((str(a["href"]) for t, a in page.found if t == "a" and a.get("rel") == "next"), "")
    assert seen == ids


@pytest.mark.parametrize(("path", "status", "says"), [
    ("/features?sort=r_rnk", 400, "did you mean &#39;r_rank&#39;"), ("/features?min=high", 400, "expected a number"),
    ("/features?min=nan", 400, "expected a number"), ("/features?after=1_2", 400, "start from the first page"),
    ("/features?order=left", 400, "up or down"), ("/feature/512", 404, "512 features"), ("/feature/x/1", 404, "no dictionary"),
    ("/feature/", 404, "no feature"), ("/nowhere", 404, "no page"), ("/?dictionary=x", 404, "no dictionary"),
])  # fmt: skip
def test_a_wrong_address_gets_one_line(client: TestClient, path: str, status: int, says: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status and says in answer.text and "Traceback" not in answer.text


def test_other_hosts_and_writes_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert client.post("/features").status_code == 403
    assert client.get("/text?text=x", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status_code == 403
    assert client.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}).status_code == 403
    assert client.get("/static/../serve.py").status_code == 404


WRITER = """
import sys
from pathlib import Path
from typing import Any
from autointerp.store import Store
with Store.create(Path(sys.argv[1])) as store:
    print("writing", flush=True)
    for name in sys.stdin:
        store.db.execute("UPDATE run SET name = ?", [name.strip()])
        store.publish()
        print("published", flush=True)
"""


def test_the_file_is_free_between_requests_and_read_anew_when_it_changed(
    folder: Path, labels: list[Label], tmp_path: Path
) -> None:
    shutil.copy(folder / "run.duckdb", tmp_path)
    client = TestClient(serve.application(tmp_path, PORT), base_url=f"http://127.0.0.1:{PORT}")
    assert client.get("/").status_code == 200
    command = [sys.executable, "-c", WRITER, str(tmp_path / "run.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"  # it could open the file, though the page has been read
        waiting = client.get("/")
        assert waiting.status_code == 503 and "has published nothing yet" in waiting.text and "data-again" in waiting.text
        print("renamed", file=writer.stdin, flush=True)
        assert writer.stdout.readline() == "published\n"
        snapshot = client.get("/").text
        assert "renamed" in snapshot and "still being written" in snapshot
        progress = client.get("/progress").text
        n = sum(label.label is not None for label in labels)
        assert f'max="{len(labels)}" value="{n}"' in progress and f"{n} of {len(labels)}" in progress
        assert all(f"<li>{stage} " in progress for stage in ("collect", "explain", "simulate", "score"))
        writer.stdin.close()
        assert writer.wait(60) == 0
    after = client.get("/").text
    assert "renamed" in after and "still being written" not in after
    assert "The run has ended" in client.get("/progress").text


def test_prompts_and_replies_are_shown(client: TestClient, folder: Path, labels: list[Label]) -> None:
    with Store.read(folder / "run.duckdb") as store:
        run = store.latest_run()
        rows = [row for row in store.explanations(run.collection_id, run.explainer_ids, run.features or []) if row.call_id]
        calls = store.calls([str(row.call_id) for row in rows])
    assert {row.feature for row in rows} == {label.feature for label in labels}
    for feature in sorted({row.feature for row in rows}):
        html = client.get(f"/feature/{feature}").text
        tags = Tags(html)
        asked = [calls[str(row.call_id)] for row in rows if row.feature == feature]
        assert tags.count("details") == len(asked)
        assert tags.text.count(REPLY) == len(asked) and "gpt-6-luna" in tags.text
        for call in asked:
            for role, content in json.loads(call.request):
                assert f"<h3>{role}</h3>" in html and printable(content) in tags.text


@pytest.fixture
def writable(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copy(folder / "run.duckdb", tmp_path)
    return tmp_path


def token_of(client: TestClient) -> str:
    """What the page gives its own script."""
    found = re.search(r'<meta name="token" content="([^"]+)">', client.get("/").text)
    assert found is not None
    return found[1]


def say(client: TestClient, token: str | None = None, **given: str) -> Any:
    body = {"feature_id": "", "kind": "label", "label": "a label", "author": ""} | given
    headers = {"x-autointerp-token": token_of(client) if token is None else token}
    return client.post("/say", json=body, headers=headers)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_people_say_is_kept_and_shown_at_once(writable: Path, labels: list[Label], text: str) -> None:
    client = TestClient(serve.application(writable, PORT), base_url=f"http://127.0.0.1:{PORT}")
    label = labels[0]
    assert say(client, feature_id=label.feature_id, label=f"  {text}\n {text}", author=text).status_code == 204
    for author, kind in (("ana", "up"), ("bo", "down"), ("ana", "down"), ("cy", "up")):
        assert say(client, feature_id=str(label.feature), kind=kind, label=str(label.label), author=author).status_code == 204
    kept = edits.read(writable)
    assert [edit.kind for edit in kept] == ["label", "up", "down", "down", "up"]
    assert {edit.feature_id for edit in kept} == {label.feature_id} and kept[0].label == " ".join(f"{text} {text}".split())
    html = client.get(f"/feature/{label.feature_id}").text
    tags = Tags(html)
    assert not tags.count("img") and not set("\x1b\0\u202e") & set(html)
    votes = re.findall(r"</span> (\d+)<span class=\"quiet\"> say", html)
    assert votes == ["1", "2", "0", "0"]  # ana changed her mind
    assert visible(kept[0].label) in tags.text and f"by {visible(text)}" in tags.text
    assert "autointerp run" in tags.text
    given = re.findall(r"data-kind=\"up\" data-label='([^']*)'", html)
    assert [json.loads(unescape(x)) for x in given] == [label.label, kept[0].label]


@pytest.mark.parametrize(("given", "status", "line"), [
    ({"feature_id": "512"}, 404, "512 features"), ({"feature_id": "x/1"}, 404, "no dictionary"),
    ({"kind": "burn"}, 400, "one of label, up, down"), ({"label": " "}, 400, "1 to 2000 characters"),
    ({"label": "x" * 2001}, 400, "1 to 2000 characters"), ({"author": "x" * 81}, 400, "at most 80"),
    ({"label": "x" * 30_000}, 413, "20,000 bytes"),
])  # fmt: skip
def test_what_cannot_be_kept_gets_one_line(writable: Path, given: dict[str, str], status: int, line: str) -> None:
    client = TestClient(serve.application(writable, PORT), base_url=f"http://127.0.0.1:{PORT}")
    answer = say(client, **({"feature_id": "1"} | given))
    assert answer.status_code == status and line in answer.text and answer.text.count("\n") == 1
    assert edits.read(writable) == []


def test_only_the_page_itself_can_write(writable: Path) -> None:
    client = TestClient(serve.application(writable, PORT), base_url=f"http://127.0.0.1:{PORT}")
    assert say(client, token="guessed", feature_id="1").status_code == 403
    token = token_of(client)
    given = {"feature_id": "1", "kind": "up", "label": "x", "author": ""}
    for foreign in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert client.post("/say", json=given, headers={"x-autointerp-token": token} | foreign).status_code == 403
    assert client.post("/say", content=b"[1", headers={"x-autointerp-token": token}).status_code == 400
    assert client.get("/say").status_code == 404 and edits.read(writable) == []


def test_a_folder_that_cannot_be_written_is_said(writable: Path) -> None:
    client = TestClient(serve.application(writable, PORT), base_url=f"http://127.0.0.1:{PORT}")
    (writable / edits.FILE).mkdir()  # refused to root as well
    answer = say(client, feature_id="1")
    assert answer.status_code == 503 and "cannot write" in answer.text and edits.FILE in answer.text
    page = client.get("/feature/1")
    assert page.status_code == 200 and "cannot read" in page.text  # the feature is shown all the same


def test_search_by_meaning_is_the_order_of_the_vectors(writable: Path, labels: list[Label]) -> None:
    texts = ["days of the week", "military conflict and war", "cooking recipes", "prices of oil and gas", "the law"]
    with Store.create(writable / "run.duckdb") as store:
        for i, label in enumerate(labels):
            store.db.execute("UPDATE explanation SET label = ? WHERE feature = ? AND status = 'ok'", [texts[i % 5], label.feature])
    client = TestClient(serve.application(writable, PORT), base_url=f"http://127.0.0.1:{PORT}")
    path, page = "/features?q=soldiers+in+battle&by=meaning&sort=density", ""
    for _ in range(100):  # the encoder is loaded beside the requests
        page = client.get(path).text
        if "data-again" not in page:
            break
    vectors = sentence_vectors(["soldiers in battle", *texts], Bar(enabled=False))
    order = [texts[i] for i in (-(vectors[1:] @ vectors[0])).argsort()]
    by_id = {label.feature_id: texts[i % 5] for i, label in enumerate(labels)}
    found = listed(page)
    assert [by_id[x] for x in found] == sorted((by_id[x] for x in found), key=order.index) and len(found) == len(labels)
    assert by_id[found[0]] == "military conflict and war"
    assert f'<td class="num">{max(vectors[1:] @ vectors[0]):.2f}</td>' in page
    after = next(str(a["href"]) for t, a in Tags(client.get(f"/feature/{found[0]}?q=soldiers+in+battle&by=meaning").text).found if a.get("rel") == "next")
    assert after == f"/feature/{found[1]}?q=soldiers+in+battle&by=meaning"


def test_density_is_filtered_in_per_cent(client: TestClient, labels: list[Label]) -> None:
    densities = sorted(100 * label.density for label in labels)
    low, high = densities[2], densities[-3]
    found = listed(client.get(f"/features?rarest={low!r}&densest={high!r}").text)
    assert set(found) == {x.feature_id for x in labels if low <= 100 * x.density <= high} and len(found) == len(labels) - 4
    assert "expected a number" in client.get("/features?densest=much").text


def test_no_run_no_server(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run at"), Shelf(tmp_path).open():
        pass
    Store.create(tmp_path / "run.duckdb").close()
    with pytest.raises(StoreError), Shelf(tmp_path).open():
        pass


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match=r"cannot listen on 127.0.0.1:\d+: .*--port 0"):
            serve.bound(other.getsockname()[1])


def test_the_command_serves_and_ends_on_interrupt(folder: Path) -> None:
    import signal

    command = [sys.executable, "-m", "autointerp", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        address = process.stderr.readline().split()[0]
        with urllib.request.urlopen(f"{address}features") as answer:
            assert answer.status == 200 and b"r_rank" in answer.read()
        while True:  # with the subject loaded it ends as quietly
            with urllib.request.urlopen(f"{address}text?text=river") as answer:
                if b"data-again" not in answer.read():
                    break
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and process.stderr.read() == ""


class Shelved:
    """A catalog of made-up lines."""

    def __init__(self, grades: list[float | None]) -> None:
        self.catalog = Catalog([], None)  # type: ignore[arg-type]
        for i, grade in enumerate(grades):
            row = Line(i % 2, i, f"d{i % 2}/{i}", f"d{i % 2}", f"label {i}", None, "m", "good", f"kind {i % 3}", 0.1, 1.0, grade, *[None] * 7)[:-1]
            self.catalog.db.execute(f"INSERT INTO line VALUES ({', '.join('?' * len(row))})", list(row))


@pytest.fixture(scope="module")
def shelved() -> Iterator[Shelved]:
    yield Shelved([None if i % 7 == 0 else (i * 37 % 10) / 10 - 0.3 for i in range(83)])


@pytest.mark.parametrize("order", ["", "up", "down"])
@pytest.mark.parametrize("sort", ["r_rank", "feature", "f1"])
def test_pages_cover_the_view_once_in_both_directions(shelved: Shelved, sort: str, order: str) -> None:
    whole = shelved.catalog.page(View(sort=sort, order=order), size=1000).lines
    assert len(whole) == 83
    found, view, firsts = [], View(sort=sort, order=order), []
    while True:
        page = shelved.catalog.page(view, size=10)
        found += page.lines
        firsts.append(page.first)
        if not page.older:
            break
        view = View(sort=sort, order=order, after=page.older)
    assert found == whole and firsts == list(range(1, 84, 10))
    back = page.lines
    while page.newer:
        page = shelved.catalog.page(View(sort=sort, order=order, before=page.newer), size=10)
        back = page.lines + back
    assert back == whole


def test_a_category_goes_on_from_page_to_page(shelved: Shelved) -> None:
    asked = View(category="kind 1", dictionary="d1", sort="r_rank")
    whole = [line for line in shelved.catalog.page(View(), size=1000).lines if line.category == "kind 1" and line.place == 1]
    view, found = asked, list[Line]()
    while True:
        page = shelved.catalog.page(view, size=4)
        assert page.total == len(whole) == 14
        found += page.lines
        if not page.older:
            break
        view = View.of(view.kept(after=page.older))
        assert view.category == asked.category, "what is filtered by is in the address of the next page"
    assert found == whole
    before, after = shelved.catalog.around(asked, whole[5].feature_id)
    assert (before, after) == (whole[4], whole[6])


def test_lines_without_a_grade_come_last_either_way(shelved: Shelved) -> None:
    for order in ("up", "down"):
        grades = [line.r_rank for line in shelved.catalog.page(View(order=order), size=1000).lines]
        known = [grade for grade in grades if grade is not None]
        assert grades == sorted(known, reverse=order == "down") + [None] * (len(grades) - len(known))


def test_a_layer_is_that_of_its_dictionaries(shelved: Shelved) -> None:
    shelved.catalog.hookpoints = {"layers.1": [1], "layers.2": [0]}
    for name, place in (("layers.1", 1), ("layers.2", 0)):
        lines = shelved.catalog.page(View(hookpoint=name), size=1000).lines
        assert {line.place for line in lines} == {place}
    assert shelved.catalog.page(View(hookpoint="layers.3")).total == 0
