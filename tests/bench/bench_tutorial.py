"""Measures the main job: speed against a NumPy loop and the arithmetic peak, scaling, memory.

    python tests/bench/bench_tutorial.py [--data TRAIN.h5 --test-data TEST.h5] [--quick]

Programs that are compared take turns in one run; medians and ratios are printed. Nothing is
asserted, because machines are shared and noisy. `fedcli` must be installed for this Python.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import fedcli.datasets.sources.store as store_format
import fedcli.datasets.sources.store_writer as store_writer
from fedcli import datasets
from fedcli.core import native
from fedcli.datasets.batches import BatchedDataset, ClientDataset
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.zoo import softmax_regression
from fedcli.runs.starting import start
from fedcli.settings.rules import from_options

FEDCLI = str(Path(sys.executable).with_name("fedcli"))
MODEL = softmax_regression()
SGD_ROWS = ((0, (0.02, 0.0, 0.0)),)
# Forward pass and update of one example; a multiply-add counts as two operations.
OPERATIONS_AN_EXAMPLE = 784 * 10 * 2 * 2

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(works: Mapping[str, Work], repeats: int, calls: int = 1) -> dict[str, float]:
    """Median seconds of a call of each work. Works take turns, with `calls` calls per turn."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name] += [seconds(work) for _ in range(calls)]
    return {name: statistics.median(values) for name, values in taken.items()}


def off_main(work: Work) -> None:
    """Runs work in another thread than the main one, as `fedcli train` does."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def cohort(data: str, num_clients: int) -> tuple[BatchedDataset, ...]:
    """The tutorial's batches of a dataset's first clients."""
    train, _ = datasets.load(data)
    return tuple(train.client(c).preprocess(5, 100, 20) for c in train.client_ids[:num_clients])


def train_once(engine: ThreadEngine, clients: Sequence[BatchedDataset]) -> None:
    """Calls the core as a round does: training and weighted sum.

    If `clients` is a list, not a tuple, it is prepared for the core in each call.
    """
    task = ClientTask(
        rows=SGD_ROWS, params=MODEL.initial_params, round_num=0, weighting="num-examples"
    )
    engine.train(MODEL.layout, task, clients)


# ---- The step kernel against the arithmetic peak ----


def step_kernel() -> None:
    """Compares local steps with the FMA peak of one thread.

    No pixel is constant; images are decoded once and not shuffled, so only steps take time.
    """
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (96, 28, 28)).astype(np.uint8)
    labels = rng.integers(0, 10, 96).astype(np.int32)
    client = ClientDataset("c", pixels, labels, 1 / 255, 0.0, "bench").preprocess(500, 1, 20)
    engine = ThreadEngine(1)
    shares, peaks = [], []

    def work() -> None:
        for _ in range(25):
            started = time.perf_counter()
            operations = native.fma_peak_run(200_000)
            peaks.append(operations / (time.perf_counter() - started))
            taken = seconds(lambda: train_once(engine, (client,)))
            shares.append(96 * 500 * OPERATIONS_AN_EXAMPLE / taken / peaks[-1])

    off_main(work)
    share, peak = statistics.median(shares), statistics.median(peaks) / 1e9
    print(f"step kernel: {share:.1%} of the FMA peak of {peak:.0f} GFLOP/s, one thread")


# ---- A round against a NumPy loop ----


def numpy_rounds(
    clients: list[tuple[NDArray[np.float32], NDArray[np.int32]]], num_rounds: int
) -> None:
    """Runs the tutorial job as a plain float32 NumPy loop. The pixels are already decoded."""
    weights, bias = np.zeros((784, 10), np.float32), np.zeros(10, np.float32)
    for _ in range(num_rounds):
        numpy_round(clients, weights, bias)


def numpy_round(
    clients: list[tuple[NDArray[np.float32], NDArray[np.int32]]],
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
) -> None:
    """Runs one round; changes weights and bias in place."""
    sum_weights, sum_bias, num_total = np.zeros_like(weights), np.zeros_like(bias), 0
    rng = np.random.default_rng(0)
    for x, y in clients:
        w, b = weights.copy(), bias.copy()
        order = np.tile(np.arange(len(y)), 5)
        rng.shuffle(order)
        for first in range(0, len(order), 20):
            rows = order[first : first + 20]
            batch = x[rows]
            z = batch @ w + b
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(rows)), y[rows]] -= 1
            p *= np.float32(0.02 / len(rows))
            w -= batch.T @ p
            b -= p.sum(axis=0)
        sum_weights += (w - weights) * len(order)
        sum_bias += (b - bias) * len(order)
        num_total += len(order)
    weights += sum_weights / np.float32(num_total)
    bias += sum_bias / np.float32(num_total)


def run_train(data: str, num_rounds: int, threads: int, out: str) -> None:
    """Runs `fedcli train` in a process of its own."""
    command = [FEDCLI, "train", "--data", data, "--rounds", str(num_rounds)]
    command += ["--threads", str(threads), "--out", out, "--force", "--quiet"]
    subprocess.run(command, check=True, capture_output=True)


def rounds_against_numpy(data: str, repeats: int) -> None:
    """Compares the time of a round with a NumPy loop.

    The time of a round of `fedcli train` is the difference between a long run and a short run,
    divided by the difference of their numbers of rounds.
    """
    decoded = [
        (c.client.images().reshape(len(c.client), -1), c.client.labels) for c in cohort(data, 10)
    ]
    short, long = 10, 2010
    works: dict[str, Work] = {"numpy": partial(numpy_rounds, decoded, 10)}
    with tempfile.TemporaryDirectory() as tmp:
        for threads in (1, 2):
            for num_rounds in (short, long):
                name = f"{threads}-{num_rounds}"
                works[name] = partial(run_train, data, num_rounds, threads, str(Path(tmp, name)))
        taken = in_turn(works, repeats)
    loop = taken["numpy"] / 10
    print(f"tutorial round: NumPy loop {loop * 1e3:.2f} ms")
    for threads in (1, 2):
        one = (taken[f"{threads}-{long}"] - taken[f"{threads}-{short}"]) / (long - short)
        print(
            f"  fedcli train, {threads} thread(s): {one * 1e3:.3f} ms a round, {loop / one:.1f} x"
        )


def whole_process(data: str, test_data: str | None, repeats: int) -> None:
    """Times a process that trains ten rounds, and a process that only imports the packages."""
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
    print(f"whole process, 10 rounds: {taken['train']:.3f} s; imports alone {taken['imports']:.3f}")


# ---- Threads, size, memory ----


def _measure_into(taken: dict[str, float], works: Mapping[str, Work]) -> None:
    taken.update(in_turn(works, 5, calls=100))


def scaling(data: str) -> None:
    """Prints the time of the core's call on one thread, divided by its time on two threads."""
    for num_clients in (10, 32):
        clients = cohort(data, num_clients)
        works = {str(n): partial(train_once, ThreadEngine(n), clients) for n in (1, 2)}
        taken: dict[str, float] = {}
        off_main(partial(_measure_into, taken, works))
        print(
            f"core's call, {num_clients} clients: {taken['1'] * 1e3:.3f} ms on 1 thread, "
            f"{taken['2'] * 1e3:.3f} ms on 2: {taken['1'] / taken['2']:.2f} x"
        )


