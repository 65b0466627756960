"""`python -m tests.bench.equality`: the largest difference from others' encoders and hooks that the tests met, as a table.

Runs the equality tests and writes down what they compared; results/reference/equality.json. Takes a minute.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import test_formats, test_hooks

OUT = Path("results/reference/equality.json")
AGAINST = {  # test -> whom it compares with
    "inference_folder_of_saelens": "sae_lens, on its folders",
    "training_checkpoint": "sae_lens, on its training checkpoints",
    "expected_average_only_in": "sae_lens, expected_average_only_in",
    "scaled_checkpoint_of_batchtopk": "sae_lens, scaled BatchTopK",
    "flat_config": "sae_lens, folders from before version 6",
    "test_gemma_scope_encodes": "sae_lens, Gemma Scope",
    "test_gemma_scope_2_encodes": "sae_lens, Gemma Scope 2",
    "llama_scope": "sae_lens, Llama Scope",
    "dictionary_learning_encodes_by_its_definition": "dictionary_learning's definition",
    "dictionary_learning_encodes_as_sae_lens": "sae_lens, dictionary_learning",
    "sparsify_encodes": "sparsify's definition",
}


class Differences:
    """Notes every difference that a test of formats computes, under the test's name."""

    def __init__(self) -> None:
        self.now = ""
        self.found: dict[str, dict[str, float]] = defaultdict(dict)
        self._difference = test_formats.difference
        test_formats.difference = self.difference

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Before each test."""
        self.now = item.name

    def difference(self, found: Any, expected: Any) -> float:
        """The test's own difference, noted."""
        gap = self._difference(found, expected)
        against = next((name for part, name in AGAINST.items() if part in self.now), None)
        if against is not None:
            case = (re.search(r"\[(.*)\]", self.now) or [self.now, "as released"])[1]
            self.found[against][case] = max(gap, self.found[against].get(case, 0.0))
        return gap


def hooks() -> dict[str, dict[str, float]]:
    """Family -> TransformerLens' name in the last block -> largest difference over the largest value."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for key in test_hooks.GOLDEN.files:
        family, _, name = key.partition("/")
        (tensor,) = test_hooks.read(family, name)
        expected = test_hooks.GOLDEN[key]
        found[family][name] = float(np.abs(tensor.numpy() - expected).max() / np.abs(expected).max())
    return dict(found)


def main() -> None:
    """Run, print and write."""
    noted = Differences()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_formats.py"], plugins=[noted])
    assert code == 0, "a test failed: no table"
    result = {
        "command": "python -m tests.bench.equality",
        "unit": "largest difference over the largest value, float32",
        "encode": {against: dict(sorted(cases.items())) for against, cases in noted.found.items()},
        "hooks": hooks(),
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    for against, cases in noted.found.items():
        print(f"\n{against}")
        for case, gap in sorted(cases.items()):
            print(f"  {case:<64} {gap:.1e}")
    print("\nhookpoints, against TransformerLens")
    for family, names in result["hooks"].items():
        print(f"  {family:<24} {len(names):>3} names, largest difference {max(names.values()):.1e}")


if __name__ == "__main__":
    main()
