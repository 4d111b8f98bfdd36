"""Contestants that run in turn, so that what slows the machine for a while slows all of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fedcli.dataclass import dataclass
from fedcli.progress import Tell

_TICK = 1e-9  # seconds: less than any clock tells
MAX_CALLS = 100_000  # in one turn
_CALIBRATION = 10  # a trial this many times shorter than a turn tells how long a call takes


class Timer(NamedTuple):
    """What the outside gives to those who measure.

    Attributes:
        now: Returns a clock's seconds.
        pause: Waits that many seconds; between turns, until the last one's threads sleep.
    """

    now: Callable[[], float]
    pause: Callable[[float], None]


@dataclass(frozen=True)
class Runner:
    """One way to do a job.

    Attributes:
        by: Whose it is: fedcli, numpy, torch, or `peak` for the machine's own limit.
        threads: Threads it may use.
        run: Does the job so many times in a row and returns the seconds they took together.
    """

    by: str
    threads: int
    run: Callable[[int], float]


@dataclass(frozen=True)
class Spread:
    """Measured values of one thing.

    Attributes:
        values: In the order in which they were measured; at least one.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
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
    """How long and how often is measured.

    Attributes:
        repeats: Turns of each runner, at least 1.
        turn_seconds: A turn repeats a short job until it lasts about so long.
        pause_seconds: Between two turns.
    """

    repeats: int
    turn_seconds: float
    pause_seconds: float


def timed(timer: Timer, work: Callable[[], object]) -> Callable[[int], float]:
    """Returns what a `Runner` takes as `run`: `work` called again and again."""

    def run(num_calls: int) -> float:
        started = timer.now()
        for _ in range(num_calls):
            work()
        return timer.now() - started

    return run


def in_turn(runners: Sequence[Runner], pace: Pace, timer: Timer, tell: Tell) -> list[Spread]:
    """Returns the seconds of one call of each runner, a value a turn.

    Every runner warms up first, which is not counted; then they take turns, `pace.repeats`
    times. Turn i of all of them belongs together: ratios are of turns, not of medians.

    Args:
        runners: Who takes part.
        pace: How often, and how long a turn is.
        timer: The clock.
        tell: Told the turns done.
    """
    total = len(runners) * (pace.repeats + 1)
    calls = []
    for runner in runners:
        calls.append(_calls_of_a_turn(runner, pace.turn_seconds))
        tell(len(calls), total)
    taken: list[list[float]] = [[] for _ in runners]
    for turn in range(pace.repeats):
        for index, runner in enumerate(runners):
            timer.pause(pace.pause_seconds)
            taken[index].append(runner.run(calls[index]) / calls[index])
            tell(len(runners) * (turn + 1) + index + 1, total)
    return [Spread(tuple(values)) for values in taken]


def _calls_of_a_turn(runner: Runner, turn_seconds: float) -> int:
    """How many calls last as long as a turn; the runner is warm after."""
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
    """Returns one's values divided by the other's of the same turn."""
    return Spread(tuple(a / b for a, b in zip(one.values, other.values, strict=True)))
