"""Whole runs against a server that fails, and one that does not: what became of every call and of every feature.

`python -m tests.bench.llm_faults [OUT.json]` labels features of a tiny subject with a chat model for everything
(candidates, choice by detection, chat simulation, both judges), over loopback HTTP with the real SDKs: once against a
server that is slow and takes 64 requests at a time, once where it fails 30 % of them as well, with the run killed
three times on its way. What fails is drawn by a request's content and by how often it has been asked, so that it is the
same in every run. Written are the counts of both ledgers beside the server's own books.
"""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autointerp import config
from autointerp.llm.ledger import Ledger
from autointerp.simulators.chat import FIRES
from autointerp.store import Store

from ..conftest import COLOURS, NAMES, PLACES, VERBS, tiny_overrides, write_corpus, write_dictionary, write_subject
from ..llm_server import Asked, Server

SHARE = 0.3  # of the requests fail
TRANSIENT = ("429", "500", "529", "hang", "cut", "truncated", "short")  # no reply, or half of one: asked again
SPOILED = ("refusal", "refused", "filtered", "empty", "language", "cut_off", "half_json", "wrong_length")  # paid, no good
WORDS = (*NAMES, *PLACES, *VERBS, *COLOURS)
IN_FLIGHT = 8  # in the test; here 64
MODELS = {"explainer": "openai", "simulator": "anthropic", "judge": "openai"}
# Rows of what a stage ends with that are neither ok nor have a reason, or have a number in spite of one.
UNEXPLAINED = {
    "explanation": "(status = 'ok') = (label IS NULL) OR (status = 'ok') = (reason IS NOT NULL)",
    "simulation": "(status = 'ok') = (predicted IS NULL) OR (status = 'ok') = (reason IS NOT NULL)",
    "judgement": "(status = 'ok') = (says IS NULL) OR (status = 'ok') = (reason IS NOT NULL)",
    "score": "(status = 'ok') = (value IS NULL) OR (status = 'ok') = (reason IS NOT NULL)",
}


# -- the server --------------------------------------------------------------------------------------------------------


