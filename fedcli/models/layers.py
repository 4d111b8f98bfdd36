"""Layers as a user writes them down, Keras's names in snake case; `layout.lay_out` sizes them.

Pairs are (height, width); one number stands for both. `kind` is what Keras calls a layer of the
class, and the name of its row in the core's table of kinds (csrc/layers/table.c).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from fedcli.errors import ConfigError
from fedcli.settings.options import check_number

Pair = tuple[int, int]

# Activations as the core numbers them (enum fed_activation).
ACTIVATIONS = {"linear": 0, "relu": 1, "tanh": 2, "sigmoid": 3}
# What may end a model's description: it is the loss's, and no activation of a layer.
SOFTMAX = "softmax"
PADDINGS = ("valid", "same")
# No dimension of a layer is larger, no kernel longer: products of a few stay exact everywhere.
MAX_SIZE = 1 << 24
MAX_NAME = 100


@dataclass(frozen=True)
class Dense:
    """A dense layer; an image goes in as one vector, row by row, channels fastest.

    Attributes:
        units: Outputs.
        activation: A key of `ACTIVATIONS`, or "softmax" in the last layer.
        use_bias: Whether it has a bias.
        name: Its own in the model; "": as Keras names it.
    """

    kind: ClassVar[str] = "dense"
    units: int
    activation: str = "linear"
    use_bias: bool = True
    name: str = ""


@dataclass(frozen=True)
class Conv2D:
    """A convolution (Keras's, a cross-correlation).

    Attributes:
        filters: Channels that come out.
        kernel_size: Of the window.
        strides: From one window to the next.
        padding: "valid": windows lie within the image; "same": TensorFlow's zeros around it.
        activation: A key of `ACTIVATIONS`.
        use_bias: Whether it has a bias.
        name: Its own in the model; "": as Keras names it.
    """

    kind: ClassVar[str] = "conv2d"
    filters: int
    kernel_size: int | Pair
    strides: int | Pair = (1, 1)
    padding: str = "valid"
    activation: str = "linear"
    use_bias: bool = True
    name: str = ""


@dataclass(frozen=True)
class MaxPool2D:
    """The largest value of each window and channel.

    Attributes:
        pool_size: Of the window.
        strides: From one window to the next; None: as the window.
        padding: "valid" or "same", where windows reach beyond the image and see nothing there.
        name: Its own in the model; "": as Keras names it.
    """

    kind: ClassVar[str] = "max_pooling2d"
    pool_size: int | Pair = (2, 2)
    strides: int | Pair | None = None
    padding: str = "valid"
    name: str = ""


@dataclass(frozen=True)
class AveragePool2D:
    """The mean of each window and channel, over the values within the image; see `MaxPool2D`."""

    kind: ClassVar[str] = "average_pooling2d"
    pool_size: int | Pair = (2, 2)
    strides: int | Pair | None = None
    padding: str = "valid"
    name: str = ""


@dataclass(frozen=True)
class Flatten:
    """An image becomes a vector, row by row, channels fastest."""

    kind: ClassVar[str] = "flatten"
    name: str = ""


@dataclass(frozen=True)
class Dropout:
    """In training a share of the values becomes 0 and the others grow by 1 / (1 - rate).

    Attributes:
        rate: The share, from 0 (no layer at all) to below 1.
        name: Its own in the model; "": as Keras names it.
    """

    kind: ClassVar[str] = "dropout"
    rate: float
    name: str = ""


@dataclass(frozen=True)
class GroupNorm:
    """Values become (value - mean) / root(variance + epsilon), by example and group of channels.

    Attributes:
        groups: Divides the channels; -1: as many as channels.
        epsilon: Stands inside the root.
        center: Whether beta is added.
        scale: Whether gamma multiplies.
        name: Its own in the model; "": as Keras names it.
    """

    kind: ClassVar[str] = "group_normalization"
    groups: int = 32
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    name: str = ""


@dataclass(frozen=True)
class Activation:
    """An activation alone; it becomes part of the layer before where that has none.

    Attributes:
        activation: A key of `ACTIVATIONS`, or "softmax" at the end.
        name: Its own in the model; "": as Keras names it.
    """

    kind: ClassVar[str] = "activation"
    activation: str
    name: str = ""


Spec = Dense | Conv2D | MaxPool2D | AveragePool2D | Flatten | Dropout | GroupNorm | Activation

SPECS: dict[str, Callable[..., Spec]] = {
    each.kind: each
    for each in (
        *(Dense, Conv2D, MaxPool2D, AveragePool2D, Flatten, Dropout, GroupNorm, Activation),
    )
}


def pair(size: int | Sequence[int]) -> Pair:
    """Returns (height, width) of a checked size."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def check(spec: Spec, label: str) -> None:
    """Refuses a value that no layer of the kind may have.

    Args:
        spec: The layer.
        label: What messages call it.

    Raises:
        ConfigError: A value has another type or is outside its range; the line names both.
    """
    for each in fields(spec):
        if each.name != "name":
            _CHECKS[each.name](f"{label}: {each.name}", getattr(spec, each.name))


def to_dict(spec: Spec) -> dict[str, Any]:
    """Returns a layer as plain values: its kind and its fields; `from_dict` undoes it."""
    values = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(spec).items()
    }
    return {"kind": spec.kind, **values}


