"""A hookpoint gives the tensor that its name promises: TransformerLens' own, in every family, and no module later runs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autointerp import hooks
from autointerp.config import SubjectSection
from autointerp.errors import SubjectError
from autointerp.subject import Subject

from . import families
from .families import FAMILIES, LAYERS, TOKENS
from .test_pipeline import query, quick_settings, run_all

GOLDEN = np.load(Path(__file__).with_name("golden") / "hooks.npz")
_built: dict[str, Subject] = {}


def subject_of(family: str) -> Subject:
    """The small model of a family as a subject, built once."""
    if family not in _built:
        model = families.build_multimodal() if family == "gemma3" else families.build(family)
        _built[family] = Subject(model, None, family, torch.device("cpu"))  # type: ignore[arg-type]
    return _built[family]


def sketch_of(family: str) -> Subject:
    """The same without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, keys = FAMILIES[family]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **keys))
    return Subject(model.eval(), None, family, torch.device("meta"))  # type: ignore[arg-type]


def read(family: str, *names: str) -> list[Tensor]:
    """What a subject gives at these hookpoints, each resolved first."""
    subject = subject_of(family)
    wanted = [subject.hookpoint(name) for name in names]
    found = subject.activations(TOKENS, wanted)
    return [found[text] for text in wanted]


def golden(family: str) -> dict[str, np.ndarray]:
    """TransformerLens' tensors, by name."""
    return {key.partition("/")[2]: GOLDEN[key] for key in GOLDEN.files if key.partition("/")[0] == family}


# -- TransformerLens' own tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", GOLDEN.files)
def test_a_name_gives_what_transformer_lens_gives(key: str) -> None:
    family, _, name = key.partition("/")
    (found,) = read(family, name)
    assert found.shape == GOLDEN[key].shape
    gap = float(np.abs(found.numpy() - GOLDEN[key]).max() / np.abs(GOLDEN[key]).max())
    assert gap < 1e-5  # float32: sums are made in another order; a wrong place differs by about 1


@pytest.mark.parametrize("family", FAMILIES)
def test_no_name_is_without_transformer_lens_word_for_it(family: str) -> None:
    names = hooks.names(subject_of(family).model)
    last = f"blocks.{LAYERS - 1}."
    assert {n for n in names if n.startswith(last) or n == "hook_embed"} == set(golden(family))
    assert {n.replace("blocks.0.", last) for n in names} == set(golden(family))


# -- by hand: what the names mean for one another ----------------------------------------------------------------------


def tower(subject: Subject) -> nn.Module:
    """The module that holds embedding, blocks and final norm."""
    model = subject.model
    return model.model.language_model if hasattr(getattr(model, "model", None), "language_model") else model.base_model


