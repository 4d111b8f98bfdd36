"""Fetching a file from servers that cut, stall or send wrong data, and in killed processes."""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import io
import json
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcli.core.native import Cancelled
from fedcli.datasets.download import fetching, part_file, transport
from fedcli.datasets.download.fetching import FetchError, TransferLimits
from fedcli.datasets.download.public import RemoteFile
from fedcli.errors import DataError
from tests.kit import misbehaving_server as web
from tests.kit.waiting import PATIENCE_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
CONTENT = bytes((index * index) % 251 for index in range(300_000))
# Servers of these tests answer at once, but a busy machine may take long to run them.
LIMITS = TransferLimits(pause_seconds=0.01, max_pause_seconds=0.5)
HASTE = replace(LIMITS, stall_seconds=0.5, num_tries=10)


def remote(*urls: str, content: bytes = CONTENT, **changes: Any) -> RemoteFile:
    file = RemoteFile(
        name="data.bin",
        folder="tests",
        urls=urls,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        max_bytes=max(1_000_000, len(content)),
    )
    return replace(file, **changes)


def fetch(file: RemoteFile, target: Path, **options: Any) -> int:
    return fetching.fetch(file, target, limits=LIMITS, **options)


def check_clean(target: Path) -> None:
    """Checks that the file is complete and that no other file is left."""
    assert target.read_bytes() == CONTENT
    assert [each.name for each in target.parent.iterdir()] == [target.name]


