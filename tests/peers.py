"""EleutherAI's delphi (eai-delphi 0.1.3), made to run beside us on a CPU, for the agreement test and the benchmark.

Its caching needs none of what its package asks for (vllm, bitsandbytes, faiss, ...), so it is installed without
dependencies, and what its imports name besides is replaced by stubs while it is imported.
"""

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

DELPHI = "0.1.3"
DELPHI_COMMAND = (
    f"pip install --no-deps eai-delphi=={DELPHI} && pip install orjson simple-parsing jaxtyping"
    "   (`make test` and `make bench` bring it)"
)
DELPHI_SMALLEST = 1e-5  # its cache keeps activations above this alone
# Imported at the top of delphi.latents, and used by what comes after caching alone.
STUBS: dict[str, dict[str, Any]] = {
    "faiss": {},
    "sentence_transformers": {"SentenceTransformer": object},
    "blobfile": {"BlobFile": open},
    "asyncer": {"asyncify": lambda function: function},
}


@functools.cache
def latent_cache() -> type:
    """delphi's `LatentCache`, without its progress bars. Raises ModuleNotFoundError naming the command that installs it."""
    try:
        found = importlib.metadata.version("eai-delphi")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != DELPHI:
        raise ModuleNotFoundError(f"this needs eai-delphi {DELPHI} (found: {found}): {DELPHI_COMMAND}", name="delphi")
    stubbed = [name for name in STUBS if importlib.util.find_spec(name) is None]
    for name in stubbed:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(STUBS[name])
    try:
        from delphi.latents import cache
    except ModuleNotFoundError as problem:
        raise ModuleNotFoundError(f"eai-delphi needs {problem.name}: {DELPHI_COMMAND}", name=problem.name) from None
    finally:
        for name in stubbed:  # others ask whether these packages are there
            del sys.modules[name]
    cache.tqdm = functools.partial(cache.tqdm, disable=True)
    return cache.LatentCache


def encoder(weight: Tensor, bias: Tensor, b_dec: Tensor, k: int | None) -> Callable[[Tensor], Tensor]:
    """What delphi is given for a dictionary: activations [context, token, d] -> dense latents [context, token, width].

    The work of delphi's `sae_dense_latents` over sparsify's `SparseCoder.encode`: a linear map, ReLU, TopK, and a
    scatter into zeros; without `k` it ends at the ReLU. weight [width, d].
    """

    def encode(x: Tensor) -> Tensor:
        pre = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]) - b_dec, weight, bias).relu_()
        if k is not None:
            value, feature = pre.topk(k, dim=-1, sorted=False)
            pre = torch.zeros_like(pre).scatter_(-1, feature, value)
        return pre.view(*x.shape[:-1], -1)

    return encode


def run_cache(model: Any, hookpoint: str, encode: Callable[[Tensor], Tensor], tokens: Tensor, batch_size: int) -> Any:
    """delphi's `LatentCache.run` over tokens [context, token].

    Returns its in-memory cache: `latent_locations[hookpoint]` (context, token, feature) and
    `latent_activations[hookpoint]`. delphi drops the rest of a last batch that is not full, and says nothing where a
    hookpoint names no module; both are refused here.
    """
    if len(tokens) % batch_size:
        raise ValueError(f"{len(tokens)} contexts are no whole number of batches of {batch_size}")
    model.get_submodule(hookpoint)
    found = latent_cache()(model, {hookpoint: encode}, batch_size=batch_size)
    found.run(n_tokens=tokens.numel(), tokens=tokens)
    return found.cache
