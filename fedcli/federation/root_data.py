"""The root set: a few examples that the server itself has, for aggregators such as FLTrust."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset, ClientDataset
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError

# A client with the same id would have the same keys for its shuffles, which does no harm.
ROOT_ID = "root set of the server"


def draw_root_data(
    train: ClientData, num_examples: int, plan: BatchPlan, seed: int
) -> BatchedDataset:
    """Returns examples that are drawn from all clients of the train split, without replacement.

    The draws use a separate random stream, so a root set changes no cohort and no shuffle.

    Args:
        train: The train split. Only the clients with drawn examples are read.
        num_examples: The number of examples.
        plan: How examples become batches, for clients and for the root set.
        seed: The run's seed.

    Raises:
        ConfigError: The train split has fewer examples.
        DataError: A client cannot be read.
    """
    counts = np.array([train.num_examples(each) for each in train.client_ids], np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    if num_examples > total:
        raise ConfigError(
            f"--aggregator-option root_examples={num_examples}: the train split has {total:,} "
            "examples; choose fewer"
        )
    stream = Stream(stream_key(seed, Purpose.ROOT_DATA))
    chosen = np.sort(_distinct(stream, total, num_examples))
    owners = np.searchsorted(ends, chosen, side="right")
    pixels, labels = [], []
    for owner in np.unique(owners):
        client = train.client(train.client_ids[owner])
        indices = chosen[owners == owner] - (ends[owner] - counts[owner])
        pixels.append(_images(client, indices))
        labels.append(client.labels[indices])
    images: NDArray[np.float32] = np.concatenate(pixels)
    root = ClientDataset(ROOT_ID, images, np.concatenate(labels), 1.0, 0.0, train.source)
    return BatchedDataset(root, plan, seed)


def _distinct(stream: Stream, total: int, num: int) -> NDArray[np.int64]:
    """Returns `num` different integers below `total`, int64, in the order of their first draw."""
    found: dict[int, None] = {}
    if 2 * num > total:
        return stream.permutation(total)[:num]
    while len(found) < num:
        found.update(dict.fromkeys(stream.integers(total, num - len(found)).tolist()))
    return np.array(list(found), np.int64)


def _images(client: ClientDataset, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns some examples as the model sees them, float32 [num, H, W] or [num, H, W, C]."""
    part = ClientDataset(
        client.client_id,
        client.pixels[indices],
        client.labels[indices],
        client.scale,
        client.offset,
        client.source,
    )
    return part.images()
