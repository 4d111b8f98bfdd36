"""What computes the clients of a cohort: the interface, what it is given and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag, FrozenSlots, StepRow
from fedcli.datasets.batches import BatchedDataset, ClientDataset
from fedcli.errors import DataError
from fedcli.models.layout import ParamLayout

# Clients whose pixels the engine holds at a time; a larger cohort goes through in pieces.
PIECE_BYTES = 64 << 20
BLOCK_CLIENTS = 8  # pieces end where the core's blocks do (FED_BLOCK_CLIENTS)


class DeltaBounds(NamedTuple):
    """What a model delta may be at most, whatever its client; infinity: no bound.

    Attributes:
        max_abs: A delta with a larger entry counts as zeros, with its weight.
        norm: A delta that is longer (L2, over all tensors) is scaled to this length.
    """

    max_abs: float
    norm: float


NO_BOUNDS = DeltaBounds(math.inf, math.inf)


class Scores(NamedTuple):
    """What a model says of some examples.

    Attributes:
        values: A score of each class, floats [N, K]; float32 where the core gives them.
        are_logits: Whether a softmax makes probabilities of them; else they are such.
    """

    values: NDArray[np.floating]
    are_logits: bool


@dataclass(frozen=True)
class PerClient:
    """What single clients are given and send back, beside what their cohort has in common.

    Each is called with some clients of the cohort at a time, in cohort order.

    Attributes:
        linear: Returns what the step's LINEAR row adds to their gradients: float32
            [num_clients, num_params], or [1, num_params] that is everybody's.
        delta_factors: Returns what each delta is multiplied by in the sum, >= 0: float64
            [num_clients].
        starts: Returns what each takes for the server's parameters, float32 [num_clients,
            num_params]; then no delta enters the sum, and there are no delta_factors.
        receive: Takes their model deltas, float32 [num_clients, num_params] that it may write to
            until it returns, and their stats; what stands where `is_finite` is 0 means nothing.
    """

    linear: Callable[[Sequence[BatchedDataset]], NDArray[np.float32]] | None = None
    delta_factors: Callable[[Sequence[BatchedDataset]], NDArray[np.float64]] | None = None
    starts: Callable[[Sequence[BatchedDataset]], NDArray[np.float32]] | None = None
    receive: (
        Callable[[Sequence[BatchedDataset], NDArray[np.float32], NDArray[np.void]], None] | None
    ) = None

    @property
    def num_vectors(self) -> int:
        """Parameter-sized vectors that each client of a call needs."""
        return sum(each is not None for each in (self.linear, self.starts, self.receive))


@dataclass(frozen=True)
class CohortResult:
    """What a cohort sends back.

    Attributes:
        delta_sum: Sum of weight * model delta, float64 [num_params].
        weight_sum: Sum of the client weights.
        stats: One record a client, in cohort order, with fields `loss_sum`, `weight`,
            `num_correct`, `num_examples`, `num_batches`, `is_finite`; with bounds also the size of
            its delta, `max_abs` and `norm` (0 once zeroed), else 0.
    """

    delta_sum: NDArray[np.float64]
    weight_sum: float
    stats: NDArray[np.void]


class Engine(Protocol):
    """Whatever computes the clients of a cohort: threads here, other machines elsewhere."""

    @property
    def num_threads(self) -> int:
        """Threads that compute."""

    def train_cohort(
        self,
        layout: ParamLayout,
        rows: Sequence[StepRow],
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        round_num: int,
        weighting: str,
        bounds: DeltaBounds | None = None,
        frozen: FrozenSlots | None = None,
        rate_factor: Callable[[int], float] | None = None,
        per_client: PerClient | None = None,
        cancel: CancelFlag | None = None,
    ) -> CohortResult:
        """Trains each client from `params` and sums the model deltas; see `ThreadEngine`."""

    def evaluate(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        cancel: CancelFlag | None = None,
    ) -> NDArray[np.void]:
        """Scores `params` on each client; see `ThreadEngine`."""

    def predict(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        cancel: CancelFlag | None = None,
    ) -> Scores:
        """Returns the scores of all examples; see `ThreadEngine`."""


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
