"""TensorFlow Federated's SQLite layout (version 0.19 and later), also within .lzma or .xz.

The table examples(split_name, client_id, serialized_example_proto) has one tf.train.Example per
row. The table client_metadata(client_id, split_name, num_examples) has the number of examples of
each client.
"""

from __future__ import annotations

import contextlib
import lzma
import math
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedcli.datasets.importers import shared
from fedcli.datasets.importers.recognising import Imported, ImportOptions
from fedcli.datasets.importers.scales import rescale
from fedcli.datasets.importers.source_files import UNPACKED, one_file, start_of
from fedcli.datasets.importers.tf_example import read_emnist_examples, read_example
from fedcli.datasets.importers.xz import MAX_DECODER_BYTES
from fedcli.datasets.labels import whole_numbers
from fedcli.datasets.polarity import are_emnist_writers, can_measure
from fedcli.datasets.sources.tff_h5 import CONVENTIONS, pack
from fedcli.datasets.table import ExampleTable, TableWriter
from fedcli.errors import DataError, plural
from fedcli.files import open_regular
from fedcli.outputs import scratch_folder
from fedcli.progress import ProgressCallback

_SIGNATURE = b"SQLite format 3\0"
_HEADER_BYTES = 100
_TABLES = {
    "examples": ("split_name", "client_id", "serialized_example_proto"),
    "client_metadata": ("client_id", "split_name", "num_examples"),
}
# Prefixes of the names of splits; if a file has several, the first one here is read.
_FAMILIES = {"all_": 62, "digits_only_": 10, "": None}
MAX_BLOB_BYTES = 64 << 20
_MAX_GROUP = 4096  # examples of one client that are converted at a time
_MAX_GROUP_BYTES = 64 << 20
_OPERATIONS = 100_000  # SQLite instructions between two checks for cancellation: some milliseconds
_MAX_RATIO = 1000  # unpacked / packed size: 28 for EMNIST, a few hundred for images of one colour
_BLOCK_BYTES = 1 << 20
_SPARE_BYTES = 64 << 20  # disk space that must stay free


def recognises(path: Path) -> bool:
    """Returns whether a file is an SQLite database, uncompressed or compressed with LZMA."""
    if not path.is_file():
        return False
    start = start_of(path, 4096)
    if start.startswith(_SIGNATURE):
        return True
    with contextlib.suppress(lzma.LZMAError):
        decoder = lzma.LZMADecompressor(memlimit=MAX_DECODER_BYTES)
        return decoder.decompress(start, len(_SIGNATURE)) == _SIGNATURE
    return False


def read(
    sources: Sequence[Path],
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    """Returns the splits of one database.

    These are all_train and all_test if it has them, else digits_only_train and digits_only_test,
    else train and test.

    Args:
        sources: One file.
        options: `pixel_range`, `polarity`, `num_classes` and `fit` apply.
        folder: The folder for temporary files: pixels, and a decompressed database.
        on_progress: Called with the number of bytes decompressed, then with the number of examples
            read.

    Raises:
        DataError: The file is damaged, or a row cannot be used; the message names split, client and
            row.
        OSError: The file cannot be read, or the disk is full.
    """
    path = one_file(sources, "TFF database")
    with (
        _database(path, folder, on_progress) as database,
        _connected(database, str(path)) as connection,
    ):
        _check_tables(connection, str(path))
        return _read_splits(connection, str(path), options, folder, on_progress)


def _read_splits(
    connection: sqlite3.Connection,
    source: str,
    options: ImportOptions,
    folder: Path | None,
    on_progress: ProgressCallback,
) -> Imported:
    counts = _read_metadata(connection, source)
    present = sorted({split for split, _ in counts})
    family = next((each for each in _FAMILIES if f"{each}train" in present), None)
    if family is None:
        listed = ", ".join(map(repr, present[:10])) or "none at all"
        raise DataError(
            f"{source}: has the splits {listed}; the name of one must be train or end in _train"
        )
    names = {f"{family}{split}": split for split in ("train", "test")}
    names = {name: split for name, split in names.items() if name in present}
    wanted = Counter({key: count for key, count in counts.items() if key[0] in names})
    total = wanted.total()
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                TableWriter(f"{source}: split {name!r}", folder, fit=options.fit)
            )
            for name in names
        }
        reader = _GroupReader(source)
        seen: Counter[tuple[str, str]] = Counter()
        done = 0
        with _cancellable(connection, lambda: on_progress(done, total)):
            for (name, client_id), rows in _groups(connection, source, list(names)):
                pixels, labels, scale, offset = reader.read(rows, name, client_id)
                seen[name, client_id] += len(rows)
                where = f"{source}: split {name!r}: client {client_id!r}"
                writers[name].add(
                    pixels, labels, scale=scale, offset=offset, owners=client_id, where=where
                )
                done += len(rows)
                on_progress(done, total)
        _check_counts(seen, wanted, source)
        coded = {split: writers[name].table() for name, split in names.items()}
    tables, coding = rescale(coded, options.pixel_range, are_unit_levels=reader.are_floats)
    notes = [] if coding.is_plain or (coding.white == 1 and coding.most <= 1) else [coding.note]
    others = [name for name in present if name not in names]
    convention, why_polarity = _polarity_of(tables, reader.feature)
    return shared.imported(
        tables,
        options,
        source=source,
        pixel_convention=convention,
        own_classes=_FAMILIES[family],
        is_emnist=bool(family),
        # Equal ids in both splits are the same writers in TFF's EMNIST, but not in its CIFAR-100.
        same_people=bool(family),
        notes=(*notes, f"splits that were not read: {', '.join(others)}")
        if others
        else tuple(notes),
        evidence={
            "splits": f"splits {', '.join(names)} of the database",
            "owners": "the client ids of the database",
            "polarity": why_polarity,
            "shape": "the shape of the examples",
        },
        overrides={"splits": "", "owners": ""},
    )


