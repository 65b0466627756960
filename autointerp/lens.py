"""The logit lens: the tokens that a feature's decoder direction makes likelier, through final norm and unembedding.

As if the direction were written to the residual stream and nothing came after: logit(t) = W_U[t] . (gain * d), with d
centred where the final norm centres (nostalgebraist 2020; Dar et al. 2023). The norm's scale, a soft cap and a constant
of the direction change no order and are left out. Only two of the subject's weights are read.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from autointerp.config import SubjectSection
from autointerp.dictionary import Dictionary
from autointerp.errors import DictionaryError, SubjectError
from autointerp.subject import Subject, load_causal_lm, resolve_model

TOKENS = 10  # shown of each feature


class Lens:
    """The lens of one dictionary. Made cheaply; weights are read when the first feature is asked for."""

    def __init__(self, subject: SubjectSection, dictionary: Dictionary) -> None:
        self.subject, self.dictionary = subject, dictionary

    def promoted(self, feature: int, n: int = TOKENS) -> list[str]:
        """The n tokens of the largest logits, most first. Tokens that are no text (special, part of a character) are
        left out."""
        logits = self.logits(feature)
        tokenizer = self._tokenizer
        special = set(tokenizer.all_special_ids)
        found: list[str] = []
        for token in torch.argsort(logits[: len(tokenizer)], descending=True, stable=True).tolist():
            text = "" if token in special else str(tokenizer.decode([token]))
            if text.strip() and "\ufffd" not in text:
                found.append(text)
                if len(found) == n:
                    break
        return found

    def logits(self, feature: int) -> Tensor:
        """[token] float32, up to a positive factor and a constant."""
        unembedding, gain, centred = self._weights
        direction = direction_of(self.dictionary, feature).float()
        if centred:
            direction = direction - direction.mean()
        return unembedding @ (direction * gain)

    @cached_property
    def _tokenizer(self) -> Any:
        return Subject.reader(self.subject).tokenizer

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor, bool]:
        """Unembedding [token, d], gain of the final norm [d], and whether that norm centres."""
        model = Subject.sketch(self.subject).model
        prefix, norm = final_norm(model)
        names = [_unembedding_name(model), *(f"{prefix}.{name}" for name, _ in norm.named_parameters())]
        tensors = _read(self.subject.model, names)
        unembedding = tensors.pop(names[0])
        norm = norm.to_empty(device="cpu").float()  # the sketch's, which had no weights
        norm.load_state_dict({name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()})
        return unembedding, *gain_of(norm, unembedding.shape[1])


def check(sketch: Subject, dictionary: Dictionary) -> None:
    """Raises DictionaryError for directions that cannot be read through the unembedding of the subject."""
    width = sketch.model.get_output_embeddings().weight.shape[1]
    if dictionary.architecture != "units" and dictionary.W_dec.shape[1] != width:
        raise DictionaryError(
            f"explainer.logit_lens reads directions of the residual stream, of width {width}; those of "
            f"{dictionary.name} have width {dictionary.W_dec.shape[1]}: set explainer.logit_lens = false"
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


def final_norm(model: nn.Module) -> tuple[str, nn.Module]:
    """The norm before the unembedding: the last module named a norm that is outside the layers. Raises SubjectError."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not any(part.isdigit() for part in name.split("."))
    ]
    if not found:
        raise SubjectError(
            f"explainer.logit_lens: a {type(model).__name__} shows no final norm; set explainer.logit_lens = false"
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
