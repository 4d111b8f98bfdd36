"""The typed face of the core, and its only importer: an engine that computes clients on threads."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

# libgomp's idle threads spin for some 10 ms by default. On a busy machine that is where the next
# round waits: a spinning thread holds the processor that a working one needs, and rounds of 0.6 ms
# were seen to take 8. 1 ms spans the gap between two rounds. Read when libgomp is loaded: below.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

from fedcli.config import MAX_THREADS, PIPELINES, WEIGHTINGS
from fedcli.errors import ConfigError, DataError
from fedcli.params import ParamLayout
from fedcli.seeds import Purpose, StreamKey, client_key

try:
    from fedcli import _core
    from fedcli._core import CancelFlag, Cancelled
except ImportError as err:
    if not str(err).startswith("FEDCLI_ISA="):  # the core is missing or does not load
        raise
    raise ConfigError(str(err)) from err

if TYPE_CHECKING:
    from fedcli.batches import BatchedDataset, BatchPlan, ClientDataset

__all__ = ["CancelFlag", "Cancelled", "CohortResult", "ThreadEngine"]

# Clients whose pixels the engine holds at a time; a larger cohort goes through in pieces.
PIECE_BYTES = 64 << 20
# Pixels of a fixed cohort, decoded, that are kept from round to round.
PREPARED_BYTES = 64 << 20
BLOCK_CLIENTS = 8  # pieces end where the core's blocks do (FED_BLOCK_CLIENTS)

STATS = _core.STATS  # of one client, see `CohortResult`

StepRow = tuple[int, tuple[float, ...]]


class StepKind(IntEnum):
    """Kinds of rows of the core's client-step table: enum fed_step_kind, which lists options."""

    SGD = 0
    PROXIMAL = 1
    ADAM = 2
    ADAMW = 3
    YOGI = 4
    ADAGRAD = 5
    RMSPROP = 6
    GRADIENT = 7
    CLIP = 8
    LINEAR = 9
    ANCHOR = 10
    ADAFACTOR = 11


T = TypeVar("T")


class DeltaBounds(NamedTuple):
    """What a model delta may be at most, whatever its client; infinity: no bound.

    Attributes:
        max_abs: A delta with a larger entry counts as zeros, with its weight.
        norm: A delta that is longer (L2, over all tensors) is scaled to this length.
    """

    max_abs: float
    norm: float


NO_BOUNDS = DeltaBounds(math.inf, math.inf)


class Scores(NamedTuple):
    """What a model says of some examples.

    Attributes:
        values: A score of each class, floats [N, K]; float32 where the core gives them.
        are_logits: Whether a softmax makes probabilities of them; else they are such.
    """

    values: NDArray[np.floating]
    are_logits: bool


class FrozenSlots(NamedTuple):
    """The optimizer state that every local step starts from; what it makes of it is forgotten.

    Attributes:
        slots: float32 [num_slots, num_params], in the order of the rows.
        step_num: The number of each step, from 1.
    """

    slots: NDArray[np.float32]
    step_num: int


@dataclass(frozen=True)
class PerClient:
    """What single clients are given and send back, beside what their cohort has in common.

    Each is called with some clients of the cohort at a time, in cohort order.

    Attributes:
        linear: Returns what the step's LINEAR row adds to their gradients: float32
            [num_clients, num_params], or [1, num_params] that is everybody's.
        delta_factors: Returns what each delta is multiplied by in the sum, >= 0: float64
            [num_clients].
        receive: Takes their model deltas, float32 [num_clients, num_params] that it may write to
            until it returns, and their stats; what stands where `is_finite` is 0 means nothing.
    """

    linear: Callable[[Sequence[BatchedDataset]], NDArray[np.float32]] | None = None
    delta_factors: Callable[[Sequence[BatchedDataset]], NDArray[np.float64]] | None = None
    receive: (
        Callable[[Sequence[BatchedDataset], NDArray[np.float32], NDArray[np.void]], None] | None
    ) = None

    @property
    def num_vectors(self) -> int:
        """Parameter-sized vectors that each client of a call needs."""
        return (self.linear is not None) + (self.receive is not None)


_NOTHING_PER_CLIENT = PerClient()


@dataclass(frozen=True)
class CohortResult:
    """What a cohort sends back.

    Attributes:
        delta_sum: Sum of weight * model delta, float64 [num_params].
        weight_sum: Sum of the client weights.
        stats: One record a client, in cohort order, with fields `loss_sum`, `weight`,
            `num_correct`, `num_examples`, `num_batches`, `is_finite`; with bounds also the size of
            its delta, `max_abs` and `norm` (0 once zeroed), else 0.
    """

    delta_sum: NDArray[np.float64]
    weight_sum: float
    stats: NDArray[np.void]


