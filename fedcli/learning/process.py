"""The interface of a learning process: `initialize`, `next`, model weights and signatures."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import update_wrapper
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcli import models
from fedcli.core.native import CancelFlag
from fedcli.errors import ConfigError, DataError, PartError, plural
from fedcli.lazy import ExplainsNames
from fedcli.learning.engines import choosing
from fedcli.learning.engines.contract import Engine
from fedcli.learning.state import ModelWeights, ProcessOutput, ServerState
from fedcli.models import metrics
from fedcli.models.metrics import MetricsAggregator
from fedcli.models.model import Model

if TYPE_CHECKING:
    from fedcli.learning.signatures import FunctionType
    from fedcli.models.own.contract import OwnModel

# The models that a process accepts; see `build_process`.
ModelLike: TypeAlias = "str | Model | OwnModel | Callable[[], Model | OwnModel]"

Method = TypeVar("Method", bound=Callable[..., Any])

# The parts of a server state, and for each the code (perhaps the user's own) that returns it.
_PARTS = {
    "client_work": "client work",
    "aggregator": "aggregator",
    "finalizer": "server optimizer",
    "updates": "stages of updates",
}


class LearningProcess(ExplainsNames, abc.ABC):
    """A federated computation over a server state; made by the package's `build_` functions."""

    def __init__(
        self, model: ModelLike, metrics_aggregator: MetricsAggregator, engine: Engine | None
    ) -> None:
        """Sets the parts that training and evaluation share: model, metrics and engine."""
        self.model = _as_model(model)
        metrics.check_aggregator(metrics_aggregator)
        self.metrics_aggregator = metrics_aggregator
        self.engine = choosing.engine_for(self.model, engine)
        self._own_metrics = choosing.own_metrics(self.model)

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
        num_absent: int = 0,
        max_distances: Mapping[str, float] | None = None,
    ) -> ProcessOutput:
        """Runs one round on a cohort and returns the next state with the metrics of the round.

        Args:
            state: The state returned by `initialize` or the last `next`; it is not changed.
            client_data: One element per client: `data.client(id).preprocess(...)`, or a pair
                (pixels, labels) of arrays.
            cancel: A flag that any thread may set; the call then stops within a local step.
            num_absent: Number of clients that were selected for the round but did not report; a
                secure sum recovers their masks.
            max_distances: The largest L2 distance of a client's model from the global model, by
                client id, above 0. After each epoch, a client whose model is farther away
                projects it to this distance.

        Raises:
            Cancelled: The flag was set; `state` can still be used.
            ConfigError: The algorithm or the aggregator cannot compute this round.
            DataError: An element of `client_data` is of another type, or does not fit the model.
            ModelError: A user's model fails, or breaks its contract.
            PartError: Another part that a user wrote fails, or breaks its contract.
            RunError: Vectors that clients keep, or individual deltas, cannot be read or written.
        """

    def check_resumed(self, state: ServerState) -> None:
        """Checks that rounds can go on from the state of an earlier process.

        Raises:
            ConfigError: They cannot; for example, a private mean has a budget for fewer rounds.
        """

    def num_trainings(self, num_clients: int) -> int:
        """Returns how many times `next` trains a client in a round of `num_clients`.

        `CancelFlag.num_trained` counts up to the returned number. If this is 0, the algorithm pools
        the clients, and the count means nothing.
        """
        return num_clients

    def get_model_weights(self, state: ServerState) -> ModelWeights:
        """Returns copies of the weights to evaluate and export: `state.evaluated_weights`.

        Raises:
            DataError: `state` is not a server state.
        """
        check_state(state)
        return ModelWeights.of(self.model.layout, state.evaluated_weights)

    def set_model_weights(
        self, state: ServerState, weights: ModelWeights | Sequence[NDArray[Any]]
    ) -> ServerState:
        """Returns a copy of `state` with other model weights.

        The new weights also replace separately evaluated weights, if the state has any.

        Raises:
            ConfigError: The number or the shapes of the arrays do not fit the model.
            DataError: `state` is not a server state, or `weights` is no list of arrays.
        """
        check_state(state)
        if isinstance(weights, ServerState | ProcessOutput):
            raise DataError(
                f"weights are of type {type(weights).__name__}; give get_model_weights(state), or "
                "a list of arrays"
            )
        if isinstance(weights, np.ndarray | Mapping):
            shape = f" {list(weights.shape)}" if isinstance(weights, np.ndarray) else ""
            raise DataError(
                f"weights are one {type(weights).__name__}{shape}; give a list with one array per "
                "tensor; process.model.layout.split(vector) makes one of a flat vector"
            )
        if isinstance(weights, ModelWeights):
            weights = [*weights.trainable, *weights.non_trainable]
        params = self.model.layout.join(weights)
        return replace(
            state,
            global_model_weights=params,
            evaluated=None if state.evaluated is None else state.evaluated.at(params),
        )

    def _metrics(self, stats: metrics.ClientStats) -> dict[str, Any]:
        """Returns metrics over some clients: the metrics aggregator's, then the model's own."""
        built_in = metrics.aggregated(self.metrics_aggregator, stats)
        if not self._own_metrics.rows:
            return dict(built_in)
        return {**built_in, **self._own_metrics.finalize(metrics.sum_stats(stats))}

    def _about(self) -> dict[str, str]:
        """Returns a description of the process's parts by name."""
        return {"model": repr(self.model), "engine": plural(self.engine.num_threads, "thread")}

    def __repr__(self) -> str:
        """Returns the process's parts on one line."""
        parts = ", ".join(f"{name} {value}" for name, value in self._about().items())
        return f"<{type(self).__name__}: {parts}>"

    def _repr_html_(self) -> str:
        """Returns the process's parts as an HTML table."""
        from fedcli.settings import notebooks  # lazy: only notebooks need it

        return notebooks.table(type(self).__name__, (), self._about().items())

    @property
    def state_signature(self) -> FunctionType:
        """The type of `initialize` in TFF's notation."""
        from fedcli.learning.signatures import FunctionType, format_type, state_types

        state = state_types(self.initialize(), self.model.layout)
        return FunctionType(None, f"{format_type(state)}@SERVER")

    @property
    def next_signature(self) -> FunctionType:
        """The type of `next` in TFF's notation; determined by a round on one blank image."""
        from fedcli.learning.signatures import (  # lazy: rarely used
            FunctionType,
            Placed,
            format_type,
            state_types,
            value_types,
        )

        layout = self.model.layout
        blank = np.zeros((1, *layout.input_shape), np.uint8), np.zeros(1, np.int32)
        output = self.next(self.initialize(), [blank])
        state = Placed(state_types(output.state, layout), "SERVER")
        batch = {"x": f"float32[?,{layout.num_inputs}]", "y": "int32[?,1]"}
        takes = {"state": state, "client_data": Placed(batch, "CLIENTS")}
        gives = {"state": state, "metrics": Placed(value_types(output.metrics), "SERVER")}
        return FunctionType(format_type(takes), format_type(gives))


