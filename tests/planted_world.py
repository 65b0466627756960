"""The packaged corpus as the packaged subject cuts it, with features planted in it: read once for all tests."""

import functools

from autointerp import config
from autointerp.candidates import TOKENS, Planted, Size, plant
from autointerp.planted import PlantedText
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar

SIZE = Size(per_density=20, noise=30, rare=4, draws=200)


@functools.cache
def text() -> PlantedText:
    """All of the State of the Union addresses."""
    settings = config.load(None, [f"corpus.tokens={TOKENS}"])
    reader = Subject.reader(settings.subject)
    return PlantedText.read(settings, reader.tokenizer, functools.cache(reader.token_bytes))


@functools.cache
def planted() -> tuple[Planted, Store]:
    """Features at every density in a store in memory, with their labels."""
    store = Store.memory()
    return plant(config.load(None), store, SIZE, Bar(False), text()), store
