"""Folders of every kind encode as what wrote them says: sae_lens itself where it is installed, else the definitions of
dictionary_learning, sparsify and OpenMOSS, written out here. Files that are not what they say are refused in one line."""

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from autointerp.dictionary import Dictionary, Triples, load
from autointerp.dictionary.encode import ARCHITECTURES
from autointerp.dictionary.formats.saelens import KINDS
from autointerp.errors import DictionaryError

D, OUT, WIDTH, N = 12, 7, 40, 64
RTOL = 1e-5  # of the largest value


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = numbers(N, D, seed=1) + 0.5


def dense(triples: Triples, width: int = WIDTH) -> Tensor:
    result = torch.zeros(N, width)
    result[triples.position, triples.feature] = triples.value
    return result


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def agrees(d: Dictionary, acts: Tensor, x_hat: Tensor) -> None:
    found, triples = d.reconstruct(X)
    acts, x_hat = acts.detach(), x_hat.detach()
    assert (acts > 0).sum() > 20
    assert difference(dense(triples), acts) < RTOL
    assert difference(found, x_hat) < RTOL


def refusal(folder: Path) -> str:
    with pytest.raises(DictionaryError) as problem:
        load(str(folder))
    assert "\n" not in str(problem.value)
    return str(problem.value)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# -- SAELens: folders that sae_lens wrote, against sae_lens ------------------------------------------------------------


@pytest.fixture(scope="module")
def sae_lens() -> Any:
    return pytest.importorskip("sae_lens", reason="needs the extra `train`")


def fill(sae: Any) -> Any:
    """Random weights, with decoder rows of different norms and thresholds that matter."""
    with torch.no_grad():
        for i, (name, p) in enumerate(sorted(sae.named_parameters())):
            p.copy_(numbers(*p.shape, seed=20 + i) * (1 / D**0.5 if name in {"W_enc", "W_skip"} else 0.3))
        sae.W_dec.mul_(torch.linspace(0.5, 3, WIDTH)[:, None])
        if hasattr(sae, "threshold"):
            sae.threshold.copy_(torch.linspace(0.05, 0.6, WIDTH))
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.4)
    return sae


def new(architecture: str, *, training: bool = False, **options: Any) -> Any:
    from sae_lens import registry

    sae_class, config_class = (registry.get_sae_training_class if training else registry.get_sae_class)(architecture)
    if "transcoder" in architecture:
        options = {"d_out": OUT, "apply_b_dec_to_input": False} | options
    return fill(sae_class(config_class(d_in=D, d_sae=WIDTH, dtype="float32", device="cpu", **options)))


# name -> SAELens' architecture and the options that it is made with
SAELENS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "standard, b_dec not on the input": ("standard", {"apply_b_dec_to_input": False}),
    "standard, layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
    "standard, constant_norm_rescale": ("standard", {"normalize_activations": "constant_norm_rescale"}),
    "topk": ("topk", {"k": 5}),
    "topk, rescaled by decoder norm": ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    "topk, layer_norm": ("topk", {"k": 5, "normalize_activations": "layer_norm"}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu, constant_norm_rescale": ("jumprelu", {"normalize_activations": "constant_norm_rescale"}),
    "gated": ("gated", {}),
    "gated, layer_norm": ("gated", {"normalize_activations": "layer_norm"}),
    "transcoder": ("transcoder", {}),
    "transcoder, layer_norm": ("transcoder", {"normalize_activations": "layer_norm"}),
    "skip_transcoder": ("skip_transcoder", {}),
    "jumprelu_transcoder": ("jumprelu_transcoder", {}),
    "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", {}),
}
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "topk": ("topk", {"k": 5}),
    "jumprelu": ("jumprelu", {}),
    "gated": ("gated", {}),
    "batchtopk": ("batchtopk", {"k": 5}),
    "batchtopk, not rescaled": ("batchtopk", {"k": 5, "rescale_acts_by_decoder_norm": False}),
    "matryoshka_batchtopk": ("matryoshka_batchtopk", {"k": 5, "matryoshka_widths": [10, 40]}),
}


@pytest.mark.parametrize("case", SAELENS)
def test_an_inference_folder_of_saelens_encodes_as_saelens(sae_lens: Any, case: str, tmp_path: Path) -> None:
    sae = new(SAELENS[case][0], **SAELENS[case][1])
    sae.save_model(tmp_path)
    theirs = sae_lens.saes.sae.SAE.load_from_disk(tmp_path)
    agrees(load(str(tmp_path)), theirs.encode(X), theirs(X))


@pytest.mark.parametrize("case", TRAINED)
def test_a_training_checkpoint_and_what_is_saved_of_it_encode_alike(sae_lens: Any, case: str, tmp_path: Path) -> None:
    sae = new(TRAINED[case][0], training=True, **TRAINED[case][1])
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "final")
    theirs = sae_lens.saes.sae.SAE.load_from_disk(tmp_path / "final")
    for folder in ("final", "checkpoint"):
        d = load(str(tmp_path / folder))
        agrees(d, theirs.encode(X), theirs(X))
        named = TRAINED[case][0]
        assert d.trained_as == (named if named.endswith("batchtopk") else None)
        assert d.declared_l0 == TRAINED[case][1].get("k")


