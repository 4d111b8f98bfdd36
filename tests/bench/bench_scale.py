"""Measures many runs: a sweep beside a shell loop, and the report of a thousand runs.

    python tests/bench/bench_scale.py [sweep] [report] [--runs 200] [--turns 2]

sweep: the same short runs (the tutorial job, ten rounds) as one `fedcli sweep` and as a loop of
`fedcli train`, one after another, in turns. Printed are runs a minute and CPU seconds a run.
report: `fedcli report` of 1,000 runs of 100 rounds, copies of one with other options: as a study,
as a folder of runs, and as that grouped. Nothing is asserted: machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NUM_REPORTED = 1000
SEEDS = 10


def fedcli(folder: Path, *arguments: str) -> tuple[float, float]:
    """Runs a command in a folder; returns its seconds, and those of its processors."""
    command = [sys.executable, "-m", "fedcli", *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime


def measure_sweep(num_runs: int, turns: int) -> None:
    """Prints the throughput of both ways, and the median ratio of the turns."""
    rates = [f"0.0{number}" for number in range(1, max(2, num_runs // SEEDS) + 1)]
    num_runs = len(rates) * SEEDS
    found: dict[str, list[tuple[float, float]]] = {"shell loop": [], "sweep": []}
    for turn in range(turns):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            grid = ("--grid", f"client_lr={','.join(rates)}", "--seeds", str(SEEDS))
            found["sweep"].append(fedcli(folder, "sweep", *grid, "--out", "study", "-q"))
            loop = [
                fedcli(
                    folder,
                    *("train", "--client-lr", rate, "--seed", str(seed), "-q"),
                    *("--out", f"runs/{rate}-{seed}"),
                )
                for rate in rates
                for seed in range(SEEDS)
            ]
            found["shell loop"].append((sum(each[0] for each in loop), sum(e[1] for e in loop)))
        print(f"turn {turn + 1} of {turns} done", file=sys.stderr)
    print(f"{num_runs} runs of ten rounds   runs a minute   CPU seconds a run")
    for way, rows in found.items():
        seconds, processors = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{way:24} {60 * num_runs / seconds:16.0f} {processors / num_runs:19.3f}")
    pairs = zip(found["shell loop"], found["sweep"], strict=True)
    ratio = statistics.median(loop[0] / sweep[0] for loop, sweep in pairs)
    print(f"the sweep is {ratio:.2f} times as fast (median of {turns} turns)")


def make_runs(folder: Path) -> None:
    """Makes the folders of 1,000 runs: 100 rates with 10 seeds."""
    fedcli(folder, "train", "--rounds", "100", "--eval-every", "10", "--out", "first", "-q")
    config = (folder / "first/config.toml").read_text()
    for number in range(NUM_REPORTED):
        run = folder / "runs" / f"{number:04}"
        ignored = shutil.ignore_patterns("*.h5")
        shutil.copytree(folder / "first", run, ignore=ignored)
        rate, seed = divmod(number, SEEDS)
        text = config.replace("client_lr = 0.02", f"client_lr = {(rate + 1) / 1000}")
        (run / "config.toml").write_text(text.replace("\nseed = 0\n", f"\nseed = {seed}\n"))
    make_study(folder)


def make_study(folder: Path) -> None:
    """Makes a study of these runs: its file, and a line for each."""
    (folder / "study/runs").mkdir(parents=True)
    fedcli(folder, "sweep", "--rounds", "2", "--select-on", "test", "--out", "small", "-q")
    line = json.loads((folder / "small/trials.jsonl").read_text())
    rates = [(number + 1) / 1000 for number in range(NUM_REPORTED // SEEDS)]
    lines = [
        {**line, "point": place + 1, "options": {"client_lr": rate}, "seed": seed}
        for place, rate in enumerate(rates)
        for seed in range(SEEDS)
    ]
    text = (json.dumps({**each, "number": number}) for number, each in enumerate(lines, 1))
    (folder / "study/trials.jsonl").write_text("\n".join(text) + "\n")
    grid = f'seeds = {SEEDS}\n[grid]\nclient_lr = {rates}\n[select]\non = "test"\n'
    (folder / "study/study.toml").write_text(grid)


def measure_report(turns: int) -> None:
    """Prints the seconds of reports of 1,000 runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_runs(folder)
        for title, arguments in {
            "study": ("report", "study"),
            "folder of runs": ("report", "runs"),
            "grouped, by --by": ("report", "runs", "--by", "client_lr"),
            "grouped, rounds to a target": (
                *("report", "runs", "--by", "client_lr", "--columns", "test.accuracy,rounds@0.8"),
            ),
        }.items():
            rows = [fedcli(folder, *arguments) for _ in range(turns)]
            seconds, processors = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"{title:28} {seconds:6.2f} s, {processors:6.2f} CPU s")


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=["sweep", "report", []], default=[])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    parts = given.parts or ["sweep", "report"]
    if "sweep" in parts:
        measure_sweep(given.runs, given.turns)
    if "report" in parts:
        measure_report(given.turns)


if __name__ == "__main__":
    main()