def says(asked: Asked) -> str:
    """What a model says that takes labels for words to be found: the same for the same content."""
    body = asked.body
    schema = (body["response_format"]["json_schema"] if "response_format" in body else body["output_config"]["format"])["schema"]
    repaired = "cannot be used" in asked.last
    content = asked.chat[-3 if repaired else -1][1]
    if "labels" in schema["properties"]:
        found: Any = {"labels": random.Random(hashlib.sha256(content.encode()).digest()).sample(WORDS, 3)}
    elif schema["properties"]["1"] == FIRES:
        (label,), texts = re.findall(r"^Label: (.*)$", content, re.MULTILINE), _texts(content)
        found = {str(n): [[label, i + 1, 8] for i in range(_count(label, text))] for n, text in enumerate(texts, start=1)}
    else:
        labels, passages = (_texts(part) for part in content.split("\nPassages\n"))
        fits = [[i for i, text in enumerate(passages, start=1) if _count(label, text)] for label in labels]
        found = {str(n): numbers for n, numbers in enumerate(fits, start=1)}
    if asked.kind == "wrong_length":  # an entry too few, or for labels a label too long
        found = {"labels": [" ".join(WORDS)]} if "labels" in found else dict(list(found.items())[:-1])
    text = json.dumps(found)
    return text[: len(text) // 2] if asked.kind == "half_json" else text


def _texts(content: str) -> list[str]:
    return [json.loads(text) for text in re.findall(r'^\d+: (".*")$', content, re.MULTILINE)]


def _count(word: str, text: str) -> int:
    return len(re.findall(rf"\b{word}\b", text))


def failing(share: float) -> Callable[[Asked], str]:
    """A plan that fails this share of requests, drawn by content and by how often it has been asked."""
    times: Counter[str] = Counter()

    def plan(asked: Asked) -> str:
        content = json.dumps(asked.chat)
        times[content] += 1
        draw = random.Random(hashlib.sha256(f"{times[content]} {content}".encode()).digest())
        return draw.choice(TRANSIENT + SPOILED) if draw.random() < share else "ok"

    return plan


# -- a run -------------------------------------------------------------------------------------------------------------


def options(tiny: dict[str, Path], results: Path, server: Server, **changes: object) -> list[str]:
    """Overrides of a run that asks a chat model for everything."""
    given: dict[str, object] = {
        "explainer__methods": '["mined", "marks"]', "simulator__kind": "chat", "simulator__proxy": "pattern",
        "simulator__passages": 12, "judge__kinds": '["detection", "fuzzing"]', "judge__chooses": "true",
        "llm__max_in_flight": IN_FLIGHT, "llm__timeout_s": 4, "llm__tries": 12,
    }  # fmt: skip
    for section, provider in MODELS.items():
        given |= {
            f"{section}__provider": provider, f"{section}__model": "m", f"{section}__base_url": getattr(server, provider)
        }  # fmt: skip
    return tiny_overrides(tiny, results, **(given | changes))


def start(overrides: Sequence[str]) -> subprocess.Popen[str]:
    """`autointerp run`, as a process."""
    command = [sys.executable, "-m", "autointerp", "run", *(word for o in overrides for word in ("--set", o))]
    env = os.environ | {"OPENAI_API_KEY": "test-key", "ANTHROPIC_API_KEY": "test-key"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def killed(overrides: Sequence[str], server: Server, database: Path, requests: int) -> set[str]:
    """Run until the server has seen so many more requests, and kill it.

    Returns the requests that the server answered and that the ledger does not have: those that were in flight.
    """
    child, before = start(overrides), len(server.log)
    while len(server.log) < before + requests and child.poll() is None:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    quiet(server)
    with Store.create(database) as store:
        Ledger.of(store)  # takes over the journal
        known = {request for (request,) in store.query("SELECT request FROM call")[1]}
    return set(server.whole()) - known


def finished(overrides: Sequence[str], server: Server) -> str:
    """Run to the end; what was said. Raises where it fails."""
    child = start(overrides)
    _, said = child.communicate(timeout=900)
    quiet(server)
    if child.returncode:
        raise RuntimeError(f"the run ended with {child.returncode}:\n{said}")
    return said


def quiet(server: Server) -> None:
    """Wait until the server has nothing in flight; what hangs for nobody is ended."""
    while server.in_flight:
        server.cancel()
        time.sleep(0.02)


def books(server: Server, database: Path, in_flight: set[str]) -> dict[str, Any]:
    """What became of the calls and the features, from the ledger, the tables and the server."""
    with Store.read(database) as store:

        def rows(sql: str) -> list[tuple[Any, ...]]:
            return store.query(sql)[1]

        latest = store.latest_run().features or []
        calls = rows("SELECT status::VARCHAR, reason, count(*) FROM call GROUP BY ALL ORDER BY ALL")
        tries = rows("SELECT tries, count(*) FROM call GROUP BY ALL ORDER BY ALL")
        stages = rows("SELECT split_part(purpose, ' ', 1), count(*), sum(tries) FROM call GROUP BY 1 ORDER BY 1")
        repairs = rows("SELECT count(*) FROM call WHERE repair_of IS NOT NULL")[0][0]
        recorded = Counter(request for (request,) in rows("SELECT request FROM call"))
        ended = {
            table: rows(f"SELECT status::VARCHAR, reason, count(*) FROM {table} GROUP BY ALL ORDER BY ALL")
            for table in UNEXPLAINED
        }
        unexplained = {
            table: rows(f"SELECT count(*) FROM {table} WHERE {wrong}")[0][0] for table, wrong in UNEXPLAINED.items()
        }
        labelled = rows("SELECT count(DISTINCT feature) FROM explanation WHERE method = 'marks'")[0][0]
    whole = server.whole()
    again = {request for request, n in whole.items() if n > 1}
    return {
        "features": len(latest), "features_with_an_outcome": labelled,
        "server": {
            "requests": len(server.log), "most_in_flight": server.most, "ended": dict(sorted(server.kinds().items())),
            "replies_sent_whole": whole.total(), "different": len(whole),
        },
        "ledger": {
            "calls": recorded.total(), "repairs": repairs, "by_status": calls, "by_tries": tries, "by_stage": stages,
        },
        "in_flight_when_killed": len(in_flight), "paid_twice": len(again - in_flight),
        "paid_twice_in_flight_when_killed": len(again & in_flight),
        "answered_and_not_in_the_ledger": len(set(whole) - set(recorded)),
        "in_the_ledger_and_never_answered": len(set(recorded) - set(whole)),
        "ended": ended, "rows_without_number_or_reason": unexplained,
    }  # fmt: skip


# -- the script --------------------------------------------------------------------------------------------------------


def parts(root: Path) -> dict[str, Path]:
    """The tiny subject, dictionary and corpus of the tests."""
    corpus = write_corpus(root / "corpus")
    subject = write_subject(root / "subject", corpus)
    return {"subject": subject, "corpus": corpus, "dictionary": write_dictionary(root / "sae"), "root": root}


def main() -> None:
    """Both runs; prints what was found, and writes it where a path is given."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tiny = parts(root / "tiny")
        changes: dict[str, object] = {"features__select": "random:24", "llm__max_in_flight": 64}
        found: dict[str, Any] = {"command": "python -m tests.bench.llm_faults", "share_of_failures": SHARE}
        with Server(latency_s=0.5, limit=64, says=says) as server:
            port = server.port
            overrides = options(tiny, root / "slow", server, **changes | {"llm__timeout_s": 30})
            finished(overrides, server)
            found["slow"] = {"latency_s": 0.5, "limit": 64} | books(server, config.load(None, overrides).database, set())
        with Server(says=says, plan=failing(SHARE), port=port, latency_s=0.5, limit=64) as server:
            changes |= {"llm__timeout_s": 8}
            overrides = options(tiny, root / "failing", server, **changes)
            database = config.load(None, overrides).database
            in_flight = set[str]().union(*(killed(overrides, server, database, n) for n in (12, 80, 200)))
            finished(overrides, server)
            found["failing"] = {"kills": 3, "latency_s": 0.5, "limit": 64} | books(server, database, in_flight)
            asked = len(server.log)
            finished(overrides, server)
            found["failing"]["requests_of_another_run"] = len(server.log) - asked
    text = json.dumps(found, indent=1)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
