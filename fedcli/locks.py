"""Locks between processes, on files: a lock dies with the process that holds it.

flock does all that is needed in a few lines; filelock would add 35 ms to every start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fedcli.files import check_mode
from fedcli.progress import Remark, Tell, remark_to_nobody, tell_nobody

_POLL_SECONDS = 0.1


class ReplacedError(Exception):
    """The lock that was got is of a file that has just been removed or replaced by another."""


def lock_now(path: Path) -> int:
    """Opens a file, makes it if need be, locks it, and returns its descriptor; to unlock, close it.

    Raises:
        BlockingIOError: Another process holds the lock.
        ReplacedError: Who held it before has removed the file, and perhaps somebody made it anew.
        OSError: The file cannot be made or locked.
    """
    with contextlib.suppress(FileNotFoundError):
        check_mode(path.lstat().st_mode, path)  # nothing is locked, or made, through a link
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        check_mode(os.fstat(descriptor).st_mode, path)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_still(path, descriptor):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise ReplacedError(str(path))


@contextlib.contextmanager
def locked(
    path: Path, tell: Tell = tell_nobody, remark: Remark = remark_to_nobody
) -> Iterator[None]:
    """Holds a lock that other processes wait for; its file is there only meanwhile.

    Args:
        path: The lock's file: the name of what is locked, and a suffix.
        tell: Is told of no progress while another process is waited for.
        remark: Is told in one line that another process is waited for.

    Raises:
        OSError: The lock file cannot be made.
    """
    descriptor = _wait_for(path, tell, remark)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _wait_for(path: Path, tell: Tell, remark: Remark) -> int:
    has_remarked = False
    while True:
        try:
            return lock_now(path)
        except ReplacedError:
            continue
        except BlockingIOError:
            if not has_remarked:
                remark(f"another process is at {path.stem}; waiting for it to end")
                has_remarked = True
        tell(0, None)
        time.sleep(_POLL_SECONDS)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` is what `descriptor` opened, not a later file under the same name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
