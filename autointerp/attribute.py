"""How much each firing of a feature adds to the logit of a target token, by one backward pass, checked by ablation.

The contribution of feature i at token t is a_it * (d_i . g_t): its activation, times the slope along its decoder row of
the target's logit, where g_t is the gradient at the dictionary's hookpoint. It estimates what the logit would lose
without that firing (attribution patching: Nanda 2023; for features: Marks et al. 2024). g is the mean of two gradients,
at the text's own activations and with all firings halved: at the first alone a feature that carries most of an
activation looks harmless, since the norms after it flatten the slope along it (integrated gradients, Sundararajan et
al. 2017, with two points). The target is the logit minus the mean logit of the vocabulary: a constant added to all
logits changes no probability, and would be attributed like anything else.

What x . g holds beside features is shown as it is: the reconstruction error, the dictionary's bias, and the positions
that never count (attention sinks and special tokens), where a dictionary's encoding means nothing.

The subject runs in float32 unless its weights are quantised: a bfloat16 logit of 16 to 32 has steps of 1/8, above most
contributions. So activations differ from collected ones by bfloat16's rounding.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autointerp import hooks
from autointerp.attributed import CHECKED, Attribution, Check, Pair, Target
from autointerp.config import Settings
from autointerp.dictionary import Dictionary
from autointerp.errors import SubjectError
from autointerp.intervene import check, replacing, unit_of, written_by
from autointerp.metrics.correlation import correlation
from autointerp.subject import Subject
from autointerp.tally import Bar
from autointerp.text import token_strings

BATCH = 16  # pairs ablated in one pass
PREDICTED = 5  # likeliest next tokens that are kept
PIECES = 8  # tokens of a target that an error names


@dataclass(frozen=True)
class Fired:
    """What fires on a text. `x` and the two parts are [token, d], float32, as the hookpoint has them."""

    x: Tensor
    usable: Tensor  # bool [token]
    position: Tensor  # int64 [pair]
    feature: Tensor  # int64 [pair]
    activation: Tensor  # float32 [pair]
    written: Tensor  # [pair, d], what each firing adds to x
    error: Tensor  # x minus its reconstruction; 0 where not usable


def for_attribution(settings: Settings) -> Subject:
    """The subject of a run in float32, unless it is quantised. Raises SubjectError."""
    cfg = settings.subject
    if cfg.quantization == "none":
        cfg = cfg.model_copy(update={"dtype": "float32"})
    return Subject.load(cfg, seed=settings.run.seed)


# -- what is asked -----------------------------------------------------------------------------------------------------


def text_ids(subject: Subject, text: str, position: int | None = None) -> list[int]:
    """The text's token ids up to and with `position` (None: the last), without BOS.

    Raises SubjectError for a text without tokens or longer than the context, and a position that is not in it.
    """
    ids = subject.read(text, "text")
    if position is None:
        return ids
    if not 0 <= position < len(ids):
        raise SubjectError(f"position {position}: the text has tokens 0 to {len(ids) - 1}")
    return ids[: position + 1]


def target_id(subject: Subject, target: str) -> int:
    """The id of the one token that a target text is. Raises SubjectError for none or several, naming the pieces."""
    ids = list(subject.tokenizer(target, add_special_tokens=False)["input_ids"])
    if len(ids) == 1:
        return int(ids[0])
    # SentencePiece puts a space of its own before a text, so the token itself is looked for.
    wanted = target.encode()
    found = [i for i in range(len(subject.tokenizer)) if wanted and subject.token_bytes(i) == wanted]
    if found:
        return found[0]
    if not ids:
        raise SubjectError('the target is empty: expected the text of one token, such as --target " Paris"')
    pieces = ", ".join([repr(piece) for piece in strings(subject, ids[:PIECES])] + ["..."] * (len(ids) > PIECES))
    spaced = target.lstrip() if target.startswith(" ") else f" {target}"
    one = len(subject.tokenizer(spaced, add_special_tokens=False)["input_ids"]) == 1
    raise SubjectError(
        f"the target is {len(ids)} tokens of {subject.name}: {pieces}; expected one: take the first, "
        + (f"or {spaced!r}, which is one" if one else "and mind the leading space")
    )


def strings(subject: Subject, ids: Sequence[int]) -> list[str]:
    """One string per token; together they are the text."""
    return token_strings(ids, {token: subject.token_bytes(token) for token in set(ids)})


# -- the subject, whole ------------------------------------------------------------------------------------------------


def _after(subject: Subject, ids: Sequence[int], contexts: int = 1) -> Tensor:
    """Logits after the last token, float32 [context, vocabulary], of the same text in each context."""
    tokens = torch.tensor([subject.begun(ids)] * contexts, device=subject.device)
    # The logits of all positions would take more memory than all else.
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(subject.model.forward).parameters else {}
    output: Any = subject.model(input_ids=tokens, use_cache=False, **last)
    found: Tensor = output.logits[:, -1].float()
    if not bool(torch.isfinite(found).all()):
        raise SubjectError(f"logits of {subject.name} are NaN or infinite on this text")
    return found


def over_mean(logits: Tensor, target: int) -> Tensor:
    """The target's logit minus the mean of all; logits [context, vocabulary] -> [context]."""
    return logits[:, target] - logits.mean(dim=1)


