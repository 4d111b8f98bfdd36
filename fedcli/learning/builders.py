"""Learning processes: `state = initialize()`, then `next(state, client_data)` a round.

A process is composed as in TFF: a distributor (the model as it is), client work, an aggregator and
a finalizer, each with its own part of the server state. The state is a plain value that goes in and
comes out; a process keeps none.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from fedcli.errors import ConfigError
from fedcli.learning import algorithms, optimizers
from fedcli.learning.aggregators.mean import Mean
from fedcli.learning.algorithms.base import Algorithm
from fedcli.learning.engines.contract import Engine
from fedcli.learning.evaluation_process import EvaluationProcess
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.learning.process import LearningProcess, ModelLike
from fedcli.learning.state import ModelWeights, ProcessOutput, ServerState
from fedcli.learning.training_process import TrainingProcess
from fedcli.models.metrics import MetricsAggregator, sum_then_finalize
from fedcli.settings import tables

__all__ = [
    "LearningProcess",
    "ModelWeights",
    "ProcessOutput",
    "ServerState",
    "build_fed_eval",
    "build_fed_sgd",
    "build_mime_lite_with_optimizer",
    "build_process",
    "build_unweighted_fed_avg",
    "build_weighted_fed_avg",
    "sum_then_finalize",
]

_SERVER_SGD = optimizers.sgd(1.0)
_FED_SGD_SERVER = optimizers.sgd(tables.ALGORITHMS["fedsgd"].server_lr)


def build_process(
    algorithm: Algorithm,
    model: Any,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
    num_clients: int | None = None,
    measures_deltas: bool = False,
    class_weights: ArrayLike | None = None,
) -> LearningProcess:
    """Returns the training process of any algorithm.

    Args:
        algorithm: What `fedcli.algorithms.build` returns.
        model: A registry name, a model of `fedcli.models`, an object of one's own
            (`fedcli.own_models.OwnModel`), or a class or function without arguments that makes one;
            a `torch.nn.Module` as `fedcli.own_models.wrap` returns it.
        metrics_aggregator: From the stats of clients to metrics by name. A model's own metrics,
            which are summed and then finalised, come after them.
        engine: What computes clients; by default, threads of this process, or for a model in
            Python the calling thread.
        num_clients: How many clients may take part in all; SCAFFOLD and FedDyn need it.
        measures_deltas: Whether the stats of clients tell the norm of each delta, which costs a
            pass over it and changes nothing else.
        class_weights: What the training loss of each class is multiplied with, [num_classes],
            finite and not negative, as Keras's `class_weight`. The loss of a batch is the sum of
            the products over its number of examples. None: all are 1.

    Raises:
        ConfigError: The model's name is unknown, or class weights do not fit.
        ModelError: The object breaks the contract.
    """
    return TrainingProcess(
        algorithm,
        model,
        metrics_aggregator,
        engine,
        num_clients=num_clients,
        measures_deltas=measures_deltas,
        class_weights=class_weights,
    )


def build_weighted_fed_avg(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
) -> LearningProcess:
    """Returns federated averaging, clients weighted by the examples they process.

    See `fedcli.algorithms.fedavg` for the algorithm and `build_process` for the arguments.
    """
    algorithm = _fed_avg(client_optimizer, server_optimizer, "num-examples")
    return build_process(algorithm, model, metrics_aggregator, engine=engine)


def build_unweighted_fed_avg(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
) -> LearningProcess:
    """Returns federated averaging in which every client with data counts the same.

    See `fedcli.algorithms.fedavg` for the algorithm and `build_process` for the arguments.
    """
    algorithm = _fed_avg(client_optimizer, server_optimizer, "uniform")
    return build_process(algorithm, model, metrics_aggregator, engine=engine)


def build_fed_sgd(
    model: ModelLike,
    server_optimizer: Optimizer = _FED_SGD_SERVER,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
) -> LearningProcess:
    """Returns federated SGD, clients weighted by the examples they process.

    See `fedcli.algorithms.fedsgd` for the algorithm and `build_process` for the arguments.
    """
    _check_optimizer("server", server_optimizer)
    algorithm = algorithms.build(
        "fedsgd", None, server_optimizer, weighting="num-examples", aggregator=Mean()
    )
    return build_process(algorithm, model, metrics_aggregator, engine=engine)


def build_mime_lite_with_optimizer(
    model: ModelLike,
    base_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
) -> LearningProcess:
    """Returns Mime Lite, clients weighted by the examples they process.

    See `fedcli.algorithms.mime_lite` for the algorithm and `build_process` for the arguments.
    """
    _check_optimizer("base", base_optimizer)
    _check_optimizer("server", server_optimizer)
    algorithm = algorithms.build(
        "mime-lite",
        base_optimizer,
        server_optimizer,
        weighting="num-examples",
        aggregator=Mean(),
    )
    return build_process(algorithm, model, metrics_aggregator, engine=engine)


def build_fed_eval(
    model: ModelLike,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
) -> LearningProcess:
    """Returns federated evaluation; see `build_process` for the arguments."""
    return EvaluationProcess(model, metrics_aggregator, engine)


def _fed_avg(client: Optimizer, server: Optimizer, weighting: str) -> Algorithm:
    _check_optimizer("client", client)
    _check_optimizer("server", server)
    return algorithms.build("fedavg", client, server, weighting=weighting, aggregator=Mean())


def _check_optimizer(side: str, optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"{side}_optimizer is of type {type(optimizer).__name__}; give one of "
            "fedcli.optimizers, such as sgd(0.02)"
        )
