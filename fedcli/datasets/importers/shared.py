"""What all formats need: number and names of classes, what a pixel of 1.0 is, checks of ids."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.batches import decode, first_outside
from fedcli.datasets.checks import MAX_CLASSES, MAX_ID_BYTES, bad_label
from fedcli.datasets.importers import describing
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.table import ExampleTable
from fedcli.errors import DataError
from fedcli.progress import Tell

BLOCK_BYTES = 8 << 20  # of pixels read at a time
_BLOCK_IMAGES = 1 << 16  # at most, however small they are

NUM_DIGITS = 10
# Without a number of classes, larger labels are taken for codes: ImageNet has 1000 classes.
_LARGEST_GUESS = 1000
# EMNIST's order: digits, capitals, small letters.
CHARACTER_NAMES = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)


def imported(
    tables: dict[str, ExampleTable],
    options: ImportOptions,
    *,
    source: str,
    pixel_convention: str,
    own_classes: int | None = None,
    class_names: Sequence[str] = (),
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
        is_emnist: Whether labels are those of EMNIST: 10 classes if all are digits, else 62.
        same_people: Whether equal ids in train and test are the same people.
        licence: As the source says.
        notes: What was decided so far.
        pixel_range: From what to what pixels go in the source, where the tables do not show it.
        evidence: By subject of `SourceDescription`: what decided; for the others there are
            sentences of their own.
        overrides: By subject: the option that decides otherwise; "" for none.

    Raises:
        DataError: A label lies outside the classes, or is far too large for the number of a class.
    """
    names = tuple(class_names)
    known = options.num_classes or own_classes or len(names)
    num_classes = known or _guess(tables, is_emnist)
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
        is_guessed=not (known or is_emnist),
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


def check_block_labels(labels: NDArray[Any], first: int, where: str) -> None:
    """Checks a block of integer labels [k] as far as any number of classes allows.

    Args:
        labels: In the type they are stored in.
        first: The index of the first of them in the source.
        where: Starts the message.

    Raises:
        DataError: A label is negative or too large for a class.
    """
    index = first_outside(labels, MAX_CLASSES)
    if index is not None:
        raise DataError(
            f"{where}: example {first + index}: label {labels[index]} cannot be a class; classes "
            f"are 0 to {MAX_CLASSES - 1}, mend the data"
        )


def check_id(client_id: str, where: str) -> str:
    """Returns an id that a store can keep.

    Raises:
        DataError: It is empty, too long, or holds a zero byte or half a character.
    """
    if not _is_name(client_id):
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
    if not _is_name(name):
        raise DataError(
            f"{where}: class {name[:40]!r}: a name has 1 to {MAX_ID_BYTES} bytes of UTF-8 and no "
            "zero byte; rename the class"
        )
    return name


def polarity_of(tables: Mapping[str, ExampleTable]) -> tuple[str, str]:
    """Returns what 1.0 seems to be in images nobody describes, "ink" or "background", and why.

    Colour images are "ink". Grey images are "background" if the median pixel of their borders is
    light.
    """
    num_light = num_border = 0
    for table in tables.values():
        if table.pixels.ndim == 4 and table.pixels.shape[-1] > 1:
            return "ink", "light is 1.0 in colour images"
        for first, last in blocks(len(table), table.pixels.shape[1:], table.pixels.itemsize):
            border = _border(table.pixels[first:last])
            num_border += border.size
            num_light += int(np.count_nonzero(decode(border, table.scale, table.offset) > 0.5))
    share = 100 * num_light / max(num_border, 1)
    is_light = 2 * num_light > num_border
    return "background" if is_light else "ink", f"{share:.0f} % of the border pixels are light"


def blocks(num_images: int, shape: Sequence[int], itemsize: int = 1) -> Iterator[tuple[int, int]]:
    """Yields (first, last) of blocks of images of a shape, each of about `BLOCK_BYTES`."""
    size = min(max(1, BLOCK_BYTES // max(1, math.prod(shape) * itemsize)), _BLOCK_IMAGES)
    for first in range(0, num_images, size):
        yield first, min(first + size, num_images)


def tell_after(tell: Tell, done: int, total: int | None) -> Tell:
    """Returns a `Tell` for one part of a job, before which `done` of `total` were done."""
    return lambda count, _: tell(done + count, total)


def _is_name(text: str) -> bool:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return False
    return 1 <= len(encoded) <= MAX_ID_BYTES and b"\0" not in encoded


def _guess(tables: Mapping[str, ExampleTable], is_emnist: bool) -> int:
    largest = max((int(table.labels.max(initial=0)) for table in tables.values()), default=0)
    if is_emnist:
        return NUM_DIGITS if largest < NUM_DIGITS else len(CHARACTER_NAMES)
    if _LARGEST_GUESS < largest < MAX_CLASSES:
        _refuse_codes(tables, largest)
    return max(2, min(largest + 1, MAX_CLASSES))


def _refuse_codes(tables: Mapping[str, ExampleTable], largest: int) -> None:
    """Raises where most classes up to the largest label are absent: labels are codes, or years."""
    num_present = len(np.unique(np.concatenate([table.labels for table in tables.values()])))
    if 2 * num_present <= largest:
        table = next(each for each in tables.values() if largest in each.labels)
        raise DataError(
            f"{table.source}: label {largest} makes {largest + 1} classes, of which {num_present} "
            f"occur; renumber the labels from 0, or pass --num-classes {largest + 1} if it is meant"
        )


def _border(pixels: Any) -> Any:
    """The outermost pixels of each image [k, H, W, ...], flat."""
    flat = [pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]]
    return np.concatenate([np.asarray(side).reshape(-1) for side in flat])
