"""Measures robust rules on deltas in a mapped file, beside NumPy, Flower and byzfl.

    python tests/bench/bench_aggregators.py [--clients 10,50,100,200]
        [--params 7850,199210,1663370] [--rules median,krum] [--threads 2] [--repeats 3]
        [--peer-gigabytes 0.4]

For each rule one call of an aggregator is timed. It reads the rows of a mapped temporary file (in
the page cache) and computes the mean delta. The rule takes turns with the installed peers: plain
NumPy code, Flower's functions (flwr.server.strategy.aggregate) and byzfl's classes. Peers get the
deltas in memory, as they require. Medians are printed. Nothing is asserted, because machines are
shared and noisy.

`reads` is the time of a rule divided by the time of reading the deltas once. Reading means that the
norms of all rows are computed on the same threads. `fastest` is the time of the fastest peer
divided by the time of fedcli. `grown` is the growth of the process's anonymous memory, in MB,
during the calls of fedcli; the mapped file does not count.
Peers are left out if the deltas have more bytes than --peer-gigabytes.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.learning import aggregators
from fedcli.learning.aggregators.contract import first_state
from fedcli.learning.engines.deltas import DeltaFile, Deltas, RoundContext

Matrix = NDArray[np.float32]
Peer = Callable[[], Any]
RULES: dict[str, dict[str, Any]] = {
    "median": {},
    "trimmed-mean": {"trim": 0.2},
    "meamed": {"num_byzantine": 0.1},
    "sign-majority": {},
    "krum": {"num_byzantine": 0.1},
    "multi-krum": {"num_byzantine": 0.1},
    "bulyan": {"num_byzantine": 0.1},
    "mda": {"num_byzantine": 2},
    "geometric-median": {},
    "centered-clipping": {"radius": 1.0},
    "dnc": {"num_byzantine": 0.1},
}


def cohort(num_clients: int, num_params: int, num_threads: int) -> Deltas:
    """Deltas that differ a little from each other, in a mapped file."""
    random = np.random.default_rng(num_clients)
    common = random.standard_normal(num_params, np.float32)
    stats = np.zeros(num_clients, native.STATS)
    stats["weight"], stats["is_finite"] = 1.0, 1
    with DeltaFile(num_params) as file:
        for _ in range(num_clients):
            row = common + np.float32(0.3) * random.standard_normal(num_params, np.float32)
            file.append(row[np.newaxis], np.ones(1), stats[:1])
        rows = file.mapped()
    context = RoundContext(0, 0, tuple(map(str, range(num_clients))), (0,) * num_clients)
    return Deltas(
        np.zeros(num_params),
        float(num_clients),
        stats,
        rows,
        round=context,
        num_threads=num_threads,
        helpers=native.Helpers(),
    )


# ---- Peers ---------------------------------------------------------------------------------------


def _numpy_krum(rows: Matrix, f: int) -> Matrix:
    distances = np.array([np.square(rows - row).sum(axis=1) for row in rows])
    nearest = np.sort(distances, axis=1)[:, 1 : len(rows) - f - 1]
    best: Matrix = rows[nearest.sum(axis=1).argmin()]
    return best


def _numpy_geometric_median(rows: Matrix, steps: int = 4) -> Matrix:
    center = np.median(rows, axis=0)
    for _ in range(steps):
        pulls = 1.0 / np.maximum(1e-6, np.linalg.norm(rows - center, axis=1))
        center = pulls @ rows / pulls.sum()
    return center


def _numpy_trimmed_mean(rows: Matrix, trim: int) -> Matrix:
    mean: Matrix = np.sort(rows, axis=0)[trim : len(rows) - trim].mean(axis=0)
    return mean


def numpy_peers(rows: Matrix) -> Iterator[tuple[str, Peer]]:
    """Yields the name of a rule and plain NumPy code for it."""
    f = len(rows) // 10
    yield "median", lambda: np.median(rows, axis=0)
    yield "trimmed-mean", lambda: _numpy_trimmed_mean(rows, len(rows) // 5)
    yield "krum", lambda: _numpy_krum(rows, f)
    yield "geometric-median", lambda: _numpy_geometric_median(rows)
    yield "sign-majority", lambda: np.sign(np.sign(rows).sum(axis=0))


def flower_peers(rows: Matrix) -> Iterator[tuple[str, Peer]]:
    """Yields the name of a rule and Flower's function; nothing if Flower is not installed."""
    try:
        flower = importlib.import_module("flwr.server.strategy.aggregate")
    except ImportError:
        return
    results = [([row], 1) for row in rows]
    f = len(rows) // 10
    yield "median", lambda: flower.aggregate_median(results)
    yield "trimmed-mean", lambda: flower.aggregate_trimmed_avg(results, 0.2)
    yield "krum", lambda: flower.aggregate_krum(results, f, 0)
    yield "multi-krum", lambda: flower.aggregate_krum(results, f, len(rows) - f)


