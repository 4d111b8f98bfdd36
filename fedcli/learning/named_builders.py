"""A `build_` function for each algorithm that has none in `builders`, and for your own algorithm.

`AlgorithmParts` lists their common arguments. Any algorithm can also be built with
`fedcli.algorithms.build` and `build_process`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from fedcli.errors import ConfigError, speaks_python
from fedcli.learning import algorithms, optimizers
from fedcli.learning.aggregators.contract import Aggregator
from fedcli.learning.aggregators.mean import Mean
from fedcli.learning.algorithms.client_work import ClientWork
from fedcli.learning.builders import build_process
from fedcli.learning.engines.contract import Engine
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.learning.process import LearningProcess, ModelLike
from fedcli.models.metrics import MetricsAggregator, sum_then_finalize
from fedcli.settings import tables
from fedcli.settings.options import Value
from fedcli.settings.vocabulary import WEIGHTINGS

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SERVER_SGD = optimizers.sgd(1.0)


class AlgorithmParts(TypedDict, total=False):
    """The common keyword arguments of these functions.

    Attributes:
        weighting: Client weights, `num-examples` or `uniform`; by default as in the paper.
        aggregator: Combines the deltas of a cohort into one, as `fedcli.aggregators.build` returns
            it; by default their weighted mean.
        metrics_aggregator: See `build_process`.
        engine: See `build_process`.
    """

    weighting: str
    aggregator: Aggregator
    metrics_aggregator: MetricsAggregator
    engine: Engine


@speaks_python(*AlgorithmParts.__annotations__)
def build_fed_prox(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    *,
    proximal_strength: float = 0.01,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns FedProx; `proximal_strength` is the paper's mu. See `algorithms.fedprox`."""
    options = {"proximal_strength": proximal_strength}
    return _build("fedprox", model, client_optimizer, server_optimizer, options, parts)


