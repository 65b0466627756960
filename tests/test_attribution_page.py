"""The page of an attribution says what the command says, under an address that is the view, and text stays text."""

import re
import time
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from starlette.testclient import TestClient

from autointerp import attribute, attribution, charts, config, firing, report, serve
from autointerp.attributed import CHECKED, Attribution, Check, Pair, Target
from autointerp.attribution import Attributor, Explained
from autointerp.attribution_shown import AT, LABELLED, ROWS, shown
from autointerp.page import figure
from autointerp.pipeline import Pipeline, prepare
from autointerp.report import Reading
from autointerp.show import visible
from autointerp.store import Store
from autointerp.store_catalog import Line
from autointerp.tally import Bar
from tests.conftest import tiny_overrides, write_corpus, write_dictionary
from tests.served import HOSTILE, copy_without, hostile_run
from tests.test_hidden_space import PLACES
from tests.test_page import Tags
from tests.test_pipeline import quick_settings, run_all

PORT = 8125
TEXT = "Ada walked to the red river, and it was 5 o'clock. Bela sailed to the"
QUIET = Bar(enabled=False)


@pytest.fixture(scope="module")
def folder(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tiny, tmp_path_factory.mktemp("attribution"))


@pytest.fixture(scope="module")
def reading(folder: Path) -> Reading:
    with Store.read(folder / "run.duckdb") as store:
        return report.read(store)


@pytest.fixture(scope="module")
def attributor(reading: Reading) -> Attributor:
    return Attributor(reading)


@pytest.fixture(scope="module")
def client(folder: Path) -> TestClient:
    return TestClient(serve.application(folder, PORT), base_url=f"http://127.0.0.1:{PORT}")


def answered(client: TestClient, **asked: object) -> str:
    """The page once nothing of it is under way."""
    for _ in range(600):
        page = client.get("/attribute", params={key: str(value) for key, value in asked.items()}).text
        if "data-again" not in page:
            return page
        time.sleep(0.1)
    raise AssertionError("never attributed")


def problem(html: str) -> str:
    found = re.findall(r'<p class="problem" role="alert">([^<]*)<', html)
    assert len(found) == 1 and "\n" not in found[0], html
    return unescape(found[0])


def listed(html: str) -> list[tuple[str, str, str, str]]:
    """(contribution, feature, token number, activation) of the rows of the table."""
    return re.findall(
        r'<td class="num value">([^<]*)</td>.*?<a href="/feature/[^"]*/(\d+)">.*?<label for="t(\d+)".*?activation </span>([^<]*)<',
        html,
    )


def marks(html: str) -> list[str]:
    """What each token is called, with its number."""
    return [unescape(x) for x in re.findall(r'type="radio" name="at"[^>]*aria-label="([^"]*)"', html)]


# -- the same numbers --------------------------------------------------------------------------------------------------


def test_the_page_has_the_numbers_of_the_command(client: TestClient, attributor: Attributor) -> None:
    known = attribution.as_json(attributor.explain(TEXT, QUIET, None, None, CHECKED), 15)
    html = answered(client, text=TEXT, check=1)
    target = known["target"]
    assert f"probability <b>{100 * target['probability']:.3g} %</b>, logit <b>{figure(target['logit'])}</b>" in html
    assert figure(target["logit_over_mean"], "+.2f") in html
    labelled = [pair for pair in known["pairs"][ROWS:] if pair["label"] is not None][:LABELLED]
    wanted = [*known["pairs"][:ROWS], *labelled]
    assert listed(html) == [
        (figure(p["contribution"], "+.3f"), str(p["feature"]), str(p["position"]), figure(p["activation"])) for p in wanted
    ]
    sums = [sum(p["contribution"] for p in known["pairs"] if p["position"] == i) for i in range(len(known["tokens"]))]
    called = [f"token {i}, {visible(t)}: " for i, t in enumerate(known["tokens"])]
    numbers = ["masked" if known["masked"][i] else figure(value, "+.2f") for i, value in enumerate(sums)]
    assert marks(html) == [name + number for name, number in zip(called, numbers)]
    for name, value in known["totals"].items():
        row = f'<th scope="row">{escape(attribution.PARTS[name])}</th><td class="num">{figure(value, "+.2f")}<'
        assert row in html, name
    check = known["check"]
    assert f"Against ablation of {check['n']} (feature, token) pairs: r {check['pearson']:.2f}, rank r {check['spearman']:.2f}" in html
    ablated = [p for p in known["pairs"] if p["ablated"] is not None]
    assert len(ablated) == check["n"] == html.count('<circle class="dot ')
    details = html[html.index("<details>") :]
    assert re.findall(r'<tr><td class="num">([^<]*)</td><td class="num">([^<]*)</td>', details) == [
        (figure(p["contribution"], "+.3f"), figure(p["ablated"], "+.3f")) for p in ablated
    ]
    assert html.count('dot random"') == check["n_random"]


