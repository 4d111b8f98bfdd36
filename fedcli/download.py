"""Fetches one file over HTTP: resumed after a cut, from the next address if need be, checked whole.

Weighed against pooch 1.9: no resume, one URL a file, no lock, no bound on size, no allow-list of an
archive's members, and six more packages. So urllib does the talking, and the rest is here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import queue
import re
import shutil
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedcli import __version__
from fedcli.datasets.data_folder import make_folder
from fedcli.datasets.public import RemoteFile
from fedcli.errors import DataError
from fedcli.files import json_text, sync_folder
from fedcli.progress import Tell, tell_nobody

Remark = Callable[[str], None]

_BLOCK_BYTES = 1 << 18
_POLL_SECONDS = 0.1  # between two looks at whether to give up
_PROGRESS_BYTES = 1 << 20  # a try that brings so much that is new does not count against the server
_TRANSIENT = {408, 429}
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long and how often a server is waited for.

    Attributes:
        connect_seconds: For a connection.
        stall_seconds: For the next byte.
        num_tries: Of one address, without getting further.
        pause_seconds: Before the second try; doubled before each later one.
        max_pause_seconds: Most that a server's Retry-After is honoured with.
    """

    connect_seconds: float = 10.0
    stall_seconds: float = 30.0
    num_tries: int = 4
    pause_seconds: float = 1.0
    max_pause_seconds: float = 60.0


class FetchError(DataError):
    """No address gave the file.

    Attributes:
        is_unreachable: Whether not one server was reached: this machine seems to be offline.
    """

    def __init__(self, text: str, *, is_unreachable: bool = False) -> None:
        """Takes the message."""
        super().__init__(text)
        self.is_unreachable = is_unreachable


