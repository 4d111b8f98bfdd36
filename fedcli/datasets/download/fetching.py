"""Downloads one file: resumes interrupted transfers, tries several addresses, checks the hash.

The package pooch 1.9 was considered. It does not resume, takes one URL for each file, has no lock,
no limit on sizes and no list of allowed archive members, and needs six more packages. So
`transport` uses urllib, and this module does the rest.
"""

from __future__ import annotations

import shutil
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path

from fedcli.dataclass import dataclass
from fedcli.datasets.data_folder import make_folder
from fedcli.datasets.download.part_file import PartFile, find_mismatch
from fedcli.datasets.download.public import RemoteFile
from fedcli.datasets.download.transport import Exchange, Head, TryError
from fedcli.errors import DataError
from fedcli.locks import locked
from fedcli.progress import NoteCallback, ProgressCallback, ignore_note, ignore_progress

_POLL_SECONDS = 0.1  # between two checks whether the user has cancelled
_PROGRESS_BYTES = 1 << 20  # a try that transfers this many new bytes does not count as failed


@dataclass(frozen=True, kw_only=True)
class TransferLimits:
    """How long to wait for a server, and how often to try.

    Attributes:
        connect_seconds: Time limit for a connection.
        stall_seconds: Longest time without a new byte.
        head_seconds: Time limit for the headers of a response, redirects included.
        window_seconds: Length of the time windows in each of which at least `window_bytes` must
            arrive.
        window_bytes: See `window_seconds`.
        num_tries: Number of tries of one address without progress.
        pause_seconds: Pause before the second try; doubled before each later one.
        max_pause_seconds: Longest pause that a server's Retry-After header can cause.
    """

    connect_seconds: float = 10.0
    stall_seconds: float = 30.0
    head_seconds: float = 60.0
    window_seconds: float = 60.0
    window_bytes: int = 1 << 14
    num_tries: int = 4
    pause_seconds: float = 1.0
    max_pause_seconds: float = 60.0


DEFAULT_LIMITS = TransferLimits()


class FetchError(DataError):
    """A file could not be downloaded from any address.

    Attributes:
        file: The file.
    """

    def __init__(self, text: str, file: RemoteFile) -> None:
        """Takes the message and the file."""
        super().__init__(text)
        self.file = file


