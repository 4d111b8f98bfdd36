"""Batch normalisation in whole models."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcli.errors import ConfigError
from fedcli.models.layers import BatchNorm
from fedcli.models.layout import ParamLayout, lay_out
from fedcli.models.model import Model
from fedcli.settings.vocabulary import FROZEN, LOCAL_LAYERS


def with_frozen_statistics(model: Model) -> Model:
    """Returns the model with batch norms that use their moving statistics in training, too.

    Training then leaves these statistics as they are; see `frozen` of `layers.BatchNorm`.

    Raises:
        ConfigError: The model has no `BatchNorm` layer.
    """
    check_has_any(model, FROZEN)
    layout = model.layout
    specs = [
        spec.changed(frozen=True) if isinstance(spec, BatchNorm) else spec for spec in layout.specs
    ]
    return Model(model.name, lay_out(specs, layout.input_shape), model.initial_params)


def local_indices(layout: ParamLayout, local_norms: str) -> NDArray[np.int64]:
    """Returns the indices of the parameters that each client keeps for itself, in order.

    Args:
        layout: Layout of the model's parameters.
        local_norms: `local-statistics` for the moving statistics of batch norms, or `local-layers`
            for gamma and beta, too.
    """
    is_kept = np.zeros(layout.num_params, np.bool_)
    for layer, _, tensor in layout.by_layer(layout.tensors):
        if layer.kind == BatchNorm.kind and (local_norms == LOCAL_LAYERS or not tensor.is_trained):
            is_kept[tensor.offset : tensor.offset + tensor.size] = True
    return np.flatnonzero(is_kept)


def check_has_any(model: Model, batch_norm: str) -> None:
    """Refuses --batch-norm for a model without `BatchNorm` layers. Raises ConfigError."""
    if not any(isinstance(spec, BatchNorm) for spec in model.layout.specs):
        raise ConfigError(
            f"--batch-norm {batch_norm}: model {model.name} has no layer BatchNorm; leave the "
            "option out"
        )


def has_moving_statistics(model: Model) -> bool:
    """Whether training changes the moving statistics of a `BatchNorm` layer."""
    return any(isinstance(spec, BatchNorm) and not spec.frozen for spec in model.layout.specs)
