"""CSV with a header: a column of labels, perhaps one of clients' ids, and a column a pixel.

Gzip, a byte order mark, quotes and semicolons or tabs instead of commas are understood.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.datasets.importers import shared
from fedcli.datasets.importers.flat import flat_shape
from fedcli.datasets.importers.floats import Coding, Survey
from fedcli.datasets.importers.picture_tables import looks_like_table
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.source_files import one_file
from fedcli.datasets.spool import PixelSpool
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import ConfigError, DataError
from fedcli.files import open_regular
from fedcli.progress import Tell

ID_COLUMNS = ("client_id", "client", "writer_id", "writer", "user_id", "user", "owner")
LABEL_COLUMNS = ("label", "y", "class", "target", "digit")

_GZIP = b"\x1f\x8b"
_DELIMITERS = ",;\t"
_LOOKED_AT = 1 << 20  # bytes read to recognise a file
_BLOCK_ROWS = 512
_MAX_COLUMNS = 1 << 20
MAX_EMPTY_LINES = 1_000_000  # one after another
_LINES_BETWEEN_CHECKS = 1 << 14
MAX_LINE = 32 << 20  # characters
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True)
class _Layout:
    """Where things stand in a row."""

    columns: list[str]
    delimiter: str
    label: int
    owner: int | None

    @property
    def pixels(self) -> list[int]:
        return [i for i in range(len(self.columns)) if i not in (self.label, self.owner)]


class _Row(NamedTuple):
    """A line whose pixels stand without quotes, and the texts of the two other columns."""

    line: str
    label: str
    owner: str | None


def recognises(path: Path) -> bool:
    """Tells whether a file is text: a line of names, and numbers in as many columns below it."""
    if not path.is_file() or looks_like_table(path):
        return False
    with open_regular(path) as file:
        start = file.read(_LOOKED_AT)
    with suppress(zlib.error, UnicodeDecodeError, csv.Error):
        if start.startswith(_GZIP):
            # A stream that ends in the middle unpacks up to there.
            start = zlib.decompressobj(31).decompress(start, _LOOKED_AT)
        is_whole = len(start) < _LOOKED_AT
        text = start.decode("utf-8-sig", "strict" if is_whole else "ignore")
        lines = [line for line in text.splitlines() if line.strip()][:3]
        if len(lines) < 2 or "\0" in text:
            return False
        delimiter = _delimiter(lines[0])
        header, row = (_split(line, delimiter) for line in lines[:2])
        is_alike = len(row) == len(header) or (len(lines) == 2 and not is_whole)
        return len(header) > 1 and is_alike and 2 * sum(map(_is_number, row)) >= len(row)
    return False


def read(
    sources: Sequence[Path], options: ImportOptions, folder: Path | None, tell: Tell
) -> Imported:
    """Returns the rows of one file as the split "train"; without ids rows have no owner.

    Every column but the label's and the id's is a pixel, in the order of the columns. The whole
    file decides whether pixels are 0 to 255 or 0 to 1. Labels that are not all whole numbers are
    names of classes, numbered as they sort.

    Args:
        sources: One file.
        options: `label_column`, `id_column`, `image_shape`, `num_classes` and `fit` apply.
        folder: Where pixels are kept meanwhile.
        tell: Called with the number of rows read.

    Raises:
        ConfigError: There is no column of the name that an option gives.
        DataError: A row cannot be used: names file and line.
        OSError: The file cannot be read, or the disk is full.
    """
    path = one_file(sources, "CSV file")
    rows = _Rows(path, options)
    with ExitStack() as stack:
        spool = PixelSpool(folder)  # as the file has them: 0 to 255, or 0 to 1
        stack.callback(spool.close)
        with _readable(path) as file:
            for block in rows.blocks(file, lambda: tell(spool.num_images, None)):
                spool.add(block, 1.0, 0.0)
                tell(spool.num_images, None)
        if not spool.num_images:
            raise DataError(f"{path}: holds no rows below its header; give some")
        writer = stack.enter_context(TableWriter(str(path), folder, fit=options.fit))
        labels, class_names = rows.labels.as_classes(str(path))
        table, coding = _write(
            writer, spool.mapped(), labels, rows.owners, options.pixel_range, tell
        )
    tables = {"train": table}
    convention, why = shared.polarity_of(tables)
    return shared.imported(
        tables,
        options,
        source=str(path),
        pixel_convention=convention,
        class_names=class_names,
        notes=(coding.note,),
        pixel_range=coding.range,
        evidence={
            "polarity": why,
            "range": coding.evidence,
            "owners": rows.why_owners,
            "shape": "as --image-shape says" if options.image_shape else "a square of all columns",
        },
        overrides={
            **{"owners": "--id-column", "shape": "--image-shape", "range": "--pixel-range"},
            "classes": "--label-column" if class_names else "--num-classes",
        },
    )


def _write(
    writer: TableWriter,
    raw: NDArray[Any],
    labels: NDArray[np.int64],
    owners: list[str],
    pixel_range: str | None,
    tell: Tell,
) -> tuple[ExampleTable, Coding]:
    """Makes a table, as all pixels together decide whether they are 0 to 255 or 0 to 1."""
    survey = Survey(pixel_range)
    bounds = list(shared.blocks(len(raw), raw.shape[1:], raw.itemsize))
    for first, last in bounds:
        survey.add(raw[first:last], first, writer.source)
    coding = survey.coding()
    for first, last in bounds:
        writer.add(
            coding.pack(raw[first:last]),
            labels[first:last],
            scale=coding.scale,
            offset=0.0,
            owners=owners[first:last] if owners else None,
        )
        tell(last, len(raw))
    return writer.table(), coding


class _Labels:
    """Labels as they are written: each different one kept once."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._first_lines: list[int] = []
        self._of_rows: list[NDArray[np.int64]] = []

    def add(self, texts: Sequence[str], lines: Sequence[int]) -> None:
        codes = np.empty(len(texts), np.int64)
        for index, text in enumerate(texts):
            code = self._codes.setdefault(text, len(self._codes))
            if code == len(self._first_lines):
                self._first_lines.append(lines[index])
            codes[index] = code
        self._of_rows.append(codes)

    def as_classes(self, source: str) -> tuple[NDArray[np.int64], list[str]]:
        """Labels of all rows, and names of the classes unless labels are whole numbers."""
        texts = list(self._codes)
        if all(_WHOLE_NUMBER.fullmatch(text) for text in texts):
            values, names = [int(text) for text in texts], []
        else:
            names = sorted(texts)
            rank = {name: index for index, name in enumerate(names)}
            values = [rank[text] for text in texts]
        for value, line in zip(values, self._first_lines, strict=True):
            shared.check_block_labels(np.array([value]), 0, f"{source}: line {line}")
        return np.array(values, np.int64)[np.concatenate(self._of_rows)], names


