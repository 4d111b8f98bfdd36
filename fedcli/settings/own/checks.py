"""Checks of the server state and the metrics that a user's own part returns."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from fedcli.errors import PartError

_MAX_INT = 2**63 - 1


def checked_state(where: str, state: Any, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a part's state as values that can be stored: copied arrays, ints and floats.

    A NaN or an infinity is refused, because the part would compute with it in every later round.

    Args:
        where: The place in the user's code, with which error messages start.
        state: The value that the part returned.
        before: The state before the round, whose names, shapes and types must stay the same. None
            for the first state.

    Raises:
        PartError: The state holds a value of another type or one that is not finite, or its names,
            shapes or types changed.
    """
    if not isinstance(state, Mapping):
        raise PartError(f"{where} returned a state of type {kind(state)}; give a dict")
    checked = {}
    for name, value in state.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise PartError(
                f"{where}: the state has a key {name!r}, which is not a Python name; use names "
                "such as step_size"
            )
        label = f"{where}: state {name!r}"
        checked[name] = _storable(label, value)
        _check_finite(label, checked[name], is_first=before is None)
    if before is None:
        return checked
    if checked.keys() != before.keys():
        raise PartError(
            f"{where}: the state has {_listed(checked)}, but the first state has "
            f"{_listed(before)}; keep these names"
        )
    for name, value in checked.items():
        if isinstance(before[name], float) and isinstance(value, int):
            checked[name] = float(value)
        elif kind(value) != kind(before[name]):
            is_now_float = isinstance(before[name], int) and isinstance(value, float)
            raise PartError(
                f"{where}: state {name!r} is {kind(value)}, but it was {kind(before[name])}; "
                f"keep its shape and type{', or start with a float in init' * is_now_float}"
            )
    return checked


def copied_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a state, whose arrays the part may change in place."""
    return {
        name: value.copy() if hasattr(value, "dtype") else value for name, value in state.items()
    }


def checked_metrics(where: str, metrics: Any) -> dict[str, Any]:
    """Returns metrics that can be written as JSON: numbers by name, or nested dicts of them.

    Raises:
        PartError: A name is not a text, or a value is neither a number nor a dict.
    """
    if not isinstance(metrics, Mapping):
        raise PartError(f"{where} returned metrics of type {kind(metrics)}; give a dict of numbers")
    checked: dict[str, Any] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise PartError(f"{where}: the metrics have a key {name!r}; give a text")
        if isinstance(value, Mapping):
            checked[name] = checked_metrics(where, value)
            continue
        number = _number(value)
        if number is None:
            raise PartError(f"{where}: metric {name!r} is {kind(value)}; give a number")
        checked[name] = number
    return checked


def kind(value: Any) -> str:
    """Returns the name of a value's type; for an array its dtype and shape: float32 [784, 10]."""
    if hasattr(value, "dtype") and hasattr(value, "shape") and len(value.shape):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


def _storable(where: str, value: Any) -> Any:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a number of NumPy, or an array without axes
    if isinstance(value, bool):
        raise PartError(f"{where} is {value}; give a number, such as 1 for true and 0 for false")
    number = _number(value)
    if isinstance(number, int) and not -_MAX_INT - 1 <= number <= _MAX_INT:
        raise PartError(f"{where} is {number}; give an int of 64 bits, or a float")
    if number is not None:
        return number
    is_array = hasattr(value, "dtype") and hasattr(value, "shape")
    if is_array and getattr(value.dtype, "kind", "") in "fiub":
        return value.copy()  # the part may change its own array later
    if hasattr(value, "open_in"):  # `ClientStates`: the kept vectors of the clients
        return value
    raise PartError(f"{where} is {kind(value)}; give an array, an int or a float")


def _check_finite(where: str, value: Any, *, is_first: bool) -> None:
    """Refuses a value of a state that is NaN or infinite, or an array that has such values."""
    if isinstance(value, int | float):
        what = "" if abs(value) < math.inf else f"is {value}"
    else:
        count = _num_not_finite(value)
        what = f"has {count} of {value.size} values that are NaN or infinite" if count else ""
    if what:
        advice = "" if is_first else ", and the old state in a round in which no client has weight"
        raise PartError(f"{where} {what}; return finite numbers{advice}")


def _num_not_finite(value: Any) -> int:
    """Returns the number of values in an array that are NaN or infinite; 0 for another object."""
    if getattr(getattr(value, "dtype", None), "kind", "") != "f":
        return 0
    return int(value.size - (abs(value) < math.inf).sum())


def _number(value: Any) -> int | float | None:
    """Converts a number of Python or NumPy to an int or a float; None if it is not a number."""
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else None


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "nothing"