def from_dict(values: object) -> Spec:
    """Returns the layer that `to_dict` wrote; its values are checked by `check` alone.

    Raises:
        ConfigError: It is no table, its kind is unknown, or its fields are not those of the kind.
    """
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(values, Mapping) or not isinstance(kind, str) or kind not in SPECS:
        raise ConfigError(f"a layer of kind {_shown(kind)}; kinds are {', '.join(SPECS)}")
    given = {str(name): value for name, value in values.items() if name != "kind"}
    try:
        return SPECS[kind](
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in given.items()
            }
        )
    except TypeError:
        raise ConfigError(
            f"a layer of kind {kind} has fields {_shown(', '.join(given))}, which are not its own"
        ) from None


def check_name(name: object) -> None:
    """Refuses a name that files could not hold.

    Raises:
        ConfigError: It is no text, too long, or holds a slash or what cannot be printed.
    """
    is_name = isinstance(name, str) and len(name) <= MAX_NAME and name.isprintable()
    if not is_name or "/" in str(name) or not str(name).strip(" ."):
        raise ConfigError(
            f"layer name {_shown(name)}: give up to {MAX_NAME} characters that can be printed, "
            "without a slash"
        )


def _check_count(label: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
        raise ConfigError(f"{label} {_shown(value)}: choose a whole number from 1 to {MAX_SIZE}")


def _check_pair(label: str, value: object) -> None:
    sizes = value if isinstance(value, tuple | list) else (value, value)
    if len(sizes) != 2:
        raise ConfigError(f"{label} {_shown(value)}: give one number, or height and width")
    for size in sizes:
        _check_count(label, size)


def _check_strides(label: str, value: object) -> None:
    if value is not None:
        _check_pair(label, value)


def _check_groups(label: str, value: object) -> None:
    if value != -1 or isinstance(value, float):
        _check_count(label, value)


def _check_flag(label: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{label} {_shown(value)}: choose true or false")


def _check_activation(label: str, value: object) -> None:
    if not isinstance(value, str) or value not in (*ACTIVATIONS, SOFTMAX):
        raise ConfigError(
            f"{label} {_shown(value)}: choose {', '.join(ACTIVATIONS)}, or softmax at the end"
        )


def _check_padding(label: str, value: object) -> None:
    if not isinstance(value, str) or value not in PADDINGS:
        raise ConfigError(f"{label} {_shown(value)}: choose {' or '.join(PADDINGS)}")


def _check_rate(label: str, value: object) -> None:
    if check_number(label, value, 0.0, 1.0) == 1.0:
        raise ConfigError(f"{label} {value}: nothing would be left; choose a number below 1")


def _check_epsilon(label: str, value: object) -> None:
    if check_number(label, value, 0.0, 1.0) == 0.0:
        raise ConfigError(f"{label} {value}: equal values would divide by 0; choose a number above")


def _shown(value: object) -> str:
    """`value` on one short line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_CHECKS: dict[str, Callable[[str, object], None]] = {
    **dict.fromkeys(("units", "filters"), _check_count),
    **dict.fromkeys(("kernel_size", "pool_size"), _check_pair),
    "strides": _check_strides,
    "padding": _check_padding,
    "activation": _check_activation,
    **dict.fromkeys(("use_bias", "center", "scale"), _check_flag),
    "rate": _check_rate,
    "groups": _check_groups,
    "epsilon": _check_epsilon,
}
