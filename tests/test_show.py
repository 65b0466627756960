"""One feature, looked up: what JSON promises, and what untrusted text may not do to a terminal."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from rich.console import Console

from autointerp import show
from autointerp.errors import FeatureError
from autointerp.report import Reading
from autointerp.store import Store
from tests.served import small_run

HOSTILE = "\x1b[31mred\x1b]0;title\x07 <script>alert(1)</script> \u202egnp.exe\u200f [bold]markup[/bold]"


@pytest.fixture(scope="module")
def run(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reading, Store]]:
    """A finished run over the tiny parts."""
    yield from small_run(tiny, tmp_path_factory.mktemp("show"))


@pytest.fixture(scope="module")
def found(run: tuple[Reading, Store]) -> show.Found:
    reading, store = run
    labelled = next(label for label in reading.labels if label.r_rank is not None)
    return show.look_up(reading, store, labelled.feature_id, 5)


def printed(found: show.Found, colour: bool = False, width: int = 100) -> str:
    """What the terminal is sent."""
    out = io.StringIO()
    system: Literal["truecolor"] | None = "truecolor" if colour else None
    show.to_terminal(found, Console(file=out, width=width, force_terminal=colour, color_system=system))
    return out.getvalue()


def test_json_holds_whole_passages_with_one_activation_per_token(found: show.Found, tiny: dict[str, Path]) -> None:
    data = json.loads(json.dumps(show.as_json(found)))
    corpus = "\n".join(path.read_text("utf-8") for path in sorted(tiny["corpus"].glob("*.txt")))
    assert set(data["contexts"]) == set(show.KINDS)
    for kind, contexts in data["contexts"].items():
        assert contexts or kind == "evidence", kind
        for context in contexts:
            assert len(context["activations"]) == len(context["strings"])
            assert context["predicted"] is None or len(context["predicted"]) == len(context["strings"])
            text = "".join(context["strings"]).removeprefix("<s>")
            assert len(text) > 20 and text in corpus, kind


def test_firing_contexts_fire_and_negatives_are_silent(found: show.Found, run: tuple[Reading, Store]) -> None:
    peaks = {kind: [max(c.activations) for c in contexts] for kind, contexts in found.contexts.items()}
    assert all(peak > 0 for peak in peaks["top"] + peaks["sample"])
    assert all(peak == 0 for peak in peaks["B"] + peaks["C"])
    assert peaks["top"] == sorted(peaks["top"], reverse=True)
    assert peaks["top"][0] == pytest.approx(found.counters["explain"]["max"])
    reading, store = run
    splits = {p: row.split for p, row in store.passages(reading.run.collection_id).items()}
    assert {splits[c.passage_id] for c in found.contexts["top"]} == {"explain"}
    assert {splits[c.passage_id] for kind in ("sample", "B", "C") for c in found.contexts[kind]} == {"score"}


def test_graded_passages_carry_the_predictions_that_were_graded(found: show.Found, run: tuple[Reading, Store]) -> None:
    reading, store = run
    assert found.chosen is not None and found.chosen.explanation_id is not None
    sparse, _ = store.simulations(found.chosen.explanation_id, reading.run.simulator_id, "score")
    sums = {
        int(p): float(sparse.values[a:b].sum())
        for p, a, b in zip(sparse.passage, sparse.offsets, sparse.offsets[1:], strict=False)
    }
    for kind in ("sample", "B", "C"):
        assert any(context.predicted is not None for context in found.contexts[kind]), kind
        for context in found.contexts[kind]:
            if context.predicted is not None:
                assert sum(context.predicted) == pytest.approx(sums[context.passage_id], rel=1e-5)


def test_every_candidate_is_listed_and_the_chosen_one_leads(found: show.Found, run: tuple[Reading, Store]) -> None:
    reading, store = run
    rows = store.explanations(reading.run.collection_id, reading.run.explainer_ids, [found.feature])
    assert {c.explanation_id for c in found.candidates} == {row.explanation_id for row in rows}
    assert [c.chosen for c in found.candidates] == [True] + [False] * (len(rows) - 1)
    best = max(c.select_r_rank for c in found.candidates if c.select_r_rank is not None)
    assert found.candidates[0].select_r_rank == best
    assert found.chosen is not None and found.candidates[0].r_rank == found.chosen.r_rank


def test_a_failed_candidate_shows_its_reason(found: show.Found) -> None:
    failed = replace(found.candidates[0], chosen=False, label=None, status="unparsed", reason="no_label_in_reply")
    assert "no_label_in_reply" in printed(replace(found, candidates=[*found.candidates, failed]))


def test_index_and_id_name_the_same_feature(run: tuple[Reading, Store], found: show.Found) -> None:
    assert show.look_up(*run, str(found.feature), 5) == found


def test_contexts_are_limited_per_kind(run: tuple[Reading, Store], found: show.Found) -> None:
    few = show.look_up(*run, found.feature_id, 2).contexts
    assert {kind: len(c) for kind, c in few.items()} == {k: min(len(c), 2) for k, c in found.contexts.items()}
    assert [len(few[kind]) for kind in ("top", "sample", "B", "C")] == [2, 2, 2, 2]


def test_a_feature_outside_the_selection_has_contexts_but_no_label(run: tuple[Reading, Store]) -> None:
    reading, store = run
    eligible = np.flatnonzero(reading.population.eligible).tolist()
    other = next(f for f in eligible if f not in (reading.run.features or []))
    found = show.look_up(reading, store, str(other), 3)
    assert (found.label, found.chosen, found.candidates) == ("not selected", None, [])
    assert found.contexts["top"] and found.contexts["sample"] and not found.contexts["B"]
    assert "not selected" in printed(found)


@pytest.mark.parametrize("text", ["512", "-1", "other/1", "seventeen", ""])
def test_an_unknown_feature_is_refused(run: tuple[Reading, Store], text: str) -> None:
    with pytest.raises(FeatureError, match="no feature"):
        show.look_up(*run, text, 1)


def test_the_terminal_reads_label_then_grades_then_contexts(found: show.Found) -> None:
    out = printed(found)
    assert out.startswith(found.label)
    assert out.index(found.label) < out.index("r_rank") < out.index("top:") < out.index("B:")


def test_activation_is_background_colour_or_guillemets_without_colour(found: show.Found) -> None:
    assert "\x1b[" not in printed(found) and "«" in printed(found)
    assert "48;2;255;176;32m" in printed(found, colour=True) and "«" not in printed(found, colour=True)


def test_untrusted_text_reaches_the_terminal_as_text(found: show.Found) -> None:
    top = found.contexts["top"][0]
    strings = [HOSTILE + "\n"] * len(top.strings)
    hostile = replace(
        found, label=HOSTILE, top_tokens=[HOSTILE], candidates=[replace(found.candidates[0], label=HOSTILE)],
        contexts={"top": [replace(top, strings=strings, source=HOSTILE)]},
    )  # fmt: skip
    out = printed(hostile, width=10_000)
    assert not set(out) & {"\x1b", "\x07", "\u202e", "\u200f"}
    assert "\\x1b[31mred" in out and "[bold]markup[/bold]" in out and "↵" in out


def test_candidates_name_their_models_where_there_are_several_and_the_f1_that_chose(found: show.Found) -> None:
    mined = replace(found.candidates[0], chosen=False)
    asked = [
        replace(mined, method="marks", model=model, select_f1=f1, chosen=model == "one", explanation_id=f"{model}")
        for model, f1 in (("one", 0.875), ("two", 0.25))
    ]
    out = printed(replace(found, candidates=[*asked, mined]))
    (head,) = [line for line in out.splitlines() if "select" in line and "candidate" in line]
    assert head.split() == ["by", "detects", "select", "score", "candidate"]
    assert any(line.startswith("→  marks (one)") and " 0.88 " in line for line in out.splitlines())
    assert "marks (two)" in out
    plain = printed(replace(found, candidates=[replace(asked[0], select_f1=None), mined]))
    assert "detects" not in plain and "(one)" not in plain, "one model alone need not be told apart"