def test_fetches_and_keeps(server: web.Script, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "data.bin"
    told: list[tuple[int, int | None]] = []
    file = remote(server.add("data.bin", CONTENT))
    assert fetch(file, target, on_progress=lambda *numbers: told.append(numbers)) == len(CONTENT)
    check_clean(target)
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(file, target) == 0  # nothing is fetched, because the file exists
    assert len(server.requests) == 1
    assert server.requests[0].headers["Accept-Encoding"] == "identity"
    assert fetch(file, target, force=True) == len(CONTENT)
    check_clean(target)


def test_damaged_file_is_fetched_again(server: web.Script, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    target.write_bytes(CONTENT[:-1] + b"!")
    notes: list[str] = []
    fetch(remote(server.add("data.bin", CONTENT)), target, on_note=notes.append)
    check_clean(target)
    assert "sha256 is " in notes[0]
    assert notes[0].endswith("fetching it again")


@pytest.mark.parametrize(
    ("behaviours", "num_requests"),
    [
        ([web.serve(cut_after=1000), web.serve(cut_after=5000)], 3),
        ([web.serve(more_bytes=-10)], None),
        ([web.status(503), web.status(500), web.status(429)], 4),
        ([web.status(408)], 2),
        ([web.hang_up], 2),
        ([web.talk_nonsense], 2),
        ([web.chunked_cut(5000)], 2),
        ([web.serve(cut_after=1000), web.serve(ignores_range=True)], 2),
        ([web.serve(cut_after=1000), web.serve(shift=5)], 3),
        ([web.serve(cut_after=1000), web.serve(total=7)], None),
        ([web.serve(cut_after=1000), web.serve('"two"')], 2),
        ([web.serve(cut_after=1000), web.serve('"two"', checks_if_range=False)], 3),
        ([web.serve(cut_after=1000), web.status(416, Content_Range="bytes */7")], 3),
        ([web.serve(cut_after=1000, validators={}), web.serve(validators={})], 2),
    ],
    ids=[
        *("cut twice", "short length", "busy", "timeout", "hangs up"),
        *(
            "no HTTP",
            "chunks cut",
            "no ranges",
            "wrong range",
            "wrong total",
            "changed, told",
            "changed, untold",
        ),
        *("416", "no validator"),
    ],
)
def test_a_file_is_fetched_in_spite_of_errors(
    server: web.Script, tmp_path: Path, behaviours: list[web.Behaviour], num_requests: int | None
) -> None:
    url = server.add("data.bin", CONTENT, *behaviours)
    mirror = server.add("mirror.bin", CONTENT)
    fetch(remote(url, mirror), tmp_path / "data.bin")
    check_clean(tmp_path / "data.bin")
    if num_requests is not None:
        assert [request.path for request in server.requests] == ["/data.bin"] * num_requests


@pytest.mark.parametrize("stalled", [web.serve(stall_after=1000), web.silent])
def test_a_file_is_fetched_although_a_server_stalled(
    server: web.Script, tmp_path: Path, stalled: web.Behaviour
) -> None:
    url = server.add("data.bin", CONTENT, stalled)
    notes: list[str] = []
    fetching.fetch(remote(url), tmp_path / "data.bin", limits=HASTE, on_note=notes.append)
    check_clean(tmp_path / "data.bin")
    assert notes[0].startswith(f"{url}: no answer in time; trying again")


def test_resumes_where_it_was_cut_if_the_file_is_the_same(
    server: web.Script, tmp_path: Path
) -> None:
    url = server.add("data.bin", CONTENT, web.serve(cut_after=1000))
    assert fetch(remote(url), tmp_path / "data.bin") == len(CONTENT)
    again = server.requests[1]
    assert (again.range, again.headers["If-Range"]) == ("bytes=1000-", '"one"')


def test_weak_etag_gives_way_to_the_date(server: web.Script, tmp_path: Path) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    headers = {"ETag": 'W/"one"', "Last-Modified": date}
    url = server.add("data.bin", CONTENT, web.serve(date, cut_after=1000, validators=headers))
    fetch(remote(url), tmp_path / "data.bin")
    assert server.requests[1].headers["If-Range"] == date


def test_old_and_changed_content_are_not_mixed(server: web.Script, tmp_path: Path) -> None:
    """An old part has no note of its ETag: the mixed file is found wrong and fetched again."""
    target = tmp_path / "data.bin"
    target.with_name("data.bin.part").write_bytes(b"old" * 1000)
    fetch(remote(server.add("data.bin", CONTENT)), target)
    check_clean(target)
    assert [request.range for request in server.requests] == ["bytes=3000-", None]


@pytest.mark.parametrize(
    ("part", "note", "num_requests"),
    [
        (CONTENT, b"", 0),
        (CONTENT + b"more", b"{", 1),
        (CONTENT[:-1] + b"!", b"[]", 1),
        (CONTENT[:100], b'{"url": 3}', 1),
        (CONTENT[:100], b"\xff\x00", 1),
        (b"", b'{"url": "x", "validator": "y"}', 1),
    ],
    ids=["whole", "too long", "wrong", "odd note", "garbled note", "empty"],
)
def test_any_partial_file_is_handled(
    server: web.Script, tmp_path: Path, part: bytes, note: bytes, num_requests: int
) -> None:
    target = tmp_path / "data.bin"
    target.with_name("data.bin.part").write_bytes(part)
    target.with_name("data.bin.part.json").write_bytes(note)
    fetch(remote(server.add("data.bin", CONTENT)), target)
    check_clean(target)
    assert len(server.requests) == num_requests


def test_complete_part_of_unknown_size_needs_no_second_transfer(
    server: web.Script, tmp_path: Path
) -> None:
    target = tmp_path / "data.bin"
    target.with_name("data.bin.part").write_bytes(CONTENT)
    assert fetch(remote(server.add("data.bin", CONTENT), size=None), target) == 0
    check_clean(target)
    assert [request.range for request in server.requests] == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (web.status(404), "HTTP 404"),
        (web.status(403), "HTTP 403"),
        (web.serve(more_bytes=1), "offers 300,001 bytes, expected 300,000"),
        (web.announce_too_few_bytes(1000), "offers 1,000 bytes, expected 300,000"),
        (web.endless, "sends more than 300,000 bytes"),
        (lambda handler, content: web.serve()(handler, b"!" + content[1:]), "sha256 is "),
        (web.status(302, Location="/data.bin"), "HTTP 302"),
        (web.status(301, Location="ftp://host/data.bin"), "redirects to ftp://host/data.bin"),
        (web.status(301, Location="file:///etc/passwd"), "file:///etc/passwd"),
        (web.status(206, Content_Range="bytes 0-9/10"), "another range than was requested"),
    ],
)
def test_next_address_after_an_error_that_retries_cannot_repair(
    server: web.Script, tmp_path: Path, behaviour: web.Behaviour, reason: str
) -> None:
    url = server.add("data.bin", CONTENT, *[behaviour] * 20)
    mirror = server.add("mirror.bin", CONTENT)
    notes: list[str] = []
    fetch(remote(url, mirror), tmp_path / "data.bin", on_note=notes.append)
    check_clean(tmp_path / "data.bin")
    assert [request.path for request in server.requests][-1] == "/mirror.bin"
    assert reason in notes[0]
    assert len(notes) == 1


