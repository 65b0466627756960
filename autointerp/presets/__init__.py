"""Configurations for the dictionaries that people use: `autointerp init --preset NAME`.

A preset is a file beside this one. It holds what differs from the defaults, below comments that say what it is (first
line) and what it needs; `text` puts both into the commented config.toml, so that one file says everything.
"""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from autointerp import config
from autointerp.errors import ConfigError, nearest

DEFAULT = "default"
SETTING = re.compile(r"(?:# )?(\w+) = (?:\"[^\"]*\"|[^#]*?) *(#.*)?")  # `key = value  # comment`, or out-commented
COMMENT_COLUMN = 52
ABOUT_THE_REST = (
    "# Every key is optional; the others stand at their defaults. `autointerp config` shows what is in force."
)


def names() -> list[str]:
    """Every preset, the default first."""
    found = sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))
    return sorted(found, key=lambda name: name != DEFAULT)


def summary(name: str) -> str:
    """What a preset is, in one line."""
    return _comments(_read(name))[0].removeprefix("# ")


def text(name: str) -> str:
    """The commented config.toml of a preset. Raises ConfigError for an unknown one, naming the known ones."""
    packaged, preset = config.packaged_file().read_text("utf-8"), _read(name)
    tables = tomllib.loads(preset)
    if not tables:
        return packaged
    lines, section = [], ""
    for line in packaged.partition("\n\n")[2].splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        found = SETTING.fullmatch(line)
        if found and found[1] in tables.get(section, {}):
            line = _setting(found[1], tables[section].pop(found[1]), found[2] or "")
        lines.append(line)
    left = [f"{table}.{key}" for table, values in tables.items() for key in values]
    if left:
        raise ConfigError(f"preset {name} sets {', '.join(left)}, which config.toml does not have")
    return "\n".join([*_comments(preset), "#", ABOUT_THE_REST, "", *lines, ""])


def _read(name: str) -> str:
    if name not in names():
        known = ", ".join(names())
        raise ConfigError(f"no preset named {name!r}{nearest(name, names())}; known: {known}")
    return (Path(__file__).parent / f"{name}.toml").read_text("utf-8")


def _comments(preset: str) -> list[str]:
    """The lines that a preset begins with."""
    return preset.partition("\n\n")[0].strip().splitlines()


def _setting(key: str, value: Any, comment: str) -> str:
    return f"{key} = {json.dumps(value, ensure_ascii=False)} ".ljust(COMMENT_COLUMN) + comment
