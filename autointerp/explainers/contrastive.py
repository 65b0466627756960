"""`contrastive`: the evidence of `marks`, and silent excerpts that look alike.

The silent ones hold a token that the feature mostly fires on, so they show what the token alone does not explain. They
come from the explain panel, never from the panels that labels are graded on.
"""

from autointerp.explainers import marks
from autointerp.explainers.method import Evidence, Method
from autointerp.explainers.shown import Shown, listed


def evidence(shown: Shown, feature: int, excerpts: int) -> Evidence | None:
    """Two thirds marked excerpts, one third silent ones, where there are so many."""
    silent = shown.lookalikes(feature, excerpts // 3)
    found = marks.evidence(shown, feature, excerpts - len(silent))
    if found is None:
        return None
    return Evidence(found.holes | {"silent": listed(silent)}, found.n_excerpts + len(silent))


METHOD = Method("contrastive", evidence, version=2)
