"""Gemma Scope 2: config.json + params.safetensors, jumprelu, in folders as resid_post/layer_12_width_16k_l0_medium.

Where a folder of the release has no config.json, its place says the same. Follows sae_lens' gemma_3 loader. Cross-layer
transcoders and crosscoders, whose weights have three dimensions, are refused.
"""

import re
from pathlib import Path
from typing import Any

from autointerp.dictionary.encode import Dictionary
from autointerp.dictionary.formats.files import (
    checked,
    identity_of,
    matrix,
    number,
    read_config,
    read_safetensors,
    refuse_unknown_architecture,
    switch,
    text,
)

CONFIG_FILE, WEIGHTS_FILE = "config.json", "params.safetensors"
MARKER = WEIGHTS_FILE
LAYER, RELEASE = re.compile(r"layer_(\d+)"), re.compile(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)")
CONTEXT_SIZE = 1024
# The first word of the folder above -> what it reads and what it predicts, within the layer.
SITES = {
    "resid_post": (".output", None),
    "attn_out": (".self_attn.o_proj.input", None),
    "mlp_out": (".post_feedforward_layernorm.output", None),
    "transcoder": (".pre_feedforward_layernorm.output", ".post_feedforward_layernorm.output"),
}


def matches(folder: Path) -> bool:
    """True for a folder with Gemma Scope 2's weights."""
    return (folder / WEIGHTS_FILE).is_file()


def read(folder: Path, name: str | None) -> Dictionary:
    """Read a Gemma Scope 2 folder. Raises DictionaryError for files that are missing, broken or contradictory."""
    config = _by_its_place(folder) or read_config(folder / CONFIG_FILE, "Gemma Scope 2")
    path = folder / WEIGHTS_FILE
    if config.get("architecture") != "jump_relu":
        refuse_unknown_architecture(folder, config.get("architecture"), ("jump_relu",))
    found = read_safetensors(path)
    d_in, width = matrix(path, found, "w_enc", "[d_in, d_sae]")
    d_out = matrix(path, found, "w_dec", "[d_sae, d_out] (cross-layer ones are not supported)")[1]
    reads, predicts = _hookpoint(config, "in"), _hookpoint(config, "out")
    affine = "affine_skip_connection" in found
    transcoder = affine or d_out != d_in or (predicts is not None and predicts != reads)
    expected: dict[str, tuple[int, ...]] = {
        "w_enc": (d_in, width), "b_enc": (width,), "w_dec": (width, d_out), "b_dec": (d_out,), "threshold": (width,),
    }  # fmt: skip
    if switch(config, "affine_connection", folder / CONFIG_FILE) or affine:
        expected["affine_skip_connection"] = (d_in, d_out)
    tensors = checked(path, found, expected)
    skip = tensors.get("affine_skip_connection")
    release = next((m for part in reversed(folder.resolve().parts) if (m := RELEASE.search(part))), None)
    parts = folder.resolve().parts
    return Dictionary(
        name=name or "-".join(parts[-2:] if LAYER.match(parts[-1]) else parts[-1:]),
        architecture="jumprelu",
        W_enc=tensors["w_enc"],
        b_enc=tensors["b_enc"],
        W_dec=tensors["w_dec"],
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"],
        W_skip=None if skip is None else skip.T.contiguous(),
        apply_b_dec_to_input=False,
        transcoder=transcoder,
        hookpoint=reads,
        hookpoint_out=predicts if transcoder else None,
        model=_model(config, release),
        prepend_bos=True,
        context_size=CONTEXT_SIZE,
        declared_l0=number(config.get("l0")),
        identity=identity_of(path, "jumprelu", {"format": "Gemma Scope 2"}, {"transcoder": transcoder}),
    )


def _by_its_place(folder: Path) -> dict[str, Any] | None:
    """What config.json would say of a folder of the release that has none: None where it has one, or lies elsewhere."""
    parts = folder.resolve().parts
    layer = LAYER.match(parts[-1])
    site = next((site for name, site in SITES.items() if len(parts) > 1 and parts[-2].startswith(name)), None)
    if (folder / CONFIG_FILE).is_file() or layer is None or site is None or not any(map(RELEASE.search, parts)):
        return None
    reads, predicts = (place and f"model.layers.{layer[1]}{place}" for place in site)
    config = {"architecture": "jump_relu", "hf_hook_point_in": reads, "hf_hook_point_out": predicts}
    return config | {"affine_connection": parts[-1].endswith("_affine")}


def _hookpoint(config: dict[str, Any], side: str) -> str | None:
    """Its module path; '.output' is what a path alone means, '.input' stays."""
    found = text(config.get(f"hf_hook_point_{side}"))
    return None if found is None else found.removesuffix(".output")


def _model(config: dict[str, Any], release: re.Match[str] | None) -> str | None:
    """The subject by its name on the hub: files write gemma-v3-1b-pt for google/gemma-3-1b-pt."""
    named = text(config.get("model_name"))
    if named is None and release is not None:
        named = f"gemma-3-{release[1]}-{release[2]}"
    if named is None:
        return None
    named = ("" if "google" in named else "google/") + named.replace("-v3", "-3")
    return named.replace("-pt", "") if "270m" in named else named  # the smallest has no suffix
