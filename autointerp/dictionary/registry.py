"""Names of dictionaries on the hub, and what they stand for.

    gpt2-small-res-jb/blocks.6.hook_resid_pre                       release/id of SAELens' registry (extra `saelens`)
    gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical    the id may hold slashes, the release never does
    hf:EleutherAI/sae-pythia-160m-32k:layers.6                      a folder of a repository of the hub
    hf:owner/name@1a2b3c4:path, release/id@1a2b3c4                  at a commit, branch or tag; without one, main

The registry says what the files do not: where they lie, what made them, the factor of their training, how the subject
was loaded. It is read from sae_lens' package, which is not imported for it. Nothing here leaves the machine.
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from autointerp.dictionary.formats import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    saelens,
    sparsify,
)
from autointerp.errors import DictionaryError, MissingExtra, nearest

PREFIX, EXTRA = "hf:", "saelens"
REGISTRY_FILE = "pretrained_saes.yaml"
NAMED = re.compile(r"(?P<release>[\w.\-]+)/(?P<id>[^@:\\]+)(?:@(?P<revision>[^@:]+))?")
REPOSITORY = re.compile(r"(?P<repo>[\w.\-]+/[\w.\-]+)(?:@(?P<revision>[^@:]+))?(?::(?P<path>.*))?")
CROSS_LAYER = re.compile(r"(^|/)(clt|crosscoder)", re.IGNORECASE)
TELLING = 6  # names that an error lists


@dataclass(frozen=True)
class Layout:
    """The files of one format, relative to the dictionary's folder."""

    reader: ModuleType
    needed: tuple[str, ...]
    more: tuple[str, ...] = ()  # read where the repository has them


SAELENS = Layout(saelens, (saelens.CONFIG_FILE, saelens.WEIGHTS_FILE), (saelens.SCALER_FILE,))
# In the order of formats.READERS, the more telling files first.
LAYOUTS = {
    "sparsify": Layout(sparsify, (sparsify.CONFIG_FILE, sparsify.WEIGHTS_FILE), (f"../{sparsify.ROOT_FILE}",)),
    "SAELens": SAELENS,
    "Gemma Scope": Layout(gemma_scope, (gemma_scope.WEIGHTS_FILE,)),
    "Gemma Scope 2": Layout(gemma_scope_2, (gemma_scope_2.WEIGHTS_FILE,), (gemma_scope_2.CONFIG_FILE,)),
    "dictionary_learning": Layout(
        dictionary_learning, (dictionary_learning.CONFIG_FILE, dictionary_learning.WEIGHTS_FILE)
    ),
    "Llama Scope": Layout(llama_scope, (llama_scope.CONFIG_FILE, llama_scope.WEIGHTS_FILE)),
}

# SAELens' name of a loader (`conversion_func`) -> the layout that it reads.
LOADERS = {
    "sae_lens": LAYOUTS["SAELens"],
    "gemma_2": LAYOUTS["Gemma Scope"],
    "gemma_2_transcoder": LAYOUTS["Gemma Scope"],
    "gemma_3": LAYOUTS["Gemma Scope 2"],
    "llama_scope": LAYOUTS["Llama Scope"],
    "dictionary_learning_1": LAYOUTS["dictionary_learning"],
    "sparsify": LAYOUTS["sparsify"],
}
UNDERSTOOD = {"dataset_path", "model_name", "neuronpedia_id"}  # overrides that change nothing about encoding


@dataclass(frozen=True)
class Source:
    """A dictionary on the hub."""

    text: str  # as it was asked for
    repo: str
    path: str  # of its folder in the repository, or of one above it; '' for the top
    revision: str | None = None
    name: str = ""  # prefix of feature ids
    layout: Layout | None = None  # None: what the files say
    model: str | None = None
    l0: float | None = None  # mean firing features per token, as SAELens measured
    scale: float | None = None  # factor of the activations in training
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of its cfg.json

    @property
    def page(self) -> str:
        """The repository and the place in it, for messages."""
        return f"{self.repo}{'/' if self.path else ''}{self.path} on the hub"


def is_named(source: str) -> bool:
    """True for a `dictionary.source` that can be a hub name: `hf:...` or release/id, and no path by its looks."""
    if source.startswith(PREFIX):
        return True
    found = NAMED.fullmatch(source)
    return bool(found) and not _leads_out(source)


