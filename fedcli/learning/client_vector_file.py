"""An SQLite file of vectors that clients keep from round to round.

A store is a table (client id, version, checksum, vector); the version is the round that wrote the
row. Without a run folder the file is an unnamed temporary one. A store takes disk space for the
clients that took part, and little memory, however large the population is: up to `PENDING_BYTES` of
vectors wait in memory until they are saved. Many are replaced before that and never written.

`save` writes all changes to the disk, or none. A process killed at any time leaves a file with the
versions of every kept checkpoint. After a change of the file has failed (the disk is full), every
later read, write and save fails too: SQLite has rolled back the earlier changes, and no round or
checkpoint may depend on vectors that are lost.

A damaged file is an error. SQLite checks its pages and keys when a run is resumed, which reads the
whole file once. Each vector has a CRC-32. The digest of a version is the sum over the clients, mod
2**63, of a hash of id, version and checksum.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.digest import blake2b
from fedcli.errors import RunError
from fedcli.files import check_regular

PENDING_BYTES = 64 << 20  # if the waiting vectors take more, all are written to the file

_SUFFIXES = ("-journal", "-wal", "-shm")  # of SQLite's files beside a database
_PAGE_BYTES = 32768
_CACHE_BYTES = 8 << 20  # pages in memory; further changed pages are written to the file
_APPLICATION_ID = 0x66656463  # "fedc", in the header of the file
_VERSION = 2

_DIGEST_RANGE = 1 << 63  # a digest fits a signed 64-bit integer in HDF5

_DAMAGED = "is damaged; restore the file, or start a new run"

_TABLE = """
CREATE TABLE states (
    client TEXT NOT NULL, version INTEGER NOT NULL, checksum INTEGER NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (client, version)
)
"""
# SQLite makes the index for the primary key.
_SCHEMA = [
    ("index", "sqlite_autoindex_states_1", None),
    ("table", "states", " ".join(_TABLE.split())),
]

_OTHER_TYPES = """
SELECT EXISTS (
    SELECT 1 FROM states
    WHERE (typeof(client), typeof(version), typeof(checksum), typeof(vector))
        <> ('text', 'integer', 'integer', 'blob')
)
"""


class Store:
    """An open file of client vectors. Only one thread at a time may use it.

    Attributes:
        path: Its path; None for a temporary file.
        version: The newest version in it.
        kept: Versions of kept checkpoints, which writes never drop.
    """

    def __init__(self, path: Path | None) -> None:
        """Opens the file, or creates it.

        Raises:
            RunError: The file is damaged, of another kind, or cannot be opened.
        """
        import sqlite3  # lazy: few runs need it

        self.path = path
        self._process = os.getpid()
        self.kept: tuple[int, ...] = ()
        self._pending = _Pending()
        self._failure: RunError | None = None
        self._errors = sqlite3.Error
        if path is not None:
            _check_kind(path)
        with self._faults():
            # The thread that computes and the thread that saves both use this connection.
            self._file = sqlite3.connect(
                "" if path is None else path, isolation_level=None, check_same_thread=False
            )
            try:
                self._open_table()
                self._check_types()
                self.version = int(self._one("SELECT coalesce(max(version), 0) FROM states"))
            except BaseException:
                self._file.close()
                raise

    def read(self, client_id: str, version: int) -> NDArray[np.float32] | None:
        """Returns a client's newest vector up to `version`, or None if it has none.

        It must not be changed, and is valid until the next write.

        Raises:
            RunError: The vector is damaged, or the file cannot be read.
        """
        with self._faults():
            pending = self._pending.newest(client_id, version)
            if pending is not None:
                return pending
            row = self._file.execute(
                "SELECT version, checksum, vector FROM states WHERE client = ? AND version <= ? "
                "ORDER BY version DESC LIMIT 1",
                (client_id, version),
            ).fetchone()
        if row is None:
            return None
        written, checksum, content = row
        if not isinstance(content, bytes) or _checksum(client_id, written, content) != checksum:
            raise RunError(f"{self.path}: the state of client {client_id!r} {_DAMAGED}")
        return np.frombuffer(content, np.float32)

    def check_version(self, version: int, digest: int | None) -> int:
        """Reads the whole file and checks that it holds a version.

        Args:
            version: The version that the run continues from.
            digest: The expected digest of that version; None if it is not known.

        Returns:
            The digest of the version.

        Raises:
            RunError: The file's pages or keys are inconsistent, or the digest differs.
        """
        with self._faults():
            problem = str(self._one("PRAGMA integrity_check(1)"))
        if problem != "ok":
            raise RunError(f"{self.path} {_DAMAGED} ({' '.join(problem.split())})")
        actual = self.digest(version)
        if digest not in (None, actual):
            raise RunError(
                f"{self.path} does not hold the clients' states of the checkpoint of round "
                f"{version}: it is too old, belongs to another run, or lacks rows; restore the "
                "file, or start a new run"
            )
        return actual

    def digest(self, version: int) -> int:
        """Returns the digest of a version; this reads the key of every row.

        Raises:
            RunError: The file cannot be read.
        """
        with self._faults():
            # SQLite takes `checksum` from the row with the client's largest version.
            newest = self._file.execute(
                "SELECT client, max(version), checksum FROM states WHERE version <= ? "
                "GROUP BY client",
                (version,),
            )
            return sum(_hash_of_row(*row) for row in newest) % _DIGEST_RANGE

    def memory(self, num_params: int) -> NDArray[np.float32]:
        """Returns memory, float32 [num_params], for a vector that is then passed to `write`."""
        return self._pending.memory(num_params)

    def write(self, client_id: str, version: int, vector: NDArray[np.float32]) -> bool:
        """Sets a client's vector of a version, without a copy.

        Returns:
            Whether the vectors take so much memory that the caller should `flush` them.

        Raises:
            RunError: An earlier change failed.
        """
        with self._faults():
            self._pending.add(client_id, version, vector, (*self.kept, version - 1))
        self.version = max(self.version, version)
        return self._pending.num_bytes > PENDING_BYTES

    def flush(self) -> list[tuple[int, int]]:
        """Writes the vectors that wait in memory to the file.

        Returns:
            For each vector: its version, and the number by which it changes the digests of this
            and all later versions.

        Raises:
            RunError: The file cannot be written, or an earlier change failed.
        """
        if not self._pending.num_bytes:
            return []
        with self._changes():
            changes = [
                (version, self._insert(client_id, version, vector))
                for client_id, version, vector in self._pending.all()
            ]
        self._pending.clear()
        return changes

    def _insert(self, client_id: str, version: int, vector: NDArray[np.float32]) -> int:
        """Writes a row, and deletes the client's rows that are no longer needed.

        Returns:
            The number by which the row changes the digest.
        """
        content = np.ascontiguousarray(vector, np.float32).data.cast("B")
        checksum = _checksum(client_id, version, content)
        before = self._file.execute(
            "SELECT version, checksum FROM states WHERE client = ? ORDER BY version",
            (client_id,),
        ).fetchall()
        self._file.execute(
            "INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)",
            (client_id, version, checksum, content),
        )
        self._drop_old(client_id, version, [each for each, _ in before])
        change = _hash_of_row(client_id, version, checksum)
        replaced = [row for row in before if row[0] <= version]
        return change - _hash_of_row(client_id, *replaced[-1]) if replaced else change

    def digest_after(self, digest: int, change: int) -> int:
        """Returns a version's digest after a change that `flush` returned."""
        return (digest + change) % _DIGEST_RANGE

    def rewind(self, version: int) -> None:
        """Deletes all versions after `version`.

        Raises:
            RunError: The file cannot be written, or an earlier change failed.
        """
        with self._changes():
            if self.version > version:
                self._pending.drop_after(version)
                self._file.execute("DELETE FROM states WHERE version > ?", (version,))
                self.version = version

    def save(self) -> None:
        """Commits the flushed vectors to the disk.

        Raises:
            RunError: The file cannot be written, or an earlier change failed.
        """
        with self._changes():
            self._file.execute("COMMIT")

    def close(self) -> None:
        """Closes the file; changes since the last `save` are lost."""
        self._file.close()

    def _open_table(self) -> None:
        file = self._file
        file.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        file.execute(f"PRAGMA cache_size = -{_CACHE_BYTES >> 10}")
        file.execute("PRAGMA temp_store = FILE")
        if self.path is None:  # a temporary file need not survive a crash
            file.execute("PRAGMA journal_mode = OFF")
            file.execute("PRAGMA synchronous = OFF")
        else:
            file.execute("PRAGMA synchronous = FULL")
        if not self._one("SELECT count(*) FROM sqlite_master"):
            file.execute("BEGIN")
            file.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            file.execute(f"PRAGMA user_version = {_VERSION}")
            file.execute(_TABLE)
            file.execute("COMMIT")
        identity = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        if identity != (_APPLICATION_ID, _VERSION):
            raise RunError(
                f"{self.path} is not a client-states file of this version of fedcli; restore it, "
                "or start a new run"
            )
        # Triggers, views and constraints that other programs added would change what is written.
        schema = [
            (kind, name, sql and " ".join(sql.split()))
            for kind, name, sql in file.execute("SELECT type, name, sql FROM sqlite_master")
        ]
        if sorted(schema, key=str) != _SCHEMA:
            raise RunError(
                f"{self.path} has other tables than fedcli makes; restore the file, or start a new "
                "run"
            )

    def _check_types(self) -> None:
        """Rejects values of other types, because SQLite stores any type in any column."""
        if self._one(_OTHER_TYPES):
            raise RunError(f"{self.path} {_DAMAGED} (a value in it has another type)")

    def _one(self, query: str, *values: object) -> Any:
        return self._file.execute(query, values).fetchone()[0]

    def _drop_old(self, client_id: str, version: int, before: Sequence[int]) -> None:
        """Deletes a client's rows that neither a kept version nor the last two versions need."""
        for each in _unneeded({*before, version}, version, (*self.kept, version - 1)):
            self._file.execute(
                "DELETE FROM states WHERE client = ? AND version = ?", (client_id, each)
            )

    @contextmanager
    def _changes(self) -> Iterator[None]:
        """A transaction, open until `save`. After an error no further change is accepted."""
        try:
            with self._faults():
                if not self._file.in_transaction:
                    self._file.execute("BEGIN")
                yield
        except RunError as err:
            self._failure = err
            raise

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turns SQLite's errors into a RunError; also raises one if the file may not be used."""
        if self._failure is not None:
            raise self._failure
        if os.getpid() != self._process:  # an SQLite connection must not cross a fork
            raise RunError(
                f"client states in {self.path or 'a temporary file'} were opened before this "
                "process was forked; continue in the process that opened them, or start this one "
                "with multiprocessing's method spawn"
            )
        try:
            yield
        except (self._errors, UnicodeDecodeError) as err:  # SQLite's message may quote bad UTF-8
            reason = "a name in it is garbled" if isinstance(err, UnicodeDecodeError) else err
            raise RunError(f"client states in {self.path or 'a temporary file'}: {reason}") from err


