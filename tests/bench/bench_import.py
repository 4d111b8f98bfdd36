"""Compares `preprocess` of a TFF pair as large as EMNIST digits with reading the pair by h5py.

    python tests/bench/bench_import.py [--clients 3383] [--repeats 3]

The pair is synthetic-digits in TFF's layout, with gzip inside HDF5. h5py reads all arrays of pixels
and labels of both files. The time of a command includes the start of Python. Reading and commands
take turns, and medians are printed. Nothing is asserted, because machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py

from fedcli import datasets
from fedcli.datasets.sources import store

SPLITS = ("train", "test")


def write_pair(folder: Path, num_clients: int) -> None:
    """Writes train.h5 and test.h5: a group per client, gzip with the defaults of h5py."""
    opened = datasets.open_splits(
        datasets.DataSource("synthetic-digits", data_options={"clients": num_clients})
    )
    for split in SPLITS:
        data = opened[split]
        with h5py.File(folder / f"{split}.h5", "w") as file:
            for client_id in data.client_ids:
                client = data.client(client_id)
                group = file.create_group(f"examples/{client_id}")
                group.create_dataset("pixels", data=client.images(), compression="gzip")
                group.create_dataset("label", data=client.labels, compression="gzip")


def read_pair(folder: Path) -> None:
    """Reads every array with h5py; the commands are compared with its time."""
    for split in SPLITS:
        with h5py.File(folder / f"{split}.h5", "r") as file:
            for group in file["examples"].values():
                _, _ = group["pixels"][()], group["label"][()]


def fedcli(*arguments: object) -> None:
    command = [sys.executable, "-m", "fedcli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=3383)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pair(folder, options.clients)
        made = folder / "made.h5"
        works: dict[str, Callable[[], object]] = {
            "h5py reads the pair": lambda: read_pair(folder),
            "fedcli preprocess": lambda: fedcli(
                "preprocess", folder / "train.h5", "--test-data", folder / "test.h5", "--out", made
            ),
            "fedcli preprocess --verify": lambda: fedcli("preprocess", "--verify", made),
            "the store is opened": lambda: store.open_store(made),
        }
        taken: dict[str, list[float]] = {title: [] for title in works}
        for _ in range(options.repeats):
            for title, work in works.items():
                taken[title].append(seconds(work))
        base = statistics.median(taken["h5py reads the pair"])
        for title, each in taken.items():
            median = statistics.median(each)
            print(f"{title:28} {median:8.3f} s   {median / base:5.2f} x reading")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        sizes = [(folder / f"{split}.h5").stat().st_size for split in SPLITS]
        print(f"pair {sum(sizes) / 1e6:.0f} MB, store {made.stat().st_size / 1e6:.0f} MB")
        print(f"most memory of a command, mapped files included: {peak:.0f} MB")


if __name__ == "__main__":
    main()
