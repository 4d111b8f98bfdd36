"""The built-in models, which can be chosen by name.

Each has a row in `tables.MODELS`, a function here, and its layers in `zoo_stacks`. `build` makes a
model by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedcli.errors import ConfigError, speaks_python
from fedcli.lazy import load
from fedcli.models.layout import ParamLayout, lay_out
from fedcli.models.model import Model, glorot_uniform
from fedcli.settings import options as opt
from fedcli.settings import tables
from fedcli.settings.options import Value
from fedcli.settings.tables.models import ModelEntry


def softmax_regression(
    input_shape: Sequence[int] = (28, 28), num_classes: int = 10, seed: int = 0
) -> Model:
    """Returns multinomial logistic regression: one dense layer on the pixels, initially all zeros.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Not used, because no weights are drawn.

    Raises:
        ConfigError: A size is not positive.
    """
    return _of_row("softmax-regression", input_shape, num_classes, seed)


def mlp_2nn(input_shape: Sequence[int] = (28, 28), num_classes: int = 10, seed: int = 0) -> Model:
    """Returns the 2NN of McMahan et al. 2017: two dense layers of 200 with ReLU, then the logits.

    199,210 parameters for 28 x 28 pixels and 10 classes. Kernels start Glorot uniform, biases 0.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.

    Raises:
        ConfigError: A size is not positive.
    """
    return _of_row("mlp-2nn", input_shape, num_classes, seed)


def cnn_mcmahan(
    input_shape: Sequence[int] = (28, 28), num_classes: int = 10, seed: int = 0
) -> Model:
    """Returns the CNN of McMahan et al. 2017: two 5 x 5 convolutions with pooling, 512 units.

    1,663,370 parameters for 28 x 28 pixels and 10 classes, 1,690,046 for 62. The convolutions have
    32 and 64 channels and keep the size of the image. All activations are ReLU. Kernels start
    Glorot uniform, biases 0.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C], at least 4 x 4.
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.

    Raises:
        ConfigError: A size is not positive, or the image is too small.
    """
    return _of_row("cnn-mcmahan", input_shape, num_classes, seed)


def leaf_femnist(
    input_shape: Sequence[int] = (28, 28), num_classes: int = 10, seed: int = 0
) -> Model:
    """Returns the CNN of LEAF for FEMNIST: `cnn_mcmahan` with 2048 hidden units.

    6,497,162 parameters for 28 x 28 pixels and 10 classes, 6,603,710 for 62.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C], at least 4 x 4.
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.

    Raises:
        ConfigError: A size is not positive, or the image is too small.
    """
    return _of_row("leaf-femnist", input_shape, num_classes, seed)


def cnn_reddi(
    input_shape: Sequence[int] = (28, 28),
    num_classes: int = 10,
    seed: int = 0,
    *,
    dropout: float | Sequence[float] = (0.25, 0.5),
) -> Model:
    """Returns the CNN of Reddi et al. 2021 for EMNIST: two 3 x 3 convolutions, dropout, 128 units.

    1,199,882 parameters for 28 x 28 pixels and 10 classes, 1,206,590 for 62. Kernels start Glorot
    uniform, biases 0.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C], at least 6 x 6.
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.
        dropout: Rates after the pool and after the hidden layer; a number sets both, and 0 means no
            dropout.

    Raises:
        ConfigError: A size is not positive, there are not one or two rates, a rate is not below 1,
            or the image is too small.
    """
    rates: Any = (dropout,) if np.ndim(dropout) == 0 else dropout
    return _of_row("cnn-reddi", input_shape, num_classes, seed, dropout=rates)


def lenet5(input_shape: Sequence[int] = (28, 28), num_classes: int = 10, seed: int = 0) -> Model:
    """Returns LeNet-5 in its usual modern form: ReLU, max-pools, dense layers of 120 and 84.

    61,706 parameters for 28 x 28 pixels and 10 classes, 66,126 for 62. LeCun et al. 1998 used
    trainable subsampling, a sparse second convolution and radial basis outputs instead. Kernels
    start Glorot uniform, biases 0.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C], at least 12 x 12.
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.

    Raises:
        ConfigError: A size is not positive, or the image is too small.
    """
    return _of_row("lenet5", input_shape, num_classes, seed)


def lenet5_cifar(
    input_shape: Sequence[int] = (32, 32, 3), num_classes: int = 10, seed: int = 0
) -> Model:
    """Returns the CNN of PyTorch's tutorial for CIFAR-10: `lenet5` without padding.

    62,006 parameters for 32 x 32 x 3 pixels and 10 classes. Kernels start Glorot uniform, biases 0;
    PyTorch draws both within 1 / root(fan in).

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C], at least 16 x 16.
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.

    Raises:
        ConfigError: A size is not positive, or the image is too small.
    """
    return _of_row("lenet5-cifar", input_shape, num_classes, seed)


def cnn_cifar(
    input_shape: Sequence[int] = (24, 24, 3), num_classes: int = 10, seed: int = 0
) -> Model:
    """Returns the CNN of McMahan et al. 2017 for CIFAR-10: that of TensorFlow's 2016 tutorial.

    1,068,298 parameters for crops of 24 x 24 x 3 pixels and 10 classes, "about 10^6" in the paper.
    The tutorial's local response normalization, which has no parameters, is left out. Kernels start
    Glorot uniform, biases 0; the tutorial draws truncated normals.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.

    Raises:
        ConfigError: A size is not positive.
    """
    return _of_row("cnn-cifar", input_shape, num_classes, seed)


def resnet20(
    input_shape: Sequence[int] = (32, 32, 3), num_classes: int = 10, seed: int = 0, groups: int = 2
) -> Model:
    """Returns the ResNet-20 of He et al. 2016 for CIFAR, with group normalization.

    272,474 parameters for 10 classes. There are stages of 16, 32 and 64 channels, each with three
    blocks of two 3 x 3 convolutions. Where the second and the third stage begin, the shortcut is a
    1 x 1 convolution of stride 2, which the paper calls option B. Option A, zeros for new channels,
    has 2,752 parameters fewer. The groups are those of Hsieh et al. 2020. Kernels start Glorot
    uniform; the paper uses He's normal initialiser.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.
        groups: Groups of each normalization, a divisor of 16.

    Raises:
        ConfigError: A size is not positive, or the groups do not divide the channels.
    """
    return _of_row("resnet20", input_shape, num_classes, seed, groups=groups)


def resnet32(
    input_shape: Sequence[int] = (32, 32, 3), num_classes: int = 10, seed: int = 0, groups: int = 2
) -> Model:
    """Returns `resnet20` with five blocks per stage; 466,906 parameters for 10 classes."""
    return _of_row("resnet32", input_shape, num_classes, seed, groups=groups)


def resnet56(
    input_shape: Sequence[int] = (32, 32, 3), num_classes: int = 10, seed: int = 0, groups: int = 2
) -> Model:
    """Returns `resnet20` with nine blocks per stage; 855,770 parameters for 10 classes."""
    return _of_row("resnet56", input_shape, num_classes, seed, groups=groups)


def resnet20_bn(
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    seed: int = 0,
    norm_momentum: float = 0.9,
) -> Model:
    """Returns `resnet20` with batch normalization, as in He et al. 2016.

    272,474 parameters for 10 classes, and 1,568 moving statistics. Momentum 0.9 and epsilon 1e-5
    are PyTorch's defaults; PyTorch calls this momentum 0.1. Keras has 0.99 and 1e-3; 0.99 is slow
    for a client's few local steps.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.
        norm_momentum: Momentum of the moving statistics; see `layers.BatchNorm`.

    Raises:
        ConfigError: A size is not positive.
    """
    return _of_row("resnet20-bn", input_shape, num_classes, seed, norm_momentum=norm_momentum)


def resnet32_bn(
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    seed: int = 0,
    norm_momentum: float = 0.9,
) -> Model:
    """Returns `resnet20_bn` with five blocks a stage; 466,906 parameters for 10 classes."""
    return _of_row("resnet32-bn", input_shape, num_classes, seed, norm_momentum=norm_momentum)


def resnet56_bn(
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    seed: int = 0,
    norm_momentum: float = 0.9,
) -> Model:
    """Returns `resnet20_bn` with nine blocks a stage; 855,770 parameters for 10 classes."""
    return _of_row("resnet56-bn", input_shape, num_classes, seed, norm_momentum=norm_momentum)


def vgg11_bn(
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    seed: int = 0,
    norm_momentum: float = 0.9,
) -> Model:
    """Returns `vgg11` with batch normalization; 9,231,114 parameters for 10 classes."""
    return _of_row("vgg11-bn", input_shape, num_classes, seed, norm_momentum=norm_momentum)


def mobilenet_v2_bn(
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    seed: int = 0,
    norm_momentum: float = 0.9,
) -> Model:
    """Returns `mobilenet_v2` with batch normalization; 2,236,682 parameters for 10 classes."""
    return _of_row("mobilenet-v2-bn", input_shape, num_classes, seed, norm_momentum=norm_momentum)


def resnet18_gn(
    input_shape: Sequence[int] = (32, 32, 3), num_classes: int = 10, seed: int = 0, groups: int = 2
) -> Model:
    """Returns the ResNet-18 of Reddi et al. 2021 for CIFAR-100, with group normalization.

    11,173,962 parameters for 10 classes, 11,220,132 for 100. It begins with a 3 x 3 convolution of
    stride 1 and has no max-pool, for images of 32 x 32 or, cropped as in the paper, 24 x 24. There
    are stages of 64, 128, 256 and 512 channels, each with two blocks as in He et al. 2016. TFF's
    own code puts the normalization and ReLU before each convolution. Kernels start Glorot uniform.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.
        groups: Groups of each normalization, a divisor of 64.

    Raises:
        ConfigError: A size is not positive, or the groups do not divide the channels.
    """
    return _of_row("resnet18-gn", input_shape, num_classes, seed, groups=groups)


def vgg9(input_shape: Sequence[int] = (32, 32, 3), num_classes: int = 10, seed: int = 0) -> Model:
    """Returns the VGG-9 of Wang et al. 2020 (FedMA): six convolutions, two layers of 512 units.

    3,491,530 parameters for 32 x 32 x 3 pixels and 10 classes. Kernels start Glorot uniform, biases
    0.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C], at least 8 x 8.
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.

    Raises:
        ConfigError: A size is not positive, or the image is too small.
    """
    return _of_row("vgg9", input_shape, num_classes, seed)


def vgg11(
    input_shape: Sequence[int] = (32, 32, 3), num_classes: int = 10, seed: int = 0, groups: int = 2
) -> Model:
    """Returns the VGG-11 of Simonyan and Zisserman 2015 for CIFAR, with group normalization.

    9,231,114 parameters for 32 x 32 x 3 pixels and 10 classes: eight 3 x 3 convolutions of 64 to
    512 channels, each with a bias and a normalization, five max-pools and one dense layer. Kernels
    start Glorot uniform, biases 0.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.
        groups: Groups of each normalization, a divisor of 64.

    Raises:
        ConfigError: A size is not positive, or the groups do not divide the channels.
    """
    return _of_row("vgg11", input_shape, num_classes, seed, groups=groups)


def mobilenet_v1(
    input_shape: Sequence[int] = (32, 32, 3), num_classes: int = 10, seed: int = 0, groups: int = 2
) -> Model:
    """Returns the MobileNet of Howard et al. 2017 for CIFAR, with group normalization.

    3,217,226 parameters for 10 classes, as many as with batch normalization if moving statistics
    are not counted. The first convolution has stride 1; thirteen pairs of a depthwise 3 x 3
    convolution and a 1 x 1 convolution follow, with 64 to 1024 channels. Kernels start Glorot
    uniform.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.
        groups: Groups of each normalization, a divisor of 32.

    Raises:
        ConfigError: A size is not positive, or the groups do not divide the channels.
    """
    return _of_row("mobilenet-v1", input_shape, num_classes, seed, groups=groups)


def mobilenet_v2(
    input_shape: Sequence[int] = (32, 32, 3), num_classes: int = 10, seed: int = 0, groups: int = 2
) -> Model:
    """Returns the MobileNetV2 of Sandler et al. 2018 for CIFAR, with group normalization.

    2,236,682 parameters for 10 classes, as many as with batch normalization if moving statistics
    are not counted. The first convolution and the blocks of 24 channels have stride 1, for images
    of 32 x 32. Otherwise the model is that of the paper: seventeen inverted residual blocks.
    Kernels start Glorot uniform.

    Args:
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        seed: Seed of the initial weights, which depend only on it and on the shapes.
        groups: Groups of each normalization, a divisor of 8.

    Raises:
        ConfigError: A size is not positive, or the groups do not divide the channels.
    """
    return _of_row("mobilenet-v2", input_shape, num_classes, seed, groups=groups)


@speaks_python()
def build(
    name: str,
    *,
    input_shape: Sequence[int] = (28, 28),
    num_classes: int = 10,
    options: Mapping[str, Value] | None = None,
    seed: int = 0,
) -> Model:
    """Returns the model that is called `name` in the table.

    Args:
        name: A key of `tables.MODELS`.
        input_shape: Shape of one example, [H, W] or [H, W, C].
        num_classes: Number of classes.
        options: The model's options; those left out have their defaults.
        seed: Seed of the initial weights.

    Raises:
        ConfigError: The name or an option is unknown, a value is not allowed, or the image is too
            small.
    """
    layout = build_layout(name, input_shape=input_shape, num_classes=num_classes, options=options)
    return _with_weights(tables.MODELS[name], layout, seed)


@speaks_python()
def build_layout(
    name: str,
    *,
    input_shape: Sequence[int] = (28, 28),
    num_classes: int = 10,
    options: Mapping[str, Value] | None = None,
) -> ParamLayout:
    """Returns the layout of a model of the table, without drawing its weights; see `build`."""
    if name.endswith((".keras", ".h5", ".json")):
        raise ConfigError(
            f"unknown model {name!r}; to open a Keras file, use models.load({name!r})"
        )
    if tables.is_model_file(name):
        raise ConfigError(
            f"unknown model {name!r}; import the file, and give its class or the model that its "
            f"function returns, or call fedcli.train with RunConfig(model={name!r})"
        )
    row = opt.choose(tables.MODELS, name, "model")
    return _lay_out(row, input_shape, num_classes, opt.resolve(row, options or {}))


def _of_row(
    name: str, input_shape: Sequence[int], num_classes: int, seed: int, **options: Any
) -> Model:
    """The model of a row of the table. Its options are not checked."""
    row = tables.MODELS[name]
    return _with_weights(row, _lay_out(row, input_shape, num_classes, options), seed)


def _lay_out(
    row: ModelEntry, input_shape: Sequence[int], num_classes: int, options: Mapping[str, Any]
) -> ParamLayout:
    try:
        return lay_out(load(row.code)(num_classes, **options), input_shape)
    except ConfigError as err:
        raise ConfigError(f"model {row.name}: {err}") from err


def _with_weights(row: ModelEntry, layout: ParamLayout, seed: int) -> Model:
    if row.starts_at_zero:
        return Model(row.name, layout, np.zeros(layout.num_params, np.float32))
    return Model(row.name, layout, glorot_uniform(layout, seed))
