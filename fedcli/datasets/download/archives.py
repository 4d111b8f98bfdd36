"""Extracts named files from untrusted archives, and checks their kind and size.

Archives are tar files, uncompressed or compressed with gzip or bzip2; the content decides which. No
file is written under a name that an archive chose. `tarfile.extractall` is not used, because its
filters check no sizes.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fedcli.datasets.download.public import Member
from fedcli.datasets.importers.tar_headers import BoundedHeader
from fedcli.errors import DataError
from fedcli.files import open_regular
from fedcli.progress import ProgressCallback, ignore_progress

_BLOCK_BYTES = 1 << 20
_MAX_OTHER_BYTES = 64 << 20  # unpacked size of all members that are not wanted
_DAMAGE = (
    *(EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError),
    *(ValueError, OverflowError),  # from invalid numbers in headers
)


def extract(
    archive: Path,
    members: Sequence[Member],
    folder: Path,
    on_progress: ProgressCallback = ignore_progress,
) -> dict[str, Path]:
    """Unpacks some members of an archive below a folder, all or none, and returns their paths.

    Args:
        archive: The file.
        members: The members to unpack.
        folder: The folder. A member keeps its name below it.
        on_progress: Called with the number of bytes unpacked.

    Raises:
        DataError: The archive is damaged; or a member is missing, occurs twice, is not a regular
            file, or has another size or hash than expected; or the disk is full.
    """
    for member in members:
        _check_name(member.name)
    writer = _Writer(archive, members, folder, on_progress)
    try:
        _unpack(archive, writer)
        return writer.finish()
    except _DAMAGE as err:
        raise DataError(
            f"{archive}: damaged archive ({' '.join(str(err).split()) or type(err).__name__}); "
            "fetch it again"
        ) from err
    except OSError as err:
        if err.errno is None:  # bz2 reports damaged data by an OSError without number
            raise DataError(f"{archive}: damaged archive ({err}); fetch it again") from err
        raise DataError(f"cannot unpack {archive} in {folder}: {err.strerror}") from err
    finally:
        writer.clean()


def _unpack(archive: Path, writer: _Writer) -> None:
    with open_regular(archive) as file:
        start = file.read(3)
        file.seek(0)
        if start == b"BZh":
            with bz2.open(file) as plain:
                _unpack_tar(plain, writer)
        elif start.startswith(b"\x1f\x8b"):
            with gzip.open(file) as plain:
                _unpack_tar(plain, writer)
        else:
            _unpack_tar(file, writer)


def _unpack_tar(plain: Any, writer: _Writer) -> None:
    bounded = _Bounded(plain, writer)
    with tarfile.open(fileobj=bounded, mode="r|", tarinfo=BoundedHeader) as tar:  # type: ignore[call-overload]
        for info in tar:
            if info.name not in writer.members:
                writer.others.append(info.name)
                continue
            is_plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()
            writer.check_kind(info.name, is_regular=is_plain)
            content = tar.extractfile(info)
            assert content is not None
            writer.take(info.name, content, info.size)


class _Bounded:
    """A decompressed stream that raises an error when it exceeds the expected size."""

    def __init__(self, plain: Any, writer: _Writer) -> None:
        self._plain = plain
        self._writer = writer
        self._left = _MAX_OTHER_BYTES + sum(each.limit for each in writer.members.values())

    def read(self, num_bytes: int) -> bytes:
        """Returns the next bytes."""
        self._writer.report()
        block: bytes = self._plain.read(num_bytes)
        self._left -= len(block)
        if self._left < 0:
            raise DataError(
                f"{self._writer.archive}: unpacks to far more than it should hold, so it was not "
                "used; fetch it again"
            )
        return block


class _Writer:
    """The files unpacked so far, under temporary names."""

    def __init__(
        self, archive: Path, members: Sequence[Member], folder: Path, on_progress: ProgressCallback
    ) -> None:
        self.archive = archive
        self.members = {member.name: member for member in members}
        self.others: list[str] = []
        self._folder = folder
        self._on_progress = on_progress
        self._unpacked: dict[str, Path] = {}
        sizes = [member.size for member in members]
        self._total = None if None in sizes else sum(size or 0 for size in sizes)
        self._num_done = 0

    def report(self) -> None:
        """Reports progress."""
        self._on_progress(self._num_done, self._total)

    def check_kind(self, name: str, *, is_regular: bool) -> None:
        """Refuses a member that is not a regular file or that the archive holds twice."""
        if not is_regular:
            raise DataError(
                f"{self.archive}: {name} in it is not a regular file, so it was not unpacked; "
                "fetch it again"
            )
        if name in self._unpacked:
            raise DataError(
                f"{self.archive}: holds {name} twice, so it was not unpacked; fetch it again"
            )

    def take(self, name: str, content: Any, claimed: int) -> None:
        """Unpacks one member; `claimed` is its size according to the archive."""
        member = self.members[name]
        if claimed > member.limit or member.size not in (None, claimed):
            raise self._bad_size(member, f"{claimed:,}")
        path = self._temporary(name)
        self._unpacked[name] = path
        digest, size = hashlib.sha256(), 0
        with path.open("xb") as file:
            for block in _blocks(content):
                size += len(block)
                digest.update(block)
                file.write(block)
                self._num_done += len(block)
                self.report()
        if size != claimed:
            raise self._bad_size(member, f"{size:,}")
        if member.sha256 not in (None, digest.hexdigest()):
            raise DataError(
                f"{self.archive}: sha256 of {name} in it is {digest.hexdigest()}, "
                f"expected {member.sha256}; fetch it again"
            )

    def finish(self) -> dict[str, Path]:
        """Gives every member its name, and returns the paths."""
        missing = [name for name in self.members if name not in self._unpacked]
        if missing:
            others = ", ".join(self.others[:10]) or "nothing"
            raise DataError(
                f"{self.archive}: has no {missing[0]} in it, but {others}; fetch it again"
            )
        paths = {name: self._folder / name for name in self.members}
        for name, path in paths.items():
            os.replace(self._unpacked.pop(name), path)  # noqa: PTH105
        return paths

    def clean(self) -> None:
        """Deletes unfinished files."""
        for path in self._unpacked.values():
            with contextlib.suppress(OSError):
                path.unlink()

    def _temporary(self, name: str) -> Path:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")

    def _bad_size(self, member: Member, got: str) -> DataError:
        expected = f"at most {member.max_bytes:,}" if member.size is None else f"{member.size:,}"
        return DataError(
            f"{self.archive}: {member.name} in it has {got} bytes, expected {expected}, so it was "
            "not unpacked; fetch it again"
        )


def _blocks(content: Any) -> Iterator[bytes]:
    while block := content.read(_BLOCK_BYTES):
        yield block


def _check_name(name: str) -> None:
    """Refuses a name that leads out of the folder. Such a name is a mistake in the catalogue."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or "\\" in name:
        raise ValueError(f"member {name!r} would lie outside the folder")
