"""`marks`: excerpts from strongest to weakest, with marks around the words that fire. The default method with a model.

Mostly at even quantiles of the peak: a label made from the strongest excerpts alone is often too narrow.
"""

from autointerp.explainers.method import Evidence, Method
from autointerp.explainers.shown import Shown, listed, marked


def evidence(shown: Shown, feature: int, excerpts: int) -> Evidence | None:
    """Marked excerpts over the whole range of the peak."""
    found = shown.spread(feature, excerpts)
    if not found:
        return None
    lines = [marked(passage.strings, passage.positions, passage.values) for passage in found]
    return Evidence({"excerpts": listed(lines)}, len(found))


METHOD = Method("marks", evidence, version=2)
