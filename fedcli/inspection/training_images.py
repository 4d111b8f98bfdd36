"""The images that a run's model is trained on: a client's examples after the input layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native, seeds
from fedcli.core.seeds import Purpose
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import plan_of
from fedcli.datasets.batches import BatchedDataset, decode
from fedcli.datasets.client_data import ClientData
from fedcli.models.layers.contract import KINDS
from fedcli.models.layout import ParamLayout
from fedcli.runs.trained import Trained


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """The first visits of a client's examples in round 1, before and after the input layers.

    Attributes:
        labels: The labels, int32 [n].
        before: The decoded images, float32 [n, H, W] or [n, H, W, C].
        after: What the first layer that learns gets, float32 [n, H', W', C].
    """

    labels: NDArray[np.int32]
    before: NDArray[np.float32]
    after: NDArray[np.float32]


def has_input_layers(layout: ParamLayout) -> bool:
    """Tells whether a model begins with layers that change images, such as those of --augment."""
    return _output_shape(layout) is not None


def training_images(
    data: ClientData, client_id: str, trained: Trained, num_images: int
) -> TrainingImages:
    """Returns a client's images as the model of a run sees them at the start of round 1.

    The order of the examples and the random numbers of the augmentation are those of the run. If
    the client took no part in round 1, they are those that it would have had.

    Args:
        data: The training split, which fits the model.
        client_id: The client.
        trained: The run; its model has input layers, see `has_input_layers`.
        num_images: The largest number of images.
    """
    layout = trained.model.layout
    shape = _output_shape(layout)
    assert shape is not None
    config = trained.config
    client = trained.as_trained(data, client_id)
    order = BatchedDataset(client, plan_of(config), config.seed).order()[:num_images]
    before = decode(client.pixels[order], client.scale, client.offset)
    key = seeds.stream_key(config.seed, Purpose.DROPOUT, client=seeds.client_key(client_id))
    flat = before.reshape(len(order), -1)
    after = native.run_inputs(layout.core_rows(), layout.num_params, flat, key)
    return TrainingImages(client.labels[order], before, after.reshape(len(order), *shape))


def _output_shape(layout: ParamLayout) -> tuple[int, ...] | None:
    """The shape of an image after the input layers; None: there are none."""
    shapes = [layer.out_shape for layer in layout.layers if KINDS[layer.kind].is_input]
    return tuple(shapes[-1]) if shapes else None
