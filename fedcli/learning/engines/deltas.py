"""The model deltas of a cohort: what an aggregator requests, and what the engine returns.

An aggregator requests the sum of the deltas, the sum of bounded deltas, or the individual deltas as
well. Individual deltas stay in memory if they are few. Otherwise they are rows of an unnamed
temporary file, which the engine writes as clients finish and the aggregator reads through a memory
map, so memory does not grow with the cohort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcli.core import native
from fedcli.core.native import Helpers
from fedcli.dataclass import dataclass
from fedcli.errors import RunError, why_not_written
from fedcli.files import nameless_file

T = TypeVar("T")

SLICE_BYTES = 8 << 20  # the part of the individual deltas that is in memory at a time
# Individual deltas of a cohort up to this size stay in memory, because writing them to a file and
# mapping it would take longer than a stage such as compression.
IN_MEMORY_BYTES = 16 << 20


class DeltaBounds(NamedTuple):
    """Bounds on each client's model delta before it is added to the sum; infinity for none.

    Attributes:
        max_abs: A delta with an entry of larger magnitude is replaced by zeros; its weight stays.
        norm: A delta with a larger L2 norm (over all tensors) is scaled to this norm.
    """

    max_abs: float
    norm: float


NO_BOUNDS = DeltaBounds(math.inf, math.inf)


class RoundContext(NamedTuple):
    """The round to which deltas belong, for code that needs its clients or random numbers.

    Attributes:
        seed: The run's seed.
        round_num: Rounds completed before it.
        client_ids: The client of each delta, in cohort order.
        occurrences: The number of earlier copies of each client in the cohort.
        num_absent: Number of clients that were selected but did not report.
    """

    seed: int
    round_num: int
    client_ids: tuple[str, ...]
    occurrences: tuple[int, ...]
    num_absent: int = 0


class DeltaRequest(NamedTuple):
    """What an engine returns about the deltas beside their sum.

    Attributes:
        bounds: Bounds on each delta before it is added to the sum. The engine then also measures
            each delta. None if deltas are neither bounded nor measured.
        all_rows: Whether the individual deltas are returned in `Deltas.rows`.
        are_writable: Whether these rows can be changed in place.
        root_examples: The number of examples of the server's own set, whose delta is returned in
            `Deltas.root`; 0 if it is not needed. Engines ignore it: `CohortCall` trains the set.
        needs_sum: Whether `Deltas.delta_sum` is needed; if not, an engine may leave it at zeros.
    """

    bounds: DeltaBounds | None = None
    all_rows: bool = False
    are_writable: bool = False
    root_examples: int = 0
    needs_sum: bool = True


SUM = DeltaRequest()
ALL_ROWS = DeltaRequest(all_rows=True)


@dataclass(frozen=True, eq=False)
class Deltas:
    """The model deltas of a cohort.

    An algorithm may apply an affine map to every delta, which then counts as `scale * delta +
    shift`. The map is not applied to the sum and the rows in advance, because an aggregator uses
    only one of the two.

    Attributes:
        delta_sum: Sum of weight * delta, float64 [num_params].
        weight_sum: Sum of the client weights.
        stats: One record per client, in cohort order, with fields `loss_sum`, `weight`,
            `num_correct`, `num_examples`, `num_batches`, `is_finite`, `max_abs` and `norm`. The
            last two measure the delta if bounds are requested (`norm` is 0 for a delta that was
            replaced by zeros); else they are 0.
        rows: The individual deltas, float32 [num_clients, num_params], in cohort order. They are
            read-only unless `are_writable` was requested. They are bounded as in the sum but not
            weighted; a non-finite delta is zeros. None if they were not requested, or if
            `delta_sum` is a sum of gradients because no client could train.
        scale: The factor of every delta, above 0.
        shift: The vector added to every scaled delta, float64 [num_params]; None for zeros.
        round: The round and its clients, if all rows were requested in a `LearningProcess`.
        num_threads: The number of threads that an aggregator may compute with.
        helpers: The helper threads of the engine, for calls of the core; None if it has none.
        root: The delta of the server's root set before `scale` and `shift`, float64 [num_params];
            None if it was not requested, or is not finite.
        bounds: The bounds that were applied to rows and sum, if all rows were requested; None if
            there were none.
        rounding_norm: The largest L2 norm of the error that rounding for a secure sum makes in the
            contribution of one client; 0 without a secure sum.
    """

    delta_sum: NDArray[np.float64]
    weight_sum: float
    stats: NDArray[np.void]
    rows: NDArray[np.float32] | None = None
    scale: float = 1.0
    shift: NDArray[np.float64] | None = None
    round: RoundContext | None = None
    num_threads: int = 1
    helpers: Helpers | None = None
    root: NDArray[np.float64] | None = None
    bounds: DeltaBounds | None = None
    rounding_norm: float = 0.0

    def start(self, work: Callable[[int], T]) -> Callable[[], T]:
        """Starts `work(num_threads)`; returns a function that waits and returns the result."""
        if self.helpers is None or self.num_threads == 1:
            result = work(1)
            return lambda: result
        return self.helpers.start(lambda: work(self.num_threads))

    def scaled(self, factor: float) -> Deltas:
        """Returns the deltas times a factor above 0."""
        shift = None if self.shift is None else self.shift * factor
        return replace(self, scale=self.scale * factor, shift=shift)

    def shifted(self, vector: NDArray[np.float64]) -> Deltas:
        """Returns the deltas plus a vector [num_params]."""
        return replace(self, shift=vector if self.shift is None else self.shift + vector)

    def weighted_mean(self) -> NDArray[np.float32]:
        """Returns the sum of weight * delta divided by the sum of weights, float32 [num_params].

        The quotient is rounded to float32 once. If all weights are 0 it is NaN, which the finalizer
        rejects.
        """
        if self.weight_sum == 0.0:
            return np.full(len(self.delta_sum), np.nan, np.float32)
        total = self.delta_sum if self.scale == 1.0 else self.delta_sum * self.scale
        if self.shift is not None:
            total = total + self.weight_sum * self.shift
        return native.divide(total, self.weight_sum)

    def by_coordinate(
        self, rule: Callable[[NDArray[np.floating]], NDArray[np.floating]]
    ) -> NDArray[np.float32]:
        """Applies a rule to the individual deltas, coordinate by coordinate.

        Only deltas of clients with a weight above 0 count: those that are finite and come from at
        least one example. If there are none, or if `delta_sum` is a sum of gradients that is not
        finite (see `rows`), the result is NaN, which the finalizer rejects.

        Args:
            rule: Takes values [num_coordinates, num_clients], which it may overwrite, and returns
                one value per coordinate. It must not depend on the order of the clients.

        Returns:
            float32 [num_params]; at most about `SLICE_BYTES` of deltas are in memory at a time.

        Raises:
            ValueError: The individual deltas were not requested, or the result of the rule has
                another shape.
        """
        num_params = len(self.delta_sum)
        counted = np.flatnonzero(self.stats["weight"] > 0.0)
        are_requested = self.rows is not None or not np.isfinite(self.delta_sum).all()
        if len(counted) and not are_requested:
            raise ValueError("there are no individual deltas; let request return ALL_ROWS")
        if self.rows is None or not len(counted):
            return np.full(num_params, np.nan, np.float32)
        result = np.empty(num_params, np.float32)
        width = max(1, SLICE_BYTES // (len(counted) * self.rows.itemsize))
        for first in range(0, num_params, width):
            chosen = slice(first, first + width)
            values: NDArray[np.floating] = np.ascontiguousarray(self.rows[counted, chosen].T)
            if self.scale != 1.0:
                values = values.astype(np.float64) * self.scale
            if self.shift is not None:
                values = values + self.shift[chosen, np.newaxis]
            with np.errstate(over="ignore"):
                combined = rule(values)
                if np.shape(combined) != values.shape[:1]:
                    from fedcli.settings.own.checks import kind  # lazy: only mistakes need it

                    raise ValueError(
                        f"the rule returned {kind(combined)} for values {list(values.shape)}; "
                        f"return one value per coordinate, [{len(values)}]"
                    )
                result[chosen] = combined
        return result


def mapped_rows(num_rows: int, num_params: int) -> NDArray[np.float32]:
    """Returns writable zeros, float32 [num_rows, num_params].

    As in `DeltaFile`, they are in memory if they are few, else in a mapped temporary file.

    Raises:
        RunError: The disk is full or fails.
    """
    block = np.zeros((1, num_params), np.float32)
    stats = np.ones(1, [("is_finite", "i4")])
    with DeltaFile(num_params) as file:
        # The zeros are written now, so that a full disk raises an error here. If pages were first
        # allocated through the memory map, a full disk would kill the process.
        for _ in range(num_rows):
            file.append(block, np.ones(1), stats)
        return file.mapped(are_writable=True)


def _scaled(
    delta: NDArray[np.float32], factor: float, is_finite: bool, row: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns a delta times its factor, or zeros if it is not finite.

    A delta with factor 1 is returned as it is. Other results are written to `row`, which may be
    the memory of `delta`.
    """
    if is_finite and factor == 1.0:
        return delta
    if is_finite:  # multiplied in float64, rounded once
        np.multiply(delta, factor, out=row, casting="same_kind", dtype=np.float64)
    else:
        row[:] = 0.0
    return row


