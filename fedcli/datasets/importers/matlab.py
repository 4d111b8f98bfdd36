"""MATLAB's .mat files with images and labels, as SVHN has them: version 7.3, and older ones.

Version 7.3 is HDF5 and is read with h5py; older ones need SciPy, from the extra `matlab`. MATLAB
keeps images as [H, W, C, n] or [H, W, n]; in HDF5 the same array stands with its axes reversed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli import hdf5
from fedcli.datasets.batch_plan import MAX_COUNT
from fedcli.datasets.checks import check_pixel_shape
from fedcli.datasets.importers import shared, split_names
from fedcli.datasets.importers.npz import IMAGES, LABELS
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.scales import Survey, check_type
from fedcli.datasets.importers.source_files import any_file, files_of, start_of
from fedcli.datasets.labels import LabelReader
from fedcli.datasets.table import TableWriter
from fedcli.errors import ConfigError, DataError
from fedcli.progress import Tell
from fedcli.settings.vocabulary import SPLITS

_SIGNATURES = (b"MATLAB 5.0", b"MATLAB 7.3")
MAX_ARRAY_BYTES = 4 << 30  # of an array as read: SVHN's extra set has 1.6 GB
_SVHN_TEN = 10  # its digit 0


def recognises(path: Path) -> bool:
    """Returns whether a file is one of MATLAB's, or a folder directly holds some."""
    return any_file(path, lambda each: start_of(each, 10) in _SIGNATURES)


def read(
    sources: Sequence[Path], options: ImportOptions, folder: Path | None, tell: Tell
) -> Imported:
    """Returns the images of some files, each a split as its name says, else train.

    Labels 1 to 10 of files that are called as SVHN's are digits: 10 is 0, as everyone reads them.

    Args:
        sources: A folder, or the files.
        options: `label_column` names the array of labels; `splits`, `pixel_range`, `num_classes`
            and `fit` apply.
        folder: Where pixels are kept meanwhile.
        tell: Called with the number of examples read.

    Raises:
        ConfigError: SciPy is needed and not installed.
        DataError: A file is damaged, or has no images and labels that can be used.
        OSError: A file cannot be read, or the disk is full.
    """
    paths = [path for path in files_of(sources) if start_of(path, 10) in _SIGNATURES]
    if not paths:
        raise DataError(f"{sources[0]}: holds no .mat file; give one")
    splits = _split(paths, options)
    sets = {split: _read_arrays(path, options) for split, path in splits.items()}
    survey = Survey(options.pixel_range)
    for split, (images, _) in sets.items():
        for first, last in shared.blocks(len(images), images.shape[1:], images.dtype.itemsize):
            survey.add(images[first:last], first, str(splits[split]))
    coding = survey.coding()
    is_svhn = all(_counts_from_one(labels) for _, labels in sets.values())
    reader = LabelReader()
    coded = {}
    with ExitStack() as stack:
        for split, (images, labels) in sets.items():
            where = str(splits[split])
            writer = stack.enter_context(TableWriter(where, folder, fit=options.fit))
            codes = reader.add(labels % _SVHN_TEN if is_svhn else labels, where)
            for first, last in shared.blocks(len(images), images.shape[1:], images.dtype.itemsize):
                writer.add(
                    coding.pack(images[first:last]),
                    codes[first:last],
                    scale=coding.scale,
                    offset=coding.offset,
                )
                tell(writer.num_examples, None)
            coded[split] = writer.table()
    tables, classes = shared.number_labels(coded, reader)
    convention, why = shared.polarity_of(tables)
    notes = [] if coding.is_plain else [coding.note]
    if is_svhn:
        notes.append("labels go from 1 to 10, as SVHN's: 10 is the digit 0")
    return shared.imported(
        tables,
        options,
        source=str(sources[0]),
        pixel_convention=convention,
        own_classes=classes.num_hot or None,
        class_names=classes.names,
        notes=notes,
        pixel_range=coding.range,
        evidence={
            "polarity": why,
            "range": coding.evidence,
            "splits": "files " + ", ".join(path.name for path in splits.values()),
            "owners": "the files name none",
            "shape": "as the arrays have it",
            "channels": "MATLAB's [H, W, C, n]",
        },
        overrides={"range": "--pixel-range", "splits": "--splits"},
    )


