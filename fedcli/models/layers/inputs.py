"""Input layers, which change an image before the first layer with parameters.

They stand at the start of a model and have no parameters. Random changes are made only in training,
and drawn anew each time that an example is visited. In evaluation a crop takes the middle of the
image, and the other random layers change nothing. `MixUp` comes after all other input layers,
because it mixes whole batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fedcli.dataclass import dataclass
from fedcli.errors import ConfigError, shown_repr
from fedcli.models.layers import fields
from fedcli.models.layers.contract import (
    Incoming,
    KerasShape,
    Layer,
    Read,
    Shape,
    Spec,
    reads,
)
from fedcli.models.layers.fields import MAX_NORMALIZED
from fedcli.settings.options import check_number

if TYPE_CHECKING:
    from fedcli.models.layers.keras_options import Options

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Cutout",
    "ImageStandardization",
    "MixUp",
    "Normalization",
    "RandomCrop",
    "RandomFlip",
    "RandomRotation",
]

MAX_MEAN = 1e6
LEAST_DEVIATION = 1e-6
MAX_DEGREES = 180.0
LEAST_ALPHA, MAX_ALPHA = 1e-3, 1e3


class InputLayer(Spec):
    """A layer that may only stand at the start of a model."""

    is_input = True
    takes_activation = False
    is_left_out_of_keras = False  # True: acts in training only, and Keras files cannot hold it

    def in_evaluation(self, shape: Shape) -> InputLayer | None:
        """Returns the layer as it acts in evaluation, for Keras; None if it changes nothing.

        Args:
            shape: Shape of its input.
        """
        del shape
        return None if self.is_left_out_of_keras else self

    def acts_in_evaluation(self, sized: Layer) -> bool:
        """Returns whether the layer changes images in evaluation.

        Args:
            sized: The layer with its sizes.
        """
        return sized.out_shape != sized.in_shape

    def size(self, incoming: Incoming) -> Layer | None:
        """See `Spec.size`."""
        if not incoming.is_image:
            raise ConfigError(
                f"layer {self.name}: it takes images, but the examples have no height and width; "
                "leave the layer out"
            )
        return self._layer(incoming.shape)

    def _layer(self, shape: Shape) -> Layer:
        """The sized layer for images of a shape. By default the output has the same shape."""
        return Layer(self.kind, self.name, shape, shape, constants=self._constants(shape))

    def _constants(self, shape: Shape) -> tuple[float, ...]:
        """The layer's constants for the C core, `Layer.constants`."""
        del shape
        return ()


def _unknown_to_keras(layer: Spec) -> ConfigError:
    return ConfigError(
        f"layer {layer.name}: Keras has no layer that does the same; export the weights as .npz, "
        "or train without it"
    )


def _check_numbers(label: str, value: object, low: float, high: float) -> None:
    """Refuses a value that is neither a number from `low` to `high` nor a few such numbers."""
    numbers = value if isinstance(value, tuple | list) else (value,)
    if not 1 <= len(numbers) <= MAX_NORMALIZED:
        raise ConfigError(
            f"{label} {shown_repr(value)}: give one number, or one for each of at most "
            f"{MAX_NORMALIZED} channels"
        )
    for each in numbers:
        check_number(label, each, low, high)


def _check_means(label: str, value: object) -> None:
    _check_numbers(label, value, -MAX_MEAN, MAX_MEAN)


def _check_deviations(label: str, value: object) -> None:
    _check_numbers(label, value, LEAST_DEVIATION, MAX_MEAN)


def _check_share(label: str, value: object) -> None:
    check_number(label, value, 0.0, 1.0)


def _check_degrees(label: str, value: object) -> None:
    check_number(label, value, 0.0, MAX_DEGREES)


def _check_alpha(label: str, value: object) -> None:
    check_number(label, value, LEAST_ALPHA, MAX_ALPHA)


def _check_mode(label: str, value: object) -> None:
    if value != "horizontal":
        raise ConfigError(
            f"{label} {shown_repr(value)}: fedcli only mirrors left to right; choose horizontal "
            "(a layer's name is given as name=)"
        )


