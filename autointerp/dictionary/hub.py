"""Dictionaries by hub name: downloaded through huggingface_hub at one commit, then read by our own `formats`.

    gpt2-small-res-jb/blocks.6.hook_resid_pre                       release/id of SAELens' registry (extra `saelens`)
    gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical    the id may hold slashes, the release never does
    hf:EleutherAI/sae-pythia-160m-32k:layers.6                      a folder of a repository of the hub
    hf:owner/name@1a2b3c4:path, release/id@1a2b3c4                  at a commit, branch or tag; without one, main

The registry says what the files do not: where they lie, what made them, the factor of their training, how the subject
was loaded. sae_lens itself is not imported for it. Only the files of one dictionary are downloaded, into
huggingface_hub's cache; HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from autointerp.dictionary.encode import Dictionary
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
SCALE_TOLERANCE = 0.01  # between the factor that the registry states and the one that the files do
TELLING = 6  # names that an error lists
TIMEOUT_S = 20


@dataclass(frozen=True)
class Layout:
    """The files of one format, relative to the dictionary's folder."""

    reader: ModuleType
    needed: tuple[str, ...]
    more: tuple[str, ...] = ()  # read where they are there


SAELENS = Layout(saelens, (saelens.CONFIG_FILE, saelens.WEIGHTS_FILE), (saelens.SCALER_FILE,))
# In the order of formats.READERS, the more telling files first.
LAYOUTS = {
    "sparsify": Layout(sparsify, (sparsify.CONFIG_FILE, sparsify.WEIGHTS_FILE), (f"../{sparsify.ROOT_FILE}",)),
    "SAELens": SAELENS,
    "Gemma Scope": Layout(gemma_scope, (gemma_scope.WEIGHTS_FILE,)),
    "Gemma Scope 2": Layout(gemma_scope_2, (gemma_scope_2.CONFIG_FILE, gemma_scope_2.WEIGHTS_FILE)),
    "dictionary_learning": Layout(dictionary_learning, (dictionary_learning.CONFIG_FILE, dictionary_learning.WEIGHTS_FILE)),
    "Llama Scope": Layout(llama_scope, (llama_scope.CONFIG_FILE, llama_scope.WEIGHTS_FILE)),
}  # fmt: skip

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


def load(source: str, name: str | None = None) -> Dictionary:
    """Download a dictionary, or take it from huggingface_hub's cache, and read it.

    name  prefix of the feature ids; by default what it is called on the hub
    Raises DictionaryError for a name that nothing has, a hub that cannot be reached, files that are not there or not
    whole, and what we cannot read; MissingExtra for release/id without sae_lens.
    """
    found = parse(source)
    layout, folder, files = fetch(found)
    given = {"overrides": found.overrides, "scale": found.scale} if layout is SAELENS else {}
    try:
        dictionary: Dictionary = layout.reader.read(folder, name or found.name, **given)
    except DictionaryError as problem:
        damaged = [path.name for path in files if _removed_where_damaged(path)]
        if not damaged:
            raise
        raise DictionaryError(
            f"{found.page}: the copy of {', '.join(damaged)} in the cache was not whole ({problem}) and has been "
            "removed; run the same command again to download it anew"
        ) from None
    return _with_what_the_registry_knows(dictionary, found, folder)


# -- names -------------------------------------------------------------------------------------------------------------


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
    spec = importlib.util.find_spec("sae_lens")  # located, not imported: that takes ten seconds
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(EXTRA, f"dictionary.source = {wanted_by!r} is no folder here; as a release/id of SAELens it")
    path = Path(spec.submodule_search_locations[0]) / REGISTRY_FILE
    if not path.is_file():
        raise DictionaryError(f"this version of sae_lens has no {REGISTRY_FILE}; take sae-lens>=6.50")
    return _read_registry(path)


@lru_cache(maxsize=1)
def _read_registry(path: Path) -> Mapping[str, Any]:
    import yaml

    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: Mapping[str, Any] = yaml.load(path.read_text("utf-8"), Loader=fast)
    return found


# -- files -------------------------------------------------------------------------------------------------------------


def fetch(source: Source) -> tuple[Layout, Path, list[Path]]:
    """The format of a dictionary, its folder in huggingface_hub's cache, and its files there, all of one commit.

    Downloads what is not there. Raises DictionaryError where the hub cannot be reached, or has no such file.
    """
    layout, path = source.layout, source.path
    more: list[str] = []
    if layout is None:
        listed = _listing(source)
        layout, path = _dictionary_among(listed, source)
        more = [name for name in layout.more if _joined(path, name) in listed]
    revision, folder, files = source.revision or "main", Path(), []
    for name in [*layout.needed, *more]:
        file = _joined(path, name)
        found = _download(source, file, revision)
        snapshot = found.parents[file.count("/")]  # .../snapshots/<commit>
        revision, folder = snapshot.name, snapshot / path  # the other files are taken from the commit of the first
        files.append(found)
    return layout, folder, files


def _joined(path: str, name: str) -> str:
    """A file's path in the repository."""
    if name.startswith("../"):
        return _joined(path.rpartition("/")[0], name[3:])
    return f"{path}/{name}" if path else name


