"""One HTTP request with urllib, to a server that may be slow, silent or wrong.

The response is read in a separate thread, so that the waiting thread can react to Ctrl-C.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import queue
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.errors import shortened

_BLOCK_BYTES = 1 << 18
_NUM_BLOCKS_AHEAD = 8
_POLL_SECONDS = 0.1  # between two calls of `wait`
_TOO_SLOW = "too slow: almost nothing arrived in a long time"
_MAX_REASON = 200  # characters that are shown of a message from the server or a library
_USABLE = {200, 206, 416}
_TRANSIENT = {408, 429}
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class TryError(Exception):
    """A request failed or its response cannot be used. The message does not name the address.

    Attributes:
        is_final: Whether another try of the same address is pointless.
        wait_seconds: Seconds to wait, from the server's header Retry-After; None: there is no such
            header.
    """

    def __init__(
        self, reason: str, *, is_final: bool = False, wait_seconds: float | None = None
    ) -> None:
        """Takes the reason."""
        super().__init__(reason)
        self.is_final = is_final
        self.wait_seconds = wait_seconds


@dataclass(frozen=True, kw_only=True)
class Head:
    """The headers of a usable response.

    Attributes:
        status: 200: the whole file follows; 206: the missing part follows; 416: no part is missing.
        length: Announced number of bytes that follow; None: not stated.
        range_start: Offset of these bytes in the file; None: not stated.
        range_total: Number of bytes of the whole file; None: not stated.
        validator: Identifies the version of the file, for If-Range; "": there is none.
    """

    status: int
    length: int | None
    range_start: int | None
    range_total: int | None
    validator: str


class Exchange:
    """A request and its response: read the head first, then blocks of bytes until the end."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        connect_seconds: float,
        stall_seconds: float,
        head_seconds: float,
        window_seconds: float,
        window_bytes: int,
        wait: Callable[[], None],
    ) -> None:
        """Prepares a request. Proxies are those of the environment.

        Time limits apply to a server that sends nothing and to a server that sends too slowly.

        Args:
            url: An http or https address.
            headers: Headers to send.
            connect_seconds: Time limit for the connection.
            stall_seconds: Time limit for the next byte.
            head_seconds: Time limit for the head, redirects included.
            window_seconds: Length of the time windows in each of which at least `window_bytes` of
                the body must arrive.
            window_bytes: See `window_seconds`.
            wait: Called repeatedly while no bytes arrive; may raise.
        """
        self._open = partial(_open, url, dict(headers), connect_seconds, stall_seconds)
        self._wait = wait
        self._head_seconds = head_seconds
        self._window_seconds = window_seconds
        self._window_bytes = window_bytes
        self._window_end = 0.0
        self._num_in_window = 0
        self._items: queue.Queue[Any] = queue.Queue(maxsize=_NUM_BLOCKS_AHEAD)
        self._is_left = threading.Event()

    def __enter__(self) -> Exchange:
        """Sends the request."""
        threading.Thread(target=self._run, name="fedcli-download", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the response, even if it is not complete."""
        self._is_left.set()

    def head(self) -> Head:
        """Returns the head. Call it once, before `read`.

        Raises:
            TryError: The server cannot be reached, or answers with an error.
        """
        status, reason, headers = self._take(time.monotonic() + self._head_seconds)
        self._window_end = time.monotonic() + self._window_seconds
        if status in _USABLE:
            return _parse_head(status, headers)
        is_transient = status in _TRANSIENT or status >= 500
        raise TryError(
            f"HTTP {status} {shortened(reason, _MAX_REASON)}".strip(),
            is_final=not is_transient,
            wait_seconds=_seconds_to_wait(headers.get("Retry-After")),
        )

    def read(self) -> bytes:
        """Returns the next bytes; b"" at the end.

        Raises:
            TryError: The server sends nothing or too slowly, or the connection broke.
        """
        block = self._take(self._window_end)
        assert isinstance(block, bytes)
        self._num_in_window += len(block)
        if block and self._num_in_window < self._window_bytes:
            if time.monotonic() > self._window_end:
                raise TryError(_TOO_SLOW)
        else:
            self._window_end = time.monotonic() + self._window_seconds
            self._num_in_window = 0
        return block

    def _take(self, end: float) -> Any:
        """Returns the next item. Raises TryError if it has not arrived by `end`."""
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._items.get(timeout=_POLL_SECONDS)
                break
            self._wait()
            if time.monotonic() > end:
                raise TryError(_TOO_SLOW)
        if isinstance(item, Exception):
            raise _as_try_error(item) from item
        return item

    def _run(self) -> None:
        """Reads the response and puts its parts in the queue: the head, blocks, b"" at the end."""
        try:
            with contextlib.closing(self._open()) as response:
                self._put((response.status, response.reason, response.headers))
                while (block := response.read1(_BLOCK_BYTES)) and self._put(block):
                    pass
            self._put(b"")
        except urllib.error.HTTPError as err:
            with contextlib.closing(err):
                self._put((err.code, str(err.reason), err.headers))
        except Exception as err:  # passed to the waiting thread
            self._put(err)

    def _put(self, item: Any) -> bool:
        """Puts an item in the queue; returns whether the waiting thread still wants more."""
        while not self._is_left.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=_POLL_SECONDS)
                return True
        return False


# ---- Heads and failures --------------------------------------------------------------------------


def _parse_head(status: int, headers: Any) -> Head:
    etag = headers.get("ETag") or ""
    is_strong = etag.startswith('"')  # equal weak ETags do not promise equal bytes
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range") or "")
    return Head(
        status=status,
        length=_whole_number(headers.get("Content-Length")),
        range_start=_whole_number(match[1]) if match else None,
        range_total=_whole_number(match[3]) if match else None,
        validator=etag if is_strong else headers.get("Last-Modified") or "",
    )


def _whole_number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


def _seconds_to_wait(text: str | None) -> float | None:
    """The seconds to wait according to a Retry-After header, which holds seconds or a date."""
    number = _whole_number(text)
    if number is not None or not text:
        return number
    try:
        date = email.utils.parsedate_tz(text)
        return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
    except (ValueError, OverflowError):  # a date outside the range of the clock
        return None


def _as_try_error(err: Exception) -> TryError:
    """Converts an exception of urllib to a TryError."""
    if isinstance(err, TryError):
        return err
    reason = err.reason if isinstance(err, urllib.error.URLError) else err
    is_final = isinstance(
        reason, socket.gaierror | ssl.SSLCertVerificationError | ValueError | http.client.InvalidURL
    )
    return TryError(_describe(reason), is_final=is_final)


def _describe(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, http.client.IncompleteRead):
        return "was cut off"
    if isinstance(reason, OSError) and reason.strerror:
        return f"cannot be reached ({reason.strerror})"
    said = shortened(" ".join(str(reason).split()), _MAX_REASON)
    return f"cannot be read ({said or type(reason).__name__})"


# ---- urllib --------------------------------------------------------------------------------------


def _open(url: str, headers: dict[str, str], connect_seconds: float, stall_seconds: float) -> Any:
    """Opens the response with urllib's handlers for http, https, proxies and safe redirects."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Web(stall_seconds),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener.open(urllib.request.Request(url, headers=headers), timeout=connect_seconds)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything else."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        schemes = ("https:",) if req.full_url.startswith("https:") else ("https:", "http:")
        if not newurl.startswith(schemes):
            fp.close()
            raise TryError(
                f"redirects to {newurl}; only addresses with {schemes[-1]} are followed",
                is_final=True,
            )
        known = 307 if code == 308 else code  # urllib knows 308 since Python 3.11
        return super().redirect_request(req, fp, known, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


class _Http(http.client.HTTPConnection):
    """A connection with separate time limits for connecting and for data."""

    def __init__(self, *args: Any, stall_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stall_seconds = stall_seconds

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._stall_seconds)


class _Https(_Http, http.client.HTTPSConnection):
    """The same kind of connection over TLS."""


class _Web(urllib.request.AbstractHTTPHandler):
    """The urllib handler that opens `_Http` and `_Https` connections."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, stall_seconds: float) -> None:
        super().__init__()
        self._stall_seconds = stall_seconds

    def http_open(self, req: Any) -> http.client.HTTPResponse:
        return self.do_open(self._with_timeout(_Http), req)

    def https_open(self, req: Any) -> http.client.HTTPResponse:
        return self.do_open(self._with_timeout(_Https), req, context=ssl.create_default_context())

    def _with_timeout(self, kind: type[_Http]) -> Any:
        return partial(kind, stall_seconds=self._stall_seconds)
