"""Directions turned up until the subject is as far from itself as is asked: effects at one and the same cost.

A long push does more than a short one, to any token. So what a feature does is compared with what other directions do
at the same KL divergence of next-token distributions, for which each gets a strength of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autointerp.dictionary import Dictionary
from autointerp.dictionary.encode import directions
from autointerp.intervene import Edit, intervening, written_by
from autointerp.subject import Subject

TOLERANCE = 0.1  # of the KL that was asked for
STEPS = 24  # passes of the subject per direction, at most
AIMED = 6  # of which so many are aimed, before the bracket is halved


@dataclass(frozen=True)
class Pushed:
    """A direction at the KL that was asked for."""

    amount: float  # what was added, in units of activation
    kl: float  # nats per token
    change: Tensor  # float32 [prompt, token]: log-probability minus the unsteered, the mean over positions


class Prompts:
    """Texts of one length, and what the subject by itself says comes next."""

    def __init__(self, subject: Subject, hookpoint: str, ids: Sequence[Sequence[int]], first: int) -> None:
        """`first`: distributions count from the one after this token of each text, counted from 0."""
        self.subject, self.hookpoint = subject, hookpoint
        self.ids = torch.tensor([subject.begun(text) for text in ids], device=subject.device)
        self.first = first + subject.prepend_bos
        self.own = self._next()

    def pushed(self, dictionary: Dictionary, feature: int, kl: float, start: float) -> Pushed | None:
        """The decoder row of a feature, added at every position with the amount that gives this KL; `start` is tried
        first. None where no amount does."""
        found: dict[float, tuple[float, Tensor]] = {}

        def kl_of(amount: float) -> float:
            with intervening(self.subject, self.hookpoint, dictionary, [Edit(feature, "add", amount)]):
                after = self._next()
            if not bool(torch.isfinite(after).all()):
                return float("inf")
            each = (self.own.exp() * (self.own - after)).sum(dim=-1)
            found[amount] = float(each.mean()), (after - self.own).mean(dim=1)
            return found[amount][0]

        amount = search(kl_of, kl, start)
        return None if amount is None else Pushed(amount, *found[amount])

    def changed(self, dictionary: Dictionary, feature: int, amount: float) -> Tensor:
        """What adding so much of the decoder row changes, whatever it costs: float32 [token], log-probability minus
        the unsteered, the mean over prompts and positions."""
        with intervening(self.subject, self.hookpoint, dictionary, [Edit(feature, "add", amount)]):
            return (self._next() - self.own).mean(dim=(0, 1))

    @torch.inference_mode()
    def _next(self) -> Tensor:
        """Log-probabilities, float32 [prompt, position, token]."""
        output: Any = self.subject.model(input_ids=self.ids, use_cache=False)
        logits: Tensor = output.logits[:, self.first :].float()
        return logits.log_softmax(dim=-1)


def search(kl_of: Callable[[float], float], wanted: float, start: float) -> float | None:
    """The amount whose KL is the wanted one to within TOLERANCE; None where none of STEPS amounts is.

    A KL grows about as the square of a small amount, so the next amount is aimed by that law; where it falls out of
    what is known, or AIMED have missed, the bracket is halved on the scale of logarithms.
    """
    low, high, amount = 0.0, float("inf"), start
    for step in range(STEPS):
        found = kl_of(amount)
        if abs(found - wanted) <= TOLERANCE * wanted:
            return amount
        low, high = (amount, high) if found < wanted else (low, amount)
        halved = (low * high) ** 0.5 if low and high < float("inf") else amount * 2 if low else amount / 2
        aimed = amount * (wanted / found) ** 0.5 if 0 < found < float("inf") else halved
        amount = aimed if step < AIMED and low < aimed < high else halved
    return None


def random_directions(dictionary: Dictionary, features: Sequence[int], n: int, seed: int) -> Dictionary:
    """n directions, uniform on the sphere, with the norms of what these features write, in turn; as a dictionary to
    add from, whose encoder means nothing."""
    norms = torch.linalg.vector_norm(written_by(dictionary, features), dim=1)
    width = written_by(dictionary, features[:1]).shape[1]
    drawn = directions(n, width, torch.Generator().manual_seed(seed)) * norms[torch.arange(n) % len(norms), None]
    return Dictionary(
        f"{dictionary.name}-directions", "standard", drawn.T.contiguous(), torch.zeros(n), drawn, torch.zeros(width),
        normalise=dictionary.normalise,
    )  # fmt: skip
