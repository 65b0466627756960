"""The logit lens as a part of a run: every feature of the dictionary, where that takes seconds. -> lens"""

from collections.abc import Callable

from autointerp import lenses
from autointerp.config import Settings
from autointerp.errors import DictionaryError, SubjectError
from autointerp.report import read
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar, Tally

MOST_FLOP = 1e12  # of the matrix product: about half a minute of one core; the default dictionary takes a quarter


def compute(
    store: Store, settings: Settings, dictionary: str, bar: Bar, say: Callable[[str], None]
) -> Tally | None:
    """Find the lens of the features that have none. One unit is a feature.

    None where it is left out, and `say` is told why: it would take minutes, or the dictionary's rows do not reach the
    unembedding. Nothing else needs the lens, so that is no error.
    """
    reading = read(store, dictionary)
    pending = lenses.pending(reading, store)
    if not pending:
        return Tally("lens")
    try:
        if settings.subject.random:
            raise SubjectError("the subject's unembedding is drawn anew")
        model = Subject.sketch(settings.subject).model
        rows, width = model.get_output_embeddings().weight.shape
        if 2.0 * len(pending) * rows * width > MOST_FLOP:
            raise DictionaryError(f"{len(pending):,} features take minutes; `autointerp lens` computes it")
        return lenses.compute(reading, store, bar)
    except (DictionaryError, SubjectError) as problem:
        say(f"lens: left out: {problem}")
        return None
