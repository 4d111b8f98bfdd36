"""Files that are not regular (pipes, sockets, links), and a large file that is one hole."""

from __future__ import annotations

import os
import socket
from pathlib import Path

KINDS = ("named pipe", "socket", "link to /dev/zero", "folder", "ring of links")


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
