"""Llama Scope (OpenMOSS): hyperparams.json + checkpoints/final.safetensors, TopK turned into jumprelu.

Trained on activations scaled to a mean norm of sqrt(d), which is folded into the weights here. The threshold is
multiplied by the same factor, as the authors did in sae_lens (PR 483), whose loader this follows. Transcoders have a
mean norm of their own at the output, which sae_lens does not use.
"""

from pathlib import Path
from typing import Any

import torch

from autointerp.dictionary.encode import Dictionary
from autointerp.dictionary.formats.files import (
    checked,
    identity_of,
    matrix,
    number,
    read_config,
    read_safetensors,
    refuse_unknown_architecture,
    table,
    text,
)
from autointerp.errors import DictionaryError

CONFIG_FILE, WEIGHTS_FILE = "hyperparams.json", "checkpoints/final.safetensors"
MARKER = CONFIG_FILE
MODEL, CONTEXT_SIZE = "meta-llama/Llama-3.1-8B", 1024
HARMLESS = {"use_glu_encoder": (None, False), "apply_decoder_bias_to_pre_encoder": (None, False)}


def matches(folder: Path) -> bool:
    """True for a folder with Llama Scope's configuration or weights."""
    return (folder / CONFIG_FILE).is_file() or (folder / WEIGHTS_FILE).is_file()


def read(folder: Path, name: str | None) -> Dictionary:
    """Read a Llama Scope folder. Raises DictionaryError for files that are missing, broken or contradictory."""
    config_path, path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    config = read_config(config_path, "Llama Scope")
    if config.get("act_fn", "jumprelu") != "jumprelu":
        refuse_unknown_architecture(folder, config["act_fn"], ("jumprelu",))
    for key, harmless in HARMLESS.items():
        if config.get(key) not in harmless:
            raise DictionaryError(f"{config_path}: {key} = {config[key]!r} is not supported")
    found = read_safetensors(path)
    width, d_in = matrix(path, found, "encoder.weight", "[d_sae, d_model]")
    d_in, width = config.get("d_model") or d_in, config.get("d_sae") or width
    reads, predicts = text(config.get("hook_point_in")), text(config.get("hook_point_out"))
    transcoder = predicts is not None and predicts != reads
    d_out = matrix(path, found, "decoder.weight", "[d_model, d_sae]")[0] if transcoder else d_in
    tensors = checked(
        path,
        found,
        {
            "encoder.weight": (width, d_in), "encoder.bias": (width,), "decoder.weight": (d_out, width),
            "decoder.bias": (d_out,),
        },
    )  # fmt: skip
    scale = _scale(config, config_path, "in", d_in)
    out = _scale(config, config_path, "out", d_out) if transcoder else scale
    threshold = number(config.get("jump_relu_threshold"))
    if threshold is None:
        raise DictionaryError(
            f"{config_path}: jump_relu_threshold = {config.get('jump_relu_threshold')!r}: expected a number"
        )
    return Dictionary(
        name=name or folder.resolve().name,
        architecture="jumprelu",
        W_enc=tensors["encoder.weight"].T.contiguous(),
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["decoder.weight"].T.contiguous(),
        b_dec=tensors["decoder.bias"],
        threshold=torch.full((width,), threshold * scale),
        apply_b_dec_to_input=False,
        transcoder=transcoder,
        trained_as="topk",
        hookpoint=reads,
        hookpoint_out=predicts if transcoder else None,
        model=MODEL,
        prepend_bos=True,
        context_size=CONTEXT_SIZE,
        declared_l0=number(config.get("top_k")),
        identity=identity_of(
            path,
            "jumprelu",
            {"format": "Llama Scope", "threshold": threshold, "scale": scale},
            {"out": out if transcoder else None},
        ),
    ).fold_input_scale(scale, out)


def _scale(config: dict[str, Any], path: Path, side: str, d: int) -> float:
    """sqrt(d) over the mean norm of the activations it was trained on."""
    norm = number(table(config, "dataset_average_activation_norm", path, required=True).get(side))
    if norm is None or norm <= 0:
        raise DictionaryError(f"{path}: dataset_average_activation_norm.{side} must be a number above 0")
    return float(d**0.5 / norm)
