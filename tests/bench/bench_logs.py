"""Measures the time and size of a run's additional records.

    python tests/bench/bench_logs.py TRAIN.h5 TEST.h5 [--rounds 2000] [--repeats 5]

The tutorial job runs in a process of its own, alternately with each set of records: none, --csv and
--record-clients, --tensorboard. Prints medians: the time of the whole process, its processor time,
and the size of the folder. The time is also compared, as a ratio and a difference, with the time
without records in the same turn. Nothing is asserted, because machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS: dict[str, tuple[str, ...]] = {
    "metrics.jsonl and timings.jsonl alone": (),
    "and --csv --record-clients": ("--csv", "--record-clients"),
    "and --tensorboard": ("--tensorboard",),
}


def train(job: list[str], out: Path, more: tuple[str, ...]) -> tuple[float, float, float]:
    """Returns the seconds of one process, its processor seconds, and the MB of its folder."""
    command = [sys.executable, "-m", "fedcli", "train", *job, "-q", "--out", str(out), *more]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    num_bytes = sum(each.stat().st_size for each in out.rglob("*") if each.is_file())
    return seconds, used.ru_utime + used.ru_stime, num_bytes / 1e6


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    job = ["--data", str(given.train), "--test-data", str(given.test)]
    job += ["--rounds", str(given.rounds)]
    job += [] if given.threads is None else ["--threads", str(given.threads)]
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in KINDS}
    for repeat in range(given.repeats):
        for name, more in KINDS.items():
            with tempfile.TemporaryDirectory() as folder:
                taken[name].append(train(job, Path(folder) / "run", more))
        print(f"{repeat + 1} of {given.repeats} done", file=sys.stderr)
    plain = next(iter(taken.values()))
    print(f"{'':40} {'seconds':>8} {'ratio':>6} {'ms a round more':>16} {'CPU s':>7} {'MB':>6}")
    for name, rows in taken.items():
        seconds, processors, size = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        pairs = [(mine[0], base[0]) for mine, base in zip(rows, plain, strict=True)]
        ratio = statistics.median(mine / base for mine, base in pairs)
        more_ms = statistics.median(mine - base for mine, base in pairs) / given.rounds * 1e3
        print(
            f"{name:40} {seconds:8.2f} {ratio:6.2f} {more_ms:16.3f} {processors:7.2f} {size:6.2f}"
        )


if __name__ == "__main__":
    main()
