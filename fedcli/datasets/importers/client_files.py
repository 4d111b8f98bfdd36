"""One file per client: CSV, npz, Parquet, or a pair of .npy files. The path names the client.

    0.npz 1.npz             train/0.npz test/0.npz          client-0/data.csv client-1/data.csv
    x_ann.npy y_ann.npy     ann/x.npy ann/y.npy             client-0/train.npz client-0/test.npz

The meaning of a path follows from the names in it (folders and file). Names that are equal in all
paths are ignored. A name such as "train" gives the split (see `split_names`). The remaining name is
the client. If the files differ only in the name of their split (train.csv, test.csv), they are the
splits of a source without clients. If a file has a column of owners, the column overrides the
file's name. A CSV file without a column of labels (a competition's test.csv) or without pixels (a
sample submission) is left out if other files have both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcli.dataclass import dataclass
from fedcli.datasets.batches import decode
from fedcli.datasets.importers import csv_files, npy_files, npz, parquet, shared, split_names
from fedcli.datasets.importers.picture_files import walk
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import ConfigError, DataError, plural
from fedcli.progress import ProgressCallback
from fedcli.settings.vocabulary import SPLITS

_MAX_DEPTH = 4  # largest number of folders above a file
_SHOWN = 8  # names in a note
_MAX_OPENED = 1000  # largest number of files of a folder that `recognises` opens
_READERS: Mapping[str, Any] = {
    "csv": csv_files,
    "npz": npz,
    "npy": npy_files,
    "parquet": parquet,
}
_STANDARDISED = "standardised"


@dataclass(frozen=True)
class _Unit:
    """The input of one call of a reader: a file, or the .npy files of one client.

    Attributes:
        reader: A key of _READERS.
        paths: The files.
        names: The folders below the source, and the name of the file without its ending.
    """

    reader: str
    paths: tuple[Path, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Placed:
    """A unit with its split and its client, each None if the path does not name it."""

    unit: _Unit
    split: str | None
    client_id: str | None


@dataclass
class _Labels:
    """Common class numbers for files whose own class numbers differ.

    Attributes:
        codes: For each value or name, a provisional number, in order of appearance.
        are_names: Whether a file names its classes.
    """

    codes: dict[str, int] = field(default_factory=dict)
    are_names: bool = False

    def encode(self, table: ExampleTable, names: Sequence[str]) -> np.ndarray[Any, np.dtype[Any]]:
        """Returns the labels of a table as provisional numbers, int64 [n]."""
        self.are_names |= bool(names)
        values, places = np.unique(table.labels, return_inverse=True)
        texts = [names[value] if names else str(value) for value in values.tolist()]
        codes = [self.codes.setdefault(text, len(self.codes)) for text in texts]
        return np.array(codes, np.int64)[places]

    def decode(self, table: ExampleTable) -> ExampleTable:
        """Returns a table with final labels: the numbers of the source, or indices into `names`."""
        places = {name: place for place, name in enumerate(self.names())}
        values = [places[text] if places else int(text) for text in self.codes]
        return replace(table, labels=np.array(values, np.int32)[table.labels])

    def names(self) -> list[str]:
        """Returns the names of the classes, or [] if all labels are numbers."""
        return sorted(self.codes, key=_number_first) if self.are_names else []


def recognises(path: Path) -> bool:
    """Returns whether a folder holds files that one of the readers recognises."""
    if not path.is_dir():
        return False
    with suppress(DataError):  # `read` reports the error
        for number, file in enumerate(walk(path, _MAX_DEPTH)):
            if _reader_of(file) is not None:
                return True
            if number > _MAX_OPENED:
                break
    return False


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the examples of all files, each owned by the client that its path names.

    The range of pixels is the widest range of any file. Labels are matched by value, or by name if
    a file names its classes.

    Args:
        sources: A folder, or the files.
        options: The options of the files' format, and `splits`.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of examples read.

    Raises:
        ConfigError: An option does not fit the files.
        DataError: A file cannot be used, or a file's name does not name its client.
        OSError: A file cannot be read, or the disk is full.
    """
    title = str(sources[0] if len(sources) == 1 else Path(os.path.commonpath(sources)))
    units, left_out = _with_labels(_find_units(sources), options)
    if len(units) == 1:
        return _read_alone(units[0], title, left_out, options, folder, on_progress)
    placed, why = _place(units, title, options.splits)
    contents = _read_all(placed, title, options, folder, on_progress)
    if len(contents.ranges) > 1:
        widest = _widest(contents.ranges, title)
        options = replace(options, pixel_range=widest.replace(" to ", "-"))
        contents = _read_all(placed, title, options, folder, on_progress)
    owners = [set(table.owner_ids) for table in contents.tables.values()]
    has_owners = any(owners)
    convention, why_polarity = shared.polarity_of(contents.tables)
    formats = sorted({each.unit.reader for each in placed})
    by_file = has_owners and not contents.have_owners
    return shared.imported(
        contents.tables,
        options,
        source=title,
        pixel_convention=convention,
        class_names=contents.labels.names(),
        same_people=len(owners) == 1 or not owners[0].isdisjoint(*owners[1:]),
        notes=(*left_out, *contents.notes),
        pixel_range=next(iter(contents.ranges)),
        evidence={
            **why,
            "owners": why["owners"] if by_file else contents.why_owners,
            "range": "the largest pixel of all files",
            "polarity": why_polarity,
            "classes": f"all labels of {plural(len(units), 'file')} ({', '.join(formats)})",
        },
        overrides={"splits": "--splits", "range": "--pixel-range", "owners": "--id-column"},
    )