@pytest.mark.parametrize("case", ["standard", "jumprelu", "gated", "topk, rescaled by decoder norm", "jumprelu_transcoder"])
def test_folding_decoder_norms_is_saelens_own_folding(sae_lens: Any, case: str, tmp_path: Path) -> None:
    sae = new(SAELENS[case][0], **SAELENS[case][1])
    sae.save_model(tmp_path)
    sae.fold_W_dec_norm()
    if case.startswith("topk"):
        sae.cfg.rescale_acts_by_decoder_norm = False  # rows have norm 1 now
    agrees(load(str(tmp_path)).fold_decoder_norm(), sae.encode(X), sae(X))


@pytest.mark.parametrize("case", ["standard", "topk", "jumprelu", "gated", "topk, rescaled by decoder norm"])
def test_expected_average_only_in_is_folded_from_its_own_file(sae_lens: Any, case: str, tmp_path: Path) -> None:
    sae = new(SAELENS[case][0], normalize_activations="expected_average_only_in", **SAELENS[case][1])
    sae.save_model(tmp_path)
    assert "activation_scaler.json" in refusal(tmp_path)
    write_json(tmp_path / "activation_scaler.json", {"scaling_factor": 0.7})
    sae.fold_activation_norm_scaling_factor(0.7)
    d = load(str(tmp_path))
    agrees(d, sae.encode(X), sae(X))
    assert d.input_scale == 0.7


def test_a_scaled_checkpoint_of_batchtopk_is_what_saelens_saves_of_it(sae_lens: Any, tmp_path: Path) -> None:
    sae = new("batchtopk", training=True, k=5, normalize_activations="expected_average_only_in")
    sae.save_model(tmp_path)
    write_json(tmp_path / "activation_scaler.json", {"scaling_factor": 0.7})
    sae.fold_activation_norm_scaling_factor(0.7)
    sae.save_inference_model(tmp_path / "final")
    theirs = sae_lens.saes.sae.SAE.load_from_disk(tmp_path / "final")
    (tmp_path / "final").rename(tmp_path.with_name("elsewhere"))
    agrees(load(str(tmp_path)), theirs.encode(X), theirs(X))


OLD = {
    "d_in": D, "d_sae": WIDTH, "dtype": "float32", "device": "cpu", "hook_point": "blocks.6.hook_resid_pre", "prepend_bos": True,
    "model_name": "gpt2-small", "context_size": 128, "activation_fn_str": "relu",
}  # fmt: skip


@pytest.mark.parametrize(
    "keys", [{}, {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}, {"apply_b_dec_to_input": False}]
)
def test_a_flat_config_from_before_version_6_is_read_as_saelens_reads_it(
    sae_lens: Any, keys: dict[str, Any], tmp_path: Path
) -> None:
    new("standard").save_model(tmp_path)
    write_json(tmp_path / "cfg.json", OLD | keys)
    theirs = sae_lens.saes.sae.SAE.load_from_disk(tmp_path)
    d = load(str(tmp_path))
    agrees(d, theirs.encode(X), theirs(X))
    assert (d.hookpoint, d.model, d.prepend_bos, d.context_size) == ("blocks.6.hook_resid_pre", "gpt2-small", True, 128)


def test_every_architecture_of_saelens_is_encoded_or_refused_by_name(sae_lens: Any) -> None:
    from sae_lens import registry

    theirs = set(registry.SAE_CLASS_REGISTRY) | set(registry.SAE_TRAINING_CLASS_REGISTRY)
    assert theirs - set(KINDS) == {"abstopk", "temporal", "matching_pursuit"}


# -- other formats, against sae_lens' loaders where those are right ----------------------------------------------------


