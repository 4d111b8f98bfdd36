"""The engine that computes clients with the C core, on threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.native import CancelFlag, resolve_threads
from fedcli.core.seeds import Purpose, StreamKey, client_key
from fedcli.dataclass import dataclass
from fedcli.datasets.batches import BatchedDataset
from fedcli.errors import DataError
from fedcli.learning.engines.call_lock import CallLock
from fedcli.learning.engines.contract import (
    BLOCK_CLIENTS,
    PIECE_BYTES,
    Scores,
    Starts,
    check_images,
    label_fault,
    numbered,
)
from fedcli.learning.engines.deltas import DeltaFile, Deltas
from fedcli.learning.engines.task import ClientExchange, ClientTask
from fedcli.models.layout import ParamLayout
from fedcli.settings.vocabulary import WEIGHTINGS

# The decoded pixels of a fixed cohort are kept from round to round up to this many bytes.
PREPARED_BYTES = 64 << 20
# The purposes of a client's streams in the core's order.
_CLIENT_PURPOSES = (Purpose.SHUFFLE, Purpose.DROPOUT, Purpose.MIXUP)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A model in the form that the C core takes."""

    layout: ParamLayout
    model: native.Model
    delta_sum: native.DeltaSum


@dataclass(frozen=True)
class _Piece:
    """Clients that one call of the core computes; `first` is the index of the first of them."""

    first: int
    datasets: Sequence[BatchedDataset]
    cohort: native.Cohort


class _CohortRun:
    """The arguments of one call of `train`, and values derived from them."""

    def __init__(
        self,
        layout: ParamLayout,
        task: ClientTask,
        exchange: ClientExchange | None,
        flag: CancelFlag,
    ) -> None:
        self.task = task
        self.exchange = exchange
        self.flag = flag
        self.step = native.Step(task.rows, layout.trained_shapes)
        self.has_rows = task.request.all_rows or (exchange is not None and exchange.receives)
        num_vectors = self.has_rows + (0 if exchange is None else exchange.num_vectors)
        self.vector_bytes = 4 * num_vectors * layout.num_params  # per client of a piece


@dataclass(frozen=True)
class _LastCohort:
    """The pieces of the last cohort that was a tuple; later rounds may pass the same tuple."""

    clients: tuple[BatchedDataset, ...]
    occurrences: tuple[int, ...] | None
    loaded: _Loaded
    vector_bytes: int
    pieces: list[_Piece]


