"""NumPy archives: each split is an array of images and one of labels, found by their names.

Arrays are streamed out of the zip file in blocks. They are untrusted: pickles are refused, and an
array is unpacked only if its header, directory entry and content agree.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import MAX_COUNT
from fedcli.datasets.checks import MAX_ID_BYTES, check_pixel_shape
from fedcli.datasets.importers import shared
from fedcli.datasets.importers.flat import (
    CHANNELS_FIRST,
    array_order,
    flat_shape,
    is_flat,
    order_notes,
    shaped,
)
from fedcli.datasets.importers.npz_file import (
    Array,
    Members,
    has_arrays,
    members_of,
    open_archive,
    open_values,
    read_header,
)
from fedcli.datasets.importers.object_arrays import unpickled
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.scales import Coding, Survey, check_type
from fedcli.datasets.importers.source_files import one_file
from fedcli.datasets.labels import LabelReader, count_rows
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import ConfigError, DataError, plural
from fedcli.progress import ProgressCallback
from fedcli.settings.vocabulary import SPLITS, VALIDATION

# Names of arrays, with the split as prefix or suffix: x_train, test_images, y.
IMAGES = ("x", "image", "images", "img", "imgs", "pixel", "pixels", "data", "features", "inputs")
LABELS = ("y", "label", "labels", "target", "targets")
_OWNERS = tuple(
    f"{who}{ending}"
    for who in ("client", "writer", "user", "owner")
    for ending in ("_ids", "_id", "s", "")
)
# The words before or after these names that say to which split an array belongs.
_SPLIT_WORDS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
}
_JOINED = re.compile(f"^({'|'.join(_SPLIT_WORDS)})|({'|'.join(_SPLIT_WORDS)})$")
_POSITIONAL = {"arr_0": "x", "arr_1": "y"}  # the names that numpy.savez(file, images, labels) gives

_MAX_ID_ITEMSIZE = 4 * MAX_ID_BYTES  # NumPy stores four bytes per character


@dataclass(frozen=True)
class _Set:
    """The arrays of one split.

    `image_shape` is the shape of an image, and `order` is the order of its values: the arguments of
    `flat.shaped`.
    """

    images: Array
    labels: Array
    owners: Array | None
    image_shape: tuple[int, ...]
    order: str


def recognises(path: Path) -> bool:
    """Returns whether a path is a zip file with a member named NAME.npy."""
    return path.is_file() and has_arrays(path)


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the splits of an archive.

    Args:
        sources: The archive.
        options: `label_column` and `id_column` name arrays that have no usual name. `image_shape`
            is the shape of flat rows that are not square images. `pixel_range`, `polarity`,
            `num_classes` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        ConfigError: An option names no array.
        DataError: The archive is damaged, or its arrays cannot be used.
    """
    path = one_file(sources, ".npz archive")
    with open_archive(path) as archive:
        return read_arrays(unpickled(archive, path), path, options, folder, on_progress)


