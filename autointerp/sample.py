"""Activations of a few contexts from all over the corpus: what a check and a probe look at before the pass."""

import torch
from torch import Tensor

from autointerp.config import Settings
from autointerp.corpus import Allotment, contexts
from autointerp.subject import Subject, pad

SAMPLE_TOKENS = 2048


class Sample:
    """Activations at any hookpoint, read once each. The same contexts whatever the shard, the budget or the device."""

    def __init__(self, settings: Settings, subject: Subject, tokens: int = SAMPLE_TOKENS) -> None:
        width = settings.collect.context_tokens
        budget = settings.corpus.model_copy(update={"tokens": tokens})
        groups = contexts(
            settings.corpus, subject.tokenizer, width, settings.collect.split_salt,
            allotment=Allotment.plan(budget, width, subject.tokenizer),
        )  # fmt: skip
        found = [context.tokens for group in groups for context in group][: max(tokens // width, 1)]
        self.subject, self.batch = subject, settings.subject.batch_contexts
        self.tokens, self.lengths = pad(found, width)
        self._read: dict[str, Tensor] = {}

    def read(self, hookpoints: list[str]) -> None:
        """Run the subject once for all of these."""
        new = [h for h in dict.fromkeys(hookpoints) if h not in self._read]
        if new:
            parts = [self.subject.activations(tokens, new) for tokens in self.tokens.split(self.batch)]
            self._read |= {h: torch.cat([part[h] for part in parts]) for h in new}

    def at(self, hookpoint: str) -> Tensor:
        """Activations [context, token, d]."""
        self.read([hookpoint])
        return self._read[hookpoint]

    def usable(self, hookpoint: str) -> Tensor:
        """bool [context, token]: the positions that collect would count."""
        return self.subject.usable(self.tokens, self.at(hookpoint), self.lengths)
