"""One local step on one batch, for an engine and for the float64 network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcli.core.native import StepKind, StepRow
from fedcli.core.seeds import Purpose, StreamKey, client_key
from fedcli.datasets.batches import BatchedDataset, from_arrays
from fedcli.learning.engines.task import ClientTask
from fedcli.learning.engines.threads import ThreadEngine
from fedcli.models.model import Model
from tests.kit import reference, reference_net
from tests.kit.reference import Batch, Vector

SEED = 5
# A power of two, so that division by it is exact. It is so large that the parameters before the
# step are negligible compared with the step.
RATE = 2.0**20


@dataclass(frozen=True)
class Drawn:
    """A client's only batch, in the order in which it is visited, with its dropout masks."""

    dataset: BatchedDataset
    batch: Batch
    masks: list[Vector]


def draw(model: Model, batch_size: int, data_seed: int) -> Drawn:
    """Draws images from 0 to 1, labels and masks."""
    layout = model.layout
    random = np.random.default_rng(data_seed)
    images = random.random((batch_size, *layout.input_shape), dtype=np.float32)
    labels = random.integers(0, layout.num_classes, batch_size, dtype=np.int32)
    client = from_arrays(images, labels, client_id="client").client
    dataset = client.preprocess(epochs=1, shuffle_buffer=10, batch_size=batch_size, seed=SEED)
    order = list(dataset.order(0, 0))
    (batch,) = reference.make_batches(images, labels, order, batch_size)
    key = StreamKey(SEED, client_key("client"), 0, Purpose.DROPOUT, 0)
    drawn = [reference_net.draw_masks(layout, key, visit) for visit in range(batch_size)]
    return Drawn(dataset, batch, [np.stack(each) for each in zip(*drawn, strict=True)])


def gradient(
    model: Model, drawn: Drawn, num_threads: int, before: tuple[StepRow, ...] = ()
) -> NDArray[np.float64]:
    """Returns the gradient of the mean loss, float64 [num_params], from a step of plain SGD.

    Args:
        model: The model; the gradient is taken at its initial parameters.
        drawn: The batch.
        num_threads: Threads that share the batch.
        before: Rows of the step table that precede plain SGD.
    """
    rows = (*before, (StepKind.SGD, (RATE, 0.0, 0.0)))
    task = ClientTask(rows, model.initial_params, round_num=0, weighting="uniform")
    result = ThreadEngine(num_threads).train(model.layout, task, [drawn.dataset])
    return -np.asarray(result.delta_sum, np.float64) / RATE