class Engine(Protocol):
    """Whatever computes the clients of a cohort: threads here, other machines elsewhere."""

    @property
    def num_threads(self) -> int:
        """Threads that compute."""

    def train_cohort(
        self,
        layout: ParamLayout,
        rows: Sequence[StepRow],
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        round_num: int,
        weighting: str,
        bounds: DeltaBounds | None = None,
        frozen: FrozenSlots | None = None,
        rate_factor: Callable[[int], float] | None = None,
        per_client: PerClient | None = None,
        cancel: CancelFlag | None = None,
    ) -> CohortResult:
        """Trains each client from `params` and sums the model deltas; see `ThreadEngine`."""

    def evaluate(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        cancel: CancelFlag | None = None,
    ) -> NDArray[np.void]:
        """Scores `params` on each client; see `ThreadEngine`."""

    def predict(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        cancel: CancelFlag | None = None,
    ) -> Scores:
        """Returns the scores of all examples; see `ThreadEngine`."""


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A model as the core has it."""

    layout: ParamLayout
    model: _core.Model
    delta_sum: _core.DeltaSum


@dataclass(frozen=True)
class _Piece:
    """Clients that go through the core in one call."""

    datasets: Sequence[BatchedDataset]
    cohort: _core.Cohort


@dataclass(frozen=True)
class _Kept:
    """A cohort that is given every round, as the core has it."""

    clients: tuple[BatchedDataset, ...]
    loaded: _Loaded
    vector_bytes: int
    pieces: list[_Piece]


class ThreadEngine:
    """Computes clients on threads of this process; one call at a time, from any thread.

    A call from the main thread is handed to a thread of the engine's own, so that Ctrl-C is seen
    at once and ends the call within a local step. Results do not depend on the number of threads.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        """Makes an engine of `num_threads` threads, `resolve_threads` of them by default.

        Raises:
            ConfigError: num_threads is not in 1..MAX_THREADS.
        """
        self.num_threads = resolve_threads(num_threads)
        self._team = _core.Team(self.num_threads)
        self._busy = threading.Lock()
        self._loaded: _Loaded | None = None
        self._kept: _Kept | None = None
        self._delta_rows: NDArray[np.float32] | None = None

    def train_cohort(
        self,
        layout: ParamLayout,
        rows: Sequence[StepRow],
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        round_num: int,
        weighting: str,
        bounds: DeltaBounds | None = None,
        frozen: FrozenSlots | None = None,
        rate_factor: Callable[[int], float] | None = None,
        per_client: PerClient | None = None,
        cancel: CancelFlag | None = None,
    ) -> CohortResult:
        """Trains each client from `params` and sums the weighted model deltas.

        Args:
            layout: The model.
            rows: The client-step table: (kind, options), an optimizer last.
            params: Server parameters, float32 [num_params].
            clients: The cohort, read as the work goes on: some `PIECE_BYTES` of pixels at once.
                A tuple that is given again is not prepared again.
            round_num: Rounds completed so far; with the clients' ids it keys the shuffles.
            weighting: `num-examples` or `uniform`.
            bounds: What each delta is kept within before it is added.
            frozen: What every local step starts from, if clients are not to have slots of their
                own.
            rate_factor: The share of its learning rate that a client's optimizer uses, 0 to 1, by
                local step from 0; None: all of it.
            per_client: What single clients are given and send back; None: nothing.
            cancel: Raised from another thread, stops the call within a local step.

        Raises:
            Cancelled: `cancel` was raised.
            DataError: A client's images do not fit the model, or a label is outside its classes.
        """
        step, flag = _core.Step(rows, layout.shapes), cancel or CancelFlag()
        own = per_client or _NOTHING_PER_CLIENT

        def train() -> CohortResult:
            loaded = self._load(layout)
            total = loaded.delta_sum
            total.reset()
            parts = []
            vector_bytes = own.num_vectors * layout.num_params * 4
            for piece in self._pieces(clients, loaded, vector_bytes):
                factors = _rate_factors(rate_factor, piece.datasets)
                terms = _core.Terms(WEIGHTINGS.index(weighting), bounds, frozen, factors)
                shape = len(piece.datasets), layout.num_params
                deltas = None if own.receive is None else self._deltas(shape)
                with _faults(piece.datasets):
                    stats = self._team.train_cohort(
                        loaded.model,
                        step,
                        params,
                        piece.cohort,
                        round_num,
                        terms,
                        flag,
                        total,
                        own.linear and own.linear(piece.datasets),
                        deltas,
                        own.delta_factors and own.delta_factors(piece.datasets),
                    )
                if own.receive is not None and deltas is not None:
                    own.receive(piece.datasets, deltas, stats)
                parts.append(stats)
            delta_sum, weight_sum = total.total()
            return CohortResult(delta_sum, weight_sum, _joined(parts))

        return self._run(train, flag)

    def evaluate(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        cancel: CancelFlag | None = None,
    ) -> NDArray[np.void]:
        """Returns the statistics of `params` on each client, one record each, without training.

        Raises:
            Cancelled: `cancel` was raised.
            DataError: A client's images do not fit the model, or a label is outside its classes.
        """
        flag = cancel or CancelFlag()

        def score() -> NDArray[np.void]:
            model = self._load(layout).model
            parts = []
            for piece in _split(clients, layout):
                with _faults(piece.datasets):
                    parts.append(self._team.evaluate(model, params, piece.cohort, flag))
            return _joined(parts)

        return self._run(score, flag)

    def predict(
        self,
        layout: ParamLayout,
        params: NDArray[np.float32],
        clients: Iterable[BatchedDataset],
        *,
        cancel: CancelFlag | None = None,
    ) -> Scores:
        """Returns the logits of every example of every client, once each, in stored order.

        Raises:
            Cancelled: `cancel` was raised.
            DataError: A client's images do not fit the model, or a label is outside its classes.
        """
        flag = cancel or CancelFlag()

        def score() -> Scores:
            model = self._load(layout).model
            parts = [np.empty((0, layout.num_classes), np.float32)]
            for piece in _split(clients, layout):
                with _faults(piece.datasets):
                    parts.append(self._team.predict(model, params, piece.cohort, flag))
            return Scores(np.concatenate(parts), are_logits=True)

        return self._run(score, flag)

    @cached_property
    def _off_main(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="fedcli-core")

    def _run(self, work: Callable[[], T], flag: CancelFlag) -> T:
        """Runs `work` off the main thread; an interrupt there cancels it and waits for its end."""
        if threading.current_thread() is not threading.main_thread():
            with self._busy:
                return work()
        with self._busy:
            future = self._off_main.submit(work)
            try:
                return future.result()
            except BaseException:
                if not future.done():  # the interruption is ours, not the work's own end
                    flag.set()
                    future.exception()
                raise

    def _load(self, layout: ParamLayout) -> _Loaded:
        """The core's form of a model; the last one is kept, as rounds ask for it again."""
        if self._loaded is None or self._loaded.layout is not layout:
            model = _core.Model(layout.core_rows(), layout.num_params)
            self._loaded = _Loaded(layout, model, _core.DeltaSum(model))
        return self._loaded

    def _deltas(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Memory for a piece's deltas; the last is used again: fresh pages take longer to come."""
        if self._delta_rows is None or self._delta_rows.size < shape[0] * shape[1]:
            self._delta_rows = np.empty(shape[0] * shape[1], np.float32)
        return self._delta_rows[: shape[0] * shape[1]].reshape(shape)

    def _pieces(
        self, clients: Iterable[BatchedDataset], loaded: _Loaded, vector_bytes: int
    ) -> Iterable[_Piece]:
        """The cohort in pieces; a fixed cohort's tuple comes again every round and is kept."""
        if not isinstance(clients, tuple):
            return _split(clients, loaded.layout, vector_bytes)
        if (
            self._kept is None
            or self._kept.clients is not clients
            or self._kept.loaded is not loaded
            or self._kept.vector_bytes != vector_bytes
        ):
            pieces = list(_split(clients, loaded.layout, vector_bytes))
            self._kept = _Kept(clients, loaded, vector_bytes, pieces)
            if sum(each.client.pixels.size for each in clients) * 4 <= PREPARED_BYTES:
                for piece in self._kept.pieces:
                    piece.cohort.prepare(loaded.model)
        return self._kept.pieces


def _split(
    clients: Iterable[BatchedDataset], layout: ParamLayout, vector_bytes: int = 0
) -> Iterator[_Piece]:
    """Splits a cohort so that a piece holds few bytes and ends with a block.

    What counts are pixels, and `vector_bytes` that each client needs beside them.
    """
    seen: Counter[str] = Counter()  # which copy of its client each element is
    piece: list[BatchedDataset] = []
    rows: list[_core.Client] = []
    num_bytes = 0
    for dataset in clients:
        client = dataset.client
        check_images(client, layout)
        piece.append(dataset)
        rows.append(_core_client(dataset, seen[client.client_id]))
        seen[client.client_id] += 1
        num_bytes += client.pixels.nbytes + vector_bytes
        if num_bytes >= PIECE_BYTES and len(piece) % BLOCK_CLIENTS == 0:
            yield _Piece(piece, _core.Cohort(rows))
            piece, rows, num_bytes = [], [], 0
    if piece:
        yield _Piece(piece, _core.Cohort(rows))


def _rate_factors(
    rate_factor: Callable[[int], float] | None, datasets: Sequence[BatchedDataset]
) -> NDArray[np.float64] | None:
    """The shares of the learning rate for as many local steps as the longest client takes."""
    if rate_factor is None:
        return None
    num_steps = max(each.plan.num_batches(len(each.client)) for each in datasets)
    return np.array([rate_factor(step) for step in range(num_steps)], np.float64)


def _core_client(dataset: BatchedDataset, occurrence: int) -> _core.Client:
    client = dataset.client
    shuffle_key, dropout_key = (
        StreamKey(dataset.seed, client_key(client.client_id), 0, purpose, occurrence)
        for purpose in (Purpose.SHUFFLE, Purpose.DROPOUT)
    )  # the round is each call's own
    return _core.Client(
        client.pixels,
        client.labels,
        client.scale,
        client.offset,
        _plan(dataset.plan),
        shuffle_key,
        dropout_key,
    )


def check_images(client: ClientDataset, layout: ParamLayout) -> None:
    """Refuses a client whose images are not as large as the model's.

    Raises:
        DataError: They are not.
    """
    shape = client.pixels.shape
    if shape[0] and math.prod(shape[1:]) != layout.num_inputs:
        raise DataError(
            f"{client.source}: client {client.client_id!r}: images have shape {list(shape[1:])}, "
            f"the model takes {list(layout.input_shape)}"
        )


def _joined(parts: list[NDArray[np.void]]) -> NDArray[np.void]:
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, _core.STATS), *parts])