def fetch(
    file: RemoteFile,
    target: Path,
    *,
    bases: Sequence[str] = (),
    force: bool = False,
    on_progress: ProgressCallback = ignore_progress,
    on_note: NoteCallback = ignore_note,
    limits: TransferLimits = DEFAULT_LIMITS,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Downloads a file to `target`, checks it, and returns the number of bytes transferred.

    If `target` exists, it is hashed and kept if it is right. If a stopped or killed process has
    left `<target>.part`, the transfer is resumed. One process at a time downloads a file; others
    wait for it.

    Args:
        file: The file, with its expected size and hash.
        target: The path to write.
        bases: Addresses of folders that are tried before the file's own addresses.
        force: Download the file again even if it is there.
        on_progress: Called with the number of bytes.
        on_note: Called with a line about each retry or wait.
        limits: Time limits and number of tries.
        sleep: Waits between tries.

    Raises:
        FetchError: The file could not be downloaded from any address.
        DataError: The file cannot be written, or the disk is too full.
        Cancelled: `on_progress` raised it; the bytes fetched so far are kept.
    """
    make_folder(target.parent)
    try:
        with locked(target.with_name(f"{target.name}.lock"), on_progress, on_note):
            if not force and target.is_file():
                problem = find_mismatch(target, file, on_progress)
                if problem is None:
                    return 0
                on_note(f"{target}: {problem}; fetching it again")
            with PartFile(target, file, on_progress) as part:
                download = _Download(file, part, on_progress, on_note, limits, sleep)
                download.run(_addresses(file, bases))
                part.install(target)
            return download.num_transferred
    except OSError as err:  # an error of the disk; `transport` handles network errors
        raise DataError(
            f"cannot write {err.filename or target}: {err.strerror or err}; what was fetched is "
            "kept: correct this and run the same command again"
        ) from err


def check_base(base: str) -> str:
    """Returns the address of a mirror.

    Raises:
        DataError: It is not an http or https address.
    """
    try:
        parts = urllib.parse.urlsplit(base)
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # invalid brackets or an invalid port
        is_usable = False
    if not is_usable:
        raise DataError(
            f"--mirror {base}: give an address that starts with http:// or https://; "
            "for files on this machine use --from-file PATH"
        )
    return base


def check_space(folder: Path, num_bytes: int) -> None:
    """Checks that a disk has room for `num_bytes`.

    Raises:
        DataError: It has less room.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DataError(
            f"{folder}: {num_bytes:,} bytes are needed and {free:,} are free; free some space, or "
            "choose another folder with FEDCLI_DATA_DIR or --data-dir"
        )


def _addresses(file: RemoteFile, bases: Sequence[str]) -> list[str]:
    name = urllib.parse.quote(file.name)
    return [*(f"{base.rstrip('/')}/{name}" for base in bases), *file.urls]


class _Download:
    """The download of one file from several addresses."""

    def __init__(
        self,
        file: RemoteFile,
        part: PartFile,
        on_progress: ProgressCallback,
        on_note: NoteCallback,
        limits: TransferLimits,
        sleep: Callable[[float], None],
    ) -> None:
        self.num_transferred = 0
        self._file = file
        self._part = part
        self._total = file.size
        self._on_progress = on_progress
        self._on_note = on_note
        self._limits = limits
        self._sleep = sleep

    def run(self, urls: Sequence[str]) -> None:
        """Completes the part. Raises FetchError."""
        problems: list[str] = []
        for url in urls:
            problem = self._complete_from(url)
            if problem is None:
                return
            problems.append(f"{url}: {problem}")
            if url != urls[-1]:
                self._on_note(f"{problems[-1]}; trying the next address")
        raise FetchError(
            f"{self._file.name} could not be fetched: {'; '.join(problems)}", self._file
        )

    def _complete_from(self, url: str) -> TryError | None:
        """Completes the part from one address; returns the last error if that fails."""
        furthest = self._part.size
        num_failed = 0
        while True:
            try:
                self._try_once(url)
            except TryError as err:
                problem = err
            else:
                return None
            if self._part.size >= furthest + _PROGRESS_BYTES:
                furthest = self._part.size
                num_failed = 0
            num_failed += 1
            if problem.is_final or num_failed == self._limits.num_tries:
                return problem
            self._pause(url, problem, num_failed)

    def _try_once(self, url: str) -> None:
        """Makes one request and, if the part is then complete, checks it."""
        part = self._part
        kept_bytes = part.size
        if self._file.size is None or part.size != self._file.size:
            kept_bytes = self._request(url)
        problem = part.find_mismatch()
        if problem is None:
            return
        part.restart()
        if kept_bytes:  # an earlier try fetched the first bytes, perhaps of another file
            raise TryError(f"{problem}, perhaps because its two parts are of different files")
        raise TryError(problem, is_final=True)

    def _request(self, url: str) -> int:
        """Appends the bytes of one request; returns how many earlier bytes the part has kept."""
        part = self._part
        with Exchange(
            url,
            part.request_headers(url),
            connect_seconds=self._limits.connect_seconds,
            stall_seconds=self._limits.stall_seconds,
            head_seconds=self._limits.head_seconds,
            window_seconds=self._limits.window_seconds,
            window_bytes=self._limits.window_bytes,
            wait=self._report,
        ) as exchange:
            head = exchange.head()
            if self._is_complete(head):
                return part.size
            self._check_total(self._prepare_part(url, head))
            kept_bytes = part.size
            limit = self._file.max_bytes if self._total is None else self._total
            while block := exchange.read():
                part.write(block)
                self.num_transferred += len(block)
                if part.size > limit:
                    part.restart()
                    raise TryError(f"sends more than {limit:,} bytes", is_final=True)
                self._report()
        if self._total is not None and part.size < self._total:
            raise TryError(f"was cut off after {part.size:,} of {self._total:,} bytes")
        return kept_bytes

    def _is_complete(self, head: Head) -> bool:
        """Whether the server reports that the part is complete: status 416 with its size."""
        if head.status != 416:
            return False
        if self._part.size and head.range_total == self._part.size:
            return True
        self._part.restart()
        raise TryError("now has another file than the one that was fetched in part")

    def _prepare_part(self, url: str, head: Head) -> int | None:
        """Prepares the part for the bytes of a response; returns the announced size of the file."""
        part = self._part
        if head.status == 200:
            part.restart()
            part.note(url, head)
            return head.length
        if not part.size:
            raise TryError("sends another range than was requested", is_final=True)
        if head.range_start != part.size or part.is_of_another(url, head):
            part.restart()
            raise TryError("sends part of another file, or from another position")
        return head.range_total

    def _check_total(self, total: int | None) -> None:
        """Records the size that a server announces; refuses a wrong or too large one."""
        file = self._file
        if total is not None:
            if file.size not in (None, total):
                raise TryError(f"offers {total:,} bytes, expected {file.size:,}", is_final=True)
            if total > file.max_bytes:
                raise TryError(
                    f"offers {total:,} bytes, more than {file.max_bytes:,}", is_final=True
                )
        self._total = total if file.size is None else file.size
        if self._total is not None:
            check_space(self._part.path.parent, self._total - self._part.size)

    def _pause(self, url: str, problem: TryError, num_failed: int) -> None:
        seconds = self._limits.pause_seconds * 2 ** (num_failed - 1)
        if problem.wait_seconds is not None:
            seconds = min(problem.wait_seconds, self._limits.max_pause_seconds)
        self._on_note(f"{url}: {problem}; trying again in {seconds:.3g} s")
        while seconds > 0:
            self._report()
            self._sleep(min(seconds, _POLL_SECONDS))
            seconds -= _POLL_SECONDS

    def _report(self) -> None:
        self._on_progress(self._part.size, self._total)
