"""The logit lens: the tokens that a feature's decoder direction makes likelier, through final norm and unembedding.

As if the direction were written to the residual stream and nothing came after: logit(t) = W_U[t] . (gain * d), with d
centred where the final norm centres (nostalgebraist 2020; Dar et al. 2023). The norm's scale, a soft cap and a constant
of the direction change no order and are left out. Only two of the subject's weights are read.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from autointerp import hooks, rows
from autointerp.config import SubjectSection
from autointerp.dictionary import Dictionary
from autointerp.errors import DictionaryError, SubjectError
from autointerp.subject import Subject, load_causal_lm, resolve_model

TOKENS = 10  # shown of each feature
CHUNK_FEATURES = 256  # features in one matrix product: 50 MB of logits for a vocabulary of 49,152

# Modules that end a branch of a block: what goes into them reaches the residual stream through their weight.
PROJECTIONS = frozenset({"o_proj", "c_proj", "down_proj", "dense", "dense_4h_to_h", "out_proj", "fc2"})


class Lens:
    """The lens of one dictionary. Made cheaply; weights are read when the first feature is asked for."""

    def __init__(self, subject: SubjectSection, dictionary: Dictionary, hookpoint: str | None = None) -> None:
        """`hookpoint`: canonical text of where the dictionary writes; None: the residual stream. A direction at the
        input of an output projection is taken through that projection; a norm after it is left out."""
        self.subject, self.dictionary, self.hookpoint = subject, dictionary, hookpoint

    def promoted(self, feature: int, n: int = TOKENS) -> list[str]:
        """The n tokens of the largest logits, most first. Tokens that are no text (special, part of a character) are
        left out."""
        logits = self.logits(feature)
        readable = torch.argsort(logits[self._readable], descending=True, stable=True)[:n]
        return [self._strings[i] for i in readable.tolist()]

    def logits(self, feature: int) -> Tensor:
        """[token] float32, up to a positive factor and a constant."""
        return self._logits([feature])[0]

    def rows(self, collection_id: str, features: Sequence[int], n: int = TOKENS) -> Iterator[list[rows.Lens]]:
        """The lens of features, chunk by chunk: the n tokens most promoted and most suppressed of each.

        Logits are given in standard deviations from their mean over the tokens that are text.
        """
        for start in range(0, len(features), CHUNK_FEATURES):
            chunk = list(features[start : start + CHUNK_FEATURES])
            logits = self._logits(chunk)[:, self._readable]
            spread, mean = torch.std_mean(logits, dim=1, keepdim=True)
            high, low = logits.topk(n), logits.topk(n, largest=False)
            up, down = ((found.values - mean) / spread.clamp_min(1e-30) for found in (high, low))
            yield [
                rows.Lens(
                    collection_id, feature, [self._strings[j] for j in high.indices[i].tolist()], up[i].tolist(),
                    [self._strings[j] for j in low.indices[i].tolist()], down[i].tolist(),
                )
                for i, feature in enumerate(chunk)
            ]  # fmt: skip

    @torch.inference_mode()
    def _logits(self, features: Sequence[int]) -> Tensor:
        """float32 [feature, token], in one matrix product."""
        unembedding, gain, centred, projection = self._weights
        directions = torch.stack([direction_of(self.dictionary, feature) for feature in features]).float()
        if projection is not None:
            directions = directions @ projection
        if centred:
            directions = directions - directions.mean(dim=1, keepdim=True)
        return (directions * gain) @ unembedding.T

    @cached_property
    def _readable(self) -> Tensor:
        """Ids of the tokens that are text, ascending: neither special, nor blank, nor part of a character."""
        return torch.tensor([token for token, _ in self._texts])

    @cached_property
    def _strings(self) -> list[str]:
        return [text for _, text in self._texts]

    @cached_property
    def _texts(self) -> list[tuple[int, str]]:
        tokenizer = self._tokenizer
        special = set(tokenizer.all_special_ids)
        ids = range(min(len(tokenizer), len(self._weights[0])))
        decoded = tokenizer.batch_decode([[token] for token in ids])
        return [
            (token, text)
            for token, text in zip(ids, decoded, strict=True)
            if token not in special and text.strip() and "\ufffd" not in text
        ]

    @cached_property
    def _tokenizer(self) -> Any:
        return Subject.reader(self.subject).tokenizer

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor, bool, Tensor | None]:
        """Unembedding [token, d], gain of the final norm [d], whether that norm centres, and the projection [d_out, d]
        between the dictionary's hookpoint and the residual stream, where there is one."""
        model = Subject.sketch(self.subject).model
        prefix, norm = final_norm(model)
        names = [_unembedding_name(model), *(f"{prefix}.{name}" for name, _ in norm.named_parameters())]
        between = projection_of(model, self.hookpoint)
        tensors = _read(self.subject.model, names + ([] if between is None else [f"{between}.weight"]))
        unembedding = tensors.pop(names[0])
        projection = None if between is None else tensors.pop(f"{between}.weight")
        if projection is not None and isinstance(model.get_submodule(between or ""), nn.Linear):
            projection = projection.T  # GPT-2's Conv1D holds it the other way round
        norm = norm.to_empty(device="cpu").float()  # the sketch's, which had no weights
        norm.load_state_dict({name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()})
        return unembedding, *gain_of(norm, unembedding.shape[1]), projection


