"""What every part of a user's may keep in the server state and tell as metrics."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from fedcli.errors import PartError

_MAX_INT = 2**63 - 1


def checked_state(where: str, state: Any, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a part's state as it can be stored: by name, copies of arrays, ints and floats.

    Args:
        where: Starts messages.
        state: What the part returned.
        before: The state before the round, whose names, shapes and types it must have; None: it is
            the first.

    Raises:
        PartError: It holds something else.
    """
    if not isinstance(state, Mapping):
        raise PartError(f"{where} returned a state of type {kind(state)}; give a dict")
    found = {}
    for name, value in state.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise PartError(f"{where}: the state has a key {name!r}; give names as of variables")
        found[name] = _storable(f"{where}: state {name!r}", value)
    if before is None:
        return found
    if found.keys() != before.keys():
        raise PartError(
            f"{where}: the state has {_listed(found)}, it had {_listed(before)}; keep the names "
            "that init gave"
        )
    for name, value in found.items():
        if isinstance(before[name], float) and isinstance(value, int):
            found[name] = float(value)
        elif kind(value) != kind(before[name]):
            raise PartError(
                f"{where}: state {name!r} is {kind(value)}, it was {kind(before[name])}; keep its "
                "shape and type"
            )
    return found


def copied_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state for a part that may change its arrays in place."""
    return {
        name: value.copy() if hasattr(value, "dtype") else value for name, value in state.items()
    }


def checked_metrics(where: str, metrics: Any) -> dict[str, Any]:
    """Returns metrics as JSON has them: numbers by name, which may be nested.

    Raises:
        PartError: They hold something else.
    """
    if not isinstance(metrics, Mapping):
        raise PartError(f"{where} returned metrics of type {kind(metrics)}; give a dict of numbers")
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise PartError(f"{where}: the metrics have a key {name!r}; give a text")
        if isinstance(value, Mapping):
            found[name] = checked_metrics(where, value)
            continue
        number = _number(value)
        if number is None:
            raise PartError(f"{where}: metric {name!r} is {kind(value)}; give a number")
        found[name] = number
    return found


def kind(value: Any) -> str:
    """Returns the type of a value, of an array its shape, too: float32 [784, 10]."""
    if hasattr(value, "dtype") and hasattr(value, "shape") and len(value.shape):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


def _storable(where: str, value: Any) -> Any:
    number = _number(value)
    if isinstance(number, int) and not -_MAX_INT - 1 <= number <= _MAX_INT:
        raise PartError(f"{where} is {number}; give an int of 64 bits, or a float")
    if number is not None:
        return number
    is_array = hasattr(value, "dtype") and hasattr(value, "shape")
    if is_array and getattr(value.dtype, "kind", "") in "fiub":
        return value.copy()  # the part may go on with its array
    if hasattr(value, "open_in"):  # what each client keeps: `ClientStates`
        return value
    raise PartError(f"{where} is {kind(value)}; give an array, an int or a float")


def _number(value: Any) -> int | float | None:
    """A whole or other number in Python's types, those of NumPy included; None: it is none."""
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else None


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "nothing"
