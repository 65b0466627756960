"""Dictionaries by hub name, from a stand-in of the hub with files of the true layout: what is downloaded, what sae_lens
makes of the same files, what the registry adds, and what is refused."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autointerp.dictionary import Dictionary, load, registry
from autointerp.errors import DictionaryError, MissingExtra, UserError

from . import hub as stand_in
from .hub import WIDTH, D, Hub, numbers

RES_JB = "gpt2-small-res-jb/blocks.6.hook_resid_pre"
GEMMA = "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical"
GEMMA_2 = "gemma-scope-2-1b-pt-res/layer_13_width_16k_l0_medium"
LLAMA = "llama_scope_lxr_8x/l15r_8x"
PYTHIA = "hf:EleutherAI/sae-pythia-160m-32k:layers.6"
TRANSCODER = "gemma-scope-2b-pt-transcoders/layer_12/width_16k/average_l0_6"
BENCH = "sae_bench_pythia70m_sweep_topk_ctx128_0730/blocks.4.hook_resid_post__trainer_13"
RELEASED = [RES_JB, GEMMA, TRANSCODER, GEMMA_2, LLAMA, BENCH]
X = numbers(64, D, seed=1) + 0.5
RTOL = 1e-5

pytest.importorskip("sae_lens", reason="needs the extra `saelens`")


@pytest.fixture
def there() -> Iterator[Hub]:
    found = Hub()
    stand_in.add_everything(found)
    yield found
    found.close()


@pytest.fixture
def online(there: Hub, tmp_path: Path) -> Iterator[Hub]:
    with there.pointed_at(tmp_path / "cache"):
        yield there


def dense(d: Dictionary, x: Tensor = X) -> Tensor:
    triples = d.encode(x)
    result = torch.zeros(len(x), d.width)
    result[triples.position, triples.feature] = triples.value
    return result


def refusal(source: str, kind: type[UserError] = DictionaryError) -> str:
    with pytest.raises(kind) as problem:
        load(source)
    assert "\n" not in str(problem.value)
    return str(problem.value)


# -- against sae_lens --------------------------------------------------------------------------------------------------


def from_pretrained(source: str) -> Any:
    """sae_lens' own download and conversion, from the same stand-in."""
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS, get_conversion_loader_name

    release, _, identity = source.partition("/")
    loader = NAMED_PRETRAINED_SAE_LOADERS[get_conversion_loader_name(release)]

    def of_small_weights(*args: Any, **kwargs: Any) -> Any:  # the loader of gemma_2 writes the real sizes down
        cfg, state, sparsity = loader(*args, **kwargs)
        small = {key: size for key, size in {"d_in": D, "d_out": D, "d_sae": WIDTH}.items() if key in cfg}
        return cfg | small, state, sparsity

    return SAE.from_pretrained(release, identity, converter=of_small_weights)


@pytest.mark.parametrize("source", RELEASED)
def test_a_release_encodes_as_sae_lens_loads_it(source: str, online: Hub) -> None:
    sae = from_pretrained(source)
    d = load(source)
    x = X - X.mean(dim=1, keepdim=True) if d.centre else X  # sae_lens has TransformerLens centre the subject instead
    expected = sae.encode(x).detach()
    assert (expected > 0).sum() > 100
    assert float((dense(d) - expected).abs().max() / expected.abs().max()) < RTOL
    x_hat, _ = d.reconstruct(X)
    expected = sae(x).detach() + (X - x)
    assert float((x_hat - expected).abs().max() / expected.abs().max()) < RTOL


def test_sparsify_encodes_by_its_definition(online: Hub) -> None:
    w = stand_in.weights()
    hidden = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    value, feature = hidden.topk(8, dim=1)
    assert torch.allclose(dense(load(PYTHIA)), torch.zeros_like(hidden).scatter(1, feature, value), atol=1e-5)


# -- what reaches the dictionary ---------------------------------------------------------------------------------------


def test_the_registry_says_what_the_files_of_gpt2_do_not(online: Hub) -> None:
    d = load(RES_JB)
    assert (d.architecture, d.width, d.d_in, d.apply_b_dec_to_input) == ("standard", WIDTH, D, True)
    assert d.centre  # model_from_pretrained_kwargs of the registry: center_writing_weights
    assert (d.hookpoint, d.model, d.prepend_bos, d.context_size) == ("blocks.6.hook_resid_pre", "gpt2-small", True, 128)
    assert (d.declared_l0, d.normalise, d.input_scale) == (51.0, "none", 1.0)