def test_predictions_are_the_subjects_and_each_can_be_the_target(client: TestClient, attributor: Attributor) -> None:
    found = attributor.explain(TEXT, QUIET, None, None, 0).found
    likely = [target.probability for target in found.predicted]
    assert found.predicted[0] == found.target and likely == sorted(likely, reverse=True) and len(likely) == attribute.PREDICTED
    second = next(target for target in found.predicted[1:] if "\ufffd" not in target.token)
    html = answered(client, text=TEXT)
    links = [str(a["href"]) for t, a in Tags(html).found if t == "a" and a.get("title") == "explain this one instead"]
    assert links
    page = client.get(links[0])
    assert page.status_code == 200
    other = attributor.explain(TEXT, QUIET, second.token, None, 0).found
    assert other.target == second
    assert f"logit <b>{figure(second.logit)}</b>" in answered(client, text=TEXT, target=second.token)


def test_a_position_reads_the_text_up_to_it(client: TestClient, attributor: Attributor) -> None:
    found = attributor.explain(TEXT, QUIET, None, 3, 0).found
    html = answered(client, text=TEXT, position=3)
    assert len(marks(html)) == 4 == len(found.tokens)
    assert f'cannot matter">{escape(TEXT.removeprefix("".join(found.tokens)))}</span>' in html
    assert listed(html)[0][0] == figure(found.pairs[0].contribution, "+.3f")


def test_a_chosen_token_shows_its_features(client: TestClient, attributor: Attributor) -> None:
    found = attributor.explain(TEXT, QUIET, None, None, 0).found
    last = len(found.tokens) - 1
    own = [pair for pair in found.pairs if pair.position == last]
    html = answered(client, text=TEXT, at=last)
    assert [int(feature) for _, feature, _, _ in listed(html)] == [pair.feature for pair in own[:AT]]
    assert f'id="t{last}" value="{last}" checked' in html and html.count(" checked") == 1
    back = next(str(a["href"]) for t, a in Tags(html).found if a.get("rel") == "prev")
    assert f'id="t{last - 1}" value="{last - 1}" checked' in client.get(back).text
    assert not [a for _, a in Tags(html).found if a.get("rel") == "next"]