def _polarity_of(tables: Mapping[str, ExampleTable], feature: str) -> tuple[str, str]:
    """The meaning of 1.0 and its evidence, by the rules for TFF's HDF5 files.

    It is TFF's definition for EMNIST's writers and for CIFAR-100. Other clients' `pixels` are
    measured.
    """
    convention, why = CONVENTIONS[feature.encode()], f"TFF's feature {feature!r}"
    are_emnist = all(are_emnist_writers(table.owner_ids) for table in tables.values())
    shape = next(iter(tables.values())).pixels.shape[1:]
    if convention == "ink" or are_emnist or not can_measure(shape):
        return convention, why
    border = shared.border_of(tables)
    decided = border.decide()
    return (convention, why) if decided is None else (decided, border.evidence)


# ---- Rows ----------------------------------------------------------------------------------------


class _GroupReader:
    """Converts rows to arrays; all rows must have the feature and the size of the first row."""

    def __init__(self, source: str) -> None:
        self.feature = ""
        self.num_values = 0
        self.are_floats = False
        self._source = source

    def read(
        self, rows: list[tuple[int, bytes]], split: str, client_id: str
    ) -> tuple[NDArray[Any], NDArray[np.int64], float, float]:
        """Returns pixels, labels [k], scale and offset of rows (row number, blob) of one client."""
        blobs = [blob for _, blob in rows]
        where = f"{self._source}: split {split!r}: client {client_id!r}"
        fast = read_emnist_examples(blobs)
        if fast is not None and self.feature in ("", "pixels"):
            stored, labels = fast
            self.are_floats = True
            self.feature = "pixels"
            self._check_size(stored.shape[1], f"{where}: row {rows[0][0]}")
        else:
            pairs = [self._read_row(blob, f"{where}: row {row}") for row, blob in rows]
            stored = np.stack([values for values, _ in pairs])
            labels = np.array([label for _, label in pairs], np.int64)
        shape = _image_shape(self.num_values, where)
        pixels, scale, offset = pack(stored.reshape(-1, *shape), where)
        return pixels, labels, scale, offset

    def _read_row(self, blob: bytes, where: str) -> tuple[NDArray[Any], int]:
        try:
            features = read_example(blob)
        except ValueError as err:
            raise DataError(
                f"{where}: serialized_example_proto is not a tf.train.Example ({err}); fetch the "
                "file again"
            ) from err
        names = [self.feature] if self.feature else [name.decode() for name in CONVENTIONS]
        feature = next((name for name in names if name in features), None)
        if feature is None or "label" not in features:
            present = ", ".join(map(repr, sorted(features)[:10])) or "nothing"
            raise DataError(
                f"{where}: an example must have {' or '.join(names)} and label; this one has "
                f"{present}"
            )
        self.feature = feature
        label, values = features["label"], features[feature]
        if not isinstance(label, np.ndarray) or len(label) != 1:
            raise DataError(
                f"{where}: the feature label is not a single whole number; correct the row"
            )
        label = whole_numbers(label, where)
        if not isinstance(values, np.ndarray):
            raise DataError(f"{where}: the feature {feature} holds bytes; give numbers")
        self._check_size(len(values), where)
        if values.dtype == np.int64:
            if not 0 <= values.min() <= values.max() <= 255:
                raise DataError(
                    f"{where}: the feature {feature} has a value outside 0 to 255; correct the row"
                )
            values = values.astype(np.uint8)
        else:
            self.are_floats = True
        return values, int(label[0])

    def _check_size(self, num_values: int, where: str) -> None:
        if not self.num_values:
            _image_shape(num_values, where)
            self.num_values = num_values
        if num_values != self.num_values:
            raise DataError(
                f"{where}: has {num_values} pixels but earlier rows have {self.num_values}; give "
                "all rows the same number of pixels"
            )


