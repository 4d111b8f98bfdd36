"""Parquet files of images, as Hugging Face writes them: one or several files per split.

A row has an image, a label, and perhaps an owner. The image is an encoded picture (`{bytes, path}`
or only the bytes) or a list of pixels. Hugging Face's metadata in the file give the role of each
column and the names of classes. PyArrow, from the extra `parquet`, reads the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.importers import shared, split_names
from fedcli.datasets.importers.flat import array_order, flat_shape, shaped
from fedcli.datasets.importers.picture_decoding import Decoder
from fedcli.datasets.importers.picture_tables import OWNER_COLUMNS
from fedcli.datasets.importers.pillow import load_pillow
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.scales import rescale
from fedcli.datasets.importers.source_files import any_file, files_of, start_of
from fedcli.datasets.labels import LabelReader, value_of
from fedcli.datasets.table import TableWriter
from fedcli.errors import ConfigError, DataError
from fedcli.progress import ProgressCallback
from fedcli.settings.vocabulary import SPLITS

_SIGNATURE = b"PAR1"
# Numbers that programs give to the parts of a table: 0000, part-00003, data-00000-of-00002,
# shard_7.
_PART = re.compile(
    r"^\d{4,}$|-\d{3,}-of-\d{3,}|(?:^|[-_.])(?:part|shard|chunk|split|block|piece)[-_.]?\d",
    re.IGNORECASE,
)
_BATCH = 256  # rows
MAX_METADATA_BYTES = 16 << 20
_IMAGES = ("image", "img", "images", "picture", "pixel_values", "pixels", "x", "data", "photo")
_LABELS = ("label", "labels", "fine_label", "y", "target", "class", "character", "digit")


@dataclass(frozen=True)
class _Columns:
    """The roles of the columns of the files."""

    image: str
    label: str
    owner: str | None
    is_encoded: bool
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Picture:
    """An encoded picture; `path` is the text that names it in messages."""

    path: Path
    content: bytes


def recognises(path: Path) -> bool:
    """Returns whether a path is a Parquet file, or a folder that holds some, perhaps in data/.

    Files that are named neither like splits nor like parts are one file per client, which
    `client_files` reads.
    """
    home = _folder_of_files(path)
    if path.is_file() or not home.is_dir():
        return any_file(home, _has_signature)
    files = [each for each in files_of([home]) if _has_signature(each)]
    return bool(files) and not are_clients(files)


def are_clients(files: Sequence[Path]) -> bool:
    """Returns whether each of several files is a client.

    They are clients if no file is named like a split, and not all are named like parts of a table.
    """
    names = [path.stem for path in files]
    are_parts = all(map(_PART.search, names))
    are_splits = any(split_names.kind_of(_part_of(name)) for name in names)
    return len(names) > 1 and not (are_parts or are_splits)


def _has_signature(path: Path) -> bool:
    return start_of(path, 4) == _SIGNATURE


def _part_of(stem: str) -> str:
    """Returns the name of the table in the name of a part: "train" for train-00000-of-00001."""
    return stem.partition("-0")[0]


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the rows of some files. A file's name gives its split.

    Args:
        sources: A folder, or the files.
        options: `label_column`, `id_column`, `image_shape`, `color`, `splits`, `pixel_range`,
            `polarity`, `num_classes` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        ConfigError: PyArrow or Pillow is not installed, or an option names no column.
        DataError: A file is damaged, or a row cannot be used. The message names file and row.
        OSError: A file cannot be read, or the disk is full.
    """
    parquet = _load()
    files = files_of([_folder_of_files(each) for each in sources])
    paths = [path for path in files if start_of(path, 4) == _SIGNATURE]
    if not paths:
        raise DataError(f"{sources[0]}: holds no Parquet files; give some")
    splits = _split(paths, options)
    columns = _columns(_schema(parquet, splits["train"][0]), options, splits["train"][0])
    reader = _Reader(columns, options, on_progress)
    coded = {}
    with ExitStack() as stack:
        for split, files in splits.items():
            title = str(files[0] if len(files) == 1 else files[0].parent)
            writer = stack.enter_context(TableWriter(title, folder, fit=options.fit))
            for path in files:
                for first, batch in _batches(parquet, path, columns):
                    reader.add(writer, batch, path, first)
            coded[split] = writer.table()
    coded, coding = rescale(coded, options.pixel_range, are_unit_levels=False)
    tables, classes = shared.number_labels(coded, reader.labels)
    convention, why = shared.polarity_of(tables)
    names = classes.names or columns.class_names
    return shared.imported(
        tables,
        options,
        source=str(sources[0]),
        pixel_convention=convention,
        own_classes=len(columns.class_names) or classes.num_hot or None,
        class_names=names,
        are_numbered=not classes.names,
        notes=(*columns.notes, *(() if coding.is_plain else (coding.note,))),
        pixel_range=coding.range,
        evidence={
            "polarity": why,
            "range": coding.evidence,
            "splits": "files " + ", ".join(each[0].name for each in splits.values()),
            "owners": f"column {columns.owner}" if columns.owner else "no column of ids",
            "classes": "Hugging Face's metadata in the file"
            if columns.class_names
            else f"column {columns.label}",
            "shape": f"column {columns.image}",
        },
        overrides={"owners": "--id-column", "splits": "--splits", "classes": "--label-column"},
    )


