from __future__ import annotations

import numpy as np
import pytest

import fedcli
from fedcli import models
from fedcli.errors import ConfigError
from fedcli.models.layers import Conv2D, Dense, GroupNorm
from fedcli.settings import tables
from fedcli.settings.options import Value

pytestmark = pytest.mark.numeric


def test_softmax_regression_is_one_dense_layer_of_zeros() -> None:
    model = models.build("softmax-regression")
    assert [(tensor.name, tensor.shape) for tensor in model.layout.tensors] == [
        ("dense/kernel", (784, 10)),
        ("dense/bias", (10,)),
    ]
    assert model.initial_params.shape == (7850,)
    assert model.initial_params.dtype == "float32"
    assert not model.initial_params.any()


def test_2nn_has_the_published_layers() -> None:
    model = models.build("mlp-2nn")
    assert [tensor.shape for tensor in model.layout.tensors] == [
        *((784, 200), (200,)),
        *((200, 200), (200,)),
        *((200, 10), (10,)),
    ]
    assert [layer.activation for layer in model.layout.layers] == ["relu", "relu", "linear"]


# Published numbers of trained parameters for 10 and 62 classes; images have the example_shape of
# tables.MODELS. The numbers for resnets are those of the usual implementations with projections.
COUNTS = {
    "softmax-regression": (7_850, 48_670),
    "mlp-2nn": (199_210, 209_662),
    "cnn-mcmahan": (1_663_370, 1_690_046),
    "cnn-reddi": (1_199_882, 1_206_590),
    "lenet5": (61_706, 66_126),
    "lenet5-cifar": (62_006, 66_426),
    "cnn-cifar": (1_068_298, 1_078_334),
    "leaf-femnist": (6_497_162, 6_603_710),
    "resnet20": (272_474, 275_854),
    "resnet32": (466_906, 470_286),
    "resnet56": (855_770, 859_150),
    "resnet18-gn": (11_173_962, 11_200_638),
    # Numbers published for batch norms, which have as many trained parameters as group norms.
    "mobilenet-v1": (3_217_226, 3_270_526),
    "mobilenet-v2": (2_236_682, 2_303_294),
    "vgg9": (3_491_530, 3_518_206),
    "vgg11": (9_231_114, 9_257_790),
}
COUNTS.update({f"{name}-bn": COUNTS[name] for name in COUNTS if f"{name}-bn" in tables.MODELS})
# Number of moving means and variances.
MOVING = {
    **{"resnet20-bn": 1_568, "resnet32-bn": 2_464, "resnet56-bn": 4_256},
    **{"mobilenet-v2-bn": 34_112, "vgg11-bn": 5_504},
}
# Published limits of the uniform distribution of each kernel, to four digits.
GLOROT_LIMITS = {
    "mlp-2nn": [0.0781, 0.1225, 0.1690],
    "cnn-mcmahan": [0.0853, 0.0500, 0.0406, 0.1072],
    "cnn-reddi": [0.1421, 0.0833, 0.0253, 0.2085],
}


@pytest.mark.parametrize("name", sorted(tables.MODELS))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    shape = tables.MODELS[name].example_shape
    counts = [
        models.build_layout(name, input_shape=shape, num_classes=each).num_trained
        for each in (10, 62)
    ]
    assert tuple(counts) == COUNTS[name]
    layout = models.build_layout(name, input_shape=shape)
    assert layout.num_params - layout.num_trained == MOVING.get(name, 0)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "cnn-mcmahan",
            [(28, 28, 32), (14, 14, 32), (14, 14, 64), (7, 7, 64), (1, 1, 512), (1, 1, 10)],
        ),
        (
            "cnn-reddi",
            [
                *((26, 26, 32), (24, 24, 64), (12, 12, 64), (12, 12, 64)),
                *((1, 1, 128), (1, 1, 128), (1, 1, 10)),
            ],
        ),
        (
            "lenet5",
            [
                *((28, 28, 6), (14, 14, 6), (10, 10, 16), (5, 5, 16)),
                *((1, 1, 120), (1, 1, 84), (1, 1, 10)),
            ],
        ),
    ],
)
def test_outputs_of_each_layer_are_those_of_the_papers(
    name: str, shapes: list[tuple[int, ...]]
) -> None:
    assert [layer.out_shape for layer in models.build_layout(name).layers] == shapes


@pytest.mark.parametrize("name", sorted(GLOROT_LIMITS))
def test_kernels_start_glorot_uniform_and_biases_0(name: str) -> None:
    model = models.build(name)
    tensors = model.layout.split(model.initial_params)
    for kernel, bias, limit in zip(tensors[::2], tensors[1::2], GLOROT_LIMITS[name], strict=True):
        assert not bias.any()
        # The largest of n draws is about limit / n below the limit; five times this is allowed.
        assert np.abs(kernel).max() == pytest.approx(limit, rel=5 / kernel.size + 2e-3)
        # Uniform draws have the variance limit^2 / 3; its relative error is sqrt(4 / (5 n)).
        error = np.sqrt(0.8 / kernel.size)
        assert kernel.var() == pytest.approx(limit**2 / 3, rel=4 * error + 4e-3)
        assert abs(kernel.mean()) < 4 * limit / np.sqrt(3 * kernel.size)


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet56", "resnet18-gn"])
def test_residual_networks_have_their_depth_and_take_crops(name: str) -> None:
    depth = int(name.removeprefix("resnet").removesuffix("-gn"))
    layout = models.build_layout(name, input_shape=(24, 24, 3), num_classes=100)
    counted = [
        layer
        for layer in layout.layers
        if layer.kind in ("conv2d", "dense") and layer.window[0] != 1
    ]
    assert len(counted) == depth  # without the convolutions of shortcuts
    sums = [place for place, layer in enumerate(layout.layers) if layer.kind == "add"]
    assert len(sums) == (depth - 2) // 2
    assert all(layout.layers[place].activation == "relu" for place in sums)
    assert all(len(layout.sources[place]) == 2 for place in sums)
    if name == "resnet18-gn":
        assert layout.num_params == 11_220_132


