"""Attribution: exact where the subject is linear, its parts add up, and no hook is left behind."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from autointerp import attribute as A  # noqa: N812
from autointerp import dictionary as dictionaries
from autointerp.attributed import Check, Pair
from autointerp.config import SubjectSection
from autointerp.dictionary import Dictionary
from autointerp.errors import DictionaryError, SubjectError
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar

from .conftest import write_dictionary
from .test_cli import Autointerp, autointerp, done, refused  # noqa: F401
from .test_pipeline import finished_run

POINT = "model.layers.1"
LINEAR = "model.norm"  # only the unembedding comes after it
TEXT = "Ada walked to the red river, and it was 5 o'clock. Bela sailed to the"
QUIET = Bar(enabled=False)


def load(tiny: dict[str, Path], **changes: object) -> Subject:
    return Subject.load(SubjectSection(model=str(tiny["subject"]), dtype="float32", device="cpu", **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def subject(tiny: dict[str, Path]) -> Subject:
    return load(tiny)


@pytest.fixture(scope="module")
def dictionary(tiny: dict[str, Path]) -> Dictionary:
    """With a bias, so that its part can be told."""
    found = dictionaries.load(str(tiny["dictionary"]))
    return replace(found, b_dec=torch.linspace(-0.1, 0.1, 32))


def hooks_left(subject: Subject) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())


@torch.no_grad()
def last_logits(subject: Subject, text: str) -> Tensor:
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = [subject.tokenizer.bos_token_id] if subject.prepend_bos else []
    found: Tensor = subject.model(input_ids=torch.tensor([[*bos, *ids]])).logits[0, -1]
    return found


@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize("normalise", ["none", "constant_norm_rescale"])
def test_contributions_are_the_ablations_where_the_rest_of_the_subject_is_linear(
    tiny: dict[str, Path], dictionary: Dictionary, prepend_bos: bool, normalise: str
) -> None:
    found = A.attribute(
        load(tiny, prepend_bos=prepend_bos), replace(dictionary, normalise=normalise), LINEAR, TEXT, QUIET,
        checked=10_000,
    )  # fmt: skip
    assert found.check.n == len(found.pairs) == dictionary.k * sum(m == 0 for m in found.masked)
    last = [pair for pair in found.pairs if pair.position == len(found.tokens) - 1]
    assert len(last) == 4 and all(abs(pair.contribution) > 1e-3 for pair in last)
    for pair in found.pairs:
        assert pair.ablated == pytest.approx(pair.contribution, abs=1e-5), pair
        assert pair in last or pair.contribution == 0
    assert found.check.pearson == pytest.approx(1.0, abs=1e-4)


def test_contributions_are_slopes_of_the_target(subject: Subject, dictionary: Dictionary) -> None:
    ids = A.text_ids(subject, TEXT)
    x, slope, _, target = A.gradient(subject, POINT, ids, None)
    fired = A.fire(subject, dictionary, POINT, ids, x)
    contribution = (fired.written * slope[fired.position]).sum(dim=1)
    step = 0.03
    less = A.ablated(
        subject, POINT, ids, target, replace(fired, written=step * fired.written), range(len(contribution)), QUIET
    )
    more = A.ablated(
        subject, POINT, ids, target, replace(fired, written=-step * fired.written), range(len(contribution)), QUIET
    )
    assert contribution.abs().max() > 1e-2
    torch.testing.assert_close((more - less) / (2 * step), contribution, rtol=2e-2, atol=1e-4)


def test_what_is_no_feature_is_error_bias_or_a_masked_position(subject: Subject, dictionary: Dictionary) -> None:
    ids = A.text_ids(subject, TEXT)
    x, slope, _, target = A.gradient(subject, POINT, ids, None)
    found = A.attribute(subject, dictionary, POINT, TEXT, QUIET, checked=0)
    reconstruction, _ = dictionary.reconstruct(x)
    halved = (reconstruction - dictionary.b_dec) / 2  # all that features write
    slope = (slope + A.gradient(subject, POINT, ids, target, halved)[1]) / 2
    usable = subject.usable(torch.tensor([ids]), x[None], torch.tensor([len(ids)]))[0]
    torch.testing.assert_close(
        torch.tensor(found.error), (((x - reconstruction) * slope).sum(dim=1)) * usable, rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(torch.tensor(found.bias), (slope @ dictionary.b_dec) * usable, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(torch.tensor(found.masked), (x * slope).sum(dim=1) * ~usable)
    assert found.check == Check(0, None, None, None, 0)


def test_a_masked_position_has_no_features(tiny: dict[str, Path], dictionary: Dictionary) -> None:
    """With a ratio this small the longest activations pass for sinks."""
    found = A.attribute(load(tiny, max_norm_ratio=1.02), dictionary, POINT, TEXT, QUIET, checked=0)
    masked = {i for i, value in enumerate(found.masked) if value}
    assert masked and len(masked) < len(found.tokens)
    assert {pair.position for pair in found.pairs} == set(range(len(found.tokens))) - masked
    assert all(found.error[i] == found.bias[i] == 0 for i in masked)


def test_the_target_is_the_likeliest_token_unless_one_is_given(subject: Subject, dictionary: Dictionary) -> None:
    logits = last_logits(subject, TEXT)
    own = A.attribute(subject, dictionary, POINT, TEXT, QUIET, checked=0).target
    assert own.token_id == int(logits.argmax())
    assert own.logit_over_mean == pytest.approx(float(logits.max() - logits.mean()), abs=1e-5)
    assert own.probability == pytest.approx(float(logits.softmax(0).max()), abs=1e-6)
    given = A.attribute(subject, dictionary, POINT, TEXT, QUIET, target="Ċ" if own.token == "a" else "a", checked=0)
    assert (given.target.token, given.target.logit) == ("a", pytest.approx(float(logits[given.target.token_id]), abs=1e-5))


def test_a_position_reads_the_text_up_to_it(subject: Subject, dictionary: Dictionary) -> None:
    whole = A.attribute(subject, dictionary, POINT, TEXT, QUIET, checked=0)
    part = A.attribute(subject, dictionary, POINT, TEXT, QUIET, checked=0, position=3)
    assert part.tokens == whole.tokens[:4]
    assert "".join(whole.tokens) == TEXT
    ids = A.text_ids(subject, TEXT)[:4]
    with torch.no_grad():
        logits = subject.model(input_ids=torch.tensor([ids])).logits[0, -1]
    assert part.target.token_id == int(logits.argmax())


def test_pairs_to_check_are_the_strongest_half_and_others_once_each() -> None:
    contribution = np.array([0.1, -5.0, 0.2, 4.0, 0.0, -0.3, 0.05])
    pairs, strongest = A.sampled(contribution, 4, seed=0)
    assert pairs[:strongest] == [1, 3] and len(set(pairs)) == 4
    assert A.sampled(contribution, 4, seed=0) == (pairs, 2)
    everything, strongest = A.sampled(contribution, 100, seed=0)
    assert sorted(everything) == list(range(7)) and strongest == 4
    assert A.sampled(contribution, 0, seed=0) == ([], 0)


def test_the_check_is_pearson_and_spearman() -> None:
    random = np.random.default_rng(0)
    true = random.normal(size=30).round()  # with ties
    guess = true + random.normal(size=30)
    found = A.compared([Pair(0, i, 1.0, g, t) for i, (g, t) in enumerate(zip(guess, true))], 10)
    assert found.pearson == pytest.approx(np.corrcoef(true, guess)[0, 1])
    assert found.spearman == pytest.approx(spearmanr(true, guess).statistic)
    assert found.pearson_random == pytest.approx(np.corrcoef(true[10:], guess[10:])[0, 1])
    assert (found.n, found.n_random) == (30, 20)


def test_hooks_are_removed_after_errors(subject: Subject, dictionary: Dictionary) -> None:
    ids = A.text_ids(subject, TEXT)
    x, _, _, target = A.gradient(subject, POINT, ids, None)
    fired = A.fire(subject, dictionary, POINT, ids, x)
    for bad, error in ((fired.written * float("nan"), SubjectError), (fired.written[:, :5], RuntimeError)):
        with pytest.raises(error):
            A.ablated(subject, POINT, ids, target, replace(fired, written=bad), [0, 1], QUIET)
        assert hooks_left(subject) == 0
    with pytest.raises(SubjectError, match=r"expected activations \[context, token, d\]"):
        A.gradient(subject, "lm_head:input", ids, None)
    assert hooks_left(subject) == 0


def test_a_dictionary_that_does_not_write_where_it_reads_is_refused(subject: Subject, dictionary: Dictionary) -> None:
    with pytest.raises(DictionaryError, match="transcoder"):
        A.attribute(subject, replace(dictionary, transcoder=True), POINT, TEXT, QUIET)
    with pytest.raises(DictionaryError, match="rms"):
        A.attribute(subject, dictionary, f"{POINT}|rms", TEXT, QUIET)


def test_a_scaled_hookpoint_attributes_the_same(subject: Subject, tiny: dict[str, Path]) -> None:
    """A dictionary of 2x with the scale folded out is the same dictionary of x."""
    scaled = dictionaries.load(str(tiny["dictionary"]))
    plain = scaled.fold_input_scale(2.0)
    one = A.attribute(subject, plain, POINT, TEXT, QUIET, checked=6)
    two = A.attribute(subject, scaled, f"{POINT}|scale=2.0", TEXT, QUIET, checked=6)
    keyed = [
        {(p.position, p.feature): (p.contribution, p.ablated or 0.0) for p in found.pairs} for found in (one, two)
    ]
    assert keyed[0].keys() == keyed[1].keys()
    assert np.allclose([keyed[0][k] for k in keyed[0]], [keyed[1][k] for k in keyed[0]], atol=1e-5)
    assert np.allclose(one.error, two.error, atol=1e-5)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_labels_bars_and_the_correlation(done: Path, autointerp: Autointerp) -> None:  # noqa: F811
    ended = autointerp("attribute", TEXT, str(done), "--check", "20")
    assert ended.code == 0, ended
    for word in ("target «", "firing here", "most at", "reconstruction error", "against ablation of 20"):
        assert word in ended.out, word


def test_json_holds_every_pair_with_its_label(done: Path, autointerp: Autointerp) -> None:  # noqa: F811
    ended = autointerp("attribute", TEXT, str(done), "--check", "20", "--top", "3", "--json")
    assert ended.code == 0, ended
    found = json.loads(ended.out)
    known = {row["feature"]: row["label"] for row in labels(done, autointerp)}
    assert any(pair["label"] for pair in found["pairs"])
    assert all(pair["label"] == known.get(pair["feature"]) for pair in found["pairs"])
    assert sum(pair["ablated"] is not None for pair in found["pairs"]) == found["check"]["n"] == 20
    assert found["totals"]["features"] == pytest.approx(sum(pair["contribution"] for pair in found["pairs"]))
    first = found["features"][0]
    own = [pair["contribution"] for pair in found["pairs"] if pair["feature"] == first["feature"]]
    assert len(found["features"]) == 3 and first["contribution"] == pytest.approx(sum(own))
    assert "".join(found["tokens"]) == found["text"] == TEXT


def labels(run: Path, autointerp: Autointerp) -> list[dict]:  # noqa: F811
    found: list[dict] = json.loads(autointerp("report", str(run), "--json").out)["labels"]
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["the", "--target", "river mountain"], "tokens of"),
        (["the", "--target", ""], "target is empty"),
        ([""], "text is empty"),
        (["the river " * 300], "256 positions"),
        (["the river", "--position", "99"], "position 99"),
    ],
)
def test_bad_input_is_one_line(done: Path, autointerp: Autointerp, words: list[str], said: str) -> None:  # noqa: F811
    refused(autointerp("attribute", words[0], str(done), *words[1:]), said)


def test_several_pieces_are_named(subject: Subject) -> None:
    pieces = A.strings(subject, subject.tokenizer(" river mountain", add_special_tokens=False)["input_ids"])
    with pytest.raises(SubjectError) as refusal:
        A.target_id(subject, " river mountain")
    assert len(pieces) > 1 and all(repr(piece) in str(refusal.value) for piece in pieces)


def test_no_run_is_one_line(tmp_path: Path, autointerp: Autointerp) -> None:  # noqa: F811
    refused(autointerp("attribute", TEXT, str(tmp_path / "nowhere")), "run.duckdb")


def test_an_answer_is_read_from_a_run_without_writing(tiny: dict[str, Path], autointerp: Autointerp) -> None:  # noqa: F811
    database = finished_run(tiny) / "run.duckdb"
    before = database.read_bytes()
    assert autointerp("attribute", "the river", str(database), "--check", "0").code == 0
    assert database.read_bytes() == before


def test_another_dictionary_by_the_name_of_the_runs_is_refused(
    tiny: dict[str, Path], tmp_path: Path, autointerp: Autointerp  # noqa: F811
) -> None:
    """Its features would be attributed under labels of others."""
    kept = tmp_path / "sae"
    shutil.copytree(tiny["dictionary"], kept)
    run = tmp_path / "t"
    shutil.copytree(finished_run(tiny), run)
    with Store.create(run / "run.duckdb") as store:
        text = json.dumps(str(tiny["dictionary"]))[1:-1]
        store.db.execute("DELETE FROM lens")
        store.db.execute("UPDATE run SET settings = replace(settings, ?, ?)", [text, json.dumps(str(kept))[1:-1]])
    write_dictionary(kept, width=72)
    for command in (["attribute", TEXT, str(run)], ["steer", "3", str(run)], ["lens", str(run)]):
        refused(autointerp(*command), "has width 72 at model.layers.1 by now")