def _image_shape(num_values: int, where: str) -> tuple[int, ...]:
    """The shape of a square image, grey or in three colours. No number of values fits both."""
    for channels in ((), (3,)):
        side = math.isqrt(num_values // math.prod(channels))
        if num_values and side * side * math.prod(channels) == num_values:
            return (side, side, *channels)
    raise DataError(
        f"{where}: {num_values} pixels make no square image, grey or in three colours; give square "
        "images"
    )


def _groups(
    connection: sqlite3.Connection, source: str, splits: list[str]
) -> Iterator[tuple[tuple[str, str], list[tuple[int, bytes]]]]:
    """Yields (split, client) with consecutive rows (row number, blob) of that client.

    The table is read once from front to back, without an index and without sorting. A client's rows
    need not be together; its examples keep their order.
    """
    marks = ", ".join("?" * len(splits))
    # No outside text goes into the query: it gets one question mark per split.
    query = (
        "SELECT split_name, client_id, rowid, CASE WHEN typeof(serialized_example_proto) = 'blob' "
        "AND length(serialized_example_proto) <= ? THEN serialized_example_proto END "
        f"FROM examples NOT INDEXED WHERE split_name IN ({marks}) ORDER BY rowid"
    )
    key: tuple[str, str] | None = None
    rows: list[tuple[int, bytes]] = []
    num_bytes = 0
    for split, client_id, row, blob in connection.execute(query, [MAX_BLOB_BYTES, *splits]):
        if not isinstance(client_id, str):
            raise DataError(
                f"{source}: split {split!r}: row {row}: client_id is not text; correct the row"
            )
        if key is None or key[1] != client_id:
            shared.check_id(client_id, f"{source}: split {split!r}: row {row}")
        if blob is None:
            raise DataError(
                f"{source}: split {split!r}: client {client_id!r}: row {row}: "
                f"serialized_example_proto must be a blob of at most {MAX_BLOB_BYTES} bytes; "
                "correct the row"
            )
        is_full = len(rows) >= _MAX_GROUP or num_bytes + len(blob) > _MAX_GROUP_BYTES
        if key is not None and rows and (is_full or key != (split, client_id)):
            yield key, rows
            rows, num_bytes = [], 0
        key = (split, client_id)
        rows.append((row, blob))
        num_bytes += len(blob)
    if key is not None:
        yield key, rows


def _read_metadata(connection: sqlite3.Connection, source: str) -> Counter[tuple[str, str]]:
    """The number of examples of each (split, client)."""
    counts: Counter[tuple[str, str]] = Counter()
    query = "SELECT split_name, client_id, num_examples FROM client_metadata"
    for split, client_id, count in connection.execute(query):
        if not (isinstance(split, str) and isinstance(client_id, str) and isinstance(count, int)):
            shown = ", ".join(repr(each)[:40] for each in (split, client_id, count))
            raise DataError(
                f"{source}: client_metadata: row ({shown}) is not valid; give two texts and a "
                "whole number"
            )
        shared.check_id(client_id, f"{source}: client_metadata")
        if count < 0 or (split, client_id) in counts:
            fault = f"num_examples is {count}" if count < 0 else "occurs in two rows"
            raise DataError(
                f"{source}: client_metadata: split {split!r}: client {client_id!r}: {fault}; "
                "correct the table"
            )
        counts[split, client_id] = count
    return counts


def _check_counts(
    seen: Counter[tuple[str, str]], wanted: Counter[tuple[str, str]], source: str
) -> None:
    for key in sorted(seen | wanted):
        if seen[key] != wanted[key]:
            split, client_id = key
            raise DataError(
                f"{source}: split {split!r}: client {client_id!r}: {plural(seen[key], 'example')} "
                f"but client_metadata says {wanted[key]}; the file is incomplete, so fetch it again"
            )


# ---- The database --------------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(database: Path, source: str) -> Iterator[sqlite3.Connection]:
    """Opens a database read-only; errors of SQLite become one line."""
    try:
        address = f"{database.resolve().as_uri()}?mode=ro&immutable=1"
        connection = sqlite3.connect(address, uri=True)
        try:
            for pragma in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON"):
                connection.execute(f"PRAGMA {pragma}")
            yield connection
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError) as err:  # messages may quote bad text
        raise DataError(f"{source}: cannot be read as SQLite: {err}; fetch it again") from err


