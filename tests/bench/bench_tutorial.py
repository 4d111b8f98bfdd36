"""Measures the main job: speed against a NumPy loop and the arithmetic peak, scaling, memory.

    python tests/bench/bench_tutorial.py [--data TRAIN.h5] [--quick]

Everything that is compared is measured in turn in this one run, medians and ratios are printed,
and nothing is asserted: machines are shared and noisy. `fedcli` must be installed beside the Python
that runs this.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import fedcli.datasets.store as store_format
from fedcli import backend, datasets
from fedcli.backend import ThreadEngine
from fedcli.batches import BatchedDataset, ClientDataset
from fedcli.config import from_options
from fedcli.models import softmax_regression
from fedcli.rounds import start

FEDCLI = str(Path(sys.executable).with_name("fedcli"))
MODEL = softmax_regression()
SGD_ROWS = [(0, (0.02, 0.0, 0.0))]
# Multiply-adds of one example, forward and update, as floating-point operations.
OPERATIONS_AN_EXAMPLE = 784 * 10 * 2 * 2


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each work, all of them run in turn."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in taken.items()}


def off_main(work: Callable[[], None]) -> None:
    """Runs work as `fedcli train` does: off the main thread, so that no call changes threads."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def cohort(data: str, num_clients: int) -> list[BatchedDataset]:
    """The tutorial's batches of a dataset's first clients."""
    train, _ = datasets.load(data)
    return [train.client(c).preprocess(5, 100, 20) for c in train.client_ids[:num_clients]]


def train_once(engine: ThreadEngine, clients: Iterable[BatchedDataset], round_num: int = 0) -> None:
    """The core's call of a round: training and weighted sum."""
    engine.train_cohort(
        MODEL.layout,
        SGD_ROWS,
        MODEL.initial_params,
        clients,
        round_num=round_num,
        weighting="num-examples",
    )


# ---- The step kernel against the arithmetic peak ------------------------------------------------


def step_kernel() -> None:
    """One thread, float pixels, no shuffle: nothing but local steps."""
    rng = np.random.default_rng(1)
    raw = np.zeros(96 * 784 * 4 + 64, np.uint8)
    start_at = -raw.ctypes.data % 64
    pixels = raw[start_at : start_at + 96 * 784 * 4].view(np.float32).reshape(96, 28, 28)
    pixels[:] = rng.random((96, 28, 28), dtype=np.float32)
    labels = rng.integers(0, 10, 96).astype(np.int32)
    client = ClientDataset("c", pixels, labels, 1.0, 0.0, "bench").preprocess(500, 1, 20)
    engine = ThreadEngine(1)
    shares, peaks = [], []

    def work() -> None:
        for _ in range(25):
            started = time.perf_counter()
            operations = backend.fma_peak_run(200_000)
            peak = operations / (time.perf_counter() - started)
            taken = seconds(lambda: train_once(engine, [client]))
            peaks.append(peak)
            shares.append(96 * 500 * OPERATIONS_AN_EXAMPLE / taken / peak)

    off_main(work)
    share, peak = statistics.median(shares), statistics.median(peaks)
    print(f"step kernel: {share:.1%} of the FMA peak of {peak / 1e9:.0f} GFLOP/s, one thread")


# ---- A round against a NumPy loop -----------------------------------------------------------------


def numpy_round(clients: list[tuple[NDArray[np.float32], NDArray[np.int32]]]) -> NDArray[np.float32]:
    """One round of the tutorial job as a plain float32 NumPy loop, pixels already decoded."""
    weights = np.zeros((784, 10), np.float32)
    total, num_total = np.zeros((785, 10), np.float32), 0
    for x, y in clients:
        w, b = weights.copy(), np.zeros(10, np.float32)
        order = np.tile(np.arange(len(y)), 5)
        np.random.default_rng(0).shuffle(order)
        for first in range(0, len(order), 20):
            rows = order[first : first + 20]
            batch, labels = x[rows], y[rows]
            z = batch @ w + b
            z -= z.max(axis=1, keepdims=True)
            p = np.exp(z)
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(rows)), labels] -= 1
            p *= np.float32(0.02 / len(rows))
            w -= batch.T @ p
            b -= p.sum(axis=0)
        total[:784] += (w - weights) * len(order)
        total[784] += b * len(order)
        num_total += len(order)
    return total / np.float32(num_total)


