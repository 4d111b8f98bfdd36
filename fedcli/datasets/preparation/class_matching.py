"""Matches the classes of two sources by name or by value, never by position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedcli.datasets.importers.recognising import Imported
from fedcli.datasets.labels import value_of
from fedcli.datasets.table import ExampleTable
from fedcli.errors import DataError

_SHOWN = 10  # classes in a message


def match_classes(
    train: Imported, test: Imported, table: ExampleTable
) -> tuple[tuple[str, ...], int, ExampleTable]:
    """Returns the common class names, the number of classes, and the test examples relabelled.

    Args:
        train: The source whose class numbers are kept.
        test: The other source.
        table: The examples of test.

    Raises:
        DataError: One source names its classes and the other numbers them, or test has a class that
            train lacks.
    """
    ours, theirs = train.class_names, test.class_names
    most = max(train.num_classes, test.num_classes)
    if not ours and not theirs:
        return (), most, table
    shorter, longer = sorted([ours, theirs], key=len)
    if shorter and longer[: len(shorter)] == shorter:
        return (longer, len(longer), table) if len(longer) == most else ((), most, table)
    if ours and theirs:
        return ours, len(ours), _renamed(train, test, table)
    named = train if ours else test
    if named.are_numbered:
        return (longer, most, table) if len(longer) == most else ((), most, table)
    values = [value_of(name) for name in longer]
    if None in values:
        raise _not_alike(train, test)
    numbers = [value for value in values if value is not None]
    if ours:
        return ours, len(ours), _by_value(train, numbers, table)
    numbered = np.array(numbers, np.int32)[table.labels]
    if min(numbers) < 0:
        raise _not_alike(train, test)
    return (), max(train.num_classes, max(numbers) + 1), replace(table, labels=numbered)


def _renamed(train: Imported, test: Imported, table: ExampleTable) -> ExampleTable:
    """The test examples, relabelled with train's numbers of the classes with the same names."""
    places = {_key(name): place for place, name in enumerate(train.class_names)}
    unknown = [name for name in test.class_names if _key(name) not in places]
    if unknown:
        raise DataError(
            f"--test-data: {table.source} has a class {unknown[0]!r} that "
            f"{train.tables['train'].source} lacks; give both the same classes"
        )
    numbers = np.array([places[_key(name)] for name in test.class_names], np.int32)
    return replace(table, labels=numbers[table.labels])


def _by_value(train: Imported, numbers: list[int], table: ExampleTable) -> ExampleTable:
    """The test examples, relabelled with train's numbers of the classes with the same values."""
    present = np.unique(table.labels).tolist()
    places: dict[int, int] = {}
    for place, value in enumerate(numbers):
        places.setdefault(value, place)
    unknown = [value for value in present if value not in places]
    if unknown:
        raise DataError(
            f"--test-data: {table.source} has a label {unknown[0]} that "
            f"{train.tables['train'].source} lacks (its classes are "
            f"{', '.join(train.class_names[:_SHOWN])}); give both the same classes"
        )
    place_of = np.zeros(max(present, default=0) + 1, np.int32)
    place_of[present] = [places[value] for value in present]
    return replace(table, labels=place_of[table.labels])


def _key(name: str) -> str | int:
    """The key by which names are matched: numbers by value, so that 01 and 1 are the same class."""
    value = value_of(name)
    return name if value is None else value


def _not_alike(train: Imported, test: Imported) -> DataError:
    named, other = (train, test) if train.class_names else (test, train)
    return DataError(
        f"--test-data: {named.source} names its classes "
        f"({', '.join(named.class_names[:_SHOWN])}) but {other.source} numbers them, and it is "
        "unknown which number is which name; label both with names, or both with numbers"
    )
