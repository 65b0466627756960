"""What an explainer that asks a model is: a prompt file, what fills it, and how the reply is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autointerp import prompts
from autointerp.explainers.replies import Candidate, Given, labels, labels_schema
from autointerp.explainers.shown import Shown, visible
from autointerp.fence import line

LENS_PART = "part-lens"  # prompt file of the tokens that a feature makes likelier


@dataclass(frozen=True)
class Evidence:
    """What a model is shown of one feature."""

    holes: dict[str, str]  # of the prompt file, beside those that every prompt has
    n_excerpts: int  # passages shown


@dataclass(frozen=True)
class Method:
    """One idea of what to show a model, and what to ask of it."""

    name: str
    evidence: Callable[[Shown, int, int], Evidence | None]  # (shown, feature, excerpts wanted); None: nothing to show
    read: Callable[[str, Given, int, int], list[Candidate]] = labels  # (reply, given, labels wanted, max_words)
    schema: Callable[[int, int], Mapping[str, Any]] = labels_schema  # (labels wanted, max_words) -> of the reply
    one_reply: bool = True  # all candidates in one reply; else each has a call of its own
    version: int = 1  # raised when the code changes what it would show or read for the same settings

    @property
    def prompt(self) -> str:
        """The prompt file, where the settings do not name another."""
        return f"explain-{self.name}"


def messages(
    method: Method, prompt: str, shown: Shown, feature: int, excerpts: int, wanted: int, max_words: int
) -> tuple[list[dict[str, str]], int] | None:
    """The filled prompt as chat messages and how many passages it shows, or None where there is nothing to show.

    The data of the feature come last, so that what all features share is a prefix that providers cache.
    """
    found = method.evidence(shown, feature, excerpts)
    if found is None:
        return None
    common = {"lens": lens(shown.promoted(feature)), "n": str(wanted), "max_words": str(max_words)}
    if not method.one_reply:
        del common["n"]
    return prompts.fill(prompt, **common, **found.holes), found.n_excerpts


def lens(promoted: list[str]) -> str:
    """The part of a prompt about promoted tokens, "" where there are none."""
    if not promoted:
        return ""
    tokens = ", ".join(f'"{line(visible(token))}"' for token in promoted)
    return prompts.fill(LENS_PART, tokens=tokens)[0]["content"] + "\n\n"
