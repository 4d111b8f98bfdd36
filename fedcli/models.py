"""Models: a name becomes layers, a parameter layout and initial parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcli import options as opt
from fedcli import registry
from fedcli.draws import Stream
from fedcli.options import Value
from fedcli.params import Layer, ParamLayout, lay_out
from fedcli.seeds import Purpose, stream_key


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


def softmax_regression(
    input_shape: Sequence[int] = (28, 28), num_classes: int = 10, seed: int = 0
) -> Model:
    """Returns multinomial logistic regression: one dense layer on the flattened pixels, all zeros.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Is not used: nothing is drawn.

    Raises:
        ConfigError: A size is not positive.
    """
    layers = [Layer("dense", _num_pixels(input_shape), num_classes, "dense")]
    layout = lay_out(layers, input_shape)
    return Model("softmax-regression", layout, np.zeros(layout.num_params, np.float32))


def mlp_2nn(input_shape: Sequence[int] = (28, 28), num_classes: int = 10, seed: int = 0) -> Model:
    """Returns the 2NN of McMahan et al. 2017: two dense layers of 200 with ReLU, then the logits.

    199,210 parameters for 28 x 28 pixels and 10 classes. Kernels start Glorot uniform, biases 0.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Of the initial weights, which are a function of it and of the shapes alone.

    Raises:
        ConfigError: A size is not positive.
    """
    layers = [
        Layer("dense", _num_pixels(input_shape), 200, "dense", "relu"),
        Layer("dense", 200, 200, "dense_1", "relu"),
        Layer("dense", 200, num_classes, "dense_2"),
    ]
    layout = lay_out(layers, input_shape)
    return Model("mlp-2nn", layout, glorot_uniform(layout, seed))


def glorot_uniform(layout: ParamLayout, seed: int) -> NDArray[np.float32]:
    """Returns initial parameters float32 [num_params] as Keras draws them: biases are 0.

    A kernel is uniform within ±sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010). Each has a
    random stream of its own, named by the seed and its place in the model.
    """
    params = np.zeros(layout.num_params, np.float32)
    for place, tensor in enumerate(layout.tensors):
        if len(tensor.shape) == 1:
            continue
        limit = math.sqrt(6 / sum(tensor.shape))
        stream = Stream(stream_key(seed, Purpose.INITIAL_WEIGHTS, occurrence=place))
        uniform = stream.uniform(tensor.size)
        params[tensor.offset : tensor.offset + tensor.size] = (2 * uniform - 1) * limit
    return params


# The code behind each row of registry.MODELS: (input_shape, num_classes, seed, **options) -> Model.
BUILDERS: dict[str, Callable[..., Model]] = {
    "softmax-regression": softmax_regression,
    "mlp-2nn": mlp_2nn,
}


def build(
    name: str,
    *,
    input_shape: Sequence[int] = (28, 28),
    num_classes: int = 10,
    options: Mapping[str, Value] | None = None,
    seed: int = 0,
) -> Model:
    """Returns the model of the registry called `name`.

    Args:
        name: A key of `registry.MODELS`.
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        options: The model's own options; those not given take their defaults.
        seed: Of the initial weights.

    Raises:
        ConfigError: The name or an option is unknown, or a value is not allowed.
    """
    entry = opt.choose(registry.MODELS, name, "model")
    resolved = opt.resolve(entry, options or {})
    return BUILDERS[name](input_shape, num_classes, seed, **resolved)


def _num_pixels(input_shape: Sequence[int]) -> int:
    return math.prod(input_shape)