def train_command(data: str, num_rounds: int, threads: int, out: str) -> None:
    """`fedcli train` as a process of its own."""
    command = [FEDCLI, "train", "--data", data, "--rounds", str(num_rounds)]
    command += ["--threads", str(threads), "--out", out, "--force", "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rounds_against_numpy(data: str, repeats: int) -> None:
    """A round of `fedcli train`, everything included: a long run less a short one, by rounds."""
    decoded = [
        (c.client.images().reshape(len(c.client), -1), c.client.labels) for c in cohort(data, 10)
    ]
    short, long = 10, 1010
    with tempfile.TemporaryDirectory() as tmp:
        works: dict[str, Callable[[], object]] = {"numpy": lambda: numpy_round(decoded)}
        for threads in (1, 2):
            for rounds in (short, long):
                out = str(Path(tmp, f"{threads}-{rounds}"))
                works[f"{threads}/{rounds}"] = (
                    lambda r=rounds, t=threads, o=out: train_command(data, r, t, o)
                )
        taken = in_turn(works, repeats)
    print(f"tutorial round: NumPy loop {taken['numpy'] * 1e3:.2f} ms")
    for threads in (1, 2):
        one = (taken[f"{threads}/{long}"] - taken[f"{threads}/{short}"]) / (long - short)
        print(
            f"  fedcli train, {threads} thread(s): {one * 1e3:.3f} ms a round, "
            f"{taken['numpy'] / one:.1f} x faster"
        )


def whole_process(data: str, test_data: str | None, repeats: int) -> None:
    """Ten rounds from start to exit, beside the imports alone."""
    imports = [sys.executable, "-c", "import numpy, h5py, click, rich.live"]
    with tempfile.TemporaryDirectory() as tmp:
        command = [FEDCLI, "train", "--data", data, "--out", str(Path(tmp, "run")), "--force"]
        command += ["--test-data", test_data] if test_data else []
        taken = in_turn(
            {
                "train": lambda: subprocess.run(command, check=True, capture_output=True),
                "imports": lambda: subprocess.run(imports, check=True),
            },
            repeats,
        )
    print(f"whole process, 10 rounds: {taken['train']:.3f} s; imports alone {taken['imports']:.3f} s")


# ---- Threads, size, memory --------------------------------------------------------------------------


def scaling(data: str) -> None:
    """The core's call on one thread over its call on two."""
    for num_clients in (10, 32):
        clients = cohort(data, num_clients)
        one, two = ThreadEngine(1), ThreadEngine(2)
        taken: dict[str, float] = {}

        def work(taken=taken, clients=clients, one=one, two=two) -> None:
            works = {"one": lambda: train_once(one, clients), "two": lambda: train_once(two, clients)}
            taken.update(in_turn(works, 300))

        off_main(work)
        print(
            f"core's call, {num_clients} clients: {taken['one'] * 1e3:.3f} ms on 1 thread, "
            f"{taken['two'] * 1e3:.3f} ms on 2: {taken['one'] / taken['two']:.2f} x"
        )


def full_pass(num_clients: int) -> None:
    """One epoch, and one evaluation, over a store of EMNIST digits' size."""
    train, _ = datasets.load(data_options={"clients": num_clients})
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp, "store.h5")
        info = store_format.StoreInfo(num_classes=10, pixel_convention="background")
        store_format.create(path, {"train": (train.client(c) for c in train.client_ids)}, info)
        opened = [seconds(lambda: datasets.load(str(path))) for _ in range(5)]
        stored, _ = datasets.load(str(path))
        clients = [stored.client(c).preprocess(1, 1, 20) for c in stored.client_ids]
        num_examples = sum(len(c.client) for c in clients)
        for threads in (1, 2):
            engine = ThreadEngine(threads)
            works = {
                "train": lambda e=engine: train_once(e, clients),
                "evaluate": lambda e=engine: e.evaluate(MODEL.layout, MODEL.initial_params, clients),
            }
            taken = in_turn(works, 5)
            print(
                f"full pass, {num_clients} clients, {num_examples} examples, {threads} thread(s): "
                f"training {taken['train']:.3f} s, evaluation {taken['evaluate']:.3f} s"
            )
        print(f"opening that store: {statistics.median(opened) * 1e3:.1f} ms")


def anonymous_kib() -> int:
    """RssAnon of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    raise RuntimeError("no RssAnon in /proc/self/status")


def memory(data: str, sampling: str) -> None:
    """Anonymous memory after round 100 less after round 10."""
    with tempfile.TemporaryDirectory() as tmp:
        config = from_options({"data": data, "sampling": sampling, "clients": "10", "rounds": 100})
        with start(config, Path(tmp, "run")) as training:
            at = {r.round_num: anonymous_kib() for r in training.run() if r.round_num in (10, 100)}
    print(f"RssAnon, {sampling} cohorts: round 10 {at[10]} KiB, round 100 {at[100] - at[10]:+} KiB")


def main() -> None:
    """Runs every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="synthetic-digits")
    parser.add_argument("--test-data")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, a smaller store")
    args = parser.parse_args()
    repeats = 3 if args.quick else 11
    print(f"instruction set {backend.isa_name()}, {backend.resolve_threads()} threads")
    step_kernel()
    rounds_against_numpy(args.data, repeats)
    whole_process(args.data, args.test_data, repeats)
    scaling(args.data)
    full_pass(200 if args.quick else 3383)
    memory(args.data, "fixed")
    memory(args.data, "uniform")


if __name__ == "__main__":
    main()