def test_gemma_scope_knows_its_place(online: Hub) -> None:
    d = load(GEMMA)
    assert (d.architecture, d.hookpoint, d.model) == ("jumprelu", "blocks.12.hook_resid_post", "google/gemma-2-2b")
    assert (d.declared_l0, d.prepend_bos, d.apply_b_dec_to_input, d.centre) == (82.0, True, False, False)
    assert d.threshold is not None and torch.equal(d.threshold, stand_in.threshold())


def test_gemma_scope_2_knows_its_place(online: Hub) -> None:
    d = load(GEMMA_2)
    assert (d.architecture, d.hookpoint, d.model) == ("jumprelu", "model.layers.13", "google/gemma-3-1b-pt")
    assert (d.declared_l0, d.prepend_bos, d.transcoder) == (60.0, True, False)


@pytest.mark.parametrize(("release", "place", "reads", "predicts"), [
    ("gemma-scope-2-1b-pt-res", "resid_post", "model.layers.13", None),
    ("gemma-scope-2-1b-pt-att", "attn_out", "model.layers.13.self_attn.o_proj.input", None),
    ("gemma-scope-2-1b-pt-mlp", "mlp_out", "model.layers.13.post_feedforward_layernorm", None),
    ("gemma-scope-2-1b-pt-transcoders-all", "transcoder_all", "model.layers.13.pre_feedforward_layernorm", "model.layers.13.post_feedforward_layernorm"),
])  # fmt: skip
def test_gemma_scope_2_without_a_configuration_is_told_by_its_place(
    release: str, place: str, reads: str, predicts: str | None, online: Hub
) -> None:
    repo, size = "google/gemma-scope-2-1b-pt", "big" if "all" in place else "medium"
    whole = load(GEMMA_2)
    params = online.repos[repo]["resid_post/layer_13_width_16k_l0_medium/params.safetensors"]
    online.repos[repo] = {f"{place}/layer_13_width_16k_l0_{size}/params.safetensors": params}
    members = {one["id"] for one in registry.registry("test")[release]["saes"]}
    (identity,) = members & {f"layer_13_width_16k_l0_{size}", f"{place}/layer_13_width_16k_l0_{size}"}
    d = load(f"{release}/{identity}")
    assert (d.hookpoint, d.hookpoint_out, d.model) == (reads, predicts, "google/gemma-3-1b-pt")
    assert d.declared_l0 == (60.0 if size == "medium" else 120.0)
    assert (d.identity == whole.identity) == (predicts is None)


def test_a_transcoder_and_a_trainer_of_dictionary_learning_know_their_places(online: Hub) -> None:
    d = load(TRANSCODER)
    assert (d.transcoder, d.hookpoint, d.hookpoint_out) == (
        True,
        "blocks.12.ln2.hook_normalized",
        "blocks.12.hook_mlp_out",
    )
    d = load(BENCH)
    assert (d.architecture, d.k, d.hookpoint) == ("topk", 8, "blocks.4.hook_resid_post")
    assert (d.model, d.context_size) == ("EleutherAI/pythia-70m-deduped", 128)


def test_llama_scope_has_its_scale_folded_in(online: Hub) -> None:
    d = load(LLAMA)
    assert (d.architecture, d.trained_as, d.hookpoint) == ("jumprelu", "topk", "blocks.15.hook_resid_post")
    assert d.input_scale == pytest.approx(stand_in.LLAMA_FACTOR)
    assert d.threshold is not None and float(d.threshold[0]) == pytest.approx(0.3 * stand_in.LLAMA_FACTOR)
    assert (d.declared_l0, d.prepend_bos, d.model) == (50.0, True, "meta-llama/Llama-3.1-8B")


def test_a_scale_that_the_files_and_the_registry_state_differently_is_refused(online: Hub) -> None:
    stand_in.add_llama_scope(online, factor=7.0)
    message = refusal(LLAMA)
    assert "7" in message and "5.919" in message
    assert load("hf:fnlp/Llama3_1-8B-Base-LXR-8x:Llama3_1-8B-Base-L15R-8x").input_scale == pytest.approx(7.0)
    assert "hf:fnlp/Llama3_1-8B-Base-LXR-8x:Llama3_1-8B-Base-L15R-8x" in message


def test_sparsify_is_told_by_its_module_and_by_the_configuration_above(online: Hub) -> None:
    d = load(PYTHIA)
    assert (d.architecture, d.k, d.hookpoint, d.model) == ("topk", 8, "layers.6", "EleutherAI/pythia-160m")
    assert (d.context_size, d.prepend_bos, d.declared_l0) == (2049, None, 8.0)


