"""dictionary_learning folders (saprmarks): ae.pt, a state dict, + config.json of the trainer.

Follows dictionary_learning/dictionary.py and trainers/*.py. Gated, jumprelu and plain autoencoders multiply activations
by the norm of the decoder row, so those norms are folded here. BatchTopK and Matryoshka compare with a threshold once
they are trained; a loader that drops it gets features far too dense. Biases were saved for raw activations.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.dictionary.encode import Dictionary
from autointerp.dictionary.formats.files import (
    checked,
    checked_k,
    flag,
    identity_of,
    matrix,
    read_config,
    read_pickle,
    refuse_unknown_architecture,
    table,
    text,
)
from autointerp.errors import DictionaryError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "ae.pt"
MARKER = WEIGHTS_FILE

# dict_class -> how it fires once trained, its names of b_dec and of the encoder's bias, whether b_dec comes off the
# input, and whether activations are multiplied by decoder norms.
KINDS = {
    "AutoEncoder": ("standard", "bias", "encoder.bias", True, True),
    "AutoEncoderNew": ("standard", "decoder.bias", "encoder.bias", False, False),
    "GatedAutoEncoder": ("gated", "decoder_bias", "gate_bias", True, True),
    "JumpReluAutoEncoder": ("jumprelu", "b_dec", "b_enc", False, True),
    "AutoEncoderTopK": ("topk", "b_dec", "encoder.bias", True, False),
    "BatchTopKSAE": ("jumprelu", "b_dec", "encoder.bias", True, False),
    "MatryoshkaBatchTopKSAE": ("jumprelu", "b_dec", "b_enc", True, False),
}
SUBMODULE = re.compile(r"(resid_post|attention_out|attn_out|mlp_out)_layer_(\d+)$")
SITES = {"resid_post": "resid_post", "attention_out": "attn_out", "attn_out": "attn_out", "mlp_out": "mlp_out"}
BACKUP_KEYS = {"ae", "optimizer"}


def matches(folder: Path) -> bool:
    """True for a folder with dictionary_learning's weights."""
    return (folder / WEIGHTS_FILE).is_file()


def read(folder: Path, name: str | None) -> Dictionary:
    """Read a dictionary_learning folder. Raises DictionaryError for files that are missing, broken or contradictory."""
    config_path, path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    config = read_config(config_path, "dictionary_learning")
    trainer = table(config, "trainer", config_path, required=True)
    buffer = table(config, "buffer", config_path)
    kind = str(trainer.get("dict_class"))
    if kind not in KINDS:
        refuse_unknown_architecture(config_path, kind, tuple(KINDS))
    architecture, _, _, subtract, by_norm = KINDS[kind]
    state = read_pickle(path)
    if state.keys() & BACKUP_KEYS:
        raise DictionaryError(
            f"{path} is a backup from the middle of training (keys {', '.join(sorted(map(str, state)))}), whose scale "
            "is not that of raw activations: take the ae.pt that is written at the end"
        )
    tensors = _tensors(path, state, trainer, kind)
    width = tensors["W_enc"].shape[1]
    k: Any = _k(state, trainer)
    if architecture == "topk":
        k = checked_k(folder, k, width, architecture)
    found = Dictionary(
        name=name or folder.resolve().name,
        architecture=architecture,
        **tensors,  # type: ignore[arg-type]
        k=k if architecture == "topk" else None,
        apply_b_dec_to_input=subtract,
        trained_as=kind,
        hookpoint=_hookpoint(trainer, buffer),
        model=text(trainer.get("lm_name")),
        prepend_bos=flag(buffer.get("add_special_tokens")),
        context_size=buffer.get("ctx_len") if isinstance(buffer.get("ctx_len"), int) else None,
        declared_l0=float(k) if isinstance(k, int) else None,
        identity=identity_of(path, architecture, {"format": "dictionary_learning", "class": kind, "k": k}, {}),
    )
    return found.fold_decoder_norm() if by_norm else found


def _tensors(path: Path, state: dict[str, Any], trainer: dict[str, Any], kind: str) -> dict[str, Tensor]:
    architecture, b_dec, b_enc, _, _ = KINDS[kind]
    if "W_enc" in state or kind in {"JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"}:
        d_in, width = matrix(path, state, "W_enc", "[d, dictionary]")
        encoder, decoder, turned = "W_enc", "W_dec", False
    else:
        width, d_in = matrix(path, state, "encoder.weight", "[dictionary, d]")
        encoder, decoder, turned = "encoder.weight", "decoder.weight", True
    if architecture == "jumprelu":
        state = state | {"threshold": _threshold(path, state, width)}
    d_in, width = trainer.get("activation_dim") or d_in, trainer.get("dict_size") or width
    read, write = (d_in, width), (width, d_in)
    expected: dict[str, tuple[int, ...]] = {
        encoder: read[::-1] if turned else read, decoder: write[::-1] if turned else write,
        b_enc: (width,), b_dec: (d_in,),
    }  # fmt: skip
    if architecture == "gated":
        expected |= {"r_mag": (width,), "mag_bias": (width,)}
    if architecture == "jumprelu":
        expected |= {"threshold": (width,)}
    found = checked(path, state, expected)
    tensors = {
        "W_enc": found[encoder].T.contiguous() if turned else found[encoder],
        "W_dec": found[decoder].T.contiguous() if turned else found[decoder],
        "b_enc": found[b_enc], "b_dec": found[b_dec],
    }  # fmt: skip
    if architecture == "gated":
        tensors |= {"r_mag": found["r_mag"], "b_mag": found["mag_bias"]}
    if architecture == "jumprelu":
        tensors["threshold"] = found["threshold"]
    return tensors


def _threshold(path: Path, state: dict[str, Any], width: int) -> Tensor | None:
    """The threshold per feature, from a number or a vector. It is -1 until training has fitted it."""
    threshold = state.get("threshold")
    if not isinstance(threshold, Tensor):
        return None
    if threshold.numel() != 1:
        return threshold
    if float(threshold) < 0:
        raise DictionaryError(
            f"{path}: threshold = {float(threshold):g} was never fitted, so every positive feature would fire; train "
            "past threshold_start_step"
        )
    return threshold.reshape(()).expand(width).clone()


def _k(state: dict[str, Any], trainer: dict[str, Any]) -> object:
    k = state.get("k", trainer.get("k"))
    if isinstance(k, Tensor):
        return int(k) if k.numel() == 1 and not torch.is_floating_point(k) else k.tolist()
    return k


def _hookpoint(trainer: dict[str, Any], buffer: dict[str, Any]) -> str | None:
    """TransformerLens' name for the sites that its examples use, else the submodule as it is named."""
    submodule, layer = text(trainer.get("submodule_name")), trainer.get("layer")
    side = ".input" if buffer.get("io") == "in" else ""
    known = SUBMODULE.match(submodule or "")
    if known:
        return f"blocks.{known[2]}.hook_{SITES[known[1]]}"
    if submodule is None and isinstance(layer, int):
        return f"blocks.{layer}.hook_resid_post"
    return None if submodule is None else submodule + side