def read_arrays(
    archive: Members,
    path: Path,
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the splits that named arrays hold.

    Args:
        archive: The arrays.
        path: The archive, folder or file that holds them.
        options: As `read`.
        folder: As `read`.
        on_progress: As `read`.

    Raises:
        ConfigError: As `read`.
        DataError: As `read`.
    """
    members = members_of(archive, path)
    if set(members) == set(_POSITIONAL):
        members = {_POSITIONAL[key]: info for key, info in members.items()}
    sets = _sets(archive, members, options, path)
    coding = _survey(archive, sets, options.pixel_range, on_progress)
    total = sum(each.images.shape[0] for each in sets.values())
    tables: dict[str, ExampleTable] = {}
    labels = LabelReader()
    done = 0
    for split, each in sets.items():
        report_part = shared.progress_after(on_progress, done, total)
        tables[split] = _read_set(archive, each, coding, labels, options, folder, report_part)
        done += len(tables[split])
    tables, classes = shared.number_labels(tables, labels)
    convention, why = shared.polarity_of(tables)
    return shared.imported(
        tables,
        options,
        source=str(path),
        pixel_convention=convention,
        own_classes=classes.num_hot or None,
        class_names=classes.names,
        notes=[*_notes(members, sets, coding), *_order_notes(sets, tables)],
        pixel_range=coding.range,
        evidence={
            "polarity": why,
            "range": coding.evidence,
            "splits": "arrays " + _listed({each.images.key: each.images for each in sets.values()}),
            "owners": _why_owners(sets),
            "shape": "given by --image-shape" if options.image_shape else "the shape of the arrays",
            **_why_channels(sets),
        },
        overrides={"owners": "--id-column", "shape": "--image-shape", "range": "--pixel-range"},
    )


# ---- Which arrays --------------------------------------------------------------------------------


def _sets(
    archive: Members,
    members: dict[str, zipfile.ZipInfo],
    options: ImportOptions,
    path: Path,
) -> dict[str, _Set]:
    """The arrays of each split, train first."""
    sets: dict[str, _Set] = {}
    for split in SPLITS:
        images = _find(members, IMAGES, split, path)
        labels = _find_given(members, options.label_column, LABELS, split, path, "--label-column")
        owners = _find_given(members, options.id_column, _OWNERS, split, path, "--id-column")
        if images is None and labels is None:
            continue
        if split == VALIDATION and None in (images, labels):
            continue  # an array without a partner is not used; a note says so
        if images is None or labels is None:
            missing = "labels" if labels is None else "images"
            raise DataError(
                f"{path}: no {missing} for {images or labels!r} among {_listed(members)}; name "
                "them x_train and y_train (of .npy files: x.npy and y.npy in one folder), or pass "
                "--label-column"
            )
        arrays = [
            None if key is None else read_header(archive, members[key], key, path)
            for key in (images, labels, owners)
        ]
        sets[split] = _checked(arrays, options)
    if not sets:
        raise DataError(
            f"{path}: no images and labels among {_listed(members)}; name them x and y, or "
            "x_train, y_train, x_test and y_test"
        )
    if VALIDATION in sets and "test" not in sets:
        sets["test"] = sets.pop(VALIDATION)  # the only held-out split is the test split
    return sets


def _find_given(
    members: dict[str, zipfile.ZipInfo],
    given: str | None,
    names: Sequence[str],
    split: str,
    path: Path,
    option: str,
) -> str | None:
    """Returns the key that an option names for a split, or the only key with a known name."""
    if given is None:
        return _find(members, names, split, path, f"pass {option}")
    name, given_split = _parts_of(given)
    if given in members and given_split == split:
        return given
    found = _find(members, (name,), split, path)
    if found is None and split == "train":
        raise ConfigError(f"{option} {given}: {path} holds {_listed(members)}; choose one of them")
    return found


def _find(
    members: dict[str, zipfile.ZipInfo],
    names: Sequence[str],
    split: str,
    path: Path,
    remedy: str = "leave one out",
) -> str | None:
    """Returns the only key of a split that has one of the names."""
    found = [key for key in members if _parts_of(key) in [(name, split) for name in names]]
    if len(found) > 1:
        raise DataError(
            f"{path}: {found[0]!r} and {found[1]!r} could both be used in {split}; {remedy}"
        )
    return found[0] if found else None


def _parts_of(key: str) -> tuple[str, str]:
    """Returns name and split: ("x", "test") for "x_test", "test_X", "testX" and "xtest".

    If no split is named, it is train.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[-. ]", "_", key).lower().split("_")
    if len(words) == 1:
        words = [word for word in _JOINED.split(words[0]) if word] or words
    for place in (0, -1):
        if len(words) > 1 and words[place] in _SPLIT_WORDS:
            split = _SPLIT_WORDS[words.pop(place)]
            return "_".join(words), split
    return ("_".join(words) if len(words) > 1 else key.lower()), "train"


def _listed(members: Mapping[str, object]) -> str:
    return ", ".join(map(repr, list(members)[:10])) or "no arrays"


def _why_owners(sets: Mapping[str, _Set]) -> str:
    keys = [each.owners.key for each in sets.values() if each.owners is not None]
    return f"array {keys[0]!r}" if keys else "no array of client ids"


def _notes(members: dict[str, zipfile.ZipInfo], sets: dict[str, _Set], coding: Coding) -> list[str]:
    used = {
        array.key
        for each in sets.values()
        for array in (each.images, each.labels, each.owners)
        if array is not None
    }
    unused = {key: info for key, info in members.items() if key not in used}
    notes = [] if coding.is_plain else [coding.note]
    return [*notes, f"arrays that are not used: {_listed(unused)}"] if unused else notes


def _why_channels(sets: Mapping[str, _Set]) -> dict[str, str]:
    first = next(iter(sets.values()))
    if first.order != CHANNELS_FIRST:
        return {}
    return {"channels": f"in shape {list(first.images.shape)} they come before height and width"}


def _order_notes(sets: Mapping[str, _Set], tables: Mapping[str, ExampleTable]) -> list[str]:
    """Returns a warning for each split whose flat rows seem to be in another order."""
    notes = []
    for split, each in sets.items():
        if is_flat(each.images.shape):
            notes += order_notes(tables[split].pixels, each.order, each.images.where)
    return notes


def _checked(arrays: Sequence[Array | None], options: ImportOptions) -> _Set:
    """Returns the arrays of a split after a check of their types and shapes."""
    images, labels, owners = arrays
    assert images is not None
    assert labels is not None
    check_type(images.dtype, images.where)
    set_ = _Set(images, labels, owners, *_image_shape(images, options))
    count = images.shape[0]
    if count > MAX_COUNT:
        raise DataError(f"{images.where}: has {count} images; at most {MAX_COUNT} are allowed")
    if labels.dtype.kind not in "biufUS" or labels.dtype.itemsize > _MAX_ID_ITEMSIZE:
        raise DataError(
            f"{labels.where}: labels are {labels.dtype} of shape {list(labels.shape)}; give whole "
            "numbers or names, [n]"
        )
    count_rows(labels.shape, labels.where)
    if owners is not None and (
        owners.dtype.kind not in "iuUS"
        or len(owners.shape) != 1
        or owners.dtype.itemsize > _MAX_ID_ITEMSIZE
    ):
        raise DataError(
            f"{owners.where}: client ids are {owners.dtype} of shape {list(owners.shape)}; "
            f"give whole numbers or texts of up to {MAX_ID_BYTES} characters, [n]"
        )
    if labels.shape[0] == images.shape[-1] > max(images.shape[:-1]) and len(images.shape) > 2:
        raise DataError(
            f"{images.where}: of shape {list(images.shape)}, the last axis counts the images "
            f"({labels.shape[0]}, as many as there are labels); save numpy.moveaxis(x, -1, 0)"
        )
    for array, what in ((labels, "labels"), (owners, "client ids")):
        if array is not None and array.shape[0] != count:
            raise DataError(
                f"{images.where}: {plural(count, 'image')} but {array.shape[0]} {what} in "
                f"{array.key!r}; give one for each image"
            )
    return set_


def _image_shape(images: Array, options: ImportOptions) -> tuple[tuple[int, ...], str]:
    """Returns the shape of each image, (H, W) or (H, W, C), and the order of its values."""
    if is_flat(images.shape):
        return flat_shape(math.prod(images.shape[1:]), options.image_shape, images.where)
    check_pixel_shape(images.shape, images.where)
    return array_order(images.shape)


# ---- Contents of the arrays ----------------------------------------------------------------------


def _survey(
    archive: Members, sets: dict[str, _Set], pixel_range: str | None, on_progress: ProgressCallback
) -> Coding:
    """Returns how the pixels of all splits are to be coded."""
    images = [each.images for each in sets.values()]
    survey = Survey(pixel_range)
    for each in images:
        with open_values(archive, each) as values:
            for first, last in shared.blocks(each.shape[0], each.shape[1:], each.dtype.itemsize):
                survey.add(values.read(last - first), first, each.where)
                on_progress(0, None)
    return survey.coding()


def _read_set(
    archive: Members,
    arrays: _Set,
    coding: Coding,
    label_reader: LabelReader,
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> ExampleTable:
    """The images of one split with codes of labels and owners."""
    images, owners = arrays.images, arrays.owners
    num_ids_bytes = owners.dtype.itemsize if owners else 0
    num_bytes = images.dtype.itemsize * math.prod(images.shape[1:]) + num_ids_bytes
    with (
        TableWriter(images.where, folder, fit=options.fit) as writer,
        open_values(archive, images) as pixel_values,
        open_values(archive, arrays.labels) as label_values,
        open_values(archive, owners) if owners else nullcontext() as owner_values,
    ):
        for first, last in shared.blocks(images.shape[0], (num_bytes,)):
            labels = label_reader.add(label_values.read(last - first), arrays.labels.where, first)
            pixels = coding.pack(pixel_values.read(last - first))
            writer.add(
                shaped(pixels, arrays.image_shape, arrays.order),
                labels,
                scale=coding.scale,
                offset=coding.offset,
                owners=owner_values.read_ids(last - first) if owner_values else None,
            )
            on_progress(last, None)
        return writer.table()
