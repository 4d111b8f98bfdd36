"""Fixtures of all tests that run a command in a folder of its own, in this process or another.

tests/conftest.py loads them, so that a test need not import them.
"""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedcli.cli import main as cli
from tests.kit.waiting import PATIENCE_SECONDS, started

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Fedcli = Callable[..., Outcome]
WriteTff = Callable[..., Path]


@pytest.fixture
def fedcli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Fedcli:
    """Runs `fedcli ARGUMENTS` in tmp_path; stdin, stdout and stderr are no terminals."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def assert_is_one_line(done: Outcome, *words: str) -> None:
    """Asserts that a command failed and printed only one line, which holds these words."""
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("fedcli: error: ")
    for word in words:
        assert word in done.err


@pytest.fixture
def write_tff(tmp_path: Path, seed: int) -> WriteTff:
    """Writes a TFF file of clients a, b, c, ... of 5, 6, 7, ... examples; labels cycle."""

    def write(name: str = "train.h5", num_clients: int = 3, num_classes: int = 10) -> Path:
        rng = np.random.default_rng(seed)
        with h5py.File(tmp_path / name, "w") as file:
            for index in range(num_clients):
                count = 5 + index
                client = file.create_group(f"examples/{chr(ord('a') + index)}")
                client["label"] = (np.arange(count) % num_classes).astype(np.int32)
                pixels = rng.integers(0, 256, (count, 6, 4)) / 255
                client["pixels"] = pixels.astype(np.float32)
        return tmp_path / name

    return write


@pytest.fixture
def process_arguments() -> dict[str, object]:
    """Arguments of subprocess.run with which `sys.executable -m fedcli` finds this package."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}
    return {"env": environment, "text": True}


@pytest.fixture
def command() -> list[str]:
    return [sys.executable, "-m", "fedcli"]


@pytest.fixture
def lock_step_command() -> list[str]:
    """`fedcli` whose work waits until its progress was drawn; see `lock_step`."""
    return [sys.executable, "-m", "tests.kit.lock_step"]


def draw_on_terminal(arguments: list[str], **process_arguments: Any) -> tuple[str, str]:
    """Runs a command whose stderr is a terminal.

    Returns:
        What it wrote to stdout, and what the terminal showed.
    """
    process_arguments["env"] = {**process_arguments["env"], "TERM": "xterm", "COLUMNS": "100"}
    keyboard, terminal = pty.openpty()
    with started(
        arguments, stdout=subprocess.PIPE, stderr=terminal, **process_arguments
    ) as process:
        os.close(terminal)
        drawn = read_terminal(keyboard)
        os.close(keyboard)
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    return out, drawn.decode()


def read_terminal(descriptor: int, until: bytes | None = None) -> bytes:
    """Reads what processes write to their terminal.

    Args:
        descriptor: The other end of the terminal.
        until: A text after which it returns; None: it returns once no process has the terminal
            open any more.
    """
    read = b""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while until is None or until not in read:
        ready, _, _ = select.select([descriptor], [], [], PATIENCE_SECONDS)
        assert ready, read
        assert time.monotonic() < deadline, read
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:  # no process has the terminal open any more
            chunk = b""
        if not chunk:
            assert until is None, read
            break
        read += chunk
    return read
