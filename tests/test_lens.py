"""The logit lens: against the subject itself, for every kind of final norm, and from two weights alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autointerp import config, lens
from autointerp import dictionary as dictionaries
from autointerp.config import Settings, SubjectSection
from autointerp.dictionary import Dictionary
from autointerp.errors import DictionaryError
from autointerp.lens import Lens, final_norm, gain_of
from autointerp.subject import Subject

from .conftest import tiny_overrides, write_dictionary
from .families import FAMILIES, family


def test_the_gain_of_a_norm_is_found_by_trying_it() -> None:
    gain = torch.randn(8)
    rms, layer = nn.RMSNorm(8), nn.LayerNorm(8)
    with torch.no_grad():
        rms.weight.copy_(gain)
        layer.weight.copy_(gain)
        layer.bias.copy_(torch.randn(8))
    for norm, centres in ((rms, False), (layer, True)):
        found, centred = gain_of(norm, 8)
        assert torch.allclose(found, gain, atol=1e-4)
        assert centred is centres


def test_gemmas_gain_is_one_more_than_its_weight() -> None:
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

    norm = Gemma2RMSNorm(8)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-0.5, 0.5, 8))
    found, centred = gain_of(norm, 8)
    assert torch.allclose(found, 1 + norm.weight, atol=1e-4)
    assert not centred
