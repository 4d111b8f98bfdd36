"""Types of nested values, and of a server state, in the notation of TFF's type signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcli.dataclass import dataclass
from fedcli.learning.client_states import ClientStates
from fedcli.learning.state import ServerState
from fedcli.models.layout import ParamLayout


@dataclass(frozen=True)
class Placed:
    """A type with its placement: `SERVER`, or `CLIENTS` (a sequence of batches per client)."""

    type: Any
    place: str


class TypeText(str):
    """A type in the notation of TFF's type signatures."""

    __slots__ = ()

    def formatted_representation(self) -> str:
        """Returns the text itself, as the method of TFF's types does."""
        return str(self)


class FunctionType(TypeText):
    """The type of a function, as `process.initialize.type_signature` in TFF.

    Attributes:
        parameter: The type of its arguments; None if it has none.
        result: The type of its result.
    """

    parameter: TypeText | None
    result: TypeText

    def __new__(cls, parameter: str | None, result: str) -> FunctionType:
        """Makes the text from the types of arguments and result."""
        text = super().__new__(cls, f"({parameter or ''} -> {result})")
        text.parameter = None if parameter is None else TypeText(parameter)
        text.result = TypeText(result)
        return text

    def __getnewargs__(self) -> tuple[str | None, str]:  # type: ignore[override]
        """Returns the arguments of `__new__`, for copies."""
        return self.parameter, self.result


def value_types(value: Any) -> Any:
    """Returns the nested types of mappings, sequences, arrays and numbers."""
    if isinstance(value, Mapping):
        return {name: value_types(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [value_types(part) for part in value]
    array = np.asarray(value)
    return array_type(str(array.dtype), array.shape)


def array_type(dtype: str, shape: tuple[int | None, ...]) -> str:
    """Returns the type of an array, `float32[784,10]`, or of a scalar, `int64`; None is `?`."""
    sizes = ["?" if size is None else str(size) for size in shape]
    return f"{dtype}[{','.join(sizes)}]" if shape else dtype


def format_type(node: Any, indent: str = "") -> str:
    """Returns nested types as text of several lines, indented by two spaces per level."""
    if isinstance(node, str):
        return node
    if isinstance(node, Placed):
        text = format_type(node.type, indent)
        return f"{{{text}*}}@{node.place}" if node.place == "CLIENTS" else f"{text}@{node.place}"
    named = node.items() if isinstance(node, Mapping) else [("", part) for part in node]
    inner = indent + "  "
    lines = [
        f"{inner}{name}{'=' if name else ''}{format_type(part, inner)}" for name, part in named
    ]
    return "<\n" + ",\n".join(lines) + f"\n{indent}>" if lines else "<>"


def state_types(state: ServerState, layout: ParamLayout) -> dict[str, Any]:
    """Returns the types in `state`; a vector [num_params] is shown as a list of tensors."""
    weights = {"trainable": _tensor_types("float32", layout), "non_trainable": {}}
    parts = {
        name: {key: _part_type(value, layout) for key, value in getattr(state, name).items()}
        for name in ("distributor", "client_work", "aggregator", "finalizer")
    }
    types = {"round_num": "int64", "global_model_weights": weights, **parts}
    if state.updates:
        types["updates"] = {key: _part_type(each, layout) for key, each in state.updates.items()}
    if state.evaluated is None:
        return types
    evaluated = {name: value for name, value in vars(state.evaluated).items() if value is not None}
    return {
        **types,
        "evaluated": {name: _part_type(value, layout) for name, value in evaluated.items()},
    }


def _part_type(value: Any, layout: ParamLayout) -> Any:
    if isinstance(value, ClientStates):
        return array_type("float32", (None, layout.num_params))
    if isinstance(value, np.ndarray) and value.shape == (layout.num_params,):
        return _tensor_types(str(value.dtype), layout)
    return value_types(value)


def _tensor_types(dtype: str, layout: ParamLayout) -> list[str]:
    return [array_type(dtype, tensor.shape) for tensor in layout.tensors]
