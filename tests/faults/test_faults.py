"""A sample of the faults of a disk; `.ci/run faults` injects all of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("FEDCLI_FAULT_SECONDS", "20"))

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="preloads a library as Linux does"),
    pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler"),
]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_a_sample_of_faults() -> None:
    done = _run("--seconds", str(SECONDS))
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)  # the counts, shown by pytest -s


def test_calls_of_every_kind_are_seen() -> None:
    """If the library saw no calls, the sample above would inject no fault and pass."""
    done = _run("--list", "--only", "train scaffold")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[0].removeprefix("train scaffold: "))
    assert all(counts[kind] > 1 for kind in ("write", "fsync", "rename", "open", "unlink"))
