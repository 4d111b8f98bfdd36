"""Functions for all formats: number and names of classes, meaning of 1.0, checks of ids."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedcli.datasets.batches import first_outside
from fedcli.datasets.checks import MAX_CLASSES, MAX_ID_BYTES, bad_class_name, bad_label, is_name
from fedcli.datasets.importers import describing
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.labels import CHARACTER_NAMES, Classes, LabelReader
from fedcli.datasets.polarity import Border
from fedcli.datasets.table import ExampleTable
from fedcli.errors import DataError
from fedcli.progress import Tell

BLOCK_BYTES = 8 << 20  # bytes of pixels read at a time
_BLOCK_IMAGES = 1 << 16  # at most, however small they are

NUM_DIGITS = 10
# Without a number of classes, larger labels are taken for codes: ImageNet has 1000 classes.
_LARGEST_GUESS = 1000


def imported(
    tables: dict[str, ExampleTable],
    options: ImportOptions,
    *,
    source: str,
    pixel_convention: str,
    own_classes: int | None = None,
    class_names: Sequence[str] = (),
    are_numbered: bool = False,
    is_emnist: bool = False,
    same_people: bool = True,
    licence: str = "",
    notes: Sequence[str] = (),
    pixel_range: str = "",
    evidence: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Imported:
    """Returns the tables of a source with their number of classes, after checking every label.

    Args:
        tables: By split, "train" first.
        options: With the format that is read; its number of classes comes first.
        source: Where the data come from.
        pixel_convention: What 1.0 is.
        own_classes: What the source itself says of the number of classes.
        class_names: A name for each class, or none.
        are_numbered: Whether labels are numbers in the source, with names for them beside.
        is_emnist: Whether the examples are EMNIST's, so that 62 classes are its characters.
        same_people: Whether equal ids in train and test are the same people.
        licence: As the source says.
        notes: What was decided so far.
        pixel_range: The range of pixels in the source, if the tables do not show it.
        evidence: By subject of `SourceDescription`: what decided; for the others there are
            sentences of their own.
        overrides: By subject: the option that decides otherwise; "" for none.

    Raises:
        DataError: A label lies outside the classes, or is far too large for the number of a class.
    """
    names = tuple(class_names)
    known = options.num_classes or own_classes or len(names)
    num_classes = known or _guess(tables)
    for table in tables.values():
        check_table_labels(table, num_classes)
    if is_emnist and num_classes == len(CHARACTER_NAMES):
        names = names or CHARACTER_NAMES
    if names and len(names) != num_classes:
        notes = (*notes, f"{len(names)} class names for {num_classes} classes: names are left out")
        names = ()
    why = {"classes": describing.why_classes(options, own_classes, names, is_emnist)}
    why |= evidence or {}
    if options.polarity is not None:
        pixel_convention, why["polarity"] = options.polarity, "as --polarity says"
    return Imported(
        format=options.format or "",
        tables=tables,
        description=describing.describe(
            source,
            tables,
            classes=describing.count_classes(num_classes, names),
            pixel_convention=pixel_convention,
            pixel_range=pixel_range,
            evidence=why,
            overrides=overrides or {},
        ),
        num_classes=num_classes,
        pixel_convention=pixel_convention,
        class_names=names,
        same_people=same_people,
        source=source,
        licence=licence,
        notes=tuple(notes),
        are_numbered=are_numbered or names == CHARACTER_NAMES[: len(names)],
        is_guessed=not known,
    )


def check_table_labels(table: ExampleTable, num_classes: int) -> None:
    """Checks the labels of a table.

    Raises:
        DataError: One lies outside the classes; names source, owner and the example's index, among
            its owner's where it has one.
    """
    index = first_outside(table.labels, num_classes)
    if index is None:
        return
    where, label = table.source, int(table.labels[index])
    if len(table.owners):
        owner = table.owners[index]
        where = f"{where}: client {table.owner_ids[owner]!r}"
        index = int(np.count_nonzero(table.owners[:index] == owner))
    raise bad_label(label, index, num_classes, where)


def number_labels(
    tables: Mapping[str, ExampleTable], reader: LabelReader
) -> tuple[dict[str, ExampleTable], Classes]:
    """Returns tables with a number for each class, and the classes.

    Args:
        tables: By split; their labels are codes that the reader gave.
        reader: It has read the labels of all of them.

    Raises:
        DataError: As `LabelReader.classes`.
    """
    classes = reader.classes(table.labels for table in tables.values())
    numbered = {
        split: replace(table, labels=classes.number(table.labels))
        for split, table in tables.items()
    }
    return numbered, classes


def check_id(client_id: str, where: str) -> str:
    """Returns an id that a store can keep.

    Raises:
        DataError: It is empty, too long, or holds a zero byte or half a character.
    """
    if not is_name(client_id):
        raise DataError(
            f"{where}: client id {client_id[:40]!r}: an id has 1 to {MAX_ID_BYTES} bytes of UTF-8 "
            "and no zero byte; rename the client"
        )
    return client_id


def check_class_name(name: str, where: str) -> str:
    """Returns a class's name that a store can keep.

    Raises:
        DataError: It is empty, too long, or holds a zero byte or half a character.
    """
    if not is_name(name):
        raise bad_class_name(name, where)
    return name


def polarity_of(tables: Mapping[str, ExampleTable]) -> tuple[str, str]:
    """Estimates from images what 1.0 means, "ink" or "background"; returns it with the evidence.

    Colour images are "ink". Grey images are "background" if most pixels of their borders are
    light; where about half of them are, if the borders are lighter than the centres.
    """
    border = Border()
    for table in tables.values():
        if table.pixels.ndim == 4 and table.pixels.shape[-1] > 1:
            return "ink", "light is 1.0 in colour images"
        for first, last in blocks(len(table), table.pixels.shape[1:], table.pixels.itemsize):
            border.add(np.asarray(table.pixels[first:last]), table.scale, table.offset)
    decided = border.decide() or ("background" if border.share > 0.5 else "ink")
    return decided, border.evidence


def blocks(num_images: int, shape: Sequence[int], itemsize: int = 1) -> Iterator[tuple[int, int]]:
    """Yields (first, last) of blocks of images of a shape, each of about `BLOCK_BYTES`."""
    size = min(max(1, BLOCK_BYTES // max(1, math.prod(shape) * itemsize)), _BLOCK_IMAGES)
    for first in range(0, num_images, size):
        yield first, min(first + size, num_images)


def tell_after(tell: Tell, done: int, total: int | None) -> Tell:
    """Returns a `Tell` for one part of a job, before which `done` of `total` were done."""
    return lambda count, _: tell(done + count, total)


def _guess(tables: Mapping[str, ExampleTable]) -> int:
    largest = max((int(table.labels.max(initial=0)) for table in tables.values()), default=0)
    if _LARGEST_GUESS < largest < MAX_CLASSES:
        _refuse_codes(tables, largest)
    return max(2, min(largest + 1, MAX_CLASSES))


def _refuse_codes(tables: Mapping[str, ExampleTable], largest: int) -> None:
    """Raises if most classes up to the largest label do not occur: labels may be codes or years."""
    num_present = len(np.unique(np.concatenate([table.labels for table in tables.values()])))
    if 2 * num_present <= largest:
        table = next(each for each in tables.values() if largest in each.labels)
        raise DataError(
            f"{table.source}: label {largest} makes {largest + 1} classes, of which {num_present} "
            f"occur; renumber the labels from 0, or pass --num-classes {largest + 1} if it is meant"
        )
