"""CSV with a header: a column of labels, a column for each pixel, and perhaps one of client ids.

The file may be compressed with gzip, begin with a byte order mark, have quotes, and use semicolons
or tabs instead of commas.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.importers import csv_layout, shared
from fedcli.datasets.importers.csv_layout import (
    Layout,
    delimiter_of,
    is_number,
    is_packed,
    split_line,
)
from fedcli.datasets.importers.flat import flat_shape, order_notes, shaped
from fedcli.datasets.importers.picture_tables import looks_like_table
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.scales import Coding, Survey
from fedcli.datasets.importers.source_files import one_file
from fedcli.datasets.labels import LabelReader
from fedcli.datasets.spool import PixelSpool
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import DataError, plural
from fedcli.files import open_regular
from fedcli.progress import ProgressCallback
from fedcli.settings.vocabulary import SPLITS

_GZIP = b"\x1f\x8b"
_START_BYTES = 1 << 20  # read to recognise a file
_BLOCK_ROWS = 512
_SAMPLED_ROWS = 8  # rows from which the roles of the columns follow
_SHOWN = 5  # columns in a message
MAX_EMPTY_LINES = 1_000_000  # largest number of consecutive empty lines
_LINES_BETWEEN_CHECKS = 1 << 14
MAX_LINE = 32 << 20  # characters
_MOST_FLOAT32 = float(np.finfo(np.float32).max)


class _Row(NamedTuple):
    """A line without quotes around its pixels, and the texts of the other columns."""

    line: str
    label: str
    owner: str | None
    split: str | None


def recognises(path: Path) -> bool:
    """Returns whether a file is text with a header and a next row with as many fields.

    At least half of these fields must be numbers, or one field must hold the pixels of an image.
    """
    if not path.is_file() or looks_like_table(path):
        return False
    with open_regular(path) as file:
        start = file.read(_START_BYTES)
    with suppress(zlib.error, UnicodeDecodeError, csv.Error):
        if start.startswith(_GZIP):
            # decompressobj accepts a stream that is cut off, and unpacks it up to there.
            start = zlib.decompressobj(31).decompress(start, _START_BYTES)
        is_whole = len(start) < _START_BYTES
        text = start.decode("utf-8-sig", "strict" if is_whole else "ignore")
        lines = [line for line in text.splitlines() if line.strip()][:3]
        if len(lines) < 2 or "\0" in text:
            return False
        delimiter = delimiter_of(lines[0])
        header, row = (split_line(line, delimiter) for line in lines[:2])
        is_alike = len(row) == len(header) or (len(lines) == 2 and not is_whole)
        has_pixels = 2 * sum(map(is_number, row)) >= len(row) or any(map(is_packed, row))
        return len(header) > 1 and is_alike and has_pixels
    return False


def holds_pixels(path: Path) -> bool:
    """Returns whether a file is recognised and its rows have as many pixels as an image."""
    if not recognises(path):
        return False
    with suppress(DataError, csv.Error), _readable(path) as file:
        header, row = (file.readline(MAX_LINE).rstrip("\r\n") for _ in range(2))
        fields = split_line(row, delimiter_of(header))
        return len(fields) >= csv_layout.LEAST_COLUMNS or any(map(is_packed, fields))
    return False


def has_labels(path: Path, options: ImportOptions) -> bool:
    """Returns whether a file has a column of labels.

    Also returns True if the file cannot be read; then `read` reports the error.
    """
    with suppress(csv.Error, OSError), _readable(path) as file:
        header = file.readline(MAX_LINE).rstrip("\r\n")
        return csv_layout.has_label_column(header, options)
    return True


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the rows of one file. Without a column of ids, rows have no owner.

    A column of names of splits (Usage: Training, PublicTest, PrivateTest) gives the split of each
    row; without it, all rows are the split "train". Each pixel has a column, or all pixels of an
    image are in one column, separated by spaces. `csv_layout` recognises which columns hold pixels.
    The range of pixels follows from the whole file.

    Args:
        sources: One file.
        options: `label_column`, `id_column`, `splits`, `image_shape`, `pixel_range`, `polarity`,
            `num_classes` and `fit` apply.
        folder: The folder for temporary files of pixels.
        on_progress: Called with the number of rows read.

    Raises:
        ConfigError: An option names a column that does not exist.
        DataError: A row cannot be used; the message names file and line.
        OSError: The file cannot be read, or the disk is full.
    """
    path = one_file(sources, "CSV file")
    rows = _Rows(path, options)
    with ExitStack() as stack:
        spool = PixelSpool(folder)  # pixels in the range of the file
        stack.callback(spool.close)
        with _readable(path) as file:
            for block in rows.blocks(file, lambda: on_progress(spool.num_images, None)):
                spool.add(block, 1.0, 0.0)
                on_progress(spool.num_images, None)
        if not spool.num_images:
            raise DataError(f"{path}: holds no rows below its header; give a file with rows")
        splits = rows.splits()
        writers = {
            split: stack.enter_context(TableWriter(str(path), folder, fit=options.fit))
            for split in splits
        }
        coding = _write(writers, spool.mapped(), splits, rows, options.pixel_range, on_progress)
        coded = {split: writer.table() for split, writer in writers.items()}
    tables, classes = shared.number_labels(coded, rows.labels)
    convention, why = shared.polarity_of(tables)
    return shared.imported(
        tables,
        options,
        source=str(path),
        pixel_convention=convention,
        class_names=classes.names,
        notes=(coding.note, *rows.notes, *rows.order_notes(tables)),
        pixel_range=coding.range,
        evidence={
            "polarity": why,
            "range": coding.evidence,
            "shape": "given by --image-shape" if options.image_shape else "a square of all columns",
            **rows.evidence,
        },
        overrides={
            **{"owners": "--id-column", "shape": "--image-shape", "range": "--pixel-range"},
            "classes": "--label-column" if classes.names else "--num-classes",
            "splits": "--splits" if len(tables) > 1 else "--test-data",
        },
    )


