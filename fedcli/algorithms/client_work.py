"""What the clients of a cohort do in a round: the part in which algorithms differ most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcli.backend import (
    CancelFlag,
    CohortResult,
    DeltaBounds,
    Engine,
    FrozenSlots,
    StepKind,
    StepRow,
)
from fedcli.batches import BatchedDataset
from fedcli.optimizers import Optimizer
from fedcli.params import ParamLayout


@dataclass(frozen=True, eq=False)
class CohortCall:
    """One round's cohort, ready for the engine.

    Attributes:
        engine: What computes the clients.
        layout: The model.
        params: Global parameters, float32 [num_params].
        clients: The cohort's data; they can be gone through again if the work makes many passes.
        round_num: Rounds completed so far.
        weighting: Client weights, `num-examples` or `uniform`.
        bounds: What the aggregator keeps deltas within.
        cancel: Stops the call from outside.
    """

    engine: Engine
    layout: ParamLayout
    params: NDArray[np.float32]
    clients: Iterable[BatchedDataset]
    round_num: int
    weighting: str
    bounds: DeltaBounds | None
    cancel: CancelFlag | None

    def train(
        self,
        optimizer: Optimizer,
        terms: Sequence[StepRow] = (),
        frozen: FrozenSlots | None = None,
    ) -> CohortResult:
        """Returns the model deltas of clients that take local steps.

        Args:
            optimizer: Takes them, at the learning rate that its schedule has for this round.
            terms: Rows of what the algorithm adds to the gradient.
            frozen: The optimizer state that every step starts from; None: each client has its own.
        """
        return self._run(optimizer.at(self.round_num).client_rows(terms), frozen)

    def take_gradients(self) -> CohortResult:
        """Returns in place of model deltas minus the mean gradients at the global parameters."""
        return self._run([(StepKind.GRADIENT, ())], None)

    def _run(self, rows: Sequence[StepRow], frozen: FrozenSlots | None) -> CohortResult:
        return self.engine.train_cohort(
            self.layout,
            rows,
            self.params,
            self.clients,
            round_num=self.round_num,
            weighting=self.weighting,
            bounds=self.bounds,
            frozen=frozen,
            cancel=self.cancel,
        )


class ClientWork(Protocol):
    """Holds settings only; what it remembers between rounds is part of the server state.

    Attributes:
        num_passes: How often it goes through the cohort's data.
    """

    num_passes: ClassVar[int]

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns its part of the server state before the first round, for params [num_params]."""
        ...

    def run(
        self, call: CohortCall, state: Mapping[str, Any]
    ) -> tuple[CohortResult, dict[str, Any]]:
        """Returns what the cohort sends back, and the next state; raises as `Engine` does."""
        ...


@dataclass(frozen=True)
class LocalSteps:
    """Each client takes the local steps of an optimizer, in a state of its own.

    Attributes:
        optimizer: The client optimizer.
        terms: Rows of what the algorithm adds to the gradient.
    """

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer
    terms: tuple[StepRow, ...] = ()

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def run(
        self, call: CohortCall, state: Mapping[str, Any]
    ) -> tuple[CohortResult, dict[str, Any]]:
        """Trains the cohort once."""
        return call.train(self.optimizer, self.terms), dict(state)
