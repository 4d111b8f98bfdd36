"""The typed interface of the C core; no other module imports the extension."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcli.core import machine
from fedcli.core.seeds import StreamKey
from fedcli.errors import ConfigError
from fedcli.settings.vocabulary import MAX_THREADS

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

# By default libgomp's idle threads spin for about 10 ms. On a busy machine a spinning thread holds
# the processor that a working thread needs; rounds of 0.6 ms were seen to take 8 ms. A spin of 1 ms
# covers the gap between two rounds. libgomp reads the variable when it is loaded, below. Afterwards
# it is removed, so that child processes do not inherit it. It is not set if the user has chosen how
# threads wait, because it has precedence over OMP_WAIT_POLICY.
_SETS_SPINCOUNT = os.environ.keys().isdisjoint(("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
if _SETS_SPINCOUNT:
    os.environ["GOMP_SPINCOUNT"] = "30000"

try:
    from fedcli.core import _core
    from fedcli.core._core import (
        MAX_BATCH,
        MAX_LAYERS,
        STATS,
        CancelFlag,
        Cancelled,
        ChangedFault,
        Client,
        Codec,
        Cohort,
        DeltaSum,
        LabelFault,
        Model,
        PayloadFault,
        Plan,
        Step,
        Team,
        Terms,
    )
except ImportError as err:
    if str(err).startswith("FEDCLI_ISA="):
        raise ConfigError(str(err)) from err
    if find_spec("fedcli.core._core") is not None:  # the extension exists but cannot be loaded
        raise
    raise ConfigError(
        f"{Path(__file__).parents[1]} is a source folder in which fedcli was not compiled, and "
        "Python found it before an installed fedcli; start Python in another folder, or run "
        "pip install -e . here"
    ) from err
finally:
    if _SETS_SPINCOUNT:
        del os.environ["GOMP_SPINCOUNT"]

__all__ = [
    "MAX_BATCH",
    "MAX_LAYERS",
    "STATS",
    "CancelFlag",
    "Cancelled",
    "ChangedFault",
    "Client",
    "Codec",
    "Cohort",
    "DeltaSum",
    "FrozenSlots",
    "Helpers",
    "LabelFault",
    "Levels",
    "MatrixRows",
    "Model",
    "Noise",
    "PayloadFault",
    "Phase",
    "Plan",
    "Step",
    "StepKind",
    "StepRow",
    "Team",
    "Terms",
    "WeightedSum",
    "add_change",
    "apply_step",
    "batch_bytes",
    "bound_rows",
    "count_synthetic",
    "divide",
    "draw_synthetic",
    "example_order",
    "exercise",
    "fma_peak_run",
    "has_openmp",
    "initial_slots",
    "isa_name",
    "isa_names",
    "least_diameter",
    "mixup_draw",
    "next_client_vector",
    "random_u64",
    "resolve_threads",
    "secure_sum",
    "stages",
    "sum_rows",
    "sum_vectors",
]

T = TypeVar("T")

StepRow = tuple[int, tuple[float, ...]]
# One layer: the fields of struct fed_layer in order, with the name of its kind and shapes as
# tuples.
ModelRow = tuple[str | int | float | tuple[int, int, int], ...]


class StepKind(IntEnum):
    """Kinds of rows of the step table; fed.h documents them and their options (fed_step_kind)."""

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
    DECAY = 12


class FrozenSlots(NamedTuple):
    """An optimizer state from which every local step starts; the step's new state is discarded.

    Attributes:
        slots: float32 [num_slots, num_params], in the order of the rows.
        step_num: The step number that every step uses, from 1.
    """

    slots: NDArray[np.float32]
    step_num: int


def apply_step(
    rows: Sequence[StepRow],
    step_num: int,
    params: NDArray[np.float32],
    server_params: NDArray[np.float32],
    gradient: NDArray[np.float32],
    slots: NDArray[np.float32],
    shapes: Sequence[tuple[int, ...]] = (),
    linear: NDArray[np.float32] | None = None,
) -> None:
    """Takes one local step of the core in place.

    Args:
        rows: The step table.
        step_num: The number of the client's local step, from 1.
        params: [num_params], updated.
        server_params: [num_params].
        gradient: [num_params], overwritten.
        slots: The result of `initial_slots`, updated.
        shapes: Shapes of the tensors that make up `params`; only Adafactor uses them.
        linear: [num_params], what the LINEAR row adds to the gradient; None for zeros.
    """
    _core.Step(rows, shapes).apply(step_num, params, server_params, gradient, slots, linear)


def initial_slots(rows: Sequence[StepRow], num_params: int) -> NDArray[np.float32]:
    """Returns the slots of a step table before a client's first step: [num_slots, num_params]."""
    return _core.Step(rows).initial_slots(num_params)