class _Computation:
    """A method of a process, called as usual, with its `type_signature` as in TFF."""

    def __init__(self, method: Callable[..., Any], signature: str) -> None:
        """Takes the bound method, and the name of the process's property with the method's type."""
        update_wrapper(self, method)
        self._method, self._signature = method, signature

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Calls the method."""
        return self._method(*args, **named)

    def __repr__(self) -> str:
        """Returns the text that stands for the method."""
        return repr(self._method)

    @property
    def type_signature(self) -> FunctionType:
        """The type of the method in TFF's notation."""
        found: FunctionType = getattr(self._method.__self__, self._signature)  # type: ignore[attr-defined]
        return found


def signed(signature: str) -> Callable[[Method], Method]:
    """Returns a decorator that gives a method of a process a `type_signature`.

    Args:
        signature: The name of the property of the process that has the type.
    """

    def decorate(method: Method) -> Method:
        return _Signed(method, signature)  # type: ignore[return-value]

    return decorate


class _Signed:
    """A descriptor of a method that `_Computation` wraps."""

    def __init__(self, method: Callable[..., Any], signature: str) -> None:
        self._method, self._signature = method, signature

    def __get__(self, process: LearningProcess | None, owner: type) -> Callable[..., Any]:
        if process is None:
            return self._method
        return _Computation(MethodType(self._method, process), self._signature)


