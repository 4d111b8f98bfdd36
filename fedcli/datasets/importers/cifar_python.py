"""The Python version of CIFAR-10 and CIFAR-100: pickles, which are parsed but never executed.

A file is a dictionary of `data`, uint8 [n, 3072], and of `labels` or `fine_labels`. Each row of
`data` has all red values first. The file with `label_names` or `fine_label_names` has the names of
the classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.importers import plain_pickle, shared
from fedcli.datasets.importers.flat import CHANNELS_FIRST, shaped
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.source_files import any_file, files_of, start_of
from fedcli.datasets.labels import LabelReader
from fedcli.datasets.table import TableWriter
from fedcli.errors import DataError, plural
from fedcli.progress import ProgressCallback

_LABELS = ("labels", "fine_labels")
_NAMES = ("label_names", "fine_label_names")
_SHAPE = (32, 32, 3)
_MAX_SEARCHED_BYTES = 1 << 16
_PROTOCOLS = range(6)
_CONVERSION = "save the arrays with numpy.savez('data.npz', x=images, y=labels)"


def recognises(path: Path) -> bool:
    """Returns whether a path is a pickle, or a folder that directly holds a pickle of CIFAR."""
    if path.is_file():
        return _is_pickle(path)
    return any_file(path, _is_of_cifar)


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the images of some files. Files with "test" in the name are the test split.

    Args:
        sources: A folder, or the files.
        options: `polarity`, `num_classes` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        DataError: A file is damaged, or is not a file of CIFAR. No pickle is ever run.
        OSError: A file cannot be read, or the disk is full.
    """
    splits, names = _find_files(sources)
    labels = LabelReader()
    coded = {}
    done = 0
    with ExitStack() as stack:
        for split, paths in splits.items():
            title = str(paths[0] if len(paths) == 1 else paths[0].parent)
            writer = stack.enter_context(TableWriter(title, folder, fit=options.fit))
            for path in paths:
                images, values = _contents(_dictionary(path), path)
                codes = labels.add(values, str(path))
                writer.add(images, codes, scale=1 / 255, offset=0.0, where=str(path))
                done += len(images)
                on_progress(done, None)
            coded[split] = writer.table()
    tables, classes = shared.number_labels(coded, labels)
    return shared.imported(
        tables,
        options,
        source=str(sources[0]),
        pixel_convention="ink",
        own_classes=len(names) or None,
        class_names=names or classes.names,
        are_numbered=True,
        evidence={
            "splits": "files with test in the name are test",
            "classes": "the label names beside the files" if names else "the labels of the files",
            "owners": "the files name no owners",
            "shape": "CIFAR's images are 32 x 32",
            "channels": "planes of red, green and blue in each row",
            "polarity": "light is 1.0 in colour images",
            "range": "pixels are uint8",
        },
    )


def _find_files(sources: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each split, train first, and the names of the classes."""
    paths = [path for path in files_of(sources) if path in sources or _is_of_cifar(path)]
    names: list[str] = []
    splits: dict[str, list[Path]] = {"train": [], "test": []}
    with_images = [path for path in paths if "meta" not in path.name.lower()]
    has_names = len(with_images) < len(paths)
    for path in paths if has_names else files_of([paths[0].parent] if paths else []):
        if "meta" in path.name.lower() and _is_pickle(path):
            names = _label_names(_dictionary(path), path)
    for path in sorted(with_images, key=lambda each: shared.natural_sort_key(each.name)):
        splits["test" if "test" in path.name.lower() else "train"].append(path)
    if not with_images:
        raise DataError(
            f"{sources[0]}: holds no file with images of CIFAR-10 or CIFAR-100; give data_batch_1 "
            "or train"
        )
    if not splits["train"]:
        splits["train"] = splits.pop("test")
    return {split: paths for split, paths in splits.items() if paths}, names


def _dictionary(path: Path) -> Mapping[str, Any]:
    try:
        content = plain_pickle.read(path)
    except ValueError as err:
        raise DataError(
            f"{path}: is a Python pickle that {err}; pickles are never run, and only those of "
            f"CIFAR-10 and CIFAR-100 are read: {_CONVERSION}"
        ) from err
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: is a Python pickle, but not a file of CIFAR-10 or CIFAR-100; {_CONVERSION}"
        )
    return content


def _contents(content: Mapping[str, Any], path: Path) -> tuple[NDArray[np.uint8], Any]:
    """Images [n, 32, 32, 3] and labels of a file."""
    data = content.get("data")
    labels = next((content[name] for name in _LABELS if name in content), None)
    if not isinstance(data, np.ndarray) or labels is None:
        keys = ", ".join(map(str, list(content)[:10])) or "nothing"
        raise DataError(
            f"{path}: is a Python pickle with {keys}, not CIFAR's data and labels; {_CONVERSION}"
        )
    if data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise DataError(
            f"{path}: data are {data.dtype} of shape {list(data.shape)}; CIFAR's are uint8 "
            f"[n, 3072]; {_CONVERSION}"
        )
    if len(labels) != len(data):
        raise DataError(
            f"{path}: {plural(len(data), 'image')} but {plural(len(labels), 'label')}; fetch the "
            "file again"
        )
    return shaped(data, _SHAPE, CHANNELS_FIRST), labels


def _label_names(content: Mapping[str, Any], path: Path) -> list[str]:
    names: Sequence[Any] = next((content[name] for name in _NAMES if name in content), ())
    texts = [each.decode(errors="replace") if isinstance(each, bytes) else each for each in names]
    if not all(isinstance(each, str) for each in texts):
        raise DataError(f"{path}: its label names are not text; fetch it again, or leave it out")
    return [shared.check_class_name(each, str(path)) for each in texts]


def _is_pickle(path: Path) -> bool:
    start = start_of(path, 2)
    return len(start) == 2 and start[:1] == b"\x80" and start[1] in _PROTOCOLS


def _is_of_cifar(path: Path) -> bool:
    """Whether a file is a pickle with one of CIFAR's keys near its start."""
    start = start_of(path, _MAX_SEARCHED_BYTES)
    return _is_pickle(path) and re.search(rb"data|label", start) is not None
