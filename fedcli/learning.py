"""Learning processes: `state = initialize()`, then `next(state, client_data)` a round.

A process is composed as in TFF: a distributor (the model as it is), client work, an aggregator and
a finalizer, each with its own part of the server state. The state is a plain value that goes in and
comes out; a process keeps none.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedcli import batches, engines, metrics, models, optimizers, registry
from fedcli.aggregators.mean import Mean
from fedcli.algorithms import fedavg, fedsgd, mime_lite
from fedcli.algorithms.base import (
    EVALUATED_WEIGHTS,
    Algorithm,
    apply_mean_delta,
    move_ema,
    start_ema,
)
from fedcli.algorithms.client_work import CohortCall
from fedcli.backend import NO_BOUNDS, CancelFlag, Engine
from fedcli.batches import BatchedDataset
from fedcli.client_states import ClientStates
from fedcli.errors import ConfigError, DataError
from fedcli.metrics import MetricsAggregator, sum_then_finalize
from fedcli.models import Model
from fedcli.optimizers import Optimizer
from fedcli.params import ParamLayout
from fedcli.signatures import Placed, array_type, format_type, value_types

if TYPE_CHECKING:
    from fedcli.own_models import OwnModel

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

# What a process is built of; see `build_process`.
ModelLike: TypeAlias = "str | Model | OwnModel | Callable[[], Model | OwnModel]"

_SERVER_SGD = optimizers.sgd(1.0)
_FED_SGD_SERVER = optimizers.sgd(registry.ALGORITHMS["fedsgd"].server_lr)


@dataclass(frozen=True, eq=False)
class ServerState:
    """All that the next round needs, one part per component.

    Attributes:
        round_num: Rounds completed; 0 is the initial model.
        global_model_weights: float32 [num_params].
        distributor: Its state, by name: arrays, ints or floats; so are the next three.
        client_work: May hold `ClientStates` too, what each client keeps. In evaluation, the sums
            over all rounds so far.
        aggregator: What the aggregator remembers.
        finalizer: The server optimizer's state.
    """

    round_num: int
    global_model_weights: NDArray[np.float32]
    distributor: dict[str, Any] = field(default_factory=dict)
    client_work: dict[str, Any] = field(default_factory=dict)
    aggregator: dict[str, Any] = field(default_factory=dict)
    finalizer: dict[str, Any] = field(default_factory=dict)

    @property
    def evaluated_weights(self) -> NDArray[np.float32]:
        """What is evaluated and exported: the global model, unless another part has its own."""
        for part in (self.finalizer, self.client_work):
            if EVALUATED_WEIGHTS in part:
                weights: NDArray[np.float32] = part[EVALUATED_WEIGHTS]
                return weights
        return self.global_model_weights


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """A model's weights as arrays of Keras shape, in layer order, kernel then bias."""

    trainable: list[NDArray[np.float32]]
    non_trainable: list[NDArray[np.float32]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class ProcessOutput:
    """What one round returns.

    Attributes:
        state: The next state.
        metrics: In TFF's structure and names; a mean over no example is NaN.
        timings: Seconds spent, by part of the round.
        num_empty_clients: Clients of this cohort that had no example, and so weight 0.
        client_stats: One row a client, in the order of the cohort, as the engine returns them.
    """

    state: ServerState
    metrics: dict[str, Any]
    timings: dict[str, float]
    num_empty_clients: int
    client_stats: NDArray[Any]


class LearningProcess(abc.ABC):
    """A federated computation over a server state; made by the `build_` functions below."""

    def __init__(
        self, model: ModelLike, metrics_aggregator: MetricsAggregator, engine: Engine | None
    ) -> None:
        """Composes the parts common to training and evaluation."""
        self.model = _as_model(model)
        self.metrics_aggregator = metrics_aggregator
        self.engine = engines.engine_for(self.model, engine)
        self._own_metrics = engines.own_metrics(self.model)

    @abc.abstractmethod
    def initialize(self) -> ServerState:
        """Returns the state before the first round, with the model's initial weights."""

    @abc.abstractmethod
    def next(
        self,
        state: ServerState,
        client_data: Iterable[Any],
        *,
        cancel: CancelFlag | None = None,
    ) -> ProcessOutput:
        """Runs one round on a cohort and returns the next state with the round's metrics.

        Args:
            state: What `initialize` or the last `next` returned; it is not changed.
            client_data: One element a client: `data.client(id).preprocess(...)`, or a pair
                (pixels, labels) of arrays.
            cancel: Once set, from any thread, the call stops within a local step.

        Raises:
            DataError: An element is of another kind, or its data do not fit the model.
            Cancelled: The flag was raised; `state` is still good.
        """

    def get_model_weights(self, state: ServerState) -> ModelWeights:
        """Returns copies of the weights in `state` that are to be used: `evaluated_weights`."""
        tensors = self.model.layout.split(state.evaluated_weights)
        return ModelWeights([tensor.copy() for tensor in tensors])

    def set_model_weights(
        self, state: ServerState, weights: ModelWeights | Sequence[NDArray[Any]]
    ) -> ServerState:
        """Returns `state` with other model weights and everything else as it was.

        Weights that are evaluated in the global model's place become the same.

        Raises:
            ConfigError: Number or shapes of the arrays are not the model's.
        """
        tensors = weights.trainable if isinstance(weights, ModelWeights) else weights
        params = self.model.layout.join(tensors)
        return replace(
            state,
            global_model_weights=params,
            client_work=_with_evaluated(state.client_work, params),
            finalizer=_with_evaluated(state.finalizer, params),
        )

    def _metrics(self, stats: metrics.ClientStats) -> dict[str, Any]:
        """The metrics of some clients: the aggregator's, then the model's own."""
        own = self._own_metrics.finalize(metrics.sum_stats(stats))
        return {**self.metrics_aggregator(stats), **own}

    @property
    def state_signature(self) -> str:
        """The type of `initialize`, written as TFF writes it."""
        state = _state_types(self.initialize(), self.model.layout)
        return f"( -> {format_type(state)}@SERVER)"

    @property
    def next_signature(self) -> str:
        """The type of `next`, written as TFF writes it; found by running it on a blank image."""
        layout = self.model.layout
        blank = np.zeros((1, *layout.input_shape), np.uint8), np.zeros(1, np.int32)
        output = self.next(self.initialize(), [blank])
        state = Placed(_state_types(output.state, layout), "SERVER")
        batch = {"x": f"float32[?,{layout.num_inputs}]", "y": "int32[?,1]"}
        takes = {"state": state, "client_data": Placed(batch, "CLIENTS")}
        gives = {"state": state, "metrics": Placed(value_types(output.metrics), "SERVER")}
        return f"({format_type(takes)} -> {format_type(gives)})"


class TrainingProcess(LearningProcess):
    """Rounds of one `Algorithm`."""

    def __init__(
        self,
        algorithm: Algorithm,
        model: ModelLike,
        metrics_aggregator: MetricsAggregator,
        engine: Engine | None,
        *,
        num_clients: int | None = None,
        measures_deltas: bool = False,
    ) -> None:
        """Composes the algorithm's parts with a model; see `build_process`."""
        super().__init__(model, metrics_aggregator, engine)
        server_optimizer = algorithm.server_optimizer.for_tensors(self.model.layout.shapes)
        self.algorithm = replace(algorithm, server_optimizer=server_optimizer)
        self.num_clients = num_clients
        self._default_bounds = NO_BOUNDS if measures_deltas else None

    def initialize(self) -> ServerState:
        """See LearningProcess."""
        params = self.model.initial_params.copy()
        return ServerState(
            round_num=0,
            global_model_weights=params,
            client_work=self.algorithm.client_work.init(params),
            aggregator=self.algorithm.aggregator.init(),
            finalizer={**self.algorithm.server_optimizer.init(params), **self._start_ema(params)},
        )

    def _start_ema(self, params: NDArray[np.float32]) -> dict[str, Any]:
        return {} if self.algorithm.ema_decay is None else start_ema(params)

    def _move_ema(
        self, finalizer: Mapping[str, Any], params: NDArray[np.float32], is_rejected: bool
    ) -> dict[str, Any]:
        """The running mean's part of the next finalizer state."""
        decay = self.algorithm.ema_decay
        if decay is None:
            return {}
        if is_rejected:
            return {name: finalizer[name] for name in start_ema(params)}
        return move_ema(decay, finalizer, params)

    def next(
        self,
        state: ServerState,
        client_data: Iterable[Any],
        *,
        cancel: CancelFlag | None = None,
    ) -> ProcessOutput:
        """See LearningProcess; `timings` has train and aggregate."""
        started = perf_counter()
        algorithm, params = self.algorithm, state.global_model_weights
        call = CohortCall(
            engine=self.engine,
            layout=self.model.layout,
            params=params,
            clients=_cohort_data(client_data, algorithm.client_work.num_passes),
            round_num=state.round_num,
            weighting=algorithm.weighting,
            bounds=algorithm.aggregator.bounds(state.aggregator) or self._default_bounds,
            cancel=cancel,
            num_clients=self.num_clients,
        )
        cohort, work_state = algorithm.client_work.run(call, state.client_work)
        trained = perf_counter()
        mean_delta, aggregator_state, aggregator_metrics = algorithm.aggregator.aggregate(
            state.aggregator, cohort
        )
        params, opt_state, finalizer_metrics = apply_mean_delta(
            algorithm.server_optimizer.at(state.round_num), params, state.finalizer, mean_delta
        )
        num_non_finite = np.count_nonzero(cohort.stats["is_finite"] == 0)
        train_metrics = {
            **self._metrics(cohort.stats),
            "num_non_finite_clients": int(num_non_finite),
        }
        round_metrics = {
            "distributor": {},
            "client_work": {"train": train_metrics},
            "aggregator": aggregator_metrics,
            "finalizer": finalizer_metrics,
        }
        next_state = replace(
            state,
            round_num=state.round_num + 1,
            global_model_weights=params,
            client_work=work_state,
            aggregator=aggregator_state,
            finalizer={
                **opt_state,
                **self._move_ema(
                    state.finalizer, params, bool(finalizer_metrics["update_non_finite"])
                ),
            },
        )
        timings = {"train": trained - started, "aggregate": perf_counter() - trained}
        num_empty = _count_empty(cohort.stats)
        return ProcessOutput(next_state, round_metrics, timings, num_empty, cohort.stats)


class EvaluationProcess(LearningProcess):
    """Rounds of federated evaluation: every client's batches are scored, nothing is trained."""

    def initialize(self) -> ServerState:
        """See LearningProcess; the weights are untrained until `set_model_weights`."""
        return ServerState(
            0, self.model.initial_params.copy(), client_work=self._own_metrics.zero()
        )

    def next(
        self,
        state: ServerState,
        client_data: Iterable[Any],
        *,
        cancel: CancelFlag | None = None,
    ) -> ProcessOutput:
        """See LearningProcess; `timings` has evaluate.

        `total_rounds_metrics` cover every round since `initialize` whose state was passed on.
        """
        started = perf_counter()
        layout = self.model.layout
        clients = _cohort_data(client_data)
        stats = self.engine.evaluate(layout, state.global_model_weights, clients, cancel=cancel)
        totals = metrics.add(state.client_work, metrics.sum_stats(stats))
        eval_metrics = {
            "current_round_metrics": self._metrics(stats),
            "total_rounds_metrics": self._metrics(metrics.as_stats(totals)),
        }
        round_metrics = {
            "distributor": {},
            "client_work": {"eval": eval_metrics},
            "aggregator": {"mean_value": {}, "mean_weight": {}},
            "finalizer": {},
        }
        next_state = replace(state, round_num=state.round_num + 1, client_work=totals)
        timings = {"evaluate": perf_counter() - started}
        return ProcessOutput(next_state, round_metrics, timings, _count_empty(stats), stats)


def build_process(
    algorithm: Algorithm,
    model: Any,
    metrics_aggregator: MetricsAggregator = sum_then_finalize,
    *,
    engine: Engine | None = None,
    num_clients: int | None = None,
    measures_deltas: bool = False,
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

    Raises:
        ConfigError: The model's name is unknown.
        ModelError: The object breaks the contract.
    """
    return TrainingProcess(
        algorithm,
        model,
        metrics_aggregator,
        engine,
        num_clients=num_clients,
        measures_deltas=measures_deltas,
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
    algorithm = fedsgd.build(None, server_optimizer, weighting="num-examples", aggregator=Mean())
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
    algorithm = mime_lite.build(
        base_optimizer, server_optimizer, weighting="num-examples", aggregator=Mean()
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


def _as_model(model: Any) -> Model:
    if isinstance(model, str):
        return models.build(model)
    if isinstance(model, Model):
        return model
    if model is None or isinstance(model, int | float | bytes | list | tuple | dict):
        raise ConfigError(
            f"model is of type {type(model).__name__}; give a name such as "
            "'softmax-regression', a model of fedcli.models, or an object of your own"
        )
    from fedcli import own_models  # late: few processes need them

    return own_models.wrap(model)


def _fed_avg(client: Optimizer, server: Optimizer, weighting: str) -> Algorithm:
    _check_optimizer("client", client)
    _check_optimizer("server", server)
    return fedavg.build(client, server, weighting=weighting, aggregator=Mean())


def _check_optimizer(side: str, optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"{side}_optimizer is of type {type(optimizer).__name__}; give one of "
            "fedcli.optimizers, such as sgd(0.02)"
        )


def _with_evaluated(part: dict[str, Any], params: NDArray[np.float32]) -> dict[str, Any]:
    """A part of a state; weights of its own that are evaluated are `params` now."""
    return {**part, EVALUATED_WEIGHTS: params.copy()} if EVALUATED_WEIGHTS in part else part


def _count_empty(stats: NDArray[Any]) -> int:
    is_empty = (stats["num_examples"] == 0) & (stats["is_finite"] != 0)
    return int(np.count_nonzero(is_empty))


def _cohort_data(client_data: Iterable[Any], num_passes: int = 1) -> Iterable[BatchedDataset]:
    """Returns a cohort's data as the engine takes it, so many times.

    What is no sequence is read as it is used; a generator that is used twice is read once, whole.
    """
    if isinstance(client_data, Mapping | str) or not isinstance(client_data, Iterable):
        kind = type(client_data).__name__
        raise DataError(f"client_data is of type {kind}; give a list, one element a client")
    if isinstance(client_data, tuple) and all(type(each) is BatchedDataset for each in client_data):
        return client_data  # as it is: the engine knows a tuple again
    if isinstance(client_data, Sequence) or (num_passes > 1 and isinstance(client_data, Iterator)):
        return [_one_client(element, index) for index, element in enumerate(client_data)]
    return _ReadAsUsed(client_data)


@dataclass(frozen=True, eq=False)
class _ReadAsUsed:
    """The clients of an iterable, checked one by one, as often as it can be gone through."""

    client_data: Iterable[Any]

    def __iter__(self) -> Iterator[BatchedDataset]:
        return (_one_client(element, index) for index, element in enumerate(self.client_data))


def _one_client(element: Any, index: int) -> BatchedDataset:
    if isinstance(element, BatchedDataset):
        return element
    if isinstance(element, tuple | list) and len(element) == 2:
        pixels, labels = element
        return batches.from_arrays(pixels, labels, client_id=str(index), source="client_data")
    raise DataError(
        f"client_data[{index}] is of type {type(element).__name__}; give "
        "data.client(id).preprocess(...) or a pair (pixels, labels) of arrays"
    )


def _state_types(state: ServerState, layout: ParamLayout) -> dict[str, Any]:
    """The types in `state`; what has one value a parameter is shown tensor by tensor."""
    weights = {"trainable": _tensor_types("float32", layout), "non_trainable": {}}
    parts = {
        name: {key: _part_type(value, layout) for key, value in getattr(state, name).items()}
        for name in ("distributor", "client_work", "aggregator", "finalizer")
    }
    return {"round_num": "int64", "global_model_weights": weights, **parts}


def _part_type(value: Any, layout: ParamLayout) -> Any:
    if isinstance(value, ClientStates):
        return array_type("float32", (None, layout.num_params))
    if isinstance(value, np.ndarray) and value.shape == (layout.num_params,):
        return _tensor_types(str(value.dtype), layout)
    return value_types(value)


def _tensor_types(dtype: str, layout: ParamLayout) -> list[str]:
    return [array_type(dtype, tensor.shape) for tensor in layout.tensors]
