"""MATLAB's .mat files with images and labels, such as SVHN's and EMNIST's, of all versions.

Version 7.3 is HDF5 and is read with h5py. Older versions need SciPy, from the extra `matlab`. In
MATLAB images are [H, W, C, n] or [H, W, n]; in HDF5 the axes of the same array are reversed. Arrays
may be in structures, one per split: `dataset.train.images`. In EMNIST's structure, which also has
`writers`, each row of `images` holds an image column by column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli import hdf5
from fedcli.dataclass import dataclass
from fedcli.datasets.batch_plan import MAX_COUNT
from fedcli.datasets.checks import check_pixel_shape
from fedcli.datasets.importers import shared, split_names
from fedcli.datasets.importers.flat import flat_shape, shaped
from fedcli.datasets.importers.npz import IMAGES, LABELS
from fedcli.datasets.importers.picture_files import looks_like_picture, walk
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.scales import Survey, check_type
from fedcli.datasets.importers.source_files import any_file, files_of, start_of
from fedcli.datasets.labels import LabelReader, whole_numbers
from fedcli.datasets.table import TableWriter
from fedcli.errors import ConfigError, DataError, plural
from fedcli.progress import ProgressCallback
from fedcli.settings.vocabulary import SPLITS

SIGNATURES = (b"MATLAB 5.0", b"MATLAB 7.3")
MAX_ARRAY_BYTES = 4 << 30  # largest array that is read; SVHN's extra set has 1.6 GB
_MAX_DEPTH = 2  # levels of nested structures
_MAX_NAMES = 64  # number of names of a structure that are examined
_WANTED = {*IMAGES, *LABELS, "writers"}
_MAX_EXAMINED = 1000  # number of files of a folder that are examined
_SVHN_TEN = 10  # SVHN's label of the digit 0


@dataclass(frozen=True)
class _Set:
    """The arrays of one split: images [n, H, W] or [n, H, W, C], labels [n], writers or None."""

    images: NDArray[Any]
    labels: NDArray[Any]
    writers: NDArray[Any] | None
    place: str


def recognises(path: Path) -> bool:
    """Returns whether a path is a MATLAB file, or a folder that directly holds some.

    MATLAB files beside pictures hold only labels; `images` reads them.
    """
    if not any_file(path, lambda each: start_of(each, 10) in SIGNATURES):
        return False
    return path.is_file() or not any(map(looks_like_picture, islice(walk(path), _MAX_EXAMINED)))


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the images of some files.

    The names of the files give the splits; in a single file, the names of its structures do. If
    these name no split, the file is the train split.

    If the labels that occur are exactly 1 to 10, they are digits as in SVHN, and 10 is the digit 0.

    Args:
        sources: A folder, or the files.
        options: `label_column` names the array of labels; `splits`, `image_shape`, `pixel_range`,
            `polarity`, `num_classes` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        ConfigError: SciPy is needed and not installed.
        DataError: A file is damaged, or has no images and labels that can be used.
        OSError: A file cannot be read, or the disk is full.
    """
    paths = [path for path in files_of(sources) if start_of(path, 10) in SIGNATURES]
    if not paths:
        raise DataError(f"{sources[0]}: holds no .mat file; give a folder that holds one")
    sets, is_emnist = _read_sets(paths, options)
    survey = Survey(options.pixel_range)
    for each in sets.values():
        for first, last in shared.blocks(
            len(each.images), each.images.shape[1:], each.images.itemsize
        ):
            survey.add(each.images[first:last], first, each.place)
    coding = survey.coding()
    is_svhn = all(_counts_from_one(each.labels) for each in sets.values())
    reader = LabelReader()
    coded = {}
    with ExitStack() as stack:
        for split, each in sets.items():
            writer = stack.enter_context(TableWriter(each.place, folder, fit=options.fit))
            codes = reader.add(each.labels % _SVHN_TEN if is_svhn else each.labels, each.place)
            owners = None if each.writers is None else _names(each)
            for first, last in shared.blocks(
                len(each.images), each.images.shape[1:], each.images.itemsize
            ):
                writer.add(
                    coding.pack(each.images[first:last]),
                    codes[first:last],
                    scale=coding.scale,
                    offset=coding.offset,
                    owners=None if owners is None else owners[first:last],
                )
                on_progress(writer.num_examples, None)
            coded[split] = writer.table()
    tables, classes = shared.number_labels(coded, reader)
    convention, why = shared.polarity_of(tables)
    notes = [] if coding.is_plain else [coding.note]
    if is_svhn:
        notes.append("labels go from 1 to 10 as in SVHN, where 10 is the digit 0")
    if is_emnist:
        notes.append("EMNIST stores each image column by column; rows and columns were swapped")
    people = [set(table.owner_ids) for table in tables.values()]
    return shared.imported(
        tables,
        options,
        source=str(sources[0]),
        pixel_convention=convention,
        own_classes=classes.num_hot or None,
        class_names=classes.names,
        same_people=len(people) == 1 or not people[0].isdisjoint(*people[1:]) or not any(people),
        notes=notes,
        pixel_range=coding.range,
        evidence={
            "polarity": why,
            "range": coding.evidence,
            "splits": ", ".join(each.place for each in sets.values()),
            "owners": "the arrays of writers" if any(people) else "the files name no owners",
            "shape": "given by --image-shape" if options.image_shape else "the arrays' shape",
            "channels": "MATLAB's [H, W, C, n]",
        },
        overrides={"range": "--pixel-range", "splits": "--splits", "shape": "--image-shape"},
    )


