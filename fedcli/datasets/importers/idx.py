"""IDX files, the format of MNIST and its relatives, and QMNIST's tables of MNIST's writers.

Images are [n, H, W] or [n, H, W, C], labels [n]. QMNIST's table is int32 [n, 8] with the class in
column 0 and the writer in column 2 (Yadav and Bottou, "Cold Case: The Lost MNIST Digits", NeurIPS
2019, https://arxiv.org/abs/1905.10498).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.checks import check_pixel_shape
from fedcli.datasets.importers import shared
from fedcli.datasets.importers.idx_file import IdxFile, has_signature, open_values, read_header
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.scales import Coding, Survey
from fedcli.datasets.importers.source_files import any_file, files_of
from fedcli.datasets.labels import CHARACTER_NAMES, check_classes, whole_numbers
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import DataError, plural
from fedcli.progress import ProgressCallback

_TABLE_COLUMNS = 8
_CLASS, _WRITER = 0, 2  # columns
# Parts of a file's name that describe its content, not the set it belongs to.
_PLAIN_PARTS = re.compile(r"gz|idx\d?|u?byte|int|images?|labels?|qmnist")
_TEST_PARTS = {"test", "t10k"}


@dataclass(frozen=True)
class _Set:
    """The files of one split; without a file of labels, `writers` has the labels."""

    images: IdxFile
    labels: IdxFile | None
    writers: IdxFile | None


def recognises(path: Path) -> bool:
    """Returns whether a path is an IDX file or a folder that directly holds some."""
    return any_file(path, has_signature)


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the images of a folder or of several files with their labels and writers.

    Files are matched by their names (`train-images…`, `train-labels…`), else by their counts;
    "t10k" or "test" in a name makes the split "test".

    Args:
        sources: A folder or the files, raw or gzip.
        options: `pixel_range`, `polarity`, `num_classes` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        DataError: A file is damaged, or files do not go together.
    """
    sets, notes = _sets(_headers(sources))
    total = sum(each.images.shape[0] for each in sets.values())
    coding = _survey([each.images for each in sets.values()], options.pixel_range, on_progress)
    if not coding.is_plain:
        notes.append(coding.note)
    tables: dict[str, ExampleTable] = {}
    done = 0
    for split, each in sets.items():
        table = _read_set(
            each, coding, options, folder, shared.progress_after(on_progress, done, total)
        )
        done += len(table)
        tables[split] = table
    parts = {part for each in sets.values() for part in _parts(each.images)}
    notes += [
        f"owners of {name} are the writers in {each.writers.path}"
        for name, each in sets.items()
        if each.writers
    ]
    if "emnist" in parts:
        notes.append(
            "EMNIST's files hold images with rows and columns swapped; they were swapped back"
        )
    is_by_class = {"emnist", "byclass"} <= parts
    return shared.imported(
        tables,
        options,
        source=str(sources[0]) if len(sources) == 1 else str(sets[next(iter(sets))].images.path),
        pixel_convention="ink",
        own_classes=len(CHARACTER_NAMES) if is_by_class else None,
        are_numbered=True,
        class_names=CHARACTER_NAMES if is_by_class else (),
        # MNIST's train digits and test digits were written by different people.
        same_people=not all(each.writers for each in sets.values()) or len(sets) == 1,
        notes=notes,
        pixel_range=coding.range,
        evidence={
            "range": coding.evidence,
            "splits": "files " + ", ".join(each.images.path.name for each in sets.values()),
            "owners": _why_owners(sets),
            "shape": "stated in the header of the file",
            "polarity": "MNIST's files have light ink",
        },
        overrides={"range": "--pixel-range"},
    )


# ---- Which files, and which belong together ------------------------------------------------------


def _headers(sources: Sequence[Path]) -> list[IdxFile]:
    """Returns the checked headers of all IDX files; a folder may hold other files."""
    paths = files_of(sources)
    raw = {path for path in paths if path.suffix.lower() != ".gz"}
    headers = []
    for path in paths:
        if path.with_suffix("") in raw and path not in raw:
            continue  # the same file, compressed
        is_named = path in sources or re.search(r"idx\d", path.name.lower())
        if is_named or has_signature(path):
            headers.append(read_header(path))
    if not headers:
        raise DataError(f"{sources[0]}: holds no IDX files; give images and their labels")
    return headers


