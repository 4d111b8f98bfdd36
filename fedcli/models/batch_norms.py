"""Batch normalisation in whole models."""

from __future__ import annotations

from fedcli.errors import ConfigError
from fedcli.models.layers import BatchNorm
from fedcli.models.layout import lay_out
from fedcli.models.model import Model


def with_frozen_statistics(model: Model) -> Model:
    """Returns the model with batch norms that use their moving statistics in training, too.

    Training then leaves these statistics as they are; see `frozen` of `layers.BatchNorm`.

    Raises:
        ConfigError: The model has no `BatchNorm` layer.
    """
    layout = model.layout
    specs = [
        spec.changed(frozen=True) if isinstance(spec, BatchNorm) else spec for spec in layout.specs
    ]
    if not any(isinstance(spec, BatchNorm) for spec in specs):
        raise ConfigError(
            f"--batch-norm frozen: model {model.name} has no layer BatchNorm; leave the option out"
        )
    return Model(model.name, lay_out(specs, layout.input_shape), model.initial_params)
