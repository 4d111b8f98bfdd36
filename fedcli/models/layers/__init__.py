"""The layers from which users build models, one file for each family."""

from __future__ import annotations

from fedcli.lazy import refuse_others

# Each family lists its layers in its `__all__`. Importing this package registers every kind.
from fedcli.models.layers.activation import *
from fedcli.models.layers.contract import IMAGE as IMAGE
from fedcli.models.layers.contract import Input as Input
from fedcli.models.layers.contract import Node as Node
from fedcli.models.layers.contract import Spec as Spec
from fedcli.models.layers.convolution import *
from fedcli.models.layers.dense import *
from fedcli.models.layers.dropout import *
from fedcli.models.layers.inputs import *
from fedcli.models.layers.merging import *
from fedcli.models.layers.normalization import *
from fedcli.models.layers.pooling import *
from fedcli.models.layers.reshaping import *

__all__ = [
    *("Activation", "Add", "AveragePool2D", "BatchNorm", "CenterCrop", "ColorJitter"),
    *("Concatenate", "Conv2D", "Cutout", "Dense", "DepthwiseConv2D", "Dropout", "ELU"),
    *(
        "Flatten",
        "GlobalAveragePool2D",
        "GlobalMaxPool2D",
        "GroupNorm",
        "IMAGE",
        "ImageStandardization",
    ),
    *("Input", "LayerNorm", "LeakyReLU", "MaxPool2D", "MixUp", "Node", "Normalization"),
    *("RandomCrop", "RandomFlip", "RandomRotation", "SeparableConv2D", "Spec", "ZeroPad2D"),
]
__getattr__ = refuse_others(__name__, __all__)
