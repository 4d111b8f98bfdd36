"""Vectors that clients keep from round to round, one per client, as a part of the server state.

`ClientStates` stands for the file of `client_vector_file`. It is an immutable value: all vectors as
they were after some round. The next round writes the next version beside it, and drops, client by
client, the earlier versions that no kept checkpoint needs. A round that was interrupted, or is
repeated, leaves a version that is not used: the next round from the same state deletes it first.

`save` is called before the checkpoint that needs the vectors is written. The checkpoint holds the
`digest` of its version. Each row that is written to the file updates the digest. When a file is
opened, its digest is computed from the rows: a file that is too old, belongs to another run, or
lacks rows is rejected before any work. The digest protects against mistakes, not against forgery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import RunError

if TYPE_CHECKING:
    from fedcli.learning.client_vector_file import Store

# The kinds of vectors that clients keep, by the names of their files: what an algorithm keeps, what
# compression has not sent yet, and the sums of past deltas that an aggregator compares.
ALGORITHM, RESIDUALS, HISTORIES = "client_states", "residuals", "delta_histories"
KINDS = (ALGORITHM, RESIDUALS, HISTORIES)
SUFFIX = ".sqlite"
FILES = tuple(f"{kind}{SUFFIX}" for kind in KINDS)


@dataclass(eq=False)
class _StateId:
    """Identifies one state among those with the same version number; holds its digest."""

    digest: int = 0


@dataclass
class _SharedStore:
    """The store that all states of one learning process share; opened when it is first needed."""

    path: Path | None = None
    store: Store | None = None
    # The identity of the valid state of each version; states with other ones are superseded.
    state_ids: dict[int, _StateId] = field(default_factory=dict)
    memory: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def open(self) -> Store:
        if self.store is None:
            from fedcli.learning.client_vector_file import Store  # lazy: few runs keep vectors

            self.store = Store(self.path)
        return self.store

    def flush(self) -> None:
        """Writes the vectors that wait in memory to the file, and updates the digests."""
        if self.store is None:
            return
        for version, change in self.store.flush():
            for later, state_id in self.state_ids.items():
                if later >= version:
                    state_id.digest = self.store.digest_after(state_id.digest, change)


@dataclass(frozen=True, eq=False)
class ClientStates:
    """All clients' vectors as they were after some round; part of a server state.

    A client that never took part has zeros. A process can continue from its last two states, from
    the first, and from those of kept checkpoints; the others are superseded.

    Attributes:
        version: The number of rounds written.
        name: The name of the file without its suffix. One run may have several kinds of vectors,
            each in a file of its own.
    """

    version: int = 0
    name: str = ALGORITHM
    _shared: _SharedStore = field(default_factory=_SharedStore)
    _state_id: _StateId = field(default_factory=_StateId)

    @property
    def digest(self) -> int:
        """The digest of all clients' vectors, 0 to 2**63 - 1, by which a checkpoint checks them.

        Raises:
            RunError: The vectors that it depends on cannot be written.
        """
        self._shared.flush()
        return self._state_id.digest

    def read(self, client_id: str, num_params: int) -> NDArray[np.float32]:
        """Returns a copy of a client's vector [num_params]; zeros if it has none.

        Raises:
            RunError: This state is superseded, the file cannot be read, or its vectors have another
                length.
        """
        vector = self.borrow(client_id, num_params)
        return np.zeros(num_params, np.float32) if vector is None else vector.copy()

    def borrow(self, client_id: str, num_params: int) -> NDArray[np.float32] | None:
        """Returns a client's vector as `read` does, but without a copy, and None instead of zeros.

        The result must not be changed. It is valid until any vector is written to this version or a
        later one.
        """
        if not self.version:
            return None
        self._check()
        store = self._shared.open()
        vector = store.read(client_id, self.version)
        if vector is None:
            return None
        if len(vector) != num_params:
            raise RunError(
                f"{store.path}: client {client_id!r} has {len(vector)} values instead of "
                f"{num_params}; restore the file, or start a new run"
            )
        return vector

    def next_version(self) -> NextClientStates:
        """Starts the version after this one; later versions are deleted.

        Raises:
            RunError: This state is superseded, or the file cannot be opened.
        """
        self._check()
        store = self._shared.open()
        store.rewind(self.version)
        state_ids = self._shared.state_ids
        readable = {self.version, *store.kept}
        for version in [each for each in state_ids if each not in readable or each > self.version]:
            del state_ids[version]
        # Vectors that are not yet written to the file will change the digests of both versions.
        after = replace(self, version=self.version + 1, _state_id=_StateId(self._state_id.digest))
        state_ids[after.version] = after._state_id
        return NextClientStates(self, after, store)

    def _check(self) -> None:
        """Rejects a superseded state: its vectors were replaced by those of another state."""
        if self.version and self._shared.state_ids.get(self.version) is not self._state_id:
            raise RunError(
                f"the clients' states after round {self.version} are no longer kept: the process "
                "has continued from another state; continue from its last state"
            )

    def open_in(self, folder: Path, kept: Sequence[int], digest: int | None = None) -> ClientStates:
        """Returns this version, read from the file in a run's folder.

        Args:
            folder: The run's folder.
            kept: Rounds of the run's checkpoints.
            digest: The digest in the checkpoint of this version; None if it is not known.

        Raises:
            RunError: The file is damaged or missing, or its digest differs.
        """
        path = folder / f"{self.name}{SUFFIX}"
        if self.version and not path.exists():
            raise RunError(
                f"{path} is missing, and the run needs it (fedcli clean --client-states removes "
                "it); restore it, or start a new run"
            )
        state_id = _StateId()
        shared = _SharedStore(path, state_ids={self.version: state_id})
        if path.exists():
            store = shared.open()
            try:
                state_id.digest = store.check_version(self.version, digest)
            except BaseException:
                store.close()
                raise
            store.kept = tuple(kept)
        return replace(self, _shared=shared, _state_id=state_id)

    def save(self, kept: Sequence[int]) -> None:
        """Commits the file to the disk; call it before a checkpoint of this version is written.

        Args:
            kept: Rounds of the checkpoints that exist so far.

        Raises:
            RunError: The file cannot be written.
        """
        if self._shared.store is not None:
            self._shared.store.kept = (*kept, self.version)
            self._shared.flush()
            self._shared.store.save()

    def close(self) -> None:
        """Closes the file if it is open."""
        if self._shared.store is not None:
            self._shared.store.close()
            self._shared.store = None


@dataclass(frozen=True, eq=False)
class NextClientStates:
    """A version that a round is writing; the version before it does not change.

    Attributes:
        before: The version before.
        after: The version being written, part of the next server state.
        store: The open file.
    """

    before: ClientStates
    after: ClientStates
    store: Store

    def memory(self, num_clients: int, num_params: int) -> NDArray[np.float32]:
        """Returns scratch memory, float32 [num_clients, num_params], which later calls reuse."""
        shared = self.after._shared
        if shared.memory.size < num_clients * num_params:
            shared.memory = np.empty(num_clients * num_params, np.float32)
        return shared.memory[: num_clients * num_params].reshape(num_clients, num_params)

    def write(self, client_id: str, vector: NDArray[np.float32]) -> None:
        """Sets a client's vector [num_params] to a copy of `vector`.

        Raises:
            RunError: See `take`.
        """
        copy = self.store.memory(len(vector))
        copy[:] = vector
        self.take(client_id, copy)

    def take(self, client_id: str, vector: NDArray[np.float32]) -> None:
        """Sets a client's vector without a copy. Its memory must come from `vectors`.

        Raises:
            RunError: An earlier change of the file failed, or the file cannot be written.
        """
        if self.store.write(client_id, self.after.version, vector):
            self.after._shared.flush()

    def vectors(self, num_clients: int, num_params: int) -> list[NDArray[np.float32]]:
        """Returns memory for new vectors, float32 [num_params] each, to be given to `take`."""
        return [self.store.memory(num_params) for _ in range(num_clients)]
