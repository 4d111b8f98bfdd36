"""Names that are imported on first use, so that a package costs nothing until it is used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
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
    package: str,
    homes: Mapping[str, str],
    modules: Mapping[str, str] = _NO_MODULES,
    former_modules: str | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns `__getattr__`, `__dir__` and `__all__` of a package that only hands names on.

    See PEP 562 for the first two. A module of `modules` can also be imported under its public name:
    `from fedcli.layers import Dense` finds what `fedcli.layers` stands for.

    Args:
        package: The package's `__name__`.
        homes: The module that defines each public name.
        modules: The module that each other public name stands for.
        former_modules: A reference to a table of modules by the names below the package that they
            had before, which can still be imported. It is loaded once such a name is wanted.
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
    if former_modules is not None:
        sys.meta_path.append(_FormerModules(package, former_modules, modules))
    names = sorted({*homes, *modules})
    return get, lambda: names, names


class _Alias(ModuleType):
    """A module under a second name, imported when an attribute is asked for."""

    def __init__(self, name: str, target: str) -> None:
        super().__init__(name)
        self.__path__ = []  # what is below the target is found below that, and not loaded twice
        self._stands_for = target

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._stands_for), name)


class _FormerModules:
    """Finds modules by names that they had before; Python asks it when it has found no other."""

    def __init__(self, package: str, table: str, aliases: Mapping[str, str]) -> None:
        self._package = package
        self._table = table
        self._aliases = aliases

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        home = self._home(rest) if package == self._package else None
        if home is None or not _is_there(home):
            return None
        return ModuleSpec(name, self, loader_state=home, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Alias(spec.name, spec.loader_state)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: what the alias stands for is there."""

    def _home(self, name: str) -> str | None:
        """The module's name today; of one below a module that has moved, below that one's."""
        known: dict[str, str] = {**self._aliases, **load(self._table)}
        above, below = name, ""
        while above:
            home = known.get(above, "") + below
            if above in known and home != f"{self._package}.{name}":
                return home
            above, _, last = above.rpartition(".")
            below = f".{last}{below}"
        return None


def _is_there(module: str) -> bool:
    from importlib.util import find_spec  # late: few programs come here

    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it would be in
        return False
