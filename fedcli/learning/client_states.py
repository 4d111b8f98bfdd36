"""What clients keep from round to round: one vector each, in a file, for those that took part.

A store is a table (client id, round, checksum, vector) in an SQLite file, or in a temporary one
that nobody sees where no folder is given. It costs disk for the clients that took part and next to
no memory, whatever the population. A damaged file is told, never gone on from: SQLite checks its
pages and keys when a run is resumed, which reads the file once, and each vector has a CRC-32.

`ClientStates` is the part of a server state that stands for the store: a plain value, all vectors
as they were after some round. To go on from one, a round writes the next version beside it;
versions before it, but for those of kept checkpoints, are then dropped client by client. A version
that was made from a state and is not gone on from (a round was interrupted, or repeated) is undone
when its state is gone on from once more.

Changes reach the disk with `save`, all or none, before the checkpoint that counts on them. A
process killed at any time leaves a file with the versions of every checkpoint that is kept. Once a
change failed (a disk is full), nothing is read or saved any more: SQLite has undone the changes
before it, and no round or checkpoint must count on what is lost.

A checkpoint holds the `digest` of its version: a sum over the clients, mod 2**63, of a hash of id,
version and checksum, which each write moves by what it changes. Opening a file adds it up from the
rows, so that a file that is older, of another run, or lacks rows is told before anything is
computed. It guards against mistakes, not against those who make a file to fit.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.digest import blake2b
from fedcli.errors import RunError
from fedcli.files import check_regular

FILE = "client_states.sqlite"

_PAGE_BYTES = 32768
_CACHE_BYTES = 8 << 20  # of pages in memory; what is changed beyond goes to the file
_APPLICATION_ID = 0x66656463  # "fedc", in the header of the file
_VERSION = 2

_DIGEST_RANGE = 1 << 63  # so that HDF5 holds it as a plain integer

_DAMAGED = "is damaged; restore the file, or train anew"

_TABLE = """
CREATE TABLE states (
    client TEXT NOT NULL, version INTEGER NOT NULL, checksum INTEGER NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (client, version)
)
"""


class Store:
    """The open file; not safe for several threads at once.

    Attributes:
        path: Where it is; None: a temporary file.
        version: The newest version in it.
        kept: Versions that stay readable, whatever is written: those of kept checkpoints.
    """

    def __init__(self, path: Path | None) -> None:
        """Opens or makes the file.

        Raises:
            RunError: It is damaged, another kind of file, or cannot be opened.
        """
        import sqlite3  # late: few runs need it

        self.path = path
        self._process = os.getpid()
        self.kept: tuple[int, ...] = ()
        self._failure: RunError | None = None
        self._errors = sqlite3.Error
        if path is not None:
            _check_kind(path)
        with self._faults():
            # Calls come from the thread that computes, and from the one that saves.
            self._file = sqlite3.connect(
                "" if path is None else path, isolation_level=None, check_same_thread=False
            )
            try:
                self._open_table()
                self.version = int(self._one("SELECT coalesce(max(version), 0) FROM states"))
            except BaseException:
                self._file.close()
                raise

    def read(self, client_id: str, version: int) -> NDArray[np.float32] | None:
        """Returns a client's newest vector up to a version, read-only; None: it has none.

        Raises:
            RunError: It is damaged.
        """
        with self._faults():
            found = self._file.execute(
                "SELECT version, checksum, vector FROM states WHERE client = ? AND version <= ? "
                "ORDER BY version DESC LIMIT 1",
                (client_id, version),
            ).fetchone()
        if found is None:
            return None
        written, checksum, content = found
        if not isinstance(content, bytes) or _checksum(client_id, written, content) != checksum:
            raise RunError(f"{self.path}: the state of client {client_id!r} {_DAMAGED}")
        return np.frombuffer(content, np.float32)

    def check_version(self, version: int, digest: int | None) -> int:
        """Reads the whole file.

        Args:
            version: A version that is to be gone on from.
            digest: What that of all clients' vectors should be; None: not known.

        Returns:
            The digest of the version.

        Raises:
            RunError: The file's pages and keys do not hold together, or it holds other vectors.
        """
        with self._faults():
            problem = str(self._one("PRAGMA integrity_check(1)"))
        if problem != "ok":
            raise RunError(f"{self.path} {_DAMAGED} ({' '.join(problem.split())})")
        found = self.digest(version)
        if digest not in (None, found):
            raise RunError(
                f"{self.path} does not hold the clients' states of the checkpoint of round "
                f"{version}: it is older, of another run, or lacks rows; restore the file, or "
                "train anew"
            )
        return found

    def digest(self, version: int) -> int:
        """Returns that of all clients' vectors of a version; reads the key of every row.

        Raises:
            RunError: The file cannot be read.
        """
        with self._faults():
            # Of a group SQLite takes `checksum` from the row that holds the maximum.
            newest = self._file.execute(
                "SELECT client, max(version), checksum FROM states WHERE version <= ? "
                "GROUP BY client",
                (version,),
            )
            return sum(_hash_of_row(*row) for row in newest) % _DIGEST_RANGE

    def write(self, client_id: str, version: int, vector: NDArray[np.float32]) -> int:
        """Sets a client's vector of a version, and drops those that no version kept has use for.

        Returns:
            What that adds to the digest of the version.
        """
        content = np.ascontiguousarray(vector, np.float32).data.cast("B")
        checksum = _checksum(client_id, version, content)
        with self._changes():
            before = self._file.execute(
                "SELECT version, checksum FROM states WHERE client = ? ORDER BY version",
                (client_id,),
            ).fetchall()
            self._file.execute(
                "INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)",
                (client_id, version, checksum, content),
            )
            self._drop_old(client_id, version, [each for each, _ in before])
        self.version = max(self.version, version)
        change = _hash_of_row(client_id, version, checksum)
        replaced = [row for row in before if row[0] <= version]
        return change - _hash_of_row(client_id, *replaced[-1]) if replaced else change

    def rewind(self, version: int) -> None:
        """Undoes the versions after one. Raises RunError, also if a change before failed."""
        with self._changes():
            if self.version > version:
                self._file.execute("DELETE FROM states WHERE version > ?", (version,))
                self.version = version

    def save(self) -> None:
        """Brings all changes to the disk.

        Raises:
            RunError: It cannot be written, or a change before failed.
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
        if self.path is None:  # lost with the process anyway
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
        found = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        if found != (_APPLICATION_ID, _VERSION):
            raise RunError(
                f"{self.path} is no file of client states of this fedcli; restore it, or train anew"
            )

    def _one(self, query: str, *values: object) -> Any:
        return self._file.execute(query, values).fetchone()[0]

    def _drop_old(self, client_id: str, version: int, before: Sequence[int]) -> None:
        """Of a client's vectors, leaves the newest up to each kept version, and the last two."""
        versions = {*before, version}
        needed = {version}
        for kept in (*self.kept, version - 1):
            needed.add(max((each for each in versions if each <= kept), default=version))
        for each in versions:
            if each not in needed:
                self._file.execute(
                    "DELETE FROM states WHERE client = ? AND version = ?", (client_id, each)
                )

    @contextmanager
    def _changes(self) -> Iterator[None]:
        """A transaction that stays open until `save`; the first that fails is the last."""
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
        if self._failure is not None:
            raise self._failure
        if os.getpid() != self._process:  # SQLite's files and locks are of one process
            raise RunError(
                f"client states in {self.path or 'a temporary file'} were opened before this "
                "process was forked; go on from them in the process that opened them, or start "
                "this one with multiprocessing's method spawn"
            )
        try:
            yield
        except (self._errors, UnicodeDecodeError) as err:  # garbled names are quoted
            reason = "a name in it is garbled" if isinstance(err, UnicodeDecodeError) else err
            raise RunError(f"client states in {self.path or 'a temporary file'}: {reason}") from err