def load(path: Path) -> dict[str, Any]:
    """Returns the arrays of numbers and the structures of a file under their names.

    An array in a structure is `structure/array`. A structure of several rows is one array of
    NumPy's structured type, whose fields hold objects; version 7.3 has no such structures.

    Raises:
        ConfigError: SciPy is needed and not installed.
        DataError: The file is damaged.
        OSError: It cannot be read.
    """
    is_hdf5 = start_of(path, 10) == b"MATLAB 7.3"
    return _arrays_of_hdf5(path) if is_hdf5 else _arrays_of_scipy(path)


def _read_sets(paths: Sequence[Path], options: ImportOptions) -> tuple[dict[str, _Set], bool]:
    """The arrays of each split, train first, and whether they are EMNIST's."""
    if len(paths) == 1:
        arrays = load(paths[0])
        groups = _groups(arrays)
        kinds = {group: split_names.kind_of(group.rpartition("/")[2]) for group in groups}
        if groups and all(kinds.values()) and (len(groups) == 1 or options.splits != {}):
            named = {} if len(groups) > 1 else {groups[0].rpartition("/")[2]: "train"}
            named = named or split_names.assign(
                [group.rpartition("/")[2] for group in groups], str(paths[0])
            )
            found = {named[group.rpartition("/")[2]]: group for group in groups}
            is_emnist = all(f"{group}/writers" in arrays for group in groups)
            return {
                split: _set_of(_within(arrays, found[split]), paths[0], options, found[split])
                for split in SPLITS
                if split in found
            }, is_emnist
    splits = _split(paths, options)
    return {split: _set_of(load(path), path, options, "") for split, path in splits.items()}, False


def _groups(arrays: Mapping[str, Any]) -> list[str]:
    """The structures that hold images and labels."""
    held: dict[str, set[str]] = {}
    for name in arrays:
        group, _, last = name.rpartition("/")
        held.setdefault(group, set()).add(last.lower())
    return [group for group, names in held.items() if names & {*IMAGES} and names & {*LABELS}]


def _within(arrays: Mapping[str, Any], group: str) -> dict[str, NDArray[Any]]:
    start = f"{group}/"
    return {name[len(start) :]: each for name, each in arrays.items() if name.startswith(start)}


def _names(arrays: _Set) -> list[str]:
    """Returns the ids of the writers of a split."""
    assert arrays.writers is not None
    numbers = whole_numbers(arrays.writers, f"{arrays.place}: writers")
    if len(numbers) != len(arrays.images):
        raise DataError(
            f"{arrays.place}: {plural(len(arrays.images), 'image')} but "
            f"{plural(len(numbers), 'writer')}; each image needs one writer"
        )
    return [f"w{number:04d}" for number in numbers.tolist()]


def _split(paths: Sequence[Path], options: ImportOptions) -> dict[str, Path]:
    """The file of each split, train first."""
    if options.splits:
        by_name = {path.name: path for path in paths} | {path.stem: path for path in paths}
        missing = next((name for name in options.splits.values() if name not in by_name), None)
        if missing is not None:
            raise ConfigError(
                f"--splits: there is no file {missing!r} among {sorted(by_name)[:10]}"
            )
        files = {split: by_name[name] for split, name in options.splits.items()}
    elif len(paths) == 1:
        files = {"train": paths[0]}
    else:
        named = split_names.assign([path.stem for path in paths], str(paths[0].parent))
        files = {named[path.stem]: path for path in paths if path.stem in named}
    if "train" not in files:
        raise DataError(
            f"{paths[0].parent}: {', '.join(path.name for path in paths[:10])}: no name contains "
            "train; choose the files with --splits train=NAME,test=NAME"
        )
    return {split: files[split] for split in SPLITS if split in files}


def _set_of(
    all_arrays: Mapping[str, NDArray[Any]], path: Path, options: ImportOptions, group: str
) -> _Set:
    """Finds images, labels and writers among some arrays."""
    place = f"{path}: {group}" if group else str(path)
    arrays = {
        name: each
        for name, each in all_arrays.items()
        if each.dtype.kind in "biuf" and ("/" not in name or not group)
    }
    images = _find(arrays, IMAGES, None, path)
    labels = _find(arrays, LABELS, options.label_column, path)
    values = arrays[labels]
    if values.size != max(values.shape, default=0):
        raise DataError(
            f"{path}: {labels} has shape {list(values.shape)}; give one label per image"
        )
    writers = arrays.get("writers") if group else None
    is_emnist = writers is not None and arrays[images].ndim == 2
    where = f"{path}: array {images!r}"
    pixels = _images_first(arrays[images], values.size, options.image_shape, where)
    if is_emnist and not options.image_shape:
        pixels = np.ascontiguousarray(pixels.swapaxes(1, 2))
    return _Set(pixels, values.reshape(-1), writers, place)


