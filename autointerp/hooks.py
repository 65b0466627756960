"""Where in a model activations are read: hookpoints, and what TransformerLens' names mean in transformers' modules.

A hookpoint is a module path, a side, and what is done to the tensor:

    model.layers.15                               the output of a module
    model.layers.15.mlp.down_proj:input           what goes into it
    model.layers.15.post_attention_layernorm:input|rms
    transformer.h.6:input|center

The map from TransformerLens' names is data, `FAMILIES`. It says what TransformerLens 3 gives without weight processing
(`from_pretrained_no_processing`, which SAELens uses); tests hold it against TransformerLens, family by family.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from autointerp.errors import SubjectError, nearest

Side = Literal["output", "input"]

# -- what is done to a tensor ------------------------------------------------------------------------------------------


def _scale(x: Tensor, factor: float) -> Tensor:
    return x * factor


def _center(x: Tensor, _: float) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def _layernorm(x: Tensor, eps: float) -> Tensor:
    return _rms(_center(x, 0.0), eps)


@dataclass(frozen=True)
class Transform:
    """A function of one position's activations, [..., d] -> [..., d], computed in float32."""

    do: Callable[[Tensor, float], Tensor]
    takes: Literal["nothing", "factor", "eps"]
    default: float | None = None  # of its number; None: a number must be given


