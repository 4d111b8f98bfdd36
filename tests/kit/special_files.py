"""Files that are not regular (pipes, sockets, links), and a large file that is one hole.

tests/conftest.py loads the fixture.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

KINDS = ("named pipe", "socket", "link to /dev/zero", "folder", "ring of links")
SECONDS = 300  # less than it takes to read the large file


@pytest.fixture
def alarm() -> Iterator[None]:
    """Fails a test that waits for a pipe or reads the large file, instead of refusing it."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no end within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def place(path: Path, kind: str) -> None:
    """Makes a file of a kind that is refused for files of a run and for data files."""
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            os.chdir(path.parent)
            bound.bind(path.name)
    elif kind == "link to /dev/zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "ring of links":
        path.symlink_to(path.name)
    else:
        path.touch()
        os.truncate(path, 4 << 40)  # one hole of 4 TiB
