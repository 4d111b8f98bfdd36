"""MATLAB files beside pictures, whose labels are read as a table of `picture_tables`.

Oxford's Flowers have a vector of the labels of all pictures, in the order of the numbers in the
file names, and for each split a vector of picture numbers. Stanford's Cars have a structure with
one row per picture, one of whose fields is the name of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.importers import matlab, split_names
from fedcli.datasets.importers.picture_tables import Table
from fedcli.datasets.importers.source_files import start_of

_MOST_FILES = 16  # if there are more files, they are annotations of single pictures
_FILES, _SPLITS = "file", "split"  # columns
_IDS = re.compile(r"(?:[-_ ]?(?:ids?|idxs?|ind(?:ex|ices)?))$", re.IGNORECASE)


def files_among(paths: Sequence[Path]) -> list[Path]:
    """Returns the MATLAB files among some files; none if they are too many to be tables."""
    found = [path for path in paths if path.suffix.lower() == ".mat"]
    if len(found) > _MOST_FILES:
        return []
    return [path for path in found if start_of(path, 10) in matlab.SIGNATURES]


def read_tables(paths: Sequence[Path], pictures: Sequence[Path]) -> list[Table]:
    """Returns tables of the labels and splits of pictures, read from MATLAB files.

    Args:
        paths: The MATLAB files.
        pictures: All pictures of the source.

    Raises:
        ConfigError: SciPy is needed and not installed.
        DataError: A file is damaged.
        OSError: A file cannot be read.
    """
    arrays: dict[Path, dict[str, Any]] = {path: matlab.load(path) for path in paths}
    tables = [
        table
        for path, found in arrays.items()
        for value in found.values()
        if (table := _table_of_rows(path, value)) is not None
    ]
    vectors = _table_of_vectors(arrays, pictures)
    return [*tables, *([vectors] if vectors is not None else [])]


def _table_of_rows(path: Path, value: NDArray[Any]) -> Table | None:
    """Converts a structure of several rows to a table in which each field is a column."""
    if not value.dtype.names:
        return None
    rows = [
        (number, [_text(row[name]) for name in value.dtype.names])
        for number, row in enumerate(value.reshape(-1), start=1)
    ]
    return Table(path, value.dtype.names, rows, True)


def _text(value: Any) -> str:
    """Returns a field as text if it is a single text or number, else ""."""
    plain = value
    while isinstance(plain, np.ndarray) and plain.size == 1:
        plain = plain.reshape(-1)[0]
    return "" if isinstance(plain, np.ndarray) else str(plain)


def _number(value: Any) -> str:
    """Returns a number as text with all digits, because ids may have many; 3.0 becomes "3"."""
    return f"{value.item():.17g}"


def _table_of_vectors(
    arrays: Mapping[Path, Mapping[str, Any]], pictures: Sequence[Path]
) -> Table | None:
    """Makes a table of vectors with a value per picture, and of the picture numbers of splits."""
    by_number = _numbered(pictures)
    if not by_number:
        return None
    count = len(pictures)
    columns: dict[str, NDArray[Any]] = {}
    of_split: dict[int, str] = {}
    place = None
    for path, found in arrays.items():
        for name, value in found.items():
            is_vector = value.dtype.kind in "iuf" and value.size == max(value.shape, default=0)
            if not is_vector or not np.isfinite(value).all():
                continue
            values = value.reshape(-1)
            kind = split_names.kind_of(_IDS.sub("", name))
            if kind is not None:
                of_split |= dict.fromkeys(map(int, values.tolist()), kind)
            elif len(values) == count:
                columns[name] = values
                place = place or path
    if place is None:
        return None
    names = (_FILES, *columns, *([_SPLITS] if of_split else []))
    rows = []
    for index, number in enumerate(sorted(by_number)):
        fields = [by_number[number].name, *(_number(each[index]) for each in columns.values())]
        if of_split:
            fields.append(of_split.get(number, ""))
        rows.append((number, fields))
    return Table(place, names, rows, True)


def _numbered(pictures: Sequence[Path]) -> dict[int, Path]:
    """The pictures by the numbers at the end of their names; {} if these are not 1, 2, 3, ..."""
    found = {}
    for path in pictures:
        match = re.search(r"([0-9]{1,9})$", path.stem)
        if match is not None:
            found[int(match[1])] = path
    is_complete = len(found) == len(pictures) and set(found) == set(range(1, len(pictures) + 1))
    return found if is_complete else {}