def final_norm(subject: Subject) -> nn.Module:
    text = tower(subject)
    return next(getattr(text, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(text, name))


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
def test_the_residual_stream_is_the_models_hidden_states(family: str) -> None:
    subject = subject_of(family)
    with torch.inference_mode():
        states = subject.model(input_ids=TOKENS, output_hidden_states=True).hidden_states
        first, second, third, last = read(
            family, "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"
        )  # fmt: skip
        assert torch.equal(first, states[0])
        assert torch.equal(second, states[1])
        assert torch.equal(third, states[1])
        torch.testing.assert_close(final_norm(subject)(last), states[2])


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
def test_what_attention_and_mlp_add_is_what_the_residual_stream_gains(family: str, layer: int) -> None:
    points = ["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
    before, attention, mlp, after = read(family, *(f"blocks.{layer}.{p}" for p in points))
    torch.testing.assert_close(before + attention + mlp, after, rtol=1e-5, atol=1e-5)
    if family != "gpt_neox":
        (middle,) = read(family, f"blocks.{layer}.hook_resid_mid")
        torch.testing.assert_close(before + attention, middle, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
def test_heads_go_through_the_output_projection_and_mlp_posts_through_the_last_matrix(family: str) -> None:
    subject = subject_of(family)
    text = tower(subject)
    block = next(getattr(text, name) for name in ("layers", "h") if hasattr(text, name))[1]
    z, post, into, attention, mlp = read(
        family, *(f"blocks.1.{p}" for p in ("attn.hook_z", "mlp.hook_post", "mlp.hook_in", "hook_attn_out", "hook_mlp_out"))
    )  # fmt: skip
    attn = next(getattr(block, name) for name in ("self_attn", "attn", "attention") if hasattr(block, name))
    out = next(getattr(attn, name) for name in ("o_proj", "c_proj", "dense") if hasattr(attn, name))
    last = next(getattr(block.mlp, n) for n in ("down_proj", "c_proj", "dense_4h_to_h") if hasattr(block.mlp, n))
    nothing = nn.Identity()
    normed = family in {"gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3"}  # after attention and MLP
    after_attention = block.post_attention_layernorm if normed else nothing
    after_mlp = block.post_feedforward_layernorm if normed else nothing
    with torch.inference_mode():
        torch.testing.assert_close(after_attention(out(z)), attention)
        torch.testing.assert_close(after_mlp(last(post)), mlp)
        torch.testing.assert_close(after_mlp(block.mlp(into)), mlp)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_normalised_name_is_the_norm_before_its_gain(family: str) -> None:
    subject = subject_of(family)
    for place in ("blocks.1.ln1.hook_normalized", "blocks.1.ln2.hook_normalized"):
        norm = subject.model.get_submodule(hooks.parse(subject.hookpoint(place)).module)
        path = hooks.parse(subject.hookpoint(place)).module
        (bare,) = read(family, place)
        (whole,) = read(family, path)
        gain = 1 + norm.weight if family in {"gemma", "gemma2", "gemma3_text"} else norm.weight
        with torch.inference_mode():
            torch.testing.assert_close(bare * gain + getattr(norm, "bias", torch.zeros(())), whole)


def test_a_gemma_with_eyes_gives_what_its_text_tower_gives_alone() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    seeing = subject_of("gemma3")
    model_type, keys = FAMILIES["gemma3_text"]
    blind = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **keys), attn_implementation="sdpa")
    blind.model.load_state_dict(seeing.model.model.language_model.state_dict())
    alone = Subject(blind.eval(), None, "blind", torch.device("cpu"))  # type: ignore[arg-type]
    names = hooks.names(blind)
    assert names == hooks.names(seeing.model)
    for name in names:
        here, there = seeing.hookpoint(name), alone.hookpoint(name)
        assert here == there.replace("model.", "model.language_model.", 1)
        torch.testing.assert_close(
            seeing.activations(TOKENS, [here])[here], alone.activations(TOKENS, [there])[there]
        )


def test_a_gemma_with_eyes_is_loaded_and_sketched_as_any_subject(tiny: dict[str, Path], tmp_path: Path) -> None:
    families.build_multimodal().save_pretrained(tmp_path)  # type: ignore[operator]
    for path in tiny["subject"].glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    section = SubjectSection(model=str(tmp_path), dtype="float32", device="cpu")
    subject, sketch = Subject.load(section), Subject.sketch(section)
    for name in ("blocks.1.hook_mlp_out", "blocks.1.attn.hook_z"):
        text = sketch.hookpoint(name)
        assert text == subject.hookpoint(name) == subject_of("gemma3").hookpoint(name)
        found = subject.activations(TOKENS, [text])[text]
        torch.testing.assert_close(found, read("gemma3", name)[0])
        assert sketch.width_at(text) == found.shape[-1]


def test_limits_of_a_nested_text_tower_are_found() -> None:
    subject = subject_of("gemma3")
    subject.check_context(64)
    with pytest.raises(SubjectError, match="64 positions"):
        subject.check_context(65)


# -- how a hookpoint is written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("model.layers.1", "model.layers.1"),
        ("layers.1:output", "model.layers.1"),
        ("layers.1.mlp.down_proj:input", "model.layers.1.mlp.down_proj:input"),
        ("model.embed_tokens|scale=48", "model.embed_tokens|scale=48.0"),
        ("layers.1 | center | scale=.5", "model.layers.1|center|scale=0.5"),
        ("layers.0.input_layernorm:input|rms", "model.layers.0.input_layernorm:input|rms"),
        ("layers.0.input_layernorm:input|rms=1e-5", "model.layers.0.input_layernorm:input|rms=1e-05"),
        ("layers.0:input|layernorm=0", "model.layers.0:input|layernorm=0.0"),
        ("blocks.1.hook_resid_pre", "model.layers.1:input"),
        ("blocks.1.hook_resid_post|center", "model.layers.1|center"),
        ("blocks.0.ln2.hook_normalized", "model.layers.0.post_attention_layernorm:input|rms=1e-05"),
        ("hook_embed", "model.layers.0:input"),
    ],
)
def test_a_hookpoint_has_one_canonical_text(written: str, canonical: str) -> None:
    subject = subject_of("llama")
    assert subject.hookpoint(written) == canonical
    assert subject.hookpoint(canonical) == canonical