@contextmanager
def _faults(datasets: Sequence[BatchedDataset]) -> Iterator[None]:
    """Turns a label fault of the core into an error that names file, client and example."""
    try:
        yield
    except _core.LabelFault as err:
        client = datasets[err.client_index].client
        raise DataError(label_fault(client, err.example_index, err.label)) from err


def label_fault(client: ClientDataset, example_index: int, label: int) -> str:
    """Returns what to say of a label that the model has no class for."""
    return (
        f"{client.source}: client {client.client_id!r}: example {example_index}: "
        f"label {label} is outside the model's classes; set --num-classes"
    )


def _plan(plan: BatchPlan) -> _core.Plan:
    return _core.Plan(
        PIPELINES.index(plan.pipeline),
        plan.epochs,
        plan.batch_size,
        plan.shuffle_buffer,
        -1 if plan.max_examples is None else plan.max_examples,
    )


def isa_name() -> str:
    """Returns the instruction set the core runs on: generic, avx2 or avx512."""
    return _core.ISA


def isa_names() -> tuple[str, ...]:
    """Returns the instruction sets this build holds and this machine can run, widest last."""
    return _core.ISAS


def has_openmp() -> bool:
    """Tells whether the core was built with OpenMP, so that it has threads."""
    return _core.HAS_OPENMP