def test_a_norm_factor_of_the_registry_scales_a_release_that_asks_for_one(online: Hub) -> None:
    # gpt2-small-mlp-tm: expected_average_only_in by its files, the factor in the registry alone; a colon in its path
    cfg = {"hook_point": "blocks.6.hook_mlp_out", "normalize_activations": "expected_average_only_in"}
    place = "sae_group_gpt2_blocks.6.hook_mlp_out_24576:v0"
    stand_in.add_gpt2_res_jb(online, place, **cfg)
    online.repos["tommmcgrath/gpt2-small-mlp-out-saes"] = online.repos["jbloom/GPT2-Small-SAEs-Reformatted"]
    source = "gpt2-small-mlp-tm/blocks.6.hook_mlp_out"
    d = load(source)
    assert d.input_scale == pytest.approx(1.3237742807210804)
    assert (d.centre, d.declared_l0) == (True, 40.0)
    expected = from_pretrained(source).encode(X - X.mean(dim=1, keepdim=True)).detach()
    assert float((dense(d) - expected).abs().max() / expected.abs().max()) < RTOL
    assert "activation_scaler.json" in refusal(f"hf:tommmcgrath/gpt2-small-mlp-out-saes:{place}")


def test_an_override_of_the_registry_wins_over_the_files(online: Hub) -> None:
    stand_in.add_gpt2_res_jb(
        online, "mistral_7b_layer_8", hook_point="blocks.8.hook_resid_pre", normalize_activations="none"
    )
    online.repos["JoshEngels/Mistral-7B-Residual-Stream-SAEs"] = online.repos["jbloom/GPT2-Small-SAEs-Reformatted"]
    assert load("mistral-7b-res-wg/blocks.8.hook_resid_pre").normalise == "constant_norm_rescale"


@pytest.mark.parametrize("source", [*RELEASED, PYTHIA])
def test_the_name_can_stand_before_a_feature_id(source: str, online: Hub) -> None:
    d = load(source)
    assert registry.NAMED.fullmatch(f"{d.name}/17")
    assert d.name == source.removeprefix("hf:EleutherAI/").replace("/", "-").replace(":", "-")
    assert load(source, "mine").name == "mine"


def test_a_folder_that_the_registry_knows_more_of_is_pointed_out(online: Hub, caplog: pytest.LogCaptureFixture) -> None:
    load("hf:jbloom/GPT2-Small-SAEs-Reformatted:blocks.6.hook_resid_pre")
    assert RES_JB in caplog.text
    caplog.clear()
    for source in (RES_JB, PYTHIA, "hf:google/gemma-scope-2b-pt-res", "hf:fnlp/Llama3_1-8B-Base-LXR-8x"):
        load(source)
    assert not caplog.records


# -- files -------------------------------------------------------------------------------------------------------------


def test_only_the_files_of_one_dictionary_are_downloaded(online: Hub) -> None:
    stand_in.add_gpt2_res_jb(online, "blocks.7.hook_resid_pre", hook_point="blocks.7.hook_resid_pre")
    load(RES_JB)
    found = [path for path in online.downloads() if "/resolve/" in path]
    assert [path.rpartition("/resolve/")[2].partition("/")[2] for path in found] == ["blocks.6.hook_resid_pre/cfg.json"]
    assert len([path for path in online.downloads() if path.startswith("/large/")]) == 1  # and no sparsity


@pytest.mark.parametrize("source", [*RELEASED, PYTHIA])
def test_a_second_load_downloads_nothing_and_a_third_needs_no_hub(source: str, there: Hub, tmp_path: Path) -> None:
    with there.pointed_at(tmp_path / "cache"):
        first = load(source)
        there.requests.clear()
        assert load(source).identity == first.identity
        assert there.downloads() == []
        assert len([path for _, path in there.requests if "/resolve/" in path]) == 1  # what main is now
    with there.pointed_at(tmp_path / "cache", offline=True):
        there.requests.clear()
        assert load(source).identity == first.identity
        assert there.requests == []
    there.close()
    with there.pointed_at(tmp_path / "cache"):
        assert torch.equal(load(source).W_enc, first.W_enc)


