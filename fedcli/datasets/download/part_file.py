"""`PartFile`: a partial download, which can be resumed and is checked when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fedcli.datasets.download.public import RemoteFile
from fedcli.datasets.download.transport import Head
from fedcli.files import json_text, open_regular, read_bounded, sync_folder
from fedcli.outputs import check_own
from fedcli.progress import ProgressCallback, ignore_progress
from fedcli.version import __version__

_BLOCK_BYTES = 1 << 20
_MAX_ORIGIN_BYTES = 1 << 20  # size of the file that records the origin of a part


class PartFile:
    """The bytes of one file transferred so far, in a file beside the target, and their hash.

    Attributes:
        path: The partial file.
        size: Its size in bytes.
    """

    def __init__(self, target: Path, file: RemoteFile, on_progress: ProgressCallback) -> None:
        """Opens or makes the file, and reads it to the end. Raises OSError and Cancelled."""
        self.path = target.with_name(f"{target.name}.part")
        self._origin_path = target.with_name(f"{target.name}.part.json")
        self._file = file
        self._origin = _read_origin(self._origin_path)
        check_own(self.path)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, 0o666)
        self._opened = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            self._digest = hashlib.sha256()
            self.size = os.fstat(descriptor).st_size
            if self.size > file.limit:
                self.restart()
            _feed(self._opened, self._digest, lambda done: on_progress(done, file.size))
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> PartFile:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file, and removes it if it is empty."""
        self._opened.close()
        if not self.size:
            for path in (self.path, self._origin_path):
                with contextlib.suppress(OSError):
                    path.unlink()

    def request_headers(self, url: str) -> dict[str, str]:
        """Returns the headers of a request for the missing bytes."""
        headers = {"Accept-Encoding": "identity", "User-Agent": f"fedcli/{__version__}"}
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
            if self._origin.get("url") == url and self._origin.get("validator"):
                headers["If-Range"] = self._origin["validator"]
        return headers

    def is_of_another(self, url: str, head: Head) -> bool:
        """Returns whether a response that continues the part is known to belong to another file."""
        known = self._origin.get("validator") if self._origin.get("url") == url else ""
        return bool(known and head.validator and known != head.validator)

    def note(self, url: str, head: Head) -> None:
        """Records address and validator of the file, to detect later whether it has changed."""
        self._origin = {"url": url, "validator": head.validator}
        self._origin_path.write_text(json_text(self._origin))

    def write(self, block: bytes) -> None:
        """Appends a block."""
        rest = memoryview(block)
        while rest:
            num_written = self._opened.write(rest)
            self._digest.update(rest[:num_written])
            self.size += num_written
            rest = rest[num_written:]

    def restart(self) -> None:
        """Discards all bytes."""
        self._opened.seek(0)
        self._opened.truncate()
        self.size = 0
        self._digest = hashlib.sha256()
        self._origin = {}

    def find_mismatch(self) -> str | None:
        """Returns how the part differs from the expected size or hash, or None if it agrees."""
        return _mismatch(self._file, self.size, self._digest.hexdigest())

    def install(self, target: Path) -> None:
        """Syncs the part to the disk and renames it to the target."""
        os.fsync(self._opened.fileno())
        self._origin_path.unlink(missing_ok=True)  # before the rename: nothing removes it later
        os.replace(self.path, target)  # noqa: PTH105
        sync_folder(target.parent)


def _read_origin(path: Path) -> dict[str, str]:
    """The recorded origin of a part; empty if the record is missing or damaged."""
    try:
        origin = json.loads(read_bounded(path, _MAX_ORIGIN_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    is_plain = isinstance(origin, dict) and all(isinstance(each, str) for each in origin.values())
    return origin if is_plain else {}


def find_mismatch(
    path: Path, file: RemoteFile, on_progress: ProgressCallback = ignore_progress
) -> str | None:
    """Returns how a file differs from the expected size or hash, or None if it agrees.

    Raises:
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if file.size not in (None, size):  # a wrong size is known without reading the file
        return _mismatch(file, size, "")
    return _mismatch(file, size, hash_file(path, on_progress))


def hash_file(path: Path, on_progress: ProgressCallback = ignore_progress) -> str:
    """Returns the sha256 of a file in hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open_regular(path) as opened:
        _feed(opened, digest, lambda done: on_progress(done, size))
    return digest.hexdigest()


def _mismatch(file: RemoteFile, size: int, sha256: str) -> str | None:
    if file.size not in (None, size):
        return f"has {size:,} bytes, expected {file.size:,}"
    return None if sha256 == file.sha256 else f"sha256 is {sha256}, expected {file.sha256}"


def _feed(opened: BinaryIO, digest: Any, on_progress: Callable[[int], None]) -> None:
    """Updates a digest with the rest of an open file."""
    done = 0
    while block := opened.read(_BLOCK_BYTES):
        digest.update(block)
        done += len(block)
        on_progress(done)
