"""Federated SGD: clients send gradients and take no step.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629, the case of one
local step on all of a client's data; TFF learning/algorithms/fed_sgd.py.

Client k of the cohort scores its batches at the global parameters w and sends the mean gradient
over the examples it processes,

    G_k = sum_b |b| g(w; b) / sum_b |b|

and the server gives sum_k p_k G_k / sum_k p_k to its optimizer; its default is SGD with rate 0.1.
p_k is the number of examples processed (the default), or 1. What travels is -G_k in the place of a
model delta, so aggregators apply to it. With one full batch a client, this is federated averaging
with client SGD at rate a and server SGD at rate 1, if the server's rate here is a.

Where we differ from TFF: a client without examples has weight 0 and is no fault (TFF has 0/0 and
counts it as not finite); the metrics of a client whose gradient is not finite are dropped with it.
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
    """Each client scores its batches at the global parameters and takes no step."""

    num_passes: ClassVar[int] = 1

    def init(self, params: NDArray[np.float32]) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def run(self, call: CohortCall, state: Mapping[str, Any]) -> WorkResult:
        """Goes over the cohort once."""
        return WorkResult(call.take_gradients(), dict(state))
