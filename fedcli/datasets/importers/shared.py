"""Functions that the formats share: number and names of classes, meaning of 1.0, checks of ids."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedcli.datasets.batches import first_outside
from fedcli.datasets.checks import MAX_ID_BYTES, bad_class_name, bad_label, is_name
from fedcli.datasets.importers import describing
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.labels import CHARACTER_NAMES, Classes, LabelReader
from fedcli.datasets.polarity import Border
from fedcli.datasets.table import ExampleTable
from fedcli.errors import DataError
from fedcli.progress import ProgressCallback
from fedcli.settings.vocabulary import MAX_CLASSES

BLOCK_BYTES = 8 << 20  # bytes of pixels read at a time
_BLOCK_IMAGES = 1 << 16  # largest number of images read at a time

NUM_DIGITS = 10
# If a label exceeds this and most classes do not occur, labels may be codes; ImageNet has 1000
# classes.
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
        tables: The tables by split, "train" first.
        options: The options. If they give a number of classes, it overrides `own_classes`.
        source: A text that says where the data come from.
        pixel_convention: The meaning of 1.0.
        own_classes: The number of classes that the source states, if it does.
        class_names: A name for each class, or no names.
        are_numbered: Whether the labels in the source are numbers, with or without names.
        is_emnist: Whether the examples are EMNIST's. Then 62 classes are its characters.
        same_people: Whether equal ids in train and test are the same people.
        licence: The licence that the source states.
        notes: The notes so far.
        pixel_range: The range of pixels in the source, if the tables do not show it.
        evidence: The evidence for each subject of a `SourceDescription`; subjects left out have a
            default text.
        overrides: The option that overrides each subject; "" for none.

    Raises:
        DataError: A label is outside the classes, or too large to be the number of a class.
    """
    names = tuple(class_names)
    known = options.num_classes or own_classes or len(names)
    num_classes = known or _guess(tables)
    for table in tables.values():
        check_table_labels(table, num_classes)
    if is_emnist and num_classes == len(CHARACTER_NAMES):
        names = names or CHARACTER_NAMES
    if names and len(names) != num_classes:
        notes = (
            *notes,
            f"{len(names)} class names for {num_classes} classes, so the names were left out",
        )
        names = ()
    why = {"classes": describing.why_classes(options, own_classes, names, is_emnist)}
    why |= evidence or {}
    if options.polarity is not None:
        pixel_convention, why["polarity"] = options.polarity, "given by --polarity"
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
        DataError: A label is outside the classes. The message names the source, the owner and the
            index of the example (within its owner, if it has one).
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
    """Returns the tables with class numbers as labels, and the classes.

    Args:
        tables: The tables by split, whose labels are codes of the reader.
        reader: The reader, which has read the labels of all tables.

    Raises:
        DataError: See `LabelReader.classes`.
    """
    classes = reader.classes(table.labels for table in tables.values())
    numbered = {
        split: replace(table, labels=classes.number(table.labels))
        for split, table in tables.items()
    }
    return numbered, classes


def check_id(client_id: str, where: str) -> str:
    """Returns a client id after checking that a store can hold it.

    Raises:
        DataError: It is empty, too long, not valid Unicode, or holds a zero byte.
    """
    if not is_name(client_id):
        raise DataError(
            f"{where}: client id {client_id[:40]!r}: an id must have 1 to {MAX_ID_BYTES} bytes of "
            "UTF-8 and no zero byte; rename the client"
        )
    return client_id


def check_class_name(name: str, where: str) -> str:
    """Returns a class's name that a store can keep.

    Raises:
        DataError: It is empty, too long, not valid Unicode, or holds a zero byte.
    """
    if not is_name(name):
        raise bad_class_name(name, where)
    return name


def polarity_of(tables: Mapping[str, ExampleTable]) -> tuple[str, str]:
    """Estimates from images whether 1.0 is "ink" or "background"; also returns the evidence.

    Colour images are "ink". Grey images are "background" if most pixels of their borders are light.
    If about half of these pixels are light, the images are "background" if their borders are
    clearly lighter than their centres. If the two hardly differ, more than half decides.
    """
    if any(table.pixels.ndim == 4 and table.pixels.shape[-1] > 1 for table in tables.values()):
        return "ink", "light is 1.0 in colour images"
    border = border_of(tables)
    decided = border.decide() or ("background" if border.share > 0.5 else "ink")
    return decided, border.evidence


def border_of(tables: Mapping[str, ExampleTable]) -> Border:
    """Returns the comparison of the borders of grey images with their centres."""
    border = Border()
    for table in tables.values():
        for first, last in blocks(len(table), table.pixels.shape[1:], table.pixels.itemsize):
            border.add(np.asarray(table.pixels[first:last]), table.scale, table.offset)
    return border


def blocks(num_images: int, shape: Sequence[int], itemsize: int = 1) -> Iterator[tuple[int, int]]:
    """Yields (first, last) of blocks of images of a shape, each of about `BLOCK_BYTES`."""
    size = min(max(1, BLOCK_BYTES // max(1, math.prod(shape) * itemsize)), _BLOCK_IMAGES)
    for first in range(0, num_images, size):
        yield first, min(first + size, num_images)


def natural_sort_key(name: str) -> list[tuple[int, str]]:
    """Returns the key that sorts data_batch_2 before data_batch_10."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def progress_after(on_progress: ProgressCallback, done: int, total: int | None) -> ProgressCallback:
    """Returns a callback for a later part of a job: it adds `done`, and tells the whole `total`."""
    return lambda count, _: on_progress(done + count, total)


def _guess(tables: Mapping[str, ExampleTable]) -> int:
    largest = max((int(table.labels.max(initial=0)) for table in tables.values()), default=0)
    if _LARGEST_GUESS < largest < MAX_CLASSES:
        _refuse_codes(tables, largest)
    return max(2, min(largest + 1, MAX_CLASSES))


def _refuse_codes(tables: Mapping[str, ExampleTable], largest: int) -> None:
    """Refuses labels if most classes do not occur: the labels may be codes or years."""
    num_present = len(np.unique(np.concatenate([table.labels for table in tables.values()])))
    if 2 * num_present <= largest:
        table = next(each for each in tables.values() if largest in each.labels)
        raise DataError(
            f"{table.source}: label {largest} needs {largest + 1} classes, of which only "
            f"{num_present} occur; renumber the labels from 0, or pass --num-classes "
            f"{largest + 1} if that is right"
        )
