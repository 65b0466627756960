"""Pure arithmetic: arrays in, numbers out.

`None` is the answer where a number does not exist (a constant series has no correlation); the caller records why.
Every function raises ValueError for lengths that differ or values that are not finite.

    correlation   r_rank and the moments that correlations are made of
    corpus        r_pop: the same, weighted to the corpus, with an interval that covers
    detection     does a passage fire: F1, AUPRC, balanced accuracy, TNR_B, TNR_C
    fit           how much is explained: OpenAI's variants, the centred ones, after calibration
    nulls         permutation p, false discovery rate, partial correlation, discrimination, AUROC
    legacy        scores of OpenAI, delphi and SAEBench, exactly as theirs
"""

from autointerp.metrics.corpus import Background, Cell, pooled_background, r_pop
from autointerp.metrics.correlation import (
    F64,
    Interval,
    Moments,
    checked,
    correlation,
    correlation_of,
    mean_interval,
    moments,
    r_rank,
    why_none,
)
from autointerp.metrics.detection import (
    Confusion,
    auprc,
    balanced_accuracy,
    balanced_threshold,
    confusion,
    f1,
    matthews,
    true_negative_rate,
)
from autointerp.metrics.fit import (
    absolute_deviation_centred,
    absolute_deviation_explained,
    calibration,
    r2_calibrated,
    r2_centred,
    r2_uncentred,
)
from autointerp.metrics.legacy import (
    delphi_accuracy,
    openai_bins,
    openai_score,
    openai_slices,
    saebench_accuracy,
    saebench_null,
    top_and_random,
)
from autointerp.metrics.nulls import (
    auroc,
    benjamini_hochberg,
    discrimination,
    lift,
    partial_correlation,
    permutation_p,
    win_rate,
)

__all__ = [
    "F64", "Background", "Cell", "Confusion", "Interval", "Moments", "absolute_deviation_centred",
    "absolute_deviation_explained", "auprc", "auroc", "balanced_accuracy", "balanced_threshold", "benjamini_hochberg",
    "calibration", "checked", "confusion", "correlation", "correlation_of", "delphi_accuracy", "discrimination", "f1",
    "lift", "matthews", "mean_interval", "moments", "openai_bins", "openai_score", "openai_slices",
    "partial_correlation", "permutation_p", "pooled_background", "r2_calibrated", "r2_centred", "r2_uncentred", "r_pop",
    "r_rank", "saebench_accuracy", "saebench_null", "top_and_random", "true_negative_rate", "why_none", "win_rate",
]  # fmt: skip
