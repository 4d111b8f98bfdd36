"""Measures a Ray cluster of this machine: the overhead of a round, and large populations.

    python tests/bench/bench_cluster.py [rounds] [population] [--engine threads|ray] [--rounds 40]

rounds: a round of 16 clients with one example each, by two threads and by two Ray workers with one
thread each, for models of four sizes. There is almost nothing to compute, so the difference
between threads and workers is the overhead of Ray.
population: rounds of up to 10,000 clients of synthetic-digits, with mlp-2nn, from a population of
up to a million. Prints the seconds per round, and the peaks of anonymous memory (without files and
the object store) of the driver and of the largest worker. On Ray, the sums that the driver holds
take at most (parts in flight + log2 of the cohort size) * 8 bytes per parameter. This bound is
printed, and how much more memory the driver takes for the largest cohort than for the smallest.
Nothing is asserted, because machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fedcli.cluster.ray_workers import MAX_OPEN

WIDE = "wide.py"
WIDE_MODEL = """from fedcli.models import layers, sequential


def build(input_shape, num_classes, seed):
    units = [layers.Dense(4096, "relu"), layers.Dense(1900, "relu"), layers.Dense(num_classes)]
    return sequential([layers.Flatten(), *units], input_shape, num_classes, seed)
"""
MODELS = {
    "softmax-regression": 7_850,
    "mlp-2nn": 199_210,
    "cnn-mcmahan": 1_663_370,
    WIDE: 11_018_670,
}
NUM_WORKERS = 2
RAY = ("--engine", "ray", "--engine-option", f"workers={NUM_WORKERS}")
ENGINES = {
    "threads": ("--threads", str(NUM_WORKERS)),
    "ray": (*RAY, "--engine-option", "threads=1"),
}
COMMON = ("--sampling", "uniform", "--epochs", "1", "--eval-clients", "2")
EXAMPLES = 20  # of each client of a large cohort
SAMPLE_SECONDS = 0.02


class Trained(NamedTuple):
    """A finished run: the seconds of each round, and the peaks of anonymous memory in bytes."""

    seconds: list[float]
    driver: int
    worker: int


class Job(NamedTuple):
    """A large job."""

    population: int
    cohort: int
    rounds: int


JOBS = (
    Job(1_000_000, 16, 1),
    Job(1_000_000, 5_000, 1),
    Job(1_000_000, 10_000, 1),
    Job(1_000_000, 10_000, 3),
    Job(100_000, 10_000, 1),
)


def train(folder: Path, options: Iterable[str], *, is_watched: bool = False) -> Trained:
    """Trains in a folder; if `is_watched`, measures the memory of all processes of the run."""
    command = [sys.executable, "-m", "fedcli", "train", "-q", "--out", "run", *options]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    driver = worker = 0
    while process.poll() is None:
        if is_watched:
            driver = max(driver, anonymous_bytes(process.pid))
            workers = (each for each in descendants(process.pid) if is_worker(each))
            worker = max([worker, *map(anonymous_bytes, workers)])
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    lines = (folder / "run" / "timings.jsonl").read_text().splitlines()
    rounds = [each for each in map(json.loads, lines) if each.get("round")]
    return Trained([each["data"] + each["train"] for each in rounds], driver, worker)


def anonymous_bytes(process: int) -> int:
    """The anonymous memory of a process now; 0 if it has ended."""
    for line in read(process, "status").splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


def descendants(process: int) -> Iterator[int]:
    """The children of a process, their children, ..."""
    for thread in Path(f"/proc/{process}/task").glob("*"):
        for child in read(process, f"task/{thread.name}/children").split():
            yield int(child)
            yield from descendants(int(child))


def is_worker(process: int) -> bool:
    """Whether a process is a worker of fedcli."""
    return read(process, "cmdline").startswith("ray::Actor")


def read(process: int, name: str) -> str:
    """Returns a file of /proc about a process; empty if the process has ended."""
    try:
        return Path(f"/proc/{process}", name).read_text(errors="replace")
    except OSError:
        return ""


def measure_rounds(engines: Sequence[str], num_rounds: int) -> None:
    """Prints the milliseconds per round for each model and engine."""
    print(f"{'parameters':>12} {'engine':8} {'least ms':>10} {'median ms':>10}")
    options = ("--data-option", "clients=64", "--clients", "16", "--max-examples", "1")
    for model, num_params in MODELS.items():
        least = {}
        for engine in engines:
            with tempfile.TemporaryDirectory() as name:
                (Path(name) / WIDE).write_text(WIDE_MODEL)
                rounds = ("--rounds", str(num_rounds), "--model", model)
                trained = train(Path(name), (*COMMON, *options, *rounds, *ENGINES[engine]))
            ms = [1000 * each for each in trained.seconds[2:]]
            least[engine] = min(ms), statistics.median(ms)
            figures = f"{least[engine][0]:10.1f} {least[engine][1]:10.1f}"
            print(f"{num_params:12,} {engine:8} {figures}", flush=True)
        if len(least) == len(ENGINES):
            pairs = zip(least["ray"], least["threads"], strict=True)
            costs = [far - near for far, near in pairs]
            print(f"{'':12} {'costs':8} {costs[0]:10.1f} {costs[1]:10.1f}", flush=True)


def measure_population(engines: Sequence[str]) -> None:
    """Prints seconds and peaks of memory of large populations and cohorts."""
    print(
        f"{'engine':8} {'population':>11} {'cohort':>7} {'rounds':>7} {'seconds a round':>16} "
        f"{'us an example':>14} {'driver MiB':>11} {'worker MiB':>11}"
    )
    for engine in engines:
        drivers: dict[int, int] = {}
        for job in JOBS:
            with tempfile.TemporaryDirectory() as name:
                found = train(Path(name), (*options_of(job), *ENGINES[engine]), is_watched=True)
            seconds = statistics.median(found.seconds)
            drivers[job.cohort] = max(found.driver, drivers.get(job.cohort, 0))
            print(
                f"{engine:8} {job.population:11,} {job.cohort:7,} {job.rounds:7} {seconds:16.2f} "
                f"{1e6 * seconds / (job.cohort * EXAMPLES):14.1f} "
                f"{found.driver / 2**20:11.1f} {found.worker / 2**20:11.1f}",
                flush=True,
            )
        growth = drivers[max(drivers)] - drivers[min(drivers)]
        print(f"{engine}: the largest cohort takes {growth / 2**20:.1f} MiB more than the smallest")
    bound = (MAX_OPEN * NUM_WORKERS + math.log2(JOBS[-1].cohort)) * 8 * MODELS["mlp-2nn"]
    print(f"(parts in flight + log2 cohort) * 8P is {bound / 2**20:.1f} MiB")


def options_of(job: Job) -> tuple[str, ...]:
    """The options of a large job."""
    return (
        *COMMON,
        *("--data-option", f"clients={job.population}", "--clients", str(job.cohort)),
        *("--rounds", str(job.rounds), "--model", "mlp-2nn", "--max-examples", str(EXAMPLES)),
    )


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=["rounds", "population", []], default=[])
    parser.add_argument("--engine", choices=list(ENGINES), help="Measure only this engine.")
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    parts = given.parts or ["rounds", "population"]
    engines = [given.engine] if given.engine else list(ENGINES)
    if "rounds" in parts:
        measure_rounds(engines, given.rounds)
    if "population" in parts:
        measure_population(engines)


if __name__ == "__main__":
    main()
