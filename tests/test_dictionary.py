"""Encoding agrees with arithmetic done by hand, and files that are not what they say are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autointerp import dictionary as package
from autointerp.dictionary import Dictionary, encode, load
from autointerp.errors import DictionaryError

from .conftest import write_dictionary

WEIGHTS = {
    "W_enc": torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]),
    "b_enc": torch.tensor([0.0, 0.5, -1.0]),
    "W_dec": torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]),
    "b_dec": torch.tensor([1.0, 1.0]),
}
X = torch.tensor([[3.0, 2.0], [1.0, 1.0], [-4.0, -4.0], [2.0, 4.0]])
# (x - b_dec) @ W_enc + b_enc, row by row:
#   [2, 1]    -> 2, 1.5, 4 - 1 - 1 = 2        [0, 0]  -> 0, .5, -1
#   [-5, -5]  -> -5, -4.5, -10 + 5 - 1 = -6   [1, 3]  -> 1, 3.5, 2 - 3 - 1 = -2
STANDARD = {(0, 0): 2.0, (0, 1): 1.5, (0, 2): 2.0, (1, 1): 0.5, (3, 0): 1.0, (3, 1): 3.5}
TOP_1 = {(1, 1): 0.5, (3, 1): 3.5}  # row 0 is a tie and is left out here
TOP_2 = {(0, 0): 2.0, (0, 2): 2.0, (1, 1): 0.5, (3, 0): 1.0, (3, 1): 3.5}


def three(architecture: str, k: int | None = None, **options: Any) -> Dictionary:
    return Dictionary(name="d", architecture=architecture, k=k, **WEIGHTS, **options)


def found(triples: package.Triples) -> dict[tuple[int, int], float]:
    entries = list(
        zip(triples.position.tolist(), triples.feature.tolist(), triples.value.tolist(), strict=True)
    )
    assert len({e[:2] for e in entries}) == len(entries), "a (position, feature) fires twice"
    return {(p, f): v for p, f, v in entries}


def dense(triples: package.Triples, n: int, width: int) -> Tensor:
    result = torch.zeros(n, width)
    result[triples.position, triples.feature] = triples.value
    return result


# -- by hand -------------------------------------------------------------------------------------------------


def test_a_standard_dictionary_of_three_features_gives_what_a_pencil_gives() -> None:
    assert found(three("standard").encode(X)) == STANDARD


def test_a_topk_dictionary_of_three_features_gives_what_a_pencil_gives() -> None:
    assert found(three("topk", 2).encode(X)) == TOP_2
    assert found(three("topk", 1).encode(X[1:])) == {(p - 1, f): v for (p, f), v in TOP_1.items()}


def test_topk_keeps_positive_winners_only() -> None:
    assert found(three("topk", 3).encode(X)) == STANDARD


def test_zero_is_not_firing() -> None:
    assert (1, 0) not in found(three("standard").encode(X))  # its pre-activation is exactly 0
    assert (1, 0) not in found(three("topk", 3).encode(X))


def test_without_the_flag_b_dec_is_not_subtracted() -> None:
    kept = found(three("standard", apply_b_dec_to_input=False).encode(X[1:2]))
    assert kept == {(0, 0): 1.0, (0, 1): 1.5}  # [1, 1] -> 1, 1.5, 2 - 1 - 1 = 0


def test_rescaling_by_decoder_norm_multiplies_pre_activations_and_may_change_the_winners() -> None:
    rescaled = three("topk", 1, rescale_by_decoder_norm=True)  # norms 1, 2, 5
    assert found(rescaled.encode(X[:2])) == {(0, 2): 10.0, (1, 1): 1.0}


def test_a_reconstruction_is_the_firing_decoder_rows_and_the_bias() -> None:
    x_hat, triples = three("standard").reconstruct(X)
    assert found(triples) == STANDARD
    # row 0: 2 [1, 0] + 1.5 [0, 2] + 2 [3, 4] + [1, 1]
    assert x_hat.tolist() == [[9.0, 12.0], [1.0, 2.0], [1.0, 1.0], [2.0, 8.0]]


# -- chunks, dtypes, shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "k"), [("topk", 4), ("standard", None)])
def test_chunking_changes_no_result(
    architecture: str, k: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(83, 32, generator=torch.Generator().manual_seed(1))
    whole = load(str(write_dictionary(tmp_path, architecture=architecture))).encode(x)
    assert len(whole.value) > 50
    for size in (1, 7, 83, 84):
        monkeypatch.setattr(encode, "ENCODE_CHUNK_TOKENS", size)
        chunked = load(str(tmp_path)).encode(x)
        torch.testing.assert_close(dense(chunked, 83, 64), dense(whole, 83, 64), rtol=1e-5, atol=1e-5)


def test_rows_come_in_order_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "ENCODE_CHUNK_TOKENS", 2)
    positions = three("standard").encode(X).position
    assert positions.tolist() == sorted(positions.tolist())


def test_encoding_twice_gives_the_same_and_the_first_result_is_left_alone() -> None:
    d = three("standard")
    first = d.encode(X)
    second = d.encode(-X)
    assert found(first) == STANDARD
    assert found(second) != STANDARD
    assert found(d.encode(X)) == STANDARD


def test_no_rows_give_no_triples() -> None:
    for d in (three("topk", 2), three("standard")):
        assert [len(column) for column in d.encode(X[:0])] == [0, 0, 0]


def test_a_topk_dictionary_agrees_with_a_dense_relu_of_the_topk(tmp_path: Path) -> None:
    d = load(str(write_dictionary(tmp_path, k=5)))
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(3))
    pre = (x - d.b_dec) @ d.W_enc + d.b_enc
    expected = torch.zeros_like(pre).scatter(1, pre.topk(5, dim=1).indices, pre.topk(5, dim=1).values).relu()
    torch.testing.assert_close(dense(d.encode(x), 40, 64), expected, rtol=1e-5, atol=1e-5)


def test_a_copy_in_another_dtype_encodes_in_that_dtype_and_leaves_the_original_alone() -> None:
    d = three("standard")
    assert d.to(torch.device("cpu"), torch.bfloat16).encode(X).value.dtype == torch.bfloat16
    assert d.W_enc.dtype == torch.float32
    assert (
        found(d.to(torch.device("cpu"), torch.bfloat16).encode(X)) == STANDARD
    )  # all of it exact in bfloat16


def test_the_pre_activations_written_into_a_buffer_are_those_returned_without() -> None:
    buffer = torch.empty(4, 3)
    d = three("standard")
    returned = d.pre_activations(X, out=buffer)
    assert torch.equal(returned, d.pre_activations(X))
    assert torch.equal(buffer, d.pre_activations(X))


# -- loading -------------------------------------------------------------------------------------------------


def change_config(folder: Path, **keys: Any) -> None:
    path = folder / "cfg.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "DROP"}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: t.clone() for name, t in load_file(folder / "sae_weights.safetensors").items()}
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "sae_weights.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(DictionaryError) as problem:
        load(str(folder))
    return str(problem.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dictionary(tmp_path / "my-sae")


def test_a_folder_loads_with_its_name_shape_and_k(folder: Path) -> None:
    d = load(str(folder))
    assert (d.name, d.architecture, d.d_in, d.width, d.k, d.hookpoint) == ("my-sae", "topk", 32, 64, 4, None)
    assert load(str(folder), name="other").name == "other"


def test_the_hookpoint_of_a_dictionarys_own_files_is_read(folder: Path) -> None:
    change_config(folder, metadata={"hook_name": "blocks.3"})
    assert load(str(folder)).hookpoint == "blocks.3"


def test_flags_in_the_config_reach_the_encoder(folder: Path) -> None:
    change_config(folder, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=True)
    d = load(str(folder))
    assert (d.apply_b_dec_to_input, d.rescale_by_decoder_norm) == (False, True)


def test_half_precision_weights_are_read_as_float32(folder: Path) -> None:
    change_weights(folder, lambda t: t.update({n: v.half() for n, v in t.items()}))
    assert load(str(folder)).W_enc.dtype == torch.float32


def test_the_identity_follows_everything_that_changes_how_a_dictionary_encodes(folder: Path) -> None:
    identities = [load(str(folder)).identity]
    for keys in ({"k": 5}, {"apply_b_dec_to_input": False}, {"rescale_acts_by_decoder_norm": True}):
        change_config(folder, **keys)
        identities.append(load(str(folder)).identity)
    change_weights(folder, lambda t: t["b_enc"].add_(1e-3))
    identities.append(load(str(folder)).identity)
    assert len(set(identities)) == len(identities)
    assert all(identities)


def test_the_identity_does_not_follow_the_folder_it_lies_in(folder: Path) -> None:
    before = load(str(folder)).identity
    assert load(str(folder.rename(folder.with_name("moved")))).identity == before


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights_are_refused(folder: Path, part: float) -> None:
    path = folder / "sae_weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert "sae_weights.safetensors" in refusal(folder)


def test_weights_that_are_no_safetensors_are_refused(folder: Path) -> None:
    torch.save({"W_enc": torch.zeros(2)}, folder / "sae_weights.safetensors")
    assert "sae_weights.safetensors" in refusal(folder)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    change_weights(folder, lambda t: t.__delitem__(name))
    assert f"{name} is missing" in refusal(folder)


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_a_transposed_tensor_is_named_as_transposed(folder: Path, name: str) -> None:
    change_weights(folder, lambda t: t.update({name: t[name].T}))
    message = refusal(folder)
    assert name in message
    assert "transposed" in message
    assert "expected" in message


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder: Path, name: str) -> None:
    change_weights(folder, lambda t: t.update({name: torch.zeros(3)}))
    message = refusal(folder)
    assert name in message
    assert "[3]" in message


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_with_values_that_are_not_finite_is_named(folder: Path, name: str, value: float) -> None:
    change_weights(folder, lambda t: t[name].view(-1)[-1:].fill_(value))
    message = refusal(folder)
    assert name in message
    assert "NaN" in message


@pytest.mark.parametrize("k", ["DROP", None, 0, -1, 65, "4", 4.5])
def test_a_topk_dictionary_needs_a_k_that_fits_its_width(folder: Path, k: Any) -> None:
    change_config(folder, k=k)
    message = refusal(folder)
    assert "k = " in message
    assert "64" in message


def test_an_unknown_architecture_is_refused_with_the_known_ones(folder: Path) -> None:
    change_config(folder, architecture="crosscoder")
    message = refusal(folder)
    assert "'crosscoder'" in message
    assert all(known in message for known in encode.ARCHITECTURES)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalize_activations", "covariance_whitening"),
        ("normalize_activations", True),
        ("reshape_activations", "hook_q"),
    ],
)
def test_a_transform_that_is_not_applied_is_refused_by_name(folder: Path, key: str, value: Any) -> None:
    change_config(folder, **{key: value})
    assert key in refusal(folder)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"null"])
def test_a_broken_config_is_named(folder: Path, content: bytes) -> None:
    (folder / "cfg.json").write_bytes(content)
    assert "cfg.json" in refusal(folder)


@pytest.mark.parametrize("keys", [{"d_in": 33}, {"d_sae": 65}, {"d_in": "32"}])
def test_a_config_that_contradicts_the_weights_is_refused(folder: Path, keys: dict[str, Any]) -> None:
    change_config(folder, **keys)
    assert "W_enc" in refusal(folder)


def test_widths_are_taken_from_the_weights_where_the_config_has_none(folder: Path) -> None:
    change_config(folder, d_in="DROP", d_sae="DROP")
    assert (load(str(folder)).d_in, load(str(folder)).width) == (32, 64)


def test_an_encoder_that_is_no_matrix_is_refused_where_the_config_has_no_widths(folder: Path) -> None:
    change_config(folder, d_in="DROP", d_sae="DROP")
    change_weights(folder, lambda t: t.update(W_enc=torch.zeros(64)))
    assert "W_enc" in refusal(folder)


def test_metadata_that_is_no_object_is_refused_or_ignored(folder: Path) -> None:
    change_config(folder, metadata="none")
    try:
        assert load(str(folder)).hookpoint is None
    except DictionaryError as problem:
        assert "metadata" in str(problem)


def test_an_old_config_whose_activation_is_topk_is_never_encoded_as_plain_relu(folder: Path) -> None:
    # SAELens before 6.0: architecture 'standard' or none, and the activation function under a key of its own.
    change_config(
        folder, architecture="standard", k="DROP", activation_fn_str="topk", activation_fn_kwargs={"k": 4}
    )
    try:
        d = load(str(folder))
    except DictionaryError as problem:
        assert "activation_fn" in str(problem)
    else:
        assert (d.architecture, d.k) == ("topk", 4)


def test_a_source_where_nothing_is_is_refused_with_the_packaged_names() -> None:
    message = refusal(Path("/nowhere/at/all"))
    assert "/nowhere/at/all" in message
    assert "smollm2-135m-l15-4k" in message


@pytest.mark.parametrize("source", ["..", "../packaged", "smollm2-135m-l15-4k/..", "smollm"])
def test_a_packaged_name_never_leads_out_of_the_packaged_folder(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    with pytest.raises(DictionaryError):
        load(source)


# -- the packaged dictionary ---------------------------------------------------------------------------------


def test_the_packaged_dictionary_loads_with_32_of_4096_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    d = load("smollm2-135m-l15-4k")
    assert (d.architecture, d.k, d.width, d.d_in) == ("topk", 32, 4096, 576)
    assert d.hookpoint == "model.layers.15"
    x = torch.randn(5, 576, generator=torch.Generator().manual_seed(0)) * 10
    triples = d.encode(x)
    assert torch.bincount(triples.position, minlength=5).tolist() == [32] * 5
    assert (triples.value > 0).all()