def test_weights_from_the_hub_and_from_a_folder_are_the_same_dictionary(online: Hub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    for i, source in enumerate([GEMMA, GEMMA_2, LLAMA, PYTHIA]):
        entry = registry.parse(source)
        copy = tmp_path / str(i) / entry.path
        shutil.copytree(Path(snapshot_download(entry.repo)) / entry.path, copy)
        assert load(str(copy)).identity == load(source).identity
    # what the registry adds changes how gpt2-small-res-jb encodes; a folder whose own files say so is the same
    plain = load("hf:jbloom/GPT2-Small-SAEs-Reformatted:blocks.6.hook_resid_pre")
    assert not plain.centre and plain.identity != load(RES_JB).identity
    stand_in.add_gpt2_res_jb(online, "said", model_from_pretrained_kwargs={"center_writing_weights": True})
    assert load("hf:jbloom/GPT2-Small-SAEs-Reformatted:said").identity == load(RES_JB).identity


def test_a_folder_wins_over_a_hub_name(online: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from .conftest import write_dictionary

    monkeypatch.chdir(tmp_path)
    write_dictionary(tmp_path / RES_JB, d_in=8, width=12)
    assert load(RES_JB).width == 12
    assert online.requests == []


def test_all_files_are_of_one_commit_though_the_hub_moves_on(online: Hub, tmp_path: Path) -> None:
    place = "blocks.6.hook_resid_pre"

    def move_on() -> None:
        tensors = stand_in.weights() | {"b_dec": torch.full((D,), 7.0)}
        new = stand_in.safetensors_bytes(tensors)
        online.add("jbloom/GPT2-Small-SAEs-Reformatted", {f"{place}/sae_weights.safetensors": new})

    online.then = move_on  # between cfg.json and the weights
    first = load(RES_JB)
    assert online.then is None
    assert torch.equal(first.b_dec, stand_in.weights()["b_dec"])
    assert bool((load(RES_JB).b_dec == 7).all())


def test_a_commit_can_be_pinned(online: Hub) -> None:
    old = online.commit("jbloom/GPT2-Small-SAEs-Reformatted")
    first = load(f"{RES_JB}@{old}")
    stand_in.add_gpt2_res_jb(online, context_size=64)
    assert load(RES_JB).context_size == 64
    again = load(f"{RES_JB}@{old}")
    assert (again.context_size, again.identity, again.name) == (128, first.identity, first.name)
    assert load(f"hf:jbloom/GPT2-Small-SAEs-Reformatted@{old}:blocks.6.hook_resid_pre").context_size == 128
    assert "no revision 'abcdef'" in refusal(f"{RES_JB}@abcdef")


def test_a_dictionary_is_found_below_its_place_and_by_its_file(online: Hub) -> None:
    repo = "hf:google/gemma-scope-2b-pt-res"
    for place in ("", ":layer_12", ":layer_12/width_16k/average_l0_82", ":layer_12/width_16k/average_l0_82/params.npz"):
        d = load(repo + place)
        assert (d.hookpoint, d.declared_l0) == ("blocks.12.hook_resid_post", 82.0)
    stand_in.add_gemma_scope(online, "layer_12/width_16k/average_l0_22")
    message = refusal(f"{repo}:layer_12")
    assert "layer_12/width_16k/average_l0_22" in message and "layer_12/width_16k/average_l0_82" in message


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "file"), [(RES_JB, "sae_weights.safetensors"), (GEMMA, "params.npz"), (RES_JB, "cfg.json")]
)
def test_half_a_download_is_refused_and_a_retry_repairs_it(source: str, file: str, online: Hub) -> None:
    name = f"{registry.parse(source).path}/{file}"
    online.short.add(name)
    message = refusal(source)
    assert file in message and "did not finish" in message and "again" in message
    online.short.clear()
    assert load(source).width == WIDTH


@pytest.mark.parametrize(
    ("source", "file"), [(RES_JB, "sae_weights.safetensors"), (GEMMA, "params.npz"), (RES_JB, "cfg.json")]
)
def test_a_damaged_file_of_the_cache_is_refused_and_a_retry_repairs_it(
    source: str, file: str, online: Hub, tmp_path: Path
) -> None:
    load(source)
    cached = next((tmp_path / "cache").rglob(file))
    blob = cached.resolve()
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    message = refusal(source)
    assert file in message and "removed" in message
    assert load(source).width == WIDTH


