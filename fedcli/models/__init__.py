"""Models that the core trains: by name, as layers that the user lists, or from Keras files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcli.lazy import reexport

if TYPE_CHECKING:
    from fedcli.models.layer_graphs import functional as functional
    from fedcli.models.model import Model as Model
    from fedcli.models.model import glorot_uniform as glorot_uniform
    from fedcli.models.model import sequential as sequential
    from fedcli.models.sources import load as load
    from fedcli.models.zoo import build as build
    from fedcli.models.zoo import build_layout as build_layout
    from fedcli.models.zoo import cnn_cifar as cnn_cifar
    from fedcli.models.zoo import cnn_mcmahan as cnn_mcmahan
    from fedcli.models.zoo import cnn_reddi as cnn_reddi
    from fedcli.models.zoo import leaf_femnist as leaf_femnist
    from fedcli.models.zoo import lenet5 as lenet5
    from fedcli.models.zoo import lenet5_cifar as lenet5_cifar
    from fedcli.models.zoo import mlp_2nn as mlp_2nn
    from fedcli.models.zoo import mobilenet_v1 as mobilenet_v1
    from fedcli.models.zoo import mobilenet_v2 as mobilenet_v2
    from fedcli.models.zoo import mobilenet_v2_bn as mobilenet_v2_bn
    from fedcli.models.zoo import resnet18_gn as resnet18_gn
    from fedcli.models.zoo import resnet20 as resnet20
    from fedcli.models.zoo import resnet20_bn as resnet20_bn
    from fedcli.models.zoo import resnet32 as resnet32
    from fedcli.models.zoo import resnet32_bn as resnet32_bn
    from fedcli.models.zoo import resnet56 as resnet56
    from fedcli.models.zoo import resnet56_bn as resnet56_bn
    from fedcli.models.zoo import softmax_regression as softmax_regression
    from fedcli.models.zoo import vgg9 as vgg9
    from fedcli.models.zoo import vgg11 as vgg11
    from fedcli.models.zoo import vgg11_bn as vgg11_bn
else:
    __getattr__, __dir__, __all__ = reexport(
        __name__,
        {
            "Model": "fedcli.models.model",
            "build": "fedcli.models.zoo",
            "build_layout": "fedcli.models.zoo",
            "cnn_cifar": "fedcli.models.zoo",
            "cnn_mcmahan": "fedcli.models.zoo",
            "cnn_reddi": "fedcli.models.zoo",
            "functional": "fedcli.models.layer_graphs",
            "glorot_uniform": "fedcli.models.model",
            "leaf_femnist": "fedcli.models.zoo",
            "lenet5": "fedcli.models.zoo",
            "lenet5_cifar": "fedcli.models.zoo",
            "load": "fedcli.models.sources",
            "mlp_2nn": "fedcli.models.zoo",
            "mobilenet_v1": "fedcli.models.zoo",
            "mobilenet_v2": "fedcli.models.zoo",
            "mobilenet_v2_bn": "fedcli.models.zoo",
            "resnet18_gn": "fedcli.models.zoo",
            "resnet20": "fedcli.models.zoo",
            "resnet20_bn": "fedcli.models.zoo",
            "resnet32": "fedcli.models.zoo",
            "resnet32_bn": "fedcli.models.zoo",
            "resnet56": "fedcli.models.zoo",
            "resnet56_bn": "fedcli.models.zoo",
            "sequential": "fedcli.models.model",
            "softmax_regression": "fedcli.models.zoo",
            "vgg11": "fedcli.models.zoo",
            "vgg11_bn": "fedcli.models.zoo",
            "vgg9": "fedcli.models.zoo",
        },
    )