# ---- Which files ---------------------------------------------------------------------------------


def _reader_of(path: Path) -> str | None:
    """Returns the reader of a file, by its content, or None if no reader recognises it."""
    if npy_files.has_signature(path) or npy_files.holds_one_array(path):
        return "npy"
    names = ("npz", "parquet", "csv")
    return next((name for name in names if _READERS[name].recognises(path)), None)


def _find_units(sources: Sequence[Path]) -> list[_Unit]:
    """Returns the units of the sources, sorted by path."""
    files: list[tuple[Path, tuple[str, ...]]] = []
    for source in sources:
        if source.is_dir():
            inside = walk(source, _MAX_DEPTH)
            files += [(path, path.relative_to(source).parts) for path in inside]
        else:
            files.append((source, source.absolute().parts[-_MAX_DEPTH:]))
    units = []
    arrays: dict[tuple[str, ...], list[Path]] = {}
    for path, parts in files:
        reader = _reader_of(path)
        if reader == "npy":
            arrays.setdefault((*parts[:-1], *_npy_name(path)), []).append(path)
        elif reader is not None:
            units.append(_Unit(reader, (path,), (*parts[:-1], path.stem)))
    units += [_Unit("npy", tuple(paths), names) for names, paths in arrays.items()]
    if not units:
        raise DataError(
            f"{sources[0]}: holds no CSV, npz, Parquet or .npy files with rows of pixels; give at "
            "least one"
        )
    return sorted(units, key=lambda each: [_number_first(name) for name in each.names])


def _npy_name(path: Path) -> tuple[str, ...]:
    """Returns the client in the name of an array's file; () for x.npy and x_train.npy."""
    role = npy_files.role_of(path.stem)
    rest = path.stem if role is None else role[1]
    return (rest,) if role and rest and split_names.kind_of(rest) is None else ()


def _number_first(name: str) -> tuple[int, str]:
    """Sorts "2" before "10", and numbers before names."""
    is_number = name.isascii() and name.isdigit() and len(name) < 10
    return (int(name) if is_number else 10**10, name)


def _with_labels(units: list[_Unit], options: ImportOptions) -> tuple[list[_Unit], tuple[str, ...]]:
    """Leaves out CSV files without labels or pixels if other files have both; adds notes."""
    if len(units) < 2:
        return units, ()
    missing: dict[Path, str] = {}
    for unit in units:
        path = unit.paths[0]
        if unit.reader == "csv" and not csv_files.has_labels(path, options):
            missing[path] = "has no column of labels"
        elif unit.reader == "csv" and not csv_files.holds_pixels(path):
            missing[path] = "has no columns of pixels"
    kept = [unit for unit in units if unit.paths[0] not in missing]
    if not kept or not missing:
        return units, ()
    return kept, tuple(f"{path} was left out: it {why}" for path, why in missing.items())


