"""Dataclasses whose methods are compiled on first use, so that importing them is cheap.

`dataclasses.dataclass` compiles five or six methods for each class at import time, which takes
0.4 ms. One command uses few of these classes. Here `__init__` is compiled when the first object is
made, and the other methods are closures that need no compilation. Making an object takes as long as
with the standard decorator. `dataclasses.fields`, `replace` and `asdict` work, and type checkers
see the standard decorator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(
        cls: type | None = None,
        /,
        *,
        frozen: bool = False,
        eq: bool = True,
        repr: bool = True,
        kw_only: bool = False,
    ) -> Any:
        """Makes a class a dataclass. The options are those of `dataclasses.dataclass`."""

        def make(cls: type) -> type:
            own = set(vars(cls))  # methods that the class defines itself are kept
            made = dataclasses.dataclass(cls, init=False, repr=False, eq=False, kw_only=kw_only)
            fields = dataclasses.fields(made)
            methods: dict[str, Any] = {
                "__init__": _init_on_demand(made, fields, is_frozen=frozen),
                "__signature__": _Signature(),
            }
            if repr:
                methods["__repr__"] = _repr_of(fields)
            if eq:
                methods["__eq__"] = _eq_of(fields)
                methods["__hash__"] = _hash_of(fields) if frozen else None
            if frozen:
                methods.update(__setattr__=_refuse_to_set, __delattr__=_refuse_to_delete)
            for name, method in methods.items():
                if name not in own:
                    setattr(made, name, method)
            return made

        return make if cls is None else make(cls)


Fields = tuple[dataclasses.Field[Any], ...]


class _Factory:
    """Marks in a signature a parameter whose default is made for each object (default_factory)."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY = _Factory()


def _init_on_demand(cls: type, fields: Fields, *, is_frozen: bool) -> Callable[..., None]:
    """Returns an `__init__` that replaces itself by a compiled one on its first call."""

    def __init__(self: Any, *args: Any, **named: Any) -> None:  # noqa: N807 - becomes a method
        _compiled_init(cls, fields, is_frozen=is_frozen)(self, *args, **named)

    __init__.compile = lambda: _compiled_init(cls, fields, is_frozen=is_frozen)  # type: ignore[attr-defined]
    return __init__


def _compiled_init(cls: type, fields: Fields, *, is_frozen: bool) -> Callable[..., None]:
    """Compiles the `__init__` of a class, sets it on the class, and returns it."""
    scope: dict[str, Any] = {"_set": object.__setattr__, "_factory": _FACTORY}
    parameters, body = ["self"], []
    for each in sorted(fields, key=lambda field: bool(field.kw_only)):
        name, value = each.name, each.name
        if each.kw_only and "*" not in parameters:
            parameters.append("*")
        if each.default is not dataclasses.MISSING:
            scope[f"_default_{name}"] = each.default
            parameters.append(f"{name}=_default_{name}")
        elif each.default_factory is not dataclasses.MISSING:
            scope[f"_make_{name}"] = each.default_factory
            parameters.append(f"{name}=_factory")
            value = f"_make_{name}() if {name} is _factory else {name}"
        else:
            parameters.append(name)
        body.append(f"_set(self, {name!r}, {value})" if is_frozen else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    source = f"def __init__({', '.join(parameters)}):\n " + "\n ".join(body or ["pass"])
    exec(source, scope)
    init: Callable[..., None] = scope["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    cls.__init__ = init  # type: ignore[misc]
    return init


def _repr_of(fields: Fields) -> Callable[[Any], str]:
    names = [each.name for each in fields if each.repr]

    def __repr__(self: Any) -> str:  # noqa: N807
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({values})"

    return __repr__


def _eq_of(fields: Fields) -> Callable[[Any, object], bool]:
    names = [each.name for each in fields if each.compare]

    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        if self is other:
            return True
        if other.__class__ is not self.__class__:
            return NotImplemented
        return [getattr(self, name) for name in names] == [getattr(other, name) for name in names]

    return __eq__


def _hash_of(fields: Fields) -> Callable[[Any], int]:
    names = [each.name for each in fields if (each.compare if each.hash is None else each.hash)]

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(tuple(getattr(self, name) for name in names))

    return __hash__


def _refuse_to_set(self: Any, name: str, value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


class _Signature:
    """The signature of a class, computed when `inspect.signature` or `help` reads it."""

    def __get__(self, instance: object, owner: type) -> Any:
        import inspect  # late: a program that reads signatures has imported it already

        init = owner.__init__  # type: ignore[misc]
        compiled = init.compile() if hasattr(init, "compile") else init
        parameters = list(inspect.signature(compiled).parameters.values())[1:]
        types = {each.name: each.type for each in dataclasses.fields(owner)}
        annotated = [
            each.replace(annotation=types.get(each.name, each.annotation)) for each in parameters
        ]
        return inspect.Signature(annotated, return_annotation=None)
