"""Steering a finished run: what is written, how far it is from the unsteered, and bad input in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from autointerp import dictionary as dictionaries
from autointerp import report, steer
from autointerp.cli.options import app
from autointerp.config import SubjectSection
from autointerp.errors import ConfigError, FeatureError, SubjectError, UserError
from autointerp.intervene import Edit, intervening
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar

from .test_pipeline import finished_run

PROMPT = "Ada walked to the red river, and"


@pytest.fixture
def run(tiny: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run(tiny), tmp_path / "t"))


def loud(run: Path) -> int:
    """A feature that fires often."""
    with Store.read(run / "run.duckdb") as store:
        return int(store.features(report.read(store).run.collection_id)["n_tokens"].sum(axis=0).argmax())


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    app(["steer", *arguments, "--json"], standalone_mode=False)
    found: dict = json.loads(capsys.readouterr().out)  # type: ignore[type-arg]
    return found


def test_the_command_gives_a_baseline_and_a_result_per_strength(
    run: Path, tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    feature = loud(run)
    strengths = [part for s in ("0", "4", "8") for part in ("--strength", s)]
    found = command(capsys, str(feature), str(run), *strengths, "--prompt", PROMPT, "--tokens", "12")
    assert [result["strength"] for result in found["results"]] == [0, 4, 8]
    assert found["results"][0] == found["baseline"]
    assert found["baseline"]["kl"] == 0 < found["results"][1]["kl"]
    # the same by hand: the subject's own generation, with the rows of the file added to its layer
    subject = Subject.load(SubjectSection(model=str(tiny["subject"]), dtype="float32", device="cpu"))  # type: ignore[call-arg]
    ids = torch.tensor([subject.tokenizer(PROMPT)["input_ids"]])
    row = dictionaries.load(str(tiny["dictionary"])).W_dec[feature]
    largest = found["features"][0]["max_activation"]
    layer = subject.model.get_submodule("model.layers.1")
    own = None
    for result in found["results"]:
        added = result["strength"] * largest * row
        handle = layer.register_forward_hook(
            lambda _, __, out, a=added: (out[0] + a, *out[1:]) if isinstance(out, tuple) else out + a
        )
        written = subject.model.generate(ids, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
        own = written if own is None else own
        with torch.no_grad():
            after = subject.model(own).logits[0, ids.shape[1] - 1 :].log_softmax(-1)
        handle.remove()
        with torch.no_grad():
            before = subject.model(own).logits[0, ids.shape[1] - 1 :].log_softmax(-1)
        assert result["text"] == subject.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        kl = float((before.exp() * (before - after)).sum(-1).mean())
        assert result["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)


def test_a_label_is_found_by_meaning(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.read(run / "run.duckdb") as store:
        labels = {label.feature: label.label for label in report.read(store).labels if label.label}
    feature, label = next(iter(labels.items()))
    assert label is not None
    found = command(capsys, "--label", label, str(run), "--tokens", "2")
    assert found["features"][0]["label"] == label
    assert labels[found["features"][0]["feature"]] == labels[feature]


def test_several_features_and_every_edit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feature = loud(run)
    other = (feature + 1) % 64
    found = command(capsys, str(feature), str(run), "--feature", str(other), "--clamp", "-s", "3", "--tokens", "4")
    assert [f["feature"] for f in found["features"]] == [feature, other]
    assert (found["edit"], found["results"][0]["strength"]) == ("clamp", 3)
    found = command(capsys, str(feature), str(run), "--ablate", "--prompt", PROMPT, "--tokens", "4")
    assert (found["edit"], len(found["results"])) == ("ablate", 1)
    assert found["results"][0]["kl"] > 0


def test_texts_stand_side_by_side(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    app(["steer", str(loud(run)), str(run), "-s", "2", "--tokens", "6"], standalone_mode=False)
    shown = capsys.readouterr().out
    heading = next(line for line in shown.splitlines() if "unsteered" in line)
    assert "strength 2" in heading
    assert "KL: mean over the tokens of the unsteered continuation" in shown


@pytest.mark.parametrize(
    ("arguments", "problem", "words"),
    [
        ([], ConfigError, "no feature"),
        (["4096"], FeatureError, "0 to 63"),
        (["other/3"], FeatureError, "no feature"),
        (["3", "-s", "nan"], ConfigError, "finite"),
        (["3", "-s", "inf"], ConfigError, "finite"),
        (["3", "--clamp", "--ablate"], ConfigError, "exclude"),
        (["3", "--ablate", "-s", "2"], ConfigError, "give one"),
        (["3", "--tokens", "300"], SubjectError, "256 positions"),
        (["3", "--prompt", ""], SubjectError, "prompt is empty"),
        (["3", "--prompt", "the river " * 300], SubjectError, "a prompt of .* tokens and 40 to write .* 256 positions"),
        (["3", "-s", "1e41", "-s", "1"], SubjectError, r"strength 1e\+41 .* smaller"),
    ],
)
def test_bad_input_is_one_line(run: Path, arguments: list[str], problem: type[UserError], words: str) -> None:
    first = [*arguments[:1], str(run)] if arguments else []
    with pytest.raises(problem, match=words) as found:
        app(["steer", *first, *arguments[1:]], standalone_mode=False)
    assert "\n" not in str(found.value)


def test_a_feature_that_never_fired_has_no_unit(run: Path) -> None:
    with Store.read(run / "run.duckdb") as store:
        steerer = steer.Steerer(report.read(store), store)
        steerer.largest[5] = 0
        with pytest.raises(FeatureError, match="never fired"):
            steerer.changed("5")


def test_with_and_without_a_cache_the_same_is_written(tiny: dict[str, Path]) -> None:
    subject = Subject.load(SubjectSection(model=str(tiny["subject"]), dtype="float32", device="cpu"))  # type: ignore[call-arg]
    dictionary = dictionaries.load(str(tiny["dictionary"]))
    ids = subject.read(PROMPT, "prompt", 10)
    with intervening(subject, "model.layers.1", dictionary, [Edit(7, "clamp", 5.0)]), Bar(enabled=False) as bar:
        (found,) = steer.continued(subject, ids, steer.Sampling(10), 1, bar)
        slow = list(ids)
        with torch.no_grad():
            for _ in range(len(found)):
                slow.append(int(subject.model(input_ids=torch.tensor([slow]), use_cache=False).logits[0, -1].argmax()))
    assert found == slow[len(ids) :]


def test_sampling_repeats_with_its_seed(tiny: dict[str, Path]) -> None:
    subject = Subject.load(SubjectSection(model=str(tiny["subject"]), dtype="float32", device="cpu"))  # type: ignore[call-arg]
    ids = subject.read(PROMPT, "prompt", 10)
    with Bar(enabled=False) as bar:
        first, second, other = (
            steer.continued(subject, ids, steer.Sampling(10, 2.0, seed), 1, bar) for seed in (1, 1, 2)
        )
    assert first == second != other


def test_repetition_counts_runs_that_were_there_before() -> None:
    assert steer.repetition([1, 2, 3, 4, 5, 6]) == 0
    assert steer.repetition([1, 2, 3] * 3) == pytest.approx(4 / 7)
    assert steer.repetition([1, 2]) == 0


def test_divergence_of_a_distribution_worked_out_by_hand() -> None:
    before, after = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    by_hand = (0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()) / 2
    assert steer.divergence(before, after) == pytest.approx(float(by_hand), rel=1e-5)
