"""What people said of a feature's label: their edits, by label, with the votes that count."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autointerp import edits
from autointerp.edits import Edit


@dataclass
class Said:
    """One label of a feature as people see it."""

    label: str
    ups: int = 0
    downs: int = 0
    written: list[Edit] = field(default_factory=list)  # by those who gave it as theirs, oldest first


class Remarks:
    """The edits of a run's folder, read anew when their file has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamp: tuple[int, int] | None = None
        self._edits: dict[str, list[Edit]] = {}

    def of(self, feature_id: str, label: str | None) -> list[Said]:
        """What was said of a feature, first of the label it has; that one is there even where nobody spoke of it.

        Raises StoreError where the file cannot be read.
        """
        self._refresh()
        return said(self._edits.get(feature_id, []), label)

    def _refresh(self) -> None:
        try:
            known = (self.folder / edits.FILE).stat()
            stamp = (known.st_mtime_ns, known.st_size)
        except OSError:
            stamp = None
        if stamp is None or stamp != self._stamp:
            by_feature: dict[str, list[Edit]] = {}
            for edit in edits.read(self.folder):
                by_feature.setdefault(edit.feature_id, []).append(edit)
            self._edits, self._stamp = by_feature, stamp


def said(of: Sequence[Edit], label: str | None) -> list[Said]:
    """Edits of one feature, oldest first, put together by label: its present label first, then those most voted for."""
    found: dict[str, Said] = {} if label is None else {label: Said(label)}
    for edit in of:
        one = found.setdefault(edit.label, Said(edit.label))
        if edit.kind == "label":
            one.written.append(edit)
    for (_, text), votes in edits.counted(of).items():
        found[text].ups, found[text].downs = votes
    return sorted(found.values(), key=lambda one: (one.label != label, one.downs - one.ups))
