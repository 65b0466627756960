"""Words sent to a model: files in prompts/, filled by name. A hole that is missing or unused is an error.

A prompt file holds sections headed `# system`, `# user` and `# assistant`, in the order in which they are sent.
The working folder's prompts/ comes first, so that `autointerp init` gives a user files to edit; then the ones that ship
with the package.
"""

import hashlib
import re
import string
from pathlib import Path

from autointerp.errors import ConfigError

PACKAGED = (Path(__file__).parent / "prompts", Path(__file__).parent.parent / "prompts")  # a wheel, a source tree


def packaged_folder() -> Path:
    """The folder of prompts that ships with autointerp."""
    return next(folder for folder in PACKAGED if folder.is_dir())


def locate(name: str) -> Path:
    """The file of a prompt. Raises ConfigError naming the known ones."""
    if re.fullmatch(r"[\w-]+", name):
        for folder in (Path("prompts"), *PACKAGED):
            if (folder / f"{name}.md").is_file():
                return folder / f"{name}.md"
    known = ", ".join(sorted(p.stem for p in packaged_folder().glob("*.md")))
    raise ConfigError(f"no prompt named {name!r}; known: {known}")


def fingerprint(name: str) -> str:
    """Hash of a prompt file's text."""
    return hashlib.md5(locate(name).read_bytes()).hexdigest()[:16]


def fill(name: str, **holes: str) -> list[dict[str, str]]:
    """The prompt as chat messages, with its {holes} filled.

    Raises ConfigError when a hole of the file is not given, or a given one is not in the file. What is filled in is
    never read as a template itself.
    """
    text = locate(name).read_text("utf-8")
    try:
        wanted = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError as problem:
        raise ConfigError(
            f"prompt {name!r}: {problem}; a brace that is no hole is written twice: {{{{ or }}}}"
        ) from None
    if wanted != set(holes):
        raise ConfigError(f"prompt {name!r} has holes {sorted(wanted)}, but is filled with {sorted(holes)}")
    sections = re.split(r"^# (system|user|assistant)\s*$", text, flags=re.MULTILINE)
    if len(sections) < 3:
        raise ConfigError(f"prompt {name!r} has no section: expected lines such as '# system' and '# user'")
    return [
        {"role": role, "content": body.strip().format(**holes)}
        for role, body in zip(sections[1::2], sections[2::2], strict=True)
    ]
