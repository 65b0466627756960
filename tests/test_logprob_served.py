"""The `logprob` simulator of a model on a server: over HTTP, the numbers of the same model in this process."""

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autointerp import config, simulate
from autointerp.errors import ConfigError, UserError
from autointerp.llm import Door
from autointerp.simulators import AskingSimulator, Predicted
from autointerp.simulators.answers import LocalAnswers
from autointerp.simulators.bounds import Bounds, mean
from autointerp.simulators.served import MOST, ServedSimulator
from autointerp.store import Store
from autointerp.tally import Bar

from .llm_server import Asked, Server, fails
from .test_logprob import LABELS, PASSAGES, model_of, tokenizer_of
from .test_logprob import short as short  # a fixture
from .test_simulate import MakeBench, Reader
from .test_simulate import bench as bench  # a fixture
from .test_simulate import planted as planted  # a fixture
from .vllm_server import Reads, Said

VOCABULARY = 401
Asks = Callable[..., tuple[list[Predicted], Server]]


class World:
    """A random model, its tokenizer, and what it says in this process."""

    def __init__(self, tiny: dict[str, Path], ten: str, prompt: str) -> None:
        self.tokenizer = tokenizer_of(tiny, ten)
        self.model = model_of("llama", len(self.tokenizer))
        reader = LocalAnswers(copy.deepcopy(self.model), self.tokenizer, prompt, batch=3)
        self.truth = [reader.expect(label, PASSAGES) for label in LABELS]

    def off(self, found: list[Predicted]) -> dict[tuple[int, int], float]:
        """Label and passage -> the largest difference from the truth, of those that have a prediction."""
        return {
            (i, j): float(np.abs(predicted.values[j, : len(truth)] - truth).max())
            for i, predicted in enumerate(found) for j, truth in enumerate(self.truth[i]) if j not in predicted.lost
        }  # fmt: skip


@pytest.fixture
def asks(tmp_path: Path) -> Iterator[Asks]:
    """asks(world, reads, **settings): predictions of LABELS on PASSAGES, into a store that stays open."""
    with Store.create(tmp_path / "run.duckdb") as store:

        def ask(
            world: World, reads: Callable[[Asked], Said] | None, plan: Any = lambda asked: "ok", **changes: object
        ) -> tuple[list[Predicted], Server]:
            with Server(reads=reads, plan=plan) as server:
                simulator = simulator_of(store, world, server, **changes)
                found = dict(simulator.ask([(label, np.arange(len(PASSAGES))) for label in LABELS]))
                return [found[i] for i in range(len(LABELS))], server

        yield ask


def simulator_of(store: Store, world: World, server: Server, **changes: object) -> ServedSimulator:
    given = {"simulator.top_logprobs": 20, "llm.tries": 4} | {k.replace("__", "."): v for k, v in changes.items()}
    settings = config.load(None, [
        "simulator.kind=logprob", "simulator.provider=openai", "simulator.model=served", "simulator.prompt=short",
        # the name stays the same over ports, so that a second server answers for the first
        f"simulator.base_url={server.openai}", *(f"{key}={value}" for key, value in given.items()),
    ])  # fmt: skip
    simulator = ServedSimulator(Door(store, settings), settings.simulator, 16, world.tokenizer)
    simulator.read(dict(enumerate(PASSAGES)), Bar(enabled=False))
    return simulator


@pytest.mark.parametrize("ten", ["two tokens", "one token", "spaced"])
def test_a_served_model_predicts_what_the_same_model_in_this_process_predicts(
    ten: str, tiny: dict[str, Path], short: str, asks: Asks
) -> None:
    world = World(tiny, ten, short)
    reads = Reads(world.model, world.tokenizer, max_logprobs=VOCABULARY, ids=False)
    found, server = asks(world, reads, simulator__top_logprobs=VOCABULARY)
    off = world.off(found)
    assert len(off) == len(LABELS) * len(PASSAGES) and max(off.values()) <= 1e-3
    assert all((p.values[j, len(PASSAGES[j]) :] == 0).all() for p in found for j in range(len(PASSAGES)))
    once = len(LABELS) * len(PASSAGES)
    assert len(server.log) == (once if ten == "one token" else 2 * once), "a request a passage, and one about the 10"


def test_answers_that_are_not_among_the_likeliest_are_asked_for_by_name(
    tiny: dict[str, Path], short: str, asks: Asks
) -> None:
    world = World(tiny, "two tokens", short)
    found, server = asks(world, Reads(world.model, world.tokenizer))
    assert not any(predicted.lost for predicted in found)
    assert max(world.off(found).values()) <= 1e-3
    assert any(None in row for row in _said(server)), "with all answers among the likeliest this would prove nothing"


