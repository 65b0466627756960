"""The embedding simulator's memory: what it holds is bounded, and what it forgot comes back to the same bits."""

from collections.abc import Iterator

import numpy as np
import pytest

from autointerp import config
from autointerp.simulators import embedding
from autointerp.simulators.embedding import READ_BATCH, EmbeddingSimulator
from autointerp.simulators.held import Held
from autointerp.tally import Bar

BACKGROUND = np.arange(10)
LABELS = ["a treaty", "harbours, ships", 'the word "budget"']
SILENT = Bar(enabled=False)


def _strings(i: int) -> list[str]:
    """A passage of its own length and words."""
    who, what = ("senate", "house", "court", "people")[i % 4], ("budget", "treaty", "ships", "harbour bill")[i // 4 % 4]
    text = f"On day {i} the {who} came back to the {what}" + " and spoke of it again" * (i % 5) + " ."
    return [word if n == 0 else " " + word for n, word in enumerate(text.split(" "))]


PASSAGES = {i: _strings(i) for i in range(240)}


class Small:
    """A simulator with room for 64 passages, and how many texts its encoder was given."""

    def __init__(self, like: EmbeddingSimulator) -> None:
        self.simulator = EmbeddingSimulator(like.model, like.tokenizer, like.cfg, like.device, 64)
        self.embedded = 0
        plain = self.simulator._embed
        self.simulator._embed = self._counted(plain)  # type: ignore[method-assign]

    def _counted(self, plain):  # type: ignore[no-untyped-def]
        def embed(texts):  # type: ignore[no-untyped-def]
            self.embedded += len(texts)
            return plain(texts)

        return embed


@pytest.fixture(scope="module")
def whole() -> EmbeddingSimulator:
    """A simulator that holds every passage."""
    found = EmbeddingSimulator.load(config.load(None, []).simulator, "cpu", 64)
    found.read(PASSAGES, SILENT)
    found.calibrate(BACKGROUND)
    return found


@pytest.fixture
def small(whole: EmbeddingSimulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    """Less room than there are passages."""
    monkeypatch.setattr(embedding, "HELD_BYTES", 64 * 64 * whole._vectors.shape[2] * 2)
    found = Small(whole)
    assert len(found.simulator._held) == 64
    yield found


def test_what_is_held_is_bounded_and_what_was_forgotten_comes_back_to_the_same_bits(
    whole: EmbeddingSimulator, small: Small
) -> None:
    simulator, size = small.simulator, small.simulator._vectors.untyped_storage().nbytes()
    simulator.read(PASSAGES, SILENT)
    simulator.calibrate(BACKGROUND)
    assert not simulator._held.slot, "more than there is room for is embedded when it is asked about"
    random = np.random.default_rng(0)
    asked = [random.integers(0, 240, size=n) for n in (3, 64, 40, 65, 1, 33)]  # passages may come twice
    for passages in [*asked, np.arange(240), *asked]:
        np.testing.assert_array_equal(simulator.predict(LABELS, passages), whole.predict(LABELS, passages))
        assert len(simulator._held.slot) <= 64
    assert simulator._vectors.untyped_storage().nbytes() == size <= embedding.HELD_BYTES
    assert small.embedded > 2 * 240, "the test must have made it forget"


def test_what_fits_is_embedded_as_it_is_read_and_once(small: Small) -> None:
    simulator = small.simulator
    simulator.read({i: PASSAGES[i] for i in range(64)}, SILENT)
    simulator.calibrate(BACKGROUND)
    for passages in (np.arange(64), np.arange(64)[::-1].copy(), np.arange(9)):
        simulator.predict(LABELS, passages)
    assert small.embedded == 64


def test_a_batch_is_filled_up_with_what_was_read_next(whole: EmbeddingSimulator, small: Small) -> None:
    """Features are asked about in the order they were read in, a few passages at a time."""
    simulator = small.simulator
    simulator.read({i: PASSAGES[i % 20 * 5] for i in range(240)}, SILENT)  # of one length
    simulator.calibrate(BACKGROUND)
    for start in range(0, 240, 8):
        simulator.predict(LABELS[:1], np.arange(start, start + 8))
    batches = -(-small.embedded // READ_BATCH)
    assert batches <= 240 // READ_BATCH + 2, "a pass of the encoder for every 8 passages would be 30"


def test_a_passage_read_again_is_the_first_one(small: Small) -> None:
    small.simulator.read({1: PASSAGES[1]}, SILENT)
    small.simulator.read({1: PASSAGES[1]}, SILENT)
    assert small.embedded == 1


def test_the_passages_asked_about_longest_ago_make_room() -> None:
    held = Held(3)
    assert held.lacking([7, 8, 7]) == [7, 8]
    assert sorted(held.fill([7, 8])) == [0, 1]
    assert held.lacking([9]) == [9]
    held.fill([9])
    assert held.lacking([7]) == []  # 7 is the one asked about last now
    at = held.slot[8]
    assert held.lacking([10]) == [10]
    assert held.fill([10]).tolist() == [at]
    assert set(held.slot) == {7, 9, 10}
    assert len(set(held.slot.values())) == 3
    with pytest.raises(ValueError, match="4 passages do not fit into 3"):
        held.fill([1, 2, 3, 4])
