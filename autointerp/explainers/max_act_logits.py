"""`max-act-logits`: lists of strongest tokens, of the tokens after them, of promoted tokens, and short texts.

The evidence of Neuronpedia's np_max-act-logits, which is made for features that say what comes next: at each of the
strongest passages the token of the peak and the one after it, and 24 tokens on each side without a mark. Promoted
tokens are there where `explainer.logit_lens` is set.
"""

from autointerp.explainers.method import Evidence, Method
from autointerp.explainers.shown import Shown, listed, one_line, visible

SIDE_TOKENS = 24  # of a text, on each side of its peak


def evidence(shown: Shown, feature: int, excerpts: int) -> Evidence | None:
    """Half as many passages as excerpts of other methods: each is twice as long."""
    found = shown.strongest(feature, max(excerpts // 2, 1))
    if not found:
        return None
    peaks = [passage.peak for passage in found]
    after = [p.strings[at + 1] for p, at in zip(found, peaks, strict=True) if at + 1 < len(p.strings)]
    texts = [
        "".join(p.strings[max(at - SIDE_TOKENS, 0) : at + SIDE_TOKENS + 1]) for p, at in zip(found, peaks, strict=True)
    ]
    return Evidence({
        "after": _tokens(after),
        "strongest": _tokens([p.strings[at] for p, at in zip(found, peaks, strict=True)]),
        "texts": listed([one_line(text) for text in texts]),
    }, len(found))  # fmt: skip


def _tokens(tokens: list[str]) -> str:
    return listed([visible(token).strip() or '" "' for token in tokens])


METHOD = Method("max-act-logits", evidence, version=2)
