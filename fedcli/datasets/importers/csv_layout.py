"""The roles of the columns of a CSV file: labels, owners, splits, pixels, or unused."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from fedcli.dataclass import dataclass
from fedcli.datasets.importers import picture_tables, split_names
from fedcli.datasets.importers.picture_tables import OWNER_COLUMNS
from fedcli.datasets.importers.recognising import ImportOptions
from fedcli.errors import ConfigError, DataError

ID_COLUMNS = OWNER_COLUMNS
_FIRST_LABELS = ("label", "y", "class", "target", "digit")
LABEL_COLUMNS = tuple(dict.fromkeys((*_FIRST_LABELS, *picture_tables.LABEL_COLUMNS)))
SPLIT_COLUMNS = ("split", "usage", "set", "subset", "partition", "phase")
# Columns that are never pixels: row numbers, names, and usual names of splits and labels.
_NEVER_PIXELS = re.compile(
    r"(?:unnamed[:_ ]*\d+|(?:row|image|img|sample|example)?[-_ ]?(?:id|idx|index|name|number)|"
    r"file(?:[-_ ]?name)?|path|source|date|time(?:stamp)?|fold|weight|"
    rf"{'|'.join(SPLIT_COLUMNS)})?",
    re.IGNORECASE,
)
_LEAST_ALIKE = 0.9  # share of the pixel columns whose names must be equal except for their numbers
LEAST_COLUMNS = 16  # with fewer columns, their names prove nothing
_LEAST_PACKED = 4  # a field with at least this many numbers holds an image
_DELIMITERS = ",;\t"
_BETWEEN = str.maketrans(dict.fromkeys("[](),", " "))
MAX_COLUMNS = 1 << 20
_SHOWN = 5  # columns named in a note


@dataclass(frozen=True)
class Layout:
    """The positions of the columns in a row.

    Attributes:
        columns: The names in the header.
        delimiter: The text between fields.
        label: The index of the labels.
        owner: The index of the owners' ids; None: there are none.
        split: The index of the names of splits; None: there are none.
        pixels: The indices of the pixels; one index if `is_packed`.
        is_packed: Whether all pixels of an image are in one field, separated by spaces.
        num_pixels: The number of pixels of an image.
        notes: A line about columns that were left out, if there are any.
        left_out: The names of these columns.
    """

    columns: list[str]
    delimiter: str
    label: int
    owner: int | None
    split: int | None
    pixels: list[int]
    is_packed: bool
    num_pixels: int
    notes: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def read_layout(header: str, rows: Sequence[str], options: ImportOptions, where: str) -> Layout:
    """Returns the roles of the columns.

    Args:
        header: The first line.
        rows: Some of the lines below it.
        options: `label_column`, `id_column` and `splits` apply.
        where: Prefix of error messages.

    Raises:
        ConfigError: A column that an option names does not exist.
        DataError: The line is not a header, or has no column of labels.
    """
    try:
        delimiter = delimiter_of(header)
        columns = [name.strip() for name in split_line(header, delimiter)]
    except csv.Error as err:
        raise DataError(f"{where}: the header cannot be read ({err})") from err
    if len(columns) < 2 or len(columns) > MAX_COLUMNS:
        raise DataError(
            f"{where}: has {len(columns)} columns; the first line must name a column of labels "
            "and one column per pixel, separated by commas"
        )
    if _looks_like_data(columns):
        raise DataError(
            f"{where} looks like data, not like a header: {_some(columns)}; put a line of "
            "names above it, in which the labels' column is called label, as in label,1,2,3"
        )
    label = _find_column(columns, options.label_column, LABEL_COLUMNS, "--label-column", where)
    owner = _find_column(columns, options.id_column, ID_COLUMNS, "--id-column", where)
    if label is None:
        raise DataError(
            f"{where}: no column of labels ({', '.join(LABEL_COLUMNS[:5])}) among "
            f"{_some(columns)}; name it with --label-column"
        )
    if label == owner:
        raise ConfigError(f"{where}: --label-column and --id-column are both {columns[label]}")
    fields = _whole_rows(rows, delimiter, len(columns))
    split = None
    if options.splits != {}:
        split = _split_column(columns, fields, (label, owner), is_given=bool(options.splits))
    places = [i for i in range(len(columns)) if i not in (label, owner, split)]
    packed = _packed_column(places, fields)
    pixels = [packed] if packed is not None else _pixel_columns(columns, places)
    no_pixels = sorted(
        set(places).difference(pixels)
    )  # a set, because there may be a million columns
    left_out = [columns[i] or "(without a name)" for i in no_pixels]
    notes: tuple[str, ...] = ()
    if left_out:
        notes = (
            f"columns that are not pixels were left out: {_some(left_out)} ({len(left_out)} of "
            f"{len(columns)} columns)",
        )
    num_pixels = len(pixels) if packed is None else len(spaced(fields[0][packed]).split())
    return Layout(
        columns,
        delimiter,
        label,
        owner,
        split,
        pixels,
        packed is not None,
        num_pixels,
        notes,
        tuple(left_out),
    )


def has_label_column(header: str, options: ImportOptions) -> bool:
    """Returns whether a header has the column of --label-column, by default any usual column."""
    columns = [name.strip() for name in split_line(header, delimiter_of(header))]
    if options.label_column is not None:
        return options.label_column in columns
    return not {name.lower() for name in columns}.isdisjoint(LABEL_COLUMNS)


def splits_of(values: Sequence[str], splits: dict[str, str] | None, where: str) -> dict[str, str]:
    """Returns the split of each value in a column of splits, as --splits or the values say.

    Raises:
        ConfigError: --splits names a value that does not occur.
        DataError: A value names no split, or two values name the same split.
    """
    if splits is not None:
        by_value = {value: split for split, value in splits.items()}
        missing = next((value for value in by_value if value not in values), None)
        if missing is not None:
            raise ConfigError(f"--splits: {where} has no value {missing!r} but {_some(values)}")
        return by_value
    usages = {
        value: split_names.USAGES[value.lower()]
        for value in values
        if value.lower() in split_names.USAGES
    }
    others = [value for value in values if value not in usages]
    unknown = next((value for value in others if split_names.kind_of(value) is None), None)
    if unknown is not None:
        raise DataError(
            f"{where}: {unknown[:40]!r} is not the name of a split; say which values are splits, "
            "as in --splits train=Training,test=Testing, or choose --splits none"
        )
    if usages:
        return usages | dict.fromkeys(others, "train")
    return split_names.assign(others, where)


def delimiter_of(header: str) -> str:
    """Returns the delimiter between the fields of a header."""
    return max(_DELIMITERS, key=header.count)


def split_line(line: str, delimiter: str) -> list[str]:
    """Returns the fields of a line. Raises csv.Error if its quotes do not match."""
    if '"' not in line:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, strict=True))


def is_number(text: str) -> bool:
    """Returns whether a field is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_packed(text: str) -> bool:
    """Returns whether a field holds the numbers of a whole image."""
    parts = spaced(text).split()
    return len(parts) >= _LEAST_PACKED and all(map(is_number, parts))


def spaced(text: str) -> str:
    """Returns the numbers of a field separated by spaces only, without commas and brackets."""
    return text.translate(_BETWEEN)


def _whole_rows(rows: Sequence[str], delimiter: str, num_columns: int) -> list[list[str]]:
    """Returns the fields of the lines that have as many fields as the header."""
    whole = []
    for row in rows:
        with suppress(csv.Error):  # reported when the row is read
            fields = split_line(row, delimiter)
            if len(fields) == num_columns:
                whole.append(fields)
    return whole


def _split_column(
    columns: Sequence[str],
    fields: Sequence[Sequence[str]],
    taken: Sequence[int | None],
    *,
    is_given: bool,
) -> int | None:
    """Returns the index of the column whose values name splits."""
    for place, name in enumerate(columns):
        if place in taken or name.lower() not in SPLIT_COLUMNS:
            continue
        values = [row[place].strip() for row in fields]
        if is_given or (values and all(split_names.kind_of(value) for value in values)):
            return place
    return None


def _packed_column(places: Sequence[int], fields: Sequence[Sequence[str]]) -> int | None:
    """Returns the index of the only column whose fields hold whole images, or None."""
    packed = [i for i in places if fields and all(is_packed(row[i]) for row in fields)]
    return packed[0] if len(packed) == 1 else None


def _pixel_columns(columns: Sequence[str], places: Sequence[int]) -> list[int]:
    """Returns the indices of the pixel columns.

    A pixel column has no other role. Its name follows the commonest pattern; if too few names do,
    every name that `_NEVER_PIXELS` does not match is that of a pixel column.
    """
    stems = {i: re.sub(r"\d+", "#", columns[i].lower()) for i in places}
    stem, count = Counter(stems.values()).most_common(1)[0] if stems else ("", 0)
    is_regular = len(places) >= LEAST_COLUMNS and count >= _LEAST_ALIKE * len(places)
    if is_regular:
        return [i for i in places if stems[i] == stem]
    return [i for i in places if not _NEVER_PIXELS.fullmatch(columns[i])]


def _find_column(
    columns: list[str], wanted: str | None, usual: tuple[str, ...], option: str, where: str
) -> int | None:
    """Returns the index of the column that an option names, or of the first usual name, or None."""
    if wanted is not None and wanted not in columns:
        raise ConfigError(f"{option} {wanted}: no such column in {where}; it has {_some(columns)}")
    lower = [name.lower() for name in columns]
    name = next((name for name in usual if name in lower), None) if wanted is None else wanted
    if name is None:
        return None
    names = lower if wanted is None else columns
    places = [place for place, each in enumerate(names) if each == name]
    if len(places) > 1:
        raise DataError(f"{where}: column {name!r} occurs {len(places)} times; rename all but one")
    return places[0]


def _looks_like_data(columns: list[str]) -> bool:
    """Whether a header is a row of data: most names are numbers, and these are not rising."""
    numbers = [float(name) for name in columns if is_number(name)]
    is_rising = all(one < next_one for one, next_one in pairwise(numbers))
    return 2 * len(numbers) > len(columns) and not is_rising


def _some(columns: Sequence[str]) -> str:
    listed = ", ".join(name[:40] for name in columns[:10])
    return f"{listed}, …" if len(columns) > 10 else listed
