"""FedProx: federated averaging with a proximal term in the clients' losses.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, https://arxiv.org/abs/1812.06127.

Client k of the cohort minimises, from the global parameters w,

    F_k(y) + mu/2 * |y - w|^2

that is, each local step adds mu * (y - w) to the gradient before the client optimizer uses it.
Clipping, if requested, applies to the gradient of F_k, before the term is added. All else is
federated averaging (see `fedavg`); with mu = 0 the results are the same to the byte. The reported
loss is F_k, without the term.

Weights: by examples processed (the default, as in TFF), or all the same. The paper instead samples
clients in proportion to their number of examples and averages them with equal weights.

Differences from TFF: learning/templates/proximal_client_work.py has the sign reversed. It adds
mu * (w - y), which pushes a client away from the global model; its test passes because it trains at
a rate at which SGD diverges. We use the paper's sign. TFF also keeps the metrics of a client whose
delta is not finite; we drop them, as in federated averaging.
"""

from __future__ import annotations

from fedcli.core.native import StepKind
from fedcli.learning.algorithms.fedavg import LocalSteps
from fedcli.learning.optimizers.optimizer import Optimizer


def proximal_steps(optimizer: Optimizer, *, proximal_strength: float) -> LocalSteps:
    """Returns local steps with the proximal term; `proximal_strength` is mu, >= 0."""
    terms = ((StepKind.PROXIMAL, (proximal_strength,)),) if proximal_strength else ()
    return LocalSteps(optimizer, terms)
