"""A pass over the text that is interrupted, as by Ctrl-C, with a checkpoint of what came before."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from autointerp import sweep
from autointerp.keep import Keeper


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """What collects within it saves after every batch, and has to be interrupted as it keeps the `at`-th."""
    calls, add = [0], Keeper.add

    def dying(self: Keeper, batch: Any) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        add(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Keeper, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            yield
