"""Dictionaries from the hub: downloaded through huggingface_hub at one commit, then read by our own `formats`.

Only the files of one dictionary are downloaded, into huggingface_hub's cache; HF_ENDPOINT, HF_HOME, HF_TOKEN and
HF_HUB_OFFLINE mean what they mean everywhere. What names there are: `registry`.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from autointerp.dictionary.encode import Dictionary
from autointerp.dictionary.formats import saelens
from autointerp.dictionary.registry import LAYOUTS, PREFIX, SAELENS, TELLING, Layout, Source, better_known_as, parse
from autointerp.errors import DictionaryError, nearest

log = logging.getLogger(__name__)

TIMEOUT_S = 20
SCALE_TOLERANCE = 0.01  # between the factor that the registry states and the one that the files do


def load(source: str, name: str | None = None) -> Dictionary:
    """Download a dictionary, or take it from huggingface_hub's cache, and read it.

    name  prefix of the feature ids; by default what it is called on the hub
    Raises DictionaryError for a name that nothing has, a hub that cannot be reached, files that are not there or not
    whole, and what we cannot read; MissingExtra for release/id without sae_lens.
    """
    found = parse(source)
    if found.layout is None and (better := better_known_as(found)) is not None:
        log.warning("%s is %s in SAELens' registry, which knows how it was trained: name it so", source, better)
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


# -- files -------------------------------------------------------------------------------------------------------------


def fetch(source: Source) -> tuple[Layout, Path, list[Path]]:
    """The format of a dictionary, its folder in huggingface_hub's cache, and its files there, all of one commit.

    Downloads what is not there. Raises DictionaryError where the hub cannot be reached, or has no such file.
    """
    layout, path = source.layout, source.path
    if layout is None:
        layout, path = _dictionary_among(_listing(source), source)
    revision, folder, files = source.revision or "main", Path(), []
    _ask_for(source, _joined(path, layout.needed[0]), revision)
    for name in layout.needed:
        file = _joined(path, name)
        files.append(_download(source, file, revision))
        snapshot = files[-1].parents[file.count("/")]  # .../snapshots/<commit>
        revision, folder = snapshot.name, snapshot / path  # the other files are taken from the commit of the first
    found = (_download_if_there(source, _joined(path, name), revision) for name in layout.more)
    return layout, folder, [*files, *(file for file in found if file is not None)]


def _joined(path: str, name: str) -> str:
    """A file's path in the repository."""
    if name.startswith("../"):
        return _joined(path.rpartition("/")[0], name[3:])
    return f"{path}/{name}" if path else name


def _ask_for(source: Source, file: str, revision: str) -> None:
    """Raises DictionaryError for a file that is not in the cache and not to be had: at once, where a download would try
    for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if try_to_load_from_cache(source.repo, file, revision=revision) is None:
        with _in_one_line(source, file):
            get_hf_file_metadata(hf_hub_url(source.repo, file, revision=revision))


def _download(source: Source, file: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download

    with _in_one_line(source, file):
        return Path(hf_hub_download(source.repo, file, revision=revision))


def _download_if_there(source: Source, file: str, revision: str) -> Path | None:
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    if try_to_load_from_cache(source.repo, file, revision=revision) is _CACHED_NO_EXIST:  # asked before
        return None
    try:
        return _download(source, file, revision)
    except (_Absent, _Unreached):
        return None


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


class _Absent(DictionaryError):
    """The hub has no such file."""


class _Unreached(DictionaryError):
    """The hub does not answer, and the cache does not have it."""


def _unreached(what: str) -> _Unreached:
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
    return _Unreached(f"{what} is not in the cache ({constants.HF_HUB_CACHE}), and {why}: go online once")


@contextmanager
def _in_one_line(source: Source, file: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a DictionaryError that says what to do."""
    from huggingface_hub import constants, errors

    what = f"{file} of {source.repo}" if file else source.repo
    try:
        yield
    except errors.GatedRepoError:
        raise DictionaryError(
            f"{source.repo} is gated: accept its terms at {constants.ENDPOINT}/{source.repo}, and log in (`hf auth "
            "login`)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise DictionaryError(
            f"{source.text}: the hub has no repository {source.repo}, or shows it to others only: check its name, or "
            "log in (`hf auth login`)"
        ) from None
    except errors.RevisionNotFoundError:
        raise DictionaryError(f"{source.repo} on the hub has no revision {source.revision or 'main'!r}") from None
    except errors.RemoteEntryNotFoundError:
        raise _Absent(f"{source.repo} on the hub has no file {file}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise _unreached(what) from None
    except (errors.HfHubHTTPError, errors.HFValidationError) as problem:
        if isinstance(problem, errors.HfHubHTTPError) and problem.response.status_code >= 500:
            raise _unreached(what) from None
        raise DictionaryError(f"{what} cannot be had from the hub: {_first_line(problem)}") from None
    except errors.HTTPError:  # type: ignore[attr-defined]  # httpx's or httpx2's: no connection, or none any more
        raise _unreached(what) from None
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
            f"{source.text}: its files say that activations were scaled by {scale:.4g} in training, SAELens' registry "
            f"says {source.scale:.4g}; to go by the files: {PREFIX}{source.repo}:{source.path}"
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
