"""Measures how well flipped labels are found (precision), and how long this takes (seconds).

    python tests/bench/bench_suspects.py TRAIN.h5 [--share 0.05] [--seeds 3] [--rounds 100]

A share of all labels is replaced by other labels, each with the same chance. If n labels were
flipped, precision is the share of flipped labels among the first n examples of a ranking; for a
random ranking it is `--share`. Three rankings are measured: by images alone (`rank_examples`), by
the distance to the label's mean image relative to the client's median (the simplest method, as a
baseline), and by the loss of a softmax regression trained on the flipped labels (`rank_with_run`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.client_data import ClientData
from fedcli.datasets.opening import DataSource, open_splits
from fedcli.datasets.sources import store, store_writer
from fedcli.inspection.suspects import Suspects, rank_examples
from fedcli.inspection.suspects_by_loss import rank_with_run
from fedcli.runs import starting
from fedcli.settings.run_config import RunConfig

Flips = Mapping[str, NDArray[np.bool_]]


def write_flipped(data: ClientData, share: float, seed: int, path: Path) -> dict[str, NDArray]:
    """Writes a store with some labels flipped; returns which ones, by client."""
    rng = np.random.default_rng(seed)
    num_examples = data.total_examples()
    is_flipped = np.zeros(num_examples, np.bool_)
    is_flipped[rng.choice(num_examples, round(share * num_examples), replace=False)] = True
    ends = np.cumsum([data.num_examples(each) for each in data.client_ids])
    flips = dict(zip(data.client_ids, np.split(is_flipped, ends[:-1]), strict=True))

    def clients():
        for client_id, flipped in flips.items():
            client = data.client(client_id)
            shifts = rng.integers(1, data.num_classes, len(client)) * flipped
            labels = ((client.labels + shifts) % data.num_classes).astype(np.int32)
            yield replace(client, labels=labels)

    info = store.StoreInfo(num_classes=data.num_classes, pixel_convention=data.pixel_convention)
    store_writer.create(path, {"train": clients()}, info)
    return flips


def mean_image_precision(data: ClientData, flips: Flips) -> float:
    """Precision by distance to the label's mean image, relative to the client's median distance."""
    clients = [data.client(client_id) for client_id in data.client_ids]
    images = [client.images().reshape(len(client), -1) for client in clients]
    labels = [client.labels for client in clients]
    all_images, all_labels = np.concatenate(images), np.concatenate(labels)
    means = np.stack([all_images[all_labels == k].mean(axis=0) for k in range(data.num_classes)])
    distances = [np.linalg.norm(x - means[y], axis=1) for x, y in zip(images, labels, strict=True)]
    scores = np.concatenate([each / np.median(each) for each in distances])
    flipped = np.concatenate(list(flips.values()))
    return float(flipped[np.argsort(-scores, kind="stable")[: flipped.sum()]].mean())


def precision(found: Suspects, flips: Flips) -> float:
    """The number of flipped examples in `found`, divided by the number of all flipped ones."""
    hits = [flips[each.client_id][each.index] for each in found.examples]
    return sum(hits) / sum(int(each.sum()) for each in flips.values())


def measure(data: ClientData, arguments: argparse.Namespace, seed: int, folder: Path) -> None:
    """Prints the line of one seed."""
    path, out = folder / f"flipped{seed}.h5", folder / f"run{seed}"
    flips = write_flipped(data, arguments.share, seed, path)
    flipped = open_splits(DataSource(str(path)))["train"]
    num_flipped = sum(int(each.sum()) for each in flips.values())
    ids = flipped.client_ids
    simple = mean_image_precision(flipped, flips)
    started, cpu = time.perf_counter(), time.process_time()
    found = rank_examples(flipped, ids, top=num_flipped)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    config = RunConfig(
        data=str(path), rounds=arguments.rounds, clients="50", sampling="uniform", eval_clients="1"
    )
    with starting.start(config, out) as training:
        for _ in training.run():
            pass
    started = time.perf_counter()
    judged = rank_with_run(flipped, ids, out, top=num_flipped)
    run_seconds = time.perf_counter() - started
    print(
        f"{seed:4}  {num_flipped:7,}  {simple:6.3f}  {precision(found, flips):6.3f}  "
        f"{seconds:5.1f}  {cpu:5.1f}  {precision(judged, flips):6.3f}  {run_seconds:5.1f}"
    )


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="TRAIN.h5")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    data = open_splits(DataSource(arguments.data))["train"]
    print(f"{data.total_examples():,} examples of {len(data.client_ids):,} clients")
    print("seed  flipped    mean  images   wall    CPU     run   wall")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            measure(data, arguments, seed, Path(folder))


if __name__ == "__main__":
    main()
