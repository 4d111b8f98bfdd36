"""FedProx: federated averaging with a proximal term in the clients' loss.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, https://arxiv.org/abs/1812.06127.

Client k of the cohort minimises, from the global parameters w,

    F_k(y) + mu/2 * |y - w|^2

that is, each local step adds mu * (y - w) to the gradient before the client optimizer sees it.
Clipping, where it is asked for, is of the gradient of F_k; the term is added after it. All else is
federated averaging (see `fedavg`); mu = 0 is federated averaging, to the byte. The loss that is
reported is F_k, without the term.

Weights: a client counts by the examples it processed (the default, as in TFF), or each the same.
The paper instead draws clients by their number of examples and averages those drawn evenly.

Where we differ from TFF: learning/templates/proximal_client_work.py has the sign reversed, it adds
mu * (w - y), which pushes a client away from the global model. Its test passes because it trains at
a rate at which SGD diverges. This is the paper's sign. TFF also keeps the metrics of a client whose
delta is not finite; here they are dropped with it, as in federated averaging.
"""

from __future__ import annotations

from fedcli.core.native import StepKind
from fedcli.learning.algorithms.fedavg import LocalSteps
from fedcli.learning.optimizers.optimizer import Optimizer


def proximal_steps(optimizer: Optimizer, *, proximal_strength: float) -> LocalSteps:
    """Returns local steps with the proximal term; `proximal_strength` is mu, >= 0."""
    terms = ((StepKind.PROXIMAL, (proximal_strength,)),) if proximal_strength else ()
    return LocalSteps(optimizer, terms)