class ThreadEngine:
    """Computes clients on threads of this process. Calls from several threads wait for each other.

    A call from the main thread runs on a thread of the engine, so that Ctrl-C takes effect at once
    and ends the call within a local step. Results do not depend on the number of threads. After a
    fork the child's engine makes new threads, since a fork does not copy them.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        """Makes an engine with `num_threads` threads; see `resolve_threads` for the default.

        Raises:
            ConfigError: num_threads is not in 1..MAX_THREADS.
        """
        self.num_threads = resolve_threads(num_threads)
        self._start_afresh()
        engine = ref(self)  # a strong reference would be a cycle
        self._call_lock = CallLock(lambda: _start_afresh(engine))

    def _start_afresh(self) -> None:
        """Drops all threads and memory of earlier calls."""
        self._team = native.Team(self.num_threads)
        self._loaded: _Loaded | None = None
        self._last_cohort: _LastCohort | None = None
        self._delta_rows: NDArray[np.float32] | None = None
        self._helpers = native.Helpers()

    def train(
        self,
        layout: ParamLayout,
        task: ClientTask,
        clients: Iterable[BatchedDataset],
        *,
        exchange: ClientExchange | None = None,
        cancel: CancelFlag | None = None,
    ) -> Deltas:
        """See `Engine.train`. If `clients` is the tuple of the last call, its pieces are reused."""
        flag = cancel or CancelFlag()
        cohort = _CohortRun(layout, task, exchange, flag)

        def train() -> Deltas:
            loaded = self._load(layout)
            loaded.delta_sum.reset()
            has_rows = task.request.all_rows
            with DeltaFile(layout.num_params) if has_rows else nullcontext() as file:
                parts = [
                    self._train_piece(loaded, cohort, piece, file)
                    for piece in self._pieces(clients, loaded, cohort)
                ]
                rows = None
                if file is not None:
                    rows = file.mapped(are_writable=task.request.are_writable)
            stats = _joined(parts)
            if task.request.needs_sum:
                delta_sum, weight_sum = loaded.delta_sum.total()
            else:
                delta_sum, weight_sum = np.zeros(layout.num_params), float(stats["weight"].sum())
            return Deltas(
                *(delta_sum, weight_sum, stats, rows),
                num_threads=self.num_threads,
                helpers=self._helpers,
            )

        return self._run(train, flag)

    def _train_piece(
        self, loaded: _Loaded, run: _CohortRun, piece: _Piece, file: DeltaFile | None
    ) -> NDArray[np.void]:
        """Trains the clients of a piece and adds their deltas; returns their stats."""
        datasets, exchange = piece.datasets, run.exchange
        task = run.task.piece(datasets, piece.first, exchange)
        deltas = None
        if run.has_rows:
            deltas = self._deltas((len(datasets), loaded.layout.num_params), run, file)
        with _faults(datasets, loaded.layout.num_classes):
            stats = self._team.train_cohort(
                loaded.model,
                run.step,
                task.params,
                piece.cohort,
                task.round_num,
                native.Terms(
                    WEIGHTINGS.index(task.weighting),
                    task.request.bounds,
                    task.frozen,
                    task.rate_factors(datasets),
                    task.class_weights,
                    task.label_smoothing,
                ),
                run.flag,
                loaded.delta_sum if task.request.needs_sum else None,
                task.inputs.linear,
                deltas,
                task.inputs.delta_factors,
                task.inputs.starts,
                task.inputs.max_distances,
            )
        if file is not None and deltas is not None:
            file.append(deltas, task.sum_factors(stats), stats)
        if exchange is not None and exchange.receives and deltas is not None:
            exchange.receive(datasets, deltas, stats)
        return stats

    def evaluate(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        starts: Starts | None = None,
        cancel: CancelFlag | None = None,
    ) -> NDArray[np.void]:
        """See `Engine.evaluate`."""
        flag = cancel or CancelFlag()
        vector_bytes = 0 if starts is None else 4 * layout.num_params

        def score() -> NDArray[np.void]:
            model = self._load(layout).model
            parts = []
            for piece in _split(clients, layout, vector_bytes):
                own = None if starts is None else starts(piece.datasets)
                with _faults(piece.datasets, layout.num_classes):
                    parts.append(self._team.evaluate(model, params, piece.cohort, flag, own))
            return _joined(parts)

        return self._run(score, flag)

    def predict(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        starts: Starts | None = None,
        cancel: CancelFlag | None = None,
    ) -> Scores:
        """See `Engine.predict`; the scores are logits."""
        flag = cancel or CancelFlag()
        vector_bytes = 0 if starts is None else 4 * layout.num_params

        def score() -> Scores:
            model = self._load(layout).model
            parts = [np.empty((0, layout.num_classes), np.float32)]
            for piece in _split(clients, layout, vector_bytes):
                own = None if starts is None else starts(piece.datasets)
                with _faults(piece.datasets, layout.num_classes):
                    parts.append(self._team.predict(model, params, piece.cohort, flag, own))
            return Scores(np.concatenate(parts), are_logits=True)

        return self._run(score, flag)

    def _run(self, work: Callable[[], T], flag: CancelFlag) -> T:
        """Runs `work` outside the main thread; an interrupt cancels it and waits for its end."""
        if threading.current_thread() is not threading.main_thread():
            return self._call_lock.run(work)
        return self._call_lock.run(lambda: self._run_beside(work, flag))

    def _run_beside(self, work: Callable[[], T], flag: CancelFlag) -> T:
        """Runs `work` on the thread of the engine, while the main thread waits."""
        future = self._helpers.submit(lambda: self._call_lock.run_part(work))
        try:
            return future.result()
        except BaseException:
            if not future.done():  # this thread was interrupted, and the work goes on
                flag.set()
                future.exception()
            raise

    def _load(self, layout: ParamLayout) -> _Loaded:
        """Returns a model in the core's form; the last model is kept for the next round."""
        if self._loaded is None or self._loaded.layout is not layout:
            model = native.Model(layout.core_rows(), layout.num_params)
            self._loaded = _Loaded(layout, model, native.DeltaSum(model))
        return self._loaded

    def _deltas(
        self, shape: tuple[int, int], run: _CohortRun, file: DeltaFile | None
    ) -> NDArray[np.float32]:
        """Returns memory for a piece's deltas, float32 `shape`.

        If possible, it is the memory of the rows that the call will return. It is other memory if
        these rows go to a file, or if an exchange receives the deltas, because an exchange may
        overwrite them. Later pieces use this other memory again, because fresh pages cost time.
        """
        if file is not None and not (run.exchange is not None and run.exchange.receives):
            room = file.room(shape[0])
            if room is not None:
                return room
        if self._delta_rows is None or self._delta_rows.size < shape[0] * shape[1]:
            self._delta_rows = np.empty(shape[0] * shape[1], np.float32)
        return self._delta_rows[: shape[0] * shape[1]].reshape(shape)

    def _pieces(
        self, clients: Iterable[BatchedDataset], loaded: _Loaded, run: _CohortRun
    ) -> Iterable[_Piece]:
        """Returns the cohort in pieces; the pieces of a tuple are kept for the next round."""
        occurrences, vector_bytes = run.task.occurrences, run.vector_bytes
        if not isinstance(clients, tuple):
            return _split(clients, loaded.layout, vector_bytes, occurrences)
        if (
            self._last_cohort is None
            or self._last_cohort.clients is not clients
            or self._last_cohort.occurrences != occurrences
            or self._last_cohort.loaded is not loaded
            or self._last_cohort.vector_bytes != vector_bytes
        ):
            pieces = list(_split(clients, loaded.layout, vector_bytes, occurrences))
            self._last_cohort = _LastCohort(clients, occurrences, loaded, vector_bytes, pieces)
            if _can_be_prepared(clients):
                for piece in self._last_cohort.pieces:
                    piece.cohort.prepare(loaded.model)
        return self._last_cohort.pieces


