"""The tasks for fedcli and other programs: a model, a cohort, and its local training.

A task has plain values, so that it can be passed to another process. Each program draws the same
examples of a synthetic dataset and processes them in the same order.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import field

import numpy as np
from numpy.typing import NDArray

from fedcli import datasets, models
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset, ClientDataset, Pixels
from fedcli.models import costs
from fedcli.models.model import Model
from fedcli.settings.options import Value

TRAIN, EVALUATE, AVERAGE = "train", "evaluate", "average"
DIGITS, SHAPES = "synthetic-digits", "synthetic-shapes"
_EXAMPLE_SHAPES = {DIGITS: (28, 28), SHAPES: (32, 32, 3)}
ORDER_SEED = 0
_SHUFFLE_BUFFER = 100  # as in TFF's tutorial


@dataclass(frozen=True)
class Task:
    """One job.

    Attributes:
        kind: `train` (a round: local training of a cohort, and the weighted mean of the model
            deltas), `evaluate` (loss and accuracy of a cohort) or `average` (the weighted mean of
            as many models as there are sizes).
        model: A registry name.
        sizes: Examples of each client.
        batch_size: Number of examples per batch.
        epochs: Number of local epochs.
        client_lr: Learning rate of plain SGD.
        num_classes: Classes of the model; both datasets have ten.
        options: Options of the model.
        data: The dataset, `DIGITS` or `SHAPES`.
    """

    kind: str
    model: str
    sizes: tuple[int, ...]
    batch_size: int = 20
    epochs: int = 1
    client_lr: float = 0.02
    num_classes: int = 10
    options: Mapping[str, Value] = field(default_factory=dict)
    data: str = DIGITS

    def to_json(self) -> str:
        """Returns the task as one line of text."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def num_visits(self) -> int:
        """Number of examples processed, counting repetitions."""
        return self.epochs * sum(self.sizes)


def from_json(text: str) -> Task:
    """Returns the task that `to_json` wrote."""
    values = json.loads(text)
    return Task(**{**values, "sizes": tuple(values["sizes"])})


def build_model(task: Task) -> Model:
    """Returns the model of a task with its initial parameters.

    Raises:
        ConfigError: There is no such model, or it lacks an option.
    """
    return models.build(
        task.model,
        input_shape=_EXAMPLE_SHAPES[task.data],
        num_classes=task.num_classes,
        options=task.options,
        seed=ORDER_SEED,
    )


def make_cohort(task: Task) -> tuple[BatchedDataset, ...]:
    """Returns the cohort of a task in batches, drawn from its dataset."""
    return tuple(
        client.preprocess(task.epochs, _SHUFFLE_BUFFER, task.batch_size, ORDER_SEED)
        for client in cut_clients(task.sizes, data=task.data)
    )


def natural_sizes(num_clients: int) -> tuple[int, ...]:
    """Returns how many examples the first clients of synthetic-digits hold."""
    train, _ = datasets.load(cache_bytes=0)
    return tuple(train.num_examples(each) for each in train.client_ids[:num_clients])


def even_sizes(total: int, num_clients: int) -> tuple[int, ...]:
    """Returns sizes that differ by at most one and sum to `total`."""
    each, rest = divmod(total, num_clients)
    return tuple(each + (index < rest) for index in range(num_clients))


def cut_clients(
    sizes: tuple[int, ...], split: str = "train", data: str = DIGITS
) -> Iterator[ClientDataset]:
    """Yields clients of given sizes, filled with the examples of a synthetic dataset.

    The dataset's clients are read in order, and their examples joined and cut to the sizes. If
    the sizes are those of the dataset's clients, each client gets the examples of one of these.
    """
    source = datasets.DataSource(data, data_options={"clients": 10_000})
    writers = datasets.open_splits(source)[split]
    ids = iter(writers.client_ids)
    first = writers.client(writers.client_ids[0])
    scale, offset = first.scale, first.offset
    pixels: Pixels = np.empty((0, *writers.pixel_shape), np.uint8)
    labels = np.empty(0, np.int32)
    for index, size in enumerate(sizes):
        parts: list[tuple[Pixels, NDArray[np.int32]]] = [(pixels, labels)]
        num_held = len(labels)
        while num_held < size:
            writer = writers.client(next(ids))
            parts.append((writer.pixels, writer.labels))
            num_held += len(writer)
        pixels = np.concatenate([each for each, _ in parts])
        labels = np.concatenate([each for _, each in parts])
        # Read-only as in a dataset, so that the pixels are decoded once for all rounds.
        pixels.flags.writeable = False
        yield ClientDataset(
            f"s{index:07d}", pixels[:size], labels[:size], scale, offset, writers.source
        )
        pixels, labels = pixels[size:], labels[size:]


def operations(task: Task, model: Model) -> float:
    """Returns the textbook number of operations of a task; a multiply-add counts as two.

    Args:
        task: A task that trains or evaluates.
        model: Its model.
    """
    each = costs.layer_costs(model.layout)
    is_training = task.kind == TRAIN
    multiply_adds = sum(cost.training if is_training else cost.forward for cost in each)
    return 2.0 * multiply_adds * task.num_visits
