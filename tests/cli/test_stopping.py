"""Signals to a real process: it saves, ends soon with the right code, and can be resumed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedcli.cli import main as cli
from tests.kit.command_line import draw_on_terminal
from tests.kit.waiting import ENDLESS, PATIENCE_SECONDS, started, wait_until

TRAIN = ("train", "--epochs", "50", "-q", "--out")
RECORDS = ("--csv", "--record-clients", "--checkpoint-every", "7")
# A round without an end. Without -q, a line about the run shows that its training begins.
LONG_ROUND = ("train", "--epochs", str(ENDLESS), "--rounds", "1", "--out", "run")


def num_lines(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def check_that_it_resumes_to_the_same_bytes(
    run: Path, command: list[str], process_arguments: dict[str, Any], *names: str
) -> None:
    """Continues an endless run for five rounds, and compares files with those of a straight run.

    Client records do not change the other files.
    """
    rounds = ("--rounds", str(num_lines(run) + 5))
    resume = [*command, "train", "--resume", "run", *rounds, "-q"]
    subprocess.run(
        resume, cwd=run.parent, check=True, stdout=subprocess.DEVNULL, **process_arguments
    )
    straight = run.with_name("straight")
    assert cli.run([*TRAIN, str(straight), *RECORDS, *rounds]) == 0
    for name in names:
        assert (run / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.parametrize(
    ("signal_num", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_stopped_run_resumes_to_the_same_bytes(
    tmp_path: Path,
    command: list[str],
    process_arguments: dict[str, Any],
    signal_num: signal.Signals,
    code: int,
) -> None:
    start = [*command, *TRAIN, "run", "--rounds", str(ENDLESS)]
    run = tmp_path / "run"
    with started(start, cwd=tmp_path, stderr=subprocess.PIPE, **process_arguments) as process:
        wait_until(lambda: num_lines(run) >= 2, process)
        process.send_signal(signal_num)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code
    num_done = num_lines(run)
    assert num_done >= 2
    assert err == (
        f"fedcli: stopped after round {num_done} and saved; fedcli train --resume run continues\n"
    )
    names = ("metrics.jsonl", "evaluation.json")
    check_that_it_resumes_to_the_same_bytes(run, command, process_arguments, *names)


def test_a_second_signal_leaves_at_once_without_harm(
    tmp_path: Path, command: list[str], process_arguments: dict[str, Any]
) -> None:
    """Both signals arrive while the process is stopped, so it has almost no time to save."""
    start = [*command, *TRAIN, "run", *RECORDS, "--rounds", str(ENDLESS)]
    run = tmp_path / "run"
    for _ in range(20):
        with started(start, cwd=tmp_path, stderr=subprocess.PIPE, **process_arguments) as process:
            wait_until(lambda: num_lines(run) >= 10, process)
            for signal_num in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
                process.send_signal(signal_num)
            _, err = process.communicate(timeout=PATIENCE_SECONDS)
        if (process.returncode, err) == (143, ""):
            break
        # Two threads took the signals: SIGTERM came first, or the second signal came too late.
        assert process.returncode in {130, 143}
        shutil.rmtree(run)
    assert (process.returncode, err) == (143, "")
    names = ("metrics.jsonl", "metrics.csv", "evaluation.json")
    check_that_it_resumes_to_the_same_bytes(run, command, process_arguments, *names)


def wait_for_training(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("fedcli: run run: 1 round, "):
            return
    raise AssertionError("it ended before its training")


def processor_seconds(process: subprocess.Popen[str]) -> float:
    _, _, fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def wait_for_long_round(process: subprocess.Popen[str]) -> None:
    """Waits until the process computes: after its first line, only the round takes so much time."""
    wait_for_training(process)
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc that tells what another process uses")
    enough = processor_seconds(process) + 0.5
    wait_until(lambda: processor_seconds(process) >= enough, process)


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

    start = [*command, *LONG_ROUND]
    with started(start, cwd=tmp_path, stderr=subprocess.PIPE, **process_arguments) as process:
        wait_for_training(process)
        refusal = "fedcli: error: the run run is in use by another process; wait for it to end\n"
        for others in (("--resume", "run"), ("--out", "run", "--force")):
            assert second("train", *others) == (1, "", refusal)
        assert second("eval", "run", "-q")[0] == 0  # reading is allowed
    assert second("train", "--out", "run", "--force", "--rounds", "2", "-q")[0] == 0


def test_ctrl_c_stops_within_one_long_round(
    tmp_path: Path, command: list[str], process_arguments: dict[str, Any]
) -> None:
    start = [*command, *LONG_ROUND]
    with started(start, cwd=tmp_path, stderr=subprocess.PIPE, **process_arguments) as process:
        wait_for_long_round(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("fedcli: stopped before the first round and saved; ")


def test_terminal_shows_live_progress_that_does_not_stay(
    tmp_path: Path, lock_step_command: list[str], process_arguments: dict[str, Any]
) -> None:
    arguments = [*lock_step_command, "train", "--rounds", "3", "--out", "run"]
    out, text = draw_on_terminal(arguments, cwd=tmp_path, **process_arguments)
    for word in ("/3", "loss 2.", "accuracy 0.", "examples/s", " left"):
        assert word in text
    assert text.endswith("\x1b[2K")  # the line is erased
    assert "\x1b" not in out
    assert "Federated evaluation" in out
