"""How the process of a command ends: what it writes, its exit code, and what it skips."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, threading
from fedcli.cli.jobs.ending import end_process

class Object:
    def __del__(self):
        sys.stdout.write("destroyed ")

kept = Object()
atexit.register(sys.stdout.write, "registered ")
sys.stdout.write("written ")
{before}
end_process(7)
"""


@pytest.mark.parametrize(
    ("before", "out"),
    [
        ("", "written registered "),
        ("import fedcli.settings.own.user_code", "written registered destroyed "),
        (
            "threading.Timer(0.1, sys.stdout.write, ['thread ']).start()",
            "written thread registered destroyed ",
        ),
    ],
    ids=["plain", "code of a user", "a thread"],
)
def test_nothing_written_is_lost(before: str, out: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, out, "")
