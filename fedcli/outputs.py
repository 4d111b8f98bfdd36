"""Writes files that appear whole or not at all, and only over what may be replaced.

A file that a user names (`write_output`, `output_file`) is replaced where its links lead, if that
is a regular file or nothing; to a pipe or character device the content is written through; any
other kind is refused. A file in a folder that fedcli keeps (`write_atomic`, `replacing`) is no link
either: whoever made the folder does not choose what is written outside it.

What a killed process left beside its output is removed by the next one that writes the same output.
Each temporary name is locked (flock) while its process lives, so that only a dead one's goes.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fedcli.errors import RunError, why_not_written
from fedcli.files import kind_of, sync_folder

READER_SECONDS = 10.0  # that a named pipe is waited for until somebody reads it

_RANDOM_BYTES = 6
# What `temporary_name` makes of a name, which is the first group.
TEMPORARY_NAME = re.compile(rf"\.(.+)\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}\.tmp", re.DOTALL)
_POLL_SECONDS = 0.05
_MAX_LINKS = 40  # as many as Linux follows
_OWN_DESCRIPTORS = r"/proc/{pid}(/task/\d+)?/fd|/dev/fd"


# ---- What a user names ---------------------------------------------------------------------------


def check_output(path: Path) -> None:
    """Refuses an output that nothing may be written to, before any work.

    Raises:
        RunError: It names a folder, a socket or another thing that is no regular file, pipe or
            character device; or its folder is not there or cannot be written to.
    """
    try:
        target, is_stream = _resolve(path)
    except OSError as err:
        raise RunError(f"cannot write {path}: {why_not_written(err)}") from err
    if is_stream:
        return
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise RunError(f"cannot write {path}: there is no such folder, or it is not yours to write")


def link_note(path: Path) -> str | None:
    """Returns a line on what is written in place of an output that is a link; None: it is none."""
    try:
        target, _ = _resolve(path)
    except (OSError, RunError):
        return None
    return None if target == path else f"{path} is a link; wrote {target}, where it leads"


def resolve_output(path: Path) -> Path:
    """Returns the regular file, or the name of none, that is to be replaced for an output.

    Raises:
        RunError: It is, or its links lead to, something else.
        OSError: It cannot be looked up.
    """
    target, is_stream = _resolve(path)
    if is_stream:
        raise _bad_kind(path, os.stat(path).st_mode)  # noqa: PTH116
    return target


def write_output(path: Path, content: bytes) -> None:
    """Writes a file that a user names: all of it or nothing, or through to a pipe or device.

    Raises:
        RunError: It cannot be written, or is of another kind.
    """
    with output_file(path) as file:
        file.write(content)


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """Yields an open file whose content becomes that of `path` when the block ends well.

    Raises:
        RunError: It cannot be written, or is of another kind.
        BrokenPipeError: Nobody reads the pipe any more.
    """
    try:
        target, is_stream = _resolve(path)
        if is_stream:
            with io.BufferedWriter(_Stream(_open_stream(path), "wb")) as stream:
                yield stream
            return
        with replacing(target) as temporary, temporary.open("wb") as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as err:
        raise RunError(f"cannot write {path}: {why_not_written(err)}") from err


class _Stream(io.FileIO):
    """A pipe or device, in which there are no places, even where the system says there are."""

    def seekable(self) -> bool:
        """Returns False."""
        return False

    def tell(self) -> int:
        """Raises OSError."""
        raise io.UnsupportedOperation("a stream has no places")

    def seek(self, *_: int) -> int:
        """Raises OSError."""
        raise io.UnsupportedOperation("a stream has no places")


def _resolve(path: Path) -> tuple[Path, bool]:
    """Where the links of a name lead, and whether what is there is written through to."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - as the system follows links
    except FileNotFoundError:
        mode = stat.S_IFREG
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or _descriptor(path) is not None:
        return path, True
    if not stat.S_ISREG(mode):
        raise _bad_kind(path, mode)
    return (Path(os.path.realpath(path)) if path.is_symlink() else path), False


def _bad_kind(path: Path, mode: int) -> RunError:
    return RunError(
        f"{path} is not a regular file; choose another name (this one is of {kind_of(mode)})"
    )