@dataclass(frozen=True)
class Normalization(InputLayer):
    """Subtracts each channel's mean, and divides by its standard deviation.

    Attributes:
        mean: The means, one for each channel or one for all.
        std: The standard deviations, above 0; one for each channel or one for all.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "normalization"
    keras_class = "Normalization"
    checks: ClassVar = {"mean": _check_means, "std": _check_deviations}

    mean: float | Sequence[float]
    std: float | Sequence[float]
    name: str = ""
    inputs: tuple[str, ...] = ()

    def acts_in_evaluation(self, sized: Layer) -> bool:
        """See `InputLayer.acts_in_evaluation`."""
        del sized
        return True

    def _constants(self, shape: Shape) -> tuple[float, ...]:
        means = self._by_channel("mean", self.mean, shape[2])
        factors = [1 / each for each in self._by_channel("std", self.std, shape[2])]
        unused = [0.0] * (MAX_NORMALIZED - shape[2])
        return (*means, *unused, *factors, *unused)

    def _by_channel(
        self, field: str, value: float | Sequence[float], num_channels: int
    ) -> list[float]:
        numbers: list[Any] = (
            list(value) if isinstance(value, tuple | list) else [value] * num_channels
        )
        if len(numbers) == 1:
            numbers *= num_channels
        if len(numbers) != num_channels or num_channels > MAX_NORMALIZED:
            raise ConfigError(
                f"layer {self.name}: {field} has {len(numbers)} numbers, but images have "
                f"{num_channels} channels; give one number, or one for each of at most "
                f"{MAX_NORMALIZED} channels"
            )
        return [float(each) for each in numbers]

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        stds = self.std if isinstance(self.std, tuple | list) else (self.std,)
        means = self.mean if isinstance(self.mean, tuple | list) else [self.mean] * len(stds)
        variances = [each**2 for each in stds]
        if len(variances) < len(means):
            variances *= len(means)
        return {"name": self.name, "axis": -1, "mean": list(means), "variance": variances}

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`. The layer's mean and variance must be given as options."""
        from fedcli.models.layers.keras_options import plain  # lazy: only Keras's files need it

        means, variances = (plain(options.take(key, None)) for key in ("mean", "variance"))
        if means is None or variances is None:
            raise ConfigError(
                f"{options.label}: its mean and variance were adapted to data; give them as its "
                "options mean and variance"
            )
        options.only("axis", (-1, [-1], len(shape), [len(shape)]))
        options.only("invert", (False,))
        options.finish()
        stds = [math.sqrt(each) for each in _numbers(f"{options.label}: variance", variances)]
        spec = cls(tuple(_numbers(f"{options.label}: mean", means)), tuple(stds), name)
        spec.check(options.label)
        yield spec, shape


def _numbers(label: str, value: Any) -> list[float]:
    """The numbers in a value of Keras's JSON: a single number, or nested lists."""
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    numbers = value if isinstance(value, list) else [value]
    return [check_number(label, each, -MAX_MEAN, MAX_MEAN) for each in numbers]


