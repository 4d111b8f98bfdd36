"""A run that is killed at random moments and resumed has the bytes of an uninterrupted run.

FEDCLI_TEST_KILLS is the number of times that each kind of run is killed. The default is 6. Each
kind is killed at least once after its run has begun. FEDCLI_TEST_SEED determines the moments:

    FEDCLI_TEST_KILLS=100 pytest tests/cli/test_crash.py -s
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fedcli.runs.files import checkpoint, client_records
from fedcli.runs.files import folder as run_dir
from fedcli.runs.files.lines import parse_metrics
from fedcli.runs.trained import export_run

NUM_KILLS = int(os.environ.get("FEDCLI_TEST_KILLS", "6"))

HAS_TENSORBOARD = all(map(find_spec, ("tensorboard", "tensorboardX")))

# Every kind of run keeps state from round to round, and saves a checkpoint after every round, so
# that some kills interrupt the saving.
SHARED = ("--data-option", "clients=30", "--checkpoint-every", "1", "--seed", "7", "-q")
MOMENTUM = ("--client-option", "momentum=0.5", "--server-option", "momentum=0.9")
RUNS: dict[str, tuple[str, ...]] = {
    "momentum": (
        *("--rounds", "30", "--max-examples", "50", "--eval-every", "5", *MOMENTUM),
        *("--sampling", "uniform", "--client-dropout", "0.2", "--client-speeds", "100,10"),
        *("--csv", "--record-clients", "--keep-best", "accuracy", "--keep-checkpoints", "3"),
    ),
    "cnn": (
        *("--model", "lenet5", "--rounds", "20", "--max-examples", "20", "--eval-every", "5"),
        *("--clients", "3", "--client-lr", "0.05", *MOMENTUM),
        *(("--tensorboard",) if HAS_TENSORBOARD else ()),
    ),
    "scaffold": (
        *("--algorithm", "scaffold", "--sampling", "uniform", "--clients", "5"),
        *("--rounds", "30", "--max-examples", "50", "--csv", "--record-clients"),
    ),
}


def contents(run: Path) -> dict[str, Any]:
    """The results of a run without its timings: files as bytes, records as rows."""
    names = ("config.toml", "metrics.jsonl", "metrics.csv", "evaluation.json")
    files = {name: (run / name).read_bytes() for name in names if (run / name).exists()}
    weights = run.with_suffix(".npz")
    export_run(run, weights)
    kept = {file.name: file.read_bytes() for file in run_dir.find_checkpoints(run)}
    records: dict[str, Any] = {}
    if (run / client_records.FILE).exists():
        found = client_records.load(run)
        records = {"clients": found.client_ids, "records": found.rows.tobytes()}
    return {
        **files,
        **kept,
        **records,
        "weights": weights.read_bytes(),
        "scalars": scalars(run / run_dir.EVENT_FILES),
    }


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The values that TensorBoard shows of a run: by series and name, then by step."""
    if not folder.exists():
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = {}
        for series in {file.parent for file in folder.rglob("events*")}:
            events = EventAccumulator(str(series)).Reload()
            for name in events.Tags()["scalars"]:
                key = f"{series.relative_to(folder)} {name}"
                found[key] = {each.step: each.value for each in events.Scalars(name)}
    return found


def check_what_a_kill_left(run: Path) -> None:
    """After a kill the folder can be read, and every checkpoint in it is whole.

    A run that exists has a checkpoint, and the line of a round is written before its checkpoint.
    The last line may be cut short: a kill can end its write between two pages of memory.
    """
    file = run / run_dir.METRICS
    content = file.read_bytes()
    whole_lines = content[: content.rfind(b"\n") + 1]
    rounds = [line["round"] for line in parse_metrics(whole_lines, file)]
    first, last = (rounds[0], rounds[-1]) if rounds else (1, 0)
    assert first in (0, 1)
    assert rounds == list(range(first, last + 1))
    saved = [checkpoint.load(file).round_num for file in run_dir.find_checkpoints(run)]
    assert last - 1 <= max(saved) <= last


def check_what_the_end_left(run: Path) -> None:
    """At the end no round or closing evaluation is timed twice, and no temporary file is left."""
    timed = [each.get("round") for each in run_dir.read_timings(run)]
    assert None not in timed[:-1]
    numbers = [number for number in timed if number is not None]
    assert numbers == sorted(set(numbers))
    assert [each for each in run.rglob("*") if each.name.endswith((".tmp", ".journal"))] == []


@pytest.mark.parametrize("kind", RUNS)
def test_killed_runs_end_in_the_bytes_of_the_straight_run(
    tmp_path: Path, command: list[str], process_arguments: dict[str, Any], seed: int, kind: str
) -> None:
    def begin(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "train", *arguments],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **process_arguments,
        )

    started = time.monotonic()
    straight = begin(*SHARED, *RUNS[kind], "--out", "straight")
    _, said = straight.communicate()
    assert (straight.returncode, said) == (0, "")
    seconds = time.monotonic() - started
    wanted = contents(tmp_path / "straight")
    assert bool(wanted["scalars"]) == ("--tensorboard" in RUNS[kind])

    moments = random.Random(f"{seed} {kind}")
    run = tmp_path / "run"
    num_kills, killed_at = 0, []
    num_begun = num_compared = 0  # kills with a run folder; finished runs that were compared
    while num_kills < NUM_KILLS or run.exists() or not num_begun or not num_compared:
        arguments = ("--resume", "run", "-q") if run.exists() else (*SHARED, *RUNS[kind])
        process = begin(*arguments, *(() if run.exists() else ("--out", "run")))
        try:
            if moments.random() < 0.5:  # else a kill may come while it starts or ends
                wait_for_a_round(process, run)
            is_patient = num_kills >= NUM_KILLS and num_begun
            patience = None if is_patient else moments.uniform(0, seconds)
            _, said = process.communicate(timeout=patience)
            assert (process.returncode, said) == (0, "")
            assert contents(run) == wanted
            check_what_the_end_left(run)
            num_compared += 1
            shutil.rmtree(run)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            num_kills += 1
            killed_at.append(describe(run))
            if run.exists():
                num_begun += 1
                check_what_a_kill_left(run)
    print(f"\n{kind}: {num_kills} kills, a straight run takes {seconds:.1f} s")
    print(json.dumps(killed_at))


def wait_for_a_round(process: subprocess.Popen[str], run: Path) -> None:
    """Waits until a process has added a line to metrics.jsonl, or has ended."""

    def num_bytes() -> int:
        return (run / "metrics.jsonl").stat().st_size if run.exists() else 0

    before = num_bytes()
    while process.poll() is None and num_bytes() <= before:
        before = min(before, num_bytes())  # resuming first removes lines after the checkpoint
        time.sleep(0.002)


def describe(run: Path) -> str:
    """Says when a run was killed: before it had a folder, after some rounds, or while it saved."""
    if not run.exists():
        return "before round 0"
    num_lines = (run / "metrics.jsonl").read_bytes().count(b"\n")
    is_saving = any((run / "checkpoints").glob(".*.tmp"))
    return f"{num_lines} lines" + (", saving" if is_saving else "")
