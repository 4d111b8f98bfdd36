"""Files that are pipes, devices, folders, links or huge, in run folders and as data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedcli.cli import main as cli
from tests.kit.command_line import Fedcli
from tests.kit.special_files import KINDS, place

FILES = (
    *("config.toml", "metrics.jsonl", "timings.jsonl", "evaluation.json", "metrics.csv"),
    *("clients.h5", "clients.journal", "client_states.sqlite", "lock"),
    *("checkpoints", "checkpoints/round-000002.h5"),
)
COMMANDS = (
    "report run --csv o.csv --clients-csv c.csv",
    "eval run --clients all",
    "export run w.npz",
    "train --resume run --rounds 3 -q",
    "train --config run/config.toml --out again --force -q",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a file of each kind."""
    folder = tmp_path_factory.mktemp("made") / "run"
    options = "--algorithm scaffold --data-option clients=3 --clients 2 --max-examples 9"
    more = f"--rounds 2 --record-clients --csv -q --out {folder}"
    assert cli.run(["train", *options.split(), *more.split()]) == 0
    return folder


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("kind", [*KINDS, "huge"])
@pytest.mark.parametrize("name", FILES)
def test_a_run_with_a_file_of_another_kind(
    fedcli: Fedcli, made: Path, tmp_path: Path, name: str, kind: str
) -> None:
    for command in COMMANDS:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(made, tmp_path / "run")
        path = tmp_path / "run" / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        place(path, kind)
        before = path.lstat().st_mode
        done = fedcli(*command.split())
        assert done.code in (0, 1), (command, done.err)
        assert "Traceback" not in done.err
        assert done.code == 0 or (done.err.count("\n") == 1 and len(done.err) < 1100), done.err
        is_ours = name in ("evaluation.json", "metrics.csv", "clients.h5") and kind == "huge"
        assert is_ours or path.lstat().st_mode == before, f"{command} replaced it"


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("kind", [*KINDS, "huge"])
def test_data_of_another_kind(fedcli: Fedcli, tmp_path: Path, kind: str) -> None:
    place(tmp_path / "data", kind)
    for command in (
        "inspect-clients --data data",
        "preprocess data --out o.h5",
        *(
            f"preprocess data --out o.h5 --format {each}"
            for each in ("tff-h5", "tff-sqlite", "leaf", "idx", "npz", "csv", "cifar", "store")
        ),
        "preprocess --verify data",
        "train --data data --out r -q",
        "train --clients @data --out r -q",
        "train --config data --out r -q",
        "train --initial-weights data --out r -q",
        "train --model data.keras --out r -q",
        "download mnist --data-dir here --from-file data",
        "report data",
        "eval data",
    ):
        done = fedcli(*command.split())
        assert done.code == 1, (command, done.out, done.err)
        assert (done.err.count("\n"), "Traceback" in done.err) == (1, False), (command, done.err)
