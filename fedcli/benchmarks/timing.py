"""Measures runners in turns, so that a temporary slowdown of the machine affects all of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fedcli.dataclass import dataclass
from fedcli.progress import ProgressCallback

_TICK = 1e-9  # seconds; below the resolution of clocks
MAX_CALLS = 100_000  # largest number of calls in one turn
_CALIBRATION = 10  # the trial that measures a call takes a turn divided by this, or longer


class Timer(NamedTuple):
    """The clock and the pause, which the caller provides.

    Attributes:
        now: Returns the seconds of a clock.
        pause: Waits for a number of seconds. It is called between turns, so that idle threads go to
            sleep.
    """

    now: Callable[[], float]
    pause: Callable[[float], None]


@dataclass(frozen=True)
class Runner:
    """One way to do a job.

    Attributes:
        by: The program: fedcli, numpy, torch, or `peak` for the machine's own limit.
        threads: Number of threads.
        run: Does the job a number of times in a row and returns the total seconds.
    """

    by: str
    threads: int
    run: Callable[[int], float]


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity.

    Attributes:
        values: The values in the order of measurement; at least one.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The largest value."""
        return max(self.values)


@dataclass(frozen=True)
class Pace:
    """Number and length of the turns.

    Attributes:
        repeats: Number of turns of each runner, at least 1.
        turn_seconds: Length of a turn; a short job is repeated to fill it.
        pause_seconds: Pause between two turns.
    """

    repeats: int
    turn_seconds: float
    pause_seconds: float


def timed(timer: Timer, work: Callable[[], object]) -> Callable[[int], float]:
    """Returns the function `run` of a `Runner` that calls `work` repeatedly."""

    def run(num_calls: int) -> float:
        started = timer.now()
        for _ in range(num_calls):
            work()
        return timer.now() - started

    return run


def in_turn(
    runners: Sequence[Runner], pace: Pace, timer: Timer, on_progress: ProgressCallback
) -> list[Spread]:
    """Returns the seconds of one call of each runner, one value for each turn.

    Each runner warms up first, which does not count. Then they take turns, `pace.repeats` times.
    Ratios are computed between the turns with the same index, not between medians.

    Args:
        runners: The runners.
        pace: Number and length of turns.
        timer: The clock.
        on_progress: Called with the number of turns done.
    """
    total = len(runners) * (pace.repeats + 1)
    calls = []
    for runner in runners:
        calls.append(_calls_of_a_turn(runner, pace.turn_seconds))
        on_progress(len(calls), total)
    taken: list[list[float]] = [[] for _ in runners]
    for turn in range(pace.repeats):
        for index, runner in enumerate(runners):
            timer.pause(pace.pause_seconds)
            taken[index].append(runner.run(calls[index]) / calls[index])
            on_progress(len(runners) * (turn + 1) + index + 1, total)
    return [Spread(tuple(values)) for values in taken]


def _calls_of_a_turn(runner: Runner, turn_seconds: float) -> int:
    """The number of calls that fill a turn. Measuring it also warms the runner up."""
    runner.run(1)
    num_calls = 1
    while True:
        seconds = runner.run(num_calls)
        if seconds * _CALIBRATION >= turn_seconds or num_calls >= MAX_CALLS:
            wanted = math.ceil(
                num_calls * turn_seconds / max(seconds, turn_seconds / MAX_CALLS, _TICK)
            )
            return min(MAX_CALLS, max(1, wanted))
        num_calls *= 4


def ratio(one: Spread, other: Spread) -> Spread:
    """Returns the values of `one` divided by the values of `other`, turn by turn."""
    return Spread(tuple(a / b for a, b in zip(one.values, other.values, strict=True)))
