"""`fuzzing`, active mode: are the marked words those that the feature fires on? (Paulo et al. 2024, made fair.)

Every firing passage is shown twice, in different calls: once with marks on the tokens that fire, once with as many
marks, in runs of the same lengths, on silent tokens of the same passage. A judge who knows nothing has 1/2, whatever
it prefers. Published fuzzing lets marks be told apart by their number or places; here a decoy begins, where the passage
has such a token, with one of the same kind (a word, a part of one, punctuation, white space).
"""

from collections.abc import Sequence, Set

import numpy as np

from autointerp.evidence import Texts
from autointerp.explainers.shown import MARK_SHARE, whole
from autointerp.fence import neutral
from autointerp.judges import Item
from autointerp.judges.detection import shuffled
from autointerp.keep import mix, salted
from autointerp.store import Sparse

SALT = 7
MARK = "**"  # as explainers write it; the passages' own asterisks have been replaced


def items(firing: Sparse, wanted: Set[int], texts: Texts, n: int, feature: int, seed: int) -> list[Item]:
    """Up to n items: half as many passages, first each in one version, then each in the other, in the same order.

    firing  the feature's firing passages
    wanted  ids of those that may be shown
    A passage without enough silent tokens for the decoy is passed over. Items `len // 2` apart are of one passage, so
    calls of at most that many never show a passage twice.
    """
    at = {p: slice(firing.offsets[i], firing.offsets[i + 1]) for i, p in enumerate(firing.passage.tolist())}
    first: list[Item] = []
    second: list[Item] = []
    for passage in shuffled(sorted(wanted & at.keys()), feature, seed).tolist():
        if len(first) == n // 2:
            break
        positions, values = firing.positions[at[passage]], firing.values[at[passage]]
        key = int(mix(np.array([passage], dtype=np.uint64) ^ salted(seed * 0x10001 + feature, SALT))[0])
        strings, places = whole(neutral(texts.strings(passage)))
        fires, masked = ({places[p] for p in found} for found in (positions.tolist(), texts.row(passage).masked))
        strong = sorted({places[p] for p in positions[values >= MARK_SHARE * values.max()].tolist()})
        usable = set(range(len(strings))) - fires - masked
        silent = decoy(strings, strong, usable, key)
        if silent is None:
            continue
        pair = [
            Item(passage, marked(strings, strong), True, True),
            Item(passage, marked(strings, silent), False, False),
        ]
        first.append(pair[key & 1])
        second.append(pair[1 - (key & 1)])
    return first + second


def decoy(strings: Sequence[str], strong: Sequence[int], usable: Set[int], key: int) -> list[int] | None:
    """Positions to mark in place of the strong ones: as many, in runs as long, apart from one another.

    strong  positions that are marked rightly
    usable  positions that may be marked wrongly
    key     decides among equally good places
    None where there is no room.
    """
    found: list[int] = []
    free = set(usable)
    for run in sorted(runs(strong), key=len, reverse=True):
        starts = [s for s in sorted(free) if all(s + i in free for i in range(len(run)))]
        if not starts:
            return None
        alike = [s for s in starts if kind(strings, s) == kind(strings, run[0])] or starts
        order = mix(np.array(alike, dtype=np.uint64) ^ np.uint64(key))
        start = alike[int(np.argmin(order))]
        found += range(start, start + len(run))
        free -= set(range(start - 1, start + len(run) + 1))  # a token apart, or two runs would be one
    return sorted(found)


def runs(positions: Sequence[int]) -> list[list[int]]:
    """Neighbouring positions, together."""
    found: list[list[int]] = []
    for position in sorted(positions):
        if found and found[-1][-1] == position - 1:
            found[-1].append(position)
        else:
            found.append([position])
    return found


def kind(strings: Sequence[str], position: int) -> str:
    """What a token is: a word (or its first part), a later part of one, punctuation, or white space."""
    string = strings[position]
    if not string.strip():
        return "space"
    if not string.strip()[0].isalnum():
        return "punctuation"
    before = strings[position - 1][-1:] if position else ""
    return "part" if string[0].isalnum() and before.isalnum() else "word"


def marked(strings: Sequence[str], positions: Sequence[int]) -> str:
    """The passage with its tokens at these positions between marks, neighbours together, spaces before them outside."""
    pieces = list(strings)
    for run in runs(positions):
        whole = "".join(strings[run[0] : run[-1] + 1])
        bare = whole.strip() or whole
        before, after = whole.split(bare, 1)
        pieces[run[0] : run[-1] + 1] = [f"{before}{MARK}{bare}{MARK}{after}", *[""] * (len(run) - 1)]
    return "".join(pieces)
