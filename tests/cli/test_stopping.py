"""Signals to a real process: it saves, ends soon with the right code, and can be resumed."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fedcli.cli import main as cli
from tests.kit.command_line import draw_on_terminal
from tests.kit.waiting import PATIENCE_SECONDS

# It takes about a second: long enough to be interrupted, and short enough to be run several times.
LONG_RUN = ("train", "--rounds", "100", "--epochs", "50")
RECORDS = ("--csv", "--record-clients", "--checkpoint-every", "7")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`LONG_RUN` without an interruption. Client records do not change the other files."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert cli.run([*LONG_RUN, *RECORDS, "-q", "--out", str(out)]) == 0
    return out


def wait_until_rounds(run: Path, num_rounds: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= num_rounds):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("signal_num", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_stopped_run_resumes_to_the_same_bytes(
    tmp_path: Path,
    command: list[str],
    process_arguments: dict[str, Any],
    straight: Path,
    signal_num: signal.Signals,
    code: int,
) -> None:
    start = [*command, *LONG_RUN, "-q", "--out", "run"]
    process = subprocess.Popen(start, cwd=tmp_path, stderr=subprocess.PIPE, **process_arguments)
    wait_until_rounds(tmp_path / "run", 2)
    sent = time.monotonic()
    process.send_signal(signal_num)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert time.monotonic() - sent < 5  # 0.05 s on an idle machine
    assert process.returncode == code
    num_done = (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n")
    assert 2 <= num_done < 100
    assert err == (
        f"fedcli: stopped after round {num_done} and saved; fedcli train --resume run continues\n"
    )

    resume = [*command, "train", "--resume", "run", "-q"]
    subprocess.run(resume, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL, **process_arguments)
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (tmp_path / "run" / name).read_bytes() == (straight / name).read_bytes()


def test_a_second_signal_leaves_at_once_without_harm(
    tmp_path: Path, command: list[str], process_arguments: dict[str, Any], straight: Path
) -> None:
    """Both signals arrive while the process is stopped, so it has almost no time to save."""
    start = [*command, *LONG_RUN, *RECORDS, "-q", "--out", "run"]
    process = subprocess.Popen(start, cwd=tmp_path, stderr=subprocess.PIPE, **process_arguments)
    wait_until_rounds(tmp_path / "run", 10)
    for signal_num in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        process.send_signal(signal_num)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, err) == (143, "")

    resume = [*command, "train", "--resume", "run", "-q"]
    subprocess.run(resume, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL, **process_arguments)
    for name in ("metrics.jsonl", "metrics.csv", "evaluation.json"):
        assert (tmp_path / "run" / name).read_bytes() == (straight / name).read_bytes()


def test_two_processes_do_not_train_one_run(
    tmp_path: Path, command: list[str], process_arguments: dict[str, Any]
) -> None:
    """A second process may not resume or replace the run; a lock ends with its process."""

    def second(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            **process_arguments,
        )
        return done.returncode, done.stdout, done.stderr

    arguments = ("train", "--epochs", "1000000", "--rounds", "1", "--out", "run", "-q")
    process = subprocess.Popen([*command, *arguments], cwd=tmp_path, **process_arguments)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (tmp_path / "run").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    refusal = "fedcli: error: the run run is in use by another process; wait for it to end\n"
    for others in (("--resume", "run"), ("--out", "run", "--force")):
        assert second("train", *others) == (1, "", refusal)
    assert second("eval", "run", "-q")[0] == 0  # reading is allowed
    process.kill()
    process.communicate()
    assert second("train", "--out", "run", "--force", "--rounds", "2", "-q")[0] == 0


def test_ctrl_c_stops_within_one_long_round(
    tmp_path: Path, command: list[str], process_arguments: dict[str, Any]
) -> None:
    arguments = ("train", "--epochs", "1000000", "--rounds", "1", "--out", "run", "-q")
    process = subprocess.Popen(
        [*command, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, **process_arguments
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (tmp_path / "run").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.2)  # until it is within a round
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert err.startswith("fedcli: stopped after round 0 and saved; ")


def test_terminal_shows_live_progress_that_does_not_stay(
    tmp_path: Path, command: list[str], process_arguments: dict[str, Any]
) -> None:
    arguments = [*command, *LONG_RUN, "--out", "run"]
    out, text = draw_on_terminal(arguments, cwd=tmp_path, **process_arguments)
    for word in ("/100", "loss 0.", "accuracy 0.", "examples/s", " left"):
        assert word in text
    assert text.endswith("\x1b[2K")  # the line is erased
    assert "\x1b" not in out
    assert "Federated evaluation" in out
