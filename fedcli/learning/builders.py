"""Builds learning processes: `state = initialize()`, then `next(state, client_data)` each round.

A process is composed as in TFF of a distributor (which sends the unchanged model), client work, an
aggregator and a finalizer. Each has its own part of the server state. A process holds no state
itself: each round takes a state and returns the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from fedcli.errors import ConfigError, speaks_python
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

if TYPE_CHECKING:
    from fedcli.datasets.batches import BatchedDataset
    from fedcli.learning.updates.contract import UpdateStage

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


@speaks_python()
def build_process(
    algorithm: Algorithm,
    model: Any,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
    num_clients: int | None = None,
    measures_deltas: bool = False,
    class_weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    stages: Sequence[UpdateStage] = (),
    seed: int = 0,
    root_data: BatchedDataset | None = None,
) -> TrainingProcess:
    """Returns the training process of any algorithm.

    Args:
        algorithm: The algorithm, as `fedcli.algorithms.build` returns it.
        model: A registry name, a model of `fedcli.models`, your own model object
            (`fedcli.own_models.OwnModel`), or a class or function without arguments that makes one.
            Wrap a `torch.nn.Module` with `fedcli.own_models.wrap`.
        metrics_aggregator: Computes metrics by name from the clients' statistics. Metrics that the
            model defines are added after them: they are summed over the clients, then finalised.
        engine: Trains and evaluates the clients. The default engine uses threads of this process,
            or the calling thread for a model in Python.
        num_clients: The size of the population; SCAFFOLD and FedDyn need it.
        measures_deltas: Whether the clients' statistics contain the norm of each delta. This costs
            a pass over each delta and changes no other result.
        class_weights: Factors of the training loss by class, [num_classes], finite and not
            negative, as Keras's `class_weight`. The loss of a batch is the sum of the weighted
            losses divided by its number of examples. None for 1 in all classes.
        label_smoothing: The share of each label that is spread equally over all classes, in [0, 1),
            as Keras's `label_smoothing`. The training loss includes it; evaluations do not.
        stages: The stages that change the individual updates of a cohort before aggregation, in
            order.
        seed: The seed of all random numbers of stages and aggregators.
        root_data: The server's own examples in batches, for an aggregator that needs them.

    Raises:
        ConfigError: The model's name is unknown, `algorithm` is of another type, class weights or
            smoothing do not fit the model, or the parts do not fit it or each other.
        ModelError: The model object breaks its contract.
    """
    return TrainingProcess(
        algorithm,
        model,
        metrics_aggregator,
        engine,
        num_clients=num_clients,
        measures_deltas=measures_deltas,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        stages=stages,
        seed=seed,
        root_data=root_data,
    )


@speaks_python()
def build_weighted_fed_avg(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
) -> LearningProcess:
    """Returns federated averaging with clients weighted by the number of examples they process.

    See `fedcli.algorithms.fedavg` for the algorithm and `build_process` for the arguments.
    """
    algorithm = _fed_avg(client_optimizer, server_optimizer, "num-examples")
    return build_process(algorithm, model, metrics_aggregator, engine=engine)


@speaks_python()
def build_unweighted_fed_avg(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
) -> LearningProcess:
    """Returns federated averaging with the same weight for every client that has data.

    See `fedcli.algorithms.fedavg` for the algorithm and `build_process` for the arguments.
    """
    algorithm = _fed_avg(client_optimizer, server_optimizer, "uniform")
    return build_process(algorithm, model, metrics_aggregator, engine=engine)


@speaks_python()
def build_fed_sgd(
    model: ModelLike,
    server_optimizer: Optimizer = _FED_SGD_SERVER,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
) -> LearningProcess:
    """Returns federated SGD with clients weighted by the number of examples they process.

    See `fedcli.algorithms.fedsgd` for the algorithm and `build_process` for the arguments.
    """
    _check_optimizer("server", server_optimizer)
    algorithm = algorithms.build(
        "fedsgd", None, server_optimizer, weighting="num-examples", aggregator=Mean()
    )
    return build_process(algorithm, model, metrics_aggregator, engine=engine)


@speaks_python()
def build_mime_lite_with_optimizer(
    model: ModelLike,
    base_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
) -> LearningProcess:
    """Returns Mime Lite with clients weighted by the number of examples they process.

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


@speaks_python()
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