def resolve_threads(requested: int | None = None) -> int:
    """Returns the number of threads: `requested`, else OMP_NUM_THREADS, else the cores we may use.

    A core built without OpenMP has one thread, whatever is asked.

    Raises:
        ConfigError: The number asked for is not in 1..MAX_THREADS.
    """
    if requested is not None and not 1 <= requested <= MAX_THREADS:
        raise ConfigError(f"--threads {requested}: give a number from 1 to {MAX_THREADS}")
    if not _core.HAS_OPENMP:
        return 1
    if requested is not None:
        return requested
    from_environment = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if from_environment.isdecimal() and int(from_environment) > 0:
        return min(int(from_environment), MAX_THREADS)
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), MAX_THREADS)
    return min(os.cpu_count() or 1, MAX_THREADS)


def example_order(plan: BatchPlan, num_examples: int, key: StreamKey) -> NDArray[np.uint32]:
    """Returns the indices of the examples a client visits, in order: uint32 [num_visits]."""
    return _core.example_order(_plan(plan), num_examples, key)


def random_u64(key: StreamKey, count: int) -> NDArray[np.uint64]:
    """Returns the first `count` values of a stream: uint64 [count]."""
    return _core.random_u64(key, count)


def move_own(scale: float, sent: NDArray[np.float32], delta: NDArray[np.float32]) -> bool:
    """Makes `scale * delta - sent` of a delta, in place.

    Args:
        scale: What the delta is multiplied with.
        sent: [num_params].
        delta: [num_params], contiguous.

    Returns:
        Whether all of it is finite.
    """
    return _core.move_own(scale, sent, delta)


