"""The untrusted options of one layer in Keras's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedcli.errors import ConfigError, shown
from fedcli.models.layers.fields import ACTIVATIONS, SOFTMAX, Pair

# Options that do not change what a layer computes.
_FREE = ("name", "batch_input_shape", "batch_shape", "input_shape", "input_dtype", "autocast")
_INITIALIZER = "_initializer"  # suffix of options that initialise a tensor
_CONSTANTS = {"Zeros": 0.0, "Ones": 1.0}
# Other names of activations: one of TensorFlow's, which Keras 2 also writes, and two of Keras's.
_ALIASES = {"softmax_v2": "softmax", "swish": "silu", "hard_swish": "hard_silu"}
_MISSING = object()


class Options:
    """The options of a layer.

    A reader takes the options that it supports; `finish` refuses the others.

    Attributes:
        class_name: Name of Keras's class.
        name: Name of the layer.
        label: Name of the layer in messages.
    """

    def __init__(self, class_name: str, item: Mapping[str, Any]) -> None:
        """Reads the layer's JSON; no option has been taken yet.

        Raises:
            ConfigError: There is no table of options.
        """
        config = item.get("config")
        self.class_name = class_name
        if isinstance(config, list):  # old Sequential models have their layers here
            config = {}
        if not isinstance(config, Mapping):
            raise ConfigError(f"a layer {shown(class_name)} has no config; save the model again")
        name = config.get("name", item.get("name"))
        self.name = name if isinstance(name, str) and name else class_name
        self.label = f"layer {shown(self.name)} ({shown(class_name)})"
        self._left = dict(config)
        self._starts = {key: each for key, each in config.items() if _is_initializer(key)}
        build = item.get("build_config")
        self._built = build.get("input_shape") if isinstance(build, Mapping) else None

    def peek(self, key: str) -> Any:
        """Returns an option without taking it, or None if it is missing."""
        return self._left.get(key)

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """Returns an option.

        Raises:
            ConfigError: It is missing and has no default.
        """
        value = self._left.pop(key, default)
        if value is _MISSING:
            raise ConfigError(f"{self.label} has no {key}; save the model again")
        return value

    def number(self, key: str, default: Any = _MISSING) -> Any:
        """Returns an option that is a number; a whole number becomes a float.

        Values that are not numbers are returned unchanged.

        Raises:
            ConfigError: It is missing and has no default.
        """
        value = plain(self.take(key, default))
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if is_whole and abs(value) < 1 << 53 else value

    def pair(self, key: str, default: Any = _MISSING) -> Pair:
        """Returns an option of two sizes.

        Raises:
            ConfigError: It is missing, or not one or two whole numbers.
        """
        value = plain(self.take(key, default))
        sizes = value if isinstance(value, list) else [value, value]
        for size in sizes:
            if isinstance(size, bool) or not isinstance(size, int) or len(sizes) != 2 or size < 1:
                raise ConfigError(
                    f"{self.label}: {key} is {shown(value)}; give one or two whole numbers"
                )
        return sizes[0], sizes[1]

    def activation(self) -> str:
        """Returns the activation.

        Raises:
            ConfigError: fedcli has no such activation.
        """
        value = self.take("activation", "linear")
        if isinstance(value, Mapping) and value.get("class_name") == "function":
            value = value.get("config")
        value = "linear" if value is None else value
        known = (*(each for each in ACTIVATIONS if each != "gelu_tanh"), SOFTMAX)
        value = _ALIASES.get(value, value) if isinstance(value, str) else value
        if not isinstance(value, str) or value not in known:
            raise ConfigError(
                f"{self.label}: has activation {shown(value)}; fedcli supports {', '.join(known)}"
            )
        return value

    def only(self, key: str, allowed: Sequence[Any]) -> None:
        """Refuses an option whose value is not allowed. A missing option is accepted.

        Raises:
            ConfigError: The value is not allowed.
        """
        if key not in self._left:
            return
        value = plain(self._left.pop(key))
        is_flag = isinstance(value, bool)
        if not any(value == each and is_flag == isinstance(each, bool) for each in allowed):
            raise ConfigError(
                f"{self.label}: {key} is {shown(value)}; fedcli supports only {shown(allowed[0])}"
            )

    def take_initializer(self, prefix: str, tensor: str) -> None:
        """Takes the option PREFIX_initializer for a tensor that has another name in fedcli."""
        self._left.pop(f"{prefix}{_INITIALIZER}", None)
        if f"{prefix}{_INITIALIZER}" in self._starts:
            self._starts[f"{tensor}{_INITIALIZER}"] = self._starts[f"{prefix}{_INITIALIZER}"]

    def finish(self, free: Sequence[str] = ()) -> None:
        """Refuses untaken options that could change what the layer computes.

        Args:
            free: Options of the class that cannot change it.

        Raises:
            ConfigError: There is such an option; the message names it.
        """
        self.only("trainable", (True,))
        if self.class_name != "InputLayer":
            self._check_dtype()
        else:
            self._left.pop("dtype", None)
        for key, value in self._left.items():
            is_free = key in (*_FREE, *free)
            if not is_free and value is not None and value is not False:
                raise ConfigError(
                    f"{self.label}: {shown(key)} is {shown(value)}, which fedcli does not support; "
                    "save the model without it"
                )

    def input_shape(self) -> Any:
        """Returns the shape of a batch of inputs that the options state, or None."""
        for key in ("batch_shape", "batch_input_shape"):
            if self._left.get(key) is not None:
                return plain(self._left[key])
        return plain(self._built)

    def starts(self, defaults: Mapping[str, float | str]) -> tuple[float | str, ...]:
        """Returns how Keras initialises each tensor: a constant, or an initialiser's name.

        Args:
            defaults: For each tensor by name, in order, its initialiser if the options give none.
        """
        return tuple(self._start(tensor, default) for tensor, default in defaults.items())

    def _start(self, tensor: str, default: float | str) -> float | str:
        given = self._starts.get(f"{tensor}{_INITIALIZER}", default)
        if isinstance(given, float):
            return given
        config = given.get("config") if isinstance(given, Mapping) else None
        name = str(given.get("class_name") if isinstance(given, Mapping) else given)
        if name == "Constant" and isinstance(config, Mapping):
            value = config.get("value", 0.0)
            return float(value) if isinstance(value, int | float) else name
        return _CONSTANTS.get(name, name)

    def _check_dtype(self) -> None:
        policy = self._left.pop("dtype", None)
        if isinstance(policy, Mapping):
            config = policy.get("config")
            is_plain = policy.get("class_name") in ("DTypePolicy", "Policy")
            policy = config.get("name") if is_plain and isinstance(config, Mapping) else policy
        if policy not in (None, "float32"):
            raise ConfigError(
                f"{self.label}: dtype is {shown(policy)}; fedcli computes in float32: save the "
                "model with this dtype"
            )


def plain(value: Any) -> Any:
    """Returns a value of Keras's JSON with wrapped tuples and arrays as plain lists."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "__tuple__":
            value = value.get("items")
        elif value.get("class_name") == "__numpy__" and isinstance(value.get("config"), Mapping):
            value = value["config"].get("value")
    return [plain(each) for each in value] if isinstance(value, list) else value


def _is_initializer(key: object) -> bool:
    return isinstance(key, str) and key.endswith(_INITIALIZER)
