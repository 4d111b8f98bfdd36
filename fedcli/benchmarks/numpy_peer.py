"""The tasks in a plain float32 NumPy loop, with decoded pixels and prepared batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedcli.benchmarks import tasks
from fedcli.benchmarks.numpy_net import Net
from fedcli.benchmarks.tasks import Task
from fedcli.core.draws import Stream
from fedcli.core.seeds import Purpose, stream_key
from fedcli.datasets.batches import BatchedDataset

Batch = tuple[NDArray[np.float32], NDArray[np.int32]]
Params = NDArray[np.float32]


def prepare(task: Task, num_threads: int) -> Callable[[], Params]:
    """Returns a function that does the task once and returns its result as a flat array.

    Args:
        task: The task.
        num_threads: Threads of the BLAS, which read the number when NumPy was loaded.
    """
    model = tasks.build_model(task)
    params = model.initial_params
    if task.kind == tasks.AVERAGE:
        clients, shares = models_to_average(params, len(task.sizes))
        return lambda: _average(clients, shares)
    net = Net(model, Stream(stream_key(tasks.ORDER_SEED, Purpose.DROPOUT)))
    cohort = tasks.make_cohort(task)
    split = model.layout.split
    batches = [list(batches_of(client, model.layout.input_shape)) for client in cohort]

    def train() -> Params:
        total = np.zeros_like(params)
        for client, each in zip(cohort, batches, strict=True):
            local = params.copy()
            tensors = split(local)
            for x, labels in each:
                gradients = net.gradients(x, labels, tensors)
                for tensor, gradient in zip(tensors, gradients, strict=True):
                    gradient *= np.float32(task.client_lr)
                    tensor -= gradient
            local -= params
            local *= np.float32(client.plan.num_visits(len(client.client)))
            total += local
        total /= np.float32(task.num_visits)
        total += params
        return total

    def evaluate() -> Params:
        return _evaluate(net, split(params), batches)

    return train if task.kind == tasks.TRAIN else evaluate


def batches_of(client: BatchedDataset, shape: tuple[int, ...]) -> list[Batch]:
    """Returns a client's batches decoded, in order: float32 [n, H, W, C], int32 [n]."""
    height, width, channels = (*shape, 1)[:3]
    return [
        (batch["x"].reshape(-1, height, width, channels), batch["y"].reshape(-1))
        for batch in client
    ]


def models_to_average(params: Params, num_models: int) -> tuple[list[Params], list[float]]:
    """Returns models that differ, and their weights."""
    clients = [params + np.float32(index / num_models) for index in range(num_models)]
    return clients, [float(10 + index) for index in range(num_models)]


def _average(clients: list[Params], weights: list[float]) -> Params:
    total = np.zeros_like(clients[0])
    for client, weight in zip(clients, weights, strict=True):
        total += np.float32(weight) * client
    total /= np.float32(sum(weights))
    return total


def _evaluate(net: Net, tensors: list[Params], batches: list[list[Batch]]) -> Params:
    """Loss and accuracy."""
    loss, num_correct, num_examples = 0.0, 0, 0
    for client in batches:
        for x, labels in client:
            logits = net.logits(x, tensors)
            greatest = logits.max(axis=1)
            rest = np.log(np.exp(logits - greatest[:, None]).sum(axis=1)) + greatest
            loss += float((rest - logits[np.arange(len(labels)), labels]).sum())
            num_correct += int((logits.argmax(axis=1) == labels).sum())
            num_examples += len(labels)
    return np.array([loss / num_examples, num_correct / num_examples], np.float32)