def _descriptor(path: Path) -> int | None:
    """The open file of this process that a name such as /dev/stdout stands for; None: none."""
    own = re.compile(_OWN_DESCRIPTORS.format(pid=os.getpid()))
    for _ in range(_MAX_LINKS):
        if path.name.isdecimal() and own.fullmatch(os.path.realpath(path.parent)):
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _open_stream(path: Path) -> int:
    """Opens a pipe, device or descriptor of our own to write to it. Raises OSError."""
    own = _descriptor(path)
    if own is not None:  # behind what was printed so far
        for printed in (sys.stdout, sys.stderr):
            printed.flush()
        return os.dup(own)
    end = time.monotonic() + READER_SECONDS
    while (descriptor := _try_stream(path)) is None:
        if time.monotonic() > end:
            raise OSError(errno.ENXIO, f"nobody has read the pipe for {READER_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
    os.set_blocking(descriptor, True)
    return descriptor


def _try_stream(path: Path) -> int | None:
    """The open pipe or device; None: a pipe that nobody reads yet."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as err:
        if err.errno == errno.ENXIO:
            return None
        raise


# ---- Files of our own ----------------------------------------------------------------------------


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file that is either the old one or the whole new one, also after a power cut.

    Raises:
        RunError: The folder does not exist or is not writable, the disk is full, or `path` names
            something that is not a regular file.
    """
    try:
        check_own(path)
        with replacing(path) as temporary, temporary.open("wb", buffering=0) as file:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
    except OSError as err:
        raise RunError(f"cannot write {path}: {why_not_written(err)}") from err


def check_own(path: Path) -> None:
    """Refuses to write to what is neither a regular file nor nothing; links are not followed.

    Raises:
        RunError: It is such a thing.
        OSError: It cannot be looked up.
    """
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise _bad_kind(path, mode)


def open_to_append(path: Path) -> Any:
    """Returns a file in a folder of ours, open to append to it unbuffered; made if need be.

    Raises:
        RunError: It is a link, a pipe or whatever else is no regular file.
        OSError: It cannot be opened.
    """
    check_own(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the name of a new file beside `path` that becomes `path` when the block ends well.

    It is locked until then, and the lock dies with the process: the next writer of `path` knows a
    dead one's file by that, and removes it. Write to the file; do not replace it.

    Raises:
        OSError: The folder cannot be written to, or the disk is full.
    """
    sweep_files(path)
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


def temporary_name(path: Path) -> Path:
    """Returns a name beside `path` that nobody uses, by which `sweep_files` knows it again."""
    return path.with_name(f".{path.name}.{os.urandom(_RANDOM_BYTES).hex()}.tmp")


def sweep_files(path: Path) -> None:
    """Removes the temporary files of writers of `path` that are no more."""
    for name in _names_in(path.parent):
        match = TEMPORARY_NAME.fullmatch(name)
        if match is not None and match[1] == path.name:
            with suppress(OSError):  # in use, gone, or somebody else's: it stays
                _remove_unless_locked(path.with_name(name))


def _open_locked(path: Path) -> tuple[Path, int]:
    """Makes a file of a new name and locks it."""
    while True:
        temporary = temporary_name(path)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # a file system without locks: nothing is ever removed there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between the two lines above another writer may have taken it for a dead one's.
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def _remove_unless_locked(path: Path) -> None:
    """Removes a file, or a folder and what is in it. Raises OSError if it is locked."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            _remove_folder(path)
        elif stat.S_ISREG(mode):
            path.unlink()
    finally:
        os.close(descriptor)


def _remove_folder(folder: Path) -> None:
    """Removes a folder and all that is in it, as far as that can be done."""
    import shutil  # late: few commands need it

    shutil.rmtree(folder, ignore_errors=True)


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names alone
    except OSError:
        return []


# ---- Folders for a while -------------------------------------------------------------------------


@contextmanager
def scratch_folder(folder: Path | None, prefix: str) -> Iterator[Path]:
    """Yields an empty folder that is gone when the block ends, or when the next one is made.

    Args:
        folder: Where; None: the system's folder for temporary files.
        prefix: What its name begins with; of those that begin so, dead processes' are removed.

    Raises:
        OSError: It cannot be made.
    """
    import tempfile  # late: few commands need it

    parent = Path(tempfile.gettempdir()) if folder is None else folder
    sweep_folders(parent, re.compile(rf"{re.escape(prefix)}[0-9a-f]{{{2 * _RANDOM_BYTES}}}"))
    made = parent / f"{prefix}{os.urandom(_RANDOM_BYTES).hex()}"
    with locked_folder(made, mode=0o700):
        try:
            yield made
        finally:
            _remove_folder(made)


@contextmanager
def locked_folder(path: Path, mode: int = 0o777) -> Iterator[None]:
    """Makes a folder and holds a lock on it, which dies with the process.

    Args:
        path: Its name, of a pattern that `sweep_folders` is given.
        mode: Its permissions, as far as the process's mask leaves them.

    Raises:
        OSError: It cannot be made.
    """
    descriptor = _make_locked_folder(path, mode)
    try:
        yield
    finally:
        os.close(descriptor)


def _make_locked_folder(path: Path, mode: int) -> int:
    while True:
        path.mkdir(mode=mode)
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with suppress(OSError):  # a file system without locks: nothing is ever removed there
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Before it was locked another process may have taken it for a dead one's.
            with suppress(FileNotFoundError):
                if os.path.samestat(path.lstat(), os.fstat(descriptor)):
                    return descriptor
            os.close(descriptor)


def sweep_folders(
    parent: Path, pattern: re.Pattern[str], is_left_over: Callable[[Path], bool] = lambda _: True
) -> None:
    """Removes folders of dead processes.

    Args:
        parent: Where to look.
        pattern: Of the whole names that this program gave them.
        is_left_over: Asked of each such folder whether it may go; OSError is no.
    """
    for name in filter(pattern.fullmatch, _names_in(parent)):
        with suppress(OSError):  # in use, gone, or somebody else's
            if stat.S_ISDIR((parent / name).lstat().st_mode) and is_left_over(parent / name):
                _remove_unless_locked(parent / name)
