"""Locks between processes, as file locks (flock): the system releases them when a process ends.

The package filelock would add 35 ms to every start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fedcli.files import check_mode, open_regular
from fedcli.progress import NoteCallback, ProgressCallback, ignore_note, ignore_progress

_POLL_SECONDS = 0.1
# `check_unlocked` holds a shared lock for an instant, or for seconds on a busy machine. `_lock`
# tries this many times, a millisecond apart, until it is released.
_MAX_TRIES = 10_000


class ReplacedError(Exception):
    """The file was removed or replaced between opening it and locking it."""


def lock_now(path: Path) -> int:
    """Locks a file and returns its descriptor; closing this releases the lock.

    The file is created if it does not exist. This function does not wait for another holder. It
    waits only for a process that checks the lock, which takes an instant.

    Raises:
        BlockingIOError: Another process holds the lock.
        ReplacedError: The process that held the lock before has removed the file.
        OSError: The file cannot be made or locked.
    """
    with contextlib.suppress(FileNotFoundError):
        check_mode(path.lstat().st_mode, path)  # never lock or create a file through a link
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        check_mode(os.fstat(descriptor).st_mode, path)
        _lock(descriptor)
        if _is_still(path, descriptor):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise ReplacedError(str(path))


def is_locked(path: Path) -> bool:
    """Tells whether another process holds the lock of a file. This does not disturb `lock_now`."""
    try:
        check_unlocked(path)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check_unlocked(path: Path) -> None:
    """Checks that nobody holds the lock of a file. The check does not disturb `lock_now`.

    A file that does not exist is not locked.

    Raises:
        BlockingIOError: Another process, or another thread of this one, holds the lock.
        OSError: The file cannot be opened.
    """
    with contextlib.suppress(FileNotFoundError), open_regular(path) as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)  # closing releases it


def _lock(descriptor: int) -> None:
    """Takes an exclusive lock. Raises BlockingIOError if another process holds one."""
    for _ in range(_MAX_TRIES):
        if _is_taken(descriptor):
            return
        # Raises BlockingIOError if another process holds an exclusive lock.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(0.001)
    raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))


def _is_taken(descriptor: int) -> bool:
    """Takes the lock exclusively if no other process holds it, and tells whether it did."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(
    path: Path, on_progress: ProgressCallback = ignore_progress, on_note: NoteCallback = ignore_note
) -> Iterator[None]:
    """Holds a lock for which other processes wait. The lock file is removed at the end.

    Args:
        path: The lock file: the name of the thing that is locked, and a suffix.
        on_progress: Called with (0, None) while this process waits for another.
        on_note: Called with one line when this process begins to wait for another.

    Raises:
        OSError: The lock file cannot be made.
    """
    descriptor = _wait_for(path, on_progress, on_note)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _wait_for(path: Path, on_progress: ProgressCallback, on_note: NoteCallback) -> int:
    has_remarked = False
    while True:
        try:
            return lock_now(path)
        except ReplacedError:
            continue
        except BlockingIOError:
            if not has_remarked:
                on_note(f"another process has locked {path.stem}; waiting for it to end")
                has_remarked = True
        on_progress(0, None)
        time.sleep(_POLL_SECONDS)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the file behind `descriptor`, not a later one."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
