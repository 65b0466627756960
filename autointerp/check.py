"""Does the dictionary encode this subject's activations as it was trained to? Asked before anything is labelled.

On a small sample every hypothesis that could explain a misfit is tried: other layers, other places in the same block,
and the usual suspects (a run-time normalisation, the decoder bias, an input scale, a threshold or a decoder norm that
went missing). METHOD: refused where another one fits much better, where the fit is bad, or where far more or fewer
features fire than declared. A threshold on the fit alone would not do: in SmolLM2 the neighbours of the right layer
have an FVU of .25 where the right one has .17.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from autointerp import hooks
from autointerp.config import Settings
from autointerp.dictionary import Dictionary
from autointerp.dictionary.encode import COMPETING, LEAST_NORM, NORMALISATIONS
from autointerp.errors import DictionaryError, SubjectError
from autointerp.rows import Fit
from autointerp.sample import Sample
from autointerp.subject import Subject
from autointerp.targets import Target

MUCH_BETTER = 0.8  # a rival fits much better where its FVU is at most this share of the configured one
WORST_FVU = 0.5
L0_FACTOR = 2.0  # features that fire per token, over or under what the files declare


@dataclass(frozen=True)
class Trial:
    """One hypothesis of how the dictionary was meant, and how well it fits."""

    what: str  # what it changes; "as configured"
    hookpoint: str
    fvu: float  # share of the variance that is not explained, over usable positions
    l0: float  # features that fire per usable position


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    dictionary: str
    configured: Trial | None  # None where there is nothing to check
    rivals: tuple[Trial, ...]  # best first
    n_tokens: int  # usable positions of the sample
    n_masked: int
    reasons: tuple[str, ...]  # why it is refused; empty where it is not
    notes: tuple[str, ...]  # what is in order, and worth knowing

    @property
    def line(self) -> str:
        """The outcome in one line."""
        if self.configured is None:
            return f"{self.dictionary}: {'; '.join(self.notes)}"
        found = self.configured
        figures = f"FVU {found.fvu:.3f}, L0 {found.l0:.1f} on {self.n_tokens:,} tokens at {found.hookpoint}"
        return f"{self.dictionary}: {figures}" + (f"; {'; '.join(self.reasons)}" if self.reasons else "")

    def row(self, collection_id: str) -> Fit:
        """The finding as a row."""
        tried = sorted([self.configured, *self.rivals] if self.configured else [], key=lambda trial: trial.fvu)
        fvu = self.configured.fvu if self.configured else None
        return Fit(
            collection_id=collection_id,
            outcome="unchecked" if self.configured is None else "misfits" if self.reasons else "fits",
            fvu=fvu if fvu is not None and math.isfinite(fvu) else None,
            l0=self.configured.l0 if self.configured else None,
            n_tokens=self.n_tokens, n_masked=self.n_masked, reasons=list(self.reasons), notes=list(self.notes),
            trials=json.dumps([asdict(t) | {"fvu": t.fvu if math.isfinite(t.fvu) else None} for t in tried]),
        )  # fmt: skip

    def refuse(self) -> None:
        """Raises DictionaryError with the reasons, where there are any."""
        if self.reasons:
            raise DictionaryError(
                f'{self.line}. `autointerp check` shows every trial; dictionary.check = "warn" goes on all the same'
            )


def check(settings: Settings, target: Target, subject: Subject, sample: Sample | None = None) -> Finding:
    """Try the dictionary as configured, and every hypothesis. Raises SubjectError where a hookpoint cannot be read."""
    dictionary, place = target.dictionary, target.keys.hookpoint
    null = _null(settings, dictionary)
    if null is not None:
        return Finding(dictionary.name, None, (), 0, 0, (), (null,))
    if dictionary.full_width:
        note = "only some features are encoded: a part of a dictionary does not reconstruct, and is not checked"
        return Finding(dictionary.name, None, (), 0, 0, (), (note,))
    sample = sample or Sample(settings, subject)
    dictionary = replace(dictionary, wanted=None).to(subject.device, torch.float32)
    goal = _goal(dictionary, place, subject)
    if goal is None:
        note = f"a transcoder, but its files do not say what it predicts ({dictionary.hookpoint_out}): not checked"
        return Finding(dictionary.name, None, (), 0, 0, (), (note,))
    sites = _sites(place, dictionary, subject)
    sample.read([place, goal, *sites.values()])
    usable = sample.usable(place)
    configured = _try(sample, "as configured", dictionary, place, goal, usable)
    rivals = [
        _try(sample, what, variant, place, goal, usable)
        for what, variant in hypotheses(dictionary, sample.at(place)[usable].float())
    ]
    rivals += [
        _try(sample, what, dictionary, site, site if goal == place else goal, sample.usable(site))
        for what, site in sites.items() if sample.at(site).shape[-1] == dictionary.d_in
    ]  # fmt: skip
    rivals.sort(key=lambda trial: trial.fvu)
    reasons = _reasons(dictionary, configured, rivals, sample, place, subject)
    n_masked = int(sample.lengths.sum()) - int(usable.sum())
    return Finding(
        dictionary.name, configured, tuple(rivals), int(usable.sum()), n_masked, tuple(reasons),
        tuple(_notes(dictionary, n_masked)),
    )  # fmt: skip


def _null(settings: Settings, dictionary: Dictionary) -> str | None:
    """What there is to compare a dictionary with, and is not checked; None for a dictionary that is."""
    if dictionary.architecture == "units":
        return "plain units: nothing was trained, nothing is checked"
    if dictionary.random:
        return "a null, random directions: nothing was trained, nothing is checked"
    kinds = ["a decoder that stayed random"] if dictionary.frozen_decoder else []
    if settings.subject.random:
        kinds.append(f"a subject of random weights (seed {settings.run.seed})")
    return f"a null, {' and '.join(kinds)}: not checked" if kinds else None


def _goal(dictionary: Dictionary, place: str, subject: Subject) -> str | None:
    """The hookpoint whose activation is predicted; None for a transcoder that does not say."""
    if not dictionary.transcoder:
        return place
    try:
        return subject.hookpoint(dictionary.hookpoint_out or "")
    except SubjectError:
        return None


def _try(sample: Sample, what: str, dictionary: Dictionary, place: str, goal: str, usable: Tensor) -> Trial:
    x, y = sample.at(place)[usable].float(), sample.at(goal)[usable].float()
    predicted, triples = dictionary.reconstruct(x)
    left = (y - predicted).pow(2).sum()
    fvu = float(left / (y - y.mean(dim=0)).pow(2).sum())
    return Trial(what, place, fvu if fvu == fvu else float("inf"), len(triples.value) / max(len(x), 1))


# -- hypotheses --------------------------------------------------------------------------------------------------------


def hypotheses(dictionary: Dictionary, x: Tensor) -> Iterator[tuple[str, Dictionary]]:
    """The usual suspects: (what it would mean, the dictionary so changed), judged by activations x [position, d_in]."""
    for how in NORMALISATIONS:
        if how != dictionary.normalise:
            what = "without its run-time normalisation" if how == "none" else f"with run-time normalisation {how}"
            yield what, replace(dictionary, normalise=how)
    if not dictionary.transcoder and bool(dictionary.b_dec.any()):
        what = "b_dec not subtracted" if dictionary.apply_b_dec_to_input else "b_dec subtracted from the input"
        yield what, replace(dictionary, apply_b_dec_to_input=not dictionary.apply_b_dec_to_input)
        yield "b_dec of the other sign", replace(dictionary, b_dec=-dictionary.b_dec)
        yield "b_dec left out", replace(dictionary, b_dec=torch.zeros_like(dictionary.b_dec))
    if not dictionary.transcoder:
        yield "centred" if not dictionary.centre else "not centred", replace(dictionary, centre=not dictionary.centre)
    scale = dictionary.d_in**0.5 / float(torch.linalg.vector_norm(x, dim=1).mean())
    if dictionary.normalise == "none" and not dictionary.transcoder:
        yield f"inputs scaled by {scale:.3g}, to a mean norm of sqrt(d)", dictionary.fold_input_scale(scale)
    if dictionary.input_scale != 1.0:
        yield "without its input scale", dictionary.fold_input_scale(1 / dictionary.input_scale)
    yield from _thresholds(dictionary, x)
    yield from _decoder_norms(dictionary, x)


def _thresholds(dictionary: Dictionary, x: Tensor) -> Iterator[tuple[str, Dictionary]]:
    """A threshold that was lost: only the strongest fire, as many as are declared or usual."""
    if dictionary.architecture not in {"standard", "jumprelu", "gated"}:
        return
    hidden = dictionary.pre_activations(x)
    if dictionary.architecture == "gated":  # its threshold is the gate's bias
        hidden = hidden + dictionary.b_enc
    fires = len(dictionary.encode(x).value) / len(x)
    for l0 in dict.fromkeys([dictionary.declared_l0 or 32.0, 32.0, 64.0, 128.0]):
        if l0 < fires:
            n = int(l0 * len(x))
            limit = float(hidden.flatten().kthvalue(hidden.numel() - n + 1).values)
            if limit > 0:
                yield f"a threshold at L0 {l0:.0f} (threshold dropped?)", _with_threshold(dictionary, limit)


def _with_threshold(dictionary: Dictionary, limit: float) -> Dictionary:
    if dictionary.architecture == "gated":
        return replace(dictionary, b_enc=dictionary.b_enc - limit)
    least = torch.full_like(dictionary.b_enc, limit)
    threshold = least if dictionary.threshold is None else dictionary.threshold.maximum(least)
    return replace(dictionary, architecture="jumprelu", threshold=threshold)


def _decoder_norms(dictionary: Dictionary, x: Tensor) -> Iterator[tuple[str, Dictionary]]:
    """Decoder norms folded on one side alone."""
    norm = torch.linalg.vector_norm(dictionary.W_dec, dim=1).clamp_min(LEAST_NORM)
    if float(norm.max() / norm.min()) > 1.05:
        yield "decoder rows of norm 1 (norms half folded?)", replace(dictionary, W_dec=dictionary.W_dec / norm[:, None])
    # A feature's encoder reads about the same from its own decoder row as others do from theirs; where only one side
    # took the norm, it does not.
    if dictionary.transcoder:
        return
    own = (dictionary.W_enc * dictionary.W_dec.T).sum(dim=0)
    if dictionary.r_mag is not None:
        own = own * dictionary.r_mag.exp()
    middle = own.median()
    if float(middle) > 0:
        factor = (middle / own.clamp_min(float(middle) * 0.05)).clamp(0.05, 20.0)
        if dictionary.architecture in COMPETING:  # an encoder that took the norm alone makes others win
            scaled = replace(dictionary, W_enc=dictionary.W_enc * factor, b_enc=dictionary.b_enc * factor)
            yield "encoder columns scaled to agree with the decoder (norms half folded?)", scaled
        rescaled = _scaled_to_fit(replace(dictionary, W_dec=dictionary.W_dec * factor[:, None]), x)
        # Activations that an L1 penalty made too small fit better with a larger decoder too: that is no mistake.
        if _left(rescaled, x) <= MUCH_BETTER * _left(_scaled_to_fit(dictionary, x), x):
            yield "decoder rows scaled to agree with the encoder (norms half folded?)", rescaled


def _scaled_to_fit(dictionary: Dictionary, x: Tensor) -> Dictionary:
    """The dictionary with one factor on all of its decoder, chosen so that it fits x [position, d_in] best."""
    offset, _ = replace(dictionary, W_dec=torch.zeros_like(dictionary.W_dec)).reconstruct(x)
    written = dictionary.reconstruct(x)[0] - offset
    factor = float(((x - offset) * written).sum() / written.pow(2).sum().clamp_min(LEAST_NORM))
    return replace(dictionary, W_dec=dictionary.W_dec * factor)


def _left(dictionary: Dictionary, x: Tensor) -> float:
    return float((x - dictionary.reconstruct(x)[0]).pow(2).sum())


def _sites(place: str, dictionary: Dictionary, subject: Subject) -> dict[str, str]:
    """Other places that activations could be meant from: the same place in every block, and every place in this one."""
    found: dict[str, str] = {}
    layer = re.search(r"(?<=\.)\d+(?=[.:|]|$)", place)
    if layer is None:
        return found
    modules = {name for name, _ in subject.model.named_modules()}
    n = 0
    while True:
        path = place[: layer.start()] + str(n) + place[layer.end() :]
        if re.split(r"[:|]", path)[0] not in modules:
            break
        if path != place:
            found[f"layer {n}"] = path
        n += 1
    for name in hooks.names(subject.model):
        if name.startswith(f"blocks.{layer[0]}."):
            site = subject.hookpoint(name)
            if site != place and site not in found.values():
                found[name] = site
    raw = re.split(r"[:|]", place)[0]
    for side in (raw, f"{raw}:input"):
        if side != place and side not in found.values():
            found[f"the {'input' if side.endswith(':input') else 'output'} of the module"] = side
    return found


# -- judging -----------------------------------------------------------------------------------------------------------


def _reasons(
    dictionary: Dictionary, configured: Trial, rivals: list[Trial], sample: Sample, place: str, subject: Subject
) -> list[str]:
    reasons = []
    own = _own_hookpoint(dictionary, subject)
    if own is not None and own != place and not _same(sample, own, place):
        reasons.append(f"its own files say that it was trained at {dictionary.hookpoint} ({own})")
    if rivals and rivals[0].fvu <= MUCH_BETTER * configured.fvu:
        best = rivals[0]
        where = f" ({best.hookpoint})" if best.hookpoint != place else ""
        reasons.append(
            f"it fits much better {_as(best.what)}{where}: FVU {best.fvu:.3f} instead of {configured.fvu:.3f}"
        )
    if not configured.fvu <= WORST_FVU:
        reasons.append(f"it explains less than half of the variance (FVU {configured.fvu:.3g})")
    declared = dictionary.declared_l0
    if declared and dictionary.architecture not in COMPETING:
        ratio = configured.l0 / declared
        if not 1 / L0_FACTOR <= ratio <= L0_FACTOR:
            reasons.append(f"{configured.l0:.1f} features fire per token where its files declare {declared:.1f}")
    if reasons and not dictionary.transcoder and not dictionary.b_dec.any():  # no trial can guess what it was
        reasons.append("its b_dec is zero everywhere (lost?)")
    return reasons


def _as(what: str) -> str:
    return f"at {what}" if what.startswith(("layer", "blocks", "the ")) else f"if changed: {what}"


def _own_hookpoint(dictionary: Dictionary, subject: Subject) -> str | None:
    """Where its files say it was trained, in this subject's words; None where they do not, or mean another model."""
    if dictionary.hookpoint is None:
        return None
    try:
        return subject.hookpoint(re.sub(r"\.input$", ":input", dictionary.hookpoint))
    except SubjectError:
        return None


