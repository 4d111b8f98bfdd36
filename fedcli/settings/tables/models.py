"""The table of models, and how --model names a file."""

from __future__ import annotations

from collections.abc import Mapping

from fedcli.dataclass import dataclass
from fedcli.settings.options import Entry, Option, Value, table


def _check_dropout(options: Mapping[str, Value]) -> str | None:
    rates = options["dropout"]
    assert isinstance(rates, list)
    if len(rates) > 2 or max(rates) >= 1.0:
        return f"dropout = {rates}: give one or two rates from 0 to below 1"
    return None


@dataclass(frozen=True)
class ModelEntry(Entry):
    """A model; its `code` is a function (num_classes, **options) -> layers from pixels to logits.

    Attributes:
        starts_at_zero: Whether all initial parameters are 0; otherwise each layer initialises its
            parameters.
        example_shape: Shape of the examples for which `fedcli info` counts.
    """

    starts_at_zero: bool = False
    example_shape: tuple[int, ...] = (28, 28)


_CIFAR = (32, 32, 3)
_GROUPS = Option("groups", 2, "Groups of each normalization; a divisor of the channels.", 1, 64)
_MOMENTUM = Option(
    "norm_momentum", 0.9, "Share of the moving statistics that a local step keeps.", 0.0, 1.0
)


