"""The served run in a real browser: what a reader does with it, and nothing on the console."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from autointerp import serve
from tests.test_serve import folder  # noqa: F401  the run with hostile text

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:  # noqa: F811
    with serve.bound(0) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(serve.application(folder, port), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(20)


def test_a_reader_searches_filters_opens_and_walks(address: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"])
        page = browser.new_page(color_scheme="light")
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: None if request.url.startswith(address) else said.append(request.url))

        page.goto(address)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Dark mode").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
        page.keyboard.press("/")
        page.keyboard.type("emoji")
        page.keyboard.press("Enter")
        page.wait_for_url("**/features?q=emoji")
        assert page.locator("#list tbody tr").count() == 1
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"  # it is remembered

        page.goto(f"{address}/features")
        rows = page.locator("#list tbody tr").count()
        page.get_by_label("Sort by").select_option("density")
        page.wait_for_url("**/features?sort=density")
        assert page.locator("#list tbody tr").count() == rows
        first, second = (page.locator("#list tbody tr .label a").nth(i).get_attribute("href") for i in (0, 1))
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}{first}")
        page.keyboard.press("j")
        page.wait_for_url(f"{address}{second}")
        page.keyboard.press("k")
        page.wait_for_url(f"{address}{first}")
        assert page.locator(".passage").count() > 0

        page.set_viewport_size({"width": 390, "height": 844})
        for path in ("/", "/features", str(first)):
            page.goto(address + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        assert said == []
        browser.close()