def _check_tables(connection: sqlite3.Connection, source: str) -> None:
    """Refuses a database without the two tables and their columns; views do not count."""
    for table, columns in _TABLES.items():
        query = "SELECT type, sql FROM sqlite_master WHERE name = ?"
        kind, text = connection.execute(query, [table]).fetchone() or (None, None)
        if kind != "table" or not str(text).upper().startswith("CREATE TABLE"):
            raise DataError(
                f"{source}: has no plain table {table!r}, so it is not a TFF database; give one"
            )
        plain = {
            name
            for _, name, _, _, _, _, hidden in connection.execute(f"PRAGMA table_xinfo({table})")
            if not hidden
        }
        for column in columns:
            if column not in plain:
                raise DataError(
                    f"{source}: table {table!r} has no plain column {column!r}; give a TFF database"
                )


@contextlib.contextmanager
def _cancellable(connection: sqlite3.Connection, check: Callable[[], None]) -> Iterator[None]:
    """Calls `check` at intervals while SQLite works.

    If it raises an exception, the query is stopped.
    """
    raised: list[BaseException] = []

    def stops() -> bool:
        try:
            check()
        except BaseException as err:  # SQLite does not pass the exception on
            raised.append(err)
        return bool(raised)

    connection.set_progress_handler(stops, _OPERATIONS)
    try:
        yield
    except sqlite3.Error:
        if raised:
            raise raised[0] from None
        raise
    finally:
        connection.set_progress_handler(None, 0)


@contextlib.contextmanager
def _database(path: Path, folder: Path | None, on_progress: ProgressCallback) -> Iterator[Path]:
    """Yields the database: the file itself, or a decompressed file that is removed afterwards."""
    start = start_of(path, _HEADER_BYTES)
    if start.startswith(_SIGNATURE):
        _check_size(path.stat().st_size, _database_bytes(start), str(path))
        yield path
        return
    # SQLite opens files by name, so this file needs a name.
    with scratch_folder(folder, UNPACKED) as unpacked:
        database = unpacked / "database"
        with open_regular(path) as packed, database.open("xb") as file:
            _unpack(packed, file, path, lambda: shutil.disk_usage(unpacked).free, on_progress)
        yield database


def _unpack(
    packed: BinaryIO,
    file: BinaryIO,
    path: Path,
    free_bytes: Callable[[], int],
    on_progress: ProgressCallback,
) -> None:
    """Decompresses a database. Stops with an error before it would fill the disk."""
    most = path.stat().st_size * _MAX_RATIO
    decoder = lzma.LZMADecompressor(memlimit=MAX_DECODER_BYTES)
    num_bytes, expected = 0, None
    try:
        while not decoder.eof:
            block = packed.read(_BLOCK_BYTES) if decoder.needs_input else b""
            if decoder.needs_input and not block:
                raise DataError(f"{path}: ends too early; fetch the file again")
            written = decoder.decompress(block, _BLOCK_BYTES)
            if not num_bytes:
                expected = _database_bytes(written)
            num_bytes += len(written)
            _check_room(max(expected or 0, num_bytes), num_bytes, most, free_bytes, str(path))
            file.write(written)
            on_progress(num_bytes, expected)
    except lzma.LZMAError as err:
        raise DataError(f"{path}: damaged LZMA data ({err}); fetch the file again") from err
    _check_size(num_bytes, expected, str(path))


def _check_size(num_bytes: int, expected: int | None, source: str) -> None:
    """Refuses a database that was cut off; SQLite would read an incomplete last page as zeros."""
    if expected is not None and num_bytes != expected:
        raise DataError(
            f"{source}: the database has {num_bytes} bytes but its header says {expected}; "
            "fetch the file again"
        )


def _check_room(
    whole: int, written: int, most: int, free_bytes: Callable[[], int], source: str
) -> None:
    if whole > most:
        raise DataError(
            f"{source}: unpacks to {whole} bytes or more, over {_MAX_RATIO} times its size, so it "
            "is not a database; fetch it again"
        )
    if whole - written > free_bytes() - _SPARE_BYTES:
        raise DataError(
            f"{source}: unpacks to {whole} bytes, more than is free on the disk; free some space, "
            "or set TMPDIR or --out to another disk"
        )


def _database_bytes(start: bytes) -> int | None:
    """Returns the size in a database's header, or None if an old SQLite did not record it."""
    if len(start) < _HEADER_BYTES or start[24:28] != start[92:96]:
        return None
    page = int.from_bytes(start[16:18], "big")
    return (65536 if page == 1 else page) * int.from_bytes(start[28:32], "big")
