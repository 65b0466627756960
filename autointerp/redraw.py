"""The subject as a null: the same network with weights that learnt nothing (Heap et al. 2025, arXiv 2501.17727).

Labels of dictionaries of such a network score as well as those of a trained one, so a grade means little before it is
compared with theirs.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp.config import fingerprint
from autointerp.errors import SubjectError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 2**22  # weights whose float64 copies are held at once


@torch.no_grad()
def redraw(model: "PreTrainedModel", seed: int) -> None:
    """Every parameter of a model drawn anew, in place: Gaussian with the mean and variance that its tensor had.

    Embeddings are drawn too, so that nothing is left of what was learnt; of the paper's two variants that is the one
    without any trained weight (the other keeps embeddings; in Pythia-6.9B both reach a fuzz AUROC of .87). A constant
    tensor (a bias of zeros) has no spread and stays. Each tensor's generator is made of the seed and its name, so the
    result depends on neither device, order nor number of threads. Raises SubjectError for quantised weights, which
    have no Gaussian of their own.
    """
    for name, weight in model.named_parameters():  # tied ones come once
        if not weight.is_floating_point() or getattr(model, "hf_quantizer", None) is not None:
            raise SubjectError(
                f"subject.random draws weights anew, and {name} of this model is quantised ({weight.dtype}); take a "
                "model saved without quantisation, with subject.quantization = none"
            )
        generator = torch.Generator().manual_seed(int(fingerprint([seed, "redraw", name])[:15], 16))
        mean, deviation = mean_and_deviation(weight.float().cpu().numpy())
        drawn = torch.randn(weight.shape, generator=generator) * deviation + mean
        weight.copy_(drawn)  # to its own device and dtype


def mean_and_deviation(weights: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and (population) standard deviation of an array.

    In numpy, which adds on one thread: torch's sums differ in their last bits with the number of threads, and workers
    with other numbers must draw the same subject.
    """
    flat = weights.reshape(-1)
    starts = range(0, flat.size, CHUNK)
    mean = sum(float(flat[i : i + CHUNK].sum(dtype=np.float64)) for i in starts) / flat.size
    squares = sum(float(np.square(flat[i : i + CHUNK] - np.float64(mean)).sum()) for i in starts)
    return mean, (squares / flat.size) ** 0.5
