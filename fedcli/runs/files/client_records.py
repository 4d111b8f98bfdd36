"""clients.h5: the records of each client in each round of a run.

Layout (format "fedcli-client-records", version 3): one compressed dataset for each column, all of
the same length. Rows are sorted by round, and within a round in the order of the cohort. Version 2,
which had one column of bytes in both directions, is read, too.

- `round`: int32.
- `client`: int64, an index into `client_ids`, which are UTF-8 strings.
- `outcome`: an enumeration, see OUTCOMES. Only clients that `reported` contribute to the model.
- `num_examples`: int64, the number of examples processed.
- `loss`, `accuracy`: float32, measured during training; NaN without examples.
- `update_norm`: float32, the L2 norm of the client's model delta; NaN if that is not finite.
- `report_seconds`: float64, virtual seconds from the start of the round to the report; NaN without
  a virtual clock and for clients that dropped out.
- `bytes_down`, `bytes_up`: int64, what the client received and sent, by the rule of
  `fedcli.runs.client_bytes`.

While a process trains, all rounds so far are in clients.journal, which `load` reads as well. It is
a line of JSON followed by blocks. A block is a line of JSON (`clients`: ids that are new in the
file; `num_rows`) followed by rows of fixed length. Each round adds a block with a single write; a
block that a kill or a full disk cut short is ignored. When the process ends, the journal is
converted to clients.h5, which is written atomically. So if there is a journal, it has all rounds.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedcli import hdf5
from fedcli.dataclass import dataclass
from fedcli.errors import DataError, RunError, why_not_written
from fedcli.federation.participation import DROPPED_OUT, LATE, REPORTED, SURPLUS, RoundReports
from fedcli.files import json_text, read_bounded
from fedcli.outputs import open_to_append, write_atomic

FILE, JOURNAL = "clients.h5", "clients.journal"
FORMAT, VERSION = "fedcli-client-records", 3

# The outcomes, numbered as in the column. SKIPPED: the client reported, but the round had too few
# reports and did not change the model.
SKIPPED = "skipped"
OUTCOMES = (REPORTED, DROPPED_OUT, LATE, SURPLUS, SKIPPED)

# A row of the journal; `client` is an index into the ids that the journal lists.
ROW = np.dtype(
    [
        *(("round", "<i4"), ("client", "<i8"), ("outcome", "u1"), ("num_examples", "<i8")),
        *(("loss", "<f4"), ("accuracy", "<f4"), ("update_norm", "<f4")),
        *(("report_seconds", "<f8"), ("bytes_down", "<i8"), ("bytes_up", "<i8")),
    ]
)
# A row of version 2, and of journals of version 1: the bytes in both directions are one column.
_OLD_ROW = np.dtype(
    [(name, ROW[name]) for name in (ROW.names or ())[:-2]] + [("bytes", np.dtype("<i8"))]
)
_ROWS = {2: _OLD_ROW, VERSION: ROW}  # by the version of clients.h5
_MEASURED = ("loss", "accuracy", "update_norm", "report_seconds")  # NaN if not measured
_OUTCOME_TYPE = h5py.enum_dtype({name: at for at, name in enumerate(OUTCOMES)}, "u1")
_JOURNAL_HEAD = {"format": "fedcli-client-journal", "version": 2}
_OLD_JOURNAL_HEAD = {**_JOURNAL_HEAD, "version": 1}
# Limits on the decompressed size of clients.h5: in bytes, and relative to the size of the file.
MAX_SMALL_BYTES, MAX_RATIO = 256 << 20, 100
MAX_JOURNAL_BYTES = 4 << 30  # about 75 million rows; the journal is read whole
_CHUNK_ROWS = 1 << 14
_MIN_IDS, _MAX_IDS, _IDS_BYTES = 16, 4096, 256 << 20  # ids, and bytes, to read at a time
_DAMAGE = (
    *(OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError),
    *(DataError, MemoryError),
)


@dataclass(frozen=True, eq=False)
class ClientRecords:
    """The client records of a run.

    Attributes:
        rows: ROW [num_rows]; `client` is an index into `client_ids`.
        client_ids: The clients that occur in the rows.
    """

    rows: NDArray[Any]
    client_ids: list[str]

    def __repr__(self) -> str:
        """Returns the numbers of rows and clients."""
        return f"<ClientRecords: {len(self.rows):,} rows of {len(self.client_ids):,} clients>"

    def to_pandas(self) -> Any:
        """Returns a pandas DataFrame with a row for each client and round, ids as text.

        Raises:
            ConfigError: pandas is not installed.
        """
        from fedcli.settings.notebooks import data_frame  # lazy: notebooks alone need it

        columns: dict[str, Any] = {name: self.rows[name] for name in self.rows.dtype.names or ()}
        columns["client"] = [self.client_ids[place] for place in self.rows["client"].tolist()]
        return data_frame(columns)


class RecordWriter:
    """Writes the client records of a run whose folder this process has locked."""

    def __init__(self, path: Path, round_num: int) -> None:
        """Continues the records of earlier processes after `round_num`.

        Args:
            path: The run's folder.
            round_num: Number of completed rounds; records of later rounds are dropped.

        Raises:
            RunError: A file is damaged or cannot be written.
        """
        self._path = path
        earlier = _read_records(path)
        self._places: dict[str, int] = {}
        content = json_text(_JOURNAL_HEAD).encode() + b"\n"
        if earlier is not None and round_num:
            rows = earlier.rows[earlier.rows["round"] <= round_num]
            content += self._block(rows, earlier.client_ids)
        write_atomic(path / JOURNAL, content)
        try:
            self._file = open_to_append(path / JOURNAL)
        except OSError as err:
            raise RunError(f"cannot write {path / JOURNAL}: {why_not_written(err)}") from err

    def add(
        self,
        round_num: int,
        client_ids: Sequence[str],
        stats: NDArray[Any],
        num_bytes: tuple[NDArray[np.int64], NDArray[np.int64]],
        round_reports: RoundReports | None = None,
    ) -> None:
        """Adds one round with a single write.

        Args:
            round_num: The round.
            client_ids: The cohort.
            stats: One row for each client that trained, as the engine returns them, with norms.
            num_bytes: The bytes that each client received, and those it sent, int64 [cohort] each.
            round_reports: The outcomes of the cohort; None if all trained and reported.

        Raises:
            RunError: It cannot be written, for example because the disk is full.
        """
        different = list(dict.fromkeys(client_ids))
        places = {client_id: place for place, client_id in enumerate(different)}
        rows = np.zeros(len(client_ids), ROW)
        rows["round"] = round_num
        rows["client"] = [places[each] for each in client_ids]
        for name in _MEASURED:
            rows[name] = np.nan
        rows["bytes_down"], rows["bytes_up"] = num_bytes
        trained: Any = slice(None)
        if round_reports is not None:
            trained = [] if round_reports.is_skipped else list(round_reports.reports)
            _set_reports(rows, round_reports)
        counts = stats["num_examples"]
        rows["num_examples"][trained] = counts
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            rows["loss"][trained] = stats["loss_sum"] / counts
            rows["accuracy"][trained] = stats["num_correct"] / counts
            norms = np.where(stats["is_finite"] != 0, stats["norm"], np.nan)
            rows["update_norm"][trained] = norms  # a norm too large for float32 becomes infinite
        content = self._block(rows, different)
        try:
            written = self._file.write(content)
        except OSError as err:
            raise RunError(f"cannot write {self._path / JOURNAL}: {why_not_written(err)}") from err
        if written != len(content):
            raise RunError(
                f"cannot write {self._path / JOURNAL}: the disk is full; make room there"
            )

    def flush(self) -> None:
        """Syncs the added rounds to the disk. Raises RunError."""
        try:
            os.fsync(self._file.fileno())
        except OSError as err:
            raise RunError(f"cannot write {self._path / JOURNAL}: {why_not_written(err)}") from err

    def close(self) -> None:
        """Converts the journal to clients.h5. Raises RunError."""
        self._file.close()
        records = _read_journal(self._path / JOURNAL)
        write_atomic(self._path / FILE, _encode(_sorted_by_id(records)))
        with contextlib.suppress(OSError):  # a journal that stays has the same records
            (self._path / JOURNAL).unlink()

    def _block(self, rows: NDArray[Any], client_ids: Sequence[str]) -> bytes:
        """A block of the journal; `client` in the rows is an index into `client_ids`."""
        new = [each for each in client_ids if each not in self._places]
        self._places.update(zip(new, range(len(self._places), 2**62), strict=False))
        places = np.array([self._places[each] for each in client_ids], np.int64)
        rows["client"] = places[rows["client"]]
        head = json_text({"clients": new, "num_rows": len(rows)})
        return head.encode() + b"\n" + rows.tobytes()


def load(path: Path) -> ClientRecords:
    """Returns the records of the run at `path`, also during its training.

    Raises:
        RunError: There are none, or the file is damaged.
    """
    records = _read_records(path)
    if records is None:
        raise RunError(f"{path} has no {FILE}; train with --record-clients to get it")
    return _sorted_by_id(records)


def _read_records(path: Path) -> ClientRecords | None:
    """Reads the journal of a run or, if there is none, clients.h5; None if there is neither."""
    if (path / JOURNAL).is_file():
        with contextlib.suppress(FileNotFoundError):  # it has just been converted
            return _read_journal(path / JOURNAL)
    file = path / FILE
    if not file.is_file():
        return None
    try:
        with hdf5.open_file(file) as opened:
            return _parse(opened, file)
    except _DAMAGE as err:
        raise RunError(
            f"{file} is damaged or is not a file of client records; restore it, or move it away"
        ) from err


def _set_reports(rows: NDArray[Any], round_reports: RoundReports) -> None:
    """Sets outcomes and times."""
    outcomes = [OUTCOMES.index(each) for each in round_reports.outcomes]
    rows["outcome"] = outcomes
    if round_reports.is_skipped:
        rows["outcome"][rows["outcome"] == OUTCOMES.index(REPORTED)] = OUTCOMES.index(SKIPPED)
    if round_reports.seconds is not None:
        rows["report_seconds"] = [np.nan if at is None else at for at in round_reports.seconds]


def _sorted_by_id(records: ClientRecords) -> ClientRecords:
    """The same records with sorted ids, without ids that do not occur in the rows."""
    used, places = np.unique(records.rows["client"], return_inverse=True)
    ids = [records.client_ids[place] for place in used.tolist()]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ranks = np.empty(len(ids), np.int64)
    ranks[order] = np.arange(len(ids))
    rows = records.rows.copy()
    rows["client"] = ranks[places]
    return ClientRecords(rows, [ids[place] for place in order])


def _parse(opened: h5py.File, file: Path) -> ClientRecords:
    if opened.attrs.get("format") != FORMAT:
        raise RunError(f"{file} is not a file of client records; move it away")
    version = opened.attrs["version"]
    kind = _ROWS.get(int(version))
    if kind is None:
        raise RunError(
            f"{file} has version {version} of its format, but this fedcli reads versions "
            f"{' and '.join(map(str, _ROWS))}; use the fedcli that wrote it, or move the file away"
        )
    names = (*(kind.names or ()), "client_ids")
    if not all(isinstance(opened.get(name, getlink=True), h5py.HardLink) for name in names):
        raise RunError(f"{file} lacks a column; restore it, or move it away")
    columns = {name: opened[name] for name in names}
    num_rows = {each.shape for name, each in columns.items() if name != "client_ids"}
    is_plain = [
        each.ndim == 1 and not each.external and not each.is_virtual for each in columns.values()
    ]
    if len(num_rows) != 1 or not all(is_plain):
        raise RunError(f"{file}: its columns differ in length; restore it, or move it away")
    num_bytes = file.stat().st_size
    if sum(each.nbytes for each in columns.values()) > max(MAX_SMALL_BYTES, MAX_RATIO * num_bytes):
        raise RunError(f"{file} claims more rows than {num_bytes:,} bytes hold; restore the file")
    for each in columns.values():
        hdf5.check_chunks(each.id, str(file))
    client_ids = _read_ids(columns.pop("client_ids"), file)
    rows = np.zeros(next(iter(num_rows)), kind)
    for name, column in columns.items():
        rows[name] = column[()]
    return _checked(_with_directions(rows), client_ids, file)


def _with_directions(rows: NDArray[Any]) -> NDArray[Any]:
    """Returns the rows as ROW; old bytes are halved, because model and delta have the same size."""
    if rows.dtype == ROW:
        return rows
    converted = np.zeros(len(rows), ROW)
    for name in (ROW.names or ())[:-2]:
        converted[name] = rows[name]
    has_sent = rows["outcome"] != OUTCOMES.index(DROPPED_OUT)
    converted["bytes_up"] = np.where(has_sent, rows["bytes"] // 2, 0)
    converted["bytes_down"] = rows["bytes"] - converted["bytes_up"]
    return converted


def _read_ids(column: h5py.Dataset, file: Path) -> list[str]:
    """Reads the ids in blocks, because many ids may refer to one long text in the file."""
    num_bytes = file.stat().st_size
    at_once = min(max(_IDS_BYTES // num_bytes, _MIN_IDS), _MAX_IDS)
    ids: list[str] = []
    num_characters = 0
    for first in range(0, len(column), at_once):
        block = list(map(str, column.asstr()[first : first + at_once]))
        num_characters += sum(map(len, block))
        if num_characters > num_bytes:
            raise RunError(f"{file} is damaged: its ids are longer than the file")
        ids += block
    return ids


def _checked(rows: NDArray[Any], client_ids: list[str], file: Path) -> ClientRecords:
    clients, rounds = rows["client"], rows["round"]
    if len(rows) and not 0 <= clients.min() <= clients.max() < len(client_ids):
        raise RunError(f"{file} is damaged: a row has a client that is not in its list of ids")
    if len(set(client_ids)) < len(client_ids) or rows["outcome"].max(initial=0) >= len(OUTCOMES):
        raise RunError(f"{file} is damaged: a client occurs twice, or has an unknown outcome")
    if len(rows) and (rounds[0] < 1 or (np.diff(rounds) < 0).any()):
        raise RunError(f"{file} is damaged: its rounds are not in order")
    return ClientRecords(rows, client_ids)


def _encode(records: ClientRecords) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file["client_ids"] = np.array(records.client_ids, dtype=h5py.string_dtype())
        for name in ROW.names or ():
            column = np.ascontiguousarray(records.rows[name])
            packed: dict[str, Any] = {}
            if len(column):
                chunks = (min(len(column), _CHUNK_ROWS),)
                packed = {"chunks": chunks, "compression": "gzip", "shuffle": True}
            kind = _OUTCOME_TYPE if name == "outcome" else column.dtype
            file.create_dataset(name, data=column, dtype=kind, fletcher32=bool(packed), **packed)
    return buffer.getvalue()


def _read_journal(path: Path) -> ClientRecords:
    """Reads the complete blocks of a journal. Raises RunError and FileNotFoundError."""
    try:
        content = read_bounded(path, MAX_JOURNAL_BYTES)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise RunError(f"cannot read {path}: {err.strerror}") from err
    ids: list[str] = []
    blocks = [np.zeros(0, ROW)]
    head, at = _read_line(content, 0, path)
    kind = _OLD_ROW if head == _OLD_JOURNAL_HEAD else ROW
    if head is not None and head not in (_JOURNAL_HEAD, _OLD_JOURNAL_HEAD):
        raise RunError(
            f"{path} was written by another version of fedcli, or is damaged; resume with that "
            "version, or move the file away"
        )
    while at < len(content):
        head, at = _read_line(content, at, path)
        if head is None:
            break
        num_rows = head["num_rows"]
        end = at + num_rows * kind.itemsize
        if end > len(content):
            break
        ids += head["clients"]
        blocks.append(_with_directions(np.frombuffer(content, kind, num_rows, at)))
        at = end
    return _checked(np.concatenate(blocks), ids, path)


def _read_line(content: bytes, at: int, path: Path) -> tuple[dict[str, Any] | None, int]:
    """The JSON object of the line at an offset, None if it is cut short; and the next offset."""
    end = content.find(b"\n", at)
    if end < 0:
        return None, len(content)
    try:
        head = json.loads(content[at:end])
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or (at and not _is_block_head(head)):
        raise RunError(f"{path} is damaged at byte {at}; move it away, or start a new run")
    return head, end + 1


def _is_block_head(head: dict[str, Any]) -> bool:
    num_rows, ids = head.get("num_rows"), head.get("clients")
    is_count = type(num_rows) is int and num_rows >= 0
    return is_count and isinstance(ids, list) and all(map(_is_id, ids))


def _is_id(value: object) -> bool:
    """Whether this is a text that HDF5 can store: valid as UTF-8 and without NUL."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return value.encode(errors="replace").decode() == value
