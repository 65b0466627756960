"""The `embedding` simulator: a small sentence encoder predicts activations at no cost.

A token is predicted to fire as far as it resembles a clause of the label: in the encoder's input embedding (the word
itself), in its last layer (the word in its context), and literally, where the clause stands there word for word.
Nothing here has seen an activation: the encoder is frozen, and a label's floor comes from its own similarities on
background text.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autointerp.config import SimulatorSection
from autointerp.simulators.clauses import clauses
from autointerp.simulators.encoder import load_encoder
from autointerp.simulators.held import Held
from autointerp.subject import pick_device
from autointerp.tally import Bar
from autointerp.text import words

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

PAD = 16  # wordpieces: passages are padded to multiples of it
LABEL_PIECES = 32  # wordpieces of a clause that are read; all clauses are padded to it
READ_BATCH = 32  # texts per forward pass
PREDICT_BLOCK = 8  # passages per matrix product; always full, for the same reason as READ_BATCH
PREDICT_CLAUSES = 16  # clauses per matrix product, likewise
# Vectors of passages that are held: 98 kB each with the packaged encoder, so 21,800 passages. The panels take 5,500 of
# them, 80 passages of each of 100 features 8,000: a run of that size embeds nothing twice.
HELD_BYTES = 2 << 30
FLOOR_PASSAGES = 512  # background passages behind a label's floor

# Chosen on half the default run's features (ARCHITECTURE.md, "What the simulator reads"): mean r_rank .356 with the
# last layer alone, .395 with the input embedding beside it, .417 with the literal match too. The floor at .95 instead
# of .98 was tried with a third layer (.422 -> .443), not with these two.
LAYERS = (0, -1)  # hidden states of the encoder, weighted equally
LITERAL = 0.3  # added to the similarity of the token that completes a clause, word for word
N_GRAM = 3  # words of a clause that a literal match looks at, counted from its end
UNREAD = -1  # in the place of a word's id, where no passage holds the word


class EmbeddingSimulator:
    """Similarity of contextual token embeddings to the label's, squared above a per-label floor."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cfg: SimulatorSection,
        device: torch.device, passage_tokens: int,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.cfg, self.device = model, tokenizer, cfg, device
        self.passage_tokens = passage_tokens
        width = int(model.config.hidden_size) * len(LAYERS)
        self._held = Held(max(HELD_BYTES // (2 * width * passage_tokens) // PREDICT_BLOCK, 2) * PREDICT_BLOCK)
        self._texts: dict[int, _Text] = {}  # everything that was read
        self._alike: dict[int, list[int]] = {}  # by padded length: what was read, in that order
        # By slot of `_held`. The system gives memory to those that are written to, and only then.
        self._vectors = torch.empty((len(self._held), passage_tokens, width), dtype=torch.float16)
        self._vocabulary: dict[str, int] = {}
        # Ids of the word that each token belongs to and of the words before it; 0 where there is none.
        self._words = np.empty((len(self._held), passage_tokens, N_GRAM), dtype=np.int32)
        self._background: NDArray[np.int64] | None = None
        self._labels: dict[str, tuple[_Label, float]] = {}

    @classmethod
    def load(cls, cfg: SimulatorSection, device: str, passage_tokens: int) -> "EmbeddingSimulator":
        """Load the encoder. Raises ConfigError when it cannot be found or read."""
        model, tokenizer = load_encoder(cfg.encoder)
        chosen = pick_device(device)
        return cls(model.to(chosen).eval(), tokenizer, cfg, chosen, passage_tokens)

    # -- reading passages ------------------------------------------------------------------------------------------

    def read(self, passages: Mapping[int, Sequence[str]], bar: Bar) -> None:
        """Take in the passages that are new, and embed them now where all of them can be held.

        Of a passage that was read its text stays; its vectors (2 d bytes a token, a pass of the encoder) stay while it
        is among those asked about last, and are made again, to the same bits, when it is asked about later.
        """
        new = {i: strings for i, strings in passages.items() if i not in self._texts}
        if not new:
            return
        texts = ["".join(strings) for strings in new.values()]
        pieces = self.tokenizer(texts, truncation=True, max_length=512)["input_ids"]
        for (i, strings), text, ids in zip(new.items(), texts, pieces, strict=True):
            alike = self._alike.setdefault(-(-len(ids) // PAD), [])
            ends = np.cumsum([len(string) for string in strings], dtype=np.uint32)
            self._texts[i] = _Text(text, ends.tobytes(), -(-len(ids) // PAD), len(alike))
            alike.append(i)
        if len(new) <= len(self._held):
            bar.start("embed", total=len(new), unit="passages")
            self._hold(new, bar)

    def _hold(self, passages: Collection[int], bar: Bar | None = None) -> None:
        """Make sure that passages are held; they must not be more than can be."""
        lacking = self._held.lacking(passages)
        spare = len(self._held) - len(passages)
        for chunk in self._batches(lacking):
            soon = self._next(chunk, min(spare, -len(chunk) % READ_BATCH)) if bar is None else []
            strings = [self._texts[i].strings() for i in chunk + soon]
            slots = self._held.fill(chunk + soon)
            self._vectors[torch.from_numpy(slots)] = self._embed(strings)
            self._words[slots] = np.stack([self._word_grid(line) for line in strings])
            spare -= len(soon)
            if bar is not None:
                bar.advance(len(chunk))

    def _batches(self, passages: Sequence[int]) -> list[list[int]]:
        """Batches of passages that pad to the same length: an embedding then never depends on its neighbours."""
        groups: dict[int, list[int]] = {}
        for i in passages:
            groups.setdefault(self._texts[i].length, []).append(i)
        return [g[n : n + READ_BATCH] for _, g in sorted(groups.items()) for n in range(0, len(g), READ_BATCH)]

    def _next(self, chunk: Sequence[int], n: int) -> list[int]:
        """Up to n passages that are not held and were read after these: a batch costs the same when it is full, and
        what was read in a row is asked about in a row."""
        last = self._texts[chunk[-1]]
        after = self._alike[last.length][last.place + 1 : last.place + 1 + 4 * READ_BATCH]
        return [i for i in after if i not in self._held.slot and i not in chunk][:n]

    def _word_grid(self, strings: Sequence[str]) -> NDArray[np.int32]:
        """Per token the ids of its word and of the words before it, [passage_tokens, N_GRAM]."""
        grid = np.zeros((self.passage_tokens, N_GRAM), dtype=np.int32)
        found = words(strings)
        ids = [self._vocabulary.setdefault(word.text.lower(), len(self._vocabulary) + 1) for word in found]
        for place, word in enumerate(found):
            before = ids[max(place - N_GRAM + 1, 0) : place + 1][::-1]
            grid[word.first : word.last, : len(before)] = before
        return grid

    @torch.inference_mode()
    def _embed(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Unit vectors [text, passage_tokens, d] (0 where there is no token): the mean of the wordpieces that a token
        overlaps, weighted by shared characters."""
        encoded = self.tokenizer(
            ["".join(strings) for strings in texts], return_tensors="pt", padding=True, truncation=True,
            max_length=512, return_offsets_mapping=True, pad_to_multiple_of=PAD,
        )  # fmt: skip
        offsets = encoded.pop("offset_mapping").numpy()
        hidden = self._hidden(encoded)
        share = torch.zeros(len(texts), self.passage_tokens, hidden[0].shape[1])
        for row, strings in enumerate(texts):
            share[row] = torch.from_numpy(overlaps(strings, offsets[row], self.passage_tokens))
        return _joined([share @ layer for layer in hidden]).half()

    def _hidden(self, encoded: "BatchEncoding") -> list[Tensor]:
        """The chosen hidden states, each [text, wordpiece, d].

        The encoder always runs on READ_BATCH texts, the last ones repeated: matrix products of one shape give a text
        the same bits whatever it is read with, and a resumed run must not differ in the last one.
        """
        n = len(encoded["input_ids"])
        rows = torch.arange(-(-n // READ_BATCH) * READ_BATCH).clamp_max(n - 1)
        parts: list[list[Tensor]] = []
        for chunk in rows.split(READ_BATCH):
            states = self.model(
                **{name: column[chunk].to(self.device) for name, column in encoded.items()}, output_hidden_states=True
            ).hidden_states
            parts.append([states[layer].float().cpu() for layer in LAYERS])
        return [torch.cat(layer)[:n] for layer in zip(*parts, strict=True)]

    # -- predicting ------------------------------------------------------------------------------------------------

    def calibrate(self, background: NDArray[np.int64]) -> None:
        """Use up to FLOOR_PASSAGES of these (already read) passages for floors; the smallest ids, which are hashes."""
        self._background = np.sort(background)[:FLOOR_PASSAGES]
        self._labels.clear()

    def predict(self, labels: Sequence[str], passages: NDArray[np.int64]) -> NDArray[np.float32]:
        """max(0, similarity - floor) squared, [label, passage, token]."""
        self._learn(labels)
        known = [self._labels[label][0] for label in labels]
        floors = torch.tensor([self._labels[label][1] for label in labels])
        similarity = self._similarity(known, passages)
        rise = similarity.sub_(floors[:, None, None]).clamp_min_(0)
        return rise.square_().numpy()

    def _similarity(self, labels: "Sequence[_Label]", passages: NDArray[np.int64]) -> Tensor:
        """Likeness of every token to the nearest clause of each label, [label, passage, token]: mean cosine over the
        layers, plus LITERAL where the clause ends at the token."""
        vectors = torch.cat([label.vectors for label in labels])
        first = np.cumsum([0, *(len(label.words) for label in labels[:-1])])
        endings = self._endings([words for label in labels for words in label.words])
        padded = torch.cat([vectors, vectors.new_zeros(-len(vectors) % PREDICT_CLAUSES, vectors.shape[1])])
        likeness = torch.empty(len(padded), PREDICT_BLOCK * self.passage_tokens)  # [clause, token], of one block
        result = np.empty((len(labels), len(passages), self.passage_tokens), dtype=np.float32)
        for start, chunk in self._blocks(passages):
            full = np.concatenate([chunk, np.repeat(chunk[-1:], PREDICT_BLOCK - len(chunk))])
            block = self._vectors[torch.from_numpy(full)].float().reshape(-1, vectors.shape[1])
            for n, part in enumerate(padded.split(PREDICT_CLAUSES)):
                torch.mm(part, block.T, out=likeness[n * PREDICT_CLAUSES : (n + 1) * PREDICT_CLAUSES])
            of_clause = likeness.numpy()[: len(vectors)]
            _add_literal(of_clause, endings, self._words[full].reshape(-1, N_GRAM))
            of_label = np.maximum.reduceat(of_clause, first, axis=0)
            result[:, start : start + len(chunk)] = of_label.reshape(len(labels), PREDICT_BLOCK, -1)[:, : len(chunk)]
        return torch.from_numpy(result)

    def _blocks(self, passages: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Where each PREDICT_BLOCK of passages begins, and their slots, which hold them until the next is asked for."""
        for first in range(0, len(passages), len(self._held)):
            part = passages[first : first + len(self._held)].tolist()
            self._hold(part)
            slots = np.array([self._held.slot[i] for i in part], dtype=np.int64)
            for start in range(0, len(part), PREDICT_BLOCK):
                yield first + start, slots[start : start + PREDICT_BLOCK]

    def _endings(self, clauses: Sequence[Sequence[str]]) -> NDArray[np.int32]:
        """The ids of each clause's last N_GRAM words, the last one first, [clause, N_GRAM]: 0 where it has fewer, and
        UNREAD first where a word of it was never read."""
        found = np.zeros((len(clauses), N_GRAM), dtype=np.int32)
        for row, clause in enumerate(clauses):
            ids = [self._vocabulary.get(word, UNREAD) for word in clause[::-1][:N_GRAM]] or [UNREAD]
            found[row, : len(ids)] = UNREAD if UNREAD in ids else ids
        return found

    def _learn(self, labels: Sequence[str]) -> None:
        """Embed the labels that are new, and take their floors from the background."""
        new = [label for label in dict.fromkeys(labels) if label not in self._labels]
        if not new:
            return
        if self._background is None:
            raise RuntimeError("calibrate() comes before predict()")
        read = self._read_labels(new)
        similarity = self._similarity(read, self._background).reshape(len(new), -1)
        present = (similarity != 0).any(dim=0)  # positions after a passage's end have no vector
        floors = np.quantile(similarity[:, present].numpy(), self.cfg.floor_quantile, axis=1)
        for text, label, floor in zip(new, read, floors, strict=True):
            self._labels[text] = (label, float(floor))

    @torch.inference_mode()
    def _read_labels(self, labels: Sequence[str]) -> "list[_Label]":
        """The labels' clauses as unit vectors (the mean over a clause's own tokens) and as words."""
        split = [clauses(label) for label in labels]
        flat = [clause for found in split for clause in found]
        encoded = self.tokenizer(
            flat, return_tensors="pt", padding="max_length", truncation=True, max_length=LABEL_PIECES,
            return_special_tokens_mask=True,
        )  # fmt: skip
        mask = 1 - encoded.pop("special_tokens_mask")  # padding is special too
        encoded["attention_mask"] = mask  # a clause's own words do not look at [CLS] and [SEP] either
        means = [(layer * mask[..., None]).sum(dim=1) for layer in self._hidden(encoded)]
        vectors = _joined(means).split([len(found) for found in split])
        spelled = [[[word.text.lower() for word in words([clause])] for clause in found] for found in split]
        return [_Label(*pair) for pair in zip(vectors, spelled, strict=True)]


class _Text(NamedTuple):
    text: str
    ends: bytes  # of its tokens' strings, in characters, as uint32: a list of strings would take ten times that
    length: int  # that it pads to, in PAD wordpieces
    place: int  # among those of its length

    def strings(self) -> list[str]:
        """The strings of its tokens."""
        ends = np.frombuffer(self.ends, dtype=np.uint32).tolist()
        return [self.text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


class _Label(NamedTuple):
    vectors: Tensor  # [clause, d]
    words: list[list[str]]  # per clause, lower case


def _joined(layers: list[Tensor]) -> Tensor:
    """Vectors of several layers as one, such that dot products are the mean of the layers' cosines."""
    unit = [torch.nn.functional.normalize(layer, dim=-1) for layer in layers]
    return torch.cat(unit, dim=-1) / len(layers) ** 0.5


def _add_literal(likeness: NDArray[np.float32], endings: NDArray[np.int32], words: NDArray[np.int32]) -> None:
    """Add LITERAL to likeness [clause, token] where a clause's last words end.

    endings  [clause, N_GRAM] ids of words, as EmbeddingSimulator._endings
    words    [token, N_GRAM] ids of a token's word and of those before it
    """
    order = np.argsort(words[:, 0], kind="stable")
    known = words[order, 0]
    begin, end = (np.searchsorted(known, endings[:, 0], side=side) for side in ("left", "right"))
    for clause in np.flatnonzero(end > begin):
        there = order[begin[clause] : end[clause]]
        before = endings[clause, 1:]
        there = there[((words[there, 1:] == before) | (before == 0)).all(axis=1)]
        likeness[clause, there] += np.float32(LITERAL)


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
