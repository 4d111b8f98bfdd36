"""Joins two sources: the second one becomes the split test, or a pooled test set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedcli.datasets.client_data import CENTRAL
from fedcli.datasets.description import SourceDescription
from fedcli.datasets.importers.recognising import Imported
from fedcli.datasets.preparation.class_matching import match_classes
from fedcli.datasets.table import ExampleTable
from fedcli.errors import DataError, plural


def join_test(train: Imported, test: Imported) -> Imported:
    """Returns the train source with the test split, else the train split, of the other source.

    Classes are matched by name or value.

    Raises:
        DataError: The other source has neither split, or its classes are not those of train.
    """
    table = test.tables.get("test", test.tables.get("train"))
    if table is None:
        other = next(iter(test.tables.values()))
        raise DataError(
            f"--test-data: {other.source} has neither split 'test' nor 'train', only "
            f"{', '.join(test.tables)}; give another source"
        )
    class_names, num_classes, table = match_classes(train, test, table)
    return replace(
        train,
        tables={**train.tables, "test": _match_convention(train, test, table)},
        num_classes=num_classes,
        class_names=class_names,
        same_people=train.same_people and test.same_people,
        notes=tuple(dict.fromkeys([*train.notes, *test.notes])),
        description=_join_descriptions(train, test, table),
        is_guessed=train.is_guessed and test.is_guessed,
    )


def _join_descriptions(train: Imported, test: Imported, table: ExampleTable) -> SourceDescription:
    """The description of train, with the split of another source."""
    of_train, of_test = train.description, test.description
    splits = replace(
        of_train.splits,
        value=f"{of_train.splits.value}, test {plural(len(table), 'example')}",
        evidence=f"{of_train.splits.evidence}; test: {of_test.source}, given by --test-data",
    )
    return replace(of_train, splits=splits)


def join_central(source: Imported, central: Imported) -> Imported:
    """Returns the source with the only split of another source as its split central."""
    (table,) = central.tables.values()
    return replace(
        source,
        tables={**source.tables, CENTRAL: _match_convention(source, central, table)},
    )


def check_shapes(tables: Mapping[str, ExampleTable]) -> None:
    """Checks that the images of all splits have the same shape.

    Raises:
        DataError: The shapes differ. The message names both sources.
    """
    train = tables["train"]
    for name, table in tables.items():
        shape, other = train.pixels.shape[1:], table.pixels.shape[1:]
        if shape != other:
            raise DataError(
                f"images have shape {list(shape)} in train ({train.source}) but {list(other)} in "
                f"{name} ({table.source}); pass --size, or give {name} data of the same shape"
            )


def _match_convention(train: Imported, test: Imported, table: ExampleTable) -> ExampleTable:
    """The test examples, converted to the meaning of 1.0 in train.

    Two sources of the same format are assumed to agree, because an estimate from pixels may be
    wrong for one of them. This is not assumed of stores, which record the meaning.
    """
    is_alike = train.format == test.format != "store"
    if is_alike or train.pixel_convention == test.pixel_convention:
        return table
    return replace(table, scale=-table.scale, offset=1.0 - table.offset)