def test_resumes_from_the_next_address(server: web.Script, tmp_path: Path) -> None:
    url = server.add("data.bin", CONTENT, web.serve(cut_after=1000), *[web.status(404)] * 9)
    fetch(remote(url, server.add("mirror.bin", CONTENT)), tmp_path / "data.bin")
    check_clean(tmp_path / "data.bin")
    last = server.requests[-1]
    assert (last.path, last.range, last.headers.get("If-Range")) == (
        "/mirror.bin",
        "bytes=1000-",
        None,
    )


def test_mirror_given_is_tried_first(server: web.Script, tmp_path: Path) -> None:
    server.add("mirror/data.bin", CONTENT)
    fetch(remote("http://127.0.0.1:9/data.bin"), tmp_path / "x", bases=[f"{server.url}/mirror/"])
    assert [request.path for request in server.requests] == ["/mirror/data.bin"]


def test_all_addresses_fail_with_one_line_of_reasons(server: web.Script, tmp_path: Path) -> None:
    url = server.add("data.bin", CONTENT[::-1])
    gone = f"{server.url}/gone.bin"
    file = remote(url, gone)
    with pytest.raises(FetchError) as caught:
        fetch(file, tmp_path / "data.bin")
    text = str(caught.value)
    got = hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert f"{url}: sha256 is {got}, expected {file.sha256}; {gone}: HTTP 404" in text
    assert "\n" not in text
    assert caught.value.file is file
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_reported(tmp_path: Path) -> None:
    with socket.socket() as bound:  # nobody else listens on its port
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(FetchError, match=r"cannot be reached \(Connection refused\)"):
            fetch(remote(f"{url}/a", f"{url}/b"), tmp_path / "data.bin")


@pytest.mark.parametrize("behaviour", [web.endless, web.serve()], ids=["endless", "large"])
def test_the_cap_bounds_a_file_of_unknown_size(
    server: web.Script, tmp_path: Path, behaviour: web.Behaviour
) -> None:
    content = bytes(100_001)
    url = server.add("data.bin", content, behaviour)
    file = remote(url, content=content, size=None, max_bytes=100_000)
    with pytest.raises(FetchError, match=r"(sends|offers).* more than 100,000"):
        fetch(file, tmp_path / "data.bin")
    assert list(tmp_path.iterdir()) == []


