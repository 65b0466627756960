"""sparsify folders (EleutherAI): cfg.json + sae.safetensors, in a folder named by the module that they read.

Follows sparsify/sparse_coder.py and fused_encoder.py: x - b_dec unless it is a transcoder, ReLU, then topk or groupmax;
`normalize_decoder` is about training alone.
"""

import json
from pathlib import Path

from autointerp.dictionary.encode import Dictionary
from autointerp.dictionary.formats.files import (
    checked,
    checked_k,
    identity_of,
    matrix,
    read_config,
    read_safetensors,
    refuse_unknown_architecture,
    switch,
    text,
)
from autointerp.errors import DictionaryError

CONFIG_FILE, WEIGHTS_FILE, ROOT_FILE = "cfg.json", "sae.safetensors", "config.json"
MARKER = WEIGHTS_FILE
KINDS = ("topk", "groupmax")
UNSUPPORTED = ("embed_skip", "gram_lookup", "signed")  # each changes what is encoded or predicted


def matches(folder: Path) -> bool:
    """True for a folder with sparsify's weights, or with its configuration and no weights."""
    if (folder / WEIGHTS_FILE).is_file():
        return True
    try:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "expansion_factor" in config and "architecture" not in config


def read(folder: Path, name: str | None) -> Dictionary:
    """Read a sparsify folder. Raises DictionaryError for files that are missing, broken or contradict one another."""
    config = read_config(folder / CONFIG_FILE, "sparsify")
    path = folder / WEIGHTS_FILE
    architecture = str(config.get("activation") or "topk")
    if architecture not in KINDS:
        refuse_unknown_architecture(folder, architecture, KINDS)
    for key in UNSUPPORTED:
        if config.get(key):
            raise DictionaryError(f"{folder / CONFIG_FILE}: {key} = {config[key]!r} is not supported")
    tensors = read_safetensors(path)
    width, d_in = matrix(path, tensors, "encoder.weight", "[latents, d_in]")
    d_in = config.get("d_in") or d_in
    if config.get("num_latents") or config.get("expansion_factor"):
        width = config.get("num_latents") or d_in * config["expansion_factor"]
    transcode, skip = (switch(config, key, folder / CONFIG_FILE) for key in ("transcode", "skip_connection"))
    expected: dict[str, tuple[int, ...]] = {
        "encoder.weight": (width, d_in), "encoder.bias": (width,), "W_dec": (width, d_in), "b_dec": (d_in,),
    }  # fmt: skip
    found = checked(path, tensors, expected | ({"W_skip": (d_in, d_in)} if skip else {}))
    k = checked_k(folder, config.get("k"), width, architecture)
    module = folder.resolve().name
    root = folder.resolve().parent / ROOT_FILE
    training = read_config(root, "sparsify") if root.is_file() else {}
    return Dictionary(
        name=name or module,
        architecture=architecture,
        W_enc=found["encoder.weight"].T.contiguous(),
        b_enc=found["encoder.bias"],
        W_dec=found["W_dec"],
        b_dec=found["b_dec"],
        W_skip=found.get("W_skip"),
        k=k,
        apply_b_dec_to_input=not transcode,
        transcoder=transcode,
        hookpoint=f"{module}.input" if transcode else module,
        hookpoint_out=module if transcode else None,
        model=text(training.get("model")),
        context_size=training.get("ctx_len") if isinstance(training.get("ctx_len"), int) else None,
        declared_l0=float(k),
        identity=identity_of(
            path,
            architecture,
            {"format": "sparsify", "activation": architecture, "k": k},
            {"transcode": transcode, "skip_connection": skip},
        ),
    )
