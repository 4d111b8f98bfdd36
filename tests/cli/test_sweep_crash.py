"""A study that is killed at random moments and resumed equals an uninterrupted study.

FEDCLI_TEST_KILLS is the number of times that each kind of study is killed; the default is 4.
FEDCLI_TEST_SEED determines the moments:

    FEDCLI_TEST_KILLS=30 pytest tests/cli/test_sweep_crash.py -s
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

NUM_KILLS = int(os.environ.get("FEDCLI_TEST_KILLS", "4"))

RUN = ("--rounds", "8", "--eval-every", "2", "--validation", "0.2", "--checkpoint-every", "1")
STUDIES: dict[str, tuple[str, ...]] = {
    "grid": (
        *("--grid", "algorithm=fedavg,scaffold", "--grid", "client_lr=0.02,0.1", "--seeds", "2"),
        *("--max-examples", "100"),
    ),
    "halving": ("--grid", "client_lr=0.01,0.03,0.1,0.3", "--seeds", "2", "--halving", "2"),
}


def contents(study: Path) -> dict[str, Any]:
    """The results of a study, without its timings.

    The pages of the database of client states may be in another order. Equal checkpoints and
    metrics of later rounds show that its content is the same.
    """
    without = ("trials.jsonl", "timings.jsonl", "lock", "client_states.sqlite")
    lines = [json.loads(line) for line in (study / "trials.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    files = {
        str(file.relative_to(study)): file.read_bytes()
        for file in sorted(study.rglob("*"))
        if file.is_file() and file.name not in without
    }
    return {"trials": lines, **files}


@pytest.mark.parametrize("kind", STUDIES)
def test_killed_studies_end_in_the_bytes_of_the_straight_one(
    tmp_path: Path, command: list[str], process_arguments: dict[str, Any], seed: int, kind: str
) -> None:
    def begin(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "sweep", *arguments, "-q", "--jobs", "2"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **process_arguments,
        )

    arguments = (*STUDIES[kind], *RUN)
    started = time.monotonic()
    straight = begin(*arguments, "--out", "straight")
    assert (straight.communicate()[1], straight.returncode) == ("", 0)
    seconds = time.monotonic() - started
    wanted = contents(tmp_path / "straight")
    assert len(wanted["trials"]) > 7

    moments = random.Random(f"{seed} {kind}")
    study = tmp_path / "study"
    num_kills = num_begun = num_compared = 0
    while num_kills < NUM_KILLS or study.exists() or not num_begun or not num_compared:
        going_on = study.exists()
        process = begin(*(("--resume", "study") if going_on else (*arguments, "--out", "study")))
        is_patient = num_kills >= NUM_KILLS and num_begun
        try:
            patience = None if is_patient else moments.uniform(0, seconds)
            said = process.communicate(timeout=patience)[1]
            assert (said, process.returncode) == ("", 0)
            assert contents(study) == wanted
            shutil.rmtree(study)
            num_compared += 1
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            num_kills += 1
            num_begun += study.exists()
    print(f"\n{kind}: {num_kills} kills, {num_begun} of a study that stood there")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["straight"]