def test_pauses_double_and_retry_after_is_honoured_within_bounds(
    server: web.Script, tmp_path: Path
) -> None:
    pauses: list[float] = []
    notes: list[str] = []
    busy = [web.status(503), web.status(503), web.status(503, Retry_After=0)]
    url = server.add("data.bin", CONTENT, *busy)
    limits = replace(LIMITS, pause_seconds=1.0)
    options: dict[str, Any] = {"limits": limits, "sleep": pauses.append}
    fetching.fetch(remote(url), tmp_path / "data.bin", on_note=notes.append, **options)
    assert sum(pauses) == pytest.approx(3.0)
    assert [note.rpartition(";")[2] for note in notes] == [
        " trying again in 1 s",
        " trying again in 2 s",
        " trying again in 0 s",
    ]
    pauses.clear()
    url = server.add("data.bin", CONTENT, web.status(429, Retry_After=10**6))
    fetching.fetch(remote(url), tmp_path / "other.bin", **options)
    assert sum(pauses) == pytest.approx(LIMITS.max_pause_seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *((None, None), ("7", 7), ("soon", None), ("-1", None)),
        (email.utils.formatdate(0, usegmt=True), 0),
    ],
    ids=["none", "number", "nonsense", "negative", "past"],
)
def test_retry_after_is_a_number_or_a_date(text: str | None, seconds: float | None) -> None:
    assert transport._seconds_to_wait(text) == seconds


def test_retry_after_is_a_future_date() -> None:
    date = email.utils.formatdate(time.time() + 1000, usegmt=True)
    # A slow machine may take up to 60 seconds for this.
    assert transport._seconds_to_wait(date) == pytest.approx(1000, abs=60)


def test_four_tries_without_progress_are_enough(server: web.Script, tmp_path: Path) -> None:
    url = server.add("data.bin", CONTENT, *[web.status(503)] * 9)
    with pytest.raises(FetchError, match="HTTP 503"):
        fetch(remote(url), tmp_path / "data.bin")
    assert len(server.requests) == 4


def test_tries_with_progress_do_not_count(server: web.Script, tmp_path: Path) -> None:
    content = bytes(8 << 20)
    url = server.add("data.bin", content, *[web.serve(cut_after=(1 << 20) + 1)] * 7)
    fetch(remote(url, content=content), tmp_path / "data.bin")
    assert len(server.requests) == 8


def test_restarts_without_progress_count(server: web.Script, tmp_path: Path) -> None:
    content = bytes(8 << 20)
    cut = web.serve(cut_after=2 << 20, ignores_range=True)
    url = server.add("data.bin", content, *[cut] * 20)
    with pytest.raises(FetchError, match="was cut off after 2,097,152 of 8,388,608 bytes"):
        fetch(remote(url, content=content), tmp_path / "data.bin")
    assert len(server.requests) <= 5


def test_fetched_bytes_are_kept_after_the_last_error(server: web.Script, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    url = server.add("data.bin", CONTENT, web.serve(cut_after=1000), *[web.status(503)] * 3)
    with pytest.raises(FetchError):
        fetch(remote(url), target)
    assert target.with_name("data.bin.part").read_bytes() == CONTENT[:1000]
    assert fetch(remote(url), target) == len(CONTENT) - 1000
    check_clean(target)


def test_a_download_is_cancelled_while_the_server_is_silent(
    server: web.Script, tmp_path: Path
) -> None:
    url = server.add("data.bin", CONTENT, web.serve(stall_after=1000))
    told: list[int] = []

    def on_progress(done: int, total: int | None) -> None:
        told.append(done)
        if told.count(1000) == 4:  # once when the bytes arrived, and then while none arrive
            raise Cancelled

    with pytest.raises(Cancelled):
        fetching.fetch(remote(url), tmp_path / "data.bin", on_progress=on_progress)
    assert len(server.requests) == 1
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:1000]


def test_a_long_message_of_a_server_is_shortened() -> None:
    error = http.client.BadStatusLine("x" * 60000)
    assert len(str(transport._as_try_error(error))) < 300


