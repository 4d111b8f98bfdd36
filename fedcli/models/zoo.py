"""The models that have a name: each a function, and `build` for any of them by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedcli.errors import ConfigError
from fedcli.models.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D, Spec
from fedcli.models.layout import ParamLayout, lay_out
from fedcli.models.model import Model, glorot_uniform
from fedcli.settings import options as opt
from fedcli.settings import tables
from fedcli.settings.options import Value


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
    return _of_stack("softmax-regression", input_shape, num_classes, seed)


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
    return _of_stack("mlp-2nn", input_shape, num_classes, seed)


def cnn_mcmahan(
    input_shape: Sequence[int] = (28, 28), num_classes: int = 10, seed: int = 0
) -> Model:
    """Returns the CNN of McMahan et al. 2017: two 5 x 5 convolutions with pooling, 512 units.

    1,663,370 parameters for 28 x 28 pixels and 10 classes, 1,690,046 for 62. Convolutions of 32 and
    64 channels are padded to the image's size, ReLU throughout. Kernels start Glorot uniform,
    biases 0.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C], at least 4 x 4.
        num_classes: Number of classes.
        seed: Of the initial weights, which are a function of it and of the shapes alone.

    Raises:
        ConfigError: A size is not positive, or the image is too small.
    """
    return _of_stack("cnn-mcmahan", input_shape, num_classes, seed)


def leaf_femnist(
    input_shape: Sequence[int] = (28, 28), num_classes: int = 10, seed: int = 0
) -> Model:
    """Returns the CNN of LEAF for FEMNIST: `cnn_mcmahan` with 2048 hidden units.

    6,497,162 parameters for 28 x 28 pixels and 10 classes, 6,603,710 for 62.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C], at least 4 x 4.
        num_classes: Number of classes.
        seed: Of the initial weights, which are a function of it and of the shapes alone.

    Raises:
        ConfigError: A size is not positive, or the image is too small.
    """
    return _of_stack("leaf-femnist", input_shape, num_classes, seed)


def cnn_reddi(
    input_shape: Sequence[int] = (28, 28),
    num_classes: int = 10,
    seed: int = 0,
    *,
    dropout: Sequence[float] = (0.25, 0.5),
) -> Model:
    """Returns the CNN of Reddi et al. 2021 for EMNIST: two 3 x 3 convolutions, dropout, 128 units.

    1,199,882 parameters for 28 x 28 pixels and 10 classes, 1,206,590 for 62. Kernels start Glorot
    uniform, biases 0.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C], at least 6 x 6.
        num_classes: Number of classes.
        seed: Of the initial weights, which are a function of it and of the shapes alone.
        dropout: Rates after the pool and after the hidden layer; one sets both, 0 is none.

    Raises:
        ConfigError: A size is not positive, a rate is not below 1, or the image is too small.
    """
    return _of_stack("cnn-reddi", input_shape, num_classes, seed, dropout=dropout)


def lenet5(input_shape: Sequence[int] = (28, 28), num_classes: int = 10, seed: int = 0) -> Model:
    """Returns LeNet-5 in its usual modern form: ReLU, max-pools, dense layers of 120 and 84.

    61,706 parameters for 28 x 28 pixels and 10 classes, 66,126 for 62. LeCun et al. 1998 has
    trained subsampling, a sparse second convolution and radial outputs instead. Kernels start
    Glorot uniform, biases 0.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C], at least 12 x 12.
        num_classes: Number of classes.
        seed: Of the initial weights, which are a function of it and of the shapes alone.

    Raises:
        ConfigError: A size is not positive, or the image is too small.
    """
    return _of_stack("lenet5", input_shape, num_classes, seed)


def build(
    name: str,
    *,
    input_shape: Sequence[int] = (28, 28),
    num_classes: int = 10,
    options: Mapping[str, Value] | None = None,
    seed: int = 0,
) -> Model:
    """Returns the model of the table called `name`.

    Args:
        name: A key of `tables.MODELS`.
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        options: The model's own options; those not given take their defaults.
        seed: Of the initial weights.

    Raises:
        ConfigError: The name or an option is unknown, a value is not allowed, or the image is too
            small.
    """
    layout = build_layout(name, input_shape=input_shape, num_classes=num_classes, options=options)
    return _with_weights(name, layout, seed)


def build_layout(
    name: str,
    *,
    input_shape: Sequence[int] = (28, 28),
    num_classes: int = 10,
    options: Mapping[str, Value] | None = None,
) -> ParamLayout:
    """Returns the layout of a model of the table, without drawing its weights; see `build`."""
    entry = opt.choose(tables.MODELS, name, "model")
    return _lay_out(name, input_shape, num_classes, opt.resolve(entry, options or {}))


def _of_stack(
    name: str, input_shape: Sequence[int], num_classes: int, seed: int, **options: Any
) -> Model:
    return _with_weights(name, _lay_out(name, input_shape, num_classes, options), seed)


def _with_weights(name: str, layout: ParamLayout, seed: int) -> Model:
    if name == "softmax-regression":
        return Model(name, layout, np.zeros(layout.num_params, np.float32))
    return Model(name, layout, glorot_uniform(layout, seed))


def _lay_out(
    name: str, input_shape: Sequence[int], num_classes: int, options: Mapping[str, Any]
) -> ParamLayout:
    try:
        return lay_out(STACKS[name](num_classes, **options), input_shape)
    except ConfigError as err:
        raise ConfigError(f"model {name}: {err}") from err


def _padded_cnn(units: int, num_classes: int) -> list[Spec]:
    return [
        Conv2D(32, (5, 5), padding="same", activation="relu"),
        MaxPool2D((2, 2)),
        Conv2D(64, (5, 5), padding="same", activation="relu"),
        MaxPool2D((2, 2)),
        Flatten(),
        Dense(units, "relu"),
        Dense(num_classes),
    ]


def _reddi_stack(num_classes: int, dropout: Sequence[float] = (0.25, 0.5)) -> list[Spec]:
    if not 1 <= len(dropout) <= 2:
        raise ConfigError(f"dropout of {len(dropout)} rates; give one or two")
    return [
        Conv2D(32, (3, 3), activation="relu"),
        Conv2D(64, (3, 3), activation="relu"),
        MaxPool2D((2, 2)),
        Dropout(dropout[0]),
        Flatten(),
        Dense(128, "relu"),
        Dropout(dropout[-1]),
        Dense(num_classes),
    ]


def _lenet5_stack(num_classes: int) -> list[Spec]:
    return [
        Conv2D(6, (5, 5), padding="same", activation="relu"),
        MaxPool2D((2, 2)),
        Conv2D(16, (5, 5), activation="relu"),
        MaxPool2D((2, 2)),
        Flatten(),
        Dense(120, "relu"),
        Dense(84, "relu"),
        Dense(num_classes),
    ]


# The layers behind each row of tables.MODELS: (num_classes, **options) -> from pixels to logits.
STACKS: dict[str, Callable[..., list[Spec]]] = {
    "softmax-regression": lambda num_classes: [Dense(num_classes)],
    "mlp-2nn": lambda num_classes: [Dense(200, "relu"), Dense(200, "relu"), Dense(num_classes)],
    "cnn-mcmahan": partial(_padded_cnn, 512),
    "cnn-reddi": _reddi_stack,
    "lenet5": _lenet5_stack,
    "leaf-femnist": partial(_padded_cnn, 2048),
}
