"""What the subject writes while features are changed, beside what it writes when they are not.

How far a change takes the subject from itself is the KL divergence of its next-token distributions along the unsteered
text; where it breaks shows in the repetition of what it writes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from autointerp import hooks, targets
from autointerp.dictionary import Dictionary
from autointerp.errors import ConfigError, FeatureError, StoreError, SubjectError
from autointerp.intervene import Edit, Kind, check, intervening
from autointerp.meaning import nearest
from autointerp.population import feature_index
from autointerp.report import Reading
from autointerp.show import visible
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar

GRAM = 3  # tokens: repetition counts runs of so many that were there before
COLUMN = 36  # characters of the terminal that a text takes, beside others
KL_OVER = "mean over the tokens of the unsteered continuation of KL(unsteered || steered), in nats"


@dataclass(frozen=True)
class Steered:
    """One continuation of the prompt."""

    strength: float  # multiples of each feature's own maximum activation; 0 for the unsteered and for ablation
    text: str  # the continuation, without the prompt
    kl: float  # nats per token, as KL_OVER says; 0 for the unsteered
    repetition: float  # share of its runs of GRAM tokens that it had written before, 0 to 1


@dataclass(frozen=True)
class Changed:
    """A feature that is changed, and its unit of strength."""

    feature: int
    feature_id: str
    label: str | None
    max_activation: float  # over the whole collection


@dataclass(frozen=True)
class Steering:
    """Everything that a steer command shows."""

    prompt: str
    edit: Kind
    features: list[Changed]
    hookpoint: str
    baseline: Steered
    results: list[Steered]
    kl_over: str = KL_OVER


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy."""

    tokens: int = 40
    temperature: float = 0.0
    seed: int = 0


class Steerer:
    """A subject with a dictionary of a finished run, ready to be steered."""

    def __init__(self, reading: Reading, store: Store) -> None:
        """Loads the dictionary that the run was collected with, and the subject, whole.

        Raises a UserError where either is no longer there, or the dictionary is another one by now.
        """
        self.reading, self.store = reading, store
        settings = reading.settings
        target = target_of(reading)
        self.dictionary: Dictionary = target.dictionary
        self.hookpoint: str = target.keys.hookpoint
        self.largest = store.features(reading.run.collection_id)["max"].max(axis=0)
        self.labels = {label.feature: label.label for label in reading.labels}
        self._settings = settings

    def changed(self, feature: str) -> Changed:
        """A feature by id, with its unit. Raises FeatureError for an unknown one and for one that never fired."""
        index = feature_index(feature, self.dictionary.name, self.dictionary.width)
        if not self.largest[index] > 0:
            raise FeatureError(f"feature {feature} never fired in this collection, so strengths have no unit for it")
        name = f"{self.dictionary.name}/{index}"
        return Changed(index, name, self.labels.get(index), float(self.largest[index]))

    def by_meaning(self, phrase: str) -> Changed:
        """The feature whose label is nearest to a phrase. Raises FeatureError in a run without labels."""
        known = [(feature, label) for feature, label in self.labels.items() if label is not None]
        if not known:
            raise FeatureError("no feature of this run has a label: name one by its index instead of --label")
        place, _ = nearest(phrase, [label for _, label in known], self._settings.simulator.encoder)[0]
        return self.changed(str(known[place][0]))

    def steer(
        self, features: Sequence[Changed], prompt: str, strengths: Sequence[float], edit: Kind, how: Sampling, bar: Bar
    ) -> Steering:
        """The prompt continued with the features unchanged, and at every strength.

        edit  add: strength x maximum activation x decoder row, at every position of prompt and continuation;
              clamp: their activations held at strength x maximum; ablate: held at 0, and strengths are not read

        Strengths are contexts of one batch. An addition of 0 changes no bit, so the unsteered text stands for it.
        Raises SubjectError for a prompt that does not fit the subject's context, and for a strength at which its logits
        are no numbers.
        """
        plans = [0.0] if edit == "ablate" else [s for s in strengths if edit == "clamp" or s != 0]
        edits = [Edit(f.feature, edit, tuple(s * f.max_activation for s in plans)) for f in features]
        check(self.dictionary, self.hookpoint, edits)
        subject = Subject.load(self._settings.subject, seed=self._settings.run.seed)
        ids = prompt_ids(subject, prompt, how.tokens)
        bar.start("steer", total=how.tokens * 2 if plans else how.tokens, unit="tokens")
        (own,) = continued(subject, ids, how, 1, bar)
        baseline = Steered(0.0, _text(subject, own), 0.0, repetition(own))
        found = {0.0: baseline} if edit == "add" else {}
        if plans:
            before = log_probabilities(subject, ids, own, 1)
            try:
                with intervening(subject, self.hookpoint, self.dictionary, edits):
                    written = continued(subject, ids, how, len(plans), bar)
                    after = log_probabilities(subject, ids, own, len(plans))
            except NotFinite as problem:
                raise SubjectError(
                    f"strength {plans[problem.context]:g} makes logits of {subject.name} NaN or infinite: take a "
                    "smaller one"
                ) from None
            for strength, tokens, probabilities in zip(plans, written, after, strict=True):
                kl = divergence(before[0], probabilities)
                found[strength] = Steered(strength, _text(subject, tokens), kl, repetition(tokens))
        shown = plans if edit == "ablate" else strengths
        return Steering(prompt, edit, list(features), self.hookpoint, baseline, [found[s] for s in shown])