def _write(
    writers: Mapping[str, TableWriter],
    raw: NDArray[Any],
    splits: Mapping[str, NDArray[np.bool_]],
    rows: _Rows,
    pixel_range: str | None,
    on_progress: ProgressCallback,
) -> Coding:
    """Writes the rows of each split, with the range that follows from the pixels of all splits."""
    survey = Survey(pixel_range)
    bounds = list(shared.blocks(len(raw), raw.shape[1:], raw.itemsize))
    for first, last in bounds:
        survey.add(raw[first:last], first, next(iter(writers.values())).source)
    coding = survey.coding()
    for first, last in bounds:
        for split, writer in writers.items():
            chosen = splits[split][first:last]
            if not chosen.any():
                continue
            places = (first + np.flatnonzero(chosen)).tolist()
            writer.add(
                coding.pack(raw[first:last][chosen]),
                rows.codes[places],
                scale=coding.scale,
                offset=coding.offset,
                owners=[rows.owners[i] for i in places] if rows.owners else None,
            )
        on_progress(last, len(raw))
    return coding


class _Rows:
    """Reads rows in blocks, and collects the labels, owners and splits of all rows.

    Attributes:
        labels: The labels of the rows so far.
        owners: The owners of the rows so far; empty if there is no column of ids.
        evidence: The evidence for each subject of a `SourceDescription`.
        notes: A line about columns that were left out, if there are any.
    """

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self.labels = LabelReader()
        self.owners: list[str] = []
        self.evidence: dict[str, str] = {}
        self.notes: tuple[str, ...] = ()
        self._codes: list[NDArray[np.int64]] = []
        self._splits: list[str] = []
        self._source = str(path)
        self._options = options
        self._known: dict[str, str] = {}  # each id is stored once
        self._order = ""  # the order of the values of a row

    @property
    def codes(self) -> NDArray[np.int64]:
        """The labels of the rows so far as codes of `LabelReader.add`, int64 [n]."""
        if len(self._codes) > 1:
            self._codes = [np.concatenate(self._codes)]
        return self._codes[0]

    def splits(self) -> dict[str, NDArray[np.bool_]]:
        """Returns which rows are in each split, bool [n] each, train first."""
        if not self._splits:
            return {"train": np.ones(len(self.codes), np.bool_)}
        values = list(dict.fromkeys(self._splits))
        given = dict(self._options.splits) if self._options.splits else None
        of_value = csv_layout.splits_of(values, given, self._source)
        listed = ", ".join(f"{value} is {split}" for value, split in of_value.items())
        self.evidence["splits"] += f": {listed}"
        of_rows = np.array([of_value.get(value, "") for value in self._splits])
        return {split: of_rows == split for split in SPLITS if split in of_value.values()}

    def order_notes(self, tables: Mapping[str, ExampleTable]) -> list[str]:
        """Returns a warning if the values of the rows seem to be in another order."""
        table = next(iter(tables.values()))
        return order_notes(table.pixels, self._order, self._source) if self._order else []

    def blocks(self, file: IO[str], check_stop: Callable[[], None]) -> Iterator[NDArray[Any]]:
        """Yields images with unscaled pixels, uint8 if possible, else float32.

        Args:
            file: The text.
            check_stop: Called regularly, also while only empty lines are read; may raise to stop
                the reading.
        """
        lines = self._lines(file, check_stop)
        number, header = next(lines, (0, ""))
        if not number:
            raise DataError(f"{self._source}: is empty; give a line of names and rows below it")
        first = list(islice(lines, _SAMPLED_ROWS))
        layout = csv_layout.read_layout(
            header, [line for _, line in first], self._options, f"{self._source}: line {number}"
        )
        self._describe(layout)
        where = f"{self._source}: line {number}: the header"
        if layout.left_out:
            where += f" without column {', '.join(layout.left_out[:_SHOWN])}"
        shape, self._order = flat_shape(layout.num_pixels, self._options.image_shape, where)
        longest = max(len(line) for line in (header, *(line for _, line in first)))
        size = max(1, min(_BLOCK_ROWS, shared.BLOCK_BYTES // longest))
        everything = chain(first, lines)
        while block := _block(everything, size):
            yield shaped(self._read_block(block, layout), shape, self._order)

    def _describe(self, layout: Layout) -> None:
        """Records the evidence for the description."""
        self.notes = layout.notes
        names = ", ".join(csv_layout.ID_COLUMNS[:3])
        self.evidence["owners"] = (
            f"no column {names} or the like"
            if layout.owner is None
            else f"column {layout.columns[layout.owner]}"
        )
        if layout.split is not None:
            self.evidence["splits"] = f"column {layout.columns[layout.split]}"
        if layout.is_packed and not self._options.image_shape:
            self.evidence["shape"] = (
                f"a square of the numbers in {layout.columns[layout.pixels[0]]}"
            )

    def _lines(self, file: IO[str], check_stop: Callable[[], None]) -> Iterator[tuple[int, str]]:
        """Yields number and text of each line that is not empty."""
        number = last = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if number % _LINES_BETWEEN_CHECKS == 0:
                check_stop()
            if len(line) == MAX_LINE:
                raise DataError(
                    f"{self._source}: line {number}: has over {MAX_LINE} characters; correct the "
                    "row"
                )
            line = line.rstrip("\r\n")
            if line and not line.isspace():
                last = number
                yield number, line
            elif number - last > MAX_EMPTY_LINES:
                raise DataError(
                    f"{self._source}: line {last + 1}: {MAX_EMPTY_LINES:,} consecutive empty "
                    "lines; remove them"
                )

    def _read_block(self, block: list[tuple[int, str]], layout: Layout) -> NDArray[Any]:
        numbers = [number for number, _ in block]
        rows = [self._cut(number, line, layout) for number, line in block]
        for number, row in zip(numbers, rows, strict=True):
            if row.owner is not None:
                if row.owner not in self._known:
                    shared.check_id(row.owner, f"{self._source}: line {number}")
                self.owners.append(self._known.setdefault(row.owner, row.owner))
            if row.split is not None:
                self._splits.append(self._known.setdefault(row.split, row.split))
        codes = self.labels.add(
            [row.label for row in rows],
            self._source,
            place=lambda index: f"{self._source}: line {numbers[index]}",
        )
        self._codes.append(codes)
        return self._read_pixels(numbers, [row.line for row in rows], layout)

    def _cut(self, number: int, line: str, layout: Layout) -> _Row:
        """Splits a line into its pixels, label, owner and split. Checks its number of fields."""
        where = f"{self._source}: line {number}"
        fields: list[str] | None = None
        if '"' in line:
            try:
                fields = csv_layout.split_line(line, layout.delimiter)
            except csv.Error as err:
                raise DataError(
                    f"{where}: its quotes do not match ({err}); correct the row"
                ) from err
        num_fields = line.count(layout.delimiter) + 1 if fields is None else len(fields)
        if num_fields == len(layout.columns) + 1 and line.endswith(layout.delimiter):
            num_fields -= 1  # a comma at the end of each row
            line, fields = line[:-1], fields and fields[:-1]
        if num_fields != len(layout.columns):
            raise DataError(
                f"{where}: {num_fields} fields but the header has {len(layout.columns)}; "
                "correct the row"
            )
        texts = [
            None
            if place is None
            else (_field(line, place, layout) if fields is None else fields[place]).strip()
            for place in (layout.label, layout.owner, layout.split)
        ]
        if fields is not None:  # the remaining line, without its quotes
            fields = [field.replace(layout.delimiter, " ") for field in fields]
            line = layout.delimiter.join(fields)
        return _Row(line, texts[0] or "", texts[1], texts[2])

    def _read_pixels(self, numbers: list[int], lines: list[str], layout: Layout) -> NDArray[Any]:
        places, texts, delimiter = layout.pixels, lines, layout.delimiter
        if layout.is_packed:
            texts = [csv_layout.spaced(line.split(delimiter)[places[0]]) for line in lines]
        try:
            pixels: NDArray[np.float32] = np.loadtxt(
                texts,
                np.float32,
                comments=None,
                delimiter=None if layout.is_packed else delimiter,
                usecols=None if layout.is_packed else places,
                ndmin=2,
            )
        except ValueError:
            self._fail(numbers, lines, layout)
        is_whole = len(pixels) == len(lines) and pixels.shape[1] == layout.num_pixels
        if not (is_whole and np.isfinite(pixels).all()):
            self._fail(numbers, lines, layout)
        if not (pixels.min() >= 0 and pixels.max() <= 255):
            return pixels
        levels = pixels.astype(np.uint8)
        return levels if (levels == pixels).all() else pixels

    def _fail(self, numbers: list[int], lines: list[str], layout: Layout) -> NoReturn:
        """Raises an error that names the first invalid pixel of a block."""
        for number, line in zip(numbers, lines, strict=True):
            fields = line.split(layout.delimiter)
            where = f"{self._source}: line {number}"
            texts = {layout.columns[place]: fields[place] for place in layout.pixels}
            if layout.is_packed:
                (name, packed) = texts.popitem()
                parts = csv_layout.spaced(packed).split()
                if len(parts) != layout.num_pixels:
                    raise DataError(
                        f"{where}: column {name!r} holds {plural(len(parts), 'pixel')}, but "
                        f"{layout.num_pixels} in the first row; correct the row"
                    )
                texts = {f"{name}, pixel {index}": text for index, text in enumerate(parts)}
            for name, text in texts.items():
                fault = _fault_of_pixel(text)
                if fault is not None:
                    raise DataError(f"{where}: column {name!r}: {text[:20]!r} {fault}")
        raise DataError(
            f"{self._source}: line {numbers[0]} or one soon after it cannot be read; correct the "
            "row"
        )


@contextmanager
def _readable(path: Path) -> Iterator[IO[str]]:
    """Opens a file as text. Converts errors of decoding to a DataError."""
    with open_regular(path) as file:
        is_gzip = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        unpacked: Any = gzip.GzipFile(fileobj=file) if is_gzip else file
        try:
            # No quoted field spans several lines, so newlines can be translated.
            with io.TextIOWrapper(unpacked, "utf-8-sig") as text:
                yield text
        except UnicodeDecodeError as err:
            raise DataError(f"{path}: not UTF-8 text ({err.reason}); save it as UTF-8") from err
        except (EOFError, zlib.error, gzip.BadGzipFile) as err:
            raise DataError(f"{path}: damaged gzip data ({err}); fetch the file again") from err


def _fault_of_pixel(text: str) -> str | None:
    """Returns the fault of a pixel field, or None. In a message it follows the field's text."""
    if not (is_number(text) and any(char.isdigit() for char in text)):  # float() reads "nan"
        return (
            "is not a pixel; give a number in each row, or remove the column if it holds no pixels"
        )
    if abs(float(text)) > _MOST_FLOAT32:
        return "is out of range; the largest allowed pixel is 65535: correct the row"
    return None


def _block(lines: Iterator[tuple[int, str]], size: int) -> list[tuple[int, str]]:
    """Returns the next `size` lines, or fewer if they are long."""
    block, num_characters = [], 0
    for line in islice(lines, size):
        block.append(line)
        num_characters += len(line[1])
        if num_characters > MAX_LINE:
            break
    return block


def _field(line: str, place: int, layout: Layout) -> str:
    """One field of a line without quotes. The line is split from the end nearer to the field."""
    after = len(layout.columns) - 1 - place
    if place <= after:
        return line.split(layout.delimiter, place + 1)[place].strip()
    return line.rsplit(layout.delimiter, after + 1)[-1 - after].strip()