def _read_alone(
    unit: _Unit,
    title: str,
    left_out: Sequence[str],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Reads the only data file of a folder, and adds a note that says so."""
    imported: Imported = _READERS[unit.reader].read(list(unit.paths), options, folder, on_progress)
    names = ", ".join(path.name for path in unit.paths[:_SHOWN])
    note = f"{title} holds {plural(len(unit.paths), 'file')} with data: {names}"
    return replace(imported, notes=(note, *left_out, *imported.notes))


# ---- Splits and clients from paths ---------------------------------------------------------------


def _place(
    units: list[_Unit], title: str, splits: Mapping[str, str] | None
) -> tuple[list[_Placed], dict[str, str]]:
    """Returns each unit with its split and client, and the evidence for these."""
    rows = _without_common([each.names for each in units])
    found, level = _find_splits(rows, title, splits)
    names = [_without_split(row, level, found) for row in rows]
    of_split = [found.get(row[level]) if level is not None else None for row in rows]
    by_split: dict[str | None, list[tuple[str, ...]]] = {}
    for split, name in zip(of_split, names, strict=True):
        by_split.setdefault(split, []).append(name)
    has_clients = any(len(inside) > 1 for inside in by_split.values())
    cut = _without_common(names) if has_clients else [()] * len(names)
    deep = next((name for name in cut if len(name) > 1), None)
    if deep is not None:
        raise DataError(
            f"{title}: {'/'.join(deep)} may belong to client {deep[0]!r} or be another client; "
            "put the data of each client into one file, or all files into one folder"
        )
    if has_clients and any(not name for name in cut):
        raise DataError(
            f"{title}: not every file is named after a client; give each the name of its client, "
            "as in ann.csv"
        )
    placed = []
    for unit, split, name in zip(units, of_split, cut, strict=True):
        client_id = shared.check_id(name[0], str(unit.paths[0])) if name else None
        placed.append(_Placed(unit, split, client_id))
    _check_once(placed, title)
    listed = ", ".join(f"{name} is {split}" for name, split in found.items())
    why = {
        "owners": (
            "one file per client, named after it" if has_clients else "the files name no owners"
        ),
        **({"splits": f"by names: {listed}"} if found else {}),
    }
    return placed, why


def _without_common(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Returns paths without the names at their start and end that are equal in all paths."""
    cut = list(rows)
    while all(cut) and len({row[0] for row in cut}) == 1:
        cut = [row[1:] for row in cut]
    while all(cut) and len({row[-1] for row in cut}) == 1:
        cut = [row[:-1] for row in cut]
    return cut


def _find_splits(
    rows: Sequence[tuple[str, ...]], title: str, given: Mapping[str, str] | None
) -> tuple[dict[str, str], int | None]:
    """Returns the split of each name, and the position of these names in a path; or {} and None."""
    if given is not None and not given:
        return {}, None
    depth = min(map(len, rows))
    for level in (*range(depth), -1):
        names = list(dict.fromkeys(row[level] for row in rows if row))
        if given:
            found = {name: split for split, name in given.items()}
            if set(found) <= set(names):
                if len(found) < len(names):
                    other = next(name for name in names if name not in found)
                    raise DataError(
                        f"{title}: --splits does not say which split {other} is; name all such "
                        "folders or files"
                    )
                return found, level
            continue
        kinds = {name: split_names.kind_of(name) for name in names}
        if None in kinds.values() or len(set(kinds.values())) < 2 or "train" not in kinds.values():
            continue
        if len(names) == len(set(kinds.values())):
            return split_names.assign(names, title), level
        # ann_train.npz, ann_test.npz, bob_train.npz: a split in the name of each file
        splits = split_names.assign({kind: kind for kind in kinds.values() if kind}, title)
        return {name: splits[kind] for name, kind in kinds.items() if kind}, level
    if given:
        raise ConfigError(
            f"--splits: no files or folders in {title} have these names; check the names"
        )
    return {}, None


def _without_split(
    row: tuple[str, ...], level: int | None, found: Mapping[str, str]
) -> tuple[str, ...]:
    """Returns a path without the name of its split; the rest of that name is kept."""
    if level is None:
        return row
    place = level % len(row)
    words = [word for word in re.split(r"[-_ .]", row[place]) if not split_names.kind_of(word)]
    is_shared = len(found) > len(set(found.values()))
    rest = ("_".join(words),) if is_shared and any(words) else ()
    return (*row[:place], *rest, *row[place + 1 :])


def _check_once(placed: Sequence[_Placed], title: str) -> None:
    """Refuses two files of one client in one split."""
    seen: dict[tuple[str | None, str | None], Path] = {}
    for each in placed:
        other = seen.setdefault((each.split, each.client_id), each.unit.paths[0])
        if other != each.unit.paths[0]:
            raise DataError(
                f"{title}: {other} and {each.unit.paths[0]} would both be client "
                f"{each.client_id!r}; give each client one file per split"
            )


# ---- Contents of the files -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Range:
    """One of the files with the same range of pixels; preferably a file with fractional pixels.

    Attributes:
        path: The file.
        has_fractions: Whether some pixel of the file is not a whole number. Then its pixels are
            not grey levels of a wider range.
    """

    path: Path
    has_fractions: bool


@dataclass
class _Found:
    """The contents of all files.

    Attributes:
        tables: By split, train first.
        labels: The classes.
        ranges: For each range of pixels, such as "0 to 1", a file with this range.
        have_owners: Whether the files have a column of owners.
        why_owners: The evidence for the owners.
        notes: The notes on the first file.
    """

    tables: dict[str, ExampleTable]
    labels: _Labels
    ranges: dict[str, _Range]
    have_owners: bool
    why_owners: str
    notes: tuple[str, ...]


def _read_all(
    placed: Sequence[_Placed],
    title: str,
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> _Found:
    """Reads all files, each with its own range of pixels."""
    labels = _Labels()
    ranges: dict[str, _Range] = {}
    notes: dict[str, None] = {}
    done = 0
    why_owners, first_owned = "", None
    unchecked = replace(options, num_classes=None)  # a single file need not have all classes
    with ExitStack() as stack:
        writers: dict[str, TableWriter] = {}
        for each in placed:
            imported = _READERS[each.unit.reader].read(
                list(each.unit.paths),
                unchecked,
                folder,
                _progress_after(on_progress, done),
            )
            description = imported.description
            value = description.range.value
            if value.startswith(_STANDARDISED):
                value = _STANDARDISED  # the limits of standardised pixels differ between files
            if value not in ranges or not ranges[value].has_fractions:
                ranges[value] = _Range(each.unit.paths[0], _has_fractions(imported, value))
            is_owned = bool(len(next(iter(imported.tables.values())).owner_ids))
            if first_owned is None:
                first_owned, why_owners = is_owned, description.owners.evidence
                notes.update(dict.fromkeys(imported.notes))
            if is_owned != first_owned:
                raise DataError(
                    f"{each.unit.paths[0]} and {placed[0].unit.paths[0]}: only one has a column "
                    "of client ids; give all files such a column, or none"
                )
            for split, table in _splits_of(each, imported):
                if split not in writers:
                    writers[split] = stack.enter_context(TableWriter(f"{title}: {split}", folder))
                codes = labels.encode(table, imported.class_names)
                _copy(table, codes, writers[split], each)
                done += len(table)
                on_progress(done, None)
        tables = {split: writers[split].table() for split in SPLITS if split in writers}
    return _Found(
        {split: labels.decode(table) for split, table in tables.items()},
        labels,
        ranges,
        bool(first_owned),
        why_owners,
        tuple(notes),
    )


def _splits_of(placed: _Placed, imported: Imported) -> Iterator[tuple[str, ExampleTable]]:
    """Returns the tables of a file by split: the splits in the file, or the split of its path."""
    if placed.split is None:
        yield from imported.tables.items()
        return
    if len(imported.tables) > 1:
        raise DataError(
            f"{placed.unit.paths[0]}: holds splits {', '.join(imported.tables)}, but its name "
            f"says that it is split {placed.split!r}; rename it, or choose --splits none to "
            "ignore the name"
        )
    yield placed.split, next(iter(imported.tables.values()))


def _copy(table: ExampleTable, codes: Any, writer: TableWriter, placed: _Placed) -> None:
    """Appends the examples of a file; `codes` are their labels."""
    owner_ids = list(table.owner_ids)
    for first, last in shared.blocks(len(table), table.pixels.shape[1:], table.pixels.itemsize):
        owners: str | list[str] | None = placed.client_id
        if owner_ids:
            owners = [owner_ids[owner] for owner in table.owners[first:last].tolist()]
        writer.add(
            table.pixels[first:last],
            codes[first:last],
            scale=table.scale,
            offset=table.offset,
            owners=owners,
            where=str(placed.unit.paths[0]),
        )


def _progress_after(on_progress: ProgressCallback, done: int) -> ProgressCallback:
    """Returns a callback for the import of one file.

    It adds `done`, the examples of earlier files, to the count, and leaves out the total.
    """
    return lambda count, _: on_progress(done + count, None)


def _has_fractions(imported: Imported, pixel_range: str) -> bool:
    """Whether the range ends at 1 and some pixel is a fraction, or pixels are standardised."""
    if pixel_range == _STANDARDISED:
        return True
    if _top(pixel_range) > 1:
        return False
    for table in imported.tables.values():
        for first, last in shared.blocks(len(table), table.pixels.shape[1:], 4):
            pixels = decode(table.pixels[first:last], table.scale, table.offset)
            if (np.rint(pixels) != pixels).any():
                return True
    return False


def _widest(ranges: Mapping[str, _Range], title: str) -> str:
    """Returns the widest range of the files. Files with a narrower range may hold dark images.

    Raises:
        DataError: The ranges differ, and some pixels are not whole numbers.
    """
    if _STANDARDISED in ranges:
        other = next(value for value in ranges if value != _STANDARDISED)
        raise DataError(
            f"{ranges[other].path}: pixels range over {other}, but in {ranges[_STANDARDISED].path} "
            f"they are standardised; rescale the files in {title} to one range, or choose "
            "--pixel-range"
        )
    widest = max(ranges, key=_top)
    for value, example in ranges.items():
        if value != widest and example.has_fractions:
            raise DataError(
                f"{example.path}: pixels range over {value}, but in {ranges[widest].path} over "
                f"{widest}; rescale the files in {title} to one range, or choose --pixel-range"
            )
    return widest


def _top(pixel_range: str) -> float:
    return float(pixel_range.rpartition(" ")[2])