def test_a_name_of_transformer_lens_says_which_epsilon_the_norm_has() -> None:
    assert subject_of("gemma2").hookpoint("blocks.0.ln2.hook_normalized").endswith(":input|rms")
    assert subject_of("llama").hookpoint("blocks.0.ln2.hook_normalized").endswith(":input|rms=1e-05")
    assert subject_of("gpt2").hookpoint("blocks.0.ln2.hook_normalized").endswith(":input|layernorm")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("layers.1:inside", ":input or :output"),
        ("layers.1|normalise", "no transform 'normalise'"),
        ("layers.1|center=3", "takes no number"),
        ("layers.1|scale", "scale needs a number"),
        ("layers.1|scale=inf", "takes a number, got 'inf'"),
        ("layers.1|rms=-1", "from 0 up"),
        ("blocks.1.hook_resid_pre:input", "has no side"),
        ("blocks.7.hook_resid_pre", "blocks 0 to 1"),
        ("blocks.1.hook_result", "known: hook_embed and blocks.L.{hook_resid_pre"),
        ("hook_pos_embed", "has no place"),
        ("layers.1.nothing:input", "no hookpoint 'layers.1.nothing'"),
        ("", "no hookpoint ''"),
    ],
)
def test_what_cannot_be_understood_is_refused_in_one_line(written: str, says: str) -> None:
    with pytest.raises(SubjectError) as problem:
        subject_of("llama").hookpoint(written)
    assert says in str(problem.value)
    assert "\n" not in str(problem.value)


def test_the_middle_of_a_parallel_block_is_refused_with_the_reason() -> None:
    with pytest.raises(SubjectError, match="side by side"):
        subject_of("gpt_neox").hookpoint("blocks.0.hook_resid_mid")
    assert subject_of("gpt_neox_sequential").hookpoint("blocks.0.hook_resid_mid")


def test_an_unknown_family_is_refused_by_name_and_works_by_module_path() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    model = OPTForCausalLM(OPTConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16,
        max_position_embeddings=32,
    )).eval()  # fmt: skip
    subject = Subject(model, None, "some/opt", torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(SubjectError, match="'opt'") as problem:
        subject.hookpoint("blocks.0.hook_resid_pre")
    assert "GPT-2, Llama" in str(problem.value)
    assert "module path" in str(problem.value)
    assert "\n" not in str(problem.value)
    path = subject.hookpoint("layers.1.fc2:input|center")
    # OPT lays the contexts of a batch end to end in its MLPs.
    both = subject.activations(torch.cat([TOKENS, TOKENS.flip(1)]), [path])[path]
    assert both.shape == (2, 5, 16)
    torch.testing.assert_close(both[1:], subject.activations(TOKENS.flip(1), [path])[path])
    assert torch.allclose(both.mean(-1), torch.zeros(()), atol=1e-6)


# -- how it is read ----------------------------------------------------------------------------------------------------


def test_transforms_are_what_they_say_in_the_order_in_which_they_stand() -> None:
    x, scaled, centred, rms, norm, both = read(
        "gpt2", "h.1", "h.1|scale=-2.5", "h.1|center", "h.1|rms=0", "h.1|layernorm=0", "h.1|scale=2|rms=0.5"
    )
    mean = x.mean(-1, keepdim=True)
    torch.testing.assert_close(scaled, x * -2.5)
    torch.testing.assert_close(centred, x - mean)
    torch.testing.assert_close(rms, x / x.pow(2).mean(-1, keepdim=True).sqrt())
    torch.testing.assert_close(norm, (x - mean) / x.std(-1, unbiased=False, keepdim=True))
    torch.testing.assert_close(both, 2 * x / ((2 * x).pow(2).mean(-1, keepdim=True) + 0.5).sqrt())


def test_a_transform_is_computed_in_float32_and_leaves_the_dtype() -> None:
    x = torch.tensor([[[300.0, 1.0, -299.0]]], dtype=torch.float16)  # squares overflow a float16
    found = hooks.parse("m|rms").apply(x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), x.float() / x.float().pow(2).mean().sqrt(), rtol=1e-3, atol=1e-3)


def test_an_input_that_is_given_by_name_is_read() -> None:
    given, normed = read("llama", "layers.1.self_attn:input", "layers.1.input_layernorm")
    assert torch.equal(given, normed)


def test_both_sides_of_one_module_and_several_views_of_one_tensor_come_in_one_pass() -> None:
    before, after, centred = read("llama", "layers.0:input", "layers.0", "layers.0|center")
    assert not torch.allclose(before, after)
    torch.testing.assert_close(centred, after - after.mean(-1, keepdim=True))


