"""The layers of the built-in models, one function for each row of `tables.MODELS`.

`zoo` has the function that makes each model, with its paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedcli.errors import ConfigError
from fedcli.models.layers import (
    Activation,
    Add,
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    GroupNorm,
    Input,
    MaxPool2D,
    Node,
    Spec,
)


def softmax_stack(num_classes: int) -> list[Spec]:
    """Returns the layers of `softmax_regression`."""
    return [Dense(num_classes)]


def mlp_2nn_stack(num_classes: int) -> list[Spec]:
    """Returns the layers of `mlp_2nn`."""
    return [Dense(200, "relu"), Dense(200, "relu"), Dense(num_classes)]


def mcmahan_stack(num_classes: int, *, units: int = 512) -> list[Spec]:
    """Returns the layers of `cnn_mcmahan`."""
    return [
        Conv2D(32, (5, 5), padding="same", activation="relu"),
        MaxPool2D((2, 2)),
        Conv2D(64, (5, 5), padding="same", activation="relu"),
        MaxPool2D((2, 2)),
        Flatten(),
        Dense(units, "relu"),
        Dense(num_classes),
    ]


def leaf_femnist_stack(num_classes: int) -> list[Spec]:
    """Returns the layers of `leaf_femnist`."""
    return mcmahan_stack(num_classes, units=2048)


def reddi_stack(num_classes: int, dropout: Sequence[float] = (0.25, 0.5)) -> list[Spec]:
    """Returns the layers of `cnn_reddi`.

    Raises:
        ConfigError: There are not one or two rates.
    """
    if not 1 <= len(dropout) <= 2:
        raise ConfigError(f"dropout has {len(dropout)} rates; give one or two")
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


def lenet5_stack(num_classes: int) -> list[Spec]:
    """Returns the layers of `lenet5`."""
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


def lenet5_cifar_stack(num_classes: int) -> list[Spec]:
    """Returns the layers of `lenet5_cifar`."""
    first, *others = lenet5_stack(num_classes)
    return [first.changed(padding="valid"), *others]


def cnn_cifar_stack(num_classes: int) -> list[Spec]:
    """Returns the layers of `cnn_cifar`."""
    return [
        Conv2D(64, (5, 5), padding="same", activation="relu"),
        MaxPool2D((3, 3), (2, 2), "same"),
        Conv2D(64, (5, 5), padding="same", activation="relu"),
        MaxPool2D((3, 3), (2, 2), "same"),
        Flatten(),
        Dense(384, "relu"),
        Dense(192, "relu"),
        Dense(num_classes),
    ]


def resnet20_stack(num_classes: int, groups: int = 2) -> list[Spec]:
    """Returns the layers of `resnet20`."""
    return _resnet(num_classes, GroupNorm(groups), (16, 32, 64), 3)


def resnet32_stack(num_classes: int, groups: int = 2) -> list[Spec]:
    """Returns the layers of `resnet32`."""
    return _resnet(num_classes, GroupNorm(groups), (16, 32, 64), 5)


def resnet56_stack(num_classes: int, groups: int = 2) -> list[Spec]:
    """Returns the layers of `resnet56`."""
    return _resnet(num_classes, GroupNorm(groups), (16, 32, 64), 9)


def resnet20_bn_stack(num_classes: int, norm_momentum: float = 0.9) -> list[Spec]:
    """Returns the layers of `resnet20_bn`."""
    return _resnet(num_classes, _batch_norm(norm_momentum), (16, 32, 64), 3)


def resnet32_bn_stack(num_classes: int, norm_momentum: float = 0.9) -> list[Spec]:
    """Returns the layers of `resnet32_bn`."""
    return _resnet(num_classes, _batch_norm(norm_momentum), (16, 32, 64), 5)


def resnet56_bn_stack(num_classes: int, norm_momentum: float = 0.9) -> list[Spec]:
    """Returns the layers of `resnet56_bn`."""
    return _resnet(num_classes, _batch_norm(norm_momentum), (16, 32, 64), 9)


def resnet18_gn_stack(num_classes: int, groups: int = 2) -> list[Spec]:
    """Returns the layers of `resnet18_gn`."""
    return _resnet(num_classes, GroupNorm(groups), (64, 128, 256, 512), 2)


def vgg9_stack(num_classes: int) -> list[Spec]:
    """Returns the layers of `vgg9`."""
    layers: list[Spec] = []
    for channels in ((32, 64), (128, 128), (256, 256)):
        layers += [Conv2D(each, 3, padding="same", activation="relu") for each in channels]
        layers.append(MaxPool2D(2))
    return [*layers, Flatten(), Dense(512, "relu"), Dense(512, "relu"), Dense(num_classes)]


def vgg11_stack(num_classes: int, groups: int = 2) -> list[Spec]:
    """Returns the layers of `vgg11`."""
    return _vgg11(num_classes, GroupNorm(groups))


def vgg11_bn_stack(num_classes: int, norm_momentum: float = 0.9) -> list[Spec]:
    """Returns the layers of `vgg11_bn`."""
    return _vgg11(num_classes, _batch_norm(norm_momentum))


def _vgg11(num_classes: int, norm: Spec) -> list[Spec]:
    """The layers of a VGG-11; its pools round sizes up, so that small images fit, too."""
    layers: list[Spec] = []
    for channels in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for each in channels:
            layers += [Conv2D(each, 3, padding="same"), norm.changed(), Activation("relu")]
        layers.append(MaxPool2D(2, padding="same"))
    return [*layers, Flatten(), Dense(num_classes)]


def mobilenet_v1_stack(num_classes: int, groups: int = 2) -> list[Spec]:
    """Returns the layers of `mobilenet_v1`."""
    norm = GroupNorm(groups)
    layers = _activated(Conv2D(32, 3, padding="same", use_bias=False), norm)
    for channels, stride in (
        *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
        *(*[(512, 1)] * 5, (1024, 2), (1024, 1)),
    ):
        layers += _activated(DepthwiseConv2D(3, stride, "same", use_bias=False), norm)
        layers += _activated(Conv2D(channels, 1, use_bias=False), norm)
    return [*layers, GlobalAveragePool2D(), Dense(num_classes)]


def mobilenet_v2_stack(num_classes: int, groups: int = 2) -> list[Spec]:
    """Returns the layers of `mobilenet_v2`."""
    return _mobilenet_v2(num_classes, GroupNorm(groups))


def mobilenet_v2_bn_stack(num_classes: int, norm_momentum: float = 0.9) -> list[Spec]:
    """Returns the layers of `mobilenet_v2_bn`."""
    return _mobilenet_v2(num_classes, _batch_norm(norm_momentum))


def _mobilenet_v2(num_classes: int, norm: Spec) -> list[Spec]:
    x, width = Input(), 32
    for layer in _activated(Conv2D(width, 3, padding="same", use_bias=False), norm):
        x = layer(x)
    # Expansion, channels, blocks, stride of the first block: table 2 of the paper except one
    # stride.
    for expansion, channels, num_blocks, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for block in range(num_blocks):
            y = x
            for layer in _inverted(width, expansion, channels, 1 if block else stride, norm):
                y = layer(y)
            x, width = Add()(x, y) if block else y, channels
    for layer in _activated(Conv2D(1280, 1, use_bias=False), norm):
        x = layer(x)
    from fedcli.models.layer_graphs import specs_of  # lazy: few models are graphs

    return specs_of(Dense(num_classes)(GlobalAveragePool2D()(x)))


def _inverted(width: int, expansion: int, channels: int, stride: int, norm: Spec) -> list[Spec]:
    """An inverted residual block: expands the channels, filters each, and projects them."""
    wide = Conv2D(expansion * width, 1, use_bias=False)
    return [
        *(_activated(wide, norm) if expansion > 1 else ()),
        *_activated(DepthwiseConv2D(3, stride, "same", use_bias=False), norm),
        *(Conv2D(channels, 1, use_bias=False), norm.changed()),
    ]


def _activated(layer: Spec, norm: Spec) -> list[Spec]:
    return [layer, norm.changed(), Activation("relu6")]


def _batch_norm(momentum: float) -> Spec:
    """A batch norm with PyTorch's epsilon."""
    return BatchNorm(momentum, 1e-5)


