"""What goes in and out of a round: the server state, its weights, and the types of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError
from fedcli.learning.algorithms.evaluated import NO_COMMON_MODEL, Evaluated
from fedcli.learning.client_states import ClientStates
from fedcli.learning.signatures import array_type, value_types
from fedcli.models.layout import ParamLayout


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
        evaluated: What is evaluated and exported in place of the global model; None: that is.
    """

    round_num: int
    global_model_weights: NDArray[np.float32]
    distributor: dict[str, Any] = field(default_factory=dict)
    client_work: dict[str, Any] = field(default_factory=dict)
    aggregator: dict[str, Any] = field(default_factory=dict)
    finalizer: dict[str, Any] = field(default_factory=dict)
    evaluated: Evaluated | None = None

    @property
    def evaluated_weights(self) -> NDArray[np.float32]:
        """What is evaluated and exported, float32 [num_params].

        Raises:
            ConfigError: Every client has a model of its own.
        """
        if self.evaluated is None:
            return self.global_model_weights
        if self.evaluated.weights is None:
            raise ConfigError(NO_COMMON_MODEL)
        return self.evaluated.weights

    @property
    def has_own_models(self) -> bool:
        """Whether every client is evaluated with a model of its own."""
        return self.evaluated is not None and self.evaluated.own_models is not None

    def weights_for(self, client_id: str) -> NDArray[np.float32]:
        """Returns what is evaluated on one client: its own model, or that of all.

        Raises:
            RunError: The file of what clients keep cannot be read.
        """
        if self.evaluated is None or self.evaluated.own_models is None:
            return self.evaluated_weights
        weights = self.global_model_weights
        return weights + self.evaluated.own_models.read(client_id, len(weights))

    def models_of(self, clients: Sequence[BatchedDataset]) -> NDArray[np.float32]:
        """Returns what is evaluated on each of some clients: float32 [num_clients, num_params].

        Raises:
            RunError: The file of what clients keep cannot be read.
        """
        models = np.empty((len(clients), len(self.global_model_weights)), np.float32)
        for row, client in zip(models, clients, strict=True):
            row[:] = self.weights_for(client.client.client_id)
        return models


@dataclass(frozen=True, eq=False)
class ModelWeights:
    """A model's weights as arrays of Keras shape, in layer order, kernel then bias."""

    trainable: list[NDArray[np.float32]]
    non_trainable: list[NDArray[np.float32]] = field(default_factory=list)

    @classmethod
    def of(cls, layout: ParamLayout, params: NDArray[np.float32]) -> ModelWeights:
        """Returns copies of what is in `params` float32 [num_params]."""
        return cls([tensor.copy() for tensor in layout.split(params)])


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


def state_types(state: ServerState, layout: ParamLayout) -> dict[str, Any]:
    """Returns the types in `state`; what has one value a parameter is shown tensor by tensor."""
    weights = {"trainable": _tensor_types("float32", layout), "non_trainable": {}}
    parts = {
        name: {key: _part_type(value, layout) for key, value in getattr(state, name).items()}
        for name in ("distributor", "client_work", "aggregator", "finalizer")
    }
    types = {"round_num": "int64", "global_model_weights": weights, **parts}
    if state.evaluated is None:
        return types
    evaluated = {name: value for name, value in vars(state.evaluated).items() if value is not None}
    return {
        **types,
        "evaluated": {name: _part_type(value, layout) for name, value in evaluated.items()},
    }


def _part_type(value: Any, layout: ParamLayout) -> Any:
    if isinstance(value, ClientStates):
        return array_type("float32", (None, layout.num_params))
    if isinstance(value, np.ndarray) and value.shape == (layout.num_params,):
        return _tensor_types(str(value.dtype), layout)
    return value_types(value)


def _tensor_types(dtype: str, layout: ParamLayout) -> list[str]:
    return [array_type(dtype, tensor.shape) for tensor in layout.tensors]