def test_a_file_that_is_broken_on_the_hub_itself_is_refused_and_kept(online: Hub) -> None:
    repo = "jbloom/GPT2-Small-SAEs-Reformatted"
    name = "blocks.6.hook_resid_pre/sae_weights.safetensors"
    online.add(repo, {name: online.repos[repo][name][:500]})
    assert "truncated" in refusal(RES_JB)
    downloads = len(online.downloads())
    assert "removed" not in refusal(RES_JB)
    assert len(online.downloads()) == downloads


def test_a_file_that_the_hub_does_not_have_is_named(online: Hub) -> None:
    del online.repos["jbloom/GPT2-Small-SAEs-Reformatted"]["blocks.6.hook_resid_pre/sae_weights.safetensors"]
    assert "no file blocks.6.hook_resid_pre/sae_weights.safetensors" in refusal(RES_JB)


def test_a_repository_that_the_hub_does_not_have_is_named(online: Hub) -> None:
    del online.repos["google/gemma-scope-2b-pt-res"]
    assert "google/gemma-scope-2b-pt-res" in refusal(GEMMA)
    assert "no repository nobody/nothing" in refusal("hf:nobody/nothing:here")


def test_a_gated_repository_says_what_to_do(online: Hub) -> None:
    online.gated.add("fnlp/Llama3_1-8B-Base-LXR-8x")
    message = refusal(LLAMA)
    assert "gated" in message and "hf auth login" in message


@pytest.mark.parametrize("source", [RES_JB, PYTHIA])
def test_offline_with_nothing_in_the_cache_is_one_line(source: str, there: Hub, tmp_path: Path) -> None:
    with there.pointed_at(tmp_path / "cache", offline=True):
        message = refusal(source)
    assert "HF_HUB_OFFLINE" in message and str(tmp_path / "cache") in message
    assert there.requests == []


@pytest.mark.parametrize("source", [RES_JB, PYTHIA])
def test_a_hub_that_does_not_answer_is_one_line(
    source: str, there: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        there.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with there.pointed_at(tmp_path / "cache"):
            message = refusal(source)
    assert "does not answer" in message and there.url in message
    assert not caplog.records  # huggingface_hub did not try again and again


def test_unknown_names_are_refused_with_the_nearest(online: Hub) -> None:
    assert "'gpt2-small-res-jb'" in refusal("gpt2-small-res-bj/blocks.6.hook_resid_pre")
    assert "'blocks.6.hook_resid_pre'" in refusal("gpt2-small-res-jb/blocks.6.hook_resid_per")
    assert "blocks.0.hook_resid_pre" in refusal("gpt2-small-res-jb/6")
    assert "layers.6" in refusal("hf:EleutherAI/sae-pythia-160m-32k:layer.6")
    assert "layers.6, layers.6.mlp" in refusal("hf:EleutherAI/sae-pythia-160m-32k")


@pytest.mark.parametrize(
    "source", ["hf:", "hf:owner", "hf:owner/name/more", "hf:owner/name:../up", "hf:owner/name@", "hf:a/b:c//d"]
)
def test_what_is_no_hub_name_is_refused_with_the_form(source: str, online: Hub) -> None:
    assert "hf:owner/name" in refusal(source)
    assert online.requests == []


LOADED_BY_OTHERS = {
    "temporal": "temporal-sae-gemma-2-2b/blocks.12.hook_resid_post",
    "mntss_clt_layer_transcoder": "mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_13",
    "goodfire": "goodfire-llama-3.1-8b-instruct/layer_19",
}


@pytest.mark.parametrize("loader", LOADED_BY_OTHERS)
def test_a_loader_that_we_do_not_have_is_refused_by_name(loader: str, online: Hub) -> None:
    message = refusal(LOADED_BY_OTHERS[loader])
    assert loader in message and "sae_lens, gemma_2" in message
    assert online.requests == []


def test_every_dictionary_of_the_registry_has_a_name_that_is_understood() -> None:
    read, refused = 0, set()
    for release, entry in registry.registry("test").items():
        for one in entry["saes"]:
            source = f"{release}/{one['id']}"
            assert registry.is_named(source)
            try:
                found = registry.parse(source)
            except DictionaryError as problem:
                refused.add(str(problem).split("with its loader ")[1].split(",")[0])
            else:
                assert found.path == str(one["path"]) and found.layout is not None
                read += 1
    assert read > 10_000
    assert refused >= set(LOADED_BY_OTHERS)


def test_without_sae_lens_a_release_names_the_extra(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sae_lens" else find(name, *a))
    message = refusal(RES_JB, MissingExtra)
    assert "autointerp[saelens]" in message and RES_JB in message
    assert load(PYTHIA).k == 8  # a repository needs no registry
