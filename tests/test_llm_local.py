"""Provider `local`: what comes back is what the model alone would have said, held to its form, each sample its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from autointerp import config, rules
from autointerp.errors import ReplyError, SubjectError, UserError
from autointerp.explainers.replies import labels_schema
from autointerp.llm import Door, Job, Model, Reply, Request, structured
from autointerp.llm.local import Batches, LocalProvider
from autointerp.llm.trouble import NoReply
from autointerp.store import Store

from . import families

LOCAL = Model("local", "m")
EXAMPLES = (("system", "Ada drove to the red harbour. " * 4), ("user", "Bela walked"), ("assistant", "home"))


def request(text: str, **changes: Any) -> Request:
    """A request with no examples."""
    given = {"model": LOCAL, "messages": (("system", "s"), ("user", text)), "max_new_tokens": 8}
    return Request(**(given | changes))


def taught(text: str, **changes: Any) -> Request:
    """A request that shares its examples with others."""
    return request(text, messages=(*EXAMPLES, ("user", text)), **changes)


def said(replies: list[Any]) -> list[tuple[str, int, int]]:
    """What replies say, and how many tokens they took."""
    return [(reply.text, reply.input_tokens, reply.output_tokens) for reply in replies]


@pytest.fixture
def door() -> Door:
    """A door on a store in memory."""
    store = Store.memory()
    made = Door(store, config.load(None, ["explainer.batch=4"]))
    made.keep = store  # type: ignore[attr-defined]  # the ledger does not keep it alive
    return made


@pytest.fixture(scope="module")
def local(tiny: dict[str, Path]) -> LocalProvider:
    """The tiny subject as a provider."""
    return LocalProvider(str(tiny["subject"]), "cpu")


TEXTS = [
    "Ada walked to",
    "the red",
    "Bela drove to the golden harbour, and it was 5 o'clock. Cleo",
    "x",
    "Dora " * 30,
]


def test_replies_of_a_batch_are_those_of_one_request_at_a_time(local: LocalProvider) -> None:
    requests = [request(text) for text in TEXTS]
    together = local.ask(requests)
    alone = [local.ask([r])[0] for r in requests]
    assert [r.text for r in together] == [r.text for r in alone]
    assert [(r.input_tokens, r.output_tokens) for r in together] == [(r.input_tokens, r.output_tokens) for r in alone]
    assert any(r.text for r in together)


def test_replies_do_not_depend_on_the_order_of_a_batch_or_on_when_it_is_asked(local: LocalProvider) -> None:
    requests = [request(text) for text in TEXTS]
    first = [r.text for r in local.ask(requests)]
    assert [r.text for r in local.ask(requests)] == first
    assert [r.text for r in local.ask(requests[::-1])] == first[::-1]


def test_a_reply_holds_the_new_text_alone_and_is_no_longer_than_asked(local: LocalProvider) -> None:
    (reply,) = local.ask([request("Ada walked to the red", max_new_tokens=4)])
    assert "Ada walked" not in reply.text
    assert reply.output_tokens is not None
    assert 1 <= reply.output_tokens <= 4
    encoded = local.tokenizer("s\n\nAda walked to the red", add_special_tokens=False)["input_ids"]
    assert reply.input_tokens == len(encoded)
    shared = local.tokenizer("s\n\n", add_special_tokens=False)["input_ids"]  # with every request of this system text
    assert (reply.cached_tokens, reply.tries) == (len(shared), 1)


def test_a_prompt_that_leaves_no_room_for_the_longest_reply_is_not_run(local: LocalProvider) -> None:
    texts, given = ["Ada walked to", "Dora " * 300, "the red"], {"max_new_tokens": 8}
    found = local.ask([request(text, **given) for text in texts])
    assert isinstance(found[1], NoReply) and (found[1].status, found[1].reason) == ("failed", "context_too_long")
    alone = local.ask([request(text, **given) for text in texts[::2]])
    assert [r.text for r in found[::2] if isinstance(r, Reply)] == [r.text for r in alone if isinstance(r, Reply)]
    assert isinstance(local.ask([request("the red", max_new_tokens=256)])[0], NoReply)
    assert isinstance(local.ask([request("Dora " * 300)])[0], NoReply)


def test_a_prompt_that_is_too_long_is_an_answer_with_its_reason_and_no_call(
    tiny: dict[str, Path], local: LocalProvider, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autointerp.llm.local.LocalProvider", lambda *_: local)
    model = Model("local", str(tiny["subject"]))
    jobs = [Job(request(text, model=model), "test", str) for text in ("Dora " * 300, "the red")]
    ended = {job.request.messages[-1][1]: answer for job, answer in door.ask(jobs)}
    assert (ended["Dora " * 300].status, ended["Dora " * 300].reason) == ("failed", "context_too_long")
    assert door.ledger.store.query("SELECT count(*) FROM call")[1] == [(1,)]


def test_a_reply_at_its_length_limit_is_cut_off_and_used_only_where_it_is_whole(
    tiny: dict[str, Path], local: LocalProvider, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    (reply,) = local.ask([request("Ada walked to the red", max_new_tokens=4)])
    assert isinstance(reply, Reply) and (reply.status, reply.reason) == ("unparsed", "cut_off")
    monkeypatch.setattr("autointerp.llm.local.LocalProvider", lambda *_: local)

    def unfinished(text: str) -> str:
        raise ReplyError("bad_json", "half of it")

    model = Model("local", str(tiny["subject"]))
    jobs = [
        Job(request("Ada walked to the red", model=model, max_new_tokens=n), "test", parse)
        for n, parse in ((4, str), (5, unfinished))
    ]
    (whole,), (half,) = ([answer for _, answer in door.ask([job])] for job in jobs)
    assert (whole.status, whole.value) == ("ok", reply.text)
    assert (half.status, half.reason) == ("unparsed", "cut_off")
    assert len(door.ledger.store.query("SELECT 1 FROM call")[1]) == 2, "it is not asked to repair it"


TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
TEMPLATES = {
    "knows": (TURNS, "<system>s<user>a<assistant>b<user>c"),
    "refuses": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS,
        "<user>s\n\na<assistant>b<user>c",
    ),
    "leaves out": (
        "{% if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}",
        "<user>s\n\na<assistant>b<user>c",
    ),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_without_a_system_role_gets_its_text_in_the_first_message(
    local: LocalProvider, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    template, expected = TEMPLATES[kind]
    monkeypatch.setattr(local.tokenizer, "chat_template", template)
    content = (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    system = "says one thing" if kind == "leaves out" else "s"  # a letter of its own stands in any prompt
    found = local._prompt(request("", messages=((("system", system)), *content[1:])))
    assert found == expected.replace("s\n\na", f"{system}\n\na")


def test_a_template_that_refuses_everything_is_named(local: LocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.tokenizer, "chat_template", "{{ raise_exception('no\nchats') }}")
    with pytest.raises(UserError, match=r"chat template.*no chats"):
        local.ask([request("a")])


def test_a_model_that_is_not_there_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=r"no config\.json") as problem:
        LocalProvider(str(tmp_path), "cpu")
    assert "\n" not in str(problem.value)


# -- prefixes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3", "gemma2"])
def family(request: pytest.FixtureRequest, tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> LocalProvider:
    """A provider with a model of this family; gemma2 has sliding windows, shorter than the prompts."""
    folder = tmp_path_factory.mktemp(request.param)
    families.save(request.param, folder, vocabulary=400, d=32, positions=256)
    for file in tiny["subject"].glob("tokenizer*"):
        shutil.copy(file, folder)
    return LocalProvider(str(folder), "cpu")


def alone(provider: LocalProvider, asked: Request) -> str:
    """What the model says to one prompt, by transformers alone."""
    prompt = "\n\n".join(content for _, content in asked.messages)
    ids = provider.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        output = provider.model.generate(**ids, do_sample=False, max_new_tokens=asked.max_new_tokens, pad_token_id=1)
    return str(provider.tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def test_replies_after_a_shared_prefix_are_those_of_the_model_alone(family: LocalProvider) -> None:
    plain = family.model.config.model_type == "gemma2"
    assert (family.prefixes.cache("k", [2, 3], 1, 4) is None) == plain
    asked = [taught(text) for text in TEXTS]
    expected = [alone(family, one) for one in asked]
    assert len(set(expected)) > 1
    for _ in range(2):  # the second time from what is kept
        replies = family.ask(asked)
        assert [reply.text for reply in replies if isinstance(reply, Reply)] == expected
    n = len(family.tokenizer("\n\n".join(content for _, content in EXAMPLES), add_special_tokens=False)["input_ids"])
    cached = [reply.cached_tokens for reply in replies if isinstance(reply, Reply)]
    assert len(set(cached)) == 1
    assert cached[0] == 0 if plain else n - 2 <= (cached[0] or 0) <= n + 2


def test_what_is_asked_together_need_not_begin_alike(local: LocalProvider) -> None:
    asked = [taught("Ada"), request("the red"), taught("Bela", max_new_tokens=3), taught("Ada walked to"), request("x")]
    asked.append(request("", messages=(("user", "Cleo"),)))  # begins like nothing else
    replies = local.ask(asked)
    assert said(replies) == said([local.ask([one])[0] for one in asked])
    assert isinstance(replies[2], Reply) and (replies[2].output_tokens or 0) <= 3


def test_a_prefix_is_cut_where_a_prompt_parts_from_it_and_made_anew_where_it_is_longer(local: LocalProvider) -> None:
    ids = local.tokenizer(EXAMPLES[0][1])["input_ids"]
    for n in (6, 9, 4):
        cache = local.prefixes.cache("cut", ids[:n], 2, 20)
        assert cache is not None and cache.get_seq_length() == n
        expected = local.model(torch.tensor([ids[:n]]), use_cache=True).past_key_values.layers
        for mine, theirs in zip(cache.layers, expected, strict=True):
            torch.testing.assert_close(mine.keys[:1], theirs.keys)  # type: ignore[union-attr]
            torch.testing.assert_close(mine.values[1:], theirs.values)  # type: ignore[union-attr]
    assert local.prefixes.held("cut", ids[:20]) == 9, "the longer one is kept"
    for k in range(20):
        local.prefixes.cache(f"other {k}", ids[:2], 1, 4)
    assert local.prefixes.held("cut", ids[:9]) == 0, "and goes when others have been used since"


def test_a_batch_holds_requests_that_begin_alike(local: LocalProvider, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    ask = local.ask

    def counted(requests: list[Request]) -> list[Reply | NoReply]:
        asked.append([one.messages[-1][1] for one in requests])
        return ask(requests)

    monkeypatch.setattr(local, "ask", counted)
    monkeypatch.setattr("autointerp.llm.local.LocalProvider", lambda *_: local)
    jobs = [Job(make(f"{name} {i}", model=LOCAL), "test", str) for i in range(6) for name, make in (("a", taught), ("b", request))]
    monkeypatch.setattr("autointerp.subject.resolve_model", lambda name: name)
    assert len(list(door.ask(jobs))) == 12
    assert asked == [[f"{name} {i}" for i in part] for part in (range(4), range(4, 6)) for name in "ab"]


def test_requests_that_nobody_waits_for_are_dropped(local: LocalProvider) -> None:
    class Sent:
        def __init__(self, done: object) -> None:
            self.request, self.done = taught("a"), done

    batches = Batches(LOCAL, "cpu", 4)
    mine, other = object(), object()
    for done in (mine, other, mine):
        batches.send(Sent(done))  # type: ignore[arg-type]
    batches.abandon(mine)
    assert [sent.done for batch in batches._waiting.values() for sent in batch] == [other]
    batches.abandon(other)
    batches.flush()  # runs nothing: there is no model `m`


# -- forms and samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", range(3))
def test_a_reply_with_a_schema_has_its_form_whatever_the_model_would_say(local: LocalProvider, draw: int) -> None:
    schema = labels_schema(wanted=2, max_words=1)
    more = {"max_new_tokens": 100, "temperature": 1.5 * draw, "draw": draw}
    replies = local.ask([taught(text, schema=json.dumps(schema), **more) for text in TEXTS] + [taught("x", **more)])
    for reply in replies[:-1]:
        assert isinstance(reply, Reply) and (reply.status, reply.reason) == ("ok", None)
        found = json.loads(reply.text)
        assert found.keys() == {"labels"}
        assert 1 <= len(found["labels"]) <= 2
        assert all(isinstance(label, str) and len(label) <= 16 for label in found["labels"])
    assert isinstance(replies[-1], Reply) and "labels" not in replies[-1].text, "the others are as free as before"


def test_rules_of_a_model_that_knows_nothing_have_their_form(local: LocalProvider) -> None:
    schema = {**rules.SCHEMA, "properties": {**rules.SCHEMA["properties"], "label": {"type": "string", "maxLength": 5}}}  # type: ignore[dict-item]
    local_limit = {"max_new_tokens": 200, "temperature": 2.0}
    replies = local.ask([request("Ada", schema=json.dumps(schema), draw=i, **local_limit) for i in range(8)])
    whole = [json.loads(reply.text) for reply in replies if isinstance(reply, Reply) and reply.status == "ok"]
    assert {reply.reason for reply in replies if isinstance(reply, Reply)} <= {None, "cut_off"}
    for found in whole:
        assert 1 <= len(found["rules"]) <= rules.MAX_RULES
        assert all(0 <= rule["strength"] <= rules.MAX_STRENGTH and rule["trigger"] for rule in found["rules"])


def test_samples_differ_from_draw_to_draw_and_from_nothing_else(local: LocalProvider) -> None:
    draws = [taught("Ada walked to", temperature=1.0, draw=i) for i in range(1, 5)]
    texts = [text for text, *_ in said(local.ask(draws))]
    assert len(set(texts)) == 4
    assert [text for text, *_ in said(local.ask(draws[::-1]))] == texts[::-1]
    assert [said(local.ask([one]))[0][0] for one in draws] == texts


def test_samples_have_the_models_own_distribution(local: LocalProvider) -> None:
    first = taught("Ada walked to", temperature=0.5, max_new_tokens=1)
    ids = local._ids(first)
    with torch.inference_mode():
        expected = (local.model(torch.tensor([ids])).logits[0, -1] / 0.5).softmax(-1)
    asked = [taught("Ada walked to", temperature=0.5, max_new_tokens=1, draw=i) for i in range(1, 1001)]
    texts = [text for text, *_ in said(local.ask(asked))]
    chance = {}
    for token, p in enumerate(expected.tolist()):
        text = str(local.tokenizer.decode([token], skip_special_tokens=True))
        chance[text] = chance.get(text, 0.0) + p
    likeliest = sorted(chance, key=lambda text: -chance[text])[:5]
    for text in likeliest:
        spread = (chance[text] * (1 - chance[text]) / len(asked)) ** 0.5
        assert abs(texts.count(text) / len(asked) - chance[text]) < 4 * spread, text


def test_bounds_of_a_schema_stay_in_this_process() -> None:
    found = structured.plain(json.dumps(labels_schema(3, 12)))
    assert found["properties"] == {"labels": {"type": "array", "items": {"type": "string"}}}
    assert structured.plain(json.dumps(rules.SCHEMA))["required"] == ["label", "rules"]
    assert not any(bound in json.dumps(structured.plain(json.dumps(rules.SCHEMA))) for bound in structured.BOUNDS)