def test_https_never_leads_to_http() -> None:
    request = urllib.request.Request("https://host/a")
    redirects, body = transport._Redirects(), io.BytesIO()
    with pytest.raises(
        transport.TryError, match=r"redirects to http://host/a; only addresses with https"
    ):
        redirects.redirect_request(request, body, 302, "Found", {}, "http://host/a")
    assert redirects.redirect_request(request, body, 302, "Found", {}, "https://b/a") is not None
    plain = urllib.request.Request("http://host/a")
    assert redirects.redirect_request(plain, body, 302, "Found", {}, "https://b/a") is not None


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_https_requires_a_trusted_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*command, *subject, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with web.running(context) as server:
        stalls = web.serve(stall_after=1000)
        file = remote(server.add("data.bin", CONTENT, *[stalls] * 3))
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(file, tmp_path / "out" / "data.bin")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        fetching.fetch(file, tmp_path / "out" / "data.bin", limits=HASTE)
    check_clean(tmp_path / "out" / "data.bin")
    assert "bytes=1000-" in [request.range for request in server.requests]


def test_redirects_are_followed_with_the_range(server: web.Script, tmp_path: Path) -> None:
    real = server.add("real.bin", CONTENT, web.serve(cut_after=1000))
    url = server.add("data.bin", b"", *[web.status(308, Location=real)] * 2)
    fetch(remote(url), tmp_path / "data.bin")
    check_clean(tmp_path / "data.bin")
    assert server.requests[-1].range == "bytes=1000-"


def test_proxy_of_the_environment_is_used(
    server: web.Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    server.contents["http://data.invalid/data.bin"] = CONTENT
    fetch(remote("http://data.invalid/data.bin"), tmp_path / "data.bin")
    check_clean(tmp_path / "data.bin")


@pytest.mark.parametrize(
    "base",
    [
        *("ftp://host/", "/home/me", "http://", "file:///tmp", ""),
        *("http://[::1", "http://host:port/", "http://host:99999/"),
    ],
)
def test_a_mirror_is_a_web_address(base: str) -> None:
    with pytest.raises(DataError, match=r"^--mirror .*: give an address .* --from-file PATH$"):
        fetching.check_base(base)
    assert fetching.check_base("https://host/folder") == "https://host/folder"


def test_disk_space_is_checked_first(
    server: web.Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    file = remote(server.add("data.bin", CONTENT), size=None)
    with pytest.raises(DataError, match="300,000 bytes are needed and 1,000 are free; free"):
        fetch(file, tmp_path / "data.bin")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_what_fits(server: web.Script, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    file = remote(server.add("data.bin", CONTENT))
    old_limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old_limits[1]))
    try:
        with pytest.raises(DataError, match="File too large; what was fetched is kept: "):
            fetch(file, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limits)
    assert target.with_name("data.bin.part").read_bytes() == CONTENT[:100_000]
    assert fetch(file, target) == len(CONTENT) - 100_000
    check_clean(target)


def test_folder_that_cannot_be_made_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"set FEDCLI_DATA_DIR to a folder for datasets"):
        fetch(remote("http://127.0.0.1:9/"), tmp_path / "file" / "data.bin")


