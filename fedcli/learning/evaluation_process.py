"""Rounds of federated evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

from fedcli.core.native import CancelFlag
from fedcli.errors import DataError
from fedcli.learning.cohort_data import cohort_data
from fedcli.learning.process import LearningProcess, check_call, signed
from fedcli.learning.state import ProcessOutput, ServerState
from fedcli.models import metrics


class EvaluationProcess(LearningProcess):
    """Rounds of federated evaluation: scores the batches of every client without training."""

    @signed("state_signature")
    def initialize(self) -> ServerState:
        """See `LearningProcess.initialize`; set trained weights with `set_model_weights`."""
        return ServerState(
            0, self.model.initial_params.copy(), client_work=self._own_metrics.zero()
        )

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
        """See `LearningProcess.next`; `timings` has the key `evaluate`.

        `total_rounds_metrics` cover all rounds that led to the returned state. If the state has a
        model for each client (`evaluated`), each client is scored with its own model.
        """
        check_call(state, client_data)
        if state.client_work.keys() != self._own_metrics.zero().keys():
            raise DataError(
                "state does not belong to this evaluation process; give what its "
                "set_model_weights(initialize(), weights) returns, with weights from the training "
                "process's get_model_weights(state)"
            )
        started = perf_counter()
        layout = self.model.layout
        clients = cohort_data(client_data)
        stats = self.engine.evaluate(
            layout,
            state.global_model_weights,
            clients,
            starts=state.starts,
            cancel=cancel,
        )
        totals = dict(state.client_work)
        step = 1 if state.has_own_models else max(len(stats), 1)  # one sum per model
        for first in range(0, len(stats), step):
            totals = metrics.add(totals, metrics.sum_stats(stats[first : first + step]))
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
        return ProcessOutput(next_state, round_metrics, timings, stats)
