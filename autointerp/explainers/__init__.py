"""Explainers that ask a model, by name. Each is a prompt file and the evidence that fills it.

In the settings a method may name another prompt file: `marks:short` is the evidence of `marks` in prompts/short.md.
"""

from autointerp.explainers import contrastive, marks, max_act_logits, structured, token_act
from autointerp.explainers.method import Evidence, Method, messages
from autointerp.explainers.replies import Candidate, Given
from autointerp.explainers.shown import Shown

METHODS = {m.METHOD.name: m.METHOD for m in (marks, contrastive, token_act, max_act_logits, structured)}


def named(text: str) -> tuple[Method, str]:
    """The method and the prompt file behind an entry of `explainer.methods` that is not `mined`."""
    name, _, prompt = text.partition(":")
    method = METHODS[name]
    return method, prompt or method.prompt


__all__ = ["METHODS", "Candidate", "Evidence", "Given", "Method", "Shown", "messages", "named"]