class DeltaFile:
    """A context manager: vectors that are added one after another, in memory or in a file.

    Up to `IN_MEMORY_BYTES` of vectors stay in memory; beyond that, all are in an unnamed file.
    The array that `mapped` returns remains readable after the file is closed.
    """

    def __init__(self, num_params: int) -> None:
        """Starts with no vectors [num_params]."""
        self._num_params = num_params
        self._num_rows = 0
        self._parts: list[NDArray[np.float32]] = []  # the rows of each call, while in memory
        self._room: NDArray[np.float32] | None = None  # what `room` returned, until `append`
        self._file: Any = None

    def __enter__(self) -> DeltaFile:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file, if there is one."""
        if self._file is not None:
            with suppress(OSError):  # the flush of buffered data may fail, but nobody reads it now
                self._file.close()

    def room(self, num_rows: int) -> NDArray[np.float32] | None:
        """Returns memory into which the next rows may be written, float32 [num_rows, num_params].

        `append` takes it without a copy, and may change it. None if the rows will be in a file.
        """
        self._room = None
        if self._stays(num_rows):
            self._room = np.empty((num_rows, self._num_params), np.float32)
        return self._room

    def _stays(self, num_rows: int) -> bool:
        """Returns whether `num_rows` further rows stay in memory."""
        num_bytes = 4 * (self._num_rows + num_rows) * self._num_params
        return self._file is None and num_bytes <= IN_MEMORY_BYTES

    def append(
        self,
        deltas: NDArray[np.float32],
        factors: NDArray[np.float64],
        stats: NDArray[np.void],
    ) -> None:
        """Adds the deltas of the next clients.

        Args:
            deltas: float32 [num_clients, num_params].
            factors: The factor of each delta, float64 [num_clients].
            stats: The clients' records; a delta that is not finite is added as zeros.

        Raises:
            RunError: The disk is full or fails, or the system's folder for temporary files cannot
                be written.
        """
        stays = self._stays(len(deltas))
        self._num_rows += len(deltas)
        rows = zip(deltas, factors, stats["is_finite"], strict=True)
        if stays:
            part = deltas if deltas is self._room else np.empty(deltas.shape, np.float32)
            self._room = None
            for place, (delta, factor, is_finite) in zip(part, rows, strict=True):
                scaled = _scaled(delta, factor, is_finite, place)
                if scaled is delta and part is not deltas:
                    place[:] = delta
            self._parts.append(part)
            return
        row = np.empty(self._num_params, np.float32)
        with self._faults():
            if self._file is None:
                self._file = nameless_file()
            for vector in chain(*self._parts, (_scaled(*each, row=row) for each in rows)):
                self._file.write(np.ascontiguousarray(vector).data.cast("B"))
            self._parts = []

    def mapped(self, *, are_writable: bool = False) -> NDArray[np.float32]:
        """Returns all rows, float32 [num_rows, num_params], read-only unless `are_writable`.

        Nothing can be added afterwards.

        Raises:
            RunError: The disk is full or fails.
        """
        if self._file is None:
            nothing = np.empty((0, self._num_params), np.float32)
            joined = (
                self._parts[0] if len(self._parts) == 1 else np.concatenate([nothing, *self._parts])
            )
            joined.flags.writeable = are_writable
            return joined
        with self._faults():
            self._file.flush()
            shape = self._num_rows, self._num_params
            if 0 in shape:
                return np.zeros(shape, np.float32)
            mode: Literal["r", "r+"] = "r+" if are_writable else "r"
            return np.memmap(self._file, np.float32, mode, shape=shape)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise RunError(
                "the model deltas of a cohort cannot be written to a temporary file: "
                f"{why_not_written(err)}; set TMPDIR to another folder, with room for "
                f"{4 * self._num_params:,} bytes per client"
            ) from err
