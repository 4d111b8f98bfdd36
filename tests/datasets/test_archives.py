"""Untrusted archives: only the requested members are extracted; nothing else is written."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcli.datasets.download import archives
from fedcli.datasets.download.public import Member
from fedcli.errors import DataError

WANTED = {"a.bin": b"A" * 5000, "folder/b.bin": b"B" * 70}
MEMBERS = tuple(
    Member(name=name, size=len(data), max_bytes=10_000, sha256=hashlib.sha256(data).hexdigest())
    for name, data in WANTED.items()
)
Entry = tuple[str, Any]  # a name, and the content or the header fields to set


def tar_bytes(*entries: Entry, mode: str = "w", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as tar:  # type: ignore[call-overload]
        for name, what in entries:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                for field, value in what.items():
                    setattr(info, field, value)
                tar.addfile(info)
    return buffer.getvalue()


def extract(content: bytes, tmp_path: Path, members: tuple[Member, ...] = MEMBERS) -> Any:
    archive = tmp_path / "given.archive"  # the content decides the format, not the name
    archive.write_bytes(content)
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    return archives.extract(archive, members, folder)


def check_refused(content: bytes, tmp_path: Path, match: str, **options: Any) -> None:
    """Checks that an archive is refused in one line, and that no file is written."""
    with pytest.raises(DataError, match=match) as caught:
        extract(content, tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "given.archive") in str(caught.value)
    left = [each for each in tmp_path.rglob("*") if not each.is_dir()]
    assert left == [tmp_path / "given.archive"]


@pytest.mark.parametrize("pack", [bytes, bz2.compress, gzip.compress])
def test_only_requested_members_are_extracted_from_a_tar(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    odd: list[Entry] = [
        ("../escape", b"x"),
        ("/etc/absolute", b"x"),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "a.bin"}),
        ("device", {"type": tarfile.CHRTYPE}),
        ("./a.bin", b"other"),
        ("other", b"x" * 1000),
    ]
    told: list[tuple[int, int | None]] = []
    archive = tmp_path / "given.archive"
    archive.write_bytes(pack(tar_bytes(*odd[:3], *WANTED.items(), *odd[3:])))
    (tmp_path / "out").mkdir()
    paths = archives.extract(archive, MEMBERS, tmp_path / "out", lambda *each: told.append(each))
    assert {name: path.read_bytes() for name, path in paths.items()} == WANTED
    files = sorted(each for each in tmp_path.rglob("*") if each.is_file())
    assert files == sorted([archive, *(tmp_path / "out" / name for name in WANTED)])
    assert told[-1] == (5070, 5070)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"x" * 5000), bz2.compress(b"x" * 5000), b"x" * 5000, b"PK\3\4" + bytes(600)],
    ids=["gzip", "bzip2", "text", "zip"],
)
def test_other_files_than_tar_are_refused(tmp_path: Path, content: bytes) -> None:
    check_refused(content, tmp_path, "damaged archive")


@pytest.mark.parametrize(
    "header",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "folder/b.bin"},
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.GNUTYPE_SPARSE},
    ],
)
def test_a_requested_member_must_be_a_regular_file(
    tmp_path: Path, header: dict[str, object]
) -> None:
    content = tar_bytes(("folder/b.bin", WANTED["folder/b.bin"]), ("a.bin", header))
    check_refused(content, tmp_path, "(a.bin in it is not a regular file|damaged archive)")


def test_twice_the_same_name_is_refused(tmp_path: Path) -> None:
    content = tar_bytes(*WANTED.items(), ("a.bin", b"A" * 5000))
    check_refused(content, tmp_path, "holds a.bin twice")


@pytest.mark.parametrize("pack", [bytes, bz2.compress, gzip.compress])
def test_a_tar_from_before_posix_is_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """The headers that tar of Unix V7 wrote have no magic word."""
    content = b""
    for name, data in WANTED.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        head = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
        head[257:512] = bytes(255)
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        content += bytes(head) + data + bytes(-len(data) % 512)
    paths = extract(pack(content + bytes(1024)), tmp_path)
    assert {name: path.read_bytes() for name, path in paths.items()} == WANTED


def test_a_missing_member_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    content = tar_bytes(("a.bin", WANTED["a.bin"]), ("c.bin", b""))
    check_refused(content, tmp_path, "has no folder/b.bin in it, but c.bin; fetch")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"A" * 4999, "a.bin in it has 4,999 bytes, expected 5,000"),
        (b"A" * 5001, "a.bin in it has 5,001 bytes, expected 5,000"),
        (b"B" * 5000, "sha256 of a.bin in it is [0-9a-f]{64}, expected [0-9a-f]{64}; "),
    ],
)
def test_size_and_hash_of_a_member_are_checked(tmp_path: Path, data: bytes, match: str) -> None:
    check_refused(tar_bytes(("a.bin", data)), tmp_path, match, members=MEMBERS[:1])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    content = pack(tar_bytes(("bomb", bytes(30_000_000))))
    assert len(content) < 100_000
    bounded = (Member(name="bomb", max_bytes=1_000_000),)
    check_refused(
        content, tmp_path, "bomb in it has .* bytes, expected at most 1,000,000", members=bounded
    )


def test_a_bomb_among_other_members_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_MAX_OTHER_BYTES", 1_000_000)
    content = gzip.compress(tar_bytes(("bomb", bytes(30_000_000)), *WANTED.items()))
    check_refused(content, tmp_path, "unpacks to far more than it should hold")


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_a_header_of_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 3 << 30
    content = info.tobuf() + bytes(4 << 20)
    check_refused(content, tmp_path, "damaged archive .*a header of 3,221,225,472 bytes")


@pytest.mark.parametrize("pack", [bytes, bz2.compress, gzip.compress])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_truncated_archives_are_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes], share: float
) -> None:
    plain = tar_bytes(*((name, bytes(range(256)) * 20) for name in WANTED))
    content = pack(plain)
    members = tuple(Member(name=name, max_bytes=10_000) for name in WANTED)
    end = int(len(content) * share) if pack is not bytes else int(11_000 * share)
    check_refused(content[:end], tmp_path, "(damaged archive|has no)", members=members)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_archives_never_give_wrong_files(tmp_path: Path, data: st.DataObject) -> None:
    tar = tar_bytes(*WANTED.items())
    whole = data.draw(st.sampled_from([tar, bz2.compress(tar), gzip.compress(tar)]))
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path / "out"
    try:
        paths = extract(bytes(content), tmp_path)
    except DataError:
        assert [each for each in folder.rglob("*") if each.is_file()] == []
    else:  # the changed bytes do not affect the content
        assert {name: path.read_bytes() for name, path in paths.items()} == WANTED
        for path in paths.values():
            path.unlink()


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    content = tar_bytes(("a.bin", bytes(300_000)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    archive = tmp_path / "given.archive"
    archive.write_bytes(content)
    (tmp_path / "out").mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"^cannot unpack .*: File too large$"):
            archives.extract(archive, [Member(name="a.bin", max_bytes=10**6)], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "", "a\\b"])
def test_a_catalogue_cannot_request_a_path_outside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="would lie outside the folder"):
        extract(tar_bytes(), tmp_path, (Member(name=name, max_bytes=1),))