TRANSFORMS: Mapping[str, Transform] = MappingProxyType({
    "scale": Transform(_scale, "factor"),  # times a number
    "center": Transform(_center, "nothing", 0.0),  # minus the mean over d: center_writing_weights
    "rms": Transform(_rms, "eps", 1e-6),  # RMSNorm before its gain
    "layernorm": Transform(_layernorm, "eps", 1e-5),  # LayerNorm before its gain and bias
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hook:
    """A hookpoint, taken apart. `str()` gives the canonical text, which is what rows and keys hold."""

    module: str  # path; full once resolved
    side: Side = "output"
    transforms: tuple[tuple[str, float], ...] = ()  # (name, its number), in the order in which they are applied

    def __str__(self) -> str:
        words = [self.module + (":input" if self.side == "input" else "")]
        words += [
            name if number == TRANSFORMS[name].default else f"{name}={number!r}" for name, number in self.transforms
        ]
        return "|".join(words)

    def apply(self, x: Tensor) -> Tensor:
        """The transforms, applied to activations [context, token, d] on their device; the dtype stays."""
        if not self.transforms:
            return x
        found = x.float()
        for name, number in self.transforms:
            found = TRANSFORMS[name].do(found, number)
        return found.to(x.dtype)

    def attach(self, model: nn.Module, catch: Callable[[Any], None]) -> Any:
        """Call `catch` with what the module is given, or gives, whenever it runs; it may raise to end the pass.

        The transforms are left to the caller. Returns a torch handle. Raises AttributeError where there is no such
        module.
        """

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            catch(_first_input(args, kwargs))

        def after(_: nn.Module, args: Any, output: Any) -> None:
            catch(output[0] if isinstance(output, tuple) else output)

        module = model.get_submodule(self.module)
        if self.side == "input":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    def replace(self, model: nn.Module, change: Callable[[Any], Any]) -> Any:
        """Put what `change` makes of it in the place of what the module is given, or gives, whenever it runs.

        As `attach`: the transforms are left to the caller, a torch handle comes back, and AttributeError is raised.
        """

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
            return args, kwargs | {name: change(kwargs[name])}

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        module = model.get_submodule(self.module)
        if self.side == "input":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module works on: its first argument, or `hidden_states` where all are given by name (attention)."""
    if args:
        return args[0]
    return kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def parse(text: str) -> Hook:
    """A hookpoint taken apart, its module path as it was written. Raises SubjectError for what cannot be understood."""
    place, *words = (word.strip() for word in text.split("|"))
    module, colon, side = place.partition(":")
    if colon and side not in {"input", "output"}:
        raise SubjectError(f"hookpoint {text!r}: expected :input or :output after the module path, got :{side}")
    return Hook(module, "input" if side == "input" else "output", tuple(_transform(text, word) for word in words))


def _transform(text: str, word: str) -> tuple[str, float]:
    name, equals, number = word.partition("=")
    known = TRANSFORMS.get(name)
    if known is None:
        raise SubjectError(
            f"hookpoint {text!r}: no transform {name!r}{nearest(name, TRANSFORMS)}; known: {', '.join(TRANSFORMS)}"
        )
    if not equals:
        if known.default is None:
            raise SubjectError(f"hookpoint {text!r}: {name} needs a number, such as {name}=48.0")
        return name, known.default
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if known.takes == "nothing" or not math.isfinite(value) or (known.takes == "eps" and value < 0):
        wanted = {"nothing": "no number", "factor": "a number", "eps": "a number from 0 up"}[known.takes]
        raise SubjectError(f"hookpoint {text!r}: {name} takes {wanted}, got {number!r}")
    return name, value


# -- families ----------------------------------------------------------------------------------------------------------

NO_MIDDLE = "attention and MLP of a block run side by side, so there is no residual stream between them"


@dataclass(frozen=True)
class Family:
    """Where the models of one architecture have what TransformerLens names.

    `points` maps the part of a name after `blocks.L.` to a hookpoint within the block; "" is the block itself.
    """

    name: str
    types: tuple[str, ...]  # model.config.model_type
    blocks: tuple[str, ...]  # the list of blocks; the first path that is there
    embed: str  # hook_embed: a module beside the list of blocks, or "" for what goes into the first block
    points: Mapping[str, str]
    undefined: Mapping[str, str] = field(default_factory=dict)  # name -> why these models have no such place
    only_if: tuple[str, object] | None = None  # a key of the model's config and its value

    def fits(self, config: Any) -> bool:
        """True for the family of a model with this (text) configuration."""
        key, value = self.only_if or ("model_type", config.model_type)
        return config.model_type in self.types and getattr(config, key, None) == value


_RESIDUAL = {"hook_resid_pre": ":input", "hook_resid_post": ""}
_GATED = {
    **_RESIDUAL,
    "attn.hook_z": "self_attn.o_proj:input",  # arrives flattened, [context, token, n_heads * d_head]
    "mlp.hook_pre": "mlp.gate_proj",
    "mlp.hook_pre_linear": "mlp.up_proj",
    "mlp.hook_post": "mlp.down_proj:input",
    "mlp.hook_in": "mlp:input",  # after the gain of the norm before it, where there is one
}
_NEOX = {
    **_RESIDUAL,
    "hook_attn_out": "attention",
    "hook_mlp_out": "mlp",
    "attn.hook_z": "attention.dense:input",
    "mlp.hook_pre": "mlp.dense_h_to_4h",
    "mlp.hook_post": "mlp.dense_4h_to_h:input",
    "mlp.hook_in": "mlp:input",
    "ln1.hook_normalized": "input_layernorm:input|layernorm",
    "ln2.hook_normalized": "post_attention_layernorm:input|layernorm",
}
# A model with a vision tower has its text tower one level further down.
_LAYERS = ("model.layers", "model.language_model.layers", "language_model.model.layers")

FAMILIES: tuple[Family, ...] = (
    Family(
        "GPT-2", ("gpt2",), ("transformer.h",), "wte",  # before the position embedding
        {
            **_RESIDUAL,
            "hook_resid_mid": "ln_2:input",
            "hook_attn_out": "attn",
            "hook_mlp_out": "mlp",
            "attn.hook_z": "attn.c_proj:input",
            "mlp.hook_pre": "mlp.c_fc",
            "mlp.hook_post": "mlp.c_proj:input",
            "mlp.hook_in": "mlp:input",
            "ln1.hook_normalized": "ln_1:input|layernorm",
            "ln2.hook_normalized": "ln_2:input|layernorm",
        },
    ),
    Family(
        "Llama/Mistral/Qwen/Gemma-1", ("llama", "mistral", "qwen2", "qwen3", "gemma"), _LAYERS, "",
        {
            **_GATED,
            "hook_resid_mid": "post_attention_layernorm:input",  # before the MLP, for all its name
            "hook_attn_out": "self_attn",
            "hook_mlp_out": "mlp",
            "ln1.hook_normalized": "input_layernorm:input|rms",
            "ln2.hook_normalized": "post_attention_layernorm:input|rms",
        },
    ),
    Family(
        "Gemma-2/3", ("gemma2", "gemma3", "gemma3_text"), _LAYERS, "",
        {
            **_GATED,
            "hook_resid_mid": "pre_feedforward_layernorm:input",
            "hook_attn_out": "post_attention_layernorm",  # what is added to the residual stream is the normed output
            "hook_mlp_out": "post_feedforward_layernorm",
            "ln1.hook_normalized": "input_layernorm:input|rms",
            "ln2.hook_normalized": "pre_feedforward_layernorm:input|rms",
            "ln1_post.hook_normalized": "post_attention_layernorm:input|rms",
            "ln2_post.hook_normalized": "post_feedforward_layernorm:input|rms",
        },
    ),
    Family(
        "OLMo-2", ("olmo2", "olmo3"), _LAYERS, "",
        {
            **_GATED,
            "hook_resid_mid": "mlp:input",  # no norm stands before the MLP
            "hook_attn_out": "post_attention_layernorm",
            "hook_mlp_out": "post_feedforward_layernorm",
            "ln1.hook_normalized": "post_attention_layernorm:input|rms",  # the post-norms are ln1, ln2
            "ln2.hook_normalized": "post_feedforward_layernorm:input|rms",
        },
    ),
    Family(
        "GPT-NeoX/Pythia", ("gpt_neox",), ("gpt_neox.layers",), "", _NEOX, {"hook_resid_mid": NO_MIDDLE},
        only_if=("use_parallel_residual", True),
    ),
    Family(
        "GPT-NeoX, sequential", ("gpt_neox",), ("gpt_neox.layers",), "",
        {**_NEOX, "hook_resid_mid": "post_attention_layernorm:input"},
        only_if=("use_parallel_residual", False),
    ),
)  # fmt: skip

_BLOCK_NAME = re.compile(r"blocks\.(\d+)\.((?:\w+\.)?hook_\w+)")


def is_transformer_lens(path: str) -> bool:
    """True for a name that TransformerLens would give, such as `blocks.6.hook_resid_pre` or `hook_embed`."""
    return _BLOCK_NAME.fullmatch(path) is not None or re.fullmatch(r"hook_\w+", path) is not None


def names(model: nn.Module) -> list[str]:
    """Every TransformerLens name that has a place in this model, in the order of FAMILIES; empty for other families."""
    family = _family(model)
    if family is None:
        return []
    blocks: Any = model.get_submodule(_blocks(family, model))
    return ["hook_embed", *(f"blocks.{i}.{point}" for i in range(len(blocks)) for point in family.points)]


def resolve(text: str, model: nn.Module, whose: str = "the subject") -> str:
    """The canonical text of a hookpoint in this model: full module path, side, transforms.

    text   a module path or a unique suffix of one, with an optional side and transforms; or a TransformerLens name
           with optional transforms
    model  may be without weights (on torch's meta device)
    whose  what errors call the model
    Raises SubjectError for a path that names no module (naming the nearest) or several, for a TransformerLens name
    that has no place in the model, and for a model of a family whose TransformerLens names are not known.
    """
    hook = parse(text)
    if not is_transformer_lens(hook.module) or hook.module in dict(model.named_modules()):
        return str(Hook(_full_path(hook.module, model, whose), hook.side, hook.transforms))
    if ":" in text:
        raise SubjectError(f"hookpoint {text!r}: a TransformerLens name has no side; only module paths have :input")
    place = _place_of(hook.module, model, whose)
    return str(Hook(place.module, place.side, place.transforms + hook.transforms))


def _full_path(path: str, model: nn.Module, whose: str) -> str:
    known = [name for name, _ in model.named_modules() if name]
    if path in known:
        return path
    ends = [name for name in known if name.endswith("." + path)]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise SubjectError(f"hookpoint {path!r} is ambiguous in {whose}: {', '.join(ends[:4])}, ...")
    raise SubjectError(f"{whose} has no hookpoint {path!r}{nearest(path, known)}")


def text_config(model: Any) -> Any:
    """The configuration of the model, or of its text tower where it has several."""
    return model.config.get_text_config()


def _family(model: Any) -> Family | None:
    return next((family for family in FAMILIES if family.fits(text_config(model))), None)


def _blocks(family: Family, model: nn.Module) -> str:
    known = {name for name, _ in model.named_modules()}
    return next((path for path in family.blocks if path in known), family.blocks[0])


def _place_of(name: str, model: Any, whose: str) -> Hook:
    """A TransformerLens name as a hook of this model."""
    family = _family(model)
    if family is None:
        raise SubjectError(
            f"{name!r} is a TransformerLens name, and those are known for {', '.join(f.name for f in FAMILIES)}, not "
            f"for model_type {text_config(model).model_type!r} ({whose}): use a module path"
        )
    blocks = _blocks(family, model)
    found = _BLOCK_NAME.fullmatch(name)
    layer, point = (int(found[1]), found[2]) if found else (0, name)
    if point in family.undefined:
        raise SubjectError(f"{name!r} does not exist in {family.name} models: {family.undefined[point]}")
    if not found and name == "hook_embed":
        beside = blocks.rpartition(".")[0]
        return Hook(f"{beside}.{family.embed}") if family.embed else Hook(f"{blocks}.0", "input")
    if not found or point not in family.points:
        known = ["hook_embed", *(f"blocks.{layer}.{p}" for p in family.points)]
        raise SubjectError(
            f"{name!r} has no place in {family.name} models{nearest(name, known)}; known: hook_embed and blocks.L."
            f"{{{', '.join(family.points)}}}; else use a module path"
        )
    n: int = len(model.get_submodule(blocks))
    if layer >= n:
        raise SubjectError(f"{name!r}: {whose} has blocks 0 to {n - 1}")
    within = parse(family.points[point])
    path = f"{blocks}.{layer}" + (f".{within.module}" if within.module else "")
    eps = _eps(model.get_submodule(path))
    transforms = tuple(
        (name, eps if TRANSFORMS[name].takes == "eps" and eps is not None else number)
        for name, number in within.transforms
    )
    return Hook(path, within.side, transforms)


def _eps(norm: nn.Module) -> float | None:
    """The epsilon of a norm, under the names that transformers and torch give it."""
    found = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return float(found) if isinstance(found, float | int) else None
