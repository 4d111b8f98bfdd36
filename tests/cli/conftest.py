"""Runs command lines in this process, in an empty folder, and small data for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedcli.cli import main as cli

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
    """Runs `fedcli ARGUMENTS` in tmp_path; nothing is a terminal there."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


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
    """What a subprocess of `sys.executable -m fedcli` needs to find this package."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}
    return {"env": environment, "text": True}


@pytest.fixture
def command() -> list[str]:
    return [sys.executable, "-m", "fedcli"]
