"""Which sentence encoders `simulator.encoder` takes: any folder that sentence-transformers writes, whatever its width."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel, T5Config, T5Model

from autointerp import config
from autointerp.errors import ConfigError
from autointerp.simulators.embedding import LAYERS, EmbeddingSimulator
from autointerp.simulators.encoder import PACKAGED_ENCODER, load_encoder, resolve_encoder
from autointerp.simulators.sentences import sentence_vectors
from autointerp.tally import Bar

SILENT = Bar(enabled=False)
TEXTS = {
    1: ["She", " bought", " a", " small", " dog", " at", " the", " market", "."],
    2: ["The", " treaty", " was", " signed", " by", " both", " governments", "."],
    3: ["On", " day", " three", " the", " committee", " met", " again", "."],
}


def _folder(path: Path, model: torch.nn.Module, width: int) -> Path:
    """A folder as sentence-transformers lays it out: the transformer at its root, pooling beside it."""
    model.save_pretrained(path)  # type: ignore[operator]
    AutoTokenizer.from_pretrained(resolve_encoder(PACKAGED_ENCODER)).save_pretrained(path)
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    (path / "modules.json").write_text(json.dumps([
        {"idx": int(i), "name": i, "path": where, "type": f"sentence_transformers.models.{kind}"}
        for i, where, kind in kinds
    ]))  # fmt: skip
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})
    )
    return path


SHAPE = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(params=["bert", "roberta"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny random encoder that is 40 wide, not 384."""
    torch.manual_seed(0)
    if request.param == "bert":
        return _folder(tmp_path / "tiny", BertModel(BertConfig(vocab_size=30522, **SHAPE)), 40)
    roberta = RobertaConfig(vocab_size=30522, max_position_embeddings=514, pad_token_id=0, **SHAPE)
    return _folder(tmp_path / "tiny", RobertaModel(roberta), 40)


def test_an_encoder_of_another_width_and_kind_simulates(encoder: Path) -> None:
    cfg = config.load(None, [f"simulator.encoder='{encoder}'"]).simulator
    simulator = EmbeddingSimulator.load(cfg, "cpu", 16)
    simulator.read(TEXTS, SILENT)
    simulator.calibrate(np.array([1, 2, 3]))
    predicted = simulator.predict(["treaty", "market"], np.array([1, 2]))
    assert predicted.shape == (2, 2, 16)
    assert np.isfinite(predicted).all() and (predicted >= 0).all()
    assert TEXTS[2][int(predicted[0, 1].argmax())] == " treaty"
    assert TEXTS[1][int(predicted[1, 0].argmax())] == " market"
    assert (predicted[:, 1, len(TEXTS[2]) :] == 0).all()


def test_an_encoder_of_another_width_makes_sentence_vectors(encoder: Path) -> None:
    found = sentence_vectors(["a treaty", "dogs", "a treaty"], SILENT, str(encoder))
    assert found.shape == (3, 40)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])


def test_a_model_of_two_towers_is_refused(tmp_path: Path) -> None:
    model = T5Model(T5Config(vocab_size=100, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ConfigError, match=r"does not fit: expected one tower .* got t5 and .*; choose another"):
        load_encoder(str(_folder(tmp_path / "t5", model, 16)))


def test_a_clause_is_read_by_its_own_wordpieces_alone() -> None:
    """The mean of their hidden states, where they look at one another and at no [CLS], [SEP] or padding."""
    simulator = EmbeddingSimulator.load(config.load(None, []).simulator, "cpu", 16)
    (label,) = simulator._read_labels(["peace treaties"])
    encoded = simulator.tokenizer("peace treaties", return_tensors="pt")
    own = torch.zeros_like(encoded["input_ids"])
    own[0, 1:-1] = 1
    with torch.inference_mode():
        states = simulator.model(
            input_ids=encoded["input_ids"], attention_mask=own, output_hidden_states=True
        ).hidden_states
    parts = [torch.nn.functional.normalize(states[n][0, 1:-1].mean(dim=0), dim=0) for n in LAYERS]
    np.testing.assert_allclose(label.vectors[0], torch.cat(parts) / 2**0.5, atol=1e-5)