def check_call(state: object, client_data: object) -> None:
    """Checks the arguments of `next`.

    Raises:
        DataError: `state` is not a server state, or `client_data` is an empty list.
    """
    if isinstance(client_data, ServerState) and not isinstance(state, ServerState):
        raise DataError(
            f"state is of type {type(state).__name__}; give next(state, client_data), in that order"
        )
    check_state(state)
    if isinstance(client_data, list) and not client_data:
        raise DataError("client_data is empty; give one element per client")


def names_in_parts(state: ServerState) -> dict[str, frozenset[str]]:
    """Returns the names of the values in each part, equal in all states of a process.

    Raises:
        PartError: The first state of a part that the user wrote is not a mapping.
    """
    return {part: frozenset(_values(state, part)) for part in _PARTS}


def _values(state: ServerState, part: str) -> Mapping[str, Any]:
    """Returns the values of a part. Raises PartError if they have no names."""
    values = getattr(state, part)
    if not isinstance(values, Mapping):
        raise PartError(
            f"the {_PARTS[part]} returned a state of type {type(values).__name__}; give a dict"
        )
    return values


def check_parts(state: ServerState, num_params: int, names: Mapping[str, frozenset[str]]) -> None:
    """Checks that a state has the values that a process needs.

    Args:
        state: A state.
        num_params: The number of the model's parameters.
        names: The names in the process's own states; see `names_in_parts`.

    Raises:
        DataError: The state has another number of weights, or a part of it has other names.
    """
    remedy = (
        "give what this process's initialize() or next() returned; to go on from other weights: "
        "set_model_weights(initialize(), other_process.get_model_weights(state))"
    )
    if len(state.global_model_weights) != num_params:
        raise DataError(
            f"state has {len(state.global_model_weights):,} weights, but the model has "
            f"{num_params:,}; give a state of this process, or one with a model of this size"
        )
    for part in _PARTS:
        held = getattr(state, part).keys()
        if held != names[part]:
            raise DataError(
                f"state does not belong to this process: its {part} holds "
                f"{_listed(held) or 'nothing'}, but the state of initialize() has "
                f"{_listed(names[part]) or 'nothing'}; {remedy}"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def check_names_kept(state: ServerState, names: Mapping[str, frozenset[str]]) -> None:
    """Checks that the values in each part of the state after a round have their initial names.

    Raises:
        PartError: A part that the user wrote has returned a state with other names, or a state
            that is not a mapping.
    """
    for part, writer in _PARTS.items():
        held = _values(state, part).keys()
        if held != names[part]:
            raise PartError(
                f"the {writer} returned a state with {_listed(held) or 'no values'}, but its "
                f"first one has {_listed(names[part]) or 'no values'}; a part of your own must "
                "keep the names of its state"
            )


def check_state(state: object) -> None:
    """Checks that an argument is a server state.

    Raises:
        DataError: It is something else, such as the whole output of `next`.
    """
    if not isinstance(state, ServerState):
        raise DataError(
            f"state is of type {type(state).__name__}; give the result of initialize(), or the "
            ".state of the last next()"
        )


def _as_model(model: Any) -> Model:
    if isinstance(model, str):
        return models.build(model)
    if isinstance(model, Model):
        return model
    if model is None or isinstance(model, int | float | bytes | list | tuple | dict):
        raise ConfigError(
            f"model is of type {type(model).__name__}; give a name such as 'softmax-regression', "
            "a model such as models.sequential(layers, input_shape), or an object of your own"
        )
    from fedcli.models import own as own_models

    return own_models.wrap(model)
