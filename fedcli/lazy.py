"""Imports names on first use, so that importing a package loads none of its modules."""

from __future__ import annotations

import sys
from abc import ABCMeta
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

_NO_MODULES: Mapping[str, str] = MappingProxyType({})
_PEER_NAMES = "fedcli.settings.tables.peer_names"


def load(reference: str) -> Any:
    """Imports and returns a module, or an object that a module defines.

    Args:
        reference: "fedcli.models" or "fedcli.models.zoo:build", as in `Entry.code` of the tables.
    """
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


def reexport(
    package: str,
    defining_modules: Mapping[str, str],
    modules: Mapping[str, str] = _NO_MODULES,
    former_modules: str | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns `__getattr__`, `__dir__` and `__all__` for a package that only re-exports names.

    See PEP 562 for the first two. A module in `modules` can also be imported under its public name,
    as in `from fedcli.layers import Dense`.

    Args:
        package: The package's `__name__`.
        defining_modules: By public name, the module that defines it.
        modules: By public name, the module that it is an alias of.
        former_modules: A reference, as `load` takes it, to a table that maps former names of
            modules, relative to the package, to present ones. They can still be imported under
            their former names. The table is loaded when such a name is first imported.
    """

    def get(name: str) -> Any:
        if name in defining_modules:
            value = getattr(import_module(defining_modules[name]), name)
        elif name in modules:
            value = import_module(modules[name])
        else:
            raise UnknownName.of_module(package, name, names)
        setattr(sys.modules[package], name, value)
        return value

    for name, target in modules.items():
        if target == f"{package}.{name}":  # it has that name already
            continue
        sys.modules.setdefault(f"{package}.{name}", _Alias(f"{package}.{name}", target))
    if former_modules is not None:
        sys.meta_path.append(_FormerModules(package, former_modules, modules))
    names = sorted({*defining_modules, *modules})
    return get, lambda: names, names


class UnknownName(AttributeError):  # noqa: N818 - named like what it is about
    """A name that a module or an object does not have.

    The message says what to write instead of a name of another program. It is made only when it is
    read, because most such errors are caught and never shown, for example by `hasattr`.
    """

    def __init__(self, owner: str, name: str, known: Sequence[str]) -> None:
        """Takes a description of the owner, the missing name, and the names that exist."""
        super().__init__(owner, name, known)

    @classmethod
    def of_module(cls, module: str, name: str, known: Sequence[str]) -> UnknownName:
        """Returns the error for a module, which the message calls by its public name."""
        return cls(f"module '{_public_name(module)}'", name, known)

    def __str__(self) -> str:
        """Returns the message."""
        owner, name, known = self.args
        hint = "" if name.startswith("_") else load(f"{_PEER_NAMES}:about_name")(name, known, owner)
        return f"{owner} has no attribute '{name}'{hint}"


def refuse_others(package: str, names: Sequence[str]) -> Callable[[str], Any]:
    """Returns `__getattr__` for a package that has imported all its names.

    Args:
        package: The package's `__name__`.
        names: Its public names.
    """

    def get(name: str) -> Any:
        raise UnknownName.of_module(package, name, names)

    return get


class _ExplainsNamesOfClass(ABCMeta):
    """The type of classes whose own unknown names are explained, too, as in `ClientData.split`."""

    if not TYPE_CHECKING:  # type checkers must still find wrong names

        def __getattr__(cls, name: str) -> Any:
            """Raises `UnknownName`."""
            known = [each for each in dir(cls) if not each.startswith("_")]
            raise UnknownName(f"class {cls.__name__}", name, known)


class ExplainsNames(metaclass=_ExplainsNamesOfClass):
    """A base class: reading an attribute that does not exist raises `UnknownName`."""

    if not TYPE_CHECKING:  # type checkers must still find wrong names

        def __getattr__(self, name: str) -> Any:
            """Raises `UnknownName`, or the AttributeError that a property of that name raised."""
            if hasattr(type(self), name):  # a property raised an error, which Python has dropped
                return object.__getattribute__(self, name)
            known = [each for each in dir(type(self)) if not each.startswith("_")]
            raise UnknownName(f"a {type(self).__name__}", name, known)


class _Alias(ModuleType):
    """A module under a second name. The module is imported when an attribute is first read."""

    def __init__(self, name: str, target: str, *, is_former: bool = False) -> None:
        """Takes the second name, and the name of the module."""
        super().__init__(name)
        self.__path__ = []  # empty, so that submodules are imported once, below the target
        self._stands_for = target
        self._is_former = is_former

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._stands_for), name)

    def __dir__(self) -> list[str]:
        return dir(import_module(self._stands_for))


class _FormerModules:
    """A finder for modules by their former names.

    It is the last finder, so that it sees only names that no other finder knows.
    """

    def __init__(self, package: str, table: str, aliases: Mapping[str, str]) -> None:
        self._package = package
        self._table = table
        self._aliases = aliases

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        present_name = self._present_name(rest) if package == self._package else None
        if present_name is None or not _is_there(present_name):
            if package == self._package:
                _refuse_peer_name(name)
            return None
        return ModuleSpec(name, self, loader_state=present_name, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Alias(spec.name, spec.loader_state, is_former=True)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing; the alias imports its target itself."""

    def _present_name(self, name: str) -> str | None:
        """The present name of a module; None if `name` is not a former name.

        A submodule is found through its parent: if a has become b, then a.c is b.c.
        """
        known: dict[str, str] = {**self._aliases, **load(self._table)}
        above, below = name, ""
        while above:
            present_name = known.get(above, "") + below
            if above in known and present_name != f"{self._package}.{name}":
                return present_name
            above, _, last = above.rpartition(".")
            below = f".{last}{below}"
        return None


def _refuse_peer_name(path: str) -> None:
    """Raises ImportError for a name of which something is known, as in `from fedcli import emnist`.

    Such names are those of other programs, of other modules of fedcli, and misspelt ones. Without
    this function, Python would only say that the name cannot be imported.
    """
    owner, _, name = path.rpartition(".")
    known = getattr(sys.modules.get(owner), "__all__", ())
    if not name.startswith("_") and load(f"{_PEER_NAMES}:about_name")(name, known):
        raise ImportError(str(UnknownName.of_module(owner, name, known)), name=path)


def _public_name(module: str) -> str:
    """The shortest name of a module: one that re-exports it (fedcli.optimizers), or its own."""
    modules = tuple(sys.modules.items())  # other threads may import modules meanwhile
    aliases = ((name, each) for name, each in modules if isinstance(each, _Alias))
    public = (name for name, each in aliases if each._stands_for == module and not each._is_former)
    return min((module, *public), key=lambda name: name.count("."))


def _is_there(module: str) -> bool:
    from importlib.util import find_spec  # lazy: few programs use former names

    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package does not exist
        return False
