"""Measures a Ray cluster of this machine: the overhead of a round, and large populations.

    python tests/bench/bench_cluster.py [rounds] [population] [--clients 10000]

rounds: medians of a round of 32 clients of 20 examples, by threads and by two Ray workers of one
thread, for models of several sizes. population: one round of many clients from a population of a
million, on threads and on two workers, with the driver's peak memory. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = {
    "softmax-regression": ("--model", "softmax-regression"),
    "mlp-2nn": ("--model", "mlp-2nn"),
    "cnn-mcmahan": ("--model", "cnn-mcmahan"),
}
RAY = ("--engine", "ray", "--engine-option", "workers=2", "--engine-option", "threads=1")
ENGINES = {"threads": ("--threads", "2"), "ray": RAY}


def train(folder: Path, name: str, *options: str) -> tuple[list[dict[str, float]], int]:
    """Trains; returns the lines of timings.jsonl, and the peak memory in bytes."""
    command = [sys.executable, "-m", "fedcli", "train", "-q", "--out", name, *options]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    lines = (folder / name / "timings.jsonl").read_text().splitlines()
    rounds = [each for each in map(json.loads, lines) if each.get("round")]
    return rounds, 1024 * used.ru_maxrss


def measure_rounds() -> None:
    """Prints milliseconds a round for each model and engine."""
    print(f"{'model':20} {'threads ms':>12} {'Ray ms':>12} {'difference':>12}")
    options = (
        *("--data-option", "clients=64", "--sampling", "uniform", "--clients", "32"),
        *("--epochs", "1", "--max-examples", "20", "--rounds", "12", "--eval-clients", "2"),
    )
    for title, model in MODELS.items():
        found = []
        with tempfile.TemporaryDirectory() as name:
            for engine, chosen in ENGINES.items():
                rounds, _ = train(Path(name), engine, *options, *model, *chosen)
                parts = [1000 * (each["data"] + each["train"]) for each in rounds[2:]]
                found.append(statistics.median(parts))
        print(f"{title:20} {found[0]:12.1f} {found[1]:12.1f} {found[1] - found[0]:12.1f}")


def measure_population(num_clients: int) -> None:
    """Prints seconds and peak memory of one and of two rounds of a large cohort."""
    print(f"{'engine, rounds':20} {'seconds a round':>16} {'peak of the driver':>20}")
    for engine, chosen in ENGINES.items():
        for num_rounds in (1, 2):
            with tempfile.TemporaryDirectory() as name:
                rounds, peak = train(
                    Path(name),
                    "run",
                    *("--data-option", "clients=1000000", "--sampling", "uniform"),
                    *("--clients", str(num_clients), "--epochs", "1", "--model", "mlp-2nn"),
                    *("--max-examples", "20", "--rounds", str(num_rounds), "--eval-clients", "2"),
                    *chosen,
                )
            seconds = statistics.median(each["data"] + each["train"] for each in rounds)
            title = f"{engine}, {num_rounds}"
            print(f"{title:20} {seconds:16.2f} {peak / 2**20:16.0f} MiB")


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=["rounds", "population", []], default=[])
    parser.add_argument("--clients", type=int, default=10_000)
    given = parser.parse_args()
    parts = given.parts or ["rounds", "population"]
    if "rounds" in parts:
        measure_rounds()
    if "population" in parts:
        measure_population(given.clients)


if __name__ == "__main__":
    main()
