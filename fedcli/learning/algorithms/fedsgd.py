"""Federated SGD: clients send gradients and take no step.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629, the case of one
local step on all of a client's data; TFF learning/algorithms/fed_sgd.py.

Client k of the cohort sends the mean gradient at the global parameters w over the examples that it
processes,

    G_k = sum_b |b| g(w; b) / sum_b |b|

and the server passes sum_k p_k G_k / sum_k p_k to its optimizer, by default SGD with rate 0.1. p_k
is the number of examples processed (the default), or 1. Clients send -G_k in place of a model
delta, so aggregators combine the -G_k. With one full batch per client and server rate a, this is
federated averaging with client SGD at rate a and server SGD at rate 1.

Differences from TFF: a client without examples has weight 0 and is not an error (TFF computes 0/0
and counts it as not finite); if a client's gradient is not finite, its metrics are dropped
together with the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.learning.algorithms.client_work import CohortCall, WorkResult


@dataclass(frozen=True)
class Gradients:
    """Each client computes its gradient at the global parameters and takes no step."""

    num_passes: ClassVar[int] = 1

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Computes the gradients of the cohort."""
        return WorkResult(call.take_gradients(), dict(state))