def test_mobilenet_v2_halves_its_images_three_times_and_adds_where_shapes_stay() -> None:
    layout = models.build_layout("mobilenet-v2", input_shape=(32, 32, 3))
    sums = [layer.out_shape for layer in layout.layers if layer.kind == "add"]
    by_channels = {24: (1, 32), 32: (2, 16), 64: (3, 8), 96: (2, 8), 160: (2, 4)}
    assert sums == [
        (side, side, channels) for channels, (num, side) in by_channels.items() for _ in range(num)
    ]
    assert {each.activation for each in layout.layers} == {"linear", "relu6"}


def test_groups_of_a_network_are_an_option() -> None:
    layout = models.resnet20(groups=4).layout
    norms = [layer for layer in layout.layers if layer.kind == "group_normalization"]
    assert {layer.num_groups for layer in norms} == {4}
    assert len(norms) == 21
    with pytest.raises(ConfigError, match="model resnet20: layer group_normalization: 3 groups do"):
        models.resnet20(groups=3)


def test_group_norms_start_as_the_identity() -> None:
    model = models.sequential([Conv2D(4, 3), GroupNorm(2), Dense(3)], (5, 5))
    _, _, gamma, beta, *_ = model.layout.split(model.initial_params)
    assert (gamma == 1).all()
    assert not beta.any()


@pytest.mark.parametrize(
    ("dropout", "rates"),
    [([0.25, 0.5], [0.25, 0.5]), (0.1, [0.1, 0.1]), ([0.0, 0.3], [0.3]), (0, []), ([0.0], [])],
)
def test_dropout_of_cnn_reddi_is_two_rates_or_one_for_both(
    dropout: Value, rates: list[float]
) -> None:
    layout = models.build_layout("cnn-reddi", options={"dropout": dropout})
    assert [layer.rate for layer in layout.layers if layer.kind == "dropout"] == rates
    assert layout.num_params == 1_199_882


@pytest.mark.parametrize(
    ("dropout", "rates"),
    [(0.3, [0.3, 0.3]), (np.float64(0.3), [0.3, 0.3]), (0, []), ((0.1, 0.2), [0.1, 0.2])],
)
def test_dropout_of_cnn_reddi_in_python_is_two_rates_or_a_number(
    dropout: float | tuple[float, float], rates: list[float]
) -> None:
    layout = models.cnn_reddi(dropout=dropout).layout
    assert [layer.rate for layer in layout.layers if layer.kind == "dropout"] == rates


def test_rates_that_leave_nothing_are_refused() -> None:
    for dropout in (1.0, [0.1, 0.2, 0.3], [0.5, 1.0]):
        with pytest.raises(ConfigError, match="give one or two rates from 0 to below 1"):
            models.build("cnn-reddi", options={"dropout": dropout})


@pytest.mark.parametrize(
    ("name", "least"), [("cnn-mcmahan", 4), ("cnn-reddi", 6), ("lenet5", 12), ("leaf-femnist", 4)]
)
def test_the_message_about_an_image_that_is_too_small_names_the_layer(
    name: str, least: int
) -> None:
    models.build(name, input_shape=(least, least, 3))
    message = rf"model {name}: layer .*: its window of \d x \d is larger than the \d x \d image"
    with pytest.raises(ConfigError, match=message):
        models.build(name, input_shape=(least - 1, least))


def test_a_sequential_model_has_as_many_outputs_as_there_are_classes() -> None:
    assert models.sequential([Dense(3)], (2, 2), 3).layout.num_classes == 3
    with pytest.raises(ConfigError, match="model mine has 3 outputs, but there are 10 classes"):
        models.sequential([Dense(3)], (2, 2), 10, name="mine")


def test_initial_weights_follow_the_seed() -> None:
    first, again, other = (models.build("mlp-2nn", seed=seed).initial_params for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert (first != other).any()
    kernels = models.mlp_2nn((200,), 200).layout  # two kernels have the same shape
    first_kernel, _, second_kernel, *_ = kernels.split(models.glorot_uniform(kernels, 0))
    assert (first_kernel != second_kernel).any()


def test_a_model_follows_the_data_s_shape_and_classes() -> None:
    layout = fedcli.models.softmax_regression((32, 32, 3), 62).layout
    assert layout.input_shape == (32, 32, 3)
    assert (layout.num_inputs, layout.num_classes) == (3072, 62)
    assert layout.num_params == 3072 * 62 + 62


def test_unknown_models_and_options_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="unknown model 'cnn'; choose one of cnn-cifar, cnn-mcmahan, cnn-reddi, leaf-femn",
    ):
        models.build("cnn")
    with pytest.raises(ConfigError, match="softmax-regression has no option 'depth'"):
        models.build("softmax-regression", options={"depth": 2})
    with pytest.raises(ConfigError, match="layer dense: units 0: choose a whole number from 1"):
        models.softmax_regression((28, 28), 0)
