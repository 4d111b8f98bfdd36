"""Tables beside pictures, which give the label, the owner and the split of each picture.

A table is text with commas, tabs, semicolons or spaces, with or without a header, or JSON with an
object per line. The column of file names is the one whose values name existing pictures. Columns of
labels, owners and splits have usual names; a table's only other column may have any name. Several
tables of the same pictures (CelebA's attributes, identities and partition) are joined. Tables that
are named after splits (Food-101's meta/train.txt and meta/test.txt) list their pictures. Lines that
begin with "#" are comments. A competition's sample submission is ignored.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import TextIO

from fedcli.dataclass import dataclass
from fedcli.datasets.importers import split_names
from fedcli.datasets.importers.picture_files import SUFFIXES
from fedcli.datasets.importers.source_files import start_of
from fedcli.errors import ConfigError, DataError
from fedcli.files import open_regular

_JSON_LINES = ".jsonl"  # a file with one JSON object per line
TABLE_SUFFIXES = {".csv", ".tsv", ".txt", ".tab", ".dat", _JSON_LINES}
OWNER_COLUMNS = (
    *("client_id", "client", "writer_id", "writer", "user_id", "user", "owner_id", "owner"),
    *("subject_id", "subject", "patient_id", "patient", "person_id", "person"),
    *("identity", "celeb", "celebrity", "author", "photographer", "participant"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "classname", "class_id", "classid", "y"),
    *("target", "label_id", "labelid", "label_name", "category", "category_name", "category_id"),
    *("species", "breed", "digit", "emotion", "diagnosis", "dx", "expression"),
)
SPLIT_COLUMNS = ("split", "partition", "set", "subset", "fold", "usage", "phase", "dataset")
# The meaning of numbers in a column of splits, as in CelebA's list_eval_partition.
_NUMBERED_SPLITS = {"0": "train", "1": "validation", "2": "test"}
MAX_TABLE_BYTES = 512 << 20
_MAX_LINE = 1 << 20  # characters
_MAX_COLUMNS = 4096
_START_BYTES = 1 << 16  # number of bytes from which a table is recognised
_MOST_STEM_COLUMNS = 512  # a table of file names without endings has fewer columns; more are pixels
_MOST_STEM_LISTS = 64  # if there are more .txt files, each describes a single picture
_SUBMISSION = re.compile(
    r"(?:sample|example|gender)?[-_ ]*submi(?:ssion|t)s?(?:[-_ ]?\d+)?", re.IGNORECASE
)
_COMMENT = re.compile(r"#(?![,;\t|])")
_LEAST_SHARE = 0.5  # share of the rows that must name pictures
_SHOWN = 8  # columns in a message
_WHOLE = re.compile(r"[+-]?0*([0-9]{1,18})(?:\.0*)?")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?")
_HOT = {"0": False, "0.0": False, "1": True, "1.0": True}
_MISSING = {"", "nan", "na", "n/a", "null", "none", "?"}


@dataclass(frozen=True)
class Table:
    """A text file of rows.

    Attributes:
        path: The file.
        columns: The names of the columns; without a header, numbers from "1" on.
        rows: Fields of each row with its line number.
        has_header: Whether the file has a line of names.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[int, list[str]]]
    has_header: bool


