"""The messages between the driver and its workers: plain values that can be pickled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.learning.engines.task import ClientInputs, ClientTask
from fedcli.models.layout import ParamLayout
from fedcli.settings.data_source import DataSource


class WorkerSetup(NamedTuple):
    """The settings with which a worker starts.

    Attributes:
        source: The data that it opens itself; None if the driver sends the clients.
        num_threads: Its number of threads.
    """

    source: DataSource | None
    num_threads: int


class WorkerDescription(NamedTuple):
    """The description that a worker gives of itself before it computes anything.

    Attributes:
        host: The name of its machine.
        fedcli: The version of fedcli there.
        isa: The instruction set there.
        fingerprint: The fingerprint of its data; None if the driver sends the clients.
        probe: The digest of a fixed computation; see `probe.digest`.
    """

    host: str
    fedcli: str
    isa: str
    fingerprint: str | None
    probe: str


class NamedClients(NamedTuple):
    """Clients that a worker reads from its own copy of the data.

    Attributes:
        split: The split.
        client_ids: The clients, in order.
        plan: How their examples become batches.
        seed: The run's seed.
    """

    split: str
    client_ids: tuple[str, ...]
    plan: BatchPlan
    seed: int


Clients = NamedClients | Sequence[BatchedDataset]


class SharedWork(NamedTuple):
    """The values that all parts of one call share.

    Attributes:
        layout: The model.
        task: The training of the clients, without the inputs of individual clients; None if they
            are scored.
        params: The parameters to score, float32 [num_params]; None in training.
        has_deltas: Whether the individual deltas are sent back.
        has_scores: Whether every example's scores are sent back, in place of the statistics.
    """

    layout: ParamLayout
    task: ClientTask | None = None
    params: NDArray[np.float32] | None = None
    has_deltas: bool = False
    has_scores: bool = False


class Part(NamedTuple):
    """The work of some consecutive clients of a call.

    Attributes:
        clients: These clients.
        occurrences: The number of earlier copies of each of them in the cohort.
        inputs: The inputs of each of them in training.
        starts: The parameters with which each of them is scored, float32 [num_clients, num_params];
            None for the same parameters for all.
    """

    clients: Clients
    occurrences: tuple[int, ...]
    inputs: ClientInputs
    starts: NDArray[np.float32] | None = None


class PartResult(NamedTuple):
    """The result of a part, which a worker sends back.

    Attributes:
        stats: One record per client, in order; empty if scores were requested.
        delta_sum: The sum of the weighted deltas, float64 [num_params]; None in scoring.
        weight_sum: The sum of the weights.
        deltas: The individual deltas, float32 [num_clients, num_params], if they were requested.
        scores: float32 [num_examples, num_classes], if they were requested.
    """

    stats: NDArray[np.void]
    delta_sum: NDArray[np.float64] | None = None
    weight_sum: float = 0.0
    deltas: NDArray[np.float32] | None = None
    scores: NDArray[np.floating] | None = None
