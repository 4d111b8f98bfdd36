"""Runs long jobs other than training in a thread, with a progress bar; Ctrl-C ends them."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from fedcli.cli.jobs.bars import LOG_SECONDS, REFRESH_SECONDS, clock, short_number
from fedcli.cli.jobs.live_line import LiveLine, Part, can_redraw
from fedcli.cli.jobs.worker import Worker, run_stoppable
from fedcli.cli.screen.output import Remarks, Verbosity
from fedcli.core.native import CancelFlag, Cancelled
from fedcli.progress import ProgressCallback

Result = TypeVar("Result")

_RATE_WINDOW = 50  # refreshes over which the rate is averaged: five seconds


class Meter:
    """The latest progress of a job. The worker writes it; the main thread reads it.

    Attributes:
        done: The amount done.
        total: The amount in total; None if it is not known.
        share: The share done at the last description; None if it was not known.
    """

    def __init__(self) -> None:
        """Starts without progress."""
        self.done = 0
        self.total: int | None = None
        self.share: float | None = None
        self._observations: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)

    def describe(self, now: float, unit: str) -> str:
        """Returns the amount done, the rate, and the time left, as far as they are known.

        It also sets `share`, so that a bar and these numbers show the same moment.

        Args:
            now: Seconds of a clock.
            unit: The unit of the amounts. "B" follows the number without a space; "": not known.
        """
        done, total = self.done, self.total
        self.share = done / total if total else None
        if self._observations and done < self._observations[-1][1]:
            self._observations.clear()  # the next part of the job begins
        self._observations.append((now, done))
        gap = "" if unit in ("", "B") else " "
        of_total = "" if total is None else f"/{short_number(total)}"
        parts = [f"{short_number(done)}{of_total}{gap}{unit}"]
        then, before = self._observations[0]
        if now > then and done > before:
            rate = (done - before) / (now - then)
            parts.append(f"{short_number(rate)}{gap}{unit}/s")
            if total is not None:
                parts.append(f"{clock(max(0, total - done) / rate)} left")
        return "  ".join(parts)


def run_job(
    title: str,
    unit: str,
    job: Callable[[ProgressCallback], Result],
    *,
    remarks: Remarks,
    describe_stop: Callable[[], str] = lambda: "stopped; nothing was written",
    cancel: CancelFlag | None = None,
) -> Result:
    """Runs `job` in a thread and returns its result.

    On a terminal a bar shows the progress, unless -q is given. Without a terminal, lines are
    written if -v is given.

    Args:
        title: A short description of the job, before the bar.
        unit: The unit of its progress: examples, clients, B.
        job: The work. It calls its argument repeatedly with its progress; after a signal that call
            raises `Cancelled`.
        remarks: Writes the remarks of the command.
        describe_stop: Called after a signal has ended the job. It returns one line that says what
            was kept and how to continue.
        cancel: Set by a signal, to end long calls of the core.

    Raises:
        Stopped: A signal ended the job.
    """
    meter = Meter()
    flag = cancel or CancelFlag()

    def on_progress(done: int, total: int | None) -> None:
        meter.done, meter.total = done, total
        if flag.is_set():
            raise Cancelled

    def attend(worker: Worker[Result]) -> None:
        if remarks.verbosity > Verbosity.QUIET and can_redraw(sys.stderr):
            _draw(worker, meter, title, unit, remarks)
        elif remarks.verbosity == Verbosity.VERBOSE:
            while not worker.wait(LOG_SECONDS):
                remarks.detail(f"{title}: {meter.describe(time.monotonic(), unit)}")

    return run_stoppable(
        lambda: job(on_progress), cancel=flag, describe_stop=describe_stop, attend=attend
    )


def _draw(worker: Worker[Result], meter: Meter, title: str, unit: str, remarks: Remarks) -> None:
    if worker.wait(2 * REFRESH_SECONDS):  # a short job needs no bar
        return
    with LiveLine(sys.stderr, remarks) as live:
        while not worker.wait(REFRESH_SECONDS):
            details = meter.describe(time.monotonic(), unit)
            live.show(title, [Part(details, 0)], meter.share)
