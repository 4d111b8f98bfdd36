"""Rounds of training: client work, aggregation, and the step of the server optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcli.core.native import CancelFlag
from fedcli.errors import ConfigError
from fedcli.learning.aggregators.contract import first_state
from fedcli.learning.algorithms.base import Algorithm, apply_mean_delta
from fedcli.learning.algorithms.client_work import CohortCall
from fedcli.learning.algorithms.evaluated import Evaluated
from fedcli.learning.client_states import ClientStates
from fedcli.learning.cohort_data import cohort_data
from fedcli.learning.engines.contract import Engine
from fedcli.learning.engines.deltas import NO_BOUNDS, DeltaRequest
from fedcli.learning.process import (
    LearningProcess,
    ModelLike,
    check_call,
    check_names_kept,
    check_parts,
    names_in_parts,
    signed,
)
from fedcli.learning.state import ProcessOutput, ServerState
from fedcli.models.metrics import MetricsAggregator
from fedcli.models.model import Model
from fedcli.settings.options import check_number
from fedcli.settings.vocabulary import MAX_SMOOTHING

if TYPE_CHECKING:
    from fedcli.datasets.batches import BatchedDataset
    from fedcli.learning.algorithms.own_parts import OwnParts
    from fedcli.learning.updates.contract import UpdateStage
    from fedcli.learning.updates.pipeline import UpdatePipeline


class TrainingProcess(LearningProcess):
    """Rounds of training with one `Algorithm`."""

    def __init__(
        self,
        algorithm: Algorithm,
        model: ModelLike,
        metrics_aggregator: MetricsAggregator,
        engine: Engine | None,
        *,
        num_clients: int | None = None,
        measures_deltas: bool = False,
        class_weights: ArrayLike | None = None,
        label_smoothing: float = 0.0,
        stages: Sequence[UpdateStage] = (),
        seed: int = 0,
        root_data: BatchedDataset | None = None,
    ) -> None:
        """Combines an algorithm with a model; see `build_process`.

        Raises:
            ConfigError: `algorithm` is not an `Algorithm`; `ema_decay` is set for an algorithm that
                does not evaluate the global model; `class_weights` do not give each class one
                finite weight of at least 0; the label smoothing is not allowed; or a part does
                not support the model's batch normalization, or does not let clients keep their own.
        """
        if not isinstance(algorithm, Algorithm):
            raise ConfigError(
                f"algorithm is of type {type(algorithm).__name__}; make one with "
                "fedcli.algorithms.build('FILE.py', ...)"
            )
        super().__init__(model, metrics_aggregator, engine)
        server_optimizer = algorithm.server_optimizer.for_tensors(self.model.layout.shapes)
        entry = algorithm.entry
        if algorithm.ema_decay is not None and (entry.has_own_weights or entry.has_own_models):
            raise ConfigError(
                f"{entry.name} does not evaluate the global model, so a running mean of the global "
                "weights has no use; leave out ema_decay"
            )
        self._own_indices: NDArray[np.int64] | None = None
        if algorithm.local_norms is not None:
            from fedcli.learning.batch_norms import own_indices  # lazy: few runs keep any

            self._own_indices = own_indices(self.model, algorithm)
        if self.model.layout.num_trained < self.model.layout.num_params:
            from fedcli.learning.batch_norms import check_batch_norms  # lazy: few models have any

            check_batch_norms(self.model, algorithm, stages)
        self.algorithm = replace(algorithm, server_optimizer=server_optimizer)
        self.num_clients = num_clients
        self.class_weights: NDArray[np.float32] | None = None
        if class_weights is not None:
            from fedcli.learning.class_weights import checked_weights  # lazy: few runs have them

            self.class_weights = checked_weights(class_weights, self.model.layout.num_classes)
        self.label_smoothing = _checked_smoothing(label_smoothing, self.model)
        self._measures_deltas = measures_deltas
        self._stages = tuple(stages)
        self._seed = seed
        self._root_data = root_data

    @property
    def _averaged(self) -> slice | NDArray[np.int64]:
        """The indices of parameters that the server averages and its optimizer does not change."""
        if self._own_indices is not None:
            return self._own_indices
        return slice(self.model.layout.num_trained, None)

    def _about(self) -> dict[str, str]:
        work, algorithm = self.algorithm.client_work, self.algorithm
        optimizer = getattr(work, "optimizer", getattr(work, "base", None))
        return {
            "algorithm": algorithm.entry.name,
            **({} if optimizer is None else {"client optimizer": repr(optimizer)}),
            "server optimizer": repr(algorithm.server_optimizer),
            "aggregator": type(algorithm.aggregator).__name__,
            "weighting": algorithm.weighting,
            **super()._about(),
        }

    @signed("state_signature")
    def initialize(self) -> ServerState:
        """See `LearningProcess.initialize`."""
        params = self.model.initial_params.copy()
        return ServerState(
            round_num=0,
            global_model_weights=params,
            client_work=self.algorithm.client_work.init(params),
            aggregator=first_state(self.algorithm.aggregator, len(params)),
            finalizer=self.algorithm.server_optimizer.init(params),
            updates=self._start_updates(len(params)),
            evaluated=self._start_evaluated(params),
        )

    @cached_property
    def _names_in_parts(self) -> dict[str, frozenset[str]]:
        """The names of the values in the parts of this process's states."""
        return names_in_parts(self.initialize())

    def check_resumed(self, state: ServerState) -> None:
        """See `LearningProcess.check_resumed`."""
        self.algorithm.aggregator.request(state.aggregator)

    def num_trainings(self, num_clients: int) -> int:
        """See `LearningProcess.num_trainings`."""
        if self.algorithm.entry.pools_clients:
            return 0
        return self.algorithm.client_work.num_passes * num_clients

    def _request(self, state: ServerState) -> DeltaRequest:
        """Returns the aggregator's request, extended to measure the deltas if `measures_deltas`."""
        request = self.algorithm.aggregator.request(state.aggregator)
        if self._measures_deltas and request.bounds is None:
            return request._replace(bounds=NO_BOUNDS)
        return request

    def _pipeline(
        self, state: ServerState, request: DeltaRequest, num_absent: int
    ) -> UpdatePipeline | None:
        """Returns the pipeline of this round's updates; None if only their sum is needed."""
        if not self._stages and not request.all_rows:
            return None
        # lazy: most runs need only sums
        from fedcli.learning.updates.pipeline import UpdatePipeline

        return UpdatePipeline(
            self._stages,
            state.updates,
            self.model.layout,
            seed=self._seed,
            round_num=state.round_num,
            num_absent=num_absent,
        )

    def _start_updates(self, num_params: int) -> dict[str, Any]:
        """Returns the `updates` part of the initial state."""
        if not self._stages:
            return {}
        from fedcli.learning.updates.pipeline import initial_state

        return initial_state(self._stages, num_params)

    def _start_evaluated(self, params: NDArray[np.float32]) -> Evaluated | None:
        """Returns the `evaluated` part of the initial state."""
        if self.algorithm.entry.has_own_models or self._own_indices is not None:
            return Evaluated(own_models=ClientStates(), own_indices=self._own_indices)
        if self.algorithm.entry.has_own_weights:
            return Evaluated(params.copy())
        if self.algorithm.ema_decay is not None:
            return Evaluated(params.copy(), num_updates=0)
        return None

    def _next_evaluated(
        self, before: Evaluated | None, params: NDArray[np.float32], is_rejected: bool
    ) -> Evaluated | None:
        """Returns the next `evaluated` part, for an algorithm that does not set it itself."""
        decay = self.algorithm.ema_decay
        if before is None or decay is None or is_rejected:
            return before
        return before.after_update(decay, params)

    def _call(
        self,
        state: ServerState,
        client_data: Iterable[Any],
        cancel: CancelFlag | None,
        num_absent: int,
        max_distances: Mapping[str, float] | None,
        own_parts: OwnParts | None,
    ) -> CohortCall:
        """Returns what the client work of this round needs."""
        request = self._request(state)
        return CohortCall(
            engine=self.engine,
            layout=self.model.layout,
            params=state.global_model_weights,
            round_num=state.round_num,
            weighting=self.algorithm.weighting,
            request=request,
            aggregator=self.algorithm.aggregator,
            aggregator_state=state.aggregator,
            clients=cohort_data(client_data, self.algorithm.client_work.num_passes),
            cancel=cancel,
            num_clients=self.num_clients,
            evaluated=state.evaluated,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
            pipeline=self._pipeline(state, request, num_absent),
            root_data=self._root_data,
            max_distances=max_distances,
            own_parts=own_parts,
        )

    def _own_parts(self, state: ServerState) -> OwnParts | None:
        """Returns what clients keep to themselves in this round; None if they share all or none."""
        if self._own_indices is None:
            return None
        from fedcli.learning.algorithms.own_parts import OwnParts  # lazy: few runs keep any

        assert state.evaluated is not None
        return OwnParts(state.evaluated, state.global_model_weights)

    def _train_metrics(self, stats: NDArray[Any]) -> dict[str, Any]:
        """Returns the metrics of the cohort's training, and its number of non-finite clients."""
        num_non_finite = stats["is_finite"].tolist().count(0)
        return {**self._metrics(stats), "num_non_finite_clients": num_non_finite}

    @signed("next_signature")
    def next(
        self,
        state: ServerState,
        client_data: Iterable[Any],
        *,
        cancel: CancelFlag | None = None,
        num_absent: int = 0,
        max_distances: Mapping[str, float] | None = None,
    ) -> ProcessOutput:
        """See `LearningProcess.next`; `timings` has the keys `train` and `aggregate`."""
        check_call(state, client_data)
        check_parts(state, self.model.layout.num_params, self._names_in_parts)
        started = perf_counter()
        algorithm = self.algorithm
        own_parts = self._own_parts(state)
        call = self._call(state, client_data, cancel, num_absent, max_distances, own_parts)
        pipeline = call.pipeline
        deltas, work_state, evaluated, work_metrics = algorithm.client_work.run(
            call, state.client_work
        )
        trained = perf_counter()
        mean_delta, aggregator_state, aggregator_metrics = algorithm.aggregator.aggregate(
            state.aggregator, deltas
        )
        params, opt_state, finalizer_metrics = apply_mean_delta(
            algorithm.server_optimizer.at(state.round_num),
            state.global_model_weights,
            state.finalizer,
            mean_delta,
            self._averaged,
        )
        round_metrics = {
            "distributor": {},
            "client_work": {
                "train": self._train_metrics(deltas.stats),
                **({"algorithm": work_metrics} if work_metrics else {}),
            },
            "aggregator": aggregator_metrics,
            "finalizer": finalizer_metrics,
        }
        if self._stages:
            assert pipeline is not None
            round_metrics["updates"] = pipeline.metrics
        if own_parts is not None:
            evaluated = own_parts.after
        is_rejected = bool(finalizer_metrics["update_non_finite"])
        next_state = ServerState(
            round_num=state.round_num + 1,
            global_model_weights=params,
            distributor=state.distributor,
            client_work=work_state,
            aggregator=aggregator_state,
            finalizer=opt_state,
            updates=state.updates if pipeline is None else pipeline.state,
            evaluated=evaluated or self._next_evaluated(state.evaluated, params, is_rejected),
        )
        check_names_kept(next_state, self._names_in_parts)
        timings = {"train": trained - started, "aggregate": perf_counter() - trained}
        payloads = None if pipeline is None else pipeline.payloads
        return ProcessOutput(next_state, round_metrics, timings, deltas.stats, payloads)


def _checked_smoothing(share: float, model: Model) -> float:
    """Returns the label smoothing; only models of fedcli's layers support it."""
    smoothing = check_number("label smoothing", share, 0.0, MAX_SMOOTHING)
    if smoothing and not model.layout.layers:
        raise ConfigError(
            f"label smoothing {smoothing:g}: {model.name} computes its own loss; smooth the labels "
            "there and leave out the option"
        )
    return smoothing