def _download(source: Source, file: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download

    with _in_one_line(source, file):
        return Path(hf_hub_download(source.repo, file, revision=revision))


def _listing(source: Source) -> frozenset[str]:
    """The files of the repository: the hub's answer, else what the cache has of it."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        with _in_one_line(source):
            info = HfApi().model_info(source.repo, revision=source.revision, timeout=TIMEOUT_S)
        return frozenset(sibling.rfilename for sibling in info.siblings or ())
    except _Unreached:
        with _in_one_line(source):
            here = Path(snapshot_download(source.repo, revision=source.revision, local_files_only=True))
    return frozenset(file.relative_to(here).as_posix() for file in here.rglob("*") if file.is_file())


def _dictionary_among(files: frozenset[str], source: Source) -> tuple[Layout, str]:
    """The format and folder of the one dictionary at or below a place. Raises DictionaryError for none and several."""
    found: dict[str, Layout] = {}
    for layout in LAYOUTS.values():
        weights = layout.needed[-1]
        for file in files:
            folder = file[: -len(weights)].rstrip("/")
            if file == _joined(folder, weights) and source.path in (folder, file):
                return layout, folder
            if file == _joined(folder, weights) and (not source.path or folder.startswith(source.path + "/")):
                found.setdefault(folder, layout)
    if len(found) == 1:
        folder, layout = found.popitem()
        return layout, folder
    if found:
        some = ", ".join(sorted(found)[:TELLING]) + (", ..." if len(found) > TELLING else "")
        raise DictionaryError(f"{source.page} holds several dictionaries: write {PREFIX}{source.repo}:<one of {some}>")
    weights_of = ", ".join(f"{layout.needed[-1]} ({wrote})" for wrote, layout in LAYOUTS.items())
    near = nearest(source.path, {file.rpartition("/")[0] for file in files} - {""}) if source.path else ""
    raise DictionaryError(f"{source.page}: there is no dictionary{near}; looked for {weights_of}")


def _removed_where_damaged(file: Path) -> bool:
    """True where a file of the cache does not have the hash that the hub gave it as its name; it is then removed.

    huggingface_hub keeps whole files under their SHA-256 (large ones) or their git hash, and links to them.
    """
    if not file.is_symlink():
        return False
    blob = file.parent / file.readlink()
    size = blob.stat().st_size
    digest = {64: hashlib.sha256(), 40: hashlib.sha1(f"blob {size}\0".encode())}.get(len(blob.name))
    if digest is None:
        return False
    with blob.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() == blob.name:
        return False
    for path in (blob.resolve(), blob, file):  # a blob can itself be a link, into a store that caches share
        path.unlink(missing_ok=True)
    return True


# -- what goes wrong ---------------------------------------------------------------------------------------------------


class _Unreached(DictionaryError):
    """The hub does not answer, and the cache does not have it."""


@contextmanager
def _in_one_line(source: Source, file: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a DictionaryError that says what to do."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx

    what = f"{file} of {source.repo}" if file else source.repo
    try:
        yield
    except errors.GatedRepoError:
        raise DictionaryError(
            f"{source.repo} is gated: accept its terms at {constants.ENDPOINT}/{source.repo} and log in (`hf auth login`)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise DictionaryError(
            f"{source.text}: the hub has no repository {source.repo}, or shows it to others only: check its name, or "
            "log in (`hf auth login`)"
        ) from None
    except errors.RevisionNotFoundError:
        raise DictionaryError(f"{source.repo} on the hub has no revision {source.revision!r}") from None
    except errors.RemoteEntryNotFoundError:
        raise DictionaryError(f"{source.repo} on the hub has no file {file}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.TransportError):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise _Unreached(f"{what} is not in the cache ({constants.HF_HUB_CACHE}), and {why}: go online once") from None
    except (errors.HfHubHTTPError, errors.HFValidationError) as problem:
        raise DictionaryError(f"{what} cannot be had from the hub: {_first_line(problem)}") from None
    except OSError as problem:  # fewer bytes than were announced, a full disk
        raise DictionaryError(
            f"the download of {what} did not finish ({_first_line(problem)}); nothing of it was kept: run the same "
            "command again"
        ) from None


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


# -- what the files do not say -----------------------------------------------------------------------------------------


def _with_what_the_registry_knows(dictionary: Dictionary, source: Source, folder: Path) -> Dictionary:
    """Fills what the files leave open. Raises DictionaryError where they contradict the registry about the scale."""
    if source.layout is None:
        return dictionary
    scale = dictionary.input_scale
    if source.scale and source.layout is not SAELENS and abs(source.scale / scale - 1) > SCALE_TOLERANCE:
        raise DictionaryError(
            f"{source.text}: activations were scaled by {scale:.4g} in training by its own files, by {source.scale:.4g} "
            f"in SAELens' registry; to go by the files: {PREFIX}{source.repo}:{source.path}"
        )
    bos = dictionary.prepend_bos
    if bos is None and source.layout is SAELENS and "metadata" not in _config(folder):
        bos = True  # SAELens before version 6 did, unless it says otherwise
    return replace(
        dictionary, model=dictionary.model or source.model, declared_l0=dictionary.declared_l0 or source.l0,
        prepend_bos=bos,
    )  # fmt: skip


def _config(folder: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((folder / saelens.CONFIG_FILE).read_text("utf-8"))
    return found