def _check_kind(path: Path) -> None:
    """Refuses what SQLite would wait for, or read for ever."""
    try:
        check_regular(path)
    except FileNotFoundError:
        return
    except OSError as err:
        raise RunError(f"cannot read {path}: {err.strerror}; restore the file") from err


def _checksum(client_id: str, version: int, vector: bytes | memoryview) -> int:
    """Of a row: whose vector, of when, and its bytes."""
    return zlib.crc32(vector, zlib.crc32(f"{version} {client_id}".encode()))


def _hash_of_row(client_id: str, version: int, checksum: int) -> int:
    """What a row adds to a digest: 8 bytes of BLAKE2b."""
    key = f"{version} {checksum} {client_id}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


@dataclass(eq=False)
class _Token:
    """What tells a state from another of the same number, and the digest of its vectors."""

    digest: int = 0


@dataclass
class _Holder:
    """The store behind the states of one process: opened when the first vector is written."""

    path: Path | None = None
    store: Store | None = None
    # Which state stands for which version: another one of the same number was overtaken.
    tokens: dict[int, _Token] = field(default_factory=dict)
    memory: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def open(self) -> Store:
        if self.store is None:
            self.store = Store(self.path)
        return self.store


@dataclass(frozen=True, eq=False)
class ClientStates:
    """All clients' vectors as they were after some round; part of a server state.

    A client that never took part has zeros. Of the states of one process the last two can be gone
    on from, the first, and those of kept checkpoints.

    Attributes:
        version: How many rounds have been written.
    """

    version: int = 0
    _holder: _Holder = field(default_factory=_Holder)
    _token: _Token = field(default_factory=_Token)

    @property
    def digest(self) -> int:
        """Of all clients' vectors: what a checkpoint holds to know them again; 0 to 2**63 - 1."""
        return self._token.digest

    def read(self, client_id: str, num_params: int) -> NDArray[np.float32]:
        """Returns a client's vector [num_params], which must not be changed.

        Raises:
            RunError: This state was overtaken, the file cannot be read, or holds another model's.
        """
        if not self.version:
            return np.zeros(num_params, np.float32)
        self._check()
        store = self._holder.open()
        vector = store.read(client_id, self.version)
        if vector is None:
            return np.zeros(num_params, np.float32)
        if len(vector) != num_params:
            raise RunError(
                f"{store.path}: client {client_id!r} has {len(vector)} values, the model has "
                f"{num_params} parameters; restore the file, or train anew"
            )
        return vector

    def next_version(self) -> NextClientStates:
        """Returns what writes the version after this one; any other is undone.

        Raises:
            RunError: This state was overtaken, or the file cannot be opened.
        """
        self._check()
        store = self._holder.open()
        store.rewind(self.version)
        tokens = self._holder.tokens
        readable = {self.version, *store.kept}
        for version in [each for each in tokens if each not in readable or each > self.version]:
            del tokens[version]
        after = ClientStates(self.version + 1, self._holder, _Token(self.digest))
        tokens[after.version] = after._token
        return NextClientStates(self, after, store)

    def _check(self) -> None:
        """Refuses a state whose vectors have made way for another's."""
        if self.version and self._holder.tokens.get(self.version) is not self._token:
            raise RunError(
                f"the clients' states after round {self.version} are no longer kept: the process "
                "has gone on from another state; go on from its last one"
            )

    def open_in(self, folder: Path, kept: Sequence[int], digest: int | None = None) -> ClientStates:
        """Returns the same version, of the file in a run's folder.

        Args:
            folder: The run's.
            kept: Rounds of its checkpoints.
            digest: That of the version, as its checkpoint has it; None: not known.

        Raises:
            RunError: The file is damaged, missing, or holds other vectors of this version.
        """
        path = folder / FILE
        if self.version and not path.exists():
            raise RunError(
                f"{path} is missing, and the run needs it (fedcli clean --client-states removes "
                "it); restore it, or train anew"
            )
        token = _Token()
        holder = _Holder(path, tokens={self.version: token})
        if path.exists():
            store = holder.open()
            try:
                token.digest = store.check_version(self.version, digest)
            except BaseException:
                store.close()
                raise
            store.kept = tuple(kept)
        return replace(self, _holder=holder, _token=token)

    def save(self, kept: Sequence[int]) -> None:
        """Brings the file to the disk, before a checkpoint of this version is written.

        Args:
            kept: Rounds of the checkpoints that are there until then.

        Raises:
            RunError: It cannot be written.
        """
        if self._holder.store is not None:
            self._holder.store.kept = (*kept, self.version)
            self._holder.store.save()

    def close(self) -> None:
        """Closes the file; nothing happens where there is none."""
        if self._holder.store is not None:
            self._holder.store.close()
            self._holder.store = None


@dataclass(frozen=True, eq=False)
class NextClientStates:
    """A version that is being written; the one before it stays as it is.

    Attributes:
        before: The one before.
        after: The version itself, as part of the next server state.
    """

    before: ClientStates
    after: ClientStates
    store: Store

    def memory(self, num_clients: int, num_params: int) -> NDArray[np.float32]:
        """Returns float32 [num_clients, num_params] that the next call, or round, gives again."""
        holder = self.after._holder
        if holder.memory.size < num_clients * num_params:
            holder.memory = np.empty(num_clients * num_params, np.float32)
        return holder.memory[: num_clients * num_params].reshape(num_clients, num_params)

    def write(self, client_id: str, vector: NDArray[np.float32]) -> None:
        """Sets a client's vector [num_params]. Raises RunError."""
        change = self.store.write(client_id, self.after.version, vector)
        self.after._token.digest = (self.after.digest + change) % _DIGEST_RANGE