def _in_a_process(file: RemoteFile, target: Path) -> subprocess.Popen[str]:
    code = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from fedcli.datasets.download import fetching
        from fedcli.datasets.download.public import RemoteFile
        fields, target = json.loads(sys.argv[1]), Path(sys.argv[2])
        fields["urls"] = tuple(fields["urls"])
        print("begins", flush=True)
        print(fetching.fetch(RemoteFile(**fields), target), flush=True)
        """
    )
    fields = {name: getattr(file, name) for name in ("name", "folder", "urls", "size", "sha256")}
    fields["max_bytes"] = file.max_bytes
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(fields), str(target)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_after_the_rename_no_other_file_is_left(
    server: web.Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def look(folder: Path) -> None:  # called right after the rename
        seen.append(sorted(each.name for each in folder.iterdir()))

    monkeypatch.setattr(part_file, "sync_folder", look)
    fetch(remote(server.add("data.bin", CONTENT)), tmp_path / "data.bin")
    # If this process ended here, the next process that takes the lock would remove the lock file.
    assert seen == [["data.bin", "data.bin.lock"]]


def test_two_processes_fetch_a_file_once(server: web.Script, tmp_path: Path) -> None:
    slow = web.serve(pause=0.05, block_bytes=20_000)
    file = remote(server.add("data.bin", CONTENT, slow, slow))
    processes = [_in_a_process(file, tmp_path / "data.bin") for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE_SECONDS)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(int(output[1]) for output in outputs) == [0, len(CONTENT)]
    assert len(server.requests) == 1
    check_clean(tmp_path / "data.bin")


def test_a_killed_download_is_resumed(server: web.Script, tmp_path: Path) -> None:
    """Each process gets at most 20,000 bytes, so none can complete the file."""
    file = remote(server.add("data.bin", CONTENT, *[web.serve(stall_after=20_000)] * 20))
    target = tmp_path / "data.bin"
    part = tmp_path / "data.bin.part"

    def kept() -> int:
        return part.stat().st_size if part.exists() else 0

    for seconds in (0.0, 0.05, 0.15, 0.4, None, None):
        wanted = kept() + 1 if seconds is None else 0
        process = _in_a_process(file, target)
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        while kept() < wanted:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(seconds or 0.0)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not target.exists()
    server.behaviours["/data.bin"].clear()
    before = kept()
    assert before > 0
    assert fetch(file, target) == len(CONTENT) - before
    assert target.read_bytes() == CONTENT
    assert [each.name for each in tmp_path.iterdir()] == ["data.bin"]


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=5),
    ranges=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_any_cuts_give_the_same_bytes(
    server: web.Script,
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    ranges: list[bool],
) -> None:
    content = CONTENT[:3000]
    cuts = [
        web.serve(cut_after=size, ignores_range=not has_ranges)
        for size, has_ranges in zip(sizes, ranges, strict=False)
    ]
    url = server.add("data.bin", content, *cuts)
    target = tmp_path_factory.mktemp("any") / "data.bin"
    limits = replace(LIMITS, num_tries=10, pause_seconds=0.0)
    fetching.fetch(remote(url, content=content), target, limits=limits)
    assert target.read_bytes() == content


@pytest.mark.parametrize(
    "slow",
    [web.trickle_head, web.continue_for_ever, web.serve(pause=0.02, block_bytes=10)],
    ids=["head", "continue", "body"],
)
def test_a_very_slow_server_is_given_up(
    server: web.Script, tmp_path: Path, slow: web.Behaviour
) -> None:
    limits = replace(LIMITS, head_seconds=0.5, window_seconds=0.5, window_bytes=20_000)
    url = server.add("data.bin", CONTENT, *[slow] * limits.num_tries)
    with pytest.raises(FetchError, match="too slow: almost nothing arrived in a long time"):
        fetching.fetch(remote(url), tmp_path / "data.bin", limits=limits)


def test_the_bytes_of_a_slow_server_are_kept(server: web.Script, tmp_path: Path) -> None:
    slow = web.serve(pause=0.02, block_bytes=300)
    url = server.add("data.bin", CONTENT, *[slow] * 3)
    limits = replace(LIMITS, num_tries=10, window_seconds=0.5, window_bytes=20_000)
    fetching.fetch(remote(url), tmp_path / "data.bin", limits=limits)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.requests[-1].range is not None


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 99999 23:59:59 GMT",
        "Fri, 31 Dec 0 23:59:59 GMT",
        "Fri, 99 Dec 2030 99:99:99 +999999",
        "1e400",
        "-5",
        "9" * 400,
        "Thu, 01 Jan 1970 00:00:00 -9999999999",
    ],
)
def test_an_invalid_retry_after_is_ignored(server: web.Script, tmp_path: Path, date: str) -> None:
    url = server.add("data.bin", CONTENT, web.status(503, Retry_After=date))
    fetch(remote(url), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
