"""Writes files atomically (whole or not at all), and replaces regular files only.

For a file that a user names (`write_output`, `output_file`), links are followed, and the file at
their end is replaced if it is a regular file or does not exist yet. A pipe or character device gets
the content written to it. Any other kind is refused. For a file in a folder of fedcli's own
(`write_atomic`, `replacing`), links are refused, too: a folder from somebody else must not choose
what is written outside it.

If a process is killed, its temporary files are removed by the next process that writes the same
output. Each temporary file is locked (flock) while its process lives, so that only those of dead
processes are removed.
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

READER_SECONDS = 10.0  # how long to wait for a reader of a named pipe

_RANDOM_BYTES = 6
# The names that `temporary_name` makes. The first group is the name of the output.
TEMPORARY_NAME = re.compile(rf"\.(.+)\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}\.tmp", re.DOTALL)
_POLL_SECONDS = 0.05
_MAX_LINKS = 40  # the number of links that Linux follows
_OWN_DESCRIPTORS = r"/proc/{pid}(/task/\d+)?/fd|/dev/fd"


# ---- Files that a user names ---------------------------------------------------------------------


def check_output(path: Path) -> None:
    """Checks, before any work, that an output can be written.

    Raises:
        RunError: It is a folder, a socket or anything else but a regular file, a pipe or a
            character device; or its folder does not exist or is not writable.
    """
    try:
        target, is_stream = _resolve(path)
    except OSError as err:
        raise RunError(f"cannot write {path}: {why_not_written(err)}") from err
    if is_stream:
        return
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise RunError(
            f"cannot write {path}: there is no such folder, or no permission to write; choose "
            "another place"
        )


def link_note(path: Path) -> str | None:
    """Returns a line that names the target of an output that is a link; None: it is not a link."""
    try:
        target, _ = _resolve(path)
    except (OSError, RunError):
        return None
    return None if target == path else f"{path} is a link; wrote {target}, where it leads"


def resolve_output(path: Path) -> Path:
    """Returns the path of the regular file, existing or not, that an output replaces.

    Raises:
        RunError: The path, or the end of its links, is of another kind.
        OSError: It cannot be looked up.
    """
    target, is_stream = _resolve(path)
    if is_stream:
        raise _bad_kind(path, os.stat(path).st_mode)  # noqa: PTH116
    return target


def write_output(path: Path, content: bytes) -> None:
    """Writes a file that a user names, atomically; to a pipe or device it writes directly.

    Raises:
        RunError: It cannot be written, or is of another kind.
    """
    with output_file(path) as file:
        file.write(content)


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """Yields an open file. When the block ends without an error, `path` gets its content.

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
    """A pipe or device. It claims not to be seekable, even if the system says it is."""

    def seekable(self) -> bool:
        """Returns False."""
        return False

    def tell(self) -> int:
        """Raises OSError."""
        raise io.UnsupportedOperation("a stream has no position")

    def seek(self, *_: int) -> int:
        """Raises OSError."""
        raise io.UnsupportedOperation("a stream has no position")


def _resolve(path: Path) -> tuple[Path, bool]:
    """The end of a path's links, and whether it is written to directly, as a pipe is."""
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
        f"{path} is not a regular file; choose another name (this one is a {kind_of(mode)})"
    )


def _descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path such as /dev/stdout names; None: it names none."""
    own = re.compile(_OWN_DESCRIPTORS.format(pid=os.getpid()))
    for _ in range(_MAX_LINKS):
        if path.name.isdecimal() and own.fullmatch(os.path.realpath(path.parent)):
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _open_stream(path: Path) -> int:
    """Opens a pipe, a device or a descriptor of this process for writing. Raises OSError."""
    own = _descriptor(path)
    if own is not None:  # what was printed so far comes before the output
        for printed in (sys.stdout, sys.stderr):
            printed.flush()
        return os.dup(own)
    end = time.monotonic() + READER_SECONDS
    while (descriptor := _try_stream(path)) is None:
        if time.monotonic() > end:
            raise OSError(errno.ENXIO, f"no program has read the pipe for {READER_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
    os.set_blocking(descriptor, True)
    return descriptor


def _try_stream(path: Path) -> int | None:
    """The descriptor of a pipe or device; None: no program reads the pipe yet."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as err:
        if err.errno == errno.ENXIO:
            return None
        raise


