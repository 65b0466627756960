"""Shards -> one collection: the states behind several databases, merged, written as if one pass had made them.

Merging is associative and commutative, so parts may be merged in any order and any grouping; when every shard of a
corpus is there the rows are those of one pass over the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Any

from autointerp import kept
from autointerp.corpus import Shard
from autointerp.errors import StoreError
from autointerp.keep import Keeper
from autointerp.keys import shard_collection_id
from autointerp.rows import Fit
from autointerp.store import Store
from autointerp.sweep import Whereabouts
from autointerp.tally import Bar


@dataclass
class Merged:
    """A collection put together from parts."""

    dictionary: str
    shards: list[str] | None  # those it covers; None for the whole
    missing: list[str]
    n_tokens: int
    n_documents: int


@dataclass
class Part:
    """One collection of one database."""

    path: Path
    row: dict[str, Any]

    @property
    def shards(self) -> list[str]:
        """What it covers; a whole collection is the only shard of one."""
        return self.row["shards"] or ["1/1"]


def merge(paths: Sequence[Path], output: Path, bar: Bar) -> list[Merged]:
    """Merge the collections of these databases into `output`, which may hold other ones; one result per dictionary.

    Raises StoreError where the parts do not belong together, overlap, or are there already.
    """
    parts = _parts(paths)
    for group in parts.values():
        _refuse_overlap(group)
    total = sum(len(group) for group in parts.values())
    bar.start("merge", total=total, unit="shards")
    with Store.create(output) as store:
        try:
            with store.transaction():
                return [_merge_group(store, whole, group, bar) for whole, group in parts.items()]
        except BaseException:
            store.discard_if_empty()
            raise


def _parts(paths: Sequence[Path]) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise StoreError(f"{path} is named twice")
        seen.add(path.resolve())
        with Store.read(path) as store:
            rows = store.collections()
        if not rows:
            raise StoreError(f"{path} holds no collection: its shard is not finished; run the same `collect` again")
        for row in rows:
            found.setdefault(row["whole_id"], []).append(Part(path, row))
    wholes = {path: {whole for whole, group in found.items() if any(p.path == path for p in group)} for path in paths}
    first = paths[0]
    for path in paths:
        if wholes[path] != wholes[first]:
            raise StoreError(
                f"{first} and {path} are not shards of one collection: subject, dictionaries, corpus, seed and "
                "[collect] settings must be the same"
            )
    return found


def _refuse_overlap(group: list[Part]) -> None:
    taken: dict[int, Part] = {}
    n = lcm(*(Shard.parse(s).of for part in group for s in part.shards))
    for part in group:
        for residue in _residues(part.shards, n):
            if residue in taken:
                raise StoreError(
                    f"{taken[residue].path} ({', '.join(taken[residue].shards)}) and {part.path} "
                    f"({', '.join(part.shards)}) hold the same documents: merge each shard once"
                )
            taken[residue] = part


def _residues(shards: Sequence[str], n: int) -> list[int]:
    """The remainders of document keys modulo n that these shards cover."""
    found = (Shard.parse(text) for text in shards)
    return [residue for shard in found for residue in range(shard.index, n, shard.of)]


def _in_order(shard: str) -> tuple[int, int]:
    found = Shard.parse(shard)
    return found.of, found.index or found.of


def _merge_group(store: Store, whole: str, group: list[Part], bar: Bar) -> Merged:
    keeper: Keeper | None = None
    documents: dict[int, Whereabouts] = {}
    pieces: dict[int, bytes] = {}
    vocabulary = 1 + max(_largest_token(part) for part in group)
    features: list[int] | None = None
    fit: Fit | None = None
    for part in group:
        with Store.read(part.path) as source:
            fit = fit or source.fit(whole)  # the same sample of the same corpus: any shard's will do
            one, whereabouts, bytes_of = kept.read(source, part.row, vocabulary)
            features = source.encoded_features(part.row["collection_id"])
        if keeper is None:
            keeper = one
        else:
            keeper.merge(one)
        documents |= whereabouts
        pieces |= bytes_of
        bar.advance(1, part.path.name)
    assert keeper is not None
    shards = sorted({s for part in group for s in part.shards}, key=_in_order)
    n = lcm(*(Shard.parse(s).of for s in shards))
    missing = sorted(set(range(n)) - set(_residues(shards, n)))
    head = {name: group[0].row[name] for name in kept.HEADER} | {
        "shards": shards if missing else None,
        "collection_id": shard_collection_id(whole, shards) if missing else whole,
    }
    if store.collection(head["collection_id"]) is not None:
        raise StoreError(f"{store.path} holds the collection of {head['dictionary']} already: choose another file")
    kept.write(store, head, keeper, documents, pieces.__getitem__, features)
    if fit is not None and store.fit(whole) is None:
        store.add([fit])
    return Merged(
        head["dictionary"], head["shards"], [str(Shard(i, n)) for i in missing], int(keeper.total_tokens.sum()),
        int(keeper.total_documents.sum()),
    )  # fmt: skip


def _largest_token(part: Part) -> int:
    with Store.read(part.path) as store:
        return store.largest_token(part.row["collection_id"])
