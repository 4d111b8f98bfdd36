"""Reads a source in any format of `tables.FORMATS`, whose rows name the module of each format.

Code that these modules share (number of classes, meaning of 1.0, ids) is in `shared`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import Pixels
from fedcli.datasets.checks import check_num_classes
from fedcli.datasets.description import Finding, SourceDescription
from fedcli.datasets.importers import unpacking
from fedcli.datasets.importers.folder_meaning import LAYOUTS
from fedcli.datasets.importers.picture_files import is_junk, walk
from fedcli.datasets.importers.source_files import start_of
from fedcli.datasets.table import ExampleTable
from fedcli.errors import ConfigError, DataError
from fedcli.lazy import load
from fedcli.progress import ProgressCallback, ignore_progress
from fedcli.settings.tables.formats import FORMATS
from fedcli.settings.vocabulary import COLORS, PIXEL_CONVENTIONS, PIXEL_RANGES, SPLITS

Fit = Callable[[Pixels], Pixels]  # resizes images [k, H, W] or [k, H, W, C] to the common size

CLIENTS = "clients"  # the format of several files, each of one client
_ONE_FILE = ("csv", "npz")
_MOST_FILES = 1000  # largest number of files of a folder that are examined
_HDF5 = b"\x89HDF\r\n"
_PICKLE_PROTOCOLS = (b"\2", b"\3", b"\4", b"\5")
_TORCH_HEAD = 256  # the first bytes of a PyTorch zip file, with the first name in it
_START_BYTES = 1 << 16  # bytes that decide whether a file is text
_TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".json")
_FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options for reading a source. A format ignores the options that it does not use.

    Attributes:
        format: A key of FORMATS; None: recognised by content.
        num_classes: Labels are 0 to num_classes - 1; None: inferred.
        label_column: The column or npz key of the labels.
        id_column: The column or npz key of the clients' ids.
        file_column: The column of a table that names the picture of each row.
        splits: The folder or file of each split, such as {"train": "Training"}; empty: there are no
            splits; None: inferred from names.
        image_shape: The shape (H, W) or (H, W, C) of images that are flat rows.
        folders: The meaning of folders of images, a key of `folder_meaning.LAYOUTS`; None:
            inferred.
        color: The colours of the images to store, one of COLORS; None: those of the first image.
        pixel_range: The range of pixels in the source, one of PIXEL_RANGES; None: inferred from the
            pixels.
        polarity: The meaning of 1.0 in the source, one of PIXEL_CONVENTIONS; None: defined by the
            format, or inferred from the pixels.
        fit: Resizes images of any size to a common size.
    """

    format: str | None = None
    num_classes: int | None = None
    label_column: str | None = None
    id_column: str | None = None
    file_column: str | None = None
    splits: Mapping[str, str] | None = None
    image_shape: tuple[int, ...] | None = None
    folders: str | None = None
    color: str | None = None
    pixel_range: str | None = None
    polarity: str | None = None
    fit: Fit | None = None

    def __post_init__(self) -> None:
        """Refuses values that are not allowed."""
        if self.format not in (None, *FORMATS):
            raise ConfigError(f"--format {self.format}: choose one of {', '.join(FORMATS)}")
        if self.num_classes is not None:
            check_num_classes(self.num_classes, "--num-classes")
        allowed: Iterable[str]
        for option, value, allowed in (
            ("--folders", self.folders, LAYOUTS),
            ("--color", self.color, COLORS),
            ("--pixel-range", self.pixel_range, PIXEL_RANGES),
            ("--polarity", self.polarity, PIXEL_CONVENTIONS),
        ):
            if value not in (None, *allowed):
                raise ConfigError(f"{option} {value}: choose one of {', '.join(allowed)}")
        unknown = next((name for name in self.splits or () if name not in SPLITS), None)
        if unknown is not None:
            raise ConfigError(f"--splits {unknown}: choose some of {', '.join(SPLITS)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Imported:
    """The contents of a source.

    Attributes:
        format: A key of FORMATS.
        tables: The examples of each split: "train" first, then "test", then "validation".
        description: How the source was interpreted, and the evidence.
        num_classes: Labels are 0 to num_classes - 1, checked.
        pixel_convention: The meaning of 1.0 in decoded pixels: "ink" or "background".
        class_names: A name for each class, or () if the source has no names.
        same_people: Whether owners of train and test with equal ids are the same people.
        source: Where the data come from.
        licence: The licence that the source states, or "".
        notes: Lines about decisions that the user may want to know.
        are_numbered: Whether the labels in the source are numbers, with or without `class_names`.
            Then equal numbers in another source mean the same classes.
        is_guessed: Whether the number of classes was derived from the largest label.
    """

    format: str
    tables: dict[str, ExampleTable]
    description: SourceDescription
    num_classes: int
    pixel_convention: str
    class_names: tuple[str, ...] = ()
    same_people: bool = True
    source: str
    licence: str = ""
    notes: tuple[str, ...] = ()
    are_numbered: bool = False
    is_guessed: bool = False


def recognise(sources: Sequence[Path]) -> str:
    """Returns which of FORMATS the sources are, by their content.

    Args:
        sources: One file or folder, or the files of one set. Files of no known format among them,
            such as a README, are ignored.

    Raises:
        DataError: A source cannot be opened, or the formats differ or are not known.
    """
    found: dict[str, Path] = {}
    for path in sources:
        _check_exists(path)
        name = _recognised(path)
        if name is not None:
            found.setdefault(name, path)
    if len(found) == 1:
        name = next(iter(found))
        return CLIENTS if len(sources) > 1 and _is_one_file_a_client(name, sources) else name
    if found:
        listed = ", ".join(f"{path} is {name}" for name, path in found.items())
        raise DataError(f"the sources differ in format: {listed}; give sources of one format")
    with _naming_source(sources[0], None):
        reason = _why_unreadable(sources[0])
    raise DataError(
        f"{sources[0]}: {reason}"
        if reason
        else f"{sources[0]}: its format was not recognised; if it is one of "
        f"{', '.join(FORMATS)}, name it with --format"
    )


def read(
    sources: Sequence[Path],
    options: ImportOptions | None = None,
    folder: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Imported:
    """Returns the contents of the sources. Memory does not grow with the number of pixels.

    Args:
        sources: One file or folder, or the files of one set.
        options: How to read them.
        folder: The folder for copies of pixels, in files without a name; None: the system's folder
            for temporary files.
        on_progress: Called with the number of examples read; the total is None if the format does
            not give it.

    Raises:
        ConfigError: An option does not fit the source, or an extra is not installed.
        DataError: The sources cannot be read or used, or the disk is full.
    """
    options = options or ImportOptions()
    if not sources:
        raise ConfigError("no source given; give a file or folder")
    for path in sources:
        _check_exists(path)
    with _naming_source(sources[0], folder):
        if len(sources) == 1 and unpacking.is_archive(sources[0]):
            return _read_archive(sources[0], options, folder, on_progress)
    sources = [_inner_source(path, options) for path in sources]
    format_name = options.format or recognise(sources)
    with _naming_source(sources[0], folder):
        imported: Imported = _module(format_name).read(
            sources, replace(options, format=format_name), folder, on_progress
        )
    evidence = "given by --format" if options.format else "by content"
    found = Finding(format_name, f"{evidence} ({FORMATS[format_name].doc.rstrip('.')})", "--format")
    return replace(imported, description=replace(imported.description, format=found))


def _read_archive(
    archive: Path, options: ImportOptions, folder: Path | None, on_progress: ProgressCallback
) -> Imported:
    """Reads an archive; messages name the archive in place of the folder it is unpacked to."""

    def rename(text: str) -> str:
        return text.replace(f"{content.folder}/", f"{archive}: ").replace(
            str(content.folder), str(archive)
        )

    with unpacking.unpacked(archive, folder, on_progress) as content:
        try:
            imported = read([content.path], options, folder, on_progress)
        except (ConfigError, DataError) as err:
            raise type(err)(rename(str(err))) from err
    tables = {
        name: replace(table, source=rename(table.source)) for name, table in imported.tables.items()
    }
    source = str(archive) if imported.source.startswith(str(content.folder)) else imported.source
    return replace(
        imported,
        tables=tables,
        source=source,
        notes=(content.note, *map(rename, imported.notes)),
        description=imported.description.renamed(str(archive), rename),
    )


def _inner_source(path: Path, options: ImportOptions) -> Path:
    """Descends from a folder of no known format to its only subfolder, as long as there is one."""
    while options.format is None and path.is_dir() and not _recognised(path):
        inside = [each for each in path.iterdir() if not is_junk(each.name)]
        folders = [each for each in inside if each.is_dir() and not each.is_symlink()]
        if len(folders) != 1 or _recognised(path):
            break
        path = folders[0]
    return path


def _is_one_file_a_client(name: str, sources: Sequence[Path]) -> bool:
    """Whether several sources of a format are one file per client, not the files of one set."""
    if name == "parquet" and all(path.is_file() for path in sources):
        return bool(_module(name).are_clients(sources))
    return name in _ONE_FILE


def _recognised(path: Path) -> str | None:
    """Returns the format of one source, or None."""
    with _naming_source(path, None):
        return next((name for name in FORMATS if _module(name).recognises(path)), None)


def _why_unreadable(path: Path) -> str | None:
    """Returns why a folder or text file cannot be read, or None for any other source."""
    if path.is_dir():
        return _why_folder_unreadable(path)
    if not path.is_file():  # such as a pipe, which is not read
        return None
    start = start_of(path, _START_BYTES)
    if not start:
        return "is empty; give a file with data"
    try:
        text = start.decode("utf-8-sig", "strict" if len(start) < _START_BYTES else "ignore")
    except UnicodeDecodeError:
        is_text = path.suffix.lower() in _TEXT_ENDINGS
        return "is not UTF-8 text; save it as UTF-8" if is_text else None
    if "\0" in text:
        return None
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and "," in lines[0]:
        return "has only one line, but CSV needs a header and rows; give a file with both"
    return (
        "is text, but neither CSV of numbers below a header nor LEAF's JSON; "
        f"if it is one of {', '.join(FORMATS)}, say so with --format"
    )


def _why_folder_unreadable(folder: Path) -> str | None:
    """Returns why a folder cannot be read, from its first file with a known problem."""
    with suppress(DataError):  # such as a link that leads out of the folder
        for file in islice(walk(folder), _MOST_FILES):
            name, start = file.relative_to(folder), start_of(file, _TORCH_HEAD)
            if _is_of_torch(file):
                return f"holds {name}, which {_torch_advice(file)}"
            if start[:1] == b"\x80" and start[1:2] in _PICKLE_PROTOCOLS:
                return (
                    f"holds {name}, a Python pickle, which is never run; save its arrays with "
                    "numpy.savez, in one file per client if they belong to clients"
                )
            if start.startswith(_HDF5):
                return (
                    f"holds {name}, an HDF5 file; give a single HDF5 file, with all clients in it "
                    "as /examples/CLIENT/pixels and /examples/CLIENT/label"
                )
            if start.lstrip()[:1] == b"{":
                return (
                    f"holds {name}, JSON that is not in LEAF's format; put users, num_samples and "
                    "user_data into it, or save one CSV or npz file per client"
                )
    is_empty = not any(each.is_file() for each in folder.rglob("*"))
    return "is a folder without files; give one with data" if is_empty else None


def _is_of_torch(path: Path) -> bool:
    start = start_of(path, _TORCH_HEAD)
    return start.startswith(b"PK\3\4") and b"/data.pkl" in start


def _torch_advice(path: Path) -> str:
    return (
        "holds PyTorch's tensors in a pickle, which is never run; convert it: "
        f"python -c \"import torch, numpy; x, y = torch.load('{path.name}', "
        "weights_only=True)[:2]; numpy.savez('data.npz', x=x.numpy(), y=y.numpy())\""
    )


def _module(name: str | None) -> Any:
    """The module that reads a format."""
    return load(FORMATS[name or ""].code)


@contextmanager
def _naming_source(source: Path, folder: Path | None) -> Iterator[None]:
    """Turns an OSError into a DataError that names the file."""
    try:
        yield
    except OSError as err:
        reason = err.strerror or str(err)
        if err.errno in _FULL_DISK:
            place = folder or "the system's folder for temporary files"
            raise DataError(
                f"cannot write the pixels to {place} ({reason}); free some space there"
            ) from err
        raise DataError(f"{err.filename or source}: cannot be read ({reason})") from err


def _check_exists(path: Path) -> None:
    try:
        is_there = path.exists()
    except OSError as err:  # the name is too long, or a folder forbids access
        raise DataError(f"{path}: cannot be accessed ({err.strerror}); check the path") from err
    if not is_there:
        raise DataError(f"{path}: there is no such file or folder; check the path")
    if path.is_file():
        with _naming_source(path, None):
            is_of_torch = _is_of_torch(path)
        if is_of_torch:
            raise DataError(f"{path}: {_torch_advice(path)}")