class _Rows:
    """Reads rows in blocks; labels and owners of all rows gather here.

    Attributes:
        labels: Of the rows so far.
        owners: Of the rows so far; stays empty without a column of ids.
        why_owners: What decided on them.
    """

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self.labels = _Labels()
        self.owners: list[str] = []
        self.why_owners = ""
        self._source = str(path)
        self._options = options
        self._known_owners: dict[str, str] = {}  # so that an id is kept once

    def blocks(self, file: IO[str], check_stop: Callable[[], None]) -> Iterator[NDArray[Any]]:
        """Yields pixels as they are written, uint8 where they can be, else float32, shaped.

        Args:
            file: The text.
            check_stop: Called now and then, also while nothing but empty lines come; may raise.
        """
        lines = self._lines(file, check_stop)
        number, header = next(lines, (0, ""))
        if not number:
            raise DataError(f"{self._source}: is empty; give a line of names and rows below it")
        layout = self._read_header(header, f"{self._source}: line {number}")
        where = f"{self._source}: line {number}: the header"
        shape = flat_shape(len(layout.pixels), self._options.image_shape, where)
        size = max(1, min(_BLOCK_ROWS, shared.BLOCK_BYTES // len(header)))
        while block := _block(lines, size):
            yield self._read_block(block, layout).reshape(-1, *shape)

    def _lines(self, file: IO[str], check_stop: Callable[[], None]) -> Iterator[tuple[int, str]]:
        """Yields number and text of each line that is not empty."""
        number = last = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if number % _LINES_BETWEEN_CHECKS == 0:
                check_stop()
            if len(line) == MAX_LINE:
                raise DataError(f"{self._source}: line {number}: over {MAX_LINE} characters")
            line = line.rstrip("\r\n")
            if line and not line.isspace():
                last = number
                yield number, line
            elif number - last > MAX_EMPTY_LINES:
                raise DataError(
                    f"{self._source}: line {last + 1}: {MAX_EMPTY_LINES:,} empty lines follow each "
                    "other; remove them"
                )

    def _read_header(self, header: str, where: str) -> _Layout:
        try:
            delimiter = _delimiter(header)
            columns = [name.strip() for name in _split(header, delimiter)]
        except csv.Error as err:
            raise DataError(f"{where}: the header cannot be read ({err})") from err
        if len(columns) < 2 or len(columns) > _MAX_COLUMNS:
            raise DataError(
                f"{where}: {len(columns)} columns; the first line names a column of labels and "
                "one a pixel, separated by commas"
            )
        if _looks_like_data(columns):
            raise DataError(
                f"{where} looks like data, not like a header: {_some(columns)}; put a line of "
                "names above it, with label over the labels, as in label,1,2,3"
            )
        options = self._options
        label = _find_column(columns, options.label_column, LABEL_COLUMNS, "--label-column", where)
        owner = _find_column(columns, options.id_column, ID_COLUMNS, "--id-column", where)
        if label is None:
            raise DataError(
                f"{where}: no column of labels ({', '.join(LABEL_COLUMNS)}) among {_some(columns)};"
                " name it with --label-column"
            )
        if label == owner:
            raise ConfigError(f"{where}: --label-column and --id-column are both {columns[label]}")
        names = ", ".join(ID_COLUMNS[:3])
        self.why_owners = (
            f"column {columns[owner]}" if owner is not None else f"no column {names} or the like"
        )
        return _Layout(columns, delimiter, label, owner)

    def _read_block(self, block: list[tuple[int, str]], layout: _Layout) -> NDArray[Any]:
        numbers = [number for number, _ in block]
        rows = [self._cut(number, line, layout) for number, line in block]
        for number, row in zip(numbers, rows, strict=True):
            if not row.label:
                raise DataError(f"{self._source}: line {number}: has no label; give each row one")
            if row.owner is not None:
                if row.owner not in self._known_owners:
                    shared.check_id(row.owner, f"{self._source}: line {number}")
                self.owners.append(self._known_owners.setdefault(row.owner, row.owner))
        self.labels.add([row.label for row in rows], numbers)
        return self._read_pixels(numbers, [row.line for row in rows], layout)

    def _cut(self, number: int, line: str, layout: _Layout) -> _Row:
        """Takes label and id out of a line with as many fields as the header."""
        where = f"{self._source}: line {number}"
        fields: list[str] | None = None
        if '"' in line:
            try:
                fields = _split(line, layout.delimiter)
            except csv.Error as err:
                raise DataError(f"{where}: its quotes do not match ({err}); mend the row") from err
        num_fields = line.count(layout.delimiter) + 1 if fields is None else len(fields)
        if num_fields != len(layout.columns):
            raise DataError(
                f"{where}: {num_fields} fields but the header has {len(layout.columns)}; "
                "mend the row"
            )
        texts = [
            None
            if place is None
            else (_field(line, place, layout) if fields is None else fields[place]).strip()
            for place in (layout.label, layout.owner)
        ]
        if fields is not None:  # the rest without quotes; a delimiter in a pixel makes it none
            fields = [field.replace(layout.delimiter, " ") for field in fields]
            line = layout.delimiter.join(fields)
        return _Row(line, texts[0] or "", texts[1])

    def _read_pixels(self, numbers: list[int], lines: list[str], layout: _Layout) -> NDArray[Any]:
        try:
            pixels: NDArray[np.float32] = np.loadtxt(
                lines,
                np.float32,
                comments=None,
                delimiter=layout.delimiter,
                usecols=layout.pixels,
                ndmin=2,
            )
        except ValueError:
            self._fail(numbers, lines, layout)
        if len(pixels) != len(lines) or not (pixels.min() >= 0 and pixels.max() <= 255):
            self._fail(numbers, lines, layout)  # false for NaN, too
        levels = pixels.astype(np.uint8)
        return levels if (levels == pixels).all() else pixels

    def _fail(self, numbers: list[int], lines: list[str], layout: _Layout) -> NoReturn:
        """Names the first pixel of a block that is none."""
        for number, line in zip(numbers, lines, strict=True):
            fields = line.split(layout.delimiter)
            for column in layout.pixels:
                text = fields[column]
                if not (_is_number(text) and 0 <= float(text) <= 255):
                    raise DataError(
                        f"{self._source}: line {number}: column {layout.columns[column]!r}: "
                        f"{text[:20]!r} is no pixel; only numbers from 0 to 255 are read"
                    )
        raise DataError(f"{self._source}: line {numbers[0]} or soon after: cannot be read")


@contextmanager
def _readable(path: Path) -> Iterator[IO[str]]:
    """Opens a file as text; what is wrong with its bytes becomes one line."""
    with open_regular(path) as file:
        is_gzip = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        unpacked: Any = gzip.GzipFile(fileobj=file) if is_gzip else file
        try:
            # A csv with no quotes over several lines needs no newlines kept as they are.
            with io.TextIOWrapper(unpacked, "utf-8-sig") as text:
                yield text
        except UnicodeDecodeError as err:
            raise DataError(f"{path}: not UTF-8 text ({err.reason}); save it as UTF-8") from err
        except (EOFError, zlib.error, gzip.BadGzipFile) as err:
            raise DataError(f"{path}: damaged gzip data ({err}); fetch the file again") from err


def _block(lines: Iterator[tuple[int, str]], size: int) -> list[tuple[int, str]]:
    """The next `size` lines, fewer where they are long."""
    block, num_characters = [], 0
    for line in islice(lines, size):
        block.append(line)
        num_characters += len(line[1])
        if num_characters > MAX_LINE:
            break
    return block


def _find_column(
    columns: list[str], wanted: str | None, usual: tuple[str, ...], option: str, where: str
) -> int | None:
    """The place of the column an option names, else of the first usual name in the header."""
    if wanted is not None and wanted not in columns:
        raise ConfigError(f"{option} {wanted}: no such column in {where}; it has {_some(columns)}")
    lower = [name.lower() for name in columns]
    name = next((name for name in usual if name in lower), None) if wanted is None else wanted
    if name is None:
        return None
    names = lower if wanted is None else columns
    places = [place for place, each in enumerate(names) if each == name]
    if len(places) > 1:
        raise DataError(f"{where}: column {name!r} stands {len(places)} times; rename all but one")
    return places[0]


def _looks_like_data(columns: list[str]) -> bool:
    """Whether most names are numbers, and not such as count the columns: those of a row."""
    numbers = [float(name) for name in columns if _is_number(name)]
    is_rising = all(one < next_one for one, next_one in pairwise(numbers))
    return 2 * len(numbers) > len(columns) and not is_rising


def _some(columns: list[str]) -> str:
    listed = ", ".join(name[:40] for name in columns[:10])
    return f"{listed}, …" if len(columns) > 10 else listed


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)


def _split(line: str, delimiter: str) -> list[str]:
    if '"' not in line:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, strict=True))


def _field(line: str, place: int, layout: _Layout) -> str:
    """One field of a line without quotes; the line is cut from the end that is nearer."""
    after = len(layout.columns) - 1 - place
    if place <= after:
        return line.split(layout.delimiter, place + 1)[place].strip()
    return line.rsplit(layout.delimiter, after + 1)[-1 - after].strip()
