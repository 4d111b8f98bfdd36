"""The images that a run's model is trained on: a client's examples after the input layers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native, seeds
from fedcli.core.seeds import Purpose, StreamKey
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
        other_labels: The labels of the images that MixUp mixes in, int32 [n]; without MixUp None.
        shares: The share of each image itself, float32 [n]; the rest is that of the other one.
        before: The decoded images, float32 [n, H, W] or [n, H, W, C].
        after: What the first layer that learns gets, float32 [n, H', W', C].
    """

    labels: NDArray[np.int32]
    other_labels: NDArray[np.int32] | None
    shares: NDArray[np.float32]
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
    order = BatchedDataset(client, plan_of(config), config.seed).order()
    num_images = min(num_images, len(order))
    dropout_key, mixup_key = (
        seeds.stream_key(config.seed, purpose, client=seeds.client_key(client_id))
        for purpose in (Purpose.DROPOUT, Purpose.MIXUP)
    )
    alpha = _mixup_alpha(layout)
    if alpha is None:
        shares, partners = np.ones(num_images, np.float32), np.arange(num_images)
    else:
        sizes = plan_of(config).batch_sizes(len(client))
        shares, partners = _mixing(alpha, sizes, num_images, mixup_key)
    visits = order[: len(partners)]
    before = decode(client.pixels[visits], client.scale, client.offset)
    flat = before.reshape(len(visits), -1)
    after = native.run_inputs(layout.core_rows(), layout.num_params, flat, dropout_key)
    if alpha is not None:
        after = shares[:, np.newaxis] * after + (1 - shares)[:, np.newaxis] * after[partners]
    return TrainingImages(
        client.labels[visits[:num_images]],
        None if alpha is None else client.labels[visits[partners[:num_images]]],
        shares[:num_images],
        before[:num_images],
        after[:num_images].reshape(num_images, *shape),
    )


def _mixing(
    alpha: float, batch_sizes: Iterable[int], num_images: int, key: StreamKey
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The shares of at least the first `num_images` visits, and the visits of their partners."""
    shares: list[float] = []
    partners: list[int] = []
    for size in batch_sizes:
        first = len(partners)
        if first >= num_images:
            break
        share, places = native.mixup_draw(alpha, key, first, size)
        shares += [share] * size
        partners += (places + first).tolist()
    return np.array(shares, np.float32), np.array(partners, np.int64)


def _mixup_alpha(layout: ParamLayout) -> float | None:
    """The alpha of the layer that mixes examples; None: there is none."""
    found = [layer.constants[0] for layer in layout.layers if KINDS[layer.kind].mixes]
    return found[0] if found else None


def _output_shape(layout: ParamLayout) -> tuple[int, ...] | None:
    """The shape of an image after the input layers; None: there are none."""
    shapes = [layer.out_shape for layer in layout.layers if KINDS[layer.kind].is_input]
    return tuple(shapes[-1]) if shapes else None
