"""One small model of every family of the hook map, with all parameters random (also gains and biases, which an
initialisation leaves at 1 and 0, where a mistake would not show). Weights follow from names and a fixed seed."""

import zlib
from pathlib import Path

import torch
from torch import nn

D, LAYERS, VOCABULARY = 16, 2, 60
TOKENS = torch.tensor([[3, 14, 15, 9, 26]])

_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": D, "intermediate_size": 24, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
_GQA = _COMMON | {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}
# Width of attention's heads together is not d, so a mistaken place shows in the shape.
_WIDE = _GQA | {"head_dim": 8, "rms_norm_eps": 1e-6}
_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": D, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "n_ctx": 64, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
_GEMMA = _WIDE | {"query_pre_attn_scalar": 8, "tie_word_embeddings": True}

# name -> (model_type, configuration)
FAMILIES: dict[str, tuple[str, dict]] = {
    "gpt2": ("gpt2", _GPT2),
    "llama": ("llama", _GQA),
    "mistral": ("mistral", _GQA),
    "qwen2": ("qwen2", _GQA),
    "qwen3": ("qwen3", _WIDE),
    "gemma": ("gemma", _WIDE),
    "gemma2": ("gemma2", _GEMMA | {"sliding_window": 32}),
    "gemma3_text": ("gemma3_text", _GEMMA | {"sliding_window": 32}),
    "gpt_neox": ("gpt_neox", _COMMON | {"rotary_pct": 0.5}),
    "gpt_neox_sequential": ("gpt_neox", _COMMON | {"rotary_pct": 0.5, "use_parallel_residual": False}),
    "olmo2": ("olmo2", _GQA | {"num_key_value_heads": 4}),  # TransformerLens reads no other OLMo-2
    "olmo3": ("olmo3", _GQA | {"sliding_window": 32}),
}


def build(family: str, attention: str = "eager", **keys: object) -> nn.Module:
    """The model of a family, float32, in eval mode; `keys` replace those of its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, usual = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **(usual | keys))
    return randomise(AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention))


def build_multimodal() -> nn.Module:
    """A Gemma-3 whose text tower is nested beside a vision tower."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = FAMILIES["gemma3_text"][1]
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return randomise(Gemma3ForConditionalGeneration(config))


def randomise(model: nn.Module) -> nn.Module:
    """Every parameter drawn from a generator made of its name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            gain = name.endswith("weight") and ("norm" in name or ".ln_" in name)
            parameter.copy_(torch.randn(parameter.shape, generator=random) * (0.2 if gain else 0.3) + float(gain))
    return model.eval()


def save(family: str, folder: Path, vocabulary: int, d: int, positions: int, **keys: object) -> Path:
    """The model of a family as a transformers folder, without a tokenizer."""
    names = ("n_embd", "n_positions") if family == "gpt2" else ("hidden_size", "max_position_embeddings")
    model = build(family, vocab_size=vocabulary, **(dict(zip(names, (d, positions))) | keys))
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder
