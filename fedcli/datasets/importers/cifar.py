"""CIFAR-10 and CIFAR-100 in their binary version (Krizhevsky 2009).

A file consists of records without a header. A record is one byte of label (CIFAR-100: two bytes,
coarse and fine), then 32 x 32 bytes of red, of green and of blue, each row by row. For CIFAR-100
the fine labels are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import first_outside
from fedcli.datasets.importers import shared
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.source_files import any_file, files_of, start_of
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import DataError
from fedcli.files import open_regular
from fedcli.progress import ProgressCallback

_SIDE, _CHANNELS = 32, 3
_IMAGE_BYTES = _SIDE * _SIDE * _CHANNELS
_NUM_SAMPLED = 64  # records whose labels show whether a file is of CIFAR
_MAX_NAMES_BYTES = 1 << 16


@dataclass(frozen=True)
class _Kind:
    """One of the two sets.

    Attributes:
        title: Its name.
        label_sizes: For each label byte at the start of a record, its number of possible labels.
            The label in the last of these bytes is used.
        names_file: The file of class names, one per line.
    """

    title: str
    label_sizes: tuple[int, ...]
    names_file: str

    @property
    def num_classes(self) -> int:
        return self.label_sizes[-1]

    @property
    def record_bytes(self) -> int:
        return len(self.label_sizes) + _IMAGE_BYTES


_KINDS = (
    _Kind("CIFAR-10", (10,), "batches.meta.txt"),
    _Kind("CIFAR-100", (20, 100), "fine_label_names.txt"),
)


def recognises(path: Path) -> bool:
    """Returns whether a path is a binary CIFAR file or a folder that directly holds some."""
    return any_file(path, lambda each: _kind_of(each) is not None)


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the records of some files. Files with "test" in the name are the test split.

    Args:
        sources: A folder or the files; class names are found beside them.
        options: `polarity`, `num_classes` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        DataError: A file is damaged, or files are of both CIFAR-10 and CIFAR-100.
    """
    kind, paths = _choose_files(sources)
    total = sum(path.stat().st_size // kind.record_bytes for path in paths)
    tables: dict[str, ExampleTable] = {}
    done = 0
    for split in ("train", "test"):
        of_split = [path for path in paths if ("test" in path.name.lower()) == (split == "test")]
        if of_split:
            report_part = shared.progress_after(on_progress, done, total)
            tables[split] = _read_split(of_split, kind, options, folder, report_part)
            done += len(tables[split])
    return shared.imported(
        tables,
        options,
        source=kind.title if len(sources) > 1 else str(sources[0]),
        pixel_convention="ink",
        own_classes=kind.num_classes,
        are_numbered=True,
        class_names=_class_names(paths[0].parent / kind.names_file),
        evidence={
            "splits": "files with test in the name are test",
            "classes": f"the set is {kind.title}",
            "owners": "the records name no owners",
            "shape": f"the records of {kind.title}",
            "polarity": "light is 1.0 in colour images",
        },
    )


def _choose_files(sources: Sequence[Path]) -> tuple[_Kind, list[Path]]:
    """Returns which of the two sets the sources are, and their files in numerical order."""
    kinds = {path: _kind_of(path) for path in files_of(sources)}
    first = next((path for path, kind in kinds.items() if kind is not None), None)
    if first is None:
        raise DataError(
            f"{sources[0]}: holds no records of CIFAR-10 ({_KINDS[0].record_bytes} bytes each) nor "
            f"of CIFAR-100 ({_KINDS[1].record_bytes}); give complete files of the binary version"
        )
    kind = kinds[first]
    assert kind is not None
    paths = [path for path, each in kinds.items() if each or path.suffix.lower() == ".bin"]
    for path in paths:
        other = kinds[path] or kind
        if other is not kind:
            raise DataError(
                f"{first} is of {kind.title} but {path} is of {other.title}; give the files of one "
                "set"
            )
        if path.stat().st_size % kind.record_bytes:
            raise DataError(
                f"{path}: {path.stat().st_size} bytes are not a whole number of {kind.title}'s "
                f"records of {kind.record_bytes}; fetch it again, or leave it out"
            )
    return kind, sorted(paths, key=lambda path: shared.natural_sort_key(path.name))


def _kind_of(path: Path) -> _Kind | None:
    """Returns the set of a file, judged by its first labels, because there is no signature."""
    size = path.stat().st_size
    with open_regular(path) as file:
        for kind in _KINDS:
            num_records = min(_NUM_SAMPLED, size // kind.record_bytes)
            # A few labels may be valid by chance, so a file whose last record is incomplete must
            # have at least `_NUM_SAMPLED` records.
            if num_records < (_NUM_SAMPLED if size % kind.record_bytes else 1):
                continue
            places = range(0, num_records * kind.record_bytes, kind.record_bytes)
            if all(_has_labels(file, place, kind) for place in places):
                return kind
    return None


def _has_labels(file: BinaryIO, place: int, kind: _Kind) -> bool:
    file.seek(place)
    found = file.read(len(kind.label_sizes))
    return all(label < size for label, size in zip(found, kind.label_sizes, strict=True))


def _read_split(
    paths: Sequence[Path],
    kind: _Kind,
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> ExampleTable:
    """The records of some files, one file after the other."""
    source = str(paths[0] if len(paths) == 1 else paths[0].parent)
    with TableWriter(source, folder, fit=options.fit) as writer:
        for path in paths:
            num_records = path.stat().st_size // kind.record_bytes
            with open_regular(path) as file:
                for first, last in shared.blocks(num_records, (kind.record_bytes,)):
                    content = file.read((last - first) * kind.record_bytes)
                    pixels, labels = _unpack(content, kind, path, first)
                    writer.add(pixels, labels, scale=1 / 255, offset=0.0, where=str(path))
                    on_progress(writer.num_examples, None)
        return writer.table()


def _unpack(
    content: bytes, kind: _Kind, path: Path, first: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [k, 32, 32, 3] and labels [k] of a block of records."""
    if len(content) % kind.record_bytes:
        raise DataError(f"{path}: became shorter while it was read; fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, kind.record_bytes)
    num_labels = len(kind.label_sizes)
    labels = records[:, num_labels - 1]
    index = first_outside(labels, kind.num_classes)
    if index is not None:
        raise DataError(
            f"{path}: record {first + index}: label {labels[index]} is outside 0 to "
            f"{kind.num_classes - 1} of {kind.title}; fetch it again"
        )
    planes = records[:, num_labels:].reshape(-1, _CHANNELS, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _class_names(path: Path) -> list[str]:
    """Returns the names in a file, one per line; empty if there is no such file."""
    if not path.is_file():
        return []
    lines = start_of(path, _MAX_NAMES_BYTES).decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]
