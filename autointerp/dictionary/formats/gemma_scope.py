"""Gemma Scope: params.npz, jumprelu with a threshold per feature, b_dec not taken off the input.

The files say nothing about themselves; the release's layout does: gemma-scope-2b-pt-res/layer_20/width_16k/
average_l0_71. Where a folder lies in it, model, hookpoint and L0 are read from the path (as sae_lens' gemma_2 loaders).
"""

import re
from pathlib import Path

from torch import Tensor

from autointerp.dictionary.encode import Dictionary
from autointerp.dictionary.formats.files import checked, identity_of, matrix, read_npz
from autointerp.errors import DictionaryError

WEIGHTS_FILE = "params.npz"
MARKER = WEIGHTS_FILE

RELEASE = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)")
LAYER, L0 = re.compile(r"layer_(\d+)"), re.compile(r"average_l0_(\d+)")
CONTEXT_SIZE = 1024
SITES = {
    "res": ("blocks.{}.hook_resid_post", None),
    "mlp": ("blocks.{}.hook_mlp_out", None),
    "att": ("blocks.{}.attn.hook_z", None),
    "transcoders": ("blocks.{}.ln2.hook_normalized", "blocks.{}.hook_mlp_out"),
}


def matches(folder: Path) -> bool:
    """True for a folder with Gemma Scope's weights."""
    return (folder / WEIGHTS_FILE).is_file()


def read(folder: Path, name: str | None) -> Dictionary:
    """Read a Gemma Scope folder. Raises DictionaryError for weights that are missing, broken or contradictory."""
    path = folder / WEIGHTS_FILE
    # W_enc in the release, w_enc in some copies of it
    found = {key[0].upper() + key[1:] if key.startswith("w_") else key: array for key, array in read_npz(path).items()}
    d_in, width = matrix(path, found, "W_enc", "[d_in, d_sae]")
    release, model, site, parts = _place(folder)
    transcoder = site == "transcoders"
    d_out = matrix(path, found, "W_dec", "[d_sae, d_out]")[1] if transcoder else d_in
    tensors = checked(
        path,
        found,
        {"W_enc": (d_in, width), "b_enc": (width,), "W_dec": (width, d_out), "b_dec": (d_out,), "threshold": (width,)},
    )
    if "scaling_factor" in found and not bool((found["scaling_factor"] == 1).all()):
        raise DictionaryError(f"{path}: scaling_factor (a fine-tuned scale per feature) is not supported")
    embedding = "embedding" in parts
    if embedding:
        # Trained on raw embeddings, and the hookpoint gives sqrt(d_model) times those.
        tensors = _for_scaled_embeddings(tensors, d_in)
    layer, l0 = (next((m for part in parts if (m := pattern.fullmatch(part))), None) for pattern in (LAYER, L0))
    reads, predicts = ("hook_embed", None) if embedding else SITES.get(site, (None, None))
    if layer is None and not embedding:
        reads = predicts = None
    number = layer[1] if layer else ""
    return Dictionary(
        name=name or "-".join(parts[-3:] if release else parts[-1:]),
        architecture="jumprelu",
        **tensors,  # type: ignore[arg-type]
        apply_b_dec_to_input=False,
        transcoder=transcoder,
        hookpoint=reads.format(number) if reads else None,
        hookpoint_out=predicts.format(number) if predicts else None,
        model=model,
        prepend_bos=True if release else None,
        context_size=CONTEXT_SIZE if release else None,
        declared_l0=float(l0[1]) if l0 else None,
        identity=identity_of(
            path, "jumprelu", {"format": "Gemma Scope"}, {"embedding": embedding, "transcoder": transcoder}
        ),
    )


def _place(folder: Path) -> tuple[str | None, str | None, str, tuple[str, ...]]:
    """Release, model, site and the parts of the path that say the rest; of an unknown place only its last part."""
    parts = folder.resolve().parts
    for i, part in enumerate(parts):
        release = RELEASE.search(part)
        if release:
            tuning = "-it" if release[2] == "it" else ""
            return release[0], f"google/gemma-2-{release[1]}{tuning}", release[3], parts[i + 1 :] or (release[0],)
    return None, None, "", tuple(p for p in parts[-3:] if LAYER.fullmatch(p) or L0.fullmatch(p)) or parts[-1:]


def _for_scaled_embeddings(tensors: dict[str, Tensor], d_in: int) -> dict[str, Tensor]:
    return tensors | {"W_enc": tensors["W_enc"] / d_in**0.5, "W_dec": tensors["W_dec"] * d_in**0.5}
