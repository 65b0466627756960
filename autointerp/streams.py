"""Corpora by Hugging Face dataset name: `hf:owner/name`, streamed with `datasets` (extra `datasets`).

    hf:owner/name                       its default configuration, split train
    hf:owner/name:config                one of its configurations
    hf:owner/name:config:split          and another split (`hf:owner/name::validation` for the default configuration)
    hf:owner/name@1a2b3c4               pinned: a commit, branch or tag; without one the hub is asked for the latest
    hf:path/to/folder::validation       a local folder, of data files or written by save_to_disk

Nothing is downloaded whole. A pinned commit makes a collection's id independent of the hub.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from autointerp.errors import CorpusError, MissingExtra

PREFIX = "hf:"


@dataclass(frozen=True, slots=True)
class Stream:
    """A dataset, one of its configurations, and a split."""

    name: str  # hub name, or the path of a folder
    config: str | None = None
    split: str = "train"
    revision: str | None = None  # as it was asked for

    @classmethod
    def parse(cls, text: str) -> "Stream":
        """`hf:owner/name[@revision][:config[:split]]`. Raises CorpusError."""
        place, *rest = text.removeprefix(PREFIX).split(":")
        name, at, revision = place.partition("@")
        here = Path(name).expanduser().is_dir()
        on_the_hub = name.count("/") <= 1 and not name.startswith((".", "/", "~"))
        if len(rest) > 2 or not name or (at and not revision) or not (here or on_the_hub):
            raise CorpusError(
                f"corpus.source = {text!r}: expected hf:owner/name, with @revision, :config and :split where needed, "
                "or hf: and a folder that is there"
            )
        config, split = [*rest, "", ""][:2]
        return cls(name, config or None, split or "train", revision or None)

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a dataset of the hub."""
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    def commit(self) -> str:
        """The commit that is read: the pinned revision, else the hub's latest. Raises CorpusError offline."""
        return self.revision or _latest(self.name)

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Every record, in order. Raises MissingExtra, and CorpusError where the dataset cannot be found or read."""
        _need(str(self))
        import datasets

        try:
            found = self._open()
            if isinstance(found, Mapping):  # a folder of several splits, as save_to_disk writes them
                if self.split not in found:
                    raise CorpusError(f"{self} has no split {self.split!r}; it has {', '.join(found)}")
                found = found[self.split]
            yield from found
        except (OSError, ValueError, RuntimeError, KeyError, datasets.exceptions.DatasetsError) as problem:
            why = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise CorpusError(f"{self} cannot be read: {why}") from None

    def _open(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        folder = self.folder
        if folder is None:
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.commit(), streaming=True
            )
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder), self.config, split=self.split, streaming=True)

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}"


def is_stream(source: str) -> bool:
    """True for a `corpus.source` that names a dataset."""
    return source.startswith(PREFIX)


def check(source: str) -> Stream:
    """The stream of a `corpus.source`. Raises CorpusError for one that names nothing, MissingExtra without datasets."""
    found = Stream.parse(source)
    _need(source)
    return found


def _need(source: str) -> None:
    if importlib.util.find_spec("datasets") is None:
        raise MissingExtra("datasets", f"corpus.source = {source!r}")


@lru_cache(maxsize=8)
def _latest(name: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return str(HfApi().dataset_info(name, timeout=20).sha)
    except (OSError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as problem:
        why = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]
        raise CorpusError(
            f"the hub does not say what the latest commit of dataset {name} is ({why}); pin one: "
            f"{PREFIX}{name}@<commit>"
        ) from None
