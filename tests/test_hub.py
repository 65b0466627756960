"""Dictionaries by hub name, from a stand-in of the hub with files of the true layout: what is downloaded, what sae_lens
makes of the same files, what the registry adds, and what is refused."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autointerp.dictionary import Dictionary, hub, load
from autointerp.errors import DictionaryError, MissingExtra, UserError

from . import hub as stand_in
from .hub import D, WIDTH, Hub, numbers

RES_JB = "gpt2-small-res-jb/blocks.6.hook_resid_pre"
GEMMA = "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical"
GEMMA_2 = "gemma-scope-2-1b-pt-res/layer_13_width_16k_l0_medium"
LLAMA = "llama_scope_lxr_8x/l15r_8x"
PYTHIA = "hf:EleutherAI/sae-pythia-160m-32k:layers.6"
RELEASED = [RES_JB, GEMMA, GEMMA_2, LLAMA]
X = numbers(64, D, seed=1) + 0.5
RTOL = 1e-5

pytest.importorskip("sae_lens", reason="needs the extra `saelens`")


@pytest.fixture
def there() -> Iterator[Hub]:
    found = Hub()
    stand_in.add_everything(found)
    yield found
    found.close()


@pytest.fixture
def online(there: Hub, tmp_path: Path) -> Iterator[Hub]:
    with there.pointed_at(tmp_path / "cache"):
        yield there


def dense(d: Dictionary, x: Tensor = X) -> Tensor:
    triples = d.encode(x)
    result = torch.zeros(len(x), d.width)
    result[triples.position, triples.feature] = triples.value
    return result


def refusal(source: str, kind: type[UserError] = DictionaryError) -> str:
    with pytest.raises(kind) as problem:
        load(source)
    assert "\n" not in str(problem.value)
    return str(problem.value)


# -- against sae_lens --------------------------------------------------------------------------------------------------


def from_pretrained(source: str) -> Any:
    """sae_lens' own download and conversion, from the same stand-in."""
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS, get_conversion_loader_name

    release, _, identity = source.partition("/")
    loader = NAMED_PRETRAINED_SAE_LOADERS[get_conversion_loader_name(release)]

    def of_small_weights(*args: Any, **kwargs: Any) -> Any:  # the loader of gemma_2 writes the real sizes down
        cfg, state, sparsity = loader(*args, **kwargs)
        return cfg | {"d_in": D, "d_sae": WIDTH}, state, sparsity

    return SAE.from_pretrained(release, identity, converter=of_small_weights)


@pytest.mark.parametrize("source", RELEASED)
def test_a_release_encodes_as_sae_lens_loads_it(source: str, online: Hub) -> None:
    sae = from_pretrained(source)
    d = load(source)
    x = X - X.mean(dim=1, keepdim=True) if d.centre else X  # sae_lens has TransformerLens centre the subject instead
    expected = sae.encode(x).detach()
    assert (expected > 0).sum() > 100
    assert float((dense(d) - expected).abs().max() / expected.abs().max()) < RTOL
    x_hat, _ = d.reconstruct(X)
    expected = sae(x).detach() + (X - x)
    assert float((x_hat - expected).abs().max() / expected.abs().max()) < RTOL


def test_sparsify_encodes_by_its_definition(online: Hub) -> None:
    w = stand_in.weights()
    hidden = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    value, feature = hidden.topk(8, dim=1)
    assert torch.allclose(dense(load(PYTHIA)), torch.zeros_like(hidden).scatter(1, feature, value), atol=1e-5)
