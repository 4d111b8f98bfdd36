"""Measures many runs: a sweep against a shell loop, and the report of a thousand runs.

    python tests/bench/bench_scale.py [sweep] [report] [--runs 200] [--loop-runs 40] [--turns 2]

sweep: short runs (the tutorial job, ten rounds), alternately as one `fedcli sweep` and as a loop of
`fedcli train`. Prints runs per minute and CPU seconds per run.
report: `fedcli report` of 1,000 runs of 100 rounds, which are copies of one run with other options.
They are reported as a study, as a folder of runs, and as a folder whose runs are grouped. Nothing
is asserted, because machines are shared and noisy.
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
    """Runs a command in a folder; returns its seconds and its processor seconds."""
    command = [sys.executable, "-m", "fedcli", *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime


def measure_sweep(num_runs: int, num_of_loop: int, turns: int) -> None:
    """Compares a sweep with a shell loop: runs per minute, processor seconds, median ratio.

    Args:
        num_runs: Runs of the sweep; with 0 it is not measured.
        num_of_loop: Runs of the shell loop; with 0 it is not measured.
        turns: How often the sweep and the loop are measured.
    """
    found: dict[str, list[tuple[float, float]]] = {"sweep": [], "shell loop": []}
    for turn in range(turns):
        for way, num, measure in (
            ("sweep", num_runs, sweep_once),
            ("shell loop", num_of_loop, loop_once),
        ):
            if num:
                with tempfile.TemporaryDirectory() as name:
                    seconds, processors = measure(Path(name), num)
                found[way].append((60 * num / seconds, processors / num))
        print(f"turn {turn + 1} of {turns} done", file=sys.stderr)
    print(f"{'runs of ten rounds':24} {'runs a minute':>16} {'CPU seconds a run':>19}")
    for way, rows in found.items():
        if rows:
            rate, processors = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"{way:24} {rate:16.0f} {processors:19.3f}")
    if num_runs and num_of_loop:
        pairs = zip(found["sweep"], found["shell loop"], strict=True)
        ratio = statistics.median(sweep[0] / loop[0] for sweep, loop in pairs)
        print(f"the sweep is {ratio:.2f} times as fast (median of {turns} turns)")


def sweep_once(folder: Path, num_runs: int) -> tuple[float, float]:
    """Runs a study; returns its seconds and its processor seconds."""
    rates = ",".join(f"{number / 1000:g}" for number in range(1, num_runs // SEEDS + 1))
    grid = ("--grid", f"client_lr={rates}", "--seeds", str(SEEDS))
    return fedcli(folder, "sweep", *grid, "--out", "study", "-q")


def loop_once(folder: Path, num_runs: int) -> tuple[float, float]:
    """Trains the same runs one after another; returns their seconds and processor seconds."""
    times = []
    for number in range(num_runs):
        place, seed = divmod(number, SEEDS)
        options = ("--client-lr", f"{(place + 1) / 1000:g}", "--seed", str(seed), "-q")
        times.append(fedcli(folder, "train", *options, "--out", f"runs/{number}"))
    return sum(each[0] for each in times), sum(each[1] for each in times)


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
    """Makes a study of the runs of `make_runs`: study.toml, and a line for each run."""
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
    parser.add_argument(
        "--runs", type=int, default=200, help="Runs of the sweep, a multiple of 10; 0: none."
    )
    parser.add_argument("--loop-runs", type=int, default=40, help="Runs of the loop; 0: none.")
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    parts = given.parts or ["sweep", "report"]
    if "sweep" in parts:
        measure_sweep(given.runs, given.loop_runs, given.turns)
    if "report" in parts:
        measure_report(given.turns)


if __name__ == "__main__":
    main()
