"""The page: complete, self-contained, and inert whatever the text in it says."""

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autointerp import page
from autointerp.report import Reading
from autointerp.show import Library
from autointerp.store import Store
from tests.served import small_run

HOSTILE = '</script><script>alert("x")</script>"><img src=x onerror=alert(1)>\x1b[31m\u202egnp.exe'
LOADING = {"script", "img", "iframe", "object", "embed", "link", "video", "audio", "source", "base", "form", "image"}


class Tags(HTMLParser):
    """Every element with its attributes, and all text outside script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._raw = "", False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._raw else data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


@pytest.fixture(scope="module")
def run(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reading, Store]]:
    """A finished run over the tiny parts."""
    yield from small_run(tiny, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def html(run: tuple[Reading, Store]) -> str:
    return page.render(*run)


def changed(reading: Reading, **change: object) -> Reading:
    """The reading with its first label changed."""
    first = replace(reading.labels[0], **change)  # type: ignore[arg-type]
    return replace(reading, labels=[first, *reading.labels[1:]])


def test_the_page_loads_nothing(html: str) -> None:
    tags = Tags(html)
    loading = [(tag, attrs) for tag, attrs in tags.found if tag in LOADING]
    assert loading == [("script", {})]  # its own, inline
    for tag, attrs in tags.found:
        for name, value in attrs.items():
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                assert (value or "").startswith("#"), (tag, name, value)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", html)
    assert len(html.encode()) < 5_000_000


def test_only_the_pages_own_script_may_run(html: str) -> None:
    import base64
    import hashlib

    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for t, a in Tags(html).found if t == "meta" and "http-equiv" in a)
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_untrusted_text_is_text(run: tuple[Reading, Store], html: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, store = run
    honest = Library.look_up

    def hostile(self: Library, feature: str, contexts: int):  # type: ignore[no-untyped-def]
        found = honest(self, feature, contexts)
        spoilt = {
            kind: [replace(c, strings=[HOSTILE] * len(c.strings), source=HOSTILE, reason=HOSTILE) for c in group]
            for kind, group in found.contexts.items()
        }
        return replace(found, contexts=spoilt, candidates=[replace(c, label=HOSTILE) for c in found.candidates])

    monkeypatch.setattr(Library, "look_up", hostile)
    spoilt = changed(reading, label=HOSTILE)
    collection = reading.collection | {"corpus": HOSTILE}
    spoilt = replace(spoilt, run=replace(reading.run, name=HOSTILE), collection=collection)
    result = page.render(spoilt, store)
    tags = Tags(result)
    assert 'alert("x")' in tags.text  # it is there to be read
    assert tags.count("script") == 1 and tags.count("img") == 0
    assert not any(name.startswith("on") for _, attrs in tags.found for name in attrs)
    assert not set(result) & {"\x1b", "\u202e"}


def test_every_reason_for_a_missing_grade_is_on_the_page(run: tuple[Reading, Store]) -> None:
    reading, store = run
    reasons = ["constant_prediction", "not_explained", "reply_cut_off"]
    labels = [
        replace(label, r_rank=None, reason=reason) for label, reason in zip(reading.labels, reasons, strict=False)
    ] + reading.labels[len(reasons) :]
    summary = reading.summary | {"stages": {"explain": {
        "ok": 1, "failed": {"provider_down": 7}, "seconds": 1.0, "tokens_per_second": None,
    }}}  # fmt: skip
    text = Tags(page.render(replace(reading, labels=labels, summary=summary), store)).text
    for reason in [f"1 {reason}" for reason in reasons] + ["7 provider_down"]:
        assert reason in text


def test_a_run_without_a_grade_still_has_a_page(run: tuple[Reading, Store]) -> None:
    reading, store = run
    nothing = {"label": None, "method": None, "r_rank": None, "r_rank_lo": None, "r_rank_hi": None, "r_tok": None}
    labels = [
        replace(label, **nothing, lift=None, null=None, reason="not_explained", explanation_id=None)  # type: ignore[arg-type]
        for label in reading.labels
    ]
    text = Tags(page.render(replace(reading, labels=labels), store)).text
    assert f"{len(labels)} not_explained" in text
    assert Tags(page.render(replace(reading, labels=[]), store)).count("table") >= 1


def test_every_label_and_figure_is_on_the_page(run: tuple[Reading, Store], html: str) -> None:
    reading, _ = run
    text = Tags(html).text
    for label in reading.labels:
        assert label.label is None or label.label in text
    assert page.figure(reading.summary["r_rank"]["mean"]) in text
    assert f"n = {reading.summary['r_rank']['n']}" in text
    assert reading.collection["hookpoint"] in text
    assert all(stage in text for stage in reading.summary["stages"])


def test_the_table_can_be_read_without_a_mouse_or_eyes(html: str) -> None:
    tags = Tags(html).found
    assert ("html", {"lang": "en"}) in tags
    headers = [attrs for tag, attrs in tags if tag == "th"]
    assert all(attrs.get("scope") in ("col", "row") for attrs in headers)
    assert sum("aria-sort" in attrs for attrs in headers) == 1
    ids = {attrs["id"] for _, attrs in tags if "id" in attrs}
    buttons = [attrs for tag, attrs in tags if tag == "button" and attrs.get("class") == "more"]
    assert buttons and all(a["aria-controls"] in ids and a["aria-label"] for a in buttons)
    assert all(attrs["for"] in ids for tag, attrs in tags if tag == "label" and "for" in attrs)


def test_two_renderings_are_the_same(run: tuple[Reading, Store], html: str) -> None:
    assert page.render(*run) == html


def many(reading: Reading, n: int, label: str = "a label") -> Reading:
    """The reading with so many features, of every verdict, graded from 0 to 1; every tenth has no grade."""
    words = ["good", "too_broad", "no_pattern", None]
    labels = [
        replace(
            reading.labels[i % len(reading.labels)], feature=i, feature_id=f"sae/{i}", verdict=words[i % 4],
            label=f"{label} {i}", r_rank=None if i % 10 == 9 else i / n,
        )
        for i in range(n)
    ]  # fmt: skip
    return replace(reading, labels=labels)


def test_of_a_large_run_the_best_the_worst_and_some_of_each_verdict_are_shown(run: tuple[Reading, Store]) -> None:
    labels = many(run[0], 5000).labels
    shown = page.chosen(labels, seed=0)
    graded = [label.feature for label in labels if label.r_rank is not None]
    ids = [label.feature for label in shown]
    assert ids[: page.BEST] == graded[: -page.BEST - 1 : -1], "the best come first"
    assert set(graded[: page.WORST]) <= set(ids)
    for verdict in ("good", "too_broad", "no_pattern", None):
        assert sum(label.verdict == verdict for label in shown) >= page.EACH
    assert len(shown) < page.WHOLE and ids == [label.feature for label in page.chosen(labels, seed=0)]
    assert ids != [label.feature for label in page.chosen(labels, seed=1)]
    assert len(page.chosen(labels[: page.WHOLE], seed=0)) == page.WHOLE


def test_a_large_run_lists_the_other_features_and_says_how_many_it_leaves_out(
    run: tuple[Reading, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "WHOLE", 3)
    monkeypatch.setattr(page, "LISTED", 3000)
    for name in ("BEST", "WORST", "EACH"):
        monkeypatch.setattr(page, name, 1)
    result = page.render(many(run[0], 60), run[1])
    tags = Tags(result)
    whole = sum(attrs.get("class") == "detail" for tag, attrs in tags.found if tag == "tr")
    listed = int(re.findall(r"([\d,]+) more, best first", tags.text)[0])
    left = int(re.findall(r"([\d,]+) are left out", tags.text)[0])
    assert f"{whole} of 60 selected features" in tags.text and whole + listed + left == 60 and left > 0 < listed
    assert result.count("</tr>") - result.count("</tr>", 0, result.index("The other features")) >= listed


def test_a_page_stays_below_5_mb_whatever_the_labels_are(run: tuple[Reading, Store]) -> None:
    huge = many(run[0], 500, label=HOSTILE * 2000)
    result = page.render(huge, run[1])
    assert len(result.encode()) < 5_000_000
    tags = Tags(result)
    assert tags.count("script") == 1 and tags.count("img") == 0
    assert "autointerp show" in tags.text and "more, best first" in tags.text


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [(-0.001, ".2f", "0.00"), (-0.256, "+.2f", "−0.26"), (0.5, "+.2f", "+0.50"), (0.0, "+.2f", "0.00"), (None, ".2f", "–")],
)
def test_numbers_are_set_for_people(value: float | None, spec: str, text: str) -> None:
    assert page.figure(value, spec) == text
