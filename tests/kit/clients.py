"""Small clients in memory, whose images and labels follow from the client's number alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset, from_arrays

Arrays = tuple[NDArray[np.float32], NDArray[np.int32]]

SHAPE, NUM_CLASSES = (5, 4), 3


def draw(
    size: int,
    seed: int,
    shape: Sequence[int] = SHAPE,
    num_classes: int = NUM_CLASSES,
    *,
    is_learnable: bool = False,
) -> Arrays:
    """Returns pixels from [0, 1) and labels, both uniform.

    Args:
        size: Number of examples.
        seed: Seed of NumPy's generator.
        shape: Shape of an image.
        num_classes: Labels are 0 to num_classes - 1.
        is_learnable: Whether 1 is added to one pixel of the first row, chosen by the class.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, size, dtype=np.int32)
    pixels = random.random((size, *shape), dtype=np.float32)
    if is_learnable:
        pixels[:, 0, :num_classes] += np.eye(num_classes, dtype=np.float32)[labels]
    return pixels, labels


def make_clients(
    sizes: Sequence[int],
    shape: Sequence[int] = SHAPE,
    num_classes: int = NUM_CLASSES,
    *,
    plan: BatchPlan | None = None,
    client_id: str = "client {}",
    is_learnable: bool = False,
    change: Callable[[int, NDArray[np.float32]], None] | None = None,
) -> list[BatchedDataset]:
    """Returns one client per size, drawn from seeds 0, 1, 2, ...

    Args:
        sizes: Numbers of examples; 0 is allowed.
        shape: Shape of an image.
        num_classes: Labels are 0 to num_classes - 1.
        plan: How the examples are batched; None: as `from_arrays` does by default.
        client_id: The names of the clients, with {} for the number.
        is_learnable: As in `draw`.
        change: Changes the pixels of a client in place; it gets the client's number, too.
    """
    made = []
    for number, size in enumerate(sizes):
        pixels, labels = draw(size, number, shape, num_classes, is_learnable=is_learnable)
        if change is not None:
            change(number, pixels)
        dataset = from_arrays(pixels, labels, client_id=client_id.format(number))
        made.append(dataset if plan is None else replace(dataset, plan=plan))
    return made
