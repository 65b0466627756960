"""SAELens folders: cfg.json + sae_weights.safetensors, of version 6 and of the flat configurations before it.

Inference folders and training checkpoints alike. Follows sae_lens/saes/*.py and loading/pretrained_sae_loaders.py of
sae-lens 6.54, against which `tests/test_formats.py` compares.
"""

import re
from collections.abc import Mapping
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
    number,
    read_config,
    read_safetensors,
    refuse_unknown_architecture,
    switch,
    table,
    text,
)
from autointerp.errors import DictionaryError

CONFIG_FILE, WEIGHTS_FILE, SCALER_FILE = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
MARKER = WEIGHTS_FILE

# SAELens' name -> how it fires once trained, and whether it is a transcoder.
KINDS = {
    "standard": ("standard", False),
    "topk": ("topk", False),
    "batchtopk": ("jumprelu", False),
    "matryoshka_batchtopk": ("jumprelu", False),
    "jumprelu": ("jumprelu", False),
    "gated": ("gated", False),
    "transcoder": ("standard", True),
    "skip_transcoder": ("standard", True),
    "jumprelu_transcoder": ("jumprelu", True),
    "jumprelu_skip_transcoder": ("jumprelu", True),
}
CENTRED = re.compile(r"hook_(embed|pos_embed|resid_pre|resid_mid|resid_post|attn_out|mlp_out)$")


def matches(folder: Path) -> bool:
    """True for a folder that holds either of SAELens' files."""
    return (folder / CONFIG_FILE).is_file() or (folder / WEIGHTS_FILE).is_file()


def read(
    folder: Path, name: str | None, overrides: Mapping[str, Any] | None = None, scale: float | None = None
) -> Dictionary:
    """Read a SAELens folder. Raises DictionaryError for files that are missing, broken or contradict one another.

    overrides, scale  what SAELens' registry says beyond the files: keys of cfg.json, and the factor of the activations
                      where they were scaled in training
    """
    path = folder / CONFIG_FILE
    said = overrides or {}
    config = read_config(path, "SAELens") | dict(said)
    metadata = {key: value for key, value in table(config, "metadata", path).items() if key not in said}
    named = _architecture(config)
    if named not in KINDS:
        refuse_unknown_architecture(folder, named, tuple(KINDS))
    architecture, transcoder = KINDS[named]
    normalise = _normalisation(folder, config)
    subtract = switch(config, "apply_b_dec_to_input", path, default=not transcoder)
    if transcoder and subtract:
        raise DictionaryError(f"{path}: apply_b_dec_to_input = true, but b_dec of a {named} is in its output's space")
    tensors, from_training = _tensors(folder, config, named)
    width = tensors["W_enc"].shape[1]
    k = config.get("k", table(config, "activation_fn_kwargs", path).get("k"))
    if architecture == "topk":
        k = checked_k(folder, k, width, architecture)
    hookpoint = _says(config, metadata, "hook_name", "hook_point")
    trained_as, l0 = _training(config, metadata, named, k)
    scale = (scale or _scale(folder)) if normalise == "expected_average_only_in" else None
    centre = _is_centred(config, metadata, path, hookpoint)
    found = Dictionary(
        name=name or folder.resolve().name,
        architecture=architecture,
        **tensors,  # type: ignore[arg-type]
        k=k if architecture == "topk" else None,
        apply_b_dec_to_input=subtract,
        rescale_by_decoder_norm=switch(config, "rescale_acts_by_decoder_norm", path),
        normalise="none" if scale else normalise,
        centre=centre,
        transcoder=transcoder,
        frozen_decoder=metadata.get("frozen_decoder") is True,
        subject_seed=_seed(metadata.get("subject_seed")),
        trained_as=trained_as,
        hookpoint=hookpoint,
        hookpoint_out=_says(config, metadata, "hook_name_out"),
        model=_says(config, metadata, "model_name"),
        prepend_bos=flag(metadata.get("prepend_bos", config.get("prepend_bos"))),
        context_size=_whole(metadata.get("context_size", config.get("context_size"))),
        declared_l0=l0,
        identity=identity_of(
            folder / WEIGHTS_FILE,
            architecture,
            {key: config.get(key) for key in ("architecture", "k", "apply_b_dec_to_input")}
            | {"rescale_acts_by_decoder_norm": config.get("rescale_acts_by_decoder_norm")},
            {"normalise": normalise, "scale": scale, "centre": centre, "k": None if "k" in config else k},
        ),
    )
    if scale:
        found = found.fold_input_scale(scale)
    if from_training and found.rescale_by_decoder_norm:  # what SAELens does when it saves one for inference
        identity = found.identity
        found = found.fold_decoder_norm()
        found.decoder_norm_folded, found.identity = False, identity
    return found


