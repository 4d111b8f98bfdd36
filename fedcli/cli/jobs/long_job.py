"""Long jobs other than training: run in a thread, shown as a bar, ended by Ctrl-C."""

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
from fedcli.progress import Tell

Result = TypeVar("Result")

_RATE_WINDOW = 50  # refreshes that the rate is averaged over: five seconds


class Meter:
    """What a job last told of itself: written by the worker, read by the main thread."""

    def __init__(self) -> None:
        """Starts with nothing known."""
        self.done = 0
        self.total: int | None = None
        self._seen: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)

    def describe(self, now: float, unit: str) -> str:
        """Returns what is done, the rate, and the time left as far as they are known.

        Args:
            now: A clock's seconds.
            unit: What is counted; "B" stands right behind the figures, and "" is not known.
        """
        done, total = self.done, self.total
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # the job has come to its next part
        self._seen.append((now, done))
        gap = "" if unit in ("", "B") else " "
        of_total = "" if total is None else f"/{short_number(total)}"
        parts = [f"{short_number(done)}{of_total}{gap}{unit}"]
        then, before = self._seen[0]
        if now > then and done > before:
            rate = (done - before) / (now - then)
            parts.append(f"{short_number(rate)}{gap}{unit}/s")
            if total is not None:
                parts.append(f"{clock(max(0, total - done) / rate)} left")
        return "  ".join(parts)


def run_job(
    title: str,
    unit: str,
    job: Callable[[Tell], Result],
    *,
    remarks: Remarks,
    describe_stop: Callable[[], str] = lambda: "stopped; nothing was written",
    cancel: CancelFlag | None = None,
) -> Result:
    """Returns what `job` returns.

    On a terminal a bar shows how far it is, unless -q; elsewhere -v writes a line now and then.

    Args:
        title: What the job does, before the bar.
        unit: What it tells the count of: examples, clients, B.
        job: The work. It calls what it is given now and then, which ends it by `Cancelled` once a
            signal has come.
        remarks: Of the command.
        describe_stop: Says in one line, after such an end, what is left and how to go on.
        cancel: Raised by a signal, for calls of the core that a job spends its time in.

    Raises:
        Stopped: A signal came.
    """
    meter = Meter()
    flag = cancel or CancelFlag()

    def tell(done: int, total: int | None) -> None:
        meter.done, meter.total = done, total
        if flag.is_set():
            raise Cancelled

    def attend(worker: Worker[Result]) -> None:
        if remarks.verbosity > Verbosity.QUIET and can_redraw(sys.stderr):
            _draw(worker, meter, title, unit, remarks)
        elif remarks.verbosity == Verbosity.VERBOSE:
            while not worker.wait(LOG_SECONDS):
                remarks.detail(f"{title}: {meter.describe(time.monotonic(), unit)}")

    return run_stoppable(lambda: job(tell), cancel=flag, describe_stop=describe_stop, attend=attend)


def _draw(worker: Worker[Result], meter: Meter, title: str, unit: str, remarks: Remarks) -> None:
    if worker.wait(2 * REFRESH_SECONDS):  # a short job needs no bar
        return
    with LiveLine(sys.stderr, remarks) as live:
        while not worker.wait(REFRESH_SECONDS):
            details = meter.describe(time.monotonic(), unit)
            done, total = meter.done, meter.total
            live.show(title, [Part(details, 0)], done / total if total else None)