def _said(server: Server) -> list[list[float | None]]:
    """Per place of the whole prompts: whether the likeliest 20 hold the tokens that the ends were asked for."""
    reads = server.reads
    assert isinstance(reads, Reads)
    wanted = next(a.body["logprob_token_ids"] for a in server.log if "logprob_token_ids" in a.body)
    whole = [a for a in server.log if "prompt_logprobs" in a.body]
    rows = [row for a in whole for row in reads(a)[1]["choices"][0]["prompt_logprobs"] if row]
    return [[row.get(str(token), {}).get("logprob") for token in wanted] for row in rows]


def test_an_older_server_leaves_a_passage_without_a_prediction_and_never_with_a_wrong_one(
    tiny: dict[str, Path], short: str, asks: Asks, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tiny, "two tokens", short)
    lost = {}
    for top in (20, 200, 400):
        reads = Reads(world.model, world.tokenizer, max_logprobs=VOCABULARY, ids=False)
        found, _ = asks(world, reads, simulator__top_logprobs=top)
        lost[top] = [why for predicted in found for why in predicted.lost.values()]
        assert all(off <= MOST + 1e-4 for off in world.off(found).values())
        assert all(np.isnan(predicted.values[j]).all() for predicted in found for j in predicted.lost)
    assert {(why.status, why.reason) for why in lost[20]} == {("failed", "answers_out_of_reach")}
    assert len(lost[20]) >= len(lost[200]) >= len(lost[400]) == 0 < len(lost[20])
    assert sum("raise simulator.top_logprobs (20)" in line for line in caplog.messages) == 1


def test_what_was_read_is_not_read_again(tiny: dict[str, Path], short: str, tmp_path: Path) -> None:
    world = World(tiny, "two tokens", short)
    wanted = [(label, np.arange(len(PASSAGES))) for label in LABELS]
    with Server(reads=Reads(world.model, world.tokenizer)) as server, Store.create(tmp_path / "run.duckdb") as store:
        first = dict(simulator_of(store, world, server).ask(wanted))
        asked = len(server.log)
        again = dict(simulator_of(store, world, server).ask(wanted))
        assert len(server.log) == asked and max(server.whole().values()) == 1
        for place, predicted in first.items():
            np.testing.assert_array_equal(predicted.values, again[place].values)
        rows = store.query("SELECT request, reply, input_tokens, output_tokens, purpose FROM call")[1]
    assert len(rows) == asked
    sent = sum(len(a.body["prompt"]) if isinstance(a.body["prompt"][0], int) else sum(map(len, a.body["prompt"])) for a in server.log)
    assert sum(row[2] for row in rows) == sent
    assert all(len(row[1]) < 20_000 for row in rows), "a reply is cut down to what was asked"
    assert any("red river" not in row[0] and " river\\tunknown" in row[0] for row in rows), "the prompt can be read"
    assert {row[4] for row in rows} == {f"simulate logprob {label}" for label in LABELS}


def test_failures_are_tried_again_and_a_prompt_that_is_too_long_is_a_reason(
    tiny: dict[str, Path], short: str, asks: Asks
) -> None:
    world = World(tiny, "two tokens", short)
    plan = fails(0.4, ("500", "cut", "truncated", "short"))
    found, server = asks(world, Reads(world.model, world.tokenizer), plan=plan, llm__tries=12)
    assert max(world.off(found).values()) <= 1e-3 and len(server.kinds()) > 2
    longest = max(len(a.body["prompt"]) for a in server.log if "prompt_logprobs" in a.body)
    found, _ = asks(world, Reads(world.model, world.tokenizer, max_model_len=longest))
    assert {why for p in found for why in p.lost.values()} == {("failed", "context_too_long")}
    assert all(set(p.lost) < set(range(len(PASSAGES))) for p in found), "shorter passages are read"


def test_a_stage_writes_what_a_served_model_predicts_and_asks_it_once(
    tiny: dict[str, Path], short: str, bench: MakeBench
) -> None:
    world = World(tiny, "two tokens", short)
    with Server(reads=Reads(world.model, world.tokenizer)) as server:
        found = bench(
            {0: [bench.words[0]]}, Reader(), simulator__kind="logprob", simulator__provider="openai",
            simulator__model="served", simulator__base_url=server.openai, simulator__prompt="short",
            simulator__tokenizer=str(tiny["subject"]), simulator__passages=12, score__nulls=0, features__select="0",
        )  # fmt: skip
        for split in ("select", "score"):
            tally = simulate.run(found.grading, split)
        assert tally.ok > 6 and not tally.failed
        n_asked = len(server.log)
        assert n_asked == 2 * tally.ok, "a request a passage, and one about the 10"
        assert not simulate.run(found.grading, "score").worked and len(server.log) == n_asked
    rows = found.store.query("SELECT passage_id, positions, predicted FROM simulation WHERE split = 'score'")[1]
    reader = LocalAnswers(copy.deepcopy(world.model), world.tokenizer, short, batch=3)
    for passage, positions, predicted in rows:
        (truth,) = reader.expect(bench.words[0], [found.grading.texts.strings(passage)])
        assert list(positions) == list(range(len(truth)))
        np.testing.assert_allclose(predicted, truth, atol=1e-3)