def add_change(
    before: NDArray[np.float32], after: NDArray[np.float32], change: NDArray[np.float64]
) -> None:
    """Adds `after - before` to `change`; each is [num_params] and contiguous."""
    _core.add_change(before, after, change)


def apply_step(
    rows: Sequence[StepRow],
    step_num: int,
    params: NDArray[np.float32],
    server_params: NDArray[np.float32],
    gradient: NDArray[np.float32],
    slots: NDArray[np.float32],
    shapes: Sequence[tuple[int, ...]] = (),
) -> None:
    """Takes one local step of the core in place; `gradient` is scratch afterwards.

    Args:
        rows: The client-step table.
        step_num: Which of the client's local steps it is, from 1.
        params: [num_params], moved.
        server_params: [num_params].
        gradient: [num_params].
        slots: What `initial_slots` returned, moved.
        shapes: Of the tensors that lie side by side in `params`; only Adafactor's row looks at
            them.
    """
    _core.Step(rows, shapes).apply(step_num, params, server_params, gradient, slots)


def initial_slots(rows: Sequence[StepRow], num_params: int) -> NDArray[np.float32]:
    """Returns the state vectors of a table before a client's first step: [slots, num_params]."""
    return _core.Step(rows).initial_slots(num_params)


def count_synthetic(options: tuple[int, float, float, int], client: int, split: int) -> int:
    """Returns the examples a client of synthetic-digits holds in a split.

    Args:
        options: (seed, style spread, label noise, 0 for natural or 1 for skewed sizes).
        client: Its `client_key`.
        split: 0 train, 1 test, 2 central.
    """
    return _core.synthetic_count(options, client, split)


def draw_synthetic(
    options: tuple[int, float, float, int], client: int, split: int, first: int, num: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Returns examples first..first+num-1 of a client: pixels uint8 [num, 28, 28], labels int32.

    255 is ink. Arguments as `count_synthetic`.
    """
    return _core.synthetic_draw(options, client, split, first, num)


def fma_peak_run(num_steps: int) -> float:
    """Runs `num_steps` groups of fused multiply-adds on one thread; returns the operations done."""
    return _core.fma_chain(num_steps)


class WeightedSum:
    """The sum of weighted parameter vectors as a round's: float64, in the order of a cohort."""

    def __init__(self, layout: ParamLayout) -> None:
        """Takes the memory for vectors of a model."""
        self._sum = _core.DeltaSum(_core.Model(layout.core_rows(), layout.num_params))

    def of(
        self, vectors: Iterable[NDArray[np.float32]], weights: Iterable[float]
    ) -> tuple[NDArray[np.float64], float]:
        """Returns the sum of weight * vector, float64 [num_params], and the sum of the weights.

        Args:
            vectors: float32 [num_params] each.
            weights: One for each, at least 0.
        """
        self._sum.reset()
        for vector, weight in zip(vectors, weights, strict=True):
            self._sum.add(vector, weight)
        return self._sum.total()


class Phase(IntEnum):
    """What a stage of a model does in a local step: enum fed_phase."""

    FORWARD = 0
    BACKWARD = 1  # and the update by plain SGD
    DERIVE = 2  # gets moved weights ready for the next forward pass


def stages(layout: ParamLayout) -> list[int]:
    """Returns the first layer of each stage: a layer, or a convolution with the pool after it."""
    return _core.stages(_core.Model(layout.core_rows(), layout.num_params))


def exercise(
    layout: ParamLayout,
    params: NDArray[np.float32],
    batch_size: int,
    stage: int,
    phase: Phase,
    repeats: int,
) -> None:
    """Runs one phase of one stage over and over on a made-up batch, on this thread.

    Args:
        layout: The model.
        params: float32 [num_params].
        batch_size: Examples of the batch.
        stage: Which one, from 0.
        phase: What it does.
        repeats: How often, after one local step of the whole model.
    """
    model = _core.Model(layout.core_rows(), layout.num_params)
    _core.exercise(model, params, batch_size, stage, phase, repeats)