def target_of(reading: Reading, sketch: Subject | None = None) -> targets.Target:
    """The dictionary that a run was collected with, with its place in the subject.

    Raises StoreError where what is loaded by its name is another one by now, other UserErrors where it is gone.
    """
    settings = reading.settings
    found = targets.load(settings, sketch or Subject.sketch(settings.subject))
    return same(next(target for target in found if target.dictionary.name == reading.run.dictionary), reading)


def same(target: targets.Target, reading: Reading) -> targets.Target:
    """The target, if a run was collected with such a one. Raises StoreError where it was not."""
    found_at, collected = (target.dictionary.width, target.keys.hookpoint), reading.collection
    if found_at != (collected["width"], collected["hookpoint"]):
        raise StoreError(
            f"{target.dictionary.name} has width {found_at[0]} at {found_at[1]} by now, but the run was collected with "
            f"width {collected['width']} at {collected['hookpoint']}: collect it anew"
        )
    return target


class NotFinite(ArithmeticError):
    """The subject's logits are NaN or infinite in this context of a batch."""

    def __init__(self, context: int) -> None:
        super().__init__(context)
        self.context = context


def prompt_ids(subject: Subject, prompt: str, tokens: int) -> list[int]:
    """The prompt's token ids, after a BOS where the subject has one put before every context.

    Raises SubjectError where there are none, or where `tokens` more exceed the subject's positions.
    """
    ids = list(subject.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if not ids:
        raise SubjectError("the prompt is empty: give --prompt some text to continue")
    if subject.prepend_bos:
        ids.insert(0, int(subject.tokenizer.bos_token_id))
    limit = getattr(hooks.text_config(subject.model), "max_position_embeddings", None)
    if limit is not None and len(ids) + tokens > limit:
        raise SubjectError(
            f"a prompt of {len(ids):,} tokens and {tokens:,} to write exceed the context of {subject.name}: "
            f"{limit:,} positions"
        )
    return ids


@torch.inference_mode()
def continued(subject: Subject, ids: Sequence[int], how: Sampling, contexts: int, bar: Bar) -> list[list[int]]:
    """What the subject writes after `ids` in each of so many contexts, up to an end-of-text token, which is left out.

    Raises NotFinite.
    """
    random = [torch.Generator().manual_seed(how.seed) for _ in range(contexts)]
    ends = _ends(subject)
    found: list[list[int]] = [[] for _ in range(contexts)]
    open_ = set(range(contexts))
    step, cache = torch.tensor([list(ids)] * contexts, device=subject.device), None
    for _ in range(how.tokens):
        output: Any = subject.model(input_ids=step, past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, _finite(output.logits[:, -1].float().cpu())
        chosen = [_choose(row, how.temperature, random[i]) for i, row in enumerate(logits)]
        open_ -= {i for i in open_ if chosen[i] in ends}
        if not open_:
            break
        for i in open_:
            found[i].append(chosen[i])
        step = torch.tensor([[token] for token in chosen], device=subject.device)
        bar.advance()
    return found


def _choose(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(dim=0), 1, generator=random))


def _ends(subject: Subject) -> set[int]:
    config: Any = subject.model.generation_config
    ends = getattr(config, "eos_token_id", None)
    known = ends if isinstance(ends, list) else [ends, subject.tokenizer.eos_token_id]
    return {int(end) for end in known if end is not None}


@torch.inference_mode()
def log_probabilities(subject: Subject, ids: Sequence[int], written: Sequence[int], contexts: int) -> Tensor:
    """Of every token of `written` after `ids`, and of the one after it: float32 [context, n + 1, vocabulary], on the
    CPU; the same text in each context, which edits may tell apart. Raises NotFinite."""
    tokens = torch.tensor([[*ids, *written]] * contexts, device=subject.device)
    output: Any = subject.model(input_ids=tokens, use_cache=False)
    return _finite(output.logits[:, len(ids) - 1 :].float().cpu()).log_softmax(dim=-1)


def _finite(logits: Tensor) -> Tensor:
    """The logits [context, ...] themselves. Raises NotFinite for the first context where they are not finite."""
    finite = torch.isfinite(logits).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise NotFinite(int(finite.int().argmin()))
    return logits


def divergence(before: Tensor, after: Tensor) -> float:
    """KL(before || after) of log-probabilities [position, vocabulary], nats, the mean over positions; from 0 up."""
    each = torch.nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(dim=-1)
    return max(float(each.mean()), 0.0)


def repetition(tokens: Sequence[int], n: int = GRAM) -> float:
    """Share of a text's runs of n tokens that stand in it before, 0 to 1; 0 for fewer tokens."""
    runs = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _text(subject: Subject, tokens: Sequence[int]) -> str:
    return str(subject.tokenizer.decode(list(tokens), skip_special_tokens=True))


def strengths_of(given: Sequence[float], edit: Kind) -> list[float]:
    """The strengths of a command, by default one of each edit. Raises ConfigError for one that is not finite, or any
    with --ablate."""
    if edit == "ablate" and given:
        raise ConfigError("--ablate takes a feature out, whatever --strength says: give one of them")
    for strength in given:
        if not abs(strength) < float("inf"):
            raise ConfigError(f"--strength {strength}: expected a finite multiple of the feature's maximum activation")
    return list(given) or [4.0, 8.0] if edit == "add" else list(given) or [1.0]


# -- shown -------------------------------------------------------------------------------------------------------------


def as_json(found: Steering) -> dict[str, Any]:
    """Plain dicts and lists; texts are whole."""
    return asdict(found)


def to_terminal(found: Steering, console: Console) -> None:
    """Texts side by side, as many as there is room for, the unsteered always first."""
    for feature in found.features:
        console.print(Text(visible(f"{feature.feature_id}  {feature.label or '(no label)'}"), style="bold"))
        console.print(Text(f"largest activation {feature.max_activation:.2f}", style="dim"))
    console.print(Text(f"prompt: {visible(found.prompt)}\n"))
    room = max(console.width // COLUMN - 1, 1)
    for start in range(0, len(found.results), room):
        shown = found.results[start : start + room]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold cyan")
        for name in ("unsteered", *(_heading(found.edit, result.strength) for result in shown)):
            table.add_column(name, ratio=1, overflow="fold")
        columns = [found.baseline, *shown]
        table.add_row(*(Text(f"KL {c.kl:.3f}  repetition {c.repetition:.0%}", style="dim") for c in columns))
        table.add_row(*(Text(visible(c.text)) for c in columns))
        console.print(table)
        console.print()
    console.print(Text(f"KL: {found.kl_over}.", style="dim"))
    console.print(Text(f"repetition: share of runs of {GRAM} tokens that the text holds already.", style="dim"))


def _heading(edit: Kind, strength: float) -> str:
    return "ablated" if edit == "ablate" else f"{'clamped to' if edit == 'clamp' else 'strength'} {strength:g}"
