"""The served run in a real browser: what a reader does with it, nothing on the console, and nothing that bars anybody."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autointerp import edits
from tests.served import HOSTILE, hostile_run, listening
from tests.test_serve import WRITER

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
PATIENCE_MS = 120_000  # the subject is loaded meanwhile, on a machine that may be busy


@pytest.fixture(scope="module")
def folder(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tiny, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with listening(folder) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"])
        yield found
        found.close()


@contextmanager
def opened(browser: Any, address: str, **how: Any) -> Iterator[Any]:
    """A page that must neither say anything on the console nor ask for anything from elsewhere."""
    page = browser.new_page(**how)
    page.set_default_timeout(PATIENCE_MS)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: None if request.url.startswith(address) else said.append(request.url))
    try:
        yield page
        assert said == []
    finally:
        page.close()


def test_a_reader_searches_filters_opens_and_walks(browser: Any, address: str) -> None:
    with opened(browser, address, color_scheme="light") as page:
        page.goto(address)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Dark mode").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
        page.keyboard.press("/")
        page.keyboard.type("emoji")
        page.keyboard.press("Enter")
        page.wait_for_url("**/features?q=emoji")
        assert page.locator("#list tbody tr").count() == 1
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"  # on every page, kept
        page.goto(f"{address}/features")
        verdict = page.locator("#list tbody .badge").first.inner_text()
        page.get_by_label("Verdict").select_option(label=verdict)
        page.wait_for_url(f"**/features?verdict={verdict.replace(' ', '_')}")
        assert set(page.locator("#list tbody .badge").all_inner_texts()) == {verdict}
        page.goto(f"{address}/features")
        page.get_by_label("Density at most, per cent").fill("0")
        page.get_by_role("button", name="Show").click()
        page.wait_for_url("**/features?densest=0")
        page.get_by_text("No feature is like that").wait_for()
        page.goto(f"{address}/features")
        page.get_by_label("Sort by").select_option("density")
        page.wait_for_url("**/features?sort=density")
        first, second = (page.locator("#list .label a").nth(i).get_attribute("href") for i in (0, 1))
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}{first}")
        page.keyboard.press("j")
        page.wait_for_url(f"{address}{second}")
        page.keyboard.press("k")
        page.wait_for_url(f"{address}{first}")
        assert page.locator(".passage").count() > 0


def test_a_reader_searches_by_meaning(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        page.goto(f"{address}/features")
        page.get_by_role("searchbox", name="Search labels").fill("smiling faces")
        page.get_by_label("by", exact=True).select_option("meaning")
        page.wait_for_url("**/features?q=smiling+faces&by=meaning")
        page.locator("#list tbody tr").first.wait_for()  # the encoder is loaded while the page waits
        cosines = [float(x.replace("−", "-")) for x in page.locator("#list tbody td:nth-child(3)").all_inner_texts()]
        assert cosines == sorted(cosines, reverse=True) and len(cosines) == 9


def test_a_reader_types_a_text(browser: Any, address: str) -> None:
    text = "Ada walked to the red river, and it was 7 o'clock. " + HOSTILE[0]
    with opened(browser, address) as page:
        page.goto(address)
        page.get_by_role("link", name="Text", exact=True).click()
        page.get_by_label("A text of your own").fill(text)
        page.get_by_role("button", name="Read it").click()
        page.get_by_role("heading", name="Token by token").wait_for()
        tokens = page.locator(".tokenwise tbody th").all_inner_texts()
        assert "".join(tokens).replace("␣", "").replace(" ", "") == text.replace(" ", "")
        assert page.get_by_label("A text of your own").input_value() == text


def test_a_reader_asks_what_a_prediction_is_made_of(browser: Any, address: str) -> None:
    text = "Ada walked to the red river, and it was " + HOSTILE[0]
    with opened(browser, address) as page:
        page.goto(f"{address}/text")
        page.get_by_role("link", name="What a prediction is made of").click()
        page.get_by_label("A text of your own").fill(text)
        page.get_by_role("button", name="Explain it").click()
        page.get_by_role("heading", name="Token by token").wait_for()
        assert "target=" not in page.url and "position=" not in page.url  # what was left empty
        assert "".join(page.locator(".marks label").all_text_contents()) == text
        page.locator(".firings .on label").first.click()
        page.wait_for_url("**&at=*")
        page.get_by_role("link", name="all tokens").wait_for()
        tokens = page.get_by_role("radio")
        last = tokens.count() - 1
        chosen = int(page.url.rpartition("at=")[2])
        page.wait_for_function("number => document.activeElement.value === number", arg=str(chosen))  # arrows go on from here
        page.keyboard.press("ArrowLeft")
        page.wait_for_url(f"**&at={(chosen - 1) % (last + 1)}")
        page.keyboard.press("k" if chosen - 1 == last else "j")
        page.wait_for_url(f"**&at={chosen}")
        rows = page.locator("#firings tbody tr").count()
        assert rows == page.locator("#firings .on label", has_text="«").count() > 0
        page.get_by_role("link", name="firings out").click()
        page.get_by_text("Against ablation of").wait_for()
        page.get_by_role("columnheader", name="ablated").first.wait_for()  # in the table above as well
        assert page.locator("#firings tbody tr").count() == rows and f"at={chosen}" in page.url
        page.get_by_label("Target token").fill("river mountain")
        page.get_by_role("button", name="Explain it").click()
        page.get_by_text("expected one: take the first").wait_for()


def test_a_reader_votes_and_edits(browser: Any, address: str, folder: Path) -> None:
    with opened(browser, address) as page:
        page.goto(f"{address}/features")
        page.locator("#list .label a").first.click()
        page.get_by_label("Your name").fill("Ana")
        page.locator(".vote[data-kind=up]").first.press("Enter")  # with the keyboard
        page.get_by_text("Kept.").wait_for()
        assert "1" in page.locator(".vote[data-kind=up]").first.inner_text()
        assert page.evaluate("document.activeElement.dataset.kind") == "up"  # nobody's place is lost
        page.get_by_label("A better label").fill(HOSTILE[0])
        page.get_by_role("button", name="Keep it").click()
        page.locator(".people .label", has_text=HOSTILE[0]).wait_for()
        page.get_by_text("by Ana").wait_for()
        page.reload()
        assert page.get_by_label("Your name").input_value() == "Ana"
        assert page.locator(".people li").count() == 2
    vote, label = edits.read(folder)
    assert (vote.kind, vote.author, label.kind, label.label) == ("up", "Ana", "label", HOSTILE[0])
    assert vote.feature_id == label.feature_id


def pages_of(page: Any, address: str) -> list[str]:
    """Every kind of page."""
    page.goto(f"{address}/features")
    feature = page.locator("#list .label a").first.get_attribute("href")
    typed = ["/text?text=Ada+walked+to+the+river", "/attribute?text=Ada+walked+to+the+river&at=2&check=1"]
    return ["/", "/features", str(feature), *typed, "/features?q=faces&by=meaning", "/nowhere"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_bars_anybody(browser: Any, address: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(color_scheme=scheme)
    page.set_default_timeout(PATIENCE_MS)
    for path in pages_of(page, address):
        page.goto(address + path)
        page.locator("[data-again]").wait_for(state="detached")
        for details in page.locator("details").all():
            details.evaluate("element => { element.open = true; }")
        found = Axe().run(page).response["violations"]
        assert {rule["id"]: [node["html"][:200] for node in rule["nodes"]] for rule in found} == {}, path
    page.close()


def test_every_page_fits_a_phone(browser: Any, address: str) -> None:
    with opened(browser, address, viewport={"width": 390, "height": 844}) as page:
        for path in pages_of(page, address)[:-1]:
            page.goto(address + path)
            page.locator("[data-again]").wait_for(state="detached")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


def test_the_overview_follows_a_run_that_goes_on(browser: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "run.duckdb", tmp_path)
    command = [sys.executable, "-c", WRITER, str(tmp_path / "run.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        with listening(tmp_path) as address:
            page = browser.new_page()
            page.set_default_timeout(PATIENCE_MS)
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(address)
            page.get_by_role("heading", name="A run is going").wait_for()
            for name in ("renamed", "renamed again"):  # the page shows it without anybody's doing
                print(name, file=writer.stdin, flush=True)
                assert writer.stdout.readline() == "published\n"
                page.get_by_role("heading", name=name, exact=True).wait_for()
                assert page.get_by_role("progressbar", name="graded").count() == 1
            page.get_by_label("Search labels").focus()
            writer.stdin.close()
            assert writer.wait(60) == 0
            page.get_by_text("The run has ended.").wait_for()
            page.get_by_role("heading", name="Verdicts").wait_for()
            assert page.evaluate("document.activeElement.id") == "jump"
            assert errors == []
            page.close()
