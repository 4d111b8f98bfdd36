"""Lists the files below a folder of pictures in a fixed order, without operating-system files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fedcli.errors import DataError
from fedcli.files import open_regular

DECODERS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
MAX_DEPTH = 8  # largest number of folders above a picture
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*")
_PPM = {b"P%d" % number for number in range(1, 7)}
# Names of files and folders that macOS, Windows, Synology and other programs create.
_JUNK = {
    *("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"),
    "__pycache__",
}


def walk(folder: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """Yields the files below a folder, sorted, without hidden and operating-system files.

    Raises:
        DataError: A link leads out of the folder or to a folder above itself, or folders are nested
            too deeply.
        OSError: A folder cannot be read.
    """
    yield from _walk(folder, folder.resolve(), depth)


def is_junk(name: str) -> bool:
    """Returns whether a file or folder is hidden, or was created by an operating system."""
    return name.startswith(".") or name.lower() in _JUNK


def looks_like_picture(path: Path) -> bool:
    """Returns whether a file begins like a picture of a supported format."""
    with open_regular(path) as file:
        start = file.read(12)
    is_ppm = start[:2] in _PPM and start[2:3] in b" \t\r\n#" and len(start) > 2
    return (
        is_ppm or start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
    )


def too_deep(path: Path) -> DataError:
    """Returns the error for a folder that is nested too deeply."""
    return DataError(
        f"{path}: is nested too deeply; put pictures into class folders, client folders, or class "
        "folders within client folders, each perhaps inside a folder for its split"
    )


def _walk(folder: Path, root: Path, depth: int) -> Iterator[Path]:
    for entry in _entries(folder):
        path = folder / entry.name
        if entry.is_symlink():
            target = path.resolve()
            if not target.is_relative_to(root):
                raise DataError(
                    f"{path}: is a link to a file outside the folder; copy that file into it"
                )
            if folder.resolve().is_relative_to(target):
                raise DataError(f"{path}: is a link to a folder above it; remove the link")
        if entry.is_file():
            yield path
        elif entry.is_dir():
            if not depth:
                raise too_deep(path)
            yield from _walk(path, root, depth - 1)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not is_junk(entry.name)]
    return sorted(visible, key=lambda entry: entry.name)
