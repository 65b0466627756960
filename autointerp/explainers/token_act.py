"""`token-act`: every token of the strongest passages with its activation from 0 to 10 (Bills et al. 2023).

As in OpenAI's automated-interpretability: one token and one number a line, floor(10 a / a_max), and where fewer than a
fifth of the tokens fire, these once more by themselves. Here a_max is the largest activation in the explain split, not
the largest of the passages shown, and a token that would break its line is written out.
"""

from autointerp.explainers.method import Evidence, Method
from autointerp.explainers.shown import Firing, Shown, visible

SHARE = 5  # one whole passage for so many excerpts of other methods: it is five times as long
REPEAT_BELOW = 0.2  # share of firing tokens under which they are repeated alone


def evidence(shown: Shown, feature: int, excerpts: int) -> Evidence | None:
    """The strongest passages as lists, and their firing tokens as lists."""
    found = shown.strongest(feature, -(-excerpts // SHARE))
    if not found:
        return None
    a_max = shown.a_max(feature)
    levels = [_levels(passage, a_max) for passage in found]
    tokens = [list(zip(passage.strings, level, strict=True)) for passage, level in zip(found, levels, strict=True)]
    firing = [[(token, level) for token, level in pairs if level] for pairs in tokens]
    few = sum(map(len, firing)) < REPEAT_BELOW * sum(map(len, tokens))
    return Evidence({"lists": _lists(tokens), "firing": _lists(firing) if few else "-"}, len(found))


def _levels(passage: Firing, a_max: float) -> list[int]:
    """0 to 10 for each token of a passage."""
    levels = [0] * len(passage.strings)
    for position, value in zip(passage.positions, passage.values, strict=True):
        levels[position] = min(10, int(10 * value / a_max)) if a_max > 0 else 0
    return levels


def _lists(passages: list[list[tuple[str, int]]]) -> str:
    bodies = ["".join(f"{visible(token)}\t{level}\n" for token, level in pairs) for pairs in passages]
    return "\n".join(f"<start>\n{body}<end>" for body in bodies)


METHOD = Method("token-act", evidence, version=2)