def _same(sample: Sample, a: str, b: str) -> bool:
    """Two names of one tensor, such as the output of a block and the input of the next."""
    x, y = sample.at(a), sample.at(b)
    return x.shape == y.shape and bool(torch.equal(x, y))


def _notes(dictionary: Dictionary, n_masked: int) -> Iterator[str]:
    yield f"{n_masked} positions masked (special tokens and attention sinks)"
    if dictionary.decoder_norm_folded:
        yield "decoder norms are folded into the activations"
    if dictionary.input_scale != 1.0:
        yield f"an input scale of {dictionary.input_scale:.4g} is folded into the weights"
    if dictionary.trained_as:
        yield f"trained as {dictionary.trained_as}, encoded as {dictionary.architecture}"


def to_terminal(finding: Finding, console: Console, limit: int = 8) -> None:
    """The outcome, and the trials that fit best."""
    console.print(f"[bold]{finding.dictionary}[/bold]", highlight=False)
    if finding.configured is not None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("trial", "hookpoint", "FVU", "L0"):
            table.add_column(name, justify="right" if name in ("FVU", "L0") else "left")
        trials = sorted([finding.configured, *finding.rivals[:limit]], key=lambda trial: trial.fvu)
        for trial in trials:
            style = "bold" if trial is finding.configured else None
            table.add_row(trial.what, trial.hookpoint, f"{trial.fvu:.3f}", f"{trial.l0:.1f}", style=style)
        console.print(table)
    for note in finding.notes:
        console.print(f"  {note}", style="dim", highlight=False)
    if finding.reasons:
        console.print(f"  [red]refused[/red]: {'; '.join(finding.reasons)}", highlight=False)
    elif finding.configured is not None:
        console.print("  [green]it fits[/green]", highlight=False)
