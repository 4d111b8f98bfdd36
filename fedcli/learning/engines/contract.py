"""What computes the clients of a cohort: the interface, what it is given and what it gives back."""

from __future__ import annotations

import math
from collections import Counter
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

# Clients whose pixels the engine holds at a time; a larger cohort goes through in pieces.
PIECE_BYTES = 64 << 20
BLOCK_CLIENTS = 8  # pieces end where the core's blocks do (FED_BLOCK_CLIENTS)


# Returns the parameters of some clients, float32 [num_clients, num_params], which stay as they are
# until it is called again.
Starts = Callable[[Sequence[BatchedDataset]], NDArray[np.float32]]


class Scores(NamedTuple):
    """What a model says of some examples.

    Attributes:
        values: A score of each class, floats [N, K]; float32 where the core gives them.
        are_logits: Whether a softmax makes probabilities of them; else they are such.
    """

    values: NDArray[np.floating]
    are_logits: bool


class Engine(Protocol):
    """Whatever computes the clients of a cohort: threads here, other machines elsewhere."""

    @property
    def num_threads(self) -> int:
        """Threads that compute."""

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

        The sum is over blocks of `BLOCK_CLIENTS` consecutive clients, each added in order, and over
        the blocks by a fixed binary tree, in float64: whoever computes a client, the bytes are the
        same.

        Args:
            layout: The model.
            task: What the clients do.
            clients: The cohort, read as the work goes on: some `PIECE_BYTES` of pixels at once.
            exchange: What is sent to single clients and received from them; None: the task has all
                that is sent, and nothing is received.
            cancel: Raised from another thread, stops the call within a local step.

        Raises:
            Cancelled: `cancel` was raised.
            DataError: A client's images do not fit the model, or a label is outside its classes.
            RunError: All deltas are asked for, and the disk is full or fails.
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
        """Returns the statistics of each client without training: one record a client, in order.

        Args:
            layout: The model.
            params: What is scored, float32 [num_params].
            clients: Whose examples it is scored on, read as the work goes on.
            starts: Where each client has parameters of its own, which are scored in place of
                `params`; asked for one piece of the clients at a time, in order.
            cancel: Raised from another thread, stops the call within a batch.

        Raises:
            Cancelled: `cancel` was raised.
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

        Arguments as `evaluate`.

        Raises:
            Cancelled: `cancel` was raised.
            DataError: A client's images do not fit the model, or a label is outside its classes.
        """


def numbered(
    clients: Iterable[BatchedDataset], occurrences: Sequence[int] | None = None
) -> Iterator[tuple[BatchedDataset, int]]:
    """Yields each client and how many copies of it come before: counted, or as `occurrences` say.

    Args:
        clients: The clients of a call, in order.
        occurrences: See `ClientTask`.
    """
    if occurrences is not None:
        yield from zip(clients, occurrences, strict=True)
        return
    seen: Counter[str] = Counter()
    for dataset in clients:
        client_id = dataset.client.client_id
        yield dataset, seen[client_id]
        seen[client_id] += 1


def check_images(client: ClientDataset, layout: ParamLayout) -> None:
    """Refuses a client whose images are not as large as the model's.

    Raises:
        DataError: They are not.
    """
    shape = client.pixels.shape
    if shape[0] and math.prod(shape[1:]) != layout.num_inputs:
        raise DataError(
            f"{client.source}: client {client.client_id!r}: images have shape {list(shape[1:])}, "
            f"the model takes {list(layout.input_shape)}"
        )


def label_fault(client: ClientDataset, example_index: int, label: int) -> str:
    """Returns what to say of a label that the model has no class for."""
    return (
        f"{client.source}: client {client.client_id!r}: example {example_index}: "
        f"label {label} is outside the model's classes; set --num-classes"
    )