@speaks_python(*AlgorithmParts.__annotations__)
def build_scaffold(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    *,
    num_clients: int,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns SCAFFOLD for a population of `num_clients`. See `algorithms.scaffold`."""
    return _build("scaffold", model, client_optimizer, server_optimizer, {}, parts, num_clients)


@speaks_python(*AlgorithmParts.__annotations__)
def build_fed_dyn(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    *,
    num_clients: int,
    alpha: float = 0.01,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns FedDyn for a population of `num_clients`. See `algorithms.feddyn`."""
    options = {"alpha": alpha}
    return _build("feddyn", model, client_optimizer, server_optimizer, options, parts, num_clients)


@speaks_python(*AlgorithmParts.__annotations__)
def build_fed_nova(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns FedNova; the client optimizer must be SGD. See `algorithms.fednova`."""
    return _build("fednova", model, client_optimizer, server_optimizer, {}, parts)


@speaks_python(*AlgorithmParts.__annotations__)
def build_mime(
    model: ModelLike,
    base_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns Mime, with the base optimizer on clients and server. See `algorithms.mime`."""
    return _build("mime", model, base_optimizer, server_optimizer, {}, parts)


@speaks_python(*AlgorithmParts.__annotations__)
def build_local_only(
    model: ModelLike, client_optimizer: Optimizer, **parts: Unpack[AlgorithmParts]
) -> LearningProcess:
    """Returns local training, in which clients share nothing. See `algorithms.local_only`."""
    return _build("local-only", model, client_optimizer, _SERVER_SGD, {}, parts)


@speaks_python(*AlgorithmParts.__annotations__)
def build_centralized(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns training on the pooled examples of a cohort. See `algorithms.centralized`."""
    return _build("centralized", model, client_optimizer, server_optimizer, {}, parts)


@speaks_python(*AlgorithmParts.__annotations__)
def build_fed_avg_m(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_learning_rate: float = 1.0,
    server_options: Mapping[str, Value] | None = None,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns FedAvgM: server SGD with momentum 0.9, which `server_options` can change.

    See `algorithms.fedopt`.
    """
    server = _server_of("fedavgm", server_learning_rate, server_options)
    return _build("fedavgm", model, client_optimizer, server, {}, parts)


@speaks_python(*AlgorithmParts.__annotations__)
def build_fed_adagrad(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_learning_rate: float = 0.1,
    server_options: Mapping[str, Value] | None = None,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns FedAdagrad; `server_options` can change epsilon (0.001). See `algorithms.fedopt`."""
    server = _server_of("fedadagrad", server_learning_rate, server_options)
    return _build("fedadagrad", model, client_optimizer, server, {}, parts)


@speaks_python(*AlgorithmParts.__annotations__)
def build_fed_adam(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_learning_rate: float = 0.1,
    server_options: Mapping[str, Value] | None = None,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns FedAdam; `server_options` can change epsilon (0.001). See `algorithms.fedopt`."""
    server = _server_of("fedadam", server_learning_rate, server_options)
    return _build("fedadam", model, client_optimizer, server, {}, parts)


@speaks_python(*AlgorithmParts.__annotations__)
def build_fed_yogi(
    model: ModelLike,
    client_optimizer: Optimizer,
    server_learning_rate: float = 0.01,
    server_options: Mapping[str, Value] | None = None,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns FedYogi; `server_options` can change epsilon (0.001). See `algorithms.fedopt`."""
    server = _server_of("fedyogi", server_learning_rate, server_options)
    return _build("fedyogi", model, client_optimizer, server, {}, parts)


@speaks_python(*AlgorithmParts.__annotations__)
def build_own(
    algorithm: str | Path | Callable[..., ClientWork],
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer = _SERVER_SGD,
    *,
    options: Mapping[str, Value] | None = None,
    num_clients: int | None = None,
    **parts: Unpack[AlgorithmParts],
) -> LearningProcess:
    """Returns your own algorithm; `fedcli help extending` describes what it must do.

    Args:
        algorithm: Your class; FILE.py or FILE.py:NAME, which is run; the name of an algorithm in an
            installed package; or a name that `fedcli info algorithms` lists.
        model: See `build_process`.
        client_optimizer: The optimizer that your class gets.
        server_optimizer: Applies the mean delta.
        options: Options of your algorithm; missing ones take their defaults.
        num_clients: Number of clients that may take part, if your algorithm keeps vectors for them.
        parts: See `AlgorithmParts`.

    Raises:
        ConfigError: An option is unknown or has a value that is not allowed.
        PartError: The class or file fails, or breaks the contract.
    """
    options = options or {}
    return _build(algorithm, model, client_optimizer, server_optimizer, options, parts, num_clients)


def _server_of(name: str, learning_rate: float, changes: Mapping[str, Value] | None) -> Optimizer:
    """Returns an algorithm's server optimizer; `changes` replace options of its row."""
    entry = tables.ALGORITHMS[name]
    assert entry.server_optimizer is not None
    options = {**entry.server_options, **(changes or {})}
    return optimizers.build(entry.server_optimizer, learning_rate, options)


def _build(
    algorithm: str | Path | Callable[..., ClientWork],
    model: ModelLike,
    client_optimizer: Optimizer,
    server_optimizer: Optimizer,
    options: Mapping[str, Value],
    parts: AlgorithmParts,
    num_clients: int | None = None,
) -> LearningProcess:
    for side, optimizer in (("client", client_optimizer), ("server", server_optimizer)):
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"{side} optimizer is of type {type(optimizer).__name__}; give one of "
                "fedcli.optimizers, such as sgd(0.02) or build('FILE.py', 0.02)"
            )
    arguments: dict[str, Any] = dict(parts)
    entry = tables.ALGORITHMS.find(algorithm) if isinstance(algorithm, str) else None
    weightings = WEIGHTINGS if entry is None else entry.weightings
    built = algorithms.build(
        algorithm,
        client_optimizer,
        server_optimizer,
        weighting=arguments.pop("weighting", weightings[0]),
        aggregator=arguments.pop("aggregator", Mean()),
        options=options,
    )
    metrics_aggregator = arguments.pop("metrics_aggregator", sum_then_finalize)
    return build_process(built, model, metrics_aggregator, num_clients=num_clients, **arguments)