def gradient(
    subject: Subject, hookpoint: str, ids: Sequence[int], target: int | None, less: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """(activations [token, d], gradient of the target's logit over the mean [token, d], logits [vocabulary], target).

    target  a token id; None: the one that the subject finds likeliest
    less    taken away from the activations first, [token, d]
    All float32 and without BOS. Raises SubjectError where the hookpoint does not lead to the logits.
    """
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        x = x.detach().clone()
        if less is not None:
            x.view(-1, x.shape[-1])[-len(ids) :] -= less.to(x.dtype)
        kept.append(x.requires_grad_())
        return x

    with torch.enable_grad(), replacing(subject, hookpoint, keep):
        logits = _after(subject, ids)
        chosen = int(logits[0].argmax()) if target is None else target
        slope = torch.autograd.grad(over_mean(logits, chosen)[0], kept, allow_unused=True)[-1] if kept else None
    if slope is None:
        raise SubjectError(f"hookpoint {hookpoint!r} of {subject.name} has no part in the logits of this text")
    if kept[-1].numel() != (len(ids) + subject.prepend_bos) * kept[-1].shape[-1]:
        raise SubjectError(
            f"hookpoint {hookpoint!r} of {subject.name} gives {list(kept[-1].shape)} on a text of {len(ids)} tokens: "
            "expected activations [context, token, d]"
        )
    x, slope = (t.detach().float().reshape(-1, t.shape[-1])[-len(ids) :] for t in (kept[-1], slope))
    return x, slope, logits[0].detach(), chosen


@torch.inference_mode()
def fire(subject: Subject, dictionary: Dictionary, hookpoint: str, ids: Sequence[int], x: Tensor) -> Fired:
    """The features that fire on a text, and what each writes.

    x  activations at the hookpoint, [token, d]
    Raises DictionaryError for a transcoder, and for a hookpoint that is a normalised copy.
    """
    check(dictionary, hookpoint, [])
    hook = hooks.parse(hookpoint)
    factor = math.prod(number for name, number in hook.transforms if name == "scale")
    seen = hook.apply(x)
    usable = subject.usable(torch.tensor([list(ids)]), x[None], torch.tensor([len(ids)]))[0]
    encoder = dictionary.to(subject.device, dictionary.encoding_dtype(subject.model.dtype))
    found, triples = encoder.reconstruct(seen)
    keep = usable[triples.position]
    position, feature, activation = (t[keep] for t in (triples.position, triples.feature, triples.value.float()))
    unique, place = torch.unique(feature, return_inverse=True)
    rows = written_by(dictionary, unique.tolist()).to(subject.device)
    unit = torch.as_tensor(unit_of(seen.float(), dictionary.normalise), device=x.device).expand(len(x), 1)
    written = activation[:, None] * unit[position] * rows[place] / factor
    error = (seen - found).masked_fill(~usable[:, None], 0.0) / factor
    return Fired(x, usable, position, feature, activation, written, error)


# -- attribution -------------------------------------------------------------------------------------------------------


def attribute(
    subject: Subject, dictionary: Dictionary, hookpoint: str, text: str, bar: Bar, *,
    target: str | None = None, position: int | None = None, checked: int = CHECKED, seed: int = 0,
) -> Attribution:  # fmt: skip
    """What firing features contribute to the logit of a target after a token of the text.

    subject     as `for_attribution` loads it
    dictionary  of the hookpoint, with its decoder
    target      text of one token; None: the subject's own likeliest
    position    the token after which the target stands; None: the last. Later tokens cannot matter and are not read
    checked     pairs to ablate: the strongest half of them, and a random half (by `seed`) of the others; 0 for none

    Raises SubjectError for a text, target or position that does not fit, DictionaryError for a dictionary whose
    features cannot be changed at the hookpoint.
    """
    check(dictionary, hookpoint, [])
    ids = text_ids(subject, text, position)
    wanted = None if target is None else target_id(subject, target)
    x, slope, logits, chosen = gradient(subject, hookpoint, ids, wanted)
    fired = fire(subject, dictionary, hookpoint, ids, x)
    features = torch.zeros_like(x).index_add_(0, fired.position, fired.written)
    slope = (slope + gradient(subject, hookpoint, ids, chosen, features / 2)[1]) / 2
    contribution = (fired.written * slope[fired.position]).sum(dim=1)
    of_features = torch.zeros(len(ids), device=x.device).index_add_(0, fired.position, contribution)
    whole, error = (x * slope).sum(dim=1), (fired.error * slope).sum(dim=1)
    over = float(over_mean(logits[None], chosen)[0])
    sample, n_strongest = sampled(contribution.cpu().numpy(), checked, seed)
    effects = over - ablated(subject, hookpoint, ids, chosen, fired, sample, bar)
    tried = dict(zip(sample, effects.tolist(), strict=True))
    positions, features_, activations, contributions = (
        t.tolist() for t in (fired.position, fired.feature, fired.activation, contribution)
    )
    rows = zip(positions, features_, activations, contributions, strict=True)
    pairs = [Pair(at, feature, a, c, tried.get(i)) for i, (at, feature, a, c) in enumerate(rows)]
    found, *predicted = _targets(subject, logits, [chosen, *logits.topk(min(PREDICTED, len(logits))).indices.tolist()])
    return Attribution(
        text, strings(subject, ids), found, predicted, hookpoint, sorted(pairs, key=lambda p: -abs(p.contribution)),
        error.tolist(), ((whole - of_features - error) * fired.usable).tolist(), (whole * ~fired.usable).tolist(),
        compared([pairs[i] for i in sample], n_strongest),
    )  # fmt: skip


def _targets(subject: Subject, logits: Tensor, ids: Sequence[int]) -> list[Target]:
    """These tokens as what comes next; logits [vocabulary]."""
    mean, likely = float(logits.mean()), logits.softmax(dim=0)
    return [
        Target(strings(subject, [i])[0], i, float(logits[i]), float(logits[i]) - mean, float(likely[i])) for i in ids
    ]


def sampled(contribution: np.ndarray, n: int, seed: int) -> tuple[list[int], int]:
    """Up to n pairs to ablate: the strongest half by size, then as many random others; and how many are strongest."""
    order = np.argsort(-np.abs(contribution), kind="stable")
    n = min(n, len(order))
    strongest = (n + 1) // 2
    others = np.random.default_rng(seed).permutation(order[strongest:])[: n - strongest]
    return [int(i) for i in (*order[:strongest], *others)], strongest


@torch.inference_mode()
def ablated(
    subject: Subject, hookpoint: str, ids: Sequence[int], target: int, fired: Fired, pairs: Sequence[int], bar: Bar
) -> Tensor:
    """The target's logit over the mean without each of these pairs, float32 [pair], on the CPU.

    Each pair is a context of its own: what the feature writes is taken away at that token alone, and the subject
    computes all that follows anew.
    """
    if pairs:
        bar.start("ablate", total=len(pairs), unit="pairs")
    bos = int(subject.prepend_bos)
    found = [torch.empty(0)]
    for start in range(0, len(pairs), BATCH):
        batch = torch.tensor(pairs[start : start + BATCH], device=subject.device)
        place, written = fired.position[batch] + bos, fired.written[batch]

        def without(x: Tensor, place: Tensor = place, written: Tensor = written) -> Tensor:
            contexts = x.clone().view(len(place), -1, x.shape[-1])
            rows = torch.arange(len(place), device=x.device)
            contexts[rows, place] = (contexts[rows, place].float() - written).to(x.dtype)
            return contexts.view(x.shape)

        with replacing(subject, hookpoint, without):
            found.append(over_mean(_after(subject, ids, len(batch)), target).cpu())
        bar.advance(len(batch))
    return torch.cat(found)


def compared(pairs: Sequence[Pair], n_strongest: int) -> Check:
    """Contributions against ablations of pairs that were ablated, the strongest first."""
    from scipy.stats import rankdata  # takes a second to import

    guess = np.array([pair.contribution for pair in pairs])
    true = np.array([np.nan if pair.ablated is None else pair.ablated for pair in pairs])
    ranked = correlation(rankdata(true), rankdata(guess))
    alone = correlation(true[n_strongest:], guess[n_strongest:])
    return Check(len(pairs), correlation(true, guess), ranked, alone, len(pairs) - n_strongest)