class _Reader:
    """Reads images, labels and owners from batches of rows."""

    def __init__(
        self, columns: _Columns, options: ImportOptions, on_progress: ProgressCallback
    ) -> None:
        self.labels = LabelReader()
        self._columns = columns
        self._options = options
        self._on_progress = on_progress
        self._done = 0
        self._decoder = None
        if columns.is_encoded:
            pillow = load_pillow("reading images")
            self._decoder = Decoder(pillow, options.color, is_fitted=options.fit is not None)

    def add(
        self, writer: TableWriter, batch: Mapping[str, list[Any]], path: Path, first: int
    ) -> None:
        """Adds the rows of a batch to a table."""
        columns = self._columns
        codes = self.labels.add(
            batch[columns.label], str(path), place=lambda index: f"{path}: row {first + index}"
        )
        owners = None
        if columns.owner is not None:
            owners = [_owner(each, f"{path}: row {first}") for each in batch[columns.owner]]
        done = 0
        for pixels in self._images(batch[columns.image], path, first):
            last = done + len(pixels)
            writer.add(
                pixels,
                codes[done:last],
                scale=1 / 255 if pixels.dtype == np.uint8 else 1.0,
                offset=0.0,
                owners=None if owners is None else owners[done:last],
                where=f"{path}: rows from {first + done}",
            )
            done = last
        self._done += done
        self._on_progress(self._done, None)

    def _images(self, values: list[Any], path: Path, first: int) -> Iterator[NDArray[Any]]:
        if self._decoder is None:
            yield self._pixels(values, f"{path}: rows from {first}")
            return
        pictures = []
        for index, value in enumerate(values):
            content = value.get("bytes") if isinstance(value, dict) else value
            if not content:
                raise DataError(
                    f"{path}: row {first + index}: holds no bytes of a picture, perhaps only its "
                    "path; save the data set with embedded pictures"
                )
            pictures.append(_Picture(Path(f"{path}: row {first + index}"), content))
        for _, pixels in self._decoder.blocks(pictures):
            yield pixels

    def _pixels(self, values: list[Any], where: str) -> NDArray[Any]:
        try:
            array = np.array(values)
        except ValueError as err:
            raise DataError(f"{where}: images differ in size; resize all to one size") from err
        if array.dtype.kind not in "iuf" or array.ndim < 2:
            raise DataError(
                f"{where}: column {self._columns.image} holds no pixels; give the files a column "
                "of images"
            )
        is_bytes = array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255
        array = array.astype(np.uint8 if is_bytes else np.float32)
        if array.ndim == 2:
            shape, order = flat_shape(array.shape[1], self._options.image_shape, where)
        else:
            shape, order = array_order(array.shape)
        return shaped(array, shape, order)


def _load() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as err:
        raise ConfigError(
            "reading Parquet needs PyArrow; run pip install 'fedcli[parquet]'"
        ) from err
    return pyarrow.parquet


def _folder_of_files(path: Path) -> Path:
    """Returns the folder of the files: Hugging Face puts them into data/."""
    inner = path / "data"
    if path.is_dir() and inner.is_dir() and not any(path.glob("*.parquet")):
        return inner
    return path


def _split(paths: Sequence[Path], options: ImportOptions) -> dict[str, list[Path]]:
    """Returns the files of each split, train first, ordered by name within a split."""
    named = {path: _part_of(path.stem) for path in paths}
    if options.splits:
        of_name = {name: split for split, name in options.splits.items()}
    elif options.splits is None and any(map(split_names.kind_of, named.values())):
        of_name = split_names.assign(dict.fromkeys(named.values()), str(paths[0].parent))
    else:
        of_name = dict.fromkeys(named.values(), "train")
    found: dict[str, list[Path]] = {}
    for path, name in sorted(named.items()):
        split = of_name.get(name) or of_name.get(path.name)
        if split is not None:
            found.setdefault(split, []).append(path)
    if "train" not in found and len(found) == 1 and len(paths) == 1:
        found = {"train": list(paths)}
    if "train" not in found:
        raise DataError(
            f"{paths[0].parent}: {', '.join(path.name for path in paths[:10])}: no name contains "
            "train; choose the files with --splits train=NAME,test=NAME"
        )
    return {split: found[split] for split in SPLITS if split in found}


