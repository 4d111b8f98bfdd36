"""Reads files that nobody vouches for, and small helpers for files and JSON.

What is read may be anything: a folder that somebody sent may hold a named pipe, a link to /dev/zero
or a file of a terabyte under a name that fedcli reads. So such files are opened here: regular files
only, without waiting, and no more of them than there can be.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from fedcli.errors import ConfigError

_KINDS = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def kind_of(mode: int) -> str:
    """Returns what kind of file a mode of `os.stat` is of, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "unknown kind")


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file to read it; links are followed, nothing is waited for.

    Raises:
        OSError: It cannot be opened, or is a pipe, device, socket or folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        check_mode(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path) -> None:
    """Refuses what is no regular file, for libraries that open files by name themselves.

    Raises:
        OSError: It is not there, or is a pipe, device, socket or folder.
    """
    check_mode(os.stat(path).st_mode, path)  # noqa: PTH116 - links are followed


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Returns the content of a regular file.

    Raises:
        OSError: It cannot be read, is of another kind, or has more than `max_bytes`.
    """
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        content = b"" if num_bytes > max_bytes else file.read(num_bytes + 1)
        if len(content) > num_bytes:  # it grows, or is one of /proc that does not say its size
            content += file.read(max_bytes + 1 - len(content))
    if max(num_bytes, len(content)) > max_bytes:
        raise OSError(
            errno.EINVAL,
            f"it has {max(num_bytes, len(content)):,} bytes, and at most {max_bytes:,} are read",
            str(path),
        )
    return content


def check_mode(mode: int, path: Path) -> None:
    """Refuses a mode of `os.stat` that is not a regular file's. Raises OSError."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is a {kind_of(mode)}, no regular file", str(path))


def check_is_no_input(path: Path, inputs: Iterable[Path], label: str) -> None:
    """Refuses to write to what is read; `label` is what the user gave `path` as.

    Raises:
        ConfigError: `path` is one of the inputs, perhaps under another name, or in one of them.
    """
    for each in inputs:
        with contextlib.suppress(OSError):  # one of them is not there
            if path.samefile(each) or each.resolve() in path.resolve(strict=True).parents:
                raise ConfigError(f"{label} is what is read ({each}); choose another name")


def text_bytes(text: str) -> bytes:
    r"""Returns text as UTF-8; of a file's name that is not UTF-8, the bytes as `\udcff`."""
    return text.encode(errors="backslashreplace")


def write_synced(path: Path, content: bytes) -> None:
    """Writes a new file and waits until the disk has it. Raises OSError."""
    with path.open("xb", buffering=0) as file:
        write_all(file, content)
        os.fsync(file.fileno())


def write_all(file: io.RawIOBase, content: bytes) -> None:
    """Writes all of it, however many bytes the system takes at a time. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def make_folders(path: Path) -> None:
    """Makes a folder and those above it that are missing, however many. Raises OSError."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the names in `folder`. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_LINE = json.JSONEncoder(allow_nan=False)  # made once: two lines a round are written with it
_INDENTED = json.JSONEncoder(allow_nan=False, indent=2)


def json_text(value: Any, *, indented: bool = False) -> str:
    """Returns JSON, in one line or indented, with null for every number that is not finite."""
    encoder = _INDENTED if indented else _LINE
    try:
        return encoder.encode(value)
    except ValueError:
        return encoder.encode(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    is_finite = not isinstance(value, float) or value - value == 0
    return value if is_finite else None
