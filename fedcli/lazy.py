"""Names that are imported on first use, so that a package costs nothing until it is used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any

_NO_MODULES: Mapping[str, str] = MappingProxyType({})


def load(reference: str) -> Any:
    """Returns what a reference names, imported now: a module, or a name that it defines.

    Args:
        reference: "fedcli.models" or "fedcli.models.zoo:build", such as a table's row has.
    """
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


def hand_on(
    package: str, homes: Mapping[str, str], modules: Mapping[str, str] = _NO_MODULES
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns `__getattr__`, `__dir__` and `__all__` of a package that only hands names on.

    See PEP 562 for the first two. A module of `modules` can also be imported under its public name:
    `from fedcli.layers import Dense` finds what `fedcli.layers` stands for.

    Args:
        package: The package's `__name__`.
        homes: The module that defines each public name.
        modules: The module that each other public name stands for.
    """

    def get(name: str) -> Any:
        if name in homes:
            value = getattr(import_module(homes[name]), name)
        elif name in modules:
            value = import_module(modules[name])
        else:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        setattr(sys.modules[package], name, value)
        return value

    for name, target in modules.items():
        if target == f"{package}.{name}":  # it has that name already
            continue
        sys.modules.setdefault(f"{package}.{name}", _Alias(f"{package}.{name}", target))
    names = sorted({*homes, *modules})
    return get, lambda: names, names


class _Alias(ModuleType):
    """A module under a second name, imported when an attribute is asked for."""

    def __init__(self, name: str, target: str) -> None:
        super().__init__(name)
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._target), name)
