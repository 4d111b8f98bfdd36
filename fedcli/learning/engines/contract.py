"""The interface of engines, which train and evaluate the clients of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag
from fedcli.datasets.batches import BatchedDataset, ClientDataset
from fedcli.errors import DataError
from fedcli.learning.engines.deltas import Deltas
from fedcli.learning.engines.task import ClientExchange, ClientTask
from fedcli.models.layout import ParamLayout

# An engine reads a large cohort in pieces; the pixels of a piece take about this many bytes.
PIECE_BYTES = 64 << 20
BLOCK_CLIENTS = 8  # pieces end where blocks of the core end (FED_BLOCK_CLIENTS)


# A function that returns the parameters of some clients, float32 [num_clients, num_params]. They
# are valid until the next call.
Starts = Callable[[Sequence[BatchedDataset]], NDArray[np.float32]]


class Scores(NamedTuple):
    """A model's predictions for N examples and K classes.

    Attributes:
        values: Scores by class, floats [N, K]; float32 from the C core.
        are_logits: Whether the scores are logits; if not, they are probabilities.
    """

    values: NDArray[np.floating]
    are_logits: bool


class Engine(Protocol):
    """Trains and evaluates the clients of a cohort, here or on other machines."""

    @property
    def num_threads(self) -> int:
        """The number of threads that compute."""

    def train(
        self,
        layout: ParamLayout,
        task: ClientTask,
        clients: Iterable[BatchedDataset],
        *,
        exchange: ClientExchange | None = None,
        cancel: CancelFlag | None = None,
    ) -> Deltas:
        """Trains each client as the task says and sums the weighted model deltas.

        The sum is in float64. It adds the clients of each block of `BLOCK_CLIENTS` in order, then
        the blocks by a fixed binary tree. The bytes are therefore the same, whichever thread or
        machine trains a client.

        Args:
            layout: The model.
            task: What the clients do.
            clients: The cohort, read in pieces of about `PIECE_BYTES` of pixels.
            exchange: Sends inputs to individual clients and receives their deltas. None if the
                task holds all inputs and individual deltas are not needed.
            cancel: A flag that another thread may set to stop the call within a local step.

        Raises:
            Cancelled: `cancel` was set.
            DataError: A client's images do not fit the model, or a label is outside its classes.
            RunError: All deltas are requested, and they cannot be written to the disk.
        """

    def evaluate(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        starts: Starts | None = None,
        cancel: CancelFlag | None = None,
    ) -> NDArray[np.void]:
        """Returns the statistics of each client without training: one record per client, in order.

        Args:
            layout: The model.
            params: The parameters to evaluate, float32 [num_params].
            clients: The clients whose examples are scored, read in pieces.
            starts: Returns each client's own parameters, which are evaluated instead of `params`.
                It is called for one piece of the clients at a time, in order.
            cancel: A flag that another thread may set to stop the call within a batch.

        Raises:
            Cancelled: `cancel` was set.
            DataError: A client's images do not fit the model, or a label is outside its classes.
        """

    def predict(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        starts: Starts | None = None,
        cancel: CancelFlag | None = None,
    ) -> Scores:
        """Returns the scores of every example of every client, once each, in stored order.

        The arguments are those of `evaluate`.

        Raises:
            Cancelled: `cancel` was set.
            DataError: A client's images do not fit the model, or a label is outside its classes.
        """


def numbered(
    clients: Iterable[BatchedDataset], occurrences: Iterable[int] | None = None
) -> Iterator[tuple[BatchedDataset, int]]:
    """Yields each client with the number of earlier copies of it in the cohort.

    Args:
        clients: The clients of a call, in order, each read once.
        occurrences: The numbers of earlier copies, if the clients are only a part of the cohort
            (see `ClientTask`). None to count the copies among `clients`.
    """
    if occurrences is not None:
        yield from zip(clients, occurrences, strict=True)
        return
    count = _CopyCounter()
    for dataset in clients:
        yield dataset, count(dataset.client.client_id)


def occurrences_of(client_ids: Iterable[str]) -> tuple[int, ...]:
    """Returns the number of earlier copies of each client in a cohort."""
    return tuple(map(_CopyCounter(), client_ids))


class _CopyCounter:
    """Counts the copies of clients. A call returns the number of earlier calls for this client."""

    def __init__(self) -> None:
        """No client has been counted yet."""
        self._seen: dict[str, int] = {}

    def __call__(self, client_id: str) -> int:
        """Counts one copy."""
        earlier = self._seen.get(client_id, 0)
        self._seen[client_id] = earlier + 1
        return earlier


def check_images(client: ClientDataset, layout: ParamLayout) -> None:
    """Rejects a client whose images do not have the shape of the model's input.

    Raises:
        DataError: The shape differs.
    """
    shape = client.pixels.shape
    if not shape[0] or shape[1:] == layout.input_shape:
        return
    from fedcli.models.image_shapes import holds_inputs  # lazy: the shapes are usually equal

    if not holds_inputs(shape[1:], layout.input_shape):
        raise DataError(
            f"{client.source}: client {client.client_id!r}: images have shape {list(shape[1:])}, "
            f"the model takes {list(layout.input_shape)}; choose data of the model's shape, or "
            "another model"
        )


def label_fault(client: ClientDataset, example_index: int, label: int, num_classes: int) -> str:
    """Returns the error message for a label that is outside the model's classes."""
    remedy = f"build the model for at least {label + 1} classes" if label >= 0 else "count from 0"
    return (
        f"{client.source}: client {client.client_id!r}: example {example_index}: "
        f"label {label} is outside the model's classes, 0 to {num_classes - 1}; {remedy}, or "
        "correct the label"
    )