def test_the_check_is_asked_for_and_keeps_the_view(client: TestClient) -> None:
    html = answered(client, text=TEXT, at=2)
    assert "Against ablation" not in html and '<th scope="col" class="num">ablated</th>' not in html
    link = next(str(a["href"]) for t, a in Tags(html).found if a.get("class") == "act")
    assert "at=2" in link and "check=1" in link
    html = answered(client, text=TEXT, at=2, check=1)
    assert "Against ablation of" in html and '<th scope="col" class="num">ablated</th>' in html
    hidden = {a["name"]: a["value"] for t, a in Tags(html).found if t == "input" and a.get("type") == "hidden"}
    assert hidden == {"text": TEXT, "check": "1"}


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "says"), [
    ({"text": " "}, "the text is empty"), ({"text": "x" * (firing.LONGEST + 1)}, "at most 2,000 characters"),
    ({"text": "7 $ % & " * 200}, "exceeds the context"), ({"text": TEXT, "position": 99}, "position 99: the text has tokens 0 to"),
    ({"text": TEXT, "position": "-1"}, "position: expected the number of a token"), ({"text": TEXT, "at": 999}, "token 999: the text has tokens 0 to"),
    ({"text": TEXT, "at": "\u0663"}, "token: expected the number"), ({"text": TEXT, "target": "river mountain"}, "expected one: take the first"),
    ({"text": TEXT, "target": "x" * 101}, "101 characters: expected the text of one token"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(client: TestClient, asked: dict[str, object], says: str) -> None:
    assert says in problem(answered(client, **asked))


def test_several_pieces_are_named_with_what_to_do(client: TestClient, attributor: Attributor) -> None:
    tokenizer = attributor.subject.tokenizer
    words = (word for word in ("river", "walked", "mountain", "village", "Ada", "golden") if len(tokenizer(word)["input_ids"]) > 1)
    word = next(word for word in words if len(tokenizer(f" {word}")["input_ids"]) == 1)
    line = problem(answered(client, text=TEXT, target=word))
    assert f"or ' {word}', which is one" in line
    assert "problem" not in answered(client, text=TEXT, target=f" {word}")


def test_no_text_is_only_a_form(client: TestClient) -> None:
    html = client.get("/attribute").text
    assert "data-again" not in html and "problem" not in html and 'id="target"' in html
    assert client.get("/attribute", params={"dictionary": "none"}).status_code == 404
    foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/attribute?text=x", headers=foreign).status_code == 403


@pytest.mark.parametrize("part", ["subject", "dictionary"])
def test_what_is_gone_is_said_and_tried_again(folder: Path, tmp_path: Path, part: str) -> None:
    copy_without(part, folder, tmp_path)
    client = TestClient(serve.application(tmp_path, PORT), base_url=f"http://127.0.0.1:{PORT}")
    for _ in range(2):
        assert "gone" in problem(answered(client, text="some words"))


@pytest.mark.parametrize("place", PLACES)
def test_a_hidden_space_is_attributed(tiny: dict[str, Path], tmp_path: Path, place: str) -> None:
    source = write_dictionary(tmp_path / "hidden", d_in=PLACES[place][1])
    settings = quick_settings(tiny, tmp_path, dictionary__source=source, dictionary__hookpoint=place)
    run_all(settings)
    with Store.read(settings.folder / "run.duckdb") as store:
        known = Attributor(report.read(store)).explain(TEXT, QUIET, None, None, 0).found
    client = TestClient(serve.application(settings.folder, PORT), base_url=f"http://127.0.0.1:{PORT}")
    assert listed(answered(client, text=TEXT))[0][0] == figure(known.pairs[0].contribution, "+.3f")


def test_a_copy_that_leads_nowhere_is_said(tiny: dict[str, Path], tmp_path: Path) -> None:
    settings = quick_settings(tiny, tmp_path, dictionary__hookpoint="blocks.1.ln1.hook_normalized")
    run_all(settings)
    client = TestClient(serve.application(settings.folder, PORT), base_url=f"http://127.0.0.1:{PORT}")
    assert "a copy (rms)" in problem(answered(client, text=TEXT))


def test_each_dictionary_of_a_run_is_asked_for_by_name(tiny: dict[str, Path], tmp_path: Path) -> None:
    places = {"deep": "model.layers.1", "shallow": "model.layers.0"}
    file = tmp_path / "two.toml"
    file.write_text("\n".join(
        f"[[dictionary]]\nsource = '{write_dictionary(tmp_path / name, seed=i)}'\nhookpoint = '{place}'\ncheck = 'off'"
        for i, (name, place) in enumerate(places.items())
    ))  # fmt: skip
    corpus = write_corpus(tmp_path / "corpus", documents=12)
    given = [x for x in tiny_overrides(tiny | {"corpus": corpus}, tmp_path) if not x.startswith("dictionary.")]
    settings = config.load(file, given)
    with Store.create(settings.database) as store:
        Pipeline(store, prepare(settings), Bar(), print).collect()  # nothing is labelled yet
        known = {reading.run.dictionary: Attributor(reading) for reading in report.read_all(store)}
    client = TestClient(serve.application(settings.folder, PORT), base_url=f"http://127.0.0.1:{PORT}")
    for name, attributor in known.items():
        html = answered(client, text=TEXT, dictionary=name)
        assert f'<option value="{name}" selected>' in html and f"at <code>{attributor.hookpoint}</code>" in html
        pair = attributor.explain(TEXT, QUIET, None, None, 0).found.pairs[0]
        assert listed(html)[0][:2] == (figure(pair.contribution, "+.3f"), str(pair.feature))
        assert "heaviest on" in html


# -- text stays text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_typed_text_and_targets_stay_text(client: TestClient, text: str) -> None:
    html = answered(client, text=text) + answered(client, text=TEXT, target=text, dictionary="")
    tags = Tags(html)
    assert tags.count("img") == 0 and tags.count("style") == 0
    assert [a.get("src") for t, a in tags.found if t == "script"] == ["/static/theme.js", "/static/serve.js", "/static/live.js"] * 2
    assert not any(name.startswith("on") or name == "style" for _, attrs in tags.found for name in attrs)
    assert "firings on" in html or "No feature fires" in html


def test_a_target_with_a_line_end_survives_the_form(client: TestClient) -> None:
    html = answered(client, text=TEXT, target="\r\n")
    assert re.search(r'<textarea id="target"[^>]*>\n\n</textarea>', html) and "«↵»" in html


def test_both_pages_of_a_text_lead_to_one_another(client: TestClient) -> None:
    for path, other in (("/text", "/attribute"), ("/attribute", "/text")):
        links = [a.get("href") for t, a in Tags(client.get(path, params={"text": "Ada & <b>"}).text).found if t == "a"]
        assert f"{other}?text=Ada+%26+%3Cb%3E" in links


# -- the rows ----------------------------------------------------------------------------------------------------------


def explained(pairs: list[Pair], n_random: int = 0, **changes: Any) -> Explained:
    target = Target(" x", 3, 2.0, 1.0, 0.5)
    n = sum(pair.ablated is not None for pair in pairs)
    found = Attribution(
        "abcdef", ["ab", "c", "d"], target, [target], "layers.1", pairs, [0.0] * 3, [0.0] * 3, [5.0, 0.0, 0.0],
        Check(n, 0.9 if n else None, 0.9, 0.5, n_random),
    )  # fmt: skip
    return Explained(replace(found, **changes), "d", {})


def line(feature: int) -> Line:
    return Line(0, feature, f"d/{feature}", "d", f"label {feature}", None, "m", "good", None, 0.1, 1.0, *[None] * 8)


def test_tokens_are_coloured_by_the_sum_of_their_features() -> None:
    pairs = [Pair(1, 7, 1.0, -4.0), Pair(2, 8, 1.0, 2.0), Pair(1, 9, 1.0, 1.0), Pair(2, 7, 1.0, -1.95)]
    found = shown(explained(pairs), {"d/9": line(9)}, None)
    assert [(m.value, m.tenth, m.masked, m.n_firing) for m in found.marks] == [
        (0, 0, True, 0), (-3.0, 9, False, 2), (pytest.approx(0.05), 0, False, 2)
    ]  # fmt: skip
    assert found.unread == "ef" and found.after.position == 2
    assert [(f.pair.feature, f.share, f.line and f.line.label) for f in found.rows] == [
        (7, -1.0, None), (8, 0.5, None), (9, 0.25, "label 9"), (7, pytest.approx(-1.95 / 4), None)
    ]  # fmt: skip
    assert [f.pair.feature for f in shown(explained(pairs), {}, 2).rows] == [8, 7]
    assert [(p.name, p.value, p.share) for p in found.parts][::3] == [("features", pytest.approx(-2.95), pytest.approx(-0.59)), ("masked positions", 5.0, 1.0)]


def test_labelled_features_further_down_are_listed_after_the_strongest() -> None:
    pairs = [Pair(1, i, 1.0, 100.0 - i) for i in range(ROWS + LABELLED + 20)]
    found = shown(explained(pairs), {f"d/{i}": line(i) for i in range(ROWS - 1, ROWS + 40)}, None)
    assert [f.pair.feature for f in found.rows] == list(range(ROWS))
    assert [f.pair.feature for f in found.further] == list(range(ROWS, ROWS + LABELLED))
    assert shown(explained([]), {}, None).n_firing == 0


def test_the_scatter_is_on_one_scale_with_equality_on_its_diagonal() -> None:
    pairs = [Pair(1, 1, 1.0, 2.0, 2.0), Pair(1, 2, 1.0, -1.0, -1.0), Pair(1, 3, 1.0, 0.5, None), Pair(1, 4, 1.0, 0.25, 0.25)]
    chart = shown(explained(pairs, n_random=1), {}, None).chart
    assert chart is not None and [d.kind for d in chart.dots] == ["strong", "strong", "random"]
    x1, y1, x2, y2 = chart.diagonal
    for dot in chart.dots:
        assert (dot.y - y1) / (y2 - y1) == pytest.approx((dot.x - x1) / (x2 - x1), abs=1e-3)
    assert [t.text for t in chart.x] == [t.text for t in chart.y] == ["−1", "−0.5", "0", "0.5", "1", "1.5", "2"]
    assert charts.agreement([charts.Point(0.0, 0.0, "strong", "")]).dots[0].x > 0
