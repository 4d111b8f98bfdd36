"""The input layers of a run: what --augment and --normalize put before its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedcli.errors import ConfigError
from fedcli.models import layers
from fedcli.models.augmentation import augmenting
from fedcli.settings.run_config import RunConfig
from fedcli.settings.tables.augmentations import (
    BY_IMAGE,
    PUBLISHED_MOMENTS,
    TRAIN_SPLIT,
    moments_in,
)

if TYPE_CHECKING:
    from fedcli.core.native import CancelFlag
    from fedcli.datasets.client_data import ClientData
    from fedcli.models.layers import Spec


def input_layers(
    config: RunConfig, train: ClientData, notes: list[str], cancel: CancelFlag | None
) -> list[Spec]:
    """Returns the input layers of a run; adds a line about computed moments to `notes`.

    Images are augmented first and normalised afterwards, so the gaps that a shift or a rotation
    leaves are filled with pixels of value 0.

    Args:
        config: A valid config.
        train: The training split; `--normalize train` reads all of its clients.
        notes: Lines for the user.
        cancel: A flag that any thread may set to stop the reading.

    Raises:
        Cancelled: `cancel` was set.
        ConfigError: The images do not fit, or the moments are not known.
        DataError: A client's data are invalid.
    """
    specs: list[Spec] = []
    if config.augment is not None:
        specs += augmenting(config.augment, config.augment_options, train.pixel_shape)
    if config.normalize is not None:
        if len(train.pixel_shape) not in (2, 3):
            raise ConfigError(
                f"--normalize {config.normalize}: examples of shape {list(train.pixel_shape)} are "
                "not images"
            )
        specs.append(_normalizing(config, train, notes, cancel))
    return specs


def _normalizing(
    config: RunConfig, train: ClientData, notes: list[str], cancel: CancelFlag | None
) -> Spec:
    assert config.normalize is not None
    if config.normalize == BY_IMAGE:
        return layers.ImageStandardization()
    means, deviations = moments_in(config.normalize) or _moments(config, train, cancel)
    if config.normalize == TRAIN_SPLIT:
        numbers = ":".join(",".join(f"{each:.4f}" for each in part) for part in (means, deviations))
        notes.append(f"channels are normalised by means and deviations {numbers}")
        if config.dp is not None:
            notes.append(
                "epsilon does not cover these means and deviations, which were computed from all "
                "clients' data; to keep them private, give public numbers with --normalize"
            )
    return layers.Normalization(tuple(means), tuple(deviations))


def _moments(
    config: RunConfig, train: ClientData, cancel: CancelFlag | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Returns the means and deviations of the channels: of the train split, or published."""
    if config.normalize == TRAIN_SPLIT:
        from fedcli.datasets.moments import channel_moments  # lazy: few runs measure

        moments = channel_moments(train, lambda: cancel is not None and cancel.is_set())
        return moments[0].tolist(), moments[1].tolist()
    if config.data not in PUBLISHED_MOMENTS:
        raise ConfigError(
            f"--normalize {config.normalize}: means and deviations are published for "
            f"{', '.join(PUBLISHED_MOMENTS)}, not for {config.data}; choose --normalize train"
        )
    means, deviations = PUBLISHED_MOMENTS[config.data]
    if train.pixel_convention == "background":
        means = tuple(1 - each for each in means)
    return means, deviations
