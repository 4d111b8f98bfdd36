"""Reads files from untrusted sources. Also has small helpers for files and JSON.

A folder from somebody else may hold a named pipe, a link to /dev/zero or a file of a terabyte under
a name that fedcli reads. The functions here open regular files only, never wait, and read a bounded
number of bytes.
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
    """Returns the kind of file that a mode of `os.stat` describes, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "unknown kind")


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading. Follows links and never waits.

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
    """Checks that a path is a regular file, for libraries that open files by name themselves.

    Raises:
        OSError: It does not exist, or is a pipe, device, socket or folder.
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
        if len(content) > num_bytes:  # the file grows, or is in /proc and reports no size
            content += file.read(max_bytes + 1 - len(content))
    if max(num_bytes, len(content)) > max_bytes:
        raise OSError(
            errno.EINVAL,
            f"it has {max(num_bytes, len(content)):,} bytes, and at most {max_bytes:,} are read",
            str(path),
        )
    return content


def check_mode(mode: int, path: Path) -> None:
    """Checks that a mode of `os.stat` is that of a regular file. Raises OSError."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is a {kind_of(mode)}, not a regular file", str(path))


def check_is_no_input(path: Path, inputs: Iterable[Path], label: str) -> None:
    """Refuses an output that is also an input; `label` names the option that gave `path`.

    Raises:
        ConfigError: `path` is one of the inputs, perhaps under another name, or lies in a folder
            that is an input.
    """
    for each in inputs:
        with contextlib.suppress(OSError):  # one of the two does not exist
            if path.samefile(each) or each.resolve() in path.resolve(strict=True).parents:
                raise ConfigError(f"{label} is also an input ({each}); choose another name")


def text_bytes(text: str) -> bytes:
    r"""Returns the text as UTF-8. Surrogate escapes in file names become text such as `\udcff`."""
    return text.encode(errors="backslashreplace")


def nameless_file(folder: Path | None = None) -> Any:
    """Returns a new file without a name, which vanishes when its user closes it.

    Args:
        folder: The folder on whose disk it lies; None: the system's folder for temporary files.

    Raises:
        OSError: The folder cannot be written to.
    """
    import tempfile  # lazy: few runs need it

    return tempfile.TemporaryFile(dir=folder)


def write_synced(path: Path, content: bytes) -> None:
    """Writes a new file and syncs it to the disk. Raises OSError."""
    with path.open("xb", buffering=0) as file:
        write_all(file, content)
        os.fsync(file.fileno())


def write_all(file: io.RawIOBase, content: bytes) -> None:
    """Writes all of `content`, in several writes if the system takes less. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def make_folders(path: Path) -> None:
    """Makes a folder and all missing folders above it. Raises OSError."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Syncs the names in `folder` to the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_LINE = json.JSONEncoder(allow_nan=False)  # made once, because each round writes two lines
_INDENTED = json.JSONEncoder(allow_nan=False, indent=2)


def json_text(value: Any, *, indented: bool = False) -> str:
    """Returns JSON, on one line or indented. Numbers that are not finite become null."""
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
