"""`python -m tests.bench.misfits`: what the check says of the packaged dictionary, and of it with each mistake planted.

Writes results/reference/check.json. A few minutes on two cores. Post-norm mistakes need a Gemma: tests/test_check_planted.py.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from autointerp import check, config, targets
from autointerp.dictionary import Dictionary
from autointerp.sample import Sample
from autointerp.subject import Subject
from autointerp.targets import Target

OUT = Path("results/reference/check.json")
RIGHT = "model.layers.15"


def planted(d: Dictionary, x: torch.Tensor) -> Iterator[tuple[str, Dictionary, str]]:
    """(mistake, the dictionary with it, hookpoint), from the sound one and activations x [position, d]."""
    yield "none", d, RIGHT
    for layer in (0, 9, 14, 16, 20, 29):
        yield f"layer {layer}", d, f"model.layers.{layer}"
    for place in ("post_attention_layernorm:input", "mlp", "input_layernorm"):
        yield f"model.layers.15.{place}", d, f"model.layers.15.{place}"
    scale = d.d_in**0.5 / float(torch.linalg.vector_norm(x, dim=1).mean())
    yield "input scale or run-time norm lost", d.fold_input_scale(1 / scale), RIGHT
    yield "b_dec not subtracted", replace(d, apply_b_dec_to_input=False), RIGHT
    yield "b_dec of the other sign", replace(d, b_dec=-d.b_dec), RIGHT
    yield "b_dec zero", replace(d, b_dec=torch.zeros_like(d.b_dec)), RIGHT
    yield "threshold dropped", replace(d, architecture="standard", k=None), RIGHT
    norms = torch.rand(d.width, generator=torch.Generator().manual_seed(0)) * 3 + 0.3
    yield "decoder norms on the decoder side alone", replace(d, W_dec=d.W_dec * norms[:, None]), RIGHT
    yield "decoder norms on the encoder side alone", replace(d, W_enc=d.W_enc * norms, b_enc=d.b_enc * norms), RIGHT


def main() -> None:
    """Check, print and write."""
    settings = config.load(Path("config.toml"))
    (target,) = targets.load(settings, Subject.sketch(settings.subject))
    # What its files say of the hookpoint is left out: the activations must tell.
    sound = replace(target.dictionary, hookpoint=None)
    sample = Sample(settings, Subject.load(settings.subject))
    x = sample.at(RIGHT)[sample.usable(RIGHT)].float()
    rows = []
    for mistake, dictionary, hookpoint in planted(sound, x):
        finding = check.check(
            settings, Target(replace(target.keys, hookpoint=hookpoint), dictionary), sample.subject, sample
        )
        assert finding.configured is not None
        best = finding.rivals[0]
        rows.append({
            "mistake": mistake, "fvu": round(finding.configured.fvu, 3), "l0": round(finding.configured.l0, 1),
            "refused": bool(finding.reasons), "best_rival": f"{best.what} ({best.hookpoint})",
            "its_fvu": round(best.fvu, 3), "reasons": list(finding.reasons),
        })  # fmt: skip
        print(f"{mistake:<46} FVU {finding.configured.fvu:9.3f}  {'refused' if finding.reasons else 'fits':<8}"
              f"  best rival: {best.what} {best.fvu:.3f}", flush=True)  # fmt: skip
    OUT.write_text(json.dumps({
        "command": "python -m tests.bench.misfits", "n_tokens": len(x), "dictionary": sound.name, "rows": rows,
    }, indent=1) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