def next_client_vector(scale: float, sent: NDArray[np.float32], delta: NDArray[np.float32]) -> bool:
    """Computes a client's new vector (SCAFFOLD's c_k, FedDyn's h_k): scale * delta - sent.

    Args:
        scale: The factor of the delta.
        sent: The linear term that the client received, [num_params].
        delta: The client's delta, [num_params], contiguous; overwritten with the result.

    Returns:
        Whether all values of the result are finite.
    """
    return _core.next_client_vector(scale, sent, delta)


def add_change(
    before: NDArray[np.float32], after: NDArray[np.float32], change: NDArray[np.float64]
) -> None:
    """Adds `after - before` to `change`; each is [num_params] and contiguous."""
    _core.add_change(before, after, change)


def divide(total: NDArray[np.float64], divisor: float) -> NDArray[np.float32]:
    """Returns total / divisor, [num_values]; each quotient is rounded to float32 once."""
    return _core.divide(total, divisor)


class WeightedSum:
    """A weighted sum of vectors, added as a round adds deltas: in float64 and in a fixed order."""

    def __init__(self, num_values: int) -> None:
        """Starts at zero."""
        self._sum = _core.VectorSum(num_values)

    def add(self, vectors: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> None:
        """Adds weight * vector, float32 [num_values], for each in turn; weight 0 adds nothing.

        One call with many vectors is faster than many calls: it reads each vector once, and the sum
        stays in the cache.
        """
        self._sum.add(vectors, np.asarray(weights, np.float64))

    def reset(self) -> None:
        """Sets the sum to zero and keeps its memory."""
        self._sum.reset()

    def total(self) -> tuple[NDArray[np.float64], float]:
        """Returns the sum, float64 [num_values], and the sum of the weights."""
        return self._sum.total()


_SHARED_BYTES = 1 << 22  # waking a sleeping thread takes longer than reading this many bytes


class MatrixRows:
    """Some rows of a matrix, which the core reads in slices and on threads.

    The matrix may be a mapped file that is larger than memory. Its values must be finite. Results
    do not depend on the number of threads. A coordinate is a column of the matrix. Unless stated
    otherwise, vectors and means are float64 [num_values], and factors and norms float64 [num_rows].
    """

    def __init__(
        self,
        matrix: NDArray[np.float32],
        chosen: NDArray[np.int64],
        num_threads: int,
        helpers: Helpers | None = None,
    ) -> None:
        """Refers to rows of a matrix.

        Args:
            matrix: float32 [any, num_values], contiguous; it must not change.
            chosen: The rows, at least one: int64 [num_rows].
            num_threads: The number of threads that compute.
            helpers: Runs the calls; None: a new `Helpers` for these rows alone.
        """
        if 4 * len(chosen) * matrix.shape[1] < _SHARED_BYTES:
            num_threads = 1
        self._rows = _core.Rows(matrix, chosen, num_threads)
        self._num_rows = len(chosen)
        self._num_values = matrix.shape[1]
        self._num_threads = num_threads
        self._helpers = helpers or Helpers()

    def trimmed_mean(self, trim: int) -> NDArray[np.float64]:
        """Returns the mean of each coordinate without its `trim` smallest and largest values.

        Args:
            trim: At most (num_rows - 1) // 2, which gives the median.
        """
        mean = np.empty(self._num_values)
        self._call(lambda: self._rows.trimmed_mean(trim, mean))
        return mean

    def rounded_trimmed_mean(self, trim: int) -> NDArray[np.float32]:
        """Returns `trimmed_mean` in float32. The core rounds as it writes, which is faster."""
        mean = np.empty(self._num_values, np.float32)
        self._call(lambda: self._rows.trimmed_mean(trim, rounded=mean))
        return mean

    def median_and_distances(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the coordinates' medians, and each row's distance to them, float64 [num_rows]."""
        median, squares = np.empty(self._num_values), np.empty(self._num_rows)
        trim = (self._num_rows - 1) // 2
        self._call(lambda: self._rows.trimmed_mean(trim, median, squares=squares))
        return median, np.sqrt(squares)

    def mean_near_median(self, num_nearest: int) -> NDArray[np.float64]:
        """Returns, for each coordinate, the mean of the values that are nearest to their median.

        Of values that are equally near, those of earlier rows are taken.

        Args:
            num_nearest: The number of values, 1 to num_rows.
        """
        mean = np.empty(self._num_values)
        self._call(lambda: self._rows.mean_near_median(num_nearest, mean))
        return mean

    def rounded_mean_near_median(self, num_nearest: int) -> NDArray[np.float32]:
        """Returns `mean_near_median` in float32. The core rounds as it writes, which is faster."""
        mean = np.empty(self._num_values, np.float32)
        self._call(lambda: self._rows.mean_near_median(num_nearest, rounded=mean))
        return mean

    def sign_votes(self, origin: NDArray[np.float64] | None = None) -> NDArray[np.int32]:
        """Returns the sum of sign(row - origin) over rows, int32 [num_values]; no origin: zeros."""
        return self._call(lambda: self._rows.sign_votes(origin))

    def weighted_sum(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the sum of factor * row; factors are at least 0."""
        total = np.empty(self._num_values)
        self._call(lambda: self._rows.move(0.0, factors, total))
        return total

    def move(
        self, vector: NDArray[np.float64], kept: float, factors: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Replaces `vector` by kept * vector + the sum of factor * row; factors are at least 0.

        Returns:
            The distance of each row to the new vector, from the same pass: float64 [num_rows].
        """
        squares = np.empty(self._num_rows)
        self._call(lambda: self._rows.move(kept, factors, vector, squares))
        return np.sqrt(squares)

    def mix(
        self,
        factors: NDArray[np.float64],
        out: NDArray[np.float32],
        offset: NDArray[np.float64] | None = None,
        offset_factors: NDArray[np.float64] | None = None,
    ) -> None:
        """Writes out[o] = the sum over r of factors[o, r] * row r, plus offset_factors[o] * offset.

        Args:
            factors: At least 0, float64 [num_out, num_rows].
            out: Overwritten, float32 [num_out, num_values].
            offset: A further vector; None: nothing is added.
            offset_factors: The factors of `offset`, float64 [num_out]; None if `offset` is None.
        """
        self._call(lambda: self._rows.mix(factors, offset_factors, offset, out))

    def distances_to(self, origin: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Returns the distance of each row to `origin` (None: its norm), float64 [num_rows]."""
        return np.sqrt(self._call(lambda: self._rows.measure(origin))[0])

    def measure(
        self, direction: NDArray[np.float64], origin: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns norms of row - origin, and products with `direction`, float64 [num_rows] each."""
        squares, products = self._call(lambda: self._rows.measure(origin, direction))
        return np.sqrt(squares), products

    def square_distances(self) -> NDArray[np.float64]:
        """Returns the squared distances of all pairs of rows: float64 [num_rows, num_rows].

        They are computed from differences of the rows. Norms minus products would lose all digits
        for rows that differ little.
        """
        return self._call(lambda: self._rows.pairs(False))

    def products(self) -> NDArray[np.float64]:
        """Returns the inner products of all pairs of rows: float64 [num_rows, num_rows]."""
        return self._call(lambda: self._rows.pairs(True))

    def _call(self, work: Callable[[], T]) -> T:
        return work() if self._num_threads == 1 else self._helpers.run(work)


def bound_rows(
    rows: NDArray[np.float32], bounds: tuple[float, float] | None, num_threads: int
) -> NDArray[np.void]:
    """Brings the finite rows of a matrix within bounds, as a round bounds deltas.

    Args:
        rows: float32 [num_rows, num_values], contiguous; changed in place.
        bounds: The largest magnitude, beyond which a row becomes zeros, and the largest L2 norm, to
            which a longer row is scaled; None: nothing is bounded.
        num_threads: The number of threads, which changes no result; see `Helpers`.

    Returns:
        A record for each row, with the field `is_finite`. If there are bounds, it also has
        `max_abs` and `norm`, the row's size before the bounds; `norm` is 0 if the row became zeros.
    """
    return _core.bound_rows(rows, bounds, num_threads)


def sum_vectors(
    vectors: Sequence[NDArray[np.float32]],
    weights: NDArray[np.float64],
    num_values: int,
    num_threads: int,
) -> NDArray[np.float64]:
    """Returns the total that a `WeightedSum` has of vectors that are all there, in less time.

    Args:
        vectors: float32 [num_values] each. A vector of weight 0 need not be finite.
        weights: At least 0, float64, one for each vector.
        num_values: The length of each vector.
        num_threads: The number of threads, which changes no result; see `Helpers`.
    """
    return _core.sum_vectors(vectors, weights, num_values, num_threads)


def sum_rows(
    rows: NDArray[np.float32], weights: NDArray[np.float64], num_threads: int
) -> NDArray[np.float64]:
    """Returns the sum of the rows of a matrix, as `WeightedSum` adds them: float64 [num_values].

    Args:
        rows: float32 [num_rows, num_values], contiguous. A row of weight 0 need not be finite.
        weights: At least 0, float64 [num_rows].
        num_threads: The number of threads, which changes no result; see `Helpers`.
    """
    return _core.sum_rows(rows, weights, num_threads)


class Helpers:
    """Runs calls of the core that use several threads outside the main thread.

    OpenMP keeps the helper threads of a calling thread for its next call. A process that is forked
    from such a thread would wait forever for helpers that it does not have. Calls by the main
    thread therefore run on one other thread. It is kept, because starting new helpers for each call
    would take about a millisecond. Calls by any other thread run on that thread itself.
    """

    def __init__(self) -> None:
        """Starts no thread yet."""
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Starts work on the kept thread."""
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # lazy: only a main thread needs it

            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fedcli-core")
        return self._pool.submit(work)

    def run(self, work: Callable[[], T]) -> T:
        """Runs work and returns its result. An interrupt (Ctrl-C) is raised after it has ended."""
        if threading.current_thread() is not threading.main_thread():
            return work()
        return _result_of(self.submit(work))

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Starts work and returns a function that waits for its end and returns its result.

        Waits until the work has begun: if the main thread continued at once, it could delay the
        first step of the work. In any other thread, the work is done before this method returns.
        """
        if threading.current_thread() is not threading.main_thread():
            result = work()
            return lambda: result
        has_begun = threading.Event()

        def begin() -> T:
            has_begun.set()
            return work()

        future = self.submit(begin)
        has_begun.wait()
        return lambda: _result_of(future)


def _result_of(future: Future[T]) -> T:
    """Returns the result of started work. An interrupt is raised after the work has ended."""
    try:
        return future.result()
    finally:
        if not future.done():  # this thread was interrupted, and the work goes on
            future.exception()


def least_diameter(distances: NDArray[np.float64], num_chosen: int) -> NDArray[np.int64]:
    """Returns the rows whose largest distance from each other is least, in ascending order.

    Of equally good sets of rows, the first in lexicographic order is returned.

    Args:
        distances: Of all pairs of rows, float64 [num_rows, num_rows], squared or not.
        num_chosen: 1 to num_rows.
    """
    return _core.least_diameter(distances, num_chosen)


def example_order(plan: Plan, num_examples: int, key: StreamKey) -> NDArray[np.uint32]:
    """Returns the indices of the examples a client visits, in order: uint32 [num_visits]."""
    return _core.example_order(plan, num_examples, key)


class Noise(NamedTuple):
    """The noise that one round adds to a sum: independent normal numbers, or tree noise.

    A key's stream gives standard normal numbers by Box and Muller's method; see csrc/fed.h. Apart
    from the last 256, they do not depend on how many are drawn.

    Tree noise has one value, a vector, for each of some groups of consecutive rounds. A round
    completes groups of 1, 2, 4, ... rounds; the last group contains the others and replaces them.
    The noise of the round is the value of the last group times its factor, minus the sum of the
    values of the groups that it replaces, each times its factor.

    Attributes:
        keys: One key; in a tree, one for each group that the round completes.
        factors: For each key, the factor of its normal numbers or of its group's value, float64
            [num_keys].
        groups: The values of the complete groups, float64 [num_levels, num_values]; row l is for
            2^l rounds. The row of the last group is overwritten. None: there is no tree.
        takes_halves: Whether the value of a group is its normal numbers plus half the sum of the
            values of its two halves.
    """

    keys: Sequence[StreamKey]
    factors: NDArray[np.float64]
    groups: NDArray[np.float64] | None = None
    takes_halves: bool = False


def noised_mean(
    total: NDArray[np.float64], noise: Noise, divisor: float, num_threads: int = 1
) -> NDArray[np.float32]:
    """Returns (total + noise) / divisor, float32 [num_values].

    Args:
        total: float64 [num_values].
        noise: See `Noise`.
        divisor: Above 0.
        num_threads: The number of threads, which changes no result; see `Helpers`.
    """
    keys, factors, groups, takes_halves = noise
    return _core.noised_mean(keys, factors, groups, takes_halves, total, divisor, num_threads)


def random_u64(key: StreamKey, count: int) -> NDArray[np.uint64]:
    """Returns the first `count` values of a stream: uint64 [count]."""
    return _core.random_u64(key, count)


class Levels(NamedTuple):
    """How a secure sum converts coordinates to whole numbers.

    A coordinate x of a client with the factor f becomes the level round((y - low) * top_level /
    (high - low)), where y is f * (x - center) clipped to [low, high]. The factors and `center` are
    arguments of `secure_sum`.

    Attributes:
        low: The least value.
        high: The greatest value.
        top_level: The level of `high`, 1 to 2^51.
        mask_bits: At most 62. Levels and weights are summed modulo 2^mask_bits, which must exceed
            all sums.
        clip: x - center is clipped to [-clip, clip] before it is multiplied.
        takes_signs: Whether x - center is replaced by its sign: -1, 0 or 1.
    """

    low: float
    high: float
    top_level: int
    mask_bits: int
    clip: float = math.inf
    takes_signs: bool = False


def secure_sum(
    rows: NDArray[np.float32],
    weights: Sequence[int],
    factors: NDArray[np.float64],
    rounding_keys: Sequence[StreamKey] | None,
    masks: StreamKey,
    levels: Levels,
    *,
    center: NDArray[np.float64] | None = None,
    num_threads: int,
    returns_sent: bool = False,
) -> tuple[NDArray[np.uint64], int, NDArray[np.uint64] | None]:
    """Sums the quantised, masked rows of a cohort, and recovers the masks of clients that drop out.

    Args:
        rows: The vectors of the first clients, [num_rows, num_params], finite.
        weights: A whole number for each client, which is summed as one more coordinate; 0: the
            client drops out. Clients without a row drop out, too.
        factors: The factor of each client, at least 0: [num_clients].
        rounding_keys: For each client the stream that rounds its levels at random. If None, levels
            are rounded to the nearest whole number, halves to even.
        masks: The key from which the keys of the masks are made: for clients i < j of the cohort, i
            is added to its field `client` and j to `occurrence`.
        levels: See `Levels`.
        center: Subtracted from each row, [num_params]; None: zeros.
        num_threads: Number of threads; it changes no result.
        returns_sent: Whether to return the masked rows.

    Returns:
        The sums of the levels and of the weights [num_params + 1]; the number of coordinates that
        were clipped; and, with `returns_sent`, the masked rows [num_clients, num_params + 1], with
        zeros for clients that send nothing, else None.
    """
    return _core.secure_sum(
        rows,
        weights,
        factors,
        rounding_keys,
        masks,
        levels,
        center=center,
        num_threads=num_threads,
        returns_sent=returns_sent,
    )


SyntheticOptions = tuple[int, int, float, float, int]


def count_synthetic(options: SyntheticOptions, client: int, split: int) -> int:
    """Returns the number of examples that a client of a synthetic dataset has in a split.

    Args:
        options: (0 for digits or 1 for shapes, seed, style spread, label noise, 0 for natural or 1
            for skewed sizes).
        client: The client's `client_key`.
        split: 0 train, 1 test, 2 central.
    """
    return _core.synthetic_count(options, client, split)


def draw_synthetic(
    options: SyntheticOptions, client: int, split: int, first: int, num: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Returns examples first..first+num-1 of a client: pixels uint8 [num, P], labels int32 [num].

    A digit has P = 28 * 28 grey pixels, where 255 is ink; a shape has 32 * 32 * 3 values, red,
    green and blue. The arguments are those of `count_synthetic`.
    """
    return _core.synthetic_draw(options, client, split, first, num)


def isa_name() -> str:
    """Returns the instruction set that the core uses: generic, avx2 or avx512."""
    return _core.ISA


def isa_names() -> tuple[str, ...]:
    """Returns the instruction sets that this build has and this machine can run, widest last."""
    return _core.ISAS


def has_openmp() -> bool:
    """Returns whether the core was built with OpenMP; without it, it has one thread."""
    return _core.HAS_OPENMP


def resolve_threads(requested: int | None = None) -> int:
    """Returns the number of threads: `requested`, else OMP_NUM_THREADS, else all processors.

    All processors are those that `machine.num_processors` counts. A core built without OpenMP
    always has one thread.

    Raises:
        ConfigError: `requested` is not in 1..MAX_THREADS.
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
    return min(machine.num_processors(), MAX_THREADS)


class Phase(IntEnum):
    """The phases of a model's stage in a local step: enum fed_phase."""

    FORWARD = 0
    BACKWARD = 1  # with the update by plain SGD
    DERIVE = 2  # computes transformed copies of updated weights for the next forward pass


def stages(rows: Sequence[ModelRow], num_params: int) -> list[int]:
    """Returns the index of the first layer of each stage.

    A stage is one layer, or a convolution together with the pool that follows it.

    Args:
        rows: The model table, as `ParamLayout.core_rows` makes it.
        num_params: Number of parameters of all layers.
    """
    return _core.stages(_core.Model(rows, num_params))


def run_inputs(
    rows: Sequence[ModelRow],
    num_params: int,
    images: NDArray[np.float32],
    key: StreamKey | None = None,
    first_visit: int = 0,
) -> NDArray[np.float32]:
    """Returns the output of a model's input layers for images: float32 [n, num_outputs].

    Args:
        rows: The model table, as `ParamLayout.core_rows` makes it.
        num_params: Number of parameters of all layers.
        images: Decoded pixels, float32 [n, num_inputs]. They are not mixed: see `mixup_draw`.
        key: Key of the client's dropout stream, for images as in training; None: as in scoring.
        first_visit: Number of the first image's visit in the round, from 0.
    """
    return _core.run_inputs(_core.Model(rows, num_params), images, key, first_visit)


def mixup_draw(
    alpha: float, key: StreamKey, first_visit: int, num_rows: int
) -> tuple[float, NDArray[np.uint32]]:
    """Returns how a training batch is mixed by MixUp: a share, and each example's partner.

    The example at place b of the batch becomes share * x[b] + (1 - share) * x[partners[b]].

    Args:
        alpha: From 1e-6 to 1e6; the share is Beta(alpha, alpha) distributed.
        key: Key of the client's MixUp stream.
        first_visit: Number of the batch's first visit in the round, from 0.
        num_rows: Number of examples in the batch.
    """
    return _core.mixup_draw(alpha, key, first_visit, num_rows)


def batch_bytes(
    rows: Sequence[ModelRow],
    num_params: int,
    batch_size: int,
    *,
    num_clients: int = 1,
    num_threads: int = 1,
) -> int:
    """Returns the bytes of the batches that threads process at a time in training.

    Parameters, optimizer state and decoded images are not counted.

    Args:
        rows: The model table, as `ParamLayout.core_rows` makes it.
        num_params: Number of parameters of all layers.
        batch_size: Number of examples in a batch, 1 to `MAX_BATCH`.
        num_clients: Number of clients in the cohort, at least 1.
        num_threads: Number of threads. They share a client if there are fewer clients than threads
            and the model does not begin with a dense layer.
    """
    model = _core.Model(rows, num_params)
    return _core.batch_bytes(model, batch_size, num_clients, num_threads)


def exercise(
    rows: Sequence[ModelRow],
    params: NDArray[np.float32],
    batch_size: int,
    stage: int,
    phase: Phase,
    repeats: int,
) -> None:
    """Runs one phase of one stage repeatedly on a synthetic batch, on the calling thread.

    Args:
        rows: The model table, as `ParamLayout.core_rows` makes it.
        params: float32 [num_params].
        batch_size: Number of examples in the batch.
        stage: Index of the stage, from 0.
        phase: The phase to run.
        repeats: How often to run it, after one local step of the whole model.
    """
    model = _core.Model(rows, params.size)
    _core.exercise(model, params, batch_size, stage, phase, repeats)


def fma_peak_run(num_steps: int) -> float:
    """Runs `num_steps` groups of fused multiply-adds on one thread.

    Returns:
        The number of floating-point operations done.
    """
    return _core.fma_chain(num_steps)
