"""Personalization evaluation: how each client's own fine-tuning changes a model's metrics.

It follows TFF's build_personalization_eval_computation (learning/algorithms/
personalization_eval.py). First the model is evaluated on each client's test data; this is the
baseline. Then, for each strategy, it is trained from the same weights on the client's train data
and evaluated again. Metrics are not averaged: they are lists with one value for each client, in the
same order, so that they show each client's gain.

At most `max_num_clients` clients are evaluated. TFF draws them by reservoir sampling, fedcli draws
them by the seed. A fine-tuned model that is not finite has loss NaN and no correct prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import CancelFlag
from fedcli.core.seeds import Purpose
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import BatchPlan
from fedcli.datasets.batches import BatchedDataset
from fedcli.datasets.client_data import ClientData
from fedcli.errors import ConfigError
from fedcli.evaluation.predictions import predict_by_client
from fedcli.federation import samplers
from fedcli.federation.evaluation_groups import EvaluationGroup
from fedcli.learning.engines.contract import BLOCK_CLIENTS, PIECE_BYTES, Engine, Starts
from fedcli.learning.engines.task import NO_INPUTS, ClientInputs, ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.learning.optimizers.optimizer import Optimizer
from fedcli.models import metrics
from fedcli.models.model import Model

if TYPE_CHECKING:
    from fedcli.evaluation.measuring import Measuring

__all__ = [
    "BASELINE",
    "MAX_NUM_CLIENTS",
    "FineTuning",
    "PersonalizationEvaluation",
    "evaluate_personalization",
    "fine_tuned_stats",
]


def __dir__() -> list[str]:
    """Returns the public names."""
    return __all__


BASELINE = "baseline_metrics"
MAX_NUM_CLIENTS = 100


@dataclass(frozen=True)
class FineTuning:
    """A strategy of fine-tuning: local steps on a client's own train data.

    Attributes:
        optimizer: The optimizer.
        plan: How the examples become batches; `epochs` is the number of epochs.
        num_steps: Number of local steps of each client, instead of `plan.epochs`; None: not used.
    """

    optimizer: Optimizer
    plan: BatchPlan
    num_steps: int | None = None

    def plan_for(self, num_examples: int) -> BatchPlan:
        """Returns the plan for a client with `num_examples` examples."""
        if self.num_steps is None:
            return self.plan
        return self.plan.of_steps(self.num_steps, num_examples)


@dataclass(frozen=True, eq=False)
class PersonalizationEvaluation:
    """Metrics of each client before and after fine-tuning.

    Attributes:
        client_ids: The evaluated clients, sorted.
        metrics: `baseline_metrics`, and for each strategy the metrics of the fine-tuned models.
            Each metric, by name, is a list with one value per client, ordered as `client_ids`.
    """

    client_ids: tuple[str, ...]
    metrics: dict[str, dict[str, list[Any]]]


def evaluate_personalization(
    model: Model,
    weights: NDArray[np.float32],
    train: ClientData,
    test: ClientData,
    strategies: Mapping[str, FineTuning],
    *,
    client_ids: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 20,
    max_num_clients: int = MAX_NUM_CLIENTS,
    engine: Engine | None = None,
    cancel: CancelFlag | None = None,
) -> PersonalizationEvaluation:
    """Returns the metrics of a model before and after fine-tuning, client by client.

    Args:
        model: The model.
        weights: Initial weights of fine-tuning, float32 [num_params], such as `evaluated_weights`.
        train: The split on which clients train.
        test: The split on which clients are evaluated.
        strategies: Strategies by name; the name `baseline_metrics` is reserved.
        client_ids: The clients that may be evaluated; None: all clients of both splits.
        seed: Seed of the batches, and of the draw if there are more than `max_num_clients`.
        batch_size: Batch size of the evaluation; it changes only `num_batches`.
        max_num_clients: Largest number of clients to evaluate.
        engine: The engine; None: threads of this process.
        cancel: A flag that any thread may set to stop the call within a local step.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: A strategy has the reserved name, an optimizer takes no local steps, or there
            is no client to evaluate.
        DataError: A client is not in both splits, or its data do not fit the model.
        ModelError: A user's model fails, or breaks its contract.
    """
    if BASELINE in strategies:
        raise ConfigError(
            f"the strategy name {BASELINE} is reserved for the baseline; choose another name"
        )
    if max_num_clients < 1:
        raise ConfigError(f"max_num_clients = {max_num_clients}: choose a whole number from 1")
    chosen = _choose(train, test, client_ids, seed, max_num_clients)
    engine = engine or ThreadEngine()
    scoring = BatchPlan(batch_size=batch_size)
    tested = (BatchedDataset(test.client(each), scoring) for each in chosen)
    rows = {BASELINE: engine.evaluate(model.layout, weights, tested, cancel=cancel)}
    for name, strategy in strategies.items():
        rows[name] = fine_tuned_stats(
            model,
            weights,
            strategy,
            train,
            test,
            chosen,
            scoring,
            seed=seed,
            engine=engine,
            cancel=cancel,
        )
    return PersonalizationEvaluation(
        tuple(chosen), {name: _by_client(stats) for name, stats in rows.items()}
    )


def fine_tuned_stats(
    model: Model,
    weights: NDArray[np.float32],
    strategy: FineTuning,
    train: ClientData,
    test: ClientData,
    client_ids: Sequence[str],
    scoring: BatchPlan,
    *,
    seed: int,
    round_num: int = 0,
    engine: Engine,
    class_weights: NDArray[np.float32] | None = None,
    label_smoothing: float = 0.0,
    measuring: Measuring | None = None,
    starts: Starts | None = None,
    cancel: CancelFlag | None = None,
) -> NDArray[Any]:
    """Returns the stats of each client's own fine-tuned model, one row for each client.

    Args:
        model: The model.
        weights: The weights from which each client starts, float32 [num_params].
        strategy: How clients fine-tune.
        train: The split on which they train.
        test: The split on which clients are evaluated.
        client_ids: At least one client; each is in both splits.
        scoring: How test examples become batches.
        seed: The seed of the shuffles.
        round_num: Rounds completed. Shuffles, and learning-rate schedules by round, depend on it,
            so that a client trains as it would in the next round.
        engine: The engine that computes clients.
        class_weights: Class weights of the training loss; see `ClientTask`.
        label_smoothing: Label smoothing of the training loss; see `ClientTask`.
        measuring: Computes metrics of the fine-tuned models' predictions; None: none are requested.
        starts: Returns the weights from which each client starts instead of `weights`; None: all
            start from `weights`.
        cancel: A flag that any thread may set to stop the call within a local step.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: The optimizer takes no local steps.
        DataError: A client is not in both splits, or its data do not fit the model.
        ModelError: A user's model fails, or breaks its contract.
        PartError: See `Measuring.add`.
        RunError: See `Measuring.add`.
    """
    task = _training_task(
        strategy, weights, round_num, class_weights=class_weights, label_smoothing=label_smoothing
    )
    scored: list[NDArray[Any]] = []
    block = _num_models_at_once(len(weights))
    for first in range(0, len(client_ids), block):
        ids = client_ids[first : first + block]
        own = [train.client(each) for each in ids]
        tuned = _TunedModels(weights, ids, starts)
        batches = [BatchedDataset(each, strategy.plan_for(len(each)), seed) for each in own]
        engine.train(model.layout, task, batches, exchange=tuned, cancel=cancel)
        tested = [BatchedDataset(test.client(each), scoring) for each in ids]
        stats = engine.evaluate(model.layout, weights, tested, starts=tuned.starts, cancel=cancel)
        scored += tuned.rows_of(stats)
        if measuring is not None:
            group = EvaluationGroup(test.split, test, ids, scoring)
            found = predict_by_client(group, model, engine, weights, cancel, tuned.starts_or_nan)
            for place, pieces in found:
                measuring.add(first + place, pieces)
    return np.concatenate(scored)


def _training_task(
    strategy: FineTuning,
    weights: NDArray[np.float32],
    round_num: int,
    *,
    class_weights: NDArray[np.float32] | None,
    label_smoothing: float,
) -> ClientTask:
    """The task of all clients: local steps from the same weights, as after `round_num` rounds."""
    optimizer = strategy.optimizer.at(round_num)
    return ClientTask(
        rows=tuple(optimizer.client_rows()),
        params=weights,
        round_num=round_num,
        weighting="uniform",
        schedule=optimizer.local_schedule,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
    )


def _num_models_at_once(num_params: int) -> int:
    """The number of fine-tuned models held in memory at a time, a multiple of the block size."""
    num_blocks = PIECE_BYTES // (4 * num_params * BLOCK_CLIENTS)
    return BLOCK_CLIENTS * max(1, num_blocks)


class _TunedModels:
    """The fine-tuned models of some clients, in order; a `ClientExchange`.

    Attributes:
        num_vectors: See `ClientExchange`.
        is_finite: Whether the model of each client is finite. If it is not, the initial weights are
            stored instead.
    """

    receives = True

    def __init__(
        self, weights: NDArray[np.float32], client_ids: Sequence[str], starts: Starts | None
    ) -> None:
        """Allocates the models of some clients, which start from weights [num_params] or `starts`.

        Until a client is trained, its row has the weights from which it starts.
        """
        self._starts = starts
        self.num_vectors = 0 if starts is None else 1
        self._models = np.empty((len(client_ids), len(weights)), np.float32)
        self._models[:] = weights
        self._places = {client_id: place for place, client_id in enumerate(client_ids)}
        self.is_finite: list[bool] = []

    def send(self, clients: Sequence[BatchedDataset]) -> ClientInputs:
        """Returns the weights from which clients start, or `NO_INPUTS` if all start alike."""
        if self._starts is None:
            return NO_INPUTS
        starts = self._starts(clients)
        self._models[self._places_of(clients)] = starts
        return ClientInputs(starts=starts)

    def receive(
        self, clients: Sequence[BatchedDataset], deltas: NDArray[np.float32], stats: NDArray[Any]
    ) -> None:
        """Adds the deltas of the next clients to the weights from which they started."""
        for delta, stat in zip(deltas, stats, strict=True):
            model = self._models[len(self.is_finite)]
            self.is_finite.append(bool(stat["is_finite"]))
            if self.is_finite[-1]:
                np.add(model, delta, out=model)

    def starts(self, clients: Sequence[BatchedDataset]) -> NDArray[np.float32]:
        """Returns the models of clients: float32 [num_clients, num_params]."""
        return self._models[self._places_of(clients)]

    def starts_or_nan(self, clients: Sequence[BatchedDataset]) -> NDArray[np.float32]:
        """Returns the result of `starts`, with NaN for models that are not finite.

        A model of NaN predicts no class.
        """
        models = self.starts(clients)
        models[[not self.is_finite[place] for place in self._places_of(clients)]] = np.nan
        return models

    def rows_of(self, stats: NDArray[Any]) -> list[NDArray[Any]]:
        """Returns one row of stats for each client; see `_lost` for models that are not finite."""
        rows = [stats[row : row + 1] for row in range(len(self.is_finite))]
        return [
            row if is_finite else _lost(row)
            for row, is_finite in zip(rows, self.is_finite, strict=True)
        ]

    def _places_of(self, clients: Sequence[BatchedDataset]) -> list[int]:
        return [self._places[each.client.client_id] for each in clients]


def _lost(stats: NDArray[Any]) -> NDArray[Any]:
    """The stats of clients whose model is not finite: loss NaN and no correct prediction."""
    lost = stats.copy()
    counts = ("num_examples", "num_batches")
    for name in lost.dtype.names or ():
        if name not in counts:
            lost[name] = np.nan if lost.dtype[name].base.kind == "f" else 0
    return lost


def _by_client(stats: NDArray[Any]) -> dict[str, list[Any]]:
    """The metrics by name, each a list with one value for each client."""
    rows = [metrics.sum_then_finalize(stats[index : index + 1]) for index in range(len(stats))]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _choose(
    train: ClientData,
    test: ClientData,
    client_ids: Sequence[str] | None,
    seed: int,
    max_num_clients: int,
) -> list[str]:
    """The clients to evaluate, sorted."""
    if client_ids is None:
        test_ids = set(test.client_ids)
        client_ids = [each for each in train.client_ids if each in test_ids]
    if not client_ids:
        raise ConfigError(
            f"{train.source} has no clients in both train and {test.split}; give a split of the "
            "same clients"
        )
    if len(client_ids) <= max_num_clients:
        return sorted(client_ids)
    indices = samplers.sample_indices(
        len(client_ids), max_num_clients, seed, Purpose.EVAL_CLIENTS, 0
    )
    return sorted(client_ids[index] for index in indices)
