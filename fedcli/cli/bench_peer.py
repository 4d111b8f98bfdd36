"""The process of another program in `fedcli bench`: repeats one task on request, and times it.

    python -m fedcli.cli.bench_peer NAME THREADS TASK

A line on stdin is a number of calls; the answer on stdout is the seconds that they took.
"""

from __future__ import annotations

import importlib
import sys
import time


def main() -> None:
    """Prints that it is ready, then answers until stdin ends."""
    name, num_threads, text = sys.argv[1:]
    importlib.import_module(name)  # before fedcli's C core, which changes a setting of OpenMP
    peer = importlib.import_module(f"fedcli.benchmarks.{name}_peer")
    from fedcli.benchmarks import peers, tasks

    work = peer.prepare(tasks.from_json(text), int(num_threads))
    print(peers.READY, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            work()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
