"""The files of a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from fedcli.errors import DataError
from fedcli.files import open_regular

UNPACKED = ".fedcli-unpacked-"  # prefix of the names of folders with unpacked files
_MAX_EXAMINED = 256  # number of files of a folder that are examined


def files_of(sources: Sequence[Path]) -> list[Path]:
    """Returns the regular files among sources and directly in them, each once, sorted by name.

    Args:
        sources: Files and folders. Hidden files in a folder are ignored.
    """
    found: dict[Path, None] = {}
    for path in sources:
        inside = path.iterdir() if path.is_dir() else iter([path])
        names = (each for each in inside if each == path or not each.name.startswith("."))
        found.update(dict.fromkeys(each for each in names if each.is_file()))
    return sorted(found, key=lambda each: (str(each.parent), each.name))


def any_file(path: Path, is_wanted: Callable[[Path], bool]) -> bool:
    """Returns whether a file, or one of the first files in a folder, is wanted."""
    if path.is_file():
        return is_wanted(path)
    if not path.is_dir():
        return False
    inside = (each for each in path.iterdir() if not each.name.startswith("."))
    return any(is_wanted(each) for each in islice(inside, _MAX_EXAMINED) if each.is_file())


def one_file(sources: Sequence[Path], what: str) -> Path:
    """Returns the only source.

    Raises:
        DataError: There are several, or it is not a file; the message calls it a `what`.
    """
    if len(sources) > 1:
        raise DataError(
            f"{sources[1]}: a {what} is a single file, and {sources[0]} was already given; give "
            "test data with --test-data"
        )
    if not sources[0].is_file():
        raise DataError(f"{sources[0]}: is not a regular file; give a {what}")
    return sources[0]


def start_of(path: Path, num_bytes: int) -> bytes:
    """Returns the first bytes of a file, or fewer if it is shorter."""
    with open_regular(path) as file:
        return file.read(num_bytes)