def byzfl_peers(rows: Matrix) -> Iterator[tuple[str, Peer]]:
    """Yields the name of a rule and byzfl's class; nothing if byzfl is not installed."""
    try:
        byzfl = importlib.import_module("byzfl")
    except ImportError:
        return
    f = len(rows) // 10
    made = {
        "median": byzfl.Median(),
        "trimmed-mean": byzfl.TrMean(f=len(rows) // 5),
        "meamed": byzfl.Meamed(f=f),
        "krum": byzfl.Krum(f=f),
        "multi-krum": byzfl.MultiKrum(f=f),
        "geometric-median": byzfl.GeometricMedian(),
    }
    for name, rule in made.items():
        yield name, functools.partial(rule, rows)


PEERS = {"numpy": numpy_peers, "flower": flower_peers, "byzfl": byzfl_peers}


# ---- Measuring -----------------------------------------------------------------------------------


def seconds_of(call: Callable[[], Any]) -> float:
    """The seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def anonymous_bytes() -> int:
    """The present anonymous memory of the process, without mapped files; 0 if it is not known."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


class Peak:
    """The largest growth of anonymous memory. A thread reads the memory every 2 ms."""

    def __enter__(self) -> Peak:
        """Starts the thread."""
        import threading

        gc.collect()
        self._first = self._most = anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._ended.wait(0.002):
            self._most = max(self._most, anonymous_bytes())

    def __exit__(self, *error: object) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    @property
    def megabytes(self) -> float:
        """The largest growth since the start, in MB."""
        return (self._most - self._first) / 1e6


def measure(name: str, deltas: Deltas, peers: dict[str, Peer], repeats: int) -> None:
    """Measures a rule and its peers alternately, and prints a line."""
    aggregator = aggregators.build(name, RULES[name])
    state = first_state(aggregator, len(deltas.delta_sum))
    assert deltas.rows is not None
    every = np.arange(len(deltas.rows))
    rows = native.MatrixRows(deltas.rows, every, deltas.num_threads, deltas.helpers)
    ours = functools.partial(aggregator.aggregate, state, deltas)
    skipped = ours()[2].get("skipped")
    size = f"{len(every):4d} {len(deltas.delta_sum):10,}  {name:18}"
    if skipped:
        print(f"{size} not possible with so many clients", flush=True)
        return
    with Peak() as peak:
        ours()
    taken: dict[str, list[float]] = {}
    for _ in range(repeats):
        calls: dict[str, Peer] = {"read": rows.distances_to, "ours": ours, **peers}
        for who, call in calls.items():
            taken.setdefault(who, []).append(seconds_of(call))
    medians = {who: statistics.median(each) for who, each in taken.items()}
    others = {who: each for who, each in medians.items() if who not in ("read", "ours")}
    fastest = f"{min(others.values()) / medians['ours']:7.1f}" if others else "      -"
    shown = "  ".join(f"{who} {1e3 * each:,.0f}" for who, each in others.items())
    print(
        f"{size}{1e3 * medians['ours']:9.1f} {medians['ours'] / medians['read']:6.2f} {fastest} "
        f"{peak.megabytes:7.1f}  {shown}",
        flush=True,
    )


def main() -> None:
    """Measures the combinations that the command line requests."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", default="10,50,100,200")
    parser.add_argument("--params", default="7850,199210,1663370")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-gigabytes", type=float, default=0.4)
    given = parser.parse_args()
    print(f"{native.isa_name()}, {given.threads} threads; milliseconds")
    print("   n     params  rule                   ours  reads fastest   grown  peers")
    for num_params in map(int, given.params.split(",")):
        for num_clients in map(int, given.clients.split(",")):
            deltas = cohort(num_clients, num_params, given.threads)
            assert deltas.rows is not None
            peers: dict[str, dict[str, Peer]] = {}
            if deltas.rows.nbytes <= given.peer_gigabytes * 1e9:
                loaded = np.array(deltas.rows)
                for who, made in PEERS.items():
                    for name, call in made(loaded):
                        peers.setdefault(name, {})[who] = call
            for name in given.rules.split(","):
                measure(name, deltas, peers.get(name, {}), given.repeats)


if __name__ == "__main__":
    main()
