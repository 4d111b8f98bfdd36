"""Measures the limits of this machine: multiply-adds, reading, copying, and NumPy's BLAS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from fedcli.benchmarks.timing import Pace, Runner, Spread, Timer, in_turn, timed
from fedcli.core import native
from fedcli.progress import ProgressCallback

PEAK = "peak"
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]

_PEAK_STEPS = 100_000  # steps of the chain, which take a few milliseconds
CACHED_BYTES = 6_422_528  # float32 [3136, 512]: the McMahan CNN's large kernel
MEMORY_BYTES = 256 << 20  # size of each of two arrays
_SGEMM_SIZE = 1024


class Peak:
    """Chains of fused multiply-adds in registers, one on each thread."""

    def __init__(self, num_threads: int, resources: ExitStack) -> None:
        """Starts the threads, which `resources` ends."""
        self.num_threads = num_threads
        self.operations = 0.0  # floating-point operations of one call
        self._pool = resources.enter_context(ThreadPoolExecutor(num_threads))

    def runner(self, timer: Timer) -> Runner:
        """Returns the chains as a runner. One call does `operations`."""
        return Runner(PEAK, self.num_threads, timed(timer, self._run))

    def _run(self) -> None:
        steps = [_PEAK_STEPS] * self.num_threads
        self.operations = sum(self._pool.map(native.fma_peak_run, steps))


def rates(peak: Peak, seconds: Spread) -> Spread:
    """Returns the operations per second of each turn."""
    return Spread(tuple(peak.operations / each for each in seconds.values))


def measure(
    thread_counts: tuple[int, ...],
    pace: Pace,
    timer: Timer,
    on_progress: ProgressCallback,
    *,
    num_bytes: int,
) -> dict[str, dict[int, Spread]]:
    """Measures the limits of the machine, by name and number of threads.

    `fma`: operations per second of multiply-adds in registers. `sgemm`: operations per second of
    NumPy's BLAS on matrices of 1024 x 1024, on one thread. `read_cached` and `read_memory`: bytes
    per second that NumPy's dot products read. Each thread has its own two vectors. For
    `read_cached` the two of one thread are together as large as the large kernel of McMahan's CNN;
    for `read_memory` they are parts of two arrays of `num_bytes`. `copy_memory`: bytes read plus
    bytes written per second, when all threads together copy `num_bytes`.

    Args:
        thread_counts: Numbers of threads.
        pace: Number and length of the turns.
        timer: The clock.
        on_progress: Called with the number of turns done.
        num_bytes: Size of each of two arrays in memory; more than the caches hold.
    """
    size = num_bytes // 4
    one, other = np.ones(size, np.float32), np.ones(size, np.float32)
    matrix = np.ones((_SGEMM_SIZE, _SGEMM_SIZE), np.float32)
    product = np.empty_like(matrix)
    with ExitStack() as resources:
        runners: list[Runner] = []
        amounts: list[float] = []

        def enter(name: str, threads: int, amount: float, work: Callable[[], object]) -> None:
            runners.append(Runner(name, threads, timed(timer, work)))
            amounts.append(amount)

        peaks = [Peak(count, resources) for count in thread_counts]
        for peak in peaks:
            runners.append(peak.runner(timer))
            amounts.append(0.0)
        for count in thread_counts:
            pool = resources.enter_context(ThreadPoolExecutor(count))
            each = size // count
            parts = [slice(index * each, (index + 1) * each) for index in range(count)]
            half = CACHED_BYTES // 8
            halves = [(one[:half].copy(), other[:half].copy()) for _ in range(count)]
            enter("read_cached", count, CACHED_BYTES * count, _dots(pool, halves))
            arrays = [(one[part], other[part]) for part in parts]
            enter("read_memory", count, 8.0 * each * count, _dots(pool, arrays))
            enter("copy_memory", count, 8.0 * each * count, _copies(pool, arrays))
        enter("sgemm", 1, 2.0 * _SGEMM_SIZE**3, lambda: np.matmul(matrix, matrix, out=product))
        seconds = in_turn(runners, pace, timer, on_progress)
    for index, peak in enumerate(peaks):
        amounts[index] = peak.operations
    found: dict[str, dict[int, Spread]] = {}
    for runner, amount, taken in zip(runners, amounts, seconds, strict=True):
        name = "fma" if runner.by == PEAK else runner.by
        values = Spread(tuple(amount / each for each in taken.values))
        found.setdefault(name, {})[runner.threads] = values
    return found


def _dots(pool: ThreadPoolExecutor, pairs: Sequence[Pair]) -> Callable[[], object]:
    return lambda: list(pool.map(lambda pair: np.dot(pair[0], pair[1]), pairs))


def _copies(pool: ThreadPoolExecutor, pairs: Sequence[Pair]) -> Callable[[], object]:
    return lambda: list(pool.map(lambda pair: np.copyto(pair[0], pair[1]), pairs))