def _sets(headers: Sequence[IdxFile]) -> tuple[dict[str, _Set], list[str]]:
    """The files of each split, train first, and notes."""
    for each in headers:
        if not (_is_images(each) or _is_labels(each) or _is_writers(each)):
            raise DataError(
                f"{each.path}: holds {each.dtype.name} of shape {list(each.shape)}; only images "
                "[n, H, W], labels [n] and QMNIST's table [n, 8] are read; leave this file out"
            )
    images = [each for each in headers if _is_images(each)]
    labels = [each for each in headers if _is_labels(each)]
    writers = [each for each in headers if _is_writers(each)]
    if not images:
        raise DataError(f"{headers[0].path}: labels without images; give the file of images too")
    sets: dict[str, _Set] = {}
    for each in images:
        table = _match(each, images, writers, "writers")
        found = _match(each, images, labels, "labels") or _match_count(each, images, labels)
        if found is None and table is None:
            raise DataError(f"{each.path}: images without labels; give the file of labels too")
        split = _split(each)
        if split in sets:
            raise DataError(
                f"{sets[split].images.path} and {each.path} are both split {split!r}; "
                "give the files of one set"
            )
        sets[split] = _checked(_Set(each, found, table))
    used = {each.labels for each in sets.values()} | {each.writers for each in sets.values()}
    for each in labels:
        if each not in used:
            raise DataError(
                f"{each.path}: labels without images; give the file of images too, or leave it out"
            )
    notes = [
        f"{each.path}: not used, because there are no images of its writers"
        for each in writers
        if each not in used
    ]
    return {name: sets[name] for name in ("train", "test") if name in sets}, notes


def _match(
    image: IdxFile, images: Sequence[IdxFile], others: Sequence[IdxFile], what: str
) -> IdxFile | None:
    """Returns the only one of `others` whose name matches the name of `image`, or None."""
    same = [each for each in others if _key(each) == _key(image)]
    rivals = [each for each in images if _key(each) == _key(image)]
    if same and len(rivals) > 1:
        raise DataError(
            f"{rivals[0].path} and {rivals[1].path} both match {same[0].path}; "
            "give the files of one set"
        )
    if len(same) > 1:
        raise DataError(
            f"{same[0].path} and {same[1].path} are both {what} of {image.path}; "
            "give the files of one set"
        )
    return same[0] if same else None


def _match_count(
    image: IdxFile, images: Sequence[IdxFile], labels: Sequence[IdxFile]
) -> IdxFile | None:
    """Returns the only unmatched file of labels with as many labels as there are images."""
    keys = [_key(each) for each in images]
    free = [each for each in labels if _key(each) not in keys and each.shape[0] == image.shape[0]]
    label_keys = [_key(each) for each in labels]
    rivals = [
        each for each in images if _key(each) not in label_keys and each.shape[0] == image.shape[0]
    ]
    if len(free) == 1 and len(rivals) > 1:
        raise DataError(
            f"{rivals[0].path} and {rivals[1].path} both match {free[0].path}; "
            "give the files of one set"
        )
    return free[0] if len(free) == 1 else None


def _parts(file: IdxFile) -> list[str]:
    """Returns the words of a name that identify its set: "train", or "emnist", "digits", "test"."""
    words = re.split(r"[^a-z0-9]+", file.path.name.lower())
    return [word for word in words if word and not _PLAIN_PARTS.fullmatch(word)]


def _key(file: IdxFile) -> list[str]:
    """Returns `_parts`, with every word for a test split replaced by the same word."""
    return ["test" if part in _TEST_PARTS else part for part in _parts(file)]


def _split(file: IdxFile) -> str:
    return "test" if "test" in _key(file) else "train"


def _why_owners(sets: Mapping[str, _Set]) -> str:
    paths = [each.writers.path.name for each in sets.values() if each.writers is not None]
    return f"the writers in {', '.join(paths)}" if paths else "no table of writers"