def full_pass(num_clients: int) -> None:
    """Times one epoch and one evaluation of all clients of a store.

    EMNIST digits has 3,383 clients.
    """
    drawn, _ = datasets.load(data_options={"clients": num_clients})
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp, "store.h5")
        info = store_format.StoreInfo(num_classes=10, pixel_convention="background")
        store_writer.create(path, {"train": (drawn.client(c) for c in drawn.client_ids)}, info)
        opened = [seconds(lambda: datasets.load(str(path))) for _ in range(5)]
        stored, _ = datasets.load(str(path))
        clients = [stored.client(c).preprocess(1, 1, 20) for c in stored.client_ids]
        print(
            f"store of {num_clients} clients, {sum(len(c.client) for c in clients)} examples: "
            f"opened in {statistics.median(opened) * 1e3:.1f} ms"
        )
        for threads in (1, 2):
            engine = ThreadEngine(threads)
            works: dict[str, Work] = {
                "train": partial(train_once, engine, clients),
                "score": partial(engine.evaluate, MODEL.layout, MODEL.initial_params, clients),
            }
            taken = in_turn(works, 5)
            print(
                f"  full pass, {threads} thread(s): training {taken['train']:.3f} s, "
                f"evaluation {taken['score']:.3f} s"
            )


def anonymous_kib() -> int:
    """The anonymous memory of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def memory(data: str, sampling: str) -> None:
    """Prints the growth of anonymous memory from round 10 to 100, without the client cache."""
    with tempfile.TemporaryDirectory() as tmp:
        config = from_options({"data": data, "sampling": sampling, "clients": "10", "rounds": 100})
        with start(config, Path(tmp, "run")) as training:
            cache = training.train.cache
            at = {}
            for result in training.run():
                cached = 0 if cache is None else cache.bytes // 1024
                at[result.round_num] = anonymous_kib() - cached
    print(
        f"RssAnon without the client cache, {sampling} cohorts: round 10 {at[10]} KiB, "
        f"then {at[100] - at[10]:+} KiB to round 100"
    )


def main() -> None:
    """Runs every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="synthetic-digits")
    parser.add_argument("--test-data")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, a smaller store")
    args = parser.parse_args()
    repeats = 3 if args.quick else 11
    print(f"instruction set {native.isa_name()}, {native.resolve_threads()} threads")
    step_kernel()
    rounds_against_numpy(args.data, repeats)
    whole_process(args.data, args.test_data, repeats)
    scaling(args.data)
    full_pass(200 if args.quick else 3383)
    memory(args.data, "fixed")
    memory(args.data, "uniform")


if __name__ == "__main__":
    main()
