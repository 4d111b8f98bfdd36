"""The input layers that --augment and --normalize add at the start of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedcli.errors import ConfigError
from fedcli.lazy import load
from fedcli.models import layers
from fedcli.models.layers.contract import IMAGE, Spec
from fedcli.models.layers.inputs import InputLayer
from fedcli.models.layout import ParamLayout, lay_out
from fedcli.models.model import Model
from fedcli.settings.options import Value
from fedcli.settings.tables import AUGMENTATIONS
from fedcli.settings.tables.augmentations import split_augmentation

Shape = Sequence[int]


def augmenting(name: str, options: Mapping[str, Value], shape: Shape) -> list[Spec]:
    """Returns the input layers of an augmentation.

    Args:
        name: Keys of `AUGMENTATIONS`, joined by "+", in the order in which they are applied.
        options: The values of all their options.
        shape: Shape of one image, [H, W] or [H, W, C].

    Raises:
        ConfigError: The images are smaller than the part to cut out, or the examples are not
            images.
    """
    if len(shape) not in (2, 3):
        raise ConfigError(
            f"--augment {name}: examples of shape {list(shape)} are not images; leave the option "
            "out"
        )
    specs = []
    for each in split_augmentation(name):
        entry = AUGMENTATIONS[each]
        own = {option.name: options[option.name] for option in entry.options}
        make: Callable[..., Spec] = load(entry.code)
        spec = make(shape, **own)
        specs.append(spec)
        if isinstance(spec, layers.RandomCrop):
            shape = (spec.height, spec.width, *shape[2:])
    return specs


def crop(shape: Shape, size: int, padding: int) -> Spec:
    """Returns a random crop to `size`, or to the image's own size if `size` is 0.

    See `layers.RandomCrop`.
    """
    _check_border("crop: padding", padding, shape)
    largest = min(shape[:2]) + 2 * padding
    if size > largest:
        raise ConfigError(
            f"--augment crop: size {size} exceeds images of {shape[0]} x {shape[1]} with padding "
            f"{padding}; choose at most {largest}"
        )
    height, width = (size or shape[0], size or shape[1])
    return layers.RandomCrop(height, width, padding)


def _check_border(what: str, num_zeros: int, shape: Shape) -> None:
    """Refuses a border of zeros that is wider than the image."""
    if num_zeros > min(shape[:2]):
        raise ConfigError(
            f"--augment {what} {num_zeros} exceeds the size of {shape[0]} x {shape[1]} images; "
            f"choose at most {min(shape[:2])}"
        )


def flip(shape: Shape) -> Spec:
    """See `layers.RandomFlip`."""
    del shape
    return layers.RandomFlip()


def shift(shape: Shape, pixels: int) -> Spec:
    """Returns a random shift: a border of zeros, then a random crop as large as the image."""
    _check_border("shift: pixels", pixels, shape)
    return layers.RandomCrop(shape[0], shape[1], pixels)


def rotation(shape: Shape, degrees: float) -> Spec:
    """See `layers.RandomRotation`."""
    del shape
    return layers.RandomRotation(degrees)


def cutout(shape: Shape, side: int) -> Spec:
    """See `layers.Cutout`."""
    del shape
    return layers.Cutout(side)


def color_jitter(shape: Shape, brightness: float, contrast: float, saturation: float) -> Spec:
    """See `layers.ColorJitter`."""
    del shape
    return layers.ColorJitter(brightness, contrast, saturation)


def mixup(shape: Shape, alpha: float) -> Spec:
    """See `layers.MixUp`."""
    del shape
    return layers.MixUp(alpha)


def shape_after(specs: Sequence[Spec], shape: Shape) -> tuple[int, ...]:
    """Returns the shape of an image after input layers."""
    for spec in specs:
        if isinstance(spec, layers.RandomCrop):
            shape = (spec.height, spec.width, *shape[2:])
    return tuple(shape)


def acting_in_evaluation(layout: ParamLayout) -> list[InputLayer]:
    """Returns the input layers of a model that also change images in evaluation."""
    sized = {layer.name: layer for layer in layout.layers}
    return [
        spec
        for spec in layout.specs
        if isinstance(spec, InputLayer) and spec.acts_in_evaluation(sized[spec.name])
    ]


def with_input_layers(specs: Sequence[Spec], model: Model, shape: Shape) -> Model:
    """Returns a model with the same parameters and with further layers before its layers.

    Args:
        specs: Input layers, or a flattening. A layer that mixes examples acts after the model's own
            input layers.
        model: A model that takes the output of these layers.
        shape: Shape of the images that they take.

    Raises:
        ConfigError: The model is computed in Python, the images would be normalised twice, or the
            layers do not fit the images.
    """
    if not model.layout.specs:
        raise ConfigError(
            f"--augment and --normalize cannot be used with {model.name}, which is computed in "
            "Python; change the images in the model's code"
        )
    _check_normalized_once(specs, model)
    own = list(model.layout.specs)
    named = _unused_names(specs, own)
    first = [spec for spec in named if not spec.mixes]
    mixing = [spec for spec in named if spec.mixes]
    if first:
        own = [_reading(spec, IMAGE, first[-1].name) for spec in own]
    num_inputs = max((place + 1 for place, spec in enumerate(own) if spec.is_input), default=0)
    inputs, others = [*first, *own[:num_inputs]], own[num_inputs:]
    if mixing:
        unmixed = inputs[-1].name if inputs else IMAGE
        others = [_reading(spec, unmixed, mixing[-1].name) for spec in others]
    return Model(model.name, lay_out([*inputs, *mixing, *others], shape), model.initial_params)


def _check_normalized_once(specs: Sequence[Spec], model: Model) -> None:
    """Refuses a normalization if the model's own input layers already normalise images."""
    kinds = (layers.Normalization, layers.ImageStandardization)
    own = [each.name for each in model.layout.specs if isinstance(each, kinds)]
    if own and any(isinstance(each, kinds) for each in specs):
        raise ConfigError(
            f"--normalize would normalise images twice: {model.name} normalises them in its layer "
            f"{own[0]}; leave the option out"
        )


def _unused_names(specs: Sequence[Spec], others: Sequence[Spec]) -> list[Spec]:
    """Gives the layers their own names or those of their kinds, and numbers where needed.

    The names differ from each other and from those of `others`.
    """
    taken = {each.name for each in others}
    named = []
    for spec in specs:
        first = name = spec.name or spec.kind
        number = 1
        while name in taken:
            name, number = f"{first}_{number}", number + 1
        taken.add(name)
        named.append(spec.changed(name=name))
    return named


def _reading(spec: Spec, old: str, new: str) -> Spec:
    """Returns a layer that reads `new` instead of `old`, the name of a layer or `IMAGE`."""
    changed: Any = tuple(new if each == old else each for each in spec.inputs)
    return spec.changed(inputs=changed)
