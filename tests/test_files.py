"""Files from untrusted sources: only regular files are read, and a bounded number of bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcli.files import check_regular, make_folders, open_regular, read_bounded
from tests.kit.special_files import KINDS, place


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("kind", [*KINDS, "huge"])
def test_other_kinds_are_told_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    place(path, kind)
    with pytest.raises(OSError, match=r".+") as raised:
        read_bounded(path, 1 << 20)
    assert raised.value.strerror
    if kind != "huge":
        for check in (check_regular, open_regular):
            with pytest.raises(OSError, match=r".+"):
                check(path)


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_bounded(tmp_path / "link", 7) == b"content"
    with pytest.raises(OSError, match="it has 7 bytes, and at most 6 are read"):
        read_bounded(tmp_path / "link", 6)


def test_a_file_that_does_not_say_its_size_is_bounded_too() -> None:
    path = Path("/proc/self/status")
    if not path.exists():
        pytest.skip("no /proc here")
    assert read_bounded(path, 1 << 20).startswith(b"Name:")
    with pytest.raises(OSError, match="at most 10 are read"):
        read_bounded(path, 10)


def test_a_thousand_folders_are_made(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["y"] * 1100)
    make_folders(deep)
    assert deep.is_dir()
    while deep != tmp_path:  # pytest's own removal fails at a depth of a thousand
        deep.rmdir()
        deep = deep.parent
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r".+"):
        make_folders(tmp_path / "file" / "below")
