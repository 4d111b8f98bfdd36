"""STL-10 in its binary version (Coates, Lee and Ng 2011): train_X.bin, train_y.bin and so on.

Files have no header. An image in an X file is 96 x 96 bytes of red, then of green and of blue, each
plane column by column. A label in a y file is one byte, 1 to 10. `unlabeled_X.bin` has no labels
and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.importers import shared, split_names
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.source_files import any_file, files_of, start_of
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import DataError
from fedcli.files import open_regular
from fedcli.progress import ProgressCallback
from fedcli.settings.vocabulary import SPLITS

_SIDE, _CHANNELS, _NUM_CLASSES = 96, 3, 10
_IMAGE_BYTES = _SIDE * _SIDE * _CHANNELS
_IMAGES, _LABELS = "_X", "_y"  # how the names of the files end
_NAMES = "class_names.txt"
_MAX_NAMES_BYTES = 1 << 16


def recognises(path: Path) -> bool:
    """Returns whether a path is a file of images with labels beside it, or a folder with some."""
    return any_file(path, lambda each: _labels_of(each) is not None)


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the images of a folder or of some files. A file's name gives its split.

    Args:
        sources: A folder or the files of images; labels and names are found beside them.
        options: `polarity`, `num_classes` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        DataError: A file is damaged, or a label is not valid.
        OSError: A file cannot be read, or the disk is full.
    """
    splits = _find(sources)
    total = sum(images.stat().st_size // _IMAGE_BYTES for images, _ in splits.values())
    tables: dict[str, ExampleTable] = {}
    done = 0
    for split, (images, labels) in splits.items():
        report_part = shared.progress_after(on_progress, done, total)
        tables[split] = _read_split(images, labels, options, folder, report_part)
        done += len(tables[split])
    first = splits[next(iter(splits))][0]
    names = first.with_name(_NAMES)
    is_there = names.is_file()
    lines = start_of(names, _MAX_NAMES_BYTES).decode(errors="replace").split() if is_there else []
    return shared.imported(
        tables,
        options,
        source=str(sources[0]),
        pixel_convention="ink",
        own_classes=_NUM_CLASSES,
        are_numbered=True,
        class_names=lines,
        notes=_notes(sources, splits),
        evidence={
            "splits": "files " + ", ".join(images.name for images, _ in splits.values()),
            "classes": "the set is STL-10, whose labels 1 to 10 become 0 to 9",
            "owners": "the files name no owners",
            "shape": "the records of STL-10",
            "polarity": "light is 1.0 in colour images",
        },
    )


def _find(sources: Sequence[Path]) -> dict[str, tuple[Path, Path]]:
    """The images and labels of each split, train first."""
    pairs = {path: _labels_of(path) for path in files_of(sources)}
    found = {images: labels for images, labels in pairs.items() if labels is not None}
    if not found:
        raise DataError(
            f"{sources[0]}: has no images of STL-10 ({_IMAGE_BYTES:,} bytes each) with as many "
            "labels; give both, such as train_X.bin and train_y.bin"
        )
    kinds = split_names.assign([path.stem for path in found], str(sources[0]))
    splits = {kinds.get(path.stem, "train"): (path, labels) for path, labels in found.items()}
    if len(splits) == 1:
        return {"train": next(iter(splits.values()))}
    return {split: splits[split] for split in SPLITS if split in splits}


def _labels_of(path: Path) -> Path | None:
    """Returns the labels beside a file of images, or None if there are none."""
    if not path.stem.endswith(_IMAGES) or path.suffix.lower() != ".bin":
        return None
    labels = path.with_name(path.stem.removesuffix(_IMAGES) + _LABELS + path.suffix)
    count, rest = divmod(path.stat().st_size, _IMAGE_BYTES)
    is_whole = count > 0 and not rest and labels.is_file() and labels.stat().st_size == count
    return labels if is_whole else None


def _read_split(
    images: Path,
    labels: Path,
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> ExampleTable:
    with (
        TableWriter(str(images), folder, fit=options.fit) as writer,
        open_regular(images) as pixel_file,
        open_regular(labels) as label_file,
    ):
        count = images.stat().st_size // _IMAGE_BYTES
        for first, last in shared.blocks(count, (_IMAGE_BYTES,)):
            content = pixel_file.read((last - first) * _IMAGE_BYTES)
            values = np.frombuffer(label_file.read(last - first), np.uint8)
            if len(content) != (last - first) * _IMAGE_BYTES or len(values) != last - first:
                raise DataError(f"{images}: became shorter while it was read; fetch it again")
            _check(values, labels, first)
            writer.add(_upright(content), values - 1, scale=1 / 255, offset=0.0)
            on_progress(last, None)
        return writer.table()


def _upright(content: bytes) -> NDArray[np.uint8]:
    """Images [k, 96, 96, 3] from records whose planes are stored column by column."""
    planes = np.frombuffer(content, np.uint8).reshape(-1, _CHANNELS, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 3, 2, 1))


def _check(values: NDArray[np.uint8], path: Path, first: int) -> None:
    is_wrong = (values < 1) | (values > _NUM_CLASSES)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise DataError(
            f"{path}: example {first + index}: label {values[index]} is outside 1 to "
            f"{_NUM_CLASSES} of STL-10; fetch it again"
        )


def _notes(sources: Sequence[Path], splits: Mapping[str, tuple[Path, Path]]) -> list[str]:
    used = {images for images, _ in splits.values()}
    left = [
        path.name
        for path in files_of(sources)
        if path.stem.endswith(_IMAGES) and path.suffix.lower() == ".bin" and path not in used
    ]
    return [f"not used, because they have no labels: {', '.join(left)}"] if left else []
