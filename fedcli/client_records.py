"""What each client of each cohort did, over all rounds of a run: clients.h5.

Layout (format "fedcli-client-records", version 1): one dataset a column, all of one length, sorted
by round and within it in the order of the cohort, compressed: `round` int32, `client` int64 (a row
of `client_ids`), `num_examples` int64 (processed), `loss` and `accuracy` float32 (online; NaN
without examples), `update_norm` float32 (L2 of the model delta as the client made it; NaN where
that is not finite), `bytes` int64 (the model down and the delta up). `client_ids` are UTF-8
strings.

While a process trains, its rounds go to clients.journal, plain rows of one length that are cut back
as easily as lines; when it ends they become clients.h5, which appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedcli.errors import RunError
from fedcli.files import write_atomic

FILE, JOURNAL = "clients.h5", "clients.journal"
FORMAT, VERSION = "fedcli-client-records", 1

# A row of the journal; `client` is a row of the population there.
ROW = np.dtype(
    [
        *(("round", "<i4"), ("client", "<i8"), ("num_examples", "<i8")),
        *(("loss", "<f4"), ("accuracy", "<f4"), ("update_norm", "<f4"), ("bytes", "<i8")),
    ]
)
_CHUNK_ROWS = 1 << 14


@dataclass(frozen=True, eq=False)
class ClientRecords:
    """Records of a run.

    Attributes:
        rows: ROW [num_rows], `client` being a row of `client_ids`.
        client_ids: Who stands in them.
    """

    rows: NDArray[Any]
    client_ids: list[str]


class RecordWriter:
    """Writes the records of a run that this process holds."""

    def __init__(self, path: Path, round_num: int, population: Sequence[str]) -> None:
        """Takes up what earlier processes wrote, cut back to `round_num`.

        Args:
            path: The run's folder.
            round_num: Rounds completed; later ones are dropped.
            population: All client ids, sorted; may be generated on demand.

        Raises:
            RunError: A file is damaged or cannot be written.
        """
        self._path = path
        self._population = population
        rows = _known_rows(path, population)
        write_atomic(path / JOURNAL, rows[rows["round"] <= round_num].tobytes())
        try:
            self._file = (path / JOURNAL).open("ab", buffering=0)
        except OSError as err:
            raise RunError(f"cannot write {path / JOURNAL}: {err.strerror}") from err

    def add(
        self, round_num: int, client_ids: Sequence[str], stats: NDArray[Any], num_params: int
    ) -> None:
        """Adds one round with a single write.

        Args:
            round_num: Its number.
            client_ids: The cohort.
            stats: One row a client, as the engine returns them, deltas measured.
            num_params: Of the model, which travels both ways.

        Raises:
            RunError: The disk is full, or the like.
        """
        rows = np.zeros(len(stats), ROW)
        rows["round"] = round_num
        rows["client"] = [bisect_left(self._population, each) for each in client_ids]
        counts = rows["num_examples"] = stats["num_examples"]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            rows["loss"] = stats["loss_sum"] / counts
            rows["accuracy"] = stats["num_correct"] / counts
            rows["update_norm"] = np.where(stats["is_finite"] != 0, stats["norm"], np.nan)
        rows["bytes"] = 2 * np.dtype(np.float32).itemsize * num_params
        content = rows.tobytes()
        try:
            written = self._file.write(content)
        except OSError as err:
            raise RunError(f"cannot write {self._file.name}: {err.strerror}") from err
        if written != len(content):
            raise RunError(f"cannot write {self._file.name}: the disk is full")

    def flush(self) -> None:
        """Waits until the disk has what was added. Raises RunError."""
        try:
            os.fsync(self._file.fileno())
        except OSError as err:
            raise RunError(f"cannot write {self._file.name}: {err.strerror}") from err

    def close(self) -> None:
        """Makes clients.h5 of the journal. Raises RunError."""
        self._file.close()
        rows = _read_journal(self._path)
        known, places = np.unique(rows["client"], return_inverse=True)
        rows["client"] = places
        client_ids = [self._population[index] for index in known.tolist()]
        write_atomic(self._path / FILE, _encode(ClientRecords(rows, client_ids)))
        with contextlib.suppress(OSError):
            (self._path / JOURNAL).unlink()


def load(path: Path) -> ClientRecords:
    """Returns the records of the run at `path`.

    Raises:
        RunError: There are none, or the file is damaged.
    """
    file = path / FILE
    if not file.is_file():
        if (path / JOURNAL).is_file():
            raise RunError(f"{path} is being trained, or was killed: resume it to have {FILE} made")
        raise RunError(f"{path} has no {FILE}; train with --record-clients to have it written")
    try:
        with h5py.File(file, "r") as opened:
            return _parse(opened, file)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as err:
        raise RunError(f"{file} is damaged or is no file of client records: {err}") from err


def _parse(opened: h5py.File, file: Path) -> ClientRecords:
    if opened.attrs.get("format") != FORMAT or opened.attrs.get("version") != VERSION:
        raise RunError(f"{file} is no file of client records that this fedcli reads")
    names = (*(ROW.names or ()), "client_ids")
    if not all(isinstance(opened.get(name, getlink=True), h5py.HardLink) for name in names):
        raise RunError(f"{file} lacks a column")
    columns = {name: opened[name] for name in names}
    num_rows = {each.shape for name, each in columns.items() if name != "client_ids"}
    is_plain = [
        each.ndim == 1 and not each.external and not each.is_virtual for each in columns.values()
    ]
    if len(num_rows) != 1 or not all(is_plain):
        raise RunError(f"{file}: its columns are not of one length")
    # What is compressed claims at most a thousand times the bytes of the file.
    if sum(each.nbytes for each in columns.values()) > 1100 * file.stat().st_size:
        raise RunError(f"{file} claims more rows than it can hold")
    client_ids = [str(each) for each in columns.pop("client_ids").asstr()[()]]
    rows = np.zeros(next(iter(num_rows)), ROW)
    for name, column in columns.items():
        rows[name] = column[()]
    clients = rows["client"]
    if len(rows) and not 0 <= clients.min() <= clients.max() < len(client_ids):
        raise RunError(f"{file} names clients that it does not list")
    return ClientRecords(rows, client_ids)


def _encode(records: ClientRecords) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file["client_ids"] = np.array(records.client_ids, dtype=h5py.string_dtype())
        for name in ROW.names or ():
            column = np.ascontiguousarray(records.rows[name])
            if not len(column):
                file[name] = column
                continue
            file.create_dataset(
                name,
                data=column,
                chunks=(min(len(column), _CHUNK_ROWS),),
                compression="gzip",
                shuffle=True,
            )
    return buffer.getvalue()


def _known_rows(path: Path, population: Sequence[str]) -> NDArray[Any]:
    """What earlier processes wrote, with `client` a row of the population."""
    rows = np.zeros(0, ROW)
    if (path / FILE).is_file():
        records = load(path)
        rows = records.rows
        places = [bisect_left(population, each) for each in records.client_ids]
        for index, client_id in zip(places, records.client_ids, strict=True):
            if index == len(population) or population[index] != client_id:
                raise RunError(
                    f"{path / FILE} names client {client_id}, whom the data do not have any more; "
                    "bring the data back, or move the file away"
                )
        rows["client"] = np.array(places, np.int64)[rows["client"]]
    left = _read_journal(path)  # of a killed process
    last = int(rows["round"].max(initial=0))
    return np.concatenate([rows, left[left["round"] > last]])


def _read_journal(path: Path) -> NDArray[Any]:
    """The whole rows of the journal; none if there is no journal."""
    try:
        content = (path / JOURNAL).read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as err:
        raise RunError(f"cannot read {path / JOURNAL}: {err.strerror}") from err
    whole = len(content) // ROW.itemsize * ROW.itemsize
    return np.frombuffer(content[:whole], ROW).copy()
