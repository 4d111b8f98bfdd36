"""Personalization evaluation: how much better a model is after each client's own fine-tuning.

As TFF's build_personalization_eval_computation (learning/algorithms/personalization_eval.py): for
each client the model is scored on its test data, the baseline; then for every strategy it is
trained from the same weights on the client's train data and scored again. Metrics are not averaged:
they are lists, one value a client, aligned by position, so that a client's gain can be seen.

At most `max_num_clients` clients are kept; where TFF draws them by reservoir sampling, here the
seed draws them. A client's fine-tuned model that is not finite has NaN for accuracy and loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli import metrics, samplers
from fedcli.backend import CancelFlag
from fedcli.batch_plan import BatchPlan
from fedcli.batches import BatchedDataset
from fedcli.datasets import ClientData
from fedcli.engine import Engine, PerClient
from fedcli.errors import ConfigError
from fedcli.models import Model
from fedcli.optimizers import Optimizer
from fedcli.seeds import Purpose
from fedcli.thread_engine import ThreadEngine

BASELINE = "baseline_metrics"
MAX_NUM_CLIENTS = 100

# Clients whose models are in memory at once: a block of the core's.
_BLOCK = 8


@dataclass(frozen=True)
class FineTuning:
    """A strategy: local steps on a client's own train data.

    Attributes:
        optimizer: Takes them.
        plan: How the examples become batches; `epochs` says how long.
    """

    optimizer: Optimizer
    plan: BatchPlan


@dataclass(frozen=True, eq=False)
class PersonalizationEvaluation:
    """What each client's model is worth to it.

    Attributes:
        client_ids: Who was evaluated, in sorted order.
        metrics: `baseline_metrics`, and for each strategy the metrics of the fine-tuned models:
            each a list by name, in the order of `client_ids`.
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
        weights: What fine-tuning starts from: float32 [num_params], such as `evaluated_weights`.
        train: What clients train on.
        test: What they are scored on.
        strategies: By name, how they fine-tune; `baseline_metrics` is no name.
        client_ids: Who may be evaluated; None: everyone whom both splits have.
        seed: Draws them where they are more than `max_num_clients`, and the batches.
        batch_size: Of scoring; it shows in `num_batches` alone.
        max_num_clients: Most clients that are evaluated.
        engine: What computes clients; by default, threads of this process.
        cancel: Once raised, from any thread, the call stops within a local step.

    Raises:
        Cancelled: `cancel` was raised.
        ConfigError: A strategy has the reserved name, an optimizer takes no local steps, or there
            is nobody to evaluate.
        DataError: A client is not in both splits, or its data do not fit the model.
    """
    if BASELINE in strategies:
        raise ConfigError(
            f"a strategy is named {BASELINE}, as the baseline is; choose another name"
        )
    if max_num_clients < 1:
        raise ConfigError(f"max_num_clients = {max_num_clients}: choose 1 or more")
    chosen = _choose(train, test, client_ids, seed, max_num_clients)
    work = _Work(model, weights, engine or ThreadEngine(), seed, cancel)
    scoring = BatchPlan(batch_size=batch_size)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in (BASELINE, *strategies)}
    for first in range(0, len(chosen), _BLOCK):
        ids = chosen[first : first + _BLOCK]
        tested = [BatchedDataset(test.client(each), scoring, seed) for each in ids]
        results[BASELINE] += [work.score(weights, each) for each in tested]
        for name, strategy in strategies.items():
            trained = [BatchedDataset(train.client(each), strategy.plan, seed) for each in ids]
            results[name] += work.fine_tune(strategy.optimizer, trained, tested)
    names = results[BASELINE][0].keys()
    by_name = {
        strategy: {name: [each[name] for each in of_clients] for name in names}
        for strategy, of_clients in results.items()
    }
    return PersonalizationEvaluation(tuple(chosen), by_name)


@dataclass(frozen=True, eq=False)
class _Work:
    """What every client's evaluation needs."""

    model: Model
    weights: NDArray[np.float32]
    engine: Engine
    seed: int
    cancel: CancelFlag | None

    def score(self, weights: NDArray[np.float32], tested: BatchedDataset) -> dict[str, Any]:
        """The metrics of some weights on one client."""
        layout = self.model.layout
        stats = self.engine.evaluate(layout, weights, [tested], cancel=self.cancel)
        return metrics.sum_then_finalize(stats)

    def fine_tune(
        self,
        optimizer: Optimizer,
        trained: Sequence[BatchedDataset],
        tested: Sequence[BatchedDataset],
    ) -> list[dict[str, Any]]:
        """The metrics of each client's own weights."""
        received: list[NDArray[np.float32]] = []
        are_finite: list[bool] = []

        def receive(
            clients: Sequence[BatchedDataset],
            deltas: NDArray[np.float32],
            stats: NDArray[np.void],
        ) -> None:
            received.extend(deltas.copy())
            are_finite.extend((stats["is_finite"] != 0).tolist())

        optimizer = optimizer.at(0)
        self.engine.train_cohort(
            self.model.layout,
            optimizer.client_rows(),
            self.weights,
            trained,
            round_num=0,
            weighting="uniform",
            rate_factor=optimizer.rate_factor,
            per_client=PerClient(receive=receive),
            cancel=self.cancel,
        )
        return [
            self.score(self.weights + delta, each) if is_finite else self._lost(each)
            for delta, is_finite, each in zip(received, are_finite, tested, strict=True)
        ]

    def _lost(self, tested: BatchedDataset) -> dict[str, Any]:
        """The metrics of weights that are not finite."""
        nothing = replace(tested, client=tested.without_examples().client)
        counts = ("num_examples", "num_batches")
        scored = self.score(self.weights, tested)
        return {**self.score(self.weights, nothing), **{name: scored[name] for name in counts}}


def _choose(
    train: ClientData,
    test: ClientData,
    client_ids: Sequence[str] | None,
    seed: int,
    max_num_clients: int,
) -> list[str]:
    """Who is evaluated, in sorted order."""
    if client_ids is None:
        held = set(test.client_ids)
        client_ids = [each for each in train.client_ids if each in held]
    if not client_ids:
        raise ConfigError(f"{train.source} has no clients in both train and {test.split}")
    if len(client_ids) <= max_num_clients:
        return sorted(client_ids)
    indices = samplers.sample_indices(
        len(client_ids), max_num_clients, seed, Purpose.EVAL_CLIENTS, 0
    )
    return sorted(client_ids[index] for index in indices)