@reads("Rescaling")
def _rescaling(options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
    """Reads Keras's Rescaling, x * scale + offset, as a `Normalization`."""
    scale = check_number(f"{options.label}: scale", options.number("scale"), 1e-6, MAX_MEAN)
    offset = check_number(
        f"{options.label}: offset", options.number("offset", 0.0), -MAX_MEAN, MAX_MEAN
    )
    options.finish()
    spec = Normalization(-offset / scale, 1 / scale, name)
    spec.check(options.label)
    yield spec, shape


@dataclass(frozen=True)
class ImageStandardization(InputLayer):
    """Gives each image mean 0 and deviation 1, like TensorFlow's `per_image_standardization`.

    The divisor is at least 1 / sqrt(number of values), so that a constant image becomes 0.

    Attributes:
        name: Its name in the model; "": its kind with a number.
        inputs: See `Spec.inputs`.
    """

    kind = "image_standardization"
    keras_class = "ImageStandardization"

    name: str = ""
    inputs: tuple[str, ...] = ()

    def acts_in_evaluation(self, sized: Layer) -> bool:
        """See `InputLayer.acts_in_evaluation`."""
        del sized
        return True

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        raise _unknown_to_keras(self)


@dataclass(frozen=True)
class RandomFlip(InputLayer):
    """Mirrors the image left to right, with probability 1/2 at each visit in training.

    Attributes:
        mode: "horizontal", as Keras calls it; there is no other.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "random_flip"
    keras_class = "RandomFlip"
    checks: ClassVar = {"mode": _check_mode}

    mode: str = "horizontal"
    name: str = ""
    inputs: tuple[str, ...] = ()

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        return {"name": self.name, "mode": self.mode}

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`; fedcli draws from its own seed."""
        options.only("mode", ("horizontal",))
        options.finish(free=("seed", "data_format"))
        yield cls(name=name), shape


@dataclass(frozen=True)
class CenterCrop(InputLayer):
    """Cuts the middle out of the image, in training and in evaluation.

    Attributes:
        height: Height of the part.
        width: Width of the part.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "center_crop"
    keras_class = "CenterCrop"
    checks: ClassVar = {"height": fields.check_count, "width": fields.check_count}

    height: int
    width: int
    name: str = ""
    inputs: tuple[str, ...] = ()

    def _layer(self, shape: Shape) -> Layer:
        return _cropped(self, shape, self.height, self.width)

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        return {"name": self.name, "height": self.height, "width": self.width}

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`; Keras enlarges images that are smaller, which is refused."""
        yield from _read_crop(cls, options, shape, name)


@dataclass(frozen=True)
class RandomCrop(InputLayer):
    """Cuts out a part of the image: at a random place in training, in the middle in evaluation.

    Attributes:
        height: Height of the part.
        width: Width of the part.
        padding: Width of the border of zeros that is added first. If the part is as large as the
            image, the result is the image shifted by up to this number of pixels.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "random_crop"
    keras_class = "RandomCrop"
    checks: ClassVar = {
        "height": fields.check_count,
        "width": fields.check_count,
        "padding": fields.check_count_or_0,
    }

    height: int
    width: int
    padding: int = 0
    name: str = ""
    inputs: tuple[str, ...] = ()

    def in_evaluation(self, shape: Shape) -> InputLayer | None:
        """See `InputLayer.in_evaluation`: the middle of the image, which padding does not move.

        It is never Keras's RandomCrop, which returns the whole image in evaluation.
        """
        if (self.height, self.width) == shape[:2]:
            return None
        is_inside = self.height <= shape[0] and self.width <= shape[1]
        middle = CenterCrop(self.height, self.width, self.name, self.inputs)
        return middle if is_inside else self

    def _layer(self, shape: Shape) -> Layer:
        return _cropped(self, shape, self.height, self.width, self.padding)

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`: only a crop beyond the image is not a CenterCrop in evaluation."""
        raise _unknown_to_keras(self)

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`; fedcli draws from its own seed."""
        yield from _read_crop(cls, options, shape, name)


def _cropped(spec: Spec, shape: Shape, rows: int, columns: int, padding: int = 0) -> Layer:
    """The layer that cuts a part out of images of a shape, with a border of zeros."""
    height, width, channels = shape
    room = 2 * padding
    if padding > min(height, width):
        raise ConfigError(
            f"layer {spec.name}: padding {padding} around images of {height} x {width}; choose at "
            f"most {min(height, width)}"
        )
    if rows > height + room or columns > width + room:
        raise ConfigError(
            f"layer {spec.name}: a part of {rows} x {columns} with padding {padding} does not fit "
            f"into images of {height} x {width}; choose at most {height + room} x {width + room}"
        )
    return Layer(*(spec.kind, spec.name, shape, (rows, columns, channels)), pads=(padding, padding))


def _read_crop(
    kind: type[CenterCrop | RandomCrop], options: Options, shape: KerasShape, name: str
) -> Iterator[Read]:
    height, width = (options.take(key) for key in ("height", "width"))
    options.finish(free=("seed", "data_format"))
    spec = kind(height, width, name=name)
    spec.check(options.label)
    yield spec, (height, width, *shape[2:])


@dataclass(frozen=True)
class RandomRotation(InputLayer):
    """Rotates the image about its middle in training. Pixels from outside the image are 0.

    Attributes:
        degrees: The largest angle in either direction; angles are uniformly distributed.
        name: Its name in the model; "": the name that Keras would give it.
        inputs: See `Spec.inputs`.
    """

    kind = "random_rotation"
    keras_class = "RandomRotation"
    checks: ClassVar = {"degrees": _check_degrees}

    degrees: float
    name: str = ""
    inputs: tuple[str, ...] = ()

    def _constants(self, shape: Shape) -> tuple[float, ...]:
        del shape
        return (math.radians(self.degrees),)

    def to_keras(self) -> dict[str, Any]:
        """See `Spec.to_keras`."""
        filled = {"fill_mode": "constant", "fill_value": 0.0, "interpolation": "bilinear"}
        return {"name": self.name, "factor": self.degrees / 360, **filled}

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """See `Spec.from_keras`; fedcli draws from its own seed."""
        factor = check_number(f"{options.label}: factor", options.number("factor"), 0.0, 0.5)
        options.only("fill_mode", ("constant",))
        options.only("interpolation", ("bilinear",))
        options.only("fill_value", (0.0, 0))
        options.finish(free=("seed", "data_format"))
        yield cls(360 * factor, name), shape


@dataclass(frozen=True)
class Cutout(InputLayer):
    """Sets a square with a random centre to zero in training (DeVries and Taylor 2017).

    Attributes:
        side: Side of the square in pixels. The square may extend beyond the image.
        name: Its name in the model; "": its kind with a number.
        inputs: See `Spec.inputs`.
    """

    kind = "cutout"
    is_left_out_of_keras = True
    keras_class = "Cutout"
    checks: ClassVar = {"side": fields.check_count}

    side: int
    name: str = ""
    inputs: tuple[str, ...] = ()

    def _layer(self, shape: Shape) -> Layer:
        return Layer(self.kind, self.name, shape, shape, window=(self.side, self.side))


@dataclass(frozen=True)
class ColorJitter(InputLayer):
    """Multiplies brightness, contrast and saturation by random factors in training.

    A factor is uniform between 1 - x and 1 + x. For brightness the image is mixed with black, then
    for contrast with its mean grey level, then for saturation with each pixel's grey level (ITU-R
    BT.601). Values are not clipped.

    Attributes:
        brightness: x for the brightness, from 0 to 1.
        contrast: x for the contrast.
        saturation: x for the saturation; without effect on grey images.
        name: Its name in the model; "": its kind with a number.
        inputs: See `Spec.inputs`.
    """

    kind = "color_jitter"
    is_left_out_of_keras = True
    keras_class = "ColorJitter"
    checks: ClassVar = {
        "brightness": _check_share,
        "contrast": _check_share,
        "saturation": _check_share,
    }

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    name: str = ""
    inputs: tuple[str, ...] = ()

    def _constants(self, shape: Shape) -> tuple[float, ...]:
        del shape
        return (float(self.brightness), float(self.contrast), float(self.saturation))


@dataclass(frozen=True)
class MixUp(InputLayer):
    """In training, mixes each image and its label with another image of the batch and its label.

    A batch has one share s, which is Beta(alpha, alpha) distributed, and a random permutation,
    which gives each image x a partner x'. The image becomes s * x + (1 - s) * x'. The loss becomes
    s * (loss for the label of x) + (1 - s) * (loss for the label of x'). In training, accuracy
    counts predictions of the label of x. (Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond
    Empirical Risk Minimization", ICLR 2018, https://arxiv.org/abs/1710.09412.)

    Attributes:
        alpha: From 0.001 to 1000. Small values mix little; 1 gives all shares the same probability.
        name: Its name in the model; "": its kind with a number.
        inputs: See `Spec.inputs`.
    """

    kind = "mix_up"
    is_left_out_of_keras = True
    keras_class = "MixUp"
    mixes = True
    checks: ClassVar = {"alpha": _check_alpha}

    alpha: float = 1.0
    name: str = ""
    inputs: tuple[str, ...] = ()

    def _constants(self, shape: Shape) -> tuple[float, ...]:
        del shape
        return (float(self.alpha),)

    @classmethod
    def from_keras(cls, options: Options, shape: KerasShape, name: str) -> Iterator[Read]:
        """Refuses the layer.

        Raises:
            ConfigError: Always. Inside a Keras model the layer mixes images, but not their labels.
        """
        raise ConfigError(
            f"{options.label}: inside a Keras model it mixes images without their labels; save the "
            "model without it, and train with --augment mixup"
        )
