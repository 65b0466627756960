"""`python -m tests.bench.lens_agreement RUN`: do the tokens that features promote agree with their labels?

What `autointerp causal` says of the logit lens, without turning anything up, so that it can be said of runs with a
thousand labels: figures as JSON, each with its interval over features and what chance gives.
"""

import json
import sys
from pathlib import Path
from typing import Any

from autointerp import causal, causal_shown, report, targets
from autointerp.lexicon import Lexicon
from autointerp.matched import random_directions
from autointerp.report import Reading
from autointerp.store import Store
from autointerp.subject import Subject
from autointerp.tally import Bar


def rows(reading: Reading, bar: Bar) -> list[dict[str, Any]]:
    """Feature and lens metrics of every label with words."""
    settings, labels = reading.settings, causal.labelled(reading)
    sketch = Subject.sketch(settings.subject)
    target = targets.collected(reading, sketch)
    lexicon = Lexicon.of(Subject.reader(settings.subject), settings.simulator.encoder, bar)
    features = [label.feature for label in labels]
    null = random_directions(target.dictionary, features, causal.RANDOM_LENS, settings.run.seed)
    promotion = causal.Promotion(sketch, settings.subject, target.dictionary, null, target.keys.hookpoint, lexicon)
    near = lexicon.similarities([label.label or "" for label in labels], bar)
    found = []
    bar.start("lens", total=len(labels), unit="features")
    for label, similarity in zip(labels, near, strict=True):
        if similarity is not None:
            metrics = promotion.rows(label.feature, similarity)
            found.append({"feature": label.feature, "r_rank": label.r_rank} | {name: row.value for name, row in metrics.items()})
        bar.advance()
    return found


def main(folder: Path) -> None:
    """Print the figures of a run."""
    with Store.read(folder / "run.duckdb") as store, Bar() as bar:
        summary = causal_shown.summary(rows(report.read(store), bar))
    print(json.dumps({name: summary[name] for name in ("lens_agreement", "lens_beaten", "lens_share")}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