MODELS = table(
    ModelEntry(
        "softmax-regression",
        "One dense layer from pixels to classes, initialized with zeros; num_inputs x num_classes "
        "+ num_classes parameters (7,850 for 28 x 28 pixels and 10 classes).",
        "TFF tutorial, Federated Learning for Image Classification",
        starts_at_zero=True,
        rates="client SGD 0.02 (the TFF tutorial) to 0.1",
        code="fedcli.models.zoo_stacks:softmax_stack",
    ),
    ModelEntry(
        "mlp-2nn",
        "Two dense layers of 200 with ReLU, then the logits, Glorot uniform from the run's seed; "
        "199,210 parameters for 28 x 28 pixels and 10 classes.",
        "McMahan et al. 2017, arXiv 1602.05629, the 2NN",
        rates="client SGD 0.05 to 0.3",
        code="fedcli.models.zoo_stacks:mlp_2nn_stack",
    ),
    ModelEntry(
        "cnn-mcmahan",
        "Two padded 5 x 5 convolutions of 32 and 64 channels, each with ReLU and a 2 x 2 max-pool, "
        "512 units with ReLU, then the logits; 1,663,370 parameters for 28 x 28 pixels and 10 "
        "classes.",
        "McMahan et al. 2017, arXiv 1602.05629; TFF simulation/baselines/emnist, cnn",
        rates="client SGD 0.05 to 0.2",
        code="fedcli.models.zoo_stacks:mcmahan_stack",
    ),
    ModelEntry(
        "cnn-reddi",
        "Two 3 x 3 convolutions of 32 and 64 channels with ReLU, a 2 x 2 max-pool, 128 units with "
        "ReLU, then the logits, with dropout before and after the 128; 1,199,882 parameters for 28 "
        "x 28 pixels and 10 classes.",
        "Reddi et al. 2021, arXiv 2003.00295; TFF simulation/baselines/emnist, cnn_dropout",
        (
            Option(
                "dropout",
                [0.25, 0.5],
                "Rates below 1, after the pool and after the 128 units; a single number sets both. "
                "0: no dropout.",
                0.0,
                1.0,
            ),
        ),
        _check_dropout,
        rates="client SGD 0.03 to 0.1 (Reddi et al. 2021)",
        code="fedcli.models.zoo_stacks:reddi_stack",
    ),
    ModelEntry(
        "lenet5",
        "A padded 5 x 5 convolution of 6 channels and one of 16 without padding, each with ReLU "
        "and a 2 x 2 max-pool, 120 and 84 units with ReLU, then the logits; 61,706 parameters for "
        "28 x 28 pixels and 10 classes.",
        "LeCun et al. 1998, Proc. IEEE 86(11), in its usual modern form",
        rates="client SGD 0.03 to 0.1",
        code="fedcli.models.zoo_stacks:lenet5_stack",
    ),
    ModelEntry(
        "lenet5-cifar",
        "As lenet5, without padding: two 5 x 5 convolutions of 6 and 16 channels, 120 and 84 "
        "units; 62,006 parameters for 32 x 32 x 3 pixels and 10 classes.",
        "PyTorch tutorial, Training a Classifier; the CNN of BlazeFL's benchmark and the simple "
        "CNN of NIID-Bench (Li et al. 2022, arXiv 2102.02079)",
        rates="client SGD 0.01 to 0.1",
        code="fedcli.models.zoo_stacks:lenet5_cifar_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "cnn-cifar",
        "Two padded 5 x 5 convolutions of 64 channels with ReLU, each with a 3 x 3 max-pool of "
        "stride 2, 384 and 192 units with ReLU, then the logits; 1,068,298 parameters for crops of "
        "24 x 24 x 3 pixels and 10 classes.",
        "McMahan et al. 2017, arXiv 1602.05629, CIFAR-10, after the TensorFlow tutorial of 2016; "
        "without its local response normalization",
        rates="client SGD 0.03 to 0.15",
        code="fedcli.models.zoo_stacks:cnn_cifar_stack",
        example_shape=(24, 24, 3),
    ),
    ModelEntry(
        "leaf-femnist",
        "As cnn-mcmahan with 2048 units; 6,497,162 parameters for 28 x 28 pixels and 10 classes, "
        "6,603,710 for 62.",
        "Caldas et al. 2018 (LEAF), arXiv 1812.01097, models/femnist",
        rates="client SGD 0.004 to 0.06, as in LEAF",
        code="fedcli.models.zoo_stacks:leaf_femnist_stack",
    ),
    ModelEntry(
        "resnet20",
        "Residual network of 3 x 3 convolutions for small colour images: 16, 32 and 64 channels, "
        "three blocks of two convolutions each, group normalization; 272,474 parameters for 10 "
        "classes.",
        "He et al. 2016, arXiv 1512.03385, section 4.2, with shortcuts of option B; group "
        "normalization as in Hsieh et al. 2020, arXiv 1910.00189",
        (_GROUPS,),
        rates="client SGD 0.03 to 0.3",
        code="fedcli.models.zoo_stacks:resnet20_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "resnet32",
        "As resnet20 with five blocks a stage; 466,906 parameters for 10 classes.",
        "He et al. 2016, arXiv 1512.03385, section 4.2; see resnet20",
        (_GROUPS,),
        rates="client SGD 0.03 to 0.3",
        code="fedcli.models.zoo_stacks:resnet32_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "resnet56",
        "As resnet20 with nine blocks a stage; 855,770 parameters for 10 classes.",
        "He et al. 2016, arXiv 1512.03385, section 4.2; see resnet20",
        (_GROUPS,),
        rates="client SGD 0.03 to 0.3",
        code="fedcli.models.zoo_stacks:resnet56_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "resnet20-bn",
        "As resnet20 with batch normalization; 272,474 parameters and 1,568 moving statistics for "
        "10 classes.",
        "He et al. 2016, arXiv 1512.03385, section 4.2, with shortcuts of option B",
        (_MOMENTUM,),
        rates="client SGD 0.03 to 0.3",
        code="fedcli.models.zoo_stacks:resnet20_bn_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "resnet32-bn",
        "As resnet20-bn with five blocks a stage; 466,906 parameters for 10 classes.",
        "He et al. 2016, arXiv 1512.03385, section 4.2; see resnet20-bn",
        (_MOMENTUM,),
        rates="client SGD 0.03 to 0.3",
        code="fedcli.models.zoo_stacks:resnet32_bn_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "resnet56-bn",
        "As resnet20-bn with nine blocks a stage; 855,770 parameters for 10 classes.",
        "He et al. 2016, arXiv 1512.03385, section 4.2; see resnet20-bn",
        (_MOMENTUM,),
        rates="client SGD 0.03 to 0.3",
        code="fedcli.models.zoo_stacks:resnet56_bn_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "resnet18-gn",
        "Residual network of 64, 128, 256 and 512 channels, two blocks each, group normalization, "
        "for images of 32 x 32 or crops of 24 x 24; 11,173,962 parameters for 10 classes, "
        "11,220,132 for 100.",
        "Reddi et al. 2021, arXiv 2003.00295, CIFAR-100; He et al. 2016, arXiv 1512.03385",
        (_GROUPS,),
        rates="client SGD 0.03 to 0.1",
        code="fedcli.models.zoo_stacks:resnet18_gn_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "mobilenet-v1",
        "Thirteen pairs of a 3 x 3 depthwise convolution and a 1 x 1 convolution, "
        "64 to 1024 channels, with group normalization and ReLU6; 3,217,226 parameters for 10 "
        "classes.",
        "Howard et al. 2017, arXiv 1704.04861, table 1, with a first stride of 1 for CIFAR",
        (_GROUPS,),
        rates="client SGD 0.03 to 0.1",
        code="fedcli.models.zoo_stacks:mobilenet_v1_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "mobilenet-v2",
        "Seventeen inverted residual blocks of 16 to 320 channels, expanded six times, with "
        "group normalization and ReLU6; 2,236,682 parameters for 10 classes.",
        "Sandler et al. 2018, arXiv 1801.04381, table 2, the first two strides 1 for CIFAR",
        (_GROUPS,),
        rates="client SGD 0.03 to 0.1",
        code="fedcli.models.zoo_stacks:mobilenet_v2_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "mobilenet-v2-bn",
        "As mobilenet-v2 with batch normalization; 2,236,682 parameters for 10 classes.",
        "Sandler et al. 2018, arXiv 1801.04381; see mobilenet-v2",
        (_MOMENTUM,),
        rates="client SGD 0.03 to 0.1",
        code="fedcli.models.zoo_stacks:mobilenet_v2_bn_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "vgg9",
        "Six 3 x 3 convolutions of 32 to 256 channels with ReLU, a max-pool after every second, "
        "two layers of 512 units with ReLU, then the logits; 3,491,530 parameters for 32 x 32 x 3 "
        "pixels and 10 classes.",
        "Wang et al. 2020 (FedMA), arXiv 2002.06440",
        rates="client SGD 0.01 to 0.1",
        code="fedcli.models.zoo_stacks:vgg9_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "vgg11",
        "Eight 3 x 3 convolutions of 64 to 512 channels with group normalization and ReLU, five "
        "max-pools, then the logits; 9,231,114 parameters for 32 x 32 x 3 pixels and 10 classes.",
        "Simonyan and Zisserman 2015, arXiv 1409.1556, configuration A with one dense layer",
        (_GROUPS,),
        rates="client SGD 0.01 to 0.1",
        code="fedcli.models.zoo_stacks:vgg11_stack",
        example_shape=_CIFAR,
    ),
    ModelEntry(
        "vgg11-bn",
        "As vgg11 with batch normalization; 9,231,114 parameters for 32 x 32 x 3 pixels and 10 "
        "classes.",
        "Simonyan and Zisserman 2015, arXiv 1409.1556; see vgg11",
        (_MOMENTUM,),
        rates="client SGD 0.01 to 0.1",
        code="fedcli.models.zoo_stacks:vgg11_bn_stack",
        example_shape=_CIFAR,
    ),
)


def is_model_file(text: str) -> bool:
    """Returns whether a value of --model is a file; names have no dots, slashes or colons."""
    return any(each in text for each in "./\\:")


def split_model_file(text: str) -> tuple[str, str | None]:
    """Returns path and function of FILE or FILE.py:FUNCTION; the function is None if not given."""
    file, colon, function = text.rpartition(":")
    return (file, function) if colon and file.endswith(".py") else (text, None)