def check(sketch: Subject, dictionary: Dictionary, hookpoint: str | None = None) -> None:
    """Raises DictionaryError for directions that cannot be read through the unembedding of the subject."""
    width = sketch.model.get_output_embeddings().weight.shape[1]
    written = dictionary.d_in if dictionary.architecture == "units" else dictionary.W_dec.shape[1]
    if written != width and projection_of(sketch.model, hookpoint) is None:
        raise DictionaryError(
            f"the logit lens reads directions of the residual stream, of width {width}; those of {dictionary.name} "
            f"have width {written}: set explainer.logit_lens = false"
        )
    final_norm(sketch.model)


def direction_of(dictionary: Dictionary, feature: int) -> Tensor:
    """What a feature writes, [d_out]: its decoder row; of a unit, its own axis with its sign."""
    if dictionary.architecture == "units":
        axis = torch.zeros(dictionary.d_in)
        axis[feature % dictionary.d_in] = 1.0 if feature < dictionary.d_in else -1.0
        return axis
    if dictionary.wanted is None or len(dictionary.W_dec) == dictionary.width:
        return dictionary.W_dec[feature]
    return dictionary.W_dec[int(torch.searchsorted(dictionary.wanted, feature))]


def projection_of(model: Any, hookpoint: str | None) -> str | None:
    """The module that takes a hookpoint's activations to the residual stream, where the hookpoint is its input."""
    if hookpoint is None:
        return None
    hook = hooks.parse(hookpoint)
    ends = hook.module.rpartition(".")[2] in PROJECTIONS
    return hook.module if hook.side == "input" and ends else None


def final_norm(model: nn.Module) -> tuple[str, nn.Module]:
    """The norm before the unembedding: the last module named a norm that is outside the layers. Raises SubjectError."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not any(part.isdigit() for part in name.split("."))
    ]
    if not found:
        raise SubjectError(
            f"the logit lens: a {type(model).__name__} shows no final norm; set explainer.logit_lens = false"
        )
    return found[-1]


@torch.no_grad()
def gain_of(norm: nn.Module, width: int) -> tuple[Tensor, bool]:
    """What a norm multiplies each coordinate by, [width], and whether it centres; found by trying it out.

    A vector of alternating +1 and -1 has mean 0 and variance 1, so every norm gives it back times the gain, plus a bias
    that the opposite vector cancels: Gemma's 1 + weight needs no case of its own.
    """
    probe = torch.ones(width)
    probe[1::2] = -1
    gain = (norm(probe) - norm(-probe)) / 2 * probe
    centred = torch.allclose(norm(probe + 3), norm(probe), atol=1e-3, rtol=1e-3)
    return gain, centred


def _unembedding_name(model: nn.Module) -> str:
    """The parameter that holds the unembedding; where it is tied, files hold the input embedding alone."""
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # a shared one under its first name
    return names[id(output.weight)]


def _read(model: str, names: list[str]) -> dict[str, Tensor]:
    """These parameters in float32: from the safetensors of a folder, else by loading the whole model."""
    folder = Path(resolve_model(model))
    found: dict[str, Tensor] = {}
    for file, inside in _files(folder, names).items():
        with safe_open(folder / file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name).float() for name in inside}
    if set(found) != set(names):
        whole, _ = load_causal_lm(model, "float32", torch.device("cpu"))
        found = {name: whole.get_parameter(name).detach().clone() for name in names}
    return found


def _files(folder: Path, names: list[str]) -> dict[str, list[str]]:
    """File -> the names it holds; {} where the folder has no such files, or under other names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        where = json.loads(index.read_text("utf-8"))["weight_map"]
    elif (folder / "model.safetensors").is_file():
        with safe_open(folder / "model.safetensors", framework="pt") as tensors:
            where = dict.fromkeys(tensors.keys(), "model.safetensors")
    else:
        return {}
    files: dict[str, list[str]] = {}
    for name in names:
        if name in where:
            files.setdefault(where[name], []).append(name)
    return files