def _schema(parquet: Any, path: Path) -> Any:
    try:
        return parquet.read_schema(path)
    except Exception as err:  # PyArrow has its own error classes for kinds of damage
        raise _damaged(path, err) from err


def _columns(schema: Any, options: ImportOptions, path: Path) -> _Columns:
    """Returns the roles of the columns: by options, Hugging Face's metadata, names or types."""
    names = list(schema.names)
    features = _features(schema)
    classes = [name for name in names if features.get(name, {}).get("_type") == "ClassLabel"]
    pictures = [name for name in names if features.get(name, {}).get("_type") == "Image"]
    image = _choose(names, None, pictures or _named(names, _IMAGES), "images", path, "")
    usual = [name for name in _named(names, _LABELS) if name != image]
    label = _choose(
        names, options.label_column, usual[:1] or classes, "labels", path, "--label-column"
    )
    owner = options.id_column or next(iter(_named(names, OWNER_COLUMNS)), None)
    if owner is not None and owner not in names:
        raise ConfigError(f"--id-column {owner}: {path} has columns {', '.join(names[:10])}")
    known = features.get(label, {}).get("names")
    are_texts = isinstance(known, list) and all(isinstance(each, str) for each in known)
    class_names = tuple(known) if known and are_texts else ()
    # Names such as "0", "1", ... add nothing to the numbers.
    if class_names == tuple(map(str, range(len(class_names)))):
        class_names = ()
    left = [name for name in names if name not in (image, label, owner)]
    notes = (f"columns that are not used: {', '.join(left[:10])}",) if left else ()
    kind = str(schema.field(image).type)
    return _Columns(image, label, owner, _is_encoded(kind), class_names, notes)


def _is_encoded(kind: str) -> bool:
    return kind in ("binary", "large_binary") or (kind.startswith("struct") and "bytes" in kind)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Returns Hugging Face's metadata of each column, or {} if there are none."""
    text = (schema.metadata or {}).get(b"huggingface", b"")
    with suppress(ValueError, AttributeError, TypeError):
        if len(text) <= MAX_METADATA_BYTES:
            found = json.loads(text)["info"]["features"]
            return {name: each for name, each in found.items() if isinstance(each, dict)}
    return {}


def _named(names: Sequence[str], usual: Sequence[str]) -> list[str]:
    by_name = {name.lower(): name for name in reversed(names)}
    return [by_name[name] for name in usual if name in by_name]


def _choose(
    names: Sequence[str],
    given: str | None,
    found: Sequence[str],
    what: str,
    path: Path,
    option: str,
) -> str:
    if given is not None:
        if given not in names:
            raise ConfigError(f"{option} {given}: {path} has columns {', '.join(names[:10])}")
        return given
    if len(set(found)) != 1:
        listed = ", ".join(found or names[:10])
        advice = f"; name it with {option}" if option else ""
        fault = "several columns may be" if found else "no column has a usual name for"
        raise DataError(f"{path}: {fault} the {what} ({listed}){advice}")
    return found[0]


def _batches(
    parquet: Any, path: Path, columns: _Columns
) -> Iterator[tuple[int, Mapping[str, list[Any]]]]:
    """Yields the number of the first row and the columns of each batch."""
    wanted = [name for name in (columns.image, columns.label, columns.owner) if name is not None]
    present = _schema(parquet, path).names
    missing = next((name for name in wanted if name not in present), None)
    if missing is not None:
        raise DataError(
            f"{path}: has no column {missing!r}, which the earlier files have; give it one"
        )
    first = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=wanted):
                yield first, batch.to_pydict()
                first += batch.num_rows
    except OSError as err:
        raise _damaged(path, err) from err
    except Exception as err:
        if type(err).__module__.partition(".")[0] != "pyarrow":
            raise
        raise _damaged(path, err) from err


def _owner(value: object, where: str) -> str:
    text = str(value)
    number = value_of(text) if isinstance(value, float) else None
    return shared.check_id(text if number is None else str(number), where)


def _damaged(path: Path, err: BaseException) -> DataError:
    reason = " ".join(str(err).split())[:100]
    return DataError(f"{path}: not a complete Parquet file ({reason}); fetch it again")