class _Pending:
    """Vectors that are not written to the file yet, and are newer than their clients' rows in it.

    Memory of dropped vectors is used again, because fresh pages cost time.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._vectors: dict[str, dict[int, NDArray[np.float32]]] = {}  # by client and version
        self._free: list[NDArray[np.float32]] = []

    def newest(self, client_id: str, version: int) -> NDArray[np.float32] | None:
        """Returns a client's newest pending vector up to a version; None if none is pending."""
        vectors = self._vectors.get(client_id, {})
        newest_version = max((each for each in vectors if each <= version), default=None)
        return None if newest_version is None else vectors[newest_version]

    def all(self) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
        """Yields client, version and vector, the versions of a client in order."""
        for client_id, vectors in self._vectors.items():
            for version in sorted(vectors):
                yield client_id, version, vectors[version]

    def memory(self, num_params: int) -> NDArray[np.float32]:
        """Returns memory for a vector."""
        while self._free:
            vector = self._free.pop()
            if len(vector) == num_params:
                return vector
        return np.empty(num_params, np.float32)

    def add(
        self, client_id: str, version: int, vector: NDArray[np.float32], needed_at: Sequence[int]
    ) -> None:
        """Adds a vector, and drops the client's vectors that `_unneeded` returns."""
        vectors = self._vectors.setdefault(client_id, {})
        self._drop(vectors, [each for each in vectors if each == version])
        vectors[version] = vector
        self.num_bytes += vector.nbytes
        self._drop(vectors, _unneeded(vectors, version, needed_at))

    def drop_after(self, version: int) -> None:
        """Drops all vectors of later versions."""
        for vectors in self._vectors.values():
            self._drop(vectors, [each for each in vectors if each > version])

    def clear(self) -> None:
        """Drops all vectors."""
        for vectors in self._vectors.values():
            self._drop(vectors, list(vectors))
        self._vectors = {}

    def _drop(self, vectors: dict[int, NDArray[np.float32]], versions: Iterable[int]) -> None:
        for version in versions:
            dropped = vectors.pop(version)
            self.num_bytes -= dropped.nbytes
            self._free.append(dropped)


