"""Small stores of clients, for tests to which the examples do not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedcli.datasets.batches import ClientDataset
from fedcli.datasets.sources import store_writer
from fedcli.datasets.sources.store import StoreInfo


def write_counted_store(path: Path, *, same_people: bool = True, **splits: dict[str, int]) -> Path:
    """Writes a store of black images. `splits` has the number of examples of each client."""
    info = StoreInfo(num_classes=10, pixel_convention="ink", same_people=same_people)

    def client(name: str, count: int) -> ClientDataset:
        labels = np.arange(count, dtype=np.int32) % 10
        return ClientDataset(name, np.zeros((count, 3, 3), np.uint8), labels, 1.0, 0.0, "drawn")

    clients = {split: [client(*each) for each in sizes.items()] for split, sizes in splits.items()}
    store_writer.create(path, clients, info)
    return path
