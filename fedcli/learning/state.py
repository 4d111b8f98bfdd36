"""The input and the output of a round: server state, model weights and process output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import ConfigError, plural
from fedcli.lazy import ExplainsNames
from fedcli.learning.algorithms.evaluated import NO_COMMON_MODEL, Evaluated
from fedcli.learning.client_states import ClientStates
from fedcli.learning.engines.contract import Starts
from fedcli.models.layout import ParamLayout


@dataclass(frozen=True, eq=False)
class ServerState(ExplainsNames):
    """Everything that the next round needs, one part per component.

    Attributes:
        round_num: Rounds completed; 0 for the initial model.
        global_model_weights: float32 [num_params].
        distributor: The distributor's state: arrays, ints or floats by name. The next four parts
            are of the same kind.
        client_work: The client work's state. In an evaluation process it holds the sums of the
            statistics over all rounds so far. This part, `aggregator` and `updates` may also
            hold `ClientStates`, one vector per client.
        aggregator: The aggregator's state.
        finalizer: The server optimizer's state.
        updates: The state of the stages that change individual updates before they are aggregated.
        evaluated: The weights or models that are evaluated and exported instead of the global
            model; None for the global model.
    """

    round_num: int
    global_model_weights: NDArray[np.float32]
    distributor: dict[str, Any] = field(default_factory=dict)
    client_work: dict[str, Any] = field(default_factory=dict)
    aggregator: dict[str, Any] = field(default_factory=dict)
    finalizer: dict[str, Any] = field(default_factory=dict)
    updates: dict[str, Any] = field(default_factory=dict)
    evaluated: Evaluated | None = None

    def _about(self) -> dict[str, str]:
        """Describes each component in words."""
        parts = {
            name: ", ".join(f"{key} {_kind(part)}" for key, part in getattr(self, name).items())
            for name in ("distributor", "client_work", "aggregator", "finalizer", "updates")
        }
        evaluated = {} if self.evaluated is None else {"evaluated": "other weights"}
        weights = f"{len(self.global_model_weights):,} weights"
        return {"global_model_weights": weights, **parts, **evaluated}

    def __repr__(self) -> str:
        """Returns the round, and the shapes of the values in each part that is not empty."""
        parts = "; ".join(f"{name}: {text}" for name, text in self._about().items() if text)
        return f"<ServerState after round {self.round_num}; {parts}>"

    def _repr_html_(self) -> str:
        """Returns the round and all parts as an HTML table."""
        from fedcli.settings import notebooks  # lazy: notebooks alone need it

        rows = [(name, text or "-") for name, text in self._about().items()]
        return notebooks.table(f"ServerState after round {self.round_num}", (), rows)

    @property
    def evaluated_weights(self) -> NDArray[np.float32]:
        """The weights that are evaluated and exported, float32 [num_params].

        Raises:
            ConfigError: Every client has a model of its own.
        """
        if not self.has_common_model:
            raise ConfigError(NO_COMMON_MODEL)
        if self.evaluated is None or self.evaluated.weights is None:
            return self.global_model_weights
        return self.evaluated.weights

    @property
    def has_common_model(self) -> bool:
        """Whether there is a model for clients that have none of their own."""
        evaluated = self.evaluated
        return evaluated is None or not self.has_own_models or evaluated.own_indices is not None

    @property
    def has_own_models(self) -> bool:
        """Whether every client is evaluated with a model of its own."""
        return self.evaluated is not None and self.evaluated.own_models is not None

    def weights_for(self, client_id: str) -> NDArray[np.float32]:
        """Returns the weights that are evaluated on one client: its own, or those of all clients.

        Raises:
            RunError: The file of client states cannot be read.
        """
        if self.evaluated is None or self.evaluated.own_models is None:
            return self.evaluated_weights
        model = np.empty_like(self.global_model_weights)
        self.evaluated.write_model(self.global_model_weights, client_id, model)
        return model

    def models_of(self, clients: Sequence[BatchedDataset]) -> NDArray[np.float32]:
        """Returns the clients' own models, float32 [num_clients, num_params].

        The row of a client without one holds the global weights.

        Raises:
            RunError: The file of client states cannot be read.
        """
        assert self.evaluated is not None
        models = np.empty((len(clients), len(self.global_model_weights)), np.float32)
        for row, client in zip(models, clients, strict=True):
            self.evaluated.write_model(self.global_model_weights, client.client.client_id, row)
        return models

    @property
    def starts(self) -> Starts | None:
        """The function that returns clients' own weights; None if they have none.

        `Engine.evaluate` calls it.
        """
        return self.models_of if self.has_own_models else None


@dataclass(frozen=True, eq=False)
class ModelWeights(ExplainsNames):
    """A model's weights as arrays with Keras's shapes, in layer order, kernel before bias.

    Attributes:
        trainable: The weights that are trained.
        non_trainable: The moving statistics of batch norms, mean before variance.
    """

    trainable: list[NDArray[np.float32]]
    non_trainable: list[NDArray[np.float32]] = field(default_factory=list)

    @classmethod
    def of(cls, layout: ParamLayout, params: NDArray[np.float32]) -> ModelWeights:
        """Returns copies of the tensors in `params`, float32 [num_params]."""
        arrays = [tensor.copy() for tensor in layout.split(params)]
        num_trained = len(layout.trained_shapes)
        return cls(arrays[:num_trained], arrays[num_trained:])


@dataclass(frozen=True, eq=False)
class ProcessOutput(ExplainsNames):
    """What one round returns.

    Attributes:
        state: The next state.
        metrics: Metrics with TFF's structure and names; a mean over no example is NaN.
        timings: Seconds spent in each part of the round.
        client_stats: The engine's statistics, one row per client, in cohort order.
        payloads: The bytes of the encoded update of each client, int64 [num_clients], 0 if it was
            not sent; None if updates are not compressed.
    """

    state: ServerState
    metrics: dict[str, Any]
    timings: dict[str, float]
    client_stats: NDArray[Any]
    payloads: NDArray[np.int64] | None = None

    @property
    def num_empty_clients(self) -> int:
        """Number of clients without examples, apart from those that diverged."""
        stats = self.client_stats
        is_empty = (stats["num_examples"] == 0) & (stats["is_finite"] != 0)
        return int(np.count_nonzero(is_empty))

    def __iter__(self) -> NoReturn:
        """Refuses `state, metrics = process.next(...)`, as in early versions of TFF."""
        raise TypeError(
            "a ProcessOutput is no pair; write output = process.next(state, client_data), then "
            "output.state and output.metrics"
        )

    def _scores(self) -> dict[str, Any]:
        """Returns the metrics of training or evaluation by name."""
        work = self.metrics["client_work"]
        scores: dict[str, Any] = (
            work["train"] if "train" in work else work["eval"]["current_round_metrics"]
        )
        return scores

    def __repr__(self) -> str:
        """Returns the round, its clients and its metrics."""
        scores = ", ".join(f"{name} {_shown(value)}" for name, value in self._scores().items())
        return (
            f"<ProcessOutput of round {self.state.round_num}: "
            f"{plural(len(self.client_stats), 'client')}, {scores}>"
        )

    def _repr_html_(self) -> str:
        """Returns the metrics as an HTML table."""
        from fedcli.settings import notebooks  # lazy: only notebooks need it

        title = f"Round {self.state.round_num}, {plural(len(self.client_stats), 'client')}"
        rows = [(name, _shown(value)) for name, value in self._scores().items()]
        return notebooks.table(title, (), rows)


def _kind(part: Any) -> str:
    """Returns the type and shape of an array, or the value of a number."""
    if isinstance(part, np.ndarray):
        return f"{part.dtype} {list(part.shape)}"
    return type(part).__name__ if isinstance(part, ClientStates) else f"= {part}"


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