def parse(source: str) -> Source:
    """What a `dictionary.source` names. Raises DictionaryError, and MissingExtra for release/id without sae_lens."""
    if not source.startswith(PREFIX):
        return _registered(source)
    found = REPOSITORY.fullmatch(source.removeprefix(PREFIX))
    path = (found["path"] or "").strip("/") if found else ""
    if found is None or (path and _leads_out(path)):
        raise DictionaryError(
            f"dictionary.source = {source!r}: expected hf:owner/name, with @revision and :path/in/the/repository where "
            "needed"
        )
    repo = found["repo"]
    return Source(source, repo, path, found["revision"], _as_name(f"{repo.rpartition('/')[2]}-{path}"))


def _leads_out(path: str) -> bool:
    return any(part in {"", ".", ".."} for part in path.split("/"))


def _as_name(text: str) -> str:
    return re.sub(r"[^\w.\-]+", "-", text).strip("-.")


def _registered(source: str) -> Source:
    found = NAMED.fullmatch(source)
    if found is None:
        raise DictionaryError(f"dictionary.source = {source!r}: expected release/id, with @revision where needed")
    known = registry(source)
    release, identity = found["release"], found["id"].strip("/")
    if release not in known:
        raise DictionaryError(
            f"no dictionary at {source}: there is no such folder, and SAELens has no release {release!r}"
            f"{nearest(release, known)}; a repository of the hub is written hf:owner/name:path"
        )
    entry = known[release]
    members = {str(one["id"]): one for one in entry["saes"]}
    if identity not in members:
        some = ", ".join(list(members)[:TELLING]) + (", ..." if len(members) > TELLING else "")
        raise DictionaryError(
            f"release {release} has no dictionary {identity!r}{nearest(identity, members)}; it has {some}"
        )
    return _entry(source, release, entry, members[identity], found["revision"])


def _entry(source: str, release: str, entry: Mapping[str, Any], one: Mapping[str, Any], revision: str | None) -> Source:
    path, loader = str(one["path"]), str(entry.get("conversion_func") or "sae_lens")
    layout = LOADERS.get(loader)
    if layout is None:
        raise DictionaryError(
            f"{source}: SAELens reads it with its loader {loader}, which is not supported; supported: "
            f"{', '.join(LOADERS)}"
        )
    if CROSS_LAYER.search(path):
        raise DictionaryError(f"{source}: cross-layer transcoders and crosscoders are not supported")
    overrides = entry.get("config_overrides") or {}
    if layout is not SAELENS and (odd := overrides.keys() - UNDERSTOOD):
        raise DictionaryError(f"{source}: SAELens overrides {', '.join(sorted(odd))} of its files; not supported")
    return Source(
        source, str(entry["repo_id"]), path, revision, _as_name(f"{release}-{one['id']}"), layout,
        entry.get("model"), one.get("l0") or None, one.get("norm_scaling_factor"), overrides,
    )  # fmt: skip


def registry(wanted_by: str) -> Mapping[str, Any]:
    """SAELens' pretrained_saes.yaml: release -> its repository, loader and dictionaries.

    `wanted_by` is the source that needs it. Raises MissingExtra where sae_lens is not installed.
    """
    path = _registry_file()
    if path is None:
        raise MissingExtra(EXTRA, f"dictionary.source = {wanted_by!r} is no folder here; as a release/id of SAELens it")
    if not path.is_file():
        raise DictionaryError(f"this version of sae_lens has no {REGISTRY_FILE}; take sae-lens>=6.50")
    return _read_registry(path)


def better_known_as(source: Source) -> str | None:
    """The release/id of a folder for which the registry says something that its files do not; None for any other, and
    where sae_lens is not installed."""
    path = _registry_file()
    if path is None or not path.is_file():
        return None
    for release, entry in _read_registry(path).items():
        if entry["repo_id"] != source.repo:
            continue
        for one in entry["saes"]:
            told = "norm_scaling_factor" in one or (entry.get("config_overrides") or {}).keys() - UNDERSTOOD
            if (
                told
                and str(one["path"]) == source.path
                and LOADERS.get(entry.get("conversion_func") or "sae_lens") is SAELENS
            ):
                return f"{release}/{one['id']}"
    return None


def _registry_file() -> Path | None:
    spec = importlib.util.find_spec("sae_lens")  # located, not imported: that takes ten seconds
    return (
        Path(spec.submodule_search_locations[0]) / REGISTRY_FILE if spec and spec.submodule_search_locations else None
    )


@lru_cache(maxsize=1)
def _read_registry(path: Path) -> Mapping[str, Any]:
    import yaml

    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: Mapping[str, Any] = yaml.load(path.read_text("utf-8"), Loader=fast)
    return found
