"""Archives as sources: zip and tar, unpacked to a temporary folder while they are read.

A tar file may be compressed with gzip, bzip2 or xz.

An archive is untrusted. Only regular files are written, under names that stay in the folder; links,
devices and hidden files are left out. The unpacked size is limited by the free space on the disk
and by `MAX_GROWTH` times the size of the archive.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fedcli.dataclass import dataclass
from fedcli.datasets.importers.picture_files import is_junk
from fedcli.datasets.importers.source_files import UNPACKED, start_of
from fedcli.datasets.importers.tar_headers import BoundedHeader
from fedcli.datasets.importers.xz import XzReader
from fedcli.errors import DataError, plural
from fedcli.files import open_regular
from fedcli.outputs import scratch_folder
from fedcli.progress import ProgressCallback
from fedcli.zips import open_zip

MAX_GROWTH = 200  # largest ratio of unpacked to archive size; text of blank images reaches 100
FREE_BYTES = 64 << 20  # any archive may unpack to this size, however small it is
_RESERVED_BYTES = 256 << 20  # disk space that must stay free
MAX_FILES = 4_000_000
_MAX_NAME = 4096  # characters
_MAX_PARTS = 32  # parts of a name: the folders and the file itself
_BLOCK_BYTES = 1 << 20
MAX_LISTED_BYTES = 64 << 20  # size of a zip file's directory; enough for over half a million files
_ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_MAGIC, _TAR_PLACE, _TAR_BLOCK = b"ustar", 257, 512
_PACKERS: Mapping[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lambda source: XzReader(source),
}
_DAMAGE = (
    *(EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError),
    *(zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, RuntimeError),
)


@dataclass(frozen=True)
class Unpacked:
    """An archive's content.

    Attributes:
        path: The folder with the unpacked files, or the only file.
        folder: The prefix to remove from paths in messages.
        note: A note for the user that says what was unpacked.
    """

    path: Path
    folder: Path
    note: str


def is_archive(path: Path) -> bool:
    """Returns whether a file is a zip or tar archive. It is False for .npz files."""
    if not path.is_file():
        return False
    start = start_of(path, _TAR_BLOCK)
    if start[:4] in _ZIP_SIGNATURES:
        return _is_plain_zip(path)
    return _tar_start(path, start)[_TAR_PLACE:].startswith(_TAR_MAGIC)


@contextlib.contextmanager
def unpacked(
    archive: Path, folder: Path | None, on_progress: ProgressCallback
) -> Iterator[Unpacked]:
    """Unpacks an archive for as long as the context lasts.

    Args:
        archive: A file that `is_archive` recognises.
        folder: The folder in which a temporary folder is made; None: the system's folder for
            temporary files.
        on_progress: Called now and then; it may raise an exception to end the work.

    Raises:
        DataError: The archive is damaged or encrypted, has a name that leads out of the folder, or
            exceeds the limits.
        OSError: A file cannot be written.
    """
    with scratch_folder(folder, UNPACKED) as place:
        writer = _Writer(archive, place, on_progress)
        try:
            _unpack(archive, writer)
        except _DAMAGE as err:
            reason = " ".join(str(err).split())[:100] or type(err).__name__
            raise DataError(f"{archive}: damaged archive ({reason}); fetch it again") from err
        except OSError as err:
            if err.errno is None:  # bz2 has no error class of its own and raises OSError
                raise DataError(f"{archive}: damaged archive ({err}); fetch it again") from err
            raise
        if not writer.num_files:
            raise DataError(f"{archive}: holds no regular files; give another archive")
        yield Unpacked(_inner(place), place, writer.note())


def _is_plain_zip(path: Path) -> bool:
    """Whether a zip file is not .npz: it holds no arrays, or it holds arrays in folders."""
    try:
        with open_zip(path, MAX_LISTED_BYTES) as file:
            names = [name for name in file.namelist() if not name.endswith("/")]
    except _DAMAGE:
        return False  # the reader of .npz files will report what is wrong
    arrays = [name for name in names if name.endswith(".npy")]
    return bool(names) and (not arrays or any("/" in name for name in arrays))


def _tar_start(path: Path, start: bytes) -> bytes:
    """The first block of a tar file, unpacked."""
    opener = next((each for magic, each in _PACKERS.items() if start.startswith(magic)), None)
    if opener is None:
        return start
    with contextlib.suppress(*_DAMAGE, OSError), opener(path) as plain:
        return bytes(plain.read(_TAR_BLOCK))
    return b""


def _unpack(archive: Path, writer: _Writer) -> None:
    start = start_of(archive, _TAR_BLOCK)
    if start[:4] in _ZIP_SIGNATURES:
        _unpack_zip(archive, writer)
        return
    opener = next((each for magic, each in _PACKERS.items() if start.startswith(magic)), None)
    with open_regular(archive) as file:
        if opener is None:
            _unpack_tar(file, writer)
        else:
            with opener(file) as plain:
                _unpack_tar(plain, writer)


def _unpack_zip(archive: Path, writer: _Writer) -> None:
    with open_zip(archive, MAX_LISTED_BYTES) as file:
        infos = [info for info in file.infolist() if not info.is_dir()]
        writer.check_size(sum(info.file_size for info in infos))
        for info in infos:
            if info.flag_bits & 1:
                raise DataError(
                    f"{archive}: {_short(info.filename)} in it is encrypted; unpack it yourself "
                    "and give the folder"
                )
            if info.external_attr >> 28 in (0, 8):  # the type: none, or a regular file
                with file.open(info) as content:
                    writer.take(info.filename, content, info.file_size)
            else:
                writer.num_left_out += 1


def _unpack_tar(plain: Any, writer: _Writer) -> None:
    bounded = _Bounded(plain, writer)
    with tarfile.open(fileobj=bounded, mode="r|", tarinfo=BoundedHeader) as tar:  # type: ignore[call-overload]
        for info in tar:
            if info.isdir():
                continue
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
                writer.num_left_out += 1
                continue
            content = tar.extractfile(info)
            assert content is not None
            writer.take(info.name, content, info.size)


class _Bounded:
    """An unpacked stream that raises an error when it exceeds its limit."""

    def __init__(self, plain: Any, writer: _Writer) -> None:
        self._plain = plain
        self._writer = writer
        self._num_read = 0

    def read(self, num_bytes: int) -> bytes:
        """Returns the next bytes."""
        block: bytes = self._plain.read(num_bytes)
        self._num_read += len(block)
        self._writer.check_size(self._num_read)
        return block


class _Writer:
    """The files unpacked so far."""

    def __init__(self, archive: Path, place: Path, on_progress: ProgressCallback) -> None:
        self.num_files = 0
        self.num_left_out = 0
        self._archive = archive
        self._place = place
        self._on_progress = on_progress
        self._num_bytes = 0
        self._most = FREE_BYTES + MAX_GROWTH * archive.stat().st_size
        self._free = shutil.disk_usage(place).free - _RESERVED_BYTES

    def check_size(self, num_bytes: int) -> None:
        """Refuses an archive that unpacks to more bytes than the limits allow."""
        self._on_progress(self.num_files, None)
        if num_bytes > self._most:
            raise DataError(
                f"{self._archive}: unpacks to over {self._most / 1e6:,.0f} MB, more than "
                f"{MAX_GROWTH} times its size; unpack it yourself and give the folder"
            )
        if num_bytes > self._free:
            raise DataError(
                f"{self._archive}: unpacks to {num_bytes / 1e9:,.1f} GB, and {self._place.parent} "
                f"has {max(0, self._free) / 1e9:,.1f} GB to spare; free some space, or set TMPDIR "
                "or --out to another disk"
            )

    def take(self, name: str, content: IO[bytes], num_bytes: int) -> None:
        """Unpacks one file, whose size in the archive's directory is `num_bytes`."""
        parts = self._parts(name)
        if any(is_junk(part) for part in parts):
            self.num_left_out += 1
            return
        self.num_files += 1
        if self.num_files > MAX_FILES:
            raise DataError(
                f"{self._archive}: holds over {MAX_FILES:,} files; unpack it yourself and give the "
                "folder"
            )
        path = self._place.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                size = self._copy(content, file, num_bytes)
        except (FileExistsError, NotADirectoryError) as err:
            raise DataError(
                f"{self._archive}: holds {_short(name)} twice; unpack it yourself and give the "
                "folder"
            ) from err
        if size != num_bytes:
            raise DataError(
                f"{self._archive}: {_short(name)} in it has {size:,} bytes, not {num_bytes:,} as "
                "its directory says; fetch it again"
            )

    def note(self) -> str:
        """Returns a note that says what was unpacked."""
        left_out = f"; {self.num_left_out:,} links or hidden files were left out"
        return (
            f"{self._archive} was unpacked while it was read: {plural(self.num_files, 'file')}, "
            f"{self._num_bytes / 1e6:,.1f} MB" + left_out * bool(self.num_left_out)
        )

    def _parts(self, name: str) -> tuple[str, ...]:
        """Returns the parts of a name. Refuses a name that leads out of the folder."""
        path = PurePosixPath(name.replace("\\", "/"))
        is_drive = len(path.parts) > 0 and path.parts[0][1:2] == ":"
        if path.is_absolute() or ".." in path.parts or is_drive:
            raise DataError(
                f"{self._archive}: {_short(name)} in it leads out of its folder, so the archive "
                "was not used; give another"
            )
        if not path.parts or len(name) > _MAX_NAME or len(path.parts) > _MAX_PARTS:
            raise DataError(
                f"{self._archive}: {_short(name)!r} in it is not the name of a file; unpack it "
                "yourself and give the folder"
            )
        return path.parts

    def _copy(self, content: IO[bytes], file: IO[bytes], num_bytes: int) -> int:
        size = 0
        while block := content.read(min(_BLOCK_BYTES, num_bytes + 1 - size)):
            size += len(block)
            self._num_bytes += len(block)
            self.check_size(self._num_bytes)
            if size > num_bytes:
                break
            file.write(block)
        return size


def _inner(place: Path) -> Path:
    """Returns the only file in a folder, or else the folder."""
    inside = list(place.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_file() else place


def _short(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:97]}..."
