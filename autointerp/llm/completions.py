"""Reading prompts on a server that speaks vLLM's completions: how likely tokens are at places of a prompt.

Prompts go out as token ids, so where a token begins is never the server's to decide. A whole prompt is read through
`prompt_logprobs`, of which a server gives the likeliest tokens of each place (vLLM: 20, more with --max-logprobs)
beside the prompt's own; the end of a prompt through the `logprobs` of one token that follows it, where newer servers
also take `logprob_token_ids` and so leave none of those out. What comes back is a thousand times what is asked, so a
reply is cut down to that before it is kept: a JSON object with

    logprobs  [place, wanted token], null where the server left the token out
    floors    [place] what is left out is not likelier than this
    texts     token -> the server's text of it, where it says so
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autointerp.errors import UserError
from autointerp.llm.raw import count, field, text
from autointerp.llm.request import Model, Reading, Reply

UNFIT = re.compile(r"logprobs|/completions|no such API")  # in what a server says that cannot be asked for this
ID = "token_id:"  # what a token is called that stands by its id


class Place(NamedTuple):
    """What a server says of one place."""

    logprobs: dict[int, float]
    floor: float
    texts: dict[int, str]


def parts(reading: Reading) -> set[str]:
    """The parts of a request that a server may not know."""
    return set() if reading.endings is None else {"logprob_token_ids"}


def body(reading: Reading, known: set[str]) -> dict[str, Any]:
    """The request, with the optional parts that the server knows."""
    shared: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
    if reading.endings is None:
        return {"prompt": reading.prompts[0], "prompt_logprobs": reading.top, **shared}
    wanted = {"logprob_token_ids": list(reading.wanted)} if "logprob_token_ids" in known else {}
    asked = {"logprobs": reading.top, "return_tokens_as_token_ids": True, **wanted}
    return {"prompt": reading.prompts, **asked, **shared}


def unfit(model: Model, top: int, said: str) -> UserError:
    """The line for a server that cannot be asked for this."""
    return UserError(
        f"{model} does not say how likely the {top} likeliest tokens at each place of a prompt are, which "
        f"simulator.kind = 'logprob' reads: {said}; take a vLLM server, and simulator.top_logprobs up to its "
        "--max-logprobs"
    )


def reply(model: Model, reading: Reading, found: Any) -> Reply:
    """What came back, cut down to what was asked. Raises UserError where the server has not said it."""
    try:
        choices = sorted(found["choices"], key=lambda choice: int(choice["index"]))
        places = _in_prompt(reading, choices) if reading.endings is None else _after_prompts(reading, choices)
    except (TypeError, ValueError, LookupError, AttributeError):
        raise unfit(model, reading.top, "a reply without them") from None
    said = json.dumps({
        "logprobs": [[place.logprobs.get(token) for token in reading.wanted] for place in places],
        "floors": [place.floor for place in places],
        "texts": {token: text for place in places for token, text in place.texts.items() if token in reading.wanted},
    })  # fmt: skip
    usage = field(found, "usage")
    sent = count(usage, "prompt_tokens")
    return Reply(
        text=said, model=text(field(found, "model")) or model.name, ms=0.0, input_tokens=sent,
        cached_tokens=None if sent is None else count(field(usage, "prompt_tokens_details"), "cached_tokens") or 0,
        output_tokens=count(usage, "completion_tokens"),
    )  # fmt: skip


def _in_prompt(reading: Reading, choices: Sequence[Any]) -> list[Place]:
    (choice,) = choices
    said = choice["prompt_logprobs"]
    if len(said) != len(reading.ids):
        raise ValueError("another prompt")
    return [_place(said[place], reading.ids[place]) for place in reading.places]


def _place(said: Mapping[str, Mapping[str, Any]], own: int) -> Place:
    """A place of a prompt. What is said of the prompt's own token is no floor: it stands there however unlikely."""
    found = {int(token): float(entry["logprob"]) for token, entry in said.items()}
    others = [value for token, value in found.items() if token != own]
    if own not in found or not others:
        raise ValueError("another prompt, or its own tokens alone")
    texts = {int(token): str(entry["decoded_token"]) for token, entry in said.items() if entry.get("decoded_token")}
    return Place(_finite(found), _floor(others), texts)


def _after_prompts(reading: Reading, choices: Sequence[Any]) -> list[Place]:
    if len(choices) != len(reading.places):
        raise ValueError("fewer prompts")
    places = []
    for choice in choices:
        said = choice["logprobs"]["top_logprobs"][0]
        found = {int(token.removeprefix(ID)): float(value) for token, value in said.items() if token.startswith(ID)}
        if not found:
            raise ValueError("tokens without their ids")
        places.append(Place(_finite(found), _floor(list(found.values())), {}))
    return places


def _finite(found: dict[int, float]) -> dict[int, float]:
    return {token: round(value, 6) for token, value in found.items() if math.isfinite(value)}


def _floor(values: Sequence[float]) -> float:
    """The least of these; 0, so any likelihood at all, where one of them is no number."""
    return round(min(values), 6) if all(math.isfinite(value) for value in values) else 0.0