# -- servers that cannot be asked -------------------------------------------------------------------------------------


def silent(asked: Asked) -> Said:
    """A server that ignores what it does not know."""
    return 200, {
        "id": "1", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "text": "x", "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }  # fmt: skip


def strict(asked: Asked) -> Said:
    """OpenAI's completions."""
    return 400, {"error": {
        "message": "Unrecognized request argument supplied: prompt_logprobs", "type": "invalid_request_error",
        "param": None, "code": None,
    }}  # fmt: skip


def chats_alone(asked: Asked) -> Said:
    """OpenAI's completions, of a model for chats."""
    return 404, {"error": {
        "message": "This is a chat model and not supported in the v1/completions endpoint. Did you mean to use "
        "v1/chat/completions?", "type": "invalid_request_error", "param": "model", "code": None,
    }}  # fmt: skip


def other_prompt(asked: Asked) -> Said:
    """A server that cuts the prompt short."""
    status, said = silent(asked)
    said["choices"][0]["prompt_logprobs"] = [None] * (len(asked.body["prompt"]) - 1)
    return status, said


@pytest.mark.parametrize("reads", [silent, strict, chats_alone, other_prompt, None])
def test_a_server_that_does_not_read_prompts_ends_it_at_once_in_one_line(
    reads: Callable[[Asked], Said] | None, tiny: dict[str, Path], short: str, tmp_path: Path
) -> None:
    world = World(tiny, "two tokens", short)
    with Server(reads=reads) as server, Store.create(tmp_path / "run.duckdb") as store:
        simulator = simulator_of(store, world, server, llm__max_in_flight=1)
        with pytest.raises(UserError, match=r"simulator\.kind = 'logprob' reads.*take a vLLM server") as problem:
            simulator.predict(LABELS, np.arange(len(PASSAGES)))
        assert "\n" not in str(problem.value) and len(server.log) <= 2, "no more than what was under way"
        assert store.query("SELECT count(*) FROM call")[1] == [(0,)]


def test_more_likeliest_tokens_than_the_server_gives_is_said_with_its_limit(
    tiny: dict[str, Path], short: str, asks: Asks
) -> None:
    world = World(tiny, "two tokens", short)
    with pytest.raises(UserError, match=r"the 50 likeliest tokens.*max allowed: 20.*--max-logprobs"):
        asks(world, Reads(world.model, world.tokenizer), simulator__top_logprobs=50)


def test_another_models_tokenizer_is_found_out(tiny: dict[str, Path], short: str, asks: Asks) -> None:
    world = World(tiny, "two tokens", short)
    other = copy.deepcopy(world.tokenizer)
    other.decode = lambda ids: f"piece {ids[0]}"
    with pytest.raises(ConfigError, match=r"simulator\.tokenizer: token \d+ is '.' to .* and 'piece \d+' to openai/served"):
        asks(world, Reads(world.model, other))


@pytest.mark.parametrize(
    "given", [["simulator.provider=openai"], ["simulator.provider=anthropic"], ["simulator.provider=openai", "simulator.model=m"]]
)
def test_providers_that_never_read_prompts_are_refused_beforehand(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^\[simulator\]: kind = 'logprob' .* vLLM server .*\(provider = 'openai' with its base_url\)"):
        config.load(None, ["simulator.kind=logprob", *given])


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_the_bounds_of_a_mean_are_those_of_all_that_is_possible() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        low = random.random((1, 4))
        weights = Bounds(low, low + random.random((1, 4)) * random.integers(0, 2, (1, 4)))
        least = random.integers(0, 10, (1, 4)).astype(float)
        values = Bounds(least, least + random.integers(0, 3, (1, 4)))
        possible = [
            np.average(v, weights=w)
            for w in itertools.product(*zip(weights.low[0], weights.high[0])) for v in itertools.product(*zip(values.low[0], values.high[0]))
        ]  # fmt: skip
        found = mean(weights, values)
        assert (float(found.low[0]), float(found.high[0])) == pytest.approx((min(possible), max(possible)))


def test_it_asks_as_the_chat_simulator_does(tiny: dict[str, Path], short: str, tmp_path: Path) -> None:
    world = World(tiny, "one token", short)
    with Server() as server, Store.create(tmp_path / "run.duckdb") as store:
        simulator = simulator_of(store, world, server)
        assert isinstance(simulator, AskingSimulator)
        assert [place for place, _ in simulator.ask([("a", np.array([], dtype=np.int64))])] == [0]