def _resnet(num_classes: int, norm: Spec, channels: Sequence[int], num_blocks: int) -> list[Spec]:
    """The layers of a residual network. Each stage except the first halves height and width."""
    x = Activation("relu")(_conv_and_norm(Input(), channels[0], 3, 1, norm))
    for stage, width in enumerate(channels):
        for block in range(num_blocks):
            halves = stage > 0 and block == 0
            x = _block(x, width, 2 if halves else 1, norm)
    from fedcli.models.layer_graphs import specs_of  # lazy: few models are graphs

    return specs_of(Dense(num_classes)(GlobalAveragePool2D()(x)))


def _block(x: Node, width: int, stride: int, norm: Spec) -> Node:
    """Two 3 x 3 convolutions and a shortcut, which has a convolution where the shape changes."""
    y = Activation("relu")(_conv_and_norm(x, width, 3, stride, norm))
    y = _conv_and_norm(y, width, 3, 1, norm)
    shortcut = x if stride == 1 else _conv_and_norm(x, width, 1, stride, norm)
    return Activation("relu")(Add()(y, shortcut))


def _conv_and_norm(x: Node, width: int, window: int, stride: int, norm: Spec) -> Node:
    """A convolution, and a norm with the options of `norm`."""
    conv = Conv2D(width, window, stride, "same", use_bias=False)
    return norm.changed()(conv(x))
