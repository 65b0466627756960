"""Writes hooks.npz: what TransformerLens gives at every name of the hook map, for the small models of tests/families.py.

Needs transformer-lens 3, which autointerp's tests do not: run once, by hand, from the top of the repository.

    python -m tests.golden.make_hooks
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens import loading_from_pretrained as loading
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.pretrained.weight_conversions import convert_gemma_weights, convert_olmo2_weights

from tests import families

POINTS = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z", "mlp.hook_in",
    "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post", "ln1.hook_normalized", "ln2.hook_normalized",
    "ln1_post.hook_normalized", "ln2_post.hook_normalized",
)  # fmt: skip
NAMES = ("hook_embed", *(f"blocks.{families.LAYERS - 1}.{point}" for point in POINTS))  # what went wrong earlier shows here


def hooked(family: str, model: torch.nn.Module) -> HookedTransformer | None:
    """TransformerLens' own implementation, without weight processing; None where it has none for the family."""
    if family in {"gpt_neox_sequential", "olmo3"}:
        return None  # the one is taken for parallel, the other's settings go by name: the bridge has both
    if family in NAMED:
        cfg = settings_by_hand(family, model.config)
        weights = NAMED[family](model, cfg)
    else:
        with tempfile.TemporaryDirectory(prefix="small-") as folder:
            model.save_pretrained(folder)
            cfg = loading.get_pretrained_model_config(folder, device="cpu", dtype=torch.float32)
            weights = loading.get_pretrained_state_dict(folder, cfg, hf_model=model)
    cfg.tokenizer_name = None
    lens = HookedTransformer(cfg)
    lens.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )  # fmt: skip
    return lens.eval()


# Families whose settings TransformerLens chooses by the names of the published models; for a small one they are
# written out here, as it has them.
NAMED = {
    "gemma": convert_gemma_weights, "gemma2": convert_gemma_weights, "gemma3_text": convert_gemma_weights,
    "olmo2": convert_olmo2_weights,
}  # fmt: skip


def settings_by_hand(family: str, config: Any) -> HookedTransformerConfig:
    """What TransformerLens' loading_from_pretrained.py writes for the family, at this size."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    special = {
        "gemma": {"original_architecture": "GemmaForCausalLM"},
        "gemma2": {
            "original_architecture": "Gemma2ForCausalLM", "attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0,
            "use_normalization_before_and_after": True, "use_attn_scale": True, "attn_scale": config.__dict__.get("query_pre_attn_scalar", 0) ** 0.5,
        },
        "gemma3_text": {
            "original_architecture": "Gemma3ForCausalLM", "use_normalization_before_and_after": True, "use_qk_norm": True,
            "rotary_base_local": 10000, "use_attn_scale": True, "attn_scale": config.__dict__.get("query_pre_attn_scalar", 0) ** 0.5,
            "window_size": 32, "use_local_attn": True, "attn_types": ["local"] * families.LAYERS,
        },
        "olmo2": {"original_architecture": "Olmo2ForCausalLM"},
    }[family]  # fmt: skip
    return HookedTransformerConfig(
        d_model=config.hidden_size, d_head=head, n_heads=config.num_attention_heads, n_layers=config.num_hidden_layers,
        d_mlp=config.intermediate_size, n_ctx=64, eps=config.rms_norm_eps, d_vocab=config.vocab_size,
        act_fn="silu" if family == "olmo2" else "gelu_pytorch_tanh", initializer_range=0.02, normalization_type="RMS",
        rotary_base=10000, rotary_dim=head, positional_embedding_type="rotary", n_key_value_heads=None if family == "olmo2" else config.num_key_value_heads,
        gated_mlp=True, final_rms=True, device="cpu", init_weights=False, **special,
    )  # fmt: skip


def read(tool: Any, plain: torch.Tensor) -> dict[str, np.ndarray]:
    """Every name that this tool gives, [context, token, d], once its logits are those of the model."""
    with torch.inference_mode():
        logits, cache = tool.run_with_cache(families.TOKENS)
    assert torch.allclose(getattr(logits, "logits", logits), plain, rtol=1e-4, atol=1e-4)
    return {name: cache[name].flatten(2).numpy().astype(np.float32) for name in NAMES if name in cache}


def main() -> None:
    """Every family, every name: HookedTransformer's tensor where it has it, else the bridge's; where both, they agree."""
    logging.disable(logging.WARNING)
    found: dict[str, np.ndarray] = {}
    for family in families.FAMILIES:
        model = families.build(family)
        with torch.inference_mode():
            plain = model(families.TOKENS).logits
        lens = hooked(family, model)
        bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)  # changes the model
        by_lens, by_bridge = {} if lens is None else read(lens, plain), read(bridge, plain)
        for name in by_lens.keys() & by_bridge.keys():
            np.testing.assert_allclose(by_lens[name], by_bridge[name], rtol=1e-4, atol=1e-5, err_msg=f"{family} {name}")
        found |= {f"{family}/{name}": value for name, value in sorted((by_bridge | by_lens).items())}
        only = sorted(by_bridge.keys() - by_lens.keys())
        print(f"{family}: {len(by_lens)} from HookedTransformer; from the bridge alone: {', '.join(only) or 'none'}")
    target = Path(__file__).with_name("hooks.npz")
    np.savez_compressed(target, **found)
    print(f"{len(found)} tensors, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
