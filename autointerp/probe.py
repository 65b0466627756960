"""What plain units need before they can be encoded: where each begins to fire.

METHOD: a unit fires above the 99.5 % quantile of a fixed probe. The probe is the same evenly spread contexts whatever
the shard, budget or device, so every worker finds the same, and its size is part of the dictionary's identity.
"""

from dataclasses import replace

from autointerp.config import Settings
from autointerp.dictionary import Dictionary, tau_of
from autointerp.dictionary.encode import PROBE_TOKENS
from autointerp.errors import DictionaryError
from autointerp.sample import Sample
from autointerp.subject import Subject


def completed(settings: Settings, subject: Subject, dictionary: Dictionary, hookpoint: str) -> Dictionary:
    """The dictionary, ready to encode: units get their thresholds, anything else is ready.

    Raises DictionaryError where no position of the probe is usable, or an activation is not finite.
    """
    if dictionary.architecture != "units" or dictionary.threshold is not None:
        return dictionary
    sample = Sample(settings, subject, PROBE_TOKENS)
    activations = sample.at(hookpoint)[sample.usable(hookpoint)]
    if not len(activations):
        raise DictionaryError(f"{dictionary.name}: every position of the probe is masked, so no threshold can be found")
    tau = tau_of(activations.float()).cpu()
    if not tau.isfinite().all():
        raise DictionaryError(f"{dictionary.name}: activations at {hookpoint} are not finite, so no threshold is")
    return replace(dictionary, threshold=tau)
