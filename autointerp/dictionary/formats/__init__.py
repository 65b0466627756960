"""Dictionaries on disk: read what others wrote, or refuse with a reason.

A folder's files say what wrote it (`READERS`). Weights are untrusted: safetensors, npz without pickles and torch files
with `weights_only` are read and nothing else; shapes and values are checked, and nothing is guessed silently.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

from autointerp.dictionary.encode import Dictionary
from autointerp.dictionary.formats import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    saelens,
    sparsify,
)
from autointerp.dictionary.formats.saelens import CONFIG_FILE, WEIGHTS_FILE
from autointerp.errors import DictionaryError

__all__ = ["CONFIG_FILE", "PACKAGED", "READERS", "WEIGHTS_FILE", "load", "locate"]

PACKAGED = Path(__file__).parent.parent / "packaged"

# What wrote a folder -> its reader: `matches(folder)` looks at file names, `read(folder, name)` at the files. The first
# that matches reads. Each names in MARKER the file that a search below a folder looks for.
READERS: dict[str, ModuleType] = {
    "sparsify": sparsify,
    "SAELens": saelens,
    "Gemma Scope": gemma_scope,
    "Gemma Scope 2": gemma_scope_2,
    "dictionary_learning": dictionary_learning,
    "Llama Scope": llama_scope,
}
LOOKED_AT = 100_000  # files and folders below a source that are looked at for a dictionary


def locate(source: str) -> Path:
    """The folder behind `dictionary.source`: a path, or the name of a packaged dictionary.

    A folder above a single dictionary will do, and so will the path of its weights. Raises DictionaryError when there
    is none, naming the packaged ones, and when there are several, naming some.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.parent.is_dir():
        path = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if path.is_dir():
        return _the_one_below(path)
    if (PACKAGED / source).is_dir() and "/" not in source and source not in {"", ".", ".."}:
        return PACKAGED / source
    packaged = ", ".join(sorted(p.name for p in PACKAGED.iterdir() if p.is_dir())) if PACKAGED.is_dir() else "none"
    raise DictionaryError(
        f"no dictionary at {source}: expected a folder written by {', '.join(READERS)}, a packaged one ({packaged}), "
        "release/id of SAELens, or hf:owner/name:path"
    )


def load(source: str, name: str | None = None) -> Dictionary:
    """Read a dictionary from a folder, by packaged name or by hub name (see `registry`), in float32 on the CPU.

    A folder wins over a hub name. name: prefix of the feature ids; by default what its folder is called.
    Raises DictionaryError for missing, truncated or inconsistent files and for architectures that are not known,
    MissingExtra for a release of SAELens without sae_lens.
    """
    from autointerp.dictionary import hub, registry  # which know the formats

    if not Path(source).expanduser().exists() and registry.is_named(source):
        return hub.load(source, name)
    folder = locate(source)
    reader = next(reader for reader in READERS.values() if reader.matches(folder))
    found: Dictionary = reader.read(folder, name)
    return found


def _the_one_below(folder: Path) -> Path:
    if any(reader.matches(folder) for reader in READERS.values()):
        return folder
    found = sorted(set(islice(_below(folder), 6)))
    if len(found) == 1:
        return found[0]
    if not found:
        files = ", ".join(sorted(p.name for p in islice(folder.iterdir(), 6))) or "nothing"
        raise DictionaryError(
            f"{folder} holds no dictionary: expected files of {', '.join(READERS)} ({', '.join(_markers())}), "
            f"found {files}"
        )
    some = ", ".join(str(p.relative_to(folder)) for p in found[:5])
    more = ", ..." if len(found) > 5 else ""
    raise DictionaryError(f"{folder} holds several dictionaries: name one of {some}{more}")


def _below(folder: Path) -> Iterator[Path]:
    markers = set(_markers())
    for path in islice(folder.rglob("*"), LOOKED_AT):
        if path.name in markers:
            yield path.parent


def _markers() -> list[str]:
    return list(dict.fromkeys(reader.MARKER for reader in READERS.values()))
