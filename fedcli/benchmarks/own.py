"""fedcli's implementation of the tasks: the calls that `fedcli train` and `fedcli eval` make."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedcli import learning
from fedcli.benchmarks import tasks
from fedcli.benchmarks.numpy_peer import models_to_average
from fedcli.benchmarks.tasks import Task
from fedcli.core import native
from fedcli.core.native import CancelFlag
from fedcli.learning import optimizers
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine


def prepare(task: Task, num_threads: int, cancel: CancelFlag) -> Callable[[], object]:
    """Returns a function that does the task once.

    Training is the core's call of a round: local training and the weighted sum of the deltas.

    Args:
        task: The task.
        num_threads: Number of threads; an average always uses one.
        cancel: A flag. Once it is set, a call stops within a local step.

    Raises:
        ConfigError: There is no such model.
    """
    model = tasks.build_model(task)
    if task.kind == tasks.AVERAGE:
        clients, weights = models_to_average(model.initial_params, len(task.sizes))
        shares = np.array(weights)
        return lambda: _mean(clients, shares)
    cohort = tasks.make_cohort(task)
    engine = ThreadEngine(num_threads)
    if task.kind == tasks.EVALUATE:
        return lambda: engine.evaluate(model.layout, model.initial_params, cohort, cancel=cancel)
    training = ClientTask(
        rows=tuple(optimizers.sgd(task.client_lr).client_rows()),
        params=model.initial_params,
        round_num=0,
        weighting="num-examples",
    )
    return lambda: engine.train(model.layout, training, cohort, cancel=cancel)


def _mean(vectors: list[NDArray[np.float32]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    mean = native.sum_vectors(vectors, weights, len(vectors[0]), num_threads=1)
    mean /= float(weights.sum())
    return mean


def prepare_round(task: Task, num_threads: int, cancel: CancelFlag) -> Callable[[], object]:
    """Returns a function that does a whole round, with server optimizer and metrics."""
    process = learning.build_weighted_fed_avg(
        tasks.build_model(task),
        optimizers.sgd(task.client_lr),
        engine=ThreadEngine(num_threads),
    )
    state, cohort = process.initialize(), tasks.make_cohort(task)
    return lambda: process.next(state, cohort, cancel=cancel)
