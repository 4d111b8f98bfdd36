"""The images that a model takes: those of its input shape, or flattened to its input vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fedcli.errors import ConfigError
from fedcli.models.layers import Flatten
from fedcli.models.model import Model


def takes(input_shape: Sequence[int], image_shape: Sequence[int]) -> bool:
    """Returns whether a model takes images of a shape.

    [H, W] and [H, W, 1] are the same shape. A vector of H * W * C values is an image that is
    flattened row by row, with the channels of a pixel together.

    Args:
        input_shape: Shape of one example as the model gets it.
        image_shape: Shape of one image of the data.
    """
    if len(input_shape) == 1:
        return math.prod(input_shape) == math.prod(image_shape)
    return _with_channels(input_shape) == _with_channels(image_shape)


def holds_inputs(pixel_shape: Sequence[int], input_shape: Sequence[int]) -> bool:
    """Returns whether pixels of a shape are the values of a model's input, in their order.

    Axes of length 1 do not matter, and either may be a vector.
    """
    if 1 in (len(pixel_shape), len(input_shape)):
        return math.prod(pixel_shape) == math.prod(input_shape)
    return [size for size in pixel_shape if size > 1] == [size for size in input_shape if size > 1]


def misfit(input_shape: Sequence[int], image_shape: Sequence[int]) -> str:
    """Returns the end of a message about a model that does not take the images of the data."""
    wanted = tuple(image_shape)
    if len(input_shape) == 1:
        return (
            f"takes vectors of {input_shape[0]:,} values, but the data have images of shape "
            f"{list(image_shape)}, which are {math.prod(image_shape):,} values; build the model "
            f"for input_shape={wanted} or ({math.prod(image_shape)},), or choose other data"
        )
    return (
        f"takes images of shape {list(input_shape)}, but the data have {list(image_shape)}; build "
        f"the model for input_shape={wanted}, or choose other data"
    )


def for_images(model: Model, image_shape: Sequence[int]) -> Model:
    """Returns a model with the same parameters whose input has the shape of the data's images.

    A model of vectors gets a `Flatten` before its layers.

    Raises:
        ConfigError: The model does not take such images.
    """
    layout, shape = model.layout, tuple(image_shape)
    if layout.input_shape == shape:
        return model
    if not takes(layout.input_shape, shape):
        raise ConfigError(f"model {model.name} {misfit(layout.input_shape, shape)}")
    if not layout.specs:  # its own code computes it
        return replace(model, layout=replace(layout, input_shape=shape))
    from fedcli.models.augmentation import with_input_layers  # lazy: few models need it

    flattened = [Flatten("flatten_pixels")] if len(layout.input_shape) == 1 < len(shape) else []
    try:
        return with_input_layers(flattened, model, shape)
    except ConfigError as err:
        raise ConfigError(
            f"model {model.name} takes {list(layout.input_shape)}, but cannot be used for images "
            f"of shape {list(shape)}: {err}"
        ) from err


def _with_channels(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape, 1) if len(shape) == 2 else tuple(shape)