def fetch(
    file: RemoteFile,
    target: Path,
    *,
    bases: Sequence[str] = (),
    force: bool = False,
    tell: Tell = tell_nobody,
    remark: Remark = lambda _: None,
    patience: Patience | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Makes `target` the whole, checked file, and returns the bytes that were transferred for that.

    What is there already is hashed and kept. What a stopped or killed process has left in
    `<target>.part` is completed. One process at a time fetches a file, others wait for it.

    Args:
        file: What to fetch, and what it must be.
        target: Where to put it.
        bases: Addresses of folders that are tried before the file's own addresses.
        force: Fetch again what is there, too.
        tell: Is told of bytes.
        remark: Is told in one line of retries and waiting.
        patience: How long servers are waited for; None: the defaults.
        sleep: Waits between tries.

    Raises:
        FetchError: No address gave the file.
        DataError: The file cannot be written, or the disk is too full.
        Cancelled: `tell` raised it; what was fetched so far stays.
    """
    make_folder(target.parent)
    lock = target.with_name(f"{target.name}.lock")
    try:
        with locked(lock, tell, remark):
            if not force and target.is_file():
                problem = find_mismatch(target, file, tell)
                if problem is None:
                    return 0
                remark(f"{target}: {problem}; fetching it again")
            with _Part(target, file, tell) as part:
                errand = _Errand(file, part, tell, remark, patience or Patience(), sleep)
                errand.run(_addresses(file, bases))
                part.install(target)
            return errand.num_transferred
    except OSError as err:  # of the disk: those of the network are dealt with below
        raise DataError(
            f"cannot write {err.filename or target}: {err.strerror or err}; what was fetched is "
            "kept, so free some space and run the same command again"
        ) from err


def check_base(base: str) -> str:
    """Returns the address of a mirror.

    Raises:
        DataError: It is no http or https address.
    """
    parts = urllib.parse.urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(
            f"--mirror {base}: give an address that starts with http:// or https://; "
            "files on this machine are taken by --from-file PATH"
        )
    return base


def find_mismatch(path: Path, file: RemoteFile, tell: Tell = tell_nobody) -> str | None:
    """Returns how a file on disk differs from what it must be, in size or hash; None: it does not.

    Raises:
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"has {size:,} bytes, expected {file.size:,}"
    kind, expected = file.checksum
    with path.open("rb") as opened:
        got = feed(opened, hashlib.new(kind), lambda done: tell(done, size))
    return None if got == expected else f"{kind} is {got}, expected {expected}"


def feed(opened: Any, digest: Any, tell: Callable[[int], None]) -> str:
    """Feeds a digest the rest of an open file, and returns it in hexadecimal digits."""
    done = 0
    while block := opened.read(1 << 20):
        digest.update(block)
        done += len(block)
        tell(done)
    return str(digest.hexdigest())


@contextlib.contextmanager
def locked(path: Path, tell: Tell = tell_nobody, remark: Remark = lambda _: None) -> Iterator[None]:
    """Holds a lock that other processes wait for; its file is there only meanwhile.

    Raises:
        OSError: The lock file cannot be made.
    """
    has_remarked = False
    while (descriptor := _try_lock(path)) is None:
        if not has_remarked:
            remark(f"another process is at {path.with_suffix('').name}; waiting for it to end")
            has_remarked = True
        tell(0, None)
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The locked descriptor of a lock file, None while another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who held it before has deleted it, and somebody may have made it anew.
        if os.path.samestat(path.stat(), os.fstat(descriptor)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _addresses(file: RemoteFile, bases: Sequence[str]) -> list[str]:
    name = urllib.parse.quote(file.name)
    return [*(f"{base.rstrip('/')}/{name}" for base in bases), *file.urls]


class _AgainError(Exception):
    """This try has failed; the same address may do better."""

    def __init__(self, reason: str, *, seconds: float | None = None, is_unreachable: bool = False):
        super().__init__(reason)
        self.seconds = seconds  # that the server asks to wait
        self.is_unreachable = is_unreachable


class _RefusedError(Exception):
    """This address will not do."""

    def __init__(self, reason: str, *, is_unreachable: bool = False):
        super().__init__(reason)
        self.is_unreachable = is_unreachable


class _Errand:
    """The way to one file by several addresses."""

    def __init__(
        self,
        file: RemoteFile,
        part: _Part,
        tell: Tell,
        remark: Remark,
        patience: Patience,
        sleep: Callable[[float], None],
    ) -> None:
        self.num_transferred = 0
        self._file = file
        self._part = part
        self._total = file.size
        self._tell_caller = tell
        self._remark = remark
        self._patience = patience
        self._sleep = sleep

    def run(self, urls: Sequence[str]) -> None:
        """Completes the part. Raises FetchError."""
        problems: list[tuple[str, _RefusedError]] = []
        for url in urls:
            problem = self._complete_from(url)
            if problem is None:
                return
            problems.append((url, problem))
            if url != urls[-1]:
                self._remark(f"{url}: {problem}; trying the next address")
        told = "; ".join(f"{url}: {problem}" for url, problem in problems)
        raise FetchError(
            f"{self._file.name} could not be fetched: {told}",
            is_unreachable=all(problem.is_unreachable for _, problem in problems),
        )

    def _complete_from(self, url: str) -> _RefusedError | None:
        """Completes the part from one address, or returns why that will not do."""
        if url.startswith("http:") and self._file.sha256 is None:
            return _RefusedError("is not https, and no sha256 is known to check the file by")
        furthest = self._part.size
        num_failed = 0
        while True:
            problem = self._outcome(url)
            if problem is None or isinstance(problem, _RefusedError):
                return problem
            if self._part.size >= furthest + _PROGRESS_BYTES:
                furthest = self._part.size
                num_failed = 0
            num_failed += 1
            if num_failed == self._patience.num_tries:
                return _RefusedError(str(problem), is_unreachable=problem.is_unreachable)
            self._pause(url, problem, num_failed)

    def _outcome(self, url: str) -> _AgainError | _RefusedError | None:
        """What comes of one try; None: the part is complete and right."""
        try:
            self._try_once(url)
        except (_AgainError, _RefusedError) as err:
            return err
        return None

    def _try_once(self, url: str) -> None:
        """One request and the check of what it completes."""
        part = self._part
        kept_bytes = part.size
        if self._file.size is None or part.size != self._file.size:
            kept_bytes = self._request(url)
        problem = part.find_mismatch()
        if problem is None:
            return
        part.restart()
        if kept_bytes:  # begun by an earlier try, perhaps of another file
            raise _AgainError(f"{problem}, in two pieces")
        raise _RefusedError(problem)

    def _request(self, url: str) -> int:
        """Appends what one request brings, and returns how many bytes there were before."""
        part = self._part
        with _Pump(partial(_open, url, part.request_headers(url), self._patience)) as pump:
            head = self._take(pump)
            assert isinstance(head, _Head)
            if self._is_complete(head):
                return part.size
            total = self._prepare_part(url, head)
            self._check_total(total)
            kept_bytes = part.size
            limit = self._file.max_bytes if self._total is None else self._total
            while block := self._take(pump):
                part.write(block)
                self.num_transferred += len(block)
                if part.size > limit:
                    part.restart()
                    raise _RefusedError(f"sends more than {limit:,} bytes")
                self._tell()
        if self._total is not None and part.size < self._total:
            raise _AgainError(f"was cut off after {part.size:,} of {self._total:,} bytes")
        return kept_bytes

    def _take(self, pump: _Pump) -> Any:
        """What comes next; the failures of the network as those of a try."""
        item = pump.take(self._tell)
        if not isinstance(item, Exception):
            return item
        if isinstance(item, _RefusedError):
            raise item
        reason = item.reason if isinstance(item, urllib.error.URLError) else item
        is_unreachable = isinstance(item, OSError) and self.num_transferred == 0
        told = _describe(reason)
        if isinstance(reason, socket.gaierror | ssl.SSLCertVerificationError):
            raise _RefusedError(told, is_unreachable=is_unreachable) from item
        raise _AgainError(told, is_unreachable=is_unreachable) from item

    def _is_complete(self, head: _Head) -> bool:
        """Whether the server says that nothing is left to send: 416 with the size of the part."""
        if head.status != 416:
            return False
        if self._part.size and head.range_total == self._part.size:
            return True
        self._part.restart()
        raise _AgainError("has another file than the one begun")

    def _prepare_part(self, url: str, head: _Head) -> int | None:
        """Makes the part ready for the bytes of a response; returns the size it announces."""
        part = self._part
        if head.status == 206:
            if not part.size:
                raise _RefusedError("answers with a range that was not asked for")
            if head.range_start != part.size or part.is_of_another(url, head):
                part.restart()
                raise _AgainError("continues another file, or at another place")
            return head.range_total
        if head.status == 200:
            part.restart()
            part.note(url, head)
            return head.length
        reason = f"HTTP {head.status} {head.reason}".strip()
        if head.status in _TRANSIENT or head.status >= 500:
            raise _AgainError(reason, seconds=head.retry_after)
        raise _RefusedError(reason)

    def _check_total(self, total: int | None) -> None:
        """Takes note of the size a server announces, and refuses a wrong or an absurd one."""
        file = self._file
        if total is not None:
            if file.size is not None and total != file.size:
                raise _RefusedError(f"offers {total:,} bytes, expected {file.size:,}")
            if total > file.max_bytes:
                raise _RefusedError(f"offers {total:,} bytes, more than {file.max_bytes:,}")
        self._total = total if file.size is None else file.size
        if self._total is not None:
            check_space(self._part.path.parent, self._total - self._part.size)

    def _pause(self, url: str, err: _AgainError, num_failed: int) -> None:
        seconds = self._patience.pause_seconds * 2 ** (num_failed - 1)
        if err.seconds is not None:
            seconds = min(err.seconds, self._patience.max_pause_seconds)
        self._remark(f"{url}: {err}; trying again in {seconds:g} s")
        while seconds > 0:
            self._tell()
            self._sleep(min(seconds, _POLL_SECONDS))
            seconds -= _POLL_SECONDS

    def _tell(self) -> None:
        self._tell_caller(self._part.size, self._total)


def check_space(folder: Path, num_bytes: int) -> None:
    """Refuses to fill a disk.

    Raises:
        DataError: There is less free than will be written.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DataError(
            f"{folder}: {num_bytes:,} bytes are to be written and {free:,} are free; free some "
            "space or choose another folder by FEDCLI_DATA_DIR or --data-dir"
        )


class _Part:
    """The bytes fetched so far, in a file beside the target, and their hash."""

    def __init__(self, target: Path, file: RemoteFile, tell: Tell) -> None:
        """Opens or makes the file, and reads it to the end. Raises OSError and Cancelled."""
        self.path = target.with_name(f"{target.name}.part")
        self._origin_path = target.with_name(f"{target.name}.part.json")
        self._file = file
        self._origin = _read_origin(self._origin_path)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        self._opened = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            self._digest = hashlib.new(file.checksum[0])
            self.size = os.fstat(descriptor).st_size
            limit = file.max_bytes if file.size is None else file.size
            if self.size > limit:
                self.restart()
            feed(self._opened, self._digest, lambda done: tell(done, file.size))
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        if not self.size:  # nothing to go on from
            self._delete()

    def request_headers(self, url: str) -> dict[str, str]:
        """The headers of a request for what is missing."""
        headers = {"Accept-Encoding": "identity", "User-Agent": f"fedcli/{__version__}"}
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
            if self._origin.get("url") == url and self._origin.get("validator"):
                headers["If-Range"] = self._origin["validator"]
        return headers

    def is_of_another(self, url: str, head: _Head) -> bool:
        """Whether a response that continues the part is known to be of another file."""
        if self._origin.get("url") != url or not head.validator:
            return False
        return bool(self._origin.get("validator") not in (None, head.validator))

    def note(self, url: str, head: _Head) -> None:
        """Keeps what tells later whether the same file is still there."""
        self._origin = {"url": url, "validator": head.validator}
        temporary = self._origin_path.with_name(f".{self._origin_path.name}.tmp")
        temporary.write_text(json_text(self._origin))
        os.replace(temporary, self._origin_path)  # noqa: PTH105

    def write(self, block: bytes) -> None:
        """Appends."""
        rest = memoryview(block)
        while rest:
            num_written = self._opened.write(rest)
            self._digest.update(rest[:num_written])
            self.size += num_written
            rest = rest[num_written:]

    def restart(self) -> None:
        """Forgets everything."""
        self._opened.seek(0)
        self._opened.truncate()
        self.size = 0
        self._digest = hashlib.new(self._file.checksum[0])
        self._origin = {}

    def find_mismatch(self) -> str | None:
        """How the complete part differs from what it must be, None if it does not."""
        if self._file.size is not None and self.size != self._file.size:
            return f"has {self.size:,} bytes, expected {self._file.size:,}"
        kind, expected = self._file.checksum
        got = self._digest.hexdigest()
        return None if got == expected else f"{kind} is {got}, expected {expected}"

    def install(self, target: Path) -> None:
        """Gives the part the name of the target, once the disk has it."""
        os.fsync(self._opened.fileno())
        os.replace(self.path, target)  # noqa: PTH105
        sync_folder(target.parent)
        self._delete()

    def _delete(self) -> None:
        for path in (self.path, self._origin_path):
            with contextlib.suppress(OSError):
                path.unlink()


def _read_origin(path: Path) -> dict[str, str]:
    """What a part's file of notes says; nothing if it is not there or damaged."""
    try:
        origin = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    is_plain = isinstance(origin, dict) and all(isinstance(each, str) for each in origin.values())
    return origin if is_plain else {}


class _Head:
    """What the head of a response says."""

    def __init__(self, status: int, reason: str, headers: Any) -> None:
        self.status = status
        self.reason = reason
        self.length = _whole_number(headers.get("Content-Length"))
        self.retry_after = _whole_number(headers.get("Retry-After"))
        etag = headers.get("ETag") or ""
        # A weak one does not promise equal bytes.
        is_strong = etag.startswith('"')
        self.validator: str = etag if is_strong else headers.get("Last-Modified") or ""
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range") or "")
        self.range_start = _whole_number(match[1]) if match else None
        self.range_total = _whole_number(match[3]) if match else None


def _whole_number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


class _Pump:
    """Reads a response in a thread of its own, so that a silent server does not deafen us."""

    def __init__(self, open_response: Callable[[], Any]) -> None:
        self._open_response = open_response
        self._items: queue.Queue[Any] = queue.Queue(maxsize=8)
        self._is_left = threading.Event()

    def __enter__(self) -> _Pump:
        threading.Thread(target=self._run, name="fedcli-download", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_left.set()

    def take(self, wait: Callable[[], None]) -> Any:
        """The head, then blocks, then b"", or an exception; `wait` is called meanwhile."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._items.get(timeout=_POLL_SECONDS)
            wait()

    def _run(self) -> None:
        try:
            with contextlib.closing(self._open_response()) as response:
                self._put(_Head(response.status, response.reason, response.headers))
                while (block := response.read1(_BLOCK_BYTES)) and self._put(block):
                    pass
            self._put(b"")
        except urllib.error.HTTPError as err:
            with contextlib.closing(err):
                self._put(_Head(err.code, str(err.reason), err.headers))
        except Exception as err:  # handed to who waits
            self._put(err)

    def _put(self, item: Any) -> bool:
        """Hands over an item; returns whether anybody still wants more."""
        while not self._is_left.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=_POLL_SECONDS)
                return True
        return False


def _open(url: str, headers: dict[str, str], patience: Patience) -> Any:
    """The response to one request; proxies are those of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(patience.stall_seconds),
        _Https(patience.stall_seconds),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers=headers)
    return opener.open(request, timeout=patience.connect_seconds)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything else."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        schemes = ("https:",) if req.full_url.startswith("https:") else ("https:", "http:")
        if not newurl.startswith(schemes):
            fp.close()
            raise _RefusedError(f"redirects to {newurl}, and only {schemes[-1]} is followed there")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # urllib's from 3.11


class _HttpConnection(http.client.HTTPConnection):
    """A connection that has more patience with data than with connecting."""

    def __init__(self, *args: Any, stall_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stall_seconds = stall_seconds

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._stall_seconds)


class _HttpsConnection(http.client.HTTPSConnection):
    """The same over TLS."""

    def __init__(self, *args: Any, stall_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stall_seconds = stall_seconds

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._stall_seconds)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, stall_seconds: float) -> None:
        super().__init__()
        self._connection: Any = partial(_HttpConnection, stall_seconds=stall_seconds)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, stall_seconds: float) -> None:
        super().__init__()
        self._connection: Any = partial(_HttpsConnection, stall_seconds=stall_seconds)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req, context=ssl.create_default_context())


def _describe(reason: object) -> str:
    """A failure of the network in words."""
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, http.client.IncompleteRead):
        return "was cut off"
    if isinstance(reason, OSError) and reason.strerror:
        return f"cannot be reached ({reason.strerror})"
    return f"cannot be read ({' '.join(str(reason).split()) or type(reason).__name__})"
