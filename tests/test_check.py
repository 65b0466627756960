"""The check before labelling, on the real subject and the packaged dictionary: every planted mistake is refused, named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autointerp import check, config, targets
from autointerp.check import Finding
from autointerp.config import Settings
from autointerp.dictionary import Dictionary
from autointerp.errors import DictionaryError
from autointerp.sample import Sample
from autointerp.subject import Subject
from autointerp.targets import Target

RIGHT = "model.layers.15"
Try = Callable[..., Finding]


@pytest.fixture(scope="module")
def settings() -> Settings:
    return config.load(Path(__file__).parent.parent / "config.toml")


@pytest.fixture(scope="module")
def target(settings: Settings) -> Target:
    (found,) = targets.load(settings, Subject.sketch(settings.subject))
    # What its files say is tested apart: here the activations must tell.
    return Target(found.keys, replace(found.dictionary, hookpoint=None))


@pytest.fixture(scope="module")
def sample(settings: Settings) -> Sample:
    return Sample(settings, Subject.load(settings.subject), tokens=512)


@pytest.fixture(scope="module")
def attempt(settings: Settings, target: Target, sample: Sample) -> Try:
    def found(dictionary: Dictionary | None = None, hookpoint: str = RIGHT) -> Finding:
        planted = Target(replace(target.keys, hookpoint=hookpoint), dictionary or target.dictionary)
        return check.check(settings, planted, sample.subject, sample)

    return found


@pytest.fixture(scope="module")
def right(attempt: Try) -> Finding:
    return attempt()


def refused(finding: Finding, *words: str) -> None:
    with pytest.raises(DictionaryError) as problem:
        finding.refuse()
    message = str(problem.value)
    assert [word for word in words if word not in message] == []
    assert len(message.splitlines()) == 1


def test_the_packaged_dictionary_fits_where_it_was_trained(right: Finding) -> None:
    assert right.reasons == ()
    assert right.configured is not None
    assert right.configured.fvu < 0.2
    assert abs(right.configured.l0 - 32) < 0.1
    right.refuse()


def test_positions_that_do_not_count_are_masked_and_counted(right: Finding, sample: Sample) -> None:
    assert right.n_masked == len(sample.tokens)  # the first position of each context is an attention sink
    assert right.n_tokens + right.n_masked == int(sample.lengths.sum())
    assert any("masked" in note for note in right.notes)


@pytest.mark.parametrize("layer", [0, 9, 14, 16, 20, 29])
def test_another_layer_is_refused_and_the_right_one_named(attempt: Try, layer: int) -> None:
    refused(attempt(hookpoint=f"model.layers.{layer}"), "much better", RIGHT)


@pytest.mark.parametrize("place", ["post_attention_layernorm:input", "mlp", "input_layernorm"])
def test_another_place_in_the_block_is_refused_and_the_right_one_named(attempt: Try, place: str) -> None:
    finding = attempt(hookpoint=f"model.layers.15.{place}")
    refused(finding, "much better")
    best = finding.rivals[0]
    assert best.hookpoint == RIGHT or best.fvu < 0.25


def test_a_lost_input_scale_is_refused_and_named(attempt: Try, target: Target, sample: Sample) -> None:
    x = sample.at(RIGHT)[sample.usable(RIGHT)].float()
    scale = target.dictionary.d_in**0.5 / float(torch.linalg.vector_norm(x, dim=1).mean())
    refused(attempt(target.dictionary.fold_input_scale(1 / scale)), "inputs scaled by", "sqrt(d)")


def test_a_lost_run_time_normalisation_is_refused_and_named(attempt: Try, target: Target, sample: Sample) -> None:
    x = sample.at(RIGHT)[sample.usable(RIGHT)].float()
    scale = target.dictionary.d_in**0.5 / float(torch.linalg.vector_norm(x, dim=1).mean())
    meant = replace(target.dictionary.fold_input_scale(1 / scale), normalise="constant_norm_rescale")
    assert attempt(meant).reasons == ()
    refused(attempt(replace(meant, normalise="none")), "much better")


def test_a_decoder_bias_that_is_not_subtracted_is_refused_and_named(attempt: Try, target: Target) -> None:
    wrong = replace(target.dictionary, apply_b_dec_to_input=not target.dictionary.apply_b_dec_to_input)
    refused(attempt(wrong), "b_dec")


def test_a_dropped_threshold_is_refused_and_named(attempt: Try, target: Target) -> None:
    refused(attempt(replace(target.dictionary, architecture="standard", k=None)), "threshold")


def test_a_decoder_norm_folded_on_one_side_is_refused_and_named(attempt: Try, target: Target) -> None:
    norms = torch.rand(target.dictionary.width, generator=torch.Generator().manual_seed(0)) * 3 + 0.3
    wrong = replace(target.dictionary, W_dec=target.dictionary.W_dec * norms[:, None])
    refused(attempt(wrong), "decoder rows of norm 1")


def test_a_decoder_norm_in_the_encoder_alone_is_refused_and_named(attempt: Try, target: Target) -> None:
    norms = torch.rand(target.dictionary.width, generator=torch.Generator().manual_seed(0)) * 3 + 0.3
    d = target.dictionary
    refused(attempt(replace(d, W_enc=d.W_enc * norms, b_enc=d.b_enc * norms)), "encoder columns scaled")


def test_consistent_folding_is_recorded_and_not_refused(attempt: Try, target: Target) -> None:
    norms = torch.rand(target.dictionary.width, generator=torch.Generator().manual_seed(0)) * 3 + 0.3
    trained = replace(
        target.dictionary, architecture="jumprelu", k=None, threshold=torch.full_like(norms, 8.0) / norms,
        W_enc=target.dictionary.W_enc / norms, b_enc=target.dictionary.b_enc / norms,
        W_dec=target.dictionary.W_dec * norms[:, None],
    )  # fmt: skip
    finding = attempt(trained.fold_decoder_norm())
    assert not any("norm" in reason for reason in finding.reasons)
    assert any("folded" in note for note in finding.notes)


def test_a_hookpoint_other_than_its_files_name_is_refused(attempt: Try, target: Target) -> None:
    own = replace(target.dictionary, hookpoint="blocks.15.hook_resid_post")
    assert attempt(own).reasons == ()
    assert attempt(own, hookpoint="model.layers.16:input").reasons == ()  # another name of the same tensor
    refused(attempt(own, hookpoint="model.layers.14"), "its own files say", "blocks.15.hook_resid_post", RIGHT)


def test_far_more_features_than_declared_are_refused(attempt: Try, target: Target) -> None:
    width = target.dictionary.width
    jump = replace(
        target.dictionary, architecture="jumprelu", k=None, threshold=torch.full((width,), 2.0), declared_l0=3.0
    )
    refused(attempt(jump), "declare 3.0")


def test_random_directions_and_a_part_of_a_dictionary_are_not_checked_and_said_so(
    attempt: Try, target: Target
) -> None:
    assert attempt(replace(target.dictionary, random=True)).configured is None
    finding = attempt(replace(target.dictionary, architecture="standard").only(torch.arange(5)))
    assert finding.configured is None
    assert "not checked" in finding.line
