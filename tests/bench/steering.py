"""`python -m tests.bench.steering RUN OUT.md`: features of the default run that steer as their label says, and that do not.

RUN is a results folder in which `autointerp causal` has been run: strengths are those of its KL, and twice as much.
The features listed here are steered, on two prompts; without OUT.md all are, and are printed. Which are convincing is a
judgement of one reader of those texts, not a measurement: that one of the four is about what the label names. Texts of
so small a model are seldom more.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp import attribute, causal, causal_shown, report, steer, targets
from autointerp.causal_judge import alone
from autointerp.intervene import intervening
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar

PROMPTS = ("My grandmother told me about", "The next morning we")
TIMES = (1.0, 2.0)  # of the strength that the causal score was taken at
BATCH = 32  # contexts decoded together
HOW = steer.Sampling(tokens=24)

CONVINCING = (  # feature, and what convinces
    (3388, "slavery, a relic of the past"),
    (2834, "determination, pride; brave, most noble"),
    (20, "the most personalized, your top customers"),
    (3609, "high school, the age range"),
    (88, "her last memory, the last time we met"),
    (1396, "writes numbers"),
    (2792, "a suspicious-looking person"),
    (3210, "an operation to remove something; a new policy"),
    (2661, "social upheaval, a revolution: its score is near 0, for 'class' itself is not said"),
    (127, "what follows 'has': been; soon nothing else"),
)
FAILS = (
    (1145, "the largest score of all, and no text about it: the words rise, and are not said"),
    (2468, "the same: reasons and agreement, at most"),
    (2545, "wants to buy magical items"),
    (3727, "breaks into quotation marks and digits"),
    (639, "nothing is raised"),
    (2542, "breaks into 24 hours"),
    (816, "to which, to which"),
    (1014, "no negation"),
    (684, "breaks into prepositions"),
    (892, "score below random directions; the future of our planet"),
)


@dataclass(frozen=True)
class Case:
    """A feature at a strength on a prompt, and what was written."""

    row: dict[str, Any]  # of the causal scores
    strength: float
    amount: float
    prompt: str
    kl: float = 0.0
    text: str = ""


def written(subject: Subject, hookpoint: str, dictionary: Any, cases: list[Case], bar: Bar) -> list[Case]:
    """The cases of one prompt with their texts: features are contexts of one batch, each pushed in its own."""
    ids = subject.begun(subject.read(cases[0].prompt, "prompt", HOW.tokens))
    (own,) = steer.continued(subject, ids, HOW, 1, bar)
    before = steer.log_probabilities(subject, ids, own, 1)[0]
    found = []
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        edits = alone([(case.row["feature"], case.amount) for case in batch])
        with intervening(subject, hookpoint, dictionary, edits):
            texts = steer.continued(subject, ids, HOW, len(batch), bar)
            after = steer.log_probabilities(subject, ids, own, len(batch))
        found += [
            Case(c.row, c.strength, c.amount, c.prompt, steer.divergence(before, p), str(subject.tokenizer.decode(t)))
            for c, t, p in zip(batch, texts, after, strict=True)
        ]
    unsteered = Case({"feature": -1}, 0.0, 0.0, cases[0].prompt, 0.0, str(subject.tokenizer.decode(own)))
    return [unsteered, *found]


def table(cases: list[Case], chosen: tuple[tuple[int, str], ...]) -> list[str]:
    """Markdown: a row per feature and strength, on the prompt that shows most."""
    lines = ["| feature | label | causal | strength | KL | text | |", "|---|---|---|---|---|---|---|"]
    for feature, why in chosen:
        for case in (case for case in cases if case.row["feature"] == feature):
            text = f"**{case.prompt}**{cell(case.text)}"
            lines.append(
                f"| {feature} | {cell(case.row['label'])} | {case.row['causal']:+.2f} | {case.strength:.2f} "
                f"| {case.kl:.2f} | {text} | {why} |"
            )
            why = ""
    return lines


def cell(text: str) -> str:
    """Text in a cell of a table, as it is."""
    plain = " ".join(text.split())
    for mark in "\\`*_|<>[]":
        plain = plain.replace(mark, f"\\{mark}")
    return (" " if text[:1].isspace() else "") + plain


def main(run: Path, out: Path | None) -> None:
    """Steer everything, show what was chosen."""
    with Store.read(run / "run.duckdb") as store, Bar() as bar:
        reading = report.read(store)
        scored = causal_shown.as_json(reading, store, causal.labelled(reading), causal.KL)
        largest = store.features(reading.run.collection_id)["max"].max(axis=0)
        target, subject = targets.collected(reading), attribute.for_attribution(reading.settings)
        listed = {feature for feature, _ in (*CONVINCING, *FAILS)}
        rows = [
            row for row in scored["features"]
            if row["causal"] is not None and (out is None or row["feature"] in listed)
        ]  # fmt: skip
        bar.start("steer", total=None, unit="tokens")
        cases = [
            case for prompt in PROMPTS for case in written(subject, target.keys.hookpoint, target.dictionary, [
                Case(row, times * row["causal_strength"], times * row["causal_strength"] * largest[row["feature"]], prompt)
                for row in rows for times in TIMES
            ], bar)
        ]  # fmt: skip
    unsteered = {case.prompt: case.text for case in cases if case.row["feature"] < 0}
    if out is None:
        for case in sorted(cases, key=lambda case: -case.row.get("causal", 1e9)):
            print(case.row["feature"], case.row.get("label"), f"{case.row.get('causal', 0):+.2f} s {case.strength:.2f} KL {case.kl:.2f}\n   ", case.prompt, "|", " ".join(case.text.split()))
        return
    lines = [
        "# Features of the default run, steered", "",
        "`autointerp causal results/demo`, then `python -m tests.bench.steering results/demo results/reference/steering.md`.",
        "Greedy continuations; strengths are multiples of the feature's largest activation: the one that costs the causal",
        f"score's KL of {causal.KL:g} nats per token on its texts, and twice as much. The KL beside a text is over the",
        "unsteered continuation of its own prompt. Which are convincing is one reader's judgement of the texts of all 62:",
        "that one of the four is about what the label names. Of a model of 135M parameters little more can be had: most",
        "texts at twice the strength repeat themselves, and no text at all is about its label for most features. It was no",
        "blind comparison, and some of what convinces here (numbers, a 24-hour operation) other features write as well.", "",
        *(f"Unsteered: **{prompt}**{cell(text)}\n" for prompt, text in unsteered.items()),
        "## Ten that do what their label says", "", *table(cases, CONVINCING), "",
        "## Ten that do not", "", *table(cases, FAILS),
    ]  # fmt: skip
    out.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