def _unneeded(versions: Iterable[int], version: int, needed_at: Sequence[int]) -> list[int]:
    """Returns the versions that can be dropped.

    Later reads need `version` and, for each v in `needed_at`, the newest version up to v.
    """
    needed = {version}
    for kept in needed_at:
        needed.add(max((each for each in versions if each <= kept), default=version))
    return [each for each in versions if each not in needed]


def _check_kind(path: Path) -> None:
    """Rejects pipes, devices and the like, on which SQLite would block or read for ever.

    The files beside the database are checked, too, because SQLite reads changes from them.
    """
    for suffix, advice in (("", "restore the file"), *((each, "remove it") for each in _SUFFIXES)):
        named = Path(f"{path}{suffix}")
        try:
            with suppress(FileNotFoundError):
                check_regular(named)
        except OSError as err:
            raise RunError(f"cannot read {named}: {err.strerror}; {advice}") from err


def _checksum(client_id: str, version: int, vector: bytes | memoryview) -> int:
    """Returns the CRC-32 of a row: version, client id and the bytes of the vector."""
    return zlib.crc32(vector, zlib.crc32(f"{version} {client_id}".encode()))


def _hash_of_row(client_id: str, version: int, checksum: int) -> int:
    """Returns the term that a row adds to a digest: 8 bytes of BLAKE2b."""
    key = f"{version} {checksum} {client_id}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")