def _arrays_of_hdf5(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file of version 7.3, with axes in MATLAB's order."""
    arrays: dict[str, NDArray[Any]] = {}
    with hdf5.open_file(path) as file, hdf5.reading(str(path)):
        _add_arrays(file.id, "", path, arrays)
    return arrays


def _add_arrays(group: Any, start: str, path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Adds all arrays of a group, and of its subgroups the arrays with names in `_WANTED`."""
    for name in hdf5.link_names(group, str(path))[:_MAX_NAMES]:
        where = f"{path}: array {start + name!r}"
        if name.startswith("#"):
            continue
        if not hdf5.is_dataset(group, name.encode()):
            if start.count("/") < _MAX_DEPTH:
                inner = hdf5.open_group(group, name.encode(), where)
                _add_arrays(inner, f"{start}{name}/", path, arrays)
            continue
        if start and name.lower() not in _WANTED:
            continue
        dataset = hdf5.open_dataset(group, name.encode(), where)
        num_bytes = math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize
        if dataset.dtype.kind in "biuf" and 0 < num_bytes <= MAX_ARRAY_BYTES:
            arrays[start + name] = hdf5.read_whole(dataset, where).T


def _arrays_of_scipy(path: Path) -> dict[str, NDArray[Any]]:
    """Returns the arrays of an older file. SciPy executes no code of the file."""
    try:
        from scipy.io import loadmat
    except ImportError as err:
        raise ConfigError(
            f"{path}: a .mat file before version 7.3 needs SciPy; run pip install 'fedcli[matlab]'"
        ) from err
    try:
        found: Mapping[str, Any] = loadmat(path)
    except Exception as err:  # for damaged bytes, SciPy may raise errors of any class
        raise DataError(
            f"{path}: not a complete .mat file ({hdf5.one_line(err)[:80]}); fetch it again"
        ) from err
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in found.items():
        _flatten(name, value, arrays)
    return arrays


def _flatten(name: str, value: Any, arrays: dict[str, NDArray[Any]]) -> None:
    """Adds an array of numbers, or all arrays of numbers in a structure."""
    if not isinstance(value, np.ndarray) or not value.size:
        return
    if value.dtype.names and value.size == 1 and name.count("/") < _MAX_DEPTH:
        row = value.reshape(-1)[0]
        for inner in value.dtype.names:
            _flatten(f"{name}/{inner}", row[inner], arrays)
    elif value.dtype.names or value.dtype.kind in "biuf":
        arrays[name] = value


def _find(
    arrays: Mapping[str, NDArray[Any]], names: Sequence[str], given: str | None, path: Path
) -> str:
    """Returns the name of the array that an option names, or of the only one with a usual name."""
    if given is not None and given not in arrays:
        raise ConfigError(f"--label-column {given}: {path} holds {', '.join(arrays) or 'nothing'}")
    found = [given] if given else [name for name in arrays if _last(name) in names]
    if len(found) != 1:
        shapes = ", ".join(f"{name} {list(each.shape)}" for name, each in arrays.items())
        raise DataError(
            f"{path}: holds {shapes[:200] or 'no arrays of numbers'}; {len(found)} of these arrays "
            f"have a name like {names[0]!r}, but there must be exactly one; name the images X and "
            "the labels y"
        )
    return found[0]


def _last(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _images_first(
    images: NDArray[Any], count: int, given: tuple[int, ...] | None, where: str
) -> NDArray[Any]:
    """Converts images [H, W, C, n], [H, W, n] or [p, n] to [n, H, W] or [n, H, W, C].

    The axis n may also come first. Flat images [p, n] get the shape of --image-shape, by default
    a grey square.
    """
    check_type(images.dtype, where)
    shape = images.shape
    if len(shape) not in (2, 3, 4) or count not in (shape[0], shape[-1]) or count > MAX_COUNT:
        raise DataError(
            f"{where}: shape {list(shape)} does not fit {count} labels; give images [H, W, C, n] "
            "and n labels"
        )
    if shape[-1] == count and not (shape[0] == count and len(shape) != 3 and shape[-1] <= 4):
        images = np.moveaxis(images, -1, 0)
    if images.ndim == 2:
        images = shaped(images, *flat_shape(images.shape[1], given, where))
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    check_pixel_shape(images.shape, where)
    return np.ascontiguousarray(images)


def _counts_from_one(labels: NDArray[Any]) -> bool:
    """Whether labels are numbered as SVHN's: from 1 to 10, and all of these occur."""
    return bool(np.array_equal(np.unique(labels), np.arange(1, _SVHN_TEN + 1)))
