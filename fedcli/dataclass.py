"""Dataclasses that are cheap to define, for a program that defines many and uses only a few.

`dataclasses.dataclass` reads the fields and compiles five or six methods of each class at import
time, which takes 0.4 ms. Here the fields are read when they are first needed, and the methods are
closures that need no compilation. `__init__` is compiled when more than `MOST_UNCOMPILED` objects
of a class are made; further objects are made as fast as with the standard decorator.
`dataclasses.fields`, `replace` and `asdict` work, and type checkers see the standard decorator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from threading import RLock
from typing import TYPE_CHECKING, Any

# Compiling an `__init__` takes as long as making about 30 objects without compiling it.
MOST_UNCOMPILED = 15

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
            methods: dict[str, Any] = {
                "__init__": _init_of(cls, is_frozen=frozen),
                "__signature__": _Signature(),
            }
            if repr:
                methods["__repr__"] = _repr_of(cls)
            if eq:
                methods["__eq__"] = _eq_of(cls)
                methods["__hash__"] = _hash_of(cls) if frozen else None
            if frozen:
                methods.update(__setattr__=_refuse_to_set, __delattr__=_refuse_to_delete)
            own = set(vars(cls))  # methods that the class defines itself are kept
            for name, method in methods.items():
                if name not in own:
                    setattr(cls, name, method)
            cls.__dataclass_fields__ = _FieldsOnDemand(cls, kw_only=kw_only)
            return cls

        return make if cls is None else make(cls)


Fields = tuple[dataclasses.Field[Any], ...]


class _FieldsOnDemand:
    """The fields of a class. Replaces itself by the standard table of fields when it is read."""

    # Reading the fields changes attributes of the class for a moment. The lock is reentrant,
    # because the fields of a base class may have to be read first.
    _lock = RLock()

    def __init__(self, cls: type, *, kw_only: bool) -> None:
        """Leaves the class with the defaults as its attributes, as the standard decorator does."""
        self._cls = cls
        self._kw_only = kw_only
        self._given = {
            name: value for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)
        }
        for name, field in self._given.items():
            if field.default is dataclasses.MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, field.default)

    def __get__(self, instance: object, owner: type) -> dict[str, dataclasses.Field[Any]]:
        with self._lock:
            if vars(self._cls)["__dataclass_fields__"] is self:
                for name, field in self._given.items():
                    setattr(self._cls, name, field)
                dataclasses.dataclass(
                    self._cls, init=False, repr=False, eq=False, kw_only=self._kw_only
                )
        table: dict[str, dataclasses.Field[Any]] = vars(self._cls)["__dataclass_fields__"]
        return table


class _Factory:
    """Marks in a signature a parameter whose default is made for each object (default_factory)."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY = _Factory()


def _init_of(cls: type, *, is_frozen: bool) -> Callable[..., None]:
    """Returns an `__init__` that replaces itself by a compiled one after a few calls."""
    num_made = 0

    def __init__(self: Any, *args: Any, **named: Any) -> None:  # noqa: N807 - becomes a method
        nonlocal num_made
        num_made += 1
        values = None
        if num_made <= MOST_UNCOMPILED:
            values = _values_of(dataclasses.fields(cls), args, named)
        if values is None:  # if arguments do not fit, the compiled method says what is wrong
            return _compiled_init(cls, is_frozen=is_frozen)(self, *args, **named)
        set_field = object.__setattr__ if is_frozen else setattr
        for name, value in values.items():
            set_field(self, name, value)
        if hasattr(cls, "__post_init__"):
            self.__post_init__()
        return None

    __init__.compile = lambda: _compiled_init(cls, is_frozen=is_frozen)  # type: ignore[attr-defined]
    return __init__


def _values_of(
    fields: Fields, args: tuple[Any, ...], named: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns the values of all fields, by name; None if the arguments do not match the fields."""
    places = [each.name for each in fields if not each.kw_only]
    given = dict(zip(places, args, strict=False))
    if len(args) > len(places) or not given.keys().isdisjoint(named):
        return None
    given.update(named)
    values = {}
    for each in fields:
        if each.name in given:
            values[each.name] = given.pop(each.name)
        elif each.default is not dataclasses.MISSING:
            values[each.name] = each.default
        elif each.default_factory is not dataclasses.MISSING:
            values[each.name] = each.default_factory()
        else:
            return None
    return None if given else values


def _compiled_init(cls: type, *, is_frozen: bool) -> Callable[..., None]:
    """Compiles the `__init__` of a class, sets it on the class, and returns it."""
    fields = dataclasses.fields(cls)
    scope: dict[str, Any] = {"_factory": _FACTORY}
    # A frozen object refuses assignments, so fields are set in its dictionary. This is also faster
    # than object.__setattr__.
    parameters, body = ["self"], ["_fields = self.__dict__"] if is_frozen else []
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
        body.append(f"_fields[{name!r}] = {value}" if is_frozen else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    source = f"def __init__({', '.join(parameters)}):\n " + "\n ".join(body or ["pass"])
    exec(source, scope)
    init: Callable[..., None] = scope["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    cls.__init__ = init  # type: ignore[misc]
    return init


def _repr_of(cls: type) -> Callable[[Any], str]:
    def __repr__(self: Any) -> str:  # noqa: N807
        names = [each.name for each in dataclasses.fields(cls) if each.repr]
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({values})"

    return __repr__


def _eq_of(cls: type) -> Callable[[Any, object], bool]:
    names = cache(lambda: [each.name for each in dataclasses.fields(cls) if each.compare])

    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        if self is other:
            return True
        if other.__class__ is not self.__class__:
            return NotImplemented
        return [getattr(self, name) for name in names()] == [
            getattr(other, name) for name in names()
        ]

    return __eq__


def _hash_of(cls: type) -> Callable[[Any], int]:
    def is_hashed(field: dataclasses.Field[Any]) -> bool:
        return field.compare if field.hash is None else field.hash

    names = cache(lambda: [each.name for each in dataclasses.fields(cls) if is_hashed(each)])

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(tuple(getattr(self, name) for name in names()))

    return __hash__


def _refuse_to_set(self: Any, name: str, value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


class _Signature:
    """The signature of a class, computed when `inspect.signature` or `help` reads it."""

    def __get__(self, instance: object, owner: type) -> Any:
        import inspect  # lazy: a program that reads signatures has imported it already

        init = owner.__init__  # type: ignore[misc]
        compiled = init.compile() if hasattr(init, "compile") else init
        parameters = list(inspect.signature(compiled).parameters.values())[1:]
        types = {each.name: each.type for each in dataclasses.fields(owner)}
        annotated = [
            each.replace(annotation=types.get(each.name, each.annotation)) for each in parameters
        ]
        return inspect.Signature(annotated, return_annotation=None)