# ---- Files in fedcli's own folders ---------------------------------------------------------------


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces a file atomically: even after a power cut it is either the old or the new one.

    Raises:
        RunError: The folder does not exist or is not writable, the disk is full, or `path` is not
            a regular file.
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
    """Checks that a path is a regular file or does not exist. Links are not followed.

    Raises:
        RunError: It is a link, a folder or of another kind.
        OSError: It cannot be looked up.
    """
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise _bad_kind(path, mode)


def open_to_append(path: Path) -> Any:
    """Opens a file in a folder of fedcli's own to append to it, unbuffered; creates it if missing.

    Raises:
        RunError: It is a link, a pipe or anything else but a regular file.
        OSError: It cannot be opened.
    """
    check_own(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside `path`. If the block ends without an error, it becomes `path`.

    The file is locked until the end of the block, or until the process dies. The next writer of
    `path` removes temporary files that are not locked. Write to the file; do not replace it.

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
    """Returns an unused name beside `path`, of the form that `sweep_files` recognises."""
    return path.with_name(f".{path.name}.{os.urandom(_RANDOM_BYTES).hex()}.tmp")


def sweep_files(path: Path) -> None:
    """Removes the temporary files beside `path` whose processes have died."""
    for name in _names_in(path.parent):
        match = TEMPORARY_NAME.fullmatch(name)
        if match is not None and match[1] == path.name:
            with suppress(OSError):  # it is in use, already removed, or of another user
                _remove_unless_locked(path.with_name(name))


def _open_locked(path: Path) -> tuple[Path, int]:
    """Creates a temporary file for `path`, locks it, and returns it and its descriptor."""
    while True:
        temporary = temporary_name(path)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # a file system without locks, where nothing is ever removed
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Before it was locked, another writer may have taken it for a dead process's file and
        # removed it.
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def _remove_unless_locked(path: Path) -> None:
    """Removes a file, or a folder with its content. Raises OSError if it is locked."""
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
    """Removes a folder with its content, as far as possible."""
    import shutil  # lazy: few commands need it

    shutil.rmtree(folder, ignore_errors=True)


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names alone
    except OSError:
        return []


# ---- Temporary folders ---------------------------------------------------------------------------


@contextmanager
def scratch_folder(folder: Path | None, prefix: str) -> Iterator[Path]:
    """Yields an empty folder and removes it at the end of the block.

    If the process is killed, the next call with the same prefix removes the folder.

    Args:
        folder: The folder to make it in; None: the system's folder for temporary files.
        prefix: The beginning of its name. Folders of dead processes with this prefix are removed.

    Raises:
        OSError: It cannot be made.
    """
    import tempfile  # lazy: few commands need it

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
    """Makes a folder and holds a lock on it, which is released when the process ends.

    Args:
        path: The folder. Its name matches a pattern with which `sweep_folders` is called.
        mode: Its permissions, reduced by the process's umask.

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
            with suppress(OSError):  # a file system without locks, where nothing is ever removed
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Before the lock, another process may have taken the folder for a dead one's and
            # removed it.
            with suppress(FileNotFoundError):
                if os.path.samestat(path.lstat(), os.fstat(descriptor)):
                    return descriptor
            os.close(descriptor)


def sweep_folders(
    parent: Path, pattern: re.Pattern[str], is_left_over: Callable[[Path], bool] = lambda _: True
) -> None:
    """Removes the temporary folders of dead processes.

    Args:
        parent: The folder that holds them.
        pattern: Matches the whole names of such folders.
        is_left_over: Returns whether a folder may be removed; if it raises OSError, it may not.
    """
    for name in filter(pattern.fullmatch, _names_in(parent)):
        with suppress(OSError):  # it is in use, already removed, or of another user
            if stat.S_ISDIR((parent / name).lstat().st_mode) and is_left_over(parent / name):
                _remove_unless_locked(parent / name)