@pytest.fixture
def loaders(sae_lens: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """sae_lens' own hub loaders, reading a local folder instead of the hub."""
    from sae_lens.loading import pretrained_sae_loaders as module
    from safetensors import safe_open

    def read(loader: str, root: Path, repo: str, folder: str) -> Any:
        def download(repo_id: str, filename: str, subfolder: str = "", **_: object) -> str:
            return str(root / subfolder / filename)

        def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
            with safe_open(root / filename, "pt") as file:
                return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118

        monkeypatch.setattr(module, "hf_hub_download", download)
        monkeypatch.setattr(module, "get_safetensors_tensor_shapes", shapes)
        cfg, state, _ = getattr(module, loader)(repo, folder, device="cpu", cfg_overrides={"dtype": "float32"})
        cfg = module.handle_config_defaulting(cfg)
        from sae_lens import registry

        sae_class, config_class = registry.get_sae_class(cfg["architecture"])
        sae = sae_class(config_class.from_dict(cfg))
        sae.load_state_dict(state)
        return sae, cfg

    return read


def jumprelu_weights(d_out: int = D) -> dict[str, Tensor]:
    return {
        "W_enc": numbers(D, WIDTH, seed=2) / D**0.5, "b_enc": numbers(WIDTH, seed=3) * 0.2,
        "W_dec": numbers(WIDTH, d_out, seed=4) * torch.linspace(0.2, 1, WIDTH)[:, None], "b_dec": numbers(d_out, seed=5),
        "threshold": torch.linspace(0.1, 0.8, WIDTH),
    }  # fmt: skip


def write_gemma_scope(folder: Path, d_out: int = D, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    arrays = {name: t.numpy() for name, t in jumprelu_weights(d_out).items()} | changes
    np.savez(folder / "params.npz", **{name: a for name, a in arrays.items() if a is not None})
    return folder


GEMMA = [
    ("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "blocks.20.hook_resid_post", None),
    ("gemma-scope-9b-it-mlp", "layer_3/width_131k/average_l0_9", "blocks.3.hook_mlp_out", None),
    ("gemma-scope-2b-pt-att", "layer_0/width_65k/average_l0_20", "blocks.0.attn.hook_z", None),
    ("gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6", "hook_embed", None),
    ("gemma-scope-2b-pt-transcoders", "layer_5/width_16k/average_l0_11", "blocks.5.ln2.hook_normalized", "blocks.5.hook_mlp_out"),
]  # fmt: skip


@pytest.mark.parametrize(("release", "place", "hookpoint", "predicts"), GEMMA)
def test_gemma_scope_says_where_it_lies_what_it_is(
    release: str, place: str, hookpoint: str, predicts: str | None, tmp_path: Path
) -> None:
    d = load(str(write_gemma_scope(tmp_path / release / place)))
    assert (d.hookpoint, d.hookpoint_out, d.transcoder) == (hookpoint, predicts, predicts is not None)
    assert d.declared_l0 == float(place.rsplit("_", 1)[1])
    assert d.model == {"2b-pt": "google/gemma-2-2b", "9b-it": "google/gemma-2-9b-it"}[release[12:17]]
    assert d.name == place.replace("/", "-")
    assert (d.prepend_bos, d.apply_b_dec_to_input) == (True, False)


@pytest.mark.parametrize(("release", "place", "hookpoint", "predicts"), GEMMA)
def test_gemma_scope_encodes_as_sae_lens_loads_it(
    loaders: Callable[..., Any], release: str, place: str, hookpoint: str, predicts: str | None, tmp_path: Path
) -> None:
    root = tmp_path / release
    write_gemma_scope(root / place)
    loader = "gemma_2_transcoder_huggingface_loader" if predicts else "gemma_2_sae_huggingface_loader"
    import sae_lens.loading.pretrained_sae_loaders as module

    get_config = f"get_{loader.removesuffix('_huggingface_loader').removesuffix('_sae')}_config_from_hf"
    original = getattr(module, get_config)
    with pytest.MonkeyPatch.context() as patch:  # it writes the real sizes into the config; these weights are smaller
        small = {"d_in": D, "d_sae": WIDTH, "dtype": "float32"} | ({"d_out": D} if predicts else {})
        patch.setattr(module, get_config, lambda *a, **k: original(*a, **k) | small)
        sae, cfg = loaders(loader, root, f"google/{release}", place)
    d = load(str(root))
    x = X.view(N, 3, D // 3) if hookpoint.endswith("hook_z") else X  # it takes heads apart, and gives them so
    agrees(d, sae.encode(x), sae(x).reshape(N, D))
    assert d.hookpoint == cfg["metadata"]["hook_name"]
    assert (d.model or "").endswith(cfg["metadata"]["model_name"])


def test_gemma_scope_is_found_from_any_folder_above_and_by_its_file(tmp_path: Path) -> None:
    folder = write_gemma_scope(tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71")
    identities = {load(str(path)).identity for path in (folder, folder.parent, tmp_path, folder / "params.npz")}
    assert len(identities) == 1
    write_gemma_scope(tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_116")
    message = refusal(tmp_path)
    assert "several dictionaries" in message
    assert "average_l0_116" in message


def test_gemma_scope_outside_its_layout_is_read_and_says_nothing_of_itself(tmp_path: Path) -> None:
    d = load(str(write_gemma_scope(tmp_path / "mine", **{"w_enc": jumprelu_weights()["W_enc"].numpy(), "W_enc": None})))
    assert (d.hookpoint, d.model, d.declared_l0, d.prepend_bos, d.name) == (None, None, None, None, "mine")
    expected = (X @ d.W_enc + d.b_enc).relu() * (X @ d.W_enc + d.b_enc > jumprelu_weights()["threshold"])
    agrees(d, expected, expected @ d.W_dec + d.b_dec)


GEMMA_2 = [
    ("resid_post", {"hf_hook_point_in": "model.layers.12.output"}, "model.layers.12", None, False),
    ("attn_out", {"hf_hook_point_in": "model.layers.12.self_attn.o_proj.input"}, "model.layers.12.self_attn.o_proj.input", None, False),
    ("transcoder", {
        "hf_hook_point_in": "model.layers.12.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output", "affine_connection": True,
    }, "model.layers.12.pre_feedforward_layernorm", "model.layers.12.post_feedforward_layernorm", True),
]  # fmt: skip


def write_gemma_scope_2(folder: Path, config: dict[str, Any], affine: bool = False, d_out: int = D) -> Path:
    folder.mkdir(parents=True)
    tensors = {name.replace("W_", "w_"): t for name, t in jumprelu_weights(d_out).items()}
    if affine:
        tensors["affine_skip_connection"] = numbers(D, d_out, seed=8)
    save_file(tensors, folder / "params.safetensors")
    write_json(folder / "config.json", {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "l0": 60} | config)
    return folder


@pytest.mark.parametrize(("site", "config", "hookpoint", "predicts", "affine"), GEMMA_2)
def test_gemma_scope_2_encodes_as_sae_lens_loads_it(
    loaders: Callable[..., Any], site: str, config: dict[str, Any], hookpoint: str, predicts: str | None, affine: bool, tmp_path: Path
) -> None:  # fmt: skip
    root, place = tmp_path / "gemma-scope-2-1b-pt", f"{site}/layer_12_width_16k_l0_medium"
    write_gemma_scope_2(root / place, config, affine)
    sae, _ = loaders("gemma_3_sae_huggingface_loader", root, "google/gemma-scope-2-1b-pt", place)
    agrees(load(str(root)), sae.encode(X), sae(X))


@pytest.mark.parametrize(("site", "config", "hookpoint", "predicts", "affine"), GEMMA_2)
def test_gemma_scope_2_reads_its_own_config(
    site: str, config: dict[str, Any], hookpoint: str, predicts: str | None, affine: bool, tmp_path: Path
) -> None:
    d = load(str(write_gemma_scope_2(tmp_path / site / "layer_12_width_16k_l0_medium", config, affine)))
    assert (d.hookpoint, d.hookpoint_out, d.transcoder) == (hookpoint, predicts, predicts is not None)
    assert (d.model, d.declared_l0) == ("google/gemma-3-1b-pt", 60)
    assert d.name == f"{site}-layer_12_width_16k_l0_medium"
    pre = X @ d.W_enc + d.b_enc
    acts = pre.relu() * (pre > d.threshold)
    agrees(d, acts, acts @ d.W_dec + d.b_dec + (X @ numbers(D, D, seed=8) if affine else 0))


def write_llama_scope(folder: Path, d_out: int = D, **changes: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    w = jumprelu_weights(d_out)
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T, "decoder.bias": w["b_dec"]}
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "checkpoints" / "final.safetensors")
    config = {
        "d_model": D, "d_sae": WIDTH, "act_fn": "jumprelu", "jump_relu_threshold": 0.3, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 2.5, "out": 2.5}, "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post", "top_k": 50,
    }  # fmt: skip
    write_json(folder / "hyperparams.json", config | changes)
    return folder


def test_llama_scope_encodes_as_sae_lens_loads_it(loaders: Callable[..., Any], tmp_path: Path) -> None:
    write_llama_scope(tmp_path / "Llama3_1-8B-Base-L15R-8x")
    sae, _ = loaders("llama_scope_sae_huggingface_loader", tmp_path, "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x")
    sae.fold_activation_norm_scaling_factor(D**0.5 / 2.5)
    d = load(str(tmp_path))
    agrees(d, sae.encode(X), sae(X))
    assert (d.hookpoint, d.trained_as, d.declared_l0) == ("blocks.15.hook_resid_post", "topk", 50)


def test_a_llama_scope_transcoder_has_a_scale_of_its_own_at_its_output(tmp_path: Path) -> None:
    changes = {"dataset_average_activation_norm": {"in": math.sqrt(D), "out": 0.5}, "hook_point_out": "blocks.15.hook_mlp_out"}
    d = load(str(write_llama_scope(tmp_path / "L15TC", OUT, **changes)))
    w = jumprelu_weights(OUT)
    pre = X @ w["W_enc"] + w["b_enc"]  # the factor of the input is 1
    acts = pre.relu() * (pre > 0.3)
    agrees(d, acts, (acts @ w["W_dec"] + w["b_dec"]) * 0.5 / math.sqrt(OUT))
    assert (d.transcoder, d.hookpoint_out) == (True, "blocks.15.hook_mlp_out")


# -- dictionary_learning, by its definitions ---------------------------------------------------------------------------


def write_dictionary_learning(folder: Path, kind: str, state: dict[str, Any], **trainer: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ae.pt")
    known = {"dict_class": kind, "activation_dim": D, "dict_size": WIDTH, "layer": 8, "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_8"}
    write_json(folder / "config.json", {"trainer": known | trainer, "buffer": {"ctx_len": 1024}})
    return folder


def state_of(kind: str) -> dict[str, Tensor]:
    w = jumprelu_weights()
    linear = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T.contiguous()}
    plain = {name: w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    fitted = {"k": torch.tensor(5, dtype=torch.int), "threshold": torch.tensor(0.4)}
    gated = {name: numbers(WIDTH, seed=i) * 0.3 for i, name in enumerate(("r_mag", "gate_bias", "mag_bias"), start=30)}
    return {
        "AutoEncoder": linear | {"bias": w["b_dec"]},
        "AutoEncoderNew": linear | {"decoder.bias": w["b_dec"]},
        "GatedAutoEncoder": {n: linear[n] for n in ("encoder.weight", "decoder.weight")} | {"decoder_bias": w["b_dec"]} | gated,
        "JumpReluAutoEncoder": plain | {"threshold": w["threshold"]},
        "AutoEncoderTopK": linear | {"b_dec": w["b_dec"]} | fitted,
        "BatchTopKSAE": linear | {"b_dec": w["b_dec"]} | fitted,
        "MatryoshkaBatchTopKSAE": plain | fitted | {"group_sizes": torch.tensor([10, 30])},
    }[kind]  # fmt: skip


def by_dictionary_learning(kind: str, s: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """encode(x) and forward(x) of dictionary_learning's class."""
    linear = torch.nn.functional.linear
    if kind == "AutoEncoder":  # its loader gives the decoder unit norm and the encoder what was taken off
        n = s["decoder.weight"].norm(dim=0)
        f = linear(x - s["bias"], s["encoder.weight"] * n[:, None], s["encoder.bias"] * n).relu()
        return f, linear(f, s["decoder.weight"] / n) + s["bias"]
    if kind == "AutoEncoderNew":
        f = linear(x, s["encoder.weight"], s["encoder.bias"]).relu()
        return f, linear(f, s["decoder.weight"], s["decoder.bias"])
    if kind == "GatedAutoEncoder":
        x_enc = linear(x - s["decoder_bias"], s["encoder.weight"])
        f = (x_enc + s["gate_bias"] > 0).float() * (s["r_mag"].exp() * x_enc + s["mag_bias"]).relu()
        f = f * s["decoder.weight"].norm(dim=0)
        return f, linear(f / s["decoder.weight"].norm(dim=0), s["decoder.weight"]) + s["decoder_bias"]
    if kind == "JumpReluAutoEncoder":
        pre_jump = x @ s["W_enc"] + s["b_enc"]
        f = (pre_jump * (pre_jump > s["threshold"])).relu() * s["W_dec"].norm(dim=1)
        return f, f / s["W_dec"].norm(dim=1) @ s["W_dec"] + s["b_dec"]
    if kind == "MatryoshkaBatchTopKSAE":
        post = ((x - s["b_dec"]) @ s["W_enc"] + s["b_enc"]).relu()
        f = post * (post > s["threshold"])
        return f, f @ s["W_dec"] + s["b_dec"]
    post = linear(x - s["b_dec"], s["encoder.weight"], s["encoder.bias"]).relu()
    if kind == "BatchTopKSAE":
        f = post * (post > s["threshold"])
    else:
        top = post.topk(int(s["k"]), sorted=False, dim=-1)
        f = torch.zeros_like(post).scatter_(-1, top.indices, top.values)
    return f, linear(f, s["decoder.weight"]) + s["b_dec"]


CLASSES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning_encodes_by_its_definition(kind: str, tmp_path: Path) -> None:
    d = load(str(write_dictionary_learning(tmp_path / "trainer_0", kind, state_of(kind))))
    agrees(d, *by_dictionary_learning(kind, state_of(kind), X))
    assert (d.trained_as, d.hookpoint, d.model) == (kind, "blocks.8.hook_resid_post", "EleutherAI/pythia-70m")
    assert d.context_size == 1024
    assert d.declared_l0 == (5 if "TopK" in kind else None)


@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_dictionary_learning_encodes_as_sae_lens_where_sae_lens_is_right(
    loaders: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    write_dictionary_learning(tmp_path / "trainer_0", kind, state_of(kind), k=5)
    sae, cfg = loaders("dictionary_learning_sae_huggingface_loader_1", tmp_path, "x/y", "trainer_0")
    d = load(str(tmp_path))
    agrees(d, sae.encode(X), sae(X))
    assert d.hookpoint == cfg["metadata"]["hook_name"]


def test_a_submodule_of_another_name_is_named_as_it_is(tmp_path: Path) -> None:
    folder = write_dictionary_learning(tmp_path, "AutoEncoder", state_of("AutoEncoder"), submodule_name="gpt_neox.layers.3.mlp")
    assert load(str(folder)).hookpoint == "gpt_neox.layers.3.mlp"
    folder = write_dictionary_learning(tmp_path, "AutoEncoder", state_of("AutoEncoder"), submodule_name="mlp_out_layer_3")
    assert load(str(folder)).hookpoint == "blocks.3.hook_mlp_out"


# -- sparsify, by its definitions --------------------------------------------------------------------------------------


def write_sparsify(folder: Path, **config: Any) -> tuple[Path, dict[str, Tensor]]:
    folder.mkdir(parents=True)
    w = jumprelu_weights()
    tensors = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    if config.get("skip_connection"):
        tensors["W_skip"] = numbers(D, D, seed=8)
    save_file(tensors, folder / "sae.safetensors")
    known = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": WIDTH, "k": 5, "multi_topk": False, "d_in": D}
    write_json(folder / "cfg.json", known | config)
    return folder, tensors


def by_sparsify(cfg: dict[str, Any], s: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """encode(x), dense, and forward(x).sae_out of sparsify's SparseCoder."""
    inside = x if cfg.get("transcode") else x - s["b_dec"]
    pre = torch.nn.functional.linear(inside, s["encoder.weight"], s["encoder.bias"]).relu()
    if cfg.get("activation") == "groupmax":
        values, indices = pre.unflatten(-1, (5, -1)).max(dim=-1)
        indices = indices + torch.arange(0, WIDTH, WIDTH // 5)
    else:
        values, indices = pre.topk(5, dim=-1, sorted=False)
    acts = torch.zeros_like(pre).scatter(1, indices, values)
    out = acts @ s["W_dec"] + s["b_dec"]
    return acts, out + x @ s["W_skip"].mT if "W_skip" in s else out


@pytest.mark.parametrize(
    "config",
    [
        {}, {"activation": "topk"}, {"activation": "groupmax"}, {"normalize_decoder": False}, {"transcode": True},
        {"transcode": True, "skip_connection": True}, {"skip_connection": True, "activation": "groupmax"},
    ],
)  # fmt: skip
def test_sparsify_encodes_by_its_definition(config: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model": "HuggingFaceTB/SmolLM2-135M", "ctx_len": 2048})
    folder, tensors = write_sparsify(tmp_path / "layers.5.mlp", **config)
    d = load(str(folder))
    agrees(d, *by_sparsify(config, tensors, X))
    assert (d.model, d.context_size, d.declared_l0) == ("HuggingFaceTB/SmolLM2-135M", 2048, 5)
    if config.get("transcode"):
        assert (d.hookpoint, d.hookpoint_out, d.transcoder) == ("layers.5.mlp.input", "layers.5.mlp", True)
    else:
        assert (d.hookpoint, d.hookpoint_out, d.transcoder) == ("layers.5.mlp", None, False)


def test_the_width_of_sparsify_follows_from_the_expansion_factor_too(tmp_path: Path) -> None:
    folder, _ = write_sparsify(tmp_path / "layers.5", num_latents=0, expansion_factor=3)
    message = refusal(folder)
    assert "encoder.weight" in message
    assert "[36, 12]" in message


# -- what a dictionary says of itself ----------------------------------------------------------------------------------


def write_saelens(folder: Path, architecture: str = "jumprelu", **keys: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    transcoder = "transcoder" in architecture
    tensors = jumprelu_weights(OUT if transcoder else D)
    if architecture == "gated":
        tensors |= {name: numbers(WIDTH, seed=i) for i, name in enumerate(("b_gate", "r_mag", "b_mag"))}
    if "skip" in architecture:
        tensors["W_skip"] = numbers(OUT, D, seed=8)
    save_file(tensors, folder / "sae_weights.safetensors")
    config: dict[str, Any] = {"architecture": architecture, "d_in": D, "d_sae": WIDTH}
    if transcoder:
        config |= {"d_out": OUT, "apply_b_dec_to_input": False}
    write_json(folder / "cfg.json", config | keys)
    return folder


def test_metadata_is_carried(tmp_path: Path) -> None:
    metadata = {
        "hook_name": "blocks.3.ln2.hook_normalized", "hook_name_out": "blocks.3.hook_mlp_out", "model_name": "gpt2-small",
        "prepend_bos": False, "context_size": 256, "training_architecture": "jumprelu",
        "training_architecture_details": {"target_l0": 30.0},
    }  # fmt: skip
    d = load(str(write_saelens(tmp_path, "jumprelu_skip_transcoder", metadata=metadata)))
    assert (d.hookpoint, d.hookpoint_out) == ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")
    assert (d.model, d.prepend_bos, d.context_size, d.declared_l0) == ("gpt2-small", False, 256, 30)
    assert (d.transcoder, d.architecture, d.trained_as) == (True, "jumprelu", None)


def test_what_the_files_do_not_say_is_none(tmp_path: Path) -> None:
    d = load(str(write_saelens(tmp_path)))
    said = (d.hookpoint, d.hookpoint_out, d.model, d.prepend_bos, d.context_size, d.declared_l0, d.trained_as)
    assert said == (None,) * 7


@pytest.mark.parametrize(
    ("hook", "centred"), [("blocks.6.hook_resid_pre", True), ("blocks.6.hook_mlp_out", True), ("blocks.6.attn.hook_z", False)]
)
def test_centred_writing_weights_centre_what_is_written_to_the_residual_stream(
    hook: str, centred: bool, tmp_path: Path
) -> None:
    kwargs = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    d = load(str(write_saelens(tmp_path, metadata={"hook_name": hook, **kwargs})))
    assert d.centre is centred


def test_hook_z_comes_flat_and_needs_no_reshaping(tmp_path: Path) -> None:
    d = load(str(write_saelens(tmp_path, reshape_activations="hook_z", metadata={"hook_name": "blocks.1.attn.hook_z"})))
    assert d.hookpoint == "blocks.1.attn.hook_z"


def test_the_identity_follows_normalisation_scale_and_centring(tmp_path: Path) -> None:
    centred = {"hook_name": "blocks.6.hook_resid_pre", "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    identities = [
        load(str(write_saelens(tmp_path, **keys))).identity
        for keys in ({}, {"normalize_activations": "layer_norm"}, {"metadata": centred})
    ]
    for factor in (0.5, 0.6):
        write_json(tmp_path / "activation_scaler.json", {"scaling_factor": factor})
        identities.append(load(str(write_saelens(tmp_path, normalize_activations="expected_average_only_in"))).identity)
    assert len(set(identities)) == 5


# -- refused -----------------------------------------------------------------------------------------------------------


def every_format(root: Path) -> dict[str, tuple[Path, str]]:
    """One good folder per format, and the file of its weights."""
    return {
        "SAELens": (write_saelens(root / "saelens"), "sae_weights.safetensors"),
        "Gemma Scope": (write_gemma_scope(root / "gemma"), "params.npz"),
        "Gemma Scope 2": (write_gemma_scope_2(root / "gemma2", {}), "params.safetensors"),
        "dictionary_learning": (write_dictionary_learning(root / "dl", "BatchTopKSAE", state_of("BatchTopKSAE")), "ae.pt"),
        "sparsify": (write_sparsify(root / "layers.1")[0], "sae.safetensors"),
        "Llama Scope": (write_llama_scope(root / "llama"), "checkpoints/final.safetensors"),
    }


FORMATS = ("SAELens", "Gemma Scope", "Gemma Scope 2", "dictionary_learning", "sparsify", "Llama Scope")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.0, 0.3, 0.97])
def test_half_a_download_is_refused(kind: str, part: float, tmp_path: Path) -> None:
    folder, weights = every_format(tmp_path)[kind]
    whole = (folder / weights).read_bytes()
    (folder / weights).write_bytes(whole[: int(len(whole) * part)])
    assert str(folder / weights) in refusal(folder)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pointer_instead_of_weights_says_what_to_do(kind: str, tmp_path: Path) -> None:
    folder, weights = every_format(tmp_path)[kind]
    (folder / weights).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n")
    assert "git lfs pull" in refusal(folder)


def test_an_unfinished_download_is_named(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path)
    (folder / "sae_weights.safetensors").rename(folder / "sae_weights.safetensors.incomplete")
    assert "did not finish" in refusal(folder)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("jumprelu", "threshold"), ("gated", "b_gate"), ("gated", "r_mag"), ("gated", "b_mag"),
        ("skip_transcoder", "W_skip"), ("jumprelu_transcoder", "threshold"), ("transcoder", "b_enc"),
    ],
)  # fmt: skip
def test_a_missing_tensor_of_an_architecture_is_named(architecture: str, name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = write_saelens(tmp_path, architecture)
    tensors = load_file(folder / "sae_weights.safetensors")
    del tensors[name]
    save_file(tensors, folder / "sae_weights.safetensors")
    assert f"tensor {name} is missing" in refusal(folder)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
def test_gemma_scope_without_a_tensor_is_refused(name: str, tmp_path: Path) -> None:
    assert f"tensor {name} is missing" in refusal(write_gemma_scope(tmp_path / "x", **{name: None}))


@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder", "GatedAutoEncoder"])
def test_dictionary_learning_without_a_tensor_is_refused(kind: str, tmp_path: Path) -> None:
    for name in set(state_of(kind)) - {"k"} - ({"threshold"} if kind == "AutoEncoderTopK" else set()):
        state = state_of(kind)
        del state[name]
        assert name in refusal(write_dictionary_learning(tmp_path / name, kind, state))


def test_transposed_tensors_are_named(tmp_path: Path) -> None:
    w = jumprelu_weights()
    messages = [refusal(write_gemma_scope(tmp_path / "gemma", W_dec=w["W_dec"].T.numpy()))]
    state = state_of("AutoEncoder") | {"decoder.weight": w["W_dec"]}
    messages.append(refusal(write_dictionary_learning(tmp_path / "dl", "AutoEncoder", state)))
    folder, tensors = write_sparsify(tmp_path / "layers.2")
    save_file(tensors | {"encoder.weight": tensors["encoder.weight"].T.contiguous()}, folder / "sae.safetensors")
    messages.append(refusal(folder))
    for message, name in zip(messages, ("W_dec", "decoder.weight", "encoder.weight"), strict=True):
        assert f"{name} has shape" in message
        assert "(transposed)" in message


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    bad = jumprelu_weights()["threshold"].clone()
    bad[3] = float("nan")
    assert "threshold holds NaN" in refusal(write_gemma_scope(tmp_path / "gemma", threshold=bad.numpy()))
    state = state_of("BatchTopKSAE") | {"b_dec": torch.full((D,), float("inf"))}
    assert "b_dec holds NaN or infinite" in refusal(write_dictionary_learning(tmp_path / "dl", "BatchTopKSAE", state))


@pytest.mark.parametrize("k", [0, 41, None, "5", True])
def test_a_k_that_does_not_fit_is_refused(k: Any, tmp_path: Path) -> None:
    assert f"k = {k!r}" in refusal(write_saelens(tmp_path / "saelens", "topk", k=k))
    assert f"k = {k!r}" in refusal(write_sparsify(tmp_path / "layers.1", k=k)[0])


def test_groups_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    assert "do not divide" in refusal(write_sparsify(tmp_path / "layers.1", activation="groupmax", k=7)[0])


def test_unknown_architectures_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    message = refusal(write_saelens(tmp_path / "a", "matching_pursuit"))
    assert all(name in message for name in (*ARCHITECTURES, *KINDS))
    assert "BatchTopKSAE" in refusal(write_dictionary_learning(tmp_path / "b", "CrossCoder", state_of("AutoEncoder")))
    assert "groupmax" in refusal(write_sparsify(tmp_path / "layers.1", activation="maxout")[0])
    assert "jumprelu" in refusal(write_llama_scope(tmp_path / "c", act_fn="prolu"))
    assert "jump_relu" in refusal(write_gemma_scope_2(tmp_path / "d", {"architecture": "topk"}))


class Code:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_dictionary_learning(tmp_path / "dl", "AutoEncoder", state_of("AutoEncoder"))
    torch.save({"bias": Code()}, folder / "ae.pt")
    assert "never run" in refusal(folder)
    (folder / "ae.pt").write_bytes(pickle.dumps(Code(), protocol=2))
    assert "never run" in refusal(folder)
    gemma = write_gemma_scope(tmp_path / "gemma", threshold=np.array([Code()], dtype=object))
    assert "pickled" in refusal(gemma)
    assert not (tmp_path / "executed").exists()


def test_a_whole_module_in_a_pickle_is_refused(tmp_path: Path) -> None:
    folder = write_dictionary_learning(tmp_path, "AutoEncoder", state_of("AutoEncoder"))
    torch.save(torch.nn.Linear(2, 2), folder / "ae.pt")
    assert "never run" in refusal(folder)
    torch.save([torch.zeros(2)], folder / "ae.pt")
    assert "expected a state dict" in refusal(folder)


def test_a_backup_from_the_middle_of_training_is_refused(tmp_path: Path) -> None:
    backup = {"step": 100, "ae": state_of("AutoEncoder"), "optimizer": {}, "config": {}, "norm_factor": torch.tensor(3.0)}
    assert "middle of training" in refusal(write_dictionary_learning(tmp_path, "AutoEncoder", backup))


def test_a_threshold_that_was_never_fitted_is_refused(tmp_path: Path) -> None:
    state = state_of("BatchTopKSAE") | {"threshold": torch.tensor(-1.0)}
    assert "never fitted" in refusal(write_dictionary_learning(tmp_path, "BatchTopKSAE", state))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("SAELens", "cfg.json"), ("Gemma Scope 2", "config.json"), ("dictionary_learning", "config.json"),
        ("sparsify", "cfg.json"), ("Llama Scope", "hyperparams.json"),
    ],
)  # fmt: skip
def test_a_missing_or_broken_config_is_named(kind: str, config: str, tmp_path: Path) -> None:
    folder, _ = every_format(tmp_path)[kind]
    (folder / config).unlink()
    assert f"holds no {config}" in refusal(folder)
    (folder / config).write_text("[1]")
    assert f"{config}: expected an object" in refusal(folder)


@pytest.mark.parametrize("trainer", [None, 3, []])
def test_a_config_of_dictionary_learning_needs_its_trainer(trainer: Any, tmp_path: Path) -> None:
    folder = write_dictionary_learning(tmp_path, "AutoEncoder", state_of("AutoEncoder"))
    write_json(folder / "config.json", {"trainer": trainer})
    assert "trainer must be an object" in refusal(folder)


def test_weights_in_one_format_and_config_in_another_are_refused(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path)
    (folder / "sae_weights.safetensors").rename(folder / "params.npz")
    assert "sae_weights.safetensors" in refusal(folder)


@pytest.mark.parametrize("value", ["40", -1, 3.5, [40]])
def test_sizes_in_a_config_that_contradict_the_weights_are_refused(value: Any, tmp_path: Path) -> None:
    assert "expected" in refusal(write_saelens(tmp_path / "a", d_sae=value))
    state = state_of("BatchTopKSAE")
    assert "expected" in refusal(write_dictionary_learning(tmp_path / "b", "BatchTopKSAE", state, dict_size=value))
    assert "expected" in refusal(write_sparsify(tmp_path / "c", num_latents=value)[0])
    assert "expected" in refusal(write_llama_scope(tmp_path / "d", d_sae=value))
    assert "expected" in refusal(write_saelens(tmp_path / "e", "transcoder", d_out=value))


@pytest.mark.parametrize("value", ["false", 0, []])
def test_a_switch_that_is_neither_true_nor_false_is_refused(value: Any, tmp_path: Path) -> None:
    assert "apply_b_dec_to_input" in refusal(write_saelens(tmp_path / "a", apply_b_dec_to_input=value))
    assert "rescale_acts_by_decoder_norm" in refusal(write_saelens(tmp_path / "b", rescale_acts_by_decoder_norm=value))
    assert "transcode" in refusal(write_sparsify(tmp_path / "layers.1", transcode=value)[0])


@pytest.mark.parametrize("norms", [None, {"in": 0}, {"in": "12"}, {"out": 3}])
def test_llama_scope_needs_the_norm_that_it_was_trained_at(norms: Any, tmp_path: Path) -> None:
    assert "dataset_average_activation_norm" in refusal(write_llama_scope(tmp_path / "x", dataset_average_activation_norm=norms))


@pytest.mark.parametrize("factor", [None, 0, -1, "x", True])
def test_a_scale_that_is_no_scale_is_refused(factor: Any, tmp_path: Path) -> None:
    folder = write_saelens(tmp_path, normalize_activations="expected_average_only_in")
    write_json(folder / "activation_scaler.json", {"scaling_factor": factor})
    assert "scaling_factor" in refusal(folder)


def test_a_transcoder_that_takes_b_dec_off_its_input_is_refused(tmp_path: Path) -> None:
    assert "apply_b_dec_to_input" in refusal(write_saelens(tmp_path, "transcoder", apply_b_dec_to_input=True))


@pytest.mark.parametrize("key", ["embed_skip", "gram_lookup", "signed"])
def test_parts_of_sparsify_that_are_not_encoded_are_refused(key: str, tmp_path: Path) -> None:
    assert key in refusal(write_sparsify(tmp_path / "layers.1", **{key: True})[0])


def test_a_cross_layer_transcoder_is_refused(tmp_path: Path) -> None:
    folder = write_gemma_scope_2(tmp_path / "x", {})
    tensors = {n.replace("W_", "w_"): t for n, t in jumprelu_weights().items()} | {"w_dec": numbers(WIDTH, 3, D)}
    save_file(tensors, folder / "params.safetensors")
    assert "cross-layer" in refusal(folder)


def test_a_folder_of_something_else_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    message = refusal(tmp_path)
    assert "notes.txt" in message
    assert "params.npz" in message
