"""A large file that appears under its name whole, and what killed writers of it left behind."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedcli.files import sync_folder

_RANDOM_BYTES = 6


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the name of a new file beside `path` that becomes `path` when the block ends well.

    It is locked until then, and the lock dies with the process: the next writer of `path` knows a
    dead one's file by that, and removes it. Write to the file; do not replace it.

    Raises:
        OSError: The folder cannot be written to, or the disk is full.
    """
    _remove_stale(path)
    temporary, descriptor = _open_locked(path)
    try:
        yield temporary
        os.fsync(descriptor)
        os.replace(temporary, path)  # noqa: PTH105
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()
        os.close(descriptor)


def _open_locked(path: Path) -> tuple[Path, int]:
    """Makes a file of a new name and locks it."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.urandom(_RANDOM_BYTES).hex()}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # a file system without locks: nothing is ever removed there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between the two lines above another writer may have taken it for a dead one's.
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Removes the files of writers of `path` that are no more."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}\.tmp")
    for name in filter(pattern.fullmatch, os.listdir(path.parent)):  # noqa: PTH208 - names alone
        with suppress(OSError):  # in use, gone, or somebody else's: it stays
            _remove_unless_locked(path.with_name(name))


def _remove_unless_locked(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink()
    finally:
        os.close(descriptor)
