"""A local web server that answers each request as a test prescribes, also wrongly."""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

Behaviour = Callable[["Handler", bytes], None]


@dataclass
class Request:
    """A request: its path and its headers."""

    path: str
    headers: Mapping[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


@dataclass
class Script:
    """Files by path, and answers to the first requests for each; later requests get the file."""

    contents: dict[str, bytes] = field(default_factory=dict)
    behaviours: dict[str, list[Behaviour]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def add(self, name: str, content: bytes, *behaviours: Behaviour) -> str:
        """Adds a file to the server, and returns its address."""
        self.contents[f"/{name}"] = content
        self.behaviours[f"/{name}"] = list(behaviours)
        return f"{self.url}/{name}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def do_GET(self) -> None:
        self.script.requests.append(Request(self.path, dict(self.headers.items())))
        content = self.script.contents.get(self.path)
        waiting = self.script.behaviours.get(self.path, [])
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            if content is None:
                status(404)(self, b"")
            elif waiting:
                waiting.pop(0)(self, content)
            else:
                serve()(self, content)

    def head(self, code: int, headers: Mapping[str, object]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def rest(self, content: bytes, etag: str, *, checks_if_range: bool = True) -> tuple[int, bytes]:
        """Returns the right status and bytes for a request: all bytes, or those of its range."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        condition = self.headers.get("If-Range")
        if match is None or (checks_if_range and condition not in (None, etag)):
            return 200, content
        return 206, content[int(match[1]) :]

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def serve(
    etag: str = '"one"',
    *,
    cut_after: int | None = None,
    stall_after: int | None = None,
    more_bytes: int = 0,
    shift: int = 0,
    total: int | None = None,
    checks_if_range: bool = True,
    ignores_range: bool = False,
    validators: Mapping[str, str] | None = None,
    pause: float = 0.0,
    block_bytes: int = 1 << 16,
) -> Behaviour:
    """Serves the content, with the faults that the arguments name."""

    def behave(handler: Handler, content: bytes) -> None:
        code, body = handler.rest(content, etag, checks_if_range=checks_if_range)
        if ignores_range:
            code, body = 200, content
        start = len(content) - len(body)
        if code == 206 and not body:
            handler.head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": 0})
            return
        headers: dict[str, object] = {"Content-Length": len(body) + more_bytes}
        headers |= {"ETag": etag} if validators is None else validators
        if code == 206:
            last = len(content) - 1 + shift
            shown = len(content) if total is None else total
            headers["Content-Range"] = f"bytes {start + shift}-{last}/{shown}"
        handler.head(code, headers)
        end = min(
            len(body), *(each for each in (cut_after, stall_after) if each is not None), len(body)
        )
        for first in range(0, end, block_bytes):
            handler.wfile.write(body[first : min(end, first + block_bytes)])
            if pause:
                handler.wfile.flush()
                handler.script.is_over.wait(pause)
        handler.wfile.flush()
        if stall_after is not None:
            handler.script.is_over.wait()

    return behave


def announce_too_few_bytes(num_bytes: int) -> Behaviour:
    """Announces fewer bytes than the content has, and sends all."""

    def behave(handler: Handler, content: bytes) -> None:
        handler.head(200, {"Content-Length": num_bytes})
        handler.wfile.write(content)  # more bytes than announced

    return behave


def status(code: int, **headers: object) -> Behaviour:
    """Answers with a status and headers; `Retry_After` stands for Retry-After."""

    def behave(handler: Handler, _: bytes) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.head(code, {"Content-Length": 0, **named})

    return behave


def hang_up(handler: Handler, _: bytes) -> None:
    """Ends the connection without an answer."""
    handler.connection.close()


def talk_nonsense(handler: Handler, _: bytes) -> None:
    """Sends bytes that are not HTTP."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def endless(handler: Handler, _: bytes) -> None:
    """Sends zeros until the client disconnects, without announcing how many."""
    handler.head(200, {})
    while not handler.script.is_over.is_set():
        handler.wfile.write(bytes(1 << 16))


def silent(handler: Handler, _: bytes) -> None:
    """Accepts the request and never answers."""
    handler.script.is_over.wait()


def trickle_head(handler: Handler, _: bytes) -> None:
    """Sends an endless header, a byte at a time, so that the client never waits long for a byte."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.script.is_over.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def continue_for_ever(handler: Handler, _: bytes) -> None:
    """Sends `100 Continue` again and again, but no answer."""
    while not handler.script.is_over.wait(0.02):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        handler.wfile.flush()


def chunked_cut(num_bytes: int) -> Behaviour:
    """Sends some bytes in chunks, then ends the connection within a chunk."""

    def behave(handler: Handler, content: bytes) -> None:
        handler.head(200, {"Transfer-Encoding": "chunked", "ETag": '"one"'})
        handler.wfile.write(b"%x\r\n" % num_bytes + content[:num_bytes] + b"\r\n")
        handler.wfile.write(b"ffff\r\n" + content[num_bytes : num_bytes + 3])

    return behave


@contextlib.contextmanager
def running(tls: ssl.SSLContext | None = None) -> Iterator[Script]:
    """Runs a server during a test, which can change the script at any moment."""
    script = Script()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script}))
    server.daemon_threads = True
    server.block_on_close = False
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    scheme = "http" if tls is None else "https"
    script.url = f"{scheme}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield script
    finally:
        script.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Script]:
    """A server for one test; tests/conftest.py loads this fixture."""
    with running() as script:
        yield script
