"""Readers on a made-up run that is larger than what they show at once: nothing is lost, and it is said what is left out."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from autointerp import page, report, report_md, search, show
from autointerp.errors import ConfigError
from autointerp.report import Reading
from autointerp.search import Filter
from autointerp.store import Store
from tests.bench import large_run

from .test_page import HOSTILE, Tags

FEATURES = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of FEATURES features, a fiftieth of them without a label."""
    found = tmp_path_factory.mktemp("large") / "made-up"
    large_run.write(found / "run.duckdb", FEATURES)
    return found


@pytest.fixture(scope="module")
def opened(folder: Path) -> Iterator[tuple[Reading, Store]]:
    with Store.read(folder / "run.duckdb") as store:
        yield report.read(store), store


def test_every_feature_has_the_label_that_won_on_select(opened: tuple[Reading, Store]) -> None:
    reading, store = opened
    assert [label.feature for label in reading.labels] == list(range(FEATURES))
    chosen = {e.feature: e for e in store.chosen(reading.run)}
    for label in reading.labels:
        fails = label.feature % large_run.UNPARSED == large_run.UNPARSED - 1
        assert (label.label is None) == fails and (label.r_rank is None) == fails
        assert label.reason == ("no_label_in_reply" if fails else None)
        assert label.explanation_id == (None if fails else chosen[label.feature].explanation_id)


def test_the_numbers_of_a_label_are_its_rows_in_the_store(opened: tuple[Reading, Store]) -> None:
    reading, store = opened
    few = replace(reading.run, features=[3, 4])
    rows = {(s.explanation_id, s.metric): s for s in store.scores(few, "score")}
    verdicts = store.verdicts(reading.run, store.query("SELECT DISTINCT thresholds_id FROM verdict")[1][0][0])
    for label in reading.labels[3:5]:
        key = label.explanation_id or ""
        found = {metric: rows[key, metric].value for metric in report.METRICS}
        assert {name: getattr(label, name) for name in report.FIELDS} | label.numbers == found
        rank = rows[key, "r_rank"]
        assert (label.r_rank_lo, label.r_rank_hi, label.n_passages) == (rank.lo, rank.hi, rank.n)
        assert label.verdict == verdicts[key].verdict and label.evidence == json.loads(verdicts[key].evidence)


def test_labels_of_several_providers_are_compared_by_name(opened: tuple[Reading, Store]) -> None:
    reading, _ = opened
    found = reading.summary["by_explainer"]
    assert set(found) == {"mined", "marks (openai/gpt-5.4-nano)", "contrastive (anthropic/claude-haiku-5-5)"}
    eligible = [label for label in reading.labels if label.kind == "eligible"]
    for name, row in found.items():
        # A feature's grade is that of its best candidate for the explainer that won, and .2 less for the others.
        won = [f.r_rank - (0.0 if f.method == row["method"] else 0.2) for f in eligible if f.r_rank is not None]
        assert row["mean"] == pytest.approx(sum(won) / len(eligible)), name
        assert (row["n"], row["labelled"]) == (len(eligible), len(won))
    means = [row["mean"] for row in found.values()]
    assert means == sorted(means, reverse=True)
    console = Console(file=io.StringIO(), width=160)
    report.to_terminal(reading, console, limit=1)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "openai/gpt-5.4-nano" in printed and "anthropic/claude-haiku-5-5" in printed


def test_explainers_have_intervals_and_how_far_they_are_behind_on_the_same_features(
    opened: tuple[Reading, Store],
) -> None:
    reading, _ = opened
    (_, best), *others = reading.summary["by_explainer"].items()
    assert best["behind"] is None and best["lo"] < best["mean"] < best["hi"]
    for _, row in others:
        assert row["behind"]["mean"] == pytest.approx(best["mean"] - row["mean"])
        # Of two explainers on the same features the difference is known better than either mean.
        assert row["behind"]["hi"] - row["behind"]["lo"] < row["hi"] - row["lo"]
    assert sum(row["chosen"] for row in (best, *(row for _, row in others))) == reading.summary["features"]


def test_what_an_explainer_took_is_told_with_its_grades(opened: tuple[Reading, Store]) -> None:
    reading, store = opened
    for row in reading.summary["by_explainer"].values():
        asked, paid = store.query(
            f"SELECT count(DISTINCT call_id), coalesce(sum(usd), 0) FROM call SEMI JOIN (FROM explanation WHERE method = "
            f"'{row['method']}') USING (call_id)"
        )[1][0]
        assert (row["calls"], row["usd"]) == (asked, pytest.approx(paid))
        assert (row["calls"] == 0) == (row["method"] == "mined")


