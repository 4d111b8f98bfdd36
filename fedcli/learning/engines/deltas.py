"""The model deltas of a cohort: what can be asked for, and what comes back.

An aggregator asks for the sum of the deltas, for the sum of deltas that are kept within bounds, or
for all deltas besides. All deltas are rows of a file without a name, which the engine writes as
clients finish and the aggregator reads through a map, so that memory does not grow with the cohort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.errors import RunError, why_not_written

SLICE_BYTES = 8 << 20  # of all deltas that are in memory at a time


class DeltaBounds(NamedTuple):
    """The largest model delta that is added as it is, whatever its client; infinity: no bound.

    Attributes:
        max_abs: A delta with a larger entry counts as zeros, with its weight.
        norm: A delta that is longer (L2, over all tensors) is scaled to this length.
    """

    max_abs: float
    norm: float


NO_BOUNDS = DeltaBounds(math.inf, math.inf)


class DeltaRequest(NamedTuple):
    """What is to come back of the deltas beside their sum.

    Attributes:
        bounds: What each is kept within before it is added; None: it is added as it is.
        all_rows: Whether each is to come back, too: `Deltas.rows`.
    """

    bounds: DeltaBounds | None = None
    all_rows: bool = False


SUM = DeltaRequest()
ALL_ROWS = DeltaRequest(all_rows=True)


@dataclass(frozen=True, eq=False)
class Deltas:
    """The model deltas of a cohort.

    An algorithm does not change a sum that an aggregator may not look at: it says what every delta
    counts as, `scale * delta + shift`.

    Attributes:
        delta_sum: Sum of weight * delta, float64 [num_params].
        weight_sum: Sum of the client weights.
        stats: One record a client, in cohort order, with fields `loss_sum`, `weight`,
            `num_correct`, `num_examples`, `num_batches`, `is_finite`; with bounds also the size of
            its delta, `max_abs` and `norm` (0 once zeroed), else 0.
        rows: If asked for, each delta as it is in the sum but for its weight, float32 [num_clients,
            num_params], in cohort order, read-only; zeros where it is not finite. None: not asked
            for, or these are not deltas but gradients that no client could train with.
        scale: What each delta is multiplied by, above 0.
        shift: What is added to each then, float64 [num_params]; None: nothing.
    """

    delta_sum: NDArray[np.float64]
    weight_sum: float
    stats: NDArray[np.void]
    rows: NDArray[np.float32] | None = None
    scale: float = 1.0
    shift: NDArray[np.float64] | None = None

    def scaled(self, factor: float) -> Deltas:
        """Returns the deltas times a factor above 0."""
        shift = None if self.shift is None else self.shift * factor
        return replace(self, scale=self.scale * factor, shift=shift)

    def shifted(self, vector: NDArray[np.float64]) -> Deltas:
        """Returns the deltas plus a vector [num_params]."""
        return replace(self, shift=vector if self.shift is None else self.shift + vector)

    def weighted_mean(self) -> NDArray[np.float32]:
        """Returns the sum of weight * delta over the sum of weights, float32 [num_params].

        Divided once and rounded once to float32; all weights zero gives NaN, which the finalizer
        rejects.
        """
        total = self.delta_sum if self.scale == 1.0 else self.delta_sum * self.scale
        if self.shift is not None:
            total = total + self.weight_sum * self.shift
        with np.errstate(divide="ignore", invalid="ignore"):
            return (total / self.weight_sum).astype(np.float32)

    def by_coordinate(
        self, rule: Callable[[NDArray[np.floating]], NDArray[np.floating]]
    ) -> NDArray[np.float32]:
        """Returns what a rule makes of all deltas that count, coordinate by coordinate.

        A delta counts if its client's weight is above 0: if it is finite and the client has an
        example. Where none counts the result is NaN, which the finalizer rejects.

        Args:
            rule: Takes values [num_coordinates, num_clients], which it may change, and returns one
                for each coordinate. It must not depend on the order of the clients.

        Returns:
            float32 [num_params], from slices of `SLICE_BYTES`.
        """
        num_params = len(self.delta_sum)
        counted = np.flatnonzero(self.stats["weight"] > 0.0)
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
                result[chosen] = rule(values)
        return result


class DeltaFile:
    """Deltas written one after the other to a temporary file without a name; a context.

    What is mapped of it stays readable when it is closed, until nobody holds the map.
    """

    def __init__(self, num_params: int) -> None:
        """Opens the file for vectors [num_params].

        Raises:
            RunError: The system's folder for temporary files cannot be written.
        """
        self._num_params = num_params
        self._num_rows = 0
        with self._faults():
            self._file = _nameless()

    def __enter__(self) -> DeltaFile:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        with suppress(OSError):  # of what is still to be written: nobody reads it any more
            self._file.close()

    def append(
        self,
        deltas: NDArray[np.float32],
        factors: NDArray[np.float64],
        stats: NDArray[np.void],
    ) -> None:
        """Writes the deltas of the next clients.

        Args:
            deltas: float32 [num_clients, num_params].
            factors: What each is multiplied by, float64 [num_clients].
            stats: Their records; a delta that is not finite is written as zeros.

        Raises:
            RunError: The disk is full or fails.
        """
        row = np.empty(self._num_params, np.float32)
        with self._faults():
            for delta, factor, is_finite in zip(deltas, factors, stats["is_finite"], strict=True):
                if not is_finite:
                    row[:] = 0.0
                elif factor != 1.0:  # rounded once
                    np.multiply(delta, factor, out=row, casting="same_kind", dtype=np.float64)
                written = delta if is_finite and factor == 1.0 else row
                self._file.write(np.ascontiguousarray(written).data.cast("B"))
        self._num_rows += len(deltas)

    def mapped(self) -> NDArray[np.float32]:
        """Returns all rows, float32 [num_rows, num_params], mapped read-only.

        Raises:
            RunError: The disk is full or fails.
        """
        with self._faults():
            self._file.flush()
            shape = self._num_rows, self._num_params
            if 0 in shape:
                return np.zeros(shape, np.float32)
            return np.memmap(self._file, np.float32, "r", shape=shape)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise RunError(
                "the model deltas of a cohort cannot be written to a temporary file: "
                f"{why_not_written(err)}; TMPDIR may name another folder, with room for "
                f"{4 * self._num_params:,} bytes a client"
            ) from err


def _nameless() -> Any:
    """A new file without a name, which its user closes. Raises OSError."""
    import tempfile  # late: few runs need it

    return tempfile.TemporaryFile()