def test_asking_twice_for_one_hookpoint_still_ends_the_pass() -> None:
    subject = subject_of("llama")
    ran = running(subject)
    assert list(subject.activations(TOKENS, ["model.layers.0", "model.layers.0"])) == ["model.layers.0"]
    assert "model.layers.1" not in ran()


def running(subject: Subject) -> Callable[[], list[str]]:
    """Start noting which modules begin to run; calling the result stops, and gives their names."""
    names: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: names.append(name)

    handles = [m.register_forward_pre_hook(note(name)) for name, m in subject.model.named_modules() if name]

    def stop() -> list[str]:
        for handle in handles:
            handle.remove()
        return names

    return stop


def hooked(subject: Subject) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_runs_after_the_tensor_has_been_read(family: str) -> None:
    subject = subject_of(family)
    blocks = hooks.parse(subject.hookpoint("blocks.0.hook_resid_post")).module.removesuffix(".0")
    before = hooked(subject)
    for name in hooks.names(subject.model):
        if not name.startswith("blocks.0."):
            continue
        hook = hooks.parse(subject.hookpoint(name))
        ended: list[int] = []
        handle = subject.model.get_submodule(hook.module).register_forward_hook(
            lambda *_, ended=ended: ended.append(1)
        )
        ran = running(subject)
        subject.activations(TOKENS, [str(hook)])
        seen = ran()
        handle.remove()
        assert not [n for n in seen if n.startswith(f"{blocks}.1")], name
        assert "lm_head" not in seen
        assert len(ended) == (hook.side == "output"), name  # a module whose input is wanted does not run itself
    assert hooked(subject) == before


def test_a_module_that_takes_no_activations_is_refused_in_one_line() -> None:
    subject = subject_of("llama")
    for path in ("model.embed_tokens:input", "model.layers:input", "model.rotary_emb"):
        with pytest.raises(SubjectError, match=r"expected activations \[context, token, d\]") as problem:
            subject.activations(TOKENS.repeat(2, 1), [subject.hookpoint(path)])
        assert "\n" not in str(problem.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sketch_resolves_every_name_alike_and_knows_its_width(family: str) -> None:
    subject, sketch = subject_of(family), sketch_of(family)
    for name, tensor in golden(family).items():
        text = sketch.hookpoint(name)
        assert text == subject.hookpoint(name)
        assert sketch.width_at(text) == tensor.shape[-1], name


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma3_text", "gemma3"])
def test_a_ready_made_causal_mask_changes_nothing(family: str) -> None:
    # What a GPU is given to save the host a look at position ids.
    model = families.build_multimodal() if family == "gemma3" else families.build(family, "sdpa")
    subject = Subject(model, None, family, torch.device("cpu"))  # type: ignore[arg-type]
    assert subject._mask_is_plain(5)
    text = subject.hookpoint("blocks.1.hook_resid_post")
    plain = subject.activations(TOKENS, [text])[text]
    given = subject.activations(TOKENS, [text], attention_mask=subject._causal_mask(5))[text]
    torch.testing.assert_close(given, plain)


def test_a_window_of_a_nested_text_tower_is_seen() -> None:
    subject = subject_of("gemma3")
    assert subject._mask_is_plain(32)
    assert not subject._mask_is_plain(33)


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name", "canonical"),
    [
        ("gpt2", "blocks.1.hook_resid_pre|center", "transformer.h.1:input|center"),
        ("gemma2", "blocks.0.hook_mlp_out", "model.layers.0.post_feedforward_layernorm"),
    ],
)
def test_a_subject_of_another_family_runs_the_whole_main_job(
    tiny: dict[str, Path], tmp_path: Path, family: str, name: str, canonical: str
) -> None:
    folder = families.save(family, tmp_path / family, vocabulary=400, d=32, positions=256)
    for path in tiny["subject"].glob("tokenizer*"):
        shutil.copy(path, folder)
    settings = quick_settings(tiny, tmp_path, subject__model=folder, subject__hookpoint=name)
    said = run_all(settings)
    assert len(said) == 9
    ((hookpoint,),) = query(settings.database, "SELECT hookpoint FROM collection")
    assert hookpoint == canonical
    ((n,),) = query(settings.database, "SELECT count(*) FROM score WHERE metric = 'r_rank' AND value IS NOT NULL")
    assert n > 0
    assert [line.split(": ")[1] for line in run_all(settings)] == ["nothing pending"] * 9