def test_explainers_that_tie_are_ordered_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.duckdb").write_bytes((folder / "run.duckdb").read_bytes())
    with Store.create(tmp_path / "run.duckdb") as store:
        store.db.execute("UPDATE score SET value = 0.5, lo = 0.4, hi = 0.6 WHERE metric = 'r_rank'")
    for _ in range(3):
        with Store.read(tmp_path / "run.duckdb") as store:
            assert list(report.read(store).summary["by_explainer"]) == [
                "contrastive (anthropic/claude-haiku-5-5)", "marks (openai/gpt-5.4-nano)", "mined",
            ]  # fmt: skip


def test_the_page_shows_some_and_accounts_for_all(opened: tuple[Reading, Store]) -> None:
    reading, store = opened
    html = page.render(reading, store)
    assert len(html.encode()) < 5_000_000
    text = Tags(html).text
    shown = len(page.chosen(reading.labels, 0))
    assert f"{shown} of {FEATURES} selected features" in text and f"{FEATURES - shown} more, best first" in text
    assert "openai/gpt-5.4-nano" in text


def test_one_feature_is_read_without_the_others(opened: tuple[Reading, Store]) -> None:
    reading, store = opened
    alone = report.read(store, only=[5])
    assert alone.labels == [reading.labels[5]]
    assert show.look_up(alone, store, "5", 3) == show.look_up(reading, store, "5", 3)


def test_a_feature_that_was_not_encoded_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.duckdb").write_bytes((folder / "run.duckdb").read_bytes())
    with Store.create(tmp_path / "run.duckdb") as store:
        store.db.execute("DELETE FROM feature WHERE feature = 650")
        reading = report.read(store)
        found, other = (show.look_up(reading, store, feature, 1) for feature in ("650", "651"))
    out = io.StringIO()
    show.to_terminal(found, Console(file=out, width=200))
    assert "not encoded, left out by collect.features" in out.getvalue() and "fires on" not in out.getvalue()
    assert show.as_json(found)["density"] is None and show.as_json(found)["counters"] == {}
    assert show.as_json(other)["density"] > 0 and set(show.as_json(other)["counters"]) == {"explain", "select", "score"}


def test_text_and_metric_find_labels(opened: tuple[Reading, Store]) -> None:
    reading, _ = opened
    word = (reading.labels[7].label or "").split(", ")[0]
    hits = search.search([reading], word, 5, Filter(), lambda texts: np.ones((len(texts), 2), np.float32))
    assert reading.labels[7] in [hit.label for hit in hits if hit.by == "text"]
    best = search.top([reading], "r_rank", 3, Filter())
    assert [hit.value for hit in best] == sorted((x.r_rank or 0 for x in reading.labels), reverse=True)[:3]


# -- markdown ----------------------------------------------------------------------------------------------------------


def test_the_summary_has_the_figures_and_stays_small(opened: tuple[Reading, Store]) -> None:
    reading, _ = opened
    text = report_md.render(reading)
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    assert rendered.count("<table>") == 6 and len(text) < 20_000
    assert report.number(reading.summary["r_rank"]["mean"]) in rendered
    best = max(reading.labels, key=lambda label: label.r_rank or -2)
    assert f"<td>{best.label}</td>" in rendered and "openai/gpt-5.4-nano" in rendered


@pytest.mark.parametrize("text", [HOSTILE, "a | b | c", "[x](javascript:alert(1)) ![y](http://z)", "# head", "1. one", "- item",
                                  "`code` **bold** _it_ ~~no~~ &amp; <b>", "www.example.com me@example.com", "\\| \\"])  # fmt: skip
def test_untrusted_text_is_text_in_markdown_too(opened: tuple[Reading, Store], text: str) -> None:
    reading, _ = opened
    labels = [replace(label, label=text) for label in reading.labels]
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(
        report_md.render(replace(reading, labels=labels, run=replace(reading.run, name=text)))
    )
    assert show.visible(text).strip() in Tags(rendered).text, rendered[:300]
    tags = {tag for tag, _ in Tags(rendered).found}
    assert tags <= {"h1", "h2", "ul", "li", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    rows = rendered[rendered.index("The best") :].split("<tr>")[2].count("<td")
    assert rows == 7, "no cell more"


def test_an_unknown_format_is_refused(opened: tuple[Reading, Store], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown report format 'mdd'"):
        report.write(*opened, tmp_path, "mdd")
    assert report.write(*opened, tmp_path, "md").read_text("utf-8").startswith("# made-up")


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [(-0.001, ".2f", "0.00"), (-0.001, "+.2f", "+0.00"), (-0.006, ".2f", "-0.01"), (-0.4, ",.0f", "0"), (None, ".2f", "-"),
     (-1e-5, ".1e", "-1.0e-05"), (1234.5, ",.0f", "1,234"), (3, ".2f", "3.00")],
)  # fmt: skip
def test_a_rounded_zero_has_no_minus(value: float | None, spec: str, text: str) -> None:
    assert report.number(value, spec) == text
