"""The values that the fields of a layer may have: their types, limits and checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedcli.errors import ConfigError, shown_repr
from fedcli.settings.options import check_number

Pair = tuple[int, int]  # (height, width)
Check = Callable[[str, object], None]  # (name of the value in messages, the value)

# Activations as the core numbers them (enum fed_activation). "silu" is also known as swish,
# "hard_silu" as hard-swish; "gelu_tanh" is Keras's gelu with approximate=True.
ACTIVATIONS = {
    **{"linear": 0, "relu": 1, "tanh": 2, "sigmoid": 3, "relu6": 4, "leaky_relu": 5, "elu": 6},
    **{"silu": 7, "gelu": 8, "gelu_tanh": 9, "hard_silu": 10},
}
# Keras's names that differ. None stands for no activation.
_IN_KERAS = {"swish": "silu", "hard_swish": "hard_silu", "none": "linear"}
# Activations whose derivative needs the input, not only the output. The C core computes each as a
# layer of its own.
NEED_INPUTS = ("silu", "gelu", "gelu_tanh", "hard_silu")
# Keras's default constants: the slope of leaky_relu below 0, and the alpha of elu.
DEFAULT_CONSTANTS = {"leaky_relu": 0.2, "elu": 1.0}
MAX_CONSTANT = 100.0
# Allowed only in the last layer. The loss computes it, not a layer of the C core.
SOFTMAX = "softmax"
PADDINGS = ("valid", "same")
# Initial values of a tensor by Keras's names: a constant, or the name of Keras's class that draws
# it. Glorot's uniform distribution is that of Glorot and Bengio 2010.
INITIALIZERS: dict[str, float | str] = {
    "glorot_uniform": "GlorotUniform",
    "zeros": 0.0,
    "ones": 1.0,
}
# Largest size of a dimension of a layer or kernel; the product of two such sizes fits in int64.
MAX_SIZE = 1 << 24
MAX_NORMALIZED = 4  # FED_MAX_NORMALIZED of the core: channels that are normalised one by one
MAX_NAME = 100  # characters


def pair(size: int | Sequence[int]) -> Pair:
    """Returns (height, width) of a checked size; one number stands for both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def check_name(name: object) -> None:
    """Refuses a name that files could not hold.

    Raises:
        ConfigError: It is not text, is too long, or holds a slash or a character that cannot be
            printed.
    """
    is_name = isinstance(name, str) and len(name) <= MAX_NAME and name.isprintable()
    if not is_name or "/" in str(name) or not str(name).strip(" ."):
        raise ConfigError(
            f"layer name {shown_repr(name)}: give up to {MAX_NAME} characters that can be printed, "
            "without a slash"
        )


def check_inputs(label: str, value: object) -> None:
    """Refuses a value that is not a tuple of names of layers.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
        raise ConfigError(
            f"{label} {shown_repr(value)}: give a tuple of the names of earlier layers"
        )


# Each check below takes the name of the value in messages, and the value; it raises ConfigError.


def check_count(label: str, value: object) -> None:
    """Refuses a value that is not a whole number from 1 to `MAX_SIZE`."""
    _check_whole(label, value, 1)


def check_count_or_0(label: str, value: object) -> None:
    """Refuses a value that is not a whole number from 0 to `MAX_SIZE`."""
    _check_whole(label, value, 0)


def check_pair(label: str, value: object) -> None:
    """Refuses a value that is neither one size nor (height, width)."""
    sizes = value if isinstance(value, tuple | list) else (value, value)
    if len(sizes) != 2:
        raise ConfigError(f"{label} {shown_repr(value)}: give one number, or height and width")
    for size in sizes:
        check_count(label, size)


def check_pair_or_none(label: str, value: object) -> None:
    """As `check_pair`, but None is allowed."""
    if value is not None:
        check_pair(label, value)


def check_groups(label: str, value: object) -> None:
    """As `check_count`, but -1 is allowed."""
    if value != -1 or isinstance(value, float):
        check_count(label, value)


def check_flag(label: str, value: object) -> None:
    """Refuses a value that is neither True nor False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{label} {shown_repr(value)}: choose true or false")


def check_activation(label: str, value: object) -> None:
    """Refuses a value that is neither a key of `ACTIVATIONS` nor softmax."""
    if not isinstance(value, str) or value not in (*ACTIVATIONS, SOFTMAX):
        raise ConfigError(
            f"{label} {shown_repr(value)}: choose {', '.join(ACTIVATIONS)}, or softmax at the end"
            f"{_meant(value)}"
        )


def _meant(value: object) -> str:
    """Names the activation that Keras's name, function or layer stands for; "" if there is none."""
    given = getattr(value, "activation", getattr(value, "__name__", value))
    name = _IN_KERAS.get(str(given).lower(), str(given).lower())
    return f"; write {name!r} here" if name in ACTIVATIONS else ""


def check_constant(label: str, value: object) -> None:
    """Refuses a value that is not a number from 0 to `MAX_CONSTANT`."""
    check_number(label, value, 0.0, MAX_CONSTANT)


def check_initializer(label: str, value: object) -> None:
    """Refuses a value that is not a key of `INITIALIZERS`."""
    if not isinstance(value, str) or value not in INITIALIZERS:
        raise ConfigError(
            f"{label} {shown_repr(value)}: choose {', '.join(INITIALIZERS)}, or give any weights "
            "with process.set_model_weights(state, arrays) or RunConfig(initial_weights=FILE)"
        )


def check_frame(label: str, value: object) -> None:
    """Refuses a value that is not the width of a frame: one, two or four numbers of at least 0."""
    widths = value if isinstance(value, tuple | list) else (value, value)
    if len(widths) not in (2, 4) or any(isinstance(each, tuple | list) for each in widths):
        raise ConfigError(
            f"{label} {shown_repr(value)}: give one number, height and width, or top, bottom, left "
            "and right"
        )
    for width in widths:
        check_count_or_0(label, width)


def check_padding(label: str, value: object) -> None:
    """Refuses a value that is not in `PADDINGS`."""
    if not isinstance(value, str) or value not in PADDINGS:
        raise ConfigError(f"{label} {shown_repr(value)}: choose {' or '.join(PADDINGS)}")


def check_rate(label: str, value: object) -> None:
    """Refuses a value that is not a number from 0 to below 1."""
    if check_number(label, value, 0.0, 1.0) == 1.0:
        raise ConfigError(f"{label} {value}: all values would become 0; choose a number below 1")


def check_share(label: str, value: object) -> None:
    """Refuses a value that is not a number from 0 to 1."""
    check_number(label, value, 0.0, 1.0)


def check_epsilon(label: str, value: object) -> None:
    """Refuses a value that is not a number above 0 and up to 1."""
    if check_number(label, value, 0.0, 1.0) == 0.0:
        raise ConfigError(
            f"{label} {value}: equal values would cause a division by 0; choose a number above 0"
        )


def _check_whole(label: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= MAX_SIZE:
        is_numpy = not isinstance(value, int) and hasattr(value, "__index__")
        more = f"; write int(...) around this {type(value).__name__}" if is_numpy else ""
        raise ConfigError(
            f"{label} {shown_repr(value)}: choose a whole number from {low} to {MAX_SIZE}{more}"
        )