@dataclass
class Rows:
    """The joined rows of all tables, by picture.

    Attributes:
        fields: For each picture, a mapping from column name to (text, position in its file for
            messages).
        columns: All columns but those of file names.
        tables: The files, in the order they were read.
        table_of: For each picture, the first table that names it.
        num_unknown: Number of rows that name no picture.
        file_columns: The column of file names of each table.
        named: For each table, the pictures that it names.
    """

    fields: dict[Path, dict[str, tuple[str, str]]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    table_of: dict[Path, Path] = field(default_factory=dict)
    num_unknown: int = 0
    file_columns: list[str] = field(default_factory=list)
    named: dict[Path, list[Path]] = field(default_factory=dict)


def looks_like_table(path: Path) -> bool:
    """Returns whether a file is text whose first rows name picture files."""
    if not path.is_file() or path.suffix.lower() not in {*TABLE_SUFFIXES, ""}:
        return False
    start = start_of(path, _START_BYTES)
    try:
        text = start.decode("utf-8-sig", "strict" if len(start) < _START_BYTES else "ignore")
    except UnicodeDecodeError:
        return False
    is_json = path.suffix.lower() == _JSON_LINES
    if "\0" in text or ("{" in text[:1] and not is_json):
        return False
    lines = [line for line in text.splitlines()[:6] if line.strip()]
    if len(start) == _START_BYTES and len(lines) > 1:
        lines = lines[:-1]
    return any(
        Path(value.strip().strip('"')).suffix.lower() in SUFFIXES
        for line in lines[1:] or lines
        for value in re.split(r"[,;\t :{}]" if is_json else r"[,;\t ]", line)
    )


def tables_among(paths: Sequence[Path]) -> list[Path]:
    """Returns the files that may be tables of pictures, including files without an ending.

    Sample submissions of competitions are left out: their labels are invented.
    """
    named = [path for path in paths if not _SUBMISSION.fullmatch(path.stem)]
    lists = [path for path in named if path.suffix.lower() == ".txt"]
    are_few = len(lists) <= _MOST_STEM_LISTS
    return [
        path
        for path in named
        if looks_like_table(path) or ((path not in lists or are_few) and _may_name_stems(path))
    ]


def is_certainly_table(path: Path) -> bool:
    """Returns whether a text file is certainly a table: its ending or first rows say so."""
    return path.suffix.lower() in (".csv", ".tsv") or looks_like_table(path)


def _may_name_stems(path: Path) -> bool:
    """Whether a text file may be a table with file names without endings."""
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        return False
    header = start_of(path, _START_BYTES).partition(b"\n")[0]
    return max(map(header.count, (b",", b"\t", b";"))) < _MOST_STEM_COLUMNS


def read_table(path: Path) -> Table:
    """Returns the rows of a text file.

    Raises:
        DataError: It is too large or not UTF-8 text, or its rows differ in their number of fields.
        OSError: It cannot be read.
    """
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DataError(
            f"{path}: is larger than {MAX_TABLE_BYTES >> 20} MB, too large for a table of labels; "
            "leave it out"
        )
    try:
        with io.TextIOWrapper(open_regular(path), "utf-8-sig", newline="") as file:
            lines = [(number, line) for number, line in _numbered(file, path) if line.strip()]
    except UnicodeDecodeError as err:
        raise DataError(f"{path}: not UTF-8 text ({err.reason}); save it as UTF-8") from err
    first = _plain_number(lines[0][1].strip()) if lines else ""
    if first.isascii() and first.isdigit() and len(first) < 10 and int(first) <= len(lines):
        del lines[0]  # CelebA's tables begin with their number of rows
    if path.suffix.lower() == _JSON_LINES and lines:
        return _read_json_lines(lines, path)
    lines = _without_comments(lines)
    if not lines:
        raise DataError(f"{path}: holds no rows; give a column of file names and one of labels")
    delimiter = _delimiter([line for _, line in lines[:6]])
    rows = [(number, _split(line, delimiter, f"{path}: line {number}")) for number, line in lines]
    has_header = len(rows) > 1 and _is_header(rows[0][1], rows[1][1])
    header = rows.pop(0)[1] if has_header else []
    width = len(rows[0][1])
    if has_header and len(header) == width - 1:
        header = ["file", *header]  # if spaces are the delimiters, the header lacks this name
    for number, row in rows:
        if len(row) != width:
            raise DataError(
                f"{path}: line {number}: {len(row)} fields but the rows before have {width}; "
                "correct the row"
            )
    if has_header and len(header) != width:
        raise DataError(
            f"{path}: the header has {len(header)} fields but the rows have {width}; correct it"
        )
    names = header or [str(place + 1) for place in range(width)]
    _check_unique(names, path)
    return Table(path, tuple(names), rows, has_header)


def path_of(table: Path | Table) -> Path:
    """Returns the file of a table."""
    return table.path if isinstance(table, Table) else table


def match_pictures(
    tables: Sequence[Path | Table],
    pictures: Sequence[Path],
    root: Path,
    file_column: str | None,
    folders: Collection[Path] = (),
) -> Rows:
    """Joins the rows of all tables about the pictures; ignores tables that name none of them.

    Args:
        tables: Text files, and tables that were read before. Text files that are not tables are
            skipped.
        pictures: The pictures that tables may name: by a path from the root or from the table's
            folder, by a unique name, or by a unique name without its ending.
        root: The folder of the source.
        file_column: The value of --file-column, the column of file names.
        folders: All folders that hold pictures. A table in one of them names only pictures below
            it.

    Raises:
        ConfigError: No table has the column that `file_column` names.
        DataError: A table cannot be read, or has two rows for one picture.
    """
    rows = Rows()
    finder = _Finder(pictures, root, folders)
    is_found = file_column is None
    for each in tables:
        path = path_of(each)
        try:
            table = each if isinstance(each, Table) else read_table(each)
        except DataError:
            if file_column is not None or (len(tables) == 1 and is_certainly_table(path)):
                raise
            continue
        if file_column is not None and file_column not in table.columns:
            continue
        is_found = True
        place = _file_place(table, finder, file_column)
        if place is not None:
            _join(rows, _with_first_row(table, place, finder), place, finder)
    if not is_found:
        raise ConfigError(
            f"--file-column {file_column}: no table in {root} has that column; "
            f"tables are {', '.join(path_of(each).name for each in tables[:_SHOWN]) or 'none'}"
        )
    return rows


def find_column(
    rows: Rows, names: Sequence[str], given: str | None, option: str, where: str
) -> str | None:
    """Returns the column that an option names, else the first with a usual name, else None.

    Raises:
        ConfigError: The column that the option names does not exist.
    """
    if given is not None:
        if given not in rows.columns:
            raise ConfigError(
                f"{option} {given}: no such column in {where}; it has {listed(rows.columns)}"
            )
        return given
    by_name = {_plain(column): column for column in reversed(rows.columns)}
    return next((by_name[name] for name in map(_plain, names) if name in by_name), None)


def find_labels(
    rows: Rows, given: str | None, taken: Sequence[str | None], known: Sequence[str], where: str
) -> tuple[str, str]:
    """Returns the column of labels and the evidence for it.

    Args:
        rows: The joined tables.
        given: The value of --label-column, or None.
        taken: Columns with another meaning.
        known: The names of class folders. If a column holds these names, it is the column of
            labels.
        where: Prefix of error messages.

    Raises:
        ConfigError: The column that --label-column names does not exist.
        DataError: No column, or more than one, may be the labels.
    """
    free = [name for name in rows.columns if name not in taken]
    if given is not None:
        found = find_column(rows, (), given, "--label-column", where)
        assert found is not None
        return found, "given by --label-column"
    usual = [name for name in free if _plain(name) in map(_plain, LABEL_COLUMNS)]
    if usual:
        others = [name for name in usual[1:] if not _agree(rows, usual[0], name)]
        if others:
            raise DataError(
                f"{where}: columns {usual[0]} and {others[0]} differ and both may be the labels; "
                f"choose one with --label-column {usual[0]}"
            )
        return usual[0], f"column {usual[0]} of {where}"
    if known:
        named = [
            name
            for name in free
            if {known_text(text, known) for text in _texts(rows, name)} <= set(known)
        ]
        if len(named) == 1:
            return named[0], f"column {named[0]} of {where} has the names of the class folders"
    if len(free) == 1:
        return free[0], f"column {free[0]} of {where}, the only one besides the file names"
    few = [name for name in free if not _is_measure(rows, name)]
    if len(few) == 1:
        return few[0], f"column {few[0]} of {where}, the only one with few values"
    hot = _take_one_hot(rows, free)
    if hot is not None:
        return hot, f"columns {listed(free)} of {where}, one of which is 1 in each row"
    if not free:
        raise DataError(f"{where}: has no column of labels; add a column called label")
    example = few[0] if few else free[0]
    raise DataError(
        f"{where}: no column is called label, and each of {listed(few or free)} may be; choose "
        f"one with --label-column, as in --label-column {example}"
    )


def splits_of(rows: Rows, column: str | None) -> dict[str, str]:
    """Returns the split of each value of a column, or {} if the values are not splits."""
    if column is None:
        return {}
    values = list(dict.fromkeys(_texts(rows, column)))
    if values and set(values) <= set(_NUMBERED_SPLITS) and "partition" in column.lower():
        return {value: _NUMBERED_SPLITS[value] for value in values}
    if not all(split_names.kind_of(value) for value in values):
        return {}
    if not any(split_names.kind_of(value) == "train" for value in values):
        return {}
    return split_names.assign(values, f"column {column}")


def splits_by_lists(rows: Rows, num_pictures: int) -> dict[Path, str]:
    """Returns the splits of pictures by the tables that list them, such as train.txt; or {}.

    These tables must include train, and name at least half of the pictures, each once.
    """
    kinds = {table.path: split_names.kind_of(table.path.stem) for table in rows.tables}
    stems = {kind: path.stem for path, kind in kinds.items() if kind is not None}
    if "train" not in stems or len(stems) < 2:
        return {}
    by_stem = split_names.assign(stems.values(), str(rows.tables[0].path.parent))
    found: dict[Path, str] = {}
    num_named = 0
    for path, kind in kinds.items():
        if kind is not None:
            found |= dict.fromkeys(rows.named[path], by_stem[stems[kind]])
            num_named += len(rows.named[path])
    is_complete = num_named == len(found) >= _LEAST_SHARE * num_pictures
    return found if is_complete else {}


def known_text(text: str, known: Collection[str]) -> str:
    """Returns the class folder that a label names, or the label.

    A label names a folder if it, or its first word (as in ImageNet's labels with boxes), is the
    folder's name.
    """
    name = text.strip()
    first = name.partition(" ")[0]
    return first if name not in known and first in known else name


def known_class(name: str, known: Sequence[str], where: str) -> str:
    """Returns the class folder that a label names, by its name or by the value of its number.

    Raises:
        DataError: No class folder has that name or value.
    """
    if name in known:
        return name
    same = [each for each in known if _plain_number(each) == _plain_number(name)]
    if len(same) == 1:
        return same[0]
    raise DataError(
        f"{where}: label {name[:40]!r} is none of the class folders ({listed(known)}); use the "
        "same names in both"
    )


def class_text(text: str, where: str) -> str:
    """Returns a label as the name of a class; 3.0 and 3 give the same name.

    Raises:
        DataError: It is missing; the message starts with `where`.
    """
    value = text.strip()
    if value.lower() in _MISSING:
        raise DataError(
            f"{where}: has no label ({text!r}); give each picture a label, or remove the row"
        )
    match = _WHOLE.fullmatch(value)
    if match is None:
        return value
    return f"-{match[1]}" if value.startswith("-") and match[1].strip("0") else match[1]


def listed(names: Sequence[str]) -> str:
    """Returns the first of some names, for a message."""
    shown = ", ".join(name[:40] for name in names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown or "none"


# ---- Reading text --------------------------------------------------------------------------------


def _numbered(file: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(_MAX_LINE + 1):
        number += 1
        if len(line) > _MAX_LINE:
            raise DataError(
                f"{path}: line {number}: over {_MAX_LINE:,} characters; correct the row"
            )
        yield number, line.rstrip("\r\n")


def _read_json_lines(lines: Sequence[tuple[int, str]], path: Path) -> Table:
    """Returns a table from one object per line.

    Its columns are the fields of the first object that hold texts or numbers.
    """
    rows: list[tuple[int, list[str]]] = []
    names: tuple[str, ...] = ()
    for number, line in lines:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as err:
            raise DataError(f"{path}: line {number}: is not JSON ({err}); correct the row") from err
        if not isinstance(found, dict):
            raise DataError(f"{path}: line {number}: is not a JSON object; correct the row")
        names = names or tuple(name for name in found if not isinstance(found[name], dict | list))
        texts = [found.get(name) for name in names]
        rows.append((number, ["" if each is None else str(each) for each in texts]))
    if not names:
        raise DataError(
            f"{path}: line {lines[0][0]}: no field holds a text or a number; give each object the "
            "name of a file and a label"
        )
    return Table(path, names, rows, True)


def _without_comments(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Leaves out comments.

    A single comment above all rows is kept as the header if it has as many fields as a row.
    """
    marked = [line for line in lines if _COMMENT.match(line[1])]
    plain = [line for line in lines if not _COMMENT.match(line[1])]
    if not marked or not plain:
        return lines
    delimiter = _delimiter([line for _, line in plain[:6]])
    number, text = marked[0]
    head = text.lstrip("# ")
    num_fields = len(_split(plain[0][1], delimiter, ""))
    if len(marked) == 1 and number < plain[0][0] and len(head.split(delimiter)) == num_fields:
        return [(number, head), *plain]
    return plain


def _delimiter(lines: Sequence[str]) -> str:
    """Returns the delimiter: a character that is equally frequent in every line, or a space."""
    for delimiter in ",\t;|":
        counts = {line.count(delimiter) for line in lines if '"' not in line}
        if counts and 0 not in counts and len(counts) == 1:
            return delimiter
    return "," if all("," in line for line in lines) else " "


def _split(line: str, delimiter: str, where: str) -> list[str]:
    if delimiter == " ":
        return line.split()
    try:
        fields = next(csv.reader([line], delimiter=delimiter))
    except csv.Error as err:
        raise DataError(f"{where}: its quotes do not match ({err}); correct the row") from err
    if len(fields) > _MAX_COLUMNS:
        raise DataError(
            f"{where}: has over {_MAX_COLUMNS:,} fields, too many for a table of labels; leave the "
            "file out"
        )
    return [text.strip() for text in fields]


def _check_unique(names: Sequence[str], path: Path) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: column {name!r} occurs {count} times; rename all but one")


def _is_header(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the first of two rows is a header.

    A header names no picture, and no column has a number in both rows.
    """
    return not any(map(_names_picture, first)) and not any(
        _NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)
        for one, other in zip(first, second, strict=False)
    )


def _plain_number(stem: str) -> str:
    """Returns a number without leading zeros, as tables often write it; other names as they are."""
    return stem.lstrip("0") or "0" if stem.isascii() and stem.isdigit() else stem


def _names_picture(text: str) -> bool:
    return Path(text).suffix.lower() in SUFFIXES


# ---- Rows and pictures ---------------------------------------------------------------------------


class _Finder:
    """Finds a picture by its name in a table."""

    def __init__(self, pictures: Sequence[Path], root: Path, folders: Collection[Path]) -> None:
        self._by_path = {each.relative_to(root).as_posix(): each for each in pictures}
        self._by_name: dict[str, list[Path]] = {}
        for path in pictures:
            for key in {path.name, path.stem, _plain_number(path.stem)}:
                self._by_name.setdefault(key, []).append(path)
        self._root = root
        self._folders = folders
        self._kinds: dict[str, str | None] = {}  # the split that a folder's or table's name means

    def find(self, text: str, table: Path) -> Path | None:
        """Returns the only picture with that name, or None.

        If several pictures have that name and the table is named after a split, returns the picture
        in the folder of that split.
        """
        name = text.replace("\\", "/").removeprefix("./")
        folder = table.parent
        inside = "" if folder == self._root else folder.relative_to(self._root).as_posix() + "/"
        found = self._by_path.get(inside + name) or self._by_path.get(name)
        if found is not None:
            return found
        *above, last = name.split("/")
        candidates = self._by_name.get(last, [])
        if not candidates and _names_picture(last):  # the picture may have been converted
            candidates = self._by_name.get(last.rpartition(".")[0], [])
        if folder in self._folders:
            candidates = [each for each in candidates if folder in each.parents]
        if above:  # a path with another root, from a table that was written elsewhere
            known = (above[-1], self._root.name if len(candidates) == 1 else "")
            candidates = [each for each in candidates if each.parent.name in known]
        if len(candidates) > 1:
            kind = self._kind_of(table.stem)
            candidates = [each for each in candidates if kind and kind in self._kinds_above(each)]
        return candidates[0] if len(candidates) == 1 else None

    def _kinds_above(self, picture: Path) -> set[str | None]:
        parts = picture.relative_to(self._root).parts[:-1]
        return {self._kind_of(part) for part in parts}

    def _kind_of(self, name: str) -> str | None:
        if name not in self._kinds:
            self._kinds[name] = split_names.kind_of(name)
        return self._kinds[name]


def _file_place(table: Table, finder: _Finder, given: str | None) -> int | None:
    """Returns the index of the column of file names, or None if no column names pictures."""
    if given is not None:
        return table.columns.index(given)
    shares = []
    for place in range(len(table.columns)):
        values = [row[place] for _, row in table.rows]
        found = sum(finder.find(value, table.path) is not None for value in values)
        # By chance a number may equal a picture's name without ending, but not its full name.
        is_named = sum(map(_names_picture, values)) * 2 > len(values)
        shares.append((found / len(values), is_named, -place))
    share, is_named, place = max(shares, key=lambda each: (each[0] >= _LEAST_SHARE, *each[1::-1]))
    return -place if share >= _LEAST_SHARE or (is_named and share > 0) else None


def _with_first_row(table: Table, place: int, finder: _Finder) -> Table:
    """Treats a header that names a picture, without its ending, as the first row."""
    if not table.has_header or finder.find(table.columns[place], table.path) is None:
        return table
    number = min((number for number, _ in table.rows), default=2) - 1
    names = tuple(str(place + 1) for place in range(len(table.columns)))
    return Table(table.path, names, [(number, list(table.columns)), *table.rows], False)


def _join(rows: Rows, table: Table, place: int, finder: _Finder) -> None:
    """Adds the rows of a table to the pictures that they name."""
    names = _column_names(table, place)
    seen: dict[Path, int] = {}
    for number, row in table.rows:
        picture = finder.find(row[place], table.path)
        where = f"{table.path}: line {number}"
        if picture is None:
            rows.num_unknown += 1
            continue
        if picture in seen:
            raise DataError(
                f"{where}: {row[place]} is already in line {seen[picture]}; keep one row per "
                "picture"
            )
        seen[picture] = number
        known = rows.fields.setdefault(picture, {})
        rows.table_of.setdefault(picture, table.path)
        for name, text in zip(names, row, strict=True):
            if name is not None and name not in known:
                known[name] = (text, where)
    if seen:
        rows.named[table.path] = list(seen)
        rows.tables.append(table)
        rows.file_columns.append(table.columns[place])
        rows.columns += [name for name in names if name is not None and name not in rows.columns]


def _column_names(table: Table, place: int) -> list[str | None]:
    """The names of a table's columns, None for the column of file names.

    If there is no header and only one other column, this column is named after the file.
    """
    names: list[str | None] = list(table.columns)
    names[place] = None
    if not table.has_header and len(names) == 2:
        names[1 - place] = _name_from(table.path.stem)
    return names


def _name_from(stem: str) -> str:
    """Returns a name for a file's only column: a usual word in the file's name, or all of it."""
    words: list[str] = re.findall(r"[a-z]+", stem.lower())
    for usual in (OWNER_COLUMNS, SPLIT_COLUMNS, LABEL_COLUMNS):
        for word in words:
            if word in usual:
                return word
    return stem


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _texts(rows: Rows, column: str) -> Iterator[str]:
    return (each[column][0] for each in rows.fields.values() if column in each)


def _agree(rows: Rows, one: str, other: str) -> bool:
    """Whether two columns name the same classes: their values correspond one to one."""
    pairs = {
        (each[one][0], each[other][0])
        for each in rows.fields.values()
        if one in each and other in each
    }
    return len({a for a, _ in pairs}) == len(pairs) == len({b for _, b in pairs})


def _take_one_hot(rows: Rows, columns: Sequence[str]) -> str | None:
    """Adds a column that holds, for each row, the name of the one-hot column that is 1.

    Returns None, and adds nothing, unless exactly one of the columns is 1 in each row.
    """
    if len(columns) < 2:
        return None
    chosen: dict[Path, tuple[str, str]] = {}
    for picture, fields in rows.fields.items():
        values = {name: _HOT.get(fields[name][0].strip()) for name in columns if name in fields}
        ones = [name for name, value in values.items() if value]
        if len(values) != len(columns) or None in values.values() or len(ones) != 1:
            return None
        chosen[picture] = ones[0], fields[ones[0]][1]
    name = " or ".join(columns)
    for picture, label in chosen.items():
        rows.fields[picture][name] = label
    return name


def _is_measure(rows: Rows, column: str) -> bool:
    """Whether a column names no classes: one value, mostly unequal values, or many numbers."""
    values = list(_texts(rows, column))
    distinct = len(set(values))
    if distinct < 2 or distinct * 2 > len(values):
        return True
    return distinct > 20 and all(re.fullmatch(r"[+-]?[0-9.]+(e[+-]?\d+)?", each) for each in values)