def _split(paths: Sequence[Path], options: ImportOptions) -> dict[str, Path]:
    """The file of each split, train first."""
    if options.splits:
        by_name = {path.name: path for path in paths} | {path.stem: path for path in paths}
        missing = next((name for name in options.splits.values() if name not in by_name), None)
        if missing is not None:
            raise ConfigError(
                f"--splits: there is no file {missing!r} among {sorted(by_name)[:10]}"
            )
        found = {split: by_name[name] for split, name in options.splits.items()}
    elif len(paths) == 1:
        found = {"train": paths[0]}
    else:
        named = split_names.assign([path.stem for path in paths], str(paths[0].parent))
        found = {named[path.stem]: path for path in paths if path.stem in named}
    if "train" not in found:
        raise DataError(
            f"{paths[0].parent}: {', '.join(path.name for path in paths[:10])}: none is called "
            "train; say which is with --splits train=NAME,test=NAME"
        )
    return {split: found[split] for split in SPLITS if split in found}


def _read_arrays(path: Path, options: ImportOptions) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images [n, H, W] or [n, H, W, C] and labels [n] of a file."""
    is_hdf5 = start_of(path, 10) == b"MATLAB 7.3"
    arrays = _arrays_of_hdf5(path) if is_hdf5 else _arrays_of_scipy(path)
    images = _find(arrays, IMAGES, None, path)
    labels = _find(arrays, LABELS, options.label_column, path)
    values = arrays[labels]
    if values.size != max(values.shape, default=0):
        raise DataError(f"{path}: {labels} has shape {list(values.shape)}; give one label an image")
    count = values.size
    return _images_first(arrays[images], count, f"{path}: array {images!r}"), values.reshape(-1)


def _arrays_of_hdf5(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file of version 7.3 with the axes as MATLAB has them."""
    arrays = {}
    with hdf5.open_file(path) as file, hdf5.reading(str(path)):
        for name in hdf5.link_names(file.id, str(path)):
            where = f"{path}: array {name!r}"
            if name.startswith("#") or not hdf5.is_dataset(file.id, name.encode()):
                continue
            dataset = hdf5.open_dataset(file.id, name.encode(), where)
            num_bytes = math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize
            if dataset.dtype.kind in "biuf" and 0 < num_bytes <= MAX_ARRAY_BYTES:
                arrays[name] = hdf5.read_whole(dataset, where).T
    return arrays


def _arrays_of_scipy(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an older file. SciPy runs nothing of it."""
    try:
        from scipy.io import loadmat
    except ImportError as err:
        raise ConfigError(
            f"{path}: a .mat file before version 7.3 needs SciPy; run pip install 'fedcli[matlab]'"
        ) from err
    try:
        found: Mapping[str, Any] = loadmat(path)
    except Exception as err:  # damaged bytes make SciPy raise about anything
        raise DataError(
            f"{path}: not a whole .mat file ({hdf5.one_line(err)[:80]}); fetch it again"
        ) from err
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size
    }


def _find(
    arrays: Mapping[str, NDArray[Any]], names: Sequence[str], given: str | None, path: Path
) -> str:
    """The name of the array that an option names, else of the one with a usual name."""
    if given is not None and given not in arrays:
        raise ConfigError(f"--label-column {given}: {path} holds {', '.join(arrays) or 'nothing'}")
    found = [given] if given else [name for name in arrays if name.lower() in names]
    if len(found) != 1:
        shapes = ", ".join(f"{name} {list(each.shape)}" for name, each in arrays.items())
        raise DataError(
            f"{path}: holds {shapes[:200] or 'no arrays of numbers'}, and {len(found)} of them are "
            f"called as {names[0]!r} usually is; name the images X and the labels y"
        )
    return found[0]


def _images_first(images: NDArray[Any], count: int, where: str) -> NDArray[Any]:
    """Images [H, W, C, n] or [H, W, n], or with n first, as [n, H, W] or [n, H, W, C]."""
    check_type(images.dtype, where)
    shape = images.shape
    if len(shape) not in (3, 4) or count not in (shape[0], shape[-1]) or count > MAX_COUNT:
        raise DataError(
            f"{where}: shape {list(shape)} is none of {count} images; give [H, W, C, n] and as "
            "many labels"
        )
    if shape[-1] == count and not (shape[0] == count and len(shape) == 4 and shape[-1] <= 4):
        images = np.moveaxis(images, -1, 0)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    check_pixel_shape(images.shape, where)
    return np.ascontiguousarray(images)


def _counts_from_one(labels: NDArray[Any]) -> bool:
    """Whether labels are SVHN's, 1 to 10, all of which occur."""
    return bool(np.array_equal(np.unique(labels), np.arange(1, _SVHN_TEN + 1)))