def _architecture(config: dict[str, Any]) -> str:
    """The architecture that cfg.json names; before SAELens 6 a standard one could hide another activation."""
    named = str(config.get("architecture") or "standard")
    activation = str(config.get("activation_fn_str") or config.get("activation_fn") or "relu")
    return activation if named == "standard" and activation != "relu" else named


def _normalisation(folder: Path, config: dict[str, Any]) -> str:
    reshape = config.get("reshape_activations")
    if reshape not in ("none", None, "hook_z"):  # hook_z: the heads are flat in transformers, as it wants them
        raise DictionaryError(f"{folder}: reshape_activations = {reshape!r} is not supported; known: none, hook_z")
    how = config.get("normalize_activations")
    if isinstance(how, bool):  # before SAELens 6
        how = "expected_average_only_in" if how else "none"
    how = how or "none"
    known = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")
    if how not in known:
        hint = "; save the trained SAE, which has it folded in" if how == "covariance_whitening" else ""
        raise DictionaryError(
            f"{folder}: normalize_activations = {how!r} is not supported; known: {', '.join(known)}{hint}"
        )
    return str(how)


def _scale(folder: Path) -> float:
    """The factor that activations were multiplied by in training, which SAELens keeps in a file of its own."""
    path = folder / SCALER_FILE
    found = number(read_config(path, "SAELens").get("scaling_factor")) if path.is_file() else None
    if found is None or found <= 0:
        raise DictionaryError(
            f"{folder}: normalize_activations = 'expected_average_only_in' needs a scaling_factor in {SCALER_FILE}; "
            "without it every activation would be of the wrong size"
        )
    return found


def _tensors(folder: Path, config: dict[str, Any], named: str) -> tuple[dict[str, Tensor], bool]:
    """The tensors by our names, and whether a BatchTopK came as it is in training, before its norms were folded."""
    path = folder / WEIGHTS_FILE
    found = read_safetensors(path)
    architecture, transcoder = KINDS[named]
    sizes = (0, 0) if "W_enc" not in found else matrix(path, found, "W_enc", "[d_in, d_sae]")
    d_in = config.get("d_in") or sizes[0]
    width = config.get("d_sae") or sizes[1]
    d_out = d_in
    if transcoder:
        d_out = config.get("d_out") or matrix(path, found, "W_dec", "[d_sae, d_out]")[1]
    if "scaling_factor" in found and not torch.allclose(found["scaling_factor"].float(), torch.ones(())):
        raise DictionaryError(f"{path}: scaling_factor (a fine-tuned scale per feature) is not supported")
    if "threshold" not in found and "log_threshold" in found:  # a jumprelu in training, before sae-lens 6.5x
        found["threshold"] = found["log_threshold"].exp()
    from_training = "topk_threshold" in found and "threshold" not in found
    if from_training:
        limit = found["topk_threshold"].float()
        if limit.numel() != 1:
            raise DictionaryError(f"{path}: topk_threshold has shape {list(limit.shape)}, expected one number")
        found["threshold"] = limit.reshape(()).expand(sizes[1]).clone()
    expected: dict[str, tuple[int, ...]] = {"W_enc": (d_in, width), "W_dec": (width, d_out), "b_dec": (d_out,)}
    if architecture == "gated":
        expected |= {"b_gate": (width,), "r_mag": (width,), "b_mag": (width,)}
    else:
        expected |= {"b_enc": (width,)}
    if architecture == "jumprelu":
        expected |= {"threshold": (width,)}
    if "skip" in named:
        expected |= {"W_skip": (d_out, d_in)}
    tensors = checked(path, found, expected)
    if architecture == "gated":
        tensors["b_enc"] = tensors.pop("b_gate")
    return tensors, from_training


def _training(
    config: dict[str, Any], metadata: dict[str, Any], named: str, k: object
) -> tuple[str | None, float | None]:
    """What it was in training where that is something else, and the L0 that it was trained for where that is said."""
    trained_as = text(metadata.get("training_architecture")) or named
    details = metadata.get("training_architecture_details")
    details = details if isinstance(details, dict) else {}
    l0 = next((n for n in (number(k), number(details.get("k")), number(details.get("target_l0"))) if n), None)
    return (None if trained_as == KINDS[named][0] else trained_as), l0


def _is_centred(config: dict[str, Any], metadata: dict[str, Any], path: Path, hookpoint: str | None) -> bool:
    """True where TransformerLens centred what is written to the residual stream, and this reads it.

    transformers does not, so the mean over d_model has to be taken off (gpt2-small-res-jb; SAELens PR 279).
    """
    source = metadata if "model_from_pretrained_kwargs" in metadata else config
    kwargs = table(source, "model_from_pretrained_kwargs", path)
    return bool(kwargs.get("center_writing_weights")) and bool(CENTRED.search(hookpoint or ""))


def _says(config: dict[str, Any], metadata: dict[str, Any], *keys: str) -> str | None:
    return next((found for key in keys for found in (text(metadata.get(key)), text(config.get(key))) if found), None)


def _seed(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
