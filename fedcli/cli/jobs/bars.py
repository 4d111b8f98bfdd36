"""Live progress of training on stderr: a bar on a terminal, nothing elsewhere unless -v asks."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from fedcli.cli.screen.output import Remarks, Verbosity
from fedcli.dataclass import dataclass

if TYPE_CHECKING:
    from rich.progress import Progress

    from fedcli.cli.jobs.worker import Worker
    from fedcli.runs.loop import RoundResult

REFRESH_SECONDS = 0.1
LOG_SECONDS = 10.0
_SPEED_WINDOW = 30  # refreshes that the speed is averaged over: three seconds


@dataclass(frozen=True)
class Snapshot:
    """Where training stands, as the worker last told it.

    Attributes:
        round_num: Rounds completed.
        num_rounds: Rounds in total.
        loss: Online loss of the last round.
        accuracy: Online accuracy of the last round.
        num_examples: Examples processed since training started.
    """

    round_num: int
    num_rounds: int
    loss: float
    accuracy: float
    num_examples: int


class Monitor:
    """The newest snapshot: written by the worker after each round, read by the main thread."""

    def __init__(self) -> None:
        """Starts with nothing to show."""
        self.snapshot: Snapshot | None = None

    def update(self, result: RoundResult, num_rounds: int) -> None:
        """Takes note of a completed round; costs next to nothing."""
        before = self.snapshot.num_examples if self.snapshot else 0
        online = result.metrics.get("client_work", {}).get("train")
        if online is not None:
            self.snapshot = Snapshot(
                result.round_num,
                num_rounds,
                online["loss"],
                online["sparse_categorical_accuracy"],
                before + result.num_examples,
            )


class Speed:
    """Rates over the last few seconds."""

    def __init__(self) -> None:
        """Starts without an observation."""
        self._seen: deque[tuple[float, Snapshot]] = deque(maxlen=_SPEED_WINDOW)

    def observe(self, now: float, snapshot: Snapshot) -> tuple[float | None, float | None]:
        """Returns examples a second and seconds left, None while they are unknown.

        Args:
            now: A clock's seconds.
            snapshot: What is true now.
        """
        self._seen.append((now, snapshot))
        then, first = self._seen[0]
        seconds = now - then
        rounds = snapshot.round_num - first.round_num
        if not rounds or seconds <= 0:
            return None, None
        examples = snapshot.num_examples - first.num_examples
        left = (snapshot.num_rounds - snapshot.round_num) * seconds / rounds
        return examples / seconds, left


def attend(worker: Worker[Any], monitor: Monitor, remarks: Remarks) -> None:
    """Shows how the worker gets on until it has ended.

    On a terminal a line is redrawn at most ten times a second; elsewhere -v writes a line now and
    then, and without it nothing is shown.
    """
    if remarks.verbosity > Verbosity.QUIET and sys.stderr.isatty():
        _draw(worker, monitor)
    elif remarks.verbosity == Verbosity.VERBOSE:
        _log(worker, monitor, remarks)
    else:
        worker.wait()


def describe(
    snapshot: Snapshot, examples_a_second: float | None, seconds_left: float | None
) -> str:
    """Returns one line about a snapshot: online loss and accuracy, speed, time left."""
    parts = [f"loss {snapshot.loss:.4f}", f"accuracy {snapshot.accuracy:.4f}"]
    if examples_a_second is not None:
        parts.append(f"{short_number(examples_a_second)} examples/s")
    if seconds_left is not None:
        parts.append(f"{clock(seconds_left)} left")
    return "  ".join(parts)


def short_number(number: float) -> str:
    """Returns a number of at least 0.0001 in at most six characters: 0.35, 950, 12.3k, 4.56M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def clock(seconds: float) -> str:
    """Returns seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _log(worker: Worker[Any], monitor: Monitor, remarks: Remarks) -> None:
    speed = Speed()
    while not worker.wait(LOG_SECONDS):
        snapshot = monitor.snapshot
        if snapshot is not None:
            rates = speed.observe(time.monotonic(), snapshot)
            where = f"round {snapshot.round_num}/{snapshot.num_rounds}"
            remarks.detail(f"{where}  {describe(snapshot, *rates)}")


def _draw(worker: Worker[Any], monitor: Monitor) -> None:
    if worker.wait(2 * REFRESH_SECONDS):  # a short run needs no bar
        return
    speed = Speed()
    with make_bar() as bar:
        task = bar.add_task("starting", total=None, details="")
        while not worker.wait(REFRESH_SECONDS):
            snapshot = monitor.snapshot
            if snapshot is not None:
                rates = speed.observe(time.monotonic(), snapshot)
                bar.update(
                    task,
                    description=f"round {snapshot.round_num}/{snapshot.num_rounds}",
                    total=snapshot.num_rounds,
                    completed=snapshot.round_num,
                    details=describe(snapshot, *rates),
                )
            bar.refresh()


def make_bar() -> Progress:
    """Returns a bar on stderr of description, share done and the task field `details`."""
    from rich.progress import BarColumn, Progress, TextColumn

    from fedcli.cli.screen.render import PrintableConsole

    console = PrintableConsole(stderr=True)
    console.width = max(1, console.width - len("^C"))  # its echo must not wrap, or a line is left
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[details]}", markup=False),
        console=console,
        auto_refresh=False,
        transient=True,
    )
