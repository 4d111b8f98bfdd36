"""Federated averaging.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629; with a server
optimizer as in Reddi et al., "Adaptive Federated Optimization", ICLR 2021,
https://arxiv.org/abs/2003.00295.

Each round, client k of the cohort starts at the global parameters w, runs the client optimizer over
its batches, which gives y_k, and sends its model delta y_k - w. The server computes

    mean_delta = sum_k p_k (y_k - w) / sum_k p_k

and passes -mean_delta to the server optimizer as a gradient. With SGD at rate 1 the new global
model is the weighted mean of the clients' models. p_k is the number of examples that client k
processed in all epochs (the default), or 1.

Differences from TFF's learning/algorithms/fed_avg.py: a client whose delta is not finite has weight
0 with uniform weights too (TFF keeps it in the denominator, which shrinks the mean); and a client
without examples has weight 0 with both weightings (TFF counts it if weights are uniform).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import StepRow
from fedcli.dataclass import dataclass
from fedcli.learning.algorithms.client_work import CohortCall, WorkResult
from fedcli.learning.optimizers.optimizer import Optimizer


@dataclass(frozen=True)
class LocalSteps:
    """Each client takes local steps with its own optimizer state.

    Attributes:
        optimizer: The client optimizer.
        terms: Rows of the terms that the algorithm adds to the gradient.
    """

    num_passes: ClassVar[int] = 1

    optimizer: Optimizer
    terms: tuple[StepRow, ...] = ()

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Trains the cohort once."""
        return WorkResult(call.train(self.optimizer, self.terms), dict(state))