def _is_images(file: IdxFile) -> bool:
    return len(file.shape) >= 3


def _is_labels(file: IdxFile) -> bool:
    return len(file.shape) in (1, 2) and math.prod(file.shape[1:]) == 1


def _is_writers(file: IdxFile) -> bool:
    return file.dtype.str == ">i4" and file.shape[1:] == (_TABLE_COLUMNS,)


def _checked(files: _Set) -> _Set:
    """Returns the files of a set after a check that their counts agree."""
    count = files.images.shape[0]
    check_pixel_shape(files.images.shape, str(files.images.path))
    if files.labels is not None and files.labels.shape[0] != count:
        raise DataError(
            f"{files.images.path}: {plural(count, 'image')} but "
            f"{plural(files.labels.shape[0], 'label')} in {files.labels.path}; give files that "
            "belong together"
        )
    if files.writers is not None:
        rows = files.writers.shape[0]
        # QMNIST reconstructed 60,000 test digits, of which the first 10,000 are MNIST's.
        is_longer = rows > count and _split(files.images) == "test"
        if rows != count and not is_longer:
            raise DataError(
                f"{files.images.path}: {plural(count, 'image')} but {plural(rows, 'row')} in "
                f"{files.writers.path}; give files that belong together"
            )
    return files


# ---- Contents of the files -----------------------------------------------------------------------


def _survey(
    images: Sequence[IdxFile], pixel_range: str | None, on_progress: ProgressCallback
) -> Coding:
    """Returns how the pixels of all splits are to be coded."""
    survey = Survey(pixel_range)
    for each in images:
        with open_values(each) as values:
            for first, last in shared.blocks(each.shape[0], each.shape[1:], each.dtype.itemsize):
                survey.add(values.read(last - first), first, str(each.path))
                on_progress(0, None)
    return survey.coding()


def _read_set(
    files: _Set,
    coding: Coding,
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> ExampleTable:
    """The images of one split with labels and owners."""
    images = files.images
    is_transposed = "emnist" in _parts(images)
    where = str((files.labels or images).path)
    with (
        TableWriter(str(images.path), folder, fit=options.fit) as writer,
        open_values(images) as pixel_values,
        open_values(files.labels) if files.labels else nullcontext() as label_values,
        open_values(files.writers) if files.writers else nullcontext() as rows,
    ):
        for first, last in shared.blocks(images.shape[0], images.shape[1:], images.dtype.itemsize):
            labels: NDArray[Any] | None = None
            if label_values is not None:
                labels = whole_numbers(label_values.read(last - first), where, first)
            owners = None
            if rows is not None:
                labels, owners = _join(files, rows.read(last - first), labels, first)
            assert labels is not None
            check_classes(labels, where, first)
            pixels = coding.pack(pixel_values.read(last - first))
            writer.add(
                pixels.swapaxes(1, 2) if is_transposed else pixels,
                labels,
                scale=coding.scale,
                offset=coding.offset,
                owners=owners,
            )
            on_progress(last, None)
        return writer.table()


def _join(
    files: _Set, rows: NDArray[Any], labels: NDArray[Any] | None, first: int
) -> tuple[NDArray[Any], list[str]]:
    """Returns labels and owners of a block of images from the table of writers.

    Checks that the table's labels agree with the file of labels.
    """
    assert files.writers is not None
    where = str(files.writers.path)
    classes, writers = rows[:, _CLASS], rows[:, _WRITER]
    if labels is not None and (classes != labels).any():
        index = int((classes != labels).argmax())
        raise DataError(
            f"{where}: row {first + index} is of class {classes[index]} but the label is "
            f"{labels[index]}; the table does not belong to {files.images.path}, so leave it out"
        )
    if (writers < 0).any():
        index = int((writers < 0).argmax())
        raise DataError(
            f"{where}: row {first + index}: writer {writers[index]} is below 0; correct the table"
        )
    return classes, [f"w{writer:04d}" for writer in writers.tolist()]
