"""Models: a name becomes layers, a parameter layout and initial parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcli import options as opt
from fedcli import registry
from fedcli.options import Value
from fedcli.params import Layer, ParamLayout, lay_out


@dataclass(frozen=True, eq=False)
class Model:
    """A model that the core can train.

    Attributes:
        name: Its registry name, or a name of the user's.
        layout: Its layers and where each tensor lies.
        initial_params: float32 [num_params], what round 1 starts from.
    """

    name: str
    layout: ParamLayout
    initial_params: NDArray[np.float32]


def softmax_regression(input_shape: Sequence[int] = (28, 28), num_classes: int = 10) -> Model:
    """Returns multinomial logistic regression: one dense layer on the flattened pixels, all zeros.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.

    Raises:
        ConfigError: A size is not positive.
    """
    num_inputs = int(np.prod(input_shape, dtype=np.int64))
    layout = lay_out([Layer("dense", num_inputs, num_classes, "dense")], input_shape)
    return Model("softmax-regression", layout, np.zeros(layout.num_params, np.float32))


# The code behind each row of registry.MODELS: (input_shape, num_classes, **options) -> Model.
BUILDERS: dict[str, Callable[..., Model]] = {"softmax-regression": softmax_regression}


def build(
    name: str,
    *,
    input_shape: Sequence[int] = (28, 28),
    num_classes: int = 10,
    options: Mapping[str, Value] | None = None,
) -> Model:
    """Returns the model of the registry called `name`.

    Args:
        name: A key of `registry.MODELS`.
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        options: The model's own options; those not given take their defaults.

    Raises:
        ConfigError: The name or an option is unknown, or a value is not allowed.
    """
    entry = opt.choose(registry.MODELS, name, "model")
    resolved = opt.resolve(entry, options or {})
    return BUILDERS[name](input_shape, num_classes, **resolved)
