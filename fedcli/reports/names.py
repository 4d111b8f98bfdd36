"""Shortens names of runs for legends and keeps them distinct; writes sizes with units."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ELLIPSIS = "…"
_PIECE = re.compile(r"[^/_\-. ]+|[/_\-. ]")
_ELLIPSES = re.compile(rf"(?:{_ELLIPSIS}[/_\-. ])+(?={_ELLIPSIS})")


def short_names(names: Sequence[str], limit: int = 32) -> list[str]:
    """Returns shortened names of at most `limit` characters.

    Leading folders that all names share are left out first, then other parts that all share, then
    the middle of a name. If two would become equal, all are numbered.

    Args:
        names: The names, such as paths of runs.
        limit: Maximum number of characters, at least 8.
    """
    distinct = list(dict.fromkeys(names))
    if len(distinct) == 1:
        return [_cut(_last_folder(names[0]), limit)] * len(names)
    shortened = _without_common_folders(distinct)
    if max(map(len, shortened)) > limit:
        shortened = _without_common_pieces(shortened, limit)
    cut = [_cut(name, limit) for name in shortened]
    if len(set(cut)) < len(cut):
        width = len(str(len(cut)))
        cut = [
            f"{number:0{width}} {_cut(name, limit - width - 1)}"
            for number, name in enumerate(shortened, start=1)
        ]
    by_name = dict(zip(distinct, cut, strict=True))
    return [by_name[name] for name in names]


def size_text(num_bytes: int) -> str:
    """Returns a size with its unit: 950 B, 12.3 kB, 149 MB, 1.4 GB."""
    rounded = float(f"{num_bytes:.3g}")  # before the unit is chosen; else 999,999 is 1e+03 kB
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if rounded >= factor:
            return f"{rounded / factor:.4g} {unit}"
    return f"{num_bytes} B"


def _last_folder(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name


def _without_common_folders(names: Sequence[str]) -> list[str]:
    """Removes the leading folders that all names share."""
    parts = [name.split("/") for name in names]
    num_folders = min(map(len, parts)) - 1
    common = 0
    while common < num_folders and len({each[common] for each in parts}) == 1:
        common += 1
    return ["/".join(each[common:]) for each in parts]


def _without_common_pieces(names: Sequence[str], limit: int) -> list[str]:
    """Replaces pieces that all names share by an ellipsis, from the left, until the names fit.

    Names with different numbers of pieces are returned unchanged.
    """
    pieces = [_PIECE.findall(name) for name in names]
    if len(set(map(len, pieces))) > 1:
        return list(names)
    for index, column in enumerate(list(zip(*pieces, strict=True))):
        if max(map(len, map(_joined, pieces))) <= limit:
            break
        if len(set(column)) == 1 and column[0].isalnum():
            for each in pieces:
                each[index] = _ELLIPSIS
    return list(map(_joined, pieces))


def _joined(pieces: Sequence[str]) -> str:
    """Joins the pieces of a name; neighbouring ellipses become one."""
    return _ELLIPSES.sub("", "".join(pieces))


def _cut(name: str, limit: int) -> str:
    """Shortens a name to `limit` characters: keeps part of its beginning and more of its end."""
    if len(name) <= limit:
        return name
    end = (limit - 1) * 2 // 3
    return f"{name[: limit - 1 - end]}{_ELLIPSIS}{name[-end:]}"
