"""`fedcli.dataclass` makes the same classes as the standard decorator."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from fedcli.dataclass import MOST_UNCOMPILED, dataclass
from tests.kit.command_line import REPOSITORY


def _define(decorate: Callable[..., Any], **options: bool) -> tuple[Any, Any]:
    """Returns a class with fields of all kinds and a subclass, made by the given decorator."""

    class Base:
        first: int
        second: str = "two"
        third: list[int] = dataclasses.field(default_factory=list)
        shown: int = dataclasses.field(default=3, repr=False, compare=False)
        common: ClassVar[int] = 7

    class Derived(Base):
        fourth: float = 4.0
        second: str = "other"

        def __post_init__(self) -> None:
            object.__setattr__(self, "is_ready", True)

    base = decorate(Base, **options)
    return base, decorate(Derived, **options)


ARGUMENTS: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    ((1,), {}),
    ((1, "b", [2]), {"fourth": 0.5}),
    ((), {"first": 1, "shown": 5}),
    ((), {}),
    ((1,), {"first": 2}),
    ((1,), {"unknown": 2}),
    ((1, "b", [2], 3, 4.0, 5), {}),
)


def _outcome(make: Any, args: tuple[Any, ...], named: dict[str, Any]) -> object:
    """Returns everything that is visible of a new object, or of the error."""
    try:
        made = make(*args, **named)
    except TypeError as err:
        return str(err)
    again = make(*args, **named)
    changed = dataclasses.replace(made, first=9)
    values = dataclasses.asdict(made), dataclasses.asdict(changed), vars(made)
    return values, repr(made), made == again, made == changed, made.third is again.third


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"kw_only": True}, {"eq": False}])
@pytest.mark.parametrize("num_made_before", [0, MOST_UNCOMPILED + 1])
@pytest.mark.parametrize(("args", "named"), ARGUMENTS)
def test_objects_are_those_of_the_standard_decorator(
    options: dict[str, bool], num_made_before: int, args: tuple[Any, ...], named: dict[str, Any]
) -> None:
    for ours, standard in zip(
        _define(dataclass, **options), _define(dataclasses.dataclass, **options), strict=True
    ):
        for _ in range(num_made_before):
            ours(first=0)
        assert _outcome(ours, args, named) == _outcome(standard, args, named)
        assert str(inspect.signature(ours)) == str(inspect.signature(standard))


def test_classes_have_their_defaults_as_attributes_from_the_start() -> None:
    for cls in _define(dataclass):
        assert (cls.second, cls.shown, hasattr(cls, "third")) == (
            "two" if cls.__name__ == "Base" else "other",
            3,
            False,
        )


def test_frozen_objects_are_hashed_by_the_fields_that_are_compared_and_keep_their_values() -> None:
    class Pair:
        left: int
        right: int = dataclasses.field(default=0, compare=False)

    made: Any = dataclass(Pair, frozen=True)
    assert hash(made(1, 2)) == hash(made(1, 3)) != hash(made(2, 2))
    with pytest.raises(dataclasses.FrozenInstanceError, match="left"):
        made(1).left = 2
    with pytest.raises(dataclasses.FrozenInstanceError, match="right"):
        del made(1).right


THREADS = """
import dataclasses, sys, threading
from fedcli.dataclass import dataclass
sys.setswitchinterval(1e-6)

def define():
    class Some:
        pass
    Some.__annotations__ = {f"v{i}": "list[int]" for i in range(40)}
    for name in Some.__annotations__:
        setattr(Some, name, dataclasses.field(default_factory=list))
    return dataclass(Some)

for _ in range(50):
    some, numbers = define(), []
    threads = [threading.Thread(target=lambda: numbers.append(len(vars(some())))) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert numbers == [40] * 4, numbers
"""


def test_threads_that_make_the_first_objects_of_a_class_get_all_fields() -> None:
    subprocess.run([sys.executable, "-c", THREADS], check=True, cwd=REPOSITORY)