def _can_be_prepared(clients: Sequence[BatchedDataset]) -> bool:
    """Returns whether decoded pixels may be kept: they are few, and their source is read-only.

    The arrays of data that fedcli reads from files are read-only.
    """
    is_small = sum(each.client.pixels.size for each in clients) * 4 <= PREPARED_BYTES
    return is_small and all(_is_read_only(each.client.pixels) for each in clients)


def _is_read_only(array: Any) -> bool:
    """Returns whether an array, and every array it is a view of, is read-only."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    try:
        return array is None or memoryview(array).readonly
    except TypeError:  # the memory of another library, which may be writable
        return False


def _split(
    clients: Iterable[BatchedDataset],
    layout: ParamLayout,
    vector_bytes: int = 0,
    occurrences: Sequence[int] | None = None,
) -> Iterator[_Piece]:
    """Splits a cohort into pieces of about `PIECE_BYTES`.

    All pieces except the last consist of whole blocks of `BLOCK_CLIENTS`. The bytes of a client are
    the bytes of its pixels plus `vector_bytes`.
    """
    first = 0
    piece: list[BatchedDataset] = []
    rows: list[native.Client] = []
    num_bytes = 0
    for dataset, occurrence in numbered(clients, occurrences):
        client = dataset.client
        check_images(client, layout)
        piece.append(dataset)
        rows.append(_core_client(dataset, occurrence))
        num_bytes += client.pixels.nbytes + vector_bytes
        if num_bytes >= PIECE_BYTES and len(piece) % BLOCK_CLIENTS == 0:
            yield _Piece(first, piece, native.Cohort(rows))
            first += len(piece)
            piece, rows, num_bytes = [], [], 0
    if piece:
        yield _Piece(first, piece, native.Cohort(rows))


def _core_client(dataset: BatchedDataset, occurrence: int) -> native.Client:
    client = dataset.client
    number = client_key(client.client_id)
    keys = [
        StreamKey(dataset.seed, number, 0, purpose, occurrence) for purpose in _CLIENT_PURPOSES
    ]  # each call sets the round
    return native.Client(
        client.pixels,
        client.labels,
        client.scale,
        client.offset,
        dataset.plan.for_core(),
        *keys,
    )


def _joined(parts: list[NDArray[np.void]]) -> NDArray[np.void]:
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, native.STATS), *parts])


def _start_afresh(engine: ref[ThreadEngine]) -> None:
    """Resets an engine in a forked process, if the engine still exists."""
    if (existing := engine()) is not None:
        existing._start_afresh()


@contextmanager
def _faults(datasets: Sequence[BatchedDataset], num_classes: int) -> Iterator[None]:
    """Turns label errors of the core into an error that names file, client and example."""
    try:
        yield
    except native.ChangedFault as err:
        raise DataError(
            f"{datasets[0].client.source}: labels were changed while a round was using them; do "
            "not write to data in use, then repeat the round"
        ) from err
    except native.LabelFault as err:
        client = datasets[err.client_index].client
        fault = label_fault(client, err.example_index, err.label, num_classes)
        raise DataError(fault) from err
